//! Readers beside writers: rows are whole, and of the key that was asked for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::{POLICIES, TABLE, limited, open, unlimited};
use hps_core::key::mix;
use hps_core::tier::{CacheTier, Expected, Promotion, Tier, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Batch, Key, Rows, RowsMut};
use hps_host::{HostSettings, HostTier};

const SIZE: usize = 192;
const WORDS: u64 = SIZE as u64 / 8;
const NUM_KEYS: u64 = 20_000;

/// key, version, and a word that depends on both in every place that is left.
fn row(key: Key, version: u64) -> Vec<u8> {
    let check = mix(key ^ mix(version));
    let words = [key, version].into_iter().chain((2..WORDS).map(|i| check.wrapping_add(i)));
    words.flat_map(u64::to_le_bytes).collect()
}

/// The version of a row, if it is a whole row of this key.
fn version_of(key: Key, row: &[u8]) -> Option<u64> {
    let version = u64::from_le_bytes(*row[8..].first_chunk().unwrap());
    (row == self::row(key, version)).then_some(version)
}

struct Writer<'t> {
    tier: &'t HostTier,
    state: u64,
    version: &'t AtomicU64,
    clock: &'t UpdateClock,
}

impl Writer<'_> {
    fn keys(&mut self, max: u64) -> Vec<Key> {
        self.state = mix(self.state.wrapping_add(1));
        let begin = mix(self.state ^ 0x77) % NUM_KEYS;
        (0..self.state % max).map(|i| (begin + i) % NUM_KEYS).collect()
    }

    fn step(&mut self) {
        let keys = self.keys(700);
        let version = self.version.fetch_add(1, Relaxed);
        let bytes: Vec<u8> = keys.iter().flat_map(|&key| row(key, version)).collect();
        let rows = Rows::new(&bytes, SIZE).unwrap();
        match self.state % 16 {
            0..8 => self.tier.insert(TABLE, &keys, rows).unwrap(),
            8..11 => self.tier.update(TABLE, &keys, rows).unwrap(),
            11..13 => self.tier.erase(TABLE, &keys).unwrap(),
            13..15 => {
                let snapshot = self.clock.snapshot();
                let promotion = Promotion { keys: &keys, rows, clock: self.clock, snapshot: &snapshot };
                self.tier.promote(TABLE, promotion).unwrap();
            }
            _ => {
                let largest_key = self.state.is_multiple_of(3).then_some(NUM_KEYS - 1);
                let expected = Expected { rows: self.state % 40_000, largest_key };
                self.tier.reserve(TABLE, expected).unwrap();
            }
        }
    }
}

/// Looks up batches of all sizes; returns the number of rows seen.
fn read(tier: &HostTier, mut state: u64, done: &AtomicBool) -> u64 {
    let mut seen = 0;
    let mut bytes = vec![0; 3_000 * SIZE];
    while !done.load(Relaxed) {
        state = mix(state.wrapping_add(1));
        let num_keys = [1, 7, 64, 900, 3_000][(state % 5) as usize];
        let keys: Vec<Key> = (0..num_keys as u64).map(|i| mix(state ^ i) % (NUM_KEYS + 100)).collect();
        let mut misses = Vec::new();
        let mut rows = RowsMut::from_bytes(&mut bytes[..num_keys * SIZE], SIZE).unwrap();
        tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut misses).unwrap();
        let mut misses = misses.into_iter().peekable();
        for (i, &key) in keys.iter().enumerate() {
            if misses.next_if_eq(&(i as u32)).is_none() {
                version_of(key, &bytes[i * SIZE..][..SIZE]).expect("a whole row of the key asked for");
                seen += 1;
            }
        }
        assert_eq!(misses.next(), None);
    }
    seen
}

