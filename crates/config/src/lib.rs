//! Settings of a parameter server: reads `ps.json` and checks it.
//!
//! ```text
//! text --json--> tree with positions --reader--> sections --> Config + warnings
//!                        |                          |
//!                        +------- report ----------+----> ConfigError: all problems at once
//! ```
//!
//! The file is strict JSON plus `//` comments. Every key has one line that reads it, in the module of its section,
//! with its default and range; the structs say what it means. Whatever is wrong is reported with file, line,
//! column, JSON path, what was found and what was expected. What is merely odd, such as an unknown key, is a
//! warning, which the caller logs.
//!
//! Relative paths start from the configuration's own folder, or, if there is nothing, from the working directory;
//! what does not exist yet is made in the former.
//!
//! This crate opens no database and knows no tier. It looks at the file system only to see what exists.
//!
//! ```
//! use hps_config::Config;
//! let text = r#"{
//!     "supportlonglong": true, // int64 keys
//!     "models": []
//! }"#;
//! let error = Config::from_text(text, "ps.json".as_ref()).unwrap_err();
//! assert_eq!(error.to_string(), "ps.json:3:15: models: found an empty list, expected a list of at least one model");
//! ```

#![forbid(unsafe_code)]

mod availability;
mod config;
mod fusion;
mod gpu;
mod json;
mod limits;
mod model;
mod nearest;
mod paths;
mod persistent;
mod positions;
mod problem;
mod reader;
mod report;
mod source;
mod table;
mod update_source;
mod volatile;

pub use config::{Config, KeyWidth, Loaded};
pub use fusion::StorageTable;
pub use gpu::{EmbeddingCacheType, GpuConfig};
pub use model::ModelConfig;
pub use paths::resolve_config_file;
pub use persistent::PersistentDbConfig;
pub use problem::{ConfigError, Position, Problem, Warning};
pub use table::TableConfig;
pub use update_source::UpdateSourceConfig;
pub use volatile::{
    HotKeysConfig, OverflowPolicy, RedisConfig, Secret, SharedMemoryConfig, VolatileDbConfig, VolatileDbKind,
};
