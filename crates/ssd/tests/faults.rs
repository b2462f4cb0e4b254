//! Disks and directories that fail: errors that name the place, and a process that lives on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests, which may fail like tests"
)]

mod common;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{TABLE, child_command, load, one_table, open, open_read_only, role, scan, settings};
use hps_core::key::Key;
use hps_core::row::Rows;
use hps_core::testing::{lookup, row_of, rows_of};
use hps_core::tier::{Expected, Held, Tier, TruthTier};
use hps_core::{Batch, ErrorKind, RowsMut};
use hps_ssd::SsdTier;

fn refusal(path: &Path) -> (ErrorKind, String) {
    let error = SsdTier::open(settings(path), &one_table()).err().expect("refused");
    (error.kind(), error.to_string())
}

#[test]
fn a_path_that_is_a_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "text").unwrap();
    for path in [file.clone(), file.join("below")] {
        let (_, text) = refusal(&path);
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
    assert_eq!(refusal(&file).0, ErrorKind::Config);
    assert_eq!(open_read_only(&file, &one_table()).err().map(|error| error.kind()), Some(ErrorKind::Config));
    assert_eq!(std::fs::read(&file).unwrap(), b"text");
}

#[test]
fn missing_parents_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/c");
    load(&open(&path, &one_table()), &[1], 1, 64, "r");
    assert_eq!(open(&path, &one_table()).held(TABLE).unwrap(), Held::Table("r".into()));
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    // Nobody can make a directory there, root included.
    let path = Path::new("/proc/self/hps");
    let (kind, text) = refusal(path);
    assert_eq!(kind, ErrorKind::Storage);
    assert!(text.contains("/proc/self/hps"), "{text}");

    let directory = tempfile::tempdir().unwrap();
    let read_only = directory.path().join("read_only");
    std::fs::create_dir(&read_only).unwrap();
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o555)).unwrap();
    if std::fs::write(read_only.join("probe"), "").is_err() {
        let (kind, text) = refusal(&read_only);
        assert_eq!(kind, ErrorKind::Storage);
        assert!(text.contains(read_only.to_str().unwrap()), "{text}");
    }
    std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_database_that_orders_keys_otherwise_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_comparator("theirs", Box::new(|a, b| b.cmp(a)));
    drop(rocksdb::DB::open(&options, directory.path()).unwrap());
    let (kind, text) = refusal(directory.path());
    assert_eq!(kind, ErrorKind::Storage);
    assert!(text.contains("orders keys") && text.contains(directory.path().to_str().unwrap()), "{text}");
}

#[test]
fn a_database_that_lost_its_list_of_files_is_not_taken_for_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    load(&open(directory.path(), &one_table()), &[1, 2, 3], 1, 64, "r");
    let current = directory.path().join("CURRENT");
    let content = std::fs::read(&current).unwrap();
    std::fs::write(&current, "nonsense\n").unwrap();
    let (_, text) = refusal(directory.path());
    assert!(text.contains(directory.path().to_str().unwrap()), "{text}");
    std::fs::remove_file(&current).unwrap();
    let (kind, text) = refusal(directory.path());
    assert_eq!(kind, ErrorKind::Corrupt);
    assert!(text.contains("CURRENT"), "{text}");
    // Nothing was deleted meanwhile.
    std::fs::write(&current, content).unwrap();
    assert_eq!(scan(&open(directory.path(), &one_table())).len(), 3);
}

#[test]
fn damaged_rows_are_reported_and_never_served() {
    let directory = tempfile::tempdir().unwrap();
    let keys: Vec<Key> = (0..20_000).collect();
    load(&open(directory.path(), &one_table()), &keys, 1, 64, "r");
    let files = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let file = files.filter(|file| file.extension().is_some_and(|extension| extension == "sst"));
    let file = file.max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let tier = open(directory.path(), &one_table());
    let mut errors = 0;
    for keys in keys.chunks(10) {
        let mut bytes = vec![0; keys.len() * 64];
        let mut misses = Vec::new();
        let mut rows = RowsMut::from_bytes(&mut bytes, 64).unwrap();
        match tier.lookup(TABLE, Batch::all(keys), &mut rows, &mut misses) {
            Ok(()) => {
                assert!(misses.is_empty());
                assert_eq!(bytes, rows_of(keys, 1, 64));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                let text = error.to_string();
                for part in ["sparse_embedding0", directory.path().to_str().unwrap(), ".sst"] {
                    assert!(text.contains(part), "{part}: {text}");
                }
                errors += 1;
            }
        }
    }
    assert!(errors > 0, "the damaged block was read");
    assert!(tier.scan(TABLE, &mut |_, _| Ok(std::ops::ControlFlow::Continue(()))).is_err());
    // What is damaged can be replaced.
    load(&tier, &keys, 2, 64, "again");
    assert_eq!(lookup(&tier, TABLE, 64, &[10_000]), [Some(row_of(10_000, 2, 64))]);
}

/// A process whose files cannot grow beyond a limit, as on a full disk: loads until it fails, and goes on.
#[test]
fn with_a_full_disk() {
    let Some((_, path)) = role() else { return };
    let tier = open(&path, &one_table());
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("before".into()));
    let mut load = tier.begin_load(TABLE, Expected::rows(0)).unwrap();
    let keys: Vec<Key> = (0..400_000).collect();
    let mut result = Ok(());
    for keys in keys.chunks(10_000) {
        result = load.put(keys, Rows::new(&rows_of(keys, 2, 64), 64).unwrap());
        if result.is_err() {
            break;
        }
    }
    let error = result.and_then(|()| load.commit("too large", &|_| {}).map(drop)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("before".into()));
    assert_eq!(lookup(&tier, TABLE, 64, &[1, 3]), [Some(row_of(1, 1, 64)), None]);
    println!("survived: {error}");
}

#[test]
fn a_full_disk_is_an_error_that_leaves_the_table_and_the_process() {
    let directory = tempfile::tempdir().unwrap();
    load(&open(directory.path(), &one_table()), &[1, 2], 1, 64, "before");
    let test = child_command("with_a_full_disk", "load", directory.path());
    // The limit is in blocks of 512 bytes or of 1 KiB, depending on the shell: 4 or 8 MiB.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\""]).arg(test.get_program());
    shell.args(test.get_args()).stdout(Stdio::piped());
    for (name, value) in test.get_envs() {
        shell.env(name, value.unwrap());
    }
    let mut child = shell.spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success() && text.contains("survived"), "{text}");

    let tier = open(directory.path(), &one_table());
    assert_eq!(tier.held(TABLE).unwrap(), Held::Table("before".into()));
    assert_eq!(scan(&tier).len(), 2);
    load(&tier, &[5], 3, 64, "after");
    assert_eq!(lookup(&tier, TABLE, 64, &[1, 5]), [None, Some(row_of(5, 3, 64))]);
}
