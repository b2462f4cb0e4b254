//! What `LeastUsed` and `Oldest` remember of each row: 4 bits, kept beside its key in the index.
//!
//! ```text
//! LeastUsed   a count on a coarse scale: small numbers as they are, larger ones in steps that are taken by chance
//!             (Morris, "Counting large numbers of events in small registers", 1978); halved now and then
//! Oldest      the name of a generation; generations follow each other in time, and when names run out, two neighbours
//!             with few rows become one
//! ```
//!
//! Readers mark rows while other readers do. Whoever evicts goes through the marks beside them.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use hps_core::tier::EvictionPolicy;
use parking_lot::Mutex;

use crate::random::{Random, Sample};
use crate::settings::Limit;

/// 0 to 15.
pub(crate) type Mark = u8;

pub(crate) const NUM_MARKS: usize = 16;

/// Uses that marks of `LeastUsed` stand for, in quarters. The scale ends where a row is safe anyway: what matters is who is
/// near the end of the list.
#[cfg(test)]
const QUARTERS: [u32; NUM_MARKS] = [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512];
/// One use more: the mark that is certain, the one that is reached by chance, and how seldom, as a mask of random bits that
/// have to be 0. The expected value is exact.
const ONE_MORE: [(Mark, Mark, u32); NUM_MARKS] = [
    (3, 3, 0),
    (3, 4, 3),
    (3, 4, 1),
    (4, 4, 0),
    (5, 5, 0),
    (6, 6, 0),
    (6, 7, 1),
    (7, 8, 1),
    (8, 9, 3),
    (9, 10, 3),
    (10, 11, 7),
    (11, 12, 7),
    (12, 13, 15),
    (13, 14, 15),
    (14, 15, 63),
    (15, 15, 0),
];
/// Half of the uses. Of three uses one and a half would be left: one or two, by chance.
const HALVED: [(Mark, Mark); NUM_MARKS] = [
    (0, 0),
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (3, 4),
    (4, 4),
    (5, 5),
    (6, 6),
    (7, 7),
    (8, 8),
    (9, 9),
    (10, 10),
    (11, 11),
    (12, 12),
    (14, 14),
];
/// A new row has been used once.
const ONE_USE: Mark = 3;
/// Accesses until counts are halved, in margins. With fewer, rows near the end of the list are told apart by too few uses; with
/// more, rows that were popular once stay too long.
const MARGINS_PER_HALVING: u64 = 20;
/// Accesses from one eviction to the next are averaged over so many. If they are fewer than this fraction, other rows than
/// before are asked for, and counts are halved at once.
const USUAL_INTERVALS: u64 = 16;
const SHORT_INTERVAL: (u64, u64) = (3, 5);

/// Generations that an eviction leaves, and those expected until the next.
const KEPT_GENERATIONS: usize = 8;
const NEW_GENERATIONS: u64 = (NUM_MARKS - KEPT_GENERATIONS) as u64;

/// What becomes of the mark of a row that is used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// One use more.
    Count { luck: u32 },
    /// The youngest generation.
    Stamp { newest: Mark },
}

impl Use {
    /// The next mark of the row in a slot.
    #[inline(always)]
    pub(crate) fn of(self, mark: Mark, slot: u32) -> Mark {
        match self {
            Self::Stamp { newest } => newest,
            Self::Count { luck } => {
                let (certain, lucky, mask) = one_more(mark);
                // The upper bits of a product are the random ones.
                let chance = (slot.wrapping_add(luck) ^ slot >> 15).wrapping_mul(0x9E37_79B1) >> 19;
                if chance & mask == 0 { lucky } else { certain }
            }
        }
    }
}

#[inline(always)]
fn one_more(mark: Mark) -> (Mark, Mark, u32) {
    ONE_MORE.get(usize::from(mark)).copied().unwrap_or((mark, mark, 0))
}

/// Which names stand for which time.
#[derive(Debug)]
struct Generations {
    /// From the oldest to the youngest.
    names: Vec<Mark>,
    /// Names that no row has.
    free: Vec<Mark>,
    /// Accesses until the next generation.
    length: u64,
    /// When rows were evicted.
    evicted_at: u64,
}

