//! A lookup as C++ sees it: prepared (everything checked that needs no memory), then run.

use std::sync::Arc;

use arc_swap::Guard;
use hps_core::batch::MAX_BATCH_KEYS;
use hps_core::device::DeviceLookup;
use hps_core::{EmbeddingStore, Error, ErrorKind, Key, KeyWidth, Result, RowsMut};

use crate::guard::no_panic;
use crate::registry::{OpenStore, registry};

/// Kernels write rows in pieces of up to 16 bytes.
const DEVICE_ROWS_ALIGNMENT: usize = 16;

/// A table that was found, in a store that stays open as long as this lives.
pub(crate) struct PreparedLookup {
    store: Guard<Option<Arc<OpenStore>>>,
    table: usize,
}

/// See the bridge.
pub(crate) fn prepare_lookup(
    ps_config_file: &str,
    model_name: &str,
    table_id: i64,
    emb_vec_size: i64,
    key_bits: u32,
) -> Result<Box<PreparedLookup>> {
    no_panic(|| {
        let guard = registry().store(ps_config_file)?;
        let open = open_store(&guard)?;
        let of_file = |error: Error| error.at("configuration", open.file.display());
        let table = open.store.find_table(model_name, table_id).map_err(of_file)?;
        let dim = open.store.table(table)?.dim();
        if usize::try_from(emb_vec_size) != Ok(dim) {
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
    /// See the bridge.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn run(&self, keys: usize, num_keys: usize, rows: usize) -> Result<()> {
        no_panic(|| {
            let open = open_store(&self.store)?;
            let table = open.store.table(self.table)?;
            if num_keys == 0 {
                return Ok(());
            }
            let row_bytes = table.row_bytes();
            let num_bytes = num_keys.checked_mul(row_bytes).filter(|&bytes| bytes <= isize::MAX as usize);
            let key_bytes = open.key_width.num_bytes();
            let (Some(num_bytes), true, true) =
                (num_bytes, keys.is_multiple_of(key_bytes), rows.is_multiple_of(size_of::<f32>()))
            else {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    "keys or rows are not aligned to their elements, or too many",
                ));
            };
            // SAFETY: the caller promises num_keys rows of this table at `rows`, host memory, ours alone until we
            // return. Foreign memory may hold any bytes, and every byte is a valid u8.
            let rows = unsafe { std::slice::from_raw_parts_mut(rows as *mut u8, num_bytes) };
            let mut rows = RowsMut::from_bytes(rows, row_bytes).ok_or_else(uneven)?;
            match open.key_width {
                KeyWidth::Bits64 => {
                    // SAFETY: the caller promises num_keys int64 at `keys`, unchanged until we return; alignment was
                    // checked; u64 has no invalid bits.
                    let keys = unsafe { std::slice::from_raw_parts(keys as *const u64, num_keys) };
                    open.store.lookup(table, keys, &mut rows)?;
                }
                KeyWidth::Bits32 => {
                    // SAFETY: as above, int32.
                    let keys = unsafe { std::slice::from_raw_parts(keys as *const u32, num_keys) };
                    lookup_32(&open.store, self.table, keys, &mut rows)?;
                }
            }
            Ok(())
        })
    }
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

/// Looks 32-bit keys up: widens them, a bounded number at a time.
fn lookup_32(store: &EmbeddingStore, table: usize, keys: &[u32], rows: &mut RowsMut<'_>) -> Result<()> {
    let table = store.table(table)?;
    let mut wide: Vec<Key> = Vec::new();
    for (i, keys) in keys.chunks(MAX_BATCH_KEYS).enumerate() {
        wide.clear();
        wide.extend(keys.iter().map(|&key| Key::from(key)));
        let start = i * MAX_BATCH_KEYS;
        let mut rows = rows.slice(start, start + keys.len()).ok_or_else(uneven)?;
        store.lookup(table, &wide, &mut rows)?;
    }
    Ok(())
}

fn uneven() -> Error {
    Error::new(ErrorKind::Internal, "the output is no whole number of rows")
}
