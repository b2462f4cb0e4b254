//! Configurations as the predecessor documents them: all their keys, `//` comments, and their slips.

mod common;

use common::Sandbox;
use hps_config::{Config, ConfigError, Loaded};

/// Every key that the predecessor's manual lists. It gives `use_static_table` twice.
const DOCUMENTED: &str = r#"{
  "supportlonglong": true,
  "fuse_embedding_table": false,
  // Where rows are held in memory.
  "volatile_db": {
    "type": "redis_cluster",
    "address": "127.0.0.1:7003,127.0.0.1:7004,127.0.0.1:7005",
    "user_name": "default",
    "password": "",
    "num_partitions": 8,
    "allocation_rate": 268435456,  // 256 MiB
    "shared_memory_size": 17179869184,  // 16 GiB
    "shared_memory_name": "hctr_mp_hash_map_database",
    "shared_memory_auto_remove": true,
    "max_batch_size": 65536,
    "enable_tls": false,
    "tls_ca_certificate": "cacertbundle.crt",
    "tls_client_certificate": "client_cert.pem",
    "tls_client_key": "client_key.pem",
    "tls_server_name_identification": "redis.localhost",
    "overflow_margin": 10000000,
    "overflow_policy": "evict_random",
    "overflow_resolution_target": 0.8,
    "initialize_after_startup": true,
    "initial_cache_rate": 1.0,
    "cache_missed_embeddings": false,
    "update_filters": [".+"]
  },
  "persistent_db": {
    "type": "rocks_db",
    "path": "/tmp/rocksdb",
    "num_threads": 16,
    "read_only": false,
    "max_batch_size": 65536,
    "update_filters": [".+"]
  },
  "update_source": {
    "type": "kafka_message_queue",
    "brokers": "127.0.0.1:9092;127.0.0.2:9092",
    "metadata_refresh_interval_ms": 30000,
    "poll_timeout_ms": 500,
    "receive_buffer_size": 262144,
    "max_batch_size": 8192,
    "failure_backoff_ms": 50,
    "max_commit_interval": 32
  },
  "models": [
    {
      "model": "wdl",
      "sparse_files": ["/wdl_infer/model/wdl/1/wdl0_sparse.model", "/wdl_infer/model/wdl/1/wdl1_sparse.model"],
      "dense_file": "/wdl_infer/model/wdl/1/wdl_dense.model",
      "network_file": "/wdl_infer/model/wdl/1/wdl.json",
      "num_of_worker_buffer_in_pool": 4,
      "num_of_refresher_buffer_in_pool": 1,
      "deployed_device_list": [0],
      "max_batch_size": 64,
      "default_value_for_each_table": [0.0, 0.0],
      "maxnum_des_feature_per_sample": 26,
      "maxnum_catfeature_query_per_table_per_sample": [2, 26],
      "embedding_vecsize_per_table": [1, 15],
      "embedding_table_names": ["table1", "table2"],
      "refresh_delay": 0,
      "refresh_interval": 0,
      "hit_rate_threshold": 0.9,
      "gpucacheper": 0.1,
      "use_static_table": false,
      "gpucache": true,
      "cache_refresh_percentage_per_iteration": 0.2,
      "label_dim": 1,
      "slot_num": 10,
      "use_static_table": false,
      "use_context_stream": false
    }
  ]
}
"#;

/// The documented sample with some of its text replaced.
fn edited(edits: &[(&str, &str)]) -> String {
    edits.iter().fold(DOCUMENTED.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replacen(old, new, 1)
    })
}

#[test]
fn the_documented_sample_needs_what_is_not_here() {
    let ConfigError { problems, .. } = Sandbox::new().read_text(DOCUMENTED).expect_err("problems");
    let found: Vec<_> = problems.iter().map(|p| format!("{}: {}", p.path, p.found)).collect();
    assert_eq!(
        found,
        [
            "volatile_db.type: redis_cluster, which is not available in this build",
            "update_source.type: kafka_message_queue, which is not available in this build",
            "models[0].sparse_files[0]: \"/wdl_infer/model/wdl/1/wdl0_sparse.model\", which does not exist",
            "models[0].sparse_files[1]: \"/wdl_infer/model/wdl/1/wdl1_sparse.model\", which does not exist",
            "models[0].use_static_table: the key in line 71 again, first in line 66 (column 7)",
        ]
    );
}

#[test]
fn the_documented_sample_is_read_once_that_is_settled() {
    let text = edited(&[
        ("redis_cluster", "parallel_hash_map"),
        ("kafka_message_queue", "null"),
        ("/wdl_infer/model/wdl/1/wdl0_sparse.model", "t0"),
        ("/wdl_infer/model/wdl/1/wdl1_sparse.model", "t1"),
        ("      \"use_static_table\": false,\n", ""),
    ]);
    let Loaded { config, warnings } = Sandbox::new().read_text(&text).expect("a good configuration");
    assert_eq!(warnings, []);
    let Config { volatile_db: Some(host), persistent_db: Some(ssd), models, .. } = config else {
        panic!("two databases")
    };
    assert_eq!((host.num_partitions, host.overflow_margin), (8, 10_000_000));
    assert_eq!(host.redis.addresses, ["127.0.0.1:7003", "127.0.0.1:7004", "127.0.0.1:7005"]);
    assert_eq!((ssd.path.to_str(), ssd.initialize_after_startup), (Some("/tmp/rocksdb"), true));
    assert_eq!(models[0].storage_tables[1].name, "hps_et.wdl.table2");
    assert_eq!(models[0].gpu.hit_rate_threshold, Some(0.9));
}

/// As in its notebook for PyTorch: fused, static, one default value for all tables, no database named.
const NOTEBOOK: &str = r#"{
  "supportlonglong": false,
  "fuse_embedding_table": true,
  "models": [{
    "model": "hps_torch",
    "sparse_files": ["t0", "t1", "t2"],
    "num_of_worker_buffer_in_pool": 8,
    "embedding_table_names": ["table0", "table1", "table2"],
    "embedding_vecsize_per_table": [128, 128, 128],
    "maxnum_catfeature_query_per_table_per_sample": [10, 10, 10],
    "default_value_for_each_table": [0.0],
    "deployed_device_list": [0],
    "max_batch_size": 256,
    "cache_refresh_percentage_per_iteration": 1.0,
    "hit_rate_threshold": 1.0,
    "gpucacheper": 1.0,
    "gpucache": true,
    "embedding_cache_type": "static"
  }]
}"#;

#[test]
fn the_notebook_is_read() {
    let Loaded { config, warnings } = Sandbox::new().read_text(NOTEBOOK).expect("a good configuration");
    common::assert_one_warning(&warnings, "models[0].default_value_for_each_table", "0.0 for the others");
    assert_eq!(config.models[0].storage_tables.len(), 1);
    assert_eq!(config.models[0].storage_tables[0].name, "hps_et.hps_torch.fused_embedding0");
}
