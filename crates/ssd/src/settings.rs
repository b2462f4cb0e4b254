//! What can be set.

use std::path::PathBuf;

/// Size of the block cache unless another is given: enough for indexes and filters of about 100 million rows, so that an
/// absent key costs no read and a present one costs a single read.
const DEFAULT_BLOCK_CACHE_BYTES: usize = 256 << 20;

/// When memtables reach it, the largest is flushed. It bounds memory whatever the number of tables, and is four full memtables of
/// RocksDB's default of 64 MiB, so that updates fill one while others are flushed.
const DEFAULT_MEMTABLE_BYTES: usize = 256 << 20;

/// Two pieces of 128 MiB: the larger they are, the fewer there are to be merged.
const DEFAULT_LOAD_BYTES: usize = 256 << 20;

/// How to open an [`SsdTier`](crate::SsdTier).
///
/// The first tier of a process that opens a database decides `num_threads`, `block_cache_bytes` and `memtable_bytes` for all that share
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SsdSettings {
    /// Directory of the database; created if it does not exist.
    pub path: PathBuf,
    /// Threads that read rows of a lookup at a time; as far as there are processors for them, threads that write a table which is loaded, and
    /// those of RocksDB, for flushes and compactions, at most four.
    pub num_threads: usize,
    /// Only read. Works while another process writes; the tier sees what was held when it opened.
    pub read_only: bool,
    /// The most keys that are handed to RocksDB at a time.
    pub max_batch_size: usize,
    /// Memory in which the rows of a load are sorted, for each that is under way.
    pub load_bytes: usize,
    /// Memory for blocks, indexes and filters of all tables together.
    pub block_cache_bytes: usize,
    /// Memory for rows that were written and not yet moved to table files, of all tables together.
    pub memtable_bytes: usize,
}

impl SsdSettings {
    /// The predecessor's defaults for a database at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            num_threads: 16,
            read_only: false,
            max_batch_size: 65_536,
            load_bytes: DEFAULT_LOAD_BYTES,
            block_cache_bytes: DEFAULT_BLOCK_CACHE_BYTES,
            memtable_bytes: DEFAULT_MEMTABLE_BYTES,
        }
    }
}
