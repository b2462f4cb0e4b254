//! Opening: once however many threads arrive, again after a mistake was corrected, and without loading twice.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use hps_bridge::registry::registry;
use hps_core::tier::TierKind;
use hps_core::{ErrorKind, Key};
use hps_tests::Deployment;
use serde_json::json;

fn keys() -> Vec<Key> {
    (0..5_000).collect()
}

#[test]
fn many_threads_open_one_store() {
    let deployment = Deployment::new(&[(8, keys())]).with_ssd(1.0, false);
    let file = deployment.write();
    let name = file.to_str().unwrap();
    let barrier = Barrier::new(8);
    let stores: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let guard = registry().store(name).unwrap();
                    deployment.check(guard.as_ref().unwrap(), 0, &keys());
                    std::sync::Arc::as_ptr(guard.as_ref().unwrap()) as usize
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(stores.iter().all(|&store| store == stores[0]));

    // Another name of the same file is the same store.
    let other = deployment.home().join("table0/../ps.json");
    assert_eq!(
        std::sync::Arc::as_ptr(registry().store(other.to_str().unwrap()).unwrap().as_ref().unwrap()) as usize,
        stores[0]
    );

    registry().close(name).unwrap();
    assert_eq!(registry().close(name).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(registry().open_store(name).err().unwrap().kind(), ErrorKind::NotFound);
    deployment.check(registry().store(name).unwrap().as_ref().unwrap(), 0, &keys());
    registry().close(name).unwrap();
}

#[test]
fn closing_waits_for_lookups_that_run() {
    let deployment = Deployment::new(&[(8, keys())]);
    let file = deployment.write();
    let name = file.to_str().unwrap();
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let guard = registry().store(name).unwrap();
                    deployment.check(guard.as_ref().unwrap(), 0, &[1, 2, 3, 99_999]);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..20 {
            let _ = registry().close(name);
            std::thread::yield_now();
        }
    });
    assert_eq!(served.load(Ordering::Relaxed), 600);
}

#[test]
fn closing_returns_when_the_last_lookup_has_ended_and_the_database_is_released() {
    let deployment = Deployment::new(&[(8, keys())]).with_ssd(0.5, false);
    let file = deployment.write();
    let name = file.to_str().unwrap();
    let lookup_under_way = registry().store(name).unwrap();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| registry().close(name).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert!(!closing.is_finished(), "a lookup still runs");
        deployment.check(lookup_under_way.as_ref().unwrap(), 0, &keys());
        drop(lookup_under_way);
        closing.join().unwrap();
    });
    // Nobody holds the database: its lock can be taken.
    let lock = std::fs::File::open(deployment.home().join("rocksdb/LOCK")).unwrap();
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&lock.metadata().unwrap());
    assert!(!locks.contains(&format!(":{inode} ")), "the database is still locked");
}

#[test]
fn a_relative_name_means_the_file_in_the_working_directory_of_the_moment() {
    let first = Deployment::new(&[(8, keys())]);
    let mut second = Deployment::new(&[(8, keys())]);
    second.write_table(0, &keys(), 2);
    first.write();
    second.write();
    let before = std::env::current_dir().unwrap();
    for deployment in [&first, &second, &first] {
        std::env::set_current_dir(deployment.home()).unwrap();
        deployment.check(registry().store("ps.json").unwrap().as_ref().unwrap(), 0, &keys());
    }
    for deployment in [&first, &second] {
        std::env::set_current_dir(deployment.home()).unwrap();
        registry().close("ps.json").unwrap();
    }
    std::env::set_current_dir(before).unwrap();
}

#[test]
fn a_corrected_configuration_opens_and_waiting_threads_share_the_error() {
    let mut deployment = Deployment::new(&[(8, keys())]);
    deployment.config["models"][0]["embedding_vecsize_per_table"] = json!([9]);
    let file = deployment.write();
    let name = file.to_str().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let error = registry().store(name).err().unwrap();
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.to_string().contains("vectors of 8 float32"), "{error}");
            });
        }
    });
    deployment.config["models"][0]["embedding_vecsize_per_table"] = json!([8]);
    deployment.write();
    deployment.check(registry().store(name).unwrap().as_ref().unwrap(), 0, &keys());
    registry().close(name).unwrap();
}

#[test]
fn all_problems_of_the_model_files_come_in_one_error() {
    let deployment = Deployment::new(&[(8, keys()), (4, keys())]);
    std::fs::write(deployment.home().join("table0/key"), [1, 2, 3]).unwrap();
    std::fs::write(deployment.home().join("table1/emb_vector"), [0; 12]).unwrap();
    let text = deployment.open().err().unwrap().to_string();
    assert!(text.contains("table0/key") && text.contains("table1/emb_vector"), "{text}");
    assert!(
        text.contains("sparse_files[0]") && text.contains("sparse_files[1]") && text.contains("ps.json"),
        "{text}"
    );
}

