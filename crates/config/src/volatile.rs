//! `volatile_db`: rows in memory, of this process, of this machine or of a Redis cluster.

use std::path::{Path, PathBuf};

use crate::availability::{self, Feature};
use crate::json::quoted;
use crate::limits::{MAX_BATCH, MAX_BYTES};
use crate::paths::Folders;
use crate::reader::{Choices, Chosen, Section};
use crate::report::{Place, Report};
use crate::update_source;

/// The implementations of a volatile database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolatileDbKind {
    /// `hash_map`: memory of this process.
    HashMap,
    /// `parallel_hash_map`: memory of this process, partitions worked on in parallel. The default.
    ParallelHashMap,
    /// `multi_process_hash_map`: shared memory of this machine.
    MultiProcessHashMap,
    /// `redis_cluster`: memory of other machines.
    RedisCluster,
}

/// Which rows a full partition gives up first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverflowPolicy {
    /// `evict_random`: any. The default.
    EvictRandom,
    /// `evict_least_used`: those with the fewest lookups.
    EvictLeastUsed,
    /// `evict_oldest`: those not looked up for the longest time.
    EvictOldest,
}

/// Settings of the volatile database.
#[derive(Debug, Clone, PartialEq)]
pub struct VolatileDbConfig {
    /// `type`: which implementation. Default if there is no `volatile_db`: `parallel_hash_map`.
    pub kind: VolatileDbKind,
    /// `num_partitions`: parts of each table. Default: the machine's hardware threads, 16 at most.
    pub num_partitions: usize,
    /// `allocation_rate`: bytes that a partition of the predecessor takes at a time. Default 256 MiB. Accepted and not
    /// used: memory is taken in proportion to the rows.
    pub allocation_rate_bytes: usize,
    /// `overflow_margin`: rows that a partition may hold. Default `u64::MAX`: no limit.
    pub overflow_margin: u64,
    /// `memory_bytes`, not a key of the predecessor: what all tables in host memory take together, with RocksDB's caches and write
    /// buffers if there is a persistent database. Default `None`: no bound. Decides in place of `overflow_margin`.
    pub memory_bytes: Option<u64>,
    /// `hot_keys_path` and `hot_keys_interval`, not keys of the predecessor: where it is saved which rows are in host memory, for the next
    /// start. Default `None`: nowhere.
    pub hot_keys: Option<HotKeysConfig>,
    /// `overflow_policy`: which rows go first. Default `evict_random`.
    pub overflow_policy: OverflowPolicy,
    /// `overflow_resolution_target`: fraction of `overflow_margin` that an eviction leaves, above 0 and at most 1.
    /// Default 0.8.
    pub overflow_resolution_target: f64,
    /// `initial_cache_rate`: fraction of the rows held after start, 0 to 1. Default 1. Always 1 if there is no
    /// persistent database to hold the others.
    pub initial_cache_rate: f64,
    /// `cache_missed_embeddings`: whether rows found in the persistent database are promoted. Default false.
    pub cache_missed_embeddings: bool,
    /// `max_batch_size`: keys handled at a time. Default 65536.
    pub max_batch_size: usize,
    /// `initialize_after_startup`: whether the tables are loaded at start. Default true.
    pub initialize_after_startup: bool,
    /// `update_filters`: regular expressions on model names whose updates are taken. Default `.+`: all. (The
    /// predecessor's default, `^hps_.+$`, was meant to match all models and matched none.)
    pub update_filters: Vec<String>,
    /// What only `redis_cluster` uses.
    pub redis: RedisConfig,
    /// What only `multi_process_hash_map` uses.
    pub shared_memory: SharedMemoryConfig,
}

/// Where and how often hot keys are saved.
#[derive(Debug, Clone, PartialEq)]
pub struct HotKeysConfig {
    /// `hot_keys_path`: folder, made if it does not exist.
    pub path: PathBuf,
    /// `hot_keys_interval`: seconds from one time to the next. Default 300.
    pub interval: f64,
}

/// Settings of `redis_cluster`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisConfig {
    /// `address`: `host[:port]` of nodes to start from. Default `127.0.0.1:7000`.
    pub addresses: Vec<String>,
    /// `user_name`. Default `default`.
    pub user_name: String,
    /// `password`. Default empty: none.
    pub password: Secret,
    /// `num_node_connections`: connections to each node, at most `num_partitions`. Default 5, or `num_partitions`
    /// if that is less.
    pub num_node_connections: usize,
    /// `enable_tls`. Default false.
    pub enable_tls: bool,
    /// `tls_ca_certificate`: file, or folder of files. Default `cacertbundle.crt`.
    pub tls_ca_certificate: PathBuf,
    /// `tls_client_certificate`: file. Default `client_cert.pem`.
    pub tls_client_certificate: PathBuf,
    /// `tls_client_key`: file. Default `client_key.pem`.
    pub tls_client_key: PathBuf,
    /// `tls_server_name_identification`: the name that the server's certificate must have. Default
    /// `redis.localhost`.
    pub tls_server_name_identification: String,
}

