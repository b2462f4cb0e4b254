//! Batched point reads.
//!
//! A disk answers many reads at a time about as fast as one. So the distinct keys of a lookup, in the order of the disk, are split over
//! threads, each of which waits for its own.

use std::sync::OnceLock;

use hps_core::batch::Batch;
use hps_core::key::KeyWidth;
use hps_core::row::RowsMut;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rayon::{ThreadPool, ThreadPoolBuilder};
use rocksdb::{DBPinnableSlice, ReadOptions};

use crate::database::{ColumnFamily, Database};
use crate::entry::{fits, key_bytes, key_of, order_of, wrong_row};
use crate::options::lookup_options;
use crate::table::Table;

/// The most distinct keys that are read at a time, whatever `max_batch_size` says. Every row found keeps its block in memory
/// until it is copied: 4,096 blocks of 4 KiB are 16 MiB.
const MAX_KEYS_PER_READ: usize = 4096;

/// The fewest keys for another thread. To read them takes one thread 30 us where they are in memory and 1.5 ms where they are not, to wake
/// another takes less.
const MIN_KEYS_PER_THREAD: usize = 16;

/// What was found for some keys.
type Found<'d> = Vec<std::result::Result<Option<DBPinnableSlice<'d>>, rocksdb::Error>>;

/// A position of the batch and where its key sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    order: u64,
    position: u32,
}

/// Memory of one lookup, used again by the next.
#[derive(Debug, Default)]
struct Scratch {
    entries: Vec<Entry>,
    /// Stored keys of one read, one after another.
    keys: Vec<u8>,
}

/// What lookups of a tier need besides the table.
pub(crate) struct Reader {
    options: ReadOptions,
    keys_per_read: usize,
    num_threads: usize,
    /// Started with the first lookup that has something for them.
    threads: OnceLock<ThreadPool>,
    /// As many as lookups have run at once.
    idle: Mutex<Vec<Scratch>>,
}

impl Reader {
    pub(crate) fn new(max_batch_size: usize, num_threads: usize) -> Self {
        Self {
            options: lookup_options(),
            keys_per_read: max_batch_size.clamp(1, MAX_KEYS_PER_READ),
            num_threads: num_threads.max(1),
            threads: OnceLock::new(),
            idle: Mutex::default(),
        }
    }

    /// [`Tier::lookup`](hps_core::tier::Tier::lookup) in one column family of a table.
    pub(crate) fn lookup(
        &self,
        database: &Database,
        table: &Table,
        column_family: &ColumnFamily<'_>,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let mut scratch = self.idle.lock().pop().unwrap_or_default();
        let read = Read { reader: self, database, table, column_family };
        let result = read.run(&mut scratch, batch, rows, misses);
        self.idle.lock().push(scratch);
        result
    }

    /// None if the system starts no threads now: then the caller's reads everything.
    fn threads(&self) -> Option<&ThreadPool> {
        if self.threads.get().is_none() {
            let builder = ThreadPoolBuilder::new().num_threads(self.num_threads);
            let started = builder.thread_name(|number| format!("hps-ssd-{number}")).build().ok()?;
            // Somebody may have been faster.
            drop(self.threads.set(started));
        }
        self.threads.get()
    }
}

/// Refuses rows of another size than the table's.
pub(crate) fn check_row_bytes(table: &Table, row_bytes: usize) -> Result<()> {
    let spec = table.spec();
    if row_bytes == spec.row_bytes {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, "rows have another size than those of the table")
        .at("table", &spec.name)
        .at("found bytes", row_bytes)
        .at("expected bytes", spec.row_bytes))
}

/// One lookup.
struct Read<'r, 'd> {
    reader: &'r Reader,
    database: &'d Database,
    table: &'r Table,
    column_family: &'r ColumnFamily<'d>,
}

impl Read<'_, '_> {
    fn run(
        &self,
        scratch: &mut Scratch,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        check_row_bytes(self.table, rows.row_bytes())?;
        let width = self.table.spec().key_width;
        let already_missed = misses.len();
        let Scratch { entries, keys } = scratch;
        entries.clear();
        let out_of_memory =
            |why| Error::new(ErrorKind::OutOfMemory, "no memory to sort the keys of a lookup").caused_by(why);
        entries.try_reserve(batch.len()).map_err(out_of_memory)?;
        misses.try_reserve(batch.len()).map_err(out_of_memory)?;
        for (position, key) in batch.iter() {
            if fits(key, width) {
                entries.push(Entry { order: order_of(key, width), position });
            } else {
                misses.push(position); // no such key can have been stored
            }
        }
        // Neighbours on disk are read together, and repeats of a key stand side by side.
        entries.sort_unstable();

        let mut remaining = entries.as_slice();
        while !remaining.is_empty() {
            let num_entries = gather_distinct(remaining, self.reader.keys_per_read, width, keys);
            let (chunk, rest) = remaining.split_at_checked(num_entries).unwrap_or((remaining, &[]));
            self.read_chunk(chunk, keys, rows, misses)?;
            remaining = rest;
        }
        if let Some(missed) = misses.get_mut(already_missed..) {
            missed.sort_unstable();
        }
        Ok(())
    }

