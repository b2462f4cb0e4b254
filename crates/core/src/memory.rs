//! Where the memory of host rows comes from.
//!
//! The bridge hands an allocator to the host tier, so that rows can live in memory that a GPU reads by itself (pinned)
//! although the host tier knows nothing of GPUs.

use std::any::Any;
use std::fmt::Debug;
use std::ptr::NonNull;

use crate::error::{Error, ErrorKind, Result};

/// A large, zero-filled piece of memory that is given back when it is dropped.
#[derive(Debug)]
pub struct Block {
    address: NonNull<u8>,
    num_bytes: usize,
    /// None: an anonymous mapping, and nothing more. Large tables have thousands of those, so they take three words.
    owner: Option<Box<Owner>>,
}

#[derive(Debug)]
struct Owner {
    release: fn(NonNull<u8>, usize),
    /// What makes the memory readable for devices.
    keeper: Option<Box<dyn Any + Send + Sync>>,
}

// SAFETY: a Block owns its memory alone, as a Vec<u8> does; `release` is a plain function that any thread may call.
unsafe impl Send for Block {}
// SAFETY: through a shared Block one only learns the address; who dereferences it answers for the access.
unsafe impl Sync for Block {}

impl Block {
    /// Takes over `num_bytes` of memory at `address`; `release` gives it back.
    ///
    /// # Safety
    /// The memory is readable and writable, zero-filled, aligned to 64 bytes, nobody else's, and stays so until
    /// `release(address, num_bytes)` is called, which happens once.
    pub unsafe fn from_raw(address: NonNull<u8>, num_bytes: usize, release: fn(NonNull<u8>, usize)) -> Self {
        Self { address, num_bytes, owner: Some(Box::new(Owner { release, keeper: None })) }
    }

    /// The same block, which devices can read, at the addresses that the host uses, while `keeper` lives: until the block is
    /// dropped, just before its memory goes.
    #[must_use]
    pub fn reachable(self, keeper: impl Send + Sync + 'static) -> Self {
        let mut block = self;
        let owner = block.owner.get_or_insert_with(|| Box::new(Owner { release: unmap, keeper: None }));
        owner.keeper = Some(Box::new(keeper));
        block
    }

    /// Keeps the memory out of children that this process forks. For memory that devices read: where a child has it too, a write
    /// of ours may go to a new page while the device goes on reading the old one.
    pub fn keep_from_children(&self) {
        // SAFETY: advice about pages of ours; where the system does not take it, all stays as it was.
        unsafe { libc::madvise(self.address.as_ptr().cast(), self.num_bytes, libc::MADV_DONTFORK) };
    }

    /// First byte; aligned to 64 bytes.
    pub fn address(&self) -> NonNull<u8> {
        self.address
    }

    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// True if devices can read the memory by themselves.
    pub fn is_reachable(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.keeper.is_some())
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let release = match self.owner.take() {
            None => unmap,
            Some(owner) => {
                let Owner { release, keeper } = *owner;
                drop(keeper);
                release
            }
        };
        release(self.address, self.num_bytes);
    }
}

/// Gives memory for rows.
pub trait BlockAllocator: Send + Sync + Debug {
    /// A zero-filled block of `num_bytes`.
    ///
    /// # Errors
    /// `OutOfMemory` if the system refuses; nothing is kept then.
    fn allocate(&self, num_bytes: usize) -> Result<Block>;
}

/// Memory straight from the operating system: whole pages, resident once they are written, given back at once.
#[derive(Debug, Default)]
pub struct MmapAllocator;

impl BlockAllocator for MmapAllocator {
    fn allocate(&self, num_bytes: usize) -> Result<Block> {
        let refused = |why: std::io::Error| {
            Error::new(
                ErrorKind::OutOfMemory,
                format!("the system refused {num_bytes} bytes of host memory for rows"),
            )
            .caused_by(why)
        };
        let num_bytes = num_bytes.max(1);
        if num_bytes >= HUGE_PAGE_BYTES
            && let Some(address) = map_in_huge_pages(num_bytes)
        {
            return Ok(Block { address, num_bytes, owner: None });
        }
        let address = map(num_bytes).map_err(refused)?;
        // New, so nobody else's; pages are zero-filled and page-aligned.
        Ok(Block { address, num_bytes, owner: None })
    }
}

/// The size of the large pages of x86-64 and of most ARM systems. Where they are larger, nothing is gained and nothing lost.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// An anonymous private mapping of at least one byte.
fn map(num_bytes: usize) -> std::io::Result<NonNull<u8>> {
    // SAFETY: such a mapping touches no existing memory; arguments are plain numbers.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            num_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| std::io::Error::other("mmap returned address 0"))
}

/// The same, beginning with a whole huge page, with the advice to use such pages: a lookup in a large table spends up to half of
/// its time on finding out where small ones are. What is left over of the last one lies in small pages. None if there is no room.
fn map_in_huge_pages(num_bytes: usize) -> Option<NonNull<u8>> {
    // SAFETY: only asks.
    let page_bytes =
        usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok().filter(|&bytes| bytes > 0)?;
    let kept = num_bytes.checked_next_multiple_of(page_bytes)?;
    let mapped = map(kept.checked_add(HUGE_PAGE_BYTES)?).ok()?;
    let before = mapped.align_offset(HUGE_PAGE_BYTES);
    // SAFETY: `before` is less than the huge page by which the mapping is larger.
    let address = unsafe { mapped.add(before) };
    // SAFETY: `before + kept` is less than what is mapped.
    let end = unsafe { address.add(kept) };
    if before > 0 {
        unmap(mapped, before);
    }
    unmap(end, HUGE_PAGE_BYTES - before);
    // SAFETY: advice about pages of ours; where the system does not take it, all stays as it was.
    unsafe { libc::madvise(address.as_ptr().cast(), num_bytes, libc::MADV_HUGEPAGE) };
    Some(address)
}

fn unmap(address: NonNull<u8>, num_bytes: usize) {
    // SAFETY: only called by Block's drop, once, for what mmap gave.
    unsafe { libc::munmap(address.as_ptr().cast(), num_bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_zero_filled_aligned_and_writable() {
        let block = MmapAllocator.allocate(1 << 20).unwrap();
        assert_eq!(block.address().as_ptr() as usize % 64, 0);
        // SAFETY: the block is ours and large enough.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.address().as_ptr(), block.num_bytes()) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(1);
    }

    #[test]
    fn what_makes_a_block_reachable_ends_before_its_memory_does() {
        use std::sync::Mutex;
        static ENDED: Mutex<Vec<&str>> = Mutex::new(Vec::new());
        struct Keeper;
        impl Drop for Keeper {
            fn drop(&mut self) {
                ENDED.lock().unwrap().push("keeper");
            }
        }
        let address = NonNull::new(64 as *mut u8).unwrap();
        // SAFETY: nobody uses the address.
        let block = unsafe { Block::from_raw(address, 64, |_, _| ENDED.lock().unwrap().push("memory")) };
        assert!(!block.is_reachable());
        let block = block.reachable(Keeper);
        assert!(block.is_reachable() && ENDED.lock().unwrap().is_empty());
        drop(block);
        assert_eq!(*ENDED.lock().unwrap(), ["keeper", "memory"]);
    }

    #[test]
    fn a_refusal_is_an_error_that_names_the_size() {
        let error = MmapAllocator.allocate(1 << 60).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&(1usize << 60).to_string()), "{error}");
    }
}
