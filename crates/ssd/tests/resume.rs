//! A load that was interrupted, or whose process was killed, goes on where it was.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use common::{TABLE, child, load, one_table, open, open_read_only, role, scan, spec};
use hps_core::batch::Batch;
use hps_core::key::{Key, KeyWidth, mix};
use hps_core::row::{Rows, RowsMut};
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{Expected, Held, TableLoad, TruthTier};

const NUM_KEYS: u64 = 20_000;
/// In each of them, two parts are looked up in between, as those of fused tables are.
const ROLES: [&str; 3] = ["put", "look up", "commit"];

fn keys() -> Vec<Key> {
    (0..NUM_KEYS).map(mix).collect()
}

fn put(load: &mut dyn TableLoad, is_looked_up: bool) {
    let keys = keys();
    for (number, part) in keys.chunks(10_000).enumerate() {
        if number > 0 && is_looked_up {
            let (mut row, mut misses) = (vec![0; 64], Vec::new());
            let mut rows = RowsMut::from_bytes(&mut row, 64).unwrap();
            load.lookup(Batch::all(&keys[..1]), &mut rows, &mut misses).unwrap();
            assert_eq!((row, misses), (row_of(keys[0], 1, 64), vec![]));
        }
        for keys in part.chunks(2_000) {
            load.put(keys, Rows::new(&rows_of(keys, 1, 64), 64).unwrap()).unwrap();
        }
    }
}

/// The process that is killed: waits for that in the middle of a load.
#[test]
fn victim() {
    let Some((role, path)) = role() else { return };
    let tier = open(&path, &one_table());
    let mut load = tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
    assert_eq!(load.resume("origin").unwrap(), 0);
    put(load.as_mut(), role == "look up");
    let wait = || {
        println!("here");
        drop(std::io::stdin().read(&mut [0]));
    };
    match role.as_str() {
        "commit" => drop(load.commit("record", &|written| {
            if written > NUM_KEYS / 2 {
                wait();
            }
        })),
        _ => wait(),
    }
}

/// Kills a process in the middle of a load, and returns what it has left.
fn kill(role: &str, path: &Path) -> PathBuf {
    let (mut victim, output) = child("victim", role, path);
    BufReader::new(output).lines().map_while(Result::ok).find(|line| line.contains("here")).unwrap();
    victim.kill().unwrap();
    victim.wait().unwrap();
    leftovers(path).remove(0)
}

fn leftovers(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path.join("hps_loading")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn files(directory: &Path, extension: &str) -> usize {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|end| end == extension)).count()
}

#[test]
fn a_load_that_was_killed_goes_on() {
    for role in ROLES {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let left = kill(role, path);
        assert!(files(&left, "run") > 5, "{role}");
        // Neither a reader nor a writer that does not load removes it, or serves half a table.
        drop(open_read_only(path, &one_table()).unwrap());
        for _ in 0..2 {
            let tier = open(path, &one_table());
            assert_eq!(tier.held(TABLE).unwrap(), Held::Nothing);
            assert!(tier.state(TABLE).unwrap().is_being_loaded);
        }
        let tier = open(path, &one_table());
        let mut load = tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
        let sorted = load.resume("origin").unwrap();
        assert!(sorted > NUM_KEYS * 8 / 10 && sorted <= NUM_KEYS, "{sorted} rows, {role}");
        put(load.as_mut(), role == "look up");
        assert_eq!(load.commit("record", &|_| {}).unwrap(), NUM_KEYS);
        let expected: BTreeMap<Key, Vec<u8>> =
            keys().into_iter().map(|key| (key, row_of(key, 1, 64))).collect();
        assert!(scan(&tier).into_iter().collect::<BTreeMap<_, _>>() == expected, "{role}");
        assert!(!left.exists());
        assert!(!tier.state(TABLE).unwrap().is_being_loaded);
        drop(tier);
        drop(open(path, &one_table()));
        assert!(!path.join("hps_loading").exists());
    }
}

#[test]
fn a_load_whose_source_fails_goes_on_and_one_that_is_given_up_or_cannot_write_leaves_nothing() {
    for case in ["interrupted", "given up", "of no origin", "cannot write"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let tier = open(path, &one_table());
        let begin = || tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
        let mut load = begin();
        if case != "of no origin" {
            load.resume("origin").unwrap();
        }
        put(load.as_mut(), true);
        let directory = path.join("hps_loading");
        if case == "cannot write" {
            std::fs::rename(&directory, path.join("elsewhere")).unwrap();
            std::fs::write(&directory, "no directory").unwrap();
            let keys = keys();
            let rows = rows_of(&keys, 1, 64);
            assert!((0..10).any(|_| load.put(&keys, Rows::new(&rows, 64).unwrap()).is_err()));
            // What was sorted before is there, and takes room.
            std::fs::remove_file(&directory).unwrap();
            std::fs::rename(path.join("elsewhere"), &directory).unwrap();
        }
        match case {
            "given up" => drop(load),
            _ => load.interrupt(),
        }
        let goes_on = case == "interrupted";
        assert_eq!(leftovers(path).len(), usize::from(goes_on), "{case}");
        assert_eq!(tier.state(TABLE).unwrap().is_being_loaded, goes_on, "{case}");
        assert_eq!(tier.held(TABLE).unwrap(), Held::Nothing);
        let mut load = begin();
        let sorted = load.resume("origin").unwrap();
        assert_eq!(sorted > NUM_KEYS * 8 / 10, goes_on, "{sorted} rows, {case}");
        put(load.as_mut(), false);
        assert_eq!(load.commit("record", &|_| {}).unwrap(), NUM_KEYS);
        let expected: BTreeMap<Key, Vec<u8>> =
            keys().into_iter().map(|key| (key, row_of(key, 1, 64))).collect();
        assert!(scan(&tier).into_iter().collect::<BTreeMap<_, _>>() == expected, "{case}");
        assert!(leftovers(path).is_empty(), "{case}");
    }
}

