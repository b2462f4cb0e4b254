//! key -> slot where keys lie close together: by arithmetic, without an index.
//!
//! Keys are cut into pages of 1,024. All keys of a page belong to one partition and have 1,024 slots there, one after the other:
//! the slot of a key is the first one of its page plus the key's place in the page. A bit for each says whether it holds a row.
//!
//! For tables that are empty when their largest key is told, if the slots of keys without rows cost less than the index would.
//! Keys beyond the last whole page go into the index of their partition like those of any other table.

use std::sync::Arc;

use hps_core::tier::Expected;
use hps_core::{Key, Result};

use crate::group::Partitioner;
use crate::slab::{NO_SLOT, out_of_memory};

/// Keys of a page, as a power of two.
pub(crate) const PAGE_BITS: u32 = 10;
const PAGE_KEYS: usize = 1 << PAGE_BITS;
/// What a row costs in the index, at least.
const INDEX_BYTES: u64 = 13;

/// The slot of a key among those of its page, if it has a page.
#[inline(always)]
fn slot_of(first_slots: &[u32], key: Key) -> Option<u32> {
    let first = first_slots.get((key >> PAGE_BITS) as usize)?;
    Some(first + (key as u32 & (PAGE_KEYS as u32 - 1)))
}

/// The pages of a table.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Of each page, in its partition.
    first_slots: Arc<[u32]>,
    /// The pages of each partition, in the order of their slots.
    by_partition: Vec<Vec<u32>>,
}

impl Pages {
    /// The pages for what is expected of a table; None if it is better served with an index.
    pub(crate) fn plan(
        expected: Expected,
        row_bytes: usize,
        partitioner: Partitioner,
    ) -> Result<Option<Self>> {
        let Some(largest_key) = expected.largest_key else { return Ok(None) };
        let num_pages =
            (largest_key >> PAGE_BITS) + u64::from(largest_key as usize % PAGE_KEYS == PAGE_KEYS - 1);
        let num_slots = num_pages.saturating_mul(PAGE_KEYS as u64);
        let without_row = num_slots.saturating_sub(expected.rows);
        let is_sparse =
            without_row.saturating_mul(row_bytes as u64) > expected.rows.saturating_mul(INDEX_BYTES);
        // A partition may get all pages.
        if num_pages == 0 || is_sparse || num_slots >= u64::from(NO_SLOT) {
            return Ok(None);
        }
        let mut by_partition = Vec::new();
        by_partition.try_reserve_exact(partitioner.num_partitions()).map_err(out_of_memory)?;
        by_partition.resize_with(partitioner.num_partitions(), Vec::new);
        let mut first_slots = Vec::new();
        first_slots.try_reserve_exact(num_pages as usize).map_err(out_of_memory)?;
        for page in 0..num_pages {
            let Some(pages) = by_partition.get_mut(partitioner.of(page << PAGE_BITS)) else {
                return Ok(None);
            };
            pages.try_reserve(1).map_err(out_of_memory)?;
            first_slots.push((pages.len() << PAGE_BITS) as u32);
            pages.push(page as u32);
        }
        Ok(Some(Self { first_slots: first_slots.into(), by_partition }))
    }

    /// Slots of all pages.
    pub(crate) fn num_slots(&self) -> usize {
        self.first_slots.len() << PAGE_BITS
    }

    /// Slots of a partition's pages.
    pub(crate) fn num_slots_of(&self, partition: usize) -> usize {
        self.by_partition.get(partition).map_or(0, Vec::len) << PAGE_BITS
    }

    /// The slots of a partition, none of which holds a row.
    pub(crate) fn slots_of(&mut self, partition: usize) -> Result<Direct> {
        let mut pages = self.by_partition.get_mut(partition).map_or_else(Vec::new, std::mem::take);
        pages.shrink_to_fit();
        let mut present = Vec::new();
        let num_words = (pages.len() << PAGE_BITS) / u64::BITS as usize;
        present.try_reserve_exact(num_words).map_err(out_of_memory)?;
        present.resize(num_words, 0);
        let num_partitions = self.by_partition.len();
        Ok(Direct { first_slots: Arc::clone(&self.first_slots), num_partitions, pages, present, len: 0 })
    }
}

/// The slots that a partition's keys have without an index: from 0 on.
#[derive(Debug)]
pub(crate) struct Direct {
    first_slots: Arc<[u32]>,
    /// That share `first_slots`.
    num_partitions: usize,
    pages: Vec<u32>,
    present: Vec<u64>,
    len: usize,
}

impl Direct {
    /// The slot of a key, whether it holds a row or not; None if the key belongs into the index.
    #[inline(always)]
    pub(crate) fn slot(&self, key: Key) -> Option<u32> {
        slot_of(&self.first_slots, key)
    }

    /// True if one of these slots holds a row.
    pub(crate) fn holds(&self, slot: u32) -> bool {
        is_present(&self.present, slot)
    }

