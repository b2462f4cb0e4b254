//! Times the insertion of missed rows by itself: `scripts/bench-gpu --rows insert` runs it, from a program that was built before.
//! Without HPS_BENCHMARK=1 it is a test like others, of small tables.
//!
//! Keys and rows are those of bench/gpu_workload.py: ranks by Zipf's law, a permutation of ranks to keys, and rows that follow
//! from their keys.

use std::num::NonZero;

use hps_core::{Key, TableId};

use crate::abi::{HpsFetchList, HpsLookup, HpsMissList, HpsSetTable};
use crate::driver::{Device, Event, Stream};
use crate::memory::DeviceBuffer;
use crate::plan::{CacheKind, Plan, Reach, TableSettings, keeps_tags};
use crate::table::{Batch, Change, GpuTable};

const ALPHA: f64 = 1.05;
/// Ranks whose probabilities are summed one by one; the midpoint rule covers those behind.
const EXACT_RANKS: u64 = 4096;
/// Of the streams of draws.
const MIXED: u64 = 3;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const FIRST: u64 = 0xbf58_476d_1ce4_e5b9;
const SECOND: u64 = 0x94d0_49bb_1331_11eb;

const GROUPS: usize = 5;
/// Memory that is filled while the host sends what is measured, so that the GPU does not wait for it. Less than the GPU's
/// second-level cache, which keeps a part of what lookups left there.
const SPACER_BYTES: usize = 32 << 20;
const SPACERS: usize = 3;

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ x >> 30).wrapping_mul(FIRST);
    let x = (x ^ x >> 27).wrapping_mul(SECOND);
    x ^ x >> 31
}

/// Zipf's law over `items` ranks, drawn by inversion.
struct Zipf {
    items: u64,
    exact: u64,
    sums: Vec<f64>,
    head: f64,
    start: f64,
    total: f64,
}

impl Zipf {
    fn new(items: u64) -> Self {
        let exact = items.min(EXACT_RANKS);
        let sums: Vec<f64> = (1..=exact)
            .scan(0.0, |sum, rank| {
                *sum += (rank as f64).powf(-ALPHA);
                Some(*sum)
            })
            .collect();
        let head = sums[sums.len() - 1];
        let start = (exact as f64 + 0.5).powf(1.0 - ALPHA);
        let total = head + ((items as f64 + 0.5).powf(1.0 - ALPHA) - start) / (1.0 - ALPHA);
        Self { items, exact, sums, head, start, total }
    }

    /// The rank at `u` in [0, 1).
    fn rank(&self, u: f64) -> u64 {
        let t = u * self.total;
        if t < self.head {
            return self.sums.partition_point(|&sum| sum <= t) as u64;
        }
        let z = self.start + (1.0 - ALPHA) * (t - self.head);
        let number = (z.powf(1.0 / (1.0 - ALPHA)) + 0.5) as u64;
        number.clamp(self.exact + 1, self.items) - 1
    }
}

/// The key of a rank, by a permutation of [0, num_rows).
fn key_of(rank: u64, num_rows: u64) -> Key {
    let bits = 64 - (num_rows - 1).leading_zeros();
    let (mask, shift) = ((1u64 << bits) - 1, bits.div_ceil(2));
    let mut key = rank;
    loop {
        key = key.wrapping_add(GOLDEN) & mask;
        key ^= key >> shift;
        key = key.wrapping_mul(FIRST) & mask;
        key ^= key >> shift;
        key = key.wrapping_mul(SECOND) & mask;
        key ^= key >> shift;
        if key < num_rows {
            return key;
        }
    }
}

/// Calls `fill` for parts of `items` in several threads, with the number of the first unit of each part.
fn in_parallel<T: Send>(items: &mut [T], unit: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let units = (items.len() / unit).div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (number, part) in items.chunks_mut(units * unit).enumerate() {
            let fill = &fill;
            scope.spawn(move || fill(number * units, part));
        }
    });
}

/// The rows of keys: floats that are whole numbers of 24 bits.
fn rows_of(keys: &[Key], dim: usize) -> Vec<u8> {
    let row_bytes = dim * 4;
    let mut rows = vec![0; keys.len() * row_bytes];
    in_parallel(&mut rows, row_bytes, |first, part| {
        for (row, &key) in part.chunks_exact_mut(row_bytes).zip(&keys[first..]) {
            let mut bits = (key as u32).wrapping_mul(0x9e37_79b1);
            for value in row.chunks_exact_mut(4) {
                value.copy_from_slice(&((bits >> 8) as f32).to_le_bytes());
                bits = bits.wrapping_add(0x85eb_ca77);
            }
        }
    });
    rows
}

