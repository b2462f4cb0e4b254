//! The Rust twins of the structs and constants of cuda/include/abi.h, made by build.rs.

#![allow(
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    reason = "made by bindgen, which keeps the names of the header"
)]

include!(concat!(env!("OUT_DIR"), "/abi.rs"));
