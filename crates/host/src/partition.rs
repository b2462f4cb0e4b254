//! What one lock guards: some keys of a table, their rows, and who has to go when there are too many.

use std::sync::Arc;

use hps_core::key::mix;
use hps_core::{Error, ErrorKind, Key, Result};

use crate::direct::{Direct, DirectView};
use crate::index::{Index, IndexView, LargerIndex};
use crate::marks::{Mark, Marks, Use};
use crate::prefetch::prefetch;
use crate::random::{Random, Sample};
use crate::settings::Limit;
use crate::slab::{Arena, FEW_SLABS, MANY_SLABS, Slabs, SlabsView, out_of_memory, reserve_slowly};

/// What lookups read of a partition while its lock is held, side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'p> {
    pub(crate) direct: DirectView<'p>,
    pub(crate) index: IndexView<'p>,
    pub(crate) slabs: SlabsView<'p>,
    /// What reading a row does to its mark, if a policy keeps one.
    pub(crate) used: Option<Use>,
}

/// What became of a row that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its key is new.
    Added,
    /// Its key was there, or the row was not wanted.
    NotAdded,
    /// It was not written: rows have to be evicted first.
    Full,
}

/// A part of a table.
#[derive(Debug)]
pub(crate) struct Partition {
    /// For tables without a limit, whose rows devices do not read.
    direct: Option<Direct>,
    index: Index,
    slabs: Slabs,
    marks: Option<Marks>,
    limit: Option<Limit>,
    /// Rows evicted so far.
    num_evicted: u64,
    /// Slots of rows that writes have replaced or removed, which devices may still read; None if none do.
    replaced: Option<Vec<u32>>,
}

impl Partition {
    /// `serves_devices`, which no caller asks for with a limit: no row is changed where it lies, see [`Self::reclaim`].
    pub(crate) fn new(
        row_bytes: usize,
        limit: Option<Limit>,
        serves_devices: bool,
        arena: Arc<Arena>,
    ) -> Result<Self> {
        Ok(Self {
            direct: None,
            index: Index::new()?,
            slabs: Slabs::new(row_bytes, arena),
            marks: limit.as_ref().and_then(Marks::new),
            limit,
            num_evicted: 0,
            replaced: serves_devices.then(Vec::new),
        })
    }

    /// Rows evicted so far.
    pub(crate) fn num_evicted(&self) -> u64 {
        self.num_evicted
    }

    /// Number of rows.
    pub(crate) fn len(&self) -> usize {
        self.index.len() + self.direct.as_ref().map_or(0, Direct::len)
    }

    /// Bytes taken beside the arena's.
    pub(crate) fn num_bytes(&self) -> usize {
        let replaced = self.replaced.as_ref().map_or(0, |slots| slots.capacity() * size_of::<u32>());
        let direct = self.direct.as_ref().map_or(0, Direct::num_bytes);
        self.index.num_bytes() + self.slabs.num_bytes() + replaced + direct
    }

    /// Prepares for `num_rows` rows, `num_keys` of them with keys in the index, or for the margin if that is less; partitions of the
    /// table will have `typical_rows` each. Returns the slabs to be reserved for them, as number and bytes of each.
    pub(crate) fn reserve(
        &mut self,
        typical_rows: usize,
        num_rows: usize,
        num_keys: usize,
    ) -> Result<(usize, usize)> {
        let most = self.limit.map_or(usize::MAX, |limit| limit.margin);
        self.index.reserve(num_keys.min(most))?;
        let num_slabs = if num_keys < num_rows { FEW_SLABS } else { MANY_SLABS };
        self.slabs.expect_rows(typical_rows.min(most), num_slabs);
        self.slabs.reserve(num_rows.min(most))?;
        self.slabs.lacking(num_rows.min(most))
    }

    /// True if it never had a row.
    pub(crate) fn is_untouched(&self) -> bool {
        self.slabs.is_untouched()
    }

    /// From now on keys have the slots of `direct`, if it still never had a row.
    pub(crate) fn give_slots(&mut self, direct: Direct, num_slots: usize) -> Result<()> {
        if self.is_untouched() {
            self.slabs.take_first(num_slots)?;
            self.direct = Some(direct);
        }
        Ok(())
    }

    // ---- reading ----