/// When counts are halved.
#[derive(Debug, Default)]
struct Counts {
    /// When they were.
    halved_at: u64,
    /// When rows were evicted.
    evicted_at: u64,
    /// Accesses from one eviction to the next, on average.
    usual_interval: Option<u64>,
}

#[derive(Debug)]
enum Kind {
    LeastUsed(Mutex<Counts>),
    Oldest {
        newest: AtomicU8,
        /// When the next generation begins.
        ends_at: AtomicU64,
        /// It should have begun, and there was no name for it.
        is_late: AtomicBool,
        generations: Mutex<Generations>,
    },
}

/// The memory of one partition's policy.
#[derive(Debug)]
pub(crate) struct Marks {
    /// Accesses to the partition.
    clock: AtomicU64,
    margin: u64,
    kind: Kind,
}

/// What an eviction does to the rows of one mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Goes,
    /// As many of them as the sample takes.
    MayGo,
    Stays,
}

/// Who goes, and what marks the others get.
#[derive(Debug)]
pub(crate) struct Verdict {
    fates: [Fate; NUM_MARKS],
    ties: Sample,
    /// Two marks to choose from.
    remarks: [(Mark, Mark); NUM_MARKS],
}

impl Marks {
    /// For a limit; None if its policy needs no marks.
    pub(crate) fn new(limit: &Limit) -> Option<Self> {
        let margin = limit.margin as u64;
        let kind = match limit.policy {
            EvictionPolicy::Random => return None,
            EvictionPolicy::LeastUsed => Kind::LeastUsed(Mutex::default()),
            EvictionPolicy::Oldest => {
                let length = (margin / NEW_GENERATIONS).max(1);
                let generations = Generations {
                    names: vec![0],
                    free: (1..NUM_MARKS as Mark).rev().collect(),
                    length,
                    evicted_at: 0,
                };
                Kind::Oldest {
                    newest: AtomicU8::new(0),
                    ends_at: AtomicU64::new(length),
                    is_late: AtomicBool::new(false),
                    generations: Mutex::new(generations),
                }
            }
        };
        Some(Self { clock: AtomicU64::new(0), margin, kind })
    }

    /// Lets time pass for `num_accesses`, and says what they do to the marks of their rows.
    #[inline]
    pub(crate) fn tick(&self, num_accesses: usize) -> Use {
        let num_accesses = num_accesses as u64;
        let before = self.clock.fetch_add(num_accesses, Relaxed);
        match &self.kind {
            Kind::LeastUsed(_) => Use::Count { luck: (before as u32).wrapping_mul(0x85EB_CA6B) },
            Kind::Oldest { newest, ends_at, .. } => {
                // Accesses at the very end of a generation belong to it.
                if before >= ends_at.load(Relaxed) {
                    self.begin_generation(before);
                }
                Use::Stamp { newest: newest.load(Relaxed) }
            }
        }
    }

    #[cold]
    fn begin_generation(&self, now: u64) {
        let Kind::Oldest { newest, ends_at, is_late, generations } = &self.kind else { return };
        // Whoever holds the lock begins it.
        let Some(mut generations) = generations.try_lock() else { return };
        if now < ends_at.load(Relaxed) {
            return;
        }
        ends_at.store(now.saturating_add(generations.length), Relaxed);
        match generations.free.pop() {
            Some(name) => {
                generations.names.push(name);
                newest.store(name, Relaxed);
            }
            None => is_late.store(true, Relaxed),
        }
    }

    /// The mark of a row that is new.
    pub(crate) fn of_new_row(&self) -> Mark {
        match (&self.kind, self.tick(1)) {
            (Kind::Oldest { .. }, Use::Stamp { newest }) => newest,
            _ => ONE_USE,
        }
    }

    /// What overwriting a row does to its mark: for `Oldest` that is a use, for `LeastUsed` nothing, as nobody asked for the row.
    pub(crate) fn overwriting(&self) -> Option<Use> {
        matches!(self.kind, Kind::Oldest { .. }).then(|| self.tick(1))
    }

