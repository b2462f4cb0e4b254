//! A device whose memory is that of the host: the second implementer of [`DeviceTier`], to test the walk without a GPU.
//!
//! Its tables are maps behind one lock. Addresses in a [`DeviceLookup`] are those of host memory ([`DeviceMemory`] has some),
//! streams are ignored: what a lookup sends to one has been done when it returns.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::Hook;
use crate::device::{DeviceAnswer, DeviceLookup, DeviceTier, MissedKeys, Part, Wants};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, KeyWidth, TableId};
use crate::row::{Rows, RowsMut};
use crate::stats::LookupCounts;
use crate::tier::{TierKind, TierUsage};
use crate::update_clock::{ClockSnapshot, UpdateClock};

/// A table that the device serves, as the store knows it. Those of one storage share rows.
#[derive(Clone, Debug)]
pub struct FakeTable {
    /// Its number in the store's list.
    pub number: usize,
    /// Where its rows are stored.
    pub storage: TableId,
    /// Row of a key that no tier holds; its length is that of all rows.
    pub default_row: Vec<u8>,
}

/// What a lookup does about keys that the device does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Asks for their rows before it returns.
    Missed,
    /// Gives default rows, and asks for the others for later.
    Later,
    /// The same, but the answer counts nothing: the device does.
    LaterUncounted,
    /// Gives default rows, which the device counts.
    Enqueued,
}

/// What a [`FakeDevice`] is like.
#[derive(Clone, Debug)]
pub struct FakeSettings {
    /// Its CUDA ordinal.
    pub ordinal: usize,
    /// What it serves.
    pub tables: Vec<FakeTable>,
    /// Rows that each storage table has room for; None if tables are held whole.
    pub capacity: Option<usize>,
    /// How lookups end.
    pub answers: Answers,
    /// The most missed keys that are asked for at a time.
    pub piece_keys: usize,
}

/// What the device was asked, or asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// A method of [`DeviceTier`] or [`MissedKeys`]; "give_up" if missed keys were dropped before all rows were given.
    pub operation: &'static str,
    /// For "lookup" and "counts" the table's number in the store's list, else the storage table's.
    pub table: usize,
    /// The keys that it is about; of "wait" those that were missed, of "give_up" those without a row.
    pub keys: Vec<Key>,
}

/// See the module.
pub struct FakeDevice {
    shared: Arc<Shared>,
}

struct Shared {
    settings: FakeSettings,
    clocks: Arc<[UpdateClock]>,
    state: Mutex<State>,
    calls: Mutex<Vec<Call>>,
    hook: Mutex<Option<Arc<Hook>>>,
    is_lost: AtomicBool,
}

#[derive(Default)]
struct State {
    /// By storage table.
    held: HashMap<TableId, Held>,
    /// By table number.
    counts: HashMap<usize, LookupCounts>,
}

#[derive(Default)]
struct Held {
    rows: HashMap<Key, Vec<u8>>,
    /// It should hold all rows, and does not any more.
    is_incomplete: bool,
}

impl FakeDevice {
    /// Holds nothing yet. `clocks` are the store's.
    pub fn new(settings: FakeSettings, clocks: Arc<[UpdateClock]>) -> Self {
        assert!(settings.piece_keys > 0, "a piece has at least one key");
        let state = Mutex::default();
        let (calls, hook, is_lost) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        let shared = Shared { settings, clocks, state, calls, hook, is_lost };
        Self { shared: Arc::new(shared) }
    }

    /// Runs `hook` at the start of every operation, with its name as in [`Call`] and no lock held: to fail the operation, or to
    /// do something at just that moment. That of "next_piece" is after the clock was read and before the rows are, that of
    /// "give_piece" is after both. Errors for "give_up" are ignored.
    pub fn set_hook(&self, hook: impl Fn(&str) -> Result<()> + Send + Sync + 'static) {
        *self.shared.hook.lock() = Some(Arc::new(hook));
    }

    /// From now on it says that it is lost. It works as before.
    pub fn lose(&self) {
        self.shared.is_lost.store(true, Ordering::Relaxed);
    }

