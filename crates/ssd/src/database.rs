//! One open RocksDB database.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rocksdb::{
    BoundColumnFamily, Cache, ColumnFamilyDescriptor, DBWithThreadMode, DEFAULT_COLUMN_FAMILY_NAME,
    MultiThreaded, Options, WriteBatch,
};

use crate::error::{storage, table_storage};
use crate::leftovers;
use crate::lock_holder::lock_holder;
use crate::options::{Durability, LOADED, OpenOptions, loading_options, open_options, write_options};
use crate::reader::open_reader;
use crate::record::{RECORDS, TableRecord, is_column_family_of};
use crate::registry::{self, Registration};
use crate::settings::SsdSettings;
use crate::table::Table;

/// RocksDB with column families that come and go under a shared handle.
pub(crate) type Db = DBWithThreadMode<MultiThreaded>;

/// A column family. It stays readable while the handle lives, even if it is dropped meanwhile.
///
/// A handle borrows from its database and so cannot be kept beside it; it is fetched by name for each batch, which
/// costs a shared lock and a search among few names: about 0.1 us, against several for the smallest lookup.
pub(crate) type ColumnFamily<'d> = Arc<BoundColumnFamily<'d>>;

/// A database that has just been opened.
pub(crate) struct OpenDatabase {
    pub(crate) db: Db,
    pub(crate) path: PathBuf,
    pub(crate) cache: Cache,
    pub(crate) table_options: Options,
    pub(crate) foreign: HashSet<String>,
    pub(crate) is_read_only: bool,
}

/// One open database, and what this process knows of its tables.
pub(crate) struct Database {
    // Dropped first, and with it RocksDB's lock.
    db: Db,
    path: PathBuf,
    cache: Cache,
    table_options: Options,
    /// Column families that were opened although no tier asked for them, and that RocksDB leaves alone.
    foreign: HashSet<String>,
    /// The tables that tiers were opened with, by name: tiers that share the database share them.
    tables: Mutex<HashMap<String, Arc<Table>>>,
    /// Column families that RocksDB failed to drop. They are still on disk, although rocksdb has forgotten their handles:
    /// what a record says of them must stay until the database is opened again.
    undropped: Mutex<HashSet<String>>,
    is_read_only: bool,
    // Dropped after it: whoever waits for this opens the directory again.
    _registration: Option<Registration>,
}

impl Database {
    /// The database at `settings.path`, shared with whoever has it open in this process.
    pub(crate) fn open(settings: &SsdSettings, tables: &[TableSpec]) -> Result<Arc<Self>> {
        if settings.path.to_str().is_none() {
            return Err(Error::new(ErrorKind::Config, "the database's path is not UTF-8")
                .at("path", settings.path.display()));
        }
        if settings.read_only {
            let path = existing_database(&settings.path)?;
            return match registry::opened(&path) {
                // In the process that writes there is no need for a second view, and this one stays up to date.
                Some(database) => Ok(database),
                None => Ok(Arc::new(Self::new(open_reader(&path, settings, tables)?, None))),
            };
        }
        let path = create_directory(&settings.path)?;
        registry::share_or_open(&path, || open_writer(&path, settings, tables))
    }

    pub(crate) fn new(open: OpenDatabase, registration: Option<Registration>) -> Self {
        Self {
            db: open.db,
            path: open.path,
            cache: open.cache,
            table_options: open.table_options,
            foreign: open.foreign,
            tables: Mutex::default(),
            undropped: Mutex::default(),
            is_read_only: open.is_read_only,
            _registration: registration,
        }
    }

