//! temp
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason="x")]
mod common;
use common::*;
use hps_core::{Batch, RowsMut, key::*, tier::*};
use std::time::Instant;
#[test]
fn bench() {
    for row_bytes in [128usize, 512] {
        let d = tempfile::tempdir_in("/root").unwrap();
        let s = hps_ssd::SsdSettings { num_threads: 2, ..hps_ssd::SsdSettings::new(d.path()) };
        let spec = [spec("hps_et.m.t", row_bytes, KeyWidth::Bits64)];
        let n = 1_000_000u64;
        let t = hps_ssd::SsdTier::open(s.clone(), &spec).unwrap();
        let t0 = Instant::now();
        let mut l = t.begin_load(TABLE, n).unwrap();
        let row = vec![7u8; row_bytes * 10_000];
        for c in 0..n / 10_000 {
            let keys: Vec<u64> = (c * 10_000..(c + 1) * 10_000).map(mix).collect();
            l.put(&keys, hps_core::Rows::new(&row, row_bytes).unwrap()).unwrap();
        }
        let put = t0.elapsed();
        l.commit("r").unwrap();
        println!("load {row_bytes}: put {put:?} all {:?} usage {:?}", t0.elapsed(), t.usage(TABLE).unwrap());
        drop(t);
        let t0 = Instant::now();
        let t = hps_ssd::SsdTier::open(s, &spec).unwrap();
        println!("reopen {:?}", t0.elapsed());
        for k in [1usize, 1024, 4096, 65_536] {
            let mut out = vec![0u8; k * row_bytes];
            let mut misses = vec![];
            let reps = (262_144 / k).clamp(5, 2000);
            let mut el = vec![];
            for r in 0..reps {
                let keys: Vec<u64> = (0..k as u64).map(|i| mix(mix(i + r as u64 * 131_071) % n)).collect();
                let t0 = Instant::now();
                t.lookup(TABLE, Batch::all(&keys), &mut RowsMut::from_bytes(&mut out, row_bytes).unwrap(), &mut misses).unwrap();
                el.push(t0.elapsed());
            }
            el.sort();
            println!("{k} keys: median {:?} = {:.2} us/key", el[reps / 2], el[reps / 2].as_secs_f64() * 1e6 / k as f64);
        }
    }
}
