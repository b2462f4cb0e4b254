//! A table that is being loaded: rows are sorted beside the database (sort.rs), and their files become those of a column family.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use hps_core::batch::Batch;
use hps_core::key::Key;
use hps_core::row::{Rows, RowsMut};
use hps_core::tier::TableLoad;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::database::Database;
use crate::error::table_storage;
use crate::lookup::Reader;
use crate::options::{TABLE_FILE_BYTES, compact_options, ingest_options, scan_options};
use crate::sort::Sorter;
use crate::table::Table;
use crate::write::check_rows;

/// Where loads keep their files, in the directory of the database: so that they can be moved there.
const DIRECTORY: &str = "hps_loading";

/// Removes what loads of a process that has ended have left. Whoever calls has RocksDB's lock.
pub(crate) fn remove_leftovers(database: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(database.join(DIRECTORY)) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => Ok(()),
    }
}

/// Names of column families need not be names of files.
fn directory_of(database: &Path, column_family: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    column_family.hash(&mut hasher);
    database.join(DIRECTORY).join(format!("{:016x}", hasher.finish()))
}

/// A load into a column family of its own.
pub(crate) struct SsdLoad<'t> {
    database: &'t Database,
    table: &'t Table,
    reader: &'t Reader,
    num_threads: usize,
    /// The column family that is loaded.
    name: String,
    rows: Mutex<LoadedRows>,
    /// It was switched to, or the switch failed half-way; either way there is nothing to remove.
    has_ended: bool,
}

/// The rows of a load.
struct LoadedRows {
    /// Those that are not in the column family yet.
    sorter: Sorter,
    /// How often rows were moved there: once, unless somebody looked for them before all had come.
    num_ingestions: u32,
    /// Distinct keys of each time, summed.
    num_rows: u64,
    /// A row that was put may be lost: it cannot be committed.
    has_failed: bool,
}

impl<'t> SsdLoad<'t> {
    /// A load into the column family `name`, which is empty.
    pub(crate) fn new(
        database: &'t Database,
        table: &'t Table,
        reader: &'t Reader,
        num_threads: usize,
        name: String,
    ) -> Self {
        let spec = table.spec();
        let sorter = Sorter::new(directory_of(database.path(), &name), spec.row_bytes, spec.key_width);
        let rows = LoadedRows { sorter, num_ingestions: 0, num_rows: 0, has_failed: false };
        Self { database, table, reader, num_threads, name, rows: Mutex::new(rows), has_ended: false }
    }

    fn failed(&self, what: &str, cause: rocksdb::Error) -> Error {
        table_storage(what, self.database.path(), &self.table.spec().name, cause)
    }

    /// Moves what was put into the column family. Files are synced before they belong to it.
    fn ingest(&self, rows: &mut LoadedRows) -> Result<()> {
        if rows.sorter.is_empty() {
            return Ok(());
        }
        let name = rows.num_ingestions.to_string();
        let options = self.database.table_options();
        let ingested =
            rows.sorter.finish(&name, options, TABLE_FILE_BYTES, self.num_threads).and_then(|sorted| {
                let column_family = self.database.column_family(&self.name)?;
                let db = self.database.db();
                db.ingest_external_file_cf_opts(&column_family, &ingest_options(), sorted.files)
                    .map_err(|error| self.failed("cannot add the rows that were loaded", error))?;
                Ok(sorted.rows)
            });
        rows.num_ingestions += 1;
        rows.num_rows +=
            ingested.inspect_err(|_| rows.has_failed = true).map_err(|error| self.named(error))?;
        Ok(())
    }

    fn named(&self, error: Error) -> Error {
        error.at("table", &self.table.spec().name).at("database", self.database.path().display())
    }

    /// Makes one sorted run of rows that came in several, and counts them.
    fn compact(&self) -> Result<u64> {
        let column_family = self.database.column_family(&self.name)?;
        let db = self.database.db();
        // If it fails, more files are left, each complete; an error that matters shows in the count.
        db.compact_range_cf_opt(&column_family, None::<&[u8]>, None::<&[u8]>, &compact_options());
        let mut entries = db.raw_iterator_cf_opt(&column_family, scan_options());
        let mut rows = 0;
        entries.seek_to_first();
        while entries.valid() {
            rows += 1;
            entries.next();
        }
        entries.status().map_err(|error| self.failed("cannot read back the rows that were loaded", error))?;
        Ok(rows)
    }
}

impl TableLoad for SsdLoad<'_> {
    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        check_rows(self.table, keys, rows)?;
        let loaded = self.rows.get_mut();
        let put = loaded.sorter.put(keys, rows).inspect_err(|_| loaded.has_failed = true);
        put.map_err(|error| self.named(error))
    }

    /// What was put is moved into the column family first; so looking for rows after each put would be slow.
    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        self.ingest(&mut self.rows.lock())?;
        let column_family = self.database.column_family(&self.name)?;
        self.reader.lookup(self.database, self.table, &column_family, batch, rows, misses)
    }

    fn commit(mut self: Box<Self>, record: &str) -> Result<u64> {
        let num_rows = {
            let mut rows = self.rows.lock();
            if rows.has_failed {
                return Err(Error::new(
                    ErrorKind::Storage,
                    "the load cannot be completed: writing its rows failed",
                )
                .at("table", &self.table.spec().name)
                .at("database", self.database.path().display()));
            }
            self.ingest(&mut rows)?;
            // One run of files that do not overlap: each lookup asks one file, and no later start has to tidy up.
            if rows.num_ingestions > 1 { self.compact()? } else { rows.num_rows }
        };
        self.has_ended = true;
        self.table.commit_load(self.database, &self.name, num_rows, record)?;
        Ok(num_rows)
    }
}

impl Drop for SsdLoad<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            self.table.abandon_load(self.database, &self.name);
        }
    }
}
