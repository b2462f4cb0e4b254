//! What the tests of the shared tier have in common.
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

use std::path::Path;

use hps_core::tier::{TableSpec, Tier, TruthTier};
use hps_core::{Key, KeyWidth, Rows, TableId};
use hps_shared::{EvictionPolicy, Limit, Role, SharedSettings, SharedTier};

pub const TABLE: TableId = TableId(0);

pub fn settings(parent: &Path) -> SharedSettings {
    SharedSettings {
        parent: parent.to_owned(),
        name: "segment".into(),
        size_bytes: 1 << 30,
        auto_remove: true,
        limit: None,
        role: Role::Truth,
        must_fill: false,
    }
}

pub fn limited(parent: &Path, rows: u64, policy: EvictionPolicy) -> SharedSettings {
    SharedSettings { limit: Some(Limit { rows, policy }), ..settings(parent) }
}

pub fn spec(row_bytes: usize) -> TableSpec {
    TableSpec { name: "hps_et.test.table".into(), row_bytes, key_width: KeyWidth::Bits64 }
}

/// A tier with one table.
pub fn open(settings: &SharedSettings, row_bytes: usize) -> SharedTier {
    SharedTier::open(settings, &[spec(row_bytes)]).unwrap()
}

pub fn insert(tier: &SharedTier, row_bytes: usize, keys: &[Key], version: u64) {
    let rows = hps_core::testing::rows_of(keys, version, row_bytes);
    tier.insert(TABLE, keys, Rows::new(&rows, row_bytes).unwrap()).unwrap();
}

pub fn load(tier: &SharedTier, row_bytes: usize, keys: &[Key], version: u64, record: &str) {
    let rows = hps_core::testing::rows_of(keys, version, row_bytes);
    let mut load = tier.begin_load(TABLE, hps_core::tier::Expected::rows(keys.len() as u64)).unwrap();
    load.put(keys, Rows::new(&rows, row_bytes).unwrap()).unwrap();
    load.commit(record, &|_| {}).unwrap();
}

pub fn lookup(tier: &SharedTier, row_bytes: usize, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
    hps_core::testing::lookup(tier, TABLE, row_bytes, keys)
}
