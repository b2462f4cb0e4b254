//! What a tier promises. The walk in [`crate::store`] knows nothing else of tiers.

use std::ops::ControlFlow;

use crate::batch::Batch;
use crate::error::Result;
use crate::key::{Key, KeyWidth, TableId};
pub use crate::load_turn::{LoadFlag, LoadTurn};
use crate::row::{Rows, RowsMut};
use crate::update_clock::{ClockSnapshot, UpdateClock};

/// What every tier is told of each table when it is opened; the position in that list is the [`TableId`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Storage name, `hps_et.<model>.<table>`.
    pub name: String,
    /// Bytes of one row.
    pub row_bytes: usize,
    /// Width of the keys where they are stored.
    pub key_width: KeyWidth,
}

/// One level of storage below the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TierKind {
    /// The memory of a GPU.
    Gpu,
    /// Host memory of this process.
    Host,
    /// An SSD, through RocksDB.
    Ssd,
}

impl TierKind {
    /// The word for it in messages and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Host => "host",
            Self::Ssd => "ssd",
        }
    }
}

/// Which rows a table in memory gives up first when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionPolicy {
    /// Any.
    Random,
    /// Those that were looked up least often.
    LeastUsed,
    /// Those that were looked up or written the longest time ago.
    Oldest,
}

/// What a tier holds of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Rows held.
    pub rows: u64,
    /// Bytes taken for them, keys and index included.
    pub bytes: u64,
}

/// A level of storage whose batches live in host memory.
///
/// All methods may be called from any thread at any time. A reader sees every row whole, in the version before or
/// after a concurrent write, never a mixture.
pub trait Tier: Send + Sync {
    /// Which level it is.
    fn kind(&self) -> TierKind;

    /// Writes the row of each key of `batch` that the tier holds to the key's position in `rows`; appends the
    /// positions of the others to `misses`, in ascending order, and leaves their rows untouched.
    ///
    /// Keys may repeat. Hits + misses == batch.len(). Admits nothing.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown or `rows` has rows of another size than the table; `Storage` or
    /// `Corrupt` if the medium fails. After an error `rows` and `misses` hold nothing of meaning; the tier is
    /// unchanged.
    fn lookup(
        &self,
        table: TableId,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()>;

    /// Adds rows, or overwrites those of keys that are present. Of a repeated key the last row wins. A tier with a
    /// capacity makes room first; it may drop the rows of other keys for that, or of earlier keys of this call.
    ///
    /// # Errors
    /// As [`Tier::lookup`], and `OutOfMemory`. After an error some of the rows may have been written, each whole.
    fn insert(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()>;

    /// Removes keys; absent ones are ignored.
    ///
    /// # Errors
    /// As [`Tier::insert`].
    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()>;

    /// True if it can make use of [`Expected::largest_key`] for the table; to find that out takes reading all keys.
    fn wants_largest_key(&self, _table: TableId) -> bool {
        false
    }

    /// Says that no device reads rows any more that writes have replaced or removed, as far as these writes have ended: their
    /// places may be used again. For tiers whose rows devices read ([`crate::device::ReachableRows`]).
    fn reclaim(&self, _table: TableId) {}

    /// Says that devices may go on reading such rows: their places are never used again.
    fn abandon_replaced(&self, _table: TableId) {}

    /// What is held of a table. May be an estimate where an exact count would cost a scan; says so in the
    /// implementation.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown, `Storage` if the medium fails.
    fn usage(&self, table: TableId) -> Result<TierUsage>;
}

/// What is known of a table before its rows come. Nothing goes wrong if it turns out otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// How many rows it will have.
    pub rows: u64,
    /// No key will be larger; None if nobody has looked.
    pub largest_key: Option<Key>,
}

impl Expected {
    /// So many rows, of any keys.
    pub fn rows(rows: u64) -> Self {
        Self { rows, largest_key: None }
    }
}

/// Rows on their way up, with the evidence that they may still be current.
#[derive(Clone, Copy, Debug)]
pub struct Promotion<'a> {
    /// Distinct or not: of a repeated key any one row is kept, as all were read under the same snapshot.
    pub keys: &'a [Key],
    /// One row for each key.
    pub rows: Rows<'a>,
    /// The table's clock.
    pub clock: &'a UpdateClock,
    /// Taken before the rows were read below.
    pub snapshot: &'a ClockSnapshot,
}

/// A tier that holds part of what the tier below it holds.
pub trait CacheTier: Tier {
    /// Overwrites the rows of keys that are present, ignores the others. Of a repeated key the last row wins.
    ///
    /// # Errors
    /// As [`Tier::insert`].
    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()>;

    /// Takes rows that were read below, except those whose key was written since (see [`crate::update_clock`]; the
    /// clock is read under the lock that `update` and `erase` take for the key). A key that is present already keeps
    /// its row.
    ///
    /// Returns how many rows were added.
    ///
    /// # Errors
    /// As [`Tier::insert`].
    fn promote(&self, table: TableId, promotion: Promotion<'_>) -> Result<u64>;

    /// Says what the table is about to hold, so that memory is taken once and exactly.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn reserve(&self, table: TableId, expected: Expected) -> Result<()>;

    /// The keys that are held now, those first that were used most or last, as far as the tier knows.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown; `OutOfMemory`.
    fn hottest_keys(&self, _table: TableId) -> Result<Vec<Key>> {
        Ok(Vec::new())
    }

    /// False if another process fills the tier: then rows that are promoted are dropped, and there is nothing to fill.
    fn fills(&self) -> bool {
        true
    }
}

/// What the truth holds under a table's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// No whole table: none was ever loaded, or its load was interrupted.
    Nothing,
    /// Rows without a record of where they came from: the predecessor wrote them.
    Unrecorded,
    /// A whole table, with the record that was given when it was completed.
    Table(String),
}

