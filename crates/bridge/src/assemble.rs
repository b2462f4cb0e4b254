//! From a configuration to an open store: the truth first, then what stands above it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hps_config::{Config, ModelConfig, OverflowPolicy, PersistentDbConfig, VolatileDbConfig, VolatileDbKind};
use hps_core::hot_keys;
use hps_core::load::{self, Loaded, fill_cache, load_table};
use hps_core::memory::{BlockAllocator, MmapAllocator};
use hps_core::observer::Observer;
use hps_core::store::Tiers;
use hps_core::tier::{CacheTier, EvictionPolicy, Expected, Held, TableSpec, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{EmbeddingStore, Error, ErrorKind, Key, Result, TableId};
use hps_host::{HostSettings, HostTier, Place};
use hps_shared::{Role, SharedSettings, SharedTier};
use hps_ssd::SsdTier;
use parking_lot::Mutex;

use crate::console::Console;
use crate::registry::OpenStore;
use crate::storage::{StorageTables, rows_to_cache, ssd_settings};
use crate::timer::{Schedule, Task};
use crate::{allocator, budget, devices};

/// The canonical path of the configuration that `ps_config_file` stands for.
///
/// # Errors
/// `Config`, listing what was tried.
pub fn resolve(ps_config_file: &str) -> Result<PathBuf> {
    Ok(hps_config::resolve_config_file(Path::new(ps_config_file), |name| std::env::var_os(name))?)
}

/// Opens the store of a configuration: checks everything, opens the tiers, loads what is not loaded yet.
///
/// # Errors
/// `Config` with every problem found; whatever the tiers report. Nothing stays open then.
pub fn open(file: &Path) -> Result<OpenStore> {
    // A lookup may open its store while the caller captures a graph.
    let _safe = hps_gpu::CaptureSafe::new();
    let observer: Arc<dyn Observer> = Arc::new(Console::new());
    let started = Instant::now();
    let loaded = Config::from_file(file)?;
    for warning in &loaded.warnings {
        observer.warn(&warning.to_string());
    }
    let store =
        open_store(&loaded.config, &observer).map_err(|error| error.at("configuration", file.display()))?;
    observer.info(&format!(
        "opened {} ({} tables) in {:.1} s",
        file.display(),
        loaded.config.models.iter().map(|model| model.tables.len()).sum::<usize>(),
        started.elapsed().as_secs_f64()
    ));
    let mut schedules = if store.has_devices() { schedules(&loaded.config) } else { Vec::new() };
    let hot_keys = loaded.config.volatile_db.as_ref().and_then(|settings| settings.hot_keys.as_ref());
    schedules.extend(hot_keys.map(|hot_keys| {
        let interval = Duration::from_secs_f64(hot_keys.interval);
        Schedule { task: Task::SaveHotKeys, delay: interval, interval }
    }));
    // Host memory does not come from the allocator, what RocksDB takes does.
    if loaded.config.persistent_db.is_some()
        && loaded.config.volatile_db.as_ref().is_some_and(|settings| settings.memory_bytes.is_some())
    {
        let (task, interval) = (Task::ReturnFreeMemory, allocator::INTERVAL);
        schedules.push(Schedule { task, delay: interval, interval });
    }
    Ok(OpenStore {
        file: file.to_owned(),
        key_width: loaded.config.key_width,
        hot_keys: hot_keys.map(|hot_keys| hot_keys.path.clone()),
        store,
        schedules,
    })
}

fn schedules(config: &Config) -> Vec<Schedule> {
    let models = config.models.iter();
    let schedule = |model: &ModelConfig| Schedule {
        task: Task::Refresh(model.name.clone()),
        delay: Duration::from_secs_f64(model.gpu.refresh_delay),
        interval: Duration::from_secs_f64(model.gpu.refresh_interval),
    };
    models.map(schedule).collect()
}

fn open_store(config: &Config, observer: &Arc<dyn Observer>) -> Result<EmbeddingStore> {
    let storage = StorageTables::of(config);
    // The lowest database decides whether model files are read at all.
    let loads_files = match (&config.persistent_db, &config.volatile_db) {
        (Some(ssd), _) => ssd.initialize_after_startup,
        (None, Some(host)) => host.initialize_after_startup,
        (None, None) => false,
    };
    // All files are looked at before any database is opened or changed.
    let sources = if loads_files { Some(storage.open_sources(config)?) } else { None };

    let database = config.persistent_db.as_ref().map(loading_lock);
    let _alone = database.as_ref().map(|database| database.lock());
    let ssd_settings =
        config.persistent_db.as_ref().map(|ssd| ssd_settings(ssd, config.volatile_db.as_ref()));
    let ssd = ssd_settings.clone().map(|settings| SsdTier::open(settings, &storage.specs)).transpose()?;
    let max_rows = match &config.volatile_db {
        Some(settings) if settings.memory_bytes.is_some() => {
            let rows_of = |table: usize| -> Result<u64> {
                match (sources.as_ref().and_then(|sources| sources.get(table)), &ssd) {
                    (Some(sources), _) => Ok(sources.iter().map(|source| source.files.num_keys()).sum()),
                    (None, Some(ssd)) => ssd.about_rows(TableId(table as u32)),
                    (None, None) => Ok(0),
                }
            };
            let tables = storage.specs.iter().enumerate().map(|(i, spec)| Ok((spec, rows_of(i)?)));
            let tables = tables.collect::<Result<Vec<(&TableSpec, u64)>>>()?;
            let ssd_settings =
                ssd_settings.map(|ssd| budget::database_of(ssd, settings.memory_bytes, &tables));
            if let (Some(ssd), Some(settings)) = (&ssd, &ssd_settings) {
                ssd.set_block_cache_bytes(settings.block_cache_bytes);
            }
            budget::max_rows(settings.memory_bytes, ssd_settings.as_ref(), settings.num_partitions, &tables)?
        }
        _ => None,
    };
    let max_rows_of = |table: usize| max_rows.as_ref().and_then(|rows| rows.get(table)).copied();
    let memory = match &config.volatile_db {
        Some(settings) if settings.kind == VolatileDbKind::MultiProcessHashMap => {
            Some(Memory::Shared(open_shared(settings, config.persistent_db.as_ref(), &storage)?))
        }
        Some(settings) => {
            let pinned = devices::pinned_allocator(config, observer)?;
            Some(Memory::Own(open_host(settings, &storage, pinned, &max_rows_of)?))
        }
        None => None,
    };
    let host = match &memory {
        Some(Memory::Own(host)) => Some(Arc::clone(host)),
        _ => None,
    };
    // Other processes that open the same tables wait, and find them loaded.
    let _turn = match (&memory, &config.persistent_db) {
        (Some(Memory::Shared(shared)), None) => Some(
            shared.loading(|| observer.info("waiting for another process that loads the shared memory"))?,
        ),
        _ => None,
    };
    let (truth, cache): (Arc<dyn TruthTier>, Option<Arc<dyn CacheTier>>) = match (ssd, memory) {
        (Some(ssd), memory) => (Arc::new(ssd), memory.map(Memory::into_cache)),
        (None, Some(memory)) => (memory.into_truth(), None),
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Config,
                "no database is enabled: there is nowhere to keep the tables",
            ));
        }
    };

    let clocks: Arc<[UpdateClock]> = storage.specs.iter().map(|_| UpdateClock::default()).collect();
    for (i, spec) in storage.specs.iter().enumerate() {
        let table = TableId(i as u32);
        match sources.as_ref().and_then(|sources| sources.get(i)) {
            Some(sources) => report(load_table(truth.as_ref(), table, spec, sources, observer.as_ref())?, spec, observer),
            None if truth.held(table)? != Held::Nothing => {}
            None if truth.is_read_only() => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{}: the database holds no such table, or only part of it, and read_only forbids loading it; \
                         open it once with \"read_only\": false",
                        spec.name
                    ),
                ));
            }
            None => observer.warn(&format!(
                "{}: initialize_after_startup is false and the database holds no rows of this table; all lookups get \
                 its default row until rows are written",
                spec.name
            )),
        }
    }
    if let (Some(cache), Some(settings)) = (&cache, &config.volatile_db)
        && settings.initialize_after_startup
        && cache.fills()
    {
        for ((i, spec), clock) in storage.specs.iter().enumerate().zip(clocks.iter()) {
            let table = TableId(i as u32);
            let to_cache = |num_rows| rows_to_cache(settings, max_rows_of(i), num_rows);
            // Room in shared memory is taken at once: more than is needed may be more than there is.
            let needs_exactly = settings.kind == VolatileDbKind::MultiProcessHashMap;
            let num_rows = if needs_exactly {
                truth.count_rows(table)?
            } else {
                num_rows(truth.as_ref(), table, to_cache)?
            };
            let max_rows = to_cache(num_rows);
            let mut expected = Expected::rows(max_rows.map_or(num_rows, |max| max.min(num_rows)));
            // Keys of a table that is held whole may need no index. It is served without the files, too.
            if expected.rows == num_rows
                && cache.wants_largest_key(table)
                && let Some(sources) = sources.as_ref().and_then(|sources| sources.get(i))
            {
                expected.largest_key = load::largest_key(sources).unwrap_or_default();
            }
            // What was hot when it was saved comes last, so that it is what was used last. Where all rows fit there is nothing to choose.
            let hot = max_rows.and_then(|most| {
                let hot_keys = settings.hot_keys.as_ref()?;
                let mut keys = load_hot_keys(&hot_keys.path, spec, observer)?;
                keys.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                Some(keys)
            });
            let num_hot = hot.as_ref().map_or(0, |keys| keys.len() as u64);
            fill_cache(
                cache.as_ref(),
                truth.as_ref(),
                (table, spec),
                clock,
                max_rows.map(|most| most.saturating_sub(num_hot)),
                expected,
                observer.as_ref(),
            )?;
            if let Some(keys) = hot {
                let to = (table, spec);
                hot_keys::fill_cache(cache.as_ref(), truth.as_ref(), to, clock, &keys, observer.as_ref())?;
            }
        }
    }
    let promote_found = config.volatile_db.as_ref().is_some_and(|settings| settings.cache_missed_embeddings);
    let devices = devices::open(
        config,
        &storage,
        truth.as_ref(),
        host.as_ref(),
        sources.as_deref(),
        &clocks,
        observer,
    )?;
    let warms_up = devices::hottest_keys(&storage, sources.as_deref());
    let gather_threads = config.models.iter().map(|model| model.gpu.thread_pool_size).max().unwrap_or(1);
    let caches = cache.into_iter().collect();
    let tiers = Tiers { specs: storage.specs, caches, truth, clocks, devices, gather_threads };
    let store = EmbeddingStore::new(storage.tables, tiers, promote_found, Arc::clone(observer))?;
    store.fill_devices(&warms_up, observer.as_ref())?;
    Ok(store)
}

