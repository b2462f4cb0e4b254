//! Which files and folders are meant.

mod common;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Sandbox, assert_one, base, refuse, set, shown, with};
use hps_config::{Config, ConfigError, resolve_config_file};
use serde_json::json;

#[test]
fn missing_sources_are_refused_with_the_places_tried() {
    let sandbox = Sandbox::new();
    sandbox.add_file("file", "");
    sandbox.add_file("no_rows/key", "");
    sandbox.add_file("no_keys/emb_vector", "");
    sandbox.add_file("folder/key/x", "");
    sandbox.add_file("folder/emb_vector", "");
    let here = std::env::current_dir().expect("a working directory");
    for (path, found) in [
        ("nowhere", "\"nowhere\", which does not exist"),
        ("no_rows", "\"no_rows\", which has no file `emb_vector`"),
        ("no_keys", "\"no_keys\", which has no file `key`"),
        ("folder", "\"folder\", in which `key` is a folder"),
        ("file", "a file"),
    ] {
        let error = refuse(&sandbox, &with("models[0].sparse_files[1]", json!(path)));
        assert_one(
            &error,
            "models[0].sparse_files[1]",
            found,
            "a local folder with the files `key` and `emb_vector`",
        );
        let tried = format!("tried {} and {}", shown(&sandbox.path(path)), shown(&here.join(path)));
        assert_eq!(error.problems[0].help, Some(tried));
    }
    for (path, found) in [("", "\"\""), ("a\0", "\"a\\0\"")] {
        let error = refuse(&sandbox, &with("models[0].sparse_files[0]", json!(path)));
        assert_one(&error, "models[0].sparse_files[0]", found, "a local folder");
    }
    // An empty folder lacks both.
    fs::create_dir(sandbox.path("empty")).expect("a folder");
    let error = refuse(&sandbox, &with("models[0].sparse_files[0]", json!("empty")));
    assert_eq!(error.problems.len(), 2, "{error}");
}

#[test]
fn sources_may_be_missing_where_nothing_is_loaded() {
    let sandbox = Sandbox::new();
    sandbox.add_file("db/CURRENT", "");
    let gone = with("models[0].sparse_files[0]", json!("gone"));
    for config in [
        set(gone.clone(), "persistent_db.initialize_after_startup", json!(false)),
        set(gone.clone(), "persistent_db.read_only", json!(true)),
    ] {
        assert_eq!(sandbox.load_quietly(&config).models[0].tables[0].source, sandbox.path("gone"));
    }
    let alone = set(gone.clone(), "persistent_db.type", json!("disabled"));
    sandbox.load(&set(alone.clone(), "volatile_db.initialize_after_startup", json!(false)));
    // Nor need they be complete.
    fs::create_dir(sandbox.path("empty")).expect("a folder");
    let empty = set(gone.clone(), "models[0].sparse_files[0]", json!("empty"));
    sandbox.load_quietly(&set(empty, "persistent_db.initialize_after_startup", json!(false)));
    // The lowest database is the one that counts.
    refuse(&sandbox, &set(gone, "volatile_db.initialize_after_startup", json!(false)));
    refuse(&sandbox, &set(alone, "persistent_db.initialize_after_startup", json!(false)));
}

#[test]
fn remote_sources_are_not_supported() {
    let sandbox = Sandbox::new();
    for scheme in ["hdfs", "s3", "S3", "gs", "GS", "https", "http", "file", "abfs+x", "x"] {
        let path = format!("{scheme}://host:9000/t0");
        let error = refuse(&sandbox, &with("models[0].sparse_files[0]", json!(path)));
        let help = format!("`{scheme}:` is not supported: copy the files to a local folder");
        assert_one(&error, "models[0].sparse_files[0]", &path, &help);
    }
    let error = refuse(&sandbox, &with("models[0].sparse_files[0]", json!("./a:b")));
    assert_one(&error, "models[0].sparse_files[0]", "which does not exist", "tried");
    // A local folder may be called like that.
    for name in ["s3:bucket", "v1:2"] {
        sandbox.add_table(name);
        let config = sandbox.load_quietly(&with("models[0].sparse_files[0]", json!(name)));
        assert_eq!(config.models[0].tables[0].source, sandbox.path(name));
    }
}

#[test]
fn databases_are_made_beside_the_configuration() {
    let sandbox = Sandbox::new();
    let path = |path: &str| {
        let config = sandbox.load_quietly(&with("persistent_db.path", json!(path)));
        config.persistent_db.expect("a database").path
    };
    assert_eq!(path("new/db"), sandbox.path("new/db"));
    assert_eq!(path("/some/where"), PathBuf::from("/some/where"));
    // A folder may look like a remote place.
    fs::create_dir(sandbox.path("db:v1")).expect("a folder");
    assert_eq!(path("db:v1"), sandbox.path("db:v1"));
    // One that exists in the working directory is taken.
    let here = std::env::current_dir().expect("a working directory");
    assert_eq!(path("src"), here.join("src"));
    fs::create_dir(sandbox.path("src")).expect("a folder");
    assert_eq!(path("src"), sandbox.path("src"));
}

#[test]
fn read_only_databases_must_exist() {
    let sandbox = Sandbox::new();
    let error = refuse(&sandbox, &with("persistent_db.read_only", json!(true)));
    assert_one(
        &error,
        "persistent_db.path",
        "\"db\", which does not exist",
        "the folder of an existing database",
    );
}