fn churn(settings: HostSettings, expected: Expected, duration: Duration) {
    let tier = open(settings, SIZE);
    tier.reserve(TABLE, expected).unwrap();
    let (version, clock, done) = (AtomicU64::new(0), UpdateClock::default(), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2u64)
            .map(|i| {
                scope.spawn({
                    let (tier, done) = (&tier, &done);
                    move || read(tier, i << 32, done)
                })
            })
            .collect();
        let scanner = scope.spawn(|| {
            while !done.load(Relaxed) {
                let mut keys_seen = std::collections::HashSet::new();
                tier.scan(TABLE, &mut |keys, rows| {
                    for (&key, row) in keys.iter().zip(rows.iter()) {
                        version_of(key, row).expect("a whole row in a scan");
                        assert!(keys_seen.insert(key), "a scan shows a key once");
                    }
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
            }
        });
        let writers: Vec<_> = (0..2u64)
            .map(|i| {
                let mut writer = Writer { tier: &tier, state: mix(i + 9), version: &version, clock: &clock };
                scope.spawn(move || {
                    let began = Instant::now();
                    while began.elapsed() < duration {
                        writer.step();
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Relaxed);
        scanner.join().unwrap();
        readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u64>()
    });
    assert!(seen > 0);
    let margin = settings.overflow_margin.unwrap_or(u64::MAX);
    assert!(tier.partition_rows(TABLE).unwrap().iter().all(|&rows| rows <= margin));
}

#[test]
fn readers_see_whole_rows_of_their_keys_whatever_writers_do() {
    let duration = Duration::from_millis(700);
    let nothing = Expected::default();
    churn(unlimited(1), nothing, duration);
    churn(unlimited(16), nothing, duration);
    // Most keys have slots of their own.
    churn(unlimited(3), Expected { rows: NUM_KEYS, largest_key: Some(NUM_KEYS - 1) }, duration);
    for policy in POLICIES {
        churn(limited(3, 1_500, policy, 0.8), nothing, duration);
    }
}

#[test]
fn readers_see_the_old_table_or_the_new_one_whole_when_a_load_commits() {
    let tier = open(unlimited(4), SIZE);
    let keys: Vec<Key> = (0..2_000).collect();
    let load = |version: u64| {
        let largest_key = version.is_multiple_of(2).then_some(1_999);
        let mut load = tier.begin_load(TABLE, Expected { rows: 2_000, largest_key }).unwrap();
        for keys in keys.chunks(500) {
            let bytes: Vec<u8> = keys.iter().flat_map(|&key| row(key, version)).collect();
            load.put(keys, Rows::new(&bytes, SIZE).unwrap()).unwrap();
        }
        assert_eq!(load.commit("record", &|_| {}).unwrap(), 2_000);
    };
    load(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut bytes = vec![0; keys.len() * SIZE];
                let mut newest = 0;
                while !done.load(Relaxed) {
                    let mut misses = Vec::new();
                    let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
                    tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut misses).unwrap();
                    assert!(misses.is_empty());
                    let versions: Vec<u64> = keys
                        .iter()
                        .zip(bytes.chunks(SIZE))
                        .map(|(&key, row)| version_of(key, row).expect("a whole row"))
                        .collect();
                    assert!(versions.iter().all(|&version| version == versions[0]), "a mixture of tables");
                    assert!(versions[0] >= newest);
                    newest = versions[0];
                }
            });
        }
        (1..60).for_each(load);
        done.store(true, Relaxed);
    });
}

/// A promoter that pauses between reading and promoting, and updates that overtake it: the newest row wins.
#[test]
fn promotions_never_leave_a_stale_row() {
    let tier = open(unlimited(2), SIZE);
    let clock = UpdateClock::default();
    let truth: Vec<AtomicU64> = (0..64).map(|_| AtomicU64::new(0)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    let snapshot = clock.snapshot();
                    let keys: Vec<Key> = (0..64).collect();
                    let versions = keys.iter().map(|&key| truth[key as usize].load(Relaxed));
                    let bytes: Vec<u8> = keys.iter().zip(versions).flat_map(|(&k, v)| row(k, v)).collect();
                    std::thread::yield_now();
                    let rows = Rows::new(&bytes, SIZE).unwrap();
                    let promotion = Promotion { keys: &keys, rows, clock: &clock, snapshot: &snapshot };
                    tier.promote(TABLE, promotion).unwrap();
                }
            });
        }
        let mut state = 1;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(700) {
            state = mix(state);
            let key = state % 64;
            let version = truth[key as usize].load(Relaxed) + 1;
            truth[key as usize].store(version, Relaxed);
            clock.advance(&[key]);
            if state >> 60 == 0 {
                tier.erase(TABLE, &[key]).unwrap();
            } else {
                tier.update(TABLE, &[key], Rows::new(&row(key, version), SIZE).unwrap()).unwrap();
            }
            let mut bytes = vec![0; SIZE];
            let mut misses = Vec::new();
            let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
            tier.lookup(TABLE, Batch::all(&[key]), &mut rows, &mut misses).unwrap();
            if misses.is_empty() {
                assert_eq!(version_of(key, &bytes), Some(version), "a stale row");
            }
        }
        done.store(true, Relaxed);
    });
}
