//! The walk with devices above it, on a machine without any: who answers what, what is counted, what a device keeps and what it
//! must not, and how devices are filled.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hps_core::batch::MAX_BATCH_KEYS;
use hps_core::device::{DeviceLookup, DeviceTier};
use hps_core::observer::{Observer, Progress, Silent};
use hps_core::store::{Table, Tiers};
use hps_core::testing::{
    Answers, DeviceMemory, FakeDevice, FakeSettings, FakeTable, MapTier, row_of, rows_of,
};
use hps_core::tier::{CacheTier, TableSpec, Tier, TierKind, TierUsage, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{EmbeddingStore, Error, ErrorKind, Key, KeyWidth, Result, Rows, TableId};

const DIM: usize = 4;
const SIZE: usize = DIM * 4;
/// Rows of the other storage, whose keys have 32 bits.
const NARROW_SIZE: usize = 2 * SIZE;
const STORAGE: TableId = TableId(0);
const NARROW_STORAGE: TableId = TableId(1);
/// Tables in the store's order. The first two are fused: they share a storage.
const TABLE: usize = 0;
const SIBLING: usize = 1;
const NARROW: usize = 2;
/// Keys from here on are in no tier.
const ABSENT: Key = 200;

struct Fixture {
    clocks: Arc<[UpdateClock]>,
    near: Arc<MapTier>,
    far: Arc<MapTier>,
    ssd: Arc<MapTier>,
    devices: Vec<Arc<FakeDevice>>,
    warnings: Arc<Warnings>,
    store: Arc<EmbeddingStore>,
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Observer for Warnings {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
    fn info(&self, _: &str) {}
    fn progress(&self, _: Progress<'_>) {}
}

fn default_row(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(DIM)
}

/// A device for all tables with room for many rows, or for all if it answers everything itself.
fn device(ordinal: usize, answers: Answers) -> FakeSettings {
    let tables = vec![
        FakeTable { number: TABLE, storage: STORAGE, default_row: default_row(-1.5) },
        FakeTable { number: SIBLING, storage: STORAGE, default_row: default_row(0.25) },
        FakeTable { number: NARROW, storage: NARROW_STORAGE, default_row: vec![0; NARROW_SIZE] },
    ];
    let capacity = (answers != Answers::Enqueued).then_some(150);
    FakeSettings { ordinal, tables, capacity, answers, piece_keys: 3 }
}

/// The truth holds keys 0..200, a cache above it 0..15, one above that 0..10; of the narrow table the truth alone holds the
/// last ten keys of 32 bits. Devices are empty.
fn fixture_with(devices: Vec<FakeSettings>, promote_found: bool) -> Fixture {
    let spec = |name: &str, row_bytes, key_width| TableSpec { name: name.into(), row_bytes, key_width };
    let specs = vec![
        spec("hps_et.m.fused_embedding0", SIZE, KeyWidth::Bits64),
        spec("hps_et.n.narrow", NARROW_SIZE, KeyWidth::Bits32),
    ];
    let map = |kind| Arc::new(MapTier::new(kind, &specs));
    let (near, far, ssd) = (map(TierKind::Host), map(TierKind::Host), map(TierKind::Ssd));
    for (tier, end) in [(&near, 10), (&far, 15), (&ssd, ABSENT)] {
        let keys: Vec<Key> = (0..end).collect();
        tier.insert(STORAGE, &keys, Rows::new(&rows_of(&keys, 1, SIZE), SIZE).unwrap()).unwrap();
    }
    let keys: Vec<Key> = (0xFFFF_FFF6..=0xFFFF_FFFF).collect();
    let rows = rows_of(&keys, 1, NARROW_SIZE);
    ssd.insert(NARROW_STORAGE, &keys, Rows::new(&rows, NARROW_SIZE).unwrap()).unwrap();
    let clocks: Arc<[UpdateClock]> = Arc::new([UpdateClock::default(), UpdateClock::default()]);
    let devices: Vec<_> = devices
        .into_iter()
        .map(|settings| Arc::new(FakeDevice::new(settings, Arc::clone(&clocks))))
        .collect();
    let tiers = Tiers {
        specs,
        caches: vec![Arc::clone(&near) as Arc<dyn CacheTier>, Arc::clone(&far) as Arc<dyn CacheTier>],
        truth: Arc::clone(&ssd) as Arc<dyn TruthTier>,
        clocks: Arc::clone(&clocks),
        devices: devices.iter().map(|device| Arc::clone(device) as Arc<dyn DeviceTier>).collect(),
        gather_threads: 4,
    };
    let tables = vec![
        Table::new("n", 0, "narrow", NARROW_STORAGE, NARROW_SIZE / 4, 0.0),
        Table::new("m", 1, "sibling", STORAGE, DIM, 0.25),
        Table::new("m", 0, "t", STORAGE, DIM, -1.5),
    ];
    let warnings = Arc::new(Warnings::default());
    let observer = Arc::clone(&warnings) as Arc<dyn Observer>;
    let store = Arc::new(EmbeddingStore::new(tables, tiers, promote_found, observer).unwrap());
    Fixture { clocks, near, far, ssd, devices, warnings, store }
}

fn fixture(answers: Answers) -> Fixture {
    fixture_with(vec![device(0, answers)], false)
}

fn lookup_in_store(
    store: &EmbeddingStore,
    table: usize,
    ordinal: usize,
    keys: &[Key],
) -> Result<Vec<Vec<u8>>> {
    let (width, size) = match table {
        NARROW => (KeyWidth::Bits32, NARROW_SIZE),
        _ => (KeyWidth::Bits64, SIZE),
    };
    let mut memory = DeviceMemory::new(keys, width, size);
    store.lookup_on_device(table, ordinal, &memory.lookup())?;
    Ok(memory.rows())
}

/// Counts of lookups by tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    gpu: u64,
    host: u64,
    ssd: u64,
    missing: u64,
}

impl Fixture {
    fn device(&self) -> &FakeDevice {
        &self.devices[0]
    }

    fn counts(&self, table: usize) -> Counts {
        let counts = self.store.stats().unwrap()[table].counts;
        let all = Counts {
            gpu: counts.hits(TierKind::Gpu),
            host: counts.hits(TierKind::Host),
            ssd: counts.hits(TierKind::Ssd),
            missing: counts.missing,
        };
        assert_eq!(all.gpu + all.host + all.ssd + all.missing, counts.keys());
        all
    }

    fn try_lookup(&self, table: usize, ordinal: usize, keys: &[Key]) -> Result<Vec<Vec<u8>>> {
        lookup_in_store(&self.store, table, ordinal, keys)
    }

    /// A lookup on the first device, and what it added to the statistics.
    fn lookup_in(&self, table: usize, keys: &[Key]) -> (Vec<Vec<u8>>, Counts) {
        let before = self.counts(table);
        let rows = self.try_lookup(table, 0, keys).unwrap();
        let after = self.counts(table);
        let added = Counts {
            gpu: after.gpu - before.gpu,
            host: after.host - before.host,
            ssd: after.ssd - before.ssd,
            missing: after.missing - before.missing,
        };
        let sum = added.gpu + added.host + added.ssd + added.missing;
        assert_eq!(sum, keys.len() as u64, "hits + missing == keys");
        (rows, added)
    }

    fn lookup(&self, keys: &[Key]) -> (Vec<Vec<u8>>, Counts) {
        self.lookup_in(TABLE, keys)
    }

    fn insert(&self, keys: &[Key], version: u64) -> Result<()> {
        let rows = rows_of(keys, version, SIZE);
        self.store.insert(STORAGE, keys, Rows::new(&rows, SIZE).unwrap())
    }

    fn fill(&self, hottest: Option<&[Key]>) -> Result<()> {
        let only_the_first = |table, _| match table {
            STORAGE => Ok(hottest.map(<[Key]>::to_vec)),
            _ => Ok(Some(Vec::new())),
        };
        self.store.fill_devices(&only_the_first, &Silent)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.0.lock().unwrap().clone()
    }
}

/// Rows of version 1, or the first table's default row.
fn expected(keys: &[Key]) -> Vec<Vec<u8>> {
    keys.iter().map(|&key| if key < ABSENT { row_of(key, 1, SIZE) } else { default_row(-1.5) }).collect()
}

fn failing(operation: &'static str, kind: ErrorKind) -> impl Fn(&str) -> Result<()> + Send + Sync {
    move |begun| match begun == operation {
        true => Err(Error::new(kind, format!("planted in {operation}"))),
        false => Ok(()),
    }
}

/// Stops the truth's lookups: tells of each one that has begun, and lets it go on when there is a word for it, or nobody is left
/// to say one.
fn stop_lookups(tier: &MapTier) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (has_begun, begun) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel();
    let may_go_on = Mutex::new(may_go_on);
    tier.set_hook(move |operation| {
        if operation == "lookup" {
            let _ = has_begun.send(());
            let _ = may_go_on.lock().unwrap().recv();
        }
        Ok(())
    });
    (begun, go_on)
}

// ---- lookups that wait for their rows

#[test]
fn a_device_answers_what_it_holds_and_the_walk_the_rest() {
    let fixture = fixture(Answers::Missed);
    // Three pieces; keys repeat, and default rows are in the middle and at the end.
    let keys = [5, 12, 150, 999, 5, 12, u64::MAX, 0];
    let (rows, counts) = fixture.lookup(&keys);
    assert_eq!(rows, expected(&keys));
    assert_eq!(counts, Counts { gpu: 0, host: 5, ssd: 1, missing: 2 });
    let pieces: [&[Key]; 3] = [&[5, 12, 150], &[999, 5, 12], &[u64::MAX, 0]];
    assert_eq!(fixture.device().keys_of("next_piece"), pieces);
    assert_eq!(fixture.device().keys_of("give_piece"), pieces);
    assert_eq!(fixture.device().held_keys(STORAGE), [0, 5, 12, 150]);

    let more = [999, 0, 5, 13, 12, 150, 151];
    let (rows, counts) = fixture.lookup(&more);
    assert_eq!(rows, expected(&more));
    assert_eq!(counts, Counts { gpu: 4, host: 1, ssd: 1, missing: 1 });
    assert_eq!(fixture.counts(TABLE), Counts { gpu: 4, host: 6, ssd: 2, missing: 3 });

    // All held: nobody is asked for a piece.
    let num_pieces = fixture.device().keys_of("next_piece").len();
    assert_eq!(fixture.lookup(&[151, 0, 0]).1, Counts { gpu: 3, host: 0, ssd: 0, missing: 0 });
    assert_eq!(fixture.device().keys_of("next_piece").len(), num_pieces);
    assert_eq!(fixture.device().keys_of("give_up"), [] as [Vec<Key>; 0]);
}

#[test]
fn a_device_without_room_keeps_nothing_and_the_walk_answers_all() {
    let settings = FakeSettings { capacity: Some(0), ..device(0, Answers::Missed) };
    let fixture = fixture_with(vec![settings], false);
    for _ in 0..2 {
        let (rows, counts) = fixture.lookup(&[1, 11, 21, 999]);
        assert_eq!(rows, expected(&[1, 11, 21, 999]));
        assert_eq!(counts, Counts { gpu: 0, host: 2, ssd: 1, missing: 1 });
    }
}

#[test]
fn rows_that_a_device_missed_move_up_to_the_caches_below_it_too() {
    let fixture = fixture_with(vec![device(0, Answers::Missed)], true);
    fixture.lookup(&[12, 150, 999, 1]);
    fixture.store.drain_promotions();
    for key in [12, 150] {
        assert_eq!(fixture.near.row(STORAGE, key), Some(row_of(key, 1, SIZE)));
    }
    assert_eq!(fixture.far.row(STORAGE, 150), Some(row_of(150, 1, SIZE)));
    assert_eq!(fixture.near.row(STORAGE, 999), None);
}

/// Present and absent keys alternate, so that every thread has both; the rows are as if one had looked all of them up.
#[test]
fn many_missed_keys_are_gathered_by_several_threads() {
    let fixture = fixture_with(vec![FakeSettings { piece_keys: 5_000, ..device(0, Answers::Missed) }], false);
    let threads = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&threads);
    fixture.near.set_hook(move |operation| {
        if operation == "lookup" {
            seen.lock().unwrap().insert(std::thread::current().name().map(str::to_owned));
        }
        Ok(())
    });
    let keys: Vec<Key> = (0..12_345).map(|i| if i % 3 == 0 { ABSENT + i } else { i % ABSENT }).collect();
    let (rows, counts) = fixture.lookup(&keys);
    assert!(rows == expected(&keys), "rows differ");
    assert_eq!(counts.missing, keys.iter().filter(|&&key| key >= ABSENT).count() as u64);
    assert!(fixture.device().held_keys(STORAGE).iter().all(|&key| key < ABSENT), "default rows are not kept");
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let threads = threads.lock().unwrap();
        let gathers =
            |name: &Option<String>| name.as_deref().is_some_and(|name| name.starts_with("hps-gather"));
        assert!(threads.iter().any(gathers), "{threads:?}");
    }
}

