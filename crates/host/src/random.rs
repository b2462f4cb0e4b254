//! Random numbers for choices that nobody should be able to foresee, and for fair ones among equals.

use std::hash::{BuildHasher, RandomState};

/// A small generator (SplitMix64), seeded by the system.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from_system() -> Self {
        Self(RandomState::new().hash_one(0u64))
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// A number below `end`, all equally likely (up to 1 in 2^64 / `end`); 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next_u64()) * end as u128) >> 64) as usize
    }
}

/// Chooses exactly `wanted` of `remaining` items that are shown one by one, every choice equally likely (Knuth's
/// selection sampling).
#[derive(Debug)]
pub(crate) struct Sample {
    wanted: usize,
    remaining: usize,
}

impl Sample {
    pub(crate) fn new(wanted: usize, remaining: usize) -> Self {
        Self { wanted, remaining }
    }

    /// True if the next item is among the chosen.
    pub(crate) fn takes(&mut self, random: &mut Random) -> bool {
        let taken = self.wanted > 0 && random.below(self.remaining) < self.wanted;
        self.remaining = self.remaining.saturating_sub(1);
        self.wanted -= usize::from(taken);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_size_asked_for_and_favours_nobody() {
        let mut random = Random(1);
        let mut chosen = [0u32; 20];
        for _ in 0..10_000 {
            let mut sample = Sample::new(5, 20);
            let mut taken = 0;
            for count in &mut chosen {
                if sample.takes(&mut random) {
                    *count += 1;
                    taken += 1;
                }
            }
            assert_eq!(taken, 5);
        }
        // 2,500 each is expected; 5 standard deviations are 217.
        assert!(chosen.iter().all(|count| (2_283..=2_717).contains(count)), "{chosen:?}");
    }

    #[test]
    fn generators_differ() {
        assert_ne!(Random::from_system().next_u64(), Random::from_system().next_u64());
    }
}
