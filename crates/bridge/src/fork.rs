//! A child made by `fork` inherits our memory but not our threads, nor RocksDB's: using a store there would hang. It
//! gets an error instead.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use hps_core::{Error, ErrorKind, Result};

/// How many forks lie between this process and the one that loaded the library.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// `FORKS + 1` of the process that first opened a store; 0 before.
static OPENED_IN: AtomicU64 = AtomicU64::new(0);
static WATCH: Once = Once::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Notes that this process opens stores.
pub(crate) fn note_open() {
    WATCH.call_once(|| {
        // SAFETY: the handler is a plain function that touches one atomic, which is all that a handler in the child
        // of a threaded process may do; the library is never unloaded (-z nodelete).
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    let this = FORKS.load(Ordering::Relaxed) + 1;
    // Fails if it was noted before; then it must not change.
    let _ = OPENED_IN.compare_exchange(0, this, Ordering::Relaxed, Ordering::Relaxed);
}

/// Refuses to go on in a child of the process that opened stores. Takes no lock: any lock may be held for ever here.
pub(crate) fn check() -> Result<()> {
    let opened_in = OPENED_IN.load(Ordering::Relaxed);
    if opened_in == 0 || opened_in == FORKS.load(Ordering::Relaxed) + 1 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Closed,
        "hps was used before this process was forked, and its threads do not exist in the child; start the worker \
         with \"spawn\" (multiprocessing_context=\"spawn\" in a DataLoader), or use hps only after the fork",
    ))
}
