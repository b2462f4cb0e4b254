//! Rows come back bit for bit from whichever tier holds them, and the counts say which.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use hps_core::Key;
use hps_core::tier::TierKind;
use hps_tests::{Deployment, Random};

fn keys() -> Vec<Key> {
    let mut random = Random(7);
    let mut keys: Vec<Key> = (0..20_000).map(|_| random.number()).collect();
    keys.extend([0, 1, u64::MAX, i64::MAX as u64, i64::MIN as u64]);
    keys
}

fn batch(keys: &[Key], random: &mut Random) -> Vec<Key> {
    (0..5_000)
        .map(|_| match random.below(10) {
            0 => random.number(),
            _ => keys[random.below(keys.len() as u64) as usize],
        })
        .collect()
}

#[test]
fn host_memory_alone_serves_every_row() {
    let keys = keys();
    let deployment = Deployment::new(&[(16, keys.clone()), (3, keys[..100].to_vec())]);
    let open = deployment.open().unwrap();
    let mut random = Random(1);
    for _ in 0..5 {
        let counts = deployment.check(&open, 0, &batch(&keys, &mut random));
        assert_eq!(counts.hits(TierKind::Ssd), 0);
        deployment.check(&open, 1, &batch(&keys, &mut random));
    }
    deployment.check(&open, 0, &keys);
}

#[test]
fn an_initial_cache_rate_of_a_half_holds_half_the_rows_and_serves_the_rest_from_below() {
    let keys = keys();
    let deployment = Deployment::new(&[(16, keys.clone())]).with_ssd(0.5, false);
    let open = deployment.open().unwrap();
    let counts = deployment.check(&open, 0, &keys);
    let half = keys.len().div_ceil(2) as u64;
    assert_eq!(counts.hits(TierKind::Host), half);
    assert_eq!(counts.hits(TierKind::Ssd), keys.len() as u64 - half);
    let stats = open.store.stats().unwrap();
    assert_eq!(stats[0].usage[0].1.rows, half);
    assert_eq!(deployment.check(&open, 0, &keys), counts, "nothing moves up unless configured");
}

#[test]
fn missed_rows_move_up_when_configured_and_default_rows_do_not() {
    let keys = keys();
    let deployment = Deployment::new(&[(16, keys.clone())]).with_ssd(0.0, true);
    let open = deployment.open().unwrap();
    let mut asked = keys[..1_000].to_vec();
    asked.extend((0..100).map(|i| 1_000_000 + i));
    let counts = deployment.check(&open, 0, &asked);
    assert_eq!((counts.hits(TierKind::Host), counts.hits(TierKind::Ssd), counts.missing), (0, 1_000, 100));
    open.store.drain_promotions();
    let counts = deployment.check(&open, 0, &asked);
    assert_eq!((counts.hits(TierKind::Host), counts.hits(TierKind::Ssd), counts.missing), (1_000, 0, 100));
    assert_eq!(open.store.stats().unwrap()[0].usage[0].1.rows, 1_000);
}

#[test]
fn rocksdb_alone_serves_every_row() {
    let keys = keys();
    let mut deployment = Deployment::new(&[(16, keys.clone())]).with_ssd(1.0, false);
    deployment.config["volatile_db"] = serde_json::json!({"type": "disabled"});
    let open = deployment.open().unwrap();
    let counts = deployment.check(&open, 0, &keys);
    assert_eq!(counts.hits(TierKind::Ssd), keys.len() as u64);
}

#[test]
fn a_margin_bounds_host_memory_and_the_rest_comes_from_below() {
    let keys = keys();
    let mut deployment = Deployment::new(&[(16, keys.clone())]).with_ssd(1.0, true);
    deployment.config["volatile_db"]["overflow_margin"] = 1_000.into();
    for policy in ["evict_random", "evict_least_used", "evict_oldest"] {
        deployment.config["volatile_db"]["overflow_policy"] = policy.into();
        let open = deployment.open().unwrap();
        let mut random = Random(3);
        for _ in 0..10 {
            deployment.check(&open, 0, &batch(&keys, &mut random));
            open.store.drain_promotions();
            let held = open.store.stats().unwrap()[0].usage[0].1.rows;
            assert!(
                (3_000..=4_000).contains(&held),
                "{held} rows in 4 partitions of at most 1,000 ({policy})"
            );
        }
    }
}

