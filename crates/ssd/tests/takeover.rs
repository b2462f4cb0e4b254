//! Databases that the predecessor wrote, and tables whose sizes are not those of the configuration.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::path::Path;

use common::{TABLE, load, open, open_read_only, scan, settings, spec};
use hps_core::key::{Key, KeyWidth};
use hps_core::row::Rows;
use hps_core::testing::{lookup, row_of};
use hps_core::tier::{Expected, Held, Tier, TruthTier};
use hps_core::{ErrorKind, TableId};
use hps_ssd::SsdTier;
use rocksdb::{DB, Options, WriteBatch};

const NAME: &str = "hps_et.m.sparse_embedding0";

/// A database as the predecessor writes it: its options, a column family per table, raw little-endian keys.
fn write_as_the_predecessor(path: &Path, tables: &[(&str, KeyWidth, usize, &[Key])]) {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_manual_wal_flush(true);
    options.optimize_for_point_lookup(8);
    options.optimize_level_style_compaction(512 << 20);
    options.increase_parallelism(16);
    let mut table_options = Options::default();
    table_options.optimize_for_point_lookup(8);
    table_options.optimize_level_style_compaction(512 << 20);
    let mut db = DB::open(&options, path).unwrap();
    for (name, width, row_bytes, keys) in tables {
        db.create_cf(name, &table_options).unwrap();
        let column_family = db.cf_handle(name).unwrap();
        for keys in keys.chunks(1_000) {
            let mut batch = WriteBatch::default();
            for &key in keys {
                let stored = key.to_le_bytes();
                let stored = if *width == KeyWidth::Bits32 { &stored[..4] } else { &stored[..] };
                batch.put_cf(column_family, stored, row_of(key, 1, *row_bytes));
            }
            db.write(batch).unwrap();
        }
    }
    db.flush_wal(true).unwrap();
}

fn column_families(path: &Path) -> Vec<String> {
    DB::list_cf(&Options::default(), path).unwrap()
}

#[test]
fn its_tables_are_served_as_they_are_with_keys_of_either_width() {
    for width in [KeyWidth::Bits64, KeyWidth::Bits32] {
        let directory = tempfile::tempdir().unwrap();
        let minus_one = if width == KeyWidth::Bits64 { u64::MAX } else { 0xFFFF_FFFF };
        let mut keys: Vec<Key> = (0..5_000).map(|i| i * 3).collect();
        keys.push(minus_one);
        write_as_the_predecessor(directory.path(), &[(NAME, width, 64, &keys)]);

        let tables = [spec(NAME, 64, width)];
        for attempt in 0..2 {
            let tier = open(directory.path(), &tables);
            assert_eq!(tier.held(TABLE).unwrap(), Held::Unrecorded, "attempt {attempt}");
            let asked: Vec<Key> = (0..1_000).chain([minus_one]).collect();
            let found = lookup(&tier, TABLE, 64, &asked);
            for (&key, row) in asked.iter().zip(found) {
                let want = (key % 3 == 0 || key == minus_one).then(|| row_of(key, 1, 64));
                assert_eq!(row, want, "key {key}");
            }
            assert_eq!(scan(&tier).len(), keys.len());
            assert_eq!(tier.usage(TABLE).unwrap().rows, keys.len() as u64);
        }
        let reader = open_read_only(directory.path(), &tables).unwrap();
        assert_eq!(reader.held(TABLE).unwrap(), Held::Unrecorded);
        assert_eq!(lookup(&reader, TABLE, 64, &[minus_one]), [Some(row_of(minus_one, 1, 64))]);
    }
}

#[test]
fn its_tables_can_be_updated_recorded_and_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (0..500).collect();
    write_as_the_predecessor(directory.path(), &[(NAME, KeyWidth::Bits64, 64, &keys)]);
    let tables = [spec(NAME, 64, KeyWidth::Bits64)];
    {
        let tier = open(directory.path(), &tables);
        tier.insert(TABLE, &[3], Rows::new(&row_of(3, 2, 64), 64).unwrap()).unwrap();
        assert_eq!(tier.held(TABLE).unwrap(), Held::Unrecorded);
        // A load that is given up leaves what the predecessor wrote.
        let mut given_up = tier.begin_load(TABLE, Expected::rows(1)).unwrap();
        given_up.put(&[1], Rows::new(&row_of(1, 9, 64), 64).unwrap()).unwrap();
        drop(given_up);
        assert_eq!(tier.held(TABLE).unwrap(), Held::Unrecorded);
        tier.set_record(TABLE, "declared whole").unwrap();
    }
    let tier = open(directory.path(), &tables);
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("declared whole".into()));
    assert_eq!(lookup(&tier, TABLE, 64, &[3, 4]), [Some(row_of(3, 2, 64)), Some(row_of(4, 1, 64))]);
    load(&tier, &[7], 5, 64, "new");
    assert_eq!(lookup(&tier, TABLE, 64, &[3, 7]), [None, Some(row_of(7, 5, 64))]);
    // Replaced again, the table has its plain name again.
    load(&tier, &[8], 6, 64, "newer");
    drop(tier);
    assert_eq!(column_families(directory.path()), ["default", "__hps_tables", NAME]);
    assert_eq!(lookup(&open(directory.path(), &tables), TABLE, 64, &[7, 8]), [None, Some(row_of(8, 6, 64))]);
}

