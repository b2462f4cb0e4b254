//! What a table takes on a GPU, computed before anything is allocated.

use hps_core::{Error, ErrorKind, Result, TableId};

use crate::abi;
use crate::fp8;
use crate::geometry::{Geometry, TagMode, allocated, choose_mode};
use crate::set_table::RowPlace;

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

    /// What takes its place where host memory cannot be pinned: rows that the GPU's memory does not hold are asked for below.
    fn without_pinned_memory(self) -> Self {
        match self {
            Self::Uvm => Self::Dynamic,
            Self::StaticOnHost => Self::Bypass,
            Self::Dynamic | Self::Bypass | Self::Static => self,
        }
    }
}

/// Which rows of a table below its cache a GPU reads by itself, where they lie in host memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// None.
    Nothing,
    /// Those that host memory holds; others are asked for.
    Some,
    /// All: host memory is the truth.
    All,
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
    /// Rows are kept as 8-bit floats with a scale each. For tables that are held whole and have no cache.
    pub is_fp8: bool,
    /// How rows reach the GPU.
    pub kind: CacheKind,
    /// Rows that the cache holds, as a share of the table's.
    pub cache_share: f64,
    /// Hit rate, below 1, from which missed keys are answered with the default row; None: never, results are exact.
    pub hit_rate_threshold: Option<f64>,
    /// What of it the GPU can read in host memory.
    pub reach: Reach,
    /// How many rows that is.
    pub reachable_rows: u64,
    /// Rows of the table.
    pub num_rows: u64,
    /// No key of the table is larger; None if that is not known.
    pub largest_key: Option<u64>,
}

impl TableSettings {
    /// Bytes of one row on the GPU.
    pub(crate) fn stored_row_bytes(&self) -> usize {
        if self.is_fp8 { fp8::stored_bytes(self.row_bytes) } else { self.row_bytes }
    }

    /// True if the GPU is told where rows lie in host memory. Not if missed keys may be answered with the default row: they are
    /// not worth reading then.
    pub(crate) fn has_map(&self) -> bool {
        self.kind == CacheKind::Dynamic && self.reach > Reach::Nothing && self.hit_rate_threshold.is_none()
    }

    /// The same table where host memory cannot be pinned: the host answers for what a cache of the same share lacks, exactly, in
    /// rows as they are below.
    pub(crate) fn without_pinned_memory(self) -> Self {
        Self {
            kind: self.kind.without_pinned_memory(),
            is_fp8: false,
            reach: Reach::Nothing,
            hit_rate_threshold: None,
            ..self
        }
    }
}

/// The shape of a table's parts, and what they take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) first: Geometry,
    /// What the GPU reads that the first part lacks: all rows, or a map of where they are.
    pub(crate) second: Option<(Geometry, RowPlace)>,
    /// The first part's rows are in host memory.
    pub(crate) first_on_host: bool,
}

impl Plan {
    /// True if lookups read rows in host memory by themselves.
    pub(crate) fn reads_host(&self) -> bool {
        self.second.is_some() || self.first_on_host
    }

