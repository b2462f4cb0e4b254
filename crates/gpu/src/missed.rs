//! The keys that one lookup of a cache missed, on their way to the host and back.

use std::sync::Arc;

use hps_core::device::{DeviceAnswer, DeviceLookup, MissedKeys};
use hps_core::stats::LookupCounts;
use hps_core::tier::TierKind;
use hps_core::update_clock::ClockSnapshot;
use hps_core::{Error, ErrorKind, Key, Result, RowsMut, TableId};

use crate::abi::HpsScatter;
use crate::driver::{Event, StreamHandle};
use crate::inserter::{Insertion, Queue};
use crate::tier::Shared;
use crate::workspace::{Retiring, Workspace};

/// Rows that are looked up before the first of them travel to the GPU.
const PIECE_BYTES: usize = 2 << 20;

/// What becomes of the keys of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MissedSettings {
    /// The cache wants the rows.
    pub(crate) is_cached: bool,
    /// Hits are counted by the host; else the kernel has counted them.
    pub(crate) counts_hits: bool,
}

/// See the module. Dropped, its workspace goes back to the pool once the kernels that use it have ended.
#[derive(Debug)]
pub(crate) struct Missed {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    table: TableId,
    /// None once it was handed on.
    workspace: Option<Workspace>,
    lookup: DeviceLookup,
    /// The caller waits for the rows.
    is_answer: bool,
    settings: MissedSettings,
    num_missed: Option<usize>,
    /// The piece under way: its first key in the list, its first row in the workspace, its length.
    start: usize,
    row: usize,
    len: usize,
    /// Default rows among the rows in the workspace, as positions in the list.
    missing: Vec<u32>,
    /// What the clock showed before the first of the rows in the workspace was read.
    snapshot: Option<ClockSnapshot>,
    /// First key in the list whose row is still in the workspace.
    kept: usize,
    has_copied: bool,
    /// Stands for the lookup's kernel, if the caller does not wait.
    lookup_event: Option<Event>,
}

impl Missed {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Arc<Queue>,
        table: TableId,
        workspace: Workspace,
        lookup: DeviceLookup,
        settings: MissedSettings,
    ) -> Self {
        Self {
            shared,
            queue,
            table,
            workspace: Some(workspace),
            lookup,
            is_answer: true,
            settings,
            num_missed: None,
            start: 0,
            row: 0,
            len: 0,
            missing: Vec::new(),
            snapshot: None,
            kept: 0,
            has_copied: false,
            lookup_event: None,
        }
    }

    /// The caller has got default rows. His stream is not touched any more.
    pub(crate) fn for_later(mut self) -> Result<Self> {
        let _entered = self.shared.device.enter()?;
        let event = Event::new(self.shared.device)?;
        event.record(self.stream())?;
        self.lookup_event = Some(event);
        self.is_answer = false;
        Ok(self)
    }

    /// Waits, and decides by the hit rate over unique keys whether the default rows that were written are the answer.
    pub(crate) fn decide(mut self, threshold: f64) -> Result<DeviceAnswer> {
        let (num_hits, num_missed) = self.wait()?;
        if num_missed == 0 {
            return Ok(DeviceAnswer::Missed(Box::new(self)));
        }
        let workspace = self.workspace()?;
        let num_unique = workspace.num_unique();
        let mut missed: Vec<Key> = workspace.keys(0, num_missed).map(<[Key]>::to_vec).unwrap_or_default();
        missed.sort_unstable();
        missed.dedup();
        let hit_rate = if num_unique == 0 { 1.0 } else { 1.0 - missed.len() as f64 / num_unique as f64 };
        if hit_rate >= threshold {
            let mut counts = LookupCounts::default();
            counts.missing = num_missed as u64;
            counts.add_hits(TierKind::Gpu, num_hits);
            return Ok(DeviceAnswer::Later(Box::new(self.for_later()?), counts));
        }
        Ok(DeviceAnswer::Missed(Box::new(self)))
    }

    fn workspace(&self) -> Result<&Workspace> {
        self.workspace.as_ref().ok_or_else(lost_workspace)
    }

    fn row_bytes(&self) -> Result<usize> {
        Ok(self.shared.table(self.table)?.row_bytes() as usize)
    }

    fn stream(&self) -> StreamHandle {
        StreamHandle(self.lookup.stream)
    }

    /// Hands the rows in the workspace to the thread that inserts them; with the workspace.
    fn insert_behind(&mut self) -> Result<()> {
        if self.workspace.is_none() {
            return Ok(());
        }
        let event = self.copies_event()?;
        let Some(workspace) = self.workspace.take() else { return Ok(()) };
        let retiring = Retiring { workspace, has_answered: self.num_missed.is_some(), event };
        let insertion = self.snapshot.take().filter(|_| self.settings.is_cached).map(|snapshot| Insertion {
            table: self.table,
            start: self.kept,
            end: self.start + self.len,
            missing: std::mem::take(&mut self.missing),
            snapshot,
        });
        self.queue.push(retiring, insertion);
        Ok(())
    }

    /// Stands for the copies to the caller's rows that were sent.
    fn copies_event(&self) -> Result<Option<Event>> {
        if !self.has_copied {
            return Ok(None);
        }
        let _entered = self.shared.device.enter()?;
        let event = Event::new(self.shared.device)?;
        event.record(self.stream())?;
        Ok(Some(event))
    }
}

