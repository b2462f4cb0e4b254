//! Telling whether two tables have the same rows, and which keys may differ, without holding either.

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::key::{Key, mix};
use crate::row::Rows;

/// So few that one other row makes few keys suspect.
const ROWS_PER_GROUP: u64 = 16;
/// They take 32 MB; tables of more than 67 million rows have more rows per group.
const MAX_GROUPS: u64 = 1 << 22;
/// Sums that are changed one right after the other, so that the processor waits for memory once for several.
const ADDED_AT_ONCE: usize = 64;

/// Checksums of a table's rows: their hashes of 128 bits (XXH3, the key as its seed), added up, so that the order in which rows come does
/// not matter. Of the rows of a repeated key each counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksums {
    rows: u64,
    sum: u128,
    /// The lower halves once more by groups of keys, as many as a power of two.
    groups: Vec<u64>,
}

impl Checksums {
    /// Of no rows yet; there are to be about as many as `expected_rows`.
    pub(crate) fn new(expected_rows: u64) -> Self {
        let groups = (expected_rows / ROWS_PER_GROUP).clamp(1, MAX_GROUPS).next_power_of_two();
        Self { rows: 0, sum: 0, groups: vec![0; groups as usize] }
    }

    /// Of no rows yet, in the same groups: the two can be compared.
    pub(crate) fn like(&self) -> Self {
        Self { rows: 0, sum: 0, groups: vec![0; self.groups.len()] }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn group(&self, key: Key) -> usize {
        mix(key) as usize & (self.groups.len() - 1)
    }

    pub(crate) fn add(&mut self, keys: &[Key], rows: Rows<'_>) {
        let mut rows = rows.iter();
        for keys in keys.chunks(ADDED_AT_ONCE) {
            let mut hashes = [0; ADDED_AT_ONCE];
            for (hash, (&key, row)) in hashes.iter_mut().zip(keys.iter().zip(rows.by_ref())) {
                *hash = xxh3_128_with_seed(row, mix(key));
            }
            for (&key, &hash) in keys.iter().zip(&hashes) {
                self.sum = self.sum.wrapping_add(hash);
                let group = self.group(key);
                if let Some(sum) = self.groups.get_mut(group) {
                    *sum = sum.wrapping_add(hash as u64);
                }
            }
        }
        self.rows += keys.len() as u64;
    }

    /// True unless both have the same rows of all keys in the key's group.
    pub(crate) fn differ_around(&self, other: &Self, key: Key) -> bool {
        self.groups.get(self.group(key)) != other.groups.get(other.group(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: u64 = 100_000;

    fn checksums(rows: impl Iterator<Item = (Key, u32)>) -> Checksums {
        let mut sums = Checksums::new(ROWS);
        for (key, row) in rows {
            sums.add(&[key], Rows::new(&row.to_le_bytes(), 4).unwrap());
        }
        sums
    }

    #[test]
    fn keys_whose_rows_differ_are_found_and_few_others_are_suspect() {
        let rows = |key: u64| (key, key as u32);
        let one = checksums((0..ROWS).map(rows));
        assert_eq!(one, checksums((0..ROWS).rev().map(rows)), "in another order");
        // Another row, a row more, one fewer, one twice.
        let changed = |key| if key == 7 { (7, 8) } else { rows(key) };
        let cases = [
            (checksums((0..ROWS).map(changed)), 7),
            (checksums((0..=ROWS).map(rows)), ROWS),
            (checksums((1..ROWS).map(rows)), 0),
            (checksums((0..ROWS).chain([5]).map(rows)), 5),
        ];
        for (other, key) in cases {
            assert!(one.differ_around(&other, key), "key {key}");
            let num_suspect = (0..ROWS).filter(|&key| one.differ_around(&other, key)).count() as u64;
            assert!(num_suspect < 4 * ROWS_PER_GROUP, "{num_suspect} for key {key}");
        }
    }

    #[test]
    fn groups_are_few_whatever_is_expected() {
        for (rows, groups) in [(0, 1), (1, 1), (1_000, 64), (u64::MAX, MAX_GROUPS as usize)] {
            assert_eq!(Checksums::new(rows).groups.len(), groups);
        }
        let sums = Checksums::new(1_000);
        assert_eq!(sums.like(), sums);
    }
}
