//! One piece of a table's version: an index of buckets and the rows that it names, in a file that all processes map.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use hps_core::key::mix;
use hps_core::keyed_hash::Seeds;
use hps_core::{Error, ErrorKind, Key, Result};

use crate::map::Mapping;
use crate::policy::MARK_BITS;

/// "HPSSHARE".
const MAGIC: u64 = u64::from_le_bytes(*b"HPSSHARE");
const FORMAT: u64 = 2;
const HEADER_BYTES: usize = 4096;
/// Entries of a bucket: as many keys as a cache line holds, and as many words.
pub(crate) const WAYS: usize = 8;
const BUCKET_BYTES: usize = 128;
const LINE_BYTES: usize = 64;
/// How full the index of an extent is with as many rows as it was made for. Keys do not move, so that some find both of their
/// buckets full long before all are: at 75 %, fewer than one in a thousand.
const FULLNESS: f64 = 0.75;
/// Slots beyond those: a row that is replaced needs one.
const SPARE_SLOTS: usize = 64;
/// The last free slots are for replacing rows, not for new ones.
const KEPT_SLOTS: u32 = 1;
/// A bucket with fewer empty entries is left to keys that have no better place.
const NEARLY_FULL: usize = 2;
/// Lines of a row that are asked for ahead.
const PREFETCHED_LINES: usize = 8;

const SLOT_BITS: u32 = 32;
const VERSION_BITS: u32 = 22;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;
const VERSION_MASK: u64 = (1 << VERSION_BITS) - 1;
const MARK_SHIFT: u32 = SLOT_BITS + VERSION_BITS;
const _: () = assert!(MARK_SHIFT + MARK_BITS == u64::BITS);

/// Words of the header. Those of the whole version count in its first extent only.
#[derive(Clone, Copy)]
pub(crate) enum Field {
    Magic = 0,
    Format = 1,
    RowBytes = 2,
    Buckets = 3,
    Slots = 4,
    /// Slots from here on were never used.
    Fresh = 5,
    /// Freed slots on the stack.
    Freed = 6,
    /// What its hashes are keyed with, drawn when it is made: nobody can make keys collide.
    Seed = 7,
    // On lines of their own what is changed often.
    /// The version: extents.
    Extents = 8,
    /// The version: a writer is at work, or has died at it.
    Dirty = 16,
    /// The version: rows.
    Rows = 17,
    /// The version: accesses, for the policy.
    Accesses = 24,
    /// The version: rows that had to go.
    Evicted = 32,
}

/// What a key's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(u64);

impl Word {
    fn new(slot: Option<u32>, version: u64, mark: u64) -> Self {
        let slot = slot.map_or(0, |slot| u64::from(slot) + 1);
        Self(slot | (version & VERSION_MASK) << SLOT_BITS | mark << MARK_SHIFT)
    }

    fn slot(self) -> Option<u32> {
        (self.0 & SLOT_MASK).checked_sub(1).map(|slot| slot as u32)
    }

    fn version(self) -> u64 {
        self.0 >> SLOT_BITS & VERSION_MASK
    }

    pub(crate) fn mark(self) -> u64 {
        self.0 >> MARK_SHIFT
    }

    /// The same row, whatever is remembered of its use.
    fn is_same_row(self, other: Self) -> bool {
        (self.0 ^ other.0) << MARK_BITS == 0
    }
}

/// Where a key was found: the number of its entry, and its word at that moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    entry: usize,
    pub(crate) word: Word,
}

/// A row that was being replaced while it was copied.
#[derive(Debug)]
pub(crate) struct Changed;

/// The two buckets of a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(usize, usize);

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Extent {
    map: Mapping,
    /// From [`Field::Seed`].
    seeds: Seeds,
    row_bytes: usize,
    num_buckets: usize,
    num_slots: usize,
    stack_at: usize,
    rows_at: usize,
}

/// Sizes of an extent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    row_bytes: usize,
    num_buckets: usize,
    num_slots: usize,
}

impl Sizes {
    /// For that many rows.
    pub(crate) fn of(num_rows: u64, row_bytes: usize) -> Result<Self> {
        let num_rows = usize::try_from(num_rows).map_err(|_| too_large())?;
        let num_slots = num_rows.checked_add(SPARE_SLOTS).filter(|&slots| (slots as u64) < SLOT_MASK);
        let num_buckets = (num_rows as f64 / (FULLNESS * WAYS as f64)).ceil() as usize;
        Ok(Self { row_bytes, num_buckets: num_buckets.max(2), num_slots: num_slots.ok_or_else(too_large)? })
    }

    fn stack_at(self) -> usize {
        HEADER_BYTES.saturating_add(self.num_buckets.saturating_mul(BUCKET_BYTES))
    }

