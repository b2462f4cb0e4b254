//! Lookups against an oracle, and while the table changes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{TABLE, load, one_table, open, scan, spec};
use hps_core::batch::Batch;
use hps_core::key::{Key, KeyWidth, mix};
use hps_core::row::{Rows, RowsMut};
use hps_core::testing::{hostile_keys, lookup, row_of, rows_of};
use hps_core::tier::{Expected, Tier, TruthTier};
use hps_core::{ErrorKind, TableId};
use hps_ssd::{SsdSettings, SsdTier};

#[test]
fn agrees_with_a_map_for_any_mix_of_keys() {
    for (width, row_bytes, max_batch_size) in
        [(KeyWidth::Bits64, 20, 65_536), (KeyWidth::Bits64, 512, 100), (KeyWidth::Bits32, 4, 1)]
    {
        let directory = tempfile::tempdir().unwrap();
        let settings = SsdSettings { max_batch_size, ..common::settings(directory.path()) };
        let tier = SsdTier::open(settings, &[spec("hps_et.m.t", row_bytes, width)]).unwrap();
        let in_width = |key: Key| if width == KeyWidth::Bits32 { key & 0xFFFF_FFFF } else { key };
        let mut keys = hostile_keys(width);
        keys.extend((0..20_000).map(|i| in_width(mix(i))));
        let mut oracle = HashMap::new();
        for &key in &keys {
            oracle.insert(key, row_of(key, 1, row_bytes));
        }
        assert_eq!(load(&tier, &keys, 1, row_bytes, "r"), oracle.len() as u64);
        assert_eq!(tier.usage(TABLE).unwrap().rows, oracle.len() as u64);

        // Present and absent ones, each several times, in no order; small batches and large ones.
        for (round, num_keys) in [1, 2, 31, 5_000, 30_000].into_iter().enumerate() {
            let asked: Vec<Key> =
                (0..num_keys).map(|i| in_width(mix(mix(i + 77 * round as u64) % 25_000))).collect();
            let expected: Vec<_> = asked.iter().map(|key| oracle.get(key).cloned()).collect();
            assert!(lookup(&tier, TABLE, row_bytes, &asked) == expected, "{num_keys} keys");
        }
        let hostile = hostile_keys(width);
        assert!(lookup(&tier, TABLE, row_bytes, &hostile).iter().all(Option::is_some));

        let scanned = scan(&tier);
        assert!(scanned.is_sorted_by(|(a, _), (b, _)| match width {
            KeyWidth::Bits64 => a.to_le_bytes() < b.to_le_bytes(),
            KeyWidth::Bits32 => (*a as u32).to_le_bytes() < (*b as u32).to_le_bytes(),
        }));
        assert!(scanned.into_iter().collect::<HashMap<_, _>>() == oracle);
    }
}

#[test]
fn a_key_too_large_for_32_bits_is_missed_and_refused() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &[spec("hps_et.m.t", 4, KeyWidth::Bits32)]);
    tier.insert(TABLE, &[5, 0xFFFF_FFFF], Rows::new(&[1, 1, 1, 1, 2, 2, 2, 2], 4).unwrap()).unwrap();
    assert_eq!(lookup(&tier, TABLE, 4, &[5 + (1 << 32), 0xFFFF_FFFF]), [None, Some(vec![2; 4])]);
    let error = tier.insert(TABLE, &[1 << 32], Rows::new(&[0; 4], 4).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("4294967296"), "{error}");
    tier.erase(TABLE, &[5 + (1 << 32)]).unwrap();
    assert_eq!(lookup(&tier, TABLE, 4, &[5]), [Some(vec![1; 4])]);
}

#[test]
fn too_few_rows_for_the_keys_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    tier.insert(TABLE, &[1], Rows::new(&[0; 64], 64).unwrap()).unwrap();
    let mut bytes = [0; 64];
    let mut rows = RowsMut::from_bytes(&mut bytes, 64).unwrap();
    let error = tier.lookup(TABLE, Batch::all(&[1, 1]), &mut rows, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
}

