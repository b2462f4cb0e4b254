//! A configuration with its tables, model files and database.

use std::path::Path;

use hps_bridge::assemble;
use hps_bridge::console::Console;
use hps_bridge::storage::{StorageTables, ssd_settings};
use hps_config::{Config, Loaded, PersistentDbConfig};
use hps_core::load::Source;
use hps_core::observer::Observer;
use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind, KeyWidth, Result, TableId};
use hps_ssd::{SsdSettings, SsdTier};

/// What a command works on.
pub(crate) struct Deployment {
    pub(crate) config: Config,
    /// For people; also in JSON.
    pub(crate) warnings: Vec<String>,
    pub(crate) console: Console,
}

impl Deployment {
    /// Finds and reads a configuration.
    ///
    /// # Errors
    /// `Config` with every problem in it.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let file = assemble::resolve(name)?;
        let Loaded { config, warnings } = Config::from_file(&file)?;
        let console = Console::new();
        let warnings: Vec<String> = warnings.iter().map(ToString::to_string).collect();
        warnings.iter().for_each(|warning| console.warn(warning));
        Ok(Self { config, warnings, console })
    }

    /// The tables, numbered as tiers know them.
    pub(crate) fn tables(&self) -> StorageTables<'_> {
        StorageTables::of(&self.config)
    }

    /// The settings of the database.
    ///
    /// # Errors
    /// `Config` if there is none.
    pub(crate) fn database(&self) -> Result<&PersistentDbConfig> {
        self.config.persistent_db.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                "the configuration has no persistent_db: tables are read into host memory at each start, and nothing is stored",
            )
            .at("configuration", self.config.file.display())
        })
    }

    fn ssd_settings(&self) -> Result<SsdSettings> {
        Ok(ssd_settings(self.database()?, self.config.volatile_db.as_ref()))
    }

    /// Opens the database beside whoever serves it.
    ///
    /// # Errors
    /// `NotFound` if there is no database yet; as [`SsdTier::open`].
    pub(crate) fn open_to_read(&self, specs: &[TableSpec]) -> Result<SsdTier> {
        let settings = SsdSettings { read_only: true, ..self.ssd_settings()? };
        let path = settings.path.clone();
        SsdTier::open(settings, specs).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::NotFound,
                "there is no database yet; hps load makes it, and so does the first start",
            )
            .at("persistent_db.path", path.display()),
            _ => error,
        })
    }

    /// Opens the database alone.
    ///
    /// # Errors
    /// `Unsupported` if the configuration says `read_only`; `Storage` if another process has it open; as [`SsdTier::open`].
    pub(crate) fn open_to_write(&self, specs: &[TableSpec]) -> Result<SsdTier> {
        let settings = self.ssd_settings()?;
        if settings.read_only {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "persistent_db has \"read_only\": true; name a configuration that may write",
            )
            .at("configuration", self.config.file.display()));
        }
        SsdTier::open(settings, specs)
    }
}

/// Tables with their numbers and, if they are at hand, their model files.
pub(crate) fn numbered<'t>(
    tables: &'t StorageTables<'_>,
    sources: Option<&'t [Vec<Source>]>,
) -> impl Iterator<Item = (TableId, &'t TableSpec, Option<&'t [Source]>)> {
    tables.specs.iter().enumerate().map(move |(i, spec)| {
        (TableId(i as u32), spec, sources.and_then(|sources| sources.get(i)).map(Vec::as_slice))
    })
}

/// What every command tells of a table.
pub(crate) fn shape(spec: &TableSpec) -> String {
    let width = match spec.key_width {
        KeyWidth::Bits32 => 32,
        KeyWidth::Bits64 => 64,
    };
    format!("{}: dim {}, {width}-bit keys", spec.name, spec.row_bytes / 4)
}

/// Bytes that are free on the file system where `path` is, or will be.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let stats = rustix::fs::statvfs(existing).ok()?;
    Some(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// Memory that a new process can have without swapping.
pub(crate) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.saturating_mul(1024))
}