    /// What lookups read, for `num_accesses` of them: see [`Marks::tick`].
    pub(crate) fn view(&self, num_accesses: usize) -> View<'_> {
        View {
            direct: self.direct.as_ref().map(Direct::view).unwrap_or_default(),
            index: self.index.view(),
            slabs: self.slabs.view(),
            used: self.marks.as_ref().map(|marks| marks.tick(num_accesses)),
        }
    }

    /// Asks for the memory where a key will be looked for.
    pub(crate) fn approach(&self, key: Key) {
        match self.direct_slot(key) {
            Some(slot) => self.slabs.row(slot).into_iter().for_each(prefetch),
            None => drop(self.index.view().approach(mix(key))),
        }
    }

    /// The slot that is a key's, if it needs no index for it.
    fn direct_slot(&self, key: Key) -> Option<u32> {
        self.direct.as_ref()?.slot(key)
    }

    /// The slot of a key.
    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        if let Some(direct) = &self.direct
            && let Some(slot) = direct.slot(key)
        {
            return direct.holds(slot).then_some(slot);
        }
        self.index.find(key)
    }

    /// The row of a key; notes a use of it.
    pub(crate) fn look_up(&self, key: Key) -> Option<&[u8]> {
        let slot = self.find(key)?;
        if let Some(marks) = &self.marks {
            self.index.touch(key, marks.tick(1));
        }
        self.slabs.row(slot)
    }

    /// The row of a key, without noting a use of it.
    pub(crate) fn peek(&self, key: Key) -> Option<&[u8]> {
        self.slabs.row(self.find(key)?)
    }

    /// Where a key's row lies, for devices; 0 if it is not held.
    pub(crate) fn address(&self, key: Key) -> u64 {
        self.find(key).and_then(|slot| self.slabs.address(slot)).map_or(0, |row| row.as_ptr() as u64)
    }

    /// Every key and where its row lies.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Key, u64)> + '_ {
        let rows = self.index.iter().map(|(key, slot)| (key, self.slabs.address(slot)));
        rows.filter_map(|(key, row)| Some((key, row?.as_ptr() as u64)))
    }

    /// Every key.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.direct.iter().flat_map(Direct::keys).chain(self.index.iter().map(|(key, _)| key))
    }

    /// Adds every key to those of its rank: 0 for the hottest. There are at least as many ranks as marks.
    pub(crate) fn rank_keys(&self, ranks: &mut [Vec<Key>]) -> Result<()> {
        let Some(marks) = &self.marks else {
            let Some(all) = ranks.first_mut() else { return Ok(()) };
            all.try_reserve(self.len()).map_err(out_of_memory)?;
            all.extend(self.keys());
            return Ok(());
        };
        let order = marks.order();
        for (key, mark) in self.index.keys_and_marks() {
            // What was marked since has the youngest of all marks.
            let rank = order.iter().rev().position(|&ranked| ranked == mark).unwrap_or(0);
            if let Some(keys) = ranks.get_mut(rank) {
                keys.try_reserve(1).map_err(out_of_memory)?;
                keys.push(key);
            }
        }
        Ok(())
    }

    // ---- writing ----

    /// Adds or overwrites a row. After an error the partition is as it was.
    pub(crate) fn insert(&mut self, key: Key, row: &[u8]) -> Result<Outcome> {
        match self.find(key) {
            Some(slot) => self.overwrite(key, slot, row).map(|()| Outcome::NotAdded),
            None => self.add(key, row),
        }
    }

    /// Overwrites the row of a key that is present.
    pub(crate) fn update(&mut self, key: Key, row: &[u8]) -> Result<()> {
        self.find(key).map_or(Ok(()), |slot| self.overwrite(key, slot, row))
    }

    /// Adds a row unless the key is present.
    pub(crate) fn insert_if_absent(&mut self, key: Key, row: &[u8]) -> Result<Outcome> {
        if self.find(key).is_some() { Ok(Outcome::NotAdded) } else { self.add(key, row) }
    }

    /// Removes a key if it is present.
    pub(crate) fn erase(&mut self, key: Key) {
        if let Some(direct) = &mut self.direct
            && let Some(slot) = direct.slot(key)
        {
            return direct.set(slot, false);
        }
        let Some(slot) = self.index.remove(key) else { return };
        let Some(replaced) = &mut self.replaced else { return self.slabs.release(slot) };
        // Without memory to remember it the slot is lost, which is better than to use it too early.
        if reserve_slowly(replaced, 1).is_ok() {
            replaced.push(slot);
        }
    }

    fn overwrite(&mut self, key: Key, slot: u32, row: &[u8]) -> Result<()> {
        if let Some(used) = self.marks.as_ref().and_then(Marks::overwriting) {
            self.index.touch(key, used);
        }
        if self.replaced.is_some() {
            return self.replace(key, slot, row);
        }
        write_row(&mut self.slabs, slot, row)
    }

    /// Gives a key a row in another slot. All memory is had before the first change.
    fn replace(&mut self, key: Key, old: u32, row: &[u8]) -> Result<()> {
        self.slabs.reserve_one()?;
        if let Some(replaced) = &mut self.replaced {
            reserve_slowly(replaced, 1)?;
            replaced.push(old);
        }
        let new = self.slabs.take().ok_or_else(lost_slot)?;
        write_row(&mut self.slabs, new, row)?;
        if self.index.set_slot(key, new) { Ok(()) } else { Err(lost_slot()) }
    }

    /// Uses the slots of replaced rows again; or never, if devices may go on reading them.
    pub(crate) fn reclaim(&mut self, are_free: bool) {
        for slot in self.replaced.iter_mut().flat_map(|replaced| replaced.drain(..)) {
            if are_free {
                self.slabs.release(slot);
            }
        }
    }

    /// Adds a key that is not there. All memory is had before the first change.
    fn add(&mut self, key: Key, row: &[u8]) -> Result<Outcome> {
        if let Some(direct) = &mut self.direct
            && let Some(slot) = direct.slot(key)
        {
            write_row(&mut self.slabs, slot, row)?;
            direct.set(slot, true);
            return Ok(Outcome::Added);
        }
        if self.is_full() {
            return Ok(Outcome::Full);
        }
        self.slabs.reserve_one()?;
        let slot = self.slabs.next().ok_or_else(lost_slot)?;
        let mark = self.marks.as_ref().map_or(0, Marks::of_new_row);
        self.index.insert_new(key, slot, mark)?;
        self.slabs.take();
        write_row(&mut self.slabs, slot, row)?;
        Ok(Outcome::Added)
    }

    // ---- work on all of it, by a Shard ----

    /// The index with room for so many more keys; None if it has that.
    pub(crate) fn larger_index(&self, num_keys: usize) -> Result<Option<LargerIndex>> {
        // Whoever finds the partition full adds nothing.
        let room = self.limit.map_or(usize::MAX, |limit| limit.margin.saturating_sub(self.len()));
        self.index.larger(num_keys.min(room))
    }

    /// Takes the index that was made of its own; nobody has written meanwhile.
    pub(crate) fn take_index(&mut self, larger: LargerIndex) {
        self.index.take(larger);
    }

    fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.len() >= limit.margin)
    }

    /// Whom to evict if the partition is full, so that as many rows are left as its limit says: by its policy. At least one, also if
    /// rows are looked up meanwhile. What the policy remembers is tidied up on the way.
    pub(crate) fn choose_victims(&self, random: &mut Random) -> Result<Vec<Key>> {
        let mut victims = Vec::new();
        let num_victims = match self.limit {
            Some(limit) if self.is_full() => self.len().saturating_sub(limit.kept),
            _ => return Ok(victims),
        };
        victims.try_reserve_exact(num_victims).map_err(out_of_memory)?;
        let choose = |key: Key| {
            if victims.len() < num_victims {
                victims.push(key);
            }
        };
        match &self.marks {
            Some(marks) => self.remark(marks, num_victims, random, choose),
            None => {
                let mut sample = Sample::new(num_victims, self.index.len());
                self.index.iter().map(|(key, _)| key).filter(|_| sample.takes(random)).for_each(choose);
            }
        }
        if victims.is_empty() {
            victims.extend(self.index.iter().map(|(key, _)| key).take(1));
        }
        Ok(victims)
    }

    /// True if [`Self::tidy_up`] is due.
    pub(crate) fn is_untidy(&self) -> bool {
        self.marks.as_ref().is_some_and(Marks::is_late)
    }

    /// Goes through what the policy remembers, beside readers.
    pub(crate) fn tidy_up(&self, random: &mut Random) {
        if let Some(marks) = &self.marks {
            self.remark(marks, 0, random, drop);
        }
    }

    fn remark(&self, marks: &Marks, num_victims: usize, random: &mut Random, mut choose: impl FnMut(Key)) {
        let mut verdict = marks.judge(self.index.marks(), num_victims);
        self.index.remark(|key, mark: Mark| {
            let (goes, next) = verdict.of(mark, random);
            if goes {
                choose(key);
            }
            next
        });
    }

    /// Evicts these keys, as far as they are there.
    pub(crate) fn evict(&mut self, keys: &[Key]) {
        for &key in keys {
            if let Some(slot) = self.index.remove(key) {
                self.slabs.release(slot);
                self.num_evicted += 1;
            }
        }
    }
}

fn write_row(slabs: &mut Slabs, slot: u32, row: &[u8]) -> Result<()> {
    match slabs.row_mut(slot) {
        Some(target) if target.len() == row.len() => {
            target.copy_from_slice(row);
            Ok(())
        }
        _ => Err(lost_slot()),
    }
}

#[cold]
fn lost_slot() -> Error {
    Error::new(ErrorKind::Internal, "a slot of a table in host memory does not exist")
}
