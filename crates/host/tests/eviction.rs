//! Limits: how many rows stay, and which.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{POLICIES, TABLE, insert, limited, lookup, open, present};
use hps_core::key::mix;
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{CacheTier, Expected, Promotion, Tier, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Key, Rows};
use hps_host::{EvictionPolicy, HostTier};

const SIZE: usize = 16;

fn num_rows(tier: &HostTier) -> u64 {
    tier.usage(TABLE).unwrap().rows
}

#[test]
fn an_eviction_leaves_exactly_the_target() {
    for policy in POLICIES {
        for (margin, target, kept) in [
            (100, 0.8, 80),
            (100, 0.805, 81), // 80.5 rounds up
            (100, 1.0, 99),
            (100, 0.001, 1),
            (7, 0.5, 4), // 3.5 rounds up
            (2, 0.5, 1),
            (1, 0.8, 0),
            (20_000, 0.3, 6_000),
        ] {
            let tier = open(limited(1, margin, policy, target), SIZE);
            let keys: Vec<Key> = (0..margin).collect();
            insert(&tier, SIZE, &keys, 1);
            assert_eq!(num_rows(&tier), margin, "a partition is used up to its margin");
            insert(&tier, SIZE, &keys, 2);
            assert_eq!(num_rows(&tier), margin, "overwriting needs no room");
            insert(&tier, SIZE, &[margin], 1);
            assert_eq!(num_rows(&tier), kept + 1, "margin {margin}, target {target}, {policy:?}");
            assert_eq!(lookup(&tier, SIZE, &[margin]), [Some(row_of(margin, 1, SIZE))]);
            for (key, row) in keys.iter().zip(lookup(&tier, SIZE, &keys)) {
                assert!(row.is_none_or(|row| row == row_of(*key, 2, SIZE)));
            }
        }
    }
}

#[test]
fn each_partition_has_its_own_margin() {
    for policy in POLICIES {
        let tier = open(limited(8, 50, policy, 0.8), SIZE);
        // Many keys of partition 3 and few of the others.
        let of = |partition: u64| (0..).filter(move |&key| mix(key) % 8 == partition);
        let crowd: Vec<Key> = of(3).take(500).collect();
        let others: Vec<Key> = (0..8).filter(|&p| p != 3).flat_map(|p| of(p).take(50)).collect();
        insert(&tier, SIZE, &others, 1);
        insert(&tier, SIZE, &crowd, 1);
        let rows = tier.partition_rows(TABLE).unwrap();
        // 50 fill it; then every eleventh key evicts 10 of 50 and is added itself: 40 + 1 .. 50.
        assert_eq!(rows.iter().enumerate().filter(|&(p, &rows)| p != 3 && rows == 50).count(), 7);
        assert!((41..=50).contains(&rows[3]));
        assert_eq!(present(&tier, SIZE, &others), others);
    }
}

#[test]
fn memory_does_not_grow_while_rows_come_and_go() {
    for policy in POLICIES {
        let tier = open(limited(2, 1_000, policy, 0.8), SIZE);
        insert(&tier, SIZE, &(0..10_000).collect::<Vec<_>>(), 1);
        let bytes = tier.usage(TABLE).unwrap().bytes;
        for round in 1..40u64 {
            insert(&tier, SIZE, &(round * 10_000..(round + 1) * 10_000).collect::<Vec<_>>(), 1);
        }
        // The index may have to grow once more, by chance; rows and their slabs must not.
        let later = tier.usage(TABLE).unwrap().bytes;
        assert!(later <= bytes + bytes / 10, "{bytes} bytes became {later}");
    }
}

#[test]
fn least_used_rows_go() {
    let tier = open(limited(1, 1_000, EvictionPolicy::LeastUsed, 0.5), SIZE);
    let keys: Vec<Key> = (0..1_000).collect();
    insert(&tier, SIZE, &keys, 1);
    let popular: Vec<Key> = (0..1_000).filter(|key| key % 2 == 0).collect();
    for _ in 0..3 {
        lookup(&tier, SIZE, &popular);
    }
    // Being overwritten is not being used.
    for _ in 0..10 {
        insert(&tier, SIZE, &(1..1_000).step_by(2).collect::<Vec<_>>(), 2);
    }
    insert(&tier, SIZE, &[5_000], 1);
    assert_eq!(present(&tier, SIZE, &keys), popular);
}

#[test]
fn rows_once_popular_make_way_for_those_that_are_used_now() {
    let tier = open(limited(1, 1_000, EvictionPolicy::LeastUsed, 0.8), SIZE);
    let old: Vec<Key> = (0..900).collect();
    insert(&tier, SIZE, &old, 1);
    for _ in 0..200 {
        lookup(&tier, SIZE, &old);
    }
    // A new working set, admitted as a cache does it: what a lookup misses is inserted.
    let new: Vec<Key> = (10_000..10_700).collect();
    for round in 0..60u64 {
        let found = lookup(&tier, SIZE, &new);
        let missed: Vec<Key> =
            new.iter().zip(&found).filter(|(_, row)| row.is_none()).map(|(&key, _)| key).collect();
        insert(&tier, SIZE, &missed, 1);
        let passing: Vec<Key> = (0..100).map(|i| 1_000_000 + round * 100 + i).collect();
        insert(&tier, SIZE, &passing, 1);
    }
    let kept = present(&tier, SIZE, &new).len();
    assert!(kept > 690, "{kept} of 700 rows in use are held");
}

