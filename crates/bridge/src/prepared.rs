//! A lookup as C++ sees it: prepared (everything checked that needs no memory), then run.

use std::sync::Arc;

use arc_swap::Guard;
use hps_core::batch::MAX_BATCH_KEYS;
use hps_core::device::DeviceLookup;
use hps_core::store::Table;
use hps_core::{Error, ErrorKind, Key, KeyWidth, Result, Rows, RowsMut};

use crate::guard::no_panic;
use crate::registry::{OpenStore, registry};

/// Keys of a write that the tiers get at a time: replaced rows take room until all tiers have the new ones.
const WRITTEN_AT_ONCE: usize = 1 << 16;
/// Kernels write rows in pieces of up to 16 bytes.
const DEVICE_ROWS_ALIGNMENT: usize = 16;

/// A table that was found, in a store that stays open as long as this lives.
pub(crate) struct PreparedLookup {
    store: Guard<Option<Arc<OpenStore>>>,
    table: usize,
}

/// C++ looks parts of a batch up on several threads at once.
const _: () = {
    const fn is_shared<T: Sync>() {}
    is_shared::<PreparedLookup>();
};

/// See the bridge.
pub(crate) fn prepare_lookup(
    ps_config_file: &str,
    model_name: &str,
    table_id: i64,
    emb_vec_size: i64,
    key_bits: u32,
) -> Result<Box<PreparedLookup>> {
    prepare(ps_config_file, model_name, table_id, Some(emb_vec_size), key_bits)
}

/// The same; without `emb_vec_size` for calls that have no rows.
pub(crate) fn prepare(
    ps_config_file: &str,
    model_name: &str,
    table_id: i64,
    emb_vec_size: Option<i64>,
    key_bits: u32,
) -> Result<Box<PreparedLookup>> {
    no_panic(|| {
        let guard = registry().store(ps_config_file)?;
        let open = open_store(&guard)?;
        let of_file = |error: Error| error.at("configuration", open.file.display());
        let table = open.store.find_table(model_name, table_id).map_err(of_file)?;
        let dim = open.store.table(table)?.dim();
        if let Some(emb_vec_size) = emb_vec_size.filter(|&size| usize::try_from(size) != Ok(dim)) {
            return Err(of_file(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "emb_vec_size is {emb_vec_size}, but table {table_id} of model \"{model_name}\" has vectors of \
                     {dim} (embedding_vecsize_per_table)"
                ),
            )));
        }
        let (wanted, setting) = match open.key_width {
            KeyWidth::Bits64 => (64, "true"),
            KeyWidth::Bits32 => (32, "false"),
        };
        if key_bits != wanted {
            return Err(of_file(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "keys are int{key_bits}, but the configuration says \"supportlonglong\": {setting}; pass \
                     int{wanted} keys or change the setting"
                ),
            )));
        }
        Ok(Box::new(PreparedLookup { store: guard, table }))
    })
}

fn open_store(guard: &Guard<Option<Arc<OpenStore>>>) -> Result<&OpenStore> {
    guard.as_deref().ok_or_else(|| Error::new(ErrorKind::Closed, "the store was closed"))
}

impl PreparedLookup {
    /// Does something with the keys of a call, if there are any.
    fn with_keys(
        &self,
        num_keys: usize,
        action: impl FnOnce(&OpenStore, &Table) -> Result<()>,
    ) -> Result<()> {
        no_panic(|| {
            let open = open_store(&self.store)?;
            let table = open.store.table(self.table)?;
            if num_keys == 0 { Ok(()) } else { action(open, table) }
        })
    }

