//! Host memory that several processes share: one of them loads a table, all read the same copy.
//!
//! ```text
//! /dev/shm/<shared_memory_name>.hps/       segment.rs   a directory; the system keeps it in memory
//!   lock                                   lock.rs      byte ranges, given back by the system when their holder dies
//!   settings                                            what all processes have to agree on
//!   <table>.served                         table.rs     one word: which version of a table is served
//!   <table>.<version>.info                              what that version is: sizes, where it came from
//!   <table>.<version>.<n>                  extent.rs    its n-th piece: index and rows
//! ```
//! `<table>` is the XXH3 of the table's storage name.
//!
//! ```text
//! extent: | header | bucket 0, 1, ... (128 bytes) | freed slots | row of slot 0, 1, ... |
//! bucket: | key 0 .. key 7 | word 0 .. word 7 |          a key lies in one of its two buckets, and never moves
//! word:   | slot + 1 (32 bits, 0: no row) | version (22 bits) | mark (10 bits) |
//! ```
//!
//! **Readers take no lock.** A row is never changed where it lies: a new one is written to a free slot, then the key's word is
//! replaced. A reader copies the row that the word names and looks at the word again: unchanged, the row was the key's all the
//! time; changed, it tries again. So it sees each row whole, in the version before or after a write.
//!
//! **Any process may be killed at any time.** Writers of a table hold its lock, which ends with them. Whoever finds that
//! the last one did not come to its end (`is_dirty`) counts rows and free slots anew: nothing else can be half done, as a row
//! appears and disappears with one word. A load writes files of their own, which count from the store of one word on (`<table>.served`);
//! what a killed load leaves is removed by the next one. Replaced files live on until no process maps them.
//!
//! **The last process that leaves removes the directory** (`auto_remove`). If it is killed instead, the directory stays and the next
//! process finds the tables loaded.
//!
//! Memory is taken when a table is made, never by a touch: the system could only kill the process then.

mod extent;
mod lock;
mod map;
mod policy;
mod segment;
mod settings;
mod table;
mod tier;
mod version;

pub use hps_core::tier::EvictionPolicy;
pub use settings::{Limit, Role, SharedSettings};
pub use tier::{Loading, SharedTier};
