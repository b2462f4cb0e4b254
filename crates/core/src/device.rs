//! What a tier in the memory of a GPU promises. Its batches are addresses on a device, in the order of a stream.

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, KeyWidth, TableId};
use crate::row::{Rows, RowsMut};
use crate::stats::LookupCounts;
use crate::tier::TierUsage;
use crate::update_clock::ClockSnapshot;

/// A lookup whose keys and rows are in the memory of a device. Plain addresses: the host never reads them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLookup {
    /// `num_keys` integers of `key_width`, aligned.
    pub keys: u64,
    /// Number of keys.
    pub num_keys: usize,
    /// Width of each.
    pub key_width: KeyWidth,
    /// Room for `num_keys` rows of the table, aligned to 16 bytes.
    pub rows: u64,
    /// The stream that the keys are ready in, and that the rows will be used in.
    pub stream: u64,
}

/// A part of a table on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What holds all rows.
    Whole,
    /// What holds some of them.
    Cache,
}

/// Rows that a device wants when a store is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// All of them, for [`Part::Whole`].
    pub all: bool,
    /// So many of the hottest, for [`Part::Cache`].
    pub hottest: u64,
}

/// What a device did with a lookup.
pub enum DeviceAnswer {
    /// Everything that is left to do is in the stream.
    Enqueued,
    /// Some keys are not on the device: their rows have to be given before the lookup returns.
    Missed(Box<dyn MissedKeys>),
    /// Some keys may not be on the device; they were answered with the default row, and their rows are wanted for the next
    /// lookup. With what is to be counted now; the rest is in [`DeviceTier::counts`].
    Later(Box<dyn MissedKeys>, LookupCounts),
}

/// Keys that a device asks the tiers below for, piece by piece.
pub trait MissedKeys: Send {
    /// Waits until it is known which keys these are. Returns how many keys of the lookup are to be counted as hits of the device
    /// (none, if it counts by itself: [`DeviceTier::counts`]), and how many it missed.
    ///
    /// # Errors
    /// `Device`.
    fn wait(&mut self) -> Result<(usize, usize)>;

    /// The next keys, and room for their rows in host memory; None when all have been given.
    ///
    /// # Errors
    /// `Device`, `OutOfMemory`.
    fn next_piece(&mut self) -> Result<Option<(&[Key], RowsMut<'_>)>>;

    /// Says that the rows of the last piece are there. Those at the positions `missing` (of the piece, ascending) are default
    /// rows: they are given to the caller, but not kept. `snapshot` was taken before the rows were read: rows of keys that
    /// were written since are not kept either (see [`crate::update_clock`]).
    ///
    /// # Errors
    /// `Device`.
    fn give_piece(&mut self, missing: &[u32], snapshot: &ClockSnapshot) -> Result<()>;
}

/// A tier in host memory whose rows devices read by themselves.
///
/// Such a row is never changed where it lies. A write puts the new row elsewhere; the old place is used again only after
/// [`Tier::reclaim`](crate::tier::Tier::reclaim), when every device was told the new one.
pub trait ReachableRows: Send + Sync {
    /// True if the table has rows and devices can read them all. After [`Self::scan_addresses`] that does not change: rows that would
    /// lie out of reach are refused.
    fn reaches(&self, table: TableId) -> bool;

    /// Appends the address of each key's row to `addresses`; 0 for a key that is not held. For a table that devices can read.
    ///
    /// # Errors
    /// `InvalidArgument` if the table is unknown; `OutOfMemory`.
    fn addresses(&self, table: TableId, keys: &[Key], addresses: &mut Vec<u64>) -> Result<()>;

    /// Shows keys with the addresses of their rows, each key once. Nobody may write the table meanwhile.
    ///
    /// # Errors
    /// As [`Self::addresses`]; what `visit` returns.
    fn scan_addresses(&self, table: TableId, visit: &mut AddressVisitor<'_>) -> Result<()>;
}

/// Receives keys and the addresses of their rows during a scan.
pub type AddressVisitor<'v> = dyn FnMut(&[Key], &[u64]) -> Result<()> + 'v;

/// A tier in the memory of one GPU, in front of all others.
///
/// All methods may be called from any thread at any time. A lookup sees every row whole, in the version before or after a
/// concurrent write.
pub trait DeviceTier: Send + Sync {
    /// The device's CUDA ordinal.
    fn ordinal(&self) -> usize;