/// Receives rows during a scan; may end it.
pub type Visitor<'v> = dyn FnMut(&[Key], Rows<'_>) -> Result<ControlFlow<()>> + 'v;

/// The lowest tier: what it holds is the table. Everything above is a copy.
pub trait TruthTier: Tier {
    /// What it holds of a table.
    ///
    /// # Errors
    /// `Storage`, `Corrupt`.
    fn held(&self, table: TableId) -> Result<Held>;

    /// Replaces the record of a table that is held whole, and declares an unrecorded one whole.
    ///
    /// # Errors
    /// `Storage`; `Unsupported` if the tier was opened read-only.
    fn set_record(&self, table: TableId, record: &str) -> Result<()>;

    /// Begins to load the table anew, beside what is held: readers keep seeing the old rows until
    /// [`TableLoad::commit`]. Only one load of a table at a time; rows inserted meanwhile belong to the old table and
    /// vanish with it.
    ///
    /// # Errors
    /// `Storage`; `Unsupported` if the tier was opened read-only or the table is being loaded already.
    fn begin_load(&self, table: TableId, expected: Expected) -> Result<Box<dyn TableLoad + '_>>;

    /// Says that no load of the table follows: what interrupted ones have left is removed.
    ///
    /// # Errors
    /// `Storage`.
    fn forget_interrupted_load(&self, _table: TableId) -> Result<()> {
        Ok(())
    }

    /// Shows every row once, in an order of the tier's choice. Rows written during the scan may be seen old or new.
    ///
    /// # Errors
    /// What `visit` returns; `Storage`, `Corrupt`.
    fn scan(&self, table: TableId, visit: &mut Visitor<'_>) -> Result<()>;

    /// The exact number of rows, which may take a scan.
    ///
    /// # Errors
    /// `Storage`, `Corrupt`.
    fn count_rows(&self, table: TableId) -> Result<u64> {
        Ok(self.usage(table)?.rows)
    }

    /// About the number of rows, for how much memory to plan; None if nothing less than [`Self::count_rows`] can tell. Unlike
    /// [`Tier::usage`] it does not count rows several times that were written again.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown; `Storage`.
    fn estimate_rows(&self, table: TableId) -> Result<Option<u64>> {
        Ok(Some(self.usage(table)?.rows))
    }

    /// About the number of rows, told without reading them: [`Self::estimate_rows`], or else what [`Tier::usage`] says.
    ///
    /// # Errors
    /// As [`Self::estimate_rows`].
    fn about_rows(&self, table: TableId) -> Result<u64> {
        match self.estimate_rows(table)? {
            Some(rows) => Ok(rows),
            None => Ok(self.usage(table)?.rows),
        }
    }

    /// The largest key, if telling it does not take reading all rows.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown.
    fn largest_key(&self, _table: TableId) -> Result<Option<Key>> {
        Ok(None)
    }

    /// True if nothing can be written.
    fn is_read_only(&self) -> bool;

    /// True if another tier of this process serves the same table from the same medium: a write here would leave the
    /// caches above the other one stale.
    fn is_shared(&self, _table: TableId) -> bool {
        false
    }
}

/// Called now and then while a load is completed, from several threads, with the number of rows that are done.
pub type Written<'w> = &'w (dyn Fn(u64) + Sync);

/// A table that is being loaded. Dropped without commit, it leaves what was held before, and nothing else.
pub trait TableLoad {
    /// Says where all rows will come from, before the first one is put. A tier on a disk that has work of a load from the same `origin`
    /// left, which was interrupted or whose process ended before the commit, does not do that again. All rows are to be put in the same
    /// order all the same.
    ///
    /// Returns how many rows are sorted already.
    ///
    /// # Errors
    /// `Internal` if rows were put before. [`Self::put`] and [`Self::commit`] may fail with `Config` if other rows come.
    fn resume(&mut self, _origin: &str) -> Result<u64> {
        Ok(0)
    }

    /// Adds rows. Of a repeated key the last row wins, across calls as well.
    ///
    /// # Errors
    /// As [`Tier::insert`].
    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()>;

    /// Looks up what was put so far, as [`Tier::lookup`] does.
    ///
    /// # Errors
    /// As [`Tier::lookup`].
    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()>;

    /// Makes the rows durable as far as the tier is, then switches readers to them and records `record`; the old
    /// rows are gone. Interrupted at any moment, the next start sees either the old table or the new one, whole.
    /// `written` is never called where that is soon.
    ///
    /// Returns the number of distinct keys loaded.
    ///
    /// # Errors
    /// As [`Tier::insert`]. The old rows are then still held.
    fn commit(self: Box<Self>, record: &str, written: Written<'_>) -> Result<u64>;

    /// Ends the load without result because its source cannot be read. A tier on a disk keeps its work for a load from the same origin,
    /// unless it has failed itself.
    fn interrupt(self: Box<Self>) {}
}
