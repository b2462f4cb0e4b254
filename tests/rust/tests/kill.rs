//! `kill -9` while a store opens: model files are loaded for the first time, or replace a table. The next start completes
//! what was interrupted, and every row is right.
//!
//! `HPS_SOAK_KILLS` (20) says how many processes are killed, `HPS_SOAK_ROWS` (60,000) how many rows they load.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hps_core::Key;
use hps_tests::{Deployment, Random};

/// Set in the child that is to be killed: the configuration to open.
const VICTIM: &str = "HPS_TEST_OPEN_AND_BE_KILLED";

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The child: opens the store, says so and waits for its end.
#[test]
fn victim() {
    let Some(file) = std::env::var_os(VICTIM) else { return };
    let _open = hps_bridge::assemble::open(Path::new(&file)).unwrap();
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Opens the store in a process that is killed after `time`.
fn open_and_kill(file: &Path, time: Duration) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env(VICTIM, file)
        .env("HPS_LOG", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn whatever_a_kill_interrupts_the_next_start_completes() {
    if std::env::var_os(VICTIM).is_some() {
        return;
    }
    let kills = setting("HPS_SOAK_KILLS", 20);
    let rows = setting("HPS_SOAK_ROWS", 60_000);
    let keys: Vec<Key> = (0..rows).map(hps_core::key::mix).collect();
    let mut random = Random(2_026);
    let mut deployment = Deployment::new(&[(32, keys.clone())]).with_ssd(0.1, false);
    let mut load_time = Duration::ZERO;
    for round in 0..kills {
        match round % 8 {
            // A first load again.
            0 => {
                let _ = std::fs::remove_dir_all(deployment.home().join("rocksdb"));
            }
            // A replacement, with some keys gone.
            _ => deployment.write_table(0, &keys[(round as usize % 5) * 1_000..], round + 1),
        }
        let file = deployment.write();
        let longest = load_time.max(Duration::from_millis(300)).as_micros() as u64;
        open_and_kill(&file, Duration::from_micros(random.below(longest + longest / 4)));
        if round % 3 == 0 {
            // Killed twice before it is completed.
            open_and_kill(&file, Duration::from_micros(random.below(longest)));
        }
        let started = Instant::now();
        let open = deployment.open().unwrap();
        load_time = load_time.max(started.elapsed());
        deployment.check(&open, 0, &keys);
    }
    println!("{kills} rounds of {rows} rows, the longest load {load_time:?}: every row right after each");
}
