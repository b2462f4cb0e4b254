//! The read path of keys that are found by hashing.
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

use hps_core::batch::no_such_position;
use hps_core::key::mix;
use hps_core::{Key, Result, RowsMut};

use super::{Lookup, PIECE_KEYS, approach_row, no_such_partition};
use crate::index::Bucket;
use crate::partition::View;
use crate::slab::{NO_SLOT, RowRef};

/// Keys that take a step together.
const GROUP: usize = 16;
const _: () = assert!(PIECE_KEYS.is_multiple_of(GROUP), "only a batch's last group is smaller");
/// A group takes a step each turn, so there are as many groups under way as there are steps.
const STEPS: usize = 4;

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
    fn approach(&mut self, lookup: &Lookup<'v, 'p>, start: usize) -> Result<()> {
        let copied = lookup.batch.copy_from(start, &mut self.keys, &mut self.positions);
        self.len = copied.ok_or_else(no_such_position)?;
        for ((&key, bucket), view) in self.keys.iter().zip(&mut self.buckets).zip(&mut self.views) {
            *view = lookup.view(key)?;
            *bucket = view.index.approach(mix(key));
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
        let found = self.slots.iter().zip(&self.rows).zip(self.views.iter().zip(&self.buckets));
        for (&position, ((&slot, &row), (view, bucket))) in self.positions.iter().zip(found).take(self.len) {
            match row {
                Some(row) if slot != NO_SLOT => {
                    if let Some(used) = view.used {
                        bucket.touch(slot, used);
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

/// Looks keys up as if none had a slot of its own.
pub(super) fn look_up(lookup: &Lookup<'_, '_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
    let any = lookup.views.first().ok_or_else(no_such_partition)?;
    let mut groups = [Group::new(any); STEPS];
    let num_groups = (lookup.end - lookup.start).div_ceil(GROUP);
    for turn in 0..num_groups + STEPS - 1 {
        if let Some(group) = group_at(&mut groups, num_groups, turn, 3) {
            group.copy(rows, misses)?;
        }
        if let Some(group) = group_at(&mut groups, num_groups, turn, 2) {
            group.look_elsewhere(lookup.num_lines);
        }
        if let Some(group) = group_at(&mut groups, num_groups, turn, 1) {
            group.look(lookup.num_lines);
        }
        if let Some(group) = group_at(&mut groups, num_groups, turn, 0) {
            group.approach(lookup, lookup.start + turn * GROUP)?;
        }
    }
    Ok(())
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
