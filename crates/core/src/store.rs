//! The store: all tables of one configuration and the tiers that hold them.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::device::{self, DeviceAnswer, DeviceLookup, DeviceTier};
use crate::error::{Error, ErrorKind, Result};
use crate::fetcher::Fetcher;
use crate::hot_keys;
use crate::key::{Key, TableId};
use crate::observer::Observer;
use crate::promoter::Promoter;
use crate::row::{Rows, RowsMut};
use crate::stats::{LookupCounters, LookupCounts, TableStats};
use crate::tier::{CacheTier, TableSpec, Tier, TierKind, TierUsage, TruthTier};
use crate::update_clock::UpdateClock;
use crate::walk::{Walk, out_of_range, start_gatherers};

/// A table as the caller knows it: (model, table_id). Fused tables share storage, each with its own default row.
#[derive(Debug)]
pub struct Table {
    model: String,
    table_id: usize,
    name: String,
    storage: TableId,
    dim: usize,
    default_row: Box<[u8]>,
    pub(crate) counters: LookupCounters,
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

    /// The row of a key that no tier holds.
    pub fn default_row(&self) -> &[u8] {
        &self.default_row
    }

    /// The model that it belongs to.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Its number in the model.
    pub fn table_id(&self) -> usize {
        self.table_id
    }

    /// The order of a store's tables: by model, then by table id. Their positions are the numbers that devices know them by.
    pub fn sort(tables: &mut [Self]) {
        tables.sort_by(|a, b| (&a.model, a.table_id).cmp(&(&b.model, b.table_id)));
    }