    pub(crate) fn new(settings: &TableSettings) -> Result<Self> {
        let TableSettings { kind, num_rows, .. } = *settings;
        let row_bytes = settings.stored_row_bytes();
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
        let has_map = settings.has_map();
        let growth = if kind.holds_all() || has_map { KEY_GROWTH } else { 1 };
        let largest_key = settings.largest_key.map(|key| key.saturating_mul(growth));
        let mode = |smallest: u64| choose_mode(smallest, largest_key);
        let plan = match kind {
            CacheKind::Dynamic if has_map => {
                let mapped = settings.reachable_rows;
                let mapped = mapped.saturating_add(mapped / MAP_GROWTH);
                let mode = mode(cache_slots.min(mapped));
                let map = Geometry::for_all(mapped, size_of::<u64>(), mode)?;
                Self { first: cache(mode)?, second: Some((map, RowPlace::Map)), first_on_host: false }
            }
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
                    second: Some((Geometry::for_all(num_rows, row_bytes, mode)?, RowPlace::Host)),
                    first_on_host: false,
                }
            }
        };
        Ok(plan)
    }

    /// GPU memory that it takes.
    pub(crate) fn gpu_bytes(&self) -> u64 {
        let rows = if self.first_on_host { 0 } else { allocated(self.first.rows_bytes()) };
        let second = self.second.map_or(0, |(second, place)| {
            let rows = if place == RowPlace::Host { 0 } else { allocated(second.rows_bytes()) };
            second.index_bytes() + rows + allocated(WANTED_BYTES)
        });
        self.first.index_bytes() + rows + second
    }

    /// Pinned host memory that it takes.
    pub(crate) fn host_bytes(&self) -> u64 {
        let first = if self.first_on_host { self.first.rows_bytes() } else { 0 };
        let second = self.second.filter(|&(_, place)| place == RowPlace::Host);
        first + second.map_or(0, |(second, _)| second.rows_bytes())
    }
}

/// Keys up to so many times the largest one can be added to a table that holds all rows.
const KEY_GROWTH: u64 = 16;
/// A map has room for this fraction of rows more than there are.
const MAP_GROWTH: u64 = 8;
const WANTED_BYTES: u64 = size_of::<abi::HpsWantedKeys>() as u64;

/// The largest share of their tables, the same for all and at most 1, that caches can hold in so many bytes of GPU memory, with
/// all that these tables take there. `name` is whose they are.
///
/// # Errors
/// `OutOfMemory` if the smallest caches take more; what planning reports.
pub fn share_for_bytes(tables: &[TableSettings], num_bytes: u64, name: &str) -> Result<f64> {
    let taken = |cache_share: f64| -> Result<u64> {
        let plans = tables.iter().map(|table| Plan::new(&TableSettings { cache_share, ..table.clone() }));
        plans.map(|plan| Ok(plan?.gpu_bytes())).sum()
    };
    let smallest = taken(0.0)?;
    if smallest > num_bytes {
        return Err(Error::new(
            ErrorKind::OutOfMemory,
            format!(
                "\"gpucache_bytes\": {num_bytes} is too little: the smallest caches of model \"{name}\", with what finds their \
                 rows, take {smallest} bytes of GPU memory"
            ),
        ));
    }
    if taken(1.0)? <= num_bytes {
        return Ok(1.0);
    }
    // More than a share takes more; 50 halvings tell every number of slots apart.
    let (mut fits, mut too_much) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = f64::midpoint(fits, too_much);
        if taken(middle)? <= num_bytes {
            fits = middle;
        } else {
            too_much = middle;
        }
    }
    Ok(fits)
}

/// Gives up maps that do not fit: the host can answer for them. `free_bytes` is what there is for all tables. Returns the names of
/// the tables whose maps were given up.
pub(crate) fn give_up_maps(tables: &mut [TableSettings], free_bytes: u64) -> Vec<String> {
    let fits = |tables: &[TableSettings]| {
        let mut plans = tables.iter().map(|table| Plan::new(table).map(|plan| plan.gpu_bytes()));
        let total = plans.try_fold(0u64, |sum, bytes| bytes.map(|bytes| sum.saturating_add(bytes)));
        total.is_ok_and(|total| total <= free_bytes)
    };
    let mut given_up = Vec::new();
    while !fits(tables) {
        // The one that takes most.
        let mapped = tables.iter_mut().filter(|table| table.has_map());
        let Some(largest) = mapped.max_by_key(|table| table.reachable_rows) else { break };
        largest.reach = Reach::Nothing;
        given_up.push(largest.name.clone());
    }
    given_up
}

