//! Where rows lie: slot -> row.
//!
//! ```text
//! Arena (one per table)     blocks from the allocator, cut into slabs
//! Slabs (one per partition) slot = slab << shift | offset      row at slab's address + offset * row_bytes
//!                           never used: fresh..num_slots       free: chained through the first 4 bytes of the rows
//! ```
//!
//! Rows are packed without padding and slabs begin at multiples of 64 bytes, so that rows are aligned to 16 bytes
//! where their size is a multiple of 16. Only this module, `array` and `prefetch` have unsafe code.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use hps_core::memory::{Block, BlockAllocator};
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

/// Marks the absence of a slot.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// A freed row holds the number of the next free slot.
pub(crate) const MIN_ROW_BYTES: usize = size_of::<u32>();

const ALIGNMENT: usize = 64;
const PAGE_BYTES: usize = 4096;
/// That many slabs are always whole pages.
const ALIGNMENTS_PER_PAGE: usize = PAGE_BYTES / ALIGNMENT;
/// Half a slab per partition is unused on average, and a slab costs a pointer: about this size loses least.
const SLAB_BYTES: usize = 24 << 10;
const MIN_ROWS_PER_SLAB: usize = 16;
/// Partitions that are known to become large take larger slabs, so that the pointers stay in the processor's cache.
pub(crate) const MANY_SLABS: usize = 4096;
/// The same where it is known that the last slab is full as well.
pub(crate) const FEW_SLABS: usize = 512;
const MAX_SLAB_BYTES: usize = 2 << 20;
const MIN_BLOCK_BYTES: usize = 128 << 10;
const MAX_BLOCK_BYTES: usize = 64 << 20;
/// A table that grows takes blocks of this fraction of its size: what is unused stays far below a byte per row.
const BLOCK_FRACTION: usize = 2048;

/// What is left of a block.
#[derive(Debug)]
struct Spare {
    address: NonNull<u8>,
    num_bytes: usize,
}

#[derive(Debug, Default)]
struct ArenaState {
    blocks: Vec<Block>,
    /// Some block cannot be read by devices.
    is_out_of_reach: bool,
    /// Devices were told that they can read all blocks.
    is_promised: bool,
    block_bytes: usize,
    spares: Vec<Spare>,
}

/// The blocks of one table.
#[derive(Debug)]
pub(crate) struct Arena {
    allocator: Arc<dyn BlockAllocator>,
    state: Mutex<ArenaState>,
}

