//! What the tests of the host tier share.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    missing_docs,
    reason = "helpers of tests, each used by some"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hps_core::memory::{Block, BlockAllocator, MmapAllocator};
use hps_core::tier::{TableSpec, Tier};
use hps_core::{Error, ErrorKind, Key, KeyWidth, Result, Rows, TableId};
use hps_host::{EvictionPolicy, HostSettings, HostTier};

pub const TABLE: TableId = TableId(0);

pub const POLICIES: [EvictionPolicy; 3] =
    [EvictionPolicy::Random, EvictionPolicy::LeastUsed, EvictionPolicy::Oldest];

/// A number that is set in the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub fn unlimited(num_partitions: usize) -> HostSettings {
    HostSettings {
        num_partitions,
        overflow_margin: None,
        overflow_policy: EvictionPolicy::Random,
        overflow_resolution_target: 0.8,
        serves_devices: false,
    }
}

pub fn limited(
    num_partitions: usize,
    overflow_margin: u64,
    overflow_policy: EvictionPolicy,
    overflow_resolution_target: f64,
) -> HostSettings {
    HostSettings {
        num_partitions,
        overflow_margin: Some(overflow_margin),
        overflow_policy,
        overflow_resolution_target,
        serves_devices: false,
    }
}

pub fn spec(row_bytes: usize) -> TableSpec {
    TableSpec { name: "hps_et.test.table".into(), row_bytes, key_width: KeyWidth::Bits64 }
}

/// A tier with one table.
pub fn open(settings: HostSettings, row_bytes: usize) -> HostTier {
    open_with(settings, row_bytes, Arc::new(MmapAllocator))
}

pub fn open_with(settings: HostSettings, row_bytes: usize, allocator: Arc<dyn BlockAllocator>) -> HostTier {
    HostTier::open(settings, &[spec(row_bytes)], allocator).unwrap()
}

pub fn insert(tier: &HostTier, row_bytes: usize, keys: &[Key], version: u64) {
    let rows = hps_core::testing::rows_of(keys, version, row_bytes);
    tier.insert(TABLE, keys, Rows::new(&rows, row_bytes).unwrap()).unwrap();
}

pub fn lookup(tier: &HostTier, row_bytes: usize, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
    hps_core::testing::lookup(tier, TABLE, row_bytes, keys)
}

/// The keys that the tier holds, of these.
pub fn present(tier: &HostTier, row_bytes: usize, keys: &[Key]) -> Vec<Key> {
    let found = lookup(tier, row_bytes, keys);
    keys.iter().zip(found).filter(|(_, row)| row.is_some()).map(|(&key, _)| key).collect()
}

/// Refuses every block after the first `num_blocks`.
#[derive(Debug)]
pub struct FailingAllocator {
    pub blocks_left: AtomicUsize,
}

impl FailingAllocator {
    pub fn new(num_blocks: usize) -> Arc<Self> {
        Arc::new(Self { blocks_left: AtomicUsize::new(num_blocks) })
    }
}

impl BlockAllocator for FailingAllocator {
    fn allocate(&self, num_bytes: usize) -> Result<Block> {
        self.blocks_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .map_err(|_| Error::new(ErrorKind::OutOfMemory, "no more blocks"))?;
        MmapAllocator.allocate(num_bytes)
    }
}