#[test]
fn its_other_tables_are_left_alone_and_can_be_served_later() {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (0..300).collect();
    let other = "hps_et.other.table";
    write_as_the_predecessor(
        directory.path(),
        &[(NAME, KeyWidth::Bits64, 64, &keys), (other, KeyWidth::Bits32, 20, &keys)],
    );
    let tier = open(directory.path(), &[spec(NAME, 64, KeyWidth::Bits64)]);
    load(&tier, &[1], 5, 64, "new");
    // A second store of this process that serves the other table, on the same handle.
    let second = open(directory.path(), &[spec(other, 20, KeyWidth::Bits32)]);
    assert_eq!(lookup(&second, TABLE, 20, &[299]), [Some(row_of(299, 1, 20))]);
    load(&second, &[2], 6, 20, "second");
    drop((tier, second));
    let both = [spec(other, 20, KeyWidth::Bits32), spec(NAME, 64, KeyWidth::Bits64)];
    let tier = open(directory.path(), &both);
    assert_eq!(lookup(&tier, TABLE, 20, &[2, 299]), [Some(row_of(2, 6, 20)), None]);
    assert_eq!(lookup(&tier, TableId(1), 64, &[1]), [Some(row_of(1, 5, 64))]);
}

#[test]
fn a_table_without_rows_is_nothing() {
    let directory = tempfile::tempdir().unwrap();
    write_as_the_predecessor(directory.path(), &[(NAME, KeyWidth::Bits64, 64, &[])]);
    let tier = open(directory.path(), &[spec(NAME, 64, KeyWidth::Bits64)]);
    assert_eq!(tier.held(TABLE).unwrap(), Held::Nothing);
    let error = tier.set_record(TABLE, "r").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

fn refusal(path: &Path, row_bytes: usize, width: KeyWidth) -> String {
    match SsdTier::open(settings(path), &[spec(NAME, row_bytes, width)]) {
        Ok(_) => panic!("a table of other sizes was opened"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            error.to_string()
        }
    }
}

#[test]
fn wrong_sizes_are_refused_with_what_was_found_and_what_to_look_at() {
    let unrecorded = tempfile::tempdir().unwrap();
    write_as_the_predecessor(unrecorded.path(), &[(NAME, KeyWidth::Bits64, 64, &[1, 2])]);
    let recorded = tempfile::tempdir().unwrap();
    load(&open(recorded.path(), &[spec(NAME, 64, KeyWidth::Bits64)]), &[1, 2], 1, 64, "r");
    for path in [unrecorded.path(), recorded.path()] {
        let text = refusal(path, 64, KeyWidth::Bits32);
        for part in [NAME, "found key bytes: 8", "expected key bytes: 4", "supportlonglong"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let text = refusal(path, 128, KeyWidth::Bits64);
        for part in ["found row bytes: 64", "expected row bytes: 128", "embedding_vecsize_per_table"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        // Refused, it can be opened as it should.
        open(path, &[spec(NAME, 64, KeyWidth::Bits64)]);
    }
}

#[test]
fn a_short_row_is_an_error_and_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (0..1_000).map(|key| key << 56).collect();
    write_as_the_predecessor(directory.path(), &[(NAME, KeyWidth::Bits64, 64, &keys)]);
    {
        // Beyond the entries that are looked at when a table is opened.
        let mut db = DB::open_cf(&Options::default(), directory.path(), [NAME]).unwrap();
        let column_family = db.cf_handle(NAME).unwrap();
        db.put_cf(column_family, [0xFF; 8], [1; 60]).unwrap();
        db.flush_cf(column_family).unwrap();
        db.create_cf("unrelated", &Options::default()).unwrap();
    }
    let tier = open(directory.path(), &[spec(NAME, 64, KeyWidth::Bits64)]);
    let key = u64::MAX;
    let mut bytes = [0xA5; 128];
    let error = tier
        .lookup(
            TABLE,
            hps_core::Batch::all(&[0, key]),
            &mut hps_core::RowsMut::from_bytes(&mut bytes, 64).unwrap(),
            &mut Vec::new(),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for part in [NAME, "key: -1", "found bytes: 60", "expected bytes: 64"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    let error = tier.scan(TABLE, &mut |_, _| Ok(std::ops::ControlFlow::Continue(()))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // The others are served.
    assert_eq!(lookup(&tier, TABLE, 64, &[0]), [Some(row_of(0, 1, 64))]);
}