// SAFETY: the addresses in an Arena point into blocks that it owns, and are only handed out, never dereferenced here.
unsafe impl Send for Arena {}
// SAFETY: as above; the addresses are behind a lock.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn new(allocator: Arc<dyn BlockAllocator>) -> Self {
        Self { allocator, state: Mutex::default() }
    }

    /// Bytes taken from the allocator.
    pub(crate) fn num_bytes(&self) -> usize {
        let state = self.state.lock();
        state.block_bytes.saturating_add(state.spares.capacity() * size_of::<Spare>())
    }

    /// True if there are rows and devices can read them all.
    pub(crate) fn is_reachable(&self) -> bool {
        let state = self.state.lock();
        !state.blocks.is_empty() && !state.is_out_of_reach
    }

    /// The same, and from now on it stays so: memory that devices cannot read is refused.
    pub(crate) fn promise_reach(&self) -> bool {
        let mut state = self.state.lock();
        state.is_promised = !state.blocks.is_empty() && !state.is_out_of_reach;
        state.is_promised
    }

    /// Makes sure that `num_slabs` more slabs can be had without asking the allocator.
    pub(crate) fn reserve(&self, num_slabs: usize, slab_bytes: usize) -> Result<()> {
        let mut state = self.state.lock();
        let spare_slabs: usize =
            state.spares.iter().map(|spare| spare.num_bytes.checked_div(slab_bytes).unwrap_or(0)).sum();
        match num_slabs.saturating_sub(spare_slabs) {
            0 => Ok(()),
            lacking => {
                self.add_block(&mut state, lacking.checked_mul(slab_bytes).ok_or_else(too_large)?, slab_bytes)
            }
        }
    }

    /// `num_bytes` of zero-filled memory at a multiple of 64 bytes that nobody else gets; a multiple of 64.
    fn take(&self, num_bytes: usize) -> Result<NonNull<u8>> {
        let mut state = self.state.lock();
        if !state.spares.iter().any(|spare| spare.num_bytes >= num_bytes) {
            let wanted = (state.block_bytes / BLOCK_FRACTION).clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES);
            self.add_block(&mut state, whole_slabs(wanted, num_bytes), num_bytes)?;
        }
        let spare =
            state.spares.iter_mut().find(|spare| spare.num_bytes >= num_bytes).ok_or_else(too_large)?;
        let taken = spare.address;
        spare.num_bytes -= num_bytes;
        // SAFETY: the spare has at least `num_bytes` more bytes of one block, so the result is within it or at its end.
        spare.address = unsafe { taken.add(num_bytes) };
        state.spares.retain(|spare| spare.num_bytes > 0);
        Ok(taken)
    }

    fn add_block(&self, state: &mut ArenaState, num_bytes: usize, slab_bytes: usize) -> Result<()> {
        state.blocks.try_reserve(1).map_err(out_of_memory)?;
        state.spares.try_reserve(1).map_err(out_of_memory)?;
        let block = self.allocator.allocate(num_bytes)?;
        if state.is_promised && !block.is_reachable() {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{num_bytes} more bytes for rows cannot be pinned, and GPUs read the table's rows by themselves: raise \
                     `ulimit -l` or free host memory"
                ),
            ));
        }
        let usable = block.num_bytes().checked_div(slab_bytes).unwrap_or(0).saturating_mul(slab_bytes);
        state.block_bytes = state.block_bytes.saturating_add(block.num_bytes());
        state.is_out_of_reach |= !block.is_reachable();
        state.spares.push(Spare { address: block.address(), num_bytes: usable });
        state.blocks.push(block);
        Ok(())
    }
}

/// The size of a block of about `wanted` bytes, up to twice that, which holds whole slabs and leaves as little as possible
/// of its last page unused.
fn whole_slabs(wanted: usize, slab_bytes: usize) -> usize {
    let fewest = wanted.checked_div(slab_bytes).unwrap_or(0).max(1);
    let sizes =
        (fewest..=fewest.saturating_mul(2)).take(ALIGNMENTS_PER_PAGE).map(|n| n.saturating_mul(slab_bytes));
    sizes.min_by_key(|bytes| bytes.wrapping_neg() % PAGE_BYTES).unwrap_or(slab_bytes)
}

/// Address of a slab's first row.
#[derive(Clone, Copy, Debug)]
struct SlabAddress(NonNull<u8>);

// SAFETY: the address of memory that one `Slabs` has for itself; references are only made through that `Slabs`.
unsafe impl Send for SlabAddress {}
// SAFETY: as above: shared references to a `Slabs` only give shared references to rows.
unsafe impl Sync for SlabAddress {}

/// The rows of one partition.
#[derive(Debug)]
pub(crate) struct Slabs {
    row_bytes: usize,
    shift: u32,
    slabs: Vec<SlabAddress>,
    /// The lowest slot that was never used.
    fresh: u32,
    /// The first of the freed slots.
    free: u32,
    arena: Arc<Arena>,
}

impl Slabs {
    /// No rows yet. `row_bytes` is at least [`MIN_ROW_BYTES`].
    pub(crate) fn new(row_bytes: usize, arena: Arc<Arena>) -> Self {
        let mut slabs = Self { row_bytes, shift: 0, slabs: Vec::new(), fresh: 0, free: NO_SLOT, arena };
        slabs.expect_rows(0, MANY_SLABS);
        slabs
    }

