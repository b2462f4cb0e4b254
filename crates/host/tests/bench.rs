//! How fast a lookup is, beside a plain gather of the same rows. Run with
//! `cargo test --release -p hps-host --test bench -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement")]

mod common;

use std::hint::black_box;
use std::time::Instant;

use common::{POLICIES, TABLE, limited, open, unlimited};
use hps_core::key::mix;
use hps_core::tier::{CacheTier, Tier};
use hps_core::{Batch, Key, Rows, RowsMut};
use hps_host::HostTier;

const NUM_ROWS: u64 = 1_000_000;
const BATCHES: u64 = 32;

fn fill(tier: &HostTier, row_bytes: usize) -> f64 {
    tier.reserve(TABLE, NUM_ROWS).unwrap();
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
        .map(|batch| (0..num_keys as u64).map(|i| mix(batch << 32 | i) % NUM_ROWS).collect())
        .collect()
}

/// Median nanoseconds per key.
fn time(batches: &[Vec<u64>], mut run: impl FnMut(&[u64])) -> f64 {
    let mut times: Vec<f64> = Vec::new();
    for _ in 0..3 {
        for batch in batches {
            let began = Instant::now();
            run(batch);
            times.push(began.elapsed().as_nanos() as f64 / batch.len() as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement of about a minute"]
fn lookup_against_a_plain_gather() {
    println!("{NUM_ROWS} rows, one thread, ns per key");
    println!("dim    keys  P  policy        gather  lookup  ratio  misses  insert");
    for dim in [16, 32, 128] {
        let row_bytes = dim * 4;
        let plain = vec![1u8; NUM_ROWS as usize * row_bytes];
        let mut layouts = vec![("-", unlimited(2)), ("-", unlimited(16))];
        layouts.extend(POLICIES.map(|policy| ("m", limited(16, 100_000, policy, 0.8))));
        for (name, settings) in layouts {
            let tier = open(settings, row_bytes);
            let insert = fill(&tier, row_bytes);
            for num_keys in [16, 1_024, 65_536] {
                let ids = batches(num_keys);
                let mut out = vec![0u8; num_keys * row_bytes];
                let gather = time(&ids, |ids| {
                    for (target, &id) in out.chunks_exact_mut(row_bytes).zip(ids) {
                        let at = id as usize * row_bytes;
                        target.copy_from_slice(&plain[at..at + row_bytes]);
                    }
                    black_box(&mut out);
                });
                let keys: Vec<Vec<Key>> =
                    ids.iter().map(|ids| ids.iter().map(|&i| mix(i ^ 0x5555)).collect()).collect();
                let mut misses = Vec::new();
                let mut look = |keys: &[Key]| {
                    misses.clear();
                    let mut rows = RowsMut::from_bytes(&mut out, row_bytes).unwrap();
                    tier.lookup(TABLE, Batch::all(keys), &mut rows, &mut misses).unwrap();
                };
                let lookup = time(&keys, &mut look);
                let absent: Vec<Vec<Key>> =
                    keys.iter().map(|keys| keys.iter().map(|key| !key).collect()).collect();
                let missing = time(&absent, &mut look);
                println!(
                    "{dim:3} {num_keys:7} {:2}  {name} {:10} {gather:7.1} {lookup:7.1} {:6.2} {missing:7.1} {insert:7.1}",
                    settings.num_partitions,
                    format!("{:?}", settings.overflow_policy),
                    gather / lookup,
                );
            }
        }
    }
}
