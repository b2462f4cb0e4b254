//! The SSD tier.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use hps_core::batch::Batch;
use hps_core::key::{Key, TableId};
use hps_core::row::{Rows, RowsMut};
use hps_core::tier::{Expected, Held, TableLoad, TableSpec, Tier, TierKind, TierUsage, TruthTier, Visitor};
use hps_core::{Error, ErrorKind, Result};
use rocksdb::properties;

use crate::database::Database;
use crate::entry::{read_key, wrong_key, wrong_row};
use crate::error::{read_only, table_storage};
use crate::load::{LoadSettings, SsdLoad};
use crate::lookup::{Reader, check_row_bytes};
use crate::options::{Durability, compact_options, scan_options};
use crate::record::OUR_PREFIX;
use crate::settings::SsdSettings;
use crate::table::Table;
use crate::write::{Writer, check_rows};

/// Bytes of rows that a scan shows at a time, and the most rows.
const SCAN_BYTES: usize = 1 << 20;
const SCAN_ROWS: usize = 8192;

/// What is on disk of a table.
#[derive(Clone, Debug)]
pub struct TableState {
    /// What it is.
    pub held: Held,
    /// As [`Tier::usage`] has it.
    pub usage: TierUsage,
    /// Rows, exactly, if the table was not written since they were counted.
    pub counted_rows: Option<u64>,
    /// Column family that is served.
    pub column_family: Option<String>,
    /// A load has begun and neither ended nor been cleared away.
    pub is_being_loaded: bool,
}

/// Tables on an SSD, through RocksDB.
pub struct SsdTier {
    database: Arc<Database>,
    tables: Vec<Arc<Table>>,
    reader: Reader,
    max_batch_size: usize,
    loads: LoadSettings,
    is_read_only: bool,
}

impl SsdTier {
    /// Opens the database at `settings.path`, or the handle that this process has on it already, and makes a new one
    /// where there is none. What an interrupted load left of these tables is never served; its sorted rows stay for a load that goes on
    /// ([`TableLoad::resume`]). Other tables are left alone.
    ///
    /// # Errors
    /// `Config` if the path is a file, or stored keys or rows have other sizes than `tables` says; `InvalidArgument`
    /// if names repeat or cannot be stored; `NotFound` if there is no database to read; `Storage` if another process
    /// has it open for writing, or it cannot be read or written; `Corrupt`.
    pub fn open(settings: SsdSettings, tables: &[TableSpec]) -> Result<Self> {
        check_specs(tables)?;
        let database = Database::open(&settings, tables)?;
        let tables = tables.iter().map(|spec| database.table(spec)).collect::<Result<_>>()?;
        Ok(Self {
            database,
            tables,
            reader: Reader::new(settings.max_batch_size, settings.num_threads),
            max_batch_size: settings.max_batch_size.max(1),
            loads: LoadSettings {
                num_threads: std::thread::available_parallelism()
                    .map_or(1, usize::from)
                    .min(settings.num_threads),
                memory_bytes: settings.load_bytes,
            },
            is_read_only: settings.read_only,
        })
    }

