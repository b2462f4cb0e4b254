//! key -> slot: bucketed cuckoo hashing.
//!
//! A bucket is one cache line of five entries. A key has two buckets and lives in either; it is put into its first
//! one where that has room, so that most lookups, hits and misses alike, touch one line. Two choices of five entries
//! can be filled to 98 %: 13 bytes per key and slot, where a plain open-addressing table needs 16 to 27.
//!
//! ```text
//! bucket: | key 0 .. key 4 (8 bytes each) | slot 0 .. slot 4 (4 bytes each) | away (4 bytes) |
//! ```
//! `away` counts the keys whose first bucket this is and which live in their second: if it is 0, a key that is not
//! here is nowhere. A slot of `NO_SLOT` marks an empty entry, so that every key is legal.
//!
//! Hashes are keyed with random numbers that are drawn anew when keys refuse to spread: nobody can make keys collide.

mod displace;

use hps_core::key::mix;
use hps_core::{Error, ErrorKind, Key, Result};

use crate::array::Array;
use crate::prefetch::prefetch;
use crate::random::Random;
use crate::slab::NO_SLOT;

const WAYS: usize = 5;

/// How full an index may be: memory per row against work per insertion.
#[derive(Debug)]
struct Fullness {
    /// Where the index grows. Beyond 98 % searches for an empty entry become long; 98.95 % is the theoretical end.
    most: f64,
    /// What an index begins with whose size is known beforehand: leaves room for partitions that get more keys.
    expected: f64,
    /// By how much a large index grows, in 1/1024 of its size.
    growth: usize,
}

const ROOMY: Fullness = Fullness { most: 0.965, expected: 0.945, growth: 64 };
const TIGHT: Fullness = Fullness { most: 0.976, expected: 0.965, growth: 19 };

/// If keys refuse to spread below this fullness, the hash is to blame.
const SUSPICIOUS_LOAD: f64 = 0.9;
/// A small index grows by at least this many buckets, or doubles.
const MIN_GROWTH: usize = 16;
/// Each attempt either succeeds or is a stroke of very bad luck.
const MAX_ATTEMPTS: usize = 16;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Bucket {
    keys: [Key; WAYS],
    slots: [u32; WAYS],
    away: u32,
}

const EMPTY_BUCKET: Bucket = Bucket { keys: [0; WAYS], slots: [NO_SLOT; WAYS], away: 0 };

impl Bucket {
    /// The slot of `key`, or `NO_SLOT`. Branch-free: entries of other keys, and empty ones, are all ones.
    #[inline(always)]
    fn find(&self, key: Key) -> u32 {
        self.keys.iter().zip(&self.slots).fold(NO_SLOT, |found, (&held, &slot)| {
            let differs = u32::from(held == key).wrapping_sub(1);
            found & (slot | differs)
        })
    }

    fn empty_way(&self) -> Option<usize> {
        self.slots.iter().position(|&slot| slot == NO_SLOT)
    }

    fn entry(&self, way: usize) -> Option<(Key, u32)> {
        let slot = *self.slots.get(way)?;
        if slot == NO_SLOT { None } else { Some((*self.keys.get(way)?, slot)) }
    }

    fn set(&mut self, way: usize, key: Key, slot: u32) {
        if let (Some(k), Some(s)) = (self.keys.get_mut(way), self.slots.get_mut(way)) {
            *k = key;
            *s = slot;
        }
    }

    fn way_of(&self, key: Key) -> Option<usize> {
        (0..WAYS).find(|&way| self.entry(way).is_some_and(|(held, _)| held == key))
    }
}

/// A key's hash in one index; worthless after the index has grown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(u64);

impl Hash {
    /// Of no key in particular.
    pub(crate) const NONE: Self = Self(0);
}

/// What makes the hashes of one index unpredictable.
#[derive(Clone, Copy, Debug)]
struct Seeds {
    flip: u64,
    multiplier: u64,
}

impl Seeds {
    fn new() -> Self {
        let mut random = Random::from_system();
        Self { flip: random.next_u64(), multiplier: random.next_u64() | 1 }
    }

    /// `mixed` is `mix(key)`. Which partition it belongs to says nothing about the halves of the result.
    #[inline(always)]
    fn hash(self, mixed: u64) -> Hash {
        let product = u128::from(mixed ^ self.flip) * u128::from(self.multiplier);
        Hash(product as u64 ^ (product >> 64) as u64)
    }
}

/// Where a look at a key's first bucket leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    /// The key's slot.
    Here(u32),
    /// In the second bucket, if anywhere.
    PerhapsElsewhere,
    /// Nowhere.
    Absent,
}

/// The buckets and the hash that chooses among them.
#[derive(Debug)]
struct Buckets {
    buckets: Array<Bucket>,
    seeds: Seeds,
}

