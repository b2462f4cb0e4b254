//! slot -> how often or how recently its row was used: what `LeastUsed` and `Oldest` decide by. 2 bytes per slot, and
//! none without a limit.
//!
//! Readers mark rows while other readers do: marks are atomics. Two readers that mark one row at the same instant may
//! count as one.

use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};

use hps_core::Result;

use crate::prefetch::prefetch;
use crate::random::{Random, Sample};
use crate::settings::{EvictionPolicy, Limit};
use crate::slab::{out_of_memory, reserve_slowly};

/// What a lookup adds to a count: more than 1, or halving would make rows equal that are used a little.
const USE: u16 = 16;
/// `Oldest` tells apart accesses of the last 16 margins: 65,536 stamps of margin / 4,096 accesses each.
const STAMPS_PER_MARGIN: usize = 4096;
const CHUNK_BITS: u32 = 11;
const CHUNK: usize = 1 << CHUNK_BITS;
/// An age that rows are held at: they stay the oldest however often the stamps wrap around.
const MAX_AGE: u16 = 1 << 15;
/// Stamps between two passes that hold ages back.
const CLAMP_INTERVAL: u64 = 1 << 14;

#[derive(Debug)]
enum Kind {
    /// Number of lookups (times `USE`), halved with time.
    LeastUsed {
        /// What a new row begins with: above rows that just escaped eviction, or it would be the next to go.
        newcomer: u16,
        /// Rows evicted since counts were halved.
        evicted: usize,
        margin: usize,
    },
    /// Time of the last access, on the partition's own clock.
    Oldest {
        /// Accesses to the partition.
        clock: AtomicU64,
        /// Accesses per stamp, as a power of two.
        shift: u32,
        /// Stamp, before it was cut to 16 bits, of the last pass that held ages back.
        clamped_at: AtomicU64,
    },
}

/// Marks of one partition's slots.
#[derive(Debug)]
pub(crate) struct Marks {
    kind: Kind,
    /// Of `CHUNK` marks each: one long array would leave holes in the heap whenever it grows.
    chunks: Vec<Vec<AtomicU16>>,
}

/// Chooses victims: all below a score, and a fair sample of those who have it.
#[derive(Debug)]
pub(crate) struct Verdict {
    threshold: u16,
    ties: Sample,
}

impl Marks {
    /// Marks for a limit, or None if its policy needs none.
    pub(crate) fn new(limit: &Limit) -> Option<Self> {
        let kind = match limit.policy {
            EvictionPolicy::Random => return None,
            EvictionPolicy::LeastUsed => Kind::LeastUsed { newcomer: USE, evicted: 0, margin: limit.margin },
            EvictionPolicy::Oldest => Kind::Oldest {
                clock: AtomicU64::new(0),
                shift: (limit.margin / STAMPS_PER_MARGIN).checked_ilog2().unwrap_or(0),
                clamped_at: AtomicU64::new(0),
            },
        };
        Some(Self { kind, chunks: Vec::new() })
    }

    /// Bytes taken.
    pub(crate) fn num_bytes(&self) -> usize {
        self.chunks.len() * CHUNK * size_of::<AtomicU16>()
            + self.chunks.capacity() * size_of::<Vec<AtomicU16>>()
    }

    /// Makes sure that there is a mark for each of `num_slots` slots.
    pub(crate) fn cover(&mut self, num_slots: usize) -> Result<()> {
        while self.chunks.len() < num_slots.div_ceil(CHUNK) {
            reserve_slowly(&mut self.chunks, 1)?;
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(CHUNK).map_err(out_of_memory)?;
            chunk.resize_with(CHUNK, AtomicU16::default);
            self.chunks.push(chunk);
        }
        Ok(())
    }

    #[inline(always)]
    fn mark(&self, slot: u32) -> Option<&AtomicU16> {
        self.chunks.get((slot >> CHUNK_BITS) as usize)?.get(slot as usize & (CHUNK - 1))
    }

    /// Brings a slot's mark near.
    #[inline(always)]
    pub(crate) fn prefetch(&self, slot: u32) {
        if let Some(mark) = self.mark(slot) {
            prefetch(mark);
        }
    }

    /// Lets time pass for `num_accesses` and returns the stamp to give to the rows accessed.
    pub(crate) fn tick(&self, num_accesses: usize) -> u16 {
        let Kind::Oldest { clock, shift, clamped_at } = &self.kind else { return 0 };
        let stamp = clock.fetch_add(num_accesses as u64, Relaxed).wrapping_add(num_accesses as u64) >> shift;
        let last = clamped_at.load(Relaxed);
        // Another reader may have come later and passed us: then there is nothing to do.
        let elapsed = stamp.saturating_sub(last);
        // One reader does the pass; the others have as much time again before ages could wrap around.
        if elapsed >= CLAMP_INTERVAL && clamped_at.compare_exchange(last, stamp, Relaxed, Relaxed).is_ok() {
            self.hold_ages_back(stamp as u16, elapsed);
        }
        stamp as u16
    }