#[test]
fn a_failure_of_one_gathering_thread_is_the_failure_of_the_lookup() {
    let fixture = fixture_with(vec![FakeSettings { piece_keys: 5_000, ..device(0, Answers::Missed) }], false);
    let number = AtomicUsize::new(0);
    fixture.ssd.set_hook(move |operation| match operation {
        "lookup" if number.fetch_add(1, Ordering::SeqCst) == 1 => {
            Err(Error::new(ErrorKind::Storage, "planted"))
        }
        _ => Ok(()),
    });
    let keys: Vec<Key> = (0..5_000).map(|i| i % ABSENT).collect();
    let error = fixture.try_lookup(TABLE, 0, &keys).unwrap_err();
    assert!(error.to_string().contains("planted"), "{error}");
    assert_eq!(fixture.counts(TABLE), Counts { gpu: 0, host: 0, ssd: 0, missing: 0 });
}

#[test]
fn keys_of_32_bits_are_read_as_unsigned_numbers() {
    let fixture = fixture(Answers::Missed);
    let keys = [0xFFFF_FFFF, 7, 0xFFFF_FFF6, 0xFFFF_FFFF];
    let held = |key| row_of(key, 1, NARROW_SIZE);
    let expected = [held(0xFFFF_FFFF), vec![0; NARROW_SIZE], held(0xFFFF_FFF6), held(0xFFFF_FFFF)];
    let (rows, counts) = fixture.lookup_in(NARROW, &keys);
    assert_eq!(rows, expected);
    assert_eq!(counts, Counts { gpu: 0, host: 0, ssd: 3, missing: 1 });
    let (rows, counts) = fixture.lookup_in(NARROW, &keys);
    assert_eq!(rows, expected);
    assert_eq!(counts, Counts { gpu: 3, host: 0, ssd: 0, missing: 1 });
}

#[test]
fn default_rows_are_given_but_a_device_never_keeps_them() {
    for answers in [Answers::Missed, Answers::Later] {
        let fixture = fixture(answers);
        for _ in 0..2 {
            let (rows, counts) = fixture.lookup(&[999, 998, 997, 996]);
            assert_eq!(rows, vec![default_row(-1.5); 4]);
            assert_eq!(counts, Counts { gpu: 0, host: 0, ssd: 0, missing: 4 });
            // The sibling shares the rows, not the default.
            let (rows, _) = fixture.lookup_in(SIBLING, &[999, 998]);
            assert_eq!(rows, vec![default_row(0.25); 2]);
            fixture.store.drain_promotions();
        }
        assert_eq!(fixture.device().held_keys(STORAGE), [] as [Key; 0]);

        // The key appears: kept by the device, a default row would hide it.
        fixture.insert(&[998], 7).unwrap();
        fixture.lookup(&[998]);
        fixture.store.drain_promotions();
        assert_eq!(fixture.lookup(&[998, 999]).0, [row_of(998, 7, SIZE), default_row(-1.5)]);
        assert_eq!(fixture.device().held_keys(STORAGE), [998]);
    }
}

