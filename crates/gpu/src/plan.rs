//! What a table takes on a GPU, computed before anything is allocated.

use hps_core::{Error, ErrorKind, Result, TableId};

use crate::abi;
use crate::geometry::{Geometry, TagMode, choose_mode};

/// How the rows of a table reach a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// A cache in GPU memory; what it lacks is asked for below.
    Dynamic,
    /// No cache: every key is asked for below.
    Bypass,
    /// All rows on the GPU.
    Static,
    /// All rows in pinned host memory that the GPU reads.
    StaticOnHost,
    /// All rows in pinned host memory, a cache of them on the GPU.
    Uvm,
}

impl CacheKind {
    /// True if every row of the table is where the GPU reads it by itself.
    pub fn holds_all(self) -> bool {
        matches!(self, Self::Static | Self::StaticOnHost | Self::Uvm)
    }
}

/// What a GPU is told of a table before it is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct TableSettings {
    /// Where its rows are stored below.
    pub storage: TableId,
    /// Storage name, for messages.
    pub name: String,
    /// Bytes of one row.
    pub row_bytes: usize,
    /// How rows reach the GPU.
    pub kind: CacheKind,
    /// Rows that the cache holds, as a share of the table's.
    pub cache_share: f64,
    /// Hit rate above which missed keys are answered with the default row; None: never.
    pub hit_rate_threshold: Option<f64>,
    /// Rows of the table.
    pub num_rows: u64,
    /// No key of the table is larger; None if that is not known.
    pub largest_key: Option<u64>,
}

/// The shape of a table's parts, and what they take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) first: Geometry,
    pub(crate) second: Option<Geometry>,
    /// The first part's rows are in host memory.
    pub(crate) first_on_host: bool,
}

impl Plan {
    pub(crate) fn new(settings: &TableSettings) -> Result<Self> {
        let TableSettings { kind, num_rows, row_bytes, .. } = *settings;
        let wanted = num_rows as f64 * settings.cache_share;
        let cache_slots = wanted as u64;
        let cache = |mode| {
            // A cache of the whole table holds all of it, however keys fall into sets.
            if settings.cache_share >= 1.0 {
                Geometry::for_all(wanted as u64, row_bytes, mode)
            } else {
                Geometry::with_slots(cache_slots, row_bytes, mode)
            }
        };
        // A table that holds all rows must be able to take in new keys: ids that grow, within reason.
        let growth = if kind.holds_all() { KEY_GROWTH } else { 1 };
        let largest_key = settings.largest_key.map(|key| key.saturating_mul(growth));
        let mode = |smallest: u64| choose_mode(smallest, largest_key);
        let plan = match kind {
            CacheKind::Dynamic => {
                Self { first: cache(mode(cache_slots))?, second: None, first_on_host: false }
            }
            CacheKind::Bypass => Self {
                first: Geometry::with_slots(0, row_bytes, TagMode::Hashed)?,
                second: None,
                first_on_host: false,
            },
            CacheKind::Static | CacheKind::StaticOnHost => Self {
                first: Geometry::for_all(num_rows, row_bytes, mode(num_rows))?,
                second: None,
                first_on_host: kind == CacheKind::StaticOnHost,
            },
            CacheKind::Uvm => {
                let mode = mode(cache_slots.min(num_rows));
                Self {
                    first: cache(mode)?,
                    second: Some(Geometry::for_all(num_rows, row_bytes, mode)?),
                    first_on_host: false,
                }
            }
        };
        Ok(plan)
    }

    /// GPU memory that it takes.
    pub(crate) fn gpu_bytes(&self) -> u64 {
        let rows = if self.first_on_host { 0 } else { self.first.rows_bytes() };
        let second = self.second.map_or(0, |second| second.index_bytes() + WANTED_BYTES);
        self.first.index_bytes() + rows + second
    }

    /// Pinned host memory that it takes.
    pub(crate) fn host_bytes(&self) -> u64 {
        let first = if self.first_on_host { self.first.rows_bytes() } else { 0 };
        first + self.second.map_or(0, |second| second.rows_bytes())
    }
}