#[test]
fn new_rows_are_not_the_next_to_go() {
    for policy in [EvictionPolicy::LeastUsed, EvictionPolicy::Oldest] {
        let tier = open(limited(1, 1_000, policy, 0.9), SIZE);
        let old: Vec<Key> = (0..1_000).collect();
        insert(&tier, SIZE, &old, 1);
        lookup(&tier, SIZE, &old);
        let new: Vec<Key> = (5_000..5_100).collect();
        insert(&tier, SIZE, &new, 1);
        assert_eq!(num_rows(&tier), 1_000);
        // To be new is one use; whoever counts uses wants to see as many as the others had.
        if policy == EvictionPolicy::LeastUsed {
            (0..2).for_each(|_| drop(lookup(&tier, SIZE, &new)));
        }
        insert(&tier, SIZE, &[9_999], 1);
        assert_eq!(present(&tier, SIZE, &new), new, "{policy:?}");
    }
}

#[test]
fn oldest_rows_go_and_every_kind_of_access_refreshes() {
    let tier = open(limited(1, 4_000, EvictionPolicy::Oldest, 0.25), SIZE);
    let keys: Vec<Key> = (0..4_000).collect();
    insert(&tier, SIZE, &keys, 1);
    let looked_up: Vec<Key> = (0..400).collect();
    let updated: Vec<Key> = (1_000..1_400).collect();
    let overwritten: Vec<Key> = (3_000..3_200).collect();
    lookup(&tier, SIZE, &looked_up);
    let rows = rows_of(&updated, 2, SIZE);
    tier.update(TABLE, &updated, Rows::new(&rows, SIZE).unwrap()).unwrap();
    insert(&tier, SIZE, &overwritten, 3);
    insert(&tier, SIZE, &[9_999], 1);
    let kept = present(&tier, SIZE, &keys);
    assert_eq!(kept, [looked_up, updated, overwritten].concat());
}

#[test]
fn random_eviction_favours_nobody() {
    let mut kept = vec![0u32; 100];
    for _ in 0..2_000 {
        let tier = open(limited(1, 100, EvictionPolicy::Random, 0.5), SIZE);
        let keys: Vec<Key> = (0..100).collect();
        insert(&tier, SIZE, &keys, 1);
        insert(&tier, SIZE, &[1_000], 1);
        present(&tier, SIZE, &keys).into_iter().for_each(|key| kept[key as usize] += 1);
    }
    // 1,000 each is expected; 5.5 standard deviations are 123.
    assert!(kept.iter().all(|count| (877..=1_123).contains(count)), "{kept:?}");
}

#[test]
fn promotion_evicts_as_insertion_does_and_keeps_what_is_there() {
    for policy in POLICIES {
        let tier = open(limited(1, 100, policy, 0.8), SIZE);
        insert(&tier, SIZE, &(0..100).collect::<Vec<_>>(), 1);
        let clock = UpdateClock::default();
        let snapshot = clock.snapshot();
        let keys: Vec<Key> = (200..221).collect();
        let rows = rows_of(&keys, 7, SIZE);
        let promotion = Promotion {
            keys: &keys,
            rows: Rows::new(&rows, SIZE).unwrap(),
            clock: &clock,
            snapshot: &snapshot,
        };
        assert_eq!(tier.promote(TABLE, promotion).unwrap(), 21);
        // 80 + 20 are full again; the 21st evicts 20 once more.
        assert_eq!(num_rows(&tier), 81);
    }
}

#[test]
fn a_promotion_that_an_update_overtook_is_dropped() {
    for settings in [limited(4, 1_000, EvictionPolicy::Oldest, 0.8), common::unlimited(4)] {
        let tier = open(settings, SIZE);
        let clock = UpdateClock::default();
        let snapshot = clock.snapshot();
        let old = row_of(42, 1, SIZE); // read below
        clock.advance(&[42]); // the row is written below
        let new = row_of(42, 2, SIZE);
        tier.update(TABLE, &[42], Rows::new(&new, SIZE).unwrap()).unwrap(); // not held yet
        let promotion = Promotion {
            keys: &[42],
            rows: Rows::new(&old, SIZE).unwrap(),
            clock: &clock,
            snapshot: &snapshot,
        };
        assert_eq!(tier.promote(TABLE, promotion).unwrap(), 0);
        assert_eq!(lookup(&tier, SIZE, &[42]), [None]);
        // Nor does a promotion replace what is there, however new it is.
        insert(&tier, SIZE, &[42], 2);
        let now = clock.snapshot();
        let promotion = Promotion { snapshot: &now, ..promotion };
        assert_eq!(tier.promote(TABLE, promotion).unwrap(), 0);
        assert_eq!(lookup(&tier, SIZE, &[42]), [Some(new)]);
    }
}

#[test]
fn a_load_under_a_limit_counts_evicted_keys_too() {
    let tier = open(limited(1, 100, EvictionPolicy::Random, 0.8), SIZE);
    let keys: Vec<Key> = (0..150).collect();
    let rows = rows_of(&keys, 1, SIZE);
    let mut load = tier.begin_load(TABLE, Expected::rows(150)).unwrap();
    load.put(&keys, Rows::new(&rows, SIZE).unwrap()).unwrap();
    assert_eq!(load.commit("record", &|_| {}).unwrap(), 150);
    assert!(num_rows(&tier) <= 100);
}
