//! One bucket of an index: a cache line of entries.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use hps_core::Key;

use crate::marks::{Mark, Use};
use crate::slab::NO_SLOT;

/// Entries of a bucket.
pub(super) const WAYS: usize = 5;

/// Bits of a mark.
const MARK_BITS: usize = 4;
const MARK: u32 = (1 << MARK_BITS) - 1;
/// `away` lies above the marks.
const AWAY_SHIFT: usize = WAYS * MARK_BITS;
/// A count that has come so far stays there: it says no less than it has to.
const MAX_AWAY: u32 = u32::MAX >> AWAY_SHIFT;

#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    pub(super) keys: [Key; WAYS],
    pub(super) slots: [u32; WAYS],
    /// `away`, and below it a mark of each entry. Readers change marks while others do; `away` changes through exclusive
    /// borrows only.
    state: AtomicU32,
}

pub(super) static EMPTY_BUCKET: Bucket = Bucket::empty();

/// A key, its slot and its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) slot: u32,
    pub(super) mark: Mark,
}

fn mark_at(state: u32, way: usize) -> Mark {
    (state >> (way * MARK_BITS) & MARK) as Mark
}

fn with_mark(state: u32, way: usize, mark: Mark) -> u32 {
    let shift = way * MARK_BITS;
    state & !(MARK << shift) | (u32::from(mark) & MARK) << shift
}

impl Bucket {
    /// Without entries.
    pub(super) const fn empty() -> Self {
        Self { keys: [0; WAYS], slots: [NO_SLOT; WAYS], state: AtomicU32::new(0) }
    }

    /// Of a key whose first bucket this is: its slot, or `NO_SLOT`; and whether it may be in its second bucket.
    #[inline(always)]
    pub(crate) fn look(&self, key: Key) -> (u32, bool) {
        let slot = self.find(key);
        (slot, (slot == NO_SLOT) & (self.away() > 0))
    }

    /// The slot of `key`, or `NO_SLOT`. Without branches: entries of other keys, and empty ones, count as all ones.
    #[inline(always)]
    pub(crate) fn find(&self, key: Key) -> u32 {
        #[cfg(target_feature = "sse4.1")]
        // SAFETY: this is only compiled where every processor that may run it has the feature.
        return unsafe { self.find_at_once(key) };
        #[cfg(not(target_feature = "sse4.1"))]
        self.keys.iter().zip(&self.slots).fold(NO_SLOT, |found, (&held, &slot)| {
            let differs = u32::from(held == key).wrapping_sub(1);
            found & (slot | differs)
        })
    }

    /// Four entries in one register, the fifth in another.
    #[cfg(target_feature = "sse4.1")]
    #[target_feature(enable = "sse4.1")]
    #[inline]
    fn find_at_once(&self, key: Key) -> u32 {
        use std::arch::x86_64::{
            __m128i, _mm_and_si128, _mm_andnot_si128, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi64,
            _mm_cvtsi128_si32, _mm_or_si128, _mm_set_epi32, _mm_set_epi64x, _mm_set1_epi32, _mm_set1_epi64x,
            _mm_shuffle_epi32, _mm_shuffle_ps,
        };
        let [k0, k1, k2, k3, k4] = self.keys.map(u64::cast_signed);
        let [s0, s1, s2, s3, s4] = self.slots.map(u32::cast_signed);
        let wanted = _mm_set1_epi64x(key.cast_signed());
        let low = _mm_cmpeq_epi64(_mm_set_epi64x(k1, k0), wanted);
        let high = _mm_cmpeq_epi64(_mm_set_epi64x(k3, k2), wanted);
        // Half of each comparison.
        let first_four = _mm_shuffle_ps::<0b10_00_10_00>(_mm_castsi128_ps(low), _mm_castsi128_ps(high));
        let last_two = _mm_cmpeq_epi64(_mm_set_epi64x(k4, k3), wanted);
        let of_equal =
            |slots: __m128i, equal: __m128i| _mm_or_si128(slots, _mm_andnot_si128(equal, _mm_set1_epi32(-1)));
        let found = _mm_and_si128(
            of_equal(_mm_set_epi32(s3, s2, s1, s0), _mm_castps_si128(first_four)),
            of_equal(_mm_set_epi32(s4, s4, s3, s3), last_two),
        );
        let found = _mm_and_si128(found, _mm_shuffle_epi32::<0b01_00_11_10>(found));
        let found = _mm_and_si128(found, _mm_shuffle_epi32::<0b10_11_00_01>(found));
        _mm_cvtsi128_si32(found).cast_unsigned()
    }

    pub(super) fn empty_way(&self) -> Option<usize> {
        self.slots.iter().position(|&slot| slot == NO_SLOT)
    }