/// About how many rows a table has, to plan how many are cached: `to_cache` tells it for a number of rows, None for all. To count them may
/// take reading all, which is done only where it makes a difference.
fn num_rows(truth: &dyn TruthTier, table: TableId, to_cache: impl Fn(u64) -> Option<u64>) -> Result<u64> {
    let estimate = truth.estimate_rows(table)?;
    // Counts rows several times that were written again.
    let most = truth.usage(table)?.rows.max(estimate.unwrap_or(0));
    match estimate {
        // All by the one number and a part by the other: then it depends.
        Some(rows) if to_cache(rows).is_none() == to_cache(most).is_none() => Ok(rows),
        // As many whatever there are: none, or what there is room for.
        None if to_cache(most).is_some() && to_cache(most) == to_cache(most / 2) => Ok(most),
        _ => truth.count_rows(table),
    }
}

/// The hot keys that were saved of a table. Without them the start is slower, and that is all.
fn load_hot_keys(folder: &Path, spec: &TableSpec, observer: &Arc<dyn Observer>) -> Option<Vec<Key>> {
    hot_keys::load(&hot_keys::file_of(folder, spec)).unwrap_or_else(|why| {
        observer.warn(&format!("{}: warming up without hot keys: {why}", spec.name));
        None
    })
}

