//! Fetches rows that devices want for later lookups: one thread, one bounded queue.
//!
//! A lookup never waits for it: what the queue has no room for is not fetched this time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::device::MissedKeys;
use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;
use crate::stats::LookupCounts;
use crate::store::Table;
use crate::tier::TierKind;
use crate::update_clock::UpdateClock;
use crate::walk::{Walk, out_of_range};

/// Lookups whose misses may wait. Their keys lie in buffers of the device tier.
const MAX_WAITING: usize = 64;

impl Walk {
    /// Gives a device the rows that it missed, wherever they are. Returns where all keys of the lookup were found.
    pub(crate) fn answer(&self, table: &Table, missed: &mut dyn MissedKeys) -> Result<LookupCounts> {
        let (num_hits, num_missed) = missed.wait()?;
        let mut counts = LookupCounts::default();
        counts.add_hits(TierKind::Gpu, num_hits);
        if num_missed == 0 {
            return Ok(counts);
        }
        counts += self.fetch(table, missed)?;
        Ok(counts)
    }

    /// Looks up what a device missed, piece by piece.
    fn fetch(&self, table: &Table, missed: &mut dyn MissedKeys) -> Result<LookupCounts> {
        let mut counts = LookupCounts::default();
        loop {
            // Before anything is read below: see update_clock.rs.
            let clock = self.clocks.get(table.storage().index()).ok_or_else(out_of_range)?;
            let snapshot = UpdateClock::snapshot(clock);
            let Some((keys, mut rows)) = missed.next_piece()? else { return Ok(counts) };
            let walked = self.lookup(table, keys, &mut rows)?;
            counts += walked.counts;
            missed.give_piece(&walked.missing, &snapshot)?;
        }
    }
}

type Job = (usize, Box<dyn MissedKeys>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    is_busy: bool,
    is_closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    walk: Arc<Walk>,
    tables: Arc<[Table]>,
    observer: Arc<dyn Observer>,
}

/// Owns the thread; dropping it ends the thread and drops what is queued.
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Fetcher {
    pub(crate) fn start(walk: Arc<Walk>, tables: Arc<[Table]>, observer: Arc<dyn Observer>) -> Result<Self> {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), changed: Condvar::new(), walk, tables, observer });
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("hps-fetch".into())
            .spawn(move || for_thread.run())
            .map_err(|why| {
                Error::new(ErrorKind::OutOfMemory, "cannot start the thread that fetches rows for GPUs")
                    .caused_by(why)
            })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Queues what a lookup of a table missed; if the queue is full, what waits longest is given up.
    pub(crate) fn offer(&self, table: usize, missed: Box<dyn MissedKeys>) {
        let mut queue = self.shared.queue.lock();
        let given_up = if queue.waiting.len() >= MAX_WAITING { queue.waiting.pop_front() } else { None };
        queue.waiting.push_back((table, missed));
        drop(queue);
        self.shared.changed.notify_all();
        drop(given_up);
    }

    /// Waits until everything offered so far was fetched.
    pub(crate) fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while (queue.is_busy || !queue.waiting.is_empty()) && !queue.is_closed {
            self.shared.changed.wait(&mut queue);
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let waiting = {
            let mut queue = self.shared.queue.lock();
            queue.is_closed = true;
            std::mem::take(&mut queue.waiting)
        };
        drop(waiting);
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            self.shared
                .observer
                .warn("the thread that fetches rows for GPUs had panicked; this is a bug in hps");
        }
    }
}

impl Shared {
    fn run(&self) {
        while let Some((table, mut missed)) = self.next() {
            // A panic here must not end the thread silently, let alone the process.
            match catch_unwind(AssertUnwindSafe(|| self.fetch(table, missed.as_mut()))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.observer.warn(&format!("rows were not fetched for a GPU: {error}")),
                Err(_) => {
                    self.observer.warn("rows were not fetched for a GPU: a panic; this is a bug in hps")
                }
            }
        }
    }

    /// Waits for work; None when the fetcher is closed.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        queue.is_busy = false;
        self.changed.notify_all();
        loop {
            if queue.is_closed {
                return None;
            }
            if let Some(job) = queue.waiting.pop_front() {
                queue.is_busy = true;
                return Some(job);
            }
            self.changed.wait(&mut queue);
        }
    }

    fn fetch(&self, table: usize, missed: &mut dyn MissedKeys) -> Result<()> {
        let table = self.tables.get(table).ok_or_else(out_of_range)?;
        // The lookup was counted when it was answered: what is found now is for those to come.
        missed
            .wait()
            .and_then(|_| self.walk.fetch(table, missed))
            .map(drop)
            .map_err(|error| table.name_in(error))
    }
}
