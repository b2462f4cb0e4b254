//! What every tier must do, as checks that each tier's own tests call (feature `testing`).
//!
//! Open the tier with [`specs`], then call [`truth_conformance`] if it can be the lowest tier and
//! [`cache_conformance`] if it can stand above another (on a fresh tier each: truth first, as it begins from
//! nothing). Both run [`tier_conformance`]. The tier must have no capacity limit that the checks could reach (about
//! 20,000 rows a table). Checks panic when a promise is broken.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests, shared between crates"
)]

mod fake_device;
mod map_tier;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::batch::Batch;
use crate::error::ErrorKind;
use crate::key::{Key, KeyWidth, TableId, mix};
use crate::row::{Rows, RowsMut};
use crate::tier::{CacheTier, Expected, Held, Promotion, TableSpec, Tier, TruthTier};
use crate::update_clock::UpdateClock;

pub use fake_device::{Answers, Call, DeviceMemory, FakeDevice, FakeSettings, FakeTable};
pub use map_tier::{Hook, MapTier};

/// Memory that this process has of its own and in use: of files that are mapped, as the library itself is, nothing.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The tables to open a tier with: several sizes of rows, both widths of keys.
pub fn specs() -> Vec<TableSpec> {
    [
        ("one_float", 4, KeyWidth::Bits64),
        ("odd", 20, KeyWidth::Bits64),
        ("wide", 512, KeyWidth::Bits64),
        ("narrow_keys", 64, KeyWidth::Bits32),
    ]
    .into_iter()
    .map(|(name, row_bytes, key_width)| TableSpec {
        name: format!("hps_et.conformance.{name}"),
        row_bytes,
        key_width,
    })
    .collect()
}

/// The row of `key` in its `version`: other keys and versions differ from it in nearly every byte, and a row pieced
/// together from two versions is none of either.
pub fn row_of(key: Key, version: u64, row_bytes: usize) -> Vec<u8> {
    let mut state = mix(key ^ mix(version.wrapping_add(0x9E37_79B9_7F4A_7C15)));
    (0..row_bytes)
        .map(|i| {
            if i % 8 == 0 {
                state = mix(state.wrapping_add(i as u64 + 1));
            }
            state.to_le_bytes()[i % 8]
        })
        .collect()
}

/// Rows of `keys` in one version, ready for insertion.
pub fn rows_of(keys: &[Key], version: u64, row_bytes: usize) -> Vec<u8> {
    keys.iter().flat_map(|&key| row_of(key, version, row_bytes)).collect()
}

/// Keys that trip naive hash tables and sentinels; all of them fit the width.
pub fn hostile_keys(width: KeyWidth) -> Vec<Key> {
    match width {
        KeyWidth::Bits64 => {
            let mut keys =
                vec![0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64, 0xFFFF_FFFF, 0xFFFF_FFFF_0000_0000];
            keys.extend((1..200u64).map(|i| i << 40));
            keys.extend((1..200u64).map(|i| i << 32 | 0xFFFF_FFFF));
            keys
        }
        KeyWidth::Bits32 => {
            let mut keys = vec![0, 1, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000];
            keys.extend((1..200u64).map(|i| i << 20));
            keys
        }
    }
}

/// Looks keys up and returns what was found, position by position; checks on the way that misses ascend, that hits
/// and misses add up, and that rows of misses are left alone.
pub fn lookup(tier: &dyn Tier, table: TableId, row_bytes: usize, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
    lookup_with(keys, row_bytes, |batch, rows, misses| tier.lookup(table, batch, rows, misses).unwrap())
}

fn lookup_with(
    keys: &[Key],
    row_bytes: usize,
    run: impl FnOnce(Batch<'_>, &mut RowsMut<'_>, &mut Vec<u32>),
) -> Vec<Option<Vec<u8>>> {
    let mut bytes = vec![0xA5; keys.len() * row_bytes];
    let mut misses = Vec::new();
    run(Batch::all(keys), &mut RowsMut::from_bytes(&mut bytes, row_bytes).unwrap(), &mut misses);
    assert!(misses.is_sorted_by(|a, b| a < b), "misses must ascend: {misses:?}");
    assert!(misses.iter().all(|&position| (position as usize) < keys.len()));
    let mut found: Vec<Option<Vec<u8>>> =
        bytes.chunks_exact(row_bytes).map(|row| Some(row.to_vec())).collect();
    for &position in &misses {
        let row = found[position as usize].take().unwrap();
        assert!(row.iter().all(|&byte| byte == 0xA5), "the row of a miss was written at {position}");
    }
    found
}