/// Held while a store is opened on a database: a table is loaded by one store at a time, and the next one that names
/// the same database finds it loaded.
fn loading_lock(settings: &PersistentDbConfig) -> Arc<Mutex<()>> {
    static LOADING: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    if !settings.read_only {
        // What cannot be made or found is reported when the database is opened.
        let _ = std::fs::create_dir_all(&settings.path);
    }
    let path = std::fs::canonicalize(&settings.path).unwrap_or_else(|_| settings.path.clone());
    Arc::clone(LOADING.lock().entry(path).or_default())
}

fn report(loaded: Loaded, spec: &TableSpec, observer: &Arc<dyn Observer>) {
    match loaded {
        Loaded::FromFiles { rows, .. } => observer.info(&format!("{}: loaded {rows} rows", spec.name)),
        // load_table has told what there is to tell.
        Loaded::AlreadyHeld | Loaded::Adopted { .. } => {}
    }
}

/// Host memory: of this process, or shared with others.
enum Memory {
    Own(Arc<HostTier>),
    Shared(Arc<SharedTier>),
}

impl Memory {
    fn into_cache(self) -> Arc<dyn CacheTier> {
        match self {
            Self::Own(host) => host,
            Self::Shared(shared) => shared,
        }
    }

    fn into_truth(self) -> Arc<dyn TruthTier> {
        match self {
            Self::Own(host) => host,
            Self::Shared(shared) => shared,
        }
    }
}

