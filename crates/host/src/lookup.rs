//! The read path.
//!
//! Memory answers after 100 ns and more, but many requests at a time: keys go through the steps in groups, and while a group
//! waits for the memory of its next step, others take theirs.
//!
//! ```text
//! approach        hash the keys, ask for their first buckets
//! look            find them there; ask for their rows, or for their second buckets (1 key in 6)
//! look elsewhere  find those in the second buckets, ask for their rows
//! copy            rows to the caller, or positions to the misses
//! ```
//!
//! What a step does to a key depends on it as little as can be: a processor that guesses wrong throws away what it has begun for
//! the keys behind.

use hps_core::key::mix;
use hps_core::{Batch, Error, ErrorKind, Key, Result, RowsMut};

use crate::group::Partitioner;
use crate::index::Bucket;
use crate::partition::View;
use crate::prefetch::{LINE_BYTES, prefetch_lines};
use crate::slab::{NO_SLOT, RowRef, out_of_memory};
use crate::table::{Table, check_row_bytes};

/// Keys that are looked up before writers get their turn.
const PIECE_KEYS: usize = 1024;
/// Keys that take a step together.
const GROUP: usize = 16;
const _: () = assert!(PIECE_KEYS.is_multiple_of(GROUP), "only a batch's last group is smaller");
/// A group takes a step each turn, so there are as many groups under way as there are steps.
const STEPS: usize = 4;
/// Lines of a row that are asked for ahead; the rest follows while the first are copied.
const PREFETCHED_LINES: usize = 8;

/// Keys on their way through the steps.
#[derive(Clone, Copy)]
struct Group<'v, 'p> {
    len: usize,
    keys: [Key; GROUP],
    positions: [u32; GROUP],
    buckets: [&'p Bucket; GROUP],
    views: [&'v View<'p>; GROUP],
    slots: [u32; GROUP],
    rows: [Option<RowRef<'p>>; GROUP],
    /// Numbers of the keys that may be in their second buckets.
    elsewhere: [u8; GROUP],
    num_elsewhere: usize,
}

impl<'v, 'p> Group<'v, 'p> {
    /// No keys; any view.
    fn new(view: &'v View<'p>) -> Self {
        Self {
            len: 0,
            keys: [0; GROUP],
            positions: [0; GROUP],
            buckets: [view.index.approach(0); GROUP],
            views: [view; GROUP],
            slots: [NO_SLOT; GROUP],
            rows: [None; GROUP],
            elsewhere: [0; GROUP],
            num_elsewhere: 0,
        }
    }

    /// Takes the keys of a batch from the `start`-th on. If they are fewer than a group, others are looked up too, in vain: all
    /// loops but the last have as many turns as there are keys in a group.
    #[inline(always)]
    fn approach(
        &mut self,
        batch: Batch<'_>,
        start: usize,
        views: &'v [View<'p>],
        partitioner: Partitioner,
    ) -> Result<()> {
        self.len =
            batch.copy_from(start, &mut self.keys, &mut self.positions).ok_or_else(no_such_position)?;
        for ((&key, bucket), view) in self.keys.iter().zip(&mut self.buckets).zip(&mut self.views) {
            let mixed = mix(key);
            *view = views.get(partitioner.of_mixed(mixed)).ok_or_else(no_such_partition)?;
            *bucket = view.index.approach(mixed);
        }
        Ok(())
    }

    #[inline(always)]
    fn look(&mut self, num_lines: usize) {
        let asked = self.keys.iter().zip(&self.buckets).zip(&self.views);
        let found = self.slots.iter_mut().zip(&mut self.rows);
        let mut num_elsewhere = 0;
        for (i, (((&key, bucket), view), (slot, row))) in asked.zip(found).enumerate() {
            let is_elsewhere;
            (*slot, is_elsewhere) = bucket.look(key);
            *row = approach_row(view, *slot, num_lines);
            if let Some(next) = self.elsewhere.get_mut(num_elsewhere) {
                *next = i as u8;
            }
            num_elsewhere += usize::from(is_elsewhere);
        }
        self.num_elsewhere = num_elsewhere;
        for i in self.elsewhere.iter().take(self.num_elsewhere).map(|&i| usize::from(i)) {
            if let (Some(&key), Some(bucket), Some(view)) =
                (self.keys.get(i), self.buckets.get_mut(i), self.views.get(i))
            {
                *bucket = view.index.approach_second(mix(key));
            }
        }
    }

    #[inline(always)]
    fn look_elsewhere(&mut self, num_lines: usize) {
        for i in self.elsewhere.iter().take(self.num_elsewhere).map(|&i| usize::from(i)) {
            let asked = (self.keys.get(i), self.buckets.get(i), self.views.get(i));
            let found = (self.slots.get_mut(i), self.rows.get_mut(i));
            if let ((Some(&key), Some(bucket), Some(view)), (Some(slot), Some(row))) = (asked, found) {
                *slot = bucket.find(key);
                *row = approach_row(view, *slot, num_lines);
            }
        }
    }

    #[inline(always)]
    fn copy(&self, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        let found = self.slots.iter().zip(&self.rows).zip(&self.views);
        for (&position, ((&slot, &row), view)) in self.positions.iter().zip(found).take(self.len) {
            match row {
                Some(row) if slot != NO_SLOT => {
                    if let Some(marks) = view.marks {
                        marks.looked_up(slot, view.stamp);
                    }
                    if !rows.write(position as usize, view.slabs.bytes(row)) {
                        return Err(no_such_position());
                    }
                }
                _ => misses.push(position),
            }
        }
        Ok(())
    }
}

/// Asks for a row; for any of the partition, if there is one, in place of none.
#[inline(always)]
fn approach_row<'p>(view: &View<'p>, slot: u32, num_lines: usize) -> Option<RowRef<'p>> {
    let row = view.slabs.row_or_any(slot)?;
    prefetch_lines(row.address(), num_lines);
    if let Some(marks) = view.marks {
        marks.prefetch(slot);
    }
    Some(row)
}

