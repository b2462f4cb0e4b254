//! Tests that need a GPU, as `gpu_tests`: rows of 8-bit floats, and lookups in several tables by one launch.

use std::collections::HashMap;
use std::sync::Arc;

use hps_core::device::{DeviceAnswer, DeviceLookup, DeviceTier, Part};
use hps_core::key::mix;
use hps_core::update_clock::UpdateClock;
use hps_core::{Key, KeyWidth, Rows, TableId};

use crate::abi::{self, HpsLookup, HpsLookups};
use crate::driver::{Device, Stream};
use crate::fp8;
use crate::gpu_tests::Strict;
use crate::memory::DeviceBuffer;
use crate::plan::{CacheKind, Reach, TableSettings};
use crate::tier::{FrontSettings, GpuTier};

const DEFAULT: f32 = 0.1;

/// Numbers of very different sizes, zeros and negative ones among them.
fn row(key: Key, version: u64, dim: usize) -> Vec<u8> {
    let number = |i: u64| {
        let random = mix(key ^ mix(version * 1000 + i));
        let magnitude = (random >> 40) as f32 * 2f32.powi((random & 31) as i32 - 40);
        if random & 64 == 0 { magnitude } else { -magnitude }
    };
    (0..dim as u64).flat_map(|i| number(i).to_le_bytes()).collect()
}

fn some_keys(n: u64, is_hashed: bool) -> Vec<Key> {
    (0..n).map(|i| if is_hashed { mix(i) } else { i }).collect()
}

/// One table.
struct Held {
    settings: TableSettings,
    keys: Vec<Key>,
}

impl Held {
    fn new(number: usize, dim: usize, is_hashed: bool, is_fp8: bool, kind: CacheKind) -> Self {
        let keys = some_keys(3_000, is_hashed);
        let settings = TableSettings {
            storage: TableId(number as u32),
            name: format!("hps_et.m.t{number}"),
            row_bytes: dim * 4,
            is_fp8,
            kind,
            cache_share: 1.0,
            hit_rate_threshold: None,
            reach: Reach::Nothing,
            reachable_rows: 0,
            num_rows: keys.len() as u64,
            largest_key: keys.iter().copied().max(),
        };
        Self { settings, keys }
    }

    fn dim(&self) -> usize {
        self.settings.row_bytes / 4
    }

    fn default_row(&self) -> Vec<u8> {
        DEFAULT.to_le_bytes().repeat(self.dim())
    }

    /// What a lookup must yield.
    fn expected(&self, key: Key, version: u64) -> Vec<u8> {
        if !self.keys.contains(&key) {
            return self.default_row();
        }
        let row = row(key, version, self.dim());
        if self.settings.is_fp8 { fp8::round_trip(&row) } else { row }
    }

    fn rows(&self, version: u64) -> Vec<u8> {
        self.keys.iter().flat_map(|&key| row(key, version, self.dim())).collect()
    }

    /// Some of the table's keys, and some that are not.
    fn asked(&self) -> Vec<Key> {
        self.keys.iter().copied().step_by(3).chain([3_001, u64::MAX, 1 << 40]).collect()
    }

    fn check(&self, rows: &[u8], asked: &[Key], version: u64) {
        let mut expected: HashMap<Key, Vec<u8>> = HashMap::new();
        for (row, &key) in rows.chunks_exact(self.settings.row_bytes).zip(asked) {
            let expected = expected.entry(key).or_insert_with(|| self.expected(key, version));
            assert_eq!(row, expected, "key {key} of {}", self.settings.name);
        }
    }
}

fn open(tables: &[Held]) -> GpuTier {
    let clocks: Arc<[UpdateClock]> = tables.iter().map(|_| UpdateClock::default()).collect();
    let fronts = tables.iter().enumerate().map(|(number, table)| FrontSettings {
        number,
        storage: table.settings.storage,
        default_row: table.default_row(),
    });
    let settings = tables.iter().map(|table| table.settings.clone()).collect();
    let tier = GpuTier::open(0, settings, fronts.collect(), Arc::clone(&clocks), None, Arc::new(Strict));
    let tier = tier.unwrap();
    for table in tables {
        let rows = table.rows(0);
        let rows = Rows::new(&rows, table.settings.row_bytes).unwrap();
        let snapshot = clocks[table.settings.storage.index()].snapshot();
        let mut left_out = Vec::new();
        tier.put(table.settings.storage, Part::Whole, (&table.keys, rows), &snapshot, &mut left_out).unwrap();
    }
    tier
}

