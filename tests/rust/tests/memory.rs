//! What the process takes with `memory_bytes` stays within it, however long it runs: host memory, RocksDB's caches and memtables, and what
//! the allocator keeps. `HPS_SOAK_SECONDS` says how long; 12 unless set, as free memory is returned every 10.
//! The only test of its program: it measures the whole process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hps_core::key::mix;
use hps_core::testing::{resident_bytes, row_of, rows_of};
use hps_core::tier::TierKind;
use hps_core::{Key, Rows, TableId};
use hps_tests::{Deployment, Random, lookup};

const DIM: usize = 64;
const ROWS: u64 = 1_500_000;
/// The rows alone take 396 MB.
const BUDGET: u64 = 256 << 20;
/// So that other work on the machine goes on.
const PAUSE: Duration = Duration::from_millis(3);

/// Frees 64 MB in pieces, the last of which stays, and waits until the store has seen to it that the system gets them.
fn wait_for_free_memory_to_go() {
    let mut pieces: Vec<Vec<u8>> = (0..1024).map(|_| vec![1; 64 << 10]).collect();
    pieces.drain(..1023);
    let (before, begun) = (resident_bytes(), Instant::now());
    while before.saturating_sub(resident_bytes()) < 32 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "free memory stays with the process");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_process_stays_within_its_budget() {
    let seconds: u64 = std::env::var("HPS_SOAK_SECONDS").map_or(12, |text| text.parse().unwrap());
    let mut deployment = Deployment::new(&[(DIM, Vec::new())]).with_ssd(1.0, true);
    // Not by the deployment, which would keep a copy of every row.
    let keys: Vec<Key> = (0..ROWS).map(mix).collect();
    let table = deployment.home().join("table0");
    std::fs::write(table.join("key"), keys.iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<u8>>())
        .unwrap();
    std::fs::write(table.join("emb_vector"), rows_of(&keys, 1, DIM * 4)).unwrap();
    drop(keys);
    let before = resident_bytes();
    deployment.config["volatile_db"]["memory_bytes"] = BUDGET.into();
    deployment.config["volatile_db"]["overflow_policy"] = "evict_oldest".into();
    // The load itself has memory of its own; what counts is what serves.
    drop(deployment.open().unwrap());
    // In the registry, as in a server: what is done from time to time is done here too.
    let file = deployment.write();
    let (file, registry) = (file.to_str().unwrap(), hps_bridge::registry::registry());
    drop(registry.store(file).unwrap());
    let held = registry.open_store(file).unwrap();
    let open = &*held;
    let end = Instant::now() + Duration::from_secs(seconds);
    let (lookups, writes, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let is_over = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for seed in 1..=2 {
            let (lookups, is_over) = (&lookups, &is_over);
            scope.spawn(move || {
                let mut random = Random(seed);
                while Instant::now() < end {
                    // Many of few, some of all; those that are written are even.
                    let numbers: Vec<u64> = (0..4_096)
                        .map(|i| random.below(if i % 4 == 0 { ROWS } else { ROWS / 20 }) | 1)
                        .filter(|&number| number < ROWS)
                        .collect();
                    let keys: Vec<Key> = numbers.iter().map(|&number| mix(number)).collect();
                    let (rows, counts) = lookup(open, 0, &keys).unwrap();
                    assert_eq!(counts.hits(TierKind::Host) + counts.hits(TierKind::Ssd), keys.len() as u64);
                    for (&key, row) in keys.iter().zip(rows.chunks(DIM * 4)) {
                        assert_eq!(row, row_of(key, 1, DIM * 4));
                    }
                    lookups.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(PAUSE);
                }
                is_over.store(true, Ordering::Relaxed);
            });
        }
        let mut random = Random(77);
        let mut reported = Instant::now();
        for version in 2u64.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            // Rows that are there, and new ones, which go again: the table does not grow.
            let known = (0..128).map(|_| mix(random.below(ROWS) & !1));
            let new: Vec<Key> = (0..64).map(|i| mix(1 << 40 | (version % 512) << 8 | i)).collect();
            let keys: Vec<Key> = known.chain(new.iter().copied()).collect();
            let rows = rows_of(&keys, version, DIM * 4);
            open.store.insert(TableId(0), &keys, Rows::new(&rows, DIM * 4).unwrap()).unwrap();
            if version % 2 == 0 {
                open.store.erase(TableId(0), &new).unwrap();
            }
            writes.fetch_add(keys.len() as u64, Ordering::Relaxed);
            let taken = resident_bytes().saturating_sub(before);
            most.fetch_max(taken, Ordering::Relaxed);
            if reported.elapsed() > Duration::from_secs(60) {
                reported = Instant::now();
                println!("{} lookups, {} MB", lookups.load(Ordering::Relaxed), taken >> 20);
            }
            std::thread::sleep(PAUSE);
        }
    });
    wait_for_free_memory_to_go();
    drop(held);
    registry.close(file).unwrap();
    let most = most.into_inner();
    println!(
        "{seconds} s: {} lookups, {} rows written; {} MB of a budget of {} at most",
        lookups.into_inner(),
        writes.into_inner(),
        most >> 20,
        BUDGET >> 20
    );
    assert!(most <= BUDGET, "{most} bytes of a budget of {BUDGET}");
    assert!(most > BUDGET / 2, "the measure works");
}
