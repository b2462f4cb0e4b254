//! The tier of one GPU: all tables of a store that are deployed on it.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hps_core::device::{DeviceAnswer, DeviceLookup, DeviceTier, Part, ReachableRows, Wants};
use hps_core::observer::Observer;
use hps_core::stats::LookupCounts;
use hps_core::tier::{TierKind, TierUsage};
use hps_core::update_clock::{ClockSnapshot, UpdateClock};
use hps_core::{Error, ErrorKind, Key, Result, Rows, TableId};
use parking_lot::Mutex;

use crate::abi::{self, HpsFetchList, HpsLookup, HpsLookupCounters, HpsMissList, HpsUnique};
use crate::driver::{Device, Stream, StreamHandle};
use crate::fetch::{self, FetchPool};
use crate::inserter::Inserter;
use crate::memory::{DeviceBuffer, PinnedBuffer};
use crate::missed::{Missed, MissedSettings};
use crate::plan::{CacheKind, Plan, TableSettings, check_budget, give_up_maps, keeps_tags};
use crate::table::{Change, GpuTable};
use crate::workspace::Pool;
use crate::writer::Writer;

/// A table as the store knows it, in front of a storage table: fused tables share one, each with its own default row.
#[derive(Debug, Clone, PartialEq)]
pub struct FrontSettings {
    /// Its number in the store's list.
    pub number: usize,
    /// Where its rows are stored.
    pub storage: TableId,
    /// Row of a key that no tier holds.
    pub default_row: Vec<u8>,
}

#[derive(Debug)]
struct Front {
    storage: TableId,
    default_row: DeviceBuffer,
    /// Where kernels count what lookups find, if the host does not hear of it.
    counters: DeviceBuffer,
}

/// What lookups, changes and the thread behind them share.
pub(crate) struct Shared {
    pub(crate) device: &'static Device,
    /// By storage table; None if it is not deployed here.
    pub(crate) tables: Vec<Option<GpuTable>>,
    /// By number; None if it is not deployed here.
    fronts: Vec<Option<Front>>,
    pub(crate) clocks: Arc<[UpdateClock]>,
    pub(crate) pool: Pool,
    fetch_pool: FetchPool,
    /// Makes workspaces ready and reads counters.
    pub(crate) service: Mutex<Stream>,
    /// All changes go through it, in one order.
    pub(crate) writer: Mutex<Writer>,
    /// A lookup that may want rows in its cache was sent since the inserter last looked.
    pub(crate) has_been_used: AtomicBool,
    /// Host memory whose rows the GPU reads by itself.
    pub(crate) reachable: Option<Arc<dyn ReachableRows>>,
    pub(crate) observer: Arc<dyn Observer>,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("device", &self.device).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug)]
pub struct GpuTier {
    pub(crate) shared: Arc<Shared>,
    inserter: Inserter,
}