fn expected(keys: &[Key], oracle: &HashMap<Key, Vec<u8>>) -> Vec<Option<Vec<u8>>> {
    keys.iter().map(|key| oracle.get(key).cloned()).collect()
}

fn insert(tier: &dyn Tier, table: TableId, keys: &[Key], version: u64, row_bytes: usize) {
    let bytes = rows_of(keys, version, row_bytes);
    tier.insert(table, keys, Rows::new(&bytes, row_bytes).unwrap()).unwrap();
}

fn ids() -> impl Iterator<Item = (TableId, TableSpec)> {
    specs().into_iter().enumerate().map(|(i, spec)| (TableId(i as u32), spec))
}

/// What every tier promises of lookup, insert and erase. Starts from empty tables and leaves them empty.
pub fn tier_conformance(tier: &dyn Tier) {
    for (table, spec) in ids() {
        serves_exactly_what_was_inserted(tier, table, &spec);
        looks_up_only_the_positions_asked_for(tier, table, &spec);
        refuses_rows_of_another_size(tier, table, &spec);
    }
    tables_do_not_share_keys(tier);
    refuses_unknown_tables(tier);
    readers_see_whole_rows_while_writers_write(tier);
}

fn serves_exactly_what_was_inserted(tier: &dyn Tier, table: TableId, spec: &TableSpec) {
    let size = spec.row_bytes;
    let mut keys = hostile_keys(spec.key_width);
    keys.extend(1_000..4_000);
    let mut asked = keys.clone();
    asked.extend([77_777, 88_888, 5]);
    asked.extend_from_slice(&keys[..50]);

    assert!(lookup(tier, table, size, &asked).iter().all(Option::is_none), "a new table is empty");
    assert!(lookup(tier, table, size, &[]).is_empty());

    let mut oracle: HashMap<Key, Vec<u8>> = keys.iter().map(|&key| (key, row_of(key, 1, size))).collect();
    insert(tier, table, &keys, 1, size);
    assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &oracle));
    assert_eq!(tier.usage(table).unwrap().rows, oracle.len() as u64, "rows counted in {}", spec.name);

    // Overwrite some, and one of them twice in one call: the last row wins.
    let mut again: Vec<Key> = keys.iter().copied().step_by(3).collect();
    let mut bytes = rows_of(&again, 2, size);
    again.push(again[0]);
    bytes.extend(row_of(again[0], 3, size));
    for (&key, row) in again.iter().zip(bytes.chunks_exact(size)) {
        oracle.insert(key, row.to_vec());
    }
    tier.insert(table, &again, Rows::new(&bytes, size).unwrap()).unwrap();
    assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &oracle));

    let mut erased: Vec<Key> = keys.iter().copied().step_by(2).collect();
    erased.push(999_999);
    for key in &erased {
        oracle.remove(key);
    }
    tier.erase(table, &erased).unwrap();
    assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &oracle));

    insert(tier, table, &erased, 4, size);
    oracle.extend(erased.iter().map(|&key| (key, row_of(key, 4, size))));
    assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &oracle));

    tier.erase(table, &keys).unwrap();
    tier.erase(table, &erased).unwrap();
    assert!(lookup(tier, table, size, &asked).iter().all(Option::is_none));
}

fn looks_up_only_the_positions_asked_for(tier: &dyn Tier, table: TableId, spec: &TableSpec) {
    let size = spec.row_bytes;
    let present: Vec<Key> = (0..100).collect();
    insert(tier, table, &present, 1, size);
    let keys: Vec<Key> = (50..150).collect();
    let positions: Vec<u32> = (0..100).filter(|position| position % 7 == 3).collect();
    let mut bytes = vec![0xA5; keys.len() * size];
    let mut misses = vec![4_000_000_000]; // what the caller already has there is kept
    tier.lookup(
        table,
        Batch::at(&keys, &positions),
        &mut RowsMut::from_bytes(&mut bytes, size).unwrap(),
        &mut misses,
    )
    .unwrap();
    assert_eq!(misses.remove(0), 4_000_000_000);
    for (position, row) in bytes.chunks_exact(size).enumerate() {
        let asked = position % 7 == 3;
        let found = asked && keys[position] < 100;
        assert_eq!(misses.contains(&(position as u32)), asked && !found);
        let want = if found { row_of(keys[position], 1, size) } else { vec![0xA5; size] };
        assert_eq!(row, want, "position {position}");
    }
    tier.erase(table, &present).unwrap();
}

