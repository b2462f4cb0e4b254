//! Memory per row, as the tier reports it and as the system counts it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use common::{POLICIES, TABLE, limited, open, unlimited};
use hps_core::key::mix;
use hps_core::tier::{CacheTier, Expected, Tier};
use hps_core::{Key, Rows};
use hps_host::{HostSettings, HostTier};

const NUM_ROWS: u64 = 1_000_000;
/// Beyond the row, the 8-byte key included.
const BUDGET: f64 = 14.0;

/// What the process has allocated and touched. Without its code, of which pages become resident as they are first run: some
/// hundred KiB that have nothing to do with rows. Exact: `statm` may be off by as much.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1_024
}

fn add(tier: &HostTier, row_bytes: usize, begin: u64, end: u64, bytes: &[u8]) {
    let mut keys = [0; 4_096];
    for start in (begin..end).step_by(keys.len()) {
        let num_keys = (end - start).min(keys.len() as u64) as usize;
        keys.iter_mut().zip(start..).for_each(|(key, i)| *key = mix(i ^ 0x1234_5678));
        let rows = Rows::new(&bytes[..num_keys * row_bytes], row_bytes).unwrap();
        tier.insert(TABLE, &keys[..num_keys] as &[Key], rows).unwrap();
    }
}

/// Fills a tier and returns the most bytes per row beyond the row that it took from so many rows on: reported, and resident.
fn measure(settings: HostSettings, row_bytes: usize, is_reserved: bool, num_rows: u64) -> (f64, f64) {
    let bytes = vec![7u8; 4_096 * row_bytes];
    let before = resident_bytes();
    let tier = open(settings, row_bytes);
    if is_reserved {
        tier.reserve(TABLE, Expected::rows(num_rows)).unwrap();
    }
    let beyond = |bytes: u64, rows: u64| bytes as f64 / rows as f64 - row_bytes as f64;
    let mut worst = (0f64, 0f64);
    let mut begin = 0;
    // Reserved: at the size that was announced. Grown: at many sizes, as memory is taken in steps.
    let end = if is_reserved { num_rows } else { num_rows * 11 / 10 };
    for end in (num_rows..=end).step_by(5_000) {
        add(&tier, row_bytes, begin, end, &bytes);
        begin = end;
        let usage = tier.usage(TABLE).unwrap();
        assert_eq!(usage.rows, end);
        worst.0 = worst.0.max(beyond(usage.bytes, end));
        worst.1 = worst.1.max(beyond(resident_bytes().saturating_sub(before), end));
    }
    worst
}

/// In a process of its own, as the resident set counts the whole process: this very test, run again for one case.
const CASE: &str = "HPS_HOST_MEMORY_CASE";

fn cases() -> Vec<(HostSettings, usize, bool)> {
    // A margin that partitions are far from: what counts is that marks are kept.
    let marked = |policy| limited(16, NUM_ROWS / 2, policy, 0.8);
    let mut cases = Vec::new();
    for is_reserved in [true, false] {
        for row_bytes in [4, 132] {
            cases.push((unlimited(2), row_bytes, is_reserved));
            cases.push((marked(POLICIES[2]), row_bytes, is_reserved));
        }
        cases.extend(POLICIES.map(|policy| (marked(policy), 512, is_reserved)));
    }
    cases
}

#[test]
fn a_row_takes_at_most_fourteen_bytes_more_than_its_own() {
    if let Ok(case) = std::env::var(CASE) {
        let (settings, row_bytes, is_reserved) = cases()[case.parse::<usize>().unwrap()];
        let (reported, resident) = measure(settings, row_bytes, is_reserved, NUM_ROWS);
        println!(
            "beyond a row of {row_bytes} bytes: {reported:.2} bytes reported, {resident:.2} resident \
             (P {}, {:?}{}, {})",
            settings.num_partitions,
            settings.overflow_policy,
            if settings.overflow_margin.is_some() { "" } else { ", no limit" },
            if is_reserved { "reserved" } else { "grown" },
        );
        assert!(reported <= BUDGET, "reported");
        assert!(resident <= BUDGET, "resident");
        return;
    }
    for case in 0..cases().len() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_row_takes_at_most_fourteen_bytes_more_than_its_own", "--nocapture"])
            .env(CASE, case.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().find(|line| line.starts_with("beyond")).unwrap_or("no figures");
        println!("{line}");
        assert!(output.status.success(), "case {case}: {line}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// `HPS_BENCH_ROWS` rows of `HPS_BENCH_DIM` floats, each way in a process of its own: `HPS_BENCH_GROWN` is 0 or 1.
#[test]
#[ignore = "a measurement"]
fn memory_of_more_rows() {
    let row_bytes = common::setting("HPS_BENCH_DIM", 8) as usize * 4;
    let num_rows = common::setting("HPS_BENCH_ROWS", 10_000_000);
    let is_reserved = common::setting("HPS_BENCH_GROWN", 0) == 0;
    let (reported, resident) = measure(unlimited(16), row_bytes, is_reserved, num_rows);
    println!("{num_rows} rows: {reported:.2} bytes reported, {resident:.2} resident");
}

#[test]
fn keys_that_lie_close_together_take_no_index() {
    for row_bytes in [4, 132, 512] {
        let tier = open(unlimited(16), row_bytes);
        tier.reserve(TABLE, Expected { rows: NUM_ROWS, largest_key: Some(NUM_ROWS - 1) }).unwrap();
        let rows = vec![7u8; 1_000 * row_bytes];
        for start in (0..NUM_ROWS).step_by(1_000) {
            let keys: Vec<Key> = (start..start + 1_000).collect();
            tier.insert(TABLE, &keys, Rows::new(&rows, row_bytes).unwrap()).unwrap();
        }
        let usage = tier.usage(TABLE).unwrap();
        let beyond = usage.bytes as f64 / usage.rows as f64 - row_bytes as f64;
        println!("beyond a row of {row_bytes} bytes: {beyond:.2} bytes");
        assert!(usage.rows == NUM_ROWS && beyond < 1.5, "{usage:?}: {beyond} bytes per row");
    }
}

#[test]
fn a_small_table_takes_little() {
    let tier = open(unlimited(16), 64);
    assert!(tier.usage(TABLE).unwrap().bytes < 10_000, "{}", tier.usage(TABLE).unwrap().bytes);
    add(&tier, 64, 0, 10, &vec![0; 4_096 * 64]);
    assert!(tier.usage(TABLE).unwrap().bytes < 300_000, "{}", tier.usage(TABLE).unwrap().bytes);
}
