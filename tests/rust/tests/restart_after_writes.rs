//! A start on a table that was written since its load reads no more of it than it needs. Alone in its process, so that what all its
//! threads read can be counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use hps_core::testing::rows_of;
use hps_core::tier::TierKind;
use hps_core::{Key, Rows, TableId};
use hps_tests::Deployment;
use serde_json::json;

const DIM: usize = 32;
const NUM_ROWS: u64 = 200_000;
const CACHE_RATE: f64 = 0.01;

/// Bytes that read calls have handed to all threads of this process so far.
fn bytes_read() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Writes rows once more, with the values that they have.
fn rewrite(deployment: &Deployment, keys: &[Key]) {
    let open = deployment.open().unwrap();
    for keys in keys.chunks(1_000) {
        let rows = rows_of(keys, 1, DIM * 4);
        open.store.insert(TableId(0), keys, Rows::new(&rows, DIM * 4).unwrap()).unwrap();
    }
}

/// Opens the store and checks its rows; true if that read the table.
fn reads_the_table(deployment: &Deployment, keys: &[Key]) -> bool {
    let before = bytes_read();
    let open = deployment.open().unwrap();
    let read = bytes_read() - before;
    let counts = deployment.check(&open, 0, keys);
    // The share of the rows that there are, not of those that were written.
    assert_eq!(counts.hits(TierKind::Host) as f64, NUM_ROWS as f64 * CACHE_RATE);
    read > NUM_ROWS * DIM as u64 * 4 / 2
}

#[test]
fn a_start_after_writes_reads_the_table_to_count_it_only_when_its_size_has_changed() {
    let keys: Vec<Key> = (0..NUM_ROWS).collect();
    let mut deployment = Deployment::new(&[(DIM, keys.clone())]).with_ssd(CACHE_RATE, false);
    // A GPU's cache would be filled as well.
    deployment.config["models"][0]["gpucache"] = json!(false);
    drop(deployment.open().unwrap());

    rewrite(&deployment, &keys[..1]);
    assert!(!reads_the_table(&deployment, &keys), "one row was written");

    rewrite(&deployment, &keys);
    assert!(reads_the_table(&deployment, &keys), "its size has doubled");
    assert!(!reads_the_table(&deployment, &keys), "it was counted the last time");
}
