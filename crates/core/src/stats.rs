//! Counts of what lookups found where. `hits of all tiers + missing == keys`, by construction.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::tier::{TierKind, TierUsage};

/// Number of kinds of tiers.
const KINDS: usize = 3;

/// Where the keys of one or more lookups were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupCounts {
    hits: [u64; KINDS],
    /// Keys that no tier holds; they were given the table's default row.
    pub missing: u64,
}

impl LookupCounts {
    /// Keys that a tier answered.
    pub fn hits(&self, kind: TierKind) -> u64 {
        self.hits.get(kind as usize).copied().unwrap_or(0)
    }

    /// All keys asked for.
    pub fn keys(&self) -> u64 {
        self.hits.iter().sum::<u64>() + self.missing
    }

    /// Notes keys that a tier answered.
    pub fn add_hits(&mut self, kind: TierKind, number: usize) {
        if let Some(hits) = self.hits.get_mut(kind as usize) {
            *hits += number as u64;
        }
    }
}

impl std::ops::AddAssign for LookupCounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, number) in self.hits.iter_mut().zip(other.hits) {
            *sum += number;
        }
        self.missing += other.missing;
    }
}

/// Sums of [`LookupCounts`] over all lookups of a table. Never reset.
#[derive(Debug, Default)]
pub(crate) struct LookupCounters {
    hits: [AtomicU64; KINDS],
    missing: AtomicU64,
}

impl LookupCounters {
    pub(crate) fn add(&self, counts: &LookupCounts) {
        for (sum, &number) in self.hits.iter().zip(&counts.hits) {
            // Most lookups touch one or two tiers: spare the others' cache traffic.
            if number > 0 {
                sum.fetch_add(number, Ordering::Relaxed);
            }
        }
        if counts.missing > 0 {
            self.missing.fetch_add(counts.missing, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> LookupCounts {
        let mut counts =
            LookupCounts { missing: self.missing.load(Ordering::Relaxed), ..LookupCounts::default() };
        for (number, sum) in counts.hits.iter_mut().zip(&self.hits) {
            *number = sum.load(Ordering::Relaxed);
        }
        counts
    }
}

/// One table, as its statistics show it.
#[derive(Clone, Debug)]
pub struct TableStats {
    /// Model that the table belongs to.
    pub model: String,
    /// The table's index in its model.
    pub table_id: usize,
    /// The table's own name.
    pub name: String,
    /// Name under which its rows are stored; fused tables share one.
    pub storage_name: String,
    /// float32 elements of a row.
    pub dim: usize,
    /// What its lookups found.
    pub counts: LookupCounts,
    /// Rows of the storage table that were carried up into a cache tier after a lookup.
    pub promoted: u64,
    /// Rows of the storage table that were not, because too many were waiting.
    pub promotions_dropped: u64,
    /// What each tier holds of the storage table, fastest first.
    pub usage: Vec<(TierKind, TierUsage)>,
}