    /// All calls so far, in the order in which they began; without those that ask what the device is or wants.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().clone()
    }

    /// The keys of each call of one operation.
    pub fn keys_of(&self, operation: &str) -> Vec<Vec<Key>> {
        let calls = self.calls().into_iter();
        calls.filter(|call| call.operation == operation).map(|call| call.keys).collect()
    }

    /// The row of one key, if it is held.
    pub fn row(&self, storage: TableId, key: Key) -> Option<Vec<u8>> {
        self.shared.state.lock().held.get(&storage).and_then(|held| held.rows.get(&key).cloned())
    }

    /// The keys that are held, ascending.
    pub fn held_keys(&self, storage: TableId) -> Vec<Key> {
        let state = self.shared.state.lock();
        let mut keys: Vec<Key> =
            state.held.get(&storage).map_or(Vec::new(), |held| held.rows.keys().copied().collect());
        keys.sort_unstable();
        keys
    }
}

impl Shared {
    fn front(&self, number: usize) -> Result<&FakeTable> {
        self.settings.tables.iter().find(|table| table.number == number).ok_or_else(unknown_table)
    }

    fn row_bytes(&self, storage: TableId) -> Option<usize> {
        let front = self.settings.tables.iter().find(|table| table.storage == storage)?;
        Some(front.default_row.len())
    }

    fn begin(&self, operation: &'static str, table: usize, keys: &[Key]) -> Result<()> {
        self.calls.lock().push(Call { operation, table, keys: keys.to_vec() });
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(operation))
    }

    fn has_room(&self, held: &Held) -> bool {
        self.settings.capacity.is_none_or(|capacity| held.rows.len() < capacity)
    }

    /// Adds and overwrites rows whose keys were not written since `snapshot`, as long as there is room.
    fn take_in<'r>(
        &self,
        storage: TableId,
        rows: impl Iterator<Item = (Key, &'r [u8])>,
        snapshot: &ClockSnapshot,
        overwrites: bool,
        left_out: &mut Vec<Key>,
    ) -> Result<()> {
        let clock = self.clocks.get(storage.index()).ok_or_else(unknown_table)?;
        // The clock is read under the lock that writes take.
        let mut state = self.state.lock();
        let held = state.held.entry(storage).or_default();
        for (key, row) in rows {
            if !clock.is_current(key, snapshot) {
                left_out.push(key);
                continue;
            }
            let is_taken = if held.rows.contains_key(&key) { overwrites } else { self.has_room(held) };
            if is_taken {
                held.rows.insert(key, row.to_vec());
            }
        }
        Ok(())
    }

    /// Serves these rows no more: a cache forgets them, a whole table refuses lookups.
    fn withdraw(&self, storage: TableId, keys: &[Key]) {
        let mut state = self.state.lock();
        let held = state.held.entry(storage).or_default();
        if self.settings.capacity.is_none() {
            held.is_incomplete = true;
        } else {
            held.rows.retain(|key, _| !keys.contains(key));
        }
    }
}

impl DeviceTier for FakeDevice {
    fn ordinal(&self) -> usize {
        self.shared.settings.ordinal
    }

    fn is_lost(&self) -> bool {
        self.shared.is_lost.load(Ordering::Relaxed)
    }

    fn serves(&self, table: usize) -> bool {
        self.shared.front(table).is_ok()
    }