#[test]
fn readers_see_one_whole_version_or_the_next_while_the_table_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    let keys: Vec<Key> = (0..2_000).collect();
    load(&tier, &keys, 0, 64, "0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut newest = 0;
                while !done.load(Ordering::Relaxed) {
                    let found = lookup(&tier, TABLE, 64, &keys);
                    let first = found[0].as_ref().expect("the table is never empty");
                    let version = (newest..=12).find(|&version| *first == row_of(keys[0], version, 64));
                    newest = version.expect("never an older version again");
                    for (&key, row) in keys.iter().zip(&found) {
                        assert_eq!(row.as_deref(), Some(&*row_of(key, newest, 64)), "one version for a call");
                    }
                }
            });
        }
        for version in 1..=12 {
            load(&tier, &keys, version, 64, &version.to_string());
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn inserts_during_a_replacement_are_whole_and_never_fail() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    let keys: Vec<Key> = (0..1_000).collect();
    load(&tier, &keys, 0, 64, "0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let (tier, done) = (&tier, &done);
            scope.spawn(move || {
                let mut key = 1_000_000 * (writer + 1);
                while !done.load(Ordering::Relaxed) {
                    key += 1;
                    tier.insert(TABLE, &[key], Rows::new(&row_of(key, 7, 64), 64).unwrap()).unwrap();
                    let found = lookup(tier, TABLE, 64, &[key]).remove(0);
                    // Gone if the table was replaced between the two.
                    assert!(found.is_none_or(|row| row == row_of(key, 7, 64)));
                }
            });
        }
        for version in 1..=8 {
            load(&tier, &keys, version, 64, "r");
        }
        done.store(true, Ordering::Relaxed);
    });
    let key = 9_999_999;
    tier.insert(TABLE, &[key], Rows::new(&row_of(key, 1, 64), 64).unwrap()).unwrap();
    assert_eq!(lookup(&tier, TABLE, 64, &[key, 5]), [Some(row_of(key, 1, 64)), Some(row_of(5, 8, 64))]);
}

#[test]
fn a_scan_shows_one_moment_and_outlives_a_replacement() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    let keys: Vec<Key> = (0..40_000).collect();
    load(&tier, &keys, 1, 64, "1");
    let mut seen = 0;
    tier.scan(TABLE, &mut |keys, rows| {
        if seen == 0 {
            load(&tier, &[1, 2, 3], 2, 64, "2");
        }
        for (&key, row) in keys.iter().zip(rows.iter()) {
            assert_eq!(row, row_of(key, 1, 64));
        }
        seen += keys.len();
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(seen, 40_000);
    assert_eq!(scan(&tier).len(), 3, "absent keys are gone after the replacement");
    let error =
        tier.scan(TABLE, &mut |_, _| Err(hps_core::Error::new(ErrorKind::Closed, "stop"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[test]
fn only_one_load_of_a_table_runs_at_a_time_and_a_dropped_one_frees_it() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    let first = tier.begin_load(TABLE, Expected::rows(1)).unwrap();
    let Err(error) = tier.begin_load(TABLE, Expected::rows(1)) else { panic!("a second load began") };
    assert!(error.to_string().contains("sparse_embedding0"), "{error}");
    // What is inserted meanwhile goes to the rows that are served, here none before.
    tier.insert(TABLE, &[9], Rows::new(&rows_of(&[9], 1, 64), 64).unwrap()).unwrap();
    drop(first);
    assert_eq!(lookup(&tier, TABLE, 64, &[9]), [Some(row_of(9, 1, 64))]);
    load(&tier, &[1], 1, 64, "r");
    assert_eq!(lookup(&tier, TABLE, 64, &[9, 1]), [None, Some(row_of(1, 1, 64))]);
    let Err(error) = tier.begin_load(TableId(7), Expected::rows(1)) else {
        panic!("an unknown table was loaded")
    };
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}
