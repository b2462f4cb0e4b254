//! What a good configuration means: defaults, spellings, list rules, fusion, and what is warned about.

mod common;

use common::{Sandbox, assert_one_warning, base, model, set, with, without};
use hps_config::{
    EmbeddingCacheType, GpuConfig, KeyWidth, OverflowPolicy, PersistentDbConfig, RedisConfig, Secret,
    SharedMemoryConfig, VolatileDbConfig, VolatileDbKind,
};
use serde_json::{Value, json};

/// Host memory alone, with what the predecessor requires and nothing else.
fn least() -> Value {
    json!({"supportlonglong": false, "models": [model("m")]})
}

#[test]
fn the_least_configuration_has_all_defaults() {
    let sandbox = Sandbox::new();
    let config = sandbox.load_quietly(&least());
    assert_eq!(config.file, sandbox.config_file());
    assert_eq!(config.key_width, KeyWidth::Bits32);
    assert!(!config.fuse_embedding_table);
    assert_eq!(config.persistent_db, None);
    assert_eq!(config.update_source, None);

    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let num_partitions = threads.min(16);
    let host = VolatileDbConfig {
        kind: VolatileDbKind::ParallelHashMap,
        num_partitions,
        allocation_rate_bytes: 268_435_456,
        overflow_margin: u64::MAX,
        memory_bytes: None,
        hot_keys: None,
        overflow_policy: OverflowPolicy::EvictRandom,
        overflow_resolution_target: 0.8,
        initial_cache_rate: 1.0,
        cache_missed_embeddings: false,
        max_batch_size: 65536,
        initialize_after_startup: true,
        update_filters: vec![".+".to_owned()],
        redis: RedisConfig {
            addresses: vec!["127.0.0.1:7000".to_owned()],
            user_name: "default".to_owned(),
            password: Secret(String::new()),
            num_node_connections: num_partitions.min(5),
            enable_tls: false,
            tls_ca_certificate: "cacertbundle.crt".into(),
            tls_client_certificate: "client_cert.pem".into(),
            tls_client_key: "client_key.pem".into(),
            tls_server_name_identification: "redis.localhost".to_owned(),
        },
        shared_memory: SharedMemoryConfig {
            size_bytes: 17_179_869_184,
            name: "hctr_mp_hash_map_database".to_owned(),
            auto_remove: true,
        },
    };
    let mut found = config.volatile_db.expect("a volatile database");
    for path in [
        &mut found.redis.tls_ca_certificate,
        &mut found.redis.tls_client_certificate,
        &mut found.redis.tls_client_key,
    ] {
        *path = path.file_name().expect("a name").into();
    }
    assert_eq!(found, host);

    let [model] = config.models.as_slice() else { panic!("not one model") };
    assert_eq!((model.name.as_str(), model.max_batch_size, model.is_fused), ("m", 64, false));
    let gpu = GpuConfig {
        embedding_cache_type: EmbeddingCacheType::Dynamic,
        gpucache: true,
        gpucacheper: 0.2,
        gpucache_bytes: None,
        hit_rate_threshold: None,
        deployed_device_list: vec![0],
        num_of_worker_buffer_in_pool: 1,
        num_of_refresher_buffer_in_pool: 1,
        cache_refresh_percentage_per_iteration: 0.0,
        refresh_delay: 0.0,
        refresh_interval: 0.0,
        use_context_stream: true,
        use_hctr_cache_implementation: true,
        thread_pool_size: 16,
        init_ec: true,
        enable_pagelock: false,
        fp8_quant: false,
    };
    assert_eq!(model.gpu, gpu);
    let tables: Vec<_> = model
        .tables
        .iter()
        .map(|t| {
            (t.name.as_str(), t.dim, t.default_value, t.max_keys_per_sample, t.storage, t.source.clone())
        })
        .collect();
    assert_eq!(
        tables,
        [
            ("sparse_embedding0", 16, 0.0, 2, 0, sandbox.path("t0")),
            ("sparse_embedding1", 32, 1.5, 26, 1, sandbox.path("t1")),
        ]
    );
    let storage: Vec<_> =
        model.storage_tables.iter().map(|t| (t.name.as_str(), t.dim, t.tables.as_slice())).collect();
    assert_eq!(
        storage,
        [("hps_et.m.sparse_embedding0", 16, &[0][..]), ("hps_et.m.sparse_embedding1", 32, &[1][..])]
    );
}