impl Buckets {
    fn new(num_buckets: usize, seeds: Seeds) -> Result<Self> {
        Ok(Self { buckets: Array::filled(num_buckets, EMPTY_BUCKET)?, seeds })
    }

    fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    #[inline(always)]
    fn first(&self, hash: Hash) -> usize {
        (((hash.0 >> 32) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn second(&self, hash: Hash) -> usize {
        let second = (((hash.0 & 0xFFFF_FFFF) * self.buckets.len() as u64) >> 32) as usize;
        match second == self.first(hash) {
            false => second,
            true if second + 1 == self.buckets.len() => 0,
            true => second + 1,
        }
    }

    fn both(&self, key: Key) -> (usize, usize) {
        let hash = self.seeds.hash(mix(key));
        (self.first(hash), self.second(hash))
    }

    fn find(&self, key: Key, hash: Hash) -> Option<u32> {
        let first = self.buckets.get(self.first(hash))?;
        let mut slot = first.find(key);
        if slot == NO_SLOT && first.away > 0 {
            slot = self.buckets.get(self.second(hash))?.find(key);
        }
        (slot != NO_SLOT).then_some(slot)
    }

    /// Puts a key that is not there. False, and nothing changed, if no room could be made.
    fn place(&mut self, key: Key, slot: u32) -> bool {
        let (first, second) = self.both(key);
        let empty = |bucket: usize| Some((bucket, self.buckets.get(bucket)?.empty_way()?));
        let Some((at, way)) =
            empty(first).or_else(|| empty(second)).or_else(|| self.make_room(first, second))
        else {
            return false;
        };
        if at != first
            && let Some(home) = self.buckets.get_mut(first)
        {
            home.away += 1;
        }
        match self.buckets.get_mut(at) {
            Some(bucket) => bucket.set(way, key, slot),
            None => return false,
        }
        true
    }

    /// Puts in every key of a smaller array. False if that failed.
    ///
    /// Buckets are chosen by scaling the hash, so keys of neighbouring buckets stay neighbours: the first pass, which
    /// moves those that live in their first bucket, goes through both arrays from end to end. Only the others, and
    /// those that meet a full bucket, are looked for a place all over the array.
    fn take_over(&mut self, smaller: &Self) -> bool {
        let entries = || {
            let buckets = smaller.buckets.iter().enumerate();
            buckets.flat_map(|(at, bucket)| (0..WAYS).filter_map(move |way| Some((at, bucket.entry(way)?))))
        };
        for (at, (key, slot)) in entries() {
            let mixed = mix(key);
            let to = self.first(self.seeds.hash(mixed));
            if smaller.first(smaller.seeds.hash(mixed)) == at
                && let Some(bucket) = self.buckets.get_mut(to)
                && let Some(way) = bucket.empty_way()
            {
                bucket.set(way, key, slot);
            }
        }
        entries().all(|(_, (key, slot))| {
            self.find(key, self.seeds.hash(mix(key))).is_some() || self.place(key, slot)
        })
    }

    /// Empties an entry.
    fn vacate(&mut self, at: usize, way: usize) -> Option<u32> {
        let bucket = self.buckets.get_mut(at)?;
        let (key, slot) = bucket.entry(way)?;
        bucket.set(way, key, NO_SLOT);
        let (first, _) = self.both(key);
        if at != first {
            self.buckets.get_mut(first)?.away -= 1;
        }
        Some(slot)
    }
}

/// The keys of one partition and the slots of their rows.
#[derive(Debug)]
pub(crate) struct Index {
    table: Buckets,
    len: usize,
    fullness: Fullness,
}

impl Index {
    /// An empty index. `is_tight`: spend time rather than memory when it grows.
    pub(crate) fn new(is_tight: bool) -> Result<Self> {
        let table = Buckets::new(0, Seeds::new())?;
        Ok(Self { table, len: 0, fullness: if is_tight { TIGHT } else { ROOMY } })
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes taken.
    pub(crate) fn num_bytes(&self) -> usize {
        self.table.buckets.num_bytes()
    }

    /// Hashes a key, given as `mix(key)`.
    #[inline(always)]
    pub(crate) fn hash(&self, mixed: u64) -> Hash {
        self.table.seeds.hash(mixed)
    }

    /// Brings the key's first bucket near.
    #[inline(always)]
    pub(crate) fn prefetch_first(&self, hash: Hash) {
        if let Some(bucket) = self.table.buckets.get(self.table.first(hash)) {
            prefetch(bucket);
        }
    }

    /// Brings the key's second bucket near.
    #[inline]
    pub(crate) fn prefetch_second(&self, hash: Hash) {
        if let Some(bucket) = self.table.buckets.get(self.table.second(hash)) {
            prefetch(bucket);
        }
    }

    /// Looks for a key in its first bucket.
    #[inline(always)]
    pub(crate) fn glance(&self, key: Key, hash: Hash) -> Glance {
        let Some(bucket) = self.table.buckets.get(self.table.first(hash)) else { return Glance::Absent };
        match bucket.find(key) {
            NO_SLOT if bucket.away > 0 => Glance::PerhapsElsewhere,
            NO_SLOT => Glance::Absent,
            slot => Glance::Here(slot),
        }
    }

    /// Looks for a key in its second bucket.
    #[inline]
    pub(crate) fn find_second(&self, key: Key, hash: Hash) -> Option<u32> {
        let slot = self.table.buckets.get(self.table.second(hash))?.find(key);
        (slot != NO_SLOT).then_some(slot)
    }

    /// The slot of a key.
    #[inline]
    pub(crate) fn find(&self, key: Key, hash: Hash) -> Option<u32> {
        self.table.find(key, hash)
    }

    /// Adds a key that is not there. After an error nothing has changed.
    pub(crate) fn insert_new(&mut self, key: Key, slot: u32) -> Result<()> {
        if self.len >= rows_at(self.table.capacity(), self.fullness.most) {
            self.grow()?;
        }
        while !self.table.place(key, slot) {
            self.grow()?;
        }
        self.len += 1;
        Ok(())
    }

    /// Gives a key that is there another slot. False if it is not there.
    pub(crate) fn set_slot(&mut self, key: Key, slot: u32) -> bool {
        let (first, second) = self.table.both(key);
        [first, second].into_iter().any(|at| {
            let Some(bucket) = self.table.buckets.get_mut(at) else { return false };
            let way = bucket.way_of(key);
            way.inspect(|&way| bucket.set(way, key, slot)).is_some()
        })
    }

    /// Removes a key and returns its slot.
    pub(crate) fn remove(&mut self, key: Key) -> Option<u32> {
        let (first, second) = self.table.both(key);
        let find = |at: usize| Some((at, self.table.buckets.get(at)?.way_of(key)?));
        let (at, way) = find(first).or_else(|| find(second))?;
        let slot = self.table.vacate(at, way)?;
        self.len -= 1;
        Some(slot)
    }

    /// Every key and its slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, u32)> + '_ {
        self.table.buckets.iter().flat_map(|bucket| {
            let entries = bucket.keys.iter().zip(&bucket.slots);
            entries.filter(|&(_, &slot)| slot != NO_SLOT).map(|(&key, &slot)| (key, slot))
        })
    }

    /// Removes the keys of the slots that `is_victim` chooses; it is asked once for each.
    pub(crate) fn remove_if(&mut self, mut is_victim: impl FnMut(u32) -> bool) {
        for at in 0..self.table.buckets.len() {
            for way in 0..WAYS {
                let entry = self.table.buckets.get(at).and_then(|bucket| bucket.entry(way));
                if entry.is_some_and(|(_, slot)| is_victim(slot)) && self.table.vacate(at, way).is_some() {
                    self.len -= 1;
                }
            }
        }
    }

    /// Prepares for that many keys.
    pub(crate) fn reserve(&mut self, num_keys: usize) -> Result<()> {
        if num_keys <= rows_at(self.table.capacity(), self.fullness.most) {
            return Ok(());
        }
        self.rebuild((num_keys as f64 / self.fullness.expected / WAYS as f64).ceil() as usize)
    }

    fn grow(&mut self) -> Result<()> {
        let now = self.table.buckets.len();
        self.rebuild(
            now.saturating_add(
                (now.saturating_mul(self.fullness.growth) / 1024).max(now.clamp(2, MIN_GROWTH)),
            ),
        )
    }

    /// Moves the keys to a new, larger array.
    fn rebuild(&mut self, mut num_buckets: usize) -> Result<()> {
        let is_suspicious = self.len < rows_at(self.table.capacity(), SUSPICIOUS_LOAD);
        let mut seeds = if is_suspicious { Seeds::new() } else { self.table.seeds };
        for _ in 0..MAX_ATTEMPTS {
            let mut larger = Buckets::new(num_buckets, seeds)?;
            if larger.take_over(&self.table) {
                self.table = larger;
                return Ok(());
            }
            seeds = Seeds::new();
            num_buckets = num_buckets.saturating_add(num_buckets / 16 + 1);
        }
        Err(Error::new(ErrorKind::Internal, "keys do not spread over the index, whatever the hash"))
    }
}

fn rows_at(capacity: usize, load: f64) -> usize {
    (capacity as f64 * load) as usize
}

#[cfg(test)]
mod tests;
