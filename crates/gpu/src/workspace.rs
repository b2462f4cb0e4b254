//! Buffers of one lookup that may miss keys: the list that the kernel writes, and room for the missed rows.
//!
//! ```text
//! list    pinned   [word u64][unique u64][positions u32 x n][keys u64 x n][indices u32 x n]
//! rows    pinned   [row x capacity]                  taken when keys are missed
//! device  GPU      [count u32][done u32][unique u32][- u32]   zero between lookups
//! ```
//!
//! The pool has no limit: a lookup takes a workspace that is free, or makes one.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hps_core::{Error, ErrorKind, Key, Result};
use parking_lot::Mutex;

use crate::abi::HpsMissList;
use crate::driver::{Device, Event, Stream, StreamHandle};
use crate::memory::{DeviceBuffer, PinnedBuffer};

const HEADER_BYTES: usize = 16;
const MIN_KEYS: usize = 1024;
/// Rows of missed keys that are under way at a time take at most this much, or one row.
const MAX_ROWS_BYTES: usize = 64 << 20;
/// How long a waiting thread looks at the word without pause.
const SPIN: Duration = Duration::from_micros(200);
/// How often it asks then whether the stream is still alive.
const CHECK: Duration = Duration::from_millis(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Workspace {
    device: &'static Device,
    capacity: usize,
    list: PinnedBuffer,
    counters: DeviceBuffer,
    places: Option<DeviceBuffer>,
    rows: Option<PinnedBuffer>,
    sequence: u32,
}

impl Workspace {
    fn new(device: &'static Device, num_keys: usize, stream: &Stream) -> Result<Self> {
        let capacity = num_keys.max(MIN_KEYS).next_power_of_two();
        let num_bytes = HEADER_BYTES + capacity * (4 + 8 + 4);
        let counters = DeviceBuffer::zeroed(device, 16, stream.handle())?;
        stream.synchronize()?;
        Ok(Self {
            device,
            capacity,
            list: PinnedBuffer::new(device, num_bytes as u64)?,
            counters,
            places: None,
            rows: None,
            sequence: 0,
        })
    }

    fn keys_offset(&self) -> usize {
        HEADER_BYTES + self.capacity * 4
    }

    fn indices_offset(&self) -> usize {
        self.keys_offset() + self.capacity * 8
    }

    /// The list for the next lookup.
    pub(crate) fn next_list(&mut self, counts_unique: bool) -> HpsMissList {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let list = self.list.address();
        HpsMissList {
            count: self.counters.address(),
            done: self.counters.address() + 4,
            positions: list + HEADER_BYTES as u64,
            keys: list + self.keys_offset() as u64,
            unique: if counts_unique { self.counters.address() + 8 } else { 0 },
            unique_out: list + 8,
            word: list,
            sequence: self.sequence,
            unused: 0,
        }
    }

    /// Places for counting up to `num_keys` distinct keys, as address and mask; zero once `stream` has passed.
    pub(crate) fn zeroed_places(&mut self, num_keys: usize, stream: StreamHandle) -> Result<(u64, u32)> {
        if self.places.is_none() {
            self.places = Some(DeviceBuffer::new(self.device, self.capacity as u64 * 8)?);
        }
        let num_places = num_keys.saturating_mul(2).next_power_of_two();
        let places = self.places.as_ref().map_or(0, DeviceBuffer::address);
        // SAFETY: at most twice the capacity, 4 bytes each; only this workspace's lookup uses them.
        unsafe { self.device.fill(places, 0, num_places * 4, stream)? };
        // Four billion places at most: the mask of 2^32 places is all ones.
        Ok((places, (num_places - 1) as u32))
    }

    /// Address of the device's counter of distinct keys.
    pub(crate) fn unique_address(&self) -> u64 {
        self.counters.address() + 8
    }

    /// The number of missed keys, if the lookup has ended.
    pub(crate) fn num_missed(&self) -> Option<usize> {
        let word = self.list.word(0)?.load(Ordering::Acquire);
        (word >> 32 == u64::from(self.sequence)).then_some((word & u64::from(u32::MAX)) as usize)
    }

    /// Drops a workspace that kernels may still use: waits for them, or keeps its memory for ever.
    pub(crate) fn abandon(self) {
        let has_waited = self.device.is_lost()
            || self.device.enter().and_then(|_entered| self.device.synchronize()).is_ok()
            || self.device.is_lost();
        if !has_waited {
            Box::leak(Box::new(self));
        }
    }

    /// The number of distinct keys, if it was asked for and the lookup has ended.
    pub(crate) fn num_unique(&self) -> usize {
        self.list.word(8).map_or(0, |word| word.load(Ordering::Acquire)) as usize
    }

    /// Waits for the word of a lookup. `has_ended` tells whether its kernel cannot be under way any more. Returns the number of
    /// missed keys.
    pub(crate) fn wait(&self, has_ended: impl Fn() -> Result<bool>) -> Result<usize> {
        let started = Instant::now();
        let mut checked = started;
        loop {
            for _ in 0..64 {
                if let Some(num_missed) = self.num_missed() {
                    return Ok(num_missed);
                }
                spin_loop();
            }
            let now = Instant::now();
            if now - started < SPIN {
                continue;
            }
            std::thread::yield_now();
            if now - checked < CHECK {
                continue;
            }
            checked = now;
            // A kernel that was ended by an error never writes the word.
            let _entered = self.device.enter()?;
            if has_ended()? && self.num_missed().is_none() {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "a lookup on a GPU has ended without telling its misses",
                ));
            }
        }
    }

    /// The keys `start..start + len` of the list.
    pub(crate) fn keys(&self, start: usize, len: usize) -> Option<&[Key]> {
        // SAFETY: keys are numbers; the kernel wrote them before the word that was waited for.
        unsafe { self.list.slice(self.keys_offset() + start * 8, len) }
    }

    pub(crate) fn keys_address(&self, start: usize) -> u64 {
        self.list.address() + (self.keys_offset() + start * 8) as u64
    }

    pub(crate) fn positions_address(&self, start: usize) -> u64 {
        self.list.address() + (HEADER_BYTES + start * 4) as u64
    }

    pub(crate) fn indices_address(&self) -> u64 {
        self.list.address() + self.indices_offset() as u64
    }

    /// The list of indices, which only the host writes and only the kernel that inserts reads.
    pub(crate) fn indices_mut(&mut self, len: usize) -> Option<&mut [u32]> {
        // SAFETY: numbers; the borrow is exclusive, and the kernel that reads them is launched after.
        unsafe { self.list.slice_mut(self.indices_offset(), len) }
    }

    /// Makes room for rows of `row_bytes`, at best for `num_rows`. Returns for how many.
    pub(crate) fn reserve_rows(&mut self, num_rows: usize, row_bytes: usize) -> Result<usize> {
        let most = (MAX_ROWS_BYTES / row_bytes.max(1)).max(1);
        let wanted = num_rows.clamp(1, most);
        let held = self.rows.as_ref().map_or(0, |rows| rows.num_bytes() / row_bytes.max(1));
        if held < wanted {
            self.rows = None;
            let num_bytes = (wanted * row_bytes).next_power_of_two().min(most * row_bytes);
            self.rows = Some(PinnedBuffer::new(self.device, num_bytes as u64)?);
        }
        Ok(self.rows.as_ref().map_or(0, |rows| rows.num_bytes() / row_bytes.max(1)).min(most))
    }

    pub(crate) fn rows_address(&self, row: usize, row_bytes: usize) -> u64 {
        self.rows.as_ref().map_or(0, PinnedBuffer::address) + (row * row_bytes) as u64
    }

    /// Keys `start..start + len` of the list, and the rows from `row` on that are theirs.
    pub(crate) fn piece(
        &mut self,
        start: usize,
        len: usize,
        row: usize,
        row_bytes: usize,
    ) -> Option<(&[Key], &mut [u8])> {
        let rows = self.rows.as_ref()?;
        // SAFETY: bytes; whoever copied from these rows was waited for, and the borrow is exclusive.
        let rows = unsafe { rows.slice_mut(row.checked_mul(row_bytes)?, len.checked_mul(row_bytes)?)? };
        // SAFETY: as in `keys`.
        let keys = unsafe { self.list.slice(self.keys_offset() + start * 8, len)? };
        Some((keys, rows))
    }
}

