//! A table that is being loaded: rows are sorted beside the database (sort.rs), and their files become those of a column family.

use std::path::Path;

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

/// What loads may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadSettings {
    pub(crate) num_threads: usize,
    pub(crate) memory_bytes: usize,
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
        settings: LoadSettings,
        name: String,
    ) -> Self {
        let spec = table.spec();
        let LoadSettings { num_threads, memory_bytes } = settings;
        // A name that no load of this process has had: what an earlier one could not remove is not in the way.
        let directory = database.path().join(DIRECTORY).join(database.next_load().to_string());
        let sorter = Sorter::new(directory, spec.row_bytes, spec.key_width, memory_bytes);
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
        let ingested = self.move_files(rows);
        rows.num_ingestions += 1;
        rows.has_failed |= ingested.is_err();
        rows.num_rows += ingested?;
        Ok(())
    }

    fn move_files(&self, rows: &mut LoadedRows) -> Result<u64> {
        let name = rows.num_ingestions.to_string();
        let options = self.database.table_options();
        let sorted = rows.sorter.finish(&name, options, TABLE_FILE_BYTES, self.num_threads)?;
        let column_family = self.database.column_family(&self.name)?;
        let add = |moves| {
            let files = sorted.files.clone();
            self.database.db().ingest_external_file_cf_opts(&column_family, &ingest_options(moves), files)
        };
        // Some file systems have no links, by which files are moved.
        add(true)
            .or_else(|_| add(false))
            .map_err(|error| self.failed("cannot add the rows that were loaded", error))?;
        Ok(sorted.rows)
    }

    fn check(&self, rows: &LoadedRows) -> Result<()> {
        if !rows.has_failed {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Storage, "the load cannot be completed: writing its rows failed")
            .at("table", &self.table.spec().name)
            .at("database", self.database.path().display()))
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
        let mut loaded = self.rows.lock();
        self.check(&loaded)?;
        let put = loaded.sorter.put(keys, rows);
        loaded.has_failed |= put.is_err();
        put.map_err(|error| error.at("table", &self.table.spec().name))
    }

    /// What was put is moved into the column family first; so looking for rows after each put would be slow.
    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        let mut loaded = self.rows.lock();
        self.check(&loaded)?;
        self.ingest(&mut loaded)?;
        drop(loaded);
        let column_family = self.database.column_family(&self.name)?;
        self.reader.lookup(self.database, self.table, &column_family, batch, rows, misses)
    }

    fn commit(mut self: Box<Self>, record: &str) -> Result<u64> {
        let num_rows = {
            let mut rows = self.rows.lock();
            self.check(&rows)?;
            self.ingest(&mut rows)?;
            rows.sorter.clear();
            self.database.end_loading(&self.name)?;
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
            // First, so that there is room for what follows on a disk that is full.
            self.rows.get_mut().sorter.clear();
            self.table.abandon_load(self.database, &self.name);
        }
    }
}
