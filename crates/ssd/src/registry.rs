//! Which databases this process has open.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use hps_core::Result;
use parking_lot::{Condvar, Mutex};

use crate::database::{Database, OpenDatabase};

/// The databases that this process has open for writing, by canonical path.
///
/// The only static of this crate. It mirrors a fact of the whole process: RocksDB's lock belongs to the process, so a
/// second store on the same directory can only work by sharing the first one's handle, and the two have no owner in
/// common that could hold it.
static REGISTRY: Registry = Registry { open: Mutex::new(BTreeMap::new()), closed: Condvar::new() };

struct Registry {
    open: Mutex<BTreeMap<PathBuf, Weak<Database>>>,
    /// Notified when an entry goes.
    closed: Condvar,
}

/// The entry of an open database; it goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    path: PathBuf,
}

/// The database of this process at `path`: the one that is open, or else what `open` opens.
///
/// Opening one database waits for the opening of another; both happen at start-up.
pub(crate) fn share_or_open(
    path: &Path,
    open: impl FnOnce() -> Result<OpenDatabase>,
) -> Result<Arc<Database>> {
    let mut databases = REGISTRY.open.lock();
    loop {
        match databases.get(path).map(Weak::upgrade) {
            None => break,
            Some(Some(database)) => return Ok(database),
            // Its last user is closing it at this moment and still holds RocksDB's lock.
            Some(None) => REGISTRY.closed.wait(&mut databases),
        }
    }
    let database = open()?;
    let database = Arc::new(Database::new(database, Some(Registration { path: path.to_owned() })));
    databases.insert(path.to_owned(), Arc::downgrade(&database));
    Ok(database)
}

/// The database at `path` if this process has it open for writing.
pub(crate) fn opened(path: &Path) -> Option<Arc<Database>> {
    REGISTRY.open.lock().get(path).and_then(Weak::upgrade)
}

impl Drop for Registration {
    fn drop(&mut self) {
        REGISTRY.open.lock().remove(&self.path);
        REGISTRY.closed.notify_all();
    }
}
