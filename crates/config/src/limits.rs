//! Upper ends of ranges that several sections share. They are far above anything sensible: they catch slips, and
//! keep the arithmetic of those who use the values from overflowing.

/// Keys or samples in one batch.
pub(crate) const MAX_BATCH: u64 = (1 << 31) - 1;

/// Bytes of memory: 256 TiB, the address space of a process.
pub(crate) const MAX_BYTES: u64 = 1 << 48;

/// Threads, workers or buffers.
pub(crate) const MAX_THREADS: u64 = 65536;