fn refuses_rows_of_another_size(tier: &dyn Tier, table: TableId, spec: &TableSpec) {
    let wrong = spec.row_bytes + 4;
    let error = tier.insert(table, &[1], Rows::new(&vec![0; wrong], wrong).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let mut bytes = vec![0; wrong];
    let mut rows = RowsMut::from_bytes(&mut bytes, wrong).unwrap();
    let error = tier.lookup(table, Batch::all(&[1]), &mut rows, &mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    let two_rows = vec![0; 2 * spec.row_bytes];
    let error = tier.insert(table, &[1], Rows::new(&two_rows, spec.row_bytes).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(lookup(tier, table, spec.row_bytes, &[1]), [None], "a refused insert changes nothing");
}

fn tables_do_not_share_keys(tier: &dyn Tier) {
    for (table, spec) in ids() {
        insert(tier, table, &[7], u64::from(table.0), spec.row_bytes);
    }
    for (table, spec) in ids() {
        let found = lookup(tier, table, spec.row_bytes, &[7]);
        assert_eq!(found, [Some(row_of(7, u64::from(table.0), spec.row_bytes))]);
        tier.erase(table, &[7]).unwrap();
    }
}

fn refuses_unknown_tables(tier: &dyn Tier) {
    let unknown = TableId(specs().len() as u32);
    let mut bytes = [0; 4];
    let mut rows = RowsMut::from_bytes(&mut bytes, 4).unwrap();
    let failures = [
        tier.lookup(unknown, Batch::all(&[1]), &mut rows, &mut Vec::new()).unwrap_err(),
        tier.insert(unknown, &[1], Rows::new(&[0; 4], 4).unwrap()).unwrap_err(),
        tier.erase(unknown, &[1]).unwrap_err(),
        tier.usage(unknown).unwrap_err(),
    ];
    for error in failures {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

fn readers_see_whole_rows_while_writers_write(tier: &dyn Tier) {
    let (table, spec) = ids().nth(2).unwrap();
    let size = spec.row_bytes;
    let keys: Vec<Key> = (0..300).collect();
    insert(tier, table, &keys, 0, size);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut oldest = vec![0; keys.len()];
                while !done.load(Ordering::Relaxed) {
                    for (i, row) in lookup(tier, table, size, &keys).into_iter().enumerate() {
                        let row = row.expect("a key that is only overwritten is always present");
                        let version = (oldest[i]..=40).find(|&version| row == row_of(keys[i], version, size));
                        oldest[i] =
                            version.expect("a row must be one whole version, and never an older one again");
                    }
                }
            });
        }
        for version in 1..=40 {
            insert(tier, table, &keys, version, size);
        }
        done.store(true, Ordering::Relaxed);
    });
    tier.erase(table, &keys).unwrap();
}

/// What a tier that can stand above another promises besides.
pub fn cache_conformance(tier: &dyn CacheTier) {
    tier_conformance(tier);
    for (table, spec) in ids() {
        let size = spec.row_bytes;
        let clock = UpdateClock::default();
        let keys: Vec<Key> = (0..100).collect();
        tier.reserve(table, Expected::rows(100)).unwrap();

        // Update overwrites what is present and admits nothing.
        insert(tier, table, &keys[..50], 1, size);
        let rows = rows_of(&keys, 2, size);
        tier.update(table, &keys, Rows::new(&rows, size).unwrap()).unwrap();
        let found = lookup(tier, table, size, &keys);
        for (i, row) in found.iter().enumerate() {
            assert_eq!(*row, (i < 50).then(|| row_of(keys[i], 2, size)), "key {i} after update");
        }

        // Promotion admits what is absent and keeps what is present; keys written since are dropped.
        let snapshot = clock.snapshot();
        let rows = rows_of(&keys, 3, size);
        let written = [60, 61];
        clock.advance(&written);
        let promotion = Promotion {
            keys: &keys,
            rows: Rows::new(&rows, size).unwrap(),
            clock: &clock,
            snapshot: &snapshot,
        };
        let added = tier.promote(table, promotion).unwrap();
        let found = lookup(tier, table, size, &keys);
        assert_eq!(found.iter().flatten().count() as u64, 50 + added, "promote counts what it added");
        for (i, row) in found.iter().enumerate() {
            let want = match i {
                0..50 => Some(row_of(keys[i], 2, size)),
                _ if !clock.is_current(keys[i], &snapshot) => None,
                _ => Some(row_of(keys[i], 3, size)),
            };
            assert_eq!(*row, want, "key {i} after promotion");
        }
        assert_eq!(found[60], None, "a key updated between read and promotion must not be promoted");
        tier.erase(table, &keys).unwrap();
    }
}

