//! The kernels: which there are, and one launch function for each file of `cuda/`.

use hps_core::{Error, ErrorKind, Result};

use crate::abi::{self, HpsDump, HpsLookup, HpsLookups, HpsModify, HpsScatter, HpsUnique};
use crate::driver::{Device, Function, Module, StreamHandle};
use crate::geometry::TagMode;

/// A file of `cuda/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Lookup,
    Fetch,
    Modify,
    Scatter,
    Dump,
    Unique,
    AbiCheck,
}

impl Unit {
    /// Its stem.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Fetch => "fetch",
            Self::Modify => "modify",
            Self::Scatter => "scatter",
            Self::Dump => "dump",
            Self::Unique => "unique",
            Self::AbiCheck => "abi_check",
        }
    }
}

/// Keys that one warp takes at a time, few first.
const SIZES: [(&str, u32); 3] = [
    ("small", abi::HPS_KEYS_PER_WARP_SMALL),
    ("medium", abi::HPS_KEYS_PER_WARP_MEDIUM),
    ("large", abi::HPS_KEYS_PER_WARP_LARGE),
];

/// How a row is copied: vectors of so many bytes, so many lanes a row.
const COPIES: [(u32, u32); 6] = [(16, 4), (16, 8), (16, 16), (16, 32), (4, 8), (4, 32)];
/// Lanes of rows of 8-bit floats, which have a word for each; a table's lookup takes such a one by its number after [`COPIES`].
const FP8_LANES: [u32; 2] = [8, 32];
const NUM_COPIES: usize = COPIES.len() + FP8_LANES.len();

const WARP: u32 = 32;
const MODIFY_THREADS: u32 = abi::HPS_MODIFY_THREADS;
/// Blocks of the modifying kernel for each multiprocessor: enough to fill it.
const MODIFY_BLOCKS: u32 = 16;
/// Blocks, for each multiprocessor, of the kernel that puts rows to be fetched in order.
const PLACE_BLOCKS: u32 = 4;

/// All kernels, loaded into one device.
#[derive(Debug)]
pub(crate) struct Functions {
    /// By tag mode, copy, size.
    lookup: Vec<Function>,
    /// By tag mode, copy: of the last size, for tables with a second part.
    lookup_passing: Vec<Function>,
    #[cfg_attr(not(test), allow(dead_code, reason = "as its launch"))]
    lookup_many: Function,
    /// By tag mode, copy.
    fetch: Vec<Function>,
    fetch_order: Function,
    fetch_place: Function,
    modify: [Function; 2],
    dump: [Function; 2],
    scatter: Function,
    unique: Function,
    #[cfg_attr(not(test), allow(dead_code, reason = "for a test of the crate"))]
    pub(crate) abi_check: Function,
}

impl Functions {
    /// Loads every kernel, so that one that is missing is noticed when a store is opened.
    pub(crate) fn load(module: impl Fn(Unit) -> Result<Module>) -> Result<Self> {
        let lookup_module = module(Unit::Lookup)?;
        let mut lookup = Vec::new();
        for mode in TagMode::ALL {
            let mut copies = Vec::new();
            for (vector_bytes, lanes) in COPIES {
                copies.push(format!("{vector_bytes}x{lanes}"));
            }
            copies.extend(FP8_LANES.map(|lanes| format!("fp8x{lanes}")));
            for copy in copies {
                for (size, _) in SIZES {
                    let name = format!("lookup_{}_{copy}_{size}", mode.name());
                    lookup.push(lookup_module.function(Unit::Lookup, &name)?);
                }
            }
        }
        let fetch_module = module(Unit::Fetch)?;
        let (mut fetch, mut lookup_passing) = (Vec::new(), Vec::new());
        for mode in TagMode::ALL {
            for (vector_bytes, lanes) in COPIES {
                let kind = format!("{}_{vector_bytes}x{lanes}", mode.name());
                fetch.push(fetch_module.function(Unit::Fetch, &format!("fetch_{kind}"))?);
                let name = format!("lookup_{kind}_passing");
                lookup_passing.push(lookup_module.function(Unit::Lookup, &name)?);
            }
        }
        let pair = |unit: Unit| {
            let module = module(unit)?;
            let one = |mode: TagMode| module.function(unit, &format!("{}_{}", unit.name(), mode.name()));
            Ok::<_, Error>([one(TagMode::Exact)?, one(TagMode::Hashed)?])
        };
        let single = |unit: Unit| module(unit)?.function(unit, unit.name());
        Ok(Self {
            lookup,
            lookup_passing,
            lookup_many: lookup_module.function(Unit::Lookup, "lookup_many")?,
            fetch,
            fetch_order: fetch_module.function(Unit::Fetch, "fetch_order")?,
            fetch_place: fetch_module.function(Unit::Fetch, "fetch_place")?,
            modify: pair(Unit::Modify)?,
            dump: pair(Unit::Dump)?,
            scatter: single(Unit::Scatter)?,
            unique: single(Unit::Unique)?,
            abi_check: single(Unit::AbiCheck)?,
        })
    }
}