    /// Chooses the size of slabs for that many rows in about so many slabs, if there is no slab yet.
    pub(crate) fn expect_rows(&mut self, num_rows: usize, num_slabs: usize) {
        if !self.slabs.is_empty() {
            return;
        }
        let slab_bytes = (num_rows.saturating_mul(self.row_bytes) / num_slabs.max(1))
            .clamp(SLAB_BYTES, MAX_SLAB_BYTES)
            .max(self.row_bytes.saturating_mul(MIN_ROWS_PER_SLAB));
        self.shift =
            slab_bytes.checked_div(self.row_bytes).and_then(usize::checked_ilog2).unwrap_or(0).max(1);
    }

    fn rows_per_slab(&self) -> usize {
        1 << self.shift
    }

    /// Bytes of one slab in its arena; None if no memory could ever be that large.
    fn slab_bytes(&self) -> Option<usize> {
        self.rows_per_slab().checked_mul(self.row_bytes)?.checked_next_multiple_of(ALIGNMENT)
    }

    /// Slots that exist, used or not.
    pub(crate) fn num_slots(&self) -> usize {
        self.slabs.len() << self.shift
    }

    /// Bytes taken beside the arena's.
    pub(crate) fn num_bytes(&self) -> usize {
        self.slabs.capacity() * size_of::<SlabAddress>()
    }

    /// Prepares for `num_rows` rows; the slabs themselves stay with the arena until they are needed.
    pub(crate) fn reserve(&mut self, num_rows: usize) -> Result<()> {
        let num_slabs = num_rows.div_ceil(self.rows_per_slab());
        self.slabs.try_reserve_exact(num_slabs.saturating_sub(self.slabs.len())).map_err(out_of_memory)
    }

    /// Slabs, and bytes of each, that `num_rows` rows would take beyond those that are there.
    pub(crate) fn lacking(&self, num_rows: usize) -> Result<(usize, usize)> {
        let num_slabs = num_rows.div_ceil(self.rows_per_slab()).saturating_sub(self.slabs.len());
        Ok((num_slabs, self.slab_bytes().ok_or_else(too_large)?))
    }

    /// True if no slot was ever taken.
    pub(crate) fn is_untouched(&self) -> bool {
        self.fresh == 0
    }

    /// Takes the first `num_slots` slots, of which none was taken before. After an error none is taken.
    pub(crate) fn take_first(&mut self, num_slots: usize) -> Result<()> {
        while self.num_slots() < num_slots {
            self.add_slab()?;
        }
        self.fresh = u32::try_from(num_slots).map_err(|_| too_large())?;
        Ok(())
    }

    /// Makes sure that [`Self::take`] succeeds once.
    pub(crate) fn reserve_one(&mut self) -> Result<()> {
        if self.free != NO_SLOT || (self.fresh as usize) < self.num_slots() {
            return Ok(());
        }
        self.add_slab()
    }

