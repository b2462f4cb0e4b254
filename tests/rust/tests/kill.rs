//! `kill -9` while a store opens: model files are loaded for the first time, or replace a table. The next start completes
//! what was interrupted, and every row is right. And while it is written to, rows are promoted and evicted, and RocksDB
//! compacts: the next start has everything that was acknowledged.
//!
//! `HPS_SOAK_KILLS` (20) says how many processes each of them kills, `HPS_SOAK_ROWS` (60,000) how many rows are loaded.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{TableSpec, Tier};
use hps_core::{Key, KeyWidth, Result, Rows, TableId};
use hps_ssd::{SsdSettings, SsdTier};
use hps_tests::{Deployment, Random, lookup};

/// Set in the child that is to be killed: the configuration to open.
const VICTIM: &str = "HPS_TEST_OPEN_AND_BE_KILLED";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The child: opens the store, says so and waits for its end.
#[test]
fn victim() {
    let Some(file) = std::env::var_os(VICTIM) else { return };
    let _open = hps_bridge::assemble::open(Path::new(&file)).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Opens the store in a process that is killed after `time`.
fn open_and_kill(file: &Path, time: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, file)
        .env("HPS_LOG", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn whatever_a_kill_interrupts_the_next_start_completes() {
    if std::env::var_os(VICTIM).is_some() {
        return;
    }
    let kills = setting("HPS_SOAK_KILLS", 20);
    let rows = setting("HPS_SOAK_ROWS", 60_000);
    let keys: Vec<Key> = (0..rows).map(hps_core::key::mix).collect();
    let mut random = Random(2_026);
    let mut deployment = Deployment::new(&[(32, keys.clone())]).with_ssd(0.1, false);
    let mut load_time = Duration::ZERO;
    for round in 0..kills {
        match round % 8 {
            // A first load again.
            0 => {
                let _ = std::fs::remove_dir_all(deployment.home().join("rocksdb"));
            }
            // A replacement, with some keys gone.
            _ => deployment.write_table(0, &keys[(round as usize % 5) * 1_000..], round + 1),
        }
        let file = deployment.write();
        let longest = load_time.max(Duration::from_millis(300)).as_micros() as u64;
        open_and_kill(&file, Duration::from_micros(random.below(longest + longest / 4)));
        if round % 3 == 0 {
            // Killed twice before it is completed.
            open_and_kill(&file, Duration::from_micros(random.below(longest)));
        }
        let started = Instant::now();
        let open = deployment.open().unwrap();
        load_time = load_time.max(started.elapsed());
        deployment.check(&open, 0, &keys);
    }
    println!("{kills} rounds of {rows} rows, the longest load {load_time:?}: every row right after each");
}

/// Set in a child that writes until it is killed: the number of the first write.
const WRITER: &str = "HPS_TEST_WRITE_AND_BE_KILLED";
/// Set in one that writes to the database alone.
const COMPACTS: &str = "HPS_TEST_COMPACT_AND_BE_KILLED";
const WRITTEN_KEYS: u64 = 4_000;
const ROW_BYTES: usize = 128;

/// A write that is known by its number: which keys it is about, and whether it removes them.
fn write(number: u64) -> (Vec<Key>, bool) {
    let is_erase = number % 5 == 4;
    let among = if is_erase { WRITTEN_KEYS / 2 } else { WRITTEN_KEYS };
    ((0..among).filter(|key| key % 8 == number % 8).collect(), is_erase)
}

/// Who writes.
#[derive(Clone, Copy)]
enum Writer {
    /// A whole store, while other threads look rows up, which promotes and evicts.
    Store,
    /// Its database alone, while another thread compacts.
    Database,
}

/// The child: writes, and says after each write that it has returned.
#[test]
fn writer() {
    let (Some(file), Ok(first)) = (std::env::var_os(VICTIM), std::env::var(WRITER)) else { return };
    let first: u64 = first.parse().unwrap();
    if std::env::var_os(COMPACTS).is_some() {
        let database = Path::new(&file).parent().unwrap().join("rocksdb");
        let name = "hps_et.m.sparse_embedding0".into();
        let spec = TableSpec { name, row_bytes: ROW_BYTES, key_width: KeyWidth::Bits64 };
        let ssd = SsdTier::open(SsdSettings::new(database), &[spec]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                loop {
                    ssd.compact(TableId(0)).unwrap();
                }
            });
            write_for_ever(
                first,
                |keys, rows| ssd.insert(TableId(0), keys, rows),
                |keys| ssd.erase(TableId(0), keys),
            );
        });
    }
    let open = hps_bridge::assemble::open(Path::new(&file)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(7);
            loop {
                let keys: Vec<Key> = (0..200).map(|_| random.below(WRITTEN_KEYS)).collect();
                lookup(&open, 0, &keys).unwrap();
            }
        });
        write_for_ever(
            first,
            |keys, rows| open.store.insert(TableId(0), keys, rows),
            |keys| open.store.erase(TableId(0), keys),
        );
    });
}

