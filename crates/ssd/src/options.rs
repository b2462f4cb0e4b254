//! RocksDB's options: all that differ from its defaults, each with its reason.

use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, CompactOptions, DBCompressionType,
    IngestExternalFileOptions, LogLevel, Options, ReadOptions, WriteOptions,
};

use crate::settings::SsdSettings;

/// Table files: fewer and larger ones than the default of 64 MiB, see [`MAX_OPEN_FILES`].
pub(crate) const TABLE_FILE_BYTES: usize = 256 << 20;

/// The write-ahead log is cut when it reaches this; what a start has to replay is bounded by it.
const MAX_WAL_BYTES: u64 = 256 << 20;

/// Readers of a database that another process writes must keep every file open: a file that the writer deletes stays
/// readable only so.
const ALL_FILES_OPEN: i32 = -1;

/// Open files otherwise: below the usual limit of 1,024 per process, and with files of 256 MiB enough for 128 GiB.
const MAX_OPEN_FILES: i32 = 512;

/// Threads that compact: as many keep up with 100,000s of rows a second, and leave processors for lookups.
const MAX_BACKGROUND_THREADS: usize = 4;

const WRITEBACK_BYTES: u64 = 1 << 20;

const FILTER_BITS_PER_ROW: f64 = 10.0;

/// Half a page of the disk. Blocks lie anywhere in a file: of 4 KiB, RocksDB's default, nearly every one lies in two pages, of 2 KiB every other
/// one, and two pages take a third longer to read. Smaller blocks gain little more, and each takes its place in the index.
const BLOCK_BYTES: usize = 2048;

/// What RocksDB adds to a row in a block, key included, and what the index takes for a block; measured.
const ROW_OVERHEAD: usize = 17;
const INDEX_BYTES_PER_BLOCK: u64 = 14;

/// About what filters and indexes of so many rows take in memory: with them in the block cache, a lookup reads one block for each row.
pub fn index_bytes(row_bytes: usize, num_rows: u64) -> u64 {
    let rows_per_block = (BLOCK_BYTES / (row_bytes + ROW_OVERHEAD)).max(1) as u64;
    let filters = num_rows / 8 * FILTER_BITS_PER_ROW as u64;
    filters.saturating_add((num_rows / rows_per_block).saturating_mul(INDEX_BYTES_PER_BLOCK))
}

/// Options of a database, its block cache, and the options of its column families.
pub(crate) struct OpenOptions {
    /// For the database.
    pub(crate) database: Options,
    /// Of all of them.
    pub(crate) cache: Cache,
    /// For our tables.
    pub(crate) table: Options,
    /// For column families that this process was not asked to serve.
    pub(crate) foreign: Options,
}

/// Everything that a database is opened with.
pub(crate) fn open_options(settings: &SsdSettings) -> OpenOptions {
    // Threads that compact are no faster than the processors, but each has buffers of some MB and the allocator's memory of its own.
    let num_processors = std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = settings.num_threads.min(num_processors).clamp(1, MAX_BACKGROUND_THREADS);
    let num_threads = i32::try_from(num_threads).unwrap_or(1);

    let mut database = Options::default();
    // A new store begins with an empty directory; a read-only one never creates anything (database.rs).
    database.create_if_missing(!settings.read_only);
    // For `__hps_tables` in a database that the predecessor wrote.
    database.create_missing_column_families(!settings.read_only);
    // Flushes and compactions run beside each other; a large compaction is split over the same threads.
    database.increase_parallelism(num_threads);
    database.set_max_subcompactions(num_threads.unsigned_abs());
    // A quarter of the default, for each file that a compaction reads: an SSD is no faster with more.
    database.set_compaction_readahead_size(512 << 10);
    // Files go to the disk as they are written, not all at once when they are synced: lookups read meanwhile.
    database.set_bytes_per_sync(WRITEBACK_BYTES);
    database.set_max_open_files(if settings.read_only { ALL_FILES_OPEN } else { MAX_OPEN_FILES });
    database.set_db_write_buffer_size(settings.memtable_bytes);
    database.set_max_total_wal_size(MAX_WAL_BYTES);
    // Old files are deleted by a background thread, not by the lookup that was the last to use them.
    database.set_avoid_unnecessary_blocking_io(true);
    // RocksDB's own log: warnings only, at most five files of 1 MiB, and no periodic statistics in it.
    database.set_log_level(LogLevel::Warn);
    database.set_keep_log_file_num(5);
    database.set_max_log_file_size(1 << 20);
    database.set_stats_dump_period_sec(0);
    database.set_stats_persist_period_sec(0);

    // Lock-free, unlike the default LRU cache: all threads of all lookups go through it.
    let cache = Cache::new_hyper_clock_cache(settings.block_cache_bytes, 0);
    let mut table = Options::default();
    table.set_block_based_table_factory(&block_options(&cache));
    // Rows of floats hardly compress, and a lookup would have to unpack a block for each row.
    table.set_compression_type(DBCompressionType::None);
    // The first level then holds four of them.
    table.set_target_file_size_base(TABLE_FILE_BYTES as u64);
    table.set_max_bytes_for_level_base(1 << 30);
    // A whole-key bloom filter on 2 % of the memtable, as the predecessor has: most keys of a batch are not in it.
    table.set_memtable_prefix_bloom_ratio(0.02);
    table.set_memtable_whole_key_filtering(true);
    // Keys of a lookup are sorted, so that pieces of an index seem to be read from end to end: a seventh of all bytes from a cold disk were
    // read ahead (dim 32, 4,096 keys). Scans say what they want (scan_options). The crate has no call for this option.
    if let Ok(options) =
        table.get_options_from_string("block_based_table_factory={max_auto_readahead_size=0;}")
    {
        table = options;
    }

    let mut foreign = table.clone();
    // Left as they are: not even rewritten in the background.
    foreign.set_disable_auto_compactions(true);

    OpenOptions { database, cache, table, foreign }
}

