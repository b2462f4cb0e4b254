//! `models[i]`: a set of tables that are served under one name.

use std::collections::HashMap;

use crate::fusion::{self, Original, StorageTable};
use crate::gpu::{self, GpuConfig};
use crate::json::quoted;
use crate::limits::MAX_BATCH;
use crate::paths::Folders;
use crate::reader::Section;
use crate::table::{self, LEGAL_NAME, TableConfig};

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// `model`: unique in the configuration.
    pub name: String,
    /// `max_batch_size`: samples per lookup, a sizing hint. Default 64.
    pub max_batch_size: usize,
    /// Whether the tables of equal dim are stored as one: `fuse_embedding_table` at the top level (default false)
    /// and here (default true).
    pub is_fused: bool,
    /// The tables, in the order of their ids; never empty.
    pub tables: Vec<TableConfig>,
    /// The tables as the databases hold them; never empty.
    pub storage_tables: Vec<StorageTable>,
    /// What concerns GPUs.
    pub gpu: GpuConfig,
}

/// What the rest of the configuration says about all models.
pub(crate) struct Common<'a> {
    /// `fuse_embedding_table` at the top level.
    pub(crate) fuses_tables: bool,
    /// Whether a database is loaded from files.
    pub(crate) is_loaded: bool,
    pub(crate) folders: &'a Folders,
}

/// Reads `models`.
pub(crate) fn read_all<'a>(root: &Section<'a>, common: &Common<'_>) -> Vec<ModelConfig> {
    const EXPECTED: &str = "a list of at least one model";
    root.require("models", EXPECTED);
    let sections = root.objects("models", EXPECTED);
    let mut names: HashMap<String, String> = HashMap::new();
    let read = |section: Section<'a>| {
        let model = read(&section, common);
        if let Some(first) = names.insert(model.name.clone(), section.place.path.clone())
            && table::is_legal_name(&model.name)
        {
            let found = format!("{}, which is also the name of {first}", quoted(&model.name));
            section.report.problem(&section.place_of("model"), found, "a different name for each model");
        }
        section.finish();
        model
    };
    sections.into_iter().map(read).collect()
}

fn read(section: &Section<'_>, common: &Common<'_>) -> ModelConfig {
    let name = read_name(section);
    let tables = table::read(section, common.is_loaded, common.folders);
    let gpu = gpu::read(section);
    let is_fused = read_is_fused(section, common.fuses_tables);
    let max_batch_size = section.usize("max_batch_size", 64, 1..=MAX_BATCH);
    check_unused(section);

    let mut model = ModelConfig { name, max_batch_size, is_fused, tables, storage_tables: Vec::new(), gpu };
    let originals: Vec<Original<'_>> = model
        .tables
        .iter()
        .map(|t| Original { name: &t.name, dim: t.dim, max_keys_per_sample: t.max_keys_per_sample })
        .collect();
    model.storage_tables = fusion::storage_tables(&model.name, &originals, is_fused);
    for (index, storage) in model.storage_tables.iter().enumerate() {
        for id in &storage.tables {
            if let Some(table) = model.tables.get_mut(*id) {
                table.storage = index;
            }
        }
    }
    model
}

fn read_name(section: &Section<'_>) -> String {
    section.require("model", LEGAL_NAME);
    let name = section.optional_string("model");
    if let Some(name) = name.as_deref().filter(|name| !table::is_legal_name(name)) {
        section.report.problem(&section.place_of("model"), quoted(name), LEGAL_NAME);
    }
    name.unwrap_or_default()
}

fn read_is_fused(section: &Section<'_>, fuses_tables: bool) -> bool {
    const KEY: &str = "fuse_embedding_table";
    let is_fused = section.bool(KEY, true);
    if is_fused && section.has(KEY) && !fuses_tables {
        let message = "without effect: fuse_embedding_table must also be true at the top level";
        section.report.warn(&section.place_of(KEY), message);
    }
    is_fused && fuses_tables
}

/// Checks the keys that the predecessor documents but that say nothing about embeddings.
fn check_unused(section: &Section<'_>) {
    section.optional_string("dense_file");
    section.optional_string("network_file");
    for key in ["maxnum_des_feature_per_sample", "label_dim", "slot_num"] {
        section.u64(key, 0, 0..=u64::MAX);
    }
}