    fn table(&self, table: TableId) -> Result<&Table> {
        self.tables.get(table.index()).map(Arc::as_ref).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "there is no such table")
                .at("table id", table.0)
                .at("tables", self.tables.len())
                .at("database", self.database.path().display())
        })
    }

    fn writable_table(&self, table: TableId, what: &str) -> Result<&Table> {
        let table = self.table(table)?;
        if self.is_read_only {
            return Err(read_only(what, self.database.path()).at("table", &table.spec().name));
        }
        Ok(table)
    }

    /// Writes to the rows that are served, on the disk when it returns.
    fn write(&self, table: &Table, write: impl FnOnce(&Writer<'_, '_>) -> Result<()>) -> Result<()> {
        let (_in_place, column_family) = table.begin_write(&self.database)?;
        write(&Writer {
            database: &self.database,
            table,
            column_family: &column_family,
            max_batch_size: self.max_batch_size,
            durability: Durability::Synced,
        })
    }

    /// Changes the size of the block cache, unless other tiers share the database: the first one decides for all.
    pub fn set_block_cache_bytes(&self, bytes: usize) {
        if Arc::strong_count(&self.database) == 1 {
            self.database.set_block_cache_bytes(bytes);
        }
    }

    /// What is on disk of a table.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown, `Storage` if the database cannot be read.
    pub fn state(&self, table: TableId) -> Result<TableState> {
        let record = self.table(table)?.record();
        Ok(TableState {
            held: self.held(table)?,
            usage: self.usage(table)?,
            counted_rows: record.rows.exact(),
            column_family: record.active,
            is_being_loaded: record.loading.is_some(),
        })
    }

    /// Column families of the database that belong to none of the tables that this process has opened.
    ///
    /// # Errors
    /// `Storage` if the database cannot be read.
    pub fn other_column_families(&self) -> Result<Vec<String>> {
        self.database.other_column_families()
    }

    /// Bytes that interrupted loads of other tables than those that this process has opened have left on disk.
    pub fn other_load_bytes(&self) -> u64 {
        self.database.other_load_bytes()
    }

    /// Makes a table one sorted run again, which is what lookups read fastest. Other tables, and lookups and updates of this one, go on
    /// meanwhile. Takes up to the table's size of disk space until it ends.
    ///
    /// # Errors
    /// `Unsupported` if the tier was opened read-only; `Storage`.
    pub fn compact(&self, table: TableId) -> Result<()> {
        let table = self.writable_table(table, "compact a table")?;
        let Some(active) = table.active(&self.database)? else { return Ok(()) };
        let failed = |error| {
            table_storage("cannot compact the table", self.database.path(), &table.spec().name, error)
        };
        self.database.db().flush_cf(&active).map_err(failed)?;
        let errors = || table.property(&self.database, &active, properties::BACKGROUND_ERRORS);
        let before = errors()?;
        self.database.db().compact_range_cf_opt(&active, None::<&[u8]>, None::<&[u8]>, &compact_options());
        // RocksDB's interface for C returns nothing.
        match errors()?.saturating_sub(before) {
            0 => Ok(()),
            errors => Err(Error::new(
                ErrorKind::Storage,
                "RocksDB could not compact the table; its file LOG says why (a full disk?)",
            )
            .at("table", &table.spec().name)
            .at("background errors", errors)
            .at("database", self.database.path().display())),
        }
    }
}

fn check_specs(tables: &[TableSpec]) -> Result<()> {
    let mut names = HashSet::new();
    for spec in tables {
        let name = spec.name.as_str();
        let is_reserved = name == rocksdb::DEFAULT_COLUMN_FAMILY_NAME || name.starts_with(OUR_PREFIX);
        let problem = if name.is_empty() || name.contains('\0') || is_reserved {
            "a table cannot be stored under this name"
        } else if !names.insert(name) {
            "two tables have the same name"
        } else if spec.row_bytes == 0 {
            "a table has rows of 0 bytes"
        } else {
            continue;
        };
        return Err(Error::new(ErrorKind::InvalidArgument, problem).at("table", name.escape_default()));
    }
    Ok(())
}

impl Tier for SsdTier {
    fn kind(&self) -> TierKind {
        TierKind::Ssd
    }

    fn lookup(
        &self,
        table: TableId,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let table = self.table(table)?;
        match table.active(&self.database)? {
            Some(active) => self.reader.lookup(&self.database, table, &active, batch, rows, misses),
            None => {
                check_row_bytes(table, rows.row_bytes())?;
                misses.extend(batch.iter().map(|(position, _)| position));
                Ok(())
            }
        }
    }

    /// The rows are on the disk when it returns. Inserted while the table is being loaded, they go to the rows that
    /// are served and are replaced with them; whoever updates a table during a load gives the load the updates too.
    fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let table = self.writable_table(table, "insert rows")?;
        check_rows(table, keys, rows)?;
        if keys.is_empty() {
            return Ok(());
        }
        self.write(table, |writer| writer.put(keys, rows))
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        let table = self.writable_table(table, "erase rows")?;
        // What holds nothing need not be made to hold nothing.
        if keys.is_empty() || table.active(&self.database)?.is_none() {
            return Ok(());
        }
        self.write(table, |writer| writer.delete(keys))
    }

    /// `rows` is exact for a table that was loaded and not written since. Otherwise it is RocksDB's estimate: exact
    /// as long as new keys were inserted and present ones erased, and, where keys were overwritten or absent ones
    /// erased, off by their number until RocksDB compacts them away. `bytes` are those of table files and memtables.
    fn usage(&self, table: TableId) -> Result<TierUsage> {
        let table = self.table(table)?;
        let counted = table.record().rows.exact();
        let Some(active) = table.active(&self.database)? else {
            return Ok(TierUsage::default());
        };
        let rows = match counted {
            Some(rows) => rows,
            None => table.property(&self.database, &active, properties::ESTIMATE_NUM_KEYS)?,
        };
        Ok(TierUsage { rows, bytes: table.bytes(&self.database)? })
    }
}