#[test]
fn what_a_load_has_left_is_removed_when_nothing_can_go_on_with_it() {
    let two_tables = [one_table().remove(0), spec("hps_et.m.other", 64, KeyWidth::Bits64)];
    for case in ["another origin", "no origin", "other memory", "forgotten", "completed"] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let left = kill("put", path);
        let tier = open(path, &two_tables);
        match case {
            "another origin" => {
                let mut load = tier.begin_load(TABLE, Expected::rows(1)).unwrap();
                assert_eq!(load.resume("another").unwrap(), 0);
            }
            "no origin" => drop(load(&tier, &[1, 2], 1, 64, "record")),
            "other memory" => {
                drop(tier);
                let settings = hps_ssd::SsdSettings { load_bytes: 1 << 20, ..common::settings(path) };
                let tier = hps_ssd::SsdTier::open(settings, &two_tables).unwrap();
                let mut load = tier.begin_load(TABLE, Expected::rows(1)).unwrap();
                assert_eq!(load.resume("origin").unwrap(), 0);
            }
            "forgotten" => {
                // That of another table is left alone.
                let other = hps_core::key::TableId(1);
                tier.forget_interrupted_load(other).unwrap();
                let mut load = tier.begin_load(other, Expected::rows(1)).unwrap();
                assert_eq!(load.resume("origin").unwrap(), 0);
                load.put(&[1], Rows::new(&rows_of(&[1], 1, 64), 64).unwrap()).unwrap();
                load.commit("record", &|_| {}).unwrap();
                assert!(left.exists());
                tier.forget_interrupted_load(TABLE).unwrap();
                assert!(!tier.state(TABLE).unwrap().is_being_loaded);
            }
            _ => {
                let mut load = tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
                load.resume("origin").unwrap();
                put(load.as_mut(), false);
                load.commit("record", &|_| {}).unwrap();
                drop(tier);
                // As if it had been killed between the commit and the removal.
                std::fs::create_dir_all(&left).unwrap();
                std::fs::write(left.join("000000.run"), [7; 100]).unwrap();
                assert_eq!(scan(&open(path, &two_tables)).len() as u64, NUM_KEYS);
            }
        }
        assert!(!left.exists(), "{case}");
    }
}

#[test]
fn a_load_goes_on_with_no_other_after_its_first_row() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    let mut load = tier.begin_load(TABLE, Expected::rows(1)).unwrap();
    load.put(&[1], Rows::new(&rows_of(&[1], 1, 64), 64).unwrap()).unwrap();
    assert!(load.resume("origin").is_err());
}

#[test]
fn what_belongs_to_no_interrupted_load_is_removed_and_what_does_is_told() {
    let other = [spec("hps_et.m.other", 64, KeyWidth::Bits64)];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let left = kill("put", path);
    for name in ["0", "0123456789abcdef-1"] {
        std::fs::create_dir(path.join("hps_loading").join(name)).unwrap();
    }
    // A start that is not asked to serve the table leaves it alone, and can tell what it takes.
    let tier = open(path, &other);
    assert!(tier.other_load_bytes() > 1 << 20, "{}", tier.other_load_bytes());
    drop(tier);
    assert_eq!(leftovers(path), [left]);
    assert_eq!(open(path, &one_table()).other_load_bytes(), 0);
}

#[test]
fn a_load_that_was_interrupted_binds_nobody_to_its_sizes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let left = kill("put", path);
    let wider = [spec("hps_et.m.sparse_embedding0", 128, KeyWidth::Bits64)];
    assert_eq!(open_read_only(path, &wider).unwrap().held(TABLE).unwrap(), Held::Nothing);
    assert!(left.exists());
    let tier = open(path, &wider);
    assert!(!left.exists() && !tier.state(TABLE).unwrap().is_being_loaded);
    load(&tier, &[1, 2], 1, 128, "record");
    assert_eq!(tier.state(TABLE).unwrap().column_family.unwrap(), "hps_et.m.sparse_embedding0");
}

#[test]
fn a_load_that_goes_on_takes_the_name_that_others_read_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    kill("put", path);
    let tier = open(path, &one_table());
    let mut load = tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
    load.resume("origin").unwrap();
    put(load.as_mut(), false);
    load.commit("record", &|_| {}).unwrap();
    assert_eq!(tier.state(TABLE).unwrap().column_family.unwrap(), "hps_et.m.sparse_embedding0");
}
