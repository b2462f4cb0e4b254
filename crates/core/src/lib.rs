//! Vocabulary, tier traits and the walk of a parameter server for embedding tables.
//!
//! ```text
//! EmbeddingStore::lookup_on_device       store.rs      keys of a GPU: the device's own rows first, its misses by the walk
//!   |-- device tier                      device.rs     DeviceTier: rows in the memory of a GPU
//!   `-- fetcher.rs                                     rows that a device wants for later
//! EmbeddingStore::lookup                 store.rs      keys of the host
//!   `-- Walk::walk                       walk.rs       the walk, one function:
//!   |-- cache tiers, fastest first       tier.rs       CacheTier: part of what is below (host memory)
//!   |-- the truth                        tier.rs       TruthTier: what it holds is the table (SSD, or host alone)
//!   |-- default row                                    for keys that are in no tier, and counted
//!   `-- promoter.rs                                    rows found below move up, unless written since
//! opening                                load.rs       model files -> truth, once; truth -> caches
//!                                        fill_devices.rs   truth -> GPUs; refresh.rs: again, while lookups go on
//! ```
//!
//! Words: a **table** is keys that share one size of rows; a **row** is the bytes of one embedding vector; a **hit**
//! is a key present in *this* tier, a **miss** one that is not, a **missing** key is in no tier. For every lookup
//! `hits of all tiers + missing == keys`.
//!
//! This crate knows no CUDA, no RocksDB, no torch. Rows are bytes; nothing here panics on the request path.

mod background;
pub mod batch;
mod checksums;
pub mod device;
pub mod error;
mod fetcher;
mod fill_devices;
pub mod hot_keys;
pub mod key;
pub mod keyed_hash;
pub mod load;
mod load_turn;
pub mod memory;
pub mod model_files;
pub mod observer;
mod promoter;
pub mod record;
mod refresh;
pub mod row;
pub mod stats;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tier;
pub mod update_clock;
pub mod verify;
mod walk;

pub use batch::Batch;
pub use error::{Error, ErrorKind, Result};
pub use key::{Key, KeyWidth, TableId};
pub use row::{Rows, RowsMut};
pub use store::EmbeddingStore;
