//! How fast tables are loaded, against a copy of the same bytes, and rows are read. Run with
//! `cargo test --release -p hps-ssd --test bench -- --ignored --nocapture`; `HPS_BENCH_ROWS`, `HPS_BENCH_DIM` (32),
//! `HPS_BENCH_TURNS` of lookups and fio (2), `TMPDIR` for the disk.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a measurement")]

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use common::{TABLE, spec};
use hps_core::batch::Batch;
use hps_core::key::{Key, KeyWidth, mix};
use hps_core::row::{Rows, RowsMut};
use hps_core::tier::{Expected, TableLoad, Tier, TruthTier};
use hps_ssd::{SsdSettings, SsdTier};

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Writes so many bytes from memory to a file and syncs it; seconds.
fn write_and_sync(path: &Path, num_bytes: u64) -> f64 {
    let piece = vec![7u8; 8 << 20];
    let began = Instant::now();
    let mut file = std::fs::File::create(path).unwrap();
    let mut left = num_bytes;
    while left > 0 {
        let taken = left.min(piece.len() as u64);
        file.write_all(&piece[..taken as usize]).unwrap();
        left -= taken;
    }
    file.sync_all().unwrap();
    began.elapsed().as_secs_f64()
}

const NUM_THREADS: usize = 16;
const PAGE_BYTES: usize = 4096;
/// Of Linux.
const O_DIRECT: i32 = 0o40000;

/// Nanoseconds per page of reads of random pages of a file, past the page cache, by as many threads as the tier has.
fn read_pages(path: &Path, num_pages: usize) -> f64 {
    let file = std::fs::OpenOptions::new().read(true).custom_flags(O_DIRECT).open(path).unwrap();
    let pages_there = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..NUM_THREADS {
            let file = &file;
            scope.spawn(move || {
                let mut buffer = vec![0u8; 2 * PAGE_BYTES];
                let aligned = buffer.as_ptr().align_offset(PAGE_BYTES);
                for i in 0..num_pages / NUM_THREADS {
                    let page = mix((thread << 32 | i) as u64) % pages_there;
                    let into = &mut buffer[aligned..aligned + PAGE_BYTES];
                    file.read_exact_at(into, page * PAGE_BYTES as u64).unwrap();
                }
            });
        }
    });
    began.elapsed().as_nanos() as f64 / num_pages as f64
}

