//! Readers and writers on a whole store for a while: host memory with a margin over RocksDB, promotion, eviction, updates
//! and deletions at once; every row that a reader gets is checked. `HPS_SOAK_SECONDS` says how long; 30 unless set.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hps_core::testing::{row_of, rows_of};
use hps_core::{Key, Rows, TableId};
use hps_tests::{Deployment, Random, lookup};

const ROW_BYTES: usize = 64;
const KEYS: u64 = 20_000;

/// What readers may rely on: a key is in a version between the last one whose write had returned before the lookup began
/// and the last one whose write had begun when it ended. Version 0: deleted.
struct Versions {
    written: AtomicU64,
    begun: AtomicU64,
}

#[test]
fn every_row_is_one_whole_version_that_was_current_during_the_lookup() {
    let seconds: u64 = std::env::var("HPS_SOAK_SECONDS").map_or(30, |text| text.parse().unwrap());
    let keys: Vec<Key> = (0..KEYS).collect();
    let mut deployment = Deployment::new(&[(ROW_BYTES / 4, keys)]).with_ssd(0.3, true);
    deployment.config["volatile_db"]["overflow_margin"] = 2_000.into();
    deployment.config["volatile_db"]["overflow_policy"] = "evict_least_used".into();
    let open = deployment.open().unwrap();
    let default_row = (-1f32).to_le_bytes().repeat(ROW_BYTES / 4);
    let state: Vec<Versions> =
        (0..KEYS).map(|_| Versions { written: AtomicU64::new(1), begun: AtomicU64::new(1) }).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (lookups, rows_checked, writes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));

    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (open, state, default_row, lookups, rows_checked) =
                (&open, &state, &default_row, &lookups, &rows_checked);
            scope.spawn(move || {
                let mut random = Random(seed);
                while Instant::now() < end {
                    let asked: Vec<Key> =
                        (0..256).map(|_| random.below(KEYS).min(random.below(KEYS))).collect();
                    let from: Vec<u64> =
                        asked.iter().map(|&key| state[key as usize].written.load(Ordering::SeqCst)).collect();
                    let (rows, counts) = lookup(open, 0, &asked).unwrap();
                    assert_eq!(counts.keys(), 256);
                    for ((&key, from), row) in asked.iter().zip(from).zip(rows.chunks(ROW_BYTES)) {
                        let to = state[key as usize].begun.load(Ordering::SeqCst);
                        // Every seventh version is a deletion.
                        let is_current = (from..=to).any(|version| match version % 7 {
                            0 => row == default_row,
                            _ => row == row_of(key, version, ROW_BYTES),
                        });
                        assert!(is_current, "key {key}: none of its versions {from} to {to}");
                    }
                    lookups.fetch_add(1, Ordering::Relaxed);
                    rows_checked.fetch_add(256, Ordering::Relaxed);
                }
            });
        }
        let mut random = Random(77);
        while Instant::now() < end {
            // Keys in the same version are written together.
            let key = random.below(KEYS - 16);
            let version = (key..key + 16).map(|key| state[key as usize].begun.load(Ordering::SeqCst)).max();
            let version = version.unwrap() + 1;
            let written: Vec<Key> = (key..key + 16).collect();
            for &key in &written {
                state[key as usize].begun.store(version, Ordering::SeqCst);
            }
            if version % 7 == 0 {
                open.store.erase(TableId(0), &written).unwrap();
            } else {
                let rows = rows_of(&written, version, ROW_BYTES);
                open.store.insert(TableId(0), &written, Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
            }
            for &key in &written {
                state[key as usize].written.store(version, Ordering::SeqCst);
            }
            writes.fetch_add(16, Ordering::Relaxed);
        }
    });
    let stats = &open.store.stats().unwrap()[0];
    println!(
        "{seconds} s: {} lookups, {} rows checked, {} rows written or deleted, {} promoted, host {} ssd {} missing {}",
        lookups.load(Ordering::Relaxed),
        rows_checked.load(Ordering::Relaxed),
        writes.load(Ordering::Relaxed),
        stats.promoted,
        stats.counts.hits(hps_core::tier::TierKind::Host),
        stats.counts.hits(hps_core::tier::TierKind::Ssd),
        stats.counts.missing
    );
    assert!(stats.promoted > 0 && stats.counts.missing > 0, "the run must have exercised every path");
}
