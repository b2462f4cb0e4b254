//! The store: all tables of one configuration and the tiers that hold them. [`EmbeddingStore::lookup`] is the walk.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::batch::{Batch, MAX_BATCH_KEYS};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId};
use crate::observer::Observer;
use crate::promoter::{Found, PIECE_BYTES, Promoter};
use crate::row::{Rows, RowsMut};
use crate::stats::{LookupCounters, LookupCounts, TableStats};
use crate::tier::{CacheTier, TableSpec, TruthTier};
use crate::update_clock::{ClockSnapshot, UpdateClock};

/// A table as the caller knows it: (model, table_id). Fused tables share storage, each with its own default row.
#[derive(Debug)]
pub struct Table {
    model: String,
    table_id: usize,
    name: String,
    storage: TableId,
    dim: usize,
    default_row: Box<[u8]>,
    counters: LookupCounters,
}

impl Table {
    /// A table whose rows are `dim` float32 and whose missing keys get a row of `default_value`.
    pub fn new(
        model: impl Into<String>,
        table_id: usize,
        name: impl Into<String>,
        storage: TableId,
        dim: usize,
        default_value: f32,
    ) -> Self {
        Self {
            model: model.into(),
            table_id,
            name: name.into(),
            storage,
            dim,
            default_row: default_value.to_le_bytes().repeat(dim).into(),
            counters: LookupCounters::default(),
        }
    }

    /// float32 elements of a row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.default_row.len()
    }

    /// Where its rows are stored.
    pub fn storage(&self) -> TableId {
        self.storage
    }
}

/// The tiers of a store, as opened by whoever assembles it.
pub struct Tiers {
    /// Storage tables; every tier was opened with this list.
    pub specs: Vec<TableSpec>,
    /// What stands above the truth, fastest first.
    pub caches: Vec<Arc<dyn CacheTier>>,
    /// The lowest tier.
    pub truth: Arc<dyn TruthTier>,
    /// One clock for each storage table.
    pub clocks: Arc<[UpdateClock]>,
}

/// All tables of one configuration. Every method may be called from any number of threads.
pub struct EmbeddingStore {
    /// By model name, then table id.
    tables: Vec<Table>,
    models: HashMap<String, Range<usize>>,
    specs: Vec<TableSpec>,
    caches: Vec<Arc<dyn CacheTier>>,
    truth: Arc<dyn TruthTier>,
    clocks: Arc<[UpdateClock]>,
    /// One for each storage table: writes of one table reach all tiers in one order.
    writers: Vec<Mutex<()>>,
    /// None if rows found below are not carried up.
    promoter: Option<Promoter>,
}

impl EmbeddingStore {
    /// A store over opened and loaded tiers. With `promote_found`, rows that lookups find below a cache tier are
    /// carried up in the background.
    ///
    /// # Errors
    /// `OutOfMemory` if the thread for that cannot be started.
    pub fn new(
        mut tables: Vec<Table>,
        tiers: Tiers,
        promote_found: bool,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        tables.sort_by(|a, b| (&a.model, a.table_id).cmp(&(&b.model, b.table_id)));
        let mut models: HashMap<String, Range<usize>> = HashMap::new();
        for (i, table) in tables.iter().enumerate() {
            models.entry(table.model.clone()).or_insert(i..i).end = i + 1;
        }
        let promoter = (promote_found && !tiers.caches.is_empty())
            .then(|| Promoter::start(tiers.caches.clone(), Arc::clone(&tiers.clocks), observer))
            .transpose()?;
        Ok(Self {
            tables,
            models,
            writers: tiers.specs.iter().map(|_| Mutex::new(())).collect(),
            specs: tiers.specs,
            caches: tiers.caches,
            truth: tiers.truth,
            clocks: tiers.clocks,
            promoter,
        })
    }