    /// Adds to an error which table it is about.
    pub(crate) fn name_in(&self, error: Error) -> Error {
        error.at("model", &self.model).at("table", &self.name)
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
    /// GPUs, each with an ordinal of its own. They know tables by the order of [`Table::sort`].
    pub devices: Vec<Arc<dyn DeviceTier>>,
    /// The most threads that gather rows which a device missed.
    pub gather_threads: usize,
}

/// All tables of one configuration. Every method may be called from any number of threads.
pub struct EmbeddingStore {
    /// By model name, then table id.
    tables: Arc<[Table]>,
    models: HashMap<String, Range<usize>>,
    specs: Vec<TableSpec>,
    walk: Arc<Walk>,
    /// One for each storage table: writes of one table reach all tiers in one order.
    writers: Vec<Mutex<()>>,
    /// None without devices. Ends before they do.
    fetcher: Option<Fetcher>,
    devices: Vec<Arc<dyn DeviceTier>>,
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
        Table::sort(&mut tables);
        let mut models: HashMap<String, Range<usize>> = HashMap::new();
        for (i, table) in tables.iter().enumerate() {
            models.entry(table.model.clone()).or_insert(i..i).end = i + 1;
        }
        let promoter = (promote_found && !tiers.caches.is_empty())
            .then(|| Promoter::start(tiers.caches.clone(), Arc::clone(&tiers.clocks), Arc::clone(&observer)))
            .transpose()?;
        let (caches, truth, clocks) = (tiers.caches, tiers.truth, tiers.clocks);
        let gatherers = if tiers.devices.is_empty() { None } else { start_gatherers(tiers.gather_threads)? };
        let walk = Arc::new(Walk { caches, truth, clocks, promoter, gatherers });
        let tables: Arc<[Table]> = tables.into();
        let fetcher = (!tiers.devices.is_empty())
            .then(|| Fetcher::start(Arc::clone(&walk), Arc::clone(&tables), observer))
            .transpose()?;
        Ok(Self {
            tables,
            models,
            writers: tiers.specs.iter().map(|_| Mutex::new(())).collect(),
            specs: tiers.specs,
            walk,
            devices: tiers.devices,
            fetcher,
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
        let walked = self.walk.lookup(table, keys, rows).map_err(|error| table.name_in(error))?;
        let counts = walked.counts;
        table.counters.add(&counts);
        Ok(counts)
    }

    /// Looks up keys that are in the memory of a GPU; the rows will be there in the order of the lookup's stream. Keys that
    /// the device does not hold are looked for by the walk, and their rows are sent after.
    ///
    /// `table` is what [`EmbeddingStore::find_table`] gave. The number of keys is at most `u32::MAX`.
    ///
    /// # Errors
    /// `InvalidArgument` if the table's model is not deployed on the device `ordinal`; `Unsupported` if the stream is being
    /// captured and the table may need the host; whatever a tier reports. After an error the rows have no meaning.
    pub fn lookup_on_device(&self, table: usize, ordinal: usize, lookup: &DeviceLookup) -> Result<()> {
        let number = table;
        let table = self.table(number)?;
        let device = self.device(table, number, ordinal)?;
        if lookup.num_keys == 0 {
            return Ok(());
        }
        let answer = device.lookup(number, lookup).map_err(|error| table.name_in(error))?;
        match answer {
            DeviceAnswer::Enqueued => Ok(()),
            DeviceAnswer::Missed(mut missed) => {
                let counts =
                    self.walk.answer(table, missed.as_mut()).map_err(|error| table.name_in(error))?;
                table.counters.add(&counts);
                Ok(())
            }
            DeviceAnswer::Later(missed, counts) => {
                table.counters.add(&counts);
                if let Some(fetcher) = &self.fetcher {
                    fetcher.offer(number, missed);
                }
                Ok(())
            }
        }
    }

    /// True if a GPU serves some table.
    pub fn has_devices(&self) -> bool {
        !self.devices.is_empty()
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &dyn DeviceTier> {
        self.devices.iter().map(Arc::as_ref)
    }

    pub(crate) fn tables(&self) -> &[Table] {
        &self.tables
    }

    pub(crate) fn walk(&self) -> &Walk {
        &self.walk
    }

    pub(crate) fn truth(&self) -> &dyn TruthTier {
        self.walk.truth.as_ref()
    }

    pub(crate) fn clock(&self, table: TableId) -> Result<&UpdateClock> {
        self.walk.clocks.get(table.index()).ok_or_else(out_of_range)
    }

    pub(crate) fn storage_name(&self, table: TableId) -> &str {
        self.specs.get(table.index()).map_or("", |spec| spec.name.as_str())
    }

    fn device(&self, table: &Table, number: usize, ordinal: usize) -> Result<&dyn DeviceTier> {
        let found = self.devices.iter().find(|device| device.ordinal() == ordinal && device.serves(number));
        found.map(Arc::as_ref).ok_or_else(|| {
            let deployed = self.devices.iter().filter(|device| device.serves(number));
            let deployed: Vec<_> = deployed.map(|device| device.ordinal()).collect();
            device::not_deployed(table.model(), ordinal, &deployed)
        })
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
        let written = self.walk.truth.insert(table, keys, rows);
        let clock = self.clock(table)?;
        clock.advance(keys);
        // What the truth holds after a failure is unknown: whatever stands above must ask it again.
        let is_written = written.is_ok();
        let written = self.write_caches(clock, keys, written, |cache| match is_written {
            false => cache.erase(table, keys),
            true => cache.update(table, keys, rows).or_else(|failure| {
                cache.erase(table, keys)?;
                Err(failure)
            }),
        });
        self.write_devices(table, written, |device| match is_written {
            false => device.forget(table, keys),
            true => device.update(table, keys, rows),
        })
    }

    /// Removes keys from all tiers. When it returns, lookups get the default row for them.
    ///
    /// # Errors
    /// As [`EmbeddingStore::insert`].
    pub fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        let _one_at_a_time = self.begin_write(table)?;
        let written = self.walk.truth.erase(table, keys);
        let clock = self.clock(table)?;
        clock.advance(keys);
        let is_written = written.is_ok();
        let written = self.write_caches(clock, keys, written, |cache| cache.erase(table, keys));
        self.write_devices(table, written, |device| match is_written {
            false => device.forget(table, keys),
            true => device.erase(table, keys),
        })
    }

    /// Follows a write of the truth up through all caches, whatever fails on the way; returns the first failure. The clock
    /// advances after each: see [`crate::update_clock`].
    fn write_caches(
        &self,
        clock: &UpdateClock,
        keys: &[Key],
        written: Result<()>,
        write: impl Fn(&dyn CacheTier) -> Result<()>,
    ) -> Result<()> {
        self.walk.caches.iter().rev().fold(written, |first, cache| {
            let written = write(cache.as_ref());
            clock.advance(keys);
            first.and(written)
        })
    }

    /// The same for all devices. Then the places of replaced rows, which devices may have been reading, are free.
    fn write_devices(
        &self,
        table: TableId,
        written: Result<()>,
        write: impl Fn(&dyn DeviceTier) -> Result<()>,
    ) -> Result<()> {
        let mut on_devices = Ok(());
        let mut may_read_old_places = false;
        for device in &self.devices {
            let written = write(device.as_ref());
            may_read_old_places |= written.is_err() && !device.is_lost();
            on_devices = on_devices.and(written);
        }
        let caches = self.walk.caches.iter().map(|cache| cache.as_ref() as &dyn Tier);
        for tier in caches.chain([self.walk.truth.as_ref() as &dyn Tier]) {
            if may_read_old_places {
                tier.abandon_replaced(table);
            } else {
                tier.reclaim(table);
            }
        }
        written.and(on_devices)
    }

    /// Waits until every row that a finished lookup offered for promotion, or left for later, was taken in or dropped.
    pub fn drain_promotions(&self) {
        // What is fetched for devices is offered to the promoter.
        if let Some(fetcher) = &self.fetcher {
            fetcher.drain();
        }
        if let Some(promoter) = &self.walk.promoter {
            promoter.drain();
        }
    }

    /// Saves which keys the upmost cache in host memory holds of each table, hottest first, for the next start. Nothing of tables that it holds
    /// whole.
    ///
    /// # Errors
    /// What a tier reports; `Storage` if a file cannot be written.
    pub fn save_hot_keys(&self, folder: &Path) -> Result<()> {
        let Some(cache) = self.walk.caches.first() else { return Ok(()) };
        for (table, spec) in (0..).map(TableId).zip(&self.specs) {
            let held = cache.usage(table)?.rows;
            if held > 0 && held < self.walk.truth.usage(table)?.rows {
                let keys = cache.hottest_keys(table)?;
                if !keys.is_empty() {
                    hot_keys::save(&hot_keys::file_of(folder, spec), &keys)?;
                }
            }
        }
        Ok(())
    }

    /// Statistics of all tables, by model name and table id.
    ///
    /// # Errors
    /// Whatever a tier reports.
    pub fn stats(&self) -> Result<Vec<TableStats>> {
        self.tables.iter().enumerate().map(|(number, table)| self.table_stats(number, table)).collect()
    }

    fn table_stats(&self, number: usize, table: &Table) -> Result<TableStats> {
        let mut usage = Vec::new();
        let mut counts = table.counters.read();
        let mut on_devices: Option<TierUsage> = None;
        for device in self.devices.iter().filter(|device| device.serves(number)) {
            counts += device.counts(number)?;
            if let Some(more) = device.usage(table.storage)? {
                let sum = on_devices.get_or_insert_default();
                sum.rows += more.rows;
                sum.bytes += more.bytes;
            }
        }
        usage.extend(on_devices.map(|sum| (TierKind::Gpu, sum)));
        for cache in &self.walk.caches {
            usage.push((cache.kind(), cache.usage(table.storage)?));
        }
        usage.push((self.walk.truth.kind(), self.walk.truth.usage(table.storage)?));
        let (promoted, promotions_dropped) =
            self.walk.promoter.as_ref().map_or((0, 0), |promoter| promoter.counts(table.storage));
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
            counts,
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
        // Before anything is touched: what was not written anywhere must not be forgotten anywhere.
        if self.walk.truth.is_read_only() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database was opened with \"read_only\": true, so rows cannot be changed: open it with \"read_only\": false in \
                 persistent_db to write",
            ));
        }
        if self.walk.truth.is_shared(table) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "another open store of this process caches this table of the same database and would keep its old rows; \
                 close it before writing",
            ));
        }
        Ok(writer.lock())
    }
}