/// What fio reads per second: random pages of the files of a database, past the page cache, with as many threads as the tier has. None
/// if it is not installed.
fn fio(database: &Path) -> Option<f64> {
    let names: Vec<String> = table_files(database).iter().map(|file| file.to_str().unwrap().into()).collect();
    let output = std::process::Command::new("fio")
        .args(["--name=read", "--readonly", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=psync"])
        .args(["--thread", "--group_reporting", "--time_based", "--runtime=5", "--output-format=json"])
        .args([format!("--numjobs={NUM_THREADS}"), format!("--filename={}", names.join(":"))])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).unwrap();
    report["jobs"][0]["read"]["iops"].as_f64()
}

fn put_rows(load: &mut dyn TableLoad, num_rows: u64, row_bytes: usize, key_of: fn(u64) -> Key) {
    let rows = vec![1u8; 8_192 * row_bytes];
    for start in (0..num_rows).step_by(8_192) {
        let keys: Vec<Key> = (start..num_rows.min(start + 8_192)).map(key_of).collect();
        load.put(&keys, Rows::new(&rows[..keys.len() * row_bytes], row_bytes).unwrap()).unwrap();
    }
}

/// Large ones: those of the table.
fn table_files(database: &Path) -> Vec<std::path::PathBuf> {
    let paths = std::fs::read_dir(database).unwrap().map(|entry| entry.unwrap().path());
    let is_large = |path: &std::path::PathBuf| std::fs::metadata(path).unwrap().len() > 1 << 20;
    paths.filter(|path| path.extension().is_some_and(|end| end == "sst")).filter(is_large).collect()
}

/// Takes the table's pages out of the page cache.
fn drop_pages(database: &Path) {
    for path in table_files(database) {
        let file = std::fs::File::open(path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

/// Rows of random keys whose pages are in no cache, beside fio on the same files in turns.
#[test]
#[ignore = "a measurement"]
fn reading_from_the_disk() {
    let (num_rows, dim) = (number("HPS_BENCH_ROWS", 20_000_000), number("HPS_BENCH_DIM", 32));
    let row_bytes = dim as usize * 4;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let table = [spec("t", row_bytes, KeyWidth::Bits64)];
    let settings =
        SsdSettings { num_threads: NUM_THREADS, block_cache_bytes: 64 << 20, ..SsdSettings::new(path) };
    let tier = SsdTier::open(settings, &table).unwrap();
    let mut load = tier.begin_load(TABLE, Expected::rows(num_rows)).unwrap();
    put_rows(load.as_mut(), num_rows, row_bytes, mix);
    load.commit("source", &|_| {}).unwrap();
    let on_disk = tier.usage(TABLE).unwrap().bytes;
    println!(
        "{num_rows} rows of dim {dim}: {:.2} bytes on disk for each of keys and rows",
        on_disk as f64 / (num_rows * (row_bytes as u64 + 8)) as f64
    );
    for (num_keys, num_rounds) in [(256, 60), (4_096, 20), (65_536, 3)] {
        for turn in 0..number("HPS_BENCH_TURNS", 2) {
            let iops = fio(path);
            let mut out = vec![0u8; num_keys * row_bytes];
            let (mut seconds, mut slowest, mut cpu) = (0.0, 0.0f64, 0.0);
            let mut reads = [0; 2];
            for round in 0..num_rounds {
                drop_pages(path);
                let seed = (turn * 1_000 + round) << 40;
                let keys: Vec<Key> = (0..num_keys as u64).map(|i| mix(mix(seed | i) % num_rows)).collect();
                let mut misses = Vec::new();
                let before = file_reads();
                let (began, cpu_before) = (Instant::now(), cpu_seconds());
                let mut rows = RowsMut::from_bytes(&mut out, row_bytes).unwrap();
                tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut misses).unwrap();
                let taken = began.elapsed().as_secs_f64();
                cpu += cpu_seconds() - cpu_before;
                (seconds, slowest) = (seconds + taken, slowest.max(taken));
                assert!(misses.is_empty());
                reads
                    .iter_mut()
                    .zip(file_reads().iter().zip(before))
                    .for_each(|(sum, (now, before))| *sum += now - before);
            }
            let rate = num_keys as f64 * num_rounds as f64 / seconds;
            println!(
                "{num_keys} keys: {rate:.0} rows/s, {:.2} reads of {:.0} bytes each, {:.1} us of a processor, slowest batch {:.1} ms; fio {}",
                reads[0] as f64 / (num_keys as f64 * num_rounds as f64),
                reads[1] as f64 / reads[0] as f64,
                cpu * 1e6 / (num_keys as f64 * num_rounds as f64),
                slowest * 1e3,
                iops.map_or("is not here".into(), |iops| format!("{iops:.0} pages/s: {:.2}", rate / iops))
            );
        }
    }
    println!("{} MB at most", peak_bytes() >> 20);
}

/// How often this process has read from files, and how many bytes came from the disk.
fn file_reads() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    ["syscr", "read_bytes"].map(|name| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    })
}

/// Processor time that this process has taken; seconds.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn peak_bytes() -> u64 {
    let mut text = String::new();
    std::fs::File::open("/proc/self/status").unwrap().read_to_string(&mut text).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[ignore = "a measurement"]
fn loading_and_reading() {
    let (num_rows, dim) = (number("HPS_BENCH_ROWS", 4_000_000), number("HPS_BENCH_DIM", 32));
    let row_bytes = dim as usize * 4;
    let num_bytes = num_rows * (row_bytes as u64 + 8);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("copy");
    let copy = write_and_sync(&file, num_bytes);
    let page = read_pages(&file, 32_768);
    std::fs::remove_file(&file).unwrap();
    println!(
        "{num_rows} rows of dim {dim}, {:.2} GB; written and synced as one file: {copy:.2} s",
        num_bytes as f64 / 1e9
    );
    println!("random pages of that file, past the page cache, {NUM_THREADS} threads: {page:.0} ns each");
    for (what, key_of) in
        [("ascending keys", (|i| i) as fn(u64) -> Key), ("hashed keys", |i| mix(i ^ 0x5555))]
    {
        let path = directory.path().join(what);
        let table = [spec("t", row_bytes, KeyWidth::Bits64)];
        let before = peak_bytes();
        let began = Instant::now();
        let tier = SsdTier::open(SsdSettings { num_threads: NUM_THREADS, ..SsdSettings::new(&path) }, &table)
            .unwrap();
        let mut load = tier.begin_load(TABLE, Expected::rows(num_rows)).unwrap();
        put_rows(load.as_mut(), num_rows, row_bytes, key_of);
        let put = began.elapsed().as_secs_f64();
        assert_eq!(load.commit("source", &|_| {}).unwrap(), num_rows);
        let all = began.elapsed().as_secs_f64();
        println!(
            "{what}: loaded in {all:.2} s ({put:.2} s until the commit), {:.2} M rows/s, {:.1} x the copy, {} MB more memory",
            num_rows as f64 / all / 1e6,
            all / copy,
            (peak_bytes() - before) >> 20
        );
        let on_disk = tier.usage(TABLE).unwrap().bytes;
        drop(tier);
        let began = Instant::now();
        let tier = SsdTier::open(SsdSettings { num_threads: NUM_THREADS, ..SsdSettings::new(&path) }, &table)
            .unwrap();
        println!(
            "{what}: {:.2} bytes on disk for each of keys and rows; opened again in {:.3} s",
            on_disk as f64 / num_bytes as f64,
            began.elapsed().as_secs_f64()
        );
        // The files of a load are not in the page cache.
        for (num_keys, num_rounds) in [(256, 40), (4_096, 10), (65_536, 20)] {
            let mut out = vec![0u8; num_keys * row_bytes];
            let mut times = Vec::new();
            for round in 0..num_rounds {
                let keys: Vec<Key> =
                    (0..num_keys as u64).map(|i| key_of(mix(round << 32 | i) % num_rows)).collect();
                let mut misses = Vec::new();
                let began = Instant::now();
                let mut rows = RowsMut::from_bytes(&mut out, row_bytes).unwrap();
                tier.lookup(TABLE, Batch::all(&keys), &mut rows, &mut misses).unwrap();
                times.push(began.elapsed().as_nanos() as f64 / num_keys as f64);
                assert!(misses.is_empty());
            }
            times.sort_by(f64::total_cmp);
            let (first, last) = (times[0], times[times.len() - 1]);
            println!(
                "{what}: {num_keys} keys: {:.0} ns per row ({first:.0} to {last:.0})",
                times[times.len() / 2]
            );
        }
    }
}