/// True if the tags of all tables that do not read host memory are so few that the second-level cache should keep them: then a hit
/// reads little but its row from memory. Those of other tables are not kept, so that tables of pages are (cuda/fetch.cu). Other stores
/// on the GPU are not counted. If tags are more, keeping some pushes out rows that are asked for often. Measured on an H100 (50 MB),
/// rows of 128 bytes, uniform keys: 12 MB of tags are read 11 % faster if they are kept; with 40 MB, a thousand keys take 28 %
/// longer.
pub(crate) fn keeps_tags(plans: &[Plan], l2_bytes: u64) -> bool {
    let kept = plans.iter().filter(|plan| !plan.reads_host());
    kept.map(|plan| plan.first.tags_bytes()).fold(0, u64::saturating_add) <= l2_bytes / 3
}

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
            if plan.first_on_host { 0 } else { settings.stored_row_bytes() },
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
            is_fp8: false,
            kind,
            cache_share,
            hit_rate_threshold: None,
            reach: Reach::Nothing,
            reachable_rows: num_rows,
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
        assert_eq!(on_host.gpu_bytes() + allocated(on_host.host_bytes()), whole.gpu_bytes());
        let uvm = Plan::new(&settings(CacheKind::Uvm, 1_000_000, 0.1)).unwrap();
        assert_eq!(uvm.first.mode, uvm.second.unwrap().0.mode);
        assert!(uvm.host_bytes() >= 128_000_000);
    }

    #[test]
    fn rows_of_8_bit_floats_take_a_quarter_and_a_scale() {
        let plain = settings(CacheKind::Static, 1_000_000, 0.1);
        let fp8 = TableSettings { is_fp8: true, ..plain.clone() };
        let (plain, fp8) = (Plan::new(&plain).unwrap(), Plan::new(&fp8).unwrap());
        assert_eq!(plain.first.num_slots(), fp8.first.num_slots());
        assert_eq!(fp8.first.rows_bytes(), fp8.first.num_slots() * 36);
        assert!(fp8.gpu_bytes() < plain.gpu_bytes() / 3);
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
        assert_eq!((plan.first.mode, plan.second.unwrap().0.mode), (TagMode::Hashed, TagMode::Hashed));
    }

    #[test]
    fn a_map_takes_an_address_for_each_row_and_has_room_to_grow() {
        let mut settings = settings(CacheKind::Dynamic, 1_000_000, 0.1);
        let without = Plan::new(&settings).unwrap();
        settings.reach = Reach::All;
        let plan = Plan::new(&settings).unwrap();
        let (map, place) = plan.second.unwrap();
        assert_eq!((plan.first.num_slots(), map.row_bytes, place), (100_000, 8, RowPlace::Map));
        assert!((1_180_000..1_200_000).contains(&map.num_slots()));
        assert!(plan.gpu_bytes() > without.gpu_bytes() + map.num_slots() * 10);
        assert_eq!(plan.host_bytes(), 0);
        // Where default rows will do, rows in host memory are not worth reading.
        for threshold in [0.0, 0.9] {
            settings.hit_rate_threshold = Some(threshold);
            assert_eq!(Plan::new(&settings).unwrap().second, None);
        }
    }

    #[test]
    fn tags_are_kept_if_all_of_them_are_few() {
        let plan = Plan::new(&settings(CacheKind::Dynamic, 60_000_000, 0.1)).unwrap();
        assert_eq!(plan.first.tags_bytes(), 12_000_000);
        let with_rows_in_host_memory = Plan::new(&settings(CacheKind::Uvm, 60_000_000, 0.1)).unwrap();
        assert!(keeps_tags(&[plan.clone(), with_rows_in_host_memory], 36_000_000));
        let (one, two) = (vec![plan.clone()], vec![plan.clone(), plan]);
        assert!(keeps_tags(&one, 36_000_000) && !keeps_tags(&one, 35_999_999));
        assert!(keeps_tags(&two, 72_000_000) && !keeps_tags(&two, 71_999_999));
    }

    #[test]
    fn a_table_without_pinned_memory_asks_the_host_and_takes_no_more_of_the_gpu() {
        use CacheKind::{Bypass, Dynamic, Static, StaticOnHost, Uvm};
        for (kind, replacement) in
            [(Uvm, Dynamic), (StaticOnHost, Bypass), (Dynamic, Dynamic), (Bypass, Bypass), (Static, Static)]
        {
            for share in [0.0, 0.1, 1.0, 3.0] {
                let mut settings = settings(kind, 1_000_000, share);
                // Types that hold all rows ignore them.
                (settings.reach, settings.hit_rate_threshold) = (Reach::Some, Some(0.5));
                settings.is_fp8 = kind == StaticOnHost;
                let before = Plan::new(&settings).unwrap();
                let settings = settings.without_pinned_memory();
                let after = Plan::new(&settings).unwrap();
                assert_eq!((settings.kind, settings.cache_share), (replacement, share));
                assert_eq!((settings.reach, settings.hit_rate_threshold), (Reach::Nothing, None));
                assert!(!settings.is_fp8);
                assert_eq!((after.host_bytes(), after.second), (0, None));
                assert!(after.gpu_bytes() <= before.gpu_bytes(), "{kind:?} with a share of {share}");
            }
        }
    }

    #[test]
    fn maps_that_do_not_fit_are_given_up_the_largest_first() {
        let mut tables = [1_000_000, 3_000_000, 100].map(|rows| settings(CacheKind::Dynamic, rows, 0.01));
        for (table, name) in tables.iter_mut().zip(["a", "b", "c"]) {
            (table.reach, table.name) = (Reach::Some, name.into());
        }
        let total = |tables: &[TableSettings]| -> u64 {
            tables.iter().map(|table| Plan::new(table).unwrap().gpu_bytes()).sum()
        };
        let all = total(&tables);
        assert!(give_up_maps(&mut tables.clone(), all).is_empty());
        let mut fewer = tables.clone();
        assert_eq!(give_up_maps(&mut fewer, all - 1), ["b"]);
        assert!(!fewer[1].has_map() && total(&fewer) < all - (30 << 20));
        assert_eq!(give_up_maps(&mut tables.clone(), 0), ["b", "a", "c"]);
        // More rows than slots can be numbered.
        tables[2].reachable_rows = 1 << 33;
        assert_eq!(give_up_maps(&mut tables, u64::MAX), ["c"]);
    }

    #[test]
    fn a_budget_is_used_up_but_never_exceeded_and_shared_evenly() {
        let mut tables = [1_000, 100_000, 3_000_000].map(|rows| settings(CacheKind::Dynamic, rows, 0.3));
        tables[1].reach = Reach::All;
        tables[2].kind = CacheKind::Uvm;
        tables[0].row_bytes = 4096;
        let taken = |share: f64| -> u64 {
            let plans = tables.iter().map(|table| TableSettings { cache_share: share, ..table.clone() });
            plans.map(|settings| Plan::new(&settings).unwrap().gpu_bytes()).sum()
        };
        let (least, most) = (taken(0.0), taken(1.0));
        for num_bytes in [least, least + 1, 2 * least, most / 3, most / 2, most - 1, most, 2 * most, u64::MAX]
        {
            let share = share_for_bytes(&tables, num_bytes, "m").unwrap();
            assert!((0.0..=1.0).contains(&share) && taken(share) <= num_bytes, "{share} for {num_bytes}");
            // What is left would not give each table another set; but a whole table needs room to spare.
            let unused = num_bytes - taken(share);
            assert!(share > 0.999 || unused < 3 * (16 * 4096 + (8 << 20)), "{unused} of {num_bytes} unused");
        }
        let error = share_for_bytes(&tables, least - 1, "m").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&least.to_string()), "{error}");
        assert_eq!(share_for_bytes(&[], 0, "m").unwrap(), 1.0);
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
