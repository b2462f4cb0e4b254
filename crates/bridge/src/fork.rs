//! A child made by `fork` inherits our memory but not our threads, nor RocksDB's: using a store there would hang. It
//! gets an error instead.
//!
//! Nor can such a child run RocksDB's static destructors when it exits: one of them joins a thread that does not exist
//! there. So a child ends right before them, with its output flushed and its own exit status.

use std::ffi::{c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use hps_core::{Error, ErrorKind, Result};

/// How many forks lie between this process and the one that loaded the library.
static FORKS: AtomicU64 = AtomicU64::new(0);
/// `FORKS + 1` of the process that first opened a store; 0 before.
static OPENED_IN: AtomicU64 = AtomicU64::new(0);
static WATCH: Once = Once::new();

unsafe extern "C" {
    /// glibc: runs `function` at exit, before what was registered earlier, and tells it the exit status.
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    // Registered here, it is the last one, whatever was made before the fork and however far an opening had come.
    // SAFETY: the handler is a plain function that stays valid, as the library is never unloaded; glibc has made its
    // allocator usable again before it calls us.
    unsafe { on_exit(at_exit, std::ptr::null_mut()) };
}

extern "C" fn at_exit(status: c_int, _: *mut c_void) {
    if check().is_err() {
        // SAFETY: null means all streams; glibc has reset their locks in the child.
        unsafe { libc::fflush(std::ptr::null_mut()) };
        // SAFETY: ends the process; nothing of it is used afterwards.
        unsafe { libc::_exit(status) };
    }
}

/// Notes that this process opens stores.
pub(crate) fn note_open() {
    WATCH.call_once(|| {
        // SAFETY: the handler is a plain function that takes none of our locks; the library is never unloaded
        // (-z nodelete).
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
