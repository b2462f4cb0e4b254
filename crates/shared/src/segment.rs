//! The directory that processes share: who is there, and how much memory is taken.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::lock::{Held, Locks, Mode};
use crate::settings::{Role, SharedSettings};

/// Bytes of the lock file, and what holding them means.
const ATTACHED: u64 = 0;
/// Files are made or removed, or settings.
const FILES: u64 = 1;
/// Tables are loaded.
const LOADING: u64 = 2;
/// The cache is filled by this process.
const FILLING: u64 = 3;
/// From here on each table has one for its writers.
const FIRST_TABLE: u64 = 1 << 16;

/// What the name of a segment ends with while it is removed, before the number of the process.
const REMOVED: &str = "hps-removed-";

/// Raised when processes of different versions could not share a segment.
const FORMAT: u64 = 2;

/// A segment that this process is attached to.
#[derive(Debug)]
pub(crate) struct Segment {
    directory: PathBuf,
    locks: Arc<Locks>,
    /// Between threads, which the locks do not keep apart.
    files: Mutex<()>,
    size_bytes: u64,
    auto_remove: bool,
    /// Given up when the segment is dropped.
    attached: Option<Held>,
}

impl Segment {
    /// Attaches to a segment, which is made if there is none.
    pub(crate) fn open(settings: &SharedSettings) -> Result<Self> {
        let directory = settings.parent.join(format!("{}.hps", settings.name));
        let failed = |error| cannot("open", &directory, error);
        let (locks, attached) = loop {
            match fs::create_dir_all(&directory) {
                // It was there, and somebody who left has just moved it out of the way.
                Err(error)
                    if error.kind() == IoErrorKind::AlreadyExists && !is_something_else(&directory) =>
                {
                    continue;
                }
                made => made.map_err(failed)?,
            }
            let path = directory.join("lock");
            let file =
                match OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path) {
                    Ok(file) => file,
                    // Somebody who left has just removed the directory.
                    Err(error) if error.kind() == IoErrorKind::NotFound => continue,
                    Err(error) => return Err(failed(error)),
                };
            let locks = Locks::new(file).map_err(failed)?;
            let attached = locks.lock(ATTACHED, Mode::Shared).map_err(failed)?;
            if is_same_file(locks.file(), &path) {
                break (locks, attached);
            }
        };
        let mut segment = Self {
            directory,
            locks,
            files: Mutex::default(),
            size_bytes: settings.size_bytes,
            // Whoever is refused must not remove what others have left.
            auto_remove: false,
            attached: Some(attached),
        };
        segment.agree(settings)?;
        segment.auto_remove = settings.auto_remove;
        segment.remove_remains();
        Ok(segment)
    }

    /// Removes what a process left that was killed while it removed the segment.
    fn remove_remains(&self) {
        let (Some(parent), Some(name)) = (self.directory.parent(), self.directory.file_stem()) else {
            return;
        };
        let prefix = format!("{}.{REMOVED}", name.to_string_lossy());
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
            // Two may do it at once.
            let _ = fs::remove_dir_all(entry.path());
        }
    }

    /// Writes down what all have to agree on, or compares with it.
    fn agree(&self, settings: &SharedSettings) -> Result<()> {
        let _files = self.lock_files()?;
        let path = self.directory.join("settings");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == IoErrorKind::NotFound => {
                return self.replace_file("settings", &agreed(settings).to_string());
            }
            Err(error) => return Err(cannot("read", &path, error)),
        };
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let differs = |what: String| {
            Err(Error::new(ErrorKind::Config, what).at("shared memory", self.directory.display()))
        };
        if value.get("format").and_then(Value::as_u64) != Some(FORMAT) {
            return differs(format!(
                "the shared memory was made by another version of hps ({}): stop the processes that use it, and remove it",
                text.trim()
            ));
        }
        for (key, name) in [
            ("auto_remove", "shared_memory_auto_remove"),
            ("holds", "what is held (tables themselves, or copies of a persistent_db)"),
            ("limit", "overflow_margin times num_partitions, or overflow_policy,"),
        ] {
            let (found, ours) = (value.get(key), agreed(settings));
            let ours = ours.get(key);
            if found != ours {
                let show = |value: Option<&Value>| value.map_or_else(|| "unknown".into(), Value::to_string);
                return differs(format!(
                    "{name} is {}, but the shared memory was made with {}: all processes have to agree; correct ps.json, give it \
                     another shared_memory_name, or remove the directory when no process uses it",
                    show(ours),
                    show(found)
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The right to load tables, for one process at a time. `wait` is called once if it is not free.
    pub(crate) fn loading_turn(&self, wait: impl FnOnce()) -> Result<Held> {
        let failed = |error| cannot("lock", &self.directory, error);
        if let Some(turn) = self.locks.try_lock(LOADING, Mode::Exclusive).map_err(failed)? {
            return Ok(turn);
        }
        wait();
        self.locks.lock(LOADING, Mode::Exclusive).map_err(failed)
    }

    /// The right to fill the cache, if no process has it.
    pub(crate) fn filling_turn(&self) -> Result<Option<Held>> {
        self.locks.try_lock(FILLING, Mode::Exclusive).map_err(|error| cannot("lock", &self.directory, error))
    }

    /// The right to write a table. Threads of this process have to be kept apart by other means.
    pub(crate) fn writing_turn(&self, table_hash: u128) -> Result<Held> {
        let byte = FIRST_TABLE + (table_hash as u64 >> 2);
        self.locks.lock(byte, Mode::Exclusive).map_err(|error| cannot("lock", &self.directory, error))
    }

    /// The other processes' lock is given up first, as fields are dropped in order: the next thread of this process would lose it
    /// otherwise.
    fn lock_files(&self) -> Result<(Held, parking_lot::MutexGuard<'_, ()>)> {
        let guard = self.files.lock();
        let failed = |error| cannot("lock", &self.directory, error);
        Ok((self.locks.lock(FILES, Mode::Exclusive).map_err(failed)?, guard))
    }

    /// A file of zeros whose memory is the segment's; made if there is none.
    pub(crate) fn open_or_make_file(&self, name: &str, num_bytes: u64, what: &str) -> Result<File> {
        let _files = self.lock_files()?;
        match self.open_file(name) {
            Err(error) if error.kind() == IoErrorKind::NotFound => self.make(name, num_bytes, what),
            Err(error) => Err(cannot("open", &self.directory.join(name), error)),
            Ok(file) => {
                // Whoever made it may have been killed before it had its memory.
                reserve(&file, num_bytes)
                    .map_err(|error| cannot("enlarge", &self.directory.join(name), error))?;
                Ok(file)
            }
        }
    }

    /// Makes a file of zeros whose memory is the segment's from now on.
    pub(crate) fn make_file(&self, name: &str, num_bytes: u64, what: &str) -> Result<File> {
        let _files = self.lock_files()?;
        self.make(name, num_bytes, what)
    }

    fn make(&self, name: &str, num_bytes: u64, what: &str) -> Result<File> {
        let path = self.directory.join(name);
        let failed = |error| cannot("make", &path, error);
        let taken = self.used_bytes()?;
        if taken.saturating_add(num_bytes) > self.size_bytes {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{what} needs {num_bytes} bytes of shared memory, {taken} are taken, and shared_memory_size allows {} in \
                     all: raise it to {} or more",
                    self.size_bytes,
                    taken.saturating_add(num_bytes)
                ),
            )
            .at("shared memory", self.directory.display()));
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        // Now, not at the first touch: without memory that would end the process.
        if let Err(error) = reserve(&file, num_bytes) {
            let _ = fs::remove_file(&path);
            let free =
                rustix::fs::statvfs(&self.directory).map_or(0, |found| found.f_bavail * found.f_frsize);
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{what} needs {num_bytes} bytes of shared memory, but the file system has {free} left; make it larger \
                     (mount -o remount,size=..., or --shm-size of a container)"
                ),
            )
            .at("shared memory", self.directory.display())
            .caused_by(error));
        }
        Ok(file)
    }

    pub(crate) fn open_file(&self, name: &str) -> std::io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.directory.join(name))
    }

    /// The text of a file; None if there is none.
    pub(crate) fn read_file(&self, name: &str) -> Result<Option<String>> {
        let path = self.directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
            Err(error) => Err(cannot("read", &path, error)),
        }
    }

    /// Gives a file a new text: whoever reads it sees all of the old one or of the new one. Only one caller per name at a time.
    pub(crate) fn replace_file(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        let draft = self.directory.join(format!("{name}.draft"));
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(|error| cannot("write", &path, error))
    }

    /// Removes the files whose names `is_unused` picks.
    pub(crate) fn remove_files(&self, is_unused: impl Fn(&str) -> bool) -> Result<()> {
        let _files = self.lock_files()?;
        for (name, _) in self.files()? {
            if is_unused(&name) {
                match fs::remove_file(self.directory.join(&name)) {
                    Err(error) if error.kind() != IoErrorKind::NotFound => {
                        return Err(cannot("remove", &self.directory.join(&name), error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Bytes of all files. Those of replaced versions that other processes still map are not among them.
    fn used_bytes(&self) -> Result<u64> {
        Ok(self.files()?.iter().map(|(_, bytes)| bytes).sum())
    }

    fn files(&self) -> Result<Vec<(String, u64)>> {
        let failed = |error| cannot("read", &self.directory, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let (Ok(name), Ok(metadata)) = (entry.file_name().into_string(), entry.metadata()) {
                files.push((name, metadata.len()));
            }
        }
        Ok(files)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if !self.auto_remove {
            return;
        }
        // First give up, then try: of two that leave at once one is the last. Whoever comes now waits for the lock, then notices
        // that the file is gone.
        drop(self.attached.take());
        if let Ok(Some(_last)) = self.locks.try_lock(ATTACHED, Mode::Exclusive)
            && is_same_file(self.locks.file(), &self.directory.join("lock"))
        {
            // Out of the way first: whoever comes now makes another one, of which nothing is removed. If it stays, the next process
            // finds it.
            let removed = self.directory.with_extension(format!("{REMOVED}{}", std::process::id()));
            if fs::rename(&self.directory, &removed).is_ok() {
                let _ = fs::remove_dir_all(&removed);
            }
        }
    }
}

/// What all processes have to agree on.
fn agreed(settings: &SharedSettings) -> Value {
    let holds = match settings.role {
        Role::Truth => "tables",
        Role::Cache => "copies",
    };
    let limit =
        settings.limit.map(|limit| json!({"rows": limit.rows, "policy": format!("{:?}", limit.policy)}));
    json!({"format": FORMAT, "auto_remove": settings.auto_remove, "holds": holds, "limit": limit})
}

/// Bytes whose memory is asked for at a time: a signal that comes meanwhile undoes all of it.
const RESERVED_AT_ONCE: u64 = 64 << 20;

/// Gives a file that many bytes, with memory for all of them.
fn reserve(file: &File, num_bytes: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < num_bytes {
        let wanted = RESERVED_AT_ONCE.min(num_bytes - done);
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), done, wanted) {
            Ok(()) => done += wanted,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// True if there is something that is no directory.
fn is_something_else(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_dir())
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => identity(ours) == identity(there),
        _ => false,
    }
}

pub(crate) fn cannot(what: &str, path: &Path, error: std::io::Error) -> Error {
    let (kind, help) = match error.kind() {
        IoErrorKind::PermissionDenied => (ErrorKind::Storage, "; it belongs to another user"),
        _ => (ErrorKind::Storage, ""),
    };
    Error::new(kind, format!("cannot {what} shared memory{help}")).at("path", path.display()).caused_by(error)
}
