//! One table: which column family is served, and how that changes without ever being half done.
//!
//! ```text
//! begin_load   record: loading = B      synced     killed here: B is dropped at the next start, A is served
//!              create B, sort rows beside it
//! commit       move the sorted files into B        (as above)
//!              record: active = B,      synced     <- the switch; killed here: B is served, A is dropped
//!                      dropping = A
//!              drop A
//! ```

use hps_core::tier::{Held, LoadFlag, LoadTurn, TableSpec};
use hps_core::{Error, ErrorKind, Result};
use parking_lot::{RwLock, RwLockReadGuard};
use rocksdb::properties;

use crate::database::{ColumnFamily, Database};
use crate::entry::{key_bytes, read_key, wrong_key, wrong_row};
use crate::error::table_storage;
use crate::leftovers;
use crate::options::{Durability, lookup_options};
use crate::record::{RowCount, TableRecord, column_family_names};

/// Entries that are looked at when a table is opened: enough to notice a wrong configuration, and no more than a few
/// blocks to read.
const CHECKED_ENTRIES: usize = 100;

/// A table of an open database.
#[derive(Debug)]
pub(crate) struct Table {
    spec: TableSpec,
    /// Held shared while rows of the active column family are written, exclusively while the record is changed: no
    /// row is written to a column family that has just been replaced.
    gate: RwLock<()>,
    /// Locked for moments only, so that lookups wait for neither writes nor switches. Changed under `gate`.
    record: RwLock<TableRecord>,
    loading: LoadFlag,
}

impl Table {
    /// Reads the table's record, removes what an interrupted load left, and checks that what is stored has the sizes
    /// of `spec`.
    pub(crate) fn open(database: &Database, spec: &TableSpec) -> Result<Self> {
        let record = match database.read_record(&spec.name)? {
            // Of a load that was interrupted only: it binds nobody.
            Some(record) if holds_nothing(&record) && !has_sizes(spec, &record) => {
                begin_anew(database, spec, record)?
            }
            Some(record) => {
                check_sizes(database, spec, record.key_bytes, record.row_bytes)?;
                recover(database, spec, record)?
            }
            None if database.has_column_family(&spec.name) => TableRecord::unrecorded(spec),
            None => TableRecord::nothing(spec),
        };
        if let Some(active) = &record.active {
            check_first_entries(database, spec, active)?;
            database.adopt(active)?;
        }
        Ok(Self {
            spec: spec.clone(),
            gate: RwLock::new(()),
            record: RwLock::new(record),
            loading: LoadFlag::default(),
        })
    }

    pub(crate) fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// What is recorded now.
    pub(crate) fn record(&self) -> TableRecord {
        self.record.read().clone()
    }

