//! The tables of a model, which `ps.json` gives as one list for each of their settings.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::json::quoted;
use crate::limits::MAX_BATCH;
use crate::paths::Folders;
use crate::reader::{List, Section};
use crate::source;

/// Longest row. At 4 bytes per element it takes 256 KiB; nobody's rows are near.
const MAX_DIM: u64 = 65536;

/// A table as a model calls it. Its position in [`ModelConfig::tables`](crate::ModelConfig::tables) is its id.
#[derive(Debug, Clone, PartialEq)]
pub struct TableConfig {
    /// `embedding_table_names`: default `sparse_embedding<id>`.
    pub name: String,
    /// `embedding_vecsize_per_table`: elements per row.
    pub dim: usize,
    /// `sparse_files`: folder of the files `key` and `emb_vector`, absolute.
    pub source: PathBuf,
    /// `default_value_for_each_table`: every element of the row of a key that is in no tier. 0.0 where the list is
    /// short.
    pub default_value: f32,
    /// `maxnum_catfeature_query_per_table_per_sample`: most keys that one sample looks up. A sizing hint.
    pub max_keys_per_sample: usize,
    /// Index into [`ModelConfig::storage_tables`](crate::ModelConfig::storage_tables).
    pub storage: usize,
}

/// Whether a model or table may be called so. Names become part of column family, Redis key and Kafka topic.
pub(crate) fn is_legal_name(name: &str) -> bool {
    (1..=120).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// What a legal name is.
pub(crate) const LEGAL_NAME: &str = "a name of 1 to 120 letters, digits, `_` and `-`";

/// Reads the tables; their `storage` is still to be set. `is_loaded`: whether anything is loaded from files.
pub(crate) fn read(section: &Section<'_>, is_loaded: bool, folders: &Folders) -> Vec<TableConfig> {
    let report = section.report;
    let expected_each = |what: &str| format!("a list with {what} for each table");
    section.require("sparse_files", &expected_each("a folder"));
    section.require("embedding_vecsize_per_table", &expected_each("a number of elements"));
    section.require("maxnum_catfeature_query_per_table_per_sample", &expected_each("a number of keys"));
    section.require("default_value_for_each_table", &expected_each("a number"));
    let sources = section.strings("sparse_files");
    let dims = section.integers("embedding_vecsize_per_table", 1..=MAX_DIM);
    let max_keys = section.integers("maxnum_catfeature_query_per_table_per_sample", 1..=MAX_BATCH);
    let defaults = section.elements("default_value_for_each_table");
    let names = section.strings("embedding_table_names");

    let Some(sources) = sources else { return Vec::new() };
    let num_tables = sources.items.len();
    if num_tables == 0 {
        report.problem(&sources.place, "an empty list", "a folder for each table, and at least one table");
        return Vec::new();
    }
    check_length(section, dims.as_ref(), num_tables);
    check_length(section, max_keys.as_ref(), num_tables);
    check_length(section, names.as_ref(), num_tables);
    warn_about_defaults(section, defaults.as_ref(), num_tables);
    check_names(section, names.as_ref());

    let source_of = |(text, place): (Option<String>, _)| {
        text.map(|text| source::resolve(&text, place, is_loaded, folders, report)).unwrap_or_default()
    };
    let table = |(id, source)| TableConfig {
        name: names.as_ref().and_then(|list| list.get(id)).unwrap_or_else(|| format!("sparse_embedding{id}")),
        dim: dims.as_ref().and_then(|list| list.get(id)).unwrap_or(1),
        source,
        default_value: defaults.as_ref().and_then(|list| list.get(id)).unwrap_or(0.0),
        max_keys_per_sample: max_keys.as_ref().and_then(|list| list.get(id)).unwrap_or(1),
        storage: 0,
    };
    let sources = sources.items.iter().map(|item| source_of((item.value.clone(), &item.place)));
    sources.enumerate().map(table).collect()
}

/// Reports a list that has not one value for each table.
fn check_length<T>(section: &Section<'_>, list: Option<&List<T>>, num_tables: usize) {
    let Some(list) = list.filter(|list| list.items.len() != num_tables) else { return };
    section.report.problem(
        &list.place,
        values(list.items.len()),
        format!("{}, as in sparse_files", values(num_tables)),
    );
}

fn values(count: usize) -> String {
    format!("a list of {count} {}", if count == 1 { "value" } else { "values" })
}

/// The predecessor's own samples have lists of another length than there are tables: they are cut or padded.
fn warn_about_defaults(section: &Section<'_>, list: Option<&List<f32>>, num_tables: usize) {
    let Some(list) = list else { return };
    let count = list.items.len();
    let message = match count.cmp(&num_tables) {
        std::cmp::Ordering::Less => format!("{} for {num_tables} tables: 0.0 for the others", values(count)),
        std::cmp::Ordering::Greater => {
            format!("{} for {num_tables} tables: the rest is ignored", values(count))
        }
        std::cmp::Ordering::Equal => return,
    };
    section.report.warn(&list.place, message);
}

/// Reports names that are illegal or given twice.
fn check_names(section: &Section<'_>, names: Option<&List<String>>) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let items = names.iter().flat_map(|list| list.items.iter().enumerate());
    for (index, item) in items {
        let Some(name) = item.value.as_deref() else { continue };
        if !is_legal_name(name) {
            section.report.problem(&item.place, quoted(name), LEGAL_NAME);
        } else if let Some(first) = seen.insert(name, index) {
            let found = format!("{}, which is also the name of table {first}", quoted(name));
            section.report.problem(&item.place, found, "a different name for each table");
        }
    }
}
