//! `persistent_db`: rows on SSD.

use std::path::{Path, PathBuf};

use crate::json::quoted;
use crate::limits::MAX_BATCH;
use crate::paths::{self, Folders};
use crate::reader::{Choices, Chosen, Section};
use crate::report::{Place, Report};
use crate::update_source;

/// Settings of the persistent database, which is RocksDB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersistentDbConfig {
    /// `path`: the database's folder, absolute. Default: `rocksdb` in the folder for temporary files.
    pub path: PathBuf,
    /// `num_threads`: threads for reads, loads, flushes and compactions. Default 16.
    pub num_threads: usize,
    /// `read_only`: whether the database is never written. Default false.
    pub read_only: bool,
    /// `max_batch_size`: keys handled at a time. Default 65536.
    pub max_batch_size: usize,
    /// `initialize_after_startup`: whether the tables are loaded at start. Default true; always false with
    /// `read_only`.
    pub initialize_after_startup: bool,
    /// `update_filters`: regular expressions on model names whose updates are taken. Default `.+`: all.
    pub update_filters: Vec<String>,
}

impl Default for PersistentDbConfig {
    /// What holds if `persistent_db` has a `type` and nothing else.
    fn default() -> Self {
        let report = Report::new(Path::new(""), "");
        let section = Section::empty(&report, Place { offset: 0, path: String::new() });
        read_settings(&section, true, &Folders::of(Path::new("")))
    }
}

/// The spellings of `persistent_db.type`: whether there is one.
static KINDS: Choices<bool> = Choices {
    accepted: &[(true, &["rocks_db", "rocksdb", "rocks"]), (false, &["disabled", "disable", "none"])],
    refused: &[
        (
            &[
                "hash_map",
                "hashmap",
                "hash",
                "map",
                "parallel_hash_map",
                "parallel_hashmap",
                "parallel_hash",
                "parallel_map",
                "multi_process_hash_map",
                "multi_process_hashmap",
                "multi_process_hash",
                "multi_process_map",
            ],
            "hash maps belong in volatile_db.type",
        ),
        (&["redis_cluster", "redis"], "Redis belongs in volatile_db.type"),
    ],
};

/// Reads the section; `None` means disabled.
pub(crate) fn read(section: &Section<'_>, folders: &Folders) -> Option<PersistentDbConfig> {
    let is_enabled = match section.choice("type", &KINDS) {
        Chosen::Is(is_enabled) => is_enabled,
        Chosen::Invalid => true,
        Chosen::Absent => {
            section.report.warn(&section.place, "disabled, since it has no `type`; \"rocks_db\" enables it");
            false
        }
    };
    let config = read_settings(section, is_enabled, folders);
    is_enabled.then_some(config)
}

fn read_settings(section: &Section<'_>, is_enabled: bool, folders: &Folders) -> PersistentDbConfig {
    let read_only = section.bool("read_only", false);
    let is_initialized = section.bool("initialize_after_startup", true);
    if is_enabled && read_only && is_initialized && section.has("initialize_after_startup") {
        let message = "ignored: a read_only database is served as it is, and nothing is loaded into it";
        section.report.warn(&section.place_of("initialize_after_startup"), message);
    }
    PersistentDbConfig {
        path: read_path(section, is_enabled, read_only, folders),
        num_threads: section.usize("num_threads", 16, 1..=1024),
        read_only,
        max_batch_size: section.usize("max_batch_size", 65536, 1..=MAX_BATCH),
        initialize_after_startup: is_initialized && !read_only,
        update_filters: update_source::read_filters(section),
    }
}

/// Reads `path`, which is a folder or nothing yet.
fn read_path(section: &Section<'_>, is_enabled: bool, read_only: bool, folders: &Folders) -> PathBuf {
    let given = section.optional_string("path");
    let place = section.place_of("path");
    let path = match &given {
        Some(text) => folders.existing_or_own(text),
        None => std::env::temp_dir().join("rocksdb"),
    };
    if !is_enabled {
        return path;
    }
    if given.is_none() && !section.has("path") {
        let message =
            format!("not given: {} is used, which a restart of the machine may empty", path.display());
        section.report.warn(&place, message);
    }
    let text = given.unwrap_or_else(|| path.display().to_string());
    let expected = if read_only { "the folder of an existing database" } else { "a folder" };
    if text.is_empty() || text.contains('\0') {
        section.report.problem(&place, quoted(&text), expected);
    } else if let Some(scheme) = paths::scheme(&text).filter(|_| !path.exists()) {
        let help = format!("`{scheme}:` is not supported: a database lies in a local folder");
        section.report.problem_with_help(&place, quoted(&text), expected, Some(help));
    } else if path.is_file() {
        section.report.problem(&place, format!("{}, a file", quoted(&text)), expected);
    } else if read_only && !path.exists() {
        let tried = folders.candidates(&text).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        let help = format!("tried {}", tried.join(", "));
        section.report.problem_with_help(
            &place,
            format!("{}, which does not exist", quoted(&text)),
            expected,
            Some(help),
        );
    }
    path
}