impl MissedKeys for Missed {
    fn wait(&mut self) -> Result<(usize, usize)> {
        let num_missed = match self.num_missed {
            Some(num_missed) => num_missed,
            None => self.workspace()?.wait(|| match &self.lookup_event {
                Some(event) => event.has_passed(),
                None => self.shared.device.is_idle(self.stream()),
            })?,
        };
        self.num_missed = Some(num_missed);
        if num_missed == 0
            && let Some(workspace) = self.workspace.take()
        {
            self.shared.pool.give(workspace);
        }
        let num_hits = if self.settings.counts_hits { self.lookup.num_keys - num_missed } else { 0 };
        Ok((num_hits, num_missed))
    }

    fn next_piece(&mut self) -> Result<Option<(&[Key], RowsMut<'_>)>> {
        let num_missed = self.num_missed.unwrap_or(0);
        let start = self.start + self.len;
        if start >= num_missed {
            self.insert_behind()?;
            return Ok(None);
        }
        let row_bytes = self.row_bytes()?;
        let _entered = self.shared.device.enter()?;
        let capacity = {
            let workspace = self.workspace.as_mut().ok_or_else(lost_workspace)?;
            // Reserved for all of them at first, so it only grows while nothing is under way.
            if self.start + self.len == 0 {
                workspace.reserve_rows(num_missed, row_bytes)?
            } else {
                workspace.reserve_rows(1, row_bytes)?
            }
        };
        let mut row = self.row + self.len;
        if row >= capacity {
            // More rows than the workspace holds: these ones are not cached, and the copies must have read theirs.
            if let Some(event) = self.copies_event()? {
                event.wait()?;
            }
            self.missing.clear();
            self.snapshot = None;
            self.kept = start;
            row = 0;
        }
        let len = (PIECE_BYTES / row_bytes.max(1)).max(1).min(num_missed - start).min(capacity - row);
        (self.start, self.row, self.len) = (start, row, len);
        let workspace = self.workspace.as_mut().ok_or_else(lost_workspace)?;
        let (keys, rows) = workspace.piece(start, len, row, row_bytes).ok_or_else(lost_workspace)?;
        Ok(Some((keys, RowsMut::from_bytes(rows, row_bytes).ok_or_else(lost_workspace)?)))
    }

    fn give_piece(&mut self, missing: &[u32], snapshot: &ClockSnapshot) -> Result<()> {
        let row_bytes = self.row_bytes()?;
        if self.is_answer {
            let workspace = self.workspace()?;
            let scatter = HpsScatter {
                rows: workspace.rows_address(self.row, row_bytes),
                positions: workspace.positions_address(self.start),
                out: self.lookup.rows,
                num_rows: self.len as u32,
                row_bytes: row_bytes as u32,
            };
            let device = self.shared.device;
            let _entered = device.enter()?;
            // SAFETY: the workspace is kept until an event after this has passed; the caller's rows as DeviceLookup says.
            unsafe { device.scatter(&scatter, self.stream())? };
            self.has_copied = true;
        }
        if self.snapshot.is_none() {
            self.snapshot = Some(snapshot.clone());
        }
        self.missing.extend(missing.iter().map(|position| position + self.start as u32));
        Ok(())
    }
}

impl Drop for Missed {
    fn drop(&mut self) {
        self.snapshot = None;
        if self.insert_behind().is_err()
            && let Some(workspace) = self.workspace.take()
        {
            workspace.abandon();
        }
    }
}

fn lost_workspace() -> Error {
    Error::new(ErrorKind::Internal, "a lookup on a GPU has lost its workspace")
}
