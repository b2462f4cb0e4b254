//! Carries rows up behind the lookups that found them: one thread, one bounded queue.
//!
//! A lookup never waits for it: rows that the queue has no room for are not promoted this time, and counted as dropped.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

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

struct Queue {
    waiting: VecDeque<Found>,
    queued_bytes: usize,
    is_busy: bool,
    is_closed: bool,
}

/// What the thread and its owner share.
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    caches: Vec<Arc<dyn CacheTier>>,
    clocks: Arc<[UpdateClock]>,
    /// Rows promoted, by table.
    promoted: Vec<AtomicU64>,
    /// Rows not promoted for want of room, by table.
    dropped: Vec<AtomicU64>,
    observer: Arc<dyn Observer>,
}

/// Owns the thread; dropping it ends the thread and drops what is queued.
pub(crate) struct Promoter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Promoter {
    pub(crate) fn start(
        caches: Vec<Arc<dyn CacheTier>>,
        clocks: Arc<[UpdateClock]>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                queued_bytes: 0,
                is_busy: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
            caches,
            promoted: clocks.iter().map(|_| AtomicU64::new(0)).collect(),
            dropped: clocks.iter().map(|_| AtomicU64::new(0)).collect(),
            clocks,
            observer,
        });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hps-promote".into())
            .spawn(move || for_thread.run())
            .map_err(|why| {
            Error::new(ErrorKind::OutOfMemory, "cannot start the thread that promotes rows").caused_by(why)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// True if there is room for that many rows now: asked before they are copied.
    pub(crate) fn has_room(&self, num_rows: usize, row_bytes: usize) -> bool {
        self.shared.queue.lock().queued_bytes + bytes_for(num_rows, row_bytes) <= MAX_QUEUED_BYTES
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
        let mut queue = self.shared.queue.lock();
        if queue.is_closed || queue.queued_bytes + num_bytes > MAX_QUEUED_BYTES {
            drop(queue);
            self.drop_rows(found.table, found.keys.len());
            return;
        }
        queue.queued_bytes += num_bytes;
        queue.waiting.push_back(found);
        drop(queue);
        self.shared.changed.notify_all();
    }

    /// Waits until everything offered so far was promoted or dropped.
    pub(crate) fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while (queue.is_busy || !queue.waiting.is_empty()) && !queue.is_closed {
            self.shared.changed.wait(&mut queue);
        }
    }

    /// Rows of a table that were promoted, and rows that were dropped for want of room.
    pub(crate) fn counts(&self, table: TableId) -> (u64, u64) {
        let read = |numbers: &[AtomicU64]| {
            numbers.get(table.index()).map_or(0, |number| number.load(Ordering::Relaxed))
        };
        (read(&self.shared.promoted), read(&self.shared.dropped))
    }
}

impl Drop for Promoter {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue.lock();
            queue.is_closed = true;
            queue.waiting.clear();
        }
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared.observer.warn("the thread that promotes rows had panicked; this is a bug in hps");
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some(found) = self.next() {
            // A panic here must not end the thread silently, let alone the process.
            match catch_unwind(AssertUnwindSafe(|| self.promote(&found))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.observer.warn(&format!("rows were not promoted: {error}")),
                Err(_) => self.observer.warn("rows were not promoted: a panic; this is a bug in hps"),
            }
        }
    }

    /// Waits for work; None when the promoter is closed.
    fn next(&self) -> Option<Found> {
        let mut queue = self.queue.lock();
        queue.is_busy = false;
        self.changed.notify_all();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(found) = queue.waiting.pop_front() {
                queue.queued_bytes -= found.num_bytes();
                queue.is_busy = true;
                return Some(found);
            }
            self.changed.wait(&mut queue);
        }
    }

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