fn block_options(cache: &Cache) -> BlockBasedOptions {
    let mut options = BlockBasedOptions::default();
    options.set_block_size(BLOCK_BYTES);
    // Index and filter in pieces of a page, each of which is cached by itself. In one piece, the filter of a file is up to 5 MB: a table whose
    // filters exceed the cache would read that for a row, and memory of such sizes, taken and given back, is what allocators keep most of.
    options.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    options.set_partition_filters(true);
    options.set_metadata_block_size(4096);
    // Entries of the index are cut to what differs from the one before, which halves it; looking for a key takes a few steps more.
    options.set_index_block_restart_interval(16);
    options.set_block_cache(cache);
    // 10 bits per key: 1 % of absent keys cost a read.
    options.set_bloom_filter(FILTER_BITS_PER_ROW, false);
    // Indexes and filters count towards the cache, so that memory is bounded by its size however large the tables
    // are; they go last, and those of the newest files, which every lookup asks, never.
    options.set_cache_index_and_filter_blocks(true);
    options.set_cache_index_and_filter_blocks_with_high_priority(true);
    options.set_pin_l0_filter_and_index_blocks_in_cache(true);
    options
}

/// For lookups: checksums are verified (the default); blocks stay in the cache.
///
/// Measured and not done (docs/benchmarks.md): direct reads are up to a fifth faster where nothing is in the page cache, but make no use
/// of it; blocks of 4 KiB aligned to pages are up to a sixth faster, but take 4 % more disk of rows of dim 32. RocksDB asks for many blocks at a time where it was
/// built with io_uring (feature `io-uring`), which is a third to two thirds faster.
pub(crate) fn lookup_options() -> ReadOptions {
    ReadOptions::default()
}

/// For reading a table from end to end: large sequential reads, and nothing that lookups want is pushed out of the
/// cache.
pub(crate) fn scan_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_readahead_size(2 << 20);
    options.fill_cache(false);
    options
}

/// For the files of a load, which lie in the database's file system already.
pub(crate) fn ingest_options(moves: bool) -> IngestExternalFileOptions {
    let mut options = IngestExternalFileOptions::default();
    options.set_move_files(moves);
    options
}

/// Of a table while it is loaded: files that come in several parts overlap, and RocksDB would stop the writes of all tables until it has
/// compacted them, over and over.
pub(crate) fn loading_options(table: &Options) -> Options {
    let mut options = table.clone();
    options.set_disable_auto_compactions(true);
    options.set_level_zero_slowdown_writes_trigger(i32::MAX);
    options.set_level_zero_stop_writes_trigger(i32::MAX);
    options
}

/// What undoes [`loading_options`]: RocksDB's defaults.
pub(crate) const LOADED: [(&str, &str); 3] = [
    ("level0_slowdown_writes_trigger", "20"),
    ("level0_stop_writes_trigger", "36"),
    ("disable_auto_compactions", "false"),
];

/// Makes a load that came in several parts one sorted run at the lowest level.
pub(crate) fn compact_options() -> CompactOptions {
    let mut options = CompactOptions::default();
    // Other tables keep being compacted meanwhile.
    options.set_exclusive_manual_compaction(false);
    options
}

/// When a write is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// When the write returns.
    Synced,
    /// With the next synced write.
    Logged,
}

/// Options of one write.
pub(crate) fn write_options(durability: Durability) -> WriteOptions {
    let mut options = WriteOptions::default();
    match durability {
        Durability::Synced => options.set_sync(true),
        Durability::Logged => {}
    }
    options
}
