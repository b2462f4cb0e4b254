//! Random sequences of operations against a `HashMap`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::ops::ControlFlow;

use common::{TABLE, limited, lookup, open, unlimited};
use hps_core::testing::{row_of, rows_of};
use hps_core::tier::{CacheTier, Expected, Promotion, Tier, TruthTier};
use hps_core::update_clock::UpdateClock;
use hps_core::{Key, Rows};
use hps_host::{EvictionPolicy, HostTier};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    Insert(Vec<Key>),
    Update(Vec<Key>),
    Erase(Vec<Key>),
    Promote { keys: Vec<Key>, written_meanwhile: Vec<Key> },
    Lookup(Vec<Key>),
    Reserve(Expected),
}

/// Keys around the pages whose keys have slots of their own if the table is expected to have them all.
const CLOSE: std::ops::Range<Key> = 2_000..3_100;

fn expected() -> impl Strategy<Value = Expected> {
    prop_oneof![
        (0..2_000u64).prop_map(Expected::rows),
        (1_000..4_000u64).prop_map(|rows| Expected { rows, largest_key: Some(rows - 1) }),
    ]
}

/// Few enough keys to meet again, of the kinds that tables trip over.
fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => 0..200u64,
        2 => CLOSE,
        1 => (0..40u64).prop_map(|i| i << 32),
        1 => (0..40u64).prop_map(|i| i << 57),
        1 => (0..10u64).prop_map(|i| u64::MAX - i),
        1 => prop_oneof![Just(i64::MIN as u64), Just(i64::MAX as u64), Just(0xFFFF_FFFF)],
    ]
}

fn keys(max: usize) -> impl Strategy<Value = Vec<Key>> {
    prop::collection::vec(key(), 0..max)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => keys(60).prop_map(Action::Insert),
        2 => keys(60).prop_map(Action::Update),
        2 => keys(40).prop_map(Action::Erase),
        3 => (keys(60), keys(3))
            .prop_map(|(keys, written_meanwhile)| Action::Promote { keys, written_meanwhile }),
        3 => keys(100).prop_map(Action::Lookup),
        1 => expected().prop_map(Action::Reserve),
    ]
}

const ROW_BYTES: [usize; 4] = [4, 12, 64, 512];

struct Run {
    tier: HostTier,
    row_bytes: usize,
    clock: UpdateClock,
    version: u64,
    /// Rows that the tier may hold; without a limit it holds exactly these.
    oracle: HashMap<Key, Vec<u8>>,
    margin: Option<u64>,
}

impl Run {
    fn step(&mut self, action: &Action) {
        self.version += 1;
        let size = self.row_bytes;
        let rows = |keys: &[Key], version| rows_of(keys, version, size);
        match action {
            Action::Insert(keys) => {
                let bytes = rows(keys, self.version);
                self.tier.insert(TABLE, keys, Rows::new(&bytes, size).unwrap()).unwrap();
                let new = keys.iter().map(|&key| (key, row_of(key, self.version, size)));
                self.oracle.extend(new);
            }
            Action::Update(keys) => {
                let bytes = rows(keys, self.version);
                self.tier.update(TABLE, keys, Rows::new(&bytes, size).unwrap()).unwrap();
                for key in keys {
                    if let Some(row) = self.oracle.get_mut(key) {
                        *row = row_of(*key, self.version, size);
                    }
                }
            }
            Action::Erase(keys) => {
                self.tier.erase(TABLE, keys).unwrap();
                keys.iter().for_each(|key| drop(self.oracle.remove(key)));
            }
            Action::Promote { keys, written_meanwhile } => self.promote(keys, written_meanwhile),
            Action::Lookup(keys) => drop(self.check(keys)),
            Action::Reserve(expected) => self.tier.reserve(TABLE, *expected).unwrap(),
        }
        // Whether devices read rows makes no difference to anybody else.
        match self.version % 4 {
            0 => self.tier.abandon_replaced(TABLE),
            1 => self.tier.reclaim(TABLE),
            _ => {}
        }
        let held = self.tier.partition_rows(TABLE).unwrap();
        assert_eq!(held.iter().sum::<u64>(), self.tier.usage(TABLE).unwrap().rows);
        assert!(held.iter().all(|&rows| rows <= self.margin.unwrap_or(u64::MAX)));
    }

