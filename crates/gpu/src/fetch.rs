//! Device memory in which a large lookup leaves rows that it has found in host memory, to be fetched in the order of their
//! addresses (cuda/fetch.cu). Pooled without limit; each is used by one lookup at a time, in the order of streams.

use std::sync::atomic::{AtomicUsize, Ordering};

use hps_core::Result;
use parking_lot::Mutex;

use crate::abi::{HPS_FETCH_BUCKETS, HpsFetchEntry, HpsFetchList};
use crate::driver::{Device, Event, StreamHandle};
use crate::memory::DeviceBuffer;

/// From so many keys on, ordering the rows that a cache lacks pays; below, three more launches take longer than it saves.
static MIN_KEYS: AtomicUsize = AtomicUsize::new(1 << 15);

pub(crate) fn min_keys() -> usize {
    MIN_KEYS.load(Ordering::Relaxed)
}

/// For tests that are to fetch rows however few keys they have.
#[cfg(test)]
pub(crate) fn set_min_keys(num_keys: usize) {
    MIN_KEYS.store(num_keys, Ordering::Relaxed);
}

/// The handle that means another stream in every thread.
const PER_THREAD: StreamHandle = StreamHandle(2);

const ENTRY_BYTES: usize = size_of::<HpsFetchEntry>();
/// Three of them.
const COUNTS_BYTES: usize = 12;

/// See the module.
#[derive(Debug)]
pub(crate) struct FetchSpace {
    capacity: usize,
    /// Entries, the same in order, buckets, counts.
    memory: DeviceBuffer,
    /// Stands for the last kernel that uses it, in this stream.
    event: Event,
    stream: StreamHandle,
}

impl FetchSpace {
    fn new(device: &'static Device, num_keys: usize, stream: StreamHandle) -> Result<Self> {
        let capacity = num_keys.next_power_of_two();
        let num_bytes = 2 * capacity * ENTRY_BYTES + HPS_FETCH_BUCKETS as usize * 4 + COUNTS_BYTES;
        let memory = DeviceBuffer::new(device, num_bytes as u64)?;
        let buckets = 2 * capacity * ENTRY_BYTES;
        // SAFETY: ours and new; from the buckets to the end.
        unsafe { device.fill(memory.address() + buckets as u64, 0, num_bytes - buckets, stream)? };
        Ok(Self { capacity, memory, event: Event::new(device)?, stream })
    }

    /// For the lookup's parameters.
    pub(crate) fn list(&self) -> HpsFetchList {
        let entries = self.memory.address();
        let sorted = entries + (self.capacity * ENTRY_BYTES) as u64;
        let buckets = sorted + (self.capacity * ENTRY_BYTES) as u64;
        HpsFetchList { entries, sorted, buckets, counts: buckets + u64::from(HPS_FETCH_BUCKETS) * 4 }
    }
}

/// Spaces whose lookups have been sent.
#[derive(Debug, Default)]
pub(crate) struct FetchPool {
    free: Mutex<Vec<FetchSpace>>,
}

impl FetchPool {
    /// A space for `num_keys` keys, ready in the order of `stream`. The device must have been entered.
    pub(crate) fn take(
        &self,
        device: &'static Device,
        num_keys: usize,
        stream: StreamHandle,
    ) -> Result<FetchSpace> {
        let found = {
            let mut free = self.free.lock();
            let mut best: Option<(usize, usize)> = None;
            for (i, space) in free.iter().enumerate().filter(|(_, space)| space.capacity >= num_keys) {
                // One stream must never wait for another: that could be waiting for it.
                let is_same = space.stream == stream && stream != PER_THREAD;
                if (is_same || space.event.has_passed()?)
                    && best.is_none_or(|(capacity, _)| space.capacity < capacity)
                {
                    best = Some((space.capacity, i));
                }
            }
            best.map(|(_, i)| free.swap_remove(i))
        };
        match found {
            Some(space) => {
                // Of the same stream, or of one that had its handle before and has ended: nothing to wait for, as a rule.
                space.event.delay(stream)?;
                Ok(FetchSpace { stream, ..space })
            }
            None => FetchSpace::new(device, num_keys, stream),
        }
    }

    /// Takes a space back after everything that uses it was sent to `stream`.
    pub(crate) fn give(&self, space: FetchSpace, stream: StreamHandle) -> Result<()> {
        space.event.record(stream)?;
        self.free.lock().push(space);
        Ok(())
    }
}
