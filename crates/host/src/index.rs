//! key -> slot: bucketed cuckoo hashing.
//!
//! A bucket is one cache line of five entries. A key has two buckets and lives in either; it is put into its first
//! one where that has room, so that most lookups, hits and misses alike, touch one line. Two choices of five entries
//! can be filled to 98 %: 13 bytes per key and slot, where a plain open-addressing table needs 16 to 27.
//!
//! ```text
//! bucket: | key 0 .. key 4 (8 bytes each) | slot 0 .. slot 4 (4 bytes each) | mark 0 .. mark 4 (4 bits each), away (12 bits) |
//! ```
//! `away` counts the keys whose first bucket this is and which live in their second: if it is 0, a key that is not
//! here is nowhere. A slot of `NO_SLOT` marks an empty entry, so that every key is legal. What a policy remembers of a row
//! (marks.rs) lies in the line that a lookup has read anyway.
//!
//! Hashes are keyed with random numbers that are drawn anew when keys refuse to spread: nobody can make keys collide.

mod bucket;
mod displace;

use hps_core::key::mix;
use hps_core::keyed_hash::{Hash, Seeds};
use hps_core::{Error, ErrorKind, Key, Result};

pub(crate) use self::bucket::Bucket;
use self::bucket::{EMPTY_BUCKET, Entry, WAYS};
use crate::array::Array;
use crate::marks::{Mark, Use};
use crate::prefetch::prefetch;
use crate::random::Random;
use crate::slab::NO_SLOT;

/// How full an index may be, where it grows: beyond 98 % searches for an empty entry become long, and 98.95 % is the
/// theoretical end.
const MOST_FULL: f64 = 0.972;
/// What an index begins with whose size is known beforehand: leaves room for partitions that get more keys.
const EXPECTED_FULL: f64 = 0.96;
/// By how much a large index grows, in 1/1024 of its size.
const GROWTH: usize = 18;

/// If keys refuse to spread below this fullness, the hash is to blame.
const SUSPICIOUS_LOAD: f64 = 0.9;
/// A small index grows by at least this many buckets, or doubles.
const MIN_GROWTH: usize = 16;
/// Each attempt either succeeds or is a stroke of very bad luck.
const MAX_ATTEMPTS: usize = 16;

fn new_seeds() -> Seeds {
    let mut random = Random::from_system();
    Seeds::new(random.next_u64(), random.next_u64())
}

/// What lookups read of an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexView<'i> {
    buckets: &'i [Bucket],
    seeds: Seeds,
}

impl<'i> IndexView<'i> {
    /// The first bucket of a key, given as `mix(key)`, which is asked for.
    #[inline(always)]
    pub(crate) fn approach(&self, mixed: u64) -> &'i Bucket {
        self.bucket(self.seeds.hash(mixed).first_bucket(self.buckets.len()))
    }

    /// The same of its second bucket.
    #[inline(always)]
    pub(crate) fn approach_second(&self, mixed: u64) -> &'i Bucket {
        self.bucket(self.seeds.hash(mixed).second_bucket(self.buckets.len()))
    }

    #[inline(always)]
    fn bucket(&self, at: usize) -> &'i Bucket {
        let bucket = self.buckets.get(at).unwrap_or(&EMPTY_BUCKET);
        prefetch(bucket);
        bucket
    }

    /// The slot of a key, or `NO_SLOT`.
    fn find(&self, key: Key) -> u32 {
        let mixed = mix(key);
        match self.approach(mixed).look(key) {
            (_, true) => self.approach_second(mixed).find(key),
            (slot, false) => slot,
        }
    }
}

/// The buckets and the hash that chooses among them.
#[derive(Debug)]
struct Buckets {
    buckets: Array<Bucket>,
    seeds: Seeds,
}

impl Buckets {
    fn new(num_buckets: usize, seeds: Seeds) -> Result<Self> {
        Ok(Self { buckets: Array::filled(num_buckets, Bucket::empty)?, seeds })
    }

    fn capacity(&self) -> usize {
        self.buckets.len() * WAYS
    }

    fn view(&self) -> IndexView<'_> {
        IndexView { buckets: &self.buckets, seeds: self.seeds }
    }

    fn first(&self, hash: Hash) -> usize {
        hash.first_bucket(self.buckets.len())
    }

    fn both(&self, key: Key) -> (usize, usize) {
        let hash = self.seeds.hash(mix(key));
        (self.first(hash), hash.second_bucket(self.buckets.len()))
    }

    /// Puts a key that is not there. False, and nothing changed, if no room could be made.
    fn place(&mut self, entry: Entry) -> bool {
        let (first, second) = self.both(entry.key);
        let empty = |bucket: usize| Some((bucket, self.buckets.get(bucket)?.empty_way()?));
        let Some((at, way)) =
            empty(first).or_else(|| empty(second)).or_else(|| self.make_room(first, second))
        else {
            return false;
        };
        if at != first
            && let Some(home) = self.buckets.get_mut(first)
        {
            home.sent_away();
        }
        match self.buckets.get_mut(at) {
            Some(bucket) => bucket.set(way, entry),
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
            buckets.flat_map(|(at, bucket)| bucket.entries().map(move |entry| (at, entry)))
        };
        for (at, entry) in entries() {
            let mixed = mix(entry.key);
            let to = self.first(self.seeds.hash(mixed));
            if smaller.first(smaller.seeds.hash(mixed)) == at
                && let Some(bucket) = self.buckets.get_mut(to)
                && let Some(way) = bucket.empty_way()
            {
                bucket.set(way, entry);
            }
        }
        entries().all(|(_, entry)| self.view().find(entry.key) != NO_SLOT || self.place(entry))
    }

    /// Empties an entry and returns what it was.
    fn vacate(&mut self, at: usize, way: usize) -> Option<Entry> {
        let bucket = self.buckets.get_mut(at)?;
        let entry = bucket.entry(way)?;
        bucket.set(way, Entry { slot: NO_SLOT, mark: 0, ..entry });
        let (first, _) = self.both(entry.key);
        if at != first {
            self.buckets.get_mut(first)?.came_back();
        }
        Some(entry)
    }
}