/// Keys up to so many times the largest one can be added to a table that holds all rows.
const KEY_GROWTH: u64 = 16;
const WANTED_BYTES: u64 = size_of::<abi::HpsWantedKeys>() as u64;

/// Refuses plans that need more GPU memory than is free, and shows the sum.
pub(crate) fn check_budget<'p>(
    plans: impl Iterator<Item = (&'p TableSettings, &'p Plan)> + Clone,
    free_bytes: u64,
    device: &str,
) -> Result<()> {
    let total: u64 = plans.clone().map(|(_, plan)| plan.gpu_bytes()).fold(0, u64::saturating_add);
    if total <= free_bytes {
        return Ok(());
    }
    let mut lines = String::new();
    for (settings, plan) in plans {
        lines.push_str(&format!(
            "\n  {}: {} slots of {} bytes and {} bytes of index = {} bytes",
            settings.name,
            plan.first.num_slots(),
            if plan.first_on_host { 0 } else { settings.row_bytes },
            plan.gpu_bytes() - if plan.first_on_host { 0 } else { plan.first.rows_bytes() },
            plan.gpu_bytes(),
        ));
    }
    Err(Error::new(
        ErrorKind::OutOfMemory,
        format!(
            "the tables take {total} bytes of GPU memory, but {free_bytes} are free on {device}; lower gpucacheper, or use \
             embedding_cache_type dynamic or uvm instead of static:{lines}\n  sum: {total} bytes"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(kind: CacheKind, num_rows: u64, cache_share: f64) -> TableSettings {
        TableSettings {
            storage: TableId(0),
            name: "hps_et.m.t".into(),
            row_bytes: 128,
            kind,
            cache_share,
            hit_rate_threshold: None,
            num_rows,
            largest_key: Some(num_rows),
        }
    }

    #[test]
    fn a_cache_takes_its_share_and_a_static_table_all_of_the_rows() {
        let dynamic = Plan::new(&settings(CacheKind::Dynamic, 1_000_000, 0.1)).unwrap();
        assert_eq!(dynamic.first.num_slots(), 100_000);
        assert_eq!(dynamic.host_bytes(), 0);
        let whole = Plan::new(&settings(CacheKind::Static, 1_000_000, 0.1)).unwrap();
        assert!(whole.first.num_slots() >= 1_050_000);
        let on_host = Plan::new(&settings(CacheKind::StaticOnHost, 1_000_000, 0.1)).unwrap();
        assert_eq!(on_host.host_bytes(), whole.first.rows_bytes());
        assert_eq!(on_host.gpu_bytes() + on_host.host_bytes(), whole.gpu_bytes());
        let uvm = Plan::new(&settings(CacheKind::Uvm, 1_000_000, 0.1)).unwrap();
        assert_eq!(uvm.first.mode, uvm.second.unwrap().mode);
        assert!(uvm.host_bytes() >= 128_000_000);
    }

    #[test]
    fn a_cache_as_large_as_its_table_holds_all_of_it() {
        let plan = Plan::new(&settings(CacheKind::Dynamic, 1_000_000, 1.0)).unwrap();
        assert!(plan.first.num_slots() >= 1_050_000);
    }

    #[test]
    fn both_parts_of_a_uvm_table_tell_keys_apart_in_the_same_way() {
        // The cache alone decides: a table of 60 million sets could hold these keys exactly.
        let mut settings = settings(CacheKind::Uvm, 1_000_000, 0.0001);
        settings.largest_key = Some(1 << 31);
        let plan = Plan::new(&settings).unwrap();
        assert_eq!((plan.first.mode, plan.second.unwrap().mode), (TagMode::Hashed, TagMode::Hashed));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_sum() {
        let all = [settings(CacheKind::Static, 1000, 0.1), settings(CacheKind::Dynamic, 1000, 0.5)];
        let plans: Vec<Plan> = all.iter().map(|settings| Plan::new(settings).unwrap()).collect();
        let total: u64 = plans.iter().map(Plan::gpu_bytes).sum();
        assert!(check_budget(all.iter().zip(&plans), total, "GPU 0").is_ok());
        let error = check_budget(all.iter().zip(&plans), total - 1, "GPU 0").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&format!("sum: {total} bytes")), "{error}");
    }
}
