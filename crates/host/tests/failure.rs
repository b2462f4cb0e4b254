//! What happens when memory cannot be had, and when a caller asks for what cannot be.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{FailingAllocator, POLICIES, TABLE, insert, limited, lookup, open, open_with, spec, unlimited};
use hps_core::memory::MmapAllocator;
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{CacheTier, Expected, Held, Tier, TruthTier};
use hps_core::{Batch, ErrorKind, Key, Rows, RowsMut};
use hps_host::{HostSettings, HostTier};

const SIZE: usize = 256;

#[test]
fn when_memory_ends_every_row_is_whole_and_work_goes_on() {
    for num_blocks in 0..12 {
        for settings in
            [unlimited(3), limited(3, 10_000, POLICIES[1], 0.8), limited(3, 10_000, POLICIES[2], 0.8)]
        {
            let allocator = FailingAllocator::new(num_blocks);
            let tier = open_with(settings, SIZE, Arc::clone(&allocator) as _);
            let keys: Vec<Key> = (0..20_000).collect();
            let rows = rows_of(&keys, 1, SIZE);
            let refused = keys
                .chunks(1_000)
                .zip(rows.chunks(1_000 * SIZE))
                .find_map(|(keys, rows)| tier.insert(TABLE, keys, Rows::new(rows, SIZE).unwrap()).err());
            assert_eq!(refused.unwrap().kind(), ErrorKind::OutOfMemory);

            // Every row is there whole or not at all, and counted.
            let found = lookup(&tier, SIZE, &keys);
            let held: Vec<Key> =
                keys.iter().zip(&found).filter(|(_, row)| row.is_some()).map(|(&key, _)| key).collect();
            assert_eq!(held.len() as u64, tier.usage(TABLE).unwrap().rows);
            assert_eq!(held.is_empty(), num_blocks == 0);
            for (&key, row) in keys.iter().zip(&found) {
                assert!(row.as_ref().is_none_or(|row| *row == row_of(key, 1, SIZE)));
            }

            // What is there can be overwritten and erased, and what was erased makes room.
            insert(&tier, SIZE, &held, 2);
            let gone: Vec<Key> = held.iter().copied().step_by(2).collect();
            tier.erase(TABLE, &gone).unwrap();
            let again: Vec<Key> = gone.iter().map(|key| key + 1_000_000).collect();
            if settings.num_partitions == 1 {
                insert(&tier, SIZE, &again, 3);
            }
            allocator.blocks_left.store(usize::MAX, Ordering::Relaxed);
            insert(&tier, SIZE, &again, 3);
            insert(&tier, SIZE, &gone, 4);
            for (version, keys) in [(3, &again), (4, &gone)] {
                if settings.overflow_margin.is_none() {
                    let expected: Vec<_> = keys.iter().map(|&key| Some(row_of(key, version, SIZE))).collect();
                    assert_eq!(lookup(&tier, SIZE, keys), expected);
                }
            }
        }
    }
}

#[test]
fn erased_rows_make_room_without_new_memory() {
    let allocator = FailingAllocator::new(1);
    let tier = open_with(unlimited(1), SIZE, allocator);
    let keys: Vec<Key> = (0..20_000).collect();
    let rows = rows_of(&keys, 1, SIZE);
    tier.insert(TABLE, &keys, Rows::new(&rows, SIZE).unwrap()).unwrap_err();
    let held = tier.usage(TABLE).unwrap().rows;
    assert!(held > 100);
    tier.erase(TABLE, &keys).unwrap();
    insert(&tier, SIZE, &(1_000_000..1_000_000 + held).collect::<Vec<_>>(), 2);
    assert_eq!(tier.usage(TABLE).unwrap().rows, held);
}

#[test]
fn a_load_that_fails_leaves_what_was_held() {
    let allocator = FailingAllocator::new(4);
    let tier = open_with(unlimited(2), SIZE, Arc::clone(&allocator) as _);
    let keys: Vec<Key> = (0..100).collect();
    let rows = rows_of(&keys, 1, SIZE);
    let mut load = tier.begin_load(TABLE, Expected::rows(100)).unwrap();
    load.put(&keys, Rows::new(&rows, SIZE).unwrap()).unwrap();
    load.commit("first", &|_| {}).unwrap();
    allocator.blocks_left.store(0, Ordering::Relaxed);
    assert_eq!(tier.begin_load(TABLE, Expected::rows(100)).err().unwrap().kind(), ErrorKind::OutOfMemory);
    assert_eq!(
        tier.begin_load(TABLE, Expected::rows(u64::MAX)).err().unwrap().kind(),
        ErrorKind::OutOfMemory
    );
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("first".into()));
    assert!(lookup(&tier, SIZE, &keys).iter().all(Option::is_some));
    // The failed loads are over: another may begin.
    allocator.blocks_left.store(usize::MAX, Ordering::Relaxed);
    let load = tier.begin_load(TABLE, Expected::rows(100)).unwrap();
    assert_eq!(tier.begin_load(TABLE, Expected::rows(100)).err().unwrap().kind(), ErrorKind::Unsupported);
    drop(load);
    assert!(tier.begin_load(TABLE, Expected::rows(0)).is_ok());
}

#[test]
fn sizes_beyond_any_memory_are_refused() {
    let tier = open(unlimited(2), SIZE);
    for num_rows in [u64::MAX, u64::MAX / 2, 1 << 50] {
        assert_eq!(tier.reserve(TABLE, Expected::rows(num_rows)).unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
    insert(&tier, SIZE, &[1], 1);
    let huge = open(unlimited(2), usize::MAX / 4);
    assert_eq!(huge.reserve(TABLE, Expected::rows(1_000)).unwrap_err().kind(), ErrorKind::OutOfMemory);
}

#[test]
fn what_cannot_be_is_refused() {
    let mmap = || Arc::new(MmapAllocator);
    let error = HostTier::open(unlimited(1), &[spec(2)], mmap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("hps_et.test.table"), "{error}");
    let none = HostSettings { num_partitions: 0, ..unlimited(1) };
    assert_eq!(HostTier::open(none, &[], mmap()).unwrap_err().kind(), ErrorKind::InvalidArgument);

    let tier = open(unlimited(2), SIZE);
    assert_eq!(tier.set_record(TABLE, "r").unwrap_err().kind(), ErrorKind::Unsupported);
    // A batch that names positions outside of the rows, one by one and many at a time.
    insert(&tier, SIZE, &[7], 1);
    for num_keys in [1, 100] {
        let keys = vec![7; num_keys];
        let mut bytes = vec![0; (num_keys - 1) * SIZE];
        let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
        let error = tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        let mut bytes = vec![0; num_keys * SIZE];
        let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
        let positions = vec![num_keys as u32; num_keys];
        let outside = Batch::at(&keys, &positions);
        let error = tier.lookup(TABLE, outside, &mut rows, &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}
