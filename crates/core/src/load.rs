//! Opening: model files into the truth, once; then the truth into the caches.
//!
//! ```text
//! the truth holds ...            and the model files ...        then
//! nothing (or half a load)                                      load them
//! a table with a record          are what was recorded          nothing to do
//!                                were copied or touched         note the new place and time
//!                                have other content             load beside, then switch: absent keys vanish
//! rows without a record                                         keep them (they may be newer than the files), add
//! (the predecessor's)                                           the keys that only the files have, write a record
//! ```

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId, display_key};
use crate::model_files::ModelFiles;
use crate::observer::{Observer, Progress};
use crate::record::{Compared, SourceRecord, TableRecord};
use crate::row::{Rows, RowsMut, uneven};
use crate::tier::{CacheTier, Expected, Held, Promotion, TableLoad, TableSpec, TruthTier};
use crate::update_clock::UpdateClock;

/// The model files of one original table.
#[derive(Clone, Debug)]
pub struct Source {
    /// Name of the table in its model, for messages.
    pub table: String,
    /// Its files.
    pub files: ModelFiles,
}

/// The largest key in the files. Reads those with keys, in bounded memory.
///
/// # Errors
/// As [`ModelFiles::read`].
pub fn largest_key(sources: &[Source]) -> Result<Option<Key>> {
    let mut largest = None;
    for source in sources {
        largest = largest.max(source.files.largest_key()?);
    }
    Ok(largest)
}

/// What opening did to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The model files were read into the truth.
    FromFiles {
        /// Distinct keys.
        rows: u64,
        /// Keys in the files that a later row of the same key overrode.
        repeated: u64,
    },
    /// The truth held the table already.
    AlreadyHeld,
    /// The predecessor's rows were taken over.
    Adopted {
        /// Keys that only the files had.
        added: u64,
    },
}

/// Makes sure that the truth holds the table of `sources`; several sources share one key space (table fusion).
///
/// # Errors
/// `Config` if files are wrong or two sources hold different rows for one key; `Unsupported` if the truth is
/// read-only and holds no table; and whatever the truth reports.
pub fn load_table(
    truth: &dyn TruthTier,
    table: TableId,
    spec: &TableSpec,
    sources: &[Source],
    observer: &dyn Observer,
) -> Result<Loaded> {
    let files: Vec<&ModelFiles> = sources.iter().map(|source| &source.files).collect();
    let loader = Loader { truth, table, spec, sources, observer };
    let loaded = match truth.held(table)? {
        Held::Nothing if truth.is_read_only() => Err(Error::new(
            ErrorKind::Unsupported,
            "the table was never loaded (or only in part), and the database was opened with read_only: open it once \
             with \"read_only\": false",
        )),
        Held::Nothing => loader.load(),
        Held::Unrecorded if truth.is_read_only() => Ok(Loaded::AlreadyHeld),
        Held::Unrecorded => loader.adopt(),
        Held::Table(text) => match TableRecord::from_text(&text)?.compare(&files)? {
            Compared::Same => Ok(Loaded::AlreadyHeld),
            Compared::SameContent(_) if truth.is_read_only() => Ok(Loaded::AlreadyHeld),
            Compared::SameContent(record) => {
                truth.set_record(table, &record.to_text())?;
                Ok(Loaded::AlreadyHeld)
            }
            Compared::Changed if truth.is_read_only() => {
                observer.warn(&format!(
                    "{}: the model files have changed since the table was loaded, but the database was opened with \
                     read_only: serving the rows that were loaded",
                    spec.name
                ));
                Ok(Loaded::AlreadyHeld)
            }
            Compared::Changed if truth.is_shared(table) => Err(Error::new(
                ErrorKind::Config,
                "another open store of this process serves this table of the same database, loaded from other model files; \
                 close it first, or give the new files a database of their own (persistent_db.path)",
            )),
            Compared::Changed => {
                observer.info(&format!("{}: the model files have changed; replacing the table", spec.name));
                loader.load()
            }
        },
    };
    let has_ended = |loaded| match loaded {
        Loaded::AlreadyHeld | Loaded::Adopted { .. } if !truth.is_read_only() => {
            truth.forget_interrupted_load(table).map(|()| loaded)
        }
        loaded => Ok(loaded),
    };
    loaded.and_then(has_ended).map_err(|error| error.at("table", &spec.name))
}

struct Loader<'a> {
    truth: &'a dyn TruthTier,
    table: TableId,
    spec: &'a TableSpec,
    sources: &'a [Source],
    observer: &'a dyn Observer,
}