    /// Finds a table; the result is for [`EmbeddingStore::table`].
    ///
    /// # Errors
    /// `InvalidArgument`, saying which models or table ids there are.
    pub fn find_table(&self, model: &str, table_id: i64) -> Result<usize> {
        let Some(range) = self.models.get(model) else {
            let mut names: Vec<_> = self.models.keys().map(|name| format!("\"{name}\"")).collect();
            names.sort();
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("there is no model \"{model}\"; the models are {}", names.join(", ")),
            ));
        };
        let index = usize::try_from(table_id).ok().and_then(|id| range.start.checked_add(id));
        index.filter(|index| range.contains(index)).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "model \"{model}\" has no table_id {table_id}; its {} tables are numbered from 0 to {}",
                    range.len(),
                    range.len().saturating_sub(1)
                ),
            )
        })
    }

    /// A table that was found.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that [`EmbeddingStore::find_table`] did not give.
    pub fn table(&self, index: usize) -> Result<&Table> {
        self.tables.get(index).ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "there is no such table"))
    }

    /// Writes the row of each of `keys` to the same position of `rows`: from the fastest tier that holds it, else
    /// the table's default row. Keys may repeat. Returns where they were found.
    ///
    /// # Errors
    /// `InvalidArgument` if `rows` does not have one row of the table's size for each key; whatever a tier reports.
    /// After an error the contents of `rows` have no meaning.
    pub fn lookup(&self, table: &Table, keys: &[Key], rows: &mut RowsMut<'_>) -> Result<LookupCounts> {
        if rows.len() != keys.len() || (rows.row_bytes() != table.row_bytes() && !keys.is_empty()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "found room for {} rows of {} bytes, expected {} rows of {} bytes",
                    rows.len(),
                    rows.row_bytes(),
                    keys.len(),
                    table.row_bytes()
                ),
            ));
        }
        let mut counts = LookupCounts::default();
        for (i, keys) in keys.chunks(MAX_BATCH_KEYS).enumerate() {
            let start = i * MAX_BATCH_KEYS;
            let mut rows = rows.slice(start, start + keys.len()).ok_or_else(out_of_range)?;
            counts += self
                .walk(table, keys, &mut rows)
                .map_err(|error| error.at("model", &table.model).at("table", &table.name))?;
        }
        table.counters.add(&counts);
        Ok(counts)
    }

    /// The walk: each tier is asked for what the one above it missed.
    fn walk(&self, table: &Table, keys: &[Key], rows: &mut RowsMut<'_>) -> Result<LookupCounts> {
        let mut counts = LookupCounts::default();
        let mut missed: Vec<Vec<u32>> = Vec::with_capacity(self.caches.len());
        let mut snapshot = None;

        for cache in &self.caches {
            let asked = missed.last().map_or(Batch::all(keys), |missed| Batch::at(keys, missed));
            let mut misses = Vec::new();
            cache.lookup(table.storage, asked, rows, &mut misses)?;
            counts.add_hits(cache.kind(), asked.len() - misses.len());
            if misses.is_empty() {
                self.promote_found(table, keys, rows, &missed, &[], snapshot);
                return Ok(counts);
            }
            if self.promoter.is_some() && snapshot.is_none() {
                // Before anything is read below: see update_clock.rs.
                snapshot = self.clocks.get(table.storage.index()).map(UpdateClock::snapshot);
            }
            missed.push(misses);
        }

        let asked = missed.last().map_or(Batch::all(keys), |missed| Batch::at(keys, missed));
        let mut missing = Vec::new();
        self.truth.lookup(table.storage, asked, rows, &mut missing)?;
        counts.add_hits(self.truth.kind(), asked.len() - missing.len());

        for &position in &missing {
            if !rows.write(position as usize, &table.default_row) {
                return Err(out_of_range());
            }
        }
        counts.missing = missing.len() as u64;
        self.promote_found(table, keys, rows, &missed, &missing, snapshot);
        Ok(counts)
    }

    /// Offers each cache tier what it missed and a lower tier had; never default rows.
    fn promote_found(
        &self,
        table: &Table,
        keys: &[Key],
        rows: &RowsMut<'_>,
        missed: &[Vec<u32>],
        missing: &[u32],
        snapshot: Option<ClockSnapshot>,
    ) {
        let (Some(promoter), Some(snapshot)) = (&self.promoter, snapshot) else { return };
        let snapshot = Arc::new(snapshot);
        let row_bytes = table.row_bytes();
        let missing_len = missing.len();
        let rows = rows.as_rows();
        for (cache, missed) in missed.iter().enumerate() {
            // Both lists ascend.
            let mut missing = missing.iter().copied().peekable();
            let mut found = missed.iter().filter(|&&position| missing.next_if_eq(&position).is_none());
            let mut left = missed.len().saturating_sub(missing_len);
            while left > 0 {
                let num_rows = left.min((PIECE_BYTES / row_bytes).max(1));
                let piece = if promoter.has_room(num_rows, row_bytes) {
                    Found::with_capacity(table.storage, cache, row_bytes, &snapshot, num_rows)
                } else {
                    None
                };
                let Some(mut piece) = piece else {
                    promoter.drop_rows(table.storage, left);
                    break;
                };
                for &position in found.by_ref().take(num_rows) {
                    if let (Some(key), Some(row)) = (keys.get(position as usize), rows.get(position as usize))
                    {
                        piece.keys.push(*key);
                        piece.rows.extend_from_slice(row);
                    }
                }
                promoter.offer(piece);
                left -= num_rows;
            }
        }
    }

    /// Writes rows, new or not, to the truth and overwrites them wherever they are cached. When it returns, no
    /// lookup sees the old rows any more. Of a repeated key the last row wins.
    ///
    /// # Errors
    /// `InvalidArgument` for sizes that do not fit; `Unsupported` if another open store serves the table from the same
    /// database; whatever a tier reports. After an error some keys may have been written in the truth; the caches
    /// hold nothing else than the truth does.
    pub fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let _one_at_a_time = self.begin_write(table)?;
        let written = self.truth.insert(table, keys, rows);
        self.advance(table, keys)?;
        self.write_caches(written, |cache, written| match written {
            // What the truth holds after a failure is unknown: the caches must ask it again.
            false => cache.erase(table, keys),
            true => cache.update(table, keys, rows).or_else(|failure| {
                cache.erase(table, keys)?;
                Err(failure)
            }),
        })
    }

    /// Removes keys from all tiers. When it returns, lookups get the default row for them.
    ///
    /// # Errors
    /// As [`EmbeddingStore::insert`].
    pub fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        let _one_at_a_time = self.begin_write(table)?;
        let written = self.truth.erase(table, keys);
        self.advance(table, keys)?;
        self.write_caches(written, |cache, _| cache.erase(table, keys))
    }

    /// Follows a write of the truth up through all caches, whatever fails on the way; returns the first failure.
    fn write_caches(
        &self,
        written: Result<()>,
        write: impl Fn(&dyn CacheTier, bool) -> Result<()>,
    ) -> Result<()> {
        let is_written = written.is_ok();
        self.caches.iter().rev().fold(written, |first, cache| first.and(write(cache.as_ref(), is_written)))
    }

    /// Waits until every row that a finished lookup offered for promotion was promoted or dropped.
    pub fn drain_promotions(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.drain();
        }
    }

    /// Statistics of all tables, by model name and table id.
    ///
    /// # Errors
    /// Whatever a tier reports.
    pub fn stats(&self) -> Result<Vec<TableStats>> {
        self.tables.iter().map(|table| self.table_stats(table)).collect()
    }

    fn table_stats(&self, table: &Table) -> Result<TableStats> {
        let mut usage = Vec::new();
        for cache in &self.caches {
            usage.push((cache.kind(), cache.usage(table.storage)?));
        }
        usage.push((self.truth.kind(), self.truth.usage(table.storage)?));
        let (promoted, promotions_dropped) =
            self.promoter.as_ref().map_or((0, 0), |promoter| promoter.counts(table.storage));
        Ok(TableStats {
            model: table.model.clone(),
            table_id: table.table_id,
            name: table.name.clone(),
            storage_name: self
                .specs
                .get(table.storage.index())
                .map(|spec| spec.name.clone())
                .unwrap_or_default(),
            dim: table.dim,
            counts: table.counters.read(),
            promoted,
            promotions_dropped,
            usage,
        })
    }

    /// Lets one writer of a table go on.
    fn begin_write(&self, table: TableId) -> Result<MutexGuard<'_, ()>> {
        let writer = self.writers.get(table.index()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("there is no storage table {}", table.index()))
        })?;
        if self.truth.is_shared(table) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "another open store of this process caches this table of the same database and would keep its old rows; \
                 close it before writing",
            ));
        }
        Ok(writer.lock())
    }

    fn advance(&self, table: TableId, keys: &[Key]) -> Result<()> {
        self.clocks.get(table.index()).ok_or_else(out_of_range)?.advance(keys);
        Ok(())
    }
}

fn out_of_range() -> Error {
    Error::new(ErrorKind::Internal, "a tier reported a position outside the batch")
}
