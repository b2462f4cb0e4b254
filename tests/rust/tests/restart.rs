//! A second start with unchanged model files has nothing to write. Alone in its process, so that all its threads' writes
//! can be counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use hps_core::Key;
use hps_tests::{Deployment, io_bytes};

#[test]
fn a_second_start_with_unchanged_files_rewrites_nothing() {
    let keys: Vec<Key> = (0..50_000).collect();
    let mut deployment = Deployment::new(&[(32, keys.clone())]).with_ssd(0.5, false);
    drop(deployment.open().unwrap());
    let files = |deployment: &Deployment| {
        let mut names: Vec<_> = std::fs::read_dir(deployment.home().join("rocksdb"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sst"))
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()))
            .collect();
        names.sort();
        names
    };
    let before = files(&deployment);
    assert!(!before.is_empty());
    let written = io_bytes("wchar");
    let open = deployment.open().unwrap();
    let written = io_bytes("wchar") - written;
    assert!(written < 200_000, "{written} bytes written by a start that had nothing to do");
    deployment.check(&open, 0, &keys);
    drop(open);
    assert_eq!(files(&deployment), before);

    // Changed files replace the table whole.
    deployment.write_table(0, &keys[10..], 2);
    let open = deployment.open().unwrap();
    deployment.check(&open, 0, &keys);
    drop(open);
    assert_ne!(files(&deployment), before);
}