impl Loader<'_> {
    fn num_keys(&self) -> u64 {
        self.sources.iter().map(|source| source.files.num_keys()).sum()
    }

    fn expected(&self) -> Result<Expected> {
        let is_wanted = self.truth.wants_largest_key(self.table);
        let largest_key = if is_wanted { largest_key(self.sources)? } else { None };
        Ok(Expected { rows: self.num_keys(), largest_key })
    }

    fn progress(&self, what: &str, done: u64) {
        self.observer.progress(Progress { what, table: &self.spec.name, done, total: self.num_keys() });
    }

    fn load(&self) -> Result<Loaded> {
        let mut load = self.truth.begin_load(self.table, self.expected()?)?;
        let origin = |source: &Source| SourceRecord::new(&source.files, String::new());
        let origin = TableRecord { sources: self.sources.iter().map(origin).collect() };
        let sorted = load.resume(&origin.to_text())?;
        if sorted > 0 {
            self.observer.info(&format!(
                "{}: a load of these files was interrupted and goes on; {sorted} of {} rows are sorted already",
                self.spec.name,
                self.num_keys()
            ));
        }
        let (record, shared) = match self.put_all(load.as_mut()) {
            Ok(done) => done,
            // Perhaps that of the files, which may be there again soon.
            Err(error) if error.kind() == ErrorKind::Storage => {
                load.interrupt();
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let rows = load.commit(&record.to_text(), &|written| self.progress("writing", written))?;
        // Repeated keys were written once.
        self.progress("writing", self.num_keys());
        let held = self.truth.usage(self.table)?.rows;
        if held < rows {
            self.observer.warn(&format!(
                "{}: only {held} of {rows} rows fit below overflow_margin, and there is no persistent_db to hold the \
                 others: their keys get the default row",
                self.spec.name
            ));
        }
        let repeated = self.num_keys().saturating_sub(rows).saturating_sub(shared);
        if repeated > 0 {
            self.observer.warn(&format!(
                "{}: {repeated} of {} keys in the model files are repeated; the last row of each counts",
                self.spec.name,
                self.num_keys()
            ));
        }
        Ok(Loaded::FromFiles { rows, repeated })
    }

    /// Puts all rows. Returns what they were read from, and how many came from more than one source.
    fn put_all(&self, load: &mut dyn TableLoad) -> Result<(TableRecord, u64)> {
        let mut record = TableRecord { sources: Vec::new() };
        let mut done = 0;
        let mut shared = 0;
        for (i, source) in self.sources.iter().enumerate() {
            if i > 0 {
                shared += self.check_shared_keys(load, i, source)?;
            }
            let checksum = source.files.read(&mut |keys, rows| {
                load.put(keys, rows)?;
                done += keys.len() as u64;
                self.progress("loading", done);
                Ok(())
            })?;
            record.sources.push(SourceRecord::new(&source.files, checksum));
        }
        Ok((record, shared))
    }

    /// Fused tables share one key space. Looks for keys of source `number` that an earlier source holds: with the
    /// same row they are counted, each time that they occur; with another row the configuration is refused.
    fn check_shared_keys(&self, load: &dyn TableLoad, number: usize, source: &Source) -> Result<u64> {
        let size = self.spec.row_bytes;
        let mut found = vec![];
        let mut shared = 0;
        source.files.read(&mut |keys, rows| {
            found.resize(keys.len() * size, 0);
            let mut found_rows = rows_mut(&mut found, size)?;
            let mut misses = Vec::new();
            load.lookup(Batch::all(keys), &mut found_rows, &mut misses)?;
            let mut misses = misses.into_iter().peekable();
            for (i, (key, row)) in keys.iter().zip(rows.iter()).enumerate() {
                if misses.next_if_eq(&(i as u32)).is_some() {
                    continue;
                }
                if found_rows.as_rows().get(i) != Some(row) {
                    return Err(self.conflict(number, source, *key));
                }
                shared += 1;
            }
            Ok(())
        })?;
        Ok(shared)
    }

    fn conflict(&self, number: usize, source: &Source, key: Key) -> Error {
        let holds = |earlier: &&Source| {
            let mut holds = false;
            let read = earlier.files.read(&mut |keys, _| {
                holds |= keys.contains(&key);
                Ok(())
            });
            read.is_ok() && holds
        };
        let earlier =
            self.sources.iter().take(number).find(holds).map_or("an earlier table", |other| &other.table);
        Error::new(
            ErrorKind::Config,
            format!(
                "fused tables share one key space, but tables \"{earlier}\" and \"{}\" hold different rows for key \
                 {}; give them disjoint keys, or set \"fuse_embedding_table\": false for the model",
                source.table,
                display_key(key, self.spec.key_width)
            ),
        )
    }

    fn adopt(&self) -> Result<Loaded> {
        let size = self.spec.row_bytes;
        let mut found = vec![];
        // Keys that the database lacks, and the source that they were added from.
        let mut absent: HashMap<Key, Option<usize>> = HashMap::new();
        let mut done = 0;
        let mut record = TableRecord { sources: Vec::new() };
        for source in self.sources {
            let checksum = source.files.read(&mut |keys, _| {
                found.resize(keys.len() * size, 0);
                let mut misses = Vec::new();
                self.truth.lookup(
                    self.table,
                    Batch::all(keys),
                    &mut rows_mut(&mut found, size)?,
                    &mut misses,
                )?;
                absent.try_reserve(misses.len()).map_err(|why| {
                    Error::new(
                        ErrorKind::OutOfMemory,
                        "too many keys of the model files are not in the database",
                    )
                    .caused_by(why)
                })?;
                let missed = misses.iter().filter_map(|&position| keys.get(position as usize));
                absent.extend(missed.map(|&key| (key, None)));
                done += keys.len() as u64;
                self.progress("checking", done);
                Ok(())
            })?;
            record.sources.push(SourceRecord::new(&source.files, checksum));
        }
        let added = absent.len() as u64;
        if added > 0 {
            self.observer.warn(&format!(
                "{}: the database lacks {added} of the keys in the model files; adding them",
                self.spec.name
            ));
            for (number, source) in self.sources.iter().enumerate() {
                self.add(&mut absent, number, source)?;
            }
        }
        self.truth.set_record(self.table, &record.to_text())?;
        self.observer.info(&format!("{}: took over the rows that the database holds", self.spec.name));
        Ok(Loaded::Adopted { added })
    }

    /// Adds the rows of one source whose keys the database lacked. The last row of a key counts; sources must agree.
    fn add(&self, absent: &mut HashMap<Key, Option<usize>>, number: usize, source: &Source) -> Result<()> {
        let size = self.spec.row_bytes;
        source.files.read(&mut |keys, rows| {
            let mut new_keys = Vec::new();
            let mut new_rows = Vec::new();
            for (key, row) in keys.iter().zip(rows.iter()) {
                match absent.get_mut(key) {
                    None => continue,
                    Some(Some(earlier)) if *earlier != number => {
                        let mut held = vec![0; size];
                        let mut misses = Vec::new();
                        let one = std::slice::from_ref(key);
                        let batch = Batch::all(one);
                        self.truth.lookup(self.table, batch, &mut rows_mut(&mut held, size)?, &mut misses)?;
                        if held != row {
                            return Err(self.conflict(number, source, *key));
                        }
                    }
                    Some(added) => {
                        *added = Some(number);
                        new_keys.push(*key);
                        new_rows.extend_from_slice(row);
                    }
                }
            }
            if new_keys.is_empty() {
                return Ok(());
            }
            self.truth.insert(self.table, &new_keys, self::rows(&new_rows, size)?)
        })?;
        Ok(())
    }
}

fn rows_mut(bytes: &mut [u8], row_bytes: usize) -> Result<RowsMut<'_>> {
    RowsMut::from_bytes(bytes, row_bytes).ok_or_else(uneven)
}

