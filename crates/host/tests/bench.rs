//! How fast a lookup is: beside a plain gather of the same rows, and while rows are added. Run with
//! `cargo test --release -p hps-host --test bench -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement")]

mod common;

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use common::{POLICIES, TABLE, limited, open, unlimited};
use hps_core::key::mix;
use hps_core::tier::{CacheTier, Expected, Tier};
use hps_core::{Batch, Key, Rows, RowsMut};
use hps_host::{HostSettings, HostTier};

const NUM_ROWS: u64 = 1_000_000;
const BATCHES: u64 = 32;

fn fill(tier: &HostTier, row_bytes: usize) -> f64 {
    tier.reserve(TABLE, Expected::rows(NUM_ROWS)).unwrap();
    let keys: Vec<Key> = (0..NUM_ROWS).map(|i| mix(i ^ 0x5555)).collect();
    let rows = vec![1u8; 8_192 * row_bytes];
    let began = Instant::now();
    for keys in keys.chunks(8_192) {
        tier.insert(TABLE, keys, Rows::new(&rows[..keys.len() * row_bytes], row_bytes).unwrap()).unwrap();
    }
    began.elapsed().as_nanos() as f64 / NUM_ROWS as f64
}

fn batches(num_keys: usize) -> Vec<Vec<u64>> {
    (0..BATCHES)
        .map(|batch| (0..num_keys as u64).map(|i| mix((batch << 32) | i) % NUM_ROWS).collect())
        .collect()
}

fn policy_of(settings: &HostSettings) -> String {
    match settings.overflow_margin {
        None => "-".into(),
        Some(_) => format!("{:?}", settings.overflow_policy),
    }
}

