//! `hps check`: what a start would find, do and need.

use std::path::Path;

use hps_bridge::budget;
use hps_bridge::storage::{rows_to_cache, ssd_settings};
use hps_config::VolatileDbKind;
use hps_core::load::Source;
use hps_core::record::{self, Comparison};
use hps_core::tier::{Held, TableSpec, Tier};
use hps_core::{Error, ErrorKind, Result, TableId};
use hps_ssd::SsdTier;
use serde_json::json;

use crate::deployment::{Deployment, available_memory, free_bytes, numbered, shape};
use crate::output::{Outcome, bytes, grouped};

/// What memory that processes share takes for a row beyond the row; a 256th of the row comes on top.
const SHARED_BYTES_PER_ROW: u64 = 26;
/// What the database takes for a row beyond the row and its key, filters and indexes included, rounded up.
const SSD_BYTES_PER_ROW: u64 = 16;

/// What a start does with a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Serve,
    Load,
    Reload,
    Compare,
    Adopt,
    Nothing,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Load => "load",
            Self::Reload => "reload",
            Self::Compare => "compare",
            Self::Adopt => "adopt",
            Self::Nothing => "nothing",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Serve => "is served as it is",
            Self::Load => "is loaded from the model files",
            Self::Reload => "is replaced: the model files are others than it was loaded from",
            Self::Compare => {
                "the model files were touched or copied since it was loaded: they are read to see whether they are others"
            }
            Self::Adopt => "the predecessor's rows are kept, and keys added that only the model files have",
            Self::Nothing => {
                "nothing is loaded: initialize_after_startup is false, and the database holds no such table"
            }
        }
    }
}

pub(crate) fn run(deployment: &Deployment) -> Result<Outcome> {
    let config = &deployment.config;
    let tables = deployment.tables();
    let loads_files = match (&config.persistent_db, &config.volatile_db) {
        (Some(ssd), _) => ssd.initialize_after_startup,
        (None, Some(host)) => host.initialize_after_startup,
        (None, None) => false,
    };
    let sources = if loads_files { Some(tables.open_sources(config)?) } else { None };
    let database = match &config.persistent_db {
        None => None,
        Some(ssd) => match deployment.open_to_read(&tables.specs) {
            Ok(database) => Some(database),
            Err(error) if error.kind() == ErrorKind::NotFound && !ssd.read_only => None,
            Err(error) => return Err(error),
        },
    };
    let (mut lines, mut json, mut warnings) = (Vec::new(), Vec::new(), deployment.warnings.clone());
    let is_read_only = config.persistent_db.as_ref().is_some_and(|ssd| ssd.read_only);
    let (mut host_bytes, mut disk_bytes, mut loaded_bytes) = (0u64, 0u64, 0u64);
    let mut sizes = Vec::new();
    for (table, spec, sources) in numbered(&tables, sources.as_deref()) {
        let (action, rows) = plan(database.as_ref(), table, sources)?;
        if is_read_only && action != Action::Serve {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the database holds no such table, or only part of it, and read_only forbids loading it; open it once with \
                 \"read_only\": false",
            )
            .at("table", &spec.name));
        }
        lines.push(format!("{}: {}; {} rows", shape(spec), action.text(), grouped(rows)));
        host_bytes = host_bytes.saturating_add(host_need(deployment, spec, rows));
        if config.persistent_db.is_some() && matches!(action, Action::Load | Action::Reload) {
            // Rows are sorted into runs first and merged from there: for a moment they are there twice.
            let size = rows.saturating_mul(spec.row_bytes as u64 + SSD_BYTES_PER_ROW);
            disk_bytes = disk_bytes.max(loaded_bytes.saturating_add(size.saturating_mul(2)));
            loaded_bytes = loaded_bytes.saturating_add(size);
        }
        sizes.push((spec, rows));
        json.push(
            json!({"table": spec.name, "dim": spec.row_bytes / 4, "rows": rows, "action": action.word()}),
        );
    }
    if let Some(settings) = &config.volatile_db {
        // Refuses what a start refuses.
        let ssd = config.persistent_db.as_ref().map(|ssd| ssd_settings(ssd, Some(settings)));
        let ssd = ssd.map(|ssd| budget::database_of(ssd, settings.memory_bytes, &sizes));
        budget::max_rows(settings.memory_bytes, ssd.as_ref(), settings.num_partitions, &sizes)?;
        host_bytes = host_bytes.min(settings.memory_bytes.unwrap_or(u64::MAX));
        if settings.kind == VolatileDbKind::MultiProcessHashMap {
            let most = settings.shared_memory.size_bytes as u64;
            let free = free_bytes(Path::new("/dev/shm"));
            warnings.extend(too_much("shared_memory_size", host_bytes, Some(most), "raise it"));
            let help = "make it larger, or free what others have left there";
            warnings.extend(too_much("/dev/shm", host_bytes, free, help));
        }
    }
    let memory = available_memory();
    if host_bytes > 0 {
        lines.push(need("host memory for rows and index", host_bytes, memory));
        warnings.extend(too_much(
            "host memory",
            host_bytes,
            memory,
            "lower initial_cache_rate or overflow_margin",
        ));
    }
    let disk = config.persistent_db.as_ref().and_then(|database| free_bytes(&database.path));
    if disk_bytes > 0 {
        lines.push(need("disk space while tables are loaded", disk_bytes, disk));
        warnings.extend(too_much("disk space", disk_bytes, disk, "name a larger disk in persistent_db.path"));
    }
    lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
    lines.push("the configuration can be served".into());
    Ok(Outcome {
        is_fine: true,
        lines,
        json: json!({
            "command": "check", "warnings": warnings, "tables": json,
            "host_bytes": host_bytes, "host_bytes_available": memory,
            "disk_bytes": disk_bytes, "disk_bytes_free": disk,
        }),
    })
}

