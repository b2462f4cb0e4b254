//! RocksDB's errors as ours.

use std::path::Path;

use hps_core::{Error, ErrorKind};

/// An operation of the database at `path` that RocksDB refused.
pub(crate) fn storage(what: &str, path: &Path, cause: rocksdb::Error) -> Error {
    let kind = match cause.kind() {
        rocksdb::ErrorKind::Corruption => ErrorKind::Corrupt,
        _ => ErrorKind::Storage,
    };
    Error::new(kind, what).at("database", path.display()).caused_by(cause)
}

/// The same, for one table.
pub(crate) fn table_storage(what: &str, path: &Path, table: &str, cause: rocksdb::Error) -> Error {
    storage(what, path, cause).at("table", table)
}

/// A write to a database that was opened to be read.
pub(crate) fn read_only(what: &str, path: &Path) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "cannot {what}: the database was opened with \"read_only\": true in persistent_db; open it with \"read_only\": \
             false to write"
        ),
    )
    .at("database", path.display())
}