/// A piece may be larger than a batch of the walk: positions of default rows count from the piece's start.
#[test]
fn default_rows_of_a_piece_larger_than_a_batch_are_told_by_their_positions_in_it() {
    let settings = FakeSettings { piece_keys: usize::MAX, capacity: Some(100), ..device(0, Answers::Missed) };
    let fixture = fixture_with(vec![settings], false);
    let end = MAX_BATCH_KEYS as u64;
    let mut keys: Vec<Key> = (0..end + 3).map(|i| ABSENT + i).collect();
    (keys[1], keys[MAX_BATCH_KEYS + 1]) = (41, 42);
    let (rows, counts) = fixture.lookup(&keys);
    assert_eq!(counts, Counts { gpu: 0, host: 0, ssd: 2, missing: end + 1 });
    assert_eq!(rows[1], row_of(41, 1, SIZE));
    assert_eq!(rows[MAX_BATCH_KEYS..], expected(&keys[MAX_BATCH_KEYS..]));
    assert_eq!(fixture.device().held_keys(STORAGE), [41, 42]);
}

#[test]
fn a_failure_on_the_way_is_an_error_that_names_the_table_and_is_not_counted() {
    let keys = [150, 151, 152, 153];
    for operation in ["lookup", "wait", "next_piece", "give_piece"] {
        let fixture = fixture(Answers::Missed);
        fixture.device().set_hook(failing(operation, ErrorKind::Device));
        let error = fixture.try_lookup(TABLE, 0, &keys).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let text = error.to_string();
        assert!(text.contains(operation) && text.contains("[model: m, table: t]"), "{text}");
        fixture.device().set_hook(|_| Ok(()));
        assert_eq!(fixture.counts(TABLE), Counts { gpu: 0, host: 0, ssd: 0, missing: 0 });
        assert_eq!(fixture.lookup(&keys).0, expected(&keys), "after {operation} it serves again");
    }

    let fixture = fixture(Answers::Missed);
    fixture.ssd.set_hook(failing("lookup", ErrorKind::Storage));
    let error = fixture.try_lookup(TABLE, 0, &keys).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert_eq!(fixture.device().held_keys(STORAGE), [] as [Key; 0]);
    assert_eq!(fixture.counts(TABLE), Counts { gpu: 0, host: 0, ssd: 0, missing: 0 });
}

#[test]
fn an_error_of_a_tier_below_a_device_names_the_table_once() {
    let fixture = fixture(Answers::Missed);
    fixture.ssd.set_hook(failing("lookup", ErrorKind::Storage));
    let of_lookup = fixture.try_lookup(TABLE, 0, &[150]).unwrap_err();
    let of_filling = fixture.fill(Some(&[150])).unwrap_err();
    for error in [of_lookup, of_filling] {
        assert_eq!(error.to_string(), "planted in lookup [model: m, table: t]");
    }
}

// ---- which device

#[test]
fn a_device_that_is_not_deployed_is_an_error_that_names_it_and_those_that_are() {
    let without_narrow = |ordinal| {
        let mut settings = device(ordinal, Answers::Missed);
        settings.tables.pop();
        settings
    };
    let fixture = fixture_with(vec![without_narrow(1), device(3, Answers::Missed)], false);
    let refusal = |table, ordinal, keys: &[Key]| {
        let error = fixture.try_lookup(table, ordinal, keys).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        error.to_string()
    };
    for keys in [&[5][..], &[]] {
        let text = refusal(TABLE, 2, keys);
        assert!(text.contains("cuda:2") && text.contains("[1, 3]") && text.contains("\"m\""), "{text}");
        let text = refusal(NARROW, 1, keys);
        assert!(text.contains("cuda:1") && text.contains("[3]") && text.contains("\"n\""), "{text}");
        refusal(NARROW + 1, 1, keys);
    }
    assert_eq!(fixture.try_lookup(TABLE, 1, &[5]).unwrap(), expected(&[5]));
    assert_eq!(fixture.try_lookup(TABLE, 3, &[5]).unwrap(), expected(&[5]));

    let nowhere = fixture_with(Vec::new(), false);
    let text = nowhere.try_lookup(TABLE, 4, &[]).unwrap_err().to_string();
    assert!(text.contains("cuda:4") && text.contains("without a GPU"), "{text}");
}

#[test]
fn no_keys_are_fine_on_a_device_that_is_deployed_and_it_does_not_hear_of_them() {
    let fixture = fixture(Answers::Missed);
    let nothing = DeviceLookup { keys: 0, num_keys: 0, key_width: KeyWidth::Bits64, rows: 0, stream: 0 };
    fixture.store.lookup_on_device(TABLE, 0, &nothing).unwrap();
    fixture.store.lookup_on_device(TABLE, 1, &nothing).unwrap_err();
    assert_eq!(fixture.device().calls(), []);
}

#[test]
fn each_device_has_rows_of_its_own() {
    let fixture = fixture_with(vec![device(0, Answers::Missed), device(1, Answers::Missed)], false);
    fixture.try_lookup(TABLE, 1, &[20, 21]).unwrap();
    assert_eq!(fixture.devices[0].held_keys(STORAGE), [] as [Key; 0]);
    assert_eq!(fixture.devices[1].held_keys(STORAGE), [20, 21]);
}

// ---- writes

/// Rule of update_clock.rs: the key is written after the clock was read for a row on its way up, just before the row is read below
/// or just after.
#[test]
fn a_row_that_is_written_between_read_and_give_is_not_kept() {
    for answers in [Answers::Missed, Answers::Later] {
        for (moment, erases) in
            [("next_piece", false), ("next_piece", true), ("give_piece", false), ("give_piece", true)]
        {
            let fixture = fixture(answers);
            let store = Arc::downgrade(&fixture.store);
            let is_first = AtomicBool::new(true);
            fixture.device().set_hook(move |operation| {
                if operation == moment && is_first.swap(false, Ordering::SeqCst) {
                    let store = store.upgrade().unwrap();
                    match erases {
                        true => store.erase(STORAGE, &[50])?,
                        false => {
                            store.insert(STORAGE, &[50], Rows::new(&row_of(50, 9, SIZE), SIZE).unwrap())?
                        }
                    }
                }
                Ok(())
            });
            let (rows, _) = fixture.lookup(&[50, 51]);
            fixture.store.drain_promotions();
            let written = if erases { default_row(-1.5) } else { row_of(50, 9, SIZE) };
            if answers == Answers::Missed {
                let read = if moment == "next_piece" { written.clone() } else { row_of(50, 1, SIZE) };
                assert_eq!(rows, [read, row_of(51, 1, SIZE)], "the caller gets what was read");
            }
            let device = fixture.device();
            assert_eq!(device.row(STORAGE, 50), None, "the written row must not be kept ({moment})");
            assert_eq!(device.row(STORAGE, 51), Some(row_of(51, 1, SIZE)), "the other row is still good");
            fixture.lookup(&[50]);
            fixture.store.drain_promotions();
            assert_eq!(fixture.lookup(&[50]).0, [written]);
            assert_eq!(device.row(STORAGE, 50).is_some(), !erases, "the next one is kept if it is a row");
        }
    }
}

