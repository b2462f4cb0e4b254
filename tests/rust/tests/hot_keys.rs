//! A start warms host memory with the rows that were in it, hottest first.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use hps_core::Key;
use hps_core::tier::TierKind;
use hps_tests::{Deployment, lookup};

const ROWS: u64 = 20_000;

/// A table of which a tenth fits in memory, and a tenth of it is asked for over and over.
fn deployment(policy: &str) -> (Deployment, Vec<Key>) {
    let keys: Vec<Key> = (0..ROWS).map(hps_core::key::mix).collect();
    let mut deployment = Deployment::new(&[(16, keys.clone())]).with_ssd(1.0, true);
    let host = &mut deployment.config["volatile_db"];
    host["overflow_margin"] = (ROWS / 10 / 4).into();
    host["overflow_policy"] = policy.into();
    host["hot_keys_path"] = "hot".into();
    (deployment, keys[7_000..7_500].to_vec())
}

fn host_hits(open: &hps_bridge::registry::OpenStore, keys: &[Key]) -> u64 {
    lookup(open, 0, keys).unwrap().1.hits(TierKind::Host)
}

/// Serves these keys until they are hot, and saves which are.
fn save_hot(deployment: &Deployment, hot: &[Key]) {
    let open = deployment.open().unwrap();
    for _ in 0..5 {
        lookup(&open, 0, hot).unwrap();
        open.store.drain_promotions();
    }
    open.save_hot_keys().unwrap();
}

#[test]
fn what_was_hot_is_there_at_once() {
    for policy in ["evict_least_used", "evict_oldest"] {
        let (deployment, hot) = deployment(policy);
        let open = deployment.open().unwrap();
        assert!(host_hits(&open, &hot) < 400, "the first start knows nothing");
        for _ in 0..5 {
            deployment.check(&open, 0, &hot);
            open.store.drain_promotions();
        }
        assert_eq!(host_hits(&open, &hot), 500);
        open.save_hot_keys().unwrap();
        drop(open);
        let open = deployment.open().unwrap();
        assert_eq!(host_hits(&open, &hot), 500, "{policy}");
        // And the rest is filled up with others.
        let held = open.store.stats().unwrap()[0].usage[0].1.rows;
        assert!(held >= ROWS / 10 * 7 / 10, "{held}");
        deployment.check(&open, 0, &hot);
    }
}

#[test]
fn what_was_hot_outlives_the_first_eviction_after_a_restart() {
    for policy in ["evict_least_used", "evict_oldest"] {
        let (deployment, hot) = deployment(policy);
        save_hot(&deployment, &hot);
        let open = deployment.open().unwrap();
        // Others come in, one by one, until rows had to go.
        let others: Vec<Key> = (15_000..16_000).map(hps_core::key::mix).collect();
        for keys in others.chunks(50) {
            lookup(&open, 0, keys).unwrap();
            open.store.drain_promotions();
        }
        let hits = host_hits(&open, &hot);
        assert!(hits > 450, "{policy}: {hits} of 500 hot rows are left");
    }
}

#[test]
fn the_hottest_come_first_where_not_all_fit() {
    let (mut deployment, hot) = deployment("evict_least_used");
    save_hot(&deployment, &hot);
    // Much less room than before.
    deployment.config["volatile_db"]["overflow_margin"] = 170.into();
    let open = deployment.open().unwrap();
    let hits = host_hits(&open, &hot);
    assert!(hits > 430, "{hits} of 500 hot rows are among the 544 that fit");
}

#[test]
fn a_damaged_or_foreign_list_does_no_harm() {
    let (deployment, hot) = deployment("evict_oldest");
    let open = deployment.open().unwrap();
    (0..5).for_each(|_| drop(lookup(&open, 0, &hot).unwrap()));
    open.store.drain_promotions();
    open.save_hot_keys().unwrap();
    drop(open);
    let file = std::fs::read_dir(deployment.home().join("hot")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let open = deployment.open().unwrap();
    deployment.check(&open, 0, &hot);
    drop(open);
    // Keys that the table does not have.
    hps_core::hot_keys::save(&file, &(0..5_000).collect::<Vec<_>>()).unwrap();
    let open = deployment.open().unwrap();
    deployment.check(&open, 0, &hot);
    deployment.check(&open, 0, &(0..100).collect::<Vec<_>>());
}
