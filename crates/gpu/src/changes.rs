//! Changes of one GPU's tables: what a write of the store means for caches, whole tables and maps, in which order, and what holds
//! if it fails.

use std::borrow::Cow;

use hps_core::update_clock::ClockSnapshot;
use hps_core::{Error, ErrorKind, Key, Result, Rows, TableId};

use crate::table::{Change, GpuTable};
use crate::tier::{GpuTier, unknown_table};
use crate::writer::Writer;

impl GpuTier {
    /// Those of `keys` that were not written since `snapshot`. For who holds the writer.
    pub(crate) fn current<'r>(
        &self,
        table: TableId,
        keys: &[Key],
        rows: Rows<'r>,
        missing: &[u32],
        snapshot: &ClockSnapshot,
    ) -> Result<Current<'r>> {
        let clock = self.shared.clocks.get(table.index()).ok_or_else(unknown_table)?;
        if missing.is_empty() && keys.iter().all(|&key| clock.is_current(key, snapshot)) {
            return Ok(Current {
                keys: keys.to_vec(),
                bytes: Cow::Borrowed(rows.bytes()),
                ..Current::new(rows)
            });
        }
        let mut current = Current::new(rows);
        let mut bytes = Vec::new();
        let mut missing = missing.iter().peekable();
        for (i, (&key, row)) in keys.iter().zip(rows.iter()).enumerate() {
            let is_missing = missing.next_if_eq(&&(i as u32)).is_some();
            if !clock.is_current(key, snapshot) {
                current.stale.push(key);
            } else if is_missing {
                current.missing.push(key);
            } else {
                current.keys.push(key);
                bytes.extend_from_slice(row);
            }
        }
        current.bytes = Cow::Owned(bytes);
        Ok(current)
    }

    /// Changes a table and waits until lookups see it. If that fails, old rows of the keys are not served any more: a cache
    /// forgets them, a table that has to hold all rows, or a map of them, refuses lookups.
    pub(crate) fn change(
        &self,
        table: TableId,
        change: Change,
        keys: &[Key],
        rows: Option<Rows<'_>>,
    ) -> Result<()> {
        let Some(held) = self.table(table)? else { return Ok(()) };
        let _entered = self.shared.device.enter()?;
        let mut writer = self.shared.writer.lock();
        // The map first: the cache is filled from where it points to.
        let mapped = self.map_again(&mut writer, held, keys);
        let mut changed =
            mapped.and_then(|()| writer.change(held, change, keys, rows)).and_then(|()| writer.wait());
        let holds_all = held.settings.kind.holds_all();
        if changed.is_ok() && matches!(change, Change::Update) && holds_all {
            changed = writer.check_refused(held);
        }
        if changed.is_ok() && held.has_map() {
            changed = self.check_map(&writer, held);
        }
        changed.inspect_err(|_| {
            let is_forgotten = !holds_all
                && !held.has_map()
                && writer.change(held, Change::Erase, keys, None).and_then(|()| writer.wait()).is_ok();
            if !is_forgotten {
                held.set_incomplete();
            }
        })
    }

    /// Makes the map, if there is one, show where the rows of these keys lie now.
    fn map_again(&self, writer: &mut Writer, held: &GpuTable, keys: &[Key]) -> Result<()> {
        let Some(reachable) = self.shared.reachable.as_ref().filter(|_| held.has_map()) else {
            return Ok(());
        };
        let mut addresses = Vec::new();
        // Under the writer's lock: who asks later is told later addresses, and publishes them later.
        reachable.addresses(held.settings.storage, keys, &mut addresses)?;
        let (mut found, mut bytes, mut absent) = (Vec::new(), Vec::new(), Vec::new());
        for (&key, &address) in keys.iter().zip(&addresses) {
            if address == 0 {
                absent.push(key);
            } else {
                found.push(key);
                bytes.extend_from_slice(&address.to_le_bytes());
            }
        }
        writer.change(held, Change::Map, &found, Some(addresses_as_rows(&bytes)?))?;
        writer.change(held, Change::Unmap, &absent, None)
    }

    /// Keys for which the map has no room are looked for by the host. After the writer was waited for.
    fn check_map(&self, writer: &Writer, held: &GpuTable) -> Result<()> {
        let refused = held.newly_refused(self.shared.device, writer.stream())?;
        if refused > 0 && held.set_map_incomplete() {
            self.shared.observer.warn(&format!(
                "table {}: {refused} new keys have no room in the map that was made on GPU {} when the store was opened (for {}); \
                 lookups now wait for the host, cannot be captured, and graphs that were captured do not see the new keys: close \
                 and open the store again",
                held.settings.name,
                self.shared.device.ordinal(),
                held.capacity()
            ));
        }
        Ok(())
    }

    /// Makes the map show where all rows lie. While the store is opened: nobody writes. (The host tier is locked for readers meanwhile,
    /// before the writer: a write would take them the other way round.)
    pub(crate) fn map_all(&self, table: TableId, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let Some(held) = self.table(table)?.filter(|held| held.has_map()) else { return Ok(()) };
        let Some(reachable) = &self.shared.reachable else { return Ok(()) };
        let mut done = 0;
        let mut bytes = Vec::new();
        let _entered = self.shared.device.enter()?;
        reachable.scan_addresses(table, &mut |keys, addresses| {
            bytes.clear();
            bytes.extend(addresses.iter().flat_map(|address| address.to_le_bytes()));
            self.shared.writer.lock().change(held, Change::Map, keys, Some(addresses_as_rows(&bytes)?))?;
            done += keys.len() as u64;
            progress(done);
            Ok(())
        })?;
        if !reachable.reaches(table) {
            held.set_map_incomplete();
        }
        let writer = self.shared.writer.lock();
        writer.wait()?;
        self.check_map(&writer, held)
    }
}

fn addresses_as_rows(bytes: &[u8]) -> Result<Rows<'_>> {
    Rows::new(bytes, size_of::<u64>()).ok_or_else(|| Error::new(ErrorKind::Internal, "half an address"))
}

/// Keys by what is to be done about them.
pub(crate) struct Current<'r> {
    row_bytes: usize,
    /// Of rows that are still current.
    pub(crate) keys: Vec<Key>,
    bytes: Cow<'r, [u8]>,
    /// That no tier below holds.
    pub(crate) missing: Vec<Key>,
    /// Written since their row was read.
    pub(crate) stale: Vec<Key>,
}

impl Current<'_> {
    fn new(rows: Rows<'_>) -> Self {
        let row_bytes = rows.row_bytes();
        Self { row_bytes, keys: Vec::new(), bytes: Cow::default(), missing: Vec::new(), stale: Vec::new() }
    }

    /// The rows of `keys`.
    pub(crate) fn rows(&self) -> Result<Rows<'_>> {
        Rows::new(&self.bytes, self.row_bytes)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "rows that are no whole number"))
    }
}
