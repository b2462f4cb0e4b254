//! Memory of a GPU, and host memory that GPUs read and write by themselves.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hps_core::memory::{Block, BlockAllocator, MmapAllocator};
use hps_core::observer::Observer;
use hps_core::{Error, ErrorKind, Result};

use crate::driver::{self, Device, StreamHandle};

/// GPU memory, given back when dropped. Dropping it waits for kernels under way.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    device: &'static Device,
    address: u64,
    num_bytes: usize,
}

impl DeviceBuffer {
    /// `num_bytes` of GPU memory whose contents are unspecified. The device must have been entered.
    pub(crate) fn new(device: &'static Device, num_bytes: u64) -> Result<Self> {
        let num_bytes = usize::try_from(num_bytes.max(1)).map_err(|_| too_large())?;
        Ok(Self { device, address: driver::allocate(device, num_bytes)?, num_bytes })
    }

    /// The same, filled with zeros in the order of `stream`.
    pub(crate) fn zeroed(device: &'static Device, num_bytes: u64, stream: StreamHandle) -> Result<Self> {
        let buffer = Self::new(device, num_bytes)?;
        // SAFETY: the memory is ours and new.
        unsafe { device.fill(buffer.address, 0, buffer.num_bytes, stream)? };
        Ok(buffer)
    }

    /// The same, holding `bytes`.
    pub(crate) fn holding(device: &'static Device, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::new(device, bytes.len() as u64)?;
        // SAFETY: the memory is ours, new, and as large as `bytes`.
        unsafe { device.write(buffer.address, bytes)? };
        Ok(buffer)
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // A lost context has no memory any more.
        if let Ok(_entered) = self.device.enter() {
            // SAFETY: ours, and whoever launched kernels on it has dropped it.
            unsafe { driver::free(self.address) };
        }
    }
}

/// Registered at a time: the driver refuses very large pieces.
const PIN_BYTES: usize = 1 << 30;
const PAGE_BYTES: usize = 4096;

/// Zero-filled host memory that every GPU reads and writes at the addresses that the host uses. The device must have been
/// entered. Whoever launches kernels on the memory waits for them before it drops the block.
///
/// # Errors
/// `OutOfMemory` if the system has no such memory, or does not let it be pinned.
fn pinned_block(device: &'static Device, num_bytes: usize) -> Result<Block> {
    let num_bytes = num_bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or_else(too_large)?;
    #[cfg(test)]
    limit::check(num_bytes)?;
    let block = MmapAllocator.allocate(num_bytes)?;
    block.keep_from_children();
    let mut pinned = Pinned { device, addresses: Vec::new() };
    for offset in (0..num_bytes).step_by(PIN_BYTES) {
        let piece = PIN_BYTES.min(num_bytes - offset);
        let address = block.address().as_ptr() as u64 + offset as u64;
        // SAFETY: pages of the block, which are unpinned when `pinned` is dropped: before the block.
        unsafe { driver::pin(address, piece) }.map_err(|why| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("{num_bytes} bytes of host memory cannot be pinned for GPUs; see `ulimit -l` and free memory"),
            )
            .caused_by(driver::text(why))
        })?;
        pinned.addresses.push(address);
    }
    Ok(block.reachable(pinned))
}

/// Pieces of memory that are pinned.
struct Pinned {
    device: &'static Device,
    addresses: Vec<u64>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Pages are pinned for all devices, so any of them will do. If all are lost, nothing is pinned any more.
        if let Ok(_entered) = self.device.enter_any() {
            for &address in &self.addresses {
                // SAFETY: pinned by `pinned_block`; whoever launched kernels on it has waited for them.
                unsafe { driver::unpin(address) };
            }
        }
    }
}

/// Gives the host tier memory that GPUs read by themselves. Where it cannot be pinned, memory that they cannot read: the host
/// then reads rows for them.
pub struct PinnedAllocator {
    device: &'static Device,
    observer: Arc<dyn Observer>,
    has_warned: AtomicBool,
}

impl PinnedAllocator {
    /// The memory is pinned through the GPU `ordinal`, for all of them.
    ///
    /// # Errors
    /// As [`GpuTier::open`](crate::GpuTier::open) for that GPU.
    pub fn new(ordinal: usize, observer: Arc<dyn Observer>) -> Result<Self> {
        Ok(Self { device: Device::open(ordinal)?, observer, has_warned: AtomicBool::new(false) })
    }
}

