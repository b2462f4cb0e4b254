//! A start on a table that was written since its load reads no more of it than it needs. Alone in its process, so that what all its
//! threads read can be counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

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

/// Opens the store with a share of the rows in host memory and checks them all. Returns what opening has read, in bytes of the table.
fn opening_reads(deployment: &mut Deployment, cache_rate: f64, keys: &[Key]) -> f64 {
    deployment.config["volatile_db"]["initial_cache_rate"] = json!(cache_rate);
    let before = bytes_read();
    let open = deployment.open().unwrap();
    let read = bytes_read() - before;
    let counts = deployment.check(&open, 0, keys);
    // The share of the rows that there are, not of those that were written.
    assert_eq!(counts.hits(TierKind::Host) as f64, NUM_ROWS as f64 * cache_rate);
    read as f64 / (NUM_ROWS * DIM as u64 * 4) as f64
}

#[test]
fn a_start_after_writes_reads_the_table_to_count_it_only_when_its_size_has_changed() {
    let keys: Vec<Key> = (0..NUM_ROWS).collect();
    let mut deployment = Deployment::new(&[(DIM, keys.clone())]).with_ssd(CACHE_RATE, false);
    // A GPU's cache would be filled as well.
    deployment.config["models"][0]["gpucache"] = json!(false);
    drop(deployment.open().unwrap());

    rewrite(&deployment, &keys[..1]);
    let read = opening_reads(&mut deployment, CACHE_RATE, &keys);
    assert!(read < 0.5, "one row was written; read {read} times");
    let read = opening_reads(&mut deployment, 1.0, &keys);
    assert!((1.0..1.8).contains(&read), "it was filled, and not counted before; read {read} times");

    rewrite(&deployment, &keys);
    let read = opening_reads(&mut deployment, CACHE_RATE, &keys);
    assert!(read > 1.0, "its size has doubled; read {read} times");
    let read = opening_reads(&mut deployment, CACHE_RATE, &keys);
    assert!(read < 0.5, "it was counted the last time; read {read} times");
}
