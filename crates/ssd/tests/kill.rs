//! `kill -9` at random moments of loads, replacements, commits and inserts.
//!
//! `HPS_SOAK_KILLS` says how often; 10 unless it is set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{TABLE, child, load, one_table, open, role, scan};
use hps_core::key::{Key, mix};
use hps_core::row::Rows;
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{Expected, Held, Tier, TruthTier};

const ROW_BYTES: usize = 64;
const NUM_KEYS: u64 = 20_000;
/// Keys that are inserted into a loaded table begin here.
const INSERTED: Key = 1 << 40;
const INSERTS: u64 = 5;

/// Each version has other keys than the one before, so that a mixture shows.
fn keys_of(version: u64) -> Vec<Key> {
    (version * 1_000..version * 1_000 + NUM_KEYS).map(mix).collect()
}

fn version_held(held: &Held) -> u64 {
    match held {
        Held::Nothing => 0,
        Held::Table(record) => record.parse().unwrap(),
        Held::Unrecorded => panic!("a table of ours without a record"),
    }
}

/// The process that is killed: replaces the table again and again, and says what was acknowledged.
#[test]
fn victim() {
    let Some((_, path)) = role() else { return };
    let say = |text: String| {
        let mut output = std::io::stdout().lock();
        writeln!(output, "{text}").unwrap();
        output.flush().unwrap();
    };
    let tier = open(&path, &one_table());
    let mut version = version_held(&tier.held(TABLE).unwrap());
    say("started".into());
    loop {
        version += 1;
        // Every other one can be gone on with.
        let keys = keys_of(version);
        let mut load = tier.begin_load(TABLE, Expected::rows(NUM_KEYS)).unwrap();
        if version.is_multiple_of(2) {
            say(format!("resumed {}", load.resume(&version.to_string()).unwrap()));
        }
        for keys in keys.chunks(2_000) {
            load.put(keys, Rows::new(&rows_of(keys, version, ROW_BYTES), ROW_BYTES).unwrap()).unwrap();
        }
        load.commit(&version.to_string(), &|_| {}).unwrap();
        say(format!("loaded {version}"));
        for i in 0..INSERTS {
            let key = INSERTED + i;
            tier.insert(TABLE, &[key], Rows::new(&row_of(key, version, ROW_BYTES), ROW_BYTES).unwrap())
                .unwrap();
            say(format!("inserted {version} {i}"));
        }
    }
}

/// Opens what the victim left; returns the version held. `inserted`: the inserts acknowledged for `acknowledged`.
fn check(path: &Path, acknowledged: u64, inserted: u64) -> u64 {
    let tier = open(path, &one_table());
    let version = version_held(&tier.held(TABLE).unwrap());
    assert!(
        version == acknowledged || version == acknowledged + 1,
        "version {version} is held, {acknowledged} was acknowledged"
    );
    let mut found: BTreeMap<Key, Vec<u8>> = scan(&tier).into_iter().collect();
    let mut num_inserted = 0;
    for i in 0..INSERTS {
        if let Some(row) = found.remove(&(INSERTED + i)) {
            assert_eq!(row, row_of(INSERTED + i, version, ROW_BYTES));
            assert_eq!(num_inserted, i, "inserts are kept in order");
            num_inserted += 1;
        }
    }
    if version == acknowledged {
        assert!(num_inserted >= inserted, "{inserted} inserts were acknowledged, {num_inserted} are there");
    }
    let expected: BTreeMap<Key, Vec<u8>> = match version {
        0 => BTreeMap::new(),
        _ => keys_of(version).into_iter().map(|key| (key, row_of(key, version, ROW_BYTES))).collect(),
    };
    assert!(found == expected, "version {version} is not whole: {} of {} rows", found.len(), expected.len());
    let is_interrupted = tier.state(TABLE).unwrap().is_being_loaded;
    drop(tier);

    // Nothing is left over but what is served, and sorted rows of a load that can go on.
    let left = std::fs::read_dir(path.join("hps_loading")).into_iter().flatten().count();
    assert!(
        left == usize::from(is_interrupted),
        "{left} directories of loads, interrupted: {is_interrupted}"
    );
    let mut names = rocksdb::DB::list_cf(&rocksdb::Options::default(), path).unwrap();
    names.retain(|name| name != "default" && name != "__hps_tables");
    assert!(names.len() <= 1, "{names:?}");
    version
}

#[test]
fn a_killed_process_leaves_the_old_table_or_the_new_one_whole() {
    let kills: u64 = std::env::var("HPS_SOAK_KILLS").map_or(10, |text| text.parse().unwrap());
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let directory = tempfile::tempdir().unwrap();
    let (mut version, mut inserted, mut resumed) = (0, 0, 0);
    for number in 0..kills {
        let (mut victim, output) = child("victim", "load", directory.path());
        let mut output = BufReader::new(output).lines().map_while(Result::ok);
        output.find(|line| line.ends_with("started")).expect("the victim starts");
        // About three rounds of load and inserts; early moments are as likely as late ones.
        std::thread::sleep(Duration::from_micros(mix(seed ^ number) % 400_000));
        victim.kill().unwrap();
        victim.wait().unwrap();
        for line in output {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["loaded", loaded] => (version, inserted) = (loaded.parse().unwrap(), 0),
                ["resumed", rows] => resumed += u64::from(rows != "0"),
                ["inserted", _, i] => inserted = i.parse::<u64>().unwrap() + 1,
                _ => panic!("the victim failed: {line}"),
            }
        }
        let held = check(directory.path(), version, inserted);
        if held != version {
            (version, inserted) = (held, 0);
        }
    }
    println!("{kills} kills, {version} versions, {resumed} loads went on, seed {seed}");
    assert!(resumed > 0 || kills < 50, "no load went on");
    // It can go on from there.
    let tier = open(directory.path(), &one_table());
    load(&tier, &keys_of(version + 1), version + 1, ROW_BYTES, &(version + 1).to_string());
    drop(tier);
    check(directory.path(), version + 1, 0);
}
