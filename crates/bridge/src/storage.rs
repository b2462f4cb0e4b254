//! What a configuration stores: its tables under their storage names, their model files, its database.

use hps_config::{Config, ModelConfig, PersistentDbConfig, StorageTable, VolatileDbConfig};
use hps_core::load::Source;
use hps_core::model_files::ModelFiles;
use hps_core::store::Table;
use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind, Result, TableId};
use hps_ssd::SsdSettings;

use crate::budget;

/// Bytes of a float32.
const ELEMENT_BYTES: usize = 4;

/// How the database of a configuration is opened, within the budget of the whole if there is one.
pub fn ssd_settings(database: &PersistentDbConfig, host: Option<&VolatileDbConfig>) -> SsdSettings {
    let settings = SsdSettings {
        num_threads: database.num_threads,
        read_only: database.read_only,
        max_batch_size: database.max_batch_size,
        ..SsdSettings::new(database.path.clone())
    };
    budget::database(settings, host.and_then(|host| host.memory_bytes))
}

/// How many of a table's rows the host tier is filled with: the configured share, but not more than fit without
/// evicting again what was just read. `max_rows`: what the table may hold by the budget. None for all.
pub fn rows_to_cache(settings: &VolatileDbConfig, max_rows: Option<u64>, num_rows: u64) -> Option<u64> {
    let share = (settings.initial_cache_rate < 1.0)
        .then(|| (num_rows as f64 * settings.initial_cache_rate).ceil() as u64);
    let capacity = match max_rows {
        Some(max_rows) if budget::holds_all(num_rows, max_rows, settings.num_partitions) => return share,
        Some(max_rows) => max_rows,
        None if settings.overflow_margin == u64::MAX => return share,
        None => settings.overflow_margin.saturating_mul(settings.num_partitions as u64),
    };
    let capacity = (capacity as f64 * settings.overflow_resolution_target) as u64;
    Some(share.map_or(capacity, |share| share.min(capacity)))
}

/// Storage tables of all models, numbered for the tiers, and the tables that use them.
pub struct StorageTables<'c> {
    /// What every tier is told of them.
    pub specs: Vec<TableSpec>,
    /// The tables that use them, in the order of [`Table::sort`].
    pub tables: Vec<Table>,
    /// Model and storage table that each spec came from.
    pub origins: Vec<(&'c ModelConfig, &'c StorageTable)>,
}

impl<'c> StorageTables<'c> {
    /// Of a configuration.
    pub fn of(config: &'c Config) -> Self {
        let mut all = Self { specs: Vec::new(), tables: Vec::new(), origins: Vec::new() };
        for model in &config.models {
            let first = all.specs.len();
            for storage in &model.storage_tables {
                all.specs.push(TableSpec {
                    name: storage.name.clone(),
                    row_bytes: storage.dim * ELEMENT_BYTES,
                    key_width: config.key_width,
                });
                all.origins.push((model, storage));
            }
            for (table_id, table) in model.tables.iter().enumerate() {
                let storage = TableId((first + table.storage) as u32);
                let (model, name, dim) = (&model.name, &table.name, table.dim);
                all.tables.push(Table::new(model, table_id, name, storage, dim, table.default_value));
            }
        }
        Table::sort(&mut all.tables);
        all
    }

    /// The model files of every storage table.
    ///
    /// # Errors
    /// `Config`, with all that is wrong with any of them.
    pub fn open_sources(&self, config: &Config) -> Result<Vec<Vec<Source>>> {
        let mut problems = Vec::new();
        let mut all = Vec::new();
        for (spec, (model, storage)) in self.specs.iter().zip(&self.origins) {
            let mut sources = Vec::new();
            for (table_id, table) in
                model.tables.iter().enumerate().filter(|(id, _)| storage.tables.contains(id))
            {
                match ModelFiles::open(&table.source, spec.row_bytes, spec.key_width) {
                    Ok(files) => sources.push(Source { table: table.name.clone(), files }),
                    Err(error) => {
                        problems.push(format!("model \"{}\": sparse_files[{table_id}]: {error}", model.name));
                    }
                }
            }
            all.push(sources);
        }
        if problems.is_empty() {
            return Ok(all);
        }
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "{}: {} in the model files:\n{}",
                config.file.display(),
                count(problems.len()),
                problems.join("\n")
            ),
        ))
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "a problem".into() } else { format!("{problems} problems") }
}