/// What one piece of a batch needs.
struct Lookup<'l, 'p> {
    views: &'l [View<'p>],
    partitioner: Partitioner,
    batch: Batch<'l>,
    start: usize,
    end: usize,
}

impl Lookup<'_, '_> {
    fn run(&self, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        let num_lines = rows.row_bytes().div_ceil(LINE_BYTES).min(PREFETCHED_LINES);
        let any = self.views.first().ok_or_else(no_such_partition)?;
        let mut groups = [Group::new(any); STEPS];
        let num_groups = (self.end - self.start).div_ceil(GROUP);
        for turn in 0..num_groups + STEPS - 1 {
            if let Some(group) = group_at(&mut groups, num_groups, turn, 3) {
                group.copy(rows, misses)?;
            }
            if let Some(group) = group_at(&mut groups, num_groups, turn, 2) {
                group.look_elsewhere(num_lines);
            }
            if let Some(group) = group_at(&mut groups, num_groups, turn, 1) {
                group.look(num_lines);
            }
            if let Some(group) = group_at(&mut groups, num_groups, turn, 0) {
                group.approach(self.batch, self.start + turn * GROUP, self.views, self.partitioner)?;
            }
        }
        Ok(())
    }
}

/// The group whose `step` it is in this turn; None at the beginning and at the end.
#[inline(always)]
fn group_at<'g, 'v, 'p>(
    groups: &'g mut [Group<'v, 'p>; STEPS],
    num_groups: usize,
    turn: usize,
    step: usize,
) -> Option<&'g mut Group<'v, 'p>> {
    let number = turn.checked_sub(step).filter(|&number| number < num_groups)?;
    groups.get_mut(number % STEPS)
}

impl Table {
    /// Looks up the keys of a batch; see [`hps_core::tier::Tier::lookup`].
    pub(crate) fn lookup(
        &self,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        check_row_bytes(self.row_bytes, rows.row_bytes())?;
        let num_partitions = self.shards.len();
        let mut partitions = Vec::new();
        for start in (0..batch.len()).step_by(PIECE_KEYS) {
            let end = batch.len().min(start + PIECE_KEYS);
            let num_keys = end - start;
            misses.try_reserve(num_keys).map_err(out_of_memory)?;
            if num_keys < num_partitions / 2 {
                // Cheaper than to lock every partition, although keys wait for memory one after another.
                for i in start..end {
                    self.lookup_one(batch, i, rows, misses)?;
                }
                continue;
            }
            partitions.try_reserve(num_partitions).map_err(out_of_memory)?;
            partitions.extend(self.shards.iter().map(|shard| shard.0.read()));
            let accesses = num_keys.div_ceil(num_partitions);
            let mut views = Vec::new();
            views.try_reserve(num_partitions).map_err(out_of_memory)?;
            views.extend(partitions.iter().map(|partition| partition.view(accesses)));
            let lookup = Lookup { views: &views, partitioner: self.partitioner, batch, start, end };
            lookup.run(rows, misses)?;
            partitions.clear();
        }
        Ok(())
    }

    fn lookup_one(
        &self,
        batch: Batch<'_>,
        i: usize,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let (position, key) = batch.get(i).ok_or_else(no_such_position)?;
        let shard = self.shards.get(self.partitioner.of(key)).ok_or_else(no_such_partition)?;
        let partition = shard.0.read();
        match partition.look_up(key) {
            Some(row) if rows.write(position as usize, row) => Ok(()),
            Some(_) => Err(no_such_position()),
            None => {
                misses.push(position);
                Ok(())
            }
        }
    }
}

#[cold]
fn no_such_position() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a position of the batch lies outside of its keys or of the rows")
}

#[cold]
fn no_such_partition() -> Error {
    Error::new(ErrorKind::Internal, "a key belongs to no partition")
}
