//! The promises that every tier makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use hps_core::testing::{specs, tier_conformance, truth_conformance};
use hps_ssd::{SsdSettings, SsdTier};

#[test]
fn keeps_what_the_lowest_tier_promises() {
    let directory = tempfile::tempdir().unwrap();
    truth_conformance(&common::open(directory.path(), &specs()));
}

#[test]
fn keeps_it_with_batches_far_larger_than_max_batch_size() {
    let directory = tempfile::tempdir().unwrap();
    let settings = SsdSettings { max_batch_size: 7, ..common::settings(directory.path()) };
    truth_conformance(&SsdTier::open(settings, &specs()).unwrap());
}

#[test]
fn rows_can_be_inserted_where_nothing_was_loaded() {
    let directory = tempfile::tempdir().unwrap();
    tier_conformance(&common::open(directory.path(), &specs()));
}

#[test]
fn keeps_it_on_a_database_that_was_closed_and_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        tier_conformance(&common::open(directory.path(), &specs()));
    }
}