    fn add_slab(&mut self) -> Result<()> {
        if self.num_slots() + self.rows_per_slab() > NO_SLOT as usize {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "a partition holds at most 4 billion rows: set \"num_partitions\" higher",
            ));
        }
        reserve_slowly(&mut self.slabs, 1)?;
        let address = self.arena.take(self.slab_bytes().ok_or_else(too_large)?)?;
        self.slabs.push(SlabAddress(address));
        Ok(())
    }

    /// The slot that [`Self::take`] would take, if there is one.
    pub(crate) fn next(&self) -> Option<u32> {
        match self.free {
            NO_SLOT => ((self.fresh as usize) < self.num_slots()).then_some(self.fresh),
            free => Some(free),
        }
    }

    /// Takes a slot for a new row, whose bytes are whatever they are.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let slot = self.next()?;
        if slot == self.free {
            let next = *self.row(slot)?.first_chunk()?;
            self.free = u32::from_ne_bytes(next);
        } else {
            self.fresh += 1;
        }
        Some(slot)
    }

    /// Gives back a slot that was taken.
    pub(crate) fn release(&mut self, slot: u32) {
        let next = self.free.to_ne_bytes();
        if let Some(link) = self.row_mut(slot).and_then(|row| row.first_chunk_mut()) {
            *link = next;
            self.free = slot;
        }
    }

    /// For lookups.
    #[inline(always)]
    pub(crate) fn view(&self) -> SlabsView<'_> {
        SlabsView { slabs: &self.slabs, shift: self.shift, row_bytes: self.row_bytes }
    }

    /// Address of a row; None if there is no such slot.
    pub(crate) fn address(&self, slot: u32) -> Option<NonNull<u8>> {
        self.view().address(slot)
    }

    /// The row in a slot; None if there is no such slot.
    pub(crate) fn row(&self, slot: u32) -> Option<&[u8]> {
        self.view().row(slot)
    }

    /// The row in a slot, to be written; None if there is no such slot.
    #[inline]
    pub(crate) fn row_mut(&mut self, slot: u32) -> Option<&mut [u8]> {
        let address = self.address(slot)?;
        // SAFETY: as in `SlabsView::row`, and the borrow of this `Slabs` is exclusive, so no other reference to the row exists.
        Some(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), self.row_bytes) })
    }
}

/// What lookups read of a partition's rows. While it lives, its `Slabs` is borrowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabsView<'s> {
    slabs: &'s [SlabAddress],
    shift: u32,
    row_bytes: usize,
}

impl<'s> SlabsView<'s> {
    #[inline(always)]
    fn address(&self, slot: u32) -> Option<NonNull<u8>> {
        let SlabAddress(slab) = *self.slabs.get((slot >> self.shift) as usize)?;
        let offset = slot as usize & ((1 << self.shift) - 1);
        // SAFETY: a slab has `1 << shift` rows of `row_bytes` each, and `offset` is below that number.
        Some(unsafe { slab.add(offset * self.row_bytes) })
    }

    /// The row in a slot; None if there is no such slot.
    #[inline(always)]
    fn row(&self, slot: u32) -> Option<&'s [u8]> {
        Some(self.bytes(RowRef { address: self.address(slot)?, slabs: PhantomData }))
    }

    /// The row in a slot; any row, if there is one, in place of that in `NO_SLOT`. Without a branch that cannot be foreseen.
    #[inline(always)]
    pub(crate) fn row_or_any(&self, slot: u32) -> Option<RowRef<'s>> {
        let slot = std::hint::select_unpredictable(slot == NO_SLOT, 0, slot);
        Some(RowRef { address: self.address(slot)?, slabs: PhantomData })
    }

    /// The bytes of a row that this view has shown.
    #[inline(always)]
    pub(crate) fn bytes(&self, row: RowRef<'s>) -> &'s [u8] {
        // SAFETY: `row_bytes` initialised bytes (blocks are zero-filled) of a slab that the arena keeps for the `Slabs`
        // alone while it lives; rows are only written through an exclusive borrow of it. Views of one table, which alone give
        // each other rows, agree in `row_bytes`.
        unsafe { std::slice::from_raw_parts(row.address.as_ptr(), self.row_bytes) }
    }
}

/// A row that a view has shown, in one word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowRef<'s> {
    address: NonNull<u8>,
    slabs: PhantomData<&'s [u8]>,
}

impl RowRef<'_> {
    /// Of its first byte.
    #[inline(always)]
    pub(crate) fn address(self) -> *const u8 {
        self.address.as_ptr()
    }
}

/// Reserves room for `additional` items. Grows by a quarter: doubling could waste a quarter of a byte per row.
pub(crate) fn reserve_slowly<T>(items: &mut Vec<T>, additional: usize) -> Result<()> {
    if items.capacity() - items.len() >= additional {
        return Ok(());
    }
    items.try_reserve_exact(additional.max(items.len() / 4)).map_err(out_of_memory)
}