fn lookup_of(keys: &DeviceBuffer, out: &DeviceBuffer, num_keys: usize, stream: &Stream) -> DeviceLookup {
    DeviceLookup {
        keys: keys.address(),
        num_keys,
        key_width: KeyWidth::Bits64,
        rows: out.address(),
        stream: stream.handle().0,
    }
}

fn on_device(device: &'static Device, keys: &[Key]) -> DeviceBuffer {
    let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    DeviceBuffer::holding(device, &bytes).unwrap()
}

#[test]
#[ignore = "needs a GPU"]
fn rows_of_8_bit_floats_are_their_round_trip() {
    let device = Device::open(0).unwrap();
    let mut tables = Vec::new();
    for dim in [1, 2, 3, 16, 31, 32, 64, 100, 128, 300] {
        for is_hashed in [false, true] {
            let kind = if dim == 64 { CacheKind::StaticOnHost } else { CacheKind::Static };
            tables.push(Held::new(tables.len(), dim, is_hashed, true, kind));
        }
    }
    let tier = open(&tables);
    let _entered = device.enter().unwrap();
    let stream = Stream::new(device).unwrap();
    for version in 0..2 {
        for (number, table) in tables.iter().enumerate() {
            if version > 0 {
                let rows = table.rows(version);
                let rows = Rows::new(&rows, table.settings.row_bytes).unwrap();
                tier.update(table.settings.storage, &table.keys, rows).unwrap();
            }
            // Each kind of kernel: for few keys, for more, and for many.
            for num_keys in [1, 40, 1003, 20_000, 60_000] {
                let asked: Vec<Key> = table.asked().into_iter().rev().cycle().take(num_keys).collect();
                let keys = on_device(device, &asked);
                let mut rows = vec![0xCD; asked.len() * table.settings.row_bytes];
                let out = DeviceBuffer::holding(device, &rows).unwrap();
                let lookup = lookup_of(&keys, &out, asked.len(), &stream);
                assert!(matches!(tier.lookup(number, &lookup).unwrap(), DeviceAnswer::Enqueued));
                // SAFETY: the buffer has as many bytes; the lookup was sent to the same stream.
                unsafe { device.read(out.address(), &mut rows, &stream).unwrap() };
                table.check(&rows, &asked, version);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn one_launch_serves_keys_of_tables_of_any_dims() {
    let device = Device::open(0).unwrap();
    let tables: Vec<Held> = (0..26)
        .map(|i| Held::new(i, [1, 4, 12, 32, 33, 128, 260][i % 7], i % 2 == 0, i % 5 == 3, CacheKind::Static))
        .collect();
    let tier = open(&tables);
    let _entered = device.enter().unwrap();
    let stream = Stream::new(device).unwrap();
    let mut calls = Vec::new();
    for (number, table) in tables.iter().enumerate() {
        let asked: Vec<Key> = table.asked().into_iter().rev().take(1 + number * 37).collect();
        let out = vec![0xCD; asked.len() * table.settings.row_bytes];
        calls.push((on_device(device, &asked), DeviceBuffer::holding(device, &out).unwrap(), asked));
    }
    let lookups: Vec<HpsLookup> = calls
        .iter()
        .enumerate()
        .map(|(number, (keys, out, asked))| {
            tier.parameters_of(number, &lookup_of(keys, out, asked.len(), &stream)).unwrap()
        })
        .collect();
    let per_block = abi::HPS_KEYS_PER_WARP_MEDIUM * abi::HPS_LOOKUP_MANY_THREADS / 32;
    let mut num_blocks = 0;
    let mut first_blocks = Vec::new();
    for lookup in &lookups {
        first_blocks.extend(u32::to_le_bytes(num_blocks));
        num_blocks += lookup.num_keys.div_ceil(per_block);
    }
    // SAFETY: plain integers without padding.
    let bytes =
        unsafe { std::slice::from_raw_parts(lookups.as_ptr().cast::<u8>(), size_of_val(lookups.as_slice())) };
    let list = DeviceBuffer::holding(device, bytes).unwrap();
    let firsts = DeviceBuffer::holding(device, &first_blocks).unwrap();
    let many = HpsLookups {
        lookups: list.address(),
        first_blocks: firsts.address(),
        num_lookups: lookups.len() as u32,
        unused: 0,
    };
    // SAFETY: all buffers live until the stream is waited for below.
    unsafe { device.lookup_many(&many, num_blocks, stream.handle()).unwrap() };
    stream.synchronize().unwrap();
    for (table, (_, out, asked)) in tables.iter().zip(&calls) {
        let mut rows = vec![0; asked.len() * table.settings.row_bytes];
        // SAFETY: the buffer has as many bytes.
        unsafe { device.read(out.address(), &mut rows, &stream).unwrap() };
        table.check(&rows, asked, 0);
    }
}