/// Shape of a lookup's launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LookupShape {
    size: usize,
    copy: usize,
    num_blocks: u32,
    num_threads: u32,
}

/// Chooses the kernel: few keys are spread over many warps, rows are copied in the widest pieces that divide them.
fn lookup_shape(num_keys: u32, copy: usize, num_processors: u32) -> Option<LookupShape> {
    // Measured on an H100: with so many keys for each multiprocessor, taking more keys a warp pays.
    let per_processor = num_keys / num_processors.max(1);
    let (size, num_threads) = match per_processor {
        0..64 => (0, 32),
        64..256 => (1, 64),
        _ => (2, 128),
    };
    let keys_per_warp = SIZES.get(size)?.1;
    let num_warps = num_keys.div_ceil(keys_per_warp);
    Some(LookupShape { size, copy, num_blocks: num_warps.div_ceil(num_threads / WARP), num_threads })
}

/// True if what a lookup reads is to be evicted first from the second-level cache: cuda/fetch.cu. Rows of 8-bit floats have no second
/// part.
fn passes(lookup: &HpsLookup, shape: LookupShape) -> bool {
    lookup.second.num_sets != 0 && lookup.is_fp8 == 0 && shape.size + 1 == SIZES.len()
}

/// How a lookup copies rows.
fn copy_for(lookup: &HpsLookup) -> Option<usize> {
    if lookup.is_fp8 == 0 {
        return copy_of(lookup.row_bytes);
    }
    let num_words = lookup.out_row_bytes.div_ceil(16);
    let fits = FP8_LANES.iter().position(|&lanes| lanes >= num_words);
    Some(COPIES.len() + fits.unwrap_or(FP8_LANES.len() - 1))
}

/// How rows of that size are copied: a position in [`COPIES`].
fn copy_of(row_bytes: u32) -> Option<usize> {
    let vector_bytes = if row_bytes.is_multiple_of(16) { 16 } else { 4 };
    let num_vectors = row_bytes / vector_bytes;
    let fits = COPIES.iter().position(|&(bytes, lanes)| bytes == vector_bytes && lanes >= num_vectors);
    fits.or_else(|| COPIES.iter().rposition(|&(bytes, _)| bytes == vector_bytes))
}

/// Blocks of the fetching kernel: as many rows are on their way at a time as are read fastest.
fn fetch_blocks(lanes: u32) -> u32 {
    // As in row_copy.cuh.
    let rows_at_once = WARP / lanes * lanes.min(8);
    abi::HPS_FETCH_ROWS / rows_at_once / (abi::HPS_FETCH_THREADS / WARP)
}