#[test]
fn a_persistent_database_has_defaults() {
    let (config, warnings) = Sandbox::new().load(&with("persistent_db", json!({"type": "rocks_db"})));
    let rocksdb = PersistentDbConfig {
        path: std::env::temp_dir().join("rocksdb"),
        num_threads: 16,
        read_only: false,
        max_batch_size: 65536,
        initialize_after_startup: true,
        update_filters: vec![".+".to_owned()],
    };
    assert_eq!(config.persistent_db.as_ref(), Some(&rocksdb));
    assert_eq!(PersistentDbConfig::default(), rocksdb);
    assert_one_warning(&warnings, "persistent_db.path", "not given");
}

#[test]
fn a_disabled_update_source_is_quiet() {
    let config = with("update_source", json!({"type": "null", "brokers": "a:1;[::1]:2, c"}));
    assert_eq!(Sandbox::new().load_quietly(&config).update_source, None);
}

#[test]
fn every_value_arrives() {
    let sandbox = Sandbox::new();
    let mut config = base();
    config["supportlonglong"] = json!(true);
    config["fuse_embedding_table"] = json!(true);
    config["volatile_db"] = json!({
        "type": "hash_map", "num_partitions": 7, "allocation_rate": 1024, "overflow_margin": 18446744073709551614u64,
        "overflow_policy": "evict_oldest", "overflow_resolution_target": 1, "initial_cache_rate": 0,
        "cache_missed_embeddings": true, "max_batch_size": 4096.0, "initialize_after_startup": false,
        "update_filters": ["a", "b"], "address": "h:1,i", "user_name": "u", "password": "p",
        "num_node_connections": 9, "enable_tls": true, "tls_ca_certificate": "ca", "tls_client_certificate": "/c",
        "tls_client_key": "k", "tls_server_name_identification": "s", "shared_memory_size": 8192,
        "shared_memory_name": "n", "shared_memory_auto_remove": false,
    });
    config["persistent_db"] = json!({
        "type": "rocks_db", "path": "db", "num_threads": 3, "read_only": false, "max_batch_size": 17,
        "initialize_after_startup": false, "update_filters": [],
    });
    let mut served = model("m");
    for (key, value) in [
        ("max_batch_size", json!(8)),
        ("gpucache", json!(false)),
        ("gpucacheper", json!(2)),
        ("hit_rate_threshold", json!(0)),
        ("deployed_device_list", json!([3, 1])),
        ("num_of_worker_buffer_in_pool", json!(100_000)),
        ("num_of_refresher_buffer_in_pool", json!(0)),
        ("cache_refresh_percentage_per_iteration", json!(0.25)),
        ("refresh_delay", json!(1.5)),
        ("refresh_interval", json!(2.5)),
        ("use_context_stream", json!(false)),
        ("use_hctr_cache_implementation", json!(false)),
        ("thread_pool_size", json!(5)),
        ("init_ec", json!(false)),
        ("enable_pagelock", json!(true)),
        ("fp8_quant", json!(true)),
        ("embedding_cache_type", json!("static")),
        ("fuse_embedding_table", json!(false)),
        ("embedding_table_names", json!(["A-1", "b_2"])),
        ("dense_file", json!("d")),
        ("network_file", json!("n")),
        ("label_dim", json!(1)),
        ("slot_num", json!(10)),
        ("maxnum_des_feature_per_sample", json!(26)),
    ] {
        served[key] = value;
    }
    config["models"] = json!([served, model("other")]);
    let config = sandbox.load_quietly(&config);

    assert_eq!(config.key_width, KeyWidth::Bits64);
    assert!(config.fuse_embedding_table);
    let host = VolatileDbConfig {
        kind: VolatileDbKind::HashMap,
        num_partitions: 7,
        allocation_rate_bytes: 1024,
        overflow_margin: u64::MAX - 1,
        memory_bytes: None,
        hot_keys: None,
        overflow_policy: OverflowPolicy::EvictOldest,
        overflow_resolution_target: 1.0,
        initial_cache_rate: 0.0,
        cache_missed_embeddings: true,
        max_batch_size: 4096,
        initialize_after_startup: false,
        update_filters: vec!["a".to_owned(), "b".to_owned()],
        redis: RedisConfig {
            addresses: vec!["h:1".to_owned(), "i".to_owned()],
            user_name: "u".to_owned(),
            password: Secret("p".to_owned()),
            num_node_connections: 9,
            enable_tls: true,
            tls_ca_certificate: sandbox.path("ca"),
            tls_client_certificate: "/c".into(),
            tls_client_key: sandbox.path("k"),
            tls_server_name_identification: "s".to_owned(),
        },
        shared_memory: SharedMemoryConfig { size_bytes: 8192, name: "n".to_owned(), auto_remove: false },
    };
    assert_eq!(config.volatile_db, Some(host));
    let ssd = PersistentDbConfig {
        path: sandbox.path("db"),
        num_threads: 3,
        read_only: false,
        max_batch_size: 17,
        initialize_after_startup: false,
        update_filters: Vec::new(),
    };
    assert_eq!(config.persistent_db, Some(ssd));
    let model = &config.models[0];
    assert_eq!((model.max_batch_size, model.is_fused), (8, false));
    assert_eq!((model.tables[0].name.as_str(), model.tables[1].name.as_str()), ("A-1", "b_2"));
    assert_eq!(model.storage_tables[1].name, "hps_et.m.b_2");
    let gpu = GpuConfig {
        embedding_cache_type: EmbeddingCacheType::Static,
        gpucache: false,
        gpucacheper: 2.0,
        gpucache_bytes: None,
        hit_rate_threshold: Some(0.0),
        deployed_device_list: vec![3, 1],
        num_of_worker_buffer_in_pool: 100_000,
        num_of_refresher_buffer_in_pool: 0,
        cache_refresh_percentage_per_iteration: 0.25,
        refresh_delay: 1.5,
        refresh_interval: 2.5,
        use_context_stream: false,
        use_hctr_cache_implementation: false,
        thread_pool_size: 5,
        init_ec: false,
        enable_pagelock: true,
        fp8_quant: true,
    };
    assert_eq!(model.gpu, gpu);
    assert!(config.models[1].is_fused);
}

