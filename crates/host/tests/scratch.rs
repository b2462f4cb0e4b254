mod common;
use common::*;
use hps_core::key::mix;
use hps_core::tier::{CacheTier, Tier};
use hps_core::{Batch, Key, Rows, RowsMut};
use std::time::Instant;
#[test]
#[ignore]
fn scratch() {
    let dim: usize = std::env::var("DIM").unwrap().parse().unwrap();
    let n: usize = std::env::var("N").unwrap().parse().unwrap();
    let p: usize = std::env::var("P").unwrap().parse().unwrap();
    let miss: bool = std::env::var("MISS").is_ok();
    let rb = dim * 4;
    let rows_n = 1_000_000u64;
    let tier = open(unlimited(p), rb);
    tier.reserve(TABLE, rows_n).unwrap();
    let keys: Vec<Key> = (0..rows_n).map(|i| mix(i ^ 0x5555)).collect();
    let rows = vec![1u8; 8192 * rb];
    let t = Instant::now();
    for keys in keys.chunks(8192) {
        tier.insert(TABLE, keys, Rows::new(&rows[..keys.len() * rb], rb).unwrap()).unwrap();
    }
    println!("insert {:.1}", t.elapsed().as_nanos() as f64 / rows_n as f64);
    let batches: Vec<Vec<u64>> = (0..32u64)
        .map(|b| {
            (0..n as u64)
                .map(|i| {
                    let k = mix(mix(b << 32 | i) % rows_n ^ 0x5555);
                    if miss { !k } else { k }
                })
                .collect()
        })
        .collect();
    let mut out = vec![0u8; n * rb];
    let mut times = vec![];
    let mut misses = Vec::new();
    let reps = (20_000_000 / n / 32).max(1);
    for _ in 0..reps {
        for b in &batches {
            misses.clear();
            let mut r = RowsMut::from_bytes(&mut out, rb).unwrap();
            let t = Instant::now();
            tier.lookup(TABLE, Batch::all(b), &mut r, &mut misses).unwrap();
            times.push(t.elapsed().as_nanos() as f64 / n as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("median {:.1} p10 {:.1}", times[times.len() / 2], times[times.len() / 10]);
}
