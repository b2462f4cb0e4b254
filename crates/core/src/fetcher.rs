//! Fetches rows that devices want for later lookups: one thread, one bounded queue.
//!
//! A lookup never waits for it: what the queue has no room for is not fetched this time.

use std::sync::Arc;

use crate::background::Background;
use crate::device::MissedKeys;
use crate::error::Result;
use crate::observer::Observer;
use crate::stats::LookupCounts;
use crate::store::Table;
use crate::tier::TierKind;
use crate::walk::{Walk, out_of_range};

/// Lookups whose misses may wait. Their keys lie in buffers of the device tier.
const MAX_WAITING: usize = 64;

impl Walk {
    /// Gives a device the rows that it missed, wherever they are. Returns where all keys of the lookup were found.
    pub(crate) fn answer(&self, table: &Table, missed: &mut dyn MissedKeys) -> Result<LookupCounts> {
        let (num_hits, num_missed) = missed.wait()?;
        let mut counts = LookupCounts::default();
        counts.add_hits(TierKind::Gpu, num_hits);
        if num_missed == 0 {
            return Ok(counts);
        }
        counts += self.fetch(table, missed)?;
        Ok(counts)
    }

    /// Looks up what a device missed, piece by piece.
    fn fetch(&self, table: &Table, missed: &mut dyn MissedKeys) -> Result<LookupCounts> {
        let mut counts = LookupCounts::default();
        loop {
            // Before anything is read below: see update_clock.rs.
            let clock = self.clocks.get(table.storage().index()).ok_or_else(out_of_range)?;
            let snapshot = clock.snapshot();
            let Some((keys, mut rows)) = missed.next_piece()? else { return Ok(counts) };
            let walked = self.gather(table, keys, &mut rows)?;
            counts += walked.counts;
            missed.give_piece(&walked.missing, &snapshot)?;
        }
    }
}

/// See the module.
pub(crate) struct Fetcher {
    background: Background<(usize, Box<dyn MissedKeys>)>,
}

impl Fetcher {
    pub(crate) fn start(walk: Arc<Walk>, tables: Arc<[Table]>, observer: Arc<dyn Observer>) -> Result<Self> {
        let fetch = move |(table, mut missed): (usize, Box<dyn MissedKeys>)| {
            let table = tables.get(table).ok_or_else(out_of_range)?;
            // The lookup was counted when it was answered: what is found now is for those to come.
            let fetched = missed.wait().and_then(|_| walk.fetch(table, missed.as_mut()));
            fetched.map(drop).map_err(|error| table.name_in(error))
        };
        Ok(Self { background: Background::start("hps-fetch", "fetched for a GPU", observer, fetch)? })
    }

    /// Queues what a lookup of a table missed; if the queue is full, what waits longest is given up.
    pub(crate) fn offer(&self, table: usize, missed: Box<dyn MissedKeys>) {
        let mut given_up = None;
        let refused = self.background.offer((table, missed), |waiting| {
            if waiting.len() >= MAX_WAITING {
                given_up = waiting.pop_front();
            }
            true
        });
        // Neither is dropped while the queue is locked: buffers go back to a device then.
        drop((given_up, refused));
    }

    /// Waits until everything offered so far was fetched.
    pub(crate) fn drain(&self) {
        self.background.drain();
    }
}