impl TruthTier for SsdTier {
    fn held(&self, table: TableId) -> Result<Held> {
        self.table(table)?.held(&self.database)
    }

    fn forget_interrupted_load(&self, table: TableId) -> Result<()> {
        self.writable_table(table, "forget a load")?.forget_interrupted(&self.database)
    }

    fn set_record(&self, table: TableId, record: &str) -> Result<()> {
        self.writable_table(table, "record a table's source")?.set_record(&self.database, record)
    }

    /// Loads of different tables may run at once, each with `load_bytes` of memory for rows, and at the end up to 80 MB for each of up to
    /// eight threads. The rows take their place on disk beside the old ones until the commit, and up to twice it while the commit
    /// merges what it has sorted (sort.rs).
    fn begin_load(&self, table: TableId, _expected: Expected) -> Result<Box<dyn TableLoad + '_>> {
        let table = self.writable_table(table, "load a table")?;
        let (turn, name) = table.begin_load(&self.database)?;
        Ok(Box::new(SsdLoad::new(&self.database, table, &self.reader, self.loads, turn, name)))
    }

    /// The number that a load noted, or a scan of the keys, which is noted for estimates.
    fn count_rows(&self, table: TableId) -> Result<u64> {
        let counted = self.table(table)?;
        if let Some(rows) = counted.record().rows.exact() {
            return Ok(rows);
        }
        let mut rows = 0;
        self.scan(table, &mut |keys, _| {
            rows += keys.len() as u64;
            Ok(ControlFlow::Continue(()))
        })?;
        if !self.is_read_only {
            counted.note_count(&self.database, rows);
        }
        Ok(rows)
    }

    /// The number when they were last counted, unless the table's size has changed by more than a fifth since. RocksDB's estimate where a
    /// count could not be noted.
    fn estimate_rows(&self, id: TableId) -> Result<Option<u64>> {
        let table = self.table(id)?;
        let record = table.record();
        match record.rows.estimate(table.bytes(&self.database)?) {
            None if self.is_read_only || record.held == Held::Unrecorded => Ok(Some(self.usage(id)?.rows)),
            estimate => Ok(estimate),
        }
    }

    fn is_shared(&self, table: TableId) -> bool {
        // One reference is ours, one the database's own.
        self.tables.get(table.index()).is_some_and(|table| Arc::strong_count(table) > 2)
    }

    /// In ascending order of the stored keys' bytes; shows the rows of one moment, also if the table is replaced
    /// meanwhile.
    fn scan(&self, table: TableId, visit: &mut Visitor<'_>) -> Result<()> {
        let table = self.table(table)?;
        let Some(active) = table.active(&self.database)? else {
            return Ok(());
        };
        let spec = table.spec();
        let rows_at_a_time = (SCAN_BYTES / spec.row_bytes).clamp(1, SCAN_ROWS);
        let in_database = |error: Error| error.at("database", self.database.path().display());
        let mut show = |keys: &[Key], bytes: &[u8]| match Rows::new(bytes, spec.row_bytes) {
            Some(rows) if !rows.is_empty() => visit(keys, rows),
            _ => Ok(ControlFlow::Continue(())),
        };

        let mut entries = self.database.db().raw_iterator_cf_opt(&active, scan_options());
        let (mut keys, mut bytes) = (Vec::new(), Vec::new());
        entries.seek_to_first();
        while let Some((key, row)) = entries.item() {
            let key = read_key(key, spec.key_width).ok_or_else(|| in_database(wrong_key(spec, key.len())))?;
            if row.len() != spec.row_bytes {
                return Err(in_database(wrong_row(spec, key, row.len())));
            }
            keys.push(key);
            bytes.extend_from_slice(row);
            if keys.len() == rows_at_a_time {
                if show(&keys, &bytes)?.is_break() {
                    return Ok(());
                }
                keys.clear();
                bytes.clear();
            }
            entries.next();
        }
        table.read_ok(&self.database, entries.status())?;
        show(&keys, &bytes).map(drop)
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }
}
