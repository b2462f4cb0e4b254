//! The GPUs of a store: what each is told of the tables that are deployed on it.

use std::collections::BTreeSet;
use std::sync::Arc;

use hps_config::{Config, EmbeddingCacheType, GpuConfig, ModelConfig, VolatileDbConfig};
use hps_core::device::{DeviceTier, ReachableRows};
use hps_core::load::{self, Source};
use hps_core::memory::BlockAllocator;
use hps_core::observer::Observer;
use hps_core::tier::{Tier, TierKind, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Key, Result, TableId};
use hps_gpu::{
    CacheKind, FrontSettings, GpuTier, PinnedAllocator, Reach, TableSettings, images, share_for_bytes,
};
use hps_host::HostTier;

use crate::storage::StorageTables;

/// Opens the tier of every GPU that a model is deployed on. On a machine without GPUs there are none, whatever the models say.
///
/// # Errors
/// `NotFound` if a model is deployed on a GPU that is not there; whatever the tiers report.
pub(crate) fn open(
    config: &Config,
    storage: &StorageTables<'_>,
    truth: &dyn TruthTier,
    host: Option<&Arc<HostTier>>,
    sources: Option<&[Vec<Source>]>,
    clocks: &Arc<[UpdateClock]>,
    observer: &Arc<dyn Observer>,
) -> Result<Vec<Arc<dyn DeviceTier>>> {
    let ordinals = ordinals(config);
    if !ordinals.is_empty() && images::image_sets().is_empty() && hps_gpu::device_count() > 0 {
        observer.warn(
            "this build of hps has no GPU kernels and serves CPU tensors alone; build it again with HPS_NVRTC (scripts/setup \
             does)",
        );
    }
    let ordinals = if serves_devices(config) { ordinals } else { BTreeSet::new() };
    let mut devices: Vec<Arc<dyn DeviceTier>> = Vec::new();
    for ordinal in ordinals {
        let mut tables = Vec::new();
        for (i, (spec, (model, _))) in storage.specs.iter().zip(&storage.origins).enumerate() {
            if !model.gpu.deployed_device_list.contains(&ordinal) {
                continue;
            }
            let table = TableId(i as u32);
            let kind = kind(&model.gpu);
            tables.push(TableSettings {
                storage: table,
                name: spec.name.clone(),
                row_bytes: spec.row_bytes,
                is_fp8: model.gpu.fp8_quant && model.gpu.embedding_cache_type == EmbeddingCacheType::Static,
                kind,
                cache_share: model.gpu.gpucacheper,
                hit_rate_threshold: model.gpu.hit_rate_threshold,
                reach: match host {
                    Some(host) if host.reaches(table) && truth.kind() == TierKind::Host => Reach::All,
                    Some(host) if host.reaches(table) => Reach::Some,
                    _ => Reach::Nothing,
                },
                reachable_rows: match host {
                    Some(host) => Tier::usage(host.as_ref(), table)?.rows,
                    None => 0,
                },
                // A cache need not know exactly: that could take reading all rows.
                num_rows: if kind.holds_all() { truth.count_rows(table)? } else { truth.usage(table)?.rows },
                largest_key: largest_key(truth, table, kind, sources.and_then(|sources| sources.get(i)))?,
            });
        }
        for model in &config.models {
            let Some(num_bytes) = model.gpu.gpucache_bytes else { continue };
            let is_of_model = |table: &TableSettings| {
                let origin = storage.origins.get(table.storage.index());
                origin.is_some_and(|(owner, _)| owner.name == model.name)
            };
            let (mine, _): (Vec<TableSettings>, Vec<_>) = tables.iter().cloned().partition(is_of_model);
            let share = share_for_bytes(&mine, num_bytes, &model.name)?;
            tables.iter_mut().filter(|table| is_of_model(table)).for_each(|table| table.cache_share = share);
        }
        let fronts = storage.tables.iter().enumerate().filter(|(_, table)| {
            storage
                .origins
                .get(table.storage().index())
                .is_some_and(|(model, _)| model.gpu.deployed_device_list.contains(&ordinal))
        });
        let fronts = fronts.map(|(number, table)| FrontSettings {
            number,
            storage: table.storage(),
            default_row: table.default_row().to_vec(),
        });
        let reachable = host.map(|host| Arc::clone(host) as Arc<dyn ReachableRows>);
        let (clocks, observer) = (Arc::clone(clocks), Arc::clone(observer));
        let tier = GpuTier::open(ordinal, tables, fronts.collect(), clocks, reachable, observer)?;
        devices.push(Arc::new(tier));
    }
    Ok(devices)
}

