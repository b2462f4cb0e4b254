//! Where relative paths start. Alone in its file, since the working directory belongs to the whole process.

mod common;

use common::{Sandbox, refuse, shown, with};
use serde_json::json;

#[test]
fn sources_are_beside_the_configuration_or_in_the_working_directory() {
    let sandbox = Sandbox::new();
    let working = Sandbox::new();
    working.add_table("only_here");
    working.add_file("database/CURRENT", "");
    std::env::set_current_dir(working.path("")).expect("the working directory");
    let source = |path: &str| {
        let config = sandbox.load_quietly(&with("models[0].sparse_files", json!([path, "t1"])));
        config.models[0].tables[0].source.clone()
    };
    let database = |path: &str| {
        let config = sandbox.load_quietly(&with("persistent_db.path", json!(path)));
        config.persistent_db.expect("a database").path
    };
    // Both have it.
    assert_eq!(source("t0"), sandbox.path("t0"));
    assert_eq!(source("./t0/."), sandbox.path("t0"));
    // One has it.
    assert_eq!(source("only_here"), working.path("only_here"));
    assert_eq!(database("database"), working.path("database"));
    // None has it.
    assert_eq!(database("new/database"), sandbox.path("new/database"));
    // Absolute paths are what they are.
    assert_eq!(source(&shown(&sandbox.path("t2"))), sandbox.path("t2"));
    // If it is the configuration's folder, there is one place to try.
    let error = refuse(&working, &with("models[0].sparse_files[0]", json!("nowhere")));
    assert_eq!(error.problems[0].help, Some(format!("tried {}", shown(&working.path("nowhere")))));
}
