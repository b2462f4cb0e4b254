//! How many sets a table has, how its tags tell keys apart, and what that takes: arithmetic alone, tested without a GPU.

use hps_core::{Error, ErrorKind, Result};

use crate::abi;

/// Slots of one set.
pub(crate) const WAYS: u64 = abi::HPS_WAYS as u64;
/// Distinct tags of one set of a key, in [`TagMode::Exact`].
const MAX_QUOTIENTS: u64 = 32_767;
/// Share of the slots that a table which must hold every row uses at most: with two sets of 16 slots to choose from and rows
/// that move to their other set, every key finds a place.
const MAX_LOAD: f64 = 0.95;
/// What the driver takes for an allocation: whole pages for large ones, parts of a page for small ones.
pub(crate) fn allocated(num_bytes: u64) -> u64 {
    const PAGE: u64 = 2 << 20;
    num_bytes.next_multiple_of(if num_bytes < PAGE / 2 { 512 } else { PAGE })
}

/// How a tag tells keys apart; see `cuda/include/placement.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagMode {
    /// Tag and set give the key.
    Exact,
    /// The key is stored beside the tag.
    Hashed,
}

impl TagMode {
    pub(crate) const ALL: [Self; 2] = [Self::Exact, Self::Hashed];

    /// As it is written in the kernels' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Hashed => "hashed",
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Exact => 0,
            Self::Hashed => 1,
        }
    }
}

/// Shape of one table on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) num_sets: u32,
    pub(crate) row_bytes: u32,
    pub(crate) mode: TagMode,
    /// Bits of the keys that are permuted, in [`TagMode::Exact`].
    key_bits: u32,
}

impl Geometry {
    /// A table with `num_slots` slots, rounded down to whole sets, at least one.
    pub(crate) fn with_slots(num_slots: u64, row_bytes: usize, mode: TagMode) -> Result<Self> {
        let num_sets = (num_slots / WAYS).max(1);
        let fits = num_sets.checked_mul(WAYS).is_some_and(|slots| slots < u64::from(u32::MAX));
        let (Ok(num_sets), Ok(row_bytes), true) = (u32::try_from(num_sets), u32::try_from(row_bytes), fits)
        else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{num_slots} rows of {row_bytes} bytes: a table on a GPU has at most 4 billion slots"
                ),
            ));
        };
        let key_bits = if mode == TagMode::Exact { key_bits(num_sets) } else { 0 };
        Ok(Self { num_sets, row_bytes, mode, key_bits })
    }

    /// A table that has room for `num_rows` rows whatever their keys are, and some to come.
    pub(crate) fn for_all(num_rows: u64, row_bytes: usize, mode: TagMode) -> Result<Self> {
        let num_slots = (num_rows as f64 / MAX_LOAD).ceil() as u64 + WAYS;
        Self::with_slots(num_slots.next_multiple_of(WAYS), row_bytes, mode)
    }

    pub(crate) fn num_slots(&self) -> u64 {
        u64::from(self.num_sets) * WAYS
    }

    /// 2^k - 1 for keys of k bits, and the shift of the permutation; 0 and 0 in [`TagMode::Hashed`].
    pub(crate) fn permutation(&self) -> (u32, u32) {
        match self.key_bits {
            0 => (0, 0),
            bits => (u32::MAX >> (32 - bits), bits.div_ceil(2)),
        }
    }

    /// Keys from here on cannot be held; 0: all can.
    pub(crate) fn key_bound(&self) -> u64 {
        if self.mode == TagMode::Exact { 1 << self.key_bits } else { 0 }
    }

    pub(crate) fn tags_bytes(&self) -> u64 {
        self.num_slots() * 2
    }

    pub(crate) fn keys_bytes(&self) -> u64 {
        if self.mode == TagMode::Hashed { self.num_slots() * 8 } else { 0 }
    }

    /// Of the marks; the versions take as much.
    pub(crate) fn words_bytes(&self) -> u64 {
        u64::from(self.num_sets) * 4
    }

    pub(crate) fn rows_bytes(&self) -> u64 {
        self.num_slots() * u64::from(self.row_bytes)
    }

    /// GPU memory beside the rows.
    pub(crate) fn index_bytes(&self) -> u64 {
        [self.tags_bytes(), self.keys_bytes(), self.words_bytes(), self.words_bytes(), 8]
            .into_iter()
            .map(allocated)
            .sum()
    }
}

