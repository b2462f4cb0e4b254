//! One storage table on one GPU: its parts, and modifications of them in the order of one stream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hps_core::{Error, ErrorKind, Key, Result};

use crate::abi::{self, HpsDump, HpsModify, HpsSetTable};
use crate::driver::{Device, Stream};
use crate::geometry::TagMode;
use crate::memory::{DeviceBuffer, PinnedBuffer};
use crate::plan::{CacheKind, Plan, Reach, TableSettings};
use crate::set_table::{RowPlace, SetTable, rows_held};

/// Chances, in 1/1024, when full sets are asked to take in a new row: that a row that was used goes for it, and that one row loses a
/// mark (modify.cu). A new row that is never asked for again must not push out one that is; a row whose time has passed must go at last.
const EVICT_PROVEN: u32 = 16;
const FORGET: u32 = 8;
/// How often room is looked for if other rows are on the move: a table that holds all rows, or a map of them, must find it, a
/// cache may not.
const ATTEMPTS_WHOLE: u32 = 4096;
const ATTEMPTS_CACHE: u32 = 8;
/// Marks of rows that are there from the start.
const MARK_FULL: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct GpuTable {
    pub(crate) settings: TableSettings,
    mode: TagMode,
    first: SetTable,
    second: Option<SetTable>,
    wanted: Option<DeviceBuffer>,
    /// Rows refused so far, as last read.
    refused: AtomicU64,
    /// A table that has to hold all rows does not: lookups would give default rows for keys that have others.
    is_incomplete: AtomicBool,
    /// The map shows every row that there is.
    maps_all: AtomicBool,
    /// The map has refused rows.
    has_refused: AtomicBool,
}

/// How a modification treats keys and rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// Rows that are there from the start: added or overwritten in the part that holds all rows.
    Put,
    /// The hottest of them: added to the cache or overwritten there, as long as there is room.
    Warm,
    /// Overwrites what is there; adds to a part that holds all rows.
    Update,
    /// Rows that lookups asked for, into the cache.
    Insert,
    /// Removes.
    Erase,
    /// Addresses of rows: added to the map or overwritten there.
    Map,
    /// Removes from the map.
    Unmap,
}

/// Keys and rows where the device reads them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch {
    pub(crate) keys: u64,
    pub(crate) rows: u64,
    pub(crate) indices: u64,
    pub(crate) num_keys: u32,
}

impl GpuTable {
    /// Takes the GPU memory of a table, whose plan's host memory is `pinned`; it is ready once `stream` has passed. The device
    /// must have been entered.
    pub(crate) fn new(
        device: &'static Device,
        settings: TableSettings,
        plan: &Plan,
        keeps_tags: bool,
        mut pinned: Option<PinnedBuffer>,
        stream: &Stream,
    ) -> Result<Self> {
        let named = |error: Error| error.at("table", &settings.name);
        let place = if plan.first_on_host { RowPlace::Host } else { RowPlace::Gpu };
        let mut part = |geometry, place, keeps_tags| {
            SetTable::new(device, geometry, place, keeps_tags, &mut pinned, stream).map_err(named)
        };
        let first = part(plan.first, place, keeps_tags)?;
        let second = plan.second.map(|(geometry, place)| part(geometry, place, false)).transpose()?;
        let wanted = second
            .is_some()
            .then(|| DeviceBuffer::zeroed(device, size_of::<abi::HpsWantedKeys>() as u64, stream.handle()));
        let wanted = wanted.transpose().map_err(named)?;
        Ok(Self {
            mode: plan.first.mode,
            first,
            second,
            wanted,
            refused: AtomicU64::new(0),
            is_incomplete: AtomicBool::new(false),
            maps_all: AtomicBool::new(settings.has_map() && settings.reach == Reach::All),
            has_refused: AtomicBool::new(false),
            settings,
        })
    }

    pub(crate) fn mode(&self) -> TagMode {
        self.mode
    }

    pub(crate) fn row_bytes(&self) -> u32 {
        self.first.geometry().row_bytes
    }

    pub(crate) fn first(&self) -> HpsSetTable {
        self.first.for_kernels()
    }

    pub(crate) fn second(&self) -> HpsSetTable {
        self.second.as_ref().map_or(HpsSetTable::default(), SetTable::for_kernels)
    }

    pub(crate) fn wanted_address(&self) -> u64 {
        self.wanted.as_ref().map_or(0, DeviceBuffer::address)
    }

    /// Slots of the cache, or of the whole table.
    pub(crate) fn num_slots(&self) -> u64 {
        self.first.geometry().num_slots()
    }

