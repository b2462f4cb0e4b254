//! Opening, the last step: rows into the memory of GPUs, whole tables or the hottest rows that a cache has room for.
//!
//! Rows come from the tiers below, never from model files behind their back. Which rows are hottest is the caller's guess; the
//! order of the model files is what is at hand when a store is opened.

use std::collections::HashSet;
use std::ops::ControlFlow;

use crate::device::DeviceTier;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId};
use crate::observer::{Observer, Progress};
use crate::row::{Rows, RowsMut};
use crate::store::{EmbeddingStore, Table};
use crate::update_clock::ClockSnapshot;

/// Rows that are put at a time.
const PIECE_BYTES: usize = 4 << 20;

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
            for (number, table) in self.tables().iter().enumerate() {
                let is_first =
                    self.tables().iter().position(|other| other.storage() == table.storage()) == Some(number);
                if is_first && device.serves(number) {
                    let filling = Filling { store: self, device, table, observer };
                    filling.fill(hottest).map_err(|error| table.name_in(error))?;
                }
            }
        }
        Ok(())
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
        match self.device.wants(storage) {
            Some(0) => Ok(()),
            None => self.scan(u64::MAX),
            Some(most) => match hottest(storage, most)? {
                Some(keys) => self.look_up(&keys),
                None => self.scan(most),
            },
        }
    }

    fn progress(&self, done: u64, total: u64) {
        let name = self.store.storage_name(self.table.storage());
        self.observer.progress(Progress { what: "filling the GPU", table: name, done, total });
    }

    /// Puts the first rows that the truth shows.
    fn scan(&self, most: u64) -> Result<()> {
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
            let taken = keys.len().min(left);
            piece.keys.extend(keys.iter().take(taken));
            piece.rows.extend_from_slice(rows.bytes().get(..taken * row_bytes).ok_or_else(uneven)?);
            if piece.keys.len() >= at_once || taken == left {
                done += piece.keys.len() as u64;
                let goes_on = self.put(&mut piece, &snapshot)?;
                self.progress(done, total.max(done + 1));
                if !goes_on || taken == left {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        done += piece.keys.len() as u64;
        self.put(&mut piece, &snapshot)?;
        self.progress(done, done);
        Ok(())
    }

    /// Puts the rows of these keys, in their order.
    fn look_up(&self, keys: &[Key]) -> Result<()> {
        let storage = self.table.storage();
        let row_bytes = self.table.row_bytes();
        let at_once = (PIECE_BYTES / row_bytes.max(1)).max(1);
        let mut seen = HashSet::new();
        let mut piece = Piece { keys: Vec::new(), rows: Vec::new() };
        let mut done = 0;
        for keys in keys.chunks(at_once) {
            let snapshot = self.store.clock(storage)?.snapshot();
            let mut bytes = vec![0; keys.len() * row_bytes];
            let mut rows = RowsMut::from_bytes(&mut bytes, row_bytes).ok_or_else(uneven)?;
            let missing = self.store.walk().lookup(self.table, keys, &mut rows)?.missing;
            let mut missing = missing.iter().peekable();
            for (i, (&key, row)) in keys.iter().zip(bytes.chunks_exact(row_bytes)).enumerate() {
                // Keys that are gone, or come twice, are left out.
                if missing.next_if_eq(&&(i as u32)).is_none() && seen.insert(key) {
                    piece.keys.push(key);
                    piece.rows.extend_from_slice(row);
                }
            }
            let goes_on = self.put(&mut piece, &snapshot)?;
            done += keys.len() as u64;
            self.progress(done, done + 1);
            if !goes_on {
                break;
            }
        }
        self.progress(done, done);
        Ok(())
    }

    fn put(&self, piece: &mut Piece, snapshot: &ClockSnapshot) -> Result<bool> {
        if piece.keys.is_empty() {
            return Ok(true);
        }
        let rows = Rows::new(&piece.rows, self.table.row_bytes()).ok_or_else(uneven)?;
        let goes_on = self.device.put(self.table.storage(), &piece.keys, rows, snapshot)?;
        piece.keys.clear();
        piece.rows.clear();
        Ok(goes_on)
    }
}

struct Piece {
    keys: Vec<Key>,
    rows: Vec<u8>,
}

fn uneven() -> Error {
    Error::new(ErrorKind::Internal, "a buffer is no whole number of rows")
}