    fn lookup(&self, table: usize, lookup: &DeviceLookup) -> Result<DeviceAnswer> {
        let shared = &self.shared;
        let front = shared.front(table)?;
        let keys = read_keys(lookup)?;
        shared.begin("lookup", table, &keys)?;
        if keys.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "a lookup of no keys must not reach a device"));
        }
        let row_bytes = front.default_row.len();
        let mut rows = rows_at(lookup, row_bytes)?;
        let answers = shared.settings.answers;
        let (mut missed, mut positions) = (Vec::new(), Vec::new());
        let mut counts = LookupCounts::default();
        {
            let mut state = shared.state.lock();
            let held = state.held.entry(front.storage).or_default();
            if held.is_incomplete {
                return Err(Error::new(
                    ErrorKind::OutOfMemory,
                    "the table on the GPU does not hold all rows",
                ));
            }
            for (position, &key) in keys.iter().enumerate() {
                let row = held.rows.get(&key);
                if row.is_none() {
                    missed.push(key);
                    positions.push(position);
                }
                if row.is_some() || answers != Answers::Missed {
                    write(&mut rows, position, row.unwrap_or(&front.default_row))?;
                }
            }
            counts.add_hits(TierKind::Gpu, keys.len() - missed.len());
            counts.missing = missed.len() as u64;
            if matches!(answers, Answers::LaterUncounted | Answers::Enqueued) {
                *state.counts.entry(table).or_default() += counts;
            }
        }
        if answers == Answers::Enqueued {
            return Ok(DeviceAnswer::Enqueued);
        }
        let missed = Box::new(FakeMissed {
            shared: Arc::clone(shared),
            storage: front.storage,
            row_bytes,
            num_hits: keys.len() - missed.len(),
            keys: missed,
            answer: (answers == Answers::Missed).then_some((*lookup, positions)),
            has_waited: false,
            start: 0,
            piece: 0,
            rows: Vec::new(),
        });
        Ok(match answers {
            Answers::Missed => DeviceAnswer::Missed(missed),
            Answers::Later => DeviceAnswer::Later(missed, counts),
            Answers::LaterUncounted | Answers::Enqueued => {
                DeviceAnswer::Later(missed, LookupCounts::default())
            }
        })
    }

    fn update(&self, table: TableId, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let shared = &self.shared;
        let Some(row_bytes) = shared.row_bytes(table) else { return Ok(()) };
        check_rows(keys, rows, row_bytes)?;
        shared.begin("update", table.index(), keys).inspect_err(|_| shared.withdraw(table, keys))?;
        let mut state = shared.state.lock();
        let held = state.held.entry(table).or_default();
        for (&key, row) in keys.iter().zip(rows.iter()) {
            if shared.settings.capacity.is_none() || held.rows.contains_key(&key) {
                held.rows.insert(key, row.to_vec());
            }
        }
        Ok(())
    }

    fn erase(&self, table: TableId, keys: &[Key]) -> Result<()> {
        let shared = &self.shared;
        if shared.row_bytes(table).is_none() {
            return Ok(());
        }
        shared.begin("erase", table.index(), keys).inspect_err(|_| shared.withdraw(table, keys))?;
        let mut state = shared.state.lock();
        let held = state.held.entry(table).or_default();
        for key in keys {
            held.rows.remove(key);
        }
        Ok(())
    }

    fn forget(&self, table: TableId, keys: &[Key]) -> Result<()> {
        if self.shared.row_bytes(table).is_none() {
            return Ok(());
        }
        let begun = self.shared.begin("forget", table.index(), keys);
        self.shared.withdraw(table, keys);
        begun
    }

    fn put(
        &self,
        table: TableId,
        _: Part,
        (keys, rows): (&[Key], Rows<'_>),
        snapshot: &ClockSnapshot,
        left_out: &mut Vec<Key>,
    ) -> Result<()> {
        let Some(row_bytes) = self.shared.row_bytes(table) else { return Ok(()) };
        check_rows(keys, rows, row_bytes)?;
        self.shared.begin("put", table.index(), keys)?;
        self.shared.take_in(table, keys.iter().copied().zip(rows.iter()), snapshot, true, left_out)
    }

    /// It reads no row by itself.
    fn map_rows(&self, _: TableId, _: &mut dyn FnMut(u64)) -> Result<()> {
        Ok(())
    }

    fn refresh(
        &self,
        table: TableId,
        keys: &[Key],
        rows: Rows<'_>,
        missing: &[u32],
        snapshot: &ClockSnapshot,
    ) -> Result<()> {
        let Some(row_bytes) = self.shared.row_bytes(table) else { return Ok(()) };
        check_rows(keys, rows, row_bytes)?;
        self.shared.begin("refresh", table.index(), keys)?;
        let clock = self.shared.clocks.get(table.index()).ok_or_else(unknown_table)?;
        // The clock is read under the lock that writes take.
        let mut state = self.shared.state.lock();
        let held = state.held.entry(table).or_default();
        for (i, (key, row)) in keys.iter().zip(rows.iter()).enumerate() {
            if !clock.is_current(*key, snapshot) {
                continue;
            }
            if missing.contains(&(i as u32)) {
                held.rows.remove(key);
            } else if let Some(old) = held.rows.get_mut(key) {
                *old = row.to_vec();
            }
        }
        Ok(())
    }

    fn wants(&self, table: TableId) -> Wants {
        match (self.shared.row_bytes(table), self.shared.settings.capacity) {
            (None, _) => Wants::default(),
            (Some(_), None) => Wants { all: true, hottest: 0 },
            (Some(_), Some(capacity)) => Wants { all: false, hottest: capacity as u64 },
        }
    }

    fn counts(&self, table: usize) -> Result<LookupCounts> {
        self.shared.front(table)?;
        self.shared.begin("counts", table, &[])?;
        Ok(self.shared.state.lock().counts.get(&table).copied().unwrap_or_default())
    }

    fn usage(&self, table: TableId) -> Result<Option<TierUsage>> {
        let Some(row_bytes) = self.shared.row_bytes(table) else { return Ok(None) };
        self.shared.begin("usage", table.index(), &[])?;
        let rows = self.held_keys(table).len() as u64;
        Ok(Some(TierUsage { rows, bytes: rows * row_bytes as u64 }))
    }

    fn resident_keys(&self, table: TableId) -> Result<Vec<Key>> {
        self.shared.begin("resident_keys", table.index(), &[])?;
        Ok(self.held_keys(table))
    }
}

