//! Locks between processes: bytes of a file, locked for an open file description. The system gives them back when the process dies.
//!
//! A child made by `fork` has the same description. It lets go of it first of all: it could not use the store anyway, and would keep the
//! locks of a parent that dies before it. (Not of one that is being opened just then: there are moments between the system's copy of the
//! descriptors, ours of their numbers, and the opening.)

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

const MAX_OPEN: usize = 1024;

/// No file.
const NONE: i32 = -1;

/// Descriptors of the lock files that this process has open.
static OPEN: [AtomicI32; MAX_OPEN] = [const { AtomicI32::new(NONE) }; MAX_OPEN];

extern "C" fn in_child() {
    // A descriptor stays open if possible, as a file that means nothing: should its owner be dropped here, it closes nothing else.
    let file = File::open("/dev/null");
    let nothing = file.as_ref().map_or(NONE, AsRawFd::as_raw_fd);
    // Taken, as this child may use the numbers otherwise before it forks itself.
    let taken = OPEN.iter().map(|slot| slot.swap(NONE, Ordering::Relaxed));
    for descriptor in taken.filter(|&open| open != NONE && open != nothing) {
        // SAFETY: the child's own descriptor, of which nobody makes use here; allowed between fork and exec.
        if unsafe { libc::dup3(nothing, descriptor, libc::O_CLOEXEC) } == -1 {
            // SAFETY: as above.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// Has [`in_child`] called in every child from now on.
fn watch_forks() -> Result<()> {
    static RESULT: OnceLock<i32> = OnceLock::new();
    // SAFETY: a plain function, which takes no lock and stays valid: a library with this code is never unloaded.
    match RESULT.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) }) {
        0 => Ok(()),
        error => Err(Error::from_raw_os_error(*error)),
    }
}

/// How many may hold a lock at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// The bytes of one open file. Between threads that use the same one they lock nothing.
#[derive(Debug)]
pub(crate) struct Locks {
    file: File,
    /// The place in [`OPEN`].
    slot: &'static AtomicI32,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    locks: Arc<Locks>,
    byte: u64,
}

impl Locks {
    pub(crate) fn new(file: File) -> Result<Arc<Self>> {
        watch_forks()?;
        let descriptor = file.as_raw_fd();
        let take = |slot: &&AtomicI32| {
            slot.compare_exchange(NONE, descriptor, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        let slot = OPEN.iter().find(take).ok_or_else(|| {
            Error::other(format!("this process uses {MAX_OPEN} shared memories already: close some"))
        })?;
        Ok(Arc::new(Self { file, slot }))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Waits for a lock.
    pub(crate) fn lock(self: &Arc<Self>, byte: u64, mode: Mode) -> Result<Held> {
        loop {
            match self.set(libc::F_OFD_SETLKW, byte, kind(mode)) {
                Ok(()) => return Ok(Held { locks: Arc::clone(self), byte }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a lock if nobody holds it against us; changes the mode of one that is held already.
    pub(crate) fn try_lock(self: &Arc<Self>, byte: u64, mode: Mode) -> Result<Option<Held>> {
        match self.set(libc::F_OFD_SETLK, byte, kind(mode)) {
            Ok(()) => Ok(Some(Held { locks: Arc::clone(self), byte })),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn set(&self, command: i32, byte: u64, kind: i32) -> Result<()> {
        let range = libc::flock {
            l_type: kind as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: i64::try_from(byte).map_err(Error::other)?,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open while `self` lives, and the system only reads `range`.
        match unsafe { libc::fcntl(self.file.as_raw_fd(), command, &raw const range) } {
            -1 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        // Before the file is closed: its number may be another's right afterwards. In a child of fork the place may be another's already.
        let ours = self.file.as_raw_fd();
        let _ = self.slot.compare_exchange(ours, NONE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

fn kind(mode: Mode) -> i32 {
    match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing that could be done about a failure.
        let _ = self.locks.set(libc::F_OFD_SETLK, self.byte, libc::F_UNLCK);
    }
}
