//! What loads of a table leave on disk when they are interrupted or their process is killed, so that another one can go on with it.
//!
//! Each load has a directory beside RocksDB's files, `hps_loading/<table>-<load>`, so that its files can be moved there. That of a load
//! whose origin is known is named by it. Whoever calls has RocksDB's lock.

use std::path::{Path, PathBuf};

use hps_core::tier::TableSpec;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const DIRECTORY: &str = "hps_loading";

fn prefix(table: &str) -> String {
    format!("{:016x}-", xxh3_64(table.as_bytes()))
}

/// True for the directory of a load of a table with one of these prefixes.
fn is_of(directory: &Path, prefixes: &[String]) -> bool {
    let name = directory.file_name().unwrap_or_default().as_encoded_bytes();
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

fn entries(database: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(database.join(DIRECTORY)).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// The directory of every load of the table from `origin` that sorts in pieces of this size.
pub(crate) fn directory_of(database: &Path, table: &TableSpec, origin: &str, memory_bytes: usize) -> PathBuf {
    let TableSpec { row_bytes, key_width, .. } = table;
    let mut hash = Xxh3::new();
    hash.update(format!("{row_bytes} {key_width:?} {memory_bytes} {origin}").as_bytes());
    database.join(DIRECTORY).join(format!("{}{:016x}", prefix(&table.name), hash.digest()))
}

/// A directory that no load of the table has had.
pub(crate) fn new_directory(database: &Path, table: &TableSpec) -> PathBuf {
    // What could not be removed is not in the way.
    let directories = (0u64..).map(|number| format!("{}{number}", prefix(&table.name)));
    let mut directories = directories.map(|name| database.join(DIRECTORY).join(name));
    directories.find(|directory| !directory.exists()).unwrap_or_default()
}

fn all(database: &Path, table: &TableSpec) -> impl Iterator<Item = PathBuf> {
    let prefix = [prefix(&table.name)];
    entries(database).filter(move |directory| is_of(directory, &prefix))
}

/// True if a load of the table has left something.
pub(crate) fn exist(database: &Path, table: &TableSpec) -> bool {
    all(database, table).next().is_some()
}

/// Removes what loads of the table have left but for `kept`.
pub(crate) fn remove(database: &Path, table: &TableSpec, kept: Option<&Path>) {
    for directory in all(database, table).filter(|directory| kept != Some(directory)) {
        // What cannot be removed now, perhaps can be the next time.
        drop(std::fs::remove_dir_all(directory));
    }
}

/// Removes what belongs to no load that any of these tables has begun, and the directory of all loads if nothing is left of any. For a
/// database that has just been opened.
pub(crate) fn tidy(database: &Path, begun: &[String]) {
    let prefixes: Vec<String> = begun.iter().map(|table| prefix(table)).collect();
    for directory in entries(database).filter(|directory| !is_of(directory, &prefixes)) {
        drop(std::fs::remove_dir_all(directory));
    }
    drop(std::fs::remove_dir(database.join(DIRECTORY)));
}

/// Bytes of what loads of other tables than these have left.
pub(crate) fn bytes_of_others(database: &Path, tables: &[TableSpec]) -> u64 {
    let prefixes: Vec<String> = tables.iter().map(|table| prefix(&table.name)).collect();
    let files = entries(database)
        .filter(|directory| !is_of(directory, &prefixes))
        .flat_map(|path| std::fs::read_dir(path).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}
