//! The read path: a batch in pieces, each under the locks of all partitions.

mod direct;
mod hashed;

use hps_core::batch::no_such_position;
use hps_core::row::check_row_bytes;
use hps_core::{Batch, Error, ErrorKind, Key, Result, RowsMut};

use crate::group::Partitioner;
use crate::partition::View;
use crate::prefetch::{LINE_BYTES, prefetch_lines};
use crate::shard::Shard;
use crate::slab::{RowRef, out_of_memory};
use crate::table::Table;

/// Keys that are looked up before writers get their turn.
const PIECE_KEYS: usize = 1024;
/// Lines of a row that are asked for ahead; the rest follows while the first are copied.
const PREFETCHED_LINES: usize = 8;

/// What one piece of a batch needs.
#[derive(Clone, Copy)]
struct Lookup<'l, 'p> {
    views: &'l [View<'p>],
    partitioner: Partitioner,
    batch: Batch<'l>,
    start: usize,
    end: usize,
    /// Of a row, that are asked for ahead.
    num_lines: usize,
}

impl<'l, 'p> Lookup<'l, 'p> {
    /// Of the partition that a key belongs to.
    #[inline(always)]
    fn view(&self, key: Key) -> Result<&'l View<'p>> {
        self.views.get(self.partitioner.of(key)).ok_or_else(no_such_partition)
    }
}

/// Asks for a row; for any of the partition, if there is one, in place of none.
#[inline(always)]
fn approach_row<'p>(view: &View<'p>, slot: u32, num_lines: usize) -> Option<RowRef<'p>> {
    let row = view.slabs.row_or_any(slot)?;
    prefetch_lines(row.address(), num_lines);
    Some(row)
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
            partitions.extend(self.shards.iter().map(Shard::read));
            let accesses = num_keys.div_ceil(num_partitions);
            let mut views = Vec::new();
            views.try_reserve(num_partitions).map_err(out_of_memory)?;
            views.extend(partitions.iter().map(|partition| partition.view(accesses)));
            let num_lines = self.row_bytes.div_ceil(LINE_BYTES).min(PREFETCHED_LINES);
            let lookup =
                Lookup { views: &views, partitioner: self.partitioner, batch, start, end, num_lines };
            match views.iter().all(|view| view.direct.is_empty()) {
                true => hashed::look_up(&lookup, rows, misses)?,
                false => direct::look_up(&lookup, rows, misses)?,
            }
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
        let partition = shard.read();
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
fn no_such_partition() -> Error {
    Error::new(ErrorKind::Internal, "a key belongs to no partition")
}