/// What a tier that can be the lowest promises besides. Begins from a tier that holds nothing.
pub fn truth_conformance(tier: &dyn TruthTier) {
    assert!(!tier.is_read_only());
    for (table, spec) in ids() {
        let size = spec.row_bytes;
        assert_eq!(tier.held(table).unwrap(), Held::Nothing);

        // A load that is dropped leaves nothing.
        let old_keys: Vec<Key> = (0..3_000).collect();
        let rows = rows_of(&old_keys, 1, size);
        let mut load = tier.begin_load(table, Expected::rows(3_000)).unwrap();
        load.put(&old_keys, Rows::new(&rows, size).unwrap()).unwrap();
        drop(load);
        assert_eq!(tier.held(table).unwrap(), Held::Nothing);
        assert!(lookup(tier, table, size, &old_keys).iter().all(Option::is_none));

        // A committed one is held whole, with its record.
        let mut load = tier.begin_load(table, Expected::rows(3_000)).unwrap();
        load.put(&old_keys, Rows::new(&rows, size).unwrap()).unwrap();
        let seen =
            lookup_with(&old_keys, size, |batch, rows, misses| load.lookup(batch, rows, misses).unwrap());
        assert!(seen.iter().all(Option::is_some), "a load sees what was put");
        assert_eq!(load.commit("first", &|_| {}).unwrap(), 3_000);
        assert_eq!(tier.held(table).unwrap(), Held::Table("first".into()));
        tier.set_record(table, "renamed").unwrap();
        assert_eq!(tier.held(table).unwrap(), Held::Table("renamed".into()));

        // A second one is invisible until its commit, then replaces the table whole: absent keys vanish.
        let mut new_keys: Vec<Key> = (1_000..5_000).collect();
        let mut rows = rows_of(&new_keys, 2, size);
        new_keys.push(1_000); // repeated: the last row wins
        rows.extend(row_of(1_000, 3, size));
        let mut load = tier.begin_load(table, Expected::rows(4_000)).unwrap();
        for (keys, rows) in new_keys.chunks(700).zip(rows.chunks(700 * size)) {
            load.put(keys, Rows::new(rows, size).unwrap()).unwrap();
        }
        let before: HashMap<Key, Vec<u8>> = old_keys.iter().map(|&key| (key, row_of(key, 1, size))).collect();
        let asked: Vec<Key> = (0..6_000).collect();
        assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &before));
        assert_eq!(load.commit("second", &|_| {}).unwrap(), 4_000);
        assert_eq!(tier.held(table).unwrap(), Held::Table("second".into()));
        let mut after: HashMap<Key, Vec<u8>> =
            (1_000..5_000).map(|key| (key, row_of(key, 2, size))).collect();
        after.insert(1_000, row_of(1_000, 3, size));
        assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &after));

        // Rows may be looked for while more are put, over and over: the last row wins all the same.
        let mut load = tier.begin_load(table, Expected::rows(4_000)).unwrap();
        let mut put: HashMap<Key, Vec<u8>> = HashMap::new();
        for version in 4..8 {
            let keys: Vec<Key> = (version * 500..version * 500 + 1_500).rev().collect();
            load.put(&keys, Rows::new(&rows_of(&keys, version, size), size).unwrap()).unwrap();
            put.extend(keys.iter().map(|&key| (key, row_of(key, version, size))));
            let seen =
                lookup_with(&asked, size, |batch, rows, misses| load.lookup(batch, rows, misses).unwrap());
            assert_eq!(seen, expected(&asked, &put));
        }
        assert_eq!(load.commit("third", &|_| {}).unwrap(), put.len() as u64);
        assert_eq!(lookup(tier, table, size, &asked), expected(&asked, &put));
        let mut load = tier.begin_load(table, Expected::rows(4_000)).unwrap();
        load.put(&new_keys, Rows::new(&rows, size).unwrap()).unwrap();
        assert_eq!(load.commit("second", &|_| {}).unwrap(), 4_000);

        // A scan shows every row once, and can be ended.
        let mut scanned = HashMap::new();
        tier.scan(table, &mut |keys, rows| {
            assert_eq!(keys.len(), rows.len());
            for (&key, row) in keys.iter().zip(rows.iter()) {
                assert!(scanned.insert(key, row.to_vec()).is_none(), "key {key} was shown twice");
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(scanned, after);
        let mut calls = 0;
        tier.scan(table, &mut |_, _| {
            calls += 1;
            Ok(ControlFlow::Break(()))
        })
        .unwrap();
        assert_eq!(calls, 1);

        let keys: Vec<Key> = after.into_keys().collect();
        tier.erase(table, &keys).unwrap();
    }
    tier_conformance(tier);
}