    /// The marks, from the lowest rank on; a mark that is not among them belongs to no row.
    pub(crate) fn order(&self) -> Vec<Mark> {
        match &self.kind {
            Kind::LeastUsed(_) => (0..NUM_MARKS as Mark).collect(),
            Kind::Oldest { generations, .. } => generations.lock().names.clone(),
        }
    }

    /// True if generations have run out of names: [`Self::judge`] frees some, also if nobody has to go.
    pub(crate) fn is_late(&self) -> bool {
        matches!(&self.kind, Kind::Oldest { is_late, .. } if is_late.load(Relaxed))
    }

    /// Decides which `num_victims` rows go, those of the lowest marks, and how the others are marked from now on: every row has to
    /// be asked about once ([`Verdict::of`]). Only one caller at a time.
    pub(crate) fn judge(&self, marks: impl Iterator<Item = Mark>, num_victims: usize) -> Verdict {
        let mut counts = [0usize; NUM_MARKS];
        for mark in marks {
            if let Some(count) = counts.get_mut(usize::from(mark)) {
                *count += 1;
            }
        }
        let now = self.clock.load(Relaxed);
        match &self.kind {
            Kind::LeastUsed(history) => {
                let mut verdict = Verdict::new(&self.order(), &mut counts, num_victims);
                if history.lock().is_halving_due(now, self.margin) {
                    verdict.remarks = HALVED;
                }
                verdict
            }
            Kind::Oldest { is_late, generations, .. } => {
                let mut generations = generations.lock();
                let mut verdict = Verdict::new(&generations.names, &mut counts, num_victims);
                generations.merge(&mut counts, &mut verdict.remarks);
                if num_victims > 0 {
                    let interval = now.saturating_sub(generations.evicted_at);
                    generations.evicted_at = now;
                    generations.length = (interval.max(self.margin) / NEW_GENERATIONS).max(1);
                }
                is_late.store(false, Relaxed);
                verdict
            }
        }
    }
}

impl Counts {
    /// At an eviction. If true, they are halved.
    fn is_halving_due(&mut self, now: u64, margin: u64) -> bool {
        let interval = now.saturating_sub(self.evicted_at);
        // The first eviction comes after the whole margin was filled: that says nothing of the others.
        let usual = match (self.evicted_at, self.usual_interval) {
            (0, _) => None,
            (_, None) => Some(interval),
            (_, Some(usual)) => Some(usual - usual / USUAL_INTERVALS + interval / USUAL_INTERVALS),
        };
        let is_short = self.usual_interval.is_some_and(|usual| {
            interval.saturating_mul(SHORT_INTERVAL.1) < usual.saturating_mul(SHORT_INTERVAL.0)
        });
        self.evicted_at = now;
        self.usual_interval = usual;
        let is_due =
            is_short || now.saturating_sub(self.halved_at) >= margin.saturating_mul(MARGINS_PER_HALVING);
        if is_due {
            self.halved_at = now;
        }
        is_due
    }
}

impl Generations {
    /// Leaves [`KEPT_GENERATIONS`], the youngest among them, by joining older ones: neighbours with the fewest rows first.
    fn merge(&mut self, counts: &mut [usize; NUM_MARKS], remarks: &mut [(Mark, Mark); NUM_MARKS]) {
        let count = |counts: &[usize; NUM_MARKS], name: Mark| counts.get(usize::from(name)).map_or(0, |&n| n);
        while self.names.len() > KEPT_GENERATIONS {
            let older = self.names.split_last().map_or(&[][..], |(_, older)| older);
            let joint = |at: usize| match older.get(at..at + 2) {
                Some(&[first, second]) => count(counts, first) + count(counts, second),
                _ => usize::MAX,
            };
            let Some(at) = (0..older.len().saturating_sub(1)).min_by_key(|&at| joint(at)) else { return };
            let gone = self.names.remove(at);
            let Some(&heir) = self.names.get(at) else { return };
            let moved = count(counts, gone);
            if let Some(count) = counts.get_mut(usize::from(heir)) {
                *count += moved;
            }
            for (mark, remark) in (0..).zip(remarks.iter_mut()) {
                if remark.0 == gone || mark == gone {
                    *remark = (heir, heir);
                }
            }
            self.free.push(gone);
        }
    }
}