pub(crate) fn out_of_memory(why: std::collections::TryReserveError) -> Error {
    Error::new(ErrorKind::OutOfMemory, "no memory for a table in host memory").caused_by(why)
}

pub(crate) fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "a table in host memory would be larger than memory can be")
}

#[cfg(test)]
mod tests {
    use hps_core::memory::MmapAllocator;

    use super::*;

    fn slabs(row_bytes: usize) -> Slabs {
        Slabs::new(row_bytes, Arc::new(Arena::new(Arc::new(MmapAllocator))))
    }

    fn take(slabs: &mut Slabs) -> u32 {
        slabs.reserve_one().unwrap();
        slabs.take().unwrap()
    }

    #[test]
    fn rows_are_apart_and_keep_their_bytes() {
        for row_bytes in [4, 5, 12, 64, 516, 70_000] {
            let mut slabs = slabs(row_bytes);
            let slots: Vec<u32> = (0..500).map(|_| take(&mut slabs)).collect();
            for &slot in &slots {
                slabs.row_mut(slot).unwrap().fill(slot as u8 ^ (slot >> 8) as u8);
            }
            for &slot in &slots {
                let row = slabs.row(slot).unwrap();
                assert_eq!(row.len(), row_bytes);
                assert!(row.iter().all(|&byte| byte == slot as u8 ^ (slot >> 8) as u8));
                if row_bytes % 16 == 0 {
                    assert_eq!(row.as_ptr() as usize % 16, 0);
                }
            }
            assert!(slabs.row(NO_SLOT).is_none());
        }
    }

    #[test]
    fn freed_slots_are_used_again_before_new_ones() {
        let mut slabs = slabs(4);
        let slots: Vec<u32> = (0..10).map(|_| take(&mut slabs)).collect();
        for &slot in &slots[3..6] {
            slabs.release(slot);
        }
        let mut again: Vec<u32> = (0..3).map(|_| take(&mut slabs)).collect();
        again.sort_unstable();
        assert_eq!(again, slots[3..6]);
        assert_eq!(take(&mut slabs), 10);
    }

    #[test]
    fn partitions_share_the_blocks_of_their_table() {
        let arena = Arc::new(Arena::new(Arc::new(MmapAllocator)));
        let mut partitions: Vec<Slabs> = (0..4).map(|_| Slabs::new(64, Arc::clone(&arena))).collect();
        for round in 0..3_000u32 {
            for slabs in &mut partitions {
                let slot = take(slabs);
                slabs.row_mut(slot).unwrap().fill(round as u8);
            }
        }
        for slabs in &partitions {
            assert!((0..3_000).all(|slot| slabs.row(slot).unwrap().iter().all(|&byte| byte == slot as u8)));
        }
        let rows_bytes = 4 * 3_000 * 64;
        assert!(
            arena.num_bytes() <= rows_bytes + 4 * SLAB_BYTES + 2 * MIN_BLOCK_BYTES,
            "{}",
            arena.num_bytes()
        );
    }

    #[test]
    fn reserved_slabs_need_no_further_block() {
        let mut slabs = slabs(128);
        slabs.expect_rows(100_000, MANY_SLABS);
        slabs.reserve(100_000).unwrap();
        let (num_slabs, slab_bytes) = slabs.lacking(100_000).unwrap();
        slabs.arena.reserve(num_slabs, slab_bytes).unwrap();
        let taken = slabs.arena.num_bytes();
        for _ in 0..100_000 {
            take(&mut slabs);
        }
        assert_eq!(slabs.lacking(100_000).unwrap().0, 0);
        assert_eq!(slabs.arena.num_bytes(), taken);
        assert!(taken < 100_000 * 128 * 65 / 64);
    }
}
