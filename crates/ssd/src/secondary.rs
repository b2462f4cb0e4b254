//! The private directory of a reader: RocksDB's secondary instances keep their own log there.

use std::fs::DirBuilder;
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use hps_core::{Error, ErrorKind, Result};

/// A directory of ours under the system's temporary directory, removed when it is dropped.
#[derive(Debug)]
pub(crate) struct SecondaryDirectory {
    path: PathBuf,
}

impl SecondaryDirectory {
    /// Makes a new directory that only this user can enter.
    pub(crate) fn create() -> Result<Self> {
        let parent = std::env::temp_dir();
        // A name is taken by a reader of this process, or by one that was killed and had the same process id.
        for number in 0u64.. {
            let path = parent.join(format!("hps-ssd-reader-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == IoErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot_create(&path, error)),
            }
        }
        Err(cannot_create(&parent, IoErrorKind::AlreadyExists.into()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn cannot_create(path: &Path, cause: std::io::Error) -> Error {
    Error::new(
        ErrorKind::Storage,
        "cannot create the temporary directory that a read-only database needs; TMPDIR says where",
    )
    .at("directory", path.display())
    .caused_by(cause)
}

impl Drop for SecondaryDirectory {
    fn drop(&mut self) {
        // Best effort: nothing depends on it, and the system clears its temporary directory by itself.
        drop(std::fs::remove_dir_all(&self.path));
    }
}
