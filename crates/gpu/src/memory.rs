//! Memory of a GPU, and host memory that GPUs read and write by themselves.

use std::ptr::NonNull;

use hps_core::memory::{Block, BlockAllocator, MmapAllocator};
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

/// Host memory that every GPU reads and writes at the addresses that the host uses. Zero-filled at first.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    device: &'static Device,
    block: Block,
    pinned: Vec<u64>,
}

impl PinnedBuffer {
    /// `num_bytes` of pinned memory. The device must have been entered.
    ///
    /// # Errors
    /// `OutOfMemory` if the system has no such memory, or does not let it be pinned.
    pub(crate) fn new(device: &'static Device, num_bytes: u64) -> Result<Self> {
        let num_bytes =
            usize::try_from(num_bytes.max(1)).map_err(|_| too_large())?.next_multiple_of(PAGE_BYTES);
        let block = MmapAllocator.allocate(num_bytes)?;
        let mut buffer = Self { device, block, pinned: Vec::new() };
        let start = buffer.block.address().as_ptr() as u64;
        for offset in (0..num_bytes).step_by(PIN_BYTES) {
            let piece = PIN_BYTES.min(num_bytes - offset);
            let address = start + offset as u64;
            // SAFETY: pages of the block, which lives until they are unpinned in `drop`.
            unsafe { driver::pin(address, piece) }.map_err(|why| {
                Error::new(
                    ErrorKind::OutOfMemory,
                    format!("{num_bytes} bytes of host memory cannot be pinned for GPUs; see `ulimit -l` and free memory"),
                )
                .caused_by(driver::text(why))
            })?;
            buffer.pinned.push(address);
        }
        Ok(buffer)
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

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if let Ok(_entered) = self.device.enter() {
            for &address in &self.pinned {
                // SAFETY: pinned by `new`; whoever launched kernels on it has waited for them.
                unsafe { driver::unpin(address) };
            }
        }
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "more memory than can be addressed")
}
