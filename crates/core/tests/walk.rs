//! The walk over two tiers: who is asked for what, what is counted, what moves up, and what must not.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

use hps_core::observer::Silent;
use hps_core::store::{Table, Tiers};
use hps_core::testing::{MapTier, row_of, rows_of};
use hps_core::tier::{CacheTier, Promotion, TableSpec, Tier, TierKind, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{EmbeddingStore, Error, ErrorKind, Key, KeyWidth, Rows, RowsMut, TableId};

const DIM: usize = 4;
const SIZE: usize = DIM * 4;
const TABLE: TableId = TableId(0);

struct Fixture {
    clocks: Arc<[UpdateClock]>,
    host: Arc<MapTier>,
    ssd: Arc<MapTier>,
    store: Arc<EmbeddingStore>,
}

/// Host holds keys 0..10, the truth 0..20; everything else is missing.
fn fixture(promote_found: bool) -> Fixture {
    let specs = vec![TableSpec { name: "hps_et.m.t".into(), row_bytes: SIZE, key_width: KeyWidth::Bits64 }];
    let host = Arc::new(MapTier::new(TierKind::Host, &specs));
    let ssd = Arc::new(MapTier::new(TierKind::Ssd, &specs));
    let keys: Vec<Key> = (0..20).collect();
    let rows = rows_of(&keys, 1, SIZE);
    ssd.insert(TABLE, &keys, Rows::new(&rows, SIZE).unwrap()).unwrap();
    host.insert(TABLE, &keys[..10], Rows::new(&rows[..10 * SIZE], SIZE).unwrap()).unwrap();
    let clocks: Arc<[UpdateClock]> = Arc::new([UpdateClock::default()]);
    let tiers = Tiers {
        specs,
        caches: vec![Arc::clone(&host) as Arc<dyn CacheTier>],
        truth: Arc::clone(&ssd) as Arc<dyn TruthTier>,
        clocks: Arc::clone(&clocks),
        devices: Vec::new(),
        gather_threads: 4,
    };
    let tables =
        vec![Table::new("m", 1, "other", TABLE, DIM, 0.25), Table::new("m", 0, "t", TABLE, DIM, -1.5)];
    let store = Arc::new(EmbeddingStore::new(tables, tiers, promote_found, Arc::new(Silent)).unwrap());
    Fixture { clocks, host, ssd, store }
}

impl Fixture {
    fn lookup(&self, keys: &[Key]) -> (Vec<Vec<u8>>, (u64, u64, u64)) {
        let table = self.store.table(self.store.find_table("m", 0).unwrap()).unwrap();
        let mut bytes = vec![0xEE; keys.len() * SIZE];
        let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
        let counts = self.store.lookup(table, keys, &mut rows).unwrap();
        assert_eq!(counts.keys(), keys.len() as u64, "hits + missing == keys");
        let rows = bytes.chunks(SIZE).map(<[u8]>::to_vec).collect();
        (rows, (counts.hits(TierKind::Host), counts.hits(TierKind::Ssd), counts.missing))
    }
}

fn default_row(value: f32) -> Vec<u8> {
    value.to_le_bytes().repeat(DIM)
}

#[test]
fn every_key_is_served_from_the_highest_tier_that_holds_it_or_gets_the_default() {
    let fixture = fixture(false);
    let keys: Vec<Key> = vec![5, 15, 99, 5, 15, 99, 0, u64::MAX];
    let (rows, counts) = fixture.lookup(&keys);
    let expected: Vec<Vec<u8>> =
        keys.iter().map(|&key| if key < 20 { row_of(key, 1, SIZE) } else { default_row(-1.5) }).collect();
    assert_eq!(rows, expected);
    assert_eq!(counts, (3, 2, 3));
    assert_eq!(fixture.lookup(&[]).1, (0, 0, 0));
    assert_eq!(fixture.lookup(&[1, 2]).1, (2, 0, 0));

    let stats = fixture.store.stats().unwrap();
    assert_eq!(stats[0].counts.keys(), 10, "sums over all lookups, errors excluded");
    assert_eq!((stats[0].counts.hits(TierKind::Host), stats[0].counts.missing), (5, 3));
    assert_eq!(stats[1].counts.keys(), 0);
    assert_eq!(stats[0].usage.len(), 2);
}

#[test]
fn tables_that_share_storage_have_their_own_default_row() {
    let fixture = fixture(false);
    let table = fixture.store.table(fixture.store.find_table("m", 1).unwrap()).unwrap();
    let mut bytes = vec![0; 2 * SIZE];
    fixture.store.lookup(table, &[3, 77], &mut RowsMut::from_bytes(&mut bytes, SIZE).unwrap()).unwrap();
    assert_eq!(bytes[..SIZE], row_of(3, 1, SIZE));
    assert_eq!(bytes[SIZE..], default_row(0.25));
}

#[test]
fn wrong_names_and_sizes_are_errors_that_say_what_there_is() {
    let fixture = fixture(false);
    let text = fixture.store.find_table("n", 0).unwrap_err().to_string();
    assert!(text.contains("\"n\"") && text.contains("\"m\""), "{text}");
    for id in [-1, 2, i64::MAX, i64::MIN] {
        let text = fixture.store.find_table("m", id).unwrap_err().to_string();
        assert!(text.contains(&id.to_string()) && text.contains("0 to 1"), "{text}");
    }
    let table = fixture.store.table(0).unwrap();
    let mut bytes = vec![0; SIZE];
    let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
    assert_eq!(
        fixture.store.lookup(table, &[1, 2], &mut rows).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    let mut rows = RowsMut::from_bytes(&mut bytes, 4).unwrap();
    assert_eq!(
        fixture.store.lookup(table, &[1, 2, 3, 4], &mut rows).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn found_rows_move_up_when_configured_and_default_rows_never_do() {
    let fixture = fixture(true);
    fixture.lookup(&[5, 15, 99, 16, 15]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.host.row(TABLE, 15), Some(row_of(15, 1, SIZE)));
    assert_eq!(fixture.host.row(TABLE, 16), Some(row_of(16, 1, SIZE)));
    assert_eq!(fixture.host.row(TABLE, 99), None, "a default row must not be cached as if real");
    assert_eq!(fixture.lookup(&[5, 15, 16]).1, (3, 0, 0));
    assert_eq!(fixture.store.stats().unwrap()[0].promoted, 2);

    let without = self::fixture(false);
    without.lookup(&[15]);
    without.store.drain_promotions();
    assert_eq!(without.host.row(TABLE, 15), None);
}

#[test]
fn a_key_that_appears_later_is_found_later() {
    let fixture = fixture(true);
    assert_eq!(fixture.lookup(&[50]).1, (0, 0, 1));
    fixture.store.insert(TABLE, &[50], Rows::new(&row_of(50, 2, SIZE), SIZE).unwrap()).unwrap();
    assert_eq!(fixture.lookup(&[50]), (vec![row_of(50, 2, SIZE)], (0, 1, 0)));
    fixture.store.erase(TABLE, &[50, 5]).unwrap();
    assert_eq!(fixture.lookup(&[50, 5]).1, (0, 0, 2));
}

/// Decision of the design: whatever carries a row up drops it if the key was written since it was read. The lookup is
/// stopped after it has read key 15 below and before the row is inserted above; meanwhile the key is written.
#[test]
fn a_row_that_was_updated_between_read_and_promotion_is_dropped() {
    for erase in [false, true] {
        let fixture = fixture(true);
        let (at_promotion, promotion_reached) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let may_go_on = std::sync::Mutex::new(may_go_on);
        let calls = AtomicU64::new(0);
        fixture.host.set_hook(move |operation| {
            if operation == "promote" && calls.fetch_add(1, Ordering::SeqCst) == 0 {
                at_promotion.send(()).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
            }
            Ok(())
        });
        fixture.lookup(&[15, 16]);
        promotion_reached.recv().unwrap();
        if erase {
            fixture.store.erase(TABLE, &[15]).unwrap();
        } else {
            fixture.store.insert(TABLE, &[15], Rows::new(&row_of(15, 9, SIZE), SIZE).unwrap()).unwrap();
        }
        go_on.send(()).unwrap();
        fixture.store.drain_promotions();
        assert_eq!(fixture.host.row(TABLE, 15), None, "the stale row must not be carried up");
        assert_eq!(fixture.host.row(TABLE, 16), Some(row_of(16, 1, SIZE)), "the other row is still good");
        let expected = if erase { default_row(-1.5) } else { row_of(15, 9, SIZE) };
        assert_eq!(fixture.lookup(&[15]).0, [expected]);
    }
}

/// The other side of the same race: the write comes after the snapshot and before the lower tier is read.
#[test]
fn a_row_updated_while_the_lower_tier_is_read_is_not_promoted_stale() {
    let fixture = fixture(true);
    let store = Arc::downgrade(&fixture.store);
    let calls = AtomicU64::new(0);
    fixture.ssd.set_hook(move |operation| {
        if operation == "lookup" && calls.fetch_add(1, Ordering::SeqCst) == 0 {
            let row = row_of(15, 9, SIZE);
            store.upgrade().unwrap().insert(TABLE, &[15], Rows::new(&row, SIZE).unwrap())?;
        }
        Ok(())
    });
    fixture.lookup(&[15]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.lookup(&[15]).0, [row_of(15, 9, SIZE)]);
    assert!(fixture.host.row(TABLE, 15).is_none_or(|row| row == row_of(15, 9, SIZE)));
}

#[test]
fn a_failing_tier_is_an_error_and_never_default_rows() {
    let fixture = fixture(true);
    let fail = |operation: &str| -> hps_core::Result<()> {
        if operation == "lookup" { Err(Error::new(ErrorKind::Storage, "disk on fire")) } else { Ok(()) }
    };
    fixture.ssd.set_hook(fail);
    let table = fixture.store.table(0).unwrap();
    let mut bytes = vec![0; SIZE];
    let mut rows = RowsMut::from_bytes(&mut bytes, SIZE).unwrap();
    let error = fixture.store.lookup(table, &[15], &mut rows).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Storage);
    assert!(error.to_string().contains("disk on fire") && error.to_string().contains("model: m"), "{error}");
    assert_eq!(fixture.store.stats().unwrap()[0].counts.keys(), 0, "a failed lookup is not counted");
    fixture.ssd.set_hook(|_| Ok(()));
    assert_eq!(fixture.lookup(&[15]).1, (0, 1, 0), "the store serves again when the tier does");
}

#[test]
fn after_a_failed_write_caches_hold_nothing_that_the_truth_may_not() {
    let fixture = fixture(false);
    fixture.ssd.set_hook(|operation| {
        if operation == "insert" { Err(Error::new(ErrorKind::Storage, "disk full")) } else { Ok(()) }
    });
    let row = row_of(5, 9, SIZE);
    assert!(fixture.store.insert(TABLE, &[5], Rows::new(&row, SIZE).unwrap()).is_err());
    assert_eq!(fixture.lookup(&[5]), (vec![row_of(5, 1, SIZE)], (0, 1, 0)));
}

/// The clock must have advanced before the caches are written. A stale row is promoted at the last moment before that
/// write: the promotion must either be dropped or be overwritten.
#[test]
fn a_promotion_just_before_a_cache_is_updated_leaves_no_stale_row() {
    for erase in [false, true] {
        let fixture = fixture(true);
        let (host, clocks) = (Arc::clone(&fixture.host), Arc::clone(&fixture.clocks));
        let snapshot = fixture.clocks[0].snapshot();
        let operation_of_the_write = if erase { "erase" } else { "update" };
        let promoted_before = Arc::new(AtomicU64::new(0));
        let promoted = Arc::clone(&promoted_before);
        let weak = Arc::downgrade(&host);
        fixture.host.set_hook(move |operation| {
            if operation == operation_of_the_write {
                let old = row_of(15, 1, SIZE);
                let rows = Rows::new(&old, SIZE).unwrap();
                let promotion = Promotion { keys: &[15], rows, clock: &clocks[0], snapshot: &snapshot };
                promoted.store(weak.upgrade().unwrap().promote(TABLE, promotion)? + 1, Ordering::SeqCst);
            }
            Ok(())
        });
        let new = row_of(15, 9, SIZE);
        match erase {
            true => fixture.store.erase(TABLE, &[15]).unwrap(),
            false => fixture.store.insert(TABLE, &[15], Rows::new(&new, SIZE).unwrap()).unwrap(),
        }
        assert_eq!(
            promoted_before.load(Ordering::SeqCst),
            1,
            "asked, and dropped: the clock had advanced already"
        );
        assert_eq!(fixture.host.row(TABLE, 15), None);
    }
}

#[test]
fn a_cache_that_fails_to_take_an_update_forgets_the_key() {
    let fixture = fixture(false);
    fixture.host.set_hook(|operation| match operation {
        "update" => Err(Error::new(ErrorKind::OutOfMemory, "no memory")),
        _ => Ok(()),
    });
    let new = row_of(5, 9, SIZE);
    let error = fixture.store.insert(TABLE, &[5], Rows::new(&new, SIZE).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert_eq!(
        fixture.lookup(&[5]),
        (vec![new], (0, 1, 0)),
        "the truth has the new row, and no cache the old one"
    );
}

#[test]
fn a_large_lookup_is_promoted_and_the_queue_is_bounded() {
    const WIDE: usize = 4096;
    let specs = vec![TableSpec { name: "hps_et.m.t".into(), row_bytes: WIDE, key_width: KeyWidth::Bits64 }];
    let host = Arc::new(MapTier::new(TierKind::Host, &specs));
    let ssd = Arc::new(MapTier::new(TierKind::Ssd, &specs));
    let keys: Vec<Key> = (0..20_000).collect();
    ssd.insert(TABLE, &keys, Rows::new(&rows_of(&keys, 1, WIDE), WIDE).unwrap()).unwrap();
    let tiers = Tiers {
        specs,
        caches: vec![Arc::clone(&host) as Arc<dyn CacheTier>],
        truth: ssd,
        clocks: Arc::new([UpdateClock::default()]),
        devices: Vec::new(),
        gather_threads: 4,
    };
    let table = Table::new("m", 0, "t", TABLE, WIDE / 4, 0.0);
    let store = EmbeddingStore::new(vec![table], tiers, true, Arc::new(Silent)).unwrap();
    // While the promoting thread is held up, 80 MB of rows are found below: more than may wait.
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    host.set_hook(move |operation| {
        if operation == "promote" {
            let _ = wait.lock().unwrap().recv();
        }
        Ok(())
    });
    let mut bytes = vec![0; keys.len() * WIDE];
    let mut rows = RowsMut::from_bytes(&mut bytes, WIDE).unwrap();
    store.lookup(store.table(0).unwrap(), &keys, &mut rows).unwrap();
    drop(go_on);
    store.drain_promotions();
    let stats = &store.stats().unwrap()[0];
    assert_eq!(stats.promoted + stats.promotions_dropped, 20_000, "every row is accounted for");
    assert_eq!(stats.usage[0].1.rows, stats.promoted);
    let waiting = 64 << 20;
    let (least, most) = (waiting / WIDE as u64 - 2_048, waiting / WIDE as u64 + 2_048);
    assert!((least..=most).contains(&stats.promoted), "{} rows promoted", stats.promoted);
}

#[test]
fn a_promotion_that_fails_or_panics_disturbs_nobody() {
    let fixture = fixture(true);
    fixture.host.set_hook(|operation| match operation {
        "promote" => panic!("planted"),
        _ => Ok(()),
    });
    fixture.lookup(&[15]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.lookup(&[15]), (vec![row_of(15, 1, SIZE)], (0, 1, 0)));
    fixture.store.drain_promotions();
    fixture.host.set_hook(|_| Ok(()));
    fixture.lookup(&[15]);
    fixture.store.drain_promotions();
    assert_eq!(fixture.lookup(&[15]).1, (1, 0, 0), "the promoting thread survived");
}

#[test]
fn calls_larger_than_a_batch_are_cut_and_put_together() {
    let fixture = fixture(false);
    let keys: Vec<Key> = (0..hps_core::batch::MAX_BATCH_KEYS as u64 + 100).map(|i| i % 30).collect();
    let (rows, (host, ssd, missing)) = fixture.lookup(&keys);
    assert_eq!(host + ssd + missing, keys.len() as u64);
    for (i, row) in rows.iter().enumerate().skip(hps_core::batch::MAX_BATCH_KEYS - 50) {
        let want = if keys[i] < 20 { row_of(keys[i], 1, SIZE) } else { default_row(-1.5) };
        assert_eq!(*row, want, "position {i}");
    }
}