fn write_for_ever(
    first: u64,
    insert: impl Fn(&[Key], Rows<'_>) -> Result<()>,
    erase: impl Fn(&[Key]) -> Result<()>,
) {
    println!("\nopen");
    for number in first.. {
        let (keys, is_erase) = write(number);
        let written = if is_erase {
            erase(&keys)
        } else {
            let rows = rows_of(&keys, number + 2, ROW_BYTES);
            insert(&keys, Rows::new(&rows, ROW_BYTES).unwrap())
        };
        if let Err(error) = written {
            println!("failed {error}");
            std::process::exit(1);
        }
        println!("done {number}");
        std::io::stdout().flush().unwrap();
    }
}

/// Writes in a process that is killed after `time`; returns the number of the first write that was not acknowledged.
fn write_and_kill(writer: Writer, file: &Path, first: u64, time: Duration) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    if let Writer::Database = writer {
        command.env(COMPACTS, "1");
    }
    let mut child = command
        .args(["--exact", "writer", "--nocapture"])
        .env(VICTIM, file)
        .env(WRITER, first.to_string())
        .env("HPS_LOG", "off")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    assert!(lines.by_ref().any(|line| line == "open"), "the writer cannot open the store");
    let reader = std::thread::spawn(move || {
        let done = lines.filter_map(|line| {
            assert!(!line.starts_with("failed"), "{line}");
            line.strip_prefix("done ").and_then(|number| number.parse::<u64>().ok())
        });
        done.last().map_or(first, |last| last + 1)
    });
    std::thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

#[test]
fn what_was_acknowledged_survives_a_kill_during_updates_and_evictions() {
    if std::env::var_os(VICTIM).is_none() {
        kill_writers(Writer::Store);
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_during_compactions() {
    if std::env::var_os(VICTIM).is_none() {
        kill_writers(Writer::Database);
    }
}

fn kill_writers(writer: Writer) {
    let kills = setting("HPS_SOAK_KILLS", 20);
    let keys: Vec<Key> = (0..WRITTEN_KEYS).collect();
    let mut deployment = Deployment::new(&[(ROW_BYTES / 4, keys.clone())]).with_ssd(0.1, true);
    deployment.config["volatile_db"]["overflow_margin"] = 300.into();
    deployment.config["volatile_db"]["overflow_policy"] = "evict_oldest".into();
    let file = deployment.write();
    drop(deployment.open().unwrap());
    let mut random = Random(2_027);
    let mut next = 0;
    // Versions; None for an erased key.
    let mut known: HashMap<Key, Option<u64>> = keys.iter().map(|&key| (key, Some(1))).collect();
    for _ in 0..kills {
        let first = next;
        next = write_and_kill(writer, &file, first, Duration::from_micros(random.below(150_000)));
        for number in first..next {
            let (keys, is_erase) = write(number);
            for key in keys {
                known.insert(key, (!is_erase).then_some(number + 2));
            }
        }
        // The write that was under way may have come to pass, or not, or in part.
        let (open_keys, is_erase) = write(next);
        let under_way = (!is_erase).then_some(next + 2);
        let open = deployment.open().unwrap();
        let (rows, counts) = lookup(&open, 0, &keys).unwrap();
        assert_eq!(counts.keys(), WRITTEN_KEYS);
        let default_row = deployment.tables[0].default_value.to_le_bytes().repeat(ROW_BYTES / 4);
        for (&key, row) in keys.iter().zip(rows.chunks_exact(ROW_BYTES)) {
            let of = |version: Option<u64>| {
                version.map_or_else(|| default_row.clone(), |version| row_of(key, version, ROW_BYTES))
            };
            if row == of(known[&key]) {
                continue;
            }
            assert!(
                open_keys.contains(&key) && row == of(under_way),
                "key {key} is not as write {} of {next} left it",
                known[&key].map_or_else(|| "(erased)".into(), |version| version.to_string())
            );
            known.insert(key, under_way);
        }
        next += 1;
    }
    println!("{kills} kills, {next} writes: all that was acknowledged was there after each");
    assert!(next > kills, "the writers hardly came to write");
}