#[test]
fn a_margin_without_a_database_below_drops_rows_and_their_keys_get_the_default() {
    let keys = keys();
    let mut deployment = Deployment::new(&[(16, keys.clone())]);
    deployment.config["volatile_db"] =
        serde_json::json!({"type": "hash_map", "num_partitions": 2, "overflow_margin": 1_000});
    let open = deployment.open().unwrap();
    let held = open.store.stats().unwrap()[0].usage[0].1.rows;
    assert!((1_600..=2_000).contains(&held), "{held} rows held");
    let (rows, counts) = hps_tests::lookup(&open, 0, &keys).unwrap();
    assert_eq!((counts.hits(TierKind::Host), counts.missing), (held, keys.len() as u64 - held));
    let default_row = (-1f32).to_le_bytes().repeat(16);
    let oracle = &deployment.tables[0].oracle;
    assert!(keys.iter().zip(rows.chunks(64)).all(|(key, row)| row == oracle[key] || row == default_row));
}

#[test]
fn readers_and_writers_at_once_see_whole_rows_and_add_up() {
    let keys: Vec<Key> = (0..3_000).collect();
    let deployment = Deployment::new(&[(32, keys.clone())]).with_ssd(0.3, true);
    let open = deployment.open().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let row_bytes = 32 * 4;
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (open, done) = (&open, &done);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let asked: Vec<Key> = (0..500).map(|_| random.below(3_500)).collect();
                    let (rows, counts) = hps_tests::lookup(open, 0, &asked).unwrap();
                    assert_eq!(counts.keys(), 500);
                    for (&key, row) in asked.iter().zip(rows.chunks(row_bytes)) {
                        let is_whole =
                            (1..=30).any(|version| row == hps_core::testing::row_of(key, version, row_bytes));
                        let is_default = row == (-1f32).to_le_bytes().repeat(32);
                        assert!(if key < 3_000 { is_whole } else { is_default }, "key {key}");
                    }
                }
            });
        }
        let table = hps_core::TableId(0);
        let mut random = Random(9);
        for version in 2..=30 {
            let written: Vec<Key> = (0..200).map(|_| random.below(3_000)).collect();
            let rows = hps_core::testing::rows_of(&written, version, row_bytes);
            open.store.insert(table, &written, hps_core::Rows::new(&rows, row_bytes).unwrap()).unwrap();
            // When insert has returned, nobody sees the old rows any more.
            let (found, _) = hps_tests::lookup(&open, 0, &written).unwrap();
            assert!(found == rows, "version {version}");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn random_writes_and_lookups_agree_with_a_map_and_survive_a_restart() {
    let keys: Vec<Key> = (0..2_000).map(|key| key * 3).collect();
    for (rate, promote) in [(0.0, true), (0.5, false), (0.5, true), (1.0, true)] {
        let mut deployment = Deployment::new(&[(8, keys.clone())]).with_ssd(rate, promote);
        let table = hps_core::TableId(0);
        let mut random = Random(11);
        for _ in 0..2 {
            let open = deployment.open().unwrap();
            for step in 0..150 {
                let asked: Vec<Key> = (0..random.below(64)).map(|_| random.below(7_000)).collect();
                match random.below(3) {
                    0 => {
                        let rows = hps_core::testing::rows_of(&asked, step + 100, 32);
                        open.store.insert(table, &asked, hps_core::Rows::new(&rows, 32).unwrap()).unwrap();
                        deployment.tables[0]
                            .oracle
                            .extend(asked.iter().copied().zip(rows.chunks(32).map(<[u8]>::to_vec)));
                    }
                    1 => {
                        open.store.erase(table, &asked).unwrap();
                        deployment.tables[0].oracle.retain(|key, _| !asked.contains(key));
                    }
                    _ => {
                        deployment.check(&open, 0, &asked);
                    }
                }
            }
            let everything: Vec<Key> = (0..7_000).collect();
            deployment.check(&open, 0, &everything);
        }
    }
}
