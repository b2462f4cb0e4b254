//! Several users of one database: tiers of one process, and other processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use common::{TABLE, child, load, one_table, open, open_read_only, role, scan, settings, spec};
use hps_core::key::{Key, KeyWidth};
use hps_core::row::Rows;
use hps_core::testing::{lookup, row_of};
use hps_core::tier::{Expected, Held, Tier, TruthTier};
use hps_core::{ErrorKind, Result};
use hps_ssd::{SsdSettings, SsdTier};

fn insert(tier: &SsdTier, key: Key, version: u64) -> Result<()> {
    tier.insert(TABLE, &[key], Rows::new(&row_of(key, version, 64), 64).unwrap())
}

/// Another process that has the database open for writing, and does what it is told by lines.
#[test]
fn writer() {
    let Some((_, path)) = role() else { return };
    let tier = open(&path, &one_table());
    println!("ready");
    for line in std::io::stdin().lines() {
        let version: u64 = line.unwrap().parse().unwrap();
        load(&tier, &(version..version + 5_000).collect::<Vec<_>>(), version, 64, &version.to_string());
        insert(&tier, 1 << 40, version).unwrap();
        println!("done");
    }
}

struct Writer {
    process: std::process::Child,
    answers: Box<dyn Iterator<Item = String> + Send>,
}

impl Writer {
    fn start(path: &Path) -> Self {
        let (process, output) = child("writer", "write", path);
        let mut answers = Box::new(BufReader::new(output).lines().map_while(std::result::Result::ok));
        answers.find(|line| line.ends_with("ready")).expect("the writer starts");
        Self { process, answers }
    }

    fn load(&mut self, version: u64) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{version}").unwrap();
        assert_eq!(self.answers.next().as_deref(), Some("done"));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

fn refusal<T>(result: Result<T>) -> hps_core::Error {
    result.err().expect("refused")
}

#[test]
fn a_second_process_is_told_who_has_the_database_and_what_it_can_do() {
    let directory = tempfile::tempdir().unwrap();
    let writer = Writer::start(directory.path());
    let error = refusal(SsdTier::open(settings(directory.path()), &one_table()));
    assert_eq!(error.kind(), ErrorKind::Storage);
    let text = error.to_string();
    let holder = format!("process {} (", writer.process.id());
    let path = directory.path().to_str().unwrap();
    for part in [holder.as_str(), "\"read_only\": true", path] {
        assert!(text.contains(part), "{part}: {text}");
    }
    drop(writer);
    open(directory.path(), &one_table());
}

#[test]
fn a_reader_works_while_another_process_writes_and_sees_what_was_there_when_it_opened() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(directory.path());
    writer.load(1);
    let reader = open_read_only(directory.path(), &one_table()).unwrap();
    assert!(reader.is_read_only());
    let check = |reader: &SsdTier, version: u64| {
        assert_eq!(reader.held(TABLE).unwrap(), Held::Table(version.to_string()));
        let found = lookup(reader, TABLE, 64, &[version, version + 4_999, version + 5_000, 1 << 40]);
        let rows = [version, version + 4_999].map(|key| Some(row_of(key, version, 64)));
        let [first, last] = rows;
        assert_eq!(found, [first, last, None, Some(row_of(1 << 40, version, 64))]);
        assert_eq!(scan(reader).len(), 5_001);
        assert!(reader.usage(TABLE).unwrap().bytes > 0);
    };
    check(&reader, 1);
    // The writer replaces the table, twice, and drops the files that this reader has.
    writer.load(2);
    writer.load(3);
    check(&reader, 1);
    check(&open_read_only(directory.path(), &one_table()).unwrap(), 3);
    drop(writer);
    check(&reader, 1);
    check(&open_read_only(directory.path(), &one_table()).unwrap(), 3);
    drop(reader);
}

#[test]
fn readers_open_again_and_again_while_a_writer_replaces_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::start(directory.path());
    writer.load(1);
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| (2..12).for_each(|version| writer.load(version)));
        let mut newest = 1;
        while !replacing.is_finished() {
            let reader = open_read_only(directory.path(), &one_table()).unwrap();
            let Held::Table(version) = reader.held(TABLE).unwrap() else { panic!("the table is gone") };
            let version: u64 = version.parse().unwrap();
            assert!(version >= newest);
            newest = version;
            assert_eq!(
                lookup(&reader, TABLE, 64, &[version + 4_000]),
                [Some(row_of(version + 4_000, version, 64))]
            );
        }
    });
}

