//! Opening, the last step: rows into the memory of GPUs, whole tables and the hottest rows that a cache has room for.
//!
//! Rows come from the tiers below, never from model files behind their back. Which rows are hottest is the caller's guess; the
//! order of the model files is what is at hand when a store is opened.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::device::{DeviceTier, Part};
use crate::error::Result;
use crate::key::{Key, TableId};
use crate::observer::{Observer, Progress, Silent};
use crate::row::{Rows, RowsMut, uneven};
use crate::store::{EmbeddingStore, Table};
use crate::update_clock::ClockSnapshot;

/// Rows that are put at a time.
const PIECE_BYTES: usize = 4 << 20;
const FILLING: &str = "filling the GPU";

impl EmbeddingStore {
    /// Gives every device the rows that it wants of each storage table. `hottest` tells a table's keys, hottest first, up to a
    /// number; None if nothing is known of them. A cache is then given rows in the order of the truth.
    ///
    /// # Errors
    /// Whatever the tiers and `hottest` report.
    pub fn fill_devices(
        &self,
        hottest: &dyn Fn(TableId, u64) -> Result<Option<Vec<Key>>>,
        observer: &dyn Observer,
    ) -> Result<()> {
        for device in self.devices() {
            for table in self.served_storages(device) {
                let filling = Filling { store: self, device, table, observer };
                filling.fill(hottest).map_err(|error| table.name_in(error))?;
            }
        }
        Ok(())
    }

    /// Gives a device that holds the table whole the rows of all keys of the truth but these, which are in ascending order.
    pub(crate) fn put_all_but(&self, device: &dyn DeviceTier, table: &Table, held: &[Key]) -> Result<()> {
        let filling = Filling { store: self, device, table, observer: &Silent };
        filling.scan(u64::MAX, Part::Whole, &|key| held.binary_search(&key).is_err())
    }

    /// A table for each storage table that a device serves: the first of those that share it.
    pub(crate) fn served_storages<'s>(
        &'s self,
        device: &'s dyn DeviceTier,
    ) -> impl Iterator<Item = &'s Table> {
        let served = move || self.tables().iter().enumerate().filter(|(number, _)| device.serves(*number));
        served().filter_map(move |(number, table)| {
            let first = served().find(|(_, other)| other.storage() == table.storage());
            (first.map(|(first, _)| first) == Some(number)).then_some(table)
        })
    }
}

struct Filling<'a> {
    store: &'a EmbeddingStore,
    device: &'a dyn DeviceTier,
    table: &'a Table,
    observer: &'a dyn Observer,
}

impl Filling<'_> {
    fn fill(&self, hottest: &dyn Fn(TableId, u64) -> Result<Option<Vec<Key>>>) -> Result<()> {
        let storage = self.table.storage();
        let total = self.store.truth().usage(storage)?.rows;
        self.device.map_rows(storage, &mut |done| {
            self.progress("telling the GPU where rows are", done, total.max(done));
        })?;
        let wants = self.device.wants(storage);
        if wants.all {
            self.scan(u64::MAX, Part::Whole, &|_| true)?;
        }
        if wants.hottest > 0 {
            match hottest(storage, wants.hottest)? {
                Some(keys) => self.look_up(&keys)?,
                None => self.scan(wants.hottest, Part::Cache, &|_| true)?,
            }
        }
        Ok(())
    }

    fn progress(&self, what: &'static str, done: u64, total: u64) {
        let name = self.store.storage_name(self.table.storage());
        self.observer.progress(Progress { what, table: name, done, total });
    }

    /// Gives a part the first rows that the truth shows of the keys that are wanted.
    fn scan(&self, most: u64, part: Part, is_wanted: &dyn Fn(Key) -> bool) -> Result<()> {
        let storage = self.table.storage();
        let truth = self.store.truth();
        let total = truth.usage(storage)?.rows.min(most);
        let snapshot = self.store.clock(storage)?.snapshot();
        let row_bytes = self.table.row_bytes();
        let at_once = (PIECE_BYTES / row_bytes.max(1)).max(1);
        let mut piece = Piece { keys: Vec::new(), rows: Vec::new() };
        let mut done = 0u64;
        truth.scan(storage, &mut |keys, rows| {
            let left = usize::try_from(most - done - piece.keys.len() as u64).unwrap_or(usize::MAX);
            let before = piece.keys.len();
            let wanted = keys.iter().zip(rows.iter()).filter(|(key, _)| is_wanted(**key));
            for (key, row) in wanted.take(left) {
                piece.keys.push(*key);
                piece.rows.extend_from_slice(row);
            }
            let taken = piece.keys.len() - before;
            if piece.keys.len() >= at_once || taken == left {
                done += piece.keys.len() as u64;
                self.put(part, &mut piece, &snapshot)?;
                self.progress(FILLING, done, total.max(done + 1));
                if taken == left {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        done += piece.keys.len() as u64;
        self.put(part, &mut piece, &snapshot)?;
        self.progress(FILLING, done, done);
        Ok(())
    }

    /// Gives the cache the rows of these keys, in their order.
    fn look_up(&self, keys: &[Key]) -> Result<()> {
        let storage = self.table.storage();
        let row_bytes = self.table.row_bytes();
        let at_once = (PIECE_BYTES / row_bytes.max(1)).max(1);
        let mut seen = HashSet::new();
        let mut piece = Piece { keys: Vec::new(), rows: Vec::new() };
        let mut done = 0;
        for keys in keys.chunks(at_once) {
            // Of a key that comes again, the first place counts.
            let new: Vec<Key> = keys.iter().copied().filter(|&key| seen.insert(key)).collect();
            let snapshot = self.store.clock(storage)?.snapshot();
            (piece.keys, piece.rows) = self.read(&new)?;
            self.put(Part::Cache, &mut piece, &snapshot)?;
            done += keys.len() as u64;
            self.progress(FILLING, done, done + 1);
        }
        self.progress(FILLING, done, done);
        Ok(())
    }

    fn put(&self, part: Part, piece: &mut Piece, snapshot: &ClockSnapshot) -> Result<()> {
        let storage = self.table.storage();
        let row_bytes = self.table.row_bytes();
        let mut snapshot = snapshot.clone();
        while !piece.keys.is_empty() {
            let rows = Rows::new(&piece.rows, row_bytes).ok_or_else(uneven)?;
            let mut left_out = Vec::new();
            self.device.put(storage, part, (&piece.keys, rows), &snapshot, &mut left_out)?;
            // Keys that may have been written since they were read are read again: a whole table must not lack them.
            snapshot = self.store.clock(storage)?.snapshot();
            (piece.keys, piece.rows) = self.read(&left_out)?;
        }
        Ok(())
    }

    /// Reads rows from the tiers below: of those keys that have one.
    fn read(&self, keys: &[Key]) -> Result<(Vec<Key>, Vec<u8>)> {
        let row_bytes = self.table.row_bytes();
        let mut bytes = vec![0; keys.len() * row_bytes];
        let mut rows = RowsMut::from_bytes(&mut bytes, row_bytes).ok_or_else(uneven)?;
        let missing = self.store.walk().gather(self.table, keys, &mut rows)?.missing;
        let mut missing = missing.iter().peekable();
        let mut found = (Vec::new(), Vec::new());
        for (i, (&key, row)) in keys.iter().zip(bytes.chunks_exact(row_bytes)).enumerate() {
            if missing.next_if_eq(&&(i as u32)).is_none() {
                found.0.push(key);
                found.1.extend_from_slice(row);
            }
        }
        Ok(found)
    }
}

struct Piece {
    keys: Vec<Key>,
    rows: Vec<u8>,
}