/// The most bits that keys may have so that tags of a table of that many sets stay exact.
fn key_bits(num_sets: u32) -> u32 {
    (1..=32).rev().find(|&bits| ((1u64 << bits) - 1) / u64::from(num_sets) < MAX_QUOTIENTS).unwrap_or(1)
}

/// The mode for tables whose smallest has `num_slots` slots and whose largest key is known, or not.
pub(crate) fn choose_mode(num_slots: u64, largest_key: Option<u64>) -> TagMode {
    let num_sets = u32::try_from((num_slots / WAYS).max(1)).unwrap_or(u32::MAX);
    match largest_key {
        Some(key) if key < 1 << key_bits(num_sets) => TagMode::Exact,
        _ => TagMode::Hashed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_tags_are_chosen_while_16_bits_tell_all_keys_apart() {
        // 125,000 sets: quotients below 32,767 reach up to 4.09 billion keys, so 31 bits.
        assert_eq!(choose_mode(2_000_000, Some(20_000_000)), TagMode::Exact);
        assert_eq!(choose_mode(2_000_000, Some((1 << 31) - 1)), TagMode::Exact);
        assert_eq!(choose_mode(2_000_000, Some(1 << 31)), TagMode::Hashed);
        assert_eq!(choose_mode(6_000_000, Some(u64::from(u32::MAX))), TagMode::Exact);
        assert_eq!(choose_mode(6_000_000, Some(1 << 32)), TagMode::Hashed);
        // One set: quotients are the keys themselves.
        assert_eq!(choose_mode(16, Some((1 << 14) - 1)), TagMode::Exact);
        assert_eq!(choose_mode(16, Some(1 << 14)), TagMode::Hashed);
        assert_eq!(choose_mode(1 << 30, None), TagMode::Hashed);
    }

    #[test]
    fn every_quotient_fits_its_tag() {
        for num_sets in [1u32, 2, 3, 100, 4096, 125_000, 131_072, 375_000, 1 << 20, (1 << 28) - 1] {
            let geometry = Geometry::with_slots(u64::from(num_sets) * WAYS, 4, TagMode::Exact).unwrap();
            let largest = u64::from(geometry.permutation().0) / u64::from(num_sets);
            assert!(2 + 2 * largest <= u64::from(u16::MAX), "{num_sets} sets");
            assert_eq!(geometry.key_bound(), u64::from(geometry.permutation().0) + 1);
        }
    }

    #[test]
    fn a_cache_has_exactly_its_slots_and_at_least_one_set() {
        let slots = |n| Geometry::with_slots(n, 4, TagMode::Hashed).unwrap().num_slots();
        assert_eq!(
            (slots(0), slots(15), slots(16), slots(2_000_000), slots(33)),
            (16, 16, 16, 2_000_000, 32)
        );
    }

    #[test]
    fn a_whole_table_has_room_to_spare() {
        for rows in [0, 1, 100, 1_000_000] {
            let geometry = Geometry::for_all(rows, 64, TagMode::Exact).unwrap();
            assert!(geometry.num_slots() as f64 * MAX_LOAD >= rows as f64);
        }
    }

    #[test]
    fn large_allocations_are_whole_pages() {
        assert_eq!([0, 1, 513, 1 << 20, (2 << 20) + 1].map(allocated), [0, 512, 1024, 2 << 20, 4 << 20]);
    }

    #[test]
    fn more_slots_than_can_be_numbered_are_refused() {
        let error = Geometry::with_slots(1 << 33, 4, TagMode::Exact).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
}
