//! Reading what a device holds again from the tiers below, piece by piece, while lookups go on.

use crate::device::DeviceTier;
use crate::error::Result;
use crate::row::{Rows, RowsMut, uneven};
use crate::store::{EmbeddingStore, Table};

/// Rows that are read at a time.
const PIECE_BYTES: usize = 4 << 20;

impl EmbeddingStore {
    /// Overwrites the rows that GPUs hold with those of the tiers below, removes keys that these do not hold, and adds new ones to
    /// tables that are held whole: for changes of a database that did not come through this store. Lookups and writes go on
    /// meanwhile; each row is seen old or new. Returns how many keys were held.
    ///
    /// # Errors
    /// Whatever the tiers report. What was refreshed before stays.
    pub fn refresh_devices(&self) -> Result<u64> {
        self.refresh_tables(&|_| true, &|| true)
    }

    /// The same for the tables of one model, as long as `goes_on` says so; it is asked after each piece.
    ///
    /// # Errors
    /// As [`Self::refresh_devices`].
    pub fn refresh_model(&self, model: &str, goes_on: &dyn Fn() -> bool) -> Result<u64> {
        self.refresh_tables(&|table| table.model() == model, goes_on)
    }

    fn refresh_tables(&self, is_meant: &dyn Fn(&Table) -> bool, goes_on: &dyn Fn() -> bool) -> Result<u64> {
        let mut num_keys = 0;
        for device in self.devices() {
            for table in self.served_storages(device).filter(|table| is_meant(table)) {
                num_keys += self.refresh(device, table, goes_on).map_err(|error| table.name_in(error))?;
            }
        }
        Ok(num_keys)
    }

    fn refresh(&self, device: &dyn DeviceTier, table: &Table, goes_on: &dyn Fn() -> bool) -> Result<u64> {
        let storage = table.storage();
        let row_bytes = table.row_bytes();
        let mut resident = device.resident_keys(storage)?;
        resident.sort_unstable();
        let mut bytes = Vec::new();
        for keys in resident.chunks((PIECE_BYTES / row_bytes.max(1)).max(1)) {
            if !goes_on() {
                return Ok(0);
            }
            // Before anything is read below: see update_clock.rs.
            let snapshot = self.clock(storage)?.snapshot();
            bytes.resize(keys.len() * row_bytes, 0);
            let mut rows = RowsMut::from_bytes(&mut bytes, row_bytes).ok_or_else(uneven)?;
            let missing = self.walk().gather(table, keys, &mut rows)?.missing;
            let rows = Rows::new(&bytes, row_bytes).ok_or_else(uneven)?;
            device.refresh(storage, keys, rows, &missing, &snapshot)?;
        }
        if device.wants(storage).all {
            self.put_all_but(device, table, &resident)?;
        }
        Ok(resident.len() as u64)
    }
}