impl GpuTier {
    /// Takes the memory of all tables on the GPU `ordinal`, after checking that it is there. There is a clock for each storage
    /// table of the store. `reachable` is where rows lie that the tables' settings say can be reached. Tables whose host memory cannot
    /// be pinned become others: [`DeviceTier::wants`] tells what they want then.
    ///
    /// # Errors
    /// `NotFound` if there is no such GPU; `Unsupported` if the library has no kernels for it; `OutOfMemory`, with the sum,
    /// if it is too small; `Device`.
    pub fn open(
        ordinal: usize,
        mut tables: Vec<TableSettings>,
        fronts: Vec<FrontSettings>,
        clocks: Arc<[UpdateClock]>,
        reachable: Option<Arc<dyn ReachableRows>>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self> {
        let device = Device::open(ordinal)?;
        let _entered = device.enter()?;
        let name = format!("GPU {ordinal} ({})", device.name());
        for table in give_up_maps(&mut tables, device.free_bytes()?) {
            observer.warn(&format!(
                "table {table}: {name} has no room for a map of its rows in host memory, so lookups wait for the host and cannot be \
                 captured into CUDA graphs; lower gpucacheper or gpucache_bytes, or free GPU memory"
            ));
        }
        let plans = plan_all(&tables)?;
        check_budget(tables.iter().zip(&plans), device.free_bytes()?, &name)?;
        // What every store must have pinned comes before what it may do without.
        let writer = Writer::new(device)?;
        // Before GPU memory, of which a table without pinned memory takes less, or one set of rows more.
        let pin = |table: &mut TableSettings| pin_rows(device, table, &name, observer.as_ref());
        let pinned = tables.iter_mut().map(pin).collect::<Result<Vec<_>>>()?;
        let plans = plan_all(&tables)?;
        let stream = Stream::new(device)?;
        let gpu_bytes: u64 = plans.iter().map(Plan::gpu_bytes).sum();
        let host_bytes: u64 = plans.iter().map(Plan::host_bytes).sum();

        let keeps_tags = keeps_tags(&plans, device.l2_bytes());
        let mut by_storage: Vec<Option<GpuTable>> = clocks.iter().map(|_| None).collect();
        for ((settings, plan), pinned) in tables.into_iter().zip(&plans).zip(pinned) {
            let slot = by_storage.get_mut(settings.storage.index()).ok_or_else(unknown_table)?;
            let keeps_tags = keeps_tags && !plan.reads_host();
            *slot = Some(GpuTable::new(device, settings, plan, keeps_tags, pinned, &stream)?);
        }
        let num_fronts = fronts.iter().map(|front| front.number + 1).max().unwrap_or(0);
        let mut by_number: Vec<Option<Front>> = (0..num_fronts).map(|_| None).collect();
        for front in fronts {
            let slot = by_number.get_mut(front.number).ok_or_else(unknown_table)?;
            let counters = size_of::<HpsLookupCounters>() as u64 * u64::from(abi::HPS_COUNTER_COPIES);
            *slot = Some(Front {
                storage: front.storage,
                default_row: DeviceBuffer::holding(device, &front.default_row)?,
                counters: DeviceBuffer::zeroed(device, counters, stream.handle())?,
            });
        }
        stream.synchronize()?;
        observer.info(&format!(
            "{name}: {gpu_bytes} bytes of its memory and {host_bytes} bytes of pinned host memory taken"
        ));
        let shared = Arc::new(Shared {
            device,
            tables: by_storage,
            fronts: by_number,
            clocks,
            pool: Pool::default(),
            fetch_pool: FetchPool::default(),
            service: Mutex::new(stream),
            writer: Mutex::new(writer),
            has_been_used: AtomicBool::new(false),
            reachable,
            observer: Arc::clone(&observer),
        });
        let inserter = Inserter::start(Arc::clone(&shared), observer)?;
        Ok(Self { shared, inserter })
    }

    /// What a lookup that the GPU answers by itself tells its kernel.
    #[cfg(test)]
    pub(crate) fn parameters_of(&self, number: usize, lookup: &DeviceLookup) -> Result<HpsLookup> {
        let front = self.shared.front(number)?;
        let table = self.shared.table(front.storage)?;
        Ok(self.shared.parameters(table, front, lookup, lookup.num_keys as u32))
    }

    pub(crate) fn table(&self, table: TableId) -> Result<Option<&GpuTable>> {
        self.shared.tables.get(table.index()).map(Option::as_ref).ok_or_else(unknown_table)
    }
}

fn plan_all(tables: &[TableSettings]) -> Result<Vec<Plan>> {
    tables.iter().map(Plan::new).collect()
}

/// Takes the host memory that a table wants for its rows. If it cannot be pinned, the table becomes one whose lookups wait for the
/// host: slower, but no reason to serve nothing. `name` is the GPU's.
fn pin_rows(
    device: &'static Device,
    table: &mut TableSettings,
    name: &str,
    observer: &dyn Observer,
) -> Result<Option<PinnedBuffer>> {
    let num_bytes = Plan::new(table)?.host_bytes();
    if num_bytes == 0 {
        return Ok(None);
    }
    match PinnedBuffer::new(device, num_bytes) {
        Err(why) if why.kind() == ErrorKind::OutOfMemory => {
            *table = table.clone().without_pinned_memory();
            observer.warn(&format!(
                "table {}: {num_bytes} bytes of host memory could not be pinned for {name}, so it is served {}: lookups wait for the \
                 host and cannot be captured into CUDA graphs; raise `ulimit -l`, free host memory, make the table smaller, or set \
                 embedding_cache_type to dynamic: {why}",
                table.name,
                if table.kind == CacheKind::Bypass { "without a cache" } else { "from a dynamic cache" },
            ));
            Ok(None)
        }
        pinned => pinned.map(Some).map_err(|why| why.at("table", &table.name)),
    }
}

impl Shared {
    pub(crate) fn table(&self, table: TableId) -> Result<&GpuTable> {
        self.tables.get(table.index()).and_then(Option::as_ref).ok_or_else(unknown_table)
    }

