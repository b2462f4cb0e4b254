//! A table: which of its versions is served, and how that changes.
//!
//! ```text
//! load      make the files of a new version     killed here: the next load removes them
//! commit    store its number in <table>.served  <- the switch, for all processes at once
//!           remove the old version's files
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use hps_core::tier::{Held, LoadFlag, TableSpec};
use hps_core::{Error, ErrorKind, KeyWidth, Result};
use parking_lot::{Mutex, RwLock};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

use crate::map::Mapping;
use crate::segment::{Segment, cannot};
use crate::settings::Limit;
use crate::version::{Stem, Version, Writing};

/// What `<table>.<version>.info` says.
#[derive(Clone, Debug)]
struct Info {
    version: u64,
    row_bytes: u64,
    key_bits: u64,
    record: Option<String>,
}

/// Of `<table>.served`.
const SERVED_BYTES: u64 = 4096;

/// A table as this process knows it.
#[derive(Debug)]
pub(crate) struct Table {
    segment: Arc<Segment>,
    spec: TableSpec,
    stem: Stem,
    limit: Option<Limit>,
    /// One word: the version that is served, 0 if there is none.
    served: Mapping,
    mapped: RwLock<Option<Arc<Version>>>,
    /// Between threads, which the segment's locks do not keep apart.
    writer: Mutex<()>,
    pub(crate) loading: LoadFlag,
}

fn key_bits(width: KeyWidth) -> u64 {
    match width {
        KeyWidth::Bits32 => 32,
        KeyWidth::Bits64 => 64,
    }
}

impl Table {
    pub(crate) fn open(segment: &Arc<Segment>, spec: &TableSpec, limit: Option<Limit>) -> Result<Self> {
        let stem = Stem(xxh3_128(spec.name.as_bytes()));
        let file = segment.open_or_make_file(&stem.served(), SERVED_BYTES, &spec.name)?;
        let served = Mapping::new(&file).map_err(|error| cannot("map", segment.directory(), error))?;
        Ok(Self {
            segment: Arc::clone(segment),
            spec: spec.clone(),
            stem,
            limit,
            served,
            mapped: RwLock::default(),
            writer: Mutex::default(),
            loading: LoadFlag::default(),
        })
    }

