//! What a word remembers of a row's use: 10 bits. Victims are chosen among a sample, so that an eviction costs the same
//! whatever the size of the table.
//!
//! ```text
//! Oldest      when it was used last, on a clock of `limit` / 8 accesses: told apart for 128 limits
//! LeastUsed   how often (6 bits), and on which clock of 10 * `limit` accesses (4 bits): each tick since has halved it
//! ```

use hps_core::tier::EvictionPolicy;

use crate::settings::Limit;

/// Bits of a mark.
pub(crate) const MARK_BITS: u32 = 10;
const MARKS: u64 = 1 << MARK_BITS;
const TICKS_PER_LIMIT: u64 = 8;
const LIMITS_PER_HALVING: u64 = 10;
const COUNT_BITS: u32 = 6;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
const HALVINGS: u64 = MARKS >> COUNT_BITS;
/// A new row has been used once; below that there is room for halves.
const ONE_USE: u64 = 4;

/// The policy at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    policy: EvictionPolicy,
    tick: u64,
}

impl Clock {
    /// `accesses`: to the table so far.
    pub(crate) fn new(limit: Limit, accesses: u64) -> Self {
        let length = match limit.policy {
            EvictionPolicy::Random => u64::MAX,
            EvictionPolicy::Oldest => limit.rows / TICKS_PER_LIMIT,
            EvictionPolicy::LeastUsed => limit.rows.saturating_mul(LIMITS_PER_HALVING),
        };
        Self { policy: limit.policy, tick: accesses / length.max(1) }
    }

    /// The mark of a row that is new.
    pub(crate) fn of_new_row(self) -> u64 {
        match self.policy {
            EvictionPolicy::Random => 0,
            EvictionPolicy::Oldest => self.tick % MARKS,
            EvictionPolicy::LeastUsed => self.count(ONE_USE),
        }
    }

    /// The mark of a row that is read.
    #[inline]
    pub(crate) fn after_use(self, mark: u64) -> u64 {
        match self.policy {
            EvictionPolicy::Random => mark,
            EvictionPolicy::Oldest => self.tick % MARKS,
            EvictionPolicy::LeastUsed => self.count((self.uses(mark) + ONE_USE).min(MAX_COUNT)),
        }
    }

    /// The mark of a row that is overwritten: for `Oldest` that is a use.
    pub(crate) fn after_write(self, mark: u64) -> u64 {
        if self.policy == EvictionPolicy::Oldest { self.tick % MARKS } else { mark }
    }

    /// The lowest of a sample goes.
    pub(crate) fn score(self, mark: u64) -> u64 {
        match self.policy {
            EvictionPolicy::Random => 0,
            EvictionPolicy::Oldest => MARKS - self.tick.wrapping_sub(mark) % MARKS,
            EvictionPolicy::LeastUsed => self.uses(mark),
        }
    }

    /// Uses, in quarters, as of now.
    fn uses(self, mark: u64) -> u64 {
        let halvings = self.tick.wrapping_sub(mark >> COUNT_BITS) % HALVINGS;
        (mark & MAX_COUNT) >> halvings
    }

    fn count(self, uses: u64) -> u64 {
        (self.tick % HALVINGS) << COUNT_BITS | uses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(policy: EvictionPolicy, accesses: u64) -> Clock {
        Clock::new(Limit { rows: 6_400, policy }, accesses)
    }

    #[test]
    fn the_row_that_was_used_last_scores_highest() {
        let now = |accesses| clock(EvictionPolicy::Oldest, accesses);
        let marks: Vec<u64> = (0..20).map(|i| now(i * 1_000).after_use(0)).collect();
        let scores: Vec<u64> = marks.iter().map(|&mark| now(20_000).score(mark)).collect();
        assert!(scores.is_sorted_by(|a, b| a < b), "{scores:?}");
        assert_eq!(now(5_000).after_write(0), now(5_000).of_new_row());
        // Long after, too.
        let row = now(0).of_new_row();
        assert!((1..120).all(|limits| now(limits * 6_400).score(row)
            < now(limits * 6_400).score(now(limits * 6_400 - 800).of_new_row())));
    }

    #[test]
    fn uses_count_and_fade() {
        let now = |accesses| clock(EvictionPolicy::LeastUsed, accesses);
        let new = now(0).of_new_row();
        let often = (0..8).fold(new, |mark, _| now(0).after_use(mark));
        assert!(now(0).score(often) > now(0).score(new));
        assert_eq!(now(0).after_write(often), often);
        // 64,000 accesses halve.
        assert_eq!(now(64_000).score(often), now(0).score(often) / 2);
        assert_eq!(now(64_000 * 7).score(often), 0);
        assert!((0..1_000).fold(new, |mark, _| now(0).after_use(mark)) < MARKS);
    }
}