/// Nanoseconds per key of each action, medians. The actions take turns on each batch, so that whatever else the machine
/// does meets all of them.
fn time<const N: usize>(num_keys: usize, rounds: usize, mut actions: [&mut dyn FnMut(usize); N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..rounds {
        for (action, times) in actions.iter_mut().zip(&mut times) {
            let began = Instant::now();
            action(round % BATCHES as usize);
            times.push(began.elapsed().as_nanos() as f64 / num_keys as f64);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

#[test]
#[ignore = "a measurement of about a minute"]
fn lookup_against_a_plain_gather() {
    println!("{NUM_ROWS} rows, one thread, ns per key; ratio = gather / hits");
    println!("dim    keys   P  policy     gather    hits  misses   ratio  insert");
    for dim in [16, 32, 128] {
        let row_bytes = dim * 4;
        let plain = vec![1u8; NUM_ROWS as usize * row_bytes];
        let mut layouts = vec![unlimited(2), unlimited(16)];
        layouts.extend(POLICIES[1..].iter().map(|&policy| limited(16, 100_000, policy, 0.8)));
        for settings in layouts {
            let tier = open(settings, row_bytes);
            let insert = fill(&tier, row_bytes);
            for num_keys in [16, 1_024, 65_536] {
                let ids = batches(num_keys);
                let keys = |change: fn(Key) -> Key| -> Vec<Vec<Key>> {
                    ids.iter().map(|ids| ids.iter().map(|&id| change(mix(id ^ 0x5555))).collect()).collect()
                };
                let (present, absent) = (keys(|key| key), keys(|key| !key));
                let mut out = vec![0u8; num_keys * row_bytes];
                let mut out_too = out.clone();
                let mut gather = |batch: usize| {
                    for (target, &id) in out.chunks_exact_mut(row_bytes).zip(&ids[batch]) {
                        let at = id as usize * row_bytes;
                        target.copy_from_slice(&plain[at..at + row_bytes]);
                    }
                    black_box(&mut out);
                };
                let misses = RefCell::new(Vec::new());
                let out_too = RefCell::new(&mut out_too);
                let look_up = |keys: &[Key]| {
                    let (mut out, mut misses) = (out_too.borrow_mut(), misses.borrow_mut());
                    misses.clear();
                    let mut rows = RowsMut::from_bytes(&mut out, row_bytes).unwrap();
                    tier.lookup(TABLE, Batch::all(keys), &mut rows, &mut misses).unwrap();
                };
                let rounds = if num_keys < 1_000 { 2_000 } else { 160 };
                let [gather, hits, missed] = time(
                    num_keys,
                    rounds,
                    [&mut gather, &mut |batch| look_up(&present[batch]), &mut |batch| {
                        look_up(&absent[batch])
                    }],
                );
                let policy = policy_of(&settings);
                println!(
                    "{dim:3} {num_keys:7}  {:2}  {policy:9} {gather:7.1} {hits:7.1} {missed:7.1} {:7.2} {insert:7.0}",
                    settings.num_partitions,
                    gather / hits,
                );
            }
        }
    }
}

#[test]
#[ignore = "a measurement; bench/maps calls it"]
fn lookups_beside_hashbrown() {
    let num_rows = common::setting("HPS_BENCH_ROWS", 1_000_000);
    let row_bytes = common::setting("HPS_BENCH_DIM", 32) as usize * 4;
    let num_keys = common::setting("HPS_BENCH_KEYS", 65_536) as usize;
    let key = |row: u64| mix(row ^ 0x5555);
    let tier = open(unlimited(2), row_bytes);
    tier.reserve(TABLE, Expected::rows(num_rows)).unwrap();
    let rows = vec![1u8; 8_192 * row_bytes];
    for start in (0..num_rows).step_by(8_192) {
        let keys: Vec<Key> = (start..num_rows.min(start + 8_192)).map(key).collect();
        tier.insert(TABLE, &keys, Rows::new(&rows[..keys.len() * row_bytes], row_bytes).unwrap()).unwrap();
    }
    // The map of Rust's standard library is hashbrown's; its usual hash is slow, so it gets the one that we use.
    let map: std::collections::HashMap<Key, u32, std::hash::BuildHasherDefault<Mixing>> =
        (0..num_rows).map(|row| (key(row), row as u32)).collect();
    let plain = vec![1u8; num_rows as usize * row_bytes];
    let batches: Vec<Vec<Key>> = (0..BATCHES)
        .map(|batch| (0..num_keys as u64).map(|i| key(mix((batch << 32) | i) % num_rows)).collect())
        .collect();
    let (mut ours, mut theirs) = (vec![0u8; num_keys * row_bytes], vec![0u8; num_keys * row_bytes]);
    let mut misses = Vec::new();
    let [hps, hashbrown] = time(
        num_keys,
        160,
        [
            &mut |batch| {
                let mut rows = RowsMut::from_bytes(&mut ours, row_bytes).unwrap();
                tier.lookup(TABLE, Batch::all(&batches[batch]), &mut rows, &mut misses).unwrap();
            },
            &mut |batch| {
                for (target, key) in theirs.chunks_exact_mut(row_bytes).zip(&batches[batch]) {
                    if let Some(&row) = map.get(key) {
                        let at = row as usize * row_bytes;
                        target.copy_from_slice(&plain[at..at + row_bytes]);
                    }
                }
            },
        ],
    );
    assert!(misses.is_empty());
    println!("{:28} {hashbrown:8.1} ns per key", "hashbrown");
    println!("{:28} {hps:8.1} ns per key, {:.2} times as fast as hashbrown", "hps", hashbrown / hps);
}

#[test]
#[ignore = "a measurement of half a minute"]
fn lookups_beside_updates() {
    const ROW_BYTES: usize = 128;
    const NUM_KEYS: usize = 65_536;
    const BATCH: usize = 1_000;
    println!(
        "lookups of {NUM_KEYS} of {NUM_ROWS} rows of {ROW_BYTES} bytes; us, medians of turns with and without a writer"
    );
    println!("keys     rows written/s   without     with   slower %");
    for (name, key_of) in [("dense", (|i| i) as fn(u64) -> Key), ("hashed", |i| mix(i ^ 0x5555))] {
        let tier = open(unlimited(2), ROW_BYTES);
        let largest_key = (name == "dense").then_some(NUM_ROWS - 1);
        tier.reserve(TABLE, Expected { rows: NUM_ROWS, largest_key }).unwrap();
        let rows = vec![1u8; 8_192 * ROW_BYTES];
        for start in (0..NUM_ROWS).step_by(8_192) {
            let keys: Vec<Key> = (start..NUM_ROWS.min(start + 8_192)).map(key_of).collect();
            tier.insert(TABLE, &keys, Rows::new(&rows[..keys.len() * ROW_BYTES], ROW_BYTES).unwrap())
                .unwrap();
        }
        let asked: Vec<Vec<Key>> =
            batches(NUM_KEYS).into_iter().map(|ids| ids.into_iter().map(key_of).collect()).collect();
        for rate in [100_000u64, 1_000_000] {
            let (writes, stops) = (AtomicBool::new(false), AtomicBool::new(false));
            let [without, with] = std::thread::scope(|scope| {
                scope.spawn(|| {
                    let rows = Rows::new(&rows[..BATCH * ROW_BYTES], ROW_BYTES).unwrap();
                    let mut next = Instant::now();
                    for batch in 0u64.. {
                        if stops.load(Relaxed) {
                            break;
                        }
                        next = next.max(Instant::now())
                            + std::time::Duration::from_secs(1) * BATCH as u32 / rate as u32;
                        if writes.load(Relaxed) {
                            let keys: Vec<Key> =
                                (0..BATCH as u64).map(|i| key_of(mix(batch << 20 | i) % NUM_ROWS)).collect();
                            tier.insert(TABLE, &keys, rows).unwrap();
                        }
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                });
                let mut out = vec![0u8; NUM_KEYS * ROW_BYTES];
                let mut times = [const { Vec::new() }; 2];
                for turn in 0..40 {
                    writes.store(turn % 2 == 1, Relaxed);
                    for keys in &asked {
                        let mut misses = Vec::new();
                        let mut rows = RowsMut::from_bytes(&mut out, ROW_BYTES).unwrap();
                        let began = Instant::now();
                        tier.lookup(TABLE, Batch::all(keys), &mut rows, &mut misses).unwrap();
                        times[turn % 2].push(began.elapsed().as_nanos() as f64 / 1e3);
                        assert!(misses.is_empty());
                    }
                }
                stops.store(true, Relaxed);
                times.map(|mut times| {
                    times.sort_by(f64::total_cmp);
                    times[times.len() / 2]
                })
            });
            println!("{name:8} {rate:14}  {without:8.0} {with:8.0}   {:7.1}", (with / without - 1.0) * 100.0);
        }
    }
}

/// A hash of one integer.
#[derive(Default)]
struct Mixing(u64);

impl std::hash::Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are integers");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = mix(key);
    }
}

#[test]
#[ignore = "a measurement of half a minute"]
fn lookups_beside_a_writer_that_adds_keys() {
    const ROW_BYTES: usize = 128;
    const ASKED: usize = 256;
    println!("lookups of {ASKED} of the first 2 million rows while 2 million others are added; us");
    println!("P  policy     added M/s     p50     p99   p99.9      max");
    let policies = POLICIES.map(|policy| limited(2, 400_000, policy, 0.8));
    for settings in [unlimited(2)].into_iter().chain(policies) {
        let tier = open(settings, ROW_BYTES);
        let rows = vec![1u8; 4_096 * ROW_BYTES];
        let add = |numbers: std::ops::Range<u64>| {
            for start in numbers.clone().step_by(4_096) {
                let keys: Vec<Key> =
                    (start..numbers.end.min(start + 4_096)).map(|i| mix(i ^ 0x5555)).collect();
                let rows = Rows::new(&rows[..keys.len() * ROW_BYTES], ROW_BYTES).unwrap();
                tier.insert(TABLE, &keys, rows).unwrap();
            }
        };
        add(0..2_000_000);
        let done = AtomicBool::new(false);
        let (rate, mut times) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut times, mut misses) = (Vec::new(), Vec::new());
                let mut out = vec![0u8; ASKED * ROW_BYTES];
                for call in 0u64.. {
                    if done.load(Relaxed) {
                        break;
                    }
                    let asked = (0..ASKED as u64).map(|i| mix((mix(call << 20 | i) % 2_000_000) ^ 0x5555));
                    let keys: Vec<Key> = asked.collect();
                    misses.clear();
                    let mut rows = RowsMut::from_bytes(&mut out, ROW_BYTES).unwrap();
                    let began = Instant::now();
                    tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut misses).unwrap();
                    times.push(began.elapsed().as_nanos() as f64 / 1e3);
                }
                times
            });
            let began = Instant::now();
            add(2_000_000..4_000_000);
            let rate = 2.0 / began.elapsed().as_secs_f64();
            done.store(true, Relaxed);
            (rate, reader.join().unwrap())
        });
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() as f64 * share) as usize).min(times.len() - 1)];
        let policy = policy_of(&settings);
        println!(
            "{}  {policy:9}  {rate:9.2}  {:7.0} {:7.0} {:7.0} {:8.0}",
            settings.num_partitions,
            at(0.5),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
}
