//! A start on a table that was written since its load reads no more of it than it needs. Alone in its process, so that what all its
//! threads read can be counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use hps_core::testing::rows_of;
use hps_core::{Key, Rows, TableId};
use hps_tests::Deployment;

const DIM: usize = 32;

/// Bytes that read calls have handed to all threads of this process so far.
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_start_after_writes_does_not_read_the_table_to_count_it() {
    let keys: Vec<Key> = (0..200_000).collect();
    let deployment = Deployment::new(&[(DIM, keys.clone())]).with_ssd(0.01, false);
    let open = deployment.open().unwrap();
    open.store
        .insert(TableId(0), &keys[..1], Rows::new(&rows_of(&keys[..1], 1, DIM * 4), DIM * 4).unwrap())
        .unwrap();
    drop(open);

    let before = bytes_read();
    let open = deployment.open().unwrap();
    let read = bytes_read() - before;

    let table_bytes = (keys.len() * DIM * 4) as u64;
    assert!(read < table_bytes / 5, "{read} bytes read of a table of {table_bytes}");
    deployment.check(&open, 0, &keys);
}
