//! The settings of a model that concern GPUs and the cache in their memory.

use crate::limits::MAX_THREADS;
use crate::reader::{Choices, Chosen, Section};

/// How rows reach a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingCacheType {
    /// `dynamic`: a cache takes in the rows that are asked for. The default.
    Dynamic,
    /// `static`: all rows are in GPU memory.
    Static,
    /// `uvm`: all rows are where the GPU can read them by itself, some of them in its memory.
    Uvm,
}

/// Settings that concern GPUs. The fields are called as in `ps.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuConfig {
    /// How rows reach a GPU. Default `dynamic`; `static` if `use_static_table` is true.
    pub embedding_cache_type: EmbeddingCacheType,
    /// Whether a `dynamic` model has a cache in GPU memory. Default true.
    pub gpucache: bool,
    /// Rows that the cache can hold, as a fraction of the table's rows; above 1 is allowed, 0 asks for the smallest
    /// cache. Default 0.2.
    pub gpucacheper: f64,
    /// GPU memory that the model's caches, with their indexes, take on each device: they get the largest share of their tables that
    /// fits, the same for all. `None` if not given: `gpucacheper` decides.
    pub gpucache_bytes: Option<u64>,
    /// Hit rate, below 1, from which missed keys yield the default row at once and are fetched later; 0 and below never waits.
    /// `None` if not given, or 1 and above: results are always exact. (The predecessor's default is 0.9.)
    pub hit_rate_threshold: Option<f64>,
    /// Ordinals of the GPUs that serve the model; never empty, none twice.
    pub deployed_device_list: Vec<usize>,
    /// Lookups of one GPU that can run at the same time: a sizing hint. Default 1.
    pub num_of_worker_buffer_in_pool: usize,
    /// Refreshes of one GPU that can run at the same time: a sizing hint. Default 1.
    pub num_of_refresher_buffer_in_pool: usize,
    /// Fraction of the cache that is refreshed in one step, 0 to 1. Default 0. Above 0 the cache is warmed up.
    pub cache_refresh_percentage_per_iteration: f64,
    /// Seconds from start to the first refresh. Default 0.
    pub refresh_delay: f64,
    /// Seconds between refreshes. Default 0: none.
    pub refresh_interval: f64,
    /// Whether lookups run on the caller's stream. Default true.
    pub use_context_stream: bool,
    /// Which of the predecessor's two caches is meant; there is one here. Default true.
    pub use_hctr_cache_implementation: bool,
    /// Threads that fetch missed rows later: a sizing hint. Default 16.
    pub thread_pool_size: usize,
    /// Whether a `dynamic` cache may be warmed up at start. Default true.
    pub init_ec: bool,
    /// Whether a `static` table's rows are in pinned host memory, not in the GPU's. Default false.
    pub enable_pagelock: bool,
    /// Whether a `static` table's rows are kept in 8 bits per element, which loses precision. Default false.
    pub fp8_quant: bool,
}

static CACHE_TYPES: Choices<EmbeddingCacheType> = Choices {
    accepted: &[
        (EmbeddingCacheType::Dynamic, &["dynamic"]),
        (EmbeddingCacheType::Static, &["static"]),
        (EmbeddingCacheType::Uvm, &["uvm"]),
    ],
    refused: &[(
        &["stochastic"],
        "stochastic has no implementation, and had none in the predecessor either: use dynamic",
    )],
};

/// A billion seconds: no timer is set further ahead, and every clock can hold it.
const MAX_SECONDS: f64 = 1e9;

