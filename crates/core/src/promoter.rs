//! Carries rows up behind the lookups that found them: one thread, one bounded queue.
//!
//! A lookup never waits for it: rows that the queue has no room for are not promoted this time, and counted as dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::background::Background;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId};
use crate::observer::Observer;
use crate::row::Rows;
use crate::tier::{CacheTier, Promotion};
use crate::update_clock::{ClockSnapshot, UpdateClock};

/// What waits for promotion takes at most this much memory.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// A lookup's rows are queued in pieces of about this size: small enough that a large lookup is promoted in part when the
/// queue is nearly full.
pub(crate) const PIECE_BYTES: usize = 4 << 20;

/// Rows that a lookup found below a cache tier.
pub(crate) struct Found {
    pub(crate) table: TableId,
    pub(crate) keys: Vec<Key>,
    pub(crate) rows: Vec<u8>,
    pub(crate) row_bytes: usize,
    pub(crate) snapshot: Arc<ClockSnapshot>,
    /// Index of the cache tier that missed them.
    pub(crate) cache: usize,
}

impl Found {
    /// Room for `num_rows` rows; None if memory cannot be had.
    pub(crate) fn with_capacity(
        table: TableId,
        cache: usize,
        row_bytes: usize,
        snapshot: &Arc<ClockSnapshot>,
        num_rows: usize,
    ) -> Option<Self> {
        let (mut keys, mut rows) = (Vec::new(), Vec::new());
        keys.try_reserve_exact(num_rows).ok()?;
        rows.try_reserve_exact(num_rows.checked_mul(row_bytes)?).ok()?;
        Some(Self { table, keys, rows, row_bytes, snapshot: Arc::clone(snapshot), cache })
    }

    fn num_bytes(&self) -> usize {
        bytes_for(self.keys.len(), self.row_bytes)
    }
}

/// Memory of `num_rows` queued rows. The snapshot is shared by the pieces of one lookup; most lookups are one piece.
fn bytes_for(num_rows: usize, row_bytes: usize) -> usize {
    num_rows * (row_bytes + size_of::<Key>()) + ClockSnapshot::NUM_BYTES + size_of::<Found>()
}

/// What the thread and its owner share.
struct Shared {
    caches: Vec<Arc<dyn CacheTier>>,
    clocks: Arc<[UpdateClock]>,
    queued_bytes: AtomicUsize,
    /// Rows promoted, by table.
    promoted: Vec<AtomicU64>,
    /// Rows not promoted for want of room, by table.
    dropped: Vec<AtomicU64>,
}

/// See the module.
pub(crate) struct Promoter {
    shared: Arc<Shared>,
    background: Background<Found>,
}

impl Promoter {
    pub(crate) fn start(
        caches: Vec<Arc<dyn CacheTier>>,
        clocks: Arc<[UpdateClock]>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            caches,
            queued_bytes: AtomicUsize::new(0),
            promoted: clocks.iter().map(|_| AtomicU64::new(0)).collect(),
            dropped: clocks.iter().map(|_| AtomicU64::new(0)).collect(),
            clocks,
        });
        let for_thread = Arc::clone(&shared);
        let promote = move |found: Found| {
            for_thread.queued_bytes.fetch_sub(found.num_bytes(), Ordering::Relaxed);
            for_thread.promote(&found)
        };
        let background = Background::start("hps-promote", "promoted", observer, promote)?;
        Ok(Self { shared, background })
    }

    /// True if there is room for that many rows now: asked before they are copied.
    pub(crate) fn has_room(&self, num_rows: usize, row_bytes: usize) -> bool {
        self.shared.queued_bytes.load(Ordering::Relaxed) + bytes_for(num_rows, row_bytes) <= MAX_QUEUED_BYTES
    }

    /// Counts rows that were not promoted.
    pub(crate) fn drop_rows(&self, table: TableId, num_rows: usize) {
        if let Some(dropped) = self.shared.dropped.get(table.index()) {
            dropped.fetch_add(num_rows as u64, Ordering::Relaxed);
        }
    }

    /// Queues rows for promotion, or drops them if the queue is full.
    pub(crate) fn offer(&self, found: Found) {
        let num_bytes = found.num_bytes();
        let queued_bytes = &self.shared.queued_bytes;
        // Under the queue's lock: two that offer at the same time do not both take the last room.
        let refused = self.background.offer(found, |_| {
            let has_room = queued_bytes.load(Ordering::Relaxed) + num_bytes <= MAX_QUEUED_BYTES;
            if has_room {
                queued_bytes.fetch_add(num_bytes, Ordering::Relaxed);
            }
            has_room
        });
        if let Err(found) = refused {
            self.drop_rows(found.table, found.keys.len());
        }
    }

    /// Waits until everything offered so far was promoted or dropped.
    pub(crate) fn drain(&self) {
        self.background.drain();
    }

    /// Rows of a table that were promoted, and rows that were dropped for want of room.
    pub(crate) fn counts(&self, table: TableId) -> (u64, u64) {
        let read = |numbers: &[AtomicU64]| {
            numbers.get(table.index()).map_or(0, |number| number.load(Ordering::Relaxed))
        };
        (read(&self.shared.promoted), read(&self.shared.dropped))
    }
}

impl Shared {
    fn promote(&self, found: &Found) -> Result<()> {
        let (Some(cache), Some(clock), Some(rows)) = (
            self.caches.get(found.cache),
            self.clocks.get(found.table.index()),
            Rows::new(&found.rows, found.row_bytes),
        ) else {
            return Err(Error::new(ErrorKind::Internal, "rows for an unknown table"));
        };
        let added = cache
            .promote(found.table, Promotion { keys: &found.keys, rows, clock, snapshot: &found.snapshot })?;
        if let Some(promoted) = self.promoted.get(found.table.index()) {
            promoted.fetch_add(added, Ordering::Relaxed);
        }
        Ok(())
    }
}
