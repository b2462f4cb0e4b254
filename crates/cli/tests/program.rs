//! The program as people and scripts call it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const ROWS: i64 = 20_000;
const DIM: usize = 16;

/// A configuration with one table of model files.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        place.write_table(0..ROWS, 1);
        place.configure(json!({"type": "rocks_db", "path": "db"}));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_table(&self, keys: std::ops::Range<i64>, version: u8) {
        std::fs::create_dir_all(self.path("table")).unwrap();
        let bytes: Vec<u8> = keys.clone().flat_map(i64::to_le_bytes).collect();
        std::fs::write(self.path("table/key"), bytes).unwrap();
        let rows: Vec<u8> = keys.flat_map(|key| [version ^ key as u8; DIM * 4]).collect();
        std::fs::write(self.path("table/emb_vector"), rows).unwrap();
    }

    fn configure(&self, persistent_db: Value) {
        let config = json!({
            "supportlonglong": true,
            "persistent_db": persistent_db,
            "models": [{
                "model": "m", "sparse_files": ["table"], "embedding_table_names": ["users"],
                "embedding_vecsize_per_table": [DIM], "default_value_for_each_table": [0.0],
                "deployed_device_list": [0], "maxnum_catfeature_query_per_table_per_sample": [1],
            }],
        });
        std::fs::write(self.path("ps.json"), config.to_string()).unwrap();
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path("ps.json")).unwrap()).unwrap()
    }

    fn hps(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_hps"))
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("HPS_CONFIG_DIR")
            .env_remove("HPS_CONFIG_FILE")
            .output()
            .unwrap()
    }

    /// Exit status and the JSON object of a command.
    fn json(&self, command: &str) -> (i32, Value) {
        let output = self.hps(&[command, "ps.json", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let value = serde_json::from_str(&text).unwrap_or_else(|_| json!({"no json": text}));
        assert_eq!(value["ok"], output.status.success(), "{value}");
        (output.status.code().unwrap(), value)
    }

    fn action(&self) -> String {
        let (status, found) = self.json("check");
        assert_eq!(status, 0, "{found}");
        found["tables"][0]["action"].as_str().unwrap().to_owned()
    }
}

/// What a failed command says.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_table_is_loaded_once_inspected_and_verified() {
    let place = Place::new();
    assert_eq!(place.action(), "load");
    let text = complaint(&place.hps(&["inspect", "ps.json"]));
    assert!(text.contains("no database yet") && text.contains("hps load"), "{text}");
    assert!(!place.path("db").exists(), "to look changes nothing");

    let (status, loaded) = place.json("load");
    assert_eq!((status, &loaded["tables"][0]["result"]), (0, &json!("loaded")));
    assert_eq!(loaded["tables"][0]["rows"], ROWS);
    assert_eq!(place.json("load").1["tables"][0]["result"], "held");
    assert_eq!(place.action(), "serve");

    let (_, found) = place.json("inspect");
    let table = &found["tables"][0];
    assert_eq!((&table["rows"], &table["rows_are_exact"]), (&json!(ROWS), &json!(true)));
    assert_eq!(table["held"], "table");
    assert_eq!(table["used_by"], json!(["m 0"]));
    let directory = std::fs::canonicalize(place.path("table")).unwrap();
    let recorded = table["sources"][0]["directory"].as_str().unwrap();
    assert_eq!(std::fs::canonicalize(recorded).unwrap(), directory);
    let bytes = table["bytes"].as_u64().unwrap();
    assert!((72 * ROWS as u64..100 * ROWS as u64).contains(&bytes), "{bytes}");

    let (status, verified) = place.json("verify");
    assert_eq!(status, 0, "{verified}");
    assert_eq!(verified["tables"][0]["rows"], ROWS);
    assert_eq!(verified["tables"][0]["files"]["keys"], ROWS);
    let (status, compacted) = place.json("compact");
    assert_eq!(status, 0, "{compacted}");
    assert_eq!(place.json("verify").0, 0);
    // For people, too.
    let output = place.hps(&["verify", "ps.json"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("hps_et.m.users") && text.contains("sound, 20,000 rows"), "{text}");
}

#[test]
fn other_model_files_are_noticed() {
    let place = Place::new();
    assert_eq!(place.json("load").0, 0);
    // Touched, with the same content.
    place.write_table(0..ROWS, 1);
    assert_eq!(place.action(), "compare");
    assert_eq!(place.json("verify").0, 0);
    assert_eq!(place.json("load").1["tables"][0]["result"], "held");
    assert_eq!(place.action(), "serve");
    // Other keys and rows, as many as before.
    place.write_table(5..ROWS + 5, 2);
    assert_eq!(place.action(), "compare");
    let (status, verified) = place.json("verify");
    assert_eq!(status, 1, "{verified}");
    let files = &verified["tables"][0]["files"];
    assert_eq!((&files["differing"], &files["missing"]), (&json!(ROWS - 5), &json!(5)));
    assert_eq!(files["examples"][0], 5);
    assert!(verified["tables"][0]["problems"][0].as_str().unwrap().contains("another row"), "{verified}");
    assert_eq!(place.json("load").1["tables"][0]["result"], "loaded");
    assert_eq!(place.json("verify").0, 0);
    // Fewer.
    place.write_table(5..ROWS, 2);
    assert_eq!(place.action(), "reload");
}

/// Files of table data of the database.
fn table_files(database: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(database).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "sst")).collect();
    files.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
    files
}