/// A batch of keys: that of the same step of bench/gpu_misses.py.
fn draw(zipf: &Zipf, dim: usize, num_keys: usize, step: u64) -> Vec<Key> {
    let log = u64::from(num_keys.next_power_of_two().ilog2());
    let seed = splitmix64((dim as u64) << 48 | MIXED << 40 | log << 32 | step);
    let mut keys = vec![0; num_keys];
    in_parallel(&mut keys, 1, |first, part| {
        for (i, key) in part.iter_mut().enumerate() {
            let u = (splitmix64(seed.wrapping_add((first + i) as u64)) >> 11) as f64 * 0.5f64.powi(53);
            *key = key_of(zipf.rank(u), zipf.items);
        }
    });
    keys
}

fn bytes_of(keys: &[Key]) -> Vec<u8> {
    keys.iter().flat_map(|key| key.to_le_bytes()).collect()
}

/// A cache of a tenth of the rows, without anything below it, and buffers for batches. All of its work is in one stream.
struct Cache {
    device: &'static Device,
    dim: usize,
    num_rows: u64,
    table: GpuTable,
    max_keys: usize,
    keys: DeviceBuffer,
    rows: DeviceBuffer,
    out: DeviceBuffer,
    /// A word, two counters, positions, keys.
    list: DeviceBuffer,
    sequence: u32,
    spacer: DeviceBuffer,
    between: [Event; 2],
    stream: Stream,
}

impl Cache {
    /// The device must have been entered, for this and every other function.
    fn new(device: &'static Device, dim: usize, num_rows: u64, max_keys: usize) -> Self {
        let settings = TableSettings {
            storage: TableId(0),
            name: "hps_et.m.t".into(),
            row_bytes: dim * 4,
            is_fp8: false,
            kind: CacheKind::Dynamic,
            cache_share: 0.1,
            hit_rate_threshold: None,
            reach: Reach::Nothing,
            reachable_rows: 0,
            num_rows,
            largest_key: Some(num_rows - 1),
        };
        let plan = Plan::new(&settings).unwrap();
        let keeps_tags = keeps_tags(std::slice::from_ref(&plan), device.l2_bytes());
        let stream = Stream::new(device).unwrap();
        let buffer = |num_bytes: usize| DeviceBuffer::new(device, num_bytes as u64).unwrap();
        let cache = Self {
            table: GpuTable::new(device, settings, &plan, keeps_tags, None, &stream).unwrap(),
            keys: buffer(max_keys * 8),
            rows: buffer(max_keys * dim * 4),
            out: buffer(max_keys * dim * 4),
            list: DeviceBuffer::zeroed(device, 16 + max_keys as u64 * 12, stream.handle()).unwrap(),
            spacer: buffer(SPACER_BYTES),
            between: [Event::timed(device).unwrap(), Event::timed(device).unwrap()],
            sequence: 0,
            device,
            dim,
            num_rows,
            max_keys,
            stream,
        };
        cache.stream.synchronize().unwrap();
        cache
    }

    fn listed_keys(&self) -> u64 {
        self.list.address() + 16 + self.max_keys as u64 * 4
    }

    /// Adds the hottest rows, as a store does when it opens.
    fn warm(&self) {
        let hottest = self.table.num_slots();
        let at_once = self.max_keys.min(1 << 16) as u64;
        for first in (0..hottest).step_by(at_once as usize) {
            let ranks = first..(first + at_once).min(hottest);
            let keys: Vec<Key> = ranks.map(|rank| key_of(rank, self.num_rows)).collect();
            // SAFETY: ours and as large; the change that read it before was waited for.
            unsafe { self.device.write(self.keys.address(), &bytes_of(&keys)).unwrap() };
            self.write_rows(&keys);
            self.change(Change::Warm, self.keys.address(), keys.len());
            self.stream.synchronize().unwrap();
        }
    }

    fn write_rows(&self, keys: &[Key]) {
        assert!(keys.len() <= self.max_keys);
        // SAFETY: ours and as large; the change that read it before was waited for.
        unsafe { self.device.write(self.rows.address(), &rows_of(keys, self.dim)).unwrap() };
    }

    fn change(&self, change: Change, keys: u64, num_keys: usize) {
        let batch = Batch { keys, rows: self.rows.address(), indices: 0, num_keys: num_keys as u32 };
        // SAFETY: both buffers are ours, hold as many keys and rows, and are written again when the stream was waited for.
        unsafe { self.table.change(self.device, change, batch, &self.stream).unwrap() };
    }