    fn promote(&mut self, keys: &[Key], written_meanwhile: &[Key]) {
        let before = self.present();
        let snapshot = self.clock.snapshot();
        self.clock.advance(written_meanwhile);
        let bytes = rows_of(keys, self.version, self.row_bytes);
        let promotion = Promotion {
            keys,
            rows: Rows::new(&bytes, self.row_bytes).unwrap(),
            clock: &self.clock,
            snapshot: &snapshot,
        };
        let added = self.tier.promote(TABLE, promotion).unwrap();
        let mut expected = 0;
        for &key in keys {
            if self.clock.is_current(key, &snapshot) && !before.contains_key(&key) {
                let is_new = self.oracle.insert(key, row_of(key, self.version, self.row_bytes)).is_none();
                expected += u64::from(is_new || self.margin.is_some());
            }
        }
        if self.margin.is_none() {
            assert_eq!(added, expected);
        } else {
            assert!(added <= keys.len() as u64);
        }
        // What a promotion found present may have been evicted by it and taken again: both rows are current.
        if self.margin.is_some() {
            for &key in keys {
                if let [Some(row)] = &lookup(&self.tier, self.row_bytes, &[key])[..] {
                    let own = self.oracle.get(&key) == Some(row);
                    assert!(own || *row == row_of(key, self.version, self.row_bytes));
                    self.oracle.insert(key, row.clone());
                }
            }
        }
    }

    /// Looks keys up; a row found is always the newest, and without a limit every row is found.
    fn check(&self, keys: &[Key]) -> Vec<Option<Vec<u8>>> {
        let found = lookup(&self.tier, self.row_bytes, keys);
        for (key, row) in keys.iter().zip(&found) {
            if row.is_some() || self.margin.is_none() {
                assert_eq!(row.as_ref(), self.oracle.get(key), "key {key}");
            }
        }
        found
    }

    fn present(&self) -> HashMap<Key, Vec<u8>> {
        let mut present = HashMap::new();
        self.tier
            .scan(TABLE, &mut |keys, rows| {
                for (&key, row) in keys.iter().zip(rows.iter()) {
                    assert!(present.insert(key, row.to_vec()).is_none(), "a scan shows a key once");
                }
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        present
    }

    fn finish(self) {
        let keys: Vec<Key> = self.oracle.keys().copied().collect();
        let found = self.check(&keys);
        let present = self.present();
        assert_eq!(present.len(), found.iter().flatten().count());
        assert_eq!(present.len() as u64, self.tier.usage(TABLE).unwrap().rows);
        for (key, row) in &present {
            assert_eq!(self.oracle.get(key), Some(row));
        }
    }
}

fn run(settings: hps_host::HostSettings, row_bytes: usize, actions: &[Action]) {
    let mut run = Run {
        tier: open(settings, row_bytes),
        row_bytes,
        clock: UpdateClock::default(),
        version: 0,
        oracle: HashMap::new(),
        margin: settings.overflow_margin,
    };
    actions.iter().for_each(|action| run.step(action));
    run.finish();
}

/// Random sequences of each property: `PROPTEST_CASES` of them, for a campaign.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn without_a_limit_it_is_a_map(
        num_partitions in 1usize..20,
        row_bytes in prop::sample::select(&ROW_BYTES[..]),
        serves_devices in any::<bool>(),
        first in prop::option::of(expected().prop_map(Action::Reserve)),
        actions in prop::collection::vec(action(), 1..40),
    ) {
        let settings = hps_host::HostSettings { serves_devices, ..unlimited(num_partitions) };
        let actions: Vec<Action> = first.into_iter().chain(actions).collect();
        run(settings, row_bytes, &actions);
    }

    #[test]
    fn with_a_limit_it_never_holds_too_many_nor_a_wrong_row(
        num_partitions in 1usize..6,
        margin in 1u64..60,
        target in prop::sample::select(&[0.01, 0.5, 0.8, 1.0][..]),
        policy in prop::sample::select(
            &[EvictionPolicy::Random, EvictionPolicy::LeastUsed, EvictionPolicy::Oldest][..]
        ),
        row_bytes in prop::sample::select(&ROW_BYTES[..]),
        actions in prop::collection::vec(action(), 1..40),
    ) {
        run(limited(num_partitions, margin, policy, target), row_bytes, &actions);
    }
}