    /// Reads the keys of `chunk`, whose distinct stored forms are `keys`.
    fn read_chunk(
        &self,
        chunk: &[Entry],
        keys: &[u8],
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let spec = self.table.spec();
        for (same_key, row) in chunk.chunk_by(|a, b| a.order == b.order).zip(self.find_all(keys)) {
            let Some(row) = self.table.read_ok(self.database, row)? else {
                misses.extend(same_key.iter().map(|entry| entry.position));
                continue;
            };
            for entry in same_key {
                if row.len() != spec.row_bytes {
                    let key = key_of(entry.order, spec.key_width);
                    return Err(
                        wrong_row(spec, key, row.len()).at("database", self.database.path().display())
                    );
                }
                if !rows.write(entry.position as usize, &row) {
                    return Err(Error::new(ErrorKind::InvalidArgument, "there are fewer rows than keys")
                        .at("table", &spec.name)
                        .at("rows", rows.len())
                        .at("position", entry.position));
                }
            }
        }
        Ok(())
    }
}

impl<'d> Read<'_, 'd> {
    /// What is stored under each of `keys`, which are in order.
    fn find_all(&self, keys: &[u8]) -> Found<'d> {
        let key_bytes = key_bytes(self.table.spec().key_width);
        let num_keys = keys.len() / key_bytes;
        let num_parts = (num_keys / MIN_KEYS_PER_THREAD).min(self.reader.num_threads);
        let Some(threads) = (num_parts > 1).then(|| self.reader.threads()).flatten() else {
            return self.find(keys);
        };
        let mut parts = keys.chunks(num_keys.div_ceil(num_parts) * key_bytes);
        let first = parts.next().unwrap_or_default();
        let mut others: Vec<(&[u8], Found<'d>)> = parts.map(|part| (part, Found::new())).collect();
        // The caller reads a part itself: as many reads are under way as there are callers, however busy the threads are.
        let mut found = threads.in_place_scope(|scope| {
            for (part, found) in &mut others {
                scope.spawn(|_| *found = self.find(part));
            }
            self.find(first)
        });
        found.extend(others.into_iter().flat_map(|(_, found)| found));
        found
    }

    fn find(&self, keys: &[u8]) -> Found<'d> {
        let stored_keys = keys.chunks_exact(key_bytes(self.table.spec().key_width));
        let options = &self.reader.options;
        self.database.db().batched_multi_get_cf_opt(self.column_family, stored_keys, true, options)
    }
}

/// Puts the stored forms of the first `max_keys` distinct keys of `entries` into `keys`. Returns how many entries have
/// these keys.
fn gather_distinct(entries: &[Entry], max_keys: usize, width: KeyWidth, keys: &mut Vec<u8>) -> usize {
    keys.clear();
    let mut num_entries = 0;
    for same_key in entries.chunk_by(|a, b| a.order == b.order).take(max_keys) {
        if let Some(entry) = same_key.first() {
            match width {
                KeyWidth::Bits64 => keys.extend_from_slice(&entry.order.to_be_bytes()),
                KeyWidth::Bits32 => keys.extend_from_slice(&(entry.order as u32).to_be_bytes()),
            }
        }
        num_entries += same_key.len();
    }
    num_entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_takes_each_key_once_with_all_its_positions() {
        let entry = |order, position| Entry { order, position };
        let entries = [entry(1, 4), entry(1, 9), entry(2, 0), entry(3, 1), entry(3, 2)];
        let mut keys = vec![9];
        assert_eq!(gather_distinct(&entries, 2, KeyWidth::Bits64, &mut keys), 3);
        assert_eq!(keys, [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(gather_distinct(&entries[3..], 2, KeyWidth::Bits32, &mut keys), 2);
        assert_eq!(keys, [0, 0, 0, 3]);
    }
}
