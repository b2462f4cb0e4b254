//! The thread behind a GPU's lookups: takes missed rows into caches, and workspaces back into their pool.
//!
//! Lookups hand it the workspaces that hold rows; for tables behind whose cache the GPU reads rows by
//! itself, it looks which keys lookups wanted.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hps_core::observer::Observer;
use hps_core::update_clock::ClockSnapshot;
use hps_core::{Error, ErrorKind, Result, TableId};
use parking_lot::{Condvar, Mutex};

use crate::abi;
use crate::driver::Event;
use crate::table::{Batch, Change};
use crate::tier::{Shared, unknown_table};
use crate::workspace::Retiring;

/// How often it looks whether kernels have ended, while some are under way.
const POLL: Duration = Duration::from_micros(200);
/// How often it looks for keys that lookups wanted: while there are lookups, and in case a graph is replayed.
const WANTED_BUSY: Duration = Duration::from_millis(2);
const WANTED_IDLE: Duration = Duration::from_millis(50);
/// How long it rests after something went wrong.
const AFTER_ERROR: Duration = Duration::from_secs(1);
/// Workspaces with rows to insert that may wait; of more, the rows are not inserted.
const MAX_WAITING: usize = 16;

/// Rows in a workspace that a cache should take in.
#[derive(Debug)]
pub(crate) struct Insertion {
    pub(crate) table: TableId,
    /// Keys of the list whose rows lie in the workspace from its start on.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Positions in the list of those that are default rows, ascending.
    pub(crate) missing: Vec<u32>,
    pub(crate) snapshot: ClockSnapshot,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: VecDeque<(Retiring, Option<Insertion>)>,
    is_closed: bool,
}

/// What lookups hand to the thread.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    pub(crate) fn push(&self, retiring: Retiring, insertion: Option<Insertion>) {
        let mut waiting = self.waiting.lock();
        let has_room = waiting.jobs.len() < MAX_WAITING;
        waiting.jobs.push_back((retiring, insertion.filter(|_| has_room)));
        drop(waiting);
        self.changed.notify_one();
    }
}

/// Owns the thread.
#[derive(Debug)]
pub(crate) struct Inserter {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Inserter {
    pub(crate) fn start(shared: Arc<Shared>, observer: Arc<dyn Observer>) -> Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut worker =
            Worker { shared, queue: Arc::clone(&queue), observer, busy: Vec::new(), taken: Vec::new() };
        let thread = std::thread::Builder::new().name("hps-gpu".into()).spawn(move || worker.run()).map_err(
            |why| {
                Error::new(ErrorKind::OutOfMemory, "cannot start the thread that fills GPU caches")
                    .caused_by(why)
            },
        )?;
        Ok(Self { queue, thread: Mutex::new(Some(thread)) })
    }

    pub(crate) fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }

    /// Ends the thread; what waits is not inserted.
    pub(crate) fn stop(&self) {
        self.queue.waiting.lock().is_closed = true;
        self.queue.changed.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    observer: Arc<dyn Observer>,
    /// Workspaces whose kernels are under way, with the event of their insertion.
    busy: Vec<(Retiring, Option<Event>)>,
    /// Keys wanted so far, by storage table.
    taken: Vec<u64>,
}

impl Worker {
    fn run(&mut self) {
        self.taken = self.shared.tables.iter().map(|_| 0).collect();
        loop {
            let (jobs, is_closed) = self.next();
            // A panic here must not end the thread silently, let alone the process.
            let done = catch_unwind(AssertUnwindSafe(|| self.work(jobs)));
            let warning = match done {
                Ok(Ok(())) => None,
                Ok(Err(error)) if self.shared.device.is_lost() => {
                    self.observer.warn(&format!("the GPU's caches take no more rows in: {error}"));
                    return;
                }
                Ok(Err(error)) => Some(format!("rows were not taken into a GPU cache: {error}")),
                Err(_) => Some("rows were not taken into a GPU cache: a panic; this is a bug in hps".into()),
            };
            if let Some(warning) = warning {
                self.observer.warn(&warning);
                self.wait_after_error();
            }
            if is_closed {
                return self.finish();
            }
        }
    }

    /// What goes wrong again and again is not said more often than this.
    fn wait_after_error(&self) {
        let mut waiting = self.queue.waiting.lock();
        if !waiting.is_closed {
            self.queue.changed.wait_for(&mut waiting, AFTER_ERROR);
        }
    }

    /// Waits for work, or until it is time to look around.
    fn next(&self) -> (Vec<(Retiring, Option<Insertion>)>, bool) {
        let has_wanted = self.shared.tables.iter().flatten().any(|table| table.wanted_address() != 0);
        let mut waiting = self.queue.waiting.lock();
        if waiting.jobs.is_empty() && !waiting.is_closed {
            let pause = match (self.busy.is_empty(), has_wanted) {
                (false, _) => Some(POLL),
                (true, true) if self.shared.has_been_used.load(Ordering::Relaxed) => Some(WANTED_BUSY),
                (true, true) => Some(WANTED_IDLE),
                (true, false) => None,
            };
            match pause {
                Some(pause) => drop(self.queue.changed.wait_for(&mut waiting, pause)),
                None => self.queue.changed.wait(&mut waiting),
            }
        }
        (waiting.jobs.drain(..).collect(), waiting.is_closed)
    }