    /// Notes that a slot holds a row, or that it does not.
    pub(crate) fn set(&mut self, slot: u32, holds_row: bool) {
        if self.holds(slot) == holds_row {
            return;
        }
        if let Some(word) = self.present.get_mut((slot / u64::BITS) as usize) {
            *word ^= 1 << (slot % u64::BITS);
            self.len = if holds_row { self.len + 1 } else { self.len - 1 };
        }
    }

    /// Rows held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes taken, but for the slots.
    pub(crate) fn num_bytes(&self) -> usize {
        let shared = self.first_slots.len() * size_of::<u32>();
        self.pages.capacity() * size_of::<u32>()
            + self.present.capacity() * size_of::<u64>()
            + shared / self.num_partitions.max(1)
    }

    /// Every key that is held.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        let slots = (0u32..).take(self.pages.len() << PAGE_BITS).filter(|&slot| self.holds(slot));
        slots.filter_map(|slot| {
            let page = Key::from(*self.pages.get((slot >> PAGE_BITS) as usize)?);
            Some(page << PAGE_BITS | Key::from(slot) & (PAGE_KEYS as Key - 1))
        })
    }

    /// For lookups.
    pub(crate) fn view(&self) -> DirectView<'_> {
        let is_full = self.len == self.pages.len() << PAGE_BITS;
        DirectView { first_slots: &self.first_slots, present: (!is_full).then_some(&self.present) }
    }
}

fn is_present(present: &[u64], slot: u32) -> bool {
    present.get((slot / u64::BITS) as usize).is_some_and(|word| word >> (slot % u64::BITS) & 1 == 1)
}

/// What lookups read of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DirectView<'d> {
    first_slots: &'d [u32],
    /// None if all slots hold rows.
    present: Option<&'d [u64]>,
}

impl DirectView<'_> {
    /// True if no key has a slot here.
    pub(crate) fn is_empty(&self) -> bool {
        self.first_slots.is_empty()
    }

    /// As [`Direct::slot`].
    #[inline(always)]
    pub(crate) fn slot(&self, key: Key) -> Option<u32> {
        slot_of(self.first_slots, key)
    }

    /// As [`Direct::holds`].
    #[inline(always)]
    pub(crate) fn holds(&self, slot: u32) -> bool {
        self.present.is_none_or(|present| is_present(present, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: u64, largest_key: Option<Key>, row_bytes: usize) -> Option<Pages> {
        let partitioner = Partitioner::by_page(3);
        Pages::plan(Expected { rows, largest_key }, row_bytes, partitioner).unwrap()
    }

    #[test]
    fn keys_that_lie_close_together_have_slots_and_others_have_none() {
        assert!(plan(10_000, Some(9_999), 128).is_some());
        // 13 bytes for each row saved, 128 lost for each key without a row.
        assert!(plan(9_000, Some(9_999), 128).is_some());
        assert!(plan(8_000, Some(9_999), 128).is_none());
        assert!(plan(8_000, Some(9_999), 32).is_some());
        // Repeated keys.
        assert!(plan(1_000_000, Some(9_999), 128).is_some());
        for (rows, largest_key) in
            [(10_000, None), (10_000, Some(u64::MAX)), (0, Some(9_999)), (1_000, Some(1_000))]
        {
            assert!(plan(rows, largest_key, 128).is_none(), "{rows} {largest_key:?}");
        }
        assert!(plan(1 << 33, Some((1 << 33) - 1), 4).is_none());
    }

    #[test]
    fn every_key_of_a_page_has_a_slot_of_its_own_and_is_told_from_it() {
        let partitioner = Partitioner::by_page(3);
        let mut pages = plan(10_300, Some(10_300), 4).unwrap();
        assert_eq!(pages.num_slots(), 10_240);
        let mut parts: Vec<Direct> = (0..3).map(|partition| pages.slots_of(partition).unwrap()).collect();
        for key in 0..10_240 {
            let direct = &mut parts[partitioner.of(key)];
            let slot = direct.slot(key).unwrap();
            assert!(!direct.holds(slot) && !direct.view().holds(slot));
            direct.set(slot, true);
            direct.set(slot, true);
            assert!(direct.holds(slot) && direct.view().holds(slot));
        }
        assert_eq!(parts[0].slot(10_240), None);
        let mut keys: Vec<Key> = parts.iter().flat_map(Direct::keys).collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..10_240).collect::<Vec<_>>());
        assert!(parts.iter().all(|direct| direct.view().present.is_none()));
        let direct = &mut parts[partitioner.of(77)];
        let slot = direct.slot(77).unwrap();
        direct.set(slot, false);
        assert!(!direct.view().holds(slot));
        assert_eq!(parts.iter().map(Direct::len).sum::<usize>(), 10_239);
    }
}
