//! Device memory in which a large lookup leaves rows that it has found in host memory, to be fetched in the order of their
//! addresses (cuda/fetch.cu). Pooled without limit; each is used by one lookup at a time, in the order of streams.

use hps_core::Result;
use parking_lot::Mutex;

use crate::abi::{HPS_FETCH_BUCKETS, HpsFetchEntry, HpsFetchList};
use crate::driver::{Device, Event, StreamHandle};
use crate::memory::DeviceBuffer;

/// From so many keys on, ordering the rows that a cache lacks pays; below, three more launches take longer than it saves.
pub(crate) const MIN_KEYS: usize = 1 << 15;

const ENTRY_BYTES: usize = size_of::<HpsFetchEntry>();

/// See the module.
#[derive(Debug)]
pub(crate) struct FetchSpace {
    capacity: usize,
    /// Entries, the same in order, buckets, counts.
    memory: DeviceBuffer,
    /// Stands for the last kernel that uses it.
    event: Event,
}

impl FetchSpace {
    fn new(device: &'static Device, num_keys: usize, stream: StreamHandle) -> Result<Self> {
        let capacity = num_keys.next_power_of_two();
        let num_bytes = 2 * capacity * ENTRY_BYTES + HPS_FETCH_BUCKETS as usize * 4 + 8;
        let memory = DeviceBuffer::zeroed(device, num_bytes as u64, stream)?;
        Ok(Self { capacity, memory, event: Event::new(device)? })
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
            let fitting = free.iter().enumerate().filter(|(_, space)| space.capacity >= num_keys);
            let smallest = fitting.min_by_key(|(_, space)| space.capacity).map(|(i, _)| i);
            smallest.map(|i| free.swap_remove(i))
        };
        match found {
            Some(space) => {
                space.event.delay(stream)?;
                Ok(space)
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
