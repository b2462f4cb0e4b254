//! What makes a configuration unusable, other than single values (`ranges.rs`) and paths (`paths.rs`).

mod common;

use common::{Sandbox, assert_one, assert_problem, base, model, refuse, set, with, without};
use serde_json::json;

#[test]
fn the_base_is_good() {
    Sandbox::new().load_quietly(&base());
}

#[test]
fn unknown_spellings_of_enumerations_are_refused() {
    let sandbox = Sandbox::new();
    for (pointer, value, path, expected) in [
        (
            "volatile_db.type",
            json!("parallel_hashmaps"),
            "volatile_db.type",
            "did you mean parallel_hashmap?",
        ),
        ("volatile_db.type", json!("hash_map "), "volatile_db.type", "did you mean hash_map?"),
        ("volatile_db.type", json!("HASH_MAP"), "volatile_db.type", "did you mean hash_map?"),
        (
            "volatile_db.type",
            json!("lru"),
            "volatile_db.type",
            "one of hash_map, hashmap, hash, map, parallel_hash_map",
        ),
        ("volatile_db.type", json!(3), "volatile_db.type", "redis_cluster, redis, disabled, disable, none"),
        ("volatile_db.type", json!(null), "volatile_db.type", "one of hash_map"),
        ("volatile_db.type", json!("rocks_db"), "volatile_db.type", "RocksDB belongs in persistent_db.type"),
        ("volatile_db.type", json!("rocks"), "volatile_db.type", "RocksDB belongs in persistent_db.type"),
        (
            "volatile_db.overflow_policy",
            json!("evict_last_used"),
            "volatile_db.overflow_policy",
            "did you mean evict_least_used?",
        ),
        (
            "volatile_db.overflow_policy",
            json!(1),
            "volatile_db.overflow_policy",
            "one of evict_random, random, evict_least_used",
        ),
        ("persistent_db.type", json!("rockdb"), "persistent_db.type", "did you mean rocksdb?"),
        (
            "persistent_db.type",
            json!("hash_map"),
            "persistent_db.type",
            "hash maps belong in volatile_db.type",
        ),
        (
            "persistent_db.type",
            json!("parallel_map"),
            "persistent_db.type",
            "hash maps belong in volatile_db.type",
        ),
        (
            "persistent_db.type",
            json!("multi_process_hash"),
            "persistent_db.type",
            "belong in volatile_db.type",
        ),
        ("persistent_db.type", json!("redis"), "persistent_db.type", "Redis belongs in volatile_db.type"),
        (
            "persistent_db.type",
            json!("leveldb"),
            "persistent_db.type",
            "one of rocks_db, rocksdb, rocks, disabled",
        ),
        (
            "update_source.type",
            json!("kafka_message"),
            "update_source.type",
            "one of kafka_message_queue, kafka_mq",
        ),
        ("update_source.type", json!("kafak"), "update_source.type", "one of kafka_message_queue, kafka_mq"),
        (
            "models[0].embedding_cache_type",
            json!("Dynamic"),
            "models[0].embedding_cache_type",
            "did you mean dynamic?",
        ),
        (
            "models[0].embedding_cache_type",
            json!("hbm"),
            "models[0].embedding_cache_type",
            "one of dynamic, static, uvm",
        ),
        (
            "models[0].embedding_cache_type",
            json!("stochastic"),
            "models[0].embedding_cache_type",
            "use dynamic",
        ),
    ] {
        let found = value.to_string();
        assert_one(&refuse(&sandbox, &with(pointer, value)), path, &found, expected);
    }
}

#[test]
fn a_budget_in_bytes_stands_alone() {
    let sandbox = Sandbox::new();
    let budget = with("volatile_db.memory_bytes", json!(1u64 << 30));
    let both = set(budget.clone(), "volatile_db.overflow_margin", json!(1_000));
    assert_one(
        &refuse(&sandbox, &both),
        "volatile_db.overflow_margin",
        "beside memory_bytes",
        "one of the two",
    );
    let shared = set(budget, "volatile_db.type", json!("multi_process_hash_map"));
    assert_one(&refuse(&sandbox, &shared), "volatile_db.memory_bytes", "one process", "shared_memory_size");
}

