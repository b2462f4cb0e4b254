//! Which stores are open: by the name that lookups use, and by the canonical path of their configuration.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use hps_core::observer::Observer;
use hps_core::{EmbeddingStore, Error, ErrorKind, KeyWidth, Result};
use parking_lot::{Condvar, Mutex};

use crate::console::Console;
use crate::timer::{Schedule, Task, Timer};
use crate::{allocator, assemble, fork, guard};

/// A store that is open, and where it came from.
pub struct OpenStore {
    /// Canonical path of the configuration.
    pub file: PathBuf,
    /// Width of the keys that its lookups take.
    pub key_width: KeyWidth,
    /// The store.
    pub store: EmbeddingStore,
    /// What is done again and again while it is in a registry.
    pub schedules: Vec<Schedule>,
    /// Where hot keys are saved, if they are.
    pub hot_keys: Option<PathBuf>,
}

impl OpenStore {
    /// Saves the hot keys of all tables, if the configuration says where.
    ///
    /// # Errors
    /// `Storage`.
    pub fn save_hot_keys(&self) -> Result<()> {
        self.hot_keys.as_ref().map_or(Ok(()), |folder| self.store.save_hot_keys(folder))
    }
}

/// All stores of this process.
///
/// Never dropped: at exit, threads may still be inside lookups, and RocksDB's write-ahead log needs no good-bye.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(Registry::default)
}

/// See [`registry`].
#[derive(Default)]
pub struct Registry {
    /// Names that were resolved before, made absolute. Read by every lookup, without a lock.
    by_name: ArcSwap<HashMap<String, Arc<Slot>>>,
    by_path: Mutex<HashMap<PathBuf, Arc<Slot>>>,
}

/// The place of one configuration: empty, being opened, or open.
#[derive(Default)]
struct Slot {
    file: PathBuf,
    open: ArcSwapOption<OpenStore>,
    timer: Mutex<Option<Timer>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// A thread opens or closes the store right now.
    is_changing: bool,
    /// Number of attempts to open that failed, and the last one's error.
    failures: u64,
    failure: Option<Error>,
}

impl Registry {
    /// The store that `ps_config_file` names; opened if it is not. However many threads arrive, it is opened once;
    /// if that fails, all that waited get the same error, and the next call tries again.
    ///
    /// # Errors
    /// `Closed` in a forked child; `Config` and whatever opening reports.
    pub fn store(&self, ps_config_file: &str) -> Result<Guard<Option<Arc<OpenStore>>>> {
        fork::check()?;
        let name = absolute(ps_config_file);
        if let Some(slot) = self.by_name.load().get(name.as_ref()) {
            let open = slot.open.load();
            if open.is_some() {
                return Ok(open);
            }
        }
        let slot = self.slot(ps_config_file)?;
        let open = slot.open_once()?;
        self.by_name.rcu(|names| {
            let mut names = HashMap::clone(names);
            names.insert(name.clone().into_owned(), Arc::clone(&slot));
            names
        });
        Ok(open)
    }

    /// Closes a store: new lookups would open it again, running ones are waited for.
    ///
    /// # Errors
    /// `NotFound` if it is not open; `Closed` in a forked child; `Config` if the name leads nowhere.
    pub fn close(&self, ps_config_file: &str) -> Result<()> {
        fork::check()?;
        let slot = self.known_slot(ps_config_file)?;
        if slot.close() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, "the store is not open").at("configuration", slot.file.display()))
    }

    /// Closes every store that is open. One that is being opened is not waited for: at exit that could take as long as
    /// loading it.
    ///
    /// # Errors
    /// `Closed` in a forked child.
    pub fn close_all(&self) -> Result<()> {
        fork::check()?;
        let slots: Vec<_> = self.by_path.lock().values().cloned().collect();
        for slot in slots.iter().filter(|slot| slot.open.load().is_some()) {
            slot.close();
        }
        Ok(())
    }

    /// The store that `ps_config_file` names, if it is open.
    ///
    /// # Errors
    /// `NotFound` if it is not open; `Closed` in a forked child; `Config` if the name leads nowhere.
    pub fn open_store(&self, ps_config_file: &str) -> Result<Arc<OpenStore>> {
        fork::check()?;
        let slot = self.known_slot(ps_config_file)?;
        slot.open.load_full().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "the store is not open; look something up or open it first (hps_torch.open, hps_open)",
            )
            .at("configuration", slot.file.display())
        })
    }

    /// The slot that lookups by this name use, even if the file is gone meanwhile.
    fn known_slot(&self, ps_config_file: &str) -> Result<Arc<Slot>> {
        let known = self.by_name.load().get(absolute(ps_config_file).as_ref()).cloned();
        known.map_or_else(|| self.slot(ps_config_file), Ok)
    }

    fn slot(&self, ps_config_file: &str) -> Result<Arc<Slot>> {
        let file = assemble::resolve(ps_config_file)?;
        let mut slots = self.by_path.lock();
        let slot = slots.entry(file.clone()).or_insert_with(|| Arc::new(Slot { file, ..Slot::default() }));
        Ok(Arc::clone(slot))
    }
}