    fn front(&self, number: usize) -> Result<&Front> {
        self.fronts.get(number).and_then(Option::as_ref).ok_or_else(unknown_table)
    }

    /// What a lookup's kernel is told, but for the list of misses.
    fn parameters(&self, table: &GpuTable, front: &Front, lookup: &DeviceLookup, num_keys: u32) -> HpsLookup {
        let answers_all = table.answers_all();
        // Also the mark of an address whose row is not (fp8_rows.cuh).
        let is_fp8 = u32::from(table.settings.is_fp8);
        HpsLookup {
            first: table.first(),
            second: table.second(),
            keys: lookup.keys,
            out: lookup.rows,
            default_row: if answers_all { front.default_row.address() | u64::from(is_fp8) } else { 0 },
            counters: if answers_all || table.has_map() { front.counters.address() } else { 0 },
            misses: HpsMissList::default(),
            fetch: HpsFetchList::default(),
            wanted: table.wanted_address(),
            num_keys,
            key_bytes: lookup.key_width.num_bytes() as u32,
            row_bytes: table.row_bytes(),
            out_row_bytes: table.settings.row_bytes as u32,
            is_fp8,
            unused: 0,
        }
    }

    /// Sends a lookup that the GPU answers by itself.
    fn send(
        &self,
        table: &GpuTable,
        mut lookup: HpsLookup,
        num_keys: usize,
        stream: StreamHandle,
    ) -> Result<()> {
        // A graph would keep its space for ever.
        let fetches = table.wanted_address() != 0
            && num_keys >= fetch::min_keys()
            && !self.device.is_capturing(stream)?;
        let space = match fetches.then(|| self.fetch_pool.take(self.device, num_keys, stream)).transpose() {
            // The lookup does without.
            Err(why) if why.kind() == ErrorKind::OutOfMemory => None,
            space => space?,
        };
        if let Some(space) = &space {
            lookup.fetch = space.list();
        }
        // SAFETY: the tier's memory lives until the store is closed, the caller's as DeviceLookup says.
        unsafe { self.device.lookup(table.mode(), &lookup, stream)? };
        let Some(space) = space else { return Ok(()) };
        // SAFETY: as above.
        unsafe { self.device.fetch(table.mode(), &lookup, stream)? };
        self.fetch_pool.give(space, stream)
    }
}

impl DeviceTier for GpuTier {
    fn ordinal(&self) -> usize {
        self.shared.device.ordinal()
    }

    fn is_lost(&self) -> bool {
        self.shared.device.is_lost()
    }

    fn serves(&self, table: usize) -> bool {
        self.shared.fronts.get(table).is_some_and(Option::is_some)
    }

