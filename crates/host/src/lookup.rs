//! The read path.
//!
//! Memory answers after about 100 ns, but many requests at a time: a lookup takes its keys in groups and does each step
//! for a whole group before the next step, so that what a step needs has arrived when it is needed.
//!
//! ```text
//! approach        hash the key, ask for its first bucket
//! glance          find it there and ask for its row, or for its second bucket (1 key in 6)
//! look elsewhere  find it in the second bucket and ask for its row
//! copy            the row to the caller, or the position to the misses
//! ```

use hps_core::key::mix;
use hps_core::{Batch, Error, ErrorKind, Key, Result, RowsMut};
use parking_lot::RwLockReadGuard;

use crate::index::{Glance, Hash};
use crate::partition::Partition;
use crate::slab::out_of_memory;
use crate::table::{Shard, Table, check_row_bytes};

/// Keys that are looked up before writers get their turn.
const PIECE_KEYS: usize = 1024;
/// Most keys that go through the steps together.
const MAX_GROUP: usize = 64;
/// Bytes of rows asked for ahead: they must stay in the first-level cache until they are copied.
const GROUP_BYTES: usize = 16 << 10;

/// A locked partition and the stamp for the rows that are read from it.
struct Reader<'t> {
    partition: RwLockReadGuard<'t, Partition>,
    stamp: u16,
}

impl<'t> Reader<'t> {
    fn new(shard: &'t Shard, num_accesses: usize) -> Self {
        let partition = shard.0.read();
        let stamp = partition.tick(num_accesses);
        Self { partition, stamp }
    }
}

/// A key on its way through the steps.
#[derive(Clone, Copy)]
struct Probe<'r, 't> {
    key: Key,
    hash: Hash,
    position: u32,
    glance: Glance,
    reader: Option<&'r Reader<'t>>,
}

const NO_PROBE: Probe<'_, '_> =
    Probe { key: 0, hash: Hash::NONE, position: 0, glance: Glance::Absent, reader: None };

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
        let mut readers = Vec::new();
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
            readers.try_reserve(num_partitions).map_err(out_of_memory)?;
            let accesses = num_keys.div_ceil(num_partitions);
            readers.extend(self.shards.iter().map(|shard| Reader::new(shard, accesses)));
            self.lookup_piece(&readers, batch, start..end, rows, misses)?;
            readers.clear();
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
        match partition.find(key) {
            Some(slot) => write(rows, position, partition.read(slot, partition.tick(1))?),
            None => {
                misses.push(position);
                Ok(())
            }
        }
    }

    fn lookup_piece(
        &self,
        readers: &[Reader<'_>],
        batch: Batch<'_>,
        piece: std::ops::Range<usize>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let group = (GROUP_BYTES / self.row_bytes.max(1)).clamp(16, MAX_GROUP);
        let mut probes = [NO_PROBE; MAX_GROUP];
        for start in piece.clone().step_by(group) {
            let group = group.min(piece.end - start);
            let Some(probes) = probes.get_mut(..group) else { return Err(no_such_position()) };
            for (probe, i) in probes.iter_mut().zip(start..) {
                let (position, key) = batch.get(i).ok_or_else(no_such_position)?;
                let mixed = mix(key);
                let reader = readers.get(self.partitioner.of_mixed(mixed)).ok_or_else(no_such_partition)?;
                let hash = reader.partition.approach(mixed);
                *probe = Probe { key, hash, position, glance: Glance::Absent, reader: Some(reader) };
            }
            for probe in probes.iter_mut() {
                if let Some(reader) = probe.reader {
                    probe.glance = reader.partition.glance(probe.key, probe.hash);
                }
            }
            for probe in probes.iter_mut().filter(|probe| probe.glance == Glance::PerhapsElsewhere) {
                if let Some(reader) = probe.reader {
                    let found = reader.partition.look_elsewhere(probe.key, probe.hash);
                    probe.glance = found.map_or(Glance::Absent, Glance::Here);
                }
            }
            for probe in probes.iter() {
                match (probe.glance, probe.reader) {
                    (Glance::Here(slot), Some(reader)) => {
                        write(rows, probe.position, reader.partition.read(slot, reader.stamp)?)?;
                    }
                    _ => misses.push(probe.position),
                }
            }
        }
        Ok(())
    }
}

#[inline(always)]
fn write(rows: &mut RowsMut<'_>, position: u32, row: &[u8]) -> Result<()> {
    if rows.write(position as usize, row) { Ok(()) } else { Err(no_such_position()) }
}

#[cold]
fn no_such_position() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a position of the batch lies outside of its keys or of the rows")
}

#[cold]
fn no_such_partition() -> Error {
    Error::new(ErrorKind::Internal, "a key belongs to no partition")
}