    pub(crate) fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Number of the version that is served; 0 if there is none.
    #[inline]
    fn served(&self) -> u64 {
        self.served.u64s(0, 1).first().map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn serve(&self, version: u64) {
        if let Some(word) = self.served.u64s(0, 1).first() {
            word.store(version, Ordering::Release);
        }
    }

    /// What is served.
    fn info(&self) -> Result<Option<Info>> {
        loop {
            let version = self.served();
            if version == 0 {
                return Ok(None);
            }
            match self.segment.read_file(&self.stem.info(version))? {
                Some(text) => return self.parse(version, &text).map(Some),
                None if self.served() != version => {} // replaced just now
                None => {
                    return Err(Error::new(ErrorKind::Corrupt, "a file of a table in shared memory is gone")
                        .at("file", self.stem.info(version))
                        .at("shared memory", self.segment.directory().display()));
                }
            }
        }
    }

    fn parse(&self, version: u64, text: &str) -> Result<Info> {
        let parse = || {
            let value: Value = serde_json::from_str(text).ok()?;
            Some(Info {
                version,
                row_bytes: value.get("row_bytes")?.as_u64()?,
                key_bits: value.get("key_bits")?.as_u64()?,
                record: value.get("record")?.as_str().map(str::to_owned),
            })
        };
        parse().ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("what is recorded of a table in shared memory cannot be read: {text}"),
            )
            .at("shared memory", self.segment.directory().display())
        })
    }

    fn write_info(&self, info: &Info) -> Result<()> {
        let text = json!({
            "table": self.spec.name,
            "row_bytes": info.row_bytes,
            "key_bits": info.key_bits,
            "record": info.record,
        });
        self.segment.replace_file(&self.stem.info(info.version), &text.to_string())
    }

    fn is_ours(&self, info: &Info) -> bool {
        info.row_bytes == self.spec.row_bytes as u64 && info.key_bits == key_bits(self.spec.key_width)
    }

    /// The version that is served; None if there is none.
    #[inline]
    pub(crate) fn version(&self) -> Result<Option<Arc<Version>>> {
        let served = self.served();
        if let Some(version) = self.mapped.read().as_ref().filter(|version| version.number == served) {
            return Ok(Some(Arc::clone(version)));
        }
        self.map_served()
    }

    /// True if a version failed because it has just been replaced, and its files are gone.
    pub(crate) fn is_over(&self, version: &Version, error: &Error) -> bool {
        error.kind() == ErrorKind::Closed && self.served() != version.number
    }

    #[cold]
    fn map_served(&self) -> Result<Option<Arc<Version>>> {
        loop {
            let Some(info) = self.info()? else {
                *self.mapped.write() = None;
                return Ok(None);
            };
            if !self.is_ours(&info) {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "the shared memory holds the table with rows of {} bytes and {}-bit keys, this process expects {} and {}: \
                         another process has loaded it from another configuration; close one of them, or give it another \
                         shared_memory_name",
                        info.row_bytes,
                        info.key_bits,
                        self.spec.row_bytes,
                        key_bits(self.spec.key_width)
                    ),
                )
                .at("shared memory", self.segment.directory().display()));
            }
            let id = (self.stem, self.spec.name.as_str(), info.version);
            // None if it was replaced just now.
            if let Some(version) = Version::open(&self.segment, id, self.spec.row_bytes, self.limit)? {
                let version = Arc::new(version);
                *self.mapped.write() = Some(Arc::clone(&version));
                return Ok(Some(version));
            }
            if self.served() == info.version {
                return Err(Error::new(ErrorKind::Corrupt, "a file of a table in shared memory is gone")
                    .at("file", self.stem.extent(info.version, 0))
                    .at("shared memory", self.segment.directory().display()));
            }
        }
    }

    /// Runs `write` while no other thread or process writes to the table. `makes`: a table is made where there is none, with room
    /// for so many rows; otherwise nothing is done then.
    pub(crate) fn write<T: Default>(
        &self,
        makes: Option<u64>,
        write: impl FnOnce(&mut Writing<'_>) -> Result<T>,
    ) -> Result<T> {
        let _writer = self.writer.lock();
        let _turn = self.segment.writing_turn(self.stem.0)?;
        // Nobody replaces it while we have the turn.
        let version = match (self.version()?, makes) {
            (Some(version), _) => version,
            (None, None) => return Ok(T::default()),
            (None, Some(num_rows)) => {
                let version = self.make_version(num_rows)?;
                self.publish(Arc::new(version), None)?
            }
        };
        write(&mut version.begin_write()?)
    }

    /// An empty version that nobody sees.
    pub(crate) fn make_version(&self, num_rows: u64) -> Result<Version> {
        // Any number that no other version has or had.
        let number = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
        let id = (self.stem, self.spec.name.as_str(), number);
        Version::make(&self.segment, id, self.spec.row_bytes, num_rows, self.limit)
    }

    /// Removes files of loads and of switches that were killed. Only for whoever may load the table.
    pub(crate) fn clear_away(&self) -> Result<()> {
        let _writer = self.writer.lock();
        // A table that appears just now has files before it is served.
        let _turn = self.segment.writing_turn(self.stem.0)?;
        self.remove_leftovers()
    }

    fn remove_leftovers(&self) -> Result<()> {
        let served = self.served();
        self.segment.remove_files(|name| self.stem.is_a_version(name) && !self.stem.is_version(name, served))
    }

    /// Serves a version from now on, in place of any other.
    fn publish(&self, version: Arc<Version>, record: Option<&str>) -> Result<Arc<Version>> {
        self.write_info(&Info {
            version: version.number,
            row_bytes: self.spec.row_bytes as u64,
            key_bits: key_bits(self.spec.key_width),
            record: record.map(str::to_owned),
        })?;
        let old = self.served();
        self.serve(version.number);
        *self.mapped.write() = Some(Arc::clone(&version));
        // Not those of a version that another process is loading.
        self.segment.remove_files(|name| self.stem.is_version(name, old))?;
        Ok(version)
    }

    /// Completes a load.
    pub(crate) fn commit(&self, version: Version, record: &str) -> Result<()> {
        let _writer = self.writer.lock();
        let _turn = self.segment.writing_turn(self.stem.0)?;
        self.publish(Arc::new(version), Some(record)).map(drop)
    }

    /// Makes the table empty, with room for that many rows, for all processes. Only while nobody loads it.
    pub(crate) fn clear(&self, num_rows: u64) -> Result<()> {
        let _writer = self.writer.lock();
        let _turn = self.segment.writing_turn(self.stem.0)?;
        // Its memory first: there may not be enough for both.
        self.serve(0);
        *self.mapped.write() = None;
        self.remove_leftovers()?;
        let version = self.make_version(num_rows)?;
        self.publish(Arc::new(version), None).map(drop)
    }

    /// What is held; a table of other sizes is nothing.
    pub(crate) fn held(&self) -> Result<Held> {
        let info = self.info()?.filter(|info| self.is_ours(info));
        Ok(info.and_then(|info| info.record).map_or(Held::Nothing, Held::Table))
    }

    /// Gives a table that is held whole another record.
    pub(crate) fn set_record(&self, record: &str) -> Result<()> {
        let _writer = self.writer.lock();
        let _turn = self.segment.writing_turn(self.stem.0)?;
        match self.info()?.filter(|info| self.is_ours(info) && info.record.is_some()) {
            Some(info) => self.write_info(&Info { record: Some(record.to_owned()), ..info }),
            None => Err(Error::new(ErrorKind::Unsupported, "shared memory holds no whole table to describe")),
        }
    }
}
