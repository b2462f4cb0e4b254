//! The tier itself: a table for each name, and loads that replace one whole.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hps_core::device::{AddressVisitor, ReachableRows};
use hps_core::memory::BlockAllocator;
use hps_core::tier::{
    CacheTier, Expected, Held, LoadFlag, LoadTurn, Promotion, TableLoad, TableSpec, Tier, TierKind,
    TierUsage, TruthTier, Visitor, Written,
};
use hps_core::{Batch, Error, ErrorKind, Key, Result, Rows, RowsMut, TableId};
use parking_lot::Mutex;

use crate::settings::{HostSettings, Limit};
use crate::slab::MIN_ROW_BYTES;
use crate::table::Table;

/// Tables in host memory of this process.
///
/// As a cache tier it holds part of what is below. As the truth it holds tables whole, from the commit of their load to
/// the end of the process; a limit in its settings then drops rows for good.
///
/// A write that runs while a load is committed counts as done before the commit: its row goes with the old table.
#[derive(Debug)]
pub struct HostTier {
    entries: Vec<Entry>,
    settings: HostSettings,
}

/// Where the rows of a table lie.
#[derive(Clone, Debug)]
pub struct Place {
    /// Gives the memory.
    pub allocator: Arc<dyn BlockAllocator>,
    /// Devices read rows by themselves where that memory allows it: see [`HostSettings::serves_devices`].
    pub serves_devices: bool,
    /// Rows that the table may hold, in place of the settings' `overflow_margin` for each partition; None: as they say.
    pub max_rows: Option<u64>,
}

#[derive(Debug)]
struct Entry {
    spec: TableSpec,
    place: Place,
    table: ArcSwap<Table>,
    /// Of the load that made the table whole. Locked while a commit switches tables.
    record: Mutex<Option<String>>,
    loading: LoadFlag,
}

impl HostTier {
    /// Opens the tier with empty tables. They take next to no memory until rows come; rows lie in blocks of `allocator`.
    ///
    /// # Errors
    /// `InvalidArgument` if a setting is out of range or a table has rows of less than 4 bytes; `OutOfMemory`.
    pub fn open(
        settings: HostSettings,
        tables: &[TableSpec],
        allocator: Arc<dyn BlockAllocator>,
    ) -> Result<Self> {
        let place = Place { allocator, serves_devices: settings.serves_devices, max_rows: None };
        Self::open_each(settings, tables, |_| place.clone())
    }

    /// The same with a place for each table, told by its position; that of the settings does not count.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_each(
        settings: HostSettings,
        tables: &[TableSpec],
        place_of: impl Fn(usize) -> Place,
    ) -> Result<Self> {
        settings.limit()?;
        let mut tier = Self { entries: Vec::new(), settings };
        for (i, spec) in tables.iter().enumerate() {
            if spec.row_bytes < MIN_ROW_BYTES {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "host memory holds rows of at least {MIN_ROW_BYTES} bytes, not {}",
                        spec.row_bytes
                    ),
                )
                .at("table", &spec.name));
            }
            let place = place_of(i);
            tier.entries.push(Entry {
                table: ArcSwap::from_pointee(tier.new_table(spec, &place)?),
                spec: spec.clone(),
                place,
                record: Mutex::new(None),
                loading: LoadFlag::default(),
            });
        }
        Ok(tier)
    }

    /// Rows held of a table, by partition.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown.
    pub fn partition_rows(&self, table: TableId) -> Result<Vec<u64>> {
        Ok(self.entry(table)?.table.load().partition_rows())
    }

    fn limit(&self, place: &Place) -> Result<Option<Limit>> {
        let Some(max_rows) = place.max_rows else { return self.settings.limit() };
        let margin = (max_rows / self.settings.num_partitions as u64).max(1);
        HostSettings { overflow_margin: Some(margin), ..self.settings }.limit()
    }

    fn new_table(&self, spec: &TableSpec, place: &Place) -> Result<Table> {
        Table::new(
            spec.row_bytes,
            self.settings.num_partitions,
            self.limit(place)?,
            place.serves_devices,
            &place.allocator,
        )
    }

    fn entry(&self, table: TableId) -> Result<&Entry> {
        self.entries.get(table.index()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidArgument, format!("host memory has no table number {}", table.0))
        })
    }

    /// Runs `action` on a table; errors name it.
    fn with<T>(&self, table: TableId, action: impl FnOnce(&Guard<Arc<Table>>) -> Result<T>) -> Result<T> {
        let entry = self.entry(table)?;
        action(&entry.table.load()).map_err(|error| error.at("table", &entry.spec.name))
    }
}

impl Tier for HostTier {
    fn kind(&self) -> TierKind {
        TierKind::Host
    }