fn rows(bytes: &[u8], row_bytes: usize) -> Result<Rows<'_>> {
    Rows::new(bytes, row_bytes).ok_or_else(uneven)
}

/// Carries rows of a table from the truth into a cache tier: all, or up to `max_rows`. `expected` says what that will probably be.
/// Returns how many were carried.
///
/// # Errors
/// Whatever the tiers report.
pub fn fill_cache(
    cache: &dyn CacheTier,
    truth: &dyn TruthTier,
    table: (TableId, &TableSpec),
    clock: &UpdateClock,
    max_rows: Option<u64>,
    expected: Expected,
    observer: &dyn Observer,
) -> Result<u64> {
    let (table, spec) = table;
    if max_rows == Some(0) {
        return Ok(0);
    }
    cache.reserve(table, expected)?;
    let snapshot = clock.snapshot();
    let mut carried = 0;
    let report =
        |done, total| observer.progress(Progress { what: "warming", table: &spec.name, done, total });
    truth.scan(table, &mut |keys, rows| {
        let left = max_rows.map_or(u64::MAX, |max| max - carried);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(keys.len());
        let (Some(keys), Some(bytes)) = (keys.get(..wanted), rows.bytes().get(..wanted * rows.row_bytes()))
        else {
            return Err(uneven());
        };
        let rows = self::rows(bytes, rows.row_bytes())?;
        cache.promote(table, Promotion { keys, rows, clock, snapshot: &snapshot })?;
        carried += wanted as u64;
        // The end is told when it is reached, as the expected number may be an estimate.
        report(carried, expected.rows.max(carried + 1));
        Ok(if wanted as u64 == left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    report(carried, carried);
    Ok(carried)
}
