//! Which partition a key belongs to; and the keys of a write sorted by partition: one pass to count, one to place, no allocation
//! per key.

use hps_core::key::mix;
use hps_core::{Key, Result};

use crate::direct::PAGE_BITS;
use crate::slab::out_of_memory;

/// Chooses the partition of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partitioner {
    /// All keys of a page ([`crate::direct`]) belong to one partition.
    is_by_page: bool,
    num_partitions: u64,
    /// `num_partitions - 1` if that is a power of two: dividing takes longer than everything else in the choice.
    mask: Option<u64>,
}

impl Partitioner {
    /// `mix(key) % num_partitions`, as the predecessor chooses: for tables whose partitions have a margin. At least 1 partition.
    pub(crate) fn by_key(num_partitions: usize) -> Self {
        let num_partitions = num_partitions.max(1) as u64;
        let mask = num_partitions.is_power_of_two().then(|| num_partitions - 1);
        Self { is_by_page: false, num_partitions, mask }
    }

    /// The same for a key of each page: for tables without a limit.
    pub(crate) fn by_page(num_partitions: usize) -> Self {
        Self { is_by_page: true, ..Self::by_key(num_partitions) }
    }

    pub(crate) fn num_partitions(self) -> usize {
        self.num_partitions as usize
    }

    /// The partition of a key.
    #[inline(always)]
    pub(crate) fn of(self, key: Key) -> usize {
        let mixed = if self.is_by_page { spread(key >> PAGE_BITS) } else { mix(key) };
        match self.mask {
            Some(mask) => (mixed & mask) as usize,
            None => (mixed % self.num_partitions) as usize,
        }
    }
}

/// Faster than `mix`, and good enough where an uneven choice costs nothing but time.
#[inline(always)]
fn spread(page: u64) -> u64 {
    page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32
}

/// Positions of keys by partition, in the order of the keys within each.
#[derive(Debug)]
pub(crate) struct Groups {
    partitioner: Partitioner,
    positions: Vec<u32>,
    /// Where each partition's positions end.
    ends: Vec<u32>,
}

impl Groups {
    /// Room for up to `max_keys` keys at a time, which fit 32 bits.
    pub(crate) fn new(partitioner: Partitioner, max_keys: usize) -> Result<Self> {
        let mut positions = Vec::new();
        positions.try_reserve_exact(max_keys).map_err(out_of_memory)?;
        let mut ends = Vec::new();
        ends.try_reserve_exact(partitioner.num_partitions()).map_err(out_of_memory)?;
        Ok(Self { partitioner, positions, ends })
    }

    /// Groups these keys and forgets the earlier ones.
    pub(crate) fn sort(&mut self, keys: &[Key]) -> Result<()> {
        self.positions.clear();
        self.positions.try_reserve_exact(keys.len()).map_err(out_of_memory)?;
        self.positions.resize(keys.len(), 0);
        self.ends.clear();
        self.ends.resize(self.partitioner.num_partitions(), 0);
        for &key in keys {
            if let Some(count) = self.ends.get_mut(self.partitioner.of(key)) {
                *count += 1;
            }
        }
        // Counts become beginnings; placing then moves each to the partition's end.
        let mut begin = 0;
        for count in &mut self.ends {
            begin += std::mem::replace(count, begin);
        }
        for (position, &key) in keys.iter().enumerate() {
            let next = self.ends.get_mut(self.partitioner.of(key));
            if let Some(next) = next
                && let Some(place) = self.positions.get_mut(*next as usize)
            {
                *place = position as u32;
                *next += 1;
            }
        }
        Ok(())
    }

    /// Every partition that has keys, with their positions.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &[u32])> {
        let mut begin = 0;
        self.ends.iter().enumerate().filter_map(move |(partition, &end)| {
            let positions = self.positions.get(begin..end as usize)?;
            begin = end as usize;
            (!positions.is_empty()).then_some((partition, positions))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_stay_together_and_are_spread() {
        for num_partitions in [1, 7, 16, 300] {
            let partitioner = Partitioner::by_page(num_partitions);
            let mut pages = vec![0u64; num_partitions];
            for page in (0..100_000).chain((0..100_000).map(|i| i << 30)) {
                let first = page << PAGE_BITS;
                assert_eq!(partitioner.of(first), partitioner.of(first + 1_023));
                pages[partitioner.of(first)] += 1;
            }
            let even = 200_000 / num_partitions as u64;
            assert!(
                pages.iter().all(|&pages| (even * 8 / 10..=even * 12 / 10 + 1).contains(&pages)),
                "{pages:?}"
            );
        }
    }

    #[test]
    fn every_key_is_in_its_group_once_and_in_order() {
        for num_partitions in [1, 7, 16, 300] {
            let partitioner = Partitioner::by_key(num_partitions);
            let mut groups = Groups::new(partitioner, 1_000).unwrap();
            for num_keys in [1_000u64, 0, 3, 999] {
                let keys: Vec<Key> = (0..num_keys).map(|i| i % 400).collect();
                groups.sort(&keys).unwrap();
                let mut seen = vec![false; keys.len()];
                for (partition, positions) in groups.iter() {
                    assert!(positions.is_sorted());
                    for &position in positions {
                        let key = keys[position as usize];
                        assert_eq!(mix(key) % num_partitions as u64, partition as u64);
                        assert!(!std::mem::replace(&mut seen[position as usize], true));
                    }
                }
                assert!(seen.into_iter().all(|seen| seen));
            }
        }
    }
}