#[test]
fn what_this_build_cannot_do_is_one_problem_each() {
    let sandbox = Sandbox::new();
    for (pointer, names, path, feature) in [
        ("volatile_db.type", &["redis_cluster", "redis"][..], "volatile_db.type", "redis_cluster"),
        (
            "update_source.type",
            &["kafka_message_queue", "kafka_mq", "kafka"],
            "update_source.type",
            "kafka_message_queue",
        ),
    ] {
        for name in names {
            let found = format!("{feature}, which is not available in this build");
            assert_one(&refuse(&sandbox, &with(pointer, json!(name))), path, &found, "");
        }
    }
    // Without a persistent database, too.
    let alone = json!({"supportlonglong": true, "volatile_db": {"type": "redis"}, "models": [model("m")]});
    assert_one(&refuse(&sandbox, &alone), "volatile_db.type", "not available in this build", "hash_map");
    // Their keys are checked all the same.
    let mut redis = with("volatile_db.type", json!("redis_cluster"));
    redis = set(redis, "volatile_db.num_partitions", json!(4));
    redis = set(redis, "volatile_db.num_node_connections", json!(5));
    let error = refuse(&sandbox, &redis);
    let connections = error.problems.iter().find(|p| p.path == "volatile_db.num_node_connections");
    assert_problem(
        connections.expect("a problem"),
        "volatile_db.num_node_connections",
        "5",
        "at most num_partitions",
    );
}

#[test]
fn required_keys_are_missed() {
    let sandbox = Sandbox::new();
    for (pointer, path) in [
        ("supportlonglong", "supportlonglong"),
        ("models", "models"),
        ("models[0].model", "models[0].model"),
        ("models[0].sparse_files", "models[0].sparse_files"),
        ("models[0].deployed_device_list", "models[0].deployed_device_list"),
        (
            "models[0].maxnum_catfeature_query_per_table_per_sample",
            "models[0].maxnum_catfeature_query_per_table_per_sample",
        ),
        ("models[0].embedding_vecsize_per_table", "models[0].embedding_vecsize_per_table"),
        ("models[0].default_value_for_each_table", "models[0].default_value_for_each_table"),
    ] {
        assert_one(&refuse(&sandbox, &without(base(), pointer)), path, "nothing", "this key is required");
    }
}

#[test]
fn a_misspelt_required_key_is_named() {
    let sandbox = Sandbox::new();
    let config = set(without(base(), "models[0].sparse_files"), "models[0].sparse_file", json!(["t0"]));
    let error = refuse(&sandbox, &config);
    assert_one(
        &error,
        "models[0].sparse_files",
        "nothing",
        "did you mean \"sparse_file\" in line 1 to be it?",
    );
}

#[test]
fn models_with_one_name_are_refused() {
    let sandbox = Sandbox::new();
    let config = with("models", json!([model("a"), model("b"), model("a")]));
    let found = "\"a\", which is also the name of models[0]";
    assert_one(&refuse(&sandbox, &config), "models[2].model", found, "a different name for each model");
    // Two that have none lack one each, and that is all.
    let nameless = without(with("models", json!([model("a")])), "models[0].model");
    let twice = set(nameless.clone(), "models", json!([nameless["models"][0], nameless["models"][0]]));
    let error = refuse(&sandbox, &twice);
    let paths: Vec<_> = error.problems.iter().map(|p| (p.path.as_str(), p.found.as_str())).collect();
    assert_eq!(paths, [("models[0].model", "nothing"), ("models[1].model", "nothing")]);
}

#[test]
fn dynamic_models_need_a_database() {
    let sandbox = Sandbox::new();
    let off = with("volatile_db.type", json!("disabled"));
    for config in [
        set(off.clone(), "persistent_db.type", json!("disabled")),
        set(off, "persistent_db", json!({})),
        without(with("volatile_db", json!({})), "persistent_db"),
    ] {
        let expected = "that holds the rows of m (embedding_cache_type dynamic)";
        assert_one(&refuse(&sandbox, &config), "volatile_db", "no database that is enabled", expected);
        // One static model beside it changes nothing.
        let mut fixed = model("s");
        fixed["embedding_cache_type"] = json!("static");
        let config = set(config, "models", json!([fixed, model("m")]));
        assert_one(&refuse(&sandbox, &config), "volatile_db", "no database that is enabled", expected);
    }
}

#[test]
fn the_top_level_must_be_an_object() {
    for (text, found) in [("[]", "an empty list"), ("3", "3"), ("null", "null"), ("\"x\"", "\"x\"")] {
        let error = Sandbox::new().read_text(text).expect_err("an error");
        assert_one(&error, "", found, "an object");
    }
}