/// True if GPUs are served: some model is deployed on one, there is one, and this build has kernels.
fn serves_devices(config: &Config) -> bool {
    !ordinals(config).is_empty() && hps_gpu::device_count() > 0 && !images::image_sets().is_empty()
}

/// Memory that GPUs read by themselves, for the host tier's rows; None if there are no GPUs.
///
/// # Errors
/// As [`open`].
pub(crate) fn pinned_allocator(
    config: &Config,
    observer: &Arc<dyn Observer>,
) -> Result<Option<Arc<dyn BlockAllocator>>> {
    match ordinals(config).first().filter(|_| serves_devices(config)) {
        Some(&ordinal) => Ok(Some(Arc::new(PinnedAllocator::new(ordinal, Arc::clone(observer))?))),
        None => Ok(None),
    }
}

/// True if GPUs read the rows of a model's tables in host memory: what the cache lacks, exactly, and nothing is evicted.
pub(crate) fn reads_host_memory(model: &ModelConfig, host: &VolatileDbConfig) -> bool {
    let GpuConfig { embedding_cache_type, gpucache, hit_rate_threshold, ref deployed_device_list, .. } =
        model.gpu;
    embedding_cache_type == EmbeddingCacheType::Dynamic
        && gpucache
        && hit_rate_threshold.is_none()
        && !deployed_device_list.is_empty()
        && host.overflow_margin == u64::MAX
}

fn ordinals(config: &Config) -> BTreeSet<usize> {
    config.models.iter().flat_map(|model| model.gpu.deployed_device_list.iter().copied()).collect()
}

/// Tells the hottest keys of tables whose caches are warmed up: the first ones of the model files.
pub(crate) fn hottest_keys<'s>(
    storage: &StorageTables<'_>,
    sources: Option<&'s [Vec<Source>]>,
) -> impl Fn(TableId, u64) -> Result<Option<Vec<Key>>> + use<'s> {
    let warms_up: Vec<bool> = storage.origins.iter().map(|(model, _)| model.gpu.init_ec).collect();
    move |table, most| {
        if !warms_up.get(table.index()).copied().unwrap_or(false) {
            return Ok(Some(Vec::new()));
        }
        let Some(sources) = sources.and_then(|sources| sources.get(table.index())) else { return Ok(None) };
        let mut keys = Vec::new();
        for source in sources {
            // Of fused tables, each gives its share of the first ones.
            keys.extend(source.files.read_keys(most / sources.len().max(1) as u64)?);
        }
        Ok(Some(keys))
    }
}

fn kind(gpu: &GpuConfig) -> CacheKind {
    match gpu.embedding_cache_type {
        EmbeddingCacheType::Dynamic if gpu.gpucache => CacheKind::Dynamic,
        EmbeddingCacheType::Dynamic => CacheKind::Bypass,
        EmbeddingCacheType::Static if gpu.enable_pagelock => CacheKind::StaticOnHost,
        EmbeddingCacheType::Static => CacheKind::Static,
        EmbeddingCacheType::Uvm => CacheKind::Uvm,
    }
}

/// The largest key of a table, as far as it can be told without reading all rows. A cache may be told less than the truth:
/// larger keys are then served from below.
fn largest_key(
    truth: &dyn TruthTier,
    table: TableId,
    kind: CacheKind,
    sources: Option<&Vec<Source>>,
) -> Result<Option<Key>> {
    if let Some(key) = truth.largest_key(table)? {
        return Ok(Some(key));
    }
    match sources {
        Some(sources) if !kind.holds_all() => load::largest_key(sources),
        _ => Ok(None),
    }
}