/// Workspaces that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Mutex<Vec<Workspace>>,
}

impl Pool {
    /// A workspace for `num_keys` keys. The device must have been entered; `service` is its stream for such things.
    pub(crate) fn take(
        &self,
        device: &'static Device,
        num_keys: usize,
        service: &Mutex<Stream>,
    ) -> Result<Workspace> {
        let mut free = self.free.lock();
        let fitting = free.iter().enumerate().filter(|(_, workspace)| workspace.capacity >= num_keys);
        if let Some((index, _)) = fitting.min_by_key(|(_, workspace)| workspace.capacity) {
            return Ok(free.swap_remove(index));
        }
        drop(free);
        Workspace::new(device, num_keys, &service.lock())
    }

    /// Takes a workspace back whose kernels have all ended.
    pub(crate) fn give(&self, workspace: Workspace) {
        self.free.lock().push(workspace);
    }
}

/// A workspace whose kernels may still be under way.
#[derive(Debug)]
pub(crate) struct Retiring {
    pub(crate) workspace: Workspace,
    /// The lookup's word was seen; else its kernel may be under way.
    pub(crate) has_answered: bool,
    /// Stands for the copies to the caller's rows.
    pub(crate) event: Option<Event>,
}

impl Retiring {
    /// True if all kernels have ended.
    pub(crate) fn is_over(&self) -> Result<bool> {
        if !self.has_answered && self.workspace.num_missed().is_none() {
            return Ok(false);
        }
        self.event.as_ref().map_or(Ok(true), Event::has_passed)
    }
}