impl Device {
    /// Starts a lookup. At least one key. The device must have been entered.
    ///
    /// # Safety
    /// The addresses are valid for what abi.h says of them until the kernel has ended; `mode` is that of the tables.
    pub(crate) unsafe fn lookup(
        &self,
        mode: TagMode,
        lookup: &HpsLookup,
        stream: StreamHandle,
    ) -> Result<()> {
        let copy = copy_for(lookup).ok_or_else(no_kernel)?;
        let shape = lookup_shape(lookup.num_keys, copy, self.num_processors()).ok_or_else(no_kernel)?;
        let functions = self.functions();
        let function = if passes(lookup, shape) {
            functions.lookup_passing.get(mode.index() * COPIES.len() + shape.copy)
        } else {
            functions.lookup.get((mode.index() * NUM_COPIES + shape.copy) * SIZES.len() + shape.size)
        };
        let function = *function.ok_or_else(no_kernel)?;
        // SAFETY: the function takes an HpsLookup; the caller's promise.
        unsafe { self.launch(function, shape.num_blocks, shape.num_threads, stream, lookup) }
    }

    /// Starts lookups in several tables: one launch, of so many blocks of `HPS_LOOKUP_MANY_THREADS`. The device must have been
    /// entered.
    ///
    /// # Safety
    /// As [`Self::lookup`], for each of them; the tables may have any modes.
    #[cfg_attr(not(test), allow(dead_code, reason = "operators over several tables are to come"))]
    pub(crate) unsafe fn lookup_many(
        &self,
        lookups: &HpsLookups,
        num_blocks: u32,
        stream: StreamHandle,
    ) -> Result<()> {
        let function = self.functions().lookup_many;
        // SAFETY: the function takes an HpsLookups; the caller's promise.
        unsafe { self.launch(function, num_blocks, abi::HPS_LOOKUP_MANY_THREADS, stream, lookups) }
    }

    /// Starts fetching the rows that a lookup has left; after it, in its stream. The device must have been entered.
    ///
    /// # Safety
    /// As [`Self::lookup`].
    pub(crate) unsafe fn fetch(&self, mode: TagMode, lookup: &HpsLookup, stream: StreamHandle) -> Result<()> {
        let copy = copy_of(lookup.row_bytes).ok_or_else(no_kernel)?;
        let fetch = *self.functions().fetch.get(mode.index() * COPIES.len() + copy).ok_or_else(no_kernel)?;
        let (_, lanes) = *COPIES.get(copy).ok_or_else(no_kernel)?;
        let place_threads = abi::HPS_FETCH_PLACE_THREADS;
        let place_blocks = lookup.num_keys.div_ceil(place_threads).min(self.num_processors() * PLACE_BLOCKS);
        let functions = self.functions();
        // SAFETY: the function takes an HpsLookup; the caller's promise.
        unsafe { self.launch(functions.fetch_order, 1, abi::HPS_FETCH_ORDER_THREADS, stream, lookup)? };
        // SAFETY: as above.
        unsafe { self.launch(functions.fetch_place, place_blocks, place_threads, stream, lookup)? };
        // SAFETY: as above.
        unsafe { self.launch(fetch, fetch_blocks(lanes), abi::HPS_FETCH_THREADS, stream, lookup) }
    }

    /// Starts a modification. At least one key. The device must have been entered.
    ///
    /// # Safety
    /// As [`Self::lookup`]; and modifications of one table follow each other on one stream.
    pub(crate) unsafe fn modify(
        &self,
        mode: TagMode,
        modify: &HpsModify,
        stream: StreamHandle,
    ) -> Result<()> {
        let function = *self.functions().modify.get(mode.index()).ok_or_else(no_kernel)?;
        let warps_per_block = MODIFY_THREADS / WARP;
        let num_blocks = modify.num_keys.div_ceil(warps_per_block).min(self.num_processors() * MODIFY_BLOCKS);
        // SAFETY: the function takes an HpsModify; the caller's promise.
        unsafe { self.launch(function, num_blocks, MODIFY_THREADS, stream, modify) }
    }

    /// Starts copying rows to their positions. At least one row. The device must have been entered.
    ///
    /// # Safety
    /// As [`Self::lookup`].
    pub(crate) unsafe fn scatter(&self, scatter: &HpsScatter, stream: StreamHandle) -> Result<()> {
        let num_blocks =
            scatter.num_rows.div_ceil(MODIFY_THREADS / WARP).min(self.num_processors() * MODIFY_BLOCKS);
        // SAFETY: the function takes an HpsScatter; the caller's promise.
        unsafe { self.launch(self.functions().scatter, num_blocks, MODIFY_THREADS, stream, scatter) }
    }

