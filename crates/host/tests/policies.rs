//! What eviction policies are worth: hit rates beside policies that remember everything.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::HashMap;

use common::{TABLE, limited, open};
use hps_core::key::mix;
use hps_core::tier::Tier;
use hps_core::{Batch, Key, Rows, RowsMut};
use hps_host::{EvictionPolicy, HostTier};

const ROW_BYTES: usize = 4;
const BATCH: usize = 1_024;
/// Fraction of its margin that a partition keeps when it is full.
const TARGET: f64 = 0.8;

/// Keys of a Zipf distribution over `num_keys` ranks (Hörmann and Derflinger, "Rejection-inversion to generate variates from
/// monotone discrete distributions", 1996).
struct Zipf {
    num_keys: f64,
    alpha: f64,
    random: u64,
}

impl Zipf {
    fn new(num_keys: u64, alpha: f64) -> Self {
        Self { num_keys: num_keys as f64, alpha, random: 1 }
    }

    fn uniform(&mut self) -> f64 {
        self.random += 1;
        (mix(self.random) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn integral(&self, x: f64) -> f64 {
        (x.powf(1.0 - self.alpha) - 1.0) / (1.0 - self.alpha)
    }

    fn inverse(&self, y: f64) -> f64 {
        (1.0 + y * (1.0 - self.alpha)).powf(1.0 / (1.0 - self.alpha))
    }

    /// A rank from 0 on; lower ones are more frequent.
    fn rank(&mut self) -> u64 {
        let low = self.integral(1.5) - 1.0;
        let high = self.integral(self.num_keys + 0.5);
        loop {
            let y = high + self.uniform() * (low - high);
            let x = self.inverse(y);
            let rank = (x + 0.5).floor().clamp(1.0, self.num_keys);
            if y >= self.integral(rank + 0.5) - rank.powf(-self.alpha) {
                return rank as u64 - 1;
            }
        }
    }
}

/// A cache that remembers every access: when full it keeps `kept` keys of the highest score.
struct Exact {
    scores: HashMap<Key, u64>,
    margin: usize,
    kept: usize,
    policy: EvictionPolicy,
    clock: u64,
}

impl Exact {
    fn new(margin: usize, policy: EvictionPolicy) -> Self {
        let kept = (margin as f64 * TARGET) as usize;
        Self { scores: HashMap::new(), margin, kept, policy, clock: 0 }
    }

    /// True if the key was held.
    fn access(&mut self, key: Key) -> bool {
        self.clock += 1;
        let now = self.clock;
        match self.scores.get_mut(&key) {
            Some(score) if self.policy == EvictionPolicy::Oldest => *score = now,
            Some(score) => *score += 1,
            None => return false,
        }
        true
    }

    fn admit(&mut self, key: Key) {
        if self.scores.contains_key(&key) {
            return;
        }
        if self.scores.len() == self.margin {
            let mut scores: Vec<(u64, Key)> = self.scores.iter().map(|(&key, &score)| (score, key)).collect();
            let gone = self.margin - self.kept;
            // Among equals by chance: keys say nothing of ranks.
            scores.select_nth_unstable_by_key(gone, |&(score, key)| (score, mix(key ^ self.clock)));
            for (_, key) in &scores[..gone] {
                self.scores.remove(key);
            }
        }
        self.clock += 1;
        let score = if self.policy == EvictionPolicy::Oldest { self.clock } else { 1 };
        self.scores.insert(key, score);
    }
}

/// Looks a batch up and inserts what was missed; returns the number of hits.
fn serve(tier: &HostTier, keys: &[Key], misses: &mut Vec<u32>) -> usize {
    let mut out = [0u8; BATCH * ROW_BYTES];
    misses.clear();
    let mut rows = RowsMut::from_bytes(&mut out, ROW_BYTES).unwrap();
    tier.lookup(TABLE, Batch::all(keys), &mut rows, misses).unwrap();
    let missed: Vec<Key> = misses.iter().map(|&position| keys[position as usize]).collect();
    tier.insert(TABLE, &missed, Rows::new(&out[..missed.len() * ROW_BYTES], ROW_BYTES).unwrap()).unwrap();
    keys.len() - missed.len()
}

/// Hit rates of a tier and of the exact policy, in the second half of `num_batches`. `shift`: ranks after which the popular
/// keys have become others, one by one, over the whole run.
fn hit_rates(policy: EvictionPolicy, margin: u64, num_keys: u64, num_batches: u64, shift: f64) -> (f64, f64) {
    let tier = open(limited(2, margin / 2, policy, TARGET), ROW_BYTES);
    let mut exact = Exact::new(margin as usize, policy);
    let mut zipf = Zipf::new(num_keys, 1.05);
    let (mut hits, mut exact_hits, mut asked) = (0, 0, 0);
    let mut misses = Vec::new();
    for batch in 0..num_batches {
        let offset = (batch as f64 / num_batches as f64 * shift) as u64;
        let keys: Vec<Key> = (0..BATCH).map(|_| mix((zipf.rank() + offset) ^ 0x1234)).collect();
        let found = serve(&tier, &keys, &mut misses);
        let known = keys.iter().filter(|&&key| exact.access(key)).count();
        for &key in &keys {
            exact.admit(key);
        }
        if batch >= num_batches / 2 {
            hits += found;
            exact_hits += known;
            asked += BATCH;
        }
    }
    (hits as f64 / asked as f64, exact_hits as f64 / asked as f64)
}

#[test]
fn marks_of_a_few_bits_serve_nearly_as_well_as_a_full_memory() {
    for policy in [EvictionPolicy::Oldest, EvictionPolicy::LeastUsed] {
        for shift in [0.0, 1_000.0] {
            let (tier, exact) = hit_rates(policy, 4_000, 100_000, 1_000, shift);
            assert!(
                tier > exact - 0.01,
                "{policy:?}, shift {shift}: {tier} of hits, {exact} by an exact policy"
            );
        }
    }
}

#[test]
#[ignore = "a measurement of half a minute"]
fn hit_rates_beside_exact_policies() {
    println!("alpha 1.05, 1,000,000 keys; hit rates in %");
    println!("policy     margin     shift   tier   exact");
    for policy in [EvictionPolicy::Oldest, EvictionPolicy::LeastUsed] {
        for margin in [10_000, 100_000] {
            for shift in [0.0, 1_000.0, 100_000.0] {
                let batches = if margin == 10_000 { 2_000 } else { 6_000 };
                let (tier, exact) = hit_rates(policy, margin, 1_000_000, batches, shift);
                println!("{policy:9?} {margin:8} {shift:9} {:6.2} {:6.2}", tier * 100.0, exact * 100.0);
            }
        }
    }
}

/// Of `HPS_BENCH_ROWS` keys a tenth is held, and 25 times as many accesses are made.
#[test]
#[ignore = "a measurement of minutes"]
fn hit_rates_of_more_keys() {
    let num_keys = common::setting("HPS_BENCH_ROWS", 10_000_000);
    let margin = num_keys / 10;
    let batches = margin * 25 / BATCH as u64;
    for policy in [EvictionPolicy::Oldest, EvictionPolicy::LeastUsed] {
        for shift in [0, num_keys / 1_000] {
            let (tier, exact) = hit_rates(policy, margin, num_keys, batches, shift as f64);
            println!("{policy:9?} {margin:8} {shift:9} {:6.2} {:6.2}", tier * 100.0, exact * 100.0);
        }
    }
}
