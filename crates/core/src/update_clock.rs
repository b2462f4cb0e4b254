//! Tells whether a key was updated or deleted since its row was read.
//!
//! A row on its way up (a promotion, a warm-up) was read from a lower tier some time ago. If the key was written
//! meanwhile, carrying the row up would leave a stale row there for ever. So:
//!
//! 1. whoever carries rows takes a [`ClockSnapshot`] *before* it reads them below;
//! 2. a writer goes through the tiers from the truth up, and advances the clock for its keys after each tier that it wrote;
//! 3. an upper tier takes a promoted row only if, *while it holds the lock under which it also overwrites rows*, the
//!    clock still shows the snapshot's value for the key.
//!
//! Say a row was read in some tier below before the writer wrote that tier. Then the advance after that tier comes after the
//! snapshot. If 3 happens before that advance, the writer has not reached the upper tier yet, and its overwrite corrects the
//! row; if 3 happens after, the row is dropped. (An advance after the truth alone would not do: the row may have been read in
//! a cache that the writer had not reached, under a snapshot that was taken after that advance.)

use std::sync::atomic::{AtomicU64, Ordering};

use crate::key::{Key, mix};

/// Keys share a counter with 1/1024 of all keys: a write drops at most that share of the promotions under way.
const STRIPES: usize = 1024;

/// Counters of writes, one for each stripe of a table's keys. 8 KiB per table.
#[derive(Debug)]
pub struct UpdateClock {
    stripes: Box<[AtomicU64]>,
}

/// What the clock showed at one moment.
#[derive(Debug, Clone)]
pub struct ClockSnapshot {
    stripes: Box<[u64]>,
}

impl ClockSnapshot {
    /// Memory that one takes.
    pub(crate) const NUM_BYTES: usize = STRIPES * size_of::<u64>();
}

#[inline]
fn stripe_of(key: Key) -> usize {
    // The upper bits: the lower ones choose the partition, and keys of one partition should spread over stripes.
    (mix(key) >> 54) as usize % STRIPES
}

impl Default for UpdateClock {
    fn default() -> Self {
        Self { stripes: (0..STRIPES).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl UpdateClock {
    /// What the clock shows now. Take it before reading rows that are to be carried up.
    pub fn snapshot(&self) -> ClockSnapshot {
        ClockSnapshot { stripes: self.stripes.iter().map(|stripe| stripe.load(Ordering::Acquire)).collect() }
    }

    /// Notes that `keys` were written in a tier. Call it after that write and before the tiers above are written.
    pub fn advance(&self, keys: &[Key]) {
        for &key in keys {
            if let Some(stripe) = self.stripes.get(stripe_of(key)) {
                stripe.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Notes that any key may have changed.
    pub fn advance_all(&self) {
        for stripe in &self.stripes {
            stripe.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// True if `key` was not written since `snapshot`. Only meaningful under the lock of rule 3 above.
    #[inline]
    pub fn is_current(&self, key: Key, snapshot: &ClockSnapshot) -> bool {
        let stripe = stripe_of(key);
        match (self.stripes.get(stripe), snapshot.stripes.get(stripe)) {
            (Some(now), Some(then)) => now.load(Ordering::Acquire) == *then,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_noticed_for_its_key_and_few_others() {
        let clock = UpdateClock::default();
        let snapshot = clock.snapshot();
        clock.advance(&[42]);
        assert!(!clock.is_current(42, &snapshot));
        let dropped = (0..10_000u64).filter(|&key| !clock.is_current(key, &snapshot)).count();
        assert!(dropped < 40, "{dropped} of 10,000 keys share a stripe with one");
        assert!(clock.is_current(42, &clock.snapshot()));
        let before = clock.snapshot();
        clock.advance_all();
        assert!((0..1000).all(|key| !clock.is_current(key, &before)));
    }
}
