//! A deployment in a temporary folder: model files, `ps.json`, and the oracle (a map) that says what every key must
//! yield. The tests beside it open real stores on it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "used by tests only")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use hps_bridge::registry::OpenStore;
use hps_core::stats::LookupCounts;
use hps_core::testing::rows_of;
use hps_core::{Key, Result, RowsMut};
use serde_json::{Value, json};

/// One table of a deployment.
#[derive(Clone, Debug)]
pub struct TestTable {
    /// float32 elements of a row.
    pub dim: usize,
    /// Row of a missing key.
    pub default_value: f32,
    /// What every key must yield.
    pub oracle: HashMap<Key, Vec<u8>>,
}

/// Model files and a configuration in a folder of their own.
pub struct Deployment {
    home: tempfile::TempDir,
    /// `ps.json` as it will be written by [`Deployment::write`].
    pub config: Value,
    /// Tables of model "m".
    pub tables: Vec<TestTable>,
}

impl Deployment {
    /// Tables with the given (dim, keys), default value -1 - id, host memory alone.
    pub fn new(tables: &[(usize, Vec<Key>)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut deployment = Self { home, config: Value::Null, tables: Vec::new() };
        for (id, (dim, keys)) in tables.iter().enumerate() {
            deployment.tables.push(TestTable {
                dim: *dim,
                default_value: -1.0 - id as f32,
                oracle: HashMap::new(),
            });
            deployment.write_table(id, keys, 1);
        }
        let per_table = |value: &dyn Fn(usize, &TestTable) -> Value| -> Value {
            deployment.tables.iter().enumerate().map(|(id, table)| value(id, table)).collect()
        };
        deployment.config = json!({
            "supportlonglong": true,
            "models": [{
                "model": "m",
                "sparse_files": per_table(&|id, _| json!(format!("table{id}"))),
                "embedding_vecsize_per_table": per_table(&|_, table| json!(table.dim)),
                "maxnum_catfeature_query_per_table_per_sample": per_table(&|_, _| json!(10)),
                "default_value_for_each_table": per_table(&|_, table| json!(table.default_value)),
                "deployed_device_list": [0],
            }],
        });
        deployment
    }

    /// Adds RocksDB, with `initial_cache_rate` of the rows in host memory.
    pub fn with_ssd(mut self, initial_cache_rate: f64, cache_missed_embeddings: bool) -> Self {
        self.config["volatile_db"] = json!({
            "type": "parallel_hash_map",
            "num_partitions": 4,
            "initial_cache_rate": initial_cache_rate,
            "cache_missed_embeddings": cache_missed_embeddings,
        });
        self.config["persistent_db"] = json!({"type": "rocks_db", "path": "rocksdb"});
        self
    }

    /// The folder.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a table's files anew; the oracle follows.
    pub fn write_table(&mut self, id: usize, keys: &[Key], version: u64) {
        let row_bytes = self.tables[id].dim * 4;
        let directory = self.home().join(format!("table{id}"));
        std::fs::create_dir_all(&directory).unwrap();
        let key_bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let rows = rows_of(keys, version, row_bytes);
        std::fs::write(directory.join("key"), key_bytes).unwrap();
        std::fs::write(directory.join("emb_vector"), &rows).unwrap();
        self.tables[id].oracle =
            keys.iter().copied().zip(rows.chunks(row_bytes).map(<[u8]>::to_vec)).collect();
    }

    /// Writes `ps.json`.
    pub fn write(&self) -> PathBuf {
        let file = self.home().join("ps.json");
        std::fs::write(&file, serde_json::to_string_pretty(&self.config).unwrap()).unwrap();
        file
    }

    /// Writes `ps.json` and opens its store, outside of the registry.
    pub fn open(&self) -> Result<OpenStore> {
        hps_bridge::assemble::open(&self.write())
    }

    /// Looks keys up and compares every row with the oracle.
    pub fn check(&self, open: &OpenStore, id: usize, keys: &[Key]) -> LookupCounts {
        let (rows, counts) = lookup(open, id, keys).unwrap();
        let table = &self.tables[id];
        let default_row = table.default_value.to_le_bytes().repeat(table.dim);
        let missing = keys.iter().filter(|key| !table.oracle.contains_key(key)).count();
        for (i, key) in keys.iter().enumerate() {
            let expected = table.oracle.get(key).unwrap_or(&default_row);
            let found = &rows[i * expected.len()..][..expected.len()];
            assert!(found == expected, "table {id}, key {key} at position {i}");
        }
        assert_eq!(counts.missing, missing as u64, "keys in no tier");
        assert_eq!(counts.keys(), keys.len() as u64, "hits + missing == keys");
        counts
    }
}

/// Looks keys up in table `id` of model "m".
///
/// # Errors
/// What the store reports.
pub fn lookup(open: &OpenStore, id: usize, keys: &[Key]) -> Result<(Vec<u8>, LookupCounts)> {
    let table = open.store.table(open.store.find_table("m", id as i64)?)?;
    let mut rows = vec![0xEE; keys.len() * table.row_bytes()];
    let counts =
        open.store.lookup(table, keys, &mut RowsMut::from_bytes(&mut rows, table.row_bytes()).unwrap())?;
    Ok((rows, counts))
}

/// A count of `/proc/self/io`: bytes that all threads of this process have had from read calls (`rchar`), or given to write calls (`wchar`).
pub fn io_bytes(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let mut counts = text.lines().filter_map(|line| line.split_once(": "));
    counts.find(|(found, _)| *found == name).unwrap().1.parse().unwrap()
}

/// A small generator of random numbers (xorshift64*), so that a failing run can be repeated.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }
}
