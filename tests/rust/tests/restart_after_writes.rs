//! A start on a table that was written since its load reads no more of it than it needs. Alone in its process, so that what all its
//! threads read can be counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use hps_core::testing::rows_of;
use hps_core::tier::TierKind;
use hps_core::{Key, Rows, TableId};
use hps_tests::{Deployment, io_bytes};
use serde_json::json;

const DIM: usize = 32;
const NUM_ROWS: u64 = 200_000;
const CACHE_RATE: f64 = 0.01;

/// Writes rows: those that are there, with the values that they have, or new ones.
fn write(deployment: &mut Deployment, keys: &[Key]) {
    let open = deployment.open().unwrap();
    for keys in keys.chunks(1_000) {
        let rows = rows_of(keys, 1, DIM * 4);
        open.store.insert(TableId(0), keys, Rows::new(&rows, DIM * 4).unwrap()).unwrap();
        let rows = rows.chunks(DIM * 4).map(<[u8]>::to_vec);
        deployment.tables[0].oracle.extend(keys.iter().copied().zip(rows));
    }
}

/// Opens the store with a share of the rows in host memory and checks them all. Returns the rows in host memory, and the bytes that opening
/// has read, in tables of [`NUM_ROWS`].
fn open_with(deployment: &mut Deployment, cache_rate: f64, keys: &[Key]) -> (u64, f64) {
    deployment.config["volatile_db"]["initial_cache_rate"] = json!(cache_rate);
    let before = io_bytes("rchar");
    let open = deployment.open().unwrap();
    let read = io_bytes("rchar") - before;
    let counts = deployment.check(&open, 0, keys);
    (counts.hits(TierKind::Host), read as f64 / (NUM_ROWS * DIM as u64 * 4) as f64)
}

#[test]
fn a_start_after_writes_reads_the_table_to_count_it_only_when_its_size_has_changed() {
    let mut keys: Vec<Key> = (0..NUM_ROWS).collect();
    let mut deployment = Deployment::new(&[(DIM, keys.clone())]).with_ssd(CACHE_RATE, false);
    // A GPU's cache would be filled as well.
    deployment.config["models"][0]["gpucache"] = json!(false);
    drop(deployment.open().unwrap());

    write(&mut deployment, &keys[..1]);
    let (cached, read) = open_with(&mut deployment, CACHE_RATE, &keys);
    assert!(cached == 2_000 && read < 0.5, "one row was written: {cached} cached, read {read} times");
    let (cached, read) = open_with(&mut deployment, 1.0, &keys);
    assert_eq!(cached, NUM_ROWS);
    assert!((1.0..1.8).contains(&read), "it was filled, and not counted before: read {read} times");

    // A third more rows are counted.
    let new: Vec<Key> = (NUM_ROWS..NUM_ROWS / 3 * 4).collect();
    write(&mut deployment, &new);
    keys.extend(new);
    let (cached, _) = open_with(&mut deployment, CACHE_RATE, &keys);
    assert_eq!(cached, (keys.len() as f64 * CACHE_RATE).ceil() as u64, "of all rows");
    let (_, read) = open_with(&mut deployment, CACHE_RATE, &keys);
    assert!(read < 0.5, "they were counted the last time: read {read} times");

    // Rows that are written again take twice the room for a while, and are no more rows.
    write(&mut deployment, &keys.clone());
    for rate in [CACHE_RATE, 0.0] {
        let (cached, _) = open_with(&mut deployment, rate, &keys);
        assert_eq!(cached, (keys.len() as f64 * rate).ceil() as u64);
    }
}