    /// Sets marks that are older than `MAX_AGE` to that age. `elapsed` is how much older than at the last pass, when no age
    /// was above `MAX_AGE`, a row can be: if stamps wrapped around meanwhile, all are as old as can be told.
    fn hold_ages_back(&self, now: u16, elapsed: u64) {
        let is_lost = elapsed >= u64::from(u16::MAX - MAX_AGE);
        for mark in self.chunks.iter().flatten() {
            let stamp = mark.load(Relaxed);
            let age = now.wrapping_sub(stamp);
            // No row is older than that; one that seems so was looked up during this pass, with a stamp beyond `now`.
            let is_old = age > MAX_AGE && u64::from(age) <= u64::from(MAX_AGE) + elapsed;
            if is_lost || is_old {
                // A reader that has refreshed the mark meanwhile wins.
                let _ = mark.compare_exchange(stamp, now.wrapping_sub(MAX_AGE), Relaxed, Relaxed);
            }
        }
    }

    /// Notes a lookup of a row. `stamp` comes from [`Self::tick`].
    #[inline(always)]
    pub(crate) fn looked_up(&self, slot: u32, stamp: u16) {
        let Some(mark) = self.mark(slot) else { return };
        match self.kind {
            Kind::LeastUsed { .. } => mark.store(mark.load(Relaxed).saturating_add(USE), Relaxed),
            Kind::Oldest { .. } => mark.store(stamp, Relaxed),
        }
    }

    /// Notes that a row was overwritten: for `Oldest` an access, for `LeastUsed` nothing, as nobody asked for the row.
    pub(crate) fn overwritten(&self, slot: u32) {
        if let (Kind::Oldest { .. }, Some(mark)) = (&self.kind, self.mark(slot)) {
            mark.store(self.tick(1), Relaxed);
        }
    }

    /// Notes that a slot has a new row.
    pub(crate) fn added(&self, slot: u32) {
        let Some(mark) = self.mark(slot) else { return };
        let value = match self.kind {
            Kind::LeastUsed { newcomer, .. } => newcomer,
            Kind::Oldest { .. } => self.tick(1),
        };
        mark.store(value, Relaxed);
    }

    /// Rows of the lowest score go first.
    #[inline]
    fn score(&self, slot: u32) -> u16 {
        let mark = self.mark(slot).map_or(0, |mark| mark.load(Relaxed));
        match &self.kind {
            Kind::LeastUsed { .. } => mark,
            Kind::Oldest { clock, shift, .. } => {
                let now = (clock.load(Relaxed) >> shift) as u16;
                u16::MAX - now.wrapping_sub(mark)
            }
        }
    }

    /// Decides which `num_victims` of the rows in `slots` go, in two passes that count scores.
    pub(crate) fn judge<I: Iterator<Item = u32>>(
        &self,
        slots: impl Fn() -> I,
        num_victims: usize,
    ) -> Verdict {
        let scores = || slots().map(|slot| self.score(slot));
        let (high, below, _) = rank(scores().map(|score| (score >> 8) as u8), num_victims);
        let of_rank = scores().filter(|score| (score >> 8) as u8 == high);
        let wanted = num_victims.saturating_sub(below);
        let (low, below, ties) = rank(of_rank.map(|score| score as u8), wanted);
        Verdict {
            threshold: u16::from(high) << 8 | u16::from(low),
            ties: Sample::new(wanted.saturating_sub(below), ties),
        }
    }

    /// True if the row in `slot` goes. To be asked once for each slot that was judged. Rows that were looked up since may be spared.
    pub(crate) fn condemns(&self, slot: u32, verdict: &mut Verdict, random: &mut Random) -> bool {
        let score = self.score(slot);
        score < verdict.threshold || (score == verdict.threshold && verdict.ties.takes(random))
    }

    /// Notes that a verdict was carried out.
    pub(crate) fn evicted(&mut self, num_victims: usize, verdict: &Verdict) {
        let Kind::LeastUsed { newcomer, evicted, margin } = &mut self.kind else { return };
        *evicted += num_victims;
        *newcomer = verdict.threshold.saturating_add(USE + 1);
        // Fame fades when an eighth of the partition has been replaced, not at every eviction: they may be tiny.
        if *evicted > *margin / 8 {
            *evicted = 0;
            *newcomer = verdict.threshold / 2 + USE + 1;
            for mark in self.chunks.iter_mut().flatten() {
                *mark.get_mut() /= 2;
            }
        }
    }
}