/// Where the system keeps files in memory.
const SHARED_MEMORY: &str = "/dev/shm";

fn eviction_policy(policy: OverflowPolicy) -> EvictionPolicy {
    match policy {
        OverflowPolicy::EvictRandom => EvictionPolicy::Random,
        OverflowPolicy::EvictLeastUsed => EvictionPolicy::LeastUsed,
        OverflowPolicy::EvictOldest => EvictionPolicy::Oldest,
    }
}

fn open_shared(
    settings: &VolatileDbConfig,
    database: Option<&PersistentDbConfig>,
    storage: &StorageTables<'_>,
) -> Result<Arc<SharedTier>> {
    let policy = eviction_policy(settings.overflow_policy);
    let rows = settings.overflow_margin.saturating_mul(settings.num_partitions as u64);
    let settings = SharedSettings {
        parent: PathBuf::from(SHARED_MEMORY),
        name: settings.shared_memory.name.clone(),
        size_bytes: settings.shared_memory.size_bytes as u64,
        auto_remove: settings.shared_memory.auto_remove,
        limit: (settings.overflow_margin != u64::MAX).then_some(hps_shared::Limit { rows, policy }),
        role: if database.is_some() { Role::Cache } else { Role::Truth },
        must_fill: database.is_some_and(|database| !database.read_only),
    };
    Ok(Arc::new(SharedTier::open(&settings, &storage.specs)?))
}

/// `pinned` gives memory that GPUs read by themselves, for the tables where they do.
fn open_host(
    settings: &VolatileDbConfig,
    storage: &StorageTables<'_>,
    pinned: Option<Arc<dyn BlockAllocator>>,
    max_rows_of: &dyn Fn(usize) -> Option<u64>,
) -> Result<Arc<HostTier>> {
    let plain: Arc<dyn BlockAllocator> = Arc::new(MmapAllocator);
    let place_of = |table: usize| {
        let model = storage.origins.get(table).map(|(model, _)| *model);
        let is_read = model.is_some_and(|model| devices::reads_host_memory(model, settings));
        match pinned.as_ref().filter(|_| is_read) {
            // Evictions would have to wait for devices.
            Some(pinned) if max_rows_of(table).is_none() => {
                Place { allocator: Arc::clone(pinned), serves_devices: true, max_rows: None }
            }
            _ => Place { allocator: Arc::clone(&plain), serves_devices: false, max_rows: max_rows_of(table) },
        }
    };
    let settings = HostSettings {
        num_partitions: settings.num_partitions,
        overflow_margin: (settings.overflow_margin != u64::MAX).then_some(settings.overflow_margin),
        overflow_policy: eviction_policy(settings.overflow_policy),
        overflow_resolution_target: settings.overflow_resolution_target,
        serves_devices: false,
    };
    Ok(Arc::new(HostTier::open_each(settings, &storage.specs, place_of)?))
}
