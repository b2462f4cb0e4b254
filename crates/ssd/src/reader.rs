//! Opening a database that another process may be writing.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind, Result};
use rocksdb::{ColumnFamilyDescriptor, DEFAULT_COLUMN_FAMILY_NAME};

use crate::database::{Db, OpenDatabase, cannot_open, column_families, is_ours};
use crate::options::{OpenOptions, open_options};
use crate::settings::SsdSettings;

/// How long a reader tries again when the writer changes the list of files under its hands. Opening takes about
/// 0.1 ms per file; a busy writer changes the list about once a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens the database at `path` for reading: takes no lock, writes nothing, and sees what was there when it opened.
///
/// RocksDB reads the list of files (the manifest) first, opens the files, and reads the log last. What the writer
/// flushes, drops or replaces meanwhile may be missing from the result: rows that have left the log for a new file
/// are in neither. All of this changes the manifest. So what was opened counts only if the manifest is the same as
/// before; then list, files and log fit together. Files that the writer deletes later stay readable, as they are open.
///
/// RocksDB's secondary instances, made for this, do not serve here: when a column family that they open was dropped
/// and made again, they read freed memory (11.8.1, `VersionEditHandlerPointInTime::DestroyCfAndCleanup`).
pub(crate) fn open_reader(path: &Path, settings: &SsdSettings, tables: &[TableSpec]) -> Result<OpenDatabase> {
    let options = open_options(settings);
    let start = Instant::now();
    let db = loop {
        let before = manifest(path);
        let opened = open_unchanging(path, &options, tables);
        let is_unchanged = before.is_some() && before == manifest(path);
        match opened {
            Ok(db) if is_unchanged => break db,
            Err(error) if is_unchanged || start.elapsed() > PATIENCE => return Err(error),
            Ok(_) if start.elapsed() > PATIENCE => return Err(too_busy(path)),
            Ok(_) | Err(_) => std::thread::sleep(PAUSE),
        }
    };
    Ok(OpenDatabase {
        db,
        path: path.to_owned(),
        cache: options.cache,
        table_options: options.table,
        foreign: HashSet::new(),
        is_read_only: true,
    })
}

fn open_unchanging(path: &Path, options: &OpenOptions, tables: &[TableSpec]) -> Result<Db> {
    // Only what is to be served: a reader keeps every file of what it opens open.
    let descriptors = column_families(path, &options.database)?
        .into_iter()
        .filter(|name| name == DEFAULT_COLUMN_FAMILY_NAME || is_ours(name, tables))
        .map(|name| ColumnFamilyDescriptor::new(name, options.table.clone()));
    // The log of a writer that runs, or was killed, is part of what is read.
    let error_if_log_file_exists = false;
    Db::open_cf_descriptors_read_only(&options.database, path, descriptors, error_if_log_file_exists)
        .map_err(|error| cannot_open(path, error))
}

/// The manifest's name and length: it only ever grows, or gives way to one of another name. None if it has just done
/// that.
fn manifest(path: &Path) -> Option<(String, u64)> {
    let name = std::fs::read_to_string(path.join("CURRENT")).ok()?;
    let num_bytes = std::fs::metadata(path.join(name.trim())).ok()?.len();
    Some((name, num_bytes))
}

fn too_busy(path: &Path) -> Error {
    Error::new(
        ErrorKind::Storage,
        format!(
            "no steady view of the database within {} s, as another process keeps changing its files; try again \
             when it is done",
            PATIENCE.as_secs()
        ),
    )
    .at("database", path.display())
}