/// The write has reached the truth and not yet the caches when a lookup that a device missed reads one of them; the row is given
/// after the write has passed the device.
#[test]
fn a_row_that_was_read_in_a_cache_which_a_write_had_not_reached_is_not_kept() {
    for (operation, row) in [("update", row_of(5, 9, SIZE)), ("erase", default_row(-1.5))] {
        let fixture = fixture(Answers::Missed);
        let (has_read, read) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (read, may_go_on) = (Mutex::new(read), Mutex::new(may_go_on));
        fixture.device().set_hook(move |begun| {
            if begun == "give_piece" {
                let _ = has_read.send(());
                let _ = may_go_on.lock().unwrap().recv();
            }
            Ok(())
        });
        let store = Arc::downgrade(&fixture.store);
        let lookup = Arc::new(Mutex::new(None));
        let started = Arc::clone(&lookup);
        fixture.near.set_hook(move |begun| {
            if begun == operation {
                let store = store.upgrade().unwrap();
                let looking_up = move || lookup_in_store(&store, TABLE, 0, &[5]).unwrap();
                *started.lock().unwrap() = Some(std::thread::spawn(looking_up));
                read.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        match operation {
            "update" => fixture.insert(&[5], 9).unwrap(),
            _ => fixture.store.erase(STORAGE, &[5]).unwrap(),
        }
        drop(go_on);
        let read = lookup.lock().unwrap().take().unwrap().join().unwrap();
        assert_eq!(read, expected(&[5]), "this lookup began before the write had ended");
        assert_eq!(fixture.device().row(STORAGE, 5), None, "{operation}");
        assert_eq!(fixture.lookup(&[5]).0, [row], "{operation}");
    }
}

/// What the tiers did, in one list.
fn log_of(fixture: &Fixture) -> Arc<Mutex<Vec<String>>> {
    let log = Arc::new(Mutex::new(Vec::new()));
    let hook = |name: String, check: Box<dyn Fn() + Send + Sync>| {
        let log = Arc::clone(&log);
        move |operation: &str| {
            check();
            log.lock().unwrap().push(format!("{name} {operation}"));
            Ok(())
        }
    };
    let advanced = || -> Box<dyn Fn() + Send + Sync> {
        let clocks = Arc::clone(&fixture.clocks);
        let before = clocks[0].snapshot();
        Box::new(move || {
            assert!(!clocks[0].is_current(5, &before), "the clock advances before copies change")
        })
    };
    fixture.ssd.set_hook(hook("ssd".into(), Box::new(|| {})));
    fixture.far.set_hook(hook("far".into(), advanced()));
    fixture.near.set_hook(hook("near".into(), advanced()));
    for (i, device) in fixture.devices.iter().enumerate() {
        device.set_hook(hook(format!("gpu{i}"), advanced()));
    }
    log
}

#[test]
fn a_write_reaches_devices_after_the_truth_and_the_caches_and_only_then_old_places_are_free() {
    let fixture = fixture_with(vec![device(0, Answers::Missed), device(1, Answers::Enqueued)], false);
    for ordinal in [0, 1] {
        fixture.try_lookup(TABLE, ordinal, &[5]).unwrap();
    }
    let log = log_of(&fixture);
    fixture.insert(&[5, 300], 2).unwrap();
    assert_eq!(
        std::mem::take(&mut *log.lock().unwrap()),
        [
            "ssd insert",
            "far update",
            "near update",
            "gpu0 update",
            "gpu1 update",
            "near reclaim",
            "far reclaim",
            "ssd reclaim"
        ]
    );
    fixture.store.erase(STORAGE, &[5]).unwrap();
    assert_eq!(
        std::mem::take(&mut *log.lock().unwrap()),
        [
            "ssd erase",
            "far erase",
            "near erase",
            "gpu0 erase",
            "gpu1 erase",
            "near reclaim",
            "far reclaim",
            "ssd reclaim"
        ]
    );
}

#[test]
fn a_read_only_truth_refuses_writes_before_anything_is_touched() {
    let specs = vec![TableSpec { name: "hps_et.w.t".into(), row_bytes: SIZE, key_width: KeyWidth::Bits64 }];
    let (near, mut ssd) = (MapTier::new(TierKind::Host, &specs), MapTier::new(TierKind::Ssd, &specs));
    for tier in [&near, &ssd] {
        tier.insert(STORAGE, &[5], Rows::new(&row_of(5, 1, SIZE), SIZE).unwrap()).unwrap();
    }
    ssd.read_only = true;
    let clocks: Arc<[UpdateClock]> = Arc::new([UpdateClock::default()]);
    let mut settings = device(0, Answers::Enqueued);
    settings.tables.truncate(1);
    let gpu = Arc::new(FakeDevice::new(settings, Arc::clone(&clocks)));
    let near = Arc::new(near);
    let tiers = Tiers {
        specs,
        caches: vec![Arc::clone(&near) as Arc<dyn CacheTier>],
        truth: Arc::new(ssd),
        clocks: Arc::clone(&clocks),
        devices: vec![Arc::clone(&gpu) as Arc<dyn DeviceTier>],
        gather_threads: 1,
    };
    let table = Table::new("w", 0, "t", STORAGE, DIM, -1.5);
    let store = EmbeddingStore::new(vec![table], tiers, false, Arc::new(Silent)).unwrap();
    store.fill_devices(&nothing_known, &Silent).unwrap();
    let (calls, before) = (gpu.calls().len(), clocks[0].snapshot());
    let row = row_of(5, 2, SIZE);
    for written in [store.insert(STORAGE, &[5], Rows::new(&row, SIZE).unwrap()), store.erase(STORAGE, &[5])] {
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(gpu.calls().len(), calls, "the device has heard of it");
    assert_eq!(near.row(STORAGE, 5), Some(row_of(5, 1, SIZE)));
    assert!(clocks[0].is_current(5, &before));
    assert_eq!(lookup_in_store(&store, 0, 0, &[5]).unwrap(), [row_of(5, 1, SIZE)]);
}

/// Whatever fails on the way; and a device that did not follow may read old places for ever.
#[test]
fn old_places_are_free_exactly_if_every_device_has_followed() {
    for (failing_tier, failing_operation, ends) in [
        ("ssd", "insert", "reclaim"),
        ("far", "update", "reclaim"),
        ("gpu0", "update", "abandon"),
        ("gpu1", "update", "abandon"),
        // Nothing runs on a device that is lost.
        ("lost gpu1", "update", "reclaim"),
        ("", "", "reclaim"),
    ] {
        let fixture = fixture_with(vec![device(0, Answers::Missed), device(1, Answers::Missed)], false);
        let failing_tier =
            failing_tier.strip_prefix("lost ").inspect(|_| fixture.devices[1].lose()).unwrap_or(failing_tier);
        let log = Arc::new(Mutex::new(Vec::new()));
        let hook = |name: &'static str| {
            let log = Arc::clone(&log);
            move |operation: &str| {
                log.lock().unwrap().push(format!("{name} {operation}"));
                if name == failing_tier && operation == failing_operation {
                    return Err(Error::new(ErrorKind::Device, "planted"));
                }
                Ok(())
            }
        };
        fixture.ssd.set_hook(hook("ssd"));
        fixture.far.set_hook(hook("far"));
        fixture.near.set_hook(hook("near"));
        fixture.devices[0].set_hook(hook("gpu0"));
        fixture.devices[1].set_hook(hook("gpu1"));
        assert_eq!(fixture.insert(&[5], 2).is_err(), !failing_tier.is_empty());
        let log = log.lock().unwrap();
        let last = ["near", "far", "ssd"].map(|tier| format!("{tier} {ends}"));
        assert_eq!(log[log.len() - 3..], last, "{failing_tier} fails: {log:?}");
        assert!(
            log[..log.len() - 3].iter().all(|call| !call.contains("reclaim") && !call.contains("abandon"))
        );
        for device in ["gpu0", "gpu1"] {
            assert!(log.iter().any(|call| call.starts_with(device)), "{failing_tier} fails: {log:?}");
        }
    }
}

#[test]
fn written_rows_are_served_by_devices_and_erased_ones_are_not() {
    let fixture = fixture_with(vec![device(0, Answers::Missed), device(1, Answers::Enqueued)], false);
    fixture.fill(Some(&[5, 50])).unwrap();
    // Of a repeated key the last row wins.
    let rows = [row_of(5, 2, SIZE), row_of(300, 2, SIZE), row_of(5, 3, SIZE)].concat();
    fixture.store.insert(STORAGE, &[5, 300, 5], Rows::new(&rows, SIZE).unwrap()).unwrap();
    for device in &fixture.devices {
        assert_eq!(device.row(STORAGE, 5), Some(row_of(5, 3, SIZE)));
    }
    assert_eq!(fixture.devices[0].row(STORAGE, 300), None, "a cache takes in what is asked for");
    assert_eq!(fixture.devices[1].row(STORAGE, 300), Some(row_of(300, 2, SIZE)), "a whole table all");
    for ordinal in [0, 1] {
        let rows = fixture.try_lookup(TABLE, ordinal, &[5, 300, 50]).unwrap();
        assert_eq!(rows, [row_of(5, 3, SIZE), row_of(300, 2, SIZE), row_of(50, 1, SIZE)]);
    }
    fixture.store.erase(STORAGE, &[5, 300, 999]).unwrap();
    for ordinal in [0, 1] {
        let rows = fixture.try_lookup(TABLE, ordinal, &[5, 300, 50]).unwrap();
        assert_eq!(rows, [default_row(-1.5), default_row(-1.5), row_of(50, 1, SIZE)]);
    }
}

#[test]
fn if_the_write_of_the_truth_fails_devices_forget_the_keys() {
    for operation in ["insert", "erase"] {
        let fixture = fixture_with(vec![device(0, Answers::Missed), device(1, Answers::Enqueued)], false);
        fixture.fill(Some(&[5, 50])).unwrap();
        fixture.ssd.set_hook(failing(operation, ErrorKind::Storage));
        // One device that fails keeps the other from nothing; the truth's error is what is reported.
        fixture.devices[0].set_hook(failing("forget", ErrorKind::Device));
        let written = match operation {
            "insert" => fixture.insert(&[5], 2),
            _ => fixture.store.erase(STORAGE, &[5]),
        };
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Storage);
        for device in &fixture.devices {
            assert_eq!(device.keys_of("forget"), [[5]]);
            assert_eq!(device.keys_of("update").len() + device.keys_of("erase").len(), 0);
        }
        assert_eq!(fixture.devices[0].held_keys(STORAGE), [50]);
        let (rows, counts) = fixture.lookup(&[5, 50]);
        assert_eq!(rows, expected(&[5, 50]), "a cache asks the truth again");
        assert_eq!(counts, Counts { gpu: 1, host: 0, ssd: 1, missing: 0 });
        let error = fixture.try_lookup(TABLE, 1, &[50]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "a whole table cannot ask, so it serves no more");
    }
}

#[test]
fn a_write_that_fails_on_a_device_is_reported_and_reaches_all_others() {
    for (operation, row) in [("update", row_of(5, 2, SIZE)), ("erase", default_row(-1.5))] {
        let fixture = fixture_with((0..3).map(|ordinal| device(ordinal, Answers::Missed)).collect(), false);
        fixture.fill(Some(&[5])).unwrap();
        fixture.devices[1].set_hook(failing(operation, ErrorKind::Device));
        let written = match operation {
            "update" => fixture.insert(&[5], 2),
            _ => fixture.store.erase(STORAGE, &[5]),
        };
        let error = written.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        assert!(error.to_string().contains("planted"), "{error}");
        assert!(fixture.devices.iter().all(|device| device.keys_of(operation).len() == 1));
        assert!(fixture.devices.iter().all(|device| device.keys_of("forget").is_empty()));
        let written = (operation == "update").then(|| row.clone());
        assert_eq!(fixture.ssd.row(STORAGE, 5), written);
        for ordinal in 0..3 {
            assert_eq!(fixture.try_lookup(TABLE, ordinal, &[5]).unwrap()[0], row);
        }
    }
}

#[test]
fn a_write_that_fails_in_a_cache_reaches_devices_all_the_same() {
    let fixture = fixture(Answers::Missed);
    fixture.fill(Some(&[5])).unwrap();
    fixture.near.set_hook(failing("update", ErrorKind::OutOfMemory));
    assert_eq!(fixture.insert(&[5], 2).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_eq!(fixture.device().row(STORAGE, 5), Some(row_of(5, 2, SIZE)));
}

/// A lookup that starts after a write has returned sees it, whatever moves between the tiers meanwhile.
#[test]
fn readers_never_see_rows_older_than_the_last_write_that_returned() {
    const VERSIONS: u64 = 400;
    for promote_found in [false, true] {
        let settings = FakeSettings { capacity: Some(12), ..device(0, Answers::Missed) };
        let fixture = fixture_with(vec![settings], promote_found);
        let keys: Vec<Key> = (0..24).collect();
        let written = AtomicU64::new(1);
        std::thread::scope(|scope| {
            for reader in 0..3 {
                let (fixture, written, keys) = (&fixture, &written, &keys);
                scope.spawn(move || {
                    let mut keys = keys.clone();
                    loop {
                        let oldest = written.load(Ordering::SeqCst);
                        let rows = fixture.try_lookup(TABLE, 0, &keys).unwrap();
                        for (&key, row) in keys.iter().zip(rows) {
                            let is_new = (oldest..=VERSIONS).any(|version| row == row_of(key, version, SIZE));
                            assert!(is_new, "key {key} has no row as new as version {oldest}");
                        }
                        if oldest == VERSIONS {
                            break;
                        }
                        keys.rotate_left(reader * 2 + 1);
                    }
                });
            }
            scope.spawn(|| {
                // Caches may forget what they like.
                while written.load(Ordering::SeqCst) < VERSIONS {
                    let version = written.load(Ordering::SeqCst);
                    fixture.device().erase(STORAGE, &[version % 24, (version + 7) % 24]).unwrap();
                    fixture.near.erase(STORAGE, &[(version + 3) % 24]).unwrap();
                    std::thread::yield_now();
                }
            });
            for version in 2..=VERSIONS {
                fixture.insert(&keys, version).unwrap();
                written.store(version, Ordering::SeqCst);
            }
        });
        let counts = fixture.counts(TABLE);
        assert!(counts.gpu > 0 && counts.host + counts.ssd > 0, "{counts:?}");
        assert_eq!(counts.missing, 0);
    }
}

// ---- lookups whose rows may come later

#[test]
fn misses_that_may_wait_are_answered_at_once_and_fetched_behind_the_lookup() {
    for answers in [Answers::Later, Answers::LaterUncounted] {
        let fixture = fixture(answers);
        fixture.fill(Some(&[5])).unwrap();
        let (begun, go_on) = stop_lookups(&fixture.ssd);
        let keys = [5, 50, 999, 12, 50];
        // The truth cannot answer now, and the lookup returns.
        let (rows, counts) = fixture.lookup(&keys);
        let default = default_row(-1.5);
        let defaults = [default.clone(), default.clone(), default.clone(), default];
        assert_eq!(rows[0], row_of(5, 1, SIZE));
        assert_eq!(rows[1..], defaults);
        assert_eq!(counts, Counts { gpu: 1, host: 0, ssd: 0, missing: 4 }, "counted as it was answered");
        begun.recv().unwrap();
        drop(go_on);
        fixture.store.drain_promotions();
        assert_eq!(fixture.device().held_keys(STORAGE), [5, 12, 50]);
        assert_eq!(fixture.device().row(STORAGE, 50), Some(row_of(50, 1, SIZE)));
        assert_eq!(fixture.counts(TABLE), counts, "what was fetched is not counted again");

        let (rows, counts) = fixture.lookup(&keys);
        assert_eq!(rows, expected(&keys));
        assert_eq!(counts, Counts { gpu: 4, host: 0, ssd: 0, missing: 1 });
        assert_eq!(fixture.warnings(), [] as [String; 0]);
    }
}

#[test]
fn more_lookups_than_may_wait_give_up_the_oldest_and_nobody_waits() {
    let fixture = fixture(Answers::Later);
    let (begun, go_on) = stop_lookups(&fixture.ssd);
    fixture.lookup(&[20]);
    begun.recv().unwrap();
    // The first one is under way and stuck. 64 may wait; ten more come.
    for key in 21..21 + 74 {
        fixture.lookup(&[key]);
    }
    let given_up: Vec<Vec<Key>> = (21..31).map(|key| vec![key]).collect();
    assert_eq!(
        fixture.device().keys_of("give_up"),
        given_up,
        "the oldest, in their order, before anything moves"
    );
    assert_eq!(fixture.device().held_keys(STORAGE), [] as [Key; 0]);
    drop(go_on);
    fixture.store.drain_promotions();
    let mut fetched: Vec<Key> = vec![20];
    fetched.extend(31..95);
    assert_eq!(fixture.device().held_keys(STORAGE), fetched);
    let order: Vec<Vec<Key>> = fetched.iter().map(|&key| vec![key]).collect();
    assert_eq!(fixture.device().keys_of("give_piece"), order);
    assert_eq!(fixture.counts(TABLE), Counts { gpu: 0, host: 0, ssd: 0, missing: 75 });
}

#[test]
fn rows_that_cannot_be_fetched_are_a_warning_and_disturb_nobody() {
    let fixture = fixture(Answers::Later);
    for operation in ["wait", "next_piece", "give_piece"] {
        fixture.device().set_hook(failing(operation, ErrorKind::Device));
        fixture.lookup(&[50]);
        fixture.store.drain_promotions();
        let warnings = fixture.warnings();
        assert!(warnings.last().unwrap().contains(&format!("planted in {operation}")), "{warnings:?}");
    }
    fixture.device().set_hook(|operation| match operation {
        "give_piece" => panic!("planted"),
        _ => Ok(()),
    });
    fixture.lookup(&[50]);
    fixture.store.drain_promotions();
    assert!(fixture.warnings().last().unwrap().contains("a panic"));
    fixture.device().set_hook(|_| Ok(()));
    fixture.ssd.set_hook(failing("lookup", ErrorKind::Storage));
    fixture.lookup(&[50]);
    fixture.store.drain_promotions();
    assert!(fixture.warnings().last().unwrap().contains("planted in lookup"));
    assert_eq!(fixture.warnings().len(), 5);
    assert_eq!(fixture.device().keys_of("give_up"), vec![vec![50]; 5]);

    fixture.ssd.set_hook(|_| Ok(()));
    fixture.lookup(&[50]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.lookup(&[50]).0, expected(&[50]), "the thread that fetches is still there");
}

#[test]
fn closing_a_store_gives_up_what_waits_and_ends_what_is_under_way() {
    let fixture = fixture(Answers::Later);
    let device = Arc::clone(&fixture.devices[0]);
    let (begun, go_on) = stop_lookups(&fixture.ssd);
    fixture.lookup(&[20]);
    begun.recv().unwrap();
    fixture.lookup(&[21]);
    let (has_given_up, given_up) = mpsc::channel();
    device.set_hook(move |operation| {
        if operation == "give_up" {
            has_given_up.send(()).unwrap();
        }
        Ok(())
    });
    let closing = std::thread::spawn(move || drop(fixture));
    given_up.recv().unwrap();
    assert!(!closing.is_finished(), "the lookup under way still uses the tiers");
    drop(go_on);
    closing.join().unwrap();
    assert_eq!(device.keys_of("give_up"), [[21]]);
    assert_eq!(device.held_keys(STORAGE), [20]);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn draining_waits_for_rows_that_move_up_because_a_device_fetched_them() {
    let fixture = fixture_with(vec![device(0, Answers::Later)], true);
    let pause = |on: &'static str| {
        move |operation: &str| {
            if operation == on {
                std::thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        }
    };
    fixture.ssd.set_hook(pause("lookup"));
    fixture.near.set_hook(pause("promote"));
    fixture.lookup(&[150]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.device().held_keys(STORAGE), [150]);
    assert_eq!(fixture.near.row(STORAGE, 150), Some(row_of(150, 1, SIZE)));
}

// ---- filling

/// A store of one table on one device, with rows so large that few of them are put at a time.
struct Wide {
    ssd: Arc<MapTier>,
    device: Arc<FakeDevice>,
    store: Arc<EmbeddingStore>,
}

const WIDE: usize = 64 << 10;
/// Rows of 4 MiB.
const AT_ONCE: usize = 64;

/// The truth holds keys 0..250.
fn wide(capacity: Option<usize>) -> Wide {
    let specs = vec![TableSpec { name: "hps_et.w.t".into(), row_bytes: WIDE, key_width: KeyWidth::Bits64 }];
    let ssd = Arc::new(MapTier::new(TierKind::Ssd, &specs));
    let keys: Vec<Key> = (0..250).collect();
    ssd.insert(STORAGE, &keys, Rows::new(&rows_of(&keys, 1, WIDE), WIDE).unwrap()).unwrap();
    let clocks: Arc<[UpdateClock]> = Arc::new([UpdateClock::default()]);
    let answers = if capacity.is_none() { Answers::Enqueued } else { Answers::Missed };
    let tables = vec![FakeTable { number: 0, storage: STORAGE, default_row: vec![0; WIDE] }];
    let settings = FakeSettings { ordinal: 0, tables, capacity, answers, piece_keys: 3 };
    let device = Arc::new(FakeDevice::new(settings, Arc::clone(&clocks)));
    let tiers = Tiers {
        specs,
        caches: Vec::new(),
        truth: Arc::clone(&ssd) as Arc<dyn TruthTier>,
        clocks,
        devices: vec![Arc::clone(&device) as Arc<dyn DeviceTier>],
        gather_threads: 4,
    };
    let table = Table::new("w", 0, "t", STORAGE, WIDE / 4, 0.0);
    let store = Arc::new(EmbeddingStore::new(vec![table], tiers, false, Arc::new(Silent)).unwrap());
    Wide { ssd, device, store }
}

impl Wide {
    /// In the order of the truth's scan.
    fn scanned(&self) -> Vec<Key> {
        let mut all = Vec::new();
        self.ssd
            .scan(STORAGE, &mut |keys, _| {
                all.extend_from_slice(keys);
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
        all
    }

    fn check_rows(&self) {
        for key in self.device.held_keys(STORAGE) {
            assert_eq!(self.held_version(key), Some(1), "key {key}");
        }
    }

    /// Which version of a row the device holds; the rows themselves are too long to be shown.
    fn held_version(&self, key: Key) -> Option<u64> {
        self.device.row(STORAGE, key).map(|row| wide_version(key, &row))
    }
}

fn wide_version(key: Key, row: &[u8]) -> u64 {
    [1, 9].into_iter().find(|&version| row == row_of(key, version, WIDE)).unwrap_or(0)
}

/// Progress, as (done, total).
#[derive(Default)]
struct Steps(Mutex<Vec<(u64, u64)>>);

impl Observer for Steps {
    fn warn(&self, text: &str) {
        panic!("{text}");
    }
    fn info(&self, _: &str) {}
    fn progress(&self, progress: Progress<'_>) {
        assert_eq!((progress.what, progress.table), ("filling the GPU", "hps_et.w.t"));
        self.0.lock().unwrap().push((progress.done, progress.total));
    }
}

impl Steps {
    /// Grow, and end when all is done and not before.
    fn check(&self, done: u64) {
        let steps = self.0.lock().unwrap();
        assert_eq!(steps.last(), Some(&(done, done)));
        assert!(steps.is_sorted_by_key(|(done, _)| done), "{steps:?}");
        assert!(steps[..steps.len() - 1].iter().all(|(done, total)| done < total), "{steps:?}");
    }
}

fn nothing_known(_: TableId, _: u64) -> Result<Option<Vec<Key>>> {
    Ok(None)
}

#[test]
fn a_device_that_holds_all_rows_is_given_all_of_the_truth_piece_by_piece() {
    let wide = wide(None);
    let steps = Steps::default();
    let not_asked = |_, _| -> Result<Option<Vec<Key>>> { panic!("all rows: nobody cares which are hottest") };
    wide.store.fill_devices(&not_asked, &steps).unwrap();
    let puts = wide.device.keys_of("put");
    assert!(puts.len() > 1);
    assert_eq!(puts.concat(), wide.scanned());
    assert_eq!(wide.device.held_keys(STORAGE), (0..250).collect::<Vec<Key>>());
    wide.check_rows();
    steps.check(250);
    assert_eq!(wide.store.stats().unwrap()[0].counts.keys(), 0, "filling is not a lookup");
}

#[test]
fn a_cache_is_given_the_hottest_keys_in_their_order_without_repetitions_and_keys_that_are_gone() {
    let wide = wide(Some(170));
    let mut hottest: Vec<Key> = (30..150).rev().collect();
    hottest.insert(3, 7_000);
    hottest.insert(4, 149);
    // In a later piece than the one where they come first.
    hottest.splice(100..100, [148, 8_000, 147, 7_000, u64::MAX]);
    assert!(hottest.len() > AT_ONCE);
    let asked = Mutex::new(Vec::new());
    let steps = Steps::default();
    let tell = |table, most| {
        asked.lock().unwrap().push((table, most));
        Ok(Some(hottest.clone()))
    };
    wide.store.fill_devices(&tell, &steps).unwrap();
    assert_eq!(*asked.lock().unwrap(), [(STORAGE, 170)]);
    let puts = wide.device.keys_of("put");
    assert!(puts.len() > 1 && puts.iter().all(|put| put.len() <= AT_ONCE));
    assert_eq!(puts.concat(), (30..150).rev().collect::<Vec<Key>>());
    assert_eq!(wide.device.held_keys(STORAGE), (30..150).collect::<Vec<Key>>());
    wide.check_rows();
    steps.check(hottest.len() as u64);
    assert_eq!(wide.store.stats().unwrap()[0].counts.keys(), 0);
}

#[test]
fn a_piece_of_keys_that_are_all_gone_does_not_end_the_filling() {
    let wide = wide(Some(170));
    let mut hottest: Vec<Key> = (1_000..1_000 + AT_ONCE as u64).collect();
    hottest.extend([3, 1, 2]);
    wide.store.fill_devices(&|_, _| Ok(Some(hottest.clone())), &Silent).unwrap();
    assert_eq!(wide.device.keys_of("put"), [[3, 1, 2]]);
}

#[test]
fn a_cache_of_which_nothing_is_known_is_given_the_first_rows_of_the_scan_up_to_its_capacity() {
    for capacity in [1, 99, 100, 101, 250, 1_000] {
        let wide = wide(Some(capacity));
        let steps = Steps::default();
        wide.store.fill_devices(&nothing_known, &steps).unwrap();
        let scanned = wide.scanned();
        let given = wide.device.keys_of("put").concat();
        assert_eq!(given, scanned[..capacity.min(250)], "capacity {capacity}");
        assert_eq!(wide.device.held_keys(STORAGE).len(), given.len());
        wide.check_rows();
        steps.check(given.len() as u64);
    }
}

#[test]
fn a_device_that_wants_no_rows_is_not_given_any() {
    let wide = wide(Some(0));
    let not_asked = |_, _| -> Result<Option<Vec<Key>>> { panic!("no rows: nobody cares which are hottest") };
    wide.store.fill_devices(&not_asked, &Silent).unwrap();
    assert_eq!(wide.device.calls(), []);
}

#[test]
fn fused_tables_are_filled_once_and_every_device_gets_its_own_rows() {
    let mut only_narrow = device(2, Answers::Enqueued);
    only_narrow.tables.drain(..2);
    let fixture =
        fixture_with(vec![device(0, Answers::Enqueued), device(1, Answers::Missed), only_narrow], false);
    let asked = Mutex::new(Vec::new());
    let tell = |table, most| {
        asked.lock().unwrap().push((table, most));
        Ok(Some(if table == STORAGE { vec![3, 2, 1] } else { vec![0xFFFF_FFFF] }))
    };
    fixture.store.fill_devices(&tell, &Silent).unwrap();
    assert_eq!(*asked.lock().unwrap(), [(STORAGE, 150), (NARROW_STORAGE, 150)]);
    for (device, expected) in fixture.devices.iter().zip([vec![200, 10], vec![3, 1], vec![10]]) {
        let puts: Vec<usize> = device.keys_of("put").iter().map(Vec::len).collect();
        assert_eq!(puts, expected);
    }
    assert_eq!(fixture.devices[1].keys_of("put"), [vec![3, 2, 1], vec![0xFFFF_FFFF]]);
    assert_eq!(fixture.try_lookup(SIBLING, 0, &[7, 999]).unwrap(), [row_of(7, 1, SIZE), default_row(0.25)]);
    assert_eq!(fixture.try_lookup(NARROW, 2, &[0xFFFF_FFFF]).unwrap(), [row_of(0xFFFF_FFFF, 1, NARROW_SIZE)]);
}

#[test]
fn a_device_that_serves_only_the_second_of_two_fused_tables_is_filled() {
    let mut settings = device(0, Answers::Enqueued);
    settings.tables.remove(TABLE);
    let fixture = fixture_with(vec![settings], false);
    fixture.fill(None).unwrap();
    assert_eq!(fixture.try_lookup(SIBLING, 0, &[7]).unwrap(), expected(&[7]));
}

#[test]
fn failures_while_devices_are_filled_are_reported_with_the_table() {
    for operation in ["put", "scan"] {
        let wide = wide(Some(250));
        wide.device.set_hook(failing("put", ErrorKind::Device));
        if operation == "scan" {
            wide.ssd.set_hook(failing("scan", ErrorKind::Storage));
        }
        let text = wide.store.fill_devices(&nothing_known, &Silent).unwrap_err().to_string();
        assert_eq!(text, format!("planted in {operation} [model: w, table: t]"));
    }
    let unknown = |_, _| Err(Error::new(ErrorKind::Storage, "no such file"));
    let text = wide(Some(250)).store.fill_devices(&unknown, &Silent).unwrap_err().to_string();
    assert_eq!(text, "no such file [model: w, table: t]");
}

/// The clock was read before the rows: one that is written meanwhile is read again. Of a scan the last key is written at the
/// first put, of keys that are looked up one of that very put.
#[test]
fn rows_that_are_written_while_a_device_is_filled_are_not_put_old() {
    for (capacity, is_known) in [(None, false), (Some(250), false), (Some(250), true)] {
        for erases in [false, true] {
            let wide = wide(capacity);
            let written = *wide.scanned().last().unwrap();
            let other = (written + 1) % 250;
            let (store, is_first) = (Arc::downgrade(&wide.store), AtomicBool::new(true));
            wide.device.set_hook(move |operation| {
                if operation == "put" && is_first.swap(false, Ordering::SeqCst) {
                    let (store, row) = (store.upgrade().unwrap(), row_of(written, 9, WIDE));
                    match erases {
                        true => store.erase(STORAGE, &[written])?,
                        false => store.insert(STORAGE, &[written], Rows::new(&row, WIDE).unwrap())?,
                    }
                }
                Ok(())
            });
            let hottest = is_known.then(|| vec![other, written]);
            wide.store.fill_devices(&|_, _| Ok(hottest.clone()), &Silent).unwrap();
            assert_eq!(wide.held_version(written), (!erases).then_some(9));
            assert_eq!(wide.held_version(other), Some(1));
            let mut memory = DeviceMemory::new(&[written], KeyWidth::Bits64, WIDE);
            wide.store.lookup_on_device(0, 0, &memory.lookup()).unwrap();
            let row = &memory.rows()[0];
            assert_eq!(wide_version(written, row), if erases { 0 } else { 9 });
            assert_eq!(row.iter().all(|&byte| byte == 0), erases, "the default row");
        }
    }
}

/// The row of one key was read in a cache, and the truth is about to be asked for another one's, when the first is written.
#[test]
fn rows_that_are_written_while_hot_keys_are_looked_up_are_not_put_old() {
    let fixture = fixture(Answers::Missed);
    let (store, is_first) = (Arc::downgrade(&fixture.store), AtomicBool::new(true));
    fixture.ssd.set_hook(move |operation| {
        if operation == "lookup" && is_first.swap(false, Ordering::SeqCst) {
            let row = row_of(5, 9, SIZE);
            store.upgrade().unwrap().insert(STORAGE, &[5], Rows::new(&row, SIZE).unwrap())?;
        }
        Ok(())
    });
    fixture.fill(Some(&[5, 150])).unwrap();
    assert_eq!(fixture.device().held_keys(STORAGE), [5, 150]);
    assert_eq!(fixture.device().row(STORAGE, 5), Some(row_of(5, 9, SIZE)));
    assert_eq!(fixture.lookup(&[5, 150]).0, [row_of(5, 9, SIZE), row_of(150, 1, SIZE)]);
}

#[test]
fn a_write_while_a_whole_table_is_filled_takes_no_other_row_from_it() {
    let wide = wide(None);
    let clock = UpdateClock::default();
    let before = clock.snapshot();
    clock.advance(&[2]);
    // A new key that shares its counter with a key of the table.
    let sharing: HashSet<Key> = (0..250).filter(|&key| !clock.is_current(key, &before)).collect();
    assert_eq!(sharing, HashSet::from([2]));
    let new = (1_000..).find(|&key| !clock.is_current(key, &before)).unwrap();
    let (store, is_first) = (Arc::downgrade(&wide.store), AtomicBool::new(true));
    wide.device.set_hook(move |operation| {
        if operation == "put" && is_first.swap(false, Ordering::SeqCst) {
            let row = row_of(new, 1, WIDE);
            store.upgrade().unwrap().insert(STORAGE, &[new], Rows::new(&row, WIDE).unwrap())?;
        }
        Ok(())
    });
    wide.store.fill_devices(&nothing_known, &Silent).unwrap();
    assert_eq!(wide.held_version(new), Some(1));
    assert_eq!(wide.held_version(2), Some(1), "nobody wrote this one");
}

// ---- statistics

#[test]
fn what_devices_counted_is_added_and_what_they_hold_is_summed() {
    let mut only_narrow = device(2, Answers::Enqueued);
    only_narrow.tables.drain(..2);
    let fixture =
        fixture_with(vec![device(0, Answers::Enqueued), device(1, Answers::Missed), only_narrow], false);
    fixture.fill(Some(&[3, 2, 1])).unwrap();
    // Counted by the device, by the walk, by the table of the host.
    fixture.try_lookup(TABLE, 0, &[3, 199, 999]).unwrap();
    fixture.try_lookup(TABLE, 1, &[3, 5, 150, 999, 998]).unwrap();
    let table = fixture.store.table(TABLE).unwrap();
    let mut bytes = [0; 2 * SIZE];
    let mut rows = hps_core::RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
    fixture.store.lookup(table, &[3, 999], &mut rows).unwrap();
    fixture.try_lookup(SIBLING, 0, &[7]).unwrap();
    fixture.try_lookup(NARROW, 2, &[0xFFFF_FFFF, 1]).unwrap();

    assert_eq!(fixture.counts(TABLE), Counts { gpu: 3, host: 2, ssd: 1, missing: 4 });
    assert_eq!(fixture.counts(SIBLING), Counts { gpu: 1, host: 0, ssd: 0, missing: 0 });
    assert_eq!(fixture.counts(NARROW), Counts { gpu: 1, host: 0, ssd: 0, missing: 1 });

    let stats = fixture.store.stats().unwrap();
    let usage = |rows: u64, size: usize| TierUsage { rows, bytes: rows * size as u64 };
    // 200 rows on the first, and 3 + 2 that were missed on the second; the third does not serve it.
    let expected = [
        (TierKind::Gpu, usage(205, SIZE)),
        (TierKind::Host, usage(10, SIZE)),
        (TierKind::Host, usage(15, SIZE)),
        (TierKind::Ssd, usage(200, SIZE)),
    ];
    assert_eq!(stats[TABLE].usage, expected);
    assert_eq!(stats[SIBLING].usage, expected, "fused tables show the storage that they share");
    assert_eq!(stats[NARROW].usage[0], (TierKind::Gpu, usage(20, NARROW_SIZE)));
}

#[test]
fn a_table_that_no_device_serves_shows_no_gpu() {
    let mut only_narrow = device(0, Answers::Enqueued);
    only_narrow.tables.drain(..2);
    let fixture = fixture_with(vec![only_narrow], false);
    let stats = fixture.store.stats().unwrap();
    assert!(stats[TABLE].usage.iter().all(|(kind, _)| *kind != TierKind::Gpu));
    assert_eq!(stats[NARROW].usage[0], (TierKind::Gpu, TierUsage::default()));
}

#[test]
fn statistics_that_a_device_cannot_give_are_an_error() {
    for operation in ["counts", "usage"] {
        let fixture = fixture(Answers::Missed);
        fixture.device().set_hook(failing(operation, ErrorKind::Device));
        assert_eq!(fixture.store.stats().unwrap_err().kind(), ErrorKind::Device);
    }
}

#[test]
fn a_refresh_brings_what_the_truth_holds_now_and_removes_what_it_lacks() {
    for capacity in [None, Some(100)] {
        let wide = wide(capacity);
        wide.store.fill_devices(&nothing_known, &Silent).unwrap();
        let held = wide.device.held_keys(STORAGE);
        assert_eq!(held.len(), capacity.unwrap_or(250));
        // Behind the store's back: another program writes the database.
        let (changed, gone) = (held[0], held[1]);
        let row = row_of(changed, 9, WIDE);
        wide.ssd.insert(STORAGE, &[changed], Rows::new(&row, WIDE).unwrap()).unwrap();
        wide.ssd.erase(STORAGE, &[gone]).unwrap();
        assert_eq!(wide.held_version(changed), Some(1));
        assert_eq!(wide.store.refresh_devices().unwrap(), held.len() as u64);
        assert_eq!(wide.held_version(changed), Some(9));
        assert_eq!(wide.held_version(gone), None);
        assert_eq!(wide.device.held_keys(STORAGE).len(), held.len() - 1);
    }
}

#[test]
fn a_refresh_of_one_model_leaves_others_alone_and_can_be_ended() {
    let fixture = fixture(Answers::Missed);
    fixture.fill(Some(&[1, 2, 3])).unwrap();
    fixture.store.refresh_model("another", &|| true).unwrap();
    assert!(fixture.device().keys_of("resident_keys").is_empty());
    assert_eq!(fixture.store.refresh_model("m", &|| true).unwrap(), 3);
    assert_eq!(fixture.device().keys_of("refresh").concat(), [1, 2, 3]);
    assert_eq!(fixture.store.refresh_model("m", &|| false).unwrap(), 0);
    assert_eq!(fixture.device().keys_of("refresh").len(), 1);
}

#[test]
fn a_refresh_brings_new_keys_to_a_table_that_is_held_whole_and_to_no_other() {
    for capacity in [None, Some(300)] {
        let wide = wide(capacity);
        wide.store.fill_devices(&nothing_known, &Silent).unwrap();
        let new: Vec<Key> = (1_000..1_300).collect();
        wide.ssd.insert(STORAGE, &new, Rows::new(&rows_of(&new, 9, WIDE), WIDE).unwrap()).unwrap();
        let puts = wide.device.keys_of("put").len();
        wide.store.refresh_devices().unwrap();
        let brought = wide.device.keys_of("put").split_off(puts).concat();
        if capacity.is_none() {
            assert_eq!(brought.len(), new.len(), "keys that are held are not brought twice");
            assert!(new.iter().all(|&key| wide.held_version(key) == Some(9)));
        } else {
            assert!(brought.is_empty());
        }
    }
}

#[test]
fn a_row_that_is_written_during_a_refresh_is_not_overwritten_by_the_older_one() {
    let wide = wide(None);
    wide.store.fill_devices(&nothing_known, &Silent).unwrap();
    let (store, once) = (Arc::downgrade(&wide.store), Mutex::new(Some(())));
    wide.device.set_hook(move |operation| {
        // Read below, not yet brought.
        if operation == "refresh" && once.lock().unwrap().take().is_some() {
            let row = row_of(5, 9, WIDE);
            store.upgrade().unwrap().insert(STORAGE, &[5], Rows::new(&row, WIDE).unwrap())?;
        }
        Ok(())
    });
    wide.store.refresh_devices().unwrap();
    assert_eq!(wide.held_version(5), Some(9));
}
