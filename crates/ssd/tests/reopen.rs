//! A second start rewrites nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use common::{TABLE, child, load, one_table, open, role};
use hps_core::batch::Batch;
use hps_core::key::Key;
use hps_core::row::{Rows, RowsMut};
use hps_core::testing::{lookup, row_of, rows_of};
use hps_core::tier::{Expected, Held, Tier, TruthTier};

const NUM_KEYS: u64 = 300_000;

/// What this process has written so far, through any file.
fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap()
}

/// The process that opens the database a second time.
#[test]
fn second_start() {
    let Some((_, path)) = role() else { return };
    let before = written_bytes();
    let start = std::time::Instant::now();
    let tier = open(&path, &one_table());
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("source".into()));
    let keys: Vec<Key> = (0..NUM_KEYS).step_by(1_000).collect();
    for (&key, row) in keys.iter().zip(lookup(&tier, TABLE, 64, &keys)) {
        assert_eq!(row, Some(row_of(key, 1, 64)));
    }
    assert_eq!(tier.usage(TABLE).unwrap().rows, NUM_KEYS);
    drop(tier);
    println!("took {:?}", start.elapsed());
    println!("written={}", written_bytes() - before);
}

/// The files that hold rows, with their sizes.
fn row_files(path: &Path) -> BTreeMap<String, u64> {
    let files = std::fs::read_dir(path).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
    });
    files.filter(|(name, _)| name.ends_with(".sst")).collect()
}

#[test]
fn a_loaded_table_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let before = written_bytes();
    {
        let tier = open(directory.path(), &one_table());
        load(&tier, &(0..NUM_KEYS).collect::<Vec<_>>(), 1, 64, "source");
    }
    let load_bytes = written_bytes() - before;
    assert!(load_bytes > NUM_KEYS * 72, "the measure works");
    // The first start after the load may tidy up the record's column family; rows are never touched.
    let files = row_files(directory.path());
    for _ in 0..3 {
        let (mut child, mut output) = child("second_start", "open", directory.path());
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        let written: u64 =
            text.lines().find_map(|line| line.strip_prefix("written=")?.parse().ok()).expect("it says");
        assert!(written < 256 << 10, "{written} bytes written by a start, {load_bytes} by the load");
        let now = row_files(directory.path());
        assert!(
            files.iter().filter(|(_, bytes)| **bytes > 64 << 10).all(|file| now.get(file.0) == Some(file.1))
        );
    }
}

#[test]
fn a_loaded_table_has_no_files_that_overlap_also_if_it_came_in_parts() {
    for is_looked_up in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let tier = open(directory.path(), &one_table());
        let mut load = tier.begin_load(TABLE, Expected::rows(30_000)).unwrap();
        for part in 0..3 {
            let keys: Vec<Key> = (part * 5_000..part * 5_000 + 10_000).collect();
            load.put(&keys, Rows::new(&rows_of(&keys, part, 64), 64).unwrap()).unwrap();
            if is_looked_up {
                let (mut row, mut misses) = (vec![0; 64], Vec::new());
                let mut rows = RowsMut::from_bytes(&mut row, 64).unwrap();
                load.lookup(Batch::all(&keys[..1]), &mut rows, &mut misses).unwrap();
                assert!(misses.is_empty());
            }
        }
        assert_eq!(load.commit("source", &|_| {}).unwrap(), 20_000);
        assert_eq!(lookup(&tier, TABLE, 64, &[7_000]), [Some(row_of(7_000, 1, 64))]);
        drop(tier);
        let options = rocksdb::Options::default();
        let names = rocksdb::DB::list_cf(&options, directory.path()).unwrap();
        let db = rocksdb::DB::open_cf_for_read_only(&options, directory.path(), &names, false).unwrap();
        let name = names.iter().find(|name| name.contains("sparse_embedding0")).unwrap();
        let table = db.cf_handle(name).unwrap();
        let files_above = |level: usize| {
            let property = format!("rocksdb.num-files-at-level{level}");
            db.property_int_value_cf(table, property.as_str()).unwrap().unwrap()
        };
        assert_eq!((0..6).map(files_above).sum::<u64>(), 0);
        assert!(files_above(6) > 0);
    }
}

#[test]
fn tables_are_kept_with_the_options_that_were_chosen() {
    let directory = tempfile::tempdir().unwrap();
    let tier = open(directory.path(), &one_table());
    load(&tier, &[1, 2, 3], 1, 64, "record");
    drop(tier);
    // RocksDB notes them beside the tables, those of the last column family last.
    let paths = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let notes = paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("OPTIONS-"));
    let text = std::fs::read_to_string(notes.max().unwrap()).unwrap();
    let ours = text.rsplit_once("[TableOptions/BlockBasedTable \"hps_et.m.sparse_embedding0\"]").unwrap().1;
    for option in [
        "block_size=2048",
        "max_auto_readahead_size=0",
        "cache_index_and_filter_blocks=true",
        "partition_filters=true",
    ] {
        assert!(ours.contains(&format!("  {option}\n")), "{option} in {ours}");
    }
}
