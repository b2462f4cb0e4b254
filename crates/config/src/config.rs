//! The whole configuration, and what its parts must have to do with each other.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::gpu::EmbeddingCacheType;
use crate::json;
use crate::model::{self, Common, ModelConfig};
use crate::paths::Folders;
use crate::persistent::{self, PersistentDbConfig};
use crate::problem::{ConfigError, Warning};
use crate::reader::Section;
use crate::report::{Place, Report};
use crate::update_source::{self, UpdateSourceConfig};
use crate::volatile::{self, VolatileDbConfig};

/// Longest text that is read: thousands of tables take less.
const MAX_TEXT_BYTES: usize = 4 << 20;

/// Width of the keys of all tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyWidth {
    /// `supportlonglong: false`: `int32` tensors, whose bits are read as an unsigned integer.
    Bits32,
    /// `supportlonglong: true`: `int64` tensors.
    Bits64,
}

impl KeyWidth {
    /// Bytes of a key.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }
}

/// A configuration in which everything has been checked that can be without opening a database.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it comes from, as it was given.
    pub file: PathBuf,
    /// `supportlonglong`: width of the keys. Required.
    pub key_width: KeyWidth,
    /// `fuse_embedding_table`: whether models may store their tables of equal dim as one. Default false.
    pub fuse_embedding_table: bool,
    /// `volatile_db`: `None` if disabled.
    pub volatile_db: Option<VolatileDbConfig>,
    /// `persistent_db`: `None` if disabled.
    pub persistent_db: Option<PersistentDbConfig>,
    /// `update_source`: `None` if there is none.
    pub update_source: Option<UpdateSourceConfig>,
    /// `models`: never empty.
    pub models: Vec<ModelConfig>,
}

/// A configuration with what its author may want to know.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// In the order of the text. The caller logs them.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads and checks the configuration in the file `path`.
    ///
    /// # Errors
    /// If the file cannot be read, is not UTF-8 or longer than 4 MiB, or for the reasons of
    /// [`from_text`](Self::from_text).
    pub fn from_file(path: &Path) -> Result<Loaded, ConfigError> {
        let unreadable = |error: std::io::Error| {
            ConfigError::about_file(path.to_owned(), error.to_string(), "a file that can be read".to_owned())
        };
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_TEXT_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(unreadable)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Self::from_text(text, path),
            Err(_) if bytes.len() > MAX_TEXT_BYTES => Err(too_long(path)),
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let text = std::str::from_utf8(valid).unwrap_or_default();
                let report = Report::new(path, text);
                let place = Place { offset: text.len(), path: String::new() };
                let byte = bytes.get(text.len()).copied().unwrap_or_default();
                report.problem(&place, format!("the byte 0x{byte:02x}"), "text in UTF-8");
                Err(report.into_error())
            }
        }
    }

    /// Checks the configuration in `text`. `file` is what messages call it; relative paths start from its folder.
    ///
    /// A byte order mark at the start is ignored: some editors write one.
    ///
    /// # Errors
    /// All problems at once, except that a text that is not JSON is read up to its first error only.
    pub fn from_text(text: &str, file: &Path) -> Result<Loaded, ConfigError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(too_long(file));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let report = Report::new(file, text);
        let document = match json::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let place = Place { offset: error.offset, path: error.path };
                report.problem(&place, error.found, error.expected);
                return Err(report.into_error());
            }
        };
        for duplicate in &document.duplicates {
            let first = report.position(duplicate.first);
            let again = report.position(duplicate.again);
            let found = format!(
                "the key in line {} again, first in line {} (column {})",
                again.line, first.line, first.column
            );
            let place = Place { offset: duplicate.again, path: duplicate.path.clone() };
            report.problem(&place, found, "each key once in an object");
        }
        let top = Place { offset: document.root.start, path: String::new() };
        let config = Section::new(&report, &document.root, top).map(|root| read(root, file));
        let (config, warnings) = report.finish(config)?;
        Ok(Loaded { config, warnings })
    }
}

fn too_long(file: &Path) -> ConfigError {
    let found = format!("more than {MAX_TEXT_BYTES} bytes");
    ConfigError::about_file(
        file.to_owned(),
        found,
        format!("a configuration of at most {MAX_TEXT_BYTES} bytes"),
    )
}

fn read(root: Section<'_>, file: &Path) -> Config {
    let folders = Folders::of(file);
    root.require("supportlonglong", "true for 64-bit keys or false for 32-bit keys");
    let has_long_keys = root.bool("supportlonglong", true);
    let fuse_embedding_table = root.bool("fuse_embedding_table", false);

    let persistent_section = root.object("persistent_db");
    let persistent_db = persistent_section.as_ref().and_then(|section| persistent::read(section, &folders));
    let volatile_section = root.object("volatile_db");
    let mut volatile_db = match &volatile_section {
        Some(section) => volatile::read(section, &folders),
        None => Some(VolatileDbConfig::default()),
    };
    if let (Some(section), Some(config), None) = (&volatile_section, &mut volatile_db, &persistent_db) {
        volatile::settle_alone(section, config);
    }
    let update_section = root.object("update_source");
    let update_source = update_section.as_ref().and_then(update_source::read);

    // Everything above the lowest database is filled from it, so only that one is loaded from files. Without any,
    // the host tier is enabled further down, and loads.
    let is_loaded = match (&persistent_db, &volatile_db) {
        (Some(persistent), _) => persistent.initialize_after_startup,
        (None, Some(volatile)) => volatile.initialize_after_startup,
        (None, None) => true,
    };
    let common = Common { fuses_tables: fuse_embedding_table, is_loaded, folders: &folders };
    let models = model::read_all(&root, &common);
    if volatile_db.is_none() && persistent_db.is_none() {
        volatile_db = enable_host_tier(&root, &models);
    }

    for section in [persistent_section, volatile_section, update_section].into_iter().flatten() {
        section.finish();
    }
    root.finish();
    Config {
        file: file.to_owned(),
        key_width: if has_long_keys { KeyWidth::Bits64 } else { KeyWidth::Bits32 },
        fuse_embedding_table,
        volatile_db,
        persistent_db,
        update_source,
        models,
    }
}

/// With no database, tables have nowhere to be. The predecessor held those of static and uvm models in the GPU
/// alone; here the host tier fills the GPU, and serves CPU tensors.
fn enable_host_tier(root: &Section<'_>, models: &[ModelConfig]) -> Option<VolatileDbConfig> {
    let place = root.place_of("volatile_db");
    let is_dynamic = |model: &&ModelConfig| model.gpu.embedding_cache_type == EmbeddingCacheType::Dynamic;
    let dynamic: Vec<&str> = models.iter().filter(is_dynamic).map(|model| model.name.as_str()).collect();
    if dynamic.is_empty() {
        root.report
            .warn(&place, "no database is enabled: rows are held in host memory, as by parallel_hash_map");
    } else {
        let expected = format!(
            "a volatile_db or persistent_db that holds the rows of {} (embedding_cache_type dynamic)",
            dynamic.join(", ")
        );
        root.report.problem(&place, "no database that is enabled", expected);
    }
    Some(VolatileDbConfig::default())
}
