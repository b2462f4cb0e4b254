//! Arrays that are made once, at full length, and replaced by longer ones.

use std::ptr::NonNull;

use hps_core::Result;
use hps_core::memory::{Block, BlockAllocator, MmapAllocator};

use crate::slab::{out_of_memory, too_large};

/// From this size on, memory comes from the system in whole pages and goes back to it at once. The heap would keep the
/// holes that arrays leave behind when they are replaced: several bytes per row.
const MIN_MAPPED_BYTES: usize = 4 << 10;

/// Whoever frees the memory of an array.
#[derive(Debug)]
enum Owner<T> {
    Heap { _items: Vec<T> },
    System { block: Block },
}

/// A fixed number of plain values.
#[derive(Debug)]
pub(crate) struct Array<T> {
    items: NonNull<T>,
    len: usize,
    owner: Owner<T>,
}

// SAFETY: an Array owns its items alone, as a Vec does.
unsafe impl<T: Send> Send for Array<T> {}
// SAFETY: as above; shared references give shared references to the items only.
unsafe impl<T: Sync> Sync for Array<T> {}

impl<T> Array<T> {
    const IS_PLAIN: () = {
        assert!(align_of::<T>() <= 64, "blocks are aligned to 64 bytes");
        assert!(!std::mem::needs_drop::<T>(), "items in a block are never dropped");
    };

    /// `len` times `item()`.
    pub(crate) fn filled(len: usize, item: impl Fn() -> T) -> Result<Self> {
        let () = Self::IS_PLAIN;
        let num_bytes = len.checked_mul(size_of::<T>()).ok_or_else(too_large)?;
        if num_bytes < MIN_MAPPED_BYTES {
            let mut items = Vec::new();
            items.try_reserve_exact(len).map_err(out_of_memory)?;
            items.resize_with(len, item);
            let address = NonNull::from(items.as_mut_slice()).cast();
            return Ok(Self { items: address, len, owner: Owner::Heap { _items: items } });
        }
        let block = MmapAllocator.allocate(num_bytes)?;
        let items: NonNull<T> = block.address().cast();
        for i in 0..len {
            // SAFETY: the block has room for `len` items from its address on, and `i` is below `len`.
            let place = unsafe { items.add(i) };
            // SAFETY: the place is within the block, aligned, and nobody else's.
            unsafe { place.write(item()) };
        }
        Ok(Self { items, len, owner: Owner::System { block } })
    }

    /// Bytes taken.
    pub(crate) fn num_bytes(&self) -> usize {
        match &self.owner {
            Owner::Heap { .. } => self.len * size_of::<T>(),
            Owner::System { block } => block.num_bytes(),
        }
    }
}

impl<T> std::ops::Deref for Array<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` items, all written when the array was made, in memory that `owner` keeps; they only change
        // through an exclusive borrow of the array, or as they allow it themselves (atomics).
        unsafe { std::slice::from_raw_parts(self.items.as_ptr(), self.len) }
    }
}

impl<T> std::ops::DerefMut for Array<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.items.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_the_value_and_can_be_changed() {
        for len in [0usize, 1, 100, 100_000] {
            let mut array = Array::filled(len, || (1u64, 2u32)).unwrap();
            assert_eq!(array.len(), len);
            assert!(array.iter().all(|&item| item == (1, 2)));
            array.iter_mut().zip(0..).for_each(|(item, i)| item.0 = i);
            let moved = array;
            assert!(moved.iter().zip(0..).all(|(item, i)| item.0 == i));
            assert!(moved.num_bytes() >= len * 16);
        }
    }

    #[test]
    fn too_long_an_array_is_an_error() {
        assert!(Array::filled(usize::MAX / 2, || 0u64).is_err());
        assert!(Array::filled(1 << 50, || 0u64).is_err());
    }
}
