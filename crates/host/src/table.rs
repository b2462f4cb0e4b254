//! One table: its partitions, and writes to them.

use std::ops::ControlFlow;
use std::sync::Arc;

use hps_core::device::AddressVisitor;
use hps_core::memory::BlockAllocator;
use hps_core::row::check_rows;
use hps_core::tier::{Expected, Promotion, TierUsage, Visitor};
use hps_core::{Error, ErrorKind, Key, Result, Rows};

use crate::direct::Pages;
use crate::group::{Groups, Partitioner};
use crate::marks::NUM_MARKS;
use crate::partition::{Outcome, Partition};
use crate::settings::Limit;
use crate::shard::Shard;
use crate::slab::{Arena, out_of_memory};

/// Keys that a writer treats before it lets readers pass.
const KEYS_PER_LOCK: usize = 256;
/// Keys that a write sorts by partition at a time, at most.
const MAX_SORTED_KEYS: usize = 1 << 16;
/// Rows that a scan shows at a time.
const SCANNED_ROWS: usize = 1024;
/// Keys that a scan remembers at a time (8 MiB).
const SCANNED_KEYS: usize = 1 << 20;
/// Addresses that a scan shows at a time.
const SCANNED_ADDRESSES: usize = 1 << 16;

/// The rows of one table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) row_bytes: usize,
    pub(crate) partitioner: Partitioner,
    pub(crate) shards: Vec<Shard>,
    arena: Arc<Arena>,
    /// Devices may read rows by themselves.
    serves_devices: bool,
    /// Slots may belong to keys for good: rows are neither evicted nor moved.
    may_be_direct: bool,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(
        row_bytes: usize,
        num_partitions: usize,
        limit: Option<Limit>,
        serves_devices: bool,
        allocator: &Arc<dyn BlockAllocator>,
    ) -> Result<Self> {
        let arena = Arc::new(Arena::new(Arc::clone(allocator)));
        // Evictions use slots again at once.
        let serves_devices = serves_devices && limit.is_none();
        let mut shards = Vec::new();
        shards.try_reserve_exact(num_partitions).map_err(out_of_memory)?;
        for _ in 0..num_partitions {
            let partition = Partition::new(row_bytes, limit, serves_devices, Arc::clone(&arena))?;
            shards.push(Shard::new(partition));
        }
        let partitioner = match limit {
            None => Partitioner::by_page(num_partitions),
            Some(_) => Partitioner::by_key(num_partitions),
        };
        let may_be_direct = limit.is_none() && !serves_devices;
        Ok(Self { row_bytes, partitioner, shards, arena, serves_devices, may_be_direct })
    }

    /// Prepares for what is expected of it.
    pub(crate) fn reserve(&self, expected: Expected) -> Result<()> {
        let spread =
            |rows: u64| usize::try_from(rows.div_ceil(self.shards.len().max(1) as u64)).unwrap_or(usize::MAX);
        let typical_rows = spread(expected.rows);
        let mut pages = match self.may_be_direct {
            true => Pages::plan(expected, self.row_bytes, self.partitioner)?,
            false => None,
        };
        let mut num_slabs = 0usize;
        let mut slab_bytes = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            let mut partition = shard.write();
            let lacking = match &pages {
                Some(pages) if partition.is_untouched() => {
                    let others = spread(expected.rows.saturating_sub(pages.num_slots() as u64));
                    partition.reserve(typical_rows, pages.num_slots_of(number) + others, others)?
                }
                _ => partition.reserve(typical_rows, typical_rows, typical_rows)?,
            };
            num_slabs = num_slabs.saturating_add(lacking.0);
            slab_bytes = slab_bytes.max(lacking.1);
        }
        self.arena.reserve(num_slabs, slab_bytes)?;
        let Some(pages) = &mut pages else { return Ok(()) };
        for (number, shard) in self.shards.iter().enumerate() {
            let num_slots = pages.num_slots_of(number);
            let direct = pages.slots_of(number)?;
            shard.write().give_slots(direct, num_slots)?;
        }
        Ok(())
    }

    /// Adds or overwrites rows.
    pub(crate) fn insert(&self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        check_rows(self.row_bytes, keys, rows)?;
        self.write(keys, true, |partition, key, position| partition.insert(key, row(rows, position)?))
    }

    /// Overwrites the rows of keys that are present.
    pub(crate) fn update(&self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        check_rows(self.row_bytes, keys, rows)?;
        self.write(keys, false, |partition, key, position| {
            partition.update(key, row(rows, position)?)?;
            Ok(Outcome::NotAdded)
        })
    }

    /// Removes keys.
    pub(crate) fn erase(&self, keys: &[Key]) -> Result<()> {
        self.write(keys, false, |partition, key, _| {
            partition.erase(key);
            Ok(Outcome::NotAdded)
        })
    }

    /// Adds rows that are still current and whose keys are absent. Returns how many.
    pub(crate) fn promote(&self, promotion: Promotion<'_>) -> Result<u64> {
        let Promotion { keys, rows, clock, snapshot } = promotion;
        check_rows(self.row_bytes, keys, rows)?;
        let mut added = 0;
        self.write(keys, true, |partition, key, position| {
            // Under the lock that updates and erasures of the key take: see hps_core::update_clock.
            if !clock.is_current(key, snapshot) {
                return Ok(Outcome::NotAdded);
            }
            let outcome = partition.insert_if_absent(key, row(rows, position)?)?;
            added += u64::from(outcome == Outcome::Added);
            Ok(outcome)
        })?;
        Ok(added)
    }

    /// True if keys that lie close together would need no index.
    pub(crate) fn may_be_direct(&self) -> bool {
        self.may_be_direct
    }

    /// Uses the places of replaced rows again, or never: see [`Partition::reclaim`].
    pub(crate) fn reclaim(&self, are_free: bool) {
        for shard in self.shards.iter().filter(|_| self.serves_devices) {
            shard.write().reclaim(are_free);
        }
    }

    /// True if there are rows and devices can read them all.
    pub(crate) fn is_reachable(&self) -> bool {
        self.serves_devices && self.arena.is_reachable()
    }

    /// Appends the address of each key's row, or 0.
    pub(crate) fn addresses(&self, keys: &[Key], addresses: &mut Vec<u64>) -> Result<()> {
        addresses.try_reserve(keys.len()).map_err(out_of_memory)?;
        addresses.extend(keys.iter().map(|&key| {
            let shard = self.shards.get(self.partitioner.of(key));
            shard.map_or(0, |shard| shard.read().address(key))
        }));
        Ok(())
    }

    /// Shows keys with the addresses of their rows, if devices can read them.
    pub(crate) fn scan_addresses(&self, visit: &mut AddressVisitor<'_>) -> Result<()> {
        if !self.serves_devices || !self.arena.promise_reach() {
            return Ok(());
        }
        let mut keys = Vec::with_capacity(SCANNED_ADDRESSES);
        let mut addresses = Vec::with_capacity(SCANNED_ADDRESSES);
        for shard in &self.shards {
            let partition = shard.read();
            let mut rows = partition.addresses();
            loop {
                keys.clear();
                addresses.clear();
                for (key, address) in rows.by_ref().take(SCANNED_ADDRESSES) {
                    keys.push(key);
                    addresses.push(address);
                }
                if keys.is_empty() {
                    break;
                }
                visit(&keys, &addresses)?;
            }
        }
        Ok(())
    }

    /// Calls `write` for each key and its position, under the lock of the key's partition: partition by partition, in
    /// the order of the keys within each. For a key that finds its partition full, again when there is room. `adds`: keys may
    /// be new.
    fn write(
        &self,
        keys: &[Key],
        adds: bool,
        mut write: impl FnMut(&mut Partition, Key, usize) -> Result<Outcome>,
    ) -> Result<()> {
        let piece = KEYS_PER_LOCK.saturating_mul(self.shards.len()).clamp(KEYS_PER_LOCK, MAX_SORTED_KEYS);
        let mut groups = Groups::new(self.partitioner, piece.min(keys.len()))?;
        for (number, keys) in keys.chunks(piece).enumerate() {
            groups.sort(keys)?;
            let base = number * piece;
            for (shard, mut positions) in groups.iter() {
                let Some(shard) = self.shards.get(shard) else { continue };
                while !positions.is_empty() {
                    let run = positions.get(..KEYS_PER_LOCK).unwrap_or(positions);
                    let mut partition = if adds { shard.write_with_room(run.len())? } else { shard.write() };
                    let written = write_run(&mut partition, keys, run, |partition, key, position| {
                        write(partition, key, base + position)
                    })?;
                    drop(partition);
                    if written < run.len() {
                        shard.make_room()?;
                    }
                    positions = positions.get(written..).unwrap_or_default();
                }
            }
        }
        Ok(())
    }

    /// Rows held, and bytes taken for them.
    pub(crate) fn usage(&self) -> TierUsage {
        let mut usage =
            TierUsage { rows: 0, bytes: (self.arena.num_bytes() + size_of_val(&*self.shards)) as u64 };
        for shard in &self.shards {
            let partition = shard.read();
            usage.rows += partition.len() as u64;
            usage.bytes += partition.num_bytes() as u64;
        }
        usage
    }

    /// Rows evicted so far.
    pub(crate) fn num_evicted(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().num_evicted()).sum()
    }

    /// Rows held, by partition.
    pub(crate) fn partition_rows(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.read().len() as u64).collect()
    }

    /// Every key that is held, hottest first. Readers go on; writers wait for one partition at a time.
    pub(crate) fn hottest_keys(&self) -> Result<Vec<Key>> {
        let mut ranks = vec![Vec::new(); NUM_MARKS];
        for shard in &self.shards {
            shard.beside_readers().rank_keys(&mut ranks)?;
        }
        let mut keys = Vec::new();
        keys.try_reserve_exact(ranks.iter().map(Vec::len).sum()).map_err(out_of_memory)?;
        // Each rank's memory goes as soon as it is copied.
        ranks.into_iter().for_each(|rank| keys.extend(rank));
        Ok(keys)
    }

    /// The largest key that is held.
    pub(crate) fn largest_key(&self) -> Option<Key> {
        self.shards.iter().filter_map(|shard| shard.read().keys().max()).max()
    }

    /// Shows every row once. Rows that come during the scan may be missed, rows that go may still be shown.
    ///
    /// No lock is held while `visit` runs, so keys can move meanwhile: a scan remembers the keys of a share of a
    /// partition, then looks them up again. The share of a key depends on the key alone.
    pub(crate) fn scan(&self, visit: &mut Visitor<'_>) -> Result<()> {
        let mut keys = Vec::new();
        let mut shown = Vec::new();
        let mut rows = Vec::new();
        for shard in &self.shards {
            let num_shares = (shard.read().len() / SCANNED_KEYS + 1) as u64;
            for share in 0..num_shares {
                keys.clear();
                for key in shard.read().keys().filter(|&key| share_of(key, num_shares) == share) {
                    push(&mut keys, key)?;
                }
                for keys in keys.chunks(SCANNED_ROWS) {
                    copy_present(&shard.read(), keys, &mut shown, &mut rows)?;
                    let rows = Rows::new(&rows, self.row_bytes)
                        .ok_or_else(|| Error::new(ErrorKind::Internal, "scanned rows are not whole"))?;
                    if !shown.is_empty() && visit(&shown, rows)? == ControlFlow::Break(()) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Keys whose bucket is asked for ahead of a write.
const WRITE_AHEAD: usize = 8;

/// Returns how many keys were written before one found the partition full.
fn write_run(
    partition: &mut Partition,
    keys: &[Key],
    positions: &[u32],
    mut write: impl FnMut(&mut Partition, Key, usize) -> Result<Outcome>,
) -> Result<usize> {
    let key_at = |position: u32| keys.get(position as usize).copied();
    let mut ahead = positions.iter().filter_map(|&position| key_at(position));
    for key in ahead.by_ref().take(WRITE_AHEAD) {
        partition.approach(key);
    }
    for (written, &position) in positions.iter().enumerate() {
        if let Some(key) = ahead.next() {
            partition.approach(key);
        }
        if let Some(key) = key_at(position)
            && write(partition, key, position as usize)? == Outcome::Full
        {
            return Ok(written);
        }
    }
    Ok(positions.len())
}

/// The share of a partition's keys, of `num_shares` about equal ones, that a key belongs to.
fn share_of(key: Key, num_shares: u64) -> u64 {
    // Not the lower bits: they are alike within a partition.
    ((u128::from(hps_core::key::mix(key)) * u128::from(num_shares)) >> 64) as u64
}

fn push(keys: &mut Vec<Key>, key: Key) -> Result<()> {
    keys.try_reserve(1).map_err(out_of_memory)?;
    keys.push(key);
    Ok(())
}

fn copy_present(partition: &Partition, keys: &[Key], shown: &mut Vec<Key>, rows: &mut Vec<u8>) -> Result<()> {
    shown.clear();
    rows.clear();
    for &key in keys {
        if let Some(row) = partition.peek(key) {
            push(shown, key)?;
            rows.try_reserve(row.len()).map_err(out_of_memory)?;
            rows.extend_from_slice(row);
        }
    }
    Ok(())
}

fn row(rows: Rows<'_>, position: usize) -> Result<&[u8]> {
    rows.get(position).ok_or_else(|| Error::new(ErrorKind::Internal, "a key of a write has no row"))
}