    /// For tables whose keys may need no index: direct.rs.
    fn wants_largest_key(&self, table: TableId) -> bool {
        self.with(table, |table| Ok(table.may_be_direct())).unwrap_or(false)
    }

    fn lookup(
        &self,
        table: TableId,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        self.with(table, |table| table.lookup(batch, rows, misses))
    }

    fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.with(table, |table| table.insert(keys, rows))
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        self.with(table, |table| table.erase(keys))
    }

    fn reclaim(&self, table: TableId) {
        if let Ok(entry) = self.entry(table) {
            entry.table.load().reclaim(true);
        }
    }

    fn abandon_replaced(&self, table: TableId) {
        if let Ok(entry) = self.entry(table) {
            entry.table.load().reclaim(false);
        }
    }

    /// Exact: rows are counted, and bytes are what was taken from the system for index, rows and bookkeeping.
    fn usage(&self, table: TableId) -> Result<TierUsage> {
        self.with(table, |table| Ok(table.usage()))
    }
}

impl ReachableRows for HostTier {
    fn reaches(&self, table: TableId) -> bool {
        self.entry(table).is_ok_and(|entry| entry.table.load().is_reachable())
    }

    fn addresses(&self, table: TableId, keys: &[Key], addresses: &mut Vec<u64>) -> Result<()> {
        self.with(table, |table| table.addresses(keys, addresses))
    }

    fn scan_addresses(&self, table: TableId, visit: &mut AddressVisitor<'_>) -> Result<()> {
        self.entry(table)?.table.load_full().scan_addresses(visit)
    }
}

impl CacheTier for HostTier {
    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.with(table, |table| table.update(keys, rows))
    }

    fn promote(&self, table: TableId, promotion: Promotion<'_>) -> Result<u64> {
        self.with(table, |table| table.promote(promotion))
    }

    fn reserve(&self, table: TableId, expected: Expected) -> Result<()> {
        self.with(table, |table| table.reserve(expected))
    }

    fn hottest_keys(&self, table: TableId) -> Result<Vec<Key>> {
        self.with(table, |table| table.hottest_keys())
    }
}

impl TruthTier for HostTier {
    fn held(&self, table: TableId) -> Result<Held> {
        Ok(self.entry(table)?.record.lock().clone().map_or(Held::Nothing, Held::Table))
    }

    /// `Unsupported` if no load of the table was committed: there is nothing whole to describe.
    fn set_record(&self, table: TableId, record: &str) -> Result<()> {
        let entry = self.entry(table)?;
        match entry.record.lock().as_mut() {
            Some(held) => {
                record.clone_into(held);
                Ok(())
            }
            None => Err(Error::new(ErrorKind::Unsupported, "host memory holds no whole table to describe")
                .at("table", &entry.spec.name)),
        }
    }

    /// `Unsupported` while another load of the table is under way.
    fn begin_load(&self, table: TableId, expected: Expected) -> Result<Box<dyn TableLoad + '_>> {
        let entry = self.entry(table)?;
        let begin = || {
            let turn = entry.loading.take_turn()?;
            let table = self.new_table(&entry.spec, &entry.place)?;
            table.reserve(expected)?;
            Ok(HostLoad { entry, table, _turn: turn })
        };
        let load = begin().map_err(|error: Error| error.at("table", &entry.spec.name))?;
        Ok(Box::new(load))
    }

    fn scan(&self, table: TableId, visit: &mut Visitor<'_>) -> Result<()> {
        // Not `with`: a visitor may take long, and its errors are its own.
        self.entry(table)?.table.load_full().scan(visit)
    }

    fn largest_key(&self, table: TableId) -> Result<Option<Key>> {
        Ok(self.entry(table)?.table.load_full().largest_key())
    }

    fn is_read_only(&self) -> bool {
        false
    }
}

/// A table that nobody sees yet.
struct HostLoad<'t> {
    entry: &'t Entry,
    table: Table,
    /// Given back when the memory is.
    _turn: LoadTurn<'t>,
}

impl HostLoad<'_> {
    fn name(&self, error: Error) -> Error {
        error.at("table", &self.entry.spec.name)
    }
}

impl TableLoad for HostLoad<'_> {
    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.table.insert(keys, rows).map_err(|error| self.name(error))
    }

    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        self.table.lookup(batch, rows, misses).map_err(|error| self.name(error))
    }

    /// Counts evicted keys too; one that was evicted and came again counts twice.
    fn commit(self: Box<Self>, record: &str, _: Written<'_>) -> Result<u64> {
        let Self { _turn, entry, table } = *self;
        // Keys that came again have left rows behind, which nobody has seen.
        table.reclaim(true);
        let rows = table.usage().rows + table.num_evicted();
        let mut held = entry.record.lock();
        entry.table.store(Arc::new(table));
        *held = Some(record.to_owned());
        Ok(rows)
    }
}