#[test]
fn every_spelling_is_understood() {
    let sandbox = Sandbox::new();
    let volatile = |name: &str| sandbox.load_quietly(&with("volatile_db.type", json!(name))).volatile_db;
    for name in ["hash_map", "hashmap", "hash", "map"] {
        assert_eq!(volatile(name).map(|db| db.kind), Some(VolatileDbKind::HashMap), "{name}");
    }
    for name in ["parallel_hash_map", "parallel_hashmap", "parallel_hash", "parallel_map"] {
        assert_eq!(volatile(name).map(|db| db.kind), Some(VolatileDbKind::ParallelHashMap), "{name}");
    }
    let persistent =
        |name: &str| sandbox.load_quietly(&with("persistent_db.type", json!(name))).persistent_db;
    for name in ["disabled", "disable", "none"] {
        assert_eq!(volatile(name), None, "{name}");
        assert_eq!(persistent(name), None, "{name}");
    }
    for name in ["rocks_db", "rocksdb", "rocks"] {
        assert!(persistent(name).is_some(), "{name}");
    }
    for (name, policy) in [
        ("evict_random", OverflowPolicy::EvictRandom),
        ("random", OverflowPolicy::EvictRandom),
        ("evict_least_used", OverflowPolicy::EvictLeastUsed),
        ("least_used", OverflowPolicy::EvictLeastUsed),
        ("evict_oldest", OverflowPolicy::EvictOldest),
        ("oldest", OverflowPolicy::EvictOldest),
    ] {
        let config = sandbox.load_quietly(&with("volatile_db.overflow_policy", json!(name)));
        assert_eq!(config.volatile_db.map(|db| db.overflow_policy), Some(policy), "{name}");
    }
    for name in ["null", "none"] {
        assert_eq!(sandbox.load_quietly(&with("update_source.type", json!(name))).update_source, None);
    }
    for (name, kind) in [
        ("dynamic", EmbeddingCacheType::Dynamic),
        ("static", EmbeddingCacheType::Static),
        ("uvm", EmbeddingCacheType::Uvm),
    ] {
        let config = sandbox.load_quietly(&with("models[0].embedding_cache_type", json!(name)));
        assert_eq!(config.models[0].gpu.embedding_cache_type, kind);
    }
    let config = sandbox.load_quietly(&with("models[0].use_static_table", json!(true)));
    assert_eq!(config.models[0].gpu.embedding_cache_type, EmbeddingCacheType::Static);
}

