//! A thread that does what lookups leave behind them, one job at a time, from a queue that never makes them wait.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;

struct Queue<J> {
    waiting: VecDeque<J>,
    is_busy: bool,
    is_closed: bool,
}

struct Shared<J> {
    queue: Mutex<Queue<J>>,
    changed: Condvar,
}

/// Owns the thread; dropping it ends the thread and drops what is queued.
pub(crate) struct Background<J> {
    shared: Arc<Shared<J>>,
    thread: Option<JoinHandle<()>>,
    /// What the thread does, for messages.
    task: &'static str,
    observer: Arc<dyn Observer>,
}

impl<J: Send + 'static> Background<J> {
    /// Starts a thread called `name` that gives each job to `work`. `task` completes "rows were not ..." in its warnings.
    ///
    /// # Errors
    /// `OutOfMemory` if there is no thread to be had.
    pub(crate) fn start(
        name: &str,
        task: &'static str,
        observer: Arc<dyn Observer>,
        work: impl Fn(J) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let queue = Queue { waiting: VecDeque::new(), is_busy: false, is_closed: false };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
        let (for_thread, warns) = (Arc::clone(&shared), Arc::clone(&observer));
        let run = move || {
            while let Some(job) = for_thread.next() {
                // A panic here must not end the thread silently, let alone the process.
                match catch_unwind(AssertUnwindSafe(|| work(job))) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warns.warn(&format!("rows were not {task}: {error}")),
                    Err(_) => warns.warn(&format!("rows were not {task}: a panic; this is a bug in hps")),
                }
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run).map_err(|why| {
            Error::new(ErrorKind::OutOfMemory, format!("cannot start the thread by which rows are {task}"))
                .caused_by(why)
        })?;
        Ok(Self { shared, thread: Some(thread), task, observer })
    }

    /// Queues a job; `make_room` sees what waits before, and may refuse by returning false. Gives the job back then, as when
    /// the thread has ended.
    pub(crate) fn offer(
        &self,
        job: J,
        make_room: impl FnOnce(&mut VecDeque<J>) -> bool,
    ) -> std::result::Result<(), J> {
        let mut queue = self.shared.queue.lock();
        if queue.is_closed || !make_room(&mut queue.waiting) {
            return Err(job);
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Waits until every job offered so far is done.
    pub(crate) fn drain(&self) {
        let mut queue = self.shared.queue.lock();
        while (queue.is_busy || !queue.waiting.is_empty()) && !queue.is_closed {
            self.shared.changed.wait(&mut queue);
        }
    }
}

impl<J> Shared<J> {
    /// Waits for a job; None when the owner is gone.
    fn next(&self) -> Option<J> {
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
}

impl<J> Drop for Background<J> {
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
            self.observer.warn(&format!(
                "the thread by which rows are {} had panicked; this is a bug in hps",
                self.task
            ));
        }
    }
}