impl BlockAllocator for PinnedAllocator {
    fn allocate(&self, num_bytes: usize) -> Result<Block> {
        let pinned = self.device.enter().and_then(|_entered| pinned_block(self.device, num_bytes));
        pinned.or_else(|why| {
            let block = MmapAllocator.allocate(num_bytes)?;
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                self.observer.warn(&format!(
                    "{why}; GPUs do not read the rows of such tables by themselves, but wait for the host"
                ));
            }
            Ok(block)
        })
    }
}

impl std::fmt::Debug for PinnedAllocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinnedAllocator").field("device", &self.device.ordinal()).finish_non_exhaustive()
    }
}

/// Host memory that every GPU reads and writes at the addresses that the host uses. Zero-filled at first.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    block: Block,
}

impl PinnedBuffer {
    /// `num_bytes` of pinned memory. The device must have been entered.
    ///
    /// # Errors
    /// `OutOfMemory` if the system has no such memory, or does not let it be pinned.
    pub(crate) fn new(device: &'static Device, num_bytes: u64) -> Result<Self> {
        let num_bytes = usize::try_from(num_bytes).map_err(|_| too_large())?;
        Ok(Self { block: pinned_block(device, num_bytes)? })
    }

    pub(crate) fn address(&self) -> u64 {
        self.block.address().as_ptr() as u64
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.block.num_bytes()
    }

    /// `len` items from `offset` bytes on; None if they are not within the buffer or not aligned.
    ///
    /// # Safety
    /// `T` is a number. No kernel writes the items while the result lives.
    pub(crate) unsafe fn slice<T: Copy>(&self, offset: usize, len: usize) -> Option<&[T]> {
        let address = self.checked::<T>(offset, len)?;
        // SAFETY: within the block, which is initialised and lives as long as `self`; the caller's promise.
        Some(unsafe { std::slice::from_raw_parts(address.as_ptr(), len) })
    }

    /// The same, to be written.
    ///
    /// # Safety
    /// As [`Self::slice`], and no kernel reads the items either, nor does anybody else have a slice of them.
    #[allow(clippy::mut_from_ref, reason = "the caller answers for who else has a part of the buffer")]
    pub(crate) unsafe fn slice_mut<T: Copy>(&self, offset: usize, len: usize) -> Option<&mut [T]> {
        let address = self.checked::<T>(offset, len)?;
        // SAFETY: as in `slice`.
        Some(unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), len) })
    }

    /// A word that a kernel may write at any time, read whole.
    pub(crate) fn word(&self, offset: usize) -> Option<&std::sync::atomic::AtomicU64> {
        let address = self.checked::<u64>(offset, 1)?;
        // SAFETY: an aligned, initialised word within the block, only accessed as an atomic by the host; kernels write it
        // whole.
        Some(unsafe { std::sync::atomic::AtomicU64::from_ptr(address.as_ptr()) })
    }

    fn checked<T>(&self, offset: usize, len: usize) -> Option<NonNull<T>> {
        let end = len.checked_mul(size_of::<T>())?.checked_add(offset)?;
        if end > self.block.num_bytes() || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: `offset` is within the block.
        Some(unsafe { self.block.address().add(offset) }.cast())
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "more memory than can be addressed")
}

/// For tests of what happens where memory cannot be pinned.
#[cfg(test)]
pub(crate) mod limit {
    use std::cell::Cell;

    use hps_core::{Error, ErrorKind, Result};

    thread_local! {
        static MAX_BYTES: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// While it lives, this thread gets no larger piece of pinned memory.
    pub(crate) struct PinLimit(usize);

    impl PinLimit {
        pub(crate) fn new(max_bytes: usize) -> Self {
            Self(MAX_BYTES.replace(max_bytes))
        }
    }

    impl Drop for PinLimit {
        fn drop(&mut self) {
            MAX_BYTES.set(self.0);
        }
    }

    pub(super) fn check(num_bytes: usize) -> Result<()> {
        if num_bytes <= MAX_BYTES.get() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::OutOfMemory, "a test lets no more memory be pinned"))
    }
}