impl Verdict {
    /// `order`: marks from the lowest on. Takes those who go out of `counts`.
    fn new(order: &[Mark], counts: &mut [usize; NUM_MARKS], num_victims: usize) -> Self {
        let mut fates = [Fate::Stays; NUM_MARKS];
        let mut ties = Sample::new(0, 0);
        let mut wanted = num_victims;
        for &mark in order {
            let (Some(fate), Some(count)) =
                (fates.get_mut(usize::from(mark)), counts.get_mut(usize::from(mark)))
            else {
                continue;
            };
            if wanted == 0 {
                break;
            }
            let going = wanted.min(*count);
            *fate = if going == *count { Fate::Goes } else { Fate::MayGo };
            if going < *count {
                ties = Sample::new(going, *count);
            }
            *count -= going;
            wanted -= going;
        }
        let mut remarks = [(0, 0); NUM_MARKS];
        (0..).zip(&mut remarks).for_each(|(mark, remark)| *remark = (mark, mark));
        Self { fates, ties, remarks }
    }

    /// True if a row of this mark goes, and its next mark if not. A row that has been used since may be spared.
    pub(crate) fn of(&mut self, mark: Mark, random: &mut Random) -> (bool, Mark) {
        let goes = match self.fates.get(usize::from(mark)) {
            Some(Fate::Goes) => true,
            Some(Fate::MayGo) => self.ties.takes(random),
            Some(Fate::Stays) | None => false,
        };
        let next = match self.remarks.get(usize::from(mark)) {
            Some(&(one, other)) if one != other && random.next_u64() & 1 == 0 => other,
            Some(&(one, _)) => one,
            None => mark,
        };
        (goes, next)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Rows without an index: a mark for each slot.
    struct Marked {
        marks: Marks,
        rows: RefCell<Vec<Mark>>,
    }

    fn marked(policy: EvictionPolicy, margin: usize) -> Marked {
        let marks = Marks::new(&Limit { margin, kept: margin / 2, policy }).unwrap();
        let rows = (0..margin).map(|_| marks.of_new_row()).collect();
        Marked { marks, rows: RefCell::new(rows) }
    }

    impl Marked {
        fn look_up(&self, slots: std::ops::Range<usize>) {
            let used = self.marks.tick(slots.len());
            for (row, slot) in self.rows.borrow_mut()[slots.clone()].iter_mut().zip(slots) {
                *row = used.of(*row, slot as u32);
            }
        }

        /// Evicts rows, whose slots get new ones.
        fn replace(&self, num_victims: usize) -> Vec<usize> {
            let mut random = Random::from_system();
            let mut rows = self.rows.borrow_mut();
            let mut verdict = self.marks.judge(rows.iter().copied(), num_victims);
            let mut victims = Vec::new();
            for (slot, row) in rows.iter_mut().enumerate() {
                let (goes, next) = verdict.of(*row, &mut random);
                *row = next;
                if goes {
                    victims.push(slot);
                }
            }
            assert_eq!(victims.len(), num_victims);
            victims.iter().for_each(|&slot| rows[slot] = self.marks.of_new_row());
            victims
        }
    }

    #[test]
    fn random_eviction_needs_no_marks() {
        assert!(Marks::new(&Limit { margin: 9, kept: 5, policy: EvictionPolicy::Random }).is_none());
    }

    #[test]
    fn one_use_more_is_one_use_more_on_average() {
        for (mark, (certain, lucky, mask)) in ONE_MORE.into_iter().enumerate().take(NUM_MARKS - 1) {
            let value = |mark: Mark| f64::from(QUARTERS[usize::from(mark)]) / 4.0;
            let chance = 1.0 / f64::from(mask + 1);
            let expected = value(lucky) * chance + value(certain) * (1.0 - chance);
            assert!((expected - value(mark as Mark) - 1.0).abs() < 1e-9, "{mark}: {expected}");
        }
        for (mark, (one, other)) in HALVED.into_iter().enumerate().skip(2) {
            assert_eq!(QUARTERS[mark], QUARTERS[usize::from(one)] + QUARTERS[usize::from(other)], "{mark}");
        }
    }

    #[test]
    fn counts_follow_the_number_of_uses() {
        let marked = marked(EvictionPolicy::LeastUsed, 10_000);
        for uses in 1..60u32 {
            let rows = marked.rows.borrow();
            let sum: u64 = rows.iter().map(|&mark| u64::from(QUARTERS[usize::from(mark)])).sum();
            drop(rows);
            let mean = sum as f64 / 4e4;
            assert!((mean / f64::from(uses) - 1.0).abs() < 0.05, "{mean} after {uses} uses");
            marked.look_up(0..10_000);
        }
    }

    #[test]
    fn least_used_goes_first_and_old_fame_fades() {
        let marked = marked(EvictionPolicy::LeastUsed, 300);
        (0..5).for_each(|_| marked.look_up(100..300));
        (0..100).for_each(|_| marked.look_up(200..300));
        assert_eq!(marked.replace(100), (0..100).collect::<Vec<_>>());
        // Slots 200 to 299 are not asked for any more.
        for _ in 0..200 {
            (0..3).for_each(|_| marked.look_up(0..200));
            marked.replace(1);
        }
        let rows = marked.rows.borrow();
        assert!(rows[200..].iter().max() < rows[..150].iter().max());
    }

    #[test]
    fn oldest_goes_first_in_the_order_of_access() {
        let marked = marked(EvictionPolicy::Oldest, 1_000);
        marked.look_up(0..300);
        marked.look_up(300..500);
        assert_eq!(marked.replace(500), (500..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn an_old_row_never_looks_new() {
        for margin in [100usize, 5_000] {
            let marked = marked(EvictionPolicy::Oldest, margin);
            let half = margin / 2;
            // Uses of the upper half only, over many generations, in steps of all sizes.
            for step in (0..5_000).map(|i| 1 + (i * 7_919) % (2 * margin)) {
                marked.marks.tick(step);
                marked.look_up(half..margin);
                if marked.marks.is_late() {
                    marked.replace(0);
                    assert!(!marked.marks.is_late());
                }
            }
            assert_eq!(marked.replace(half), (0..half).collect::<Vec<_>>());
        }
    }

    #[test]
    fn generations_stay_about_as_large_as_they_can_be() {
        let marked = marked(EvictionPolicy::Oldest, 16_000);
        let mut random = Random::from_system();
        for _ in 0..200 {
            // Each row is as likely to be used as any other; an eviction takes those that were not used for longest.
            for _ in 0..100 {
                let slot = random.below(15_990);
                marked.look_up(slot..slot + 10);
            }
            marked.replace(1_600);
            let Kind::Oldest { generations, .. } = &marked.marks.kind else { unreachable!() };
            let generations = generations.lock();
            assert!(generations.names.len() <= NUM_MARKS);
            let mut all = [generations.names.clone(), generations.free.clone()].concat();
            all.sort_unstable();
            assert_eq!(all, (0..NUM_MARKS as Mark).collect::<Vec<_>>());
            let of = |name: Mark| marked.rows.borrow().iter().filter(|&&mark| mark == name).count();
            assert!(generations.free.iter().all(|&name| of(name) == 0));
            let oldest = generations.names[0];
            assert!(of(oldest) < 5_000, "{} rows of {} are told apart by nothing", of(oldest), 16_000);
        }
    }

    #[test]
    fn ties_are_broken_fairly() {
        let mut counts = [0; 10];
        for _ in 0..2_000 {
            let marked = marked(EvictionPolicy::LeastUsed, 10);
            marked.replace(3).into_iter().for_each(|slot| counts[slot] += 1);
        }
        // 600 each is expected; 5 standard deviations are 103.
        assert!(counts.iter().all(|count| (497..=703).contains(count)), "{counts:?}");
    }
}
