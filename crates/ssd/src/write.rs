//! Batched writes of rows.

use hps_core::key::{Key, display_key};
use hps_core::row::Rows;
use hps_core::{Error, ErrorKind, Result};
use rocksdb::WriteBatch;

use crate::database::{ColumnFamily, Database};
use crate::entry::{fits, key_bytes, with_stored_key};
use crate::error::table_storage;
use crate::lookup::check_row_bytes;
use crate::options::{Durability, write_options};
use crate::table::Table;

/// The most bytes of one write, whatever `max_batch_size` says: RocksDB copies a write to its log and its memtable as
/// one piece.
const MAX_WRITE_BYTES: usize = 8 << 20;

/// What RocksDB adds to a key and a value in a write: a tag, the column family and two lengths.
const OVERHEAD_BYTES: usize = 16;

/// Refuses rows that do not match their keys or the table, before anything is written.
pub(crate) fn check_rows(table: &Table, keys: &[Key], rows: Rows<'_>) -> Result<()> {
    check_row_bytes(table, rows.row_bytes())?;
    let spec = table.spec();
    if keys.len() != rows.len() {
        return Err(Error::new(ErrorKind::InvalidArgument, "there is not one row for each key")
            .at("table", &spec.name)
            .at("keys", keys.len())
            .at("rows", rows.len()));
    }
    match keys.iter().find(|&&key| !fits(key, spec.key_width)) {
        None => Ok(()),
        Some(&key) => {
            Err(Error::new(ErrorKind::InvalidArgument, "a key does not fit the table's 32-bit keys")
                .at("table", &spec.name)
                .at("key", display_key(key, spec.key_width)))
        }
    }
}

/// Where rows are written, and how.
pub(crate) struct Writer<'w, 'd> {
    pub(crate) database: &'d Database,
    pub(crate) table: &'w Table,
    pub(crate) column_family: &'w ColumnFamily<'d>,
    pub(crate) max_batch_size: usize,
    /// Of the last write of a call, which covers those before it.
    pub(crate) durability: Durability,
}

impl Writer<'_, '_> {
    /// Writes rows that [`check_rows`] has let pass. Of a repeated key the last row wins.
    pub(crate) fn put(&self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let width = self.table.spec().key_width;
        let row_bytes = rows.row_bytes();
        let rows_per_write = self.entries_per_write(row_bytes);
        let chunk_bytes = rows_per_write.saturating_mul(row_bytes);
        let mut chunks = keys.chunks(rows_per_write).zip(rows.bytes().chunks(chunk_bytes)).peekable();
        while let Some((keys, rows)) = chunks.next() {
            let num_bytes = rows.len() + keys.len() * (key_bytes(width) + OVERHEAD_BYTES);
            let mut batch = WriteBatch::with_capacity_bytes(num_bytes);
            for (&key, row) in keys.iter().zip(rows.chunks_exact(row_bytes)) {
                with_stored_key(key, width, |key| batch.put_cf(self.column_family, key, row));
            }
            self.write(batch, chunks.peek().is_none())?;
        }
        Ok(())
    }

    /// Removes keys; those that cannot be stored are absent.
    pub(crate) fn delete(&self, keys: &[Key]) -> Result<()> {
        let width = self.table.spec().key_width;
        let mut chunks = keys.chunks(self.entries_per_write(0)).peekable();
        while let Some(keys) = chunks.next() {
            let mut batch = WriteBatch::default();
            for &key in keys.iter().filter(|&&key| fits(key, width)) {
                with_stored_key(key, width, |key| batch.delete_cf(self.column_family, key));
            }
            self.write(batch, chunks.peek().is_none())?;
        }
        Ok(())
    }

    fn entries_per_write(&self, row_bytes: usize) -> usize {
        let entry_bytes = row_bytes.saturating_add(8 + OVERHEAD_BYTES);
        (MAX_WRITE_BYTES / entry_bytes).clamp(1, self.max_batch_size.max(1))
    }

    fn write(&self, batch: WriteBatch, is_last: bool) -> Result<()> {
        let durability = match self.durability {
            // A synced write syncs the log up to itself.
            Durability::Synced if !is_last => Durability::Logged,
            durability => durability,
        };
        self.database.db().write_opt(batch, &write_options(durability)).map_err(|error| {
            table_storage("cannot write rows", self.database.path(), &self.table.spec().name, error)
        })
    }
}