    /// Looks keys up as a store does, into `out`. Returns those that were missed, each time they were; they stay in the list.
    fn look_up(&mut self, keys: &[Key]) -> Vec<Key> {
        assert!(keys.len() <= self.max_keys);
        // SAFETY: ours and as large; the lookup that read it before was waited for.
        unsafe { self.device.write(self.keys.address(), &bytes_of(keys)).unwrap() };
        self.sequence += 1;
        let list = self.list.address();
        let lookup = HpsLookup {
            first: self.table.first(),
            second: HpsSetTable::default(),
            keys: self.keys.address(),
            out: self.out.address(),
            default_row: 0,
            counters: 0,
            misses: HpsMissList {
                count: list + 8,
                done: list + 12,
                positions: list + 16,
                keys: self.listed_keys(),
                unique: 0,
                unique_out: 0,
                word: list,
                sequence: self.sequence,
                unused: 0,
            },
            fetch: HpsFetchList::default(),
            wanted: 0,
            num_keys: keys.len() as u32,
            key_bytes: 8,
            row_bytes: self.dim as u32 * 4,
            out_row_bytes: self.dim as u32 * 4,
            is_fp8: 0,
            unused: 0,
        };
        // SAFETY: all buffers are ours and have room for as many keys; they are used again when the stream was waited for.
        unsafe { self.device.lookup(self.table.mode(), &lookup, self.stream.handle()).unwrap() };
        let word = self.read(list, 1)[0];
        assert_eq!(word >> 32, u64::from(self.sequence));
        self.read(self.listed_keys(), (word & u64::from(u32::MAX)) as usize)
    }

    /// Words of device memory, when the stream has passed.
    fn read(&self, address: u64, len: usize) -> Vec<u64> {
        let mut bytes = vec![0; len * 8];
        // SAFETY: within a buffer of ours; kernels have written as many words.
        unsafe { self.device.read(address, &mut bytes, &self.stream).unwrap() };
        bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    }

    /// Inserts rows, those of the keys that are still in the list. Returns the microseconds that it took the GPU.
    fn insert(&self, num_keys: usize) -> f64 {
        let stream = self.stream.handle();
        for _ in 0..SPACERS {
            // SAFETY: ours, and nobody reads it.
            unsafe { self.device.fill(self.spacer.address(), 0, SPACER_BYTES, stream).unwrap() };
        }
        let [start, end] = &self.between;
        start.record(stream).unwrap();
        self.change(Change::Insert, self.listed_keys(), num_keys);
        end.record(stream).unwrap();
        self.stream.synchronize().unwrap();
        end.us_since(start).unwrap()
    }

