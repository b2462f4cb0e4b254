//! The GPU tier: embedding tables and caches in the memory of GPUs.
//!
//! ```text
//! GpuTier          tier.rs       one GPU: tables of a store, lookups in the caller's stream
//!                  changes.rs    what a write of the store means for its tables
//!   GpuTable       table.rs      a storage table there: one or two set tables, changes in one stream
//!     SetTable     set_table.rs  memory of rows in sets of 16 slots; what kernels are told of it
//!       Geometry   geometry.rs   how many sets, how tags tell keys apart           (no GPU needed)
//!     Plan         plan.rs       what a table takes, checked before it is allocated (no GPU needed)
//!   Missed         missed.rs     keys that a lookup missed, to the host and back
//!   Workspace      workspace.rs  buffers for them, pooled without limit
//!   FetchSpace     fetch.rs      where large lookups leave rows in host memory, to be read in the order of addresses
//!   Inserter       inserter.rs   the thread that takes missed rows in, behind the lookups
//!   Writer         writer.rs     all changes, in one order; rows of 8-bit floats are made there (fp8.rs)
//! kernels.rs                     which kernels there are, and how they are launched
//! driver.rs memory.rs            CUDA's driver, checked: contexts, streams, events, memory
//! images.rs abi.rs               compiled kernels; structs shared with them (cuda/include/abi.h)
//! ```
//!
//! # Layout
//!
//! ```text
//! static        first  = all rows, in GPU memory (or pinned host memory)
//! uvm           first  = a cache in GPU memory        second = all rows, in pinned host memory
//! dynamic       first  = a cache in GPU memory        second = a map of rows that the host tier holds in pinned memory;
//!                                                      keys that neither shows go to the host
//!
//! a set table   tags      [16 x u16] per set, 32 bytes: one sector, what a hit reads beside the row
//!               keys      [16 x u64] per set, only if tags cannot be exact: one more sector
//!               marks     2 bits a slot: how much a row is used
//!               versions  1 word a set, odd while a writer is at work on it
//!               writers   {begun, ended}: 1 pair for the table
//!               rows      [slot x row_bytes]
//! ```
//!
//! A key may lie in any of 32 slots, those of two sets. A hit costs 8 (key) + 32 (tags; 64 with keys) + 2 rows.
//!
//! The index of a table that is held whole takes 2.5 bytes per slot, and 5 % of the slots are left free. Dense ids could do without, but
//! then a new id beyond the largest one would find no place: as it is, ids of up to 16 times the largest can be added while the store is
//! open. What is read for it is a fourth of a row of dim 32, and stays in the second-level cache for tables of some million rows.
//!
//! A map is a set table whose rows are addresses, 8 bytes each. It takes 12.5 bytes of GPU memory per row of the host tier (22
//! with keys), a part of it for rows to come, and one more access in GPU memory for a row that the cache lacks.
//!
//! # Who may write what, and what a reader sees
//!
//! Changes of a GPU's tables are sent by one [`writer`] under one lock, to one stream: they have an order, and the rule of
//! [`hps_core::update_clock`] is kept by asking the clock under that lock. Lookups run at any time in any stream. They take no
//! lock: they look before and after whether a writer was at work on the table, and only then check set by set. So a lookup
//! returns each row whole, in the version before or after a change, never another key's. The rules for kernels stand in
//! `cuda/include/set_table.cuh`.
//!
//! Rows that a map shows belong to the host tier, which never changes a row where it lies ([`hps_core::device::ReachableRows`]):
//!
//! ```text
//! 1. the host tier writes the new row to a place of its own; CPU lookups see it, GPUs still read the old place
//! 2. on every GPU the map is changed, then the cache; the host waits for both kernels
//! 3. the old place is free. A lookup that read it meanwhile sees that a writer has begun (2), and reads again.
//! ```
//!
//! # Streams
//!
//! A lookup touches the caller's keys and rows in the caller's stream alone. If the GPU finds every row by itself (`static`, `uvm`,
//! and `dynamic` with a map of all rows), it only sends work: one kernel, and for many keys three more that read rows in host
//! memory in the order of their addresses, in a space of their own. Large lookups of tables with rows in host memory ask for all
//! they read to be evicted first from the second-level cache (`cuda/fetch.cu`). A captured lookup is one kernel and takes no
//! memory. Else it waits for one word that the kernel writes to host memory, and goes on at once if nothing was missed.

mod abi;
mod architectures;
mod changes;
mod driver;
mod fetch;
mod fp8;
mod geometry;
#[cfg(test)]
mod gpu_bench;
#[cfg(test)]
mod gpu_row_tests;
#[cfg(test)]
mod gpu_tests;
pub mod images;
mod inserter;
mod kernels;
mod memory;
mod missed;
mod plan;
mod set_table;
mod table;
mod tier;
mod workspace;
mod writer;

pub use driver::{CaptureSafe, device_count};
pub use memory::PinnedAllocator;
pub use plan::{CacheKind, Reach, TableSettings, share_for_bytes};
pub use tier::{FrontSettings, GpuTier};