#[test]
fn integers_and_floats_stand_for_each_other_where_nothing_is_lost() {
    let sandbox = Sandbox::new();
    let text = base().to_string().replace(
        "\"type\":\"parallel_hash_map\"",
        "\"type\":\"hash\",\"num_partitions\":8.0,\"max_batch_size\":6.5e1,\"overflow_margin\":1e18,\"initial_cache_rate\":1",
    );
    let config = sandbox.read_text(&text).expect("good").config.volatile_db.expect("a database");
    assert_eq!((config.num_partitions, config.max_batch_size), (8, 65));
    assert_eq!((config.overflow_margin, config.initial_cache_rate), (1_000_000_000_000_000_000, 1.0));
}

#[test]
fn default_values_are_cut_or_padded() {
    let sandbox = Sandbox::new();
    for (list, defaults, message) in [
        (json!([]), [0.0, 0.0], "a list of 0 values for 2 tables: 0.0 for the others"),
        (json!([0.25]), [0.25, 0.0], "a list of 1 value for 2 tables: 0.0 for the others"),
        (json!([1, -2, 3]), [1.0, -2.0], "a list of 3 values for 2 tables: the rest is ignored"),
    ] {
        let (config, warnings) = sandbox.load(&with("models[0].default_value_for_each_table", list));
        assert_eq!([0, 1].map(|id| config.models[0].tables[id].default_value), defaults);
        assert_one_warning(&warnings, "models[0].default_value_for_each_table", message);
    }
}

#[test]
fn tables_of_equal_dim_are_fused() {
    let sandbox = Sandbox::new();
    let mut fused = model("m");
    fused["sparse_files"] = json!(["t0", "t1", "t2", "t0"]);
    fused["embedding_vecsize_per_table"] = json!([32, 8, 32, 16]);
    fused["maxnum_catfeature_query_per_table_per_sample"] = json!([1, 2, 3, 4]);
    fused["default_value_for_each_table"] = json!([0.5, 1, 1.5, 2]);
    fused["embedding_table_names"] = json!(["a", "b", "fused_embedding0", "d"]);
    let config = set(with("models", json!([fused])), "fuse_embedding_table", json!(true));
    let storage = |config: &Value| -> Vec<(String, usize, Vec<usize>, usize)> {
        let model = &sandbox.load_quietly(config).models[0];
        for (id, table) in model.tables.iter().enumerate() {
            let storage = &model.storage_tables[table.storage];
            assert!(storage.tables.contains(&id) && storage.dim == table.dim);
        }
        let tables = model.storage_tables.iter();
        tables.map(|t| (t.name.clone(), t.dim, t.tables.clone(), t.max_keys_per_sample)).collect()
    };
    assert_eq!(
        storage(&config),
        [
            ("hps_et.m.fused_embedding0".to_owned(), 8, vec![1], 2),
            ("hps_et.m.fused_embedding1".to_owned(), 16, vec![3], 4),
            ("hps_et.m.fused_embedding2".to_owned(), 32, vec![0, 2], 4),
        ]
    );
    let loaded = sandbox.load_quietly(&config);
    let originals: Vec<_> =
        loaded.models[0].tables.iter().map(|t| (t.name.as_str(), t.default_value)).collect();
    assert_eq!(originals, [("a", 0.5), ("b", 1.0), ("fused_embedding0", 1.5), ("d", 2.0)]);

    // Either switch turns it off.
    let plain = [("a", 32), ("b", 8), ("fused_embedding0", 32), ("d", 16)];
    for off in [
        set(config.clone(), "fuse_embedding_table", json!(false)),
        set(config.clone(), "models[0].fuse_embedding_table", json!(false)),
    ] {
        let found: Vec<_> = storage(&off).into_iter().map(|(name, dim, _, _)| (name, dim)).collect();
        assert_eq!(found, plain.map(|(name, dim)| (format!("hps_et.m.{name}"), dim)));
    }
}