    /// See the bridge.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn run(&self, keys: usize, num_keys: usize, rows: usize) -> Result<()> {
        self.with_keys(num_keys, |open, table| {
            let row_bytes = table.row_bytes();
            let num_bytes = rows_bytes(num_keys, row_bytes, rows)?;
            // SAFETY: the caller promises num_keys rows of this table at `rows`, host memory, ours alone until we
            // return. Foreign memory may hold any bytes, and every byte is a valid u8.
            let rows = unsafe { std::slice::from_raw_parts_mut(rows as *mut u8, num_bytes) };
            let mut rows = RowsMut::from_bytes(rows, row_bytes).ok_or_else(uneven)?;
            // SAFETY: the caller's promise.
            match unsafe { ForeignKeys::new(open.key_width, keys, num_keys) }? {
                ForeignKeys::Bits64(keys) => open.store.lookup(table, keys, &mut rows).map(drop),
                narrow @ ForeignKeys::Bits32(_) => narrow.in_batches(MAX_BATCH_KEYS, |start, keys| {
                    let mut rows = rows.slice(start, start + keys.len()).ok_or_else(uneven)?;
                    open.store.lookup(table, keys, &mut rows).map(drop)
                }),
            }
        })
    }

    /// Adds rows, or overwrites them, in all tiers: see `hps_update` in hps.h.
    ///
    /// # Safety
    /// As for [`Self::run`]; `rows` is only read.
    pub(crate) unsafe fn update(&self, keys: usize, num_keys: usize, rows: usize) -> Result<()> {
        self.with_keys(num_keys, |open, table| {
            let row_bytes = table.row_bytes();
            let num_bytes = rows_bytes(num_keys, row_bytes, rows)?;
            // SAFETY: the caller promises num_keys rows of this table at `rows`, host memory, unchanged until we return.
            let rows = unsafe { std::slice::from_raw_parts(rows as *const u8, num_bytes) };
            // SAFETY: the caller's promise.
            let keys = unsafe { ForeignKeys::new(open.key_width, keys, num_keys) }?;
            keys.in_batches(WRITTEN_AT_ONCE, |start, keys| {
                let rows =
                    rows.get(start * row_bytes..(start + keys.len()) * row_bytes).ok_or_else(uneven)?;
                open.store.insert(table.storage(), keys, Rows::new(rows, row_bytes).ok_or_else(uneven)?)
            })
        })
    }

    /// Removes keys from all tiers: see `hps_erase` in hps.h.
    ///
    /// # Safety
    /// As for [`Self::run`].
    pub(crate) unsafe fn erase(&self, keys: usize, num_keys: usize) -> Result<()> {
        self.with_keys(num_keys, |open, table| {
            // SAFETY: the caller's promise.
            let keys = unsafe { ForeignKeys::new(open.key_width, keys, num_keys) }?;
            keys.in_batches(WRITTEN_AT_ONCE, |_, keys| open.store.erase(table.storage(), keys))
        })
    }
}

/// Keys of a caller in host memory.
enum ForeignKeys<'a> {
    Bits64(&'a [Key]),
    Bits32(&'a [u32]),
}

impl ForeignKeys<'_> {
    /// # Safety
    /// There are `num_keys` integers of that width at `keys`, in host memory, unchanged until the result is dropped.
    unsafe fn new(key_width: KeyWidth, keys: usize, num_keys: usize) -> Result<Self> {
        if !keys.is_multiple_of(key_width.num_bytes()) {
            return Err(unaligned());
        }
        Ok(match key_width {
            KeyWidth::Bits64 => {
                // SAFETY: the caller's promise; alignment was checked; u64 has no invalid bits.
                Self::Bits64(unsafe { std::slice::from_raw_parts(keys as *const u64, num_keys) })
            }
            KeyWidth::Bits32 => {
                // SAFETY: as above.
                Self::Bits32(unsafe { std::slice::from_raw_parts(keys as *const u32, num_keys) })
            }
        })
    }

    /// Calls `action` with at most `at_once` keys at a time, widened, and the number of those before.
    fn in_batches(&self, at_once: usize, mut action: impl FnMut(usize, &[Key]) -> Result<()>) -> Result<()> {
        let starts = (0..).step_by(at_once);
        match self {
            Self::Bits64(keys) => {
                keys.chunks(at_once).zip(starts).try_for_each(|(keys, start)| action(start, keys))
            }
            Self::Bits32(keys) => {
                let mut wide: Vec<Key> = Vec::new();
                keys.chunks(at_once).zip(starts).try_for_each(|(keys, start)| {
                    wide.clear();
                    wide.extend(keys.iter().map(|&key| Key::from(key)));
                    action(start, &wide)
                })
            }
        }
    }
}

/// Bytes of a caller's rows, after checking that they can be.
fn rows_bytes(num_keys: usize, row_bytes: usize, rows: usize) -> Result<usize> {
    let num_bytes = num_keys.checked_mul(row_bytes).filter(|&bytes| bytes <= isize::MAX as usize);
    num_bytes.filter(|_| rows.is_multiple_of(size_of::<f32>())).ok_or_else(unaligned)
}

fn unaligned() -> Error {
    Error::new(ErrorKind::InvalidArgument, "keys or rows are not aligned to their elements, or too many")
}

impl PreparedLookup {
    /// See the bridge.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn run_on_device(
        &self,
        ordinal: usize,
        stream: usize,
        keys: usize,
        num_keys: usize,
        rows: usize,
    ) -> Result<()> {
        no_panic(|| {
            let open = open_store(&self.store)?;
            if !keys.is_multiple_of(open.key_width.num_bytes()) || !rows.is_multiple_of(DEVICE_ROWS_ALIGNMENT)
            {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "keys or rows on the GPU are not aligned",
                ));
            }
            let lookup = DeviceLookup {
                keys: keys as u64,
                num_keys,
                key_width: open.key_width,
                rows: rows as u64,
                stream: stream as u64,
            };
            open.store.lookup_on_device(self.table, ordinal, &lookup)
        })
    }
}

fn uneven() -> Error {
    Error::new(ErrorKind::Internal, "the caller's rows are no whole number of rows")
}
