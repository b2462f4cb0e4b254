//! The host-memory tier: rows in memory of this process, found by hashing.
//!
//! ```text
//! HostTier          tier.rs       one entry per table; a load builds a new table beside and swaps it in
//!   Table           table.rs      partitions, each behind its own lock; writes grouped by partition (group.rs)
//!                   lookup.rs     the read path: a pipeline of prefetches over a batch
//!     Shard         shard.rs      a partition's lock; growth and eviction in bounded steps
//!     Partition     partition.rs  what one lock guards
//!       Direct      direct.rs     key -> slot for keys that lie close together: by arithmetic
//!       Index       index.rs      key -> slot for all others: bucketed cuckoo hashing, one cache line per bucket
//!       Slabs       slab.rs       slot -> row: equal rows in large blocks of the allocator
//!       Marks       marks.rs      what a policy remembers: 4 bits of each index entry
//! ```
//!
//! Invariants:
//! * A reader holds the locks of the partitions that it reads, a writer holds one partition's lock for a bounded
//!   number of keys: rows are seen whole, before or after a write. Readers lock partitions in ascending order and
//!   writers hold one lock at a time, so there is no deadlock. What goes through a whole partition (growing its index,
//!   choosing whom to evict) is done beside readers; other writers of the partition wait.
//! * Memory is taken before anything is changed: when it cannot be had, every row is as it was.
//! * A row stays in its slot until it is erased or evicted. A slot is (slab, offset) by shift and mask, and slabs lie
//!   in blocks of the allocator that was handed in, so that a GPU may read rows by itself.
//! * A table takes at most 14 bytes per row beyond the row, its 8-byte key included, from a million rows on, with up to
//!   16 partitions and rows of up to 512 bytes, whatever the policy. Hundreds of partitions, or wider rows, cost up to 2
//!   bytes more: the last slab of each partition is half empty. Keys that lie close together cost next to nothing.
//!
//! The crate knows no GPU and no disk, and starts no thread. Memory of erased rows is reused by the table, and given
//! back to the system when the table is dropped.

mod array;
mod direct;
mod group;
mod index;
mod lookup;
mod marks;
mod partition;
mod prefetch;
mod random;
mod settings;
mod shard;
mod slab;
mod table;
mod tier;

pub use hps_core::tier::EvictionPolicy;
pub use settings::HostSettings;
pub use tier::{HostTier, Place};