    pub(super) fn entry(&self, way: usize) -> Option<Entry> {
        let slot = *self.slots.get(way)?;
        let mark = mark_at(self.state.load(Relaxed), way);
        if slot == NO_SLOT { None } else { Some(Entry { key: *self.keys.get(way)?, slot, mark }) }
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..WAYS).filter_map(|way| self.entry(way))
    }

    pub(super) fn set(&mut self, way: usize, entry: Entry) {
        if let (Some(key), Some(slot)) = (self.keys.get_mut(way), self.slots.get_mut(way)) {
            *key = entry.key;
            *slot = entry.slot;
            let state = self.state.get_mut();
            *state = with_mark(*state, way, entry.mark);
        }
    }

    pub(super) fn way_of(&self, key: Key) -> Option<usize> {
        (0..WAYS).find(|&way| self.entry(way).is_some_and(|entry| entry.key == key))
    }

    // ---- keys that live elsewhere ----

    /// Keys whose first bucket this is and which live in their second.
    #[inline(always)]
    pub(super) fn away(&self) -> u32 {
        self.state.load(Relaxed) >> AWAY_SHIFT
    }

    /// One more key lives elsewhere.
    pub(super) fn sent_away(&mut self) {
        self.set_away(self.away().saturating_add(1).min(MAX_AWAY));
    }

    /// One key less does.
    pub(super) fn came_back(&mut self) {
        match self.away() {
            MAX_AWAY => {}
            away => self.set_away(away.saturating_sub(1)),
        }
    }

    fn set_away(&mut self, away: u32) {
        let state = self.state.get_mut();
        *state = *state & (u32::MAX >> (u32::BITS as usize - AWAY_SHIFT)) | away << AWAY_SHIFT;
    }

    // ---- marks ----

    /// Notes a use of the row in a slot, if it is here. Of several at the same instant one may be forgotten.
    #[inline(always)]
    pub(crate) fn touch(&self, slot: u32, used: Use) {
        // Without a branch for each way, of which any may be it.
        let way = self.slots.iter().zip(0..).map(|(&held, way)| usize::from(held == slot) * way).sum();
        if self.slots.get(way) != Some(&slot) {
            return;
        }
        let state = self.state.load(Relaxed);
        let mark = mark_at(state, way);
        let next = used.of(mark, slot);
        if next != mark {
            let _ = self.state.compare_exchange(state, with_mark(state, way, next), Relaxed, Relaxed);
        }
    }

    /// Gives every entry the mark that `remark` says. One that is used meanwhile keeps what its reader gives it.
    pub(super) fn remark(&self, mut remark: impl FnMut(Entry) -> Mark) {
        let mut changes = [None; WAYS];
        for (way, change) in changes.iter_mut().enumerate() {
            if let Some(entry) = self.entry(way) {
                let mark = remark(entry);
                *change = (mark != entry.mark).then_some((entry.mark, mark));
            }
        }
        if changes.iter().all(Option::is_none) {
            return;
        }
        let changed = |state: u32| {
            changes.iter().enumerate().fold(state, |state, (way, change)| match *change {
                Some((old, new)) if mark_at(state, way) == old => with_mark(state, way, new),
                _ => state,
            })
        };
        let _ = self.state.fetch_update(Relaxed, Relaxed, |state| Some(changed(state)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }

    #[test]
    fn marks_and_the_count_leave_each_other_alone() {
        let mut bucket = Bucket::empty();
        for way in 0..WAYS {
            bucket.set(way, Entry { key: way as Key, slot: 10 + way as u32, mark: 15 - way as Mark });
            bucket.sent_away();
        }
        assert_eq!(bucket.away(), 5);
        assert_eq!(bucket.entries().map(|entry| entry.mark).collect::<Vec<_>>(), [15, 14, 13, 12, 11]);
        bucket.remark(|entry| entry.mark - 11);
        bucket.touch(12, Use::Stamp { newest: 9 });
        bucket.touch(99, Use::Stamp { newest: 9 });
        bucket.came_back();
        assert_eq!(bucket.entries().map(|entry| entry.mark).collect::<Vec<_>>(), [4, 3, 9, 1, 0]);
        assert_eq!(bucket.away(), 4);
    }

    #[test]
    fn a_count_at_its_end_stays_there() {
        let mut bucket = Bucket::empty();
        (0..5_000).for_each(|_| bucket.sent_away());
        (0..6_000).for_each(|_| bucket.came_back());
        assert_eq!(bucket.away(), MAX_AWAY);
        let mut bucket = Bucket::empty();
        (0..4_000).for_each(|_| bucket.sent_away());
        (0..4_000).for_each(|_| bucket.came_back());
        assert_eq!(bucket.away(), 0);
    }
}
