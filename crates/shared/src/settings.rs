//! What a shared tier is opened with.

use std::path::PathBuf;

use hps_core::tier::EvictionPolicy;

/// How many rows a table may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// At least 1.
    pub rows: u64,
    /// Which rows go when there are more: the lowest of a sample of 16.
    pub policy: EvictionPolicy,
}

/// What the tier is to the store above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What it holds is the table. Any process may load and write.
    Truth,
    /// Copies of what a database below holds. The first process fills it; those that come while it lives only read.
    Cache,
}

/// How to open a [`SharedTier`](crate::SharedTier).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSettings {
    /// Folder whose files the system keeps in memory: `/dev/shm`.
    pub parent: PathBuf,
    /// Name of the segment.
    pub name: String,
    /// The most bytes that all of its files take together.
    pub size_bytes: u64,
    /// Whether the last process that leaves removes it. All have to agree.
    pub auto_remove: bool,
    /// Bound of every table; None: no limit.
    pub limit: Option<Limit>,
    /// See [`Role`].
    pub role: Role,
    /// As a cache: the database below is written by this process, so nobody else may fill.
    pub must_fill: bool,
}
