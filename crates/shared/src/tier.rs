//! The tier.

use std::sync::Arc;

use hps_core::row::{check_row_bytes, check_rows};
use hps_core::tier::{
    CacheTier, Expected, Held, LoadTurn, Promotion, TableLoad, TableSpec, Tier, TierKind, TierUsage,
    TruthTier, Visitor, Written,
};
use hps_core::{Batch, Error, ErrorKind, Key, Result, Rows, RowsMut, TableId};

use crate::lock;
use crate::segment::Segment;
use crate::settings::{Role, SharedSettings};
use crate::table::Table;
use crate::version::Version;

/// Rows that a scan shows at a time.
const SCANNED_ROWS: usize = 4096;
/// Keys that are written before other processes get the lock.
const KEYS_PER_TURN: usize = 1024;

/// Host memory that several processes share.
#[derive(Debug)]
pub struct SharedTier {
    tables: Vec<Table>,
    role: Role,
    /// The right to fill; None if another process has it.
    filling: Option<lock::Held>,
    // Dropped last: whoever is the last to leave removes it.
    segment: Arc<Segment>,
}

/// The right to load tables of a segment: one process at a time.
#[derive(Debug)]
pub struct Loading {
    _turn: lock::Held,
}

impl SharedTier {
    /// Attaches to the segment that `settings` names; makes it if there is none.
    ///
    /// # Errors
    /// `InvalidArgument` if a table has rows that are not made of 4-byte elements; `Config` if the segment was made with other
    /// settings, or another process that this one cannot share a cache with fills it; `Storage`; `OutOfMemory`.
    pub fn open(settings: &SharedSettings, specs: &[TableSpec]) -> Result<Self> {
        for spec in specs {
            if spec.row_bytes == 0 || !spec.row_bytes.is_multiple_of(4) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "rows in shared memory are made of 4-byte elements, not of {} bytes",
                        spec.row_bytes
                    ),
                )
                .at("table", &spec.name));
            }
        }
        let segment = Arc::new(Segment::open(settings)?);
        let tables = specs.iter().map(|spec| Table::open(&segment, spec, settings.limit));
        let tables = tables.collect::<Result<Vec<Table>>>()?;
        let filling = if settings.role == Role::Cache { segment.filling_turn()? } else { None };
        if settings.role == Role::Cache && settings.must_fill && filling.is_none() {
            return Err(Error::new(
                ErrorKind::Config,
                "another process, or another store of this one, fills this shared memory from a database; the process that writes the database has to be the \
                 first: stop the others, or give them \"read_only\": true and start them after it",
            )
            .at("shared memory", segment.directory().display()));
        }
        if filling.is_some() {
            // Whether what another process has left is still what the database holds is not known.
            for table in &tables {
                table.clear(0).map_err(|error| error.at("table", &table.spec().name))?;
            }
        }
        Ok(Self { tables, role: settings.role, filling, segment })
    }

    /// Waits until no other process loads tables of the segment, and keeps others from it. `wait` is called once if it has to
    /// be waited for.
    ///
    /// # Errors
    /// `Storage`.
    pub fn loading(&self, wait: impl FnOnce()) -> Result<Loading> {
        let turn = self.segment.loading_turn(wait)?;
        for table in &self.tables {
            table.clear_away().map_err(|error| error.at("table", &table.spec().name))?;
        }
        Ok(Loading { _turn: turn })
    }

    fn table(&self, table: TableId) -> Result<&Table> {
        self.tables.get(table.index()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, "there is no such table").at("table id", table.0)
        })
    }

    fn with<T>(&self, table: TableId, action: impl FnOnce(&Table) -> Result<T>) -> Result<T> {
        let table = self.table(table)?;
        action(table).map_err(|error| error.at("table", &table.spec().name))
    }

    /// Calls `write` for keys and their rows, some at a time under the table's lock.
    fn write(
        &self,
        table: TableId,
        (keys, rows): (&[Key], Rows<'_>),
        makes: Option<u64>,
        mut write: impl FnMut(&mut crate::version::Writing<'_>, Key, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.with(table, |table| {
            check_rows(table.spec().row_bytes, keys, rows)?;
            let chunk_bytes = KEYS_PER_TURN * rows.row_bytes().max(1);
            for (keys, rows_bytes) in keys.chunks(KEYS_PER_TURN).zip(rows.bytes().chunks(chunk_bytes)) {
                table.write(makes, |writing| {
                    let rows = rows_bytes.chunks_exact(rows.row_bytes());
                    keys.iter().zip(rows).try_for_each(|(&key, row)| write(writing, key, row))
                })?;
            }
            Ok(())
        })
    }
}

impl Tier for SharedTier {
    fn kind(&self) -> TierKind {
        TierKind::Host
    }

    /// A key that is erased while its row is copied is a miss whose row may hold anything.
    fn lookup(
        &self,
        table: TableId,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        self.with(table, |table| {
            check_row_bytes(table.spec().row_bytes, rows.row_bytes())?;
            let num_misses = misses.len();
            while let Some(version) = table.version()? {
                match version.lookup(batch, rows, misses) {
                    Err(error) if table.is_over(&version, &error) => misses.truncate(num_misses),
                    looked_up => return looked_up,
                }
            }
            misses.extend(batch.iter().map(|(position, _)| position));
            Ok(())
        })
    }