/// The value that the `wanted`-th smallest of `values` has (counted from 1), how many are smaller, how many equal.
fn rank(values: impl Iterator<Item = u8>, wanted: usize) -> (u8, usize, usize) {
    let mut counts = [0usize; 256];
    for value in values {
        if let Some(count) = counts.get_mut(usize::from(value)) {
            *count += 1;
        }
    }
    let mut below = 0;
    for (value, &count) in counts.iter().enumerate() {
        if below + count >= wanted && count > 0 {
            return (value as u8, below, count);
        }
        below += count;
    }
    (u8::MAX, below, 0)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    struct Marked {
        marks: Marks,
    }

    fn marked(policy: EvictionPolicy, margin: usize) -> Marked {
        let mut marks = Marks::new(&Limit { margin, kept: margin / 2, policy }).unwrap();
        marks.cover(margin).unwrap();
        Marked { marks }
    }

    impl Marked {
        fn add(&self, slots: Range<u32>) {
            slots.for_each(|slot| self.marks.added(slot));
        }

        fn look_up(&self, slots: Range<u32>) {
            let stamp = self.marks.tick(slots.len());
            slots.for_each(|slot| self.marks.looked_up(slot, stamp));
        }

        fn score(&self, slot: u32) -> u16 {
            self.marks.score(slot)
        }

        fn victims(&mut self, num_slots: u32, num_victims: usize) -> Vec<u32> {
            let Self { marks } = self;
            let mut random = Random::from_system();
            let mut verdict = marks.judge(|| 0..num_slots, num_victims);
            let condemned = |&slot: &u32| marks.condemns(slot, &mut verdict, &mut random);
            let victims = (0..num_slots).filter(condemned).collect();
            marks.evicted(num_victims, &verdict);
            victims
        }
    }

    #[test]
    fn random_eviction_needs_no_marks() {
        assert!(Marks::new(&Limit { margin: 9, kept: 5, policy: EvictionPolicy::Random }).is_none());
    }

    #[test]
    fn the_rank_counts_what_is_below_and_equal() {
        assert_eq!(rank([5, 1, 5, 9, 5].into_iter(), 1), (1, 0, 1));
        assert_eq!(rank([5, 1, 5, 9, 5].into_iter(), 2), (5, 1, 3));
        assert_eq!(rank([5, 1, 5, 9, 5].into_iter(), 4), (5, 1, 3));
        assert_eq!(rank([5, 1, 5, 9, 5].into_iter(), 5), (9, 4, 1));
    }

    #[test]
    fn least_used_goes_first_and_old_fame_fades() {
        let mut marked = marked(EvictionPolicy::LeastUsed, 300);
        marked.add(0..300);
        for slot in 0..300 {
            (0..slot * 2).for_each(|_| marked.look_up(slot..slot + 1));
        }
        assert_eq!(marked.victims(300, 100), (0..100).collect::<Vec<_>>());
        // The slots get new rows: those do not go first. The last victim had 199 uses, now halved.
        marked.add(0..100);
        assert_eq!(marked.victims(300, 1), [100]);
        // Who was famous once and is not asked for any more goes in the end.
        for _ in 0..20 {
            marked.look_up(0..299);
            let gone = marked.victims(299, 60);
            gone.into_iter().for_each(|slot| marked.add(slot..slot + 1));
        }
        assert!(marked.score(299) < marked.score(0));
    }

    #[test]
    fn counts_saturate() {
        let mut marked = marked(EvictionPolicy::LeastUsed, 10);
        marked.add(0..10);
        for slot in 0..10 {
            (0..70_000).for_each(|_| marked.look_up(slot..slot + 1));
        }
        assert_eq!(marked.victims(10, 5).len(), 5);
        marked.add(3..4);
        assert!(marked.score(3) > 30_000);
    }

    #[test]
    fn oldest_goes_first_in_the_order_of_access() {
        let mut marked = marked(EvictionPolicy::Oldest, 1_000);
        marked.add(0..1_000);
        (0..300).for_each(|slot| marked.marks.overwritten(slot));
        marked.look_up(300..500);
        assert_eq!(marked.victims(1_000, 500), (500..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn wrapping_stamps_never_make_an_old_row_look_new() {
        for margin in [100usize, 50_000] {
            let mut marked = marked(EvictionPolicy::Oldest, margin);
            let half = margin as u32 / 2;
            marked.add(0..margin as u32);
            // Accesses to the upper half only, over many times the span of the stamps, in steps of all sizes.
            for step in (0..2_000).map(|i| 1 + (i * 7_919) % (2 * margin.max(20_000))) {
                marked.marks.tick(step);
                marked.look_up(half..margin as u32);
                if step % 10 == 0 {
                    let highest_old = (0..half).map(|slot| marked.score(slot)).max();
                    assert!(highest_old < marked.score(half).into());
                }
            }
            let gone = marked.victims(margin as u32, half as usize);
            assert!(gone.iter().all(|&slot| slot < half));
        }
    }

    #[test]
    fn ties_are_broken_fairly() {
        let mut counts = [0; 10];
        for _ in 0..2_000 {
            let mut marked = marked(EvictionPolicy::LeastUsed, 10);
            marked.add(0..10);
            marked.victims(10, 3).into_iter().for_each(|slot| counts[slot as usize] += 1);
        }
        // 600 each is expected; 5 standard deviations are 103.
        assert!(counts.iter().all(|count| (497..=703).contains(count)), "{counts:?}");
    }
}