/// Settings of `multi_process_hash_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMemoryConfig {
    /// `shared_memory_size`: bytes of the segment. Default 16 GiB.
    pub size_bytes: usize,
    /// `shared_memory_name`: file in `/dev/shm`. Default `hctr_mp_hash_map_database`.
    pub name: String,
    /// `shared_memory_auto_remove`: whether the last process that leaves removes it. Default true.
    pub auto_remove: bool,
}

/// A text that debug output does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "(empty)" } else { "(not shown)" })
    }
}

impl Default for VolatileDbConfig {
    /// What holds if a configuration has no `volatile_db`.
    fn default() -> Self {
        let report = Report::new(Path::new(""), "");
        let section = Section::empty(&report, Place { offset: 0, path: String::new() });
        read_settings(&section, VolatileDbKind::ParallelHashMap, &Folders::of(Path::new("")))
    }
}

/// The spellings of `volatile_db.type`; `None` is disabled.
static KINDS: Choices<Option<VolatileDbKind>> = Choices {
    accepted: &[
        (Some(VolatileDbKind::HashMap), &["hash_map", "hashmap", "hash", "map"]),
        (
            Some(VolatileDbKind::ParallelHashMap),
            &["parallel_hash_map", "parallel_hashmap", "parallel_hash", "parallel_map"],
        ),
        (
            Some(VolatileDbKind::MultiProcessHashMap),
            &["multi_process_hash_map", "multi_process_hashmap", "multi_process_hash", "multi_process_map"],
        ),
        (Some(VolatileDbKind::RedisCluster), &["redis_cluster", "redis"]),
        (None, &["disabled", "disable", "none"]),
    ],
    refused: &[(&["rocks_db", "rocksdb", "rocks"], "RocksDB belongs in persistent_db.type")],
};

static POLICIES: Choices<OverflowPolicy> = Choices {
    accepted: &[
        (OverflowPolicy::EvictRandom, &["evict_random", "random"]),
        (OverflowPolicy::EvictLeastUsed, &["evict_least_used", "least_used"]),
        (OverflowPolicy::EvictOldest, &["evict_oldest", "oldest"]),
    ],
    refused: &[],
};

/// Reads the section; `None` means disabled.
pub(crate) fn read(section: &Section<'_>, folders: &Folders) -> Option<VolatileDbConfig> {
    let kind = match section.choice("type", &KINDS) {
        Chosen::Is(kind) => kind,
        Chosen::Invalid => Some(VolatileDbKind::ParallelHashMap),
        Chosen::Absent => {
            let message = "disabled, since it has no `type`; \"parallel_hash_map\" is the usual one";
            section.report.warn(&section.place, message);
            None
        }
    };
    // The settings of a disabled database are checked too: it will be enabled some day.
    let config = read_settings(section, kind.unwrap_or(VolatileDbKind::ParallelHashMap), folders);
    if kind? == VolatileDbKind::RedisCluster {
        availability::check(Feature::RedisCluster, &section.place_of("type"), section.report);
    }
    Some(config)
}

fn read_settings(section: &Section<'_>, kind: VolatileDbKind, folders: &Folders) -> VolatileDbConfig {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let num_partitions = section.usize("num_partitions", threads.min(16), 1..=4096);
    let overflow_policy = match section.choice("overflow_policy", &POLICIES) {
        Chosen::Is(policy) => policy,
        Chosen::Absent | Chosen::Invalid => OverflowPolicy::EvictRandom,
    };
    VolatileDbConfig {
        kind,
        num_partitions,
        allocation_rate_bytes: section.usize("allocation_rate", 256 << 20, 1..=MAX_BYTES),
        overflow_margin: section.u64("overflow_margin", u64::MAX, 1..=u64::MAX),
        memory_bytes: read_memory_bytes(section, kind),
        hot_keys: read_hot_keys(section, kind, folders),
        overflow_policy,
        overflow_resolution_target: section.f64("overflow_resolution_target", 0.8, ABOVE_ZERO_TO_ONE),
        initial_cache_rate: section.f64("initial_cache_rate", 1.0, 0.0..=1.0),
        cache_missed_embeddings: section.bool("cache_missed_embeddings", false),
        max_batch_size: section.usize("max_batch_size", 65536, 1..=MAX_BATCH),
        initialize_after_startup: section.bool("initialize_after_startup", true),
        update_filters: update_source::read_filters(section),
        redis: read_redis(section, kind, num_partitions, folders),
        shared_memory: read_shared_memory(section),
    }
}

/// The smallest budget: below it nothing but bookkeeping fits.
const MIN_MEMORY_BYTES: u64 = 1 << 20;