/// What a start does with a table, and about how many rows it has then.
fn plan(database: Option<&SsdTier>, table: TableId, sources: Option<&[Source]>) -> Result<(Action, u64)> {
    let in_files = sources.map(|sources| sources.iter().map(|source| source.files.num_keys()).sum::<u64>());
    let Some(database) = database else {
        return Ok((if sources.is_some() { Action::Load } else { Action::Nothing }, in_files.unwrap_or(0)));
    };
    let state = database.state(table)?;
    let held = database.usage(table)?.rows;
    let of_files = in_files.unwrap_or(held);
    Ok(match (&state.held, sources) {
        (Held::Nothing, Some(_)) => (Action::Load, of_files),
        (Held::Nothing, None) => (Action::Nothing, held),
        (Held::Unrecorded, Some(_)) => (Action::Adopt, held.max(of_files)),
        (_, None) => (Action::Serve, held),
        (Held::Table(text), Some(sources)) => match record::compare(text, sources)? {
            Comparison::Same => (Action::Serve, held),
            Comparison::Touched => (Action::Compare, of_files),
            Comparison::Changed => (Action::Reload, of_files),
        },
    })
}

fn host_need(deployment: &Deployment, spec: &TableSpec, rows: u64) -> u64 {
    let Some(settings) = &deployment.config.volatile_db else { return 0 };
    let rows = rows_to_cache(settings, None, rows).map_or(rows, |most| most.min(rows));
    let more = match settings.kind {
        VolatileDbKind::MultiProcessHashMap => SHARED_BYTES_PER_ROW + spec.row_bytes as u64 / 256,
        _ => budget::BYTES_PER_ROW,
    };
    rows.saturating_mul(spec.row_bytes as u64 + more)
}

fn need(what: &str, needed: u64, there: Option<u64>) -> String {
    let there = there.map_or_else(|| "unknown".into(), bytes);
    format!("{what}: at most {} ({there} available)", bytes(needed))
}

fn too_much(what: &str, needed: u64, there: Option<u64>, help: &str) -> Option<String> {
    let there = there.filter(|&there| there < needed)?;
    Some(format!(
        "{what} may not suffice: {} are needed, {} are available; {help}",
        bytes(needed),
        bytes(there)
    ))
}