    /// All processes see the rows when it returns.
    fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.write(table, (keys, rows), Some(keys.len() as u64), |writing, key, row| {
            writing.insert(key, row, true).map(drop)
        })
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        self.with(table, |table| {
            keys.chunks(KEYS_PER_TURN).try_for_each(|keys| {
                table.write(None, |writing| keys.iter().try_for_each(|&key| writing.erase(key)))
            })
        })
    }

    /// Exact. Bytes are those of the table's files, which exist once for all processes.
    fn usage(&self, table: TableId) -> Result<TierUsage> {
        self.with(table, |table| {
            while let Some(version) = table.version()? {
                match version.num_bytes() {
                    Err(error) if table.is_over(&version, &error) => {}
                    bytes => return Ok(TierUsage { rows: version.num_rows(), bytes: bytes? }),
                }
            }
            Ok(TierUsage::default())
        })
    }
}

impl CacheTier for SharedTier {
    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.write(table, (keys, rows), None, |writing, key, row| writing.update(key, row))
    }

    /// Nothing is taken from a process that does not fill: what it has read may be older than what others have written.
    fn promote(&self, table: TableId, promotion: Promotion<'_>) -> Result<u64> {
        let Promotion { keys, rows, clock, snapshot } = promotion;
        if !self.fills() {
            return Ok(0);
        }
        let mut added = 0;
        self.write(table, (keys, rows), Some(keys.len() as u64), |writing, key, row| {
            if clock.is_current(key, snapshot) {
                added += u64::from(writing.insert(key, row, false)?);
            }
            Ok(())
        })?;
        Ok(added)
    }

    fn reserve(&self, table: TableId, expected: Expected) -> Result<()> {
        if !self.fills() {
            return Ok(());
        }
        self.with(table, |table| {
            let is_empty = table.version()?.is_none_or(|version| version.num_rows() == 0);
            if is_empty { table.clear(expected.rows) } else { Ok(()) }
        })
    }

    fn fills(&self) -> bool {
        self.role == Role::Truth || self.filling.is_some()
    }
}

impl TruthTier for SharedTier {
    fn held(&self, table: TableId) -> Result<Held> {
        self.with(table, Table::held)
    }

    fn set_record(&self, table: TableId, record: &str) -> Result<()> {
        self.with(table, |table| table.set_record(record))
    }

    /// `Unsupported` while this process loads the table already. Other processes are kept away by [`SharedTier::loading`].
    fn begin_load(&self, table: TableId, expected: Expected) -> Result<Box<dyn TableLoad + '_>> {
        let table = self.table(table)?;
        let begin = || {
            let turn = table.loading.take_turn()?;
            table.clear_away()?;
            Ok(SharedLoad { _turn: turn, table, version: table.make_version(expected.rows)? })
        };
        let load = begin().map_err(|error: Error| error.at("table", &table.spec().name))?;
        Ok(Box::new(load))
    }

    fn scan(&self, table: TableId, visit: &mut Visitor<'_>) -> Result<()> {
        // Not `with`: a visitor's errors are its own.
        let table = self.table(table)?;
        let mut has_begun = false;
        while let Some(version) = table.version()? {
            let scanned = version.scan(SCANNED_ROWS, &mut |keys, rows| {
                has_begun = true;
                visit(keys, rows)
            });
            match scanned {
                Err(error) if !has_begun && table.is_over(&version, &error) => {}
                scanned => return scanned,
            }
        }
        Ok(())
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

/// A version that nobody sees yet.
struct SharedLoad<'t> {
    table: &'t Table,
    version: Version,
    /// Given back when the version is.
    _turn: LoadTurn<'t>,
}

impl SharedLoad<'_> {
    fn name(&self, error: Error) -> Error {
        error.at("table", &self.table.spec().name)
    }
}

impl TableLoad for SharedLoad<'_> {
    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let put = || {
            check_rows(self.table.spec().row_bytes, keys, rows)?;
            let mut writing = self.version.begin_write()?.of_a_load();
            keys.iter().zip(rows.iter()).try_for_each(|(&key, row)| writing.insert(key, row, true).map(drop))
        };
        put().map_err(|error| self.name(error))
    }

    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        self.version.lookup(batch, rows, misses).map_err(|error| self.name(error))
    }

    /// Counts evicted keys too; one that was evicted and came again counts twice.
    fn commit(self: Box<Self>, record: &str, _: Written<'_>) -> Result<u64> {
        let Self { _turn, table, version } = *self;
        let rows = version.num_rows() + version.num_evicted();
        let number = version.number;
        match table.commit(version, record) {
            Ok(()) => Ok(rows),
            Err(error) => {
                // What was made is removed by the next load.
                Err(error.at("table", &table.spec().name).at("version", number))
            }
        }
    }
}