#[test]
fn a_reader_refuses_every_write_and_says_why() {
    let directory = tempfile::tempdir().unwrap();
    load(&open(directory.path(), &one_table()), &[1, 2], 1, 64, "r");
    // Alone, and in the process that writes.
    for shares in [false, true] {
        let writer = shares.then(|| open(directory.path(), &one_table()));
        let reader = open_read_only(directory.path(), &one_table()).unwrap();
        let refusals = [
            refusal(insert(&reader, 1, 2)),
            refusal(reader.erase(TABLE, &[1])),
            refusal(reader.set_record(TABLE, "x")),
            refusal(reader.begin_load(TABLE, Expected::rows(1))),
        ];
        for error in refusals {
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let text = error.to_string();
            assert!(
                text.contains("read_only") && text.contains(directory.path().to_str().unwrap()),
                "{text}"
            );
        }
        assert_eq!(lookup(&reader, TABLE, 64, &[1]), [Some(row_of(1, 1, 64))]);
        drop(writer);
    }
}

#[test]
fn a_reader_leaves_the_directory_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    load(&open(directory.path(), &one_table()), &[1, 2], 1, 64, "r");
    let files = || {
        let entries = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|entry| {
                (
                    entry.file_name(),
                    entry.metadata().unwrap().len(),
                    entry.metadata().unwrap().modified().unwrap(),
                )
            })
            .collect();
        files.sort();
        files
    };
    let before = files();
    let reader = open_read_only(directory.path(), &one_table()).unwrap();
    assert_eq!(lookup(&reader, TABLE, 64, &[1, 3]), [Some(row_of(1, 1, 64)), None]);
    drop(reader);
    assert_eq!(files(), before);
}

#[test]
fn there_must_be_something_to_read() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    for path in [missing.as_path(), directory.path()] {
        let error = refusal(open_read_only(path, &one_table()));
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert!(!missing.exists(), "a reader makes no directory");
    // A database without the table: nothing is held, and all keys are missed.
    drop(open(directory.path(), &[]));
    let reader = open_read_only(directory.path(), &one_table()).unwrap();
    assert_eq!(reader.held(TABLE).unwrap(), Held::Nothing);
    assert_eq!(lookup(&reader, TABLE, 64, &[1]), [None]);
}

#[test]
fn tiers_of_one_process_share_the_database_and_its_tables() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().with_extension("link");
    std::os::unix::fs::symlink(directory.path(), &link).unwrap();
    let first = open(directory.path(), &one_table());
    let second = open(&link, &one_table());
    std::fs::remove_file(&link).unwrap();
    load(&first, &[1, 2], 1, 64, "by the first");
    assert_eq!(second.held(TABLE).unwrap(), Held::Table("by the first".into()));
    insert(&second, 3, 2).unwrap();
    load(&second, &[2, 3], 3, 64, "by the second");
    assert_eq!(lookup(&first, TABLE, 64, &[1, 2]), [None, Some(row_of(2, 3, 64))]);
    // A load of one is a load of the other's table.
    let running = first.begin_load(TABLE, Expected::rows(1)).unwrap();
    assert!(second.begin_load(TABLE, Expected::rows(1)).is_err());
    drop(running);
    drop(first);
    assert_eq!(lookup(&second, TABLE, 64, &[3]), [Some(row_of(3, 3, 64))]);

    let other_size = [spec("hps_et.m.sparse_embedding0", 128, KeyWidth::Bits64)];
    let error = refusal(SsdTier::open(settings(directory.path()), &other_size));
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[test]
fn a_database_can_be_closed_and_opened_by_many_threads_at_once() {
    let directory = tempfile::tempdir().unwrap();
    load(&open(directory.path(), &one_table()), &[1], 1, 64, "r");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..15 {
                    let tier = open(directory.path(), &one_table());
                    assert_eq!(lookup(&tier, TABLE, 64, &[1]), [Some(row_of(1, 1, 64))]);
                }
            });
        }
    });
}

#[test]
fn names_that_cannot_be_stored_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let table = |name: &str| spec(name, 4, KeyWidth::Bits64);
    for tables in [
        vec![table("default")],
        vec![table("")],
        vec![table("hps_et.a\0b")],
        vec![table("__hps_tables")],
        vec![table("a"), table("a")],
        vec![spec("a", 0, KeyWidth::Bits64)],
    ] {
        let settings = SsdSettings::new(directory.path());
        assert_eq!(refusal(SsdTier::open(settings, &tables)).kind(), ErrorKind::InvalidArgument);
    }
}
