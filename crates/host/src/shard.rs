//! A partition behind its lock, and the work on all of it: done in bounded steps, so that nobody waits for it.

use hps_core::Result;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard};

use crate::partition::Partition;
use crate::random::Random;

/// Rows that are evicted before others get the lock.
const EVICTED_PER_LOCK: usize = 256;

/// On cache lines of its own, so that one partition's lock does not slow another's.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard {
    partition: RwLock<Partition>,
    /// Of whoever evicts.
    evictor: Mutex<Random>,
}

impl Shard {
    pub(crate) fn new(partition: Partition) -> Self {
        Self { partition: RwLock::new(partition), evictor: Mutex::new(Random::from_system()) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Partition> {
        self.partition.read()
    }

    /// For work on all of the partition: readers go on even if a writer waits for the end of it.
    pub(crate) fn beside_readers(&self) -> RwLockUpgradableReadGuard<'_, Partition> {
        self.partition.upgradable_read()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Partition> {
        self.partition.write()
    }

    /// The same, after the index has got room for so many more keys. If it has to grow for that, readers go on meanwhile.
    pub(crate) fn write_with_room(&self, num_keys: usize) -> Result<RwLockWriteGuard<'_, Partition>> {
        let partition = self.partition.upgradable_read();
        if partition.is_untidy() {
            partition.tidy_up(&mut Random::from_system());
        }
        let larger = partition.larger_index(num_keys)?;
        let mut partition = RwLockUpgradableReadGuard::upgrade(partition);
        if let Some(larger) = larger {
            partition.take_index(larger);
        }
        Ok(partition)
    }

    /// Evicts rows from a partition that is full, down to what its limit leaves. Readers go on while they are chosen, and between
    /// steps writers do too. Others who want room wait until there is some.
    pub(crate) fn make_room(&self) -> Result<()> {
        let mut random = self.evictor.lock();
        let victims = self.partition.upgradable_read().choose_victims(&mut random)?;
        for keys in victims.chunks(EVICTED_PER_LOCK) {
            self.partition.write().evict(keys);
        }
        Ok(())
    }
}