    pub(crate) fn num_bytes(&self) -> u64 {
        self.first.num_bytes() + self.second.as_ref().map_or(0, SetTable::num_bytes)
    }

    /// Sends a change to `stream`, on which all changes of this table follow each other.
    ///
    /// # Safety
    /// The batch's addresses are valid for the device until the change has ended.
    pub(crate) unsafe fn change(
        &self,
        device: &Device,
        change: Change,
        batch: Batch,
        stream: &Stream,
    ) -> Result<()> {
        if batch.num_keys == 0 || self.settings.kind == CacheKind::Bypass {
            return Ok(());
        }
        // The whole table first: the cache must not hold what the table does not.
        for part in self.second.iter().chain([&self.first]) {
            let Some(mode) = self.mode_of(change, part) else { continue };
            // SAFETY: the caller's promise.
            unsafe { self.modify(device, part, HpsSetTable::default(), mode, batch, stream)? };
        }
        Ok(())
    }

    /// What a change does to a part; None: nothing.
    fn mode_of(&self, change: Change, part: &SetTable) -> Option<u32> {
        if part.is_map() {
            return match change {
                Change::Map => Some(abi::HPS_UPSERT),
                Change::Unmap => Some(abi::HPS_ERASE),
                _ => None,
            };
        }
        match (change, self.is_whole(part)) {
            (Change::Put | Change::Update, true) | (Change::Warm, false) => Some(abi::HPS_UPSERT),
            (Change::Update, false) => Some(abi::HPS_UPDATE_IF_PRESENT),
            (Change::Insert, false) => Some(abi::HPS_INSERT_IF_ABSENT),
            (Change::Erase, _) => Some(abi::HPS_ERASE),
            _ => None,
        }
    }

    /// Bytes of what a change brings for each key.
    pub(crate) fn row_bytes_of(&self, change: Change) -> usize {
        match change {
            Change::Map => size_of::<u64>(),
            _ => self.settings.row_bytes,
        }
    }

    /// Bytes of what kernels get of it.
    pub(crate) fn stored_bytes_of(&self, change: Change) -> usize {
        match change {
            Change::Map => size_of::<u64>(),
            _ => self.settings.stored_row_bytes(),
        }
    }

    /// True for the part that holds all rows: the second, or the first if there is no second.
    fn is_whole(&self, part: &SetTable) -> bool {
        self.settings.kind.holds_all() && std::ptr::eq(part, self.second.as_ref().unwrap_or(&self.first))
    }

    /// True if there is a map of where rows lie in host memory.
    pub(crate) fn has_map(&self) -> bool {
        self.second.as_ref().is_some_and(SetTable::is_map)
    }

    /// True if the GPU finds every row that there is by itself.
    pub(crate) fn answers_all(&self) -> bool {
        self.settings.kind.holds_all() || self.maps_all.load(Ordering::Acquire)
    }

    /// From now on the host is asked for keys that the map does not show. True if it was not before.
    pub(crate) fn set_map_incomplete(&self) -> bool {
        self.has_refused.store(true, Ordering::Relaxed);
        self.maps_all.swap(false, Ordering::AcqRel)
    }

    /// Sends copies of rows from the second table into the cache.
    ///
    /// # Safety
    /// `num_keys` numbers at `keys` are readable by the device until it has ended.
    pub(crate) unsafe fn cache_from_second(
        &self,
        device: &Device,
        keys: u64,
        num_keys: u32,
        stream: &Stream,
    ) -> Result<()> {
        let Some(second) = self.second.as_ref() else { return Ok(()) };
        let batch = Batch { keys, rows: 0, indices: 0, num_keys };
        // SAFETY: the caller's promise.
        unsafe {
            self.modify(device, &self.first, second.for_kernels(), abi::HPS_INSERT_IF_ABSENT, batch, stream)
        }
    }

    /// # Safety
    /// As [`Self::change`].
    unsafe fn modify(
        &self,
        device: &Device,
        table: &SetTable,
        source: HpsSetTable,
        mode: u32,
        batch: Batch,
        stream: &Stream,
    ) -> Result<()> {
        let inserts = mode == abi::HPS_INSERT_IF_ABSENT;
        // A map that has refused rows before is not searched for the last free slot each time.
        let needs_room =
            self.is_whole(table) || (table.is_map() && !self.has_refused.load(Ordering::Relaxed));
        let modify = HpsModify {
            table: table.for_kernels(),
            source,
            keys: batch.keys,
            rows: batch.rows,
            indices: batch.indices,
            results: table.results_address(),
            num_keys: batch.num_keys,
            row_bytes: table.geometry().row_bytes,
            mode,
            mark: if inserts { 0 } else { MARK_FULL },
            evict_proven: EVICT_PROVEN,
            forget: FORGET,
            displace: match mode {
                abi::HPS_UPSERT if needs_room => ATTEMPTS_WHOLE,
                abi::HPS_UPSERT => ATTEMPTS_CACHE,
                _ => 0,
            },
            displace_far: u32::from(needs_room),
            seed: batch.num_keys,
            unused: 0,
        };
        // SAFETY: the tables live as long as `self`, which is not dropped before its stream was waited for; the rest is the
        // caller's promise.
        unsafe { device.modify(self.mode, &modify, stream.handle()) }
    }