/// What an index grows into.
#[derive(Debug)]
pub(crate) struct LargerIndex(Buckets);

/// The keys of one partition and the slots of their rows.
#[derive(Debug)]
pub(crate) struct Index {
    table: Buckets,
    len: usize,
}

impl Index {
    /// An empty index.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { table: Buckets::new(0, new_seeds())?, len: 0 })
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes taken.
    pub(crate) fn num_bytes(&self) -> usize {
        self.table.buckets.num_bytes()
    }

    /// For lookups.
    #[inline(always)]
    pub(crate) fn view(&self) -> IndexView<'_> {
        self.table.view()
    }

    /// The slot of a key.
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        let slot = self.view().find(key);
        (slot != NO_SLOT).then_some(slot)
    }

    /// Adds a key that is not there. After an error nothing has changed.
    pub(crate) fn insert_new(&mut self, key: Key, slot: u32, mark: Mark) -> Result<()> {
        if self.len >= rows_at(self.table.capacity(), MOST_FULL) {
            self.grow()?;
        }
        while !self.table.place(Entry { key, slot, mark }) {
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
            let found = bucket.way_of(key).and_then(|way| Some((way, bucket.entry(way)?)));
            found.inspect(|&(way, entry)| bucket.set(way, Entry { slot, ..entry })).is_some()
        })
    }

    /// Removes a key and returns its slot.
    pub(crate) fn remove(&mut self, key: Key) -> Option<u32> {
        let (first, second) = self.table.both(key);
        let find = |at: usize| Some((at, self.table.buckets.get(at)?.way_of(key)?));
        let (at, way) = find(first).or_else(|| find(second))?;
        let Entry { slot, .. } = self.table.vacate(at, way)?;
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

    /// Every key and its mark.
    pub(crate) fn keys_and_marks(&self) -> impl Iterator<Item = (Key, Mark)> + '_ {
        self.table.buckets.iter().flat_map(Bucket::entries).map(|entry| (entry.key, entry.mark))
    }

    /// Every key's mark.
    pub(crate) fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.table.buckets.iter().flat_map(Bucket::entries).map(|entry| entry.mark)
    }

    /// Gives every key the mark that `remark` says, beside readers.
    pub(crate) fn remark(&self, mut remark: impl FnMut(Key, Mark) -> Mark) {
        for bucket in self.table.buckets.iter() {
            bucket.remark(|entry| remark(entry.key, entry.mark));
        }
    }

    /// Notes a use of a key's row.
    pub(crate) fn touch(&self, key: Key, used: Use) {
        let mixed = mix(key);
        let first = self.view().approach(mixed);
        match first.look(key) {
            (NO_SLOT, true) => {
                let second = self.view().approach_second(mixed);
                second.touch(second.find(key), used);
            }
            (NO_SLOT, false) => {}
            (slot, _) => first.touch(slot, used),
        }
    }

    /// Prepares for that many keys.
    pub(crate) fn reserve(&mut self, num_keys: usize) -> Result<()> {
        if num_keys <= rows_at(self.table.capacity(), MOST_FULL) {
            return Ok(());
        }
        let num_buckets = (num_keys as f64 / EXPECTED_FULL / WAYS as f64).ceil() as usize;
        self.table = self.rebuilt(num_buckets, self.table.seeds)?;
        Ok(())
    }

    /// The same keys with room for so many more; None if there is room.
    pub(crate) fn larger(&self, num_keys: usize) -> Result<Option<LargerIndex>> {
        let wanted = self.len.saturating_add(num_keys);
        if wanted <= rows_at(self.table.capacity(), MOST_FULL) {
            return Ok(None);
        }
        let needed = (wanted as f64 / MOST_FULL / WAYS as f64).ceil() as usize + 1;
        self.rebuilt(needed.max(self.grown()), self.table.seeds).map(|table| Some(LargerIndex(table)))
    }

    /// Takes the place of this index, of which it was made; nothing has changed since.
    pub(crate) fn take(&mut self, larger: LargerIndex) {
        self.table = larger.0;
    }

    /// Buckets of the next size.
    fn grown(&self) -> usize {
        let now = self.table.buckets.len();
        let more = (now.saturating_mul(GROWTH) / 1024).max(now.clamp(2, MIN_GROWTH));
        now.saturating_add(more)
    }

    /// For a key that has found no place.
    fn grow(&mut self) -> Result<()> {
        let is_suspicious = self.len < rows_at(self.table.capacity(), SUSPICIOUS_LOAD);
        let seeds = if is_suspicious { new_seeds() } else { self.table.seeds };
        self.table = self.rebuilt(self.grown(), seeds)?;
        Ok(())
    }

    /// The keys in a larger array.
    fn rebuilt(&self, mut num_buckets: usize, mut seeds: Seeds) -> Result<Buckets> {
        for _ in 0..MAX_ATTEMPTS {
            let mut larger = Buckets::new(num_buckets, seeds)?;
            if larger.take_over(&self.table) {
                return Ok(larger);
            }
            seeds = new_seeds();
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
