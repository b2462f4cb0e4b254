//! A file in memory, seen as atomic integers: other processes change it at any time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// A mapping of a whole file, whose memory was reserved before.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    num_bytes: usize,
}

// SAFETY: a Mapping owns its mapping alone; what it maps is only seen through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let num_bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping touches no existing memory; the descriptor is open.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                num_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { address, num_bytes })
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// `count` integers of 8 bytes from byte `offset` on; none if they are not all there or not aligned.
    #[inline]
    pub(crate) fn u64s(&self, offset: usize, count: usize) -> &[AtomicU64] {
        if !self.has(offset, count, 8) {
            return &[];
        }
        // SAFETY: the offset lies within the mapping.
        let address = unsafe { self.address.add(offset) };
        // SAFETY: `count` aligned integers within the mapping, which lives as long as the borrow. All bit patterns are valid; all
        // processes access them as atomics.
        unsafe { std::slice::from_raw_parts(address.cast().as_ptr(), count) }
    }

    /// The same of 4 bytes.
    #[inline]
    pub(crate) fn u32s(&self, offset: usize, count: usize) -> &[AtomicU32] {
        if !self.has(offset, count, 4) {
            return &[];
        }
        // SAFETY: the offset lies within the mapping.
        let address = unsafe { self.address.add(offset) };
        // SAFETY: as in `u64s`.
        unsafe { std::slice::from_raw_parts(address.cast().as_ptr(), count) }
    }

    #[inline]
    fn has(&self, offset: usize, count: usize, size: usize) -> bool {
        let end = count.checked_mul(size).and_then(|bytes| bytes.checked_add(offset));
        offset.is_multiple_of(size) && end.is_some_and(|end| end <= self.num_bytes)
    }

    /// Asks for the cache line at a byte.
    #[inline(always)]
    pub(crate) fn prefetch(&self, offset: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing that the program could see and never faults, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<3>(self.address.as_ptr().wrapping_add(offset).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = offset;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: what `new` has mapped, once.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.num_bytes) };
    }
}