impl Slot {
    fn open_once(&self) -> Result<Guard<Option<Arc<OpenStore>>>> {
        let mut state = self.state.lock();
        loop {
            let open = self.open.load();
            if open.is_some() {
                return Ok(open);
            }
            if !state.is_changing {
                break;
            }
            let failures = state.failures;
            self.changed.wait(&mut state);
            if let (true, Some(failure)) = (state.failures != failures, &state.failure) {
                return Err(failure.clone());
            }
        }
        state.is_changing = true;
        drop(state);

        fork::note_open();
        let opened = guard::no_panic(|| {
            let store = Arc::new(assemble::open(Path::new(&self.file))?);
            *self.timer.lock() = start_timer(&store)?;
            Ok(store)
        });

        let mut state = self.state.lock();
        state.is_changing = false;
        let result = match opened {
            Ok(store) => {
                self.open.store(Some(store));
                Ok(self.open.load())
            }
            Err(error) => {
                state.failures += 1;
                state.failure = Some(error.clone());
                Err(error)
            }
        };
        drop(state);
        self.changed.notify_all();
        result
    }

    /// False if it was not open.
    fn close(&self) -> bool {
        let mut state = self.state.lock();
        while state.is_changing {
            self.changed.wait(&mut state);
        }
        let Some(open) = self.open.swap(None) else { return false };
        state.is_changing = true;
        drop(state);
        // Even if closing panics, the store can be opened again.
        let _done = Changed(self);
        // It holds a reference while it is at work.
        drop(self.timer.lock().take());
        // Lookups that began before the swap hold references. They take milliseconds; nobody new can come.
        while Arc::strong_count(&open) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(why) = guard::no_panic(|| open.save_hot_keys()) {
            Console::new().warn(&format!("hot keys were not saved: {why}"));
        }
        drop(open);
        true
    }
}

/// Starts what is done again and again while a store is open, if there is something. It ends when it is dropped, or with the store.
fn start_timer(store: &Arc<OpenStore>) -> Result<Option<Timer>> {
    let weak = Arc::downgrade(store);
    let work = move |task: &Task, goes_on: &dyn Fn() -> bool| {
        let open = weak.upgrade()?;
        Some(match task {
            Task::Refresh(model) => open.store.refresh_model(model, goes_on).map(drop),
            Task::SaveHotKeys => open.save_hot_keys(),
            Task::ReturnFreeMemory => {
                allocator::now_and_then();
                Ok(())
            }
        })
    };
    Timer::start(&store.schedules, work, Arc::new(Console::new()))
}

/// Ends a change of a slot when it is dropped.
struct Changed<'s>(&'s Slot);

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().is_changing = false;
        self.0.changed.notify_all();
    }
}

/// A relative name means another file after the working directory has changed; an absolute one does not.
fn absolute(ps_config_file: &str) -> Cow<'_, str> {
    if ps_config_file.starts_with('/') {
        return Cow::Borrowed(ps_config_file);
    }
    match std::env::current_dir() {
        Ok(directory) => Cow::Owned(directory.join(ps_config_file).to_string_lossy().into_owned()),
        Err(_) => Cow::Borrowed(ps_config_file),
    }
}