    fn lookup(&self, table: usize, lookup: &DeviceLookup) -> Result<DeviceAnswer> {
        let shared = &self.shared;
        let front = shared.front(table)?;
        let held = shared.table(front.storage)?;
        held.check_complete()?;
        let num_keys = u32::try_from(lookup.num_keys).map_err(|_| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("{} keys in one call; at most 4 billion", lookup.num_keys),
            )
        })?;
        let device = shared.device;
        let _entered = device.enter()?;
        let stream = StreamHandle(lookup.stream);
        let mut parameters = shared.parameters(held, front, lookup, num_keys);
        if held.wanted_address() != 0 && !shared.has_been_used.load(Ordering::Relaxed) {
            shared.has_been_used.store(true, Ordering::Relaxed);
        }
        if parameters.default_row != 0 {
            shared.send(held, parameters, lookup.num_keys, stream)?;
            return Ok(DeviceAnswer::Enqueued);
        }

        if device.is_capturing(stream)? {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this lookup may need the host, so it cannot be captured into a CUDA graph: its table's rows are not all in memory \
                 that the GPU reads by itself; use embedding_cache_type static or uvm (if it is one of these, see the warning at \
                 opening), or keep the lookup out of the captured part",
            ));
        }
        let mut workspace = shared.pool.take(device, lookup.num_keys, &shared.service)?;
        let threshold = held.settings.hit_rate_threshold;
        let counts_unique = threshold.is_some_and(|threshold| threshold > 0.0);
        if threshold.is_some() {
            parameters.default_row = front.default_row.address();
        }
        if threshold.is_some() && !counts_unique {
            // Nobody waits for the misses, so the device counts.
            parameters.counters = front.counters.address();
        }
        if counts_unique {
            let (places, place_mask) = workspace.zeroed_places(lookup.num_keys, stream)?;
            let unique = HpsUnique {
                keys: lookup.keys,
                places,
                count: workspace.unique_address(),
                num_keys,
                key_bytes: parameters.key_bytes,
                place_mask,
                unused: 0,
            };
            // SAFETY: as for the lookup below.
            unsafe { device.unique(&unique, stream)? };
        }
        parameters.misses = workspace.next_list(counts_unique);
        // SAFETY: as above; the workspace is kept until its word is there.
        unsafe { device.lookup(held.mode(), &parameters, stream)? };
        let missed = Missed::new(
            Arc::clone(shared),
            self.inserter.queue(),
            front.storage,
            workspace,
            *lookup,
            MissedSettings {
                is_cached: held.settings.kind != CacheKind::Bypass,
                counts_hits: !held.has_map(),
            },
        );
        match threshold {
            None => Ok(DeviceAnswer::Missed(Box::new(missed))),
            Some(threshold) if threshold > 0.0 => missed.decide(threshold),
            Some(_) => Ok(DeviceAnswer::Later(Box::new(missed.for_later()?), LookupCounts::default())),
        }
    }

    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        self.change(table, Change::Update, keys, Some(rows))
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        self.change(table, Change::Erase, keys, None)
    }

    fn forget(&self, table: TableId, keys: &[Key]) -> Result<()> {
        match self.table(table)? {
            Some(held) if held.settings.kind.holds_all() => {
                held.set_incomplete();
                Ok(())
            }
            // A map shows what the host holds, whatever that is.
            _ => self.change(table, Change::Erase, keys, None),
        }
    }

    fn put(
        &self,
        table: TableId,
        part: Part,
        (keys, rows): (&[Key], Rows<'_>),
        snapshot: &ClockSnapshot,
        left_out: &mut Vec<Key>,
    ) -> Result<()> {
        let Some(held) = self.table(table)? else { return Ok(()) };
        let _entered = self.shared.device.enter()?;
        let mut writer = self.shared.writer.lock();
        // In the order of writes: whoever writes the keys later overwrites what is put here.
        let current = self.current(table, keys, rows, &[], snapshot)?;
        left_out.extend(&current.stale);
        let current_rows = Some(current.rows()?);
        match part {
            Part::Cache => writer.change(held, Change::Warm, &current.keys, current_rows),
            Part::Whole => {
                writer.change(held, Change::Put, &current.keys, current_rows)?;
                writer.wait()?;
                writer.check_refused(held).inspect_err(|_| held.set_incomplete())
            }
        }
    }

    fn map_rows(&self, table: TableId, progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.map_all(table, progress)
    }

    fn refresh(
        &self,
        table: TableId,
        keys: &[Key],
        rows: Rows<'_>,
        missing: &[u32],
        snapshot: &ClockSnapshot,
    ) -> Result<()> {
        let Some(held) = self.table(table)? else { return Ok(()) };
        let _entered = self.shared.device.enter()?;
        let mut writer = self.shared.writer.lock();
        // In the order of writes, as above.
        let current = self.current(table, keys, rows, missing, snapshot)?;
        writer.change(held, Change::Update, &current.keys, Some(current.rows()?))?;
        writer.change(held, Change::Erase, &current.missing, None)?;
        writer.wait()?;
        if held.settings.kind.holds_all() {
            writer.check_refused(held).inspect_err(|_| held.set_incomplete())?;
        }
        Ok(())
    }

    fn wants(&self, table: TableId) -> Wants {
        let Ok(Some(held)) = self.table(table) else { return Wants::default() };
        let has_cache = matches!(held.settings.kind, CacheKind::Dynamic | CacheKind::Uvm);
        Wants { all: held.settings.kind.holds_all(), hottest: if has_cache { held.num_slots() } else { 0 } }
    }

    fn counts(&self, table: usize) -> Result<LookupCounts> {
        let front = self.shared.front(table)?;
        if self.shared.device.is_lost() {
            return Ok(LookupCounts::default());
        }
        let _entered = self.shared.device.enter()?;
        let mut bytes = vec![0; front.counters.num_bytes()];
        // SAFETY: initialised; kernels add to words, which are read whole.
        unsafe {
            self.shared.device.read(front.counters.address(), &mut bytes, &self.shared.service.lock())?
        };
        let mut counts = LookupCounts::default();
        for copy in bytes.chunks_exact(size_of::<HpsLookupCounters>()) {
            let mut words = copy.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
            let mut next = || words.next().unwrap_or(0);
            counts.add_hits(TierKind::Gpu, next() as usize);
            counts.add_hits(TierKind::Host, next() as usize);
            counts.missing += next();
        }
        Ok(counts)
    }

    fn usage(&self, table: TableId) -> Result<Option<TierUsage>> {
        let Some(held) = self.table(table)?.filter(|_| !self.shared.device.is_lost()) else {
            return Ok(None);
        };
        let _entered = self.shared.device.enter()?;
        let writer = self.shared.writer.lock();
        let rows = held.num_rows(self.shared.device, writer.stream())?;
        Ok(Some(TierUsage { rows, bytes: held.num_bytes() }))
    }

    fn resident_keys(&self, table: TableId) -> Result<Vec<Key>> {
        let Some(held) = self.table(table)? else { return Ok(Vec::new()) };
        let _entered = self.shared.device.enter()?;
        let writer = self.shared.writer.lock();
        held.resident_keys(self.shared.device, writer.stream())
    }
}

impl Drop for GpuTier {
    fn drop(&mut self) {
        self.inserter.stop();
        // Nothing that was sent, by us or in streams of callers, may use the memory that goes now. On a lost device nothing runs
        // any more.
        let device = self.shared.device;
        let has_waited = device.enter().and_then(|_entered| device.synchronize()).is_ok() || device.is_lost();
        if !has_waited {
            // Better kept for ever than taken from under a kernel.
            Box::leak(Box::new(Arc::clone(&self.shared)));
        }
    }
}

pub(crate) fn unknown_table() -> Error {
    Error::new(ErrorKind::InvalidArgument, "there is no such table on this GPU")
}