    /// Starts listing keys. At least one set. The device must have been entered.
    ///
    /// # Safety
    /// As [`Self::lookup`].
    pub(crate) unsafe fn dump(&self, mode: TagMode, dump: &HpsDump, stream: StreamHandle) -> Result<()> {
        let function = *self.functions().dump.get(mode.index()).ok_or_else(no_kernel)?;
        let num_blocks = (dump.num_sets * abi::HPS_WAYS).div_ceil(MODIFY_THREADS);
        // SAFETY: the function takes an HpsDump; the caller's promise.
        unsafe { self.launch(function, num_blocks, MODIFY_THREADS, stream, dump) }
    }

    /// Starts counting distinct keys. At least one key. The device must have been entered.
    ///
    /// # Safety
    /// As [`Self::lookup`].
    pub(crate) unsafe fn unique(&self, unique: &HpsUnique, stream: StreamHandle) -> Result<()> {
        let num_blocks = unique.num_keys.div_ceil(MODIFY_THREADS);
        // SAFETY: the function takes an HpsUnique; the caller's promise.
        unsafe { self.launch(self.functions().unique, num_blocks, MODIFY_THREADS, stream, unique) }
    }
}

fn no_kernel() -> Error {
    Error::new(ErrorKind::Internal, "there is no kernel for rows of this size")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::HpsSetTable;

    #[test]
    fn every_batch_and_row_size_has_a_kernel_that_covers_it() {
        for num_keys in [1, 7, 8, 9, 1024, 16_384, 65_536, 1 << 20, u32::MAX] {
            for row_bytes in [4, 8, 12, 16, 60, 64, 128, 132, 256, 512, 516, 4096, 262_144] {
                let shape = lookup_shape(num_keys, copy_of(row_bytes).unwrap(), 132).unwrap();
                let (vector_bytes, lanes) = COPIES[shape.copy];
                assert_eq!(row_bytes % vector_bytes, 0);
                assert!(lanes >= (row_bytes / vector_bytes).min(32) || lanes == 32);
                let keys_per_block = u64::from(SIZES[shape.size].1 * shape.num_threads / WARP);
                assert!(u64::from(shape.num_blocks) * keys_per_block >= u64::from(num_keys));
                assert!(shape.num_threads <= abi::HPS_LOOKUP_THREADS);
            }
        }
    }

    #[test]
    fn rows_of_8_bit_floats_have_a_lane_for_each_word_up_to_32() {
        let copy =
            |dim: u32| copy_for(&HpsLookup { is_fp8: 1, out_row_bytes: dim * 4, ..Default::default() });
        for (dim, lanes) in [(1, 8), (4, 8), (32, 8), (33, 32), (128, 32), (1000, 32)] {
            assert_eq!(FP8_LANES[copy(dim).unwrap() - COPIES.len()], lanes, "{dim}");
        }
        let plain = HpsLookup { row_bytes: 128, out_row_bytes: 128, ..Default::default() };
        assert_eq!(copy_for(&plain), copy_of(128));
    }

    #[test]
    fn many_keys_of_a_table_with_a_second_part_pass_through_the_cache() {
        let second = HpsSetTable { num_sets: 1, ..Default::default() };
        let shape = |num_keys| lookup_shape(num_keys, 0, 132).unwrap();
        let (few, many) = (shape(16_384), shape(65_536));
        let whole = HpsLookup::default();
        let cached = HpsLookup { second, ..Default::default() };
        let fp8 = HpsLookup { is_fp8: 1, ..cached };
        assert!(passes(&cached, many));
        assert!(!passes(&cached, few) && !passes(&whole, many) && !passes(&fp8, many));
    }

    #[test]
    fn few_keys_are_spread_over_more_blocks_than_they_would_fill() {
        let few = lookup_shape(1024, 3, 132).unwrap();
        assert_eq!((few.size, few.num_threads, few.num_blocks), (0, 32, 128));
        let many = lookup_shape(1 << 20, 3, 132).unwrap();
        assert_eq!((many.size, many.num_threads), (2, 128));
    }
}