    /// The column family that is served; None if there is none.
    pub(crate) fn active<'d>(&self, database: &'d Database) -> Result<Option<ColumnFamily<'d>>> {
        // The handle is taken under the lock: a switch drops the old column family only after it has had the lock.
        let record = self.record.read();
        record.active.as_deref().map(|name| database.column_family(name)).transpose()
    }

    /// What the table holds. A column family without a record and without rows is nothing.
    pub(crate) fn held(&self, database: &Database) -> Result<Held> {
        let held = self.record().held;
        if held == Held::Unrecorded
            && let Some(active) = self.active(database)?
        {
            let mut entries = database.db().raw_iterator_cf(&active);
            entries.seek_to_first();
            self.read_ok(database, entries.status())?;
            return Ok(if entries.valid() { Held::Unrecorded } else { Held::Nothing });
        }
        Ok(held)
    }

    /// Bytes of the rows that are served, of those in memtables too.
    pub(crate) fn bytes(&self, database: &Database) -> Result<u64> {
        let Some(active) = self.active(database)? else { return Ok(0) };
        let on_disk = self.property(database, &active, properties::LIVE_SST_FILES_SIZE)?;
        Ok(on_disk + self.property(database, &active, properties::CUR_SIZE_ALL_MEM_TABLES)?)
    }

    /// A number that RocksDB keeps of a column family.
    pub(crate) fn property(
        &self,
        database: &Database,
        column_family: &ColumnFamily<'_>,
        name: &properties::PropName,
    ) -> Result<u64> {
        let value = database.db().property_int_value_cf(column_family, name).map_err(|error| {
            table_storage("cannot read the table's statistics", database.path(), &self.spec.name, error)
        })?;
        Ok(value.unwrap_or(0))
    }

    /// Notes how many rows there were just now, unless the table has no record, as what the predecessor wrote. Not an error if it fails:
    /// they are counted again.
    pub(crate) fn note_count(&self, database: &Database, rows: u64) {
        if self.record().held == Held::Unrecorded {
            return;
        }
        let Ok(bytes) = self.bytes(database) else { return };
        drop(self.change(database, Durability::Logged, |record| {
            if record.rows.exact().is_none() {
                record.rows = RowCount::Before { rows, bytes };
            }
        }));
    }

    /// Gives the table that is held, recorded or not, a new record.
    pub(crate) fn set_record(&self, database: &Database, text: &str) -> Result<()> {
        if self.held(database)? == Held::Nothing {
            return Err(Error::new(ErrorKind::NotFound, "a table that was not loaded cannot have a record")
                .at("table", &self.spec.name)
                .at("database", database.path().display()));
        }
        self.change(database, Durability::Synced, |record| record.held = Held::Table(text.into()))
    }

    /// Keeps the active column family in place while rows are written to it; makes one if there is none.
    pub(crate) fn begin_write<'t, 'd>(
        &'t self,
        database: &'d Database,
    ) -> Result<(RwLockReadGuard<'t, ()>, ColumnFamily<'d>)> {
        loop {
            let guard = self.gate.read();
            let is_ready = {
                let record = self.record.read();
                record.active.is_some() && record.rows.exact().is_none()
            };
            if is_ready && let Some(column_family) = self.active(database)? {
                return Ok((guard, column_family));
            }
            drop(guard);
            self.prepare_writes(database)?;
        }
    }

    fn prepare_writes(&self, database: &Database) -> Result<()> {
        let _alone = self.gate.write();
        let mut record = self.record();
        let write = |record: &TableRecord, durability| database.write_record(&self.spec, record, durability);
        if record.active.is_none() {
            let name = unused_name(database, &self.spec, &record);
            record.active = Some(name.clone());
            write(&record, Durability::Synced)?;
            database.create_column_family(&name)?;
        } else if let Some(rows) = record.rows.exact() {
            record.rows = RowCount::Before { rows, bytes: self.bytes(database)? };
            // The count is about to be wrong. This is logged before the rows are: whoever finds them, finds it.
            write(&record, Durability::Logged)?;
        }
        *self.record.write() = record;
        Ok(())
    }

    /// Begins a load: returns the name of a new, empty column family, and the turn, to be kept until nothing of the load is left.
    pub(crate) fn begin_load(&self, database: &Database) -> Result<(LoadTurn<'_>, String)> {
        let turn = self
            .loading
            .take_turn()
            .map_err(|error| error.at("table", &self.spec.name).at("database", database.path().display()))?;
        Ok((turn, self.create_loading(database)?))
    }

    fn create_loading(&self, database: &Database) -> Result<String> {
        let left = self.record();
        if left.loading.is_some() || left.dropping.is_some() {
            // An earlier load of this process failed. Its last write may or may not have reached the log: say first
            // what holds, then drop.
            self.change(database, Durability::Synced, |_| {})?;
            for name in [&left.loading, &left.dropping].into_iter().flatten() {
                database.drop_column_family(name)?;
            }
        }
        let mut name = String::new();
        self.change(database, Durability::Synced, |record| {
            // What was named before is dropped by now, so that its name is free.
            (record.loading, record.dropping) = (None, None);
            name = unused_name(database, &self.spec, record);
            record.loading = Some(name.clone());
        })?;
        database.create_loading(&name)?;
        Ok(name)
    }

    /// Removes what interrupted loads left: there is nothing to be loaded.
    pub(crate) fn forget_interrupted(&self, database: &Database) -> Result<()> {
        // Of a load that is under way nothing is forgotten.
        let Ok(_turn) = self.loading.take_turn() else { return Ok(()) };
        if self.record().loading.is_none() {
            return Ok(());
        }
        if let Some(name) = &self.record().loading {
            // If that fails, the record goes on to name it.
            database.drop_column_family(name)?;
        }
        leftovers::remove(database.path(), &self.spec, None);
        self.change(database, Durability::Logged, |record| record.loading = None)
    }

    /// Ends a load without result. What it leaves on the disk is recorded, so that another one can go on with it.
    pub(crate) fn abandon_load(&self, database: &Database, name: &str) {
        // Whatever fails here is repeated by the next load or the next start: the record still names the leftover.
        let is_dropped = database.drop_column_family(name).is_ok();
        if is_dropped && !leftovers::exist(database.path(), &self.spec) {
            drop(self.change(database, Durability::Logged, |record| record.loading = None));
        }
    }

    /// Ends a load whose rows are on the disk: switches to them and drops the rows before.
    ///
    /// After an error the old rows are served and nothing is dropped: the record may have reached the disk all the
    /// same, and the next start decides by it.
    pub(crate) fn commit_load(&self, database: &Database, name: &str, rows: u64, text: &str) -> Result<()> {
        let mut replaced = None;
        let switched = self.change(database, Durability::Synced, |record| {
            replaced = record.active.replace(name.into());
            record.held = Held::Table(text.into());
            record.rows = RowCount::Exact(rows);
            record.loading = None;
            record.dropping = replaced.clone();
        });
        if let (Ok(()), Some(replaced)) = (&switched, replaced) {
            // Not an error if it fails: the new rows are served, and the record names what is left to drop.
            if database.drop_column_family(&replaced).is_ok() {
                drop(self.change(database, Durability::Logged, |record| record.dropping = None));
            }
        }
        if switched.is_ok() {
            database.flush_records();
        }
        switched
    }

    /// Changes the record, on disk first and then in memory.
    fn change(
        &self,
        database: &Database,
        durability: Durability,
        change: impl FnOnce(&mut TableRecord),
    ) -> Result<()> {
        let _alone = self.gate.write();
        let mut record = self.record();
        change(&mut record);
        database.write_record(&self.spec, &record, durability)?;
        *self.record.write() = record;
        Ok(())
    }

    /// Names the table in an error of a read.
    pub(crate) fn read_ok<T>(
        &self,
        database: &Database,
        read: std::result::Result<T, rocksdb::Error>,
    ) -> Result<T> {
        read.map_err(|error| table_storage("cannot read rows", database.path(), &self.spec.name, error))
    }
}

