//! What is done again and again while a store is open: the GPUs of models are refreshed (`refresh_delay` and `refresh_interval` of
//! `ps.json`), hot keys are saved (`hot_keys_interval`), free memory is returned to the system (with `memory_bytes`).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hps_core::observer::Observer;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex};

use crate::guard::no_panic;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// The GPUs of the model of this name are refreshed.
    Refresh(String),
    /// The hot keys of all tables are saved.
    SaveHotKeys,
    /// The allocator returns to the system what it has no use for.
    ReturnFreeMemory,
}

/// When something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What.
    pub task: Task,
    /// From the start to the first time; zero: `interval`.
    pub delay: Duration,
    /// Between two times; zero: there is one, or none without a delay.
    pub interval: Duration,
}

impl Schedule {
    /// From the start to the first time, if there is one.
    fn first(&self) -> Option<Duration> {
        [self.delay, self.interval].into_iter().find(|wait| !wait.is_zero())
    }
}

/// Does it, as long as a function says to go on. None if there is nothing to do any more.
type Work = dyn Fn(&Task, &dyn Fn() -> bool) -> Option<Result<()>>;

#[derive(Debug, Default)]
struct Stop {
    is_stopped: Mutex<bool>,
    changed: Condvar,
}

/// Owns the thread. Dropped, it ends it, after the piece that is under way.
#[derive(Debug)]
pub(crate) struct Timer {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

impl Timer {
    /// Calls `work` for each task when it is time, with a function that tells whether to go on; until it returns None. None if
    /// nothing is ever to be done.
    ///
    /// # Errors
    /// `OutOfMemory` if the thread cannot be started.
    pub(crate) fn start(
        schedules: &[Schedule],
        work: impl Fn(&Task, &dyn Fn() -> bool) -> Option<Result<()>> + Send + 'static,
        observer: Arc<dyn Observer>,
    ) -> Result<Option<Self>> {
        let started = Instant::now();
        let due: Vec<(Instant, Schedule)> = schedules
            .iter()
            .filter_map(|schedule| Some((started + schedule.first()?, schedule.clone())))
            .collect();
        if due.is_empty() {
            return Ok(None);
        }
        let stop = Arc::new(Stop::default());
        let thread = {
            let stop = Arc::clone(&stop);
            let run = move || run(due, &stop, &work, observer.as_ref());
            std::thread::Builder::new().name("hps-timer".into()).spawn(run)
        };
        let thread = thread.map_err(|why| {
            Error::new(
                ErrorKind::OutOfMemory,
                "cannot start the thread that refreshes GPUs, saves hot keys and returns free memory",
            )
            .caused_by(why)
        })?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        *self.stop.is_stopped.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut due: Vec<(Instant, Schedule)>, stop: &Stop, work: &Work, observer: &dyn Observer) {
    loop {
        let next = due.iter().enumerate().min_by_key(|(_, (when, _))| *when);
        let Some((index, when)) = next.map(|(index, (when, _))| (index, *when)) else { return };
        {
            let mut is_stopped = stop.is_stopped.lock();
            while !*is_stopped && Instant::now() < when {
                stop.changed.wait_until(&mut is_stopped, when);
            }
            if *is_stopped {
                return;
            }
        }
        let (_, schedule) = due.swap_remove(index);
        let goes_on = || !*stop.is_stopped.lock();
        match no_panic(|| work(&schedule.task, &goes_on).transpose()) {
            Ok(None) => return,
            Ok(Some(_)) => {}
            Err(why) => observer.warn(&match &schedule.task {
                Task::Refresh(model) => format!("model \"{model}\" was not refreshed: {why}"),
                Task::SaveHotKeys => format!("hot keys were not saved: {why}"),
                Task::ReturnFreeMemory => format!("free memory was not returned to the system: {why}"),
            }),
        }
        if !schedule.interval.is_zero() {
            // From the end of the last one, so that slow refreshes do not pile up.
            due.push((Instant::now() + schedule.interval, schedule));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use std::sync::mpsc;

    use hps_core::observer::Progress;

    use super::*;

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Observer for Warnings {
        fn warn(&self, text: &str) {
            self.0.lock().push(text.into());
        }
        fn info(&self, _: &str) {}
        fn progress(&self, _: Progress<'_>) {}
    }

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(3);

    fn schedule(model: &str, delay: Duration, interval: Duration) -> Schedule {
        Schedule { task: Task::Refresh(model.into()), delay, interval }
    }

    #[test]
    fn each_model_is_refreshed_after_its_delay_and_then_again_and_again() {
        let (sender, names) = mpsc::channel();
        let schedules = [
            schedule("delayed", SHORT, SHORT),
            schedule("no delay", Duration::ZERO, SHORT),
            schedule("one time", SHORT, Duration::ZERO),
            schedule("much later", LONG, SHORT),
            schedule("never", Duration::ZERO, Duration::ZERO),
        ];
        let work = move |task: &Task, goes_on: &dyn Fn() -> bool| {
            assert!(goes_on());
            let Task::Refresh(model) = task else { panic!("{task:?}") };
            Some(sender.send(model.to_owned()).map_err(|_| Error::new(ErrorKind::Closed, "end")))
        };
        let timer = Timer::start(&schedules, work, Arc::new(Warnings::default())).unwrap();
        let seen: Vec<String> = names.iter().take(40).collect();
        drop(timer);
        let count = |name: &str| seen.iter().filter(|seen| *seen == name).count();
        assert!(count("delayed") >= 5 && count("no delay") >= 5, "{seen:?}");
        assert_eq!((count("one time"), count("much later"), count("never")), (1, 0, 0));
    }

    #[test]
    fn without_a_schedule_there_is_no_thread() {
        let schedules = [schedule("never", Duration::ZERO, Duration::ZERO)];
        let work = |_: &Task, _: &dyn Fn() -> bool| -> Option<Result<()>> { panic!("never") };
        assert!(Timer::start(&schedules, work, Arc::new(Warnings::default())).unwrap().is_none());
    }

    #[test]
    fn a_failure_or_a_panic_is_a_warning_and_the_next_time_comes() {
        let warnings = Arc::new(Warnings::default());
        let (sender, times) = mpsc::channel();
        let work = move |_: &Task, _: &dyn Fn() -> bool| {
            sender.send(()).ok()?;
            Some(Err(Error::new(ErrorKind::Storage, "planted")))
        };
        let schedules = [schedule("m", Duration::ZERO, SHORT)];
        let observer = Arc::clone(&warnings) as Arc<dyn Observer>;
        let timer = Timer::start(&schedules, work, observer).unwrap();
        assert_eq!(times.iter().take(3).count(), 3);
        drop(timer);
        let texts = warnings.0.lock();
        assert!(
            texts.len() >= 2 && texts.iter().all(|text| text.contains("\"m\"") && text.contains("planted"))
        );
    }

    #[test]
    fn it_ends_at_once_while_it_waits_and_soon_while_it_refreshes() {
        let waiting = Timer::start(
            &[schedule("m", LONG, LONG)],
            |_, _| panic!("not yet"),
            Arc::new(Warnings::default()),
        );
        drop(waiting.unwrap());
        let (sender, begun) = mpsc::channel();
        let work = move |_: &Task, goes_on: &dyn Fn() -> bool| {
            sender.send(()).ok()?;
            while goes_on() {
                std::thread::sleep(SHORT);
            }
            Some(Ok(()))
        };
        let timer = Timer::start(&[schedule("m", SHORT, LONG)], work, Arc::new(Warnings::default())).unwrap();
        begun.recv().unwrap();
        drop(timer);
    }

    #[test]
    fn it_ends_with_its_store() {
        let (sender, times) = mpsc::channel();
        let work = move |_: &Task, _: &dyn Fn() -> bool| {
            let _ = sender.send(());
            None
        };
        let _timer =
            Timer::start(&[schedule("m", SHORT, SHORT)], work, Arc::new(Warnings::default())).unwrap();
        assert_eq!(times.iter().count(), 1, "the thread has gone, and the sender with it");
    }
}
