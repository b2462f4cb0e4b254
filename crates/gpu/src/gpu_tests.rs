//! Tests that need a GPU: `scripts/test-gpu` runs them, from a program that was built before.
//!
//! The truth is a map and a loop; rows carry their key, a version and a checksum, so that a torn row or another key's shows.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hps_core::device::{DeviceAnswer, DeviceLookup, DeviceTier, MissedKeys, Part, ReachableRows};
use hps_core::key::mix;
use hps_core::observer::{Observer, Progress};
use hps_core::tier::{CacheTier, TableSpec, Tier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Key, KeyWidth, Rows, TableId};
use hps_host::{EvictionPolicy, HostSettings, HostTier};
use parking_lot::{Mutex, RwLock};

use crate::abi::{self, HpsDump, HpsLookup, HpsMissList, HpsModify, HpsScatter, HpsSetTable, HpsUnique};
use crate::driver::{Device, Stream};
use crate::fetch;
use crate::memory::limit::PinLimit;
use crate::memory::{DeviceBuffer, PinnedAllocator};
use crate::plan::{CacheKind, Reach, TableSettings};
use crate::tier::{FrontSettings, GpuTier};

const TABLE: TableId = TableId(0);

/// 32-bit words of a row: key, version and position mixed, then a checksum.
fn row(key: Key, version: u64, row_bytes: usize) -> Vec<u8> {
    let num_words = row_bytes / 4;
    let mut words: Vec<u32> =
        (0..num_words as u64).map(|i| mix(key ^ mix(version.wrapping_mul(64) + i)) as u32).collect();
    words[0] = version as u32;
    if num_words > 1 {
        words[num_words - 1] = checksum(key, &words[..num_words - 1]);
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn checksum(key: Key, words: &[u32]) -> u32 {
    words.iter().fold(mix(key) as u32, |sum, &word| sum.rotate_left(5) ^ word.wrapping_mul(0x9e37_79b1))
}

/// The version of a row that is whole and of this key.
fn version_of(key: Key, row: &[u8]) -> Option<u64> {
    let words: Vec<u32> =
        row.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let (last, rest) = words.split_last()?;
    (checksum(key, rest) == *last).then_some(u64::from(words[0]))
}

/// Warnings that a test asks for.
#[derive(Default)]
struct Recording(Mutex<Vec<String>>);

impl Observer for Recording {
    fn warn(&self, text: &str) {
        self.0.lock().push(text.into());
    }
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {}
}

/// Errors of threads behind the lookups are errors of the test.
pub(crate) struct Strict;

/// Unless they are expected.
struct Lenient;

impl Observer for Lenient {
    fn warn(&self, text: &str) {
        println!("{text}");
    }
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {}
}

impl Observer for Strict {
    fn warn(&self, text: &str) {
        eprintln!("{text}");
        std::process::exit(1);
    }
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {}
}

/// A tier over a map; and, if it reads rows in host memory, over a host tier that holds all of them, or half.
struct Fixture {
    device: &'static Device,
    tier: GpuTier,
    host: Option<Arc<HostTier>>,
    reach: Reach,
    truth: RwLock<HashMap<Key, u64>>,
    clocks: Arc<[UpdateClock]>,
    row_bytes: usize,
}

impl Fixture {
    fn open(kind: CacheKind, keys: &[Key], cache_share: f64, row_bytes: usize) -> Self {
        Self::open_reaching((kind, Reach::Nothing), keys, cache_share, row_bytes, Arc::new(Strict))
    }

    fn open_reaching(
        (kind, reach): (CacheKind, Reach),
        keys: &[Key],
        cache_share: f64,
        row_bytes: usize,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let settings = TableSettings {
            storage: TABLE,
            name: "hps_et.m.t".into(),
            row_bytes,
            is_fp8: false,
            kind,
            cache_share,
            hit_rate_threshold: None,
            reach,
            reachable_rows: keys.len() as u64,
            num_rows: keys.len() as u64,
            largest_key: keys.iter().copied().max(),
        };
        let front = FrontSettings { number: 0, storage: TABLE, default_row: vec![0xAB; row_bytes] };
        let clocks: Arc<[UpdateClock]> = Arc::new([UpdateClock::default()]);
        let host = (reach > Reach::Nothing).then(|| Arc::new(open_host(reach, keys, row_bytes)));
        let reachable = host.clone().map(|host| host as Arc<dyn ReachableRows>);
        let tier =
            GpuTier::open(0, vec![settings], vec![front], Arc::clone(&clocks), reachable, observer).unwrap();
        let fixture = Self {
            device: Device::open(0).unwrap(),
            tier,
            host,
            reach,
            truth: RwLock::new(keys.iter().map(|&key| (key, 0)).collect()),
            clocks,
            row_bytes,
        };
        fixture.fill(keys);
        fixture
    }

    fn fill(&self, keys: &[Key]) {
        let snapshot = self.clocks[0].snapshot();
        self.tier.map_rows(TABLE, &mut |_| {}).unwrap();
        let wants = self.tier.wants(TABLE);
        let parts = [
            (Part::Whole, if wants.all { keys.len() } else { 0 }),
            (Part::Cache, (wants.hottest as usize).min(keys.len())),
        ];
        for (part, most) in parts {
            for keys in keys[..most].chunks(10_000) {
                let rows: Vec<u8> = keys.iter().flat_map(|&key| row(key, 0, self.row_bytes)).collect();
                let rows = Rows::new(&rows, self.row_bytes).unwrap();
                let mut left_out = Vec::new();
                self.tier.put(TABLE, part, (keys, rows), &snapshot, &mut left_out).unwrap();
                assert!(left_out.is_empty());
            }
        }
    }

    fn expected(&self, key: Key) -> Vec<u8> {
        self.truth
            .read()
            .get(&key)
            .map_or(vec![0xAB; self.row_bytes], |&version| row(key, version, self.row_bytes))
    }

    /// As the store's walk does.
    fn answer(&self, mut missed: Box<dyn MissedKeys>) -> (usize, usize) {
        let (hits, misses) = missed.wait().unwrap();
        loop {
            let snapshot = self.clocks[0].snapshot();
            let Some((keys, mut rows)) = missed.next_piece().unwrap() else { return (hits, misses) };
            let mut missing = Vec::new();
            for (i, &key) in keys.iter().enumerate() {
                if !self.truth.read().contains_key(&key) {
                    missing.push(i as u32);
                }
                assert!(rows.write(i, &self.expected(key)));
            }
            missed.give_piece(&missing, &snapshot).unwrap();
        }
    }

    /// Looks keys up and returns their rows.
    fn lookup(&self, keys: &[Key]) -> Vec<u8> {
        let _entered = self.device.enter().unwrap();
        let stream = Stream::new(self.device).unwrap();
        let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let on_device = DeviceBuffer::holding(self.device, &bytes).unwrap();
        let mut rows = vec![0xCD; keys.len() * self.row_bytes];
        let out = DeviceBuffer::holding(self.device, &rows).unwrap();
        let lookup = DeviceLookup {
            keys: on_device.address(),
            num_keys: keys.len(),
            key_width: KeyWidth::Bits64,
            rows: out.address(),
            stream: stream.handle().0,
        };
        match self.tier.lookup(0, &lookup).unwrap() {
            DeviceAnswer::Enqueued => {}
            DeviceAnswer::Missed(missed) => {
                self.answer(missed);
            }
            DeviceAnswer::Later(..) => panic!("nobody asked for default rows"),
        }
        // SAFETY: the buffer has as many bytes; the lookup was sent to the same stream.
        unsafe { self.device.read(out.address(), &mut rows, &stream).unwrap() };
        rows
    }

    #[track_caller]
    fn check(&self, keys: &[Key]) {
        let rows = self.lookup(keys);
        for (i, &key) in keys.iter().enumerate() {
            assert_eq!(
                rows[i * self.row_bytes..][..self.row_bytes],
                self.expected(key),
                "key {key}, position {i}"
            );
        }
    }

    fn update(&self, keys: &[Key], version: u64) {
        let rows: Vec<u8> = keys.iter().flat_map(|&key| row(key, version, self.row_bytes)).collect();
        let rows = Rows::new(&rows, self.row_bytes).unwrap();
        self.truth.write().extend(keys.iter().map(|&key| (key, version)));
        self.clocks[0].advance(keys);
        if let Some(host) = &self.host {
            match self.reach {
                Reach::All => host.insert(TABLE, keys, rows).unwrap(),
                _ => host.update(TABLE, keys, rows).unwrap(),
            }
            self.clocks[0].advance(keys);
        }
        self.tier.update(TABLE, keys, rows).unwrap();
        self.reclaim();
    }

    fn reclaim(&self) {
        if let Some(host) = &self.host {
            host.reclaim(TABLE);
        }
    }

    fn refresh(&self) {
        let keys = self.tier.resident_keys(TABLE).unwrap();
        let snapshot = self.clocks[0].snapshot();
        let rows: Vec<u8> = keys.iter().flat_map(|&key| self.expected(key)).collect();
        let truth = self.truth.read();
        let missing: Vec<u32> =
            (0..keys.len() as u32).filter(|&i| !truth.contains_key(&keys[i as usize])).collect();
        drop(truth);
        let rows = Rows::new(&rows, self.row_bytes).unwrap();
        self.tier.refresh(TABLE, &keys, rows, &missing, &snapshot).unwrap();
    }

    fn erase(&self, keys: &[Key]) {
        let mut truth = self.truth.write();
        for key in keys {
            truth.remove(key);
        }
        drop(truth);
        self.clocks[0].advance(keys);
        if let Some(host) = &self.host {
            host.erase(TABLE, keys).unwrap();
            self.clocks[0].advance(keys);
        }
        self.tier.erase(TABLE, keys).unwrap();
        self.reclaim();
    }
}

/// A host tier in pinned memory with all of these keys, or half of them.
fn open_host(reach: Reach, keys: &[Key], row_bytes: usize) -> HostTier {
    let settings = HostSettings {
        num_partitions: 4,
        overflow_margin: None,
        overflow_policy: EvictionPolicy::Random,
        overflow_resolution_target: 0.8,
        serves_devices: true,
    };
    let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes, key_width: KeyWidth::Bits64 };
    let allocator = Arc::new(PinnedAllocator::new(0, Arc::new(Strict)).unwrap());
    let host = HostTier::open(settings, &[spec], allocator).unwrap();
    let held: Vec<Key> =
        keys.iter().copied().filter(|&key| reach == Reach::All || mix(key).is_multiple_of(2)).collect();
    for keys in held.chunks(10_000) {
        let rows: Vec<u8> = keys.iter().flat_map(|&key| row(key, 0, row_bytes)).collect();
        host.insert(TABLE, keys, Rows::new(&rows, row_bytes).unwrap()).unwrap();
    }
    host
}

const KINDS: [(CacheKind, Reach); 7] = [
    (CacheKind::Dynamic, Reach::All),
    (CacheKind::Dynamic, Reach::Some),
    (CacheKind::Dynamic, Reach::Nothing),
    (CacheKind::Bypass, Reach::Nothing),
    (CacheKind::Static, Reach::Nothing),
    (CacheKind::StaticOnHost, Reach::Nothing),
    (CacheKind::Uvm, Reach::Nothing),
];

/// However few keys a lookup has, rows in host memory are fetched after it; until this is dropped.
struct Fetching(usize);

impl Fetching {
    fn all() -> Self {
        let before = fetch::min_keys();
        fetch::set_min_keys(1);
        Self(before)
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        fetch::set_min_keys(self.0);
    }
}

fn dense(n: u64) -> Vec<Key> {
    (0..n).collect()
}

fn hashed(n: u64) -> Vec<Key> {
    // Negative numbers, the smallest and the largest among them.
    (0..n).map(|i| if i < 4 { [0, u64::MAX, 1 << 63, (1 << 63) - 1][i as usize] } else { mix(i) }).collect()
}

fn is_small() -> bool {
    std::env::var_os("HPS_TEST_SMALL").is_some()
}

#[test]
#[ignore = "needs a GPU"]
fn host_and_device_agree_on_every_struct() {
    let facts: Vec<u64> = [
        size_of::<HpsSetTable>(),
        std::mem::offset_of!(HpsSetTable, key_bound),
        std::mem::offset_of!(HpsSetTable, key_shift),
        size_of::<abi::HpsWriters>(),
        size_of::<abi::HpsLookupCounters>(),
        size_of::<HpsMissList>(),
        std::mem::offset_of!(HpsMissList, sequence),
        size_of::<HpsLookup>(),
        std::mem::offset_of!(HpsLookup, keys),
        std::mem::offset_of!(HpsLookup, misses),
        std::mem::offset_of!(HpsLookup, fetch),
        std::mem::offset_of!(HpsLookup, row_bytes),
        std::mem::offset_of!(HpsLookup, is_fp8),
        size_of::<abi::HpsLookups>(),
        size_of::<abi::HpsFetchEntry>(),
        std::mem::offset_of!(abi::HpsFetchEntry, begun),
        std::mem::offset_of!(abi::HpsFetchList, counts),
        size_of::<abi::HpsWantedKeys>(),
        size_of::<HpsModify>(),
        std::mem::offset_of!(HpsModify, keys),
        std::mem::offset_of!(HpsModify, seed),
        size_of::<abi::HpsModifyResults>(),
        size_of::<HpsUnique>(),
        std::mem::offset_of!(HpsUnique, place_mask),
        size_of::<HpsScatter>(),
        std::mem::offset_of!(HpsScatter, row_bytes),
        size_of::<HpsDump>(),
        std::mem::offset_of!(HpsDump, num_sets),
        abi::HPS_WAYS as usize,
        abi::HPS_WANTED_KEYS as usize,
        abi::HPS_ERASE as usize,
        abi::HPS_TAGS_HASHED as usize,
    ]
    .iter()
    .map(|&fact| fact as u64)
    .collect();
    let device = Device::open(0).unwrap();
    let _entered = device.enter().unwrap();
    let stream = Stream::new(device).unwrap();
    let buffer =
        DeviceBuffer::zeroed(device, 8 * u64::from(abi::HPS_NUM_ABI_FACTS), stream.handle()).unwrap();
    // SAFETY: the kernel takes an address and writes fewer words than the buffer has.
    unsafe { device.launch(device.functions().abi_check, 1, 1, stream.handle(), &buffer.address()).unwrap() };
    let mut bytes = vec![0; 8 * abi::HPS_NUM_ABI_FACTS as usize];
    // SAFETY: the buffer has as many bytes, all initialised.
    unsafe { device.read(buffer.address(), &mut bytes, &stream).unwrap() };
    let told: Vec<u64> =
        bytes.chunks_exact(8).map(|fact| u64::from_le_bytes(fact.try_into().unwrap())).collect();
    assert_eq!(told[..facts.len()], facts);
    assert!(told[facts.len()..].iter().all(|&fact| fact == 0));
}

#[test]
#[ignore = "needs a GPU"]
fn random_sequences_agree_with_a_map() {
    let num_keys = if is_small() { 500 } else { 5_000 };
    for kind in KINDS {
        for (name, keys) in [("dense", dense(num_keys)), ("hashed", hashed(num_keys))] {
            for share in [0.0, 0.05, 0.5, 1.0, 2.5] {
                for row_bytes in [4, 12, 64, 128, 512, 1040] {
                    println!("{kind:?}, {name} keys, share {share}, rows of {row_bytes}");
                    let fixture = Fixture::open_reaching(kind, &keys, share, row_bytes, Arc::new(Strict));
                    let mut random = num_keys ^ row_bytes as u64;
                    let mut next = |bound: u64| {
                        random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                        random % bound
                    };
                    for step in 1..=if is_small() { 4 } else { 12 } {
                        let _fetching = (step % 2 == 0).then(Fetching::all);
                        let some = |next: &mut dyn FnMut(u64) -> u64, n: u64| -> Vec<Key> {
                            (0..n).map(|_| keys[next(num_keys) as usize]).collect()
                        };
                        match next(6) {
                            4 => fixture.refresh(),
                            0 => fixture.update(&some(&mut next, 300), step),
                            1 => fixture.erase(&some(&mut next, 50)),
                            _ => {}
                        }
                        let mut asked = some(&mut next, 700);
                        // Some that nobody has.
                        asked.extend((0..20).map(|i| mix(i + 1_000_000)));
                        fixture.check(&asked);
                    }
                    fixture.check(&keys);
                    // Enough keys for every kernel.
                    for times in [4, 10] {
                        fixture.check(&keys.repeat(times));
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_table_that_holds_all_rows_finds_room_for_every_key() {
    let num_keys = if is_small() { 20_000 } else { 2_000_000 };
    for keys in [dense(num_keys), hashed(num_keys)] {
        for kind in [CacheKind::Static, CacheKind::Uvm] {
            let fixture = Fixture::open(kind, &keys, 0.1, 16);
            fixture.check(&keys);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn warm_up_holds_nearly_all_of_the_hottest_rows_in_exactly_as_many_slots() {
    let num_keys = if is_small() { 32_000 } else { 3_200_000 };
    for keys in [dense(num_keys), hashed(num_keys)] {
        let fixture = Fixture::open(CacheKind::Dynamic, &keys, 0.5, 16);
        let resident = fixture.tier.resident_keys(TABLE).unwrap();
        let hottest: std::collections::HashSet<_> = keys[..keys.len() / 2].iter().copied().collect();
        let held = resident.iter().filter(|key| hottest.contains(key)).count();
        assert_eq!(held, resident.len());
        let share = held as f64 / hottest.len() as f64;
        println!("{:.4} of {} rows held", share, hottest.len());
        assert!(share >= 0.98, "{share}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn keys_are_listed_and_come_back_from_their_tags() {
    for keys in [dense(10_000), hashed(10_000)] {
        let fixture = Fixture::open(CacheKind::Static, &keys, 0.1, 8);
        let mut resident = fixture.tier.resident_keys(TABLE).unwrap();
        let mut expected = keys.clone();
        resident.sort_unstable();
        expected.sort_unstable();
        assert_eq!(resident, expected);
        assert_eq!(fixture.tier.usage(TABLE).unwrap().unwrap().rows, keys.len() as u64);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn a_whole_table_takes_in_new_keys_until_it_is_full_and_says_so() {
    let fixture = Fixture::open(CacheKind::Static, &dense(1_000), 0.1, 8);
    fixture.update(&(1_000..1_020).collect::<Vec<_>>(), 1);
    fixture.check(&dense(1_020));
    let many: Vec<Key> = (2_000..4_000).collect();
    let rows: Vec<u8> = many.iter().flat_map(|&key| row(key, 1, 8)).collect();
    let error = fixture.tier.update(TABLE, &many, Rows::new(&rows, 8).unwrap()).unwrap_err();
    assert_eq!(error.kind(), hps_core::ErrorKind::OutOfMemory);
}

/// Thousands of warps that fill small tables at once leave room where each key can go.
#[test]
#[ignore = "needs a GPU"]
fn small_tables_find_room_for_every_key_again_and_again() {
    for round in 0..if is_small() { 3 } else { 300 } {
        let keys = if round % 2 == 0 { dense(5_000) } else { hashed(5_000) };
        let kind = [CacheKind::Static, CacheKind::StaticOnHost, CacheKind::Uvm][round % 3];
        drop(Fixture::open(kind, &keys, 0.1, [4, 64, 128, 512][round % 4]));
    }
}

#[test]
#[ignore = "needs a GPU"]
fn keys_that_the_map_has_no_room_for_are_asked_for() {
    let kind = (CacheKind::Dynamic, Reach::All);
    let fixture = Fixture::open_reaching(kind, &dense(1_000), 0.1, 64, Arc::new(Lenient));
    fixture.update(&(1_000..1_100).collect::<Vec<_>>(), 1);
    fixture.check(&dense(1_200));
    fixture.update(&(2_000..4_000).collect::<Vec<_>>(), 2);
    fixture.check(&dense(4_500));
    fixture.update(&dense(3_000), 3);
    fixture.check(&dense(4_500));
    fixture.erase(&(500..2_500).collect::<Vec<_>>());
    fixture.check(&dense(4_500));
}

/// The host answers instead, in all that a table does.
#[test]
#[ignore = "needs a GPU"]
fn a_table_whose_rows_cannot_be_pinned_is_served_by_the_host() {
    // More than the writer's buffers take, which are pinned too.
    const MAX_PINNED: usize = 9 << 20;
    const ROW_BYTES: usize = 4096;
    let keys = dense(2_500);
    for kind in [CacheKind::Uvm, CacheKind::StaticOnHost] {
        let observer = Arc::new(Recording::default());
        let limit = PinLimit::new(MAX_PINNED);
        let fixture = Fixture::open_reaching((kind, Reach::Nothing), &keys, 0.1, ROW_BYTES, observer.clone());
        drop(limit);
        let warnings = observer.0.lock().clone();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let num_bytes = warnings[0].split(' ').find_map(|word| word.parse::<usize>().ok());
        assert!(num_bytes > Some(MAX_PINNED), "{}", warnings[0]);
        for part in ["hps_et.m.t", "could not be pinned", "cannot be captured", "`ulimit -l`", "dynamic"] {
            assert!(warnings[0].contains(part), "{}", warnings[0]);
        }

        let wants = fixture.tier.wants(TABLE);
        let has_cache = kind == CacheKind::Uvm;
        assert_eq!((wants.all, wants.hottest > 0), (false, has_cache), "{kind:?}");
        let usage = fixture.tier.usage(TABLE).unwrap().unwrap();
        assert_eq!(usage.rows > 0, has_cache, "{kind:?}");
        assert!(usage.bytes < (keys.len() * ROW_BYTES / 4) as u64, "{} bytes", usage.bytes);

        let asked = dense(2_600);
        fixture.check(&asked);
        fixture.update(&(2_400..2_550).collect::<Vec<_>>(), 1);
        fixture.check(&asked);
        fixture.erase(&dense(100));
        fixture.check(&asked);
        fixture.refresh();
        fixture.check(&asked);
        // After a write that failed below, a table that holds all rows would refuse lookups.
        fixture.tier.forget(TABLE, &keys).unwrap();
        fixture.check(&asked);
        assert_eq!(observer.0.lock().len(), 1);
    }
}

/// Writers change versions of all keys over and over while readers look them up, in streams of their own: every row must be
/// whole and of its key, and no version may be older than one that was seen complete before the lookup began.
#[test]
#[ignore = "needs a GPU"]
fn readers_see_whole_rows_while_writers_are_at_work() {
    let num_keys: u64 = if is_small() { 2_000 } else { 50_000 };
    let rounds = if is_small() { 3 } else { 20 };
    for kind in
        KINDS.into_iter().filter(|(kind, _)| *kind != CacheKind::Bypass && *kind != CacheKind::StaticOnHost)
    {
        for (keys, row_bytes) in [(dense(num_keys), 128), (hashed(num_keys), 512)] {
            for fetches in [false, true] {
                let _fetching = fetches.then(Fetching::all);
                let started = std::time::Instant::now();
                let fixture = Fixture::open_reaching(kind, &keys, 0.3, row_bytes, Arc::new(Strict));
                let done = AtomicBool::new(false);
                let complete = AtomicU64::new(0);
                let looked_up = AtomicU64::new(0);
                std::thread::scope(|scope| {
                    for thread in 0..8u64 {
                        let (fixture, keys, done, complete) = (&fixture, &keys, &done, &complete);
                        let looked_up = &looked_up;
                        scope.spawn(move || {
                            let mut random = thread;
                            while !done.load(Ordering::Relaxed) {
                                let asked: Vec<Key> = (0..4_000)
                                    .map(|_| {
                                        random = mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                                        // Some keys are asked for much more than others.
                                        keys[(random % num_keys).min(random >> 32 & 0xffff) as usize
                                            % keys.len()]
                                    })
                                    .collect();
                                let oldest = complete.load(Ordering::SeqCst);
                                let rows = fixture.lookup(&asked);
                                for (key, row) in asked.iter().zip(rows.chunks_exact(fixture.row_bytes)) {
                                    let version = version_of(*key, row);
                                    assert!(version.is_some(), "a torn row, or another key's: {key} {row:?}");
                                    assert!(version >= Some(oldest), "{version:?} of {key} after {oldest}");
                                }
                                looked_up.fetch_add(asked.len() as u64, Ordering::Relaxed);
                            }
                        });
                    }
                    for version in 1..=rounds {
                        fixture.update(&keys, version);
                        complete.store(version, Ordering::SeqCst);
                    }
                    done.store(true, Ordering::Relaxed);
                });
                println!(
                    "{kind:?}, rows of {row_bytes}, fetched {fetches}: {} rows checked in {:.1} s",
                    looked_up.into_inner(),
                    started.elapsed().as_secs_f64()
                );
                fixture.check(&keys);
            }
        }
    }
}

/// A row that was read below before its key was written must not enter the cache after.
#[test]
#[ignore = "needs a GPU"]
fn a_row_that_was_written_since_it_was_read_is_not_taken_in() {
    let keys = dense(1_000);
    let fixture = Fixture::open(CacheKind::Dynamic, &[], 0.0, 64);
    drop(fixture);
    let fixture = Fixture::open(CacheKind::Dynamic, &keys, 3.0, 64);
    fixture.erase(&keys);
    fixture.truth.write().extend(keys.iter().map(|&key| (key, 1)));
    let _entered = fixture.device.enter().unwrap();
    let stream = Stream::new(fixture.device).unwrap();
    let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    let on_device = DeviceBuffer::holding(fixture.device, &bytes).unwrap();
    let out = DeviceBuffer::new(fixture.device, (keys.len() * 64) as u64).unwrap();
    let lookup = DeviceLookup {
        keys: on_device.address(),
        num_keys: keys.len(),
        key_width: KeyWidth::Bits64,
        rows: out.address(),
        stream: stream.handle().0,
    };
    let DeviceAnswer::Missed(mut missed) = fixture.tier.lookup(0, &lookup).unwrap() else { panic!() };
    assert_eq!(missed.wait().unwrap(), (0, keys.len()));
    let snapshot = fixture.clocks[0].snapshot();
    let (asked, mut rows) = missed.next_piece().unwrap().unwrap();
    assert_eq!(asked.len(), keys.len());
    for (i, &key) in asked.iter().enumerate() {
        assert!(rows.write(i, &row(key, 1, 64)));
    }
    // Read, and now overtaken.
    fixture.update(&keys, 2);
    missed.give_piece(&[], &snapshot).unwrap();
    assert!(missed.next_piece().unwrap().is_none());
    drop(missed);
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        fixture.check(&keys);
    }
    let resident = fixture.tier.resident_keys(TABLE).unwrap();
    fixture.check(&keys);
    println!("{} keys resident", resident.len());
}