#[test]
fn all_problems_come_at_once_in_the_order_of_the_text() {
    let sandbox = Sandbox::new();
    let text = r#"{
  "supportlonglong": 1,
  "volatile_db": {"type": "parallel", "num_partitions": 0},
  "persistent_db": {"type": "rocks_db", "path": 3, "num_threads": -1},
  "models": [
    {
      "model": "a b",
      "sparse_files": ["nowhere"],
      "deployed_device_list": [-1],
      "embedding_vecsize_per_table": [1, 2],
      "maxnum_catfeature_query_per_table_per_sample": [1],
      "default_value_for_each_table": [0],
      "gpucache": 1,
      "gpucache": 2
    }
  ]
}"#;
    let error = sandbox.read_text(text).expect_err("an error");
    let places: Vec<String> = error
        .problems
        .iter()
        .map(|p| p.position.map_or_else(String::new, |at| format!("{}:{} {}", at.line, at.column, p.path)))
        .collect();
    assert_eq!(
        places,
        [
            "2:22 supportlonglong",
            "3:27 volatile_db.type",
            "3:57 volatile_db.num_partitions",
            "4:49 persistent_db.path",
            "4:67 persistent_db.num_threads",
            "7:16 models[0].model",
            "8:24 models[0].sparse_files[0]",
            "9:32 models[0].deployed_device_list[0]",
            "10:38 models[0].embedding_vecsize_per_table",
            "13:19 models[0].gpucache",
            "14:7 models[0].gpucache",
        ]
    );
    let file = sandbox.config_file();
    let lines: Vec<String> = error.to_string().lines().map(ToOwned::to_owned).collect();
    assert_eq!(lines.len(), error.problems.len());
    assert_eq!(
        lines[0],
        format!("{}:2:22: supportlonglong: found 1, expected true or false", file.display())
    );
    let twice = "models[0].gpucache: found the key in line 14 again, first in line 13 (column 7), expected each key once";
    assert!(lines[10].contains(twice), "{}", lines[10]);
}

#[test]
fn duplicate_keys_are_refused_wherever_they_are() {
    let sandbox = Sandbox::new();
    let text = base().to_string();
    for (old, new, path) in [
        ("\"supportlonglong\":true", "\"supportlonglong\":true,\"supportlonglong\":true", "supportlonglong"),
        ("\"type\":\"rocks_db\"", "\"type\":\"rocks_db\",\"type\":\"rocks_db\"", "persistent_db.type"),
        ("\"model\":\"m\"", "\"model\":\"m\",\"model\":\"n\"", "models[0].model"),
        (
            "\"model\":\"m\"",
            "\"model\":\"m\",\"other\":{\"x\":[{\"y\":1,\"y\":1}]}",
            "models[0].other.x[0].y",
        ),
    ] {
        let twice = text.replacen(old, new, 1);
        assert_ne!(twice, text);
        let error = sandbox.read_text(&twice).expect_err("an error");
        assert_one(&error, path, "the key in line 1 again, first in line 1", "each key once");
    }
}

#[test]
fn columns_count_characters() {
    let error =
        Sandbox::new().read_text("{\r\n\"ключ\": \"é\", \"supportlonglong\": 1}").expect_err("an error");
    let problem = error.problems.iter().find(|p| p.path == "supportlonglong").expect("a problem");
    let at = problem.position.expect("a position");
    assert_eq!((at.line, at.column), (2, 33));
}

#[test]
fn a_syntax_error_says_where_it_is() {
    let error =
        Sandbox::new().read_text("{\n  \"models\": [\n    {\"model\": m}\n  ]\n}").expect_err("an error");
    assert_one(&error, "models[0].model", "`m`", "a JSON value");
    let at = error.problems[0].position.expect("a position");
    assert_eq!((at.line, at.column), (3, 15));
}

#[test]
fn passwords_are_not_shown() {
    let sandbox = Sandbox::new();
    let error = refuse(&sandbox, &with("volatile_db.password", json!(4711)));
    assert_one(&error, "volatile_db.password", "something else (not shown)", "a string");
    assert!(!error.to_string().contains("4711"));
    let config = sandbox.load_quietly(&with("volatile_db.password", json!("sesame")));
    assert_eq!(config.volatile_db.as_ref().map(|db| db.redis.password.0.as_str()), Some("sesame"));
    assert!(!format!("{config:?}").contains("sesame"));
}

#[test]
fn very_many_problems_are_counted() {
    let filters = vec![json!(0); 2500];
    let error = refuse(&Sandbox::new(), &with("volatile_db.update_filters", json!(filters)));
    assert_eq!((error.problems.len(), error.omitted), (1000, 1500));
    assert!(error.to_string().ends_with("\n... and 1500 more problems"));
}
