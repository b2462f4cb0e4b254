//! A table that is being loaded: rows are sorted beside the database (sort.rs), and their files become those of a column family.

use std::path::PathBuf;

use hps_core::batch::Batch;
use hps_core::key::Key;
use hps_core::row::{Rows, RowsMut};
use hps_core::tier::{LoadTurn, TableLoad, Written};
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::database::Database;
use crate::error::table_storage;
use crate::leftovers;
use crate::lookup::Reader;
use crate::options::{TABLE_FILE_BYTES, compact_options, ingest_options, scan_options};
use crate::sort::Sorter;
use crate::table::Table;
use crate::write::check_rows;

/// A load into a column family of its own.
pub(crate) struct SsdLoad<'t> {
    database: &'t Database,
    table: &'t Table,
    reader: &'t Reader,
    settings: LoadSettings,
    /// The column family that is loaded.
    name: String,
    rows: Mutex<LoadedRows>,
    /// It was switched to, or the switch failed half-way; either way there is nothing to remove.
    has_ended: bool,
    _turn: LoadTurn<'t>,
}

/// What loads may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadSettings {
    pub(crate) num_threads: usize,
    pub(crate) memory_bytes: usize,
}

/// What becomes of what earlier loads of the table have sorted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Earlier {
    /// Nothing yet: no row was put.
    Undecided,
    /// It is removed. Where the rows come from is not known, so that another load cannot go on with this one either.
    Removed,
    /// What came from the same place is gone on with, as another load will go on with this one.
    TakenOver,
}

/// The rows of a load.
struct LoadedRows {
    /// Those that are not in the column family yet.
    sorter: Sorter,
    /// How often rows were moved there: once, unless somebody looked for them before all had come.
    num_ingestions: u32,
    /// Distinct keys of each time, summed.
    num_rows: u64,
    earlier: Earlier,
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
        turn: LoadTurn<'t>,
        name: String,
    ) -> Self {
        let spec = table.spec();
        let directory = leftovers::new_directory(database.path(), spec);
        let sorter = Sorter::new(directory, spec.row_bytes, spec.key_width, settings.memory_bytes);
        let rows = LoadedRows {
            sorter,
            num_ingestions: 0,
            num_rows: 0,
            earlier: Earlier::Undecided,
            has_failed: false,
        };
        let rows = Mutex::new(rows);
        Self { database, table, reader, settings, name, rows, has_ended: false, _turn: turn }
    }

    fn failed(&self, what: &str, cause: rocksdb::Error) -> Error {
        table_storage(what, self.database.path(), &self.table.spec().name, cause)
    }

    /// Moves what was put into the column family. Files are synced before they belong to it.
    fn ingest(&self, rows: &mut LoadedRows, written: Written<'_>) -> Result<()> {
        if rows.sorter.is_empty() {
            return Ok(());
        }
        let ingested = self.add_files(rows, written);
        rows.num_ingestions += 1;
        rows.has_failed |= ingested.is_err();
        rows.num_rows += ingested?;
        Ok(())
    }

    fn add_files(&self, rows: &mut LoadedRows, written: Written<'_>) -> Result<u64> {
        let name = rows.num_ingestions.to_string();
        let options = self.database.table_options();
        let sorted =
            rows.sorter.finish(&name, options, TABLE_FILE_BYTES, self.settings.num_threads, written)?;
        let column_family = self.database.column_family(&self.name)?;
        let add = |files, moves| {
            self.database.db().ingest_external_file_cf_opts(&column_family, &ingest_options(moves), files)
        };
        // Links are moved, which takes no room on the disk, and the files stay: the next process needs them if this one is killed before
        // the commit. Some file systems have no links.
        let link = |file: &PathBuf| {
            let link = file.with_extension("link");
            // Of a process that was killed.
            drop(std::fs::remove_file(&link));
            std::fs::hard_link(file, &link).map(|()| link)
        };
        let links = sorted.files.iter().map(link).collect::<std::io::Result<Vec<PathBuf>>>();
        let moved = links.is_ok_and(|links| add(links, true).is_ok());
        if moved {
            return Ok(sorted.rows);
        }
        let copied = add(sorted.files.clone(), false);
        // They would take the table's size once more; from its runs they can be merged again.
        sorted.files.iter().for_each(|file| drop(std::fs::remove_file(file)));
        copied.map_err(|error| self.failed("cannot add the rows that were loaded", error))?;
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
    fn resume(&mut self, origin: &str) -> Result<u64> {
        let rows = self.rows.get_mut();
        if rows.earlier != Earlier::Undecided {
            return Err(Error::new(
                ErrorKind::Internal,
                "a load cannot go on with another after its first row",
            ));
        }
        rows.earlier = Earlier::TakenOver;
        let (database, spec) = (self.database.path(), self.table.spec());
        let directory = leftovers::directory_of(database, spec, origin, self.settings.memory_bytes);
        leftovers::remove(database, spec, Some(&directory));
        Ok(rows.sorter.resume(directory))
    }

    fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        check_rows(self.table, keys, rows)?;
        let mut loaded = self.rows.lock();
        self.check(&loaded)?;
        if loaded.earlier == Earlier::Undecided {
            leftovers::remove(self.database.path(), self.table.spec(), None);
            loaded.earlier = Earlier::Removed;
        }
        let put = loaded.sorter.put(keys, rows);
        loaded.has_failed |= put.is_err();
        put.map_err(|error| error.at("table", &self.table.spec().name))
    }

    /// What was put is moved into the column family first; so looking for rows after each put would be slow.
    fn lookup(&self, batch: Batch<'_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
        let mut loaded = self.rows.lock();
        self.check(&loaded)?;
        self.ingest(&mut loaded, &|_| {})?;
        drop(loaded);
        let column_family = self.database.column_family(&self.name)?;
        self.reader.lookup(self.database, self.table, &column_family, batch, rows, misses)
    }

    fn commit(mut self: Box<Self>, record: &str, written: Written<'_>) -> Result<u64> {
        let num_rows = {
            let mut rows = self.rows.lock();
            self.check(&rows)?;
            self.ingest(&mut rows, written)?;
            self.database.end_loading(&self.name)?;
            // One run of files that do not overlap: each lookup asks one file, and no later start has to tidy up.
            if rows.num_ingestions > 1 {
                // That needs the table's size once more: there has to be room for it, and not for what was sorted besides.
                rows.sorter.clear();
                self.compact()?
            } else {
                rows.num_rows
            }
        };
        self.has_ended = true;
        self.table.commit_load(self.database, &self.name, num_rows, record)?;
        // Not before: until then another process could go on from here.
        self.rows.get_mut().sorter.clear();
        Ok(num_rows)
    }

    fn interrupt(mut self: Box<Self>) {
        let rows = self.rows.get_mut();
        // A disk that is full, or fails, gets its room back.
        if rows.earlier == Earlier::TakenOver && !rows.has_failed {
            rows.sorter.leave();
        }
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