    /// True after an error that has ended all work on the device: nothing runs there any more.
    fn is_lost(&self) -> bool;

    /// True if the table with this number in the store's list is served here.
    fn serves(&self, table: usize) -> bool;

    /// Sends a lookup to its stream. At least one key.
    ///
    /// # Errors
    /// `Unsupported` if the stream is being captured and the table may need the host; `OutOfMemory`, `Device`. After an error
    /// nothing was sent, or the device is lost.
    fn lookup(&self, table: usize, lookup: &DeviceLookup) -> Result<DeviceAnswer>;

    /// Follows a write of the truth: overwrites rows that are held here; a table that is held whole takes in new keys. When it
    /// returns, lookups that start see the new rows. Of a repeated key the last row wins.
    ///
    /// # Errors
    /// `OutOfMemory` if a whole table has no room; `Device`. After an error no old row of the keys is served: a cache has
    /// forgotten them, a whole table refuses lookups.
    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()>;

    /// Removes keys; absent ones are ignored.
    ///
    /// # Errors
    /// `Device`; what then holds is as for [`Self::update`].
    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()>;

    /// Serves the rows of these keys no more: what the truth holds of them is not known. A cache forgets them, a whole table
    /// refuses lookups.
    ///
    /// # Errors
    /// `Device`.
    fn forget(&self, table: TableId, keys: &[Key]) -> Result<()>;

    /// Takes rows into a part of a table: into the whole one all of them, into a cache what there is room for. No two keys of a
    /// call are equal. `snapshot` was taken before the rows were read: rows of keys that were written since are not taken, and
    /// these keys are appended to `left_out`.
    ///
    /// # Errors
    /// As [`Self::update`].
    fn put(
        &self,
        table: TableId,
        part: Part,
        rows: (&[Key], Rows<'_>),
        snapshot: &ClockSnapshot,
        left_out: &mut Vec<Key>,
    ) -> Result<()>;

    /// Overwrites rows that are held, and removes the keys at the positions `missing` (ascending), which no tier below holds.
    /// `snapshot` was taken before the rows were read: keys that were written since are left alone.
    ///
    /// # Errors
    /// As [`Self::update`].
    fn refresh(
        &self,
        table: TableId,
        keys: &[Key],
        rows: Rows<'_>,
        missing: &[u32],
        snapshot: &ClockSnapshot,
    ) -> Result<()>;

    /// Learns where the rows of a table lie that it reads by itself, if it does so. While the store is opened: nobody writes.
    ///
    /// # Errors
    /// `OutOfMemory`, `Device`.
    fn map_rows(&self, table: TableId, progress: &mut dyn FnMut(u64)) -> Result<()>;

    /// What it wants to be given of a table.
    fn wants(&self, table: TableId) -> Wants;

    /// What lookups of the table with this number found here without the host hearing of it.
    ///
    /// # Errors
    /// `Device`.
    fn counts(&self, table: usize) -> Result<LookupCounts>;

    /// What is held of a storage table; None if it is not served here.
    ///
    /// # Errors
    /// `Device`.
    fn usage(&self, table: TableId) -> Result<Option<TierUsage>>;

    /// Keys of a storage table that are held here, in no order: of the part that holds all rows, if there is one.
    ///
    /// # Errors
    /// `Device`, `OutOfMemory`.
    fn resident_keys(&self, table: TableId) -> Result<Vec<Key>>;
}

/// No device of the store has this ordinal.
pub(crate) fn not_deployed(model: &str, ordinal: usize, deployed: &[usize]) -> Error {
    let list = deployed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let message = if deployed.is_empty() {
        format!("keys are on cuda:{ordinal}, but model \"{model}\" was opened without a GPU")
    } else {
        format!(
            "keys are on cuda:{ordinal}, but model \"{model}\" is deployed on the devices [{list}]; add {ordinal} to its \
             deployed_device_list, or move the keys"
        )
    };
    Error::new(ErrorKind::InvalidArgument, message)
}
