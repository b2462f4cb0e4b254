//! A disk that is full: errors that say so, every row that was acknowledged, and work again when there is room.
//!
//! Runs if `HPS_FULL_DISK` names a folder on a small file system of its own, 100 to 300 MB, that may be filled; scripts/soak says how
//! to make one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;

use hps_core::testing::{row_of, rows_of};
use hps_core::{ErrorKind, Key, Rows, TableId};
use hps_tests::{Deployment, lookup};

const DIM: usize = 64;
const ROW_BYTES: usize = DIM * 4;
const TABLE: TableId = TableId(0);
const ROWS: u64 = 50_000;
const BATCH: u64 = 2_000;

/// Fills the disk but for so many bytes; to be removed.
fn fill(folder: &Path, but: u64) -> std::path::PathBuf {
    let file = folder.join("ballast");
    let free = free_bytes(folder).saturating_sub(but);
    let done = std::process::Command::new("fallocate").args(["-l", &free.to_string()]).arg(&file).status();
    assert!(done.unwrap().success(), "fallocate fails");
    file
}

fn free_bytes(folder: &Path) -> u64 {
    let output =
        std::process::Command::new("df").args(["-B1", "--output=avail"]).arg(folder).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn what_was_acknowledged_stays_and_there_is_work_again_when_there_is_room() {
    let Some(disk) = std::env::var_os("HPS_FULL_DISK") else {
        println!("HPS_FULL_DISK names no folder");
        return;
    };
    let disk = Path::new(&disk);
    let database = disk.join("rocksdb");
    let _ = std::fs::remove_dir_all(&database);
    let keys: Vec<Key> = (0..ROWS).collect();
    let mut deployment = Deployment::new(&[(DIM, keys.clone())]).with_ssd(0.1, true);
    deployment.config["persistent_db"]["path"] = database.to_str().unwrap().into();
    let open = deployment.open().unwrap();
    deployment.check(&open, 0, &keys);

    // Updates until there is no room.
    let ballast = fill(disk, 24 << 20);
    let mut version = vec![1u64; ROWS as usize];
    let mut failed: Vec<Key> = Vec::new();
    let mut errors = 0;
    for round in 0..1_000u64 {
        let first = round * BATCH % ROWS;
        let batch: Vec<Key> = (first..first + BATCH).collect();
        let rows = rows_of(&batch, round + 2, ROW_BYTES);
        match open.store.insert(TABLE, &batch, Rows::new(&rows, ROW_BYTES).unwrap()) {
            Ok(()) => batch.iter().for_each(|&key| version[key as usize] = round + 2),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
                assert!(error.to_string().contains("hps_et.m.sparse_embedding0"), "{error}");
                failed.extend(&batch);
                errors += 1;
                if errors == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(errors, 3, "the disk never was full");
    let check = |rows: &[u8]| {
        for (&key, row) in keys.iter().zip(rows.chunks_exact(ROW_BYTES)) {
            let is_known = row == row_of(key, version[key as usize], ROW_BYTES);
            // Of a write that failed nothing is known, except that its rows are whole.
            let is_open =
                failed.contains(&key) && (2..1_002).any(|version| row == row_of(key, version, ROW_BYTES));
            assert!(is_known || is_open, "key {key}");
        }
    };
    check(&lookup(&open, 0, &keys).unwrap().0);

    // Other model files cannot be loaded either; what is there stays.
    drop(open);
    deployment.write_table(0, &keys, 5_000);
    let error = deployment.open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Storage, "{error}");

    // With room again a start does what the last one could not.
    std::fs::remove_file(ballast).unwrap();
    let open = deployment.open().unwrap();
    deployment.check(&open, 0, &keys);
    let rows = rows_of(&keys[..10], 6_000, ROW_BYTES);
    open.store.insert(TABLE, &keys[..10], Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
    drop(open);
    std::fs::remove_dir_all(database).unwrap();
}