#[test]
fn one_table_is_fused_too() {
    let mut single = model("s");
    single["sparse_files"] = json!(["t0"]);
    single["embedding_vecsize_per_table"] = json!([16]);
    single["maxnum_catfeature_query_per_table_per_sample"] = json!([1]);
    single["default_value_for_each_table"] = json!([0]);
    let config = set(with("models", json!([single])), "fuse_embedding_table", json!(true));
    let config = Sandbox::new().load_quietly(&config);
    assert_eq!(config.models[0].storage_tables[0].name, "hps_et.s.fused_embedding0");
}

#[test]
fn unknown_keys_are_warned_about_with_the_nearest_known() {
    let sandbox = Sandbox::new();
    for (path, message) in [
        ("support_long_long", "unknown key, ignored; did you mean `supportlonglong`?"),
        ("volatile_db.num_partition", "did you mean `num_partitions`?"),
        ("volatile_db.overflow_margins", "did you mean `overflow_margin`?"),
        ("persistent_db.readonly", "did you mean `read_only`?"),
        ("models[0].gpu_cache_per", "did you mean `gpucacheper`?"),
        ("models[0].max_batchsize", "did you mean `max_batch_size`?"),
    ] {
        let (_, warnings) = sandbox.load(&with(path, json!({"anything": [1]})));
        assert_one_warning(&warnings, path, message);
    }
    let (_, warnings) = sandbox.load(&with("update_source", json!({"type": "none", "broker": "x"})));
    assert_one_warning(&warnings, "update_source.broker", "did you mean `brokers`?");
    let (_, warnings) = sandbox.load(&with("colour", json!(1)));
    assert_one_warning(&warnings, "colour", "unknown key, ignored");
    assert!(!warnings[0].message.contains("did you mean"));
    let shown = format!("{}:1:2: colour: unknown key, ignored", sandbox.config_file().display());
    assert_eq!(warnings[0].to_string(), shown);
}

#[test]
fn a_budget_for_gpu_caches_takes_the_place_of_their_share() {
    let sandbox = Sandbox::new();
    let config = with("models[0].gpucache_bytes", json!(1u64 << 33));
    assert_eq!(sandbox.load_quietly(&config).models[0].gpu.gpucache_bytes, Some(1 << 33));
    let both = set(config.clone(), "models[0].gpucacheper", json!(0.5));
    let (loaded, warnings) = sandbox.load(&both);
    assert_eq!(loaded.models[0].gpu.gpucache_bytes, Some(1 << 33));
    assert_one_warning(&warnings, "models[0].gpucacheper", "without effect: gpucache_bytes decides");
    for (path, value) in [
        ("models[0].embedding_cache_type", json!("static")),
        ("models[0].use_static_table", json!(true)),
        ("models[0].gpucache", json!(false)),
    ] {
        let (loaded, warnings) = sandbox.load(&set(config.clone(), path, value));
        assert_eq!(loaded.models[0].gpu.gpucache_bytes, None);
        assert_one_warning(&warnings, "models[0].gpucache_bytes", "without effect: the model has no cache");
    }
}

#[test]
fn a_threshold_from_one_on_means_exact_results() {
    let sandbox = Sandbox::new();
    for (given, read) in [(-1.0, Some(-1.0)), (0.999, Some(0.999)), (1.0, None), (1.5, None)] {
        let config = sandbox.load_quietly(&with("models[0].hit_rate_threshold", json!(given)));
        assert_eq!(config.models[0].gpu.hit_rate_threshold, read, "{given}");
    }
}

#[test]
fn databases_without_a_type_are_disabled_with_a_warning() {
    let sandbox = Sandbox::new();
    let (config, warnings) = sandbox.load(&with("volatile_db", json!({"num_partitions": 4})));
    assert_eq!(config.volatile_db, None);
    assert_one_warning(&warnings, "volatile_db", "disabled, since it has no `type`");
    let (config, warnings) = sandbox.load(&with("persistent_db", json!({"path": "db"})));
    assert_eq!(config.persistent_db, None);
    assert_one_warning(&warnings, "persistent_db", "disabled, since it has no `type`");
    let (config, warnings) = sandbox.load(&with("update_source", json!({})));
    assert_eq!(config.update_source, None);
    assert_one_warning(&warnings, "update_source", "disabled, since it has no `type`");
}

