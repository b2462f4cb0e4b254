//! What the tests share: tables, an oracle's rows, a second process.
#![allow(dead_code, reason = "each test program uses a part")]

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use hps_core::key::{Key, KeyWidth, TableId};
use hps_core::row::Rows;
use hps_core::testing::rows_of;
use hps_core::tier::{Expected, TableSpec, TruthTier};
use hps_ssd::{SsdSettings, SsdTier};

pub(crate) const TABLE: TableId = TableId(0);

pub(crate) fn spec(name: &str, row_bytes: usize, key_width: KeyWidth) -> TableSpec {
    TableSpec { name: name.into(), row_bytes, key_width }
}

/// One table of 64-bit keys and rows of 64 bytes.
pub(crate) fn one_table() -> Vec<TableSpec> {
    vec![spec("hps_et.m.sparse_embedding0", 64, KeyWidth::Bits64)]
}

pub(crate) fn settings(path: &Path) -> SsdSettings {
    // Loads of some thousand rows are sorted in several runs.
    SsdSettings {
        num_threads: 2,
        load_bytes: 256 << 10,
        block_cache_bytes: 32 << 20,
        ..SsdSettings::new(path)
    }
}

pub(crate) fn open(path: &Path, tables: &[TableSpec]) -> SsdTier {
    SsdTier::open(settings(path), tables).unwrap()
}

pub(crate) fn open_read_only(path: &Path, tables: &[TableSpec]) -> hps_core::Result<SsdTier> {
    SsdTier::open(SsdSettings { read_only: true, ..settings(path) }, tables)
}

/// Loads `keys` in one version as table 0, several puts, and commits.
pub(crate) fn load(tier: &SsdTier, keys: &[Key], version: u64, row_bytes: usize, record: &str) -> u64 {
    let mut load = tier.begin_load(TABLE, Expected::rows(keys.len() as u64)).unwrap();
    for keys in keys.chunks(2_000) {
        load.put(keys, Rows::new(&rows_of(keys, version, row_bytes), row_bytes).unwrap()).unwrap();
    }
    load.commit(record, &|_| {}).unwrap()
}

/// All rows of table 0, in the order of the scan.
pub(crate) fn scan(tier: &SsdTier) -> Vec<(Key, Vec<u8>)> {
    let mut found = Vec::new();
    tier.scan(TABLE, &mut |keys, rows| {
        found.extend(keys.iter().copied().zip(rows.iter().map(<[u8]>::to_vec)));
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    found
}

const ROLE: &str = "HPS_SSD_TEST_ROLE";
const PATH: &str = "HPS_SSD_TEST_PATH";

/// In a process that [`child`] started: what it is to do, and the database it is to do it with.
pub(crate) fn role() -> Option<(String, std::path::PathBuf)> {
    Some((std::env::var(ROLE).ok()?, std::env::var_os(PATH)?.into()))
}

/// Another process that runs the test `entry` of this program, which acts by [`role`].
pub(crate) fn child_command(entry: &str, role: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", entry, "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

pub(crate) fn child(entry: &str, role: &str, path: &Path) -> (Child, ChildStdout) {
    let mut child = child_command(entry, role, path).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    (child, stdout)
}