/// The first name for a column family of the table that none has, nor is about to have.
fn unused_name(database: &Database, spec: &TableSpec, record: &TableRecord) -> String {
    let is_taken = |name: &String| {
        let mut recorded = [&record.active, &record.loading, &record.dropping].into_iter().flatten();
        database.has_column_family(name) || recorded.any(|taken| taken == name)
    };
    // The names never end, so that there is always one.
    column_family_names(&spec.name).find(|name| !is_taken(name)).unwrap_or_default()
}

/// Removes what an interrupted load or switch left, and returns what then holds. Sorted rows of a load stay, and the record goes on to say
/// that there is one: the next load can go on from there.
fn recover(database: &Database, spec: &TableSpec, mut record: TableRecord) -> Result<TableRecord> {
    if let Some(active) = &record.active
        && !database.has_column_family(active)
    {
        if matches!(record.held, Held::Table(_)) {
            return Err(Error::new(ErrorKind::Corrupt, "the column family that holds the table is gone")
                .at("table", &spec.name)
                .at("column family", active)
                .at("database", database.path().display()));
        }
        record.active = None;
    }
    if database.is_read_only() {
        return Ok(record);
    }
    let before = record.clone();
    for name in [&before.loading, &before.dropping].into_iter().flatten() {
        if record.active.as_ref() != Some(name) {
            database.drop_column_family(name)?;
        }
    }
    record.dropping = None;
    if !leftovers::exist(database.path(), spec) {
        record.loading = None;
    } else if record.loading.is_none() {
        // It was completed.
        leftovers::remove(database.path(), spec, None);
    }
    if record != before {
        database.write_record(spec, &record, Durability::Logged)?;
    }
    Ok(record)
}

fn holds_nothing(record: &TableRecord) -> bool {
    record.active.is_none() && record.held == Held::Nothing
}

fn has_sizes(spec: &TableSpec, record: &TableRecord) -> bool {
    record.key_bytes == key_bytes(spec.key_width) && record.row_bytes == spec.row_bytes
}

/// Removes what a load of other sizes has left of a table that holds nothing.
fn begin_anew(database: &Database, spec: &TableSpec, record: TableRecord) -> Result<TableRecord> {
    let nothing = TableRecord::nothing(spec);
    if !database.is_read_only() {
        for name in [&record.loading, &record.dropping].into_iter().flatten() {
            database.drop_column_family(name)?;
        }
        leftovers::remove(database.path(), spec, None);
        database.write_record(spec, &nothing, Durability::Logged)?;
    }
    Ok(nothing)
}

/// Refuses a table whose stored sizes are not those that are asked for.
fn check_sizes(
    database: &Database,
    spec: &TableSpec,
    found_key_bytes: usize,
    found_row_bytes: usize,
) -> Result<()> {
    if found_key_bytes == key_bytes(spec.key_width) && found_row_bytes == spec.row_bytes {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        "the database holds this table with other sizes than ps.json gives: keys are 8 bytes with \
         \"supportlonglong\": true and 4 otherwise, rows 4 bytes times the table's number in \
         \"embedding_vecsize_per_table\"; correct these, or name another directory in persistent_db.path",
    )
    .at("table", &spec.name)
    .at("found key bytes", found_key_bytes)
    .at("expected key bytes", key_bytes(spec.key_width))
    .at("found row bytes", found_row_bytes)
    .at("expected row bytes", spec.row_bytes)
    .at("database", database.path().display()))
}

/// Looks at the first entries of a column family. Sizes that are wrong from the first entry on are a matter of
/// configuration; anything else is damage.
fn check_first_entries(database: &Database, spec: &TableSpec, active: &str) -> Result<()> {
    let column_family = database.column_family(active)?;
    let mut entries = database.db().raw_iterator_cf_opt(&column_family, lookup_options());
    entries.seek_to_first();
    for position in 0..CHECKED_ENTRIES {
        let Some((key, row)) = entries.item() else { break };
        if position == 0 {
            check_sizes(database, spec, key.len(), row.len())?;
        }
        let in_database = |error: Error| error.at("database", database.path().display());
        let key = read_key(key, spec.key_width).ok_or_else(|| in_database(wrong_key(spec, key.len())))?;
        if row.len() != spec.row_bytes {
            return Err(in_database(wrong_row(spec, key, row.len())));
        }
        entries.next();
    }
    let status = entries.status();
    status.map_err(|error| table_storage("cannot read rows", database.path(), &spec.name, error))
}
