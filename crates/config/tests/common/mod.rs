//! A folder with model files, and configurations beside them.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails a test may panic"
)]

use std::fs;
use std::path::{Path, PathBuf};

use hps_config::{Config, ConfigError, Loaded, Problem, Warning};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder that disappears with it.
pub(crate) struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    /// Holds the tables `t0`, `t1` and `t2`.
    pub(crate) fn new() -> Self {
        let sandbox = Self { folder: tempfile::tempdir().expect("a folder") };
        for name in ["t0", "t1", "t2"] {
            sandbox.add_table(name);
        }
        sandbox
    }

    /// The canonical path of something inside.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().expect("the folder").join(name)
    }

    pub(crate) fn add_file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(&path, text).expect("a file");
        path
    }

    pub(crate) fn add_table(&self, name: &str) {
        self.add_file(&format!("{name}/key"), [0; 8]);
        self.add_file(&format!("{name}/emb_vector"), [0; 16]);
    }

    /// Where the configuration would be.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.path("ps.json")
    }

    pub(crate) fn read_text(&self, text: &str) -> Result<Loaded, ConfigError> {
        Config::from_text(text, &self.config_file())
    }

    pub(crate) fn read(&self, config: &Value) -> Result<Loaded, ConfigError> {
        self.read_text(&config.to_string())
    }

    /// The configuration, which must be good.
    pub(crate) fn load(&self, config: &Value) -> (Config, Vec<Warning>) {
        match self.read(config) {
            Ok(Loaded { config, warnings }) => (config, warnings),
            Err(error) => panic!("{config}\nis refused:\n{error}"),
        }
    }

    /// The configuration, which must be good and give no warning.
    pub(crate) fn load_quietly(&self, config: &Value) -> Config {
        let (loaded, warnings) = self.load(config);
        assert!(warnings.is_empty(), "{config}\nwarns: {warnings:?}");
        loaded
    }
}

/// What most configurations are: two tables in host memory and on SSD.
pub(crate) fn base() -> Value {
    json!({
        "supportlonglong": true,
        "volatile_db": {"type": "parallel_hash_map"},
        "persistent_db": {"type": "rocks_db", "path": "db"},
        "models": [model("m")],
    })
}

/// A model of two tables, with the required keys alone.
pub(crate) fn model(name: &str) -> Value {
    json!({
        "model": name,
        "sparse_files": ["t0", "t1"],
        "deployed_device_list": [0],
        "maxnum_catfeature_query_per_table_per_sample": [2, 26],
        "embedding_vecsize_per_table": [16, 32],
        "default_value_for_each_table": [0.0, 1.5],
    })
}

/// `base` with the value at a JSON path set.
pub(crate) fn with(path: &str, value: Value) -> Value {
    set(base(), path, value)
}

/// `config` with the value at a JSON path set; objects on the way are made.
pub(crate) fn set(mut config: Value, path: &str, value: Value) -> Value {
    let mut at = &mut config;
    for step in path.split(['.', '[']) {
        at = match step.strip_suffix(']').map(str::parse::<usize>) {
            Some(index) => &mut at[index.expect("an index")],
            None => &mut at[step],
        };
    }
    *at = value;
    config
}

/// `config` without the member at a JSON path.
pub(crate) fn without(config: Value, path: &str) -> Value {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let pointer =
        parent.split(['.', '[']).filter(|s| !s.is_empty()).map(|s| format!("/{}", s.trim_end_matches(']')));
    let mut config = config;
    let parent = config.pointer_mut(&pointer.collect::<String>()).expect("the parent");
    assert!(parent.as_object_mut().expect("an object").remove(key).is_some(), "{path} is not there");
    config
}

/// The error for a configuration that must be bad.
pub(crate) fn refuse(sandbox: &Sandbox, config: &Value) -> ConfigError {
    match sandbox.read(config) {
        Ok(_) => panic!("accepted: {config}"),
        Err(error) => error,
    }
}

/// Asserts that the only problem is at `path`, and what it says.
pub(crate) fn assert_one(error: &ConfigError, path: &str, found: &str, expected: &str) {
    let [problem] = error.problems.as_slice() else { panic!("not one problem:\n{error}") };
    assert_problem(problem, path, found, expected);
}

/// Asserts where a problem is, what was found, and what is expected or helps.
pub(crate) fn assert_problem(problem: &Problem, path: &str, found: &str, expected: &str) {
    assert_eq!(problem.path, path, "{problem}");
    assert!(problem.found.contains(found), "{problem}\nshould have found {found}");
    let help = problem.help.as_deref().unwrap_or_default();
    let text = format!("{} ({help})", problem.expected);
    assert!(text.contains(expected), "{problem}\nshould expect {expected}");
    assert!(problem.position.is_some(), "{problem}");
    assert!(!problem.to_string().contains('\n'), "{problem}");
}

/// Asserts that there is one warning at `path` that says `message`, and no other.
pub(crate) fn assert_one_warning(warnings: &[Warning], path: &str, message: &str) {
    let [warning] = warnings else { panic!("not one warning: {warnings:#?}") };
    assert_eq!(warning.path, path, "{warning}");
    assert!(warning.message.contains(message), "{warning}");
}

/// The name of a path as messages show it.
pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
