//! The SSD tier: tables in RocksDB, on disk as the predecessor laid them out.
//!
//! ```text
//! <path>/                        one RocksDB database
//!   default                      column family that RocksDB insists on; nothing of ours
//!   hps_et.<model>.<table>       one column family per table
//!       key    4 or 8 bytes      the key, little endian (4 bytes when `supportlonglong` is false)
//!       value  row_bytes         the row as it is in memory, no header
//!   __hps_2.hps_et.<model>.<t>   the same, of a table that was replaced an odd number of times (record.rs)
//!   __hps_tables                 one record per table: which column family is active, whether it is whole
//!   anything else                other models' tables: opened, because RocksDB insists, and left alone
//! ```
//!
//! While tables are loaded, their rows are sorted in `<path>/hps_loading/`. What a load has there when its process is killed, the next
//! one of the same model files goes on with (leftovers.rs).
//!
//! A database that the predecessor wrote opens as it is; its tables have no record and are served as they are.
//! RocksDB orders keys by their bytes, so that rows come in ascending order of the *byte-swapped* key.
//!
//! **Durability.** What [`insert`](hps_core::tier::Tier::insert), [`erase`](hps_core::tier::Tier::erase) and a load's
//! commit acknowledged was synced to the disk before. A load is written beside the table that is served and switched
//! to by one synced write of the table's record; killed at any moment, the next start finds the old table or the new
//! one, whole, and removes what is left of the other (table.rs), but for the sorted rows of a load that can go on.
//!
//! **One database, many users.** Tiers of one process that name one directory share its handle. Another process can
//! only read, with `read_only`; it sees what was there when it opened (reader.rs).
//!
//! What this crate does not do: it holds no rows in memory beyond RocksDB's own caches, and it knows nothing of model
//! files or of the tiers above.
#![forbid(unsafe_code)]

mod database;
mod entry;
mod error;
mod leftovers;
mod load;
mod lock_holder;
mod lookup;
mod options;
mod reader;
mod record;
mod registry;
mod run;
mod settings;
mod sort;
mod table;
mod tier;
mod write;

pub use options::index_bytes;
pub use settings::SsdSettings;
pub use tier::{SsdTier, TableState};
