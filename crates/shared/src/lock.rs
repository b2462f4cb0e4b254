//! Locks between processes: bytes of a file, locked for an open file description. The system gives them back when the process dies.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// How many may hold a lock at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// The bytes of one open file. Between threads that use the same one they lock nothing.
#[derive(Debug)]
pub(crate) struct Locks(File);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    locks: Arc<Locks>,
    byte: u64,
}

impl Locks {
    pub(crate) fn new(file: File) -> Arc<Self> {
        Arc::new(Self(file))
    }

    pub(crate) fn file(&self) -> &File {
        &self.0
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
        match unsafe { libc::fcntl(self.0.as_raw_fd(), command, &raw const range) } {
            -1 => Err(Error::last_os_error()),
            _ => Ok(()),
        }
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
