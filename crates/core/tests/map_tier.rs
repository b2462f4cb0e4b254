//! The map that stands in for real tiers keeps every promise of the traits.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use hps_core::testing::{MapTier, cache_conformance, specs, truth_conformance};
use hps_core::tier::TierKind;

#[test]
fn a_map_is_a_truth() {
    truth_conformance(&MapTier::new(TierKind::Ssd, &specs()));
}

#[test]
fn a_map_is_a_cache() {
    cache_conformance(&MapTier::new(TierKind::Host, &specs()));
}