/// Reads the settings from a model.
pub(crate) fn read(section: &Section<'_>) -> GpuConfig {
    let embedding_cache_type = read_cache_type(section);
    let enable_pagelock = section.bool("enable_pagelock", false);
    let fp8_quant = section.bool("fp8_quant", false);
    if embedding_cache_type != EmbeddingCacheType::Static {
        for key in [("enable_pagelock", enable_pagelock), ("fp8_quant", fp8_quant)] {
            if key.1 {
                let message = "without effect: only models with embedding_cache_type static have it";
                section.report.warn(&section.place_of(key.0), message);
            }
        }
    }
    let gpucache = section.bool("gpucache", true);
    GpuConfig {
        embedding_cache_type,
        gpucache,
        gpucacheper: section.f64("gpucacheper", 0.2, 0.0..),
        gpucache_bytes: read_cache_bytes(section, embedding_cache_type, gpucache),
        hit_rate_threshold: section
            .optional_f64("hit_rate_threshold", ..)
            .filter(|&threshold| threshold < 1.0),
        deployed_device_list: read_devices(section),
        num_of_worker_buffer_in_pool: section.usize("num_of_worker_buffer_in_pool", 1, 0..=u64::MAX),
        num_of_refresher_buffer_in_pool: section.usize("num_of_refresher_buffer_in_pool", 1, 0..=u64::MAX),
        cache_refresh_percentage_per_iteration: section.f64(
            "cache_refresh_percentage_per_iteration",
            0.0,
            0.0..=1.0,
        ),
        refresh_delay: section.f64("refresh_delay", 0.0, 0.0..=MAX_SECONDS),
        refresh_interval: section.f64("refresh_interval", 0.0, 0.0..=MAX_SECONDS),
        use_context_stream: section.bool("use_context_stream", true),
        use_hctr_cache_implementation: section.bool("use_hctr_cache_implementation", true),
        thread_pool_size: section.usize("thread_pool_size", 16, 0..=MAX_THREADS),
        init_ec: section.bool("init_ec", true),
        enable_pagelock,
        fp8_quant,
    }
}

fn read_cache_bytes(section: &Section<'_>, kind: EmbeddingCacheType, gpucache: bool) -> Option<u64> {
    const KEY: &str = "gpucache_bytes";
    // Not given: 0.
    let num_bytes = Some(section.u64(KEY, 0, 1..=u64::MAX)).filter(|&num_bytes| num_bytes > 0)?;
    let has_cache = match kind {
        EmbeddingCacheType::Static => false,
        EmbeddingCacheType::Dynamic => gpucache,
        EmbeddingCacheType::Uvm => true,
    };
    if !has_cache {
        section.report.warn(&section.place_of(KEY), "without effect: the model has no cache in GPU memory");
        return None;
    }
    if section.has("gpucacheper") {
        section.report.warn(&section.place_of("gpucacheper"), "without effect: gpucache_bytes decides");
    }
    Some(num_bytes)
}

fn read_cache_type(section: &Section<'_>) -> EmbeddingCacheType {
    let chosen = section.choice("embedding_cache_type", &CACHE_TYPES);
    match (section.bool("use_static_table", false), chosen) {
        (true, Chosen::Is(EmbeddingCacheType::Dynamic | EmbeddingCacheType::Uvm)) => {
            let message = "overridden: use_static_table is true, so the type is static";
            section.report.warn(&section.place_of("embedding_cache_type"), message);
            EmbeddingCacheType::Static
        }
        (true, _) => EmbeddingCacheType::Static,
        (false, Chosen::Is(kind)) => kind,
        (false, Chosen::Absent | Chosen::Invalid) => EmbeddingCacheType::Dynamic,
    }
}

fn read_devices(section: &Section<'_>) -> Vec<usize> {
    const KEY: &str = "deployed_device_list";
    const EXPECTED: &str = "a list of at least one CUDA ordinal, such as [0]";
    section.require(KEY, EXPECTED);
    let Some(list) = section.integers(KEY, 0..=1023) else { return Vec::new() };
    if list.items.is_empty() {
        section.report.problem(&list.place, "an empty list", EXPECTED);
    }
    let mut devices: Vec<usize> = Vec::new();
    for item in list.items {
        match item.value {
            Some(device) if devices.contains(&device) => {
                let found = format!("{device}, which the list already has");
                section.report.problem(&item.place, found, "each ordinal once");
            }
            Some(device) => devices.push(device),
            None => {}
        }
    }
    devices
}