struct FakeMissed {
    shared: Arc<Shared>,
    storage: TableId,
    row_bytes: usize,
    num_hits: usize,
    keys: Vec<Key>,
    /// The lookup that waits for the rows, and the keys' positions in it; None if nobody waits.
    answer: Option<(DeviceLookup, Vec<usize>)>,
    has_waited: bool,
    /// Keys before this one have their rows.
    start: usize,
    /// Keys of the piece under way.
    piece: usize,
    rows: Vec<u8>,
}

impl MissedKeys for FakeMissed {
    fn wait(&mut self) -> Result<(usize, usize)> {
        self.shared.begin("wait", self.storage.index(), &self.keys)?;
        self.has_waited = true;
        Ok((self.num_hits, self.keys.len()))
    }

    fn next_piece(&mut self) -> Result<Option<(&[Key], RowsMut<'_>)>> {
        if !self.has_waited || self.piece > 0 {
            return Err(Error::new(ErrorKind::Internal, "a piece was asked for before it was its turn"));
        }
        let piece = self.shared.settings.piece_keys.min(self.keys.len() - self.start);
        if piece == 0 {
            return Ok(None);
        }
        let keys = &self.keys[self.start..self.start + piece];
        self.shared.begin("next_piece", self.storage.index(), keys)?;
        self.piece = piece;
        self.rows = vec![0xDD; piece * self.row_bytes];
        Ok(RowsMut::from_bytes(&mut self.rows, self.row_bytes).map(|rows| (keys, rows)))
    }

    fn give_piece(&mut self, missing: &[u32], snapshot: &ClockSnapshot) -> Result<()> {
        let end = self.start + self.piece;
        let keys = &self.keys[self.start..end];
        self.shared.begin("give_piece", self.storage.index(), keys)?;
        let is_in_range = missing.last().is_none_or(|&position| (position as usize) < self.piece);
        if self.piece == 0 || !is_in_range || !missing.is_sorted_by(|a, b| a < b) {
            return Err(Error::new(ErrorKind::Internal, "there is no such piece, or no such rows of it"));
        }
        if let Some((lookup, positions)) = &self.answer {
            let mut answer = rows_at(lookup, self.row_bytes)?;
            for (&position, row) in positions[self.start..end].iter().zip(self.rows.chunks(self.row_bytes)) {
                write(&mut answer, position, row)?;
            }
        }
        let rows = keys.iter().copied().zip(self.rows.chunks(self.row_bytes)).enumerate();
        let found = rows.filter(|(i, _)| missing.binary_search(&(*i as u32)).is_err()).map(|(_, row)| row);
        self.shared.take_in(self.storage, found, snapshot, false, &mut Vec::new())?;
        (self.start, self.piece) = (end, 0);
        Ok(())
    }
}

impl Drop for FakeMissed {
    fn drop(&mut self) {
        let left = &self.keys[self.start..];
        if !left.is_empty() {
            let _ = self.shared.begin("give_up", self.storage.index(), left);
        }
    }
}

