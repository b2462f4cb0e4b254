//! Rows that devices read by themselves: they stay as they are until no device reads them any more.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{TABLE, limited, open_with, unlimited};
use hps_core::device::ReachableRows;
use hps_core::memory::{Block, BlockAllocator, MmapAllocator};
use hps_core::tier::{CacheTier, Tier};
use hps_core::{ErrorKind, Key, Result, Rows};
use hps_host::{EvictionPolicy, HostSettings, HostTier};

const ROW_BYTES: usize = 64;

/// Memory that devices can read, or so it says, up to a number of blocks.
#[derive(Debug)]
struct Reachable {
    left: AtomicUsize,
}

impl BlockAllocator for Reachable {
    fn allocate(&self, num_bytes: usize) -> Result<Block> {
        let block = MmapAllocator.allocate(num_bytes)?;
        let is_left =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        Ok(if is_left.is_ok() { block.reachable(()) } else { block })
    }
}

fn open(settings: HostSettings, reachable_blocks: usize) -> HostTier {
    let allocator = Arc::new(Reachable { left: AtomicUsize::new(reachable_blocks) });
    open_with(HostSettings { serves_devices: true, ..settings }, ROW_BYTES, allocator)
}

fn row(key: Key, version: u64) -> Vec<u8> {
    (0..ROW_BYTES as u64 / 8).flat_map(|i| (key.wrapping_mul(31) ^ version << 40 ^ i).to_le_bytes()).collect()
}

fn rows(keys: &[Key], version: u64) -> Vec<u8> {
    keys.iter().flat_map(|&key| row(key, version)).collect()
}

fn insert(tier: &HostTier, keys: &[Key], version: u64) {
    tier.insert(TABLE, keys, Rows::new(&rows(keys, version), ROW_BYTES).unwrap()).unwrap();
}

fn addresses(tier: &HostTier, keys: &[Key]) -> Vec<u64> {
    let mut addresses = Vec::new();
    tier.addresses(TABLE, keys, &mut addresses).unwrap();
    assert_eq!(addresses.len(), keys.len());
    addresses
}

/// As a device does: by address, behind the tier's back.
fn read(address: u64) -> Vec<u8> {
    // SAFETY: an address that the tier gave and has not reclaimed; it keeps the memory.
    unsafe { std::slice::from_raw_parts(address as *const u8, ROW_BYTES) }.to_vec()
}

