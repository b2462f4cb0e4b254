//! Which tables are stored as one.
//!
//! Tables that are fused share one key space under one name. The predecessor's names are kept, so that a
//! database it has written is found again: `hps_et.<model>.<table>`, or `hps_et.<model>.fused_embedding<k>`.

use std::collections::BTreeMap;

/// A table as the databases hold it: one original table, or several that are fused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageTable {
    /// Name in every database: `hps_et.<model>.<table>` or `hps_et.<model>.fused_embedding<k>`.
    pub name: String,
    /// Elements per row.
    pub dim: usize,
    /// Ids of the original tables that share it, ascending; never empty.
    pub tables: Vec<usize>,
    /// Largest number of keys per sample: the sum over its tables. A sizing hint.
    pub max_keys_per_sample: usize,
}

/// What decides about a table's storage.
pub(crate) struct Original<'a> {
    pub(crate) name: &'a str,
    pub(crate) dim: usize,
    pub(crate) max_keys_per_sample: usize,
}

/// The storage tables of a model. With `is_fused` there is one for each dim, ascending; otherwise one for each
/// original table.
pub(crate) fn storage_tables(model: &str, originals: &[Original<'_>], is_fused: bool) -> Vec<StorageTable> {
    // Groups come out in the order of their key: the dim when fused, else the table's id.
    let mut groups: BTreeMap<usize, StorageTable> = BTreeMap::new();
    for (id, original) in originals.iter().enumerate() {
        let group = if is_fused { original.dim } else { id };
        let storage = groups.entry(group).or_insert_with(|| StorageTable {
            name: format!("hps_et.{model}.{}", original.name),
            dim: original.dim,
            tables: Vec::new(),
            max_keys_per_sample: 0,
        });
        storage.tables.push(id);
        storage.max_keys_per_sample =
            storage.max_keys_per_sample.saturating_add(original.max_keys_per_sample);
    }
    let mut tables: Vec<StorageTable> = groups.into_values().collect();
    if is_fused {
        for (k, table) in tables.iter_mut().enumerate() {
            table.name = format!("hps_et.{model}.fused_embedding{k}");
        }
    }
    tables
}