#[test]
fn without_initialize_after_startup_files_are_not_read() {
    let mut deployment = Deployment::new(&[(8, keys())]).with_ssd(1.0, false);
    drop(deployment.open().unwrap());
    deployment.config["persistent_db"]["initialize_after_startup"] = json!(false);
    std::fs::remove_dir_all(deployment.home().join("table0")).unwrap();
    let open = deployment.open().unwrap();
    let counts = deployment.check(&open, 0, &keys());
    assert_eq!(counts.hits(TierKind::Host), 5_000);
    drop(open);
    deployment.config["volatile_db"]["initialize_after_startup"] = json!(false);
    let open = deployment.open().unwrap();
    assert_eq!(deployment.check(&open, 0, &keys()).hits(TierKind::Ssd), 5_000);
}

#[test]
fn two_configurations_share_one_database_and_read_only_serves_without_writing() {
    let deployment = Deployment::new(&[(8, keys())]).with_ssd(0.5, false);
    let mut other = Deployment::new(&[(8, keys())]).with_ssd(0.0, false);
    let path = deployment.home().join("rocksdb");
    other.config["persistent_db"]["path"] = json!(path);
    other.config["models"][0]["sparse_files"] = json!([deployment.home().join("table0")]);
    let first = deployment.open().unwrap();
    let second = other.open().unwrap();
    deployment.check(&first, 0, &keys());
    deployment.check(&second, 0, &keys());
    drop(first);
    deployment.check(&second, 0, &keys());
    drop(second);
    other.config["persistent_db"]["read_only"] = json!(true);
    let read_only = other.open().unwrap();
    deployment.check(&read_only, 0, &keys());
    let rows = hps_core::testing::rows_of(&[1], 2, 32);
    let rows = hps_core::Rows::new(&rows, 32).unwrap();
    let error = read_only.store.insert(hps_core::TableId(0), &[1], rows).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.to_string().contains("\"read_only\": false"), "{error}");
    deployment.check(&read_only, 0, &keys());
}

/// Otherwise the first store would go on to serve old rows from its cache and new ones from the database.
#[test]
fn a_table_is_not_replaced_or_written_under_another_store_that_serves_it() {
    let deployment = Deployment::new(&[(8, keys())]).with_ssd(0.5, true);
    let mut other = Deployment::new(&[(8, keys())]).with_ssd(0.5, false);
    other.write_table(0, &keys(), 2);
    other.config["persistent_db"]["path"] = json!(deployment.home().join("rocksdb"));
    let first = deployment.open().unwrap();
    let error = other.open().err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("another open store"), "{error}");
    deployment.check(&first, 0, &keys());

    let second = deployment.open().unwrap();
    let rows = hps_core::testing::rows_of(&[1], 3, 32);
    let rows = || hps_core::Rows::new(&rows, 32).unwrap();
    let table = hps_core::TableId(0);
    assert_eq!(first.store.insert(table, &[1], rows()).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(first.store.erase(table, &[1]).unwrap_err().kind(), ErrorKind::Unsupported);
    deployment.check(&second, 0, &keys());
    drop(second);
    first.store.insert(table, &[1], rows()).unwrap();
    drop(first);
    other.check(&other.open().unwrap(), 0, &keys());
}

#[test]
fn two_configurations_that_share_a_new_database_can_be_opened_at_once() {
    let deployment = Deployment::new(&[(8, keys())]).with_ssd(0.5, false);
    let mut other = Deployment::new(&[(8, keys())]).with_ssd(0.0, false);
    other.config["persistent_db"]["path"] = json!(deployment.home().join("./rocksdb"));
    other.config["models"][0]["sparse_files"] = json!([deployment.home().join("table0")]);
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for each in [&deployment, &other] {
            scope.spawn(|| {
                barrier.wait();
                let open = each.open().unwrap();
                deployment.check(&open, 0, &keys());
            });
        }
    });
}

#[test]
fn fused_tables_share_one_key_space_and_keep_their_defaults() {
    let first: Vec<Key> = (0..1_000).collect();
    let second: Vec<Key> = (1_000..3_000).collect();
    let third: Vec<Key> = (0..10).collect();
    let mut deployment = Deployment::new(&[(8, first), (4, third), (8, second)]);
    deployment.config["fuse_embedding_table"] = json!(true);
    let open = deployment.open().unwrap();
    let stats = open.store.stats().unwrap();
    assert_eq!(stats[0].storage_name, "hps_et.m.fused_embedding1", "groups are numbered by ascending dim");
    assert_eq!(stats[1].storage_name, "hps_et.m.fused_embedding0");
    assert_eq!(stats[0].usage[0].1.rows, 3_000);
    // A sibling's key is served.
    let siblings = deployment.tables[2].oracle.clone();
    deployment.tables[0].oracle.extend(siblings);
    deployment.check(&open, 0, &[0, 999, 1_000, 2_999, 3_000]);
    assert_eq!(hps_tests::lookup(&open, 0, &[9_999]).unwrap().0[..4], (-1f32).to_le_bytes());
    assert_eq!(hps_tests::lookup(&open, 2, &[9_999]).unwrap().0[..4], (-3f32).to_le_bytes());
    drop(open);
    deployment.write_table(2, &[5, 6], 2);
    let text = deployment.open().err().unwrap().to_string();
    assert!(
        text.contains("sparse_embedding0") && text.contains("sparse_embedding2") && text.contains("key 5"),
        "{text}"
    );
}