#[test]
fn what_needs_a_database_below_is_warned_about() {
    let sandbox = Sandbox::new();
    for (path, value, message) in [
        ("volatile_db.overflow_margin", json!(100), "rows that overflow are gone"),
        ("volatile_db.initial_cache_rate", json!(0.5), "ignored: there is no persistent_db"),
        ("volatile_db.cache_missed_embeddings", json!(true), "without effect"),
        ("volatile_db.initialize_after_startup", json!(false), "every key yields the default row"),
    ] {
        let config = with(path, value);
        sandbox.load_quietly(&config);
        let (loaded, warnings) = sandbox.load(&without(config, "persistent_db"));
        assert_one_warning(&warnings, path, message);
        assert_eq!(loaded.volatile_db.map(|db| db.initial_cache_rate), Some(1.0));
    }
}

#[test]
fn static_and_uvm_models_without_a_database_get_host_memory() {
    let sandbox = Sandbox::new();
    for kind in ["static", "uvm"] {
        let config = with("models[0].embedding_cache_type", json!(kind));
        let config = set(config, "volatile_db", json!({"type": "disabled", "num_partitions": 3}));
        let (loaded, warnings) = sandbox.load(&without(config, "persistent_db"));
        assert_eq!(loaded.volatile_db, Some(VolatileDbConfig::default()));
        assert_one_warning(&warnings, "volatile_db", "rows are held in host memory");
    }
}

#[test]
fn read_only_databases_are_not_loaded() {
    let sandbox = Sandbox::new();
    sandbox.add_file("db/CURRENT", "");
    let config = with("persistent_db.read_only", json!(true));
    let loaded = sandbox.load_quietly(&config).persistent_db.expect("a database");
    assert!(loaded.read_only && !loaded.initialize_after_startup);
    let (_, warnings) = sandbox.load(&set(config, "persistent_db.initialize_after_startup", json!(true)));
    assert_one_warning(&warnings, "persistent_db.initialize_after_startup", "ignored");
}

#[test]
fn contradictions_within_a_model_are_warned_about() {
    let sandbox = Sandbox::new();
    for key in ["fp8_quant", "enable_pagelock"] {
        let path = format!("models[0].{key}");
        let (_, warnings) = sandbox.load(&with(&path, json!(true)));
        assert_one_warning(&warnings, &path, "only models with embedding_cache_type static");
    }
    let both =
        set(with("models[0].use_static_table", json!(true)), "models[0].embedding_cache_type", json!("uvm"));
    let (config, warnings) = sandbox.load(&both);
    assert_one_warning(&warnings, "models[0].embedding_cache_type", "overridden");
    assert_eq!(config.models[0].gpu.embedding_cache_type, EmbeddingCacheType::Static);
    let (_, warnings) = sandbox.load(&with("models[0].fuse_embedding_table", json!(true)));
    assert_one_warning(&warnings, "models[0].fuse_embedding_table", "must also be true at the top level");
}

#[test]
fn warnings_come_in_the_order_of_the_text() {
    let text = base().to_string().replace("{\"models\"", "{\"first\":0,\"models\"");
    let text = text.replace("\"type\":\"parallel_hash_map\"", "\"type\":\"hash\",\"third\":0");
    let text = text.replace("\"type\":\"rocks_db\"", "\"type\":\"rocks_db\",\"second\":0");
    let warnings = Sandbox::new().read_text(&text).expect("good").warnings;
    let paths: Vec<_> = warnings.iter().map(|w| w.path.as_str()).collect();
    assert_eq!(paths, ["first", "persistent_db.second", "volatile_db.third"]);
}

#[test]
fn very_many_warnings_are_counted() {
    let mut config = base();
    for index in 0..1500 {
        config[format!("unknown{index}")] = json!(0);
    }
    let (_, warnings) = Sandbox::new().load(&config);
    assert_eq!(warnings.len(), 1001);
    assert_eq!(warnings[1000].message, "... and 500 more warnings");
}
