//! Values of a wrong type or out of range, one line each.

mod common;

use common::{Sandbox, assert_one, refuse, with};
use serde_json::{Value, json};

/// How a message shows what was found.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(values) if values.is_empty() => "an empty list".to_owned(),
        Value::Array(_) => "a list of".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => scalar.to_string(),
    }
}

#[test]
fn wrong_values_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.add_file("file", "");
    // Where a value is put, the value, the part of it that is wrong, and what is expected there.
    for (path, value, part, expected) in [
        // Types.
        ("supportlonglong", json!(1), "", "true or false"),
        ("supportlonglong", json!(null), "", "true or false"),
        ("fuse_embedding_table", json!("true"), "", "true or false"),
        ("volatile_db", json!(null), "", "an object"),
        ("volatile_db", json!([]), "", "an object"),
        ("volatile_db", json!("hash_map"), "", "an object"),
        ("update_source", json!(null), "", "an object"),
        ("models", json!({}), "", "a list of at least one model"),
        ("models[0]", json!("m"), "", "an object"),
        ("volatile_db.num_partitions", json!(true), "", "from 1 to 4096"),
        ("volatile_db.num_partitions", json!("8"), "", "an integer"),
        ("volatile_db.num_partitions", json!(null), "", "an integer"),
        ("volatile_db.num_partitions", json!([8]), "", "an integer"),
        ("volatile_db.num_partitions", json!(8.5), "", "an integer"),
        ("volatile_db.initial_cache_rate", json!(true), "", "a number"),
        ("volatile_db.cache_missed_embeddings", json!(0), "", "true or false"),
        ("volatile_db.initialize_after_startup", json!(1), "", "true or"),
        ("persistent_db.initialize_after_startup", json!(1), "", "true or"),
        ("volatile_db.user_name", json!(7), "", "a string"),
        ("volatile_db.update_filters", json!(".+"), "", "a list of strings"),
        ("volatile_db.update_filters", json!([1]), "[0]", "a string"),
        ("volatile_db.update_filters", json!(["a", ""]), "[1]", "a regular"),
        ("models[0].gpucache", json!("yes"), "", "true or false"),
        ("models[0].dense_file", json!(1), "", "a string"),
        ("models[0].network_file", json!(1), "", "a string"),
        ("models[0].label_dim", json!(-1), "", "an integer, 0 or more"),
        ("models[0].slot_num", json!("a"), "", "an integer, 0 or more"),
        // Ranges of the volatile database.
        ("volatile_db.num_partitions", json!(0), "", "an integer from 1 to 4096"),
        ("volatile_db.num_partitions", json!(-1), "", "an integer from 1 to 4096"),
        ("volatile_db.num_partitions", json!(4097), "", "from 1 to 4096"),
        ("volatile_db.num_partitions", json!(1e300), "", "from 1 to 4096"),
        ("volatile_db.allocation_rate", json!(0), "", "from 1 to"),
        ("volatile_db.overflow_margin", json!(0), "", "an integer, 1 or more"),
        ("volatile_db.memory_bytes", json!(1000), "", "an integer, 1048576 or more"),
        ("volatile_db.memory_bytes", json!("8G"), "", "an integer, 1048576 or more"),
        ("volatile_db.overflow_margin", json!(-5), "", "an integer, 1 or more"),
        ("volatile_db.overflow_margin", json!(1e20), "", "an integer, 1 or more"),
        ("volatile_db.max_batch_size", json!(0), "", "from 1 to 2147483647"),
        ("volatile_db.overflow_resolution_target", json!(0), "", "a number, above 0 and at most 1"),
        ("volatile_db.overflow_resolution_target", json!(1.25), "", "a number, above 0 and at most 1"),
        ("volatile_db.initial_cache_rate", json!(-0.1), "", "at least 0 and"),
        ("volatile_db.initial_cache_rate", json!(1.1), "", "at most 1"),
        ("volatile_db.num_node_connections", json!(0), "", "from 1 to 4096"),
        ("volatile_db.shared_memory_size", json!(0), "", "from 4096 to"),
        ("volatile_db.shared_memory_name", json!("a/b"), "", "a file name"),
        ("volatile_db.shared_memory_name", json!(""), "", "a file name"),
        ("volatile_db.shared_memory_auto_remove", json!(1), "", "true or"),
        ("volatile_db.enable_tls", json!(1), "", "true or false"),
        ("volatile_db.address", json!("host:0"), "", "host[:port]"),
        ("volatile_db.address", json!("host:99999"), "", "host[:port]"),
        ("volatile_db.address", json!("host:+1"), "", "host[:port]"),
        ("volatile_db.address", json!("[::1]7000"), "", "host[:port]"),
        ("volatile_db.address", json!("a:1,,b"), "", "host[:port]"),
        // Ranges of the persistent database.
        ("persistent_db.num_threads", json!(0), "", "from 1 to 1024"),
        ("persistent_db.max_batch_size", json!(0), "", "from 1 to"),
        ("persistent_db.read_only", json!("no"), "", "true or false"),
        ("persistent_db.path", json!(1), "", "a string"),
        ("persistent_db.path", json!(""), "", "a folder"),
        ("persistent_db.path", json!("file"), "", "a folder"),
        ("persistent_db.path", json!("hdfs://h/db"), "", "`hdfs:` is not supported"),
        // Ranges of the update source.
        ("update_source.metadata_refresh_interval_ms", json!(9), "", "from 10 to"),
        ("update_source.receive_buffer_size", json!(1023), "", "from 1024"),
        ("update_source.poll_timeout_ms", json!(0), "", "from 1 to"),
        ("update_source.poll_timeout_ms", json!(2147483647), "", "to 3600000"),
        ("update_source.max_batch_size", json!(0), "", "from 1 to"),
        ("update_source.failure_backoff_ms", json!(-1), "", "from 0 to"),
        ("update_source.max_commit_interval", json!(0), "", "from 1 to"),
        ("update_source.brokers", json!(""), "", "host[:port]"),
        // Ranges of models.
        ("models", json!([]), "", "a list of at least one model"),
        ("models[0].model", json!(""), "", "a name of 1 to 120 letters, digits"),
        ("models[0].model", json!("a.b"), "", "a name of 1 to 120 letters, digits"),
        ("models[0].model", json!("modèle"), "", "a name of 1 to 120 letters, digits"),
        ("models[0].max_batch_size", json!(0), "", "from 1 to"),
        ("models[0].gpucacheper", json!(-0.5), "", "a number, at least 0"),
        ("models[0].gpucache_bytes", json!(0), "", "an integer, 1 or more"),
        ("models[0].gpucache_bytes", json!("8G"), "", "an integer, 1 or more"),
        ("models[0].num_of_worker_buffer_in_pool", json!(-1), "", "an integer, 0 or more"),
        ("models[0].num_of_refresher_buffer_in_pool", json!(-1), "", "an integer, 0 or more"),
        ("models[0].cache_refresh_percentage_per_iteration", json!(20), "", "at least 0 and at most 1"),
        ("models[0].refresh_delay", json!(-1), "", "at least 0"),
        ("models[0].refresh_interval", json!(1e10), "", "at most 1000000000"),
        ("models[0].thread_pool_size", json!(-1), "", "from 0 to"),
        ("models[0].use_context_stream", json!(1), "", "true or false"),
        ("models[0].use_hctr_cache_implementation", json!(1), "", "true or false"),
        ("models[0].init_ec", json!(1), "", "true or false"),
        ("models[0].enable_pagelock", json!(1), "", "true or false"),
        ("models[0].fp8_quant", json!(1), "", "true or false"),
        ("models[0].use_static_table", json!(1), "", "true or false"),
        ("models[0].fuse_embedding_table", json!(1), "", "true or false"),
        ("models[0].maxnum_des_feature_per_sample", json!(-1), "", "0 or"),
        // Devices.
        ("models[0].deployed_device_list", json!([]), "", "at least one"),
        ("models[0].deployed_device_list", json!(0), "", "a list of integers"),
        ("models[0].deployed_device_list", json!([0, -1]), "[1]", "from 0 to"),
        ("models[0].deployed_device_list", json!([0, 1, 0]), "[2]", "once"),
        // Lists with one value for each table.
        ("models[0].sparse_files", json!([]), "", "at least one table"),
        ("models[0].sparse_files", json!("t0"), "", "a list of strings"),
        ("models[0].sparse_files", json!(["t0", 1]), "[1]", "a string"),
        ("models[0].embedding_vecsize_per_table", json!([16]), "", "a list of 2 values, as in sparse_files"),
        (
            "models[0].maxnum_catfeature_query_per_table_per_sample",
            json!([1, 2, 3]),
            "",
            "a list of 2 values, as in sparse_files",
        ),
        ("models[0].embedding_table_names", json!(["a"]), "", "a list of 2 values, as in sparse_files"),
        ("models[0].embedding_vecsize_per_table[1]", json!(0), "", "from 1 to"),
        ("models[0].embedding_vecsize_per_table[0]", json!(65537), "", "an integer from 1 to 65536"),
        ("models[0].embedding_vecsize_per_table[0]", json!(1.5), "", "integer"),
        ("models[0].maxnum_catfeature_query_per_table_per_sample[0]", json!(0), "", "from 1 to"),
        ("models[0].default_value_for_each_table", json!(0), "", "a list of"),
        ("models[0].default_value_for_each_table[1]", json!("0"), "", "a number"),
        ("models[0].default_value_for_each_table[1]", json!(1e39), "", "32-bit"),
        ("models[0].embedding_table_names", json!(["a", ""]), "[1]", "a name of"),
        ("models[0].embedding_table_names", json!(["a b", "a"]), "[0]", "a name"),
        ("models[0].embedding_table_names", json!(["a", "a"]), "[1]", "a different name for each table"),
    ] {
        let wrong = part.trim_matches(['[', ']']).parse::<usize>().map_or(&value, |index| &value[index]);
        let found = shown(wrong);
        assert_one(&refuse(&sandbox, &with(path, value)), &format!("{path}{part}"), &found, expected);
    }
}

#[test]
fn long_and_unprintable_values_stay_on_a_line() {
    let sandbox = Sandbox::new();
    let long = format!("\"{}\"...", "x".repeat(120));
    let error = refuse(&sandbox, &with("models[0].model", json!("x".repeat(1_000_000))));
    assert_one(&error, "models[0].model", &long, "a name of 1 to 120 letters, digits");
    let error = refuse(&sandbox, &with("models[0].model", json!("x".repeat(121))));
    assert_one(&error, "models[0].model", &long, "a name of 1 to 120 letters, digits");
    let error = refuse(&sandbox, &with("persistent_db.path", json!("a\0\n")));
    assert_one(&error, "persistent_db.path", r#""a\0\n""#, "a folder");
}
