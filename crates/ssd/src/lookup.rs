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
use rocksdb::ReadOptions;

use crate::database::{ColumnFamily, Database};
use crate::entry::{fits, key_bytes, order_of, read_key, wrong_row};
use crate::options::lookup_options;
use crate::table::Table;

/// The most distinct keys that are read at a time, whatever `max_batch_size` says: their rows are copied twice.
const MAX_KEYS_PER_READ: usize = 4096;

/// The fewest keys for another thread. To read them takes one thread 30 us where they are in memory and 1.5 ms where they are not, to wake
/// another takes less.
const MIN_KEYS_PER_THREAD: usize = 16;

/// The keys of one call of RocksDB, which reads so many at a time in any case.
const KEYS_PER_CALL: usize = 32;

/// What was found for some keys.
struct Part {
    is_found: Vec<bool>,
    /// Of the keys that were found, one after another.
    rows: Vec<u8>,
}

impl Part {
    /// With room for so many keys: the thread that reads them asks the allocator for nothing.
    fn new(num_keys: usize, row_bytes: usize) -> Result<Self> {
        let mut part = Self { is_found: Vec::new(), rows: Vec::new() };
        let reserved = part.is_found.try_reserve_exact(num_keys);
        reserved.and_then(|()| part.rows.try_reserve_exact(num_keys * row_bytes)).map_err(|why| {
            Error::new(ErrorKind::OutOfMemory, "no memory for the rows of a lookup").caused_by(why)
        })?;
        Ok(part)
    }

    fn push(&mut self, row: Option<&[u8]>) {
        self.is_found.push(row.is_some());
        self.rows.extend_from_slice(row.unwrap_or_default());
    }

    /// The row of each key, if it was found.
    fn rows(&self, row_bytes: usize) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rows = self.rows.chunks_exact(row_bytes);
        self.is_found.iter().map(move |&is_found| if is_found { rows.next() } else { None })
    }
}

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
        let parts = self.find_all(keys)?;
        let found = parts.iter().flat_map(|part| part.rows(self.table.spec().row_bytes));
        for (same_key, row) in chunk.chunk_by(|a, b| a.order == b.order).zip(found) {
            let Some(row) = row else {
                misses.extend(same_key.iter().map(|entry| entry.position));
                continue;
            };
            for entry in same_key {
                if !rows.write(entry.position as usize, row) {
                    return Err(Error::new(ErrorKind::InvalidArgument, "there are fewer rows than keys")
                        .at("table", &self.table.spec().name)
                        .at("rows", rows.len())
                        .at("position", entry.position));
                }
            }
        }
        Ok(())
    }

    /// What is stored under each of `keys`, which are in order: in parts, one for each thread.
    fn find_all(&self, keys: &[u8]) -> Result<Vec<Part>> {
        let key_bytes = key_bytes(self.table.spec().key_width);
        let num_keys = keys.len() / key_bytes;
        let num_parts = (num_keys / MIN_KEYS_PER_THREAD).clamp(1, self.reader.num_threads);
        let threads = if num_parts > 1 { self.reader.threads() } else { None };
        let part_keys = if threads.is_some() { num_keys.div_ceil(num_parts) } else { num_keys };
        let mut parts = Vec::new();
        for keys in keys.chunks(part_keys * key_bytes) {
            parts.push((keys, Part::new(keys.len() / key_bytes, self.table.spec().row_bytes)?, Ok(())));
        }
        let find = |(keys, part, result): &mut (&[u8], Part, Result<()>)| *result = self.find(keys, part);
        match (threads, parts.split_first_mut()) {
            // The caller reads a part itself: as many reads are under way as there are callers, however busy the threads are.
            (Some(threads), Some((first, others))) => threads.in_place_scope(|scope| {
                for part in others {
                    scope.spawn(|_| find(part));
                }
                find(first);
            }),
            _ => parts.iter_mut().for_each(find),
        }
        parts.into_iter().map(|(_, part, result)| result.map(|()| part)).collect()
    }

    /// A few keys at a time: what was found is copied, and its block given back, before others are read. So a thread holds few blocks,
    /// and the allocator does not end up with as many as all threads ever had.
    fn find(&self, keys: &[u8], part: &mut Part) -> Result<()> {
        let spec = self.table.spec();
        let key_bytes = key_bytes(spec.key_width);
        for keys in keys.chunks(KEYS_PER_CALL * key_bytes) {
            let stored_keys = || keys.chunks_exact(key_bytes);
            let options = &self.reader.options;
            let found =
                self.database.db().batched_multi_get_cf_opt(self.column_family, stored_keys(), true, options);
            for (stored_key, row) in stored_keys().zip(found) {
                let row = self.table.read_ok(self.database, row)?;
                if let Some(row) = &row
                    && row.len() != spec.row_bytes
                {
                    let key = read_key(stored_key, spec.key_width).unwrap_or_default();
                    return Err(
                        wrong_row(spec, key, row.len()).at("database", self.database.path().display())
                    );
                }
                part.push(row.as_deref());
            }
        }
        Ok(())
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
