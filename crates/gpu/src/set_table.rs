//! One table in sets of 16 slots: its memory, and the struct by which kernels know it.

use hps_core::{Error, ErrorKind, Result};

use crate::abi::{HpsModifyResults, HpsSetTable};
use crate::driver::{Device, Stream};
use crate::geometry::Geometry;
use crate::memory::{DeviceBuffer, PinnedBuffer};

/// Where rows lie.
#[derive(Debug)]
enum RowMemory {
    Gpu(DeviceBuffer),
    Host(PinnedBuffer),
    /// Elsewhere: here are their addresses.
    Map(DeviceBuffer),
}

/// Where the rows of a new table are to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowPlace {
    /// In GPU memory.
    Gpu,
    /// In pinned host memory.
    Host,
    /// Wherever they are: the table holds addresses, in GPU memory.
    Map,
}

/// Owner of an `HpsSetTable`. All slots are empty at first.
#[derive(Debug)]
pub(crate) struct SetTable {
    geometry: Geometry,
    tags: DeviceBuffer,
    keys: Option<DeviceBuffer>,
    marks: DeviceBuffer,
    versions: DeviceBuffer,
    writers: DeviceBuffer,
    rows: RowMemory,
    results: DeviceBuffer,
    /// Made once: every lookup sends a copy.
    for_kernels: HpsSetTable,
}

impl SetTable {
    /// Takes the memory of a table, but for rows in host memory, which are to lie in `pinned`; it is ready once `stream` has passed.
    /// `keeps_tags` as in abi.h. The device must have been entered.
    pub(crate) fn new(
        device: &'static Device,
        geometry: Geometry,
        place: RowPlace,
        keeps_tags: bool,
        pinned: &mut Option<PinnedBuffer>,
        stream: &Stream,
    ) -> Result<Self> {
        let zeroed = |num_bytes| DeviceBuffer::zeroed(device, num_bytes, stream.handle());
        let rows = match place {
            RowPlace::Host => RowMemory::Host(pinned.take().ok_or_else(not_pinned)?),
            RowPlace::Gpu => RowMemory::Gpu(DeviceBuffer::new(device, geometry.rows_bytes())?),
            // Zero is no address: readers may look at a slot that is being filled for the first time.
            RowPlace::Map => RowMemory::Map(zeroed(geometry.rows_bytes())?),
        };
        let mut table = Self {
            geometry,
            for_kernels: HpsSetTable::default(),
            tags: zeroed(geometry.tags_bytes())?,
            keys: (geometry.keys_bytes() > 0).then(|| zeroed(geometry.keys_bytes())).transpose()?,
            marks: zeroed(geometry.words_bytes())?,
            versions: zeroed(geometry.words_bytes())?,
            writers: zeroed(size_of::<crate::abi::HpsWriters>() as u64)?,
            rows,
            results: zeroed(size_of::<HpsModifyResults>() as u64)?,
        };
        table.for_kernels = HpsSetTable { keeps_tags: u32::from(keeps_tags), ..table.describe() };
        Ok(table)
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What kernels are given. Its addresses live as long as `self`.
    pub(crate) fn for_kernels(&self) -> HpsSetTable {
        self.for_kernels
    }

    fn describe(&self) -> HpsSetTable {
        let (key_mask, key_shift) = self.geometry.permutation();
        HpsSetTable {
            tags: self.tags.address(),
            keys: self.keys.as_ref().map_or(0, DeviceBuffer::address),
            marks: self.marks.address(),
            versions: self.versions.address(),
            writers: self.writers.address(),
            rows: match &self.rows {
                RowMemory::Gpu(rows) | RowMemory::Map(rows) => rows.address(),
                RowMemory::Host(rows) => rows.address(),
            },
            key_bound: self.geometry.key_bound(),
            num_sets: self.geometry.num_sets,
            reciprocal: u32::MAX / self.geometry.num_sets.max(1),
            key_mask,
            key_shift,
            is_map: u32::from(self.is_map()),
            keeps_tags: 0,
        }
    }

    /// True if it holds addresses of rows.
    pub(crate) fn is_map(&self) -> bool {
        matches!(self.rows, RowMemory::Map(_))
    }

    /// Address of the sums of all modifications.
    pub(crate) fn results_address(&self) -> u64 {
        self.results.address()
    }

    /// Sums of all modifications that have ended in `stream`. The device must have been entered.
    pub(crate) fn results(&self, device: &Device, stream: &Stream) -> Result<HpsModifyResults> {
        let mut bytes = [0; size_of::<HpsModifyResults>()];
        // SAFETY: the buffer has that many initialised bytes; modifications are in the order of the same stream.
        unsafe { device.read(self.results.address(), &mut bytes, stream)? };
        let mut words = bytes.chunks_exact(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || words.next().unwrap_or(0);
        Ok(HpsModifyResults {
            added: next(),
            overwritten: next(),
            erased: next(),
            evicted: next(),
            refused: next(),
        })
    }

    /// GPU and host memory that it takes.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.geometry.index_bytes() + self.geometry.rows_bytes()
    }
}

fn not_pinned() -> Error {
    Error::new(ErrorKind::Internal, "rows in host memory that nobody has pinned")
}

/// Rows that are held, by the sums of all modifications.
pub(crate) fn rows_held(results: &HpsModifyResults) -> u64 {
    results.added.saturating_sub(results.evicted + results.erased)
}
