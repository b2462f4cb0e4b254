//! The walk through the tiers whose batches are in host memory: one function, [`Walk::walk`].

use std::sync::Arc;

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::{Batch, MAX_BATCH_KEYS};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;
use crate::promoter::{Found, PIECE_BYTES, Promoter};
use crate::row::RowsMut;
use crate::stats::LookupCounts;
use crate::store::Table;
use crate::tier::{CacheTier, TruthTier};
use crate::update_clock::{ClockSnapshot, UpdateClock};

/// The tiers of a store, and who carries rows up between them.
pub(crate) struct Walk {
    /// What stands above the truth, fastest first.
    pub(crate) caches: Vec<Arc<dyn CacheTier>>,
    pub(crate) truth: Arc<dyn TruthTier>,
    /// One for each storage table.
    pub(crate) clocks: Arc<[UpdateClock]>,
    /// None if rows found below are not carried up.
    pub(crate) promoter: Option<Promoter>,
    /// Helps with the rows that devices missed; None without devices, or on one core.
    pub(crate) gatherers: Option<ThreadPool>,
}

/// Keys below which a thread is not worth waking.
const KEYS_PER_THREAD: usize = 256;

/// Threads that gather rows: `most`, or as many as there are cores. None if that is one.
///
/// # Errors
/// `OutOfMemory` if the threads cannot be started.
pub(crate) fn start_gatherers(most: usize) -> Result<Option<ThreadPool>> {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(most);
    if num_threads < 2 {
        return Ok(None);
    }
    let pool =
        ThreadPoolBuilder::new().num_threads(num_threads).thread_name(|i| format!("hps-gather-{i}")).build();
    pool.map(Some).map_err(|why| {
        Error::new(ErrorKind::OutOfMemory, "cannot start the threads that gather rows for GPUs")
            .caused_by(why)
    })
}

/// Where the keys of a batch were found.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    pub(crate) counts: LookupCounts,
    /// Positions of the keys that no tier holds, ascending.
    pub(crate) missing: Vec<u32>,
}

impl Walked {
    /// Adds what was found of the keys from `start` on.
    fn add(&mut self, part: Self, start: usize) {
        self.counts += part.counts;
        if start == 0 {
            self.missing = part.missing;
        } else {
            self.missing.extend(part.missing.iter().map(|position| position + start as u32));
        }
    }
}

impl Walk {
    /// As [`Self::lookup`], with the help of other threads if there are many keys.
    pub(crate) fn gather(&self, table: &Table, keys: &[Key], rows: &mut RowsMut<'_>) -> Result<Walked> {
        let Some(pool) = self.gatherers.as_ref().filter(|_| keys.len() >= 2 * KEYS_PER_THREAD) else {
            return self.lookup(table, keys, rows);
        };
        let num_keys = keys.len().div_ceil(pool.current_num_threads()).max(KEYS_PER_THREAD);
        let mut parts: Vec<_> = keys.chunks(num_keys).zip(rows.pieces(num_keys)).collect();
        let walked: Vec<Result<Walked>> = pool
            .install(|| parts.par_iter_mut().map(|(keys, rows)| self.lookup(table, keys, rows)).collect());
        let mut all = Walked::default();
        for (walked, start) in walked.into_iter().zip((0..).step_by(num_keys)) {
            all.add(walked?, start);
        }
        Ok(all)
    }

    /// Any number of keys: see [`Self::walk`]. Errors do not name the table yet.
    pub(crate) fn lookup(&self, table: &Table, keys: &[Key], rows: &mut RowsMut<'_>) -> Result<Walked> {
        let mut all = Walked::default();
        for (i, keys) in keys.chunks(MAX_BATCH_KEYS).enumerate() {
            let start = i * MAX_BATCH_KEYS;
            let mut rows = rows.slice(start, start + keys.len()).ok_or_else(out_of_range)?;
            all.add(self.walk(table, keys, &mut rows)?, start);
        }
        Ok(all)
    }

    /// The walk: each tier is asked for what the one above it missed.
    fn walk(&self, table: &Table, keys: &[Key], rows: &mut RowsMut<'_>) -> Result<Walked> {
        let mut counts = LookupCounts::default();
        let mut missed: Vec<Vec<u32>> = Vec::with_capacity(self.caches.len());
        let mut snapshot = None;

        for cache in &self.caches {
            let asked = missed.last().map_or(Batch::all(keys), |missed| Batch::at(keys, missed));
            let mut misses = Vec::new();
            cache.lookup(table.storage(), asked, rows, &mut misses)?;
            counts.add_hits(cache.kind(), asked.len() - misses.len());
            if misses.is_empty() {
                self.promote_found(table, keys, rows, &missed, &[], snapshot);
                return Ok(Walked { counts, missing: Vec::new() });
            }
            if self.promoter.is_some() && snapshot.is_none() {
                // Before anything is read below: see update_clock.rs.
                snapshot = self.clocks.get(table.storage().index()).map(UpdateClock::snapshot);
            }
            missed.push(misses);
        }

        let asked = missed.last().map_or(Batch::all(keys), |missed| Batch::at(keys, missed));
        let mut missing = Vec::new();
        self.truth.lookup(table.storage(), asked, rows, &mut missing)?;
        counts.add_hits(self.truth.kind(), asked.len() - missing.len());

        for &position in &missing {
            if !rows.write(position as usize, table.default_row()) {
                return Err(out_of_range());
            }
        }
        counts.missing = missing.len() as u64;
        self.promote_found(table, keys, rows, &missed, &missing, snapshot);
        Ok(Walked { counts, missing })
    }

    /// Offers each cache tier what it missed and a lower tier had; never default rows.
    fn promote_found(
        &self,
        table: &Table,
        keys: &[Key],
        rows: &RowsMut<'_>,
        missed: &[Vec<u32>],
        missing: &[u32],
        snapshot: Option<ClockSnapshot>,
    ) {
        let (Some(promoter), Some(snapshot)) = (&self.promoter, snapshot) else { return };
        let snapshot = Arc::new(snapshot);
        let row_bytes = table.row_bytes();
        let missing_len = missing.len();
        let rows = rows.as_rows();
        for (cache, missed) in missed.iter().enumerate() {
            // Both lists ascend.
            let mut missing = missing.iter().copied().peekable();
            let mut found = missed.iter().filter(|&&position| missing.next_if_eq(&position).is_none());
            let mut left = missed.len().saturating_sub(missing_len);
            while left > 0 {
                let num_rows = left.min((PIECE_BYTES / row_bytes).max(1));
                let piece = if promoter.has_room(num_rows, row_bytes) {
                    Found::with_capacity(table.storage(), cache, row_bytes, &snapshot, num_rows)
                } else {
                    None
                };
                let Some(mut piece) = piece else {
                    promoter.drop_rows(table.storage(), left);
                    break;
                };
                for &position in found.by_ref().take(num_rows) {
                    if let (Some(key), Some(row)) = (keys.get(position as usize), rows.get(position as usize))
                    {
                        piece.keys.push(*key);
                        piece.rows.extend_from_slice(row);
                    }
                }
                promoter.offer(piece);
                left -= num_rows;
            }
        }
    }
}

pub(crate) fn out_of_range() -> Error {
    Error::new(ErrorKind::Internal, "a tier reported a position outside the batch")
}