    fn work(&mut self, jobs: Vec<(Retiring, Option<Insertion>)>) -> Result<()> {
        let _entered = self.shared.device.enter()?;
        let mut first = Ok(());
        for (mut retiring, insertion) in jobs {
            let inserted = match insertion {
                Some(insertion) => self.insert(&mut retiring, &insertion),
                None => Ok(None),
            };
            match inserted {
                Ok(event) => self.busy.push((retiring, event)),
                Err(error) => {
                    retiring.workspace.abandon();
                    first = first.and(Err(error));
                }
            }
        }
        let mut i = 0;
        while let Some((retiring, event)) = self.busy.get(i) {
            let is_over = retiring.is_over()? && event.as_ref().map_or(Ok(true), Event::has_passed)?;
            if is_over {
                let (retiring, _) = self.busy.swap_remove(i);
                self.shared.pool.give(retiring.workspace);
            } else {
                i += 1;
            }
        }
        self.shared.has_been_used.store(false, Ordering::Relaxed);
        self.take_wanted()?;
        first
    }

    /// Sends rows to their cache, except default rows and those whose key was written since they were read.
    fn insert(&self, retiring: &mut Retiring, insertion: &Insertion) -> Result<Option<Event>> {
        let table = self.shared.table(insertion.table)?;
        let clock = self.shared.clocks.get(insertion.table.index()).ok_or_else(unknown_table)?;
        let workspace = &mut retiring.workspace;
        let row_bytes = table.row_bytes() as usize;
        let writer = self.shared.writer.lock();
        // In the order of writes: a write that comes later overwrites what is inserted here.
        let mut missing = insertion.missing.iter().peekable();
        let keys =
            workspace.keys(insertion.start, insertion.end - insertion.start).ok_or_else(unknown_table)?;
        let mut chosen: Vec<u32> = Vec::new();
        for (i, &key) in keys.iter().enumerate() {
            let is_missing = missing.next_if_eq(&&((insertion.start + i) as u32)).is_some();
            if !is_missing && clock.is_current(key, &insertion.snapshot) {
                chosen.push(i as u32);
            }
        }
        // A key that was missed many times is brought once.
        chosen.sort_unstable_by_key(|&i| keys.get(i as usize));
        chosen.dedup_by_key(|i| keys.get(*i as usize));
        if chosen.is_empty() {
            return Ok(None);
        }
        workspace.indices_mut(chosen.len()).ok_or_else(unknown_table)?.copy_from_slice(&chosen);
        let batch = Batch {
            keys: workspace.keys_address(insertion.start),
            rows: workspace.rows_address(0, row_bytes),
            indices: workspace.indices_address(),
            num_keys: chosen.len() as u32,
        };
        let event = Event::new(self.shared.device)?;
        let stream = writer.stream();
        // SAFETY: the workspace is kept until the event has passed.
        unsafe { table.change(self.shared.device, Change::Insert, batch, stream)? };
        event.record(stream.handle())?;
        Ok(Some(event))
    }

    /// Copies rows that lookups wanted into their caches.
    fn take_wanted(&mut self) -> Result<()> {
        let device = self.shared.device;
        for (table, taken) in self.shared.tables.iter().zip(&mut self.taken) {
            let Some(table) = table.as_ref().filter(|table| table.wanted_address() != 0) else { continue };
            let mut bytes = [0; 8];
            // SAFETY: an initialised word that kernels add to, read whole.
            unsafe { device.read(table.wanted_address(), &mut bytes, &self.shared.service.lock())? };
            let count = u64::from_le_bytes(bytes);
            let capacity = u64::from(abi::HPS_WANTED_KEYS);
            // What was overwritten before it was taken is asked for again if it is used.
            let first = (*taken).max(count.saturating_sub(capacity));
            *taken = count;
            let writer = self.shared.writer.lock();
            let mut at = first;
            while at < count {
                let in_ring = at % capacity;
                let num_keys = (count - at).min(capacity - in_ring);
                let keys = table.wanted_address() + 8 + in_ring * 8;
                // SAFETY: within the ring. Lookups may write it meanwhile: a key that is read is then another wanted one.
                unsafe { table.cache_from_second(device, keys, num_keys as u32, writer.stream())? };
                at += num_keys;
            }
        }
        Ok(())
    }

    /// Waits for what is under way, so that all memory can go.
    fn finish(&mut self) {
        let jobs: Vec<_> = self.queue.waiting.lock().jobs.drain(..).collect();
        self.busy.extend(jobs.into_iter().map(|(retiring, _)| (retiring, None)));
        for (retiring, event) in self.busy.drain(..) {
            drop(event);
            retiring.workspace.abandon();
        }
    }
}
