//! The promises that every tier makes, in the layouts that differ most.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;

use common::{POLICIES, limited, unlimited};
use hps_core::memory::MmapAllocator;
use hps_core::testing::{cache_conformance, specs, truth_conformance};
use hps_host::{HostSettings, HostTier};

fn layouts() -> Vec<HostSettings> {
    let mut layouts: Vec<_> = [1, 2, 15, 16, 1_000].map(unlimited).into();
    layouts.push(HostSettings { serves_devices: true, ..unlimited(3) });
    layouts.extend(POLICIES.map(|policy| limited(3, 100_000, policy, 0.8)));
    layouts
}

fn open(settings: HostSettings) -> HostTier {
    HostTier::open(settings, &specs(), Arc::new(MmapAllocator)).unwrap()
}

#[test]
fn it_is_a_cache_tier() {
    for settings in layouts() {
        cache_conformance(&open(settings));
    }
}

#[test]
fn it_is_a_truth_tier() {
    for settings in layouts() {
        truth_conformance(&open(settings));
    }
}