#[test]
fn a_relative_configuration_starts_from_its_folder() {
    let here = std::env::current_dir().expect("a working directory");
    let config = set(base(), "persistent_db.initialize_after_startup", json!(false)).to_string();
    for (file, folder) in [("ps.json", here.clone()), ("conf/ps.json", here.join("conf"))] {
        let loaded = Config::from_text(&config, Path::new(file)).expect("good").config;
        assert_eq!(loaded.file, Path::new(file));
        assert_eq!(loaded.persistent_db.expect("a database").path, folder.join("db"));
    }
}

#[test]
fn files_are_read() {
    let sandbox = Sandbox::new();
    let file = sandbox.add_file("ps.json", base().to_string());
    let config = Config::from_file(&file).expect("good").config;
    assert_eq!((config.file, config.models[0].name.as_str()), (file, "m"));
    let marked = sandbox.add_file("bom.json", format!("\u{feff}{}", base()));
    assert!(Config::from_file(&marked).is_ok());
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let sandbox = Sandbox::new();
    let fails = |path: &Path| -> ConfigError { Config::from_file(path).expect_err("an error") };
    let missing = fails(&sandbox.path("missing.json"));
    assert!(
        missing.to_string().starts_with(&format!("{}: found", shown(&sandbox.path("missing.json")))),
        "{missing}"
    );
    assert!(missing.problems[0].expected.contains("a file that can be read"));
    assert!(fails(&sandbox.path("t0")).to_string().contains("expected a file that can be read"));

    let latin = fails(&sandbox.add_file("latin.json", b"{\n  \"a\": \"\xe9\"}"));
    assert_one(&latin, "", "the byte 0xe9", "text in UTF-8");
    let at = latin.problems[0].position.expect("a position");
    assert_eq!((at.line, at.column), (2, 9));

    // A file without an end is not read to it.
    let endless = fails(Path::new("/dev/zero"));
    assert!(endless.to_string().contains("more than 4194304 bytes"), "{endless}");
    let long = Config::from_text(&" ".repeat(4_194_305), Path::new("x")).expect_err("an error");
    assert!(long.to_string().contains("more than 4194304 bytes"), "{long}");
}

/// Resolves with an environment of its own.
fn resolve(argument: &str, environment: &[(&str, &Path)]) -> Result<PathBuf, String> {
    let values: HashMap<&str, OsString> =
        environment.iter().map(|(name, path)| (*name, path.into())).collect();
    let found = resolve_config_file(Path::new(argument), |name| values.get(name).cloned());
    found.map_err(|error| error.to_string())
}

#[test]
fn the_configuration_is_looked_for_here_then_where_the_environment_says() {
    let sandbox = Sandbox::new();
    let given = sandbox.add_file("given/ps.json", "");
    let by_name = sandbox.add_file("folder/ps.json", "");
    sandbox.add_file("outside/ps.json", "");
    let whole = sandbox.add_file("folder/models/ps.json", "");
    let fallback = sandbox.add_file("fallback.json", "");
    let environment = [("HPS_CONFIG_DIR", &*sandbox.path("folder")), ("HPS_CONFIG_FILE", &*fallback)];
    let gone = shown(&sandbox.path("gone/ps.json"));

    // A file that exists wins over everything; its path comes back canonical.
    std::os::unix::fs::symlink(&given, sandbox.path("link.json")).expect("a link");
    for argument in [
        shown(&given),
        shown(&sandbox.path("given/../t0/../given/ps.json")),
        shown(&sandbox.path("link.json")),
    ] {
        assert_eq!(resolve(&argument, &environment), Ok(given.clone()), "{argument}");
    }
    // The folder: the whole relative path before the name alone.
    assert_eq!(resolve("models/ps.json", &environment), Ok(whole.clone()));
    assert_eq!(resolve("./models/ps.json", &environment), Ok(whole));
    assert_eq!(resolve("elsewhere/ps.json", &environment), Ok(by_name.clone()));
    assert_eq!(resolve("../outside/ps.json", &environment), Ok(by_name.clone()));
    assert_eq!(resolve(&gone, &environment), Ok(by_name));
    // The file, at last.
    assert_eq!(resolve("other.json", &environment), Ok(fallback.clone()));
    assert_eq!(resolve("", &environment), Ok(fallback.clone()));
    assert_eq!(resolve(&gone, &environment[1..]), Ok(fallback));
    // A folder is not a configuration.
    assert!(resolve(&shown(&sandbox.path("t0")), &[]).is_err());
}

#[test]
fn a_configuration_that_is_nowhere_lists_what_was_tried() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("folder");
    let file = sandbox.path("file.json");
    let error =
        resolve("models/gone.json", &[("HPS_CONFIG_DIR", &folder), ("HPS_CONFIG_FILE", &file)]).unwrap_err();
    assert_eq!(
        error,
        format!(
            "models/gone.json: found no such file; tried models/gone.json (not found), \
             in HPS_CONFIG_DIR: {0}/models/gone.json (not found), in HPS_CONFIG_DIR: {0}/gone.json (not found), \
             HPS_CONFIG_FILE: {1} (not found), expected a configuration file",
            folder.display(),
            file.display()
        )
    );
    let error = resolve("gone.json", &[("HPS_CONFIG_DIR", Path::new(""))]).unwrap_err();
    assert!(
        error.contains("gone.json (not found), HPS_CONFIG_DIR (not set), HPS_CONFIG_FILE (not set)"),
        "{error}"
    );
}