#[test]
fn addresses_lead_to_rows_and_a_scan_shows_every_one_once() {
    let tier = open(unlimited(4), usize::MAX);
    assert!(!tier.reaches(TABLE), "there are no rows yet");
    let keys: Vec<Key> = (0..100_000).collect();
    insert(&tier, &keys, 1);
    assert!(tier.reaches(TABLE));
    for (&key, address) in keys.iter().zip(addresses(&tier, &keys)) {
        assert_eq!(read(address), row(key, 1));
    }
    assert_eq!(addresses(&tier, &[u64::MAX, 100_000]), [0, 0]);
    let mut scanned = HashMap::new();
    tier.scan_addresses(TABLE, &mut |keys, addresses| {
        for (&key, &address) in keys.iter().zip(addresses) {
            assert_eq!(scanned.insert(key, address), None);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(scanned.len(), keys.len());
    assert!(keys.iter().zip(addresses(&tier, &keys)).all(|(key, address)| scanned[key] == address));
}

#[test]
fn a_replaced_row_stays_as_it_was_until_it_is_reclaimed() {
    let tier = open(unlimited(4), usize::MAX);
    let keys: Vec<Key> = (0..1_000).collect();
    insert(&tier, &keys, 1);
    let old = addresses(&tier, &keys);
    // Replaced by both ways of writing, more than once, and removed.
    insert(&tier, &keys[..500], 2);
    let two = rows(&keys[250..750], 3);
    tier.update(TABLE, &keys[250..750], Rows::new(&two, ROW_BYTES).unwrap()).unwrap();
    tier.erase(TABLE, &keys[700..900]).unwrap();
    // New rows must not take the old places.
    let others: Vec<Key> = (5_000..8_000).collect();
    insert(&tier, &others, 1);
    for (&key, &address) in keys.iter().zip(&old) {
        assert_eq!(read(address), row(key, 1), "key {key}");
    }
    let now = addresses(&tier, &keys);
    for (i, &key) in keys.iter().enumerate() {
        let version = [2, 3, 3, 0, 1][[250, 500, 700, 900, 1_000].iter().position(|&end| i < end).unwrap()];
        match version {
            0 => assert_eq!(now[i], 0),
            _ => assert_eq!(read(now[i]), row(key, version)),
        }
        assert_eq!(now[i] == old[i], version == 1);
    }
}

#[test]
fn reclaimed_places_are_used_again_and_abandoned_ones_never() {
    let tier = open(unlimited(4), usize::MAX);
    let keys: Vec<Key> = (0..1_000).collect();
    insert(&tier, &keys, 1);
    let bytes = |tier: &HostTier| tier.usage(TABLE).unwrap().bytes;
    for version in 2..10 {
        insert(&tier, &keys, version);
        tier.reclaim(TABLE);
    }
    let before = bytes(&tier);
    for version in 10..200 {
        insert(&tier, &keys, version);
        tier.reclaim(TABLE);
    }
    assert_eq!(bytes(&tier), before, "memory grows although places are reclaimed");

    let old: HashSet<u64> = addresses(&tier, &keys).into_iter().collect();
    insert(&tier, &keys, 200);
    tier.abandon_replaced(TABLE);
    for version in 201..210 {
        insert(&tier, &keys, version);
        tier.reclaim(TABLE);
        assert!(addresses(&tier, &keys).iter().all(|address| !old.contains(address)));
    }
    for (&key, address) in keys.iter().zip(addresses(&tier, &keys)) {
        assert_eq!(read(address), row(key, 209));
    }
}

#[test]
fn tables_that_evict_or_lie_elsewhere_are_out_of_reach() {
    let keys: Vec<Key> = (0..100).collect();
    for (settings, blocks) in
        [(limited(1, 1_000, EvictionPolicy::Random, 0.8), usize::MAX), (unlimited(1), 0)]
    {
        let tier = open(settings, blocks);
        insert(&tier, &keys, 1);
        assert!(!tier.reaches(TABLE));
        tier.scan_addresses(TABLE, &mut |_, _| panic!("out of reach")).unwrap();
    }
    let elsewhere = open_with(unlimited(1), ROW_BYTES, Arc::new(Reachable { left: AtomicUsize::new(9) }));
    insert(&elsewhere, &keys, 1);
    assert!(!elsewhere.reaches(TABLE), "nobody said that devices are served");
}

#[test]
fn a_table_that_devices_have_seen_refuses_rows_that_would_lie_out_of_their_reach() {
    let tier = open(unlimited(1), 1);
    let mut held: Vec<Key> = vec![0];
    insert(&tier, &held, 1);
    tier.scan_addresses(TABLE, &mut |_, _| Ok(())).unwrap();
    let error = (1..1_000_000u64)
        .find_map(|key| {
            let written = tier.insert(TABLE, &[key], Rows::new(&row(key, 1), ROW_BYTES).unwrap());
            written.inspect(|()| held.push(key)).err()
        })
        .expect("a block holds a million rows");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    for part in ["cannot be pinned", "`ulimit -l`"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert!(tier.reaches(TABLE));
    for (&key, address) in held.iter().zip(addresses(&tier, &held)) {
        assert_eq!(read(address), row(key, 1));
    }
    assert_eq!(addresses(&tier, &[held.len() as u64]), [0]);
}

#[test]
fn before_devices_have_seen_a_table_it_may_leave_their_reach() {
    let tier = open(unlimited(1), 1);
    let keys: Vec<Key> = (0..100_000).collect();
    insert(&tier, &keys[..1], 1);
    assert!(tier.reaches(TABLE));
    insert(&tier, &keys, 2);
    assert!(!tier.reaches(TABLE));
    tier.scan_addresses(TABLE, &mut |_, _| panic!("out of reach")).unwrap();
    assert_eq!(tier.usage(TABLE).unwrap().rows, keys.len() as u64);
}