    pub(crate) fn db(&self) -> &Db {
        &self.db
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn set_block_cache_bytes(&self, bytes: usize) {
        self.cache.clone().set_capacity(bytes);
    }

    /// Of a table's files.
    pub(crate) fn table_options(&self) -> &Options {
        &self.table_options
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// The table of `spec`, checked and cleared of what an interrupted load left.
    pub(crate) fn table(&self, spec: &TableSpec) -> Result<Arc<Table>> {
        let mut tables = self.tables.lock();
        if let Some(table) = tables.get(&spec.name) {
            return match table.spec() == spec {
                true => Ok(Arc::clone(table)),
                false => Err(Error::new(
                    ErrorKind::Config,
                    "this process serves the table already, with other sizes; two configurations that share a \
                     database must agree on it",
                )
                .at("table", &spec.name)
                .at("open", format!("{} bytes a row, {:?}", table.spec().row_bytes, table.spec().key_width))
                .at("asked for", format!("{} bytes a row, {:?}", spec.row_bytes, spec.key_width))
                .at("database", self.path.display())),
            };
        }
        let table = Arc::new(Table::open(self, spec)?);
        tables.insert(spec.name.clone(), Arc::clone(&table));
        Ok(table)
    }

    /// Those that none of the open tables is made of, as they are on disk now.
    pub(crate) fn other_column_families(&self) -> Result<Vec<String>> {
        let specs: Vec<TableSpec> = self.tables.lock().values().map(|table| table.spec().clone()).collect();
        let mut names = column_families(&self.path, &Options::default())?;
        names.retain(|name| name != DEFAULT_COLUMN_FAMILY_NAME && !is_ours(name, &specs));
        names.sort();
        Ok(names)
    }

    /// Bytes of what interrupted loads of other tables than the open ones have left.
    pub(crate) fn other_load_bytes(&self) -> u64 {
        let specs: Vec<TableSpec> = self.tables.lock().values().map(|table| table.spec().clone()).collect();
        leftovers::bytes_of_others(&self.path, &specs)
    }

    pub(crate) fn has_column_family(&self, name: &str) -> bool {
        self.db.cf_handle(name).is_some() || self.undropped.lock().contains(name)
    }

    pub(crate) fn column_family(&self, name: &str) -> Result<ColumnFamily<'_>> {
        self.db.cf_handle(name).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a column family is gone although it is in use")
                .at("column family", name)
                .at("database", self.path.display())
        })
    }

    pub(crate) fn create_column_family(&self, name: &str) -> Result<()> {
        self.create(name, &self.table_options)
    }

    /// Creates one that is to be loaded.
    pub(crate) fn create_loading(&self, name: &str) -> Result<()> {
        self.create(name, &loading_options(&self.table_options))
    }

    /// From now on it is as others are.
    pub(crate) fn end_loading(&self, name: &str) -> Result<()> {
        let column_family = self.column_family(name)?;
        self.db.set_options_cf(&column_family, &LOADED).map_err(|error| {
            table_storage("cannot change a column family's options", &self.path, name, error)
        })
    }

    fn create(&self, name: &str, options: &Options) -> Result<()> {
        let created = self.db.create_cf(name, options);
        created.map_err(|error| table_storage("cannot create a column family", &self.path, name, error))
    }

    /// Drops a column family, if there is one of that name. Whoever holds its handle can still read it.
    pub(crate) fn drop_column_family(&self, name: &str) -> Result<()> {
        if !self.has_column_family(name) {
            return Ok(());
        }
        if self.undropped.lock().contains(name) {
            return Err(Error::new(
                ErrorKind::Storage,
                "a column family could not be dropped before; close the database and open it again",
            )
            .at("column family", name)
            .at("database", self.path.display()));
        }
        self.db.drop_cf(name).map_err(|error| {
            self.undropped.lock().insert(name.to_owned());
            table_storage("cannot drop a column family", &self.path, name, error)
        })
    }

    /// The record of a table; None if it has none.
    pub(crate) fn read_record(&self, table: &str) -> Result<Option<TableRecord>> {
        let Some(records) = self.db.cf_handle(RECORDS) else {
            return Ok(None); // a database of the predecessor, opened to be read
        };
        let text = self
            .db
            .get_cf(&records, table)
            .map_err(|error| table_storage("cannot read the table's record", &self.path, table, error))?;
        text.map(|text| {
            TableRecord::from_text(&text).map_err(|reason| {
                Error::new(ErrorKind::Corrupt, format!("the table's record cannot be understood: {reason}"))
                    .at("table", table)
                    .at("database", self.path.display())
            })
        })
        .transpose()
    }

    /// Writes the record of a table, or removes it where none is needed.
    pub(crate) fn write_record(
        &self,
        spec: &TableSpec,
        record: &TableRecord,
        durability: Durability,
    ) -> Result<()> {
        let records = self.column_family(RECORDS)?;
        let mut batch = WriteBatch::default();
        if record.is_implied(spec) {
            batch.delete_cf(&records, &spec.name);
        } else {
            batch.put_cf(&records, &spec.name, record.to_text());
        }
        self.db
            .write_opt(batch, &write_options(durability))
            .map_err(|error| table_storage("cannot write the table's record", &self.path, &spec.name, error))
    }

    /// Moves records from the log to a table file, or the next start would: it should have nothing to write.
    pub(crate) fn flush_records(&self) {
        if let Some(records) = self.db.cf_handle(RECORDS) {
            // If it fails, the log still has them.
            drop(self.db.flush_cf(&records));
        }
    }

    /// Lets RocksDB compact a column family that was opened before this process was asked to serve it.
    pub(crate) fn adopt(&self, name: &str) -> Result<()> {
        if self.is_read_only() || !self.foreign.contains(name) {
            return Ok(());
        }
        let column_family = self.column_family(name)?;
        self.db.set_options_cf(&column_family, &[("disable_auto_compactions", "false")]).map_err(|error| {
            table_storage("cannot change a column family's options", &self.path, name, error)
        })
    }
}