    /// A sample of what is resident, rows that were inserted above all, is what it should be. `offered` is sorted.
    fn check(&mut self, offered: &[Key]) {
        let mut resident = self.table.resident_keys(self.device, &self.stream).unwrap();
        assert_eq!(resident.len() as u64, self.table.num_rows(self.device, &self.stream).unwrap());
        resident.sort_unstable();
        assert!(resident.windows(2).all(|pair| pair[0] < pair[1]), "a key is in two places");
        // They were missed once.
        let inserted: Vec<Key> =
            resident.iter().copied().filter(|key| offered.binary_search(key).is_ok()).collect();
        assert!(!inserted.is_empty(), "nothing was inserted");
        let half = self.max_keys / 2;
        let sample = |keys: &[Key]| keys.iter().step_by(keys.len().div_ceil(half)).copied().collect();
        let mut keys: Vec<Key> = sample(&inserted);
        keys.append(&mut sample(&resident));
        assert_eq!(self.look_up(&keys), [0; 0], "a resident key is not found");
        let expected = rows_of(&keys, self.dim);
        let mut rows = vec![0; expected.len()];
        // SAFETY: all rows were found, so all of them are written.
        unsafe { self.device.read(self.out.address(), &mut rows, &self.stream).unwrap() };
        let row_bytes = self.dim * 4;
        let differs =
            |i: &usize| rows[i * row_bytes..][..row_bytes] != expected[i * row_bytes..][..row_bytes];
        let wrong = (0..keys.len()).find(differs);
        assert!(wrong.is_none(), "row of key {}", wrong.map_or(0, |i| keys[i]));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// How far the medians of groups of calls, one after the other, lie apart, in percent of the median of all.
fn spread(times: &[f64]) -> f64 {
    let ends = (0..=GROUPS).map(|i| times.len() * i / GROUPS).collect::<Vec<_>>();
    let medians: Vec<f64> = ends.windows(2).map(|group| median(&times[group[0]..group[1]])).collect();
    let most = medians.iter().copied().fold(f64::MIN, f64::max);
    let least = medians.iter().copied().fold(f64::MAX, f64::min);
    100.0 * (most - least) / median(times)
}

/// Each step looks a new batch up in a warm cache, brings the rows of the missed keys, duplicates among them, to GPU memory, and
/// inserts them, which alone is timed. Mean numbers of rows, and their bytes, are those of a step.
#[test]
#[ignore = "needs a GPU"]
fn insert_benchmark() {
    let is_benchmark = std::env::var_os("HPS_BENCHMARK").is_some_and(|value| value == "1");
    let (num_keys, untimed, timed) = if is_benchmark { (1 << 20, 8, 50) } else { (1 << 14, 2, 5) };
    for (dim, all_rows) in [(128, 20_000_000), (32, 60_000_000)] {
        let num_rows = if is_benchmark { all_rows } else { 200_000 };
        let device = Device::open(0).unwrap();
        let _entered = device.enter().unwrap();
        let mut cache = Cache::new(device, dim, num_rows, num_keys);
        cache.warm();
        let zipf = Zipf::new(num_rows);
        let mut offered: Vec<Key> = Vec::new();
        let mut added = Vec::new();
        let mut times = Vec::new();
        for step in 0..untimed + timed {
            let missed = cache.look_up(&draw(&zipf, dim, num_keys, step));
            assert!(!missed.is_empty() && missed.len() < num_keys / 2, "{} keys missed", missed.len());
            cache.write_rows(&missed);
            let before = cache.table.results(device, &cache.stream).unwrap().added;
            let us = cache.insert(missed.len());
            if step >= untimed {
                let after = cache.table.results(device, &cache.stream).unwrap().added;
                added.push((missed.len() as u64, after - before));
                times.push(us);
            }
            offered.extend(missed);
        }
        let mean = |total: u64| total as f64 / timed as f64;
        let rows_offered = mean(added.iter().map(|(offered, _)| offered).sum());
        let rows_added = mean(added.iter().map(|(_, added)| added).sum());
        let mb = |rows: f64| rows * dim as f64 * 4.0 / 1e6;
        println!(
            "\ninsert: dim={dim} rows={num_rows} keys={num_keys} t_us={:.2} spread={:.2} offered={rows_offered:.1} \
             added={rows_added:.1} offered_mb={:.2} added_mb={:.3}",
            median(&times),
            spread(&times),
            mb(rows_offered),
            mb(rows_added),
        );
        offered.sort_unstable();
        cache.check(&offered);
    }
}

/// By what bench/gpu_workload.py compares its own with.
#[test]
fn keys_are_those_of_the_other_benchmarks() {
    for (dim, num_rows, ranks, first, sum) in [
        (
            128,
            20_000_000,
            [8_808_097, 8_299_378, 13_295_108, 7_642_489, 6_101_445, 1_014_310],
            [8_756_946, 7_506_266, 797_492, 797_492],
            10_134_589_555,
        ),
        (
            32,
            60_000_000,
            [5_837_198, 47_181_759, 12_353_464, 3_681_896, 22_384_498, 14_462_029],
            [56_325_002, 52_732_411, 11_447_202, 41_647_723],
            27_747_721_034,
        ),
    ] {
        assert_eq!([0, 1, 2, 3, 4, 5].map(|rank| key_of(rank, num_rows)), ranks);
        let keys = draw(&Zipf::new(num_rows), dim, 1024, 0);
        assert_eq!((&keys[..4], keys.iter().sum()), (&first[..], sum));
    }
}

#[test]
fn rows_follow_from_their_keys_and_spreads_from_groups() {
    let rows = rows_of(&[5, 1 << 40 | 7], 16);
    let value = |key: u32, j: u32| {
        let bits = key.wrapping_mul(0x9e37_79b1).wrapping_add(j.wrapping_mul(0x85eb_ca77));
        ((bits >> 8) as f32).to_le_bytes()
    };
    assert_eq!((&rows[12..16], &rows[64 + 60..]), (&value(5, 3)[..], &value(7, 15)[..]));
    // Medians of the groups: 1, 2, 3, 4, 5.
    let times: Vec<f64> = (0..15).map(|i| f64::from(i / 3 + 1)).collect();
    assert!((spread(&times) - 400.0 / 3.0).abs() < 1e-9);
}
