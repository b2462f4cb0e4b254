//! The promises that every tier makes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use common::{limited, settings};
use hps_core::testing::{cache_conformance, specs, truth_conformance};
use hps_shared::{EvictionPolicy, Role, SharedSettings, SharedTier};

fn layouts(parent: &std::path::Path) -> Vec<SharedSettings> {
    let policies = [EvictionPolicy::Random, EvictionPolicy::LeastUsed, EvictionPolicy::Oldest];
    let mut layouts = vec![settings(parent)];
    layouts.extend(policies.map(|policy| limited(parent, 100_000, policy)));
    layouts
}

#[test]
fn it_is_a_truth_tier() {
    let parent = tempfile::tempdir().unwrap();
    for settings in layouts(parent.path()) {
        truth_conformance(&SharedTier::open(&settings, &specs()).unwrap());
    }
}

#[test]
fn it_is_a_cache_tier() {
    let parent = tempfile::tempdir().unwrap();
    for settings in layouts(parent.path()) {
        let settings = SharedSettings { role: Role::Cache, must_fill: true, ..settings };
        cache_conformance(&SharedTier::open(&settings, &specs()).unwrap());
    }
}