    /// Rows that the part which holds all rows, or the map, or else the cache, has refused since this was last asked. For the owner of the
    /// writer.
    pub(crate) fn newly_refused(&self, device: &Device, stream: &Stream) -> Result<u64> {
        let table = self.second.as_ref().unwrap_or(&self.first);
        let refused = table.results(device, stream)?.refused;
        Ok(refused - self.refused.swap(refused, Ordering::Relaxed).min(refused))
    }

    /// What the table that holds all rows has room for.
    pub(crate) fn capacity(&self) -> String {
        let geometry = self.second.as_ref().unwrap_or(&self.first).geometry();
        match geometry.key_bound() {
            0 => format!("{} slots", geometry.num_slots()),
            bound => format!("{} slots and keys below {bound}", geometry.num_slots()),
        }
    }

    /// From now on lookups fail: rows are missing that only this table could give.
    pub(crate) fn set_incomplete(&self) {
        self.is_incomplete.store(true, Ordering::Release);
    }

    /// Fails if rows are missing that only this table could give.
    pub(crate) fn check_complete(&self) -> Result<()> {
        if !self.is_incomplete.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "the table on the GPU does not hold all rows any more: a write while the store was open failed, or found no \
                 room (it was made for {}); close and open the store again",
                self.capacity()
            ),
        ))
    }

    /// Sums of all modifications of the cache, or of the whole table.
    #[cfg(test)]
    pub(crate) fn results(&self, device: &Device, stream: &Stream) -> Result<abi::HpsModifyResults> {
        self.first.results(device, stream)
    }

    /// Rows in GPU memory, or in the host memory of a table that has no cache.
    pub(crate) fn num_rows(&self, device: &Device, stream: &Stream) -> Result<u64> {
        Ok(rows_held(&self.first.results(device, stream)?))
    }

    /// All keys of the part that holds all rows, or else of the cache, in no order. Changes must not be under way.
    pub(crate) fn resident_keys(&self, device: &'static Device, stream: &Stream) -> Result<Vec<Key>> {
        const SETS_AT_ONCE: u32 = 1 << 16;
        let buffer = DeviceBuffer::new(device, u64::from(SETS_AT_ONCE) * u64::from(abi::HPS_WAYS) * 8)?;
        let count = DeviceBuffer::new(device, 8)?;
        let mut all = Vec::new();
        let part = self.second.as_ref().filter(|second| !second.is_map()).unwrap_or(&self.first);
        let num_sets = part.geometry().num_sets;
        for first_set in (0..num_sets).step_by(SETS_AT_ONCE as usize) {
            let sets = SETS_AT_ONCE.min(num_sets - first_set);
            let dump = HpsDump {
                table: part.for_kernels(),
                keys: buffer.address(),
                count: count.address(),
                capacity: u64::from(SETS_AT_ONCE) * u64::from(abi::HPS_WAYS),
                first_set,
                num_sets: sets,
            };
            // SAFETY: ours, 8 bytes.
            unsafe { device.fill(count.address(), 0, 8, stream.handle())? };
            // SAFETY: the buffers live until the stream is waited for below.
            unsafe { device.dump(self.mode, &dump, stream.handle())? };
            let mut number = [0; 8];
            // SAFETY: ours, 8 initialised bytes.
            unsafe { device.read(count.address(), &mut number, stream)? };
            let number = u64::from_le_bytes(number).min(dump.capacity) as usize;
            let mut bytes = vec![0; number * 8];
            // SAFETY: the kernel wrote that many keys.
            unsafe { device.read(buffer.address(), &mut bytes, stream)? };
            all.try_reserve(number).map_err(|why| {
                Error::new(ErrorKind::OutOfMemory, "no memory for the keys of a cache").caused_by(why)
            })?;
            all.extend(bytes.chunks_exact(8).map(|key| key.try_into().map_or(0, u64::from_le_bytes)));
        }
        Ok(all)
    }
}