/// The canonical path of a database that must exist.
fn existing_database(path: &Path) -> Result<PathBuf> {
    let missing = || {
        Error::new(
            ErrorKind::NotFound,
            "there is no database to read: \"read_only\": true in persistent_db expects one that was loaded before",
        )
        .at("path", path.display())
    };
    match path.canonicalize() {
        Ok(path) if path.join("CURRENT").exists() => Ok(path),
        Ok(path) if !path.is_dir() => Err(not_a_directory(&path)),
        Ok(_) => Err(missing()),
        Err(error) if error.kind() == IoErrorKind::NotFound => Err(missing()),
        Err(error) => Err(cannot_use(path, error)),
    }
}

/// Makes the directory of a database, and returns its canonical path.
fn create_directory(path: &Path) -> Result<PathBuf> {
    match std::fs::create_dir_all(path) {
        Ok(()) => path.canonicalize().map_err(|error| cannot_use(path, error)),
        Err(_) if path.exists() && !path.is_dir() => Err(not_a_directory(path)),
        Err(error) => Err(cannot_use(path, error)),
    }
}

fn not_a_directory(path: &Path) -> Error {
    Error::new(ErrorKind::Config, "persistent_db.path must be a directory, but it is a file")
        .at("path", path.display())
}

fn cannot_use(path: &Path, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, "cannot use the directory in persistent_db.path")
        .at("path", path.display())
        .caused_by(cause)
}

/// The column families of the database at `path`. A directory without a database has none.
pub(crate) fn column_families(path: &Path, options: &Options) -> Result<Vec<String>> {
    if path.join("CURRENT").exists() {
        return Db::list_cf(options, path)
            .map_err(|error| storage("cannot list the column families of the database", path, error));
    }
    // RocksDB would make a new database here and delete the old one's files.
    let entries = std::fs::read_dir(path).map_err(|error| cannot_use(path, error))?;
    for entry in entries {
        let name = entry.map_err(|error| cannot_use(path, error))?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "sst") {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "the directory holds table files of a database whose file CURRENT is gone; restore it, or name \
                 another directory in persistent_db.path",
            )
            .at("path", path.display())
            .at("table file", Path::new(&name).display()));
        }
    }
    Ok(Vec::new())
}

pub(crate) fn is_ours(name: &str, tables: &[TableSpec]) -> bool {
    name == RECORDS || tables.iter().any(|table| is_column_family_of(name, &table.name))
}

fn open_writer(path: &Path, settings: &SsdSettings, tables: &[TableSpec]) -> Result<OpenDatabase> {
    let options = open_options(settings);
    let mut names = column_families(path, &options.database)?;
    if !names.iter().any(|name| name == RECORDS) {
        names.push(RECORDS.into());
    }
    let foreign: HashSet<String> = names.iter().filter(|name| !is_ours(name, tables)).cloned().collect();
    let descriptors = names.into_iter().map(|name| {
        let options = if foreign.contains(&name) { &options.foreign } else { &options.table };
        ColumnFamilyDescriptor::new(name, options.clone())
    });
    let db = Db::open_cf_descriptors(&options.database, path, descriptors)
        .map_err(|error| cannot_open(path, error))?;
    leftovers::tidy(path, &tables_with_loads(&db));
    let OpenOptions { cache, table: table_options, .. } = options;
    Ok(OpenDatabase { db, path: path.to_owned(), cache, table_options, foreign, is_read_only: false })
}

/// Tables whose records say that a load has begun and not ended.
fn tables_with_loads(db: &Db) -> Vec<String> {
    let Some(records) = db.cf_handle(RECORDS) else { return Vec::new() };
    let entries = db.iterator_cf(&records, rocksdb::IteratorMode::Start).map_while(|entry| entry.ok());
    // A record that cannot be understood is no reason to remove anything.
    let may_load = |text: &[u8]| TableRecord::from_text(text).map_or(true, |record| record.loading.is_some());
    entries
        .filter(|(_, text)| may_load(text))
        .map(|(table, _)| String::from_utf8_lossy(&table).into_owned())
        .collect()
}

pub(crate) fn cannot_open(path: &Path, cause: rocksdb::Error) -> Error {
    let text: &str = cause.as_ref();
    let is_locked = text.contains("While lock file") || text.contains("lock hold by current process");
    if is_locked {
        let holder = lock_holder(path).unwrap_or_else(|| "another process".into());
        let what = format!(
            "{holder} has the database open for writing; open it here with \"read_only\": true in persistent_db, or \
             end that process"
        );
        return storage(&what, path, cause);
    }
    if text.contains("omparator") {
        let what =
            "cannot open the database: it orders keys in a way of its own, so another program wrote it";
        return storage(what, path, cause);
    }
    storage("cannot open the database", path, cause)
}