/// Keys and room for rows where a [`FakeDevice`] finds them.
#[derive(Debug)]
pub struct DeviceMemory {
    width: KeyWidth,
    wide: Vec<u64>,
    narrow: Vec<u32>,
    /// 16 bytes each, for the alignment.
    rows: Vec<u128>,
    row_bytes: usize,
}

impl DeviceMemory {
    /// Holds `keys`, which fit `width`, and a row of rubbish for each.
    pub fn new(keys: &[Key], width: KeyWidth, row_bytes: usize) -> Self {
        let rubbish = u128::from_ne_bytes([0xEE; 16]);
        let rows = vec![rubbish; (keys.len() * row_bytes).div_ceil(size_of::<u128>())];
        let narrow = match width {
            KeyWidth::Bits64 => Vec::new(),
            KeyWidth::Bits32 => keys.iter().map(|&key| key.try_into().unwrap()).collect(),
        };
        Self { width, wide: keys.to_vec(), narrow, rows, row_bytes }
    }

    /// The lookup of these keys. Its addresses are good as long as `self` is there.
    pub fn lookup(&mut self) -> DeviceLookup {
        let keys = match self.width {
            KeyWidth::Bits64 => self.wide.as_ptr().expose_provenance(),
            KeyWidth::Bits32 => self.narrow.as_ptr().expose_provenance(),
        };
        DeviceLookup {
            keys: keys as u64,
            num_keys: self.wide.len(),
            key_width: self.width,
            rows: self.rows.as_mut_ptr().expose_provenance() as u64,
            stream: 0,
        }
    }

    /// The rows as they are now.
    pub fn rows(&self) -> Vec<Vec<u8>> {
        let bytes: Vec<u8> = self.rows.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.chunks_exact(self.row_bytes).take(self.wide.len()).map(<[u8]>::to_vec).collect()
    }
}

fn read_keys(lookup: &DeviceLookup) -> Result<Vec<Key>> {
    let address = aligned(lookup.keys, lookup.key_width.num_bytes())?;
    Ok(match lookup.key_width {
        KeyWidth::Bits64 => {
            let keys = std::ptr::with_exposed_provenance::<u64>(address);
            // SAFETY: aligned; the lookup's promise is that so many integers are there.
            unsafe { std::slice::from_raw_parts(keys, lookup.num_keys) }.to_vec()
        }
        KeyWidth::Bits32 => {
            let keys = std::ptr::with_exposed_provenance::<u32>(address);
            // SAFETY: as above.
            let keys = unsafe { std::slice::from_raw_parts(keys, lookup.num_keys) };
            keys.iter().map(|&key| Key::from(key)).collect()
        }
    })
}

/// The caller's rows, while the lookup lasts.
fn rows_at(lookup: &DeviceLookup, row_bytes: usize) -> Result<RowsMut<'_>> {
    let address = std::ptr::with_exposed_provenance_mut::<u8>(aligned(lookup.rows, 16)?);
    // SAFETY: the lookup's promise is that there is room for so many rows, which nobody else touches until it has been answered;
    // nobody but the one who answers calls this, for one slice at a time.
    let bytes = unsafe { std::slice::from_raw_parts_mut(address, lookup.num_keys * row_bytes) };
    RowsMut::from_bytes(bytes, row_bytes).ok_or_else(unknown_table)
}

fn aligned(address: u64, alignment: usize) -> Result<usize> {
    let address = usize::try_from(address).ok().filter(|&address| address > 0);
    address.filter(|address| address.is_multiple_of(alignment)).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, "keys or rows of a lookup are nowhere, or not aligned")
    })
}

fn write(rows: &mut RowsMut<'_>, position: usize, row: &[u8]) -> Result<()> {
    rows.write(position, row)
        .then_some(())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "a row does not fit its place"))
}

fn check_rows(keys: &[Key], rows: Rows<'_>, row_bytes: usize) -> Result<()> {
    if rows.len() == keys.len() && rows.row_bytes() == row_bytes {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, "keys and rows differ in number, or rows have another size"))
}

fn unknown_table() -> Error {
    Error::new(ErrorKind::InvalidArgument, "there is no such table on this GPU")
}