fn read_memory_bytes(section: &Section<'_>, kind: VolatileDbKind) -> Option<u64> {
    const KEY: &str = "memory_bytes";
    if !section.has(KEY) {
        return None;
    }
    let bytes = section.u64(KEY, u64::MAX, MIN_MEMORY_BYTES..=u64::MAX);
    if section.has("overflow_margin") {
        section.report.problem(
            &section.place_of("overflow_margin"),
            "a bound in rows beside memory_bytes, which is one in bytes",
            "one of the two",
        );
    }
    if kind == VolatileDbKind::MultiProcessHashMap {
        section.report.problem(
            &section.place_of(KEY),
            "a bound for the memory of one process",
            "shared_memory_size, which bounds memory that processes share",
        );
    }
    Some(bytes)
}

fn read_hot_keys(section: &Section<'_>, kind: VolatileDbKind, folders: &Folders) -> Option<HotKeysConfig> {
    let interval = section.f64("hot_keys_interval", 300.0, 1.0..=1e9);
    let path = section.string("hot_keys_path", "");
    if path.is_empty() {
        if section.has("hot_keys_interval") {
            section
                .report
                .warn(&section.place_of("hot_keys_interval"), "without effect: hot_keys_path is not set");
        }
        return None;
    }
    if kind == VolatileDbKind::MultiProcessHashMap {
        section
            .report
            .warn(&section.place_of("hot_keys_path"), "without effect: not for multi_process_hash_map");
        return None;
    }
    Some(HotKeysConfig { path: folders.existing_or_own(&path), interval })
}

const ABOVE_ZERO_TO_ONE: (std::ops::Bound<f64>, std::ops::Bound<f64>) =
    (std::ops::Bound::Excluded(0.0), std::ops::Bound::Included(1.0));

fn read_redis(
    section: &Section<'_>,
    kind: VolatileDbKind,
    num_partitions: usize,
    folders: &Folders,
) -> RedisConfig {
    let num_node_connections = section.usize("num_node_connections", num_partitions.min(5), 1..=4096);
    if kind == VolatileDbKind::RedisCluster && num_node_connections > num_partitions {
        section.report.problem(
            &section.place_of("num_node_connections"),
            num_node_connections.to_string(),
            format!("at most num_partitions, which is {num_partitions}"),
        );
    }
    let file = |key, default| folders.existing_or_own(&section.string(key, default));
    RedisConfig {
        addresses: update_source::read_endpoints(section, "address", "127.0.0.1:7000"),
        user_name: section.string("user_name", "default"),
        password: Secret(section.secret("password")),
        num_node_connections,
        enable_tls: section.bool("enable_tls", false),
        tls_ca_certificate: file("tls_ca_certificate", "cacertbundle.crt"),
        tls_client_certificate: file("tls_client_certificate", "client_cert.pem"),
        tls_client_key: file("tls_client_key", "client_key.pem"),
        tls_server_name_identification: section.string("tls_server_name_identification", "redis.localhost"),
    }
}

fn read_shared_memory(section: &Section<'_>) -> SharedMemoryConfig {
    let name = section.string("shared_memory_name", "hctr_mp_hash_map_database");
    if name.is_empty() || name.len() > 200 || name.contains(['/', '\0']) || name == "." || name == ".." {
        section.report.problem(
            &section.place_of("shared_memory_name"),
            quoted(&name),
            "a file name of 1 to 200 bytes, without `/`",
        );
    }
    SharedMemoryConfig {
        size_bytes: section.usize("shared_memory_size", 16 << 30, 4096..=MAX_BYTES),
        name,
        auto_remove: section.bool("shared_memory_auto_remove", true),
    }
}

/// Settles what a volatile database means that has no persistent one below it.
pub(crate) fn settle_alone(section: &Section<'_>, config: &mut VolatileDbConfig) {
    let warn = |key: &str, message: &str| section.report.warn(&section.place_of(key), message);
    if config.overflow_margin != u64::MAX {
        warn(
            "overflow_margin",
            "there is no persistent_db: rows that overflow are gone, and their keys yield the default row",
        );
    }
    if config.initial_cache_rate < 1.0 {
        warn(
            "initial_cache_rate",
            "ignored: there is no persistent_db to hold the other rows, so all are kept",
        );
        config.initial_cache_rate = 1.0;
    }
    if config.cache_missed_embeddings {
        warn("cache_missed_embeddings", "without effect: there is no persistent_db to find missed rows in");
    }
    if config.hot_keys.take().is_some() {
        warn(
            "hot_keys_path",
            "without effect: there is no persistent_db, so that all rows are held from the start",
        );
    }
    let is_private = matches!(config.kind, VolatileDbKind::HashMap | VolatileDbKind::ParallelHashMap);
    if is_private && !config.initialize_after_startup {
        warn(
            "initialize_after_startup",
            "there is no persistent_db and nothing is loaded: every key yields the default row until it is updated",
        );
    }
}
