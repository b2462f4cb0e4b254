//! A table that is being loaded.

use hps_core::batch::Batch;
use hps_core::key::Key;
use hps_core::row::{Rows, RowsMut};
use hps_core::tier::TableLoad;
use hps_core::{Error, ErrorKind, Result};

use crate::database::Database;
use crate::error::table_storage;
use crate::lookup::Reader;
use crate::options::{Durability, compact_options, scan_options};
use crate::table::Table;
use crate::write::{Writer, check_rows};

/// A load into a column family of its own.
pub(crate) struct SsdLoad<'t> {
    pub(crate) database: &'t Database,
    pub(crate) table: &'t Table,
    pub(crate) reader: &'t Reader,
    pub(crate) max_batch_size: usize,
    /// The column family that is loaded.
    pub(crate) name: String,
    pub(crate) state: LoadState,
}

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadState {
    /// Rows can be put.
    Open,
    /// A row that was put may be lost: it cannot be committed.
    Failed,
    /// It was switched to, or the switch failed half-way; either way there is nothing to remove.
    Ended,
}

impl SsdLoad<'_> {
    fn failed(&self, what: &str, cause: rocksdb::Error) -> Error {
        table_storage(what, self.database.path(), &self.table.spec().name, cause)
    }

    /// Counts the rows. They were not logged but only just written: reading them all verifies their checksums once,
    /// before they replace anything.
    fn count(&self) -> Result<u64> {
        let column_family = self.database.column_family(&self.name)?;
        let mut entries = self.database.db().raw_iterator_cf_opt(&column_family, scan_options());
        let mut rows = 0;
        entries.seek_to_first();
        while entries.valid() {
            rows += 1;
            entries.next();
        }
        entries.status().map_err(|error| self.failed("cannot read back the rows that were loaded", error))?;
        Ok(rows)
    }
}

impl TableLoad for SsdLoad<'_> {
    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        check_rows(self.table, keys, rows)?;
        let column_family = self.database.column_family(&self.name)?;
        let writer = Writer {
            database: self.database,
            table: self.table,
            column_family: &column_family,
            max_batch_size: self.max_batch_size,
            // Rows of a load that is not committed need not survive: logging them would write each twice.
            durability: Durability::Unlogged,
        };
        writer.put(keys, rows).inspect_err(|_| self.state = LoadState::Failed)
    }

    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        let column_family = self.database.column_family(&self.name)?;
        self.reader.lookup(self.database, self.table, &column_family, batch, rows, misses)
    }

    fn commit(mut self: Box<Self>, record: &str) -> Result<u64> {
        if self.state != LoadState::Open {
            return Err(Error::new(
                ErrorKind::Storage,
                "the load cannot be completed: writing its rows failed",
            )
            .at("table", &self.table.spec().name)
            .at("database", self.database.path().display()));
        }
        let column_family = self.database.column_family(&self.name)?;
        self.database
            .db()
            .flush_cf(&column_family)
            .map_err(|error| self.failed("cannot write the rows that were loaded to the disk", error))?;
        // One sorted run: each lookup asks one file, and no later start has to tidy up. If it fails, more files are
        // left, each complete; an error that matters shows in the count.
        self.database.db().compact_range_cf_opt(
            &column_family,
            None::<&[u8]>,
            None::<&[u8]>,
            &compact_options(),
        );
        drop(column_family);
        let rows = self.count()?;
        self.state = LoadState::Ended;
        self.table.commit_load(self.database, &self.name, rows, record)?;
        Ok(rows)
    }
}

impl Drop for SsdLoad<'_> {
    fn drop(&mut self) {
        if self.state != LoadState::Ended {
            self.table.abandon_load(self.database, &self.name);
        }
    }
}
