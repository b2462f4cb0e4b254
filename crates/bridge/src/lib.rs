//! The boundary: assembles stores from their configurations and hands them to C++ (cxx) and to C (`hps.h`).
//!
//! Translation only: tensors are checked in `cpp_shim`, lookups happen in `hps-core`.
//!
//! No panic leaves this crate: cxx would abort the user's process. Every entry point goes through
//! [`guard::no_panic`].

mod allocator;
pub mod assemble;
pub mod budget;
mod c_api;
pub mod console;
mod devices;
mod fork;
mod guard;
mod prepared;
pub mod registry;
mod stats_json;
pub mod storage;
pub mod timer;

use prepared::{PreparedLookup, prepare_lookup};

#[cxx::bridge(namespace = "hps::bridge")]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "cxx generates code beside what is written here"
)]
mod ffi {
    extern "Rust" {
        /// A table that was found, in a store that stays open as long as this lives.
        type PreparedLookup;

        /// Opens the store on its first use, finds the table, checks `emb_vec_size` and the width of the keys (32 or
        /// 64 bits). The error's text is for the user.
        fn prepare_lookup(
            ps_config_file: &str,
            model_name: &str,
            table_id: i64,
            emb_vec_size: i64,
            key_bits: u32,
        ) -> Result<Box<PreparedLookup>>;

        /// Looks `num_keys` keys up. Runs on the calling thread and is complete when it returns; several threads may run it at
        /// the same time.
        ///
        /// # Safety
        /// `keys` is the address of `num_keys` integers of the prepared width, `rows` that of
        /// `num_keys * emb_vec_size` float32; both in host memory, aligned to their element, not overlapping, valid
        /// and otherwise unused until the call returns. Either may be 0 if `num_keys` is 0.
        unsafe fn run(self: &PreparedLookup, keys: usize, num_keys: usize, rows: usize) -> Result<()>;

        /// The same for keys and rows in the memory of the GPU with this CUDA ordinal. The rows are complete in the order of
        /// `stream`, a `cudaStream_t` of that device; the call may return before.
        ///
        /// # Safety
        /// As above, in device memory; valid and otherwise unused until the stream has passed what was sent to it. Rows
        /// begin at a multiple of 16 bytes.
        unsafe fn run_on_device(
            self: &PreparedLookup,
            ordinal: usize,
            stream: usize,
            keys: usize,
            num_keys: usize,
            rows: usize,
        ) -> Result<()>;
    }
}