#[test]
fn a_damaged_file_is_named() {
    let place = Place::new();
    assert_eq!(place.json("load").0, 0);
    let file = table_files(&place.path("db")).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let (status, verified) = place.json("verify");
    assert_eq!(status, 1, "{verified}");
    let problem = verified["tables"][0]["problems"][0].as_str().unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(problem.contains("hps_et.m.users") && problem.contains(name), "{problem}");
    let output = place.hps(&["verify", "--no-files", "ps.json"]);
    assert!(complaint(&output).contains("DAMAGED"), "{output:?}");
}

#[test]
fn every_mistake_is_an_error_that_says_what_to_do() {
    let place = Place::new();
    // No such configuration.
    assert!(complaint(&place.hps(&["check", "nowhere.json"])).contains("nowhere.json"));
    let output = place.hps(&["check", "nowhere.json", "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&error["ok"], &error["error"]["kind"]), (&json!(false), &json!("config")));
    // Model files of another dim.
    std::fs::write(place.path("table/emb_vector"), [0; 12]).unwrap();
    for command in ["check", "load", "verify"] {
        let text = complaint(&place.hps(&[command, "ps.json"]));
        assert!(text.contains("emb_vector") && text.contains("12 bytes"), "{text}");
    }
    assert!(!place.path("db").exists());
    place.write_table(0..ROWS, 1);
    // No database, or one that may only be read.
    place.configure(json!({"type": "disabled"}));
    assert!(complaint(&place.hps(&["load", "ps.json"])).contains("no persistent_db"));
    assert_eq!(place.json("check").0, 0, "tables may live in host memory alone");
    let writing = json!({"type": "rocks_db", "path": "db"});
    let reading = json!({"type": "rocks_db", "path": "db", "read_only": true});
    place.configure(reading.clone());
    assert!(complaint(&place.hps(&["load", "ps.json"])).contains("does not exist"));
    place.configure(writing);
    let mut small = place.config();
    small["volatile_db"] = json!({"type": "hash_map", "memory_bytes": 1 << 20, "num_partitions": 64});
    std::fs::write(place.path("small.json"), small.to_string()).unwrap();
    assert!(complaint(&place.hps(&["check", "small.json"])).contains("memory_bytes is 1048576"));
    assert_eq!(place.json("load").0, 0);
    place.configure(reading);
    assert_eq!(place.action(), "serve");
    assert!(complaint(&place.hps(&["load", "ps.json"])).contains("read_only"));
    assert!(complaint(&place.hps(&["compact", "ps.json"])).contains("read_only"));
    // Called wrongly.
    assert_eq!(place.hps(&["explode"]).status.code(), Some(2));
    assert_eq!(place.hps(&[]).status.code(), Some(2));
}

#[test]
fn a_check_warns_of_a_table_that_does_not_fit() {
    let place = Place::new();
    // Sparse files: a table of 40 TB that takes no disk.
    for (file, bytes) in [("key", 8u64), ("emb_vector", 64)] {
        let file = std::fs::File::create(place.path("table").join(file)).unwrap();
        if file.set_len(bytes * 20_000_000_000).is_err() {
            return; // a file system without large files
        }
    }
    let (status, found) = place.json("check");
    assert_eq!(status, 0, "{found}");
    let warnings = found["warnings"].as_array().unwrap();
    let has = |word: &str| warnings.iter().any(|warning| warning.as_str().unwrap().contains(word));
    assert!(has("host memory may not suffice") && has("disk space may not suffice"), "{found}");
}
