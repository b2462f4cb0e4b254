//! `memory_bytes`: host memory stays within it, whatever is looked up and written.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use hps_bridge::timer::Task;
use hps_core::testing::rows_of;
use hps_core::tier::TierKind;
use hps_core::{ErrorKind, Key, Rows, TableId};
use hps_tests::{Deployment, Random};

const ROWS: [(usize, u64); 2] = [(16, 60_000), (64, 30_000)];

fn keys(rows: u64) -> Vec<Key> {
    (0..rows).map(hps_core::key::mix).collect()
}

fn deployment() -> Deployment {
    Deployment::new(&ROWS.map(|(dim, rows)| (dim, keys(rows))))
}

fn host_bytes(open: &hps_bridge::registry::OpenStore) -> u64 {
    let stats = open.store.stats().unwrap();
    let of_host = stats.iter().flat_map(|table| &table.usage).filter(|(kind, _)| *kind == TierKind::Host);
    of_host.map(|(_, usage)| usage.bytes).sum()
}

#[test]
fn host_memory_stays_within_its_part() {
    const BUDGET: u64 = 8 << 20;
    let mut deployment = deployment().with_ssd(1.0, true);
    deployment.config["volatile_db"]["memory_bytes"] = BUDGET.into();
    deployment.config["volatile_db"]["overflow_policy"] = "evict_oldest".into();
    let open = deployment.open().unwrap();
    // A quarter, an eighth and seven sixteenths are RocksDB's.
    let part = BUDGET / 16 * 3;
    let filled = host_bytes(&open);
    assert!(filled <= part && filled > part / 2, "{filled} of {part}");
    let mut random = Random(3);
    let mut most = 0;
    for round in 0..60u64 {
        for (id, (dim, rows)) in ROWS.into_iter().enumerate() {
            let some: Vec<Key> = (0..3_000).map(|_| hps_core::key::mix(random.below(rows))).collect();
            let counts = deployment.check(&open, id, &some);
            assert!(counts.hits(TierKind::Host) > 0 && counts.hits(TierKind::Ssd) > 0);
            // New keys, which belong to the tables from now on.
            let new: Vec<Key> = (0..100).map(|i| round << 40 | i << 8 | id as u64).collect();
            let new_rows = rows_of(&new, round, dim * 4);
            open.store.insert(TableId(id as u32), &new, Rows::new(&new_rows, dim * 4).unwrap()).unwrap();
            let rows = new_rows.chunks(dim * 4).map(<[u8]>::to_vec);
            deployment.tables[id].oracle.extend(new.iter().copied().zip(rows));
            deployment.check(&open, id, &new);
        }
        open.store.drain_promotions();
        most = most.max(host_bytes(&open));
    }
    assert!(most <= part, "{most} of {part}");
}

#[test]
fn free_memory_goes_back_to_the_system_where_there_is_a_budget_for_it() {
    let returns_memory = |deployment: &Deployment| {
        let schedules = deployment.open().unwrap().schedules;
        schedules.iter().any(|schedule| schedule.task == Task::ReturnFreeMemory)
    };
    let mut deployment = deployment().with_ssd(1.0, true);
    assert!(!returns_memory(&deployment));
    deployment.config["volatile_db"]["memory_bytes"] = (64u64 << 20).into();
    assert!(returns_memory(&deployment));
}

#[test]
fn all_rows_are_held_where_there_is_room_for_them() {
    let mut deployment = deployment().with_ssd(1.0, true);
    deployment.config["volatile_db"]["memory_bytes"] = (64u64 << 20).into();
    let open = deployment.open().unwrap();
    for (id, (_, rows)) in ROWS.into_iter().enumerate() {
        let counts = deployment.check(&open, id, &keys(rows));
        assert_eq!(counts.hits(TierKind::Host), rows);
    }
}

#[test]
fn without_a_database_what_does_not_fit_is_refused() {
    let mut deployment = deployment();
    deployment.config["volatile_db"] = serde_json::json!({"type": "hash_map", "memory_bytes": 8 << 20});
    let error = deployment.open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("memory_bytes is 8388608"), "{error}");
    deployment.config["volatile_db"]["memory_bytes"] = (32 << 20).into();
    let open = deployment.open().unwrap();
    deployment.check(&open, 1, &keys(ROWS[1].1));
}
