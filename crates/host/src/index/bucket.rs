//! One bucket of an index: a cache line of entries.

use hps_core::Key;

use crate::slab::NO_SLOT;

/// Entries of a bucket.
pub(super) const WAYS: usize = 5;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    pub(super) keys: [Key; WAYS],
    pub(super) slots: [u32; WAYS],
    pub(super) away: u32,
}

pub(super) const EMPTY_BUCKET: Bucket = Bucket { keys: [0; WAYS], slots: [NO_SLOT; WAYS], away: 0 };

impl Bucket {
    /// Of a key whose first bucket this is: its slot, or `NO_SLOT`; and whether it may be in its second bucket.
    #[inline(always)]
    pub(crate) fn look(&self, key: Key) -> (u32, bool) {
        let slot = self.find(key);
        (slot, (slot == NO_SLOT) & (self.away > 0))
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

    pub(super) fn entry(&self, way: usize) -> Option<(Key, u32)> {
        let slot = *self.slots.get(way)?;
        if slot == NO_SLOT { None } else { Some((*self.keys.get(way)?, slot)) }
    }

    pub(super) fn set(&mut self, way: usize, key: Key, slot: u32) {
        if let (Some(k), Some(s)) = (self.keys.get_mut(way), self.slots.get_mut(way)) {
            *k = key;
            *s = slot;
        }
    }

    pub(super) fn way_of(&self, key: Key) -> Option<usize> {
        (0..WAYS).find(|&way| self.entry(way).is_some_and(|(held, _)| held == key))
    }
}