    fn rows_at(self) -> usize {
        let end = self.stack_at().saturating_add(self.num_slots.saturating_mul(size_of::<u32>()));
        end.checked_next_multiple_of(LINE_BYTES).unwrap_or(usize::MAX)
    }

    /// Bytes of the file.
    pub(crate) fn num_bytes(self) -> u64 {
        self.rows_at().saturating_add(self.num_slots.saturating_mul(self.row_bytes)) as u64
    }
}

impl Extent {
    /// Makes an extent of a file of zeros.
    pub(crate) fn make(file: &File, sizes: Sizes) -> Result<Self> {
        let map = Mapping::new(file).map_err(cannot_map)?;
        if let Some(seed) = map.u64s(Field::Seed as usize * 8, 1).first() {
            seed.store(RandomState::new().hash_one(0u64), Ordering::Relaxed);
        }
        let extent = Self::on(map, sizes);
        extent.set(Field::Format, FORMAT);
        extent.set(Field::RowBytes, sizes.row_bytes as u64);
        extent.set(Field::Buckets, sizes.num_buckets as u64);
        extent.set(Field::Slots, sizes.num_slots as u64);
        extent.field(Field::Magic).store(MAGIC, Ordering::Release);
        Ok(extent)
    }

    /// Maps one that was made.
    pub(crate) fn open(file: &File, row_bytes: usize) -> Result<Self> {
        let header = Mapping::new(file).map_err(cannot_map)?;
        let read = |field: Field| {
            header.u64s(field as usize * 8, 1).first().map_or(0, |word| word.load(Ordering::Acquire))
        };
        if read(Field::Magic) != MAGIC || read(Field::Format) != FORMAT {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a file of the shared memory is none of ours: remove its directory when no process uses it",
            ));
        }
        if read(Field::RowBytes) != row_bytes as u64 {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the shared memory holds the table with rows of {} bytes, this configuration has {row_bytes}",
                    read(Field::RowBytes)
                ),
            ));
        }
        let sizes = Sizes {
            row_bytes,
            num_buckets: read(Field::Buckets) as usize,
            num_slots: read(Field::Slots) as usize,
        };
        if sizes.num_buckets < 2 || sizes.num_bytes() != header.num_bytes() as u64 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "a file of the shared memory has another size than it says: remove its directory when no process uses it",
            ));
        }
        Ok(Self::on(header, sizes))
    }

    fn on(map: Mapping, sizes: Sizes) -> Self {
        let seed =
            map.u64s(Field::Seed as usize * 8, 1).first().map_or(0, |seed| seed.load(Ordering::Relaxed));
        Self {
            map,
            seeds: Seeds::new(seed, mix(seed)),
            row_bytes: sizes.row_bytes,
            num_buckets: sizes.num_buckets,
            num_slots: sizes.num_slots,
            stack_at: sizes.stack_at(),
            rows_at: sizes.rows_at(),
        }
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.map.num_bytes()
    }

    pub(crate) fn num_rows_at_most(&self) -> usize {
        self.num_slots - SPARE_SLOTS
    }

    pub(crate) fn num_buckets(&self) -> usize {
        self.num_buckets
    }

    // ---- header ----

    #[inline]
    pub(crate) fn field(&self, field: Field) -> &AtomicU64 {
        static NOWHERE: AtomicU64 = AtomicU64::new(0);
        self.map.u64s(field as usize * 8, 1).first().unwrap_or(&NOWHERE)
    }

    pub(crate) fn get(&self, field: Field) -> u64 {
        self.field(field).load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, field: Field, value: u64) {
        self.field(field).store(value, Ordering::Relaxed);
    }

    // ---- reading ----

    /// The buckets of a key: two different ones.
    #[inline]
    pub(crate) fn place(&self, key: Key) -> Place {
        let hash = self.seeds.hash(mix(key));
        Place(hash.first_bucket(self.num_buckets), hash.second_bucket(self.num_buckets))
    }

    /// Asks for the keys of the first bucket, where most are.
    #[inline]
    pub(crate) fn approach(&self, place: Place) {
        self.map.prefetch(HEADER_BYTES + place.0 * BUCKET_BYTES);
    }

    /// Asks for those of the second.
    #[inline]
    pub(crate) fn approach_second(&self, place: Place) {
        self.map.prefetch(HEADER_BYTES + place.1 * BUCKET_BYTES);
    }

    /// Asks for the row that was found.
    #[inline]
    pub(crate) fn approach_row(&self, found: Found) {
        let Some(slot) = found.word.slot() else { return };
        let row = self.rows_at + slot as usize * self.row_bytes;
        let num_lines = self.row_bytes.div_ceil(LINE_BYTES).min(PREFETCHED_LINES);
        (0..num_lines).for_each(|line| self.map.prefetch(row + line * LINE_BYTES));
    }

    fn bucket(&self, bucket: usize) -> (&[AtomicU64], &[AtomicU64]) {
        let both = self.map.u64s(HEADER_BYTES + bucket * BUCKET_BYTES, 2 * WAYS);
        both.split_at_checked(WAYS).unwrap_or_default()
    }

    fn entry(&self, entry: usize) -> Option<(&AtomicU64, &AtomicU64)> {
        let (keys, words) = self.bucket(entry / WAYS);
        Some((keys.get(entry % WAYS)?, words.get(entry % WAYS)?))
    }

    /// Where a key is.
    #[inline]
    pub(crate) fn find(&self, key: Key, place: Place) -> Option<Found> {
        self.find_first(key, place).or_else(|| self.find_in(key, place.1))
    }

    /// The same in its first bucket alone.
    #[inline]
    pub(crate) fn find_first(&self, key: Key, place: Place) -> Option<Found> {
        self.find_in(key, place.0)
    }

    #[inline]
    fn find_in(&self, key: Key, bucket: usize) -> Option<Found> {
        let (keys, words) = self.bucket(bucket);
        for (way, held) in keys.iter().enumerate() {
            if held.load(Ordering::Relaxed) != key {
                continue;
            }
            let word = Word(words.get(way)?.load(Ordering::Acquire));
            // An entry gets its key before its word: with the word of another key we would see that key now.
            if word.slot().is_some() && held.load(Ordering::Relaxed) == key {
                return Some(Found { entry: bucket * WAYS + way, word });
            }
        }
        None
    }

    /// Copies the row that was found, if it stays the key's meanwhile.
    #[inline]
    pub(crate) fn copy(&self, found: Found, row: &mut [u8]) -> std::result::Result<(), Changed> {
        let slot = found.word.slot().ok_or(Changed)?;
        let at = self.rows_at + slot as usize * self.row_bytes;
        if self.row_bytes.is_multiple_of(8) {
            let words = self.map.u64s(at, self.row_bytes / 8);
            for (target, word) in row.chunks_exact_mut(8).zip(words) {
                target.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        } else {
            let words = self.map.u32s(at, self.row_bytes / 4);
            for (target, word) in row.chunks_exact_mut(4).zip(words) {
                target.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
            }
        }
        // Pairs with the fence in `write_row`: if one of those loads saw a later row, the word is seen changed.
        fence(Ordering::Acquire);
        let (_, word) = self.entry(found.entry).ok_or(Changed)?;
        if Word(word.load(Ordering::Relaxed)).is_same_row(found.word) { Ok(()) } else { Err(Changed) }
    }

    /// Remembers a use, unless the entry has just changed.
    pub(crate) fn remember(&self, found: Found, mark: u64) {
        if mark != found.word.mark()
            && let Some((_, word)) = self.entry(found.entry)
        {
            let next = Word::new(found.word.slot(), found.word.version(), mark);
            let _ = word.compare_exchange(found.word.0, next.0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The rows of a bucket, with their keys.
    pub(crate) fn bucket_entries(&self, bucket: usize) -> impl Iterator<Item = (Key, Found)> + '_ {
        let (keys, words) = self.bucket(bucket);
        words.iter().zip(keys).enumerate().filter_map(move |(way, (word, key))| {
            let word = Word(word.load(Ordering::Acquire));
            word.slot()?;
            Some((key.load(Ordering::Relaxed), Found { entry: bucket * WAYS + way, word }))
        })
    }

    // ---- writing: by whoever holds the table's lock ----

    /// An empty entry for a key that is nowhere: in its first bucket while that is not nearly full, so that lookups need not look
    /// further, else in the emptier one. None if both are full, or all slots are taken.
    pub(crate) fn vacancy(&self, place: Place) -> Option<usize> {
        if self.free_slots() <= KEPT_SLOTS {
            return None;
        }
        let empty = |bucket: usize| {
            let (_, words) = self.bucket(bucket);
            let is_empty = |word: &AtomicU64| Word(word.load(Ordering::Relaxed)).slot().is_none();
            let first = words.iter().position(is_empty).map(|way| bucket * WAYS + way);
            (words.iter().filter(|word| is_empty(word)).count(), first)
        };
        let ((left, first), (right, second)) = (empty(place.0), empty(place.1));
        if left < NEARLY_FULL && right > left { second } else { first }
    }

    fn free_slots(&self) -> u32 {
        let fresh = self.num_slots as u64 - self.get(Field::Fresh).min(self.num_slots as u64);
        (fresh + self.get(Field::Freed)) as u32
    }

    /// Puts a key into an empty entry.
    pub(crate) fn add(&self, entry: usize, key: Key, row: &[u8], mark: u64) -> Result<()> {
        let (held, word) = self.entry(entry).ok_or_else(lost)?;
        let slot = self.take_slot().ok_or_else(lost)?;
        self.write_row(slot, row);
        held.store(key, Ordering::Relaxed);
        let old = Word(word.load(Ordering::Relaxed));
        word.store(Word::new(Some(slot), old.version() + 1, mark).0, Ordering::Release);
        Ok(())
    }

    /// Gives a key another row.
    pub(crate) fn replace(&self, found: Found, row: &[u8], mark: u64) -> Result<()> {
        let (_, word) = self.entry(found.entry).ok_or_else(lost)?;
        let slot = self.take_slot().ok_or_else(lost)?;
        self.write_row(slot, row);
        word.store(Word::new(Some(slot), found.word.version() + 1, mark).0, Ordering::Release);
        found.word.slot().map_or(Ok(()), |slot| self.free_slot(slot))
    }

    /// Removes a key.
    pub(crate) fn remove(&self, found: Found) -> Result<()> {
        let (_, word) = self.entry(found.entry).ok_or_else(lost)?;
        word.store(Word::new(None, found.word.version() + 1, 0).0, Ordering::Release);
        found.word.slot().map_or(Ok(()), |slot| self.free_slot(slot))
    }

    fn write_row(&self, slot: u32, row: &[u8]) {
        // The word that named this slot before was replaced before: whoever sees what is written now sees that, too.
        fence(Ordering::Release);
        let at = self.rows_at + slot as usize * self.row_bytes;
        if self.row_bytes.is_multiple_of(8) {
            let words = self.map.u64s(at, self.row_bytes / 8);
            for (bytes, word) in row.as_chunks().0.iter().zip(words) {
                word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
        } else {
            let words = self.map.u32s(at, self.row_bytes / 4);
            for (bytes, word) in row.as_chunks().0.iter().zip(words) {
                word.store(u32::from_ne_bytes(*bytes), Ordering::Relaxed);
            }
        }
    }

    fn stack(&self) -> &[std::sync::atomic::AtomicU32] {
        self.map.u32s(self.stack_at, self.num_slots)
    }

    fn take_slot(&self) -> Option<u32> {
        if let Some(top) = self.get(Field::Freed).checked_sub(1) {
            let slot = self.stack().get(top as usize)?.load(Ordering::Relaxed);
            self.set(Field::Freed, top);
            return Some(slot);
        }
        let fresh = self.get(Field::Fresh);
        let slot = u32::try_from(fresh).ok().filter(|&slot| (slot as usize) < self.num_slots)?;
        self.set(Field::Fresh, fresh + 1);
        Some(slot)
    }

    fn free_slot(&self, slot: u32) -> Result<()> {
        let top = self.get(Field::Freed);
        self.stack().get(top as usize).ok_or_else(lost)?.store(slot, Ordering::Relaxed);
        self.set(Field::Freed, top + 1);
        Ok(())
    }

    /// Finds out which slots are free, and returns the number of rows: after a writer that did not come to its end.
    pub(crate) fn recount(&self) -> Result<u64> {
        let mut is_taken = Vec::new();
        is_taken.try_reserve_exact(self.num_slots).map_err(|error| {
            Error::new(ErrorKind::OutOfMemory, "no memory to look through a table in shared memory")
                .caused_by(error)
        })?;
        is_taken.resize(self.num_slots, false);
        let (mut rows, mut fresh) = (0, 0);
        for bucket in 0..self.num_buckets {
            for (_, found) in self.bucket_entries(bucket) {
                let slot = found.word.slot().unwrap_or_default();
                if let Some(taken) = is_taken.get_mut(slot as usize) {
                    *taken = true;
                }
                rows += 1;
                fresh = fresh.max(u64::from(slot) + 1);
            }
        }
        self.set(Field::Freed, 0);
        self.set(Field::Fresh, fresh);
        for (slot, _) in is_taken.iter().enumerate().take(fresh as usize).filter(|&(_, &taken)| !taken) {
            self.free_slot(slot as u32)?;
        }
        Ok(rows)
    }
}

fn too_large() -> Error {
    Error::new(ErrorKind::OutOfMemory, "a table in shared memory holds at most 4 billion rows in one piece")
}

fn cannot_map(error: std::io::Error) -> Error {
    Error::new(ErrorKind::OutOfMemory, "cannot map a file of the shared memory").caused_by(error)
}

#[cold]
fn lost() -> Error {
    Error::new(ErrorKind::Internal, "an entry or a slot of a table in shared memory does not exist")
}
