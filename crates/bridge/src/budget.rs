//! `memory_bytes`: what is held in memory, divided.
//!
//! ```text
//! memory_bytes = indexes and filters of RocksDB   what those of the rows take, at most a quarter  \
//!              + its memtables                    an eighth, at most 256 MB                       | if there is a database
//!              + buffers, and what the allocator keeps: 128 MB, at most seven sixteenths      /
//!              + host memory                              the rest: each table gets the same share of its rows
//! ```

use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind, Result};
use hps_ssd::{SsdSettings, index_bytes};

/// What a row takes in host memory beyond itself, at most: crates/host/tests/memory.rs.
pub const BYTES_PER_ROW: u64 = 14;
/// What each partition of a table takes however few its rows are: half a slab, and index and locks in whole pages.
const BYTES_PER_PARTITION: u64 = 32 << 10;
/// A table with fewer rows gets room as if it had so many.
const FEW_ROWS: u64 = 10_000;
/// How much more than an even share a partition may get of a table's keys by chance: 6 standard deviations.
const DEVIATIONS: f64 = 6.0;

/// The block cache has room for so much more than indexes and filters, for blocks that several keys of a lookup share.
const MORE_BLOCK_BYTES: u64 = 4 << 20;

/// Buffers and filters of compactions, and what RocksDB's threads leave with the C library's allocator, which keeps memory by thread. Measured
/// (tests/rust/tests/memory.rs): 69 MB with two processors, and up to 93 within an hour or two beside other work.
fn other_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / 16 * 7).min(128 << 20)
}

/// RocksDB's part once the rows of the tables are known. Blocks of rows are not worth more of it: a row in a block takes the room of the
/// others, too, which nobody asked for.
pub fn database_of(
    settings: SsdSettings,
    memory_bytes: Option<u64>,
    tables: &[(&TableSpec, u64)],
) -> SsdSettings {
    if memory_bytes.is_none() {
        return settings;
    }
    let of_table = |&(spec, rows): &(&TableSpec, u64)| index_bytes(spec.row_bytes, rows);
    let indexes = tables.iter().map(of_table).fold(MORE_BLOCK_BYTES, u64::saturating_add);
    // An eighth more: no cache is filled to the last byte.
    let wanted = usize::try_from(indexes.saturating_add(indexes / 8)).unwrap_or(usize::MAX);
    SsdSettings { block_cache_bytes: settings.block_cache_bytes.min(wanted), ..settings }
}

/// The most that RocksDB gets, until [`database_of`] says more: nothing more than it takes without a budget.
pub fn database(settings: SsdSettings, memory_bytes: Option<u64>) -> SsdSettings {
    let Some(memory_bytes) = memory_bytes else { return settings };
    let part = |divisor: u64, most: usize| usize::try_from(memory_bytes / divisor).unwrap_or(most).min(most);
    SsdSettings {
        block_cache_bytes: part(4, settings.block_cache_bytes),
        memtable_bytes: part(8, settings.memtable_bytes),
        ..settings
    }
}

/// Bytes of host memory that a table takes with all of its rows.
pub fn whole_table(spec: &TableSpec, num_rows: u64, num_partitions: usize) -> u64 {
    let per_row = spec.row_bytes as u64 + BYTES_PER_ROW;
    num_rows.saturating_mul(per_row).saturating_add(BYTES_PER_PARTITION.saturating_mul(num_partitions as u64))
}

/// The most rows that each table may hold. None without a budget, or where there is no database and all fits.
///
/// `database`: what it is opened with. `tables`: with the rows that they have now.
///
/// # Errors
/// `Config`, with the sum, if there is no database and the tables do not fit, or nothing would.
pub fn max_rows(
    memory_bytes: Option<u64>,
    database: Option<&SsdSettings>,
    num_partitions: usize,
    tables: &[(&TableSpec, u64)],
) -> Result<Option<Vec<u64>>> {
    let Some(memory_bytes) = memory_bytes else { return Ok(None) };
    let need = |spec: &TableSpec, rows| whole_table(spec, rows, num_partitions);
    let whole = tables.iter().fold(0u64, |sum, &(spec, rows)| sum.saturating_add(need(spec, rows)));
    let Some(database) = database else {
        if whole <= memory_bytes {
            return Ok(None);
        }
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "volatile_db.memory_bytes is {memory_bytes}, but the tables take {whole} bytes in host memory, and there is no \
                 persistent_db to hold what does not fit: raise it, or enable persistent_db"
            ),
        ));
    };
    let of_database = (database.block_cache_bytes as u64)
        .saturating_add(database.memtable_bytes as u64)
        .saturating_add(other_bytes(memory_bytes));
    let smallest = tables.iter().fold(of_database, |sum, &(spec, _)| {
        // A row for each partition.
        sum.saturating_add(need(spec, num_partitions as u64))
    });
    if smallest > memory_bytes {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "volatile_db.memory_bytes is {memory_bytes}, but RocksDB takes {of_database} of them and {} tables take at least {} \
                 in host memory: raise it to {smallest} or more, or lower num_partitions",
                tables.len(),
                smallest - of_database
            ),
        ));
    }
    // What partitions take comes first. Of the rest each table gets the same share of its rows, more than all of them if there is room.
    let fixed: u64 = tables.iter().map(|&(spec, _)| need(spec, 0)).sum();
    let weighed: u64 = tables.iter().map(|&(spec, rows)| need(spec, weight(rows)) - need(spec, 0)).sum();
    let share = memory_bytes.saturating_sub(of_database).saturating_sub(fixed) as f64 / weighed.max(1) as f64;
    let rows =
        |&(_, rows): &(&TableSpec, u64)| ((weight(rows) as f64 * share) as u64).max(num_partitions as u64);
    Ok(Some(tables.iter().map(rows).collect()))
}

/// A table that is empty now may not stay so.
fn weight(num_rows: u64) -> u64 {
    num_rows.max(FEW_ROWS)
}

/// True if so many rows find room in partitions for `max_rows` of them, however their keys spread.
pub fn holds_all(num_rows: u64, max_rows: u64, num_partitions: usize) -> bool {
    let even = num_rows as f64 / num_partitions.max(1) as f64;
    even + DEVIATIONS * even.sqrt() + 1.0 <= (max_rows / num_partitions.max(1) as u64) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use hps_core::KeyWidth;

    use super::*;

    fn spec(row_bytes: usize) -> TableSpec {
        TableSpec { name: "t".into(), row_bytes, key_width: KeyWidth::Bits64 }
    }

    #[test]
    fn without_a_budget_nothing_changes() {
        let settings = SsdSettings::new("x");
        assert_eq!(database(settings.clone(), None), settings);
        assert_eq!(max_rows(None, None, 16, &[(&spec(64), 10)]).unwrap(), None);
    }

    #[test]
    fn the_parts_are_the_whole() {
        let (small, large) = (spec(64), spec(512));
        let tables = [(&small, 1_000_000), (&large, 2_000_000)];
        for memory_bytes in [64 << 20, 300 << 20, 1 << 30, 20 << 30] {
            let settings = database(SsdSettings::new("x"), Some(memory_bytes));
            let rows = max_rows(Some(memory_bytes), Some(&settings), 16, &tables).unwrap().unwrap();
            let of_database =
                (settings.block_cache_bytes + settings.memtable_bytes) as u64 + other_bytes(memory_bytes);
            let of_rows: u64 =
                tables.iter().zip(&rows).map(|((spec, _), &rows)| whole_table(spec, rows, 16)).sum();
            let sum = of_database + of_rows;
            assert!(sum <= memory_bytes && sum as f64 > memory_bytes as f64 * 0.9, "{sum} of {memory_bytes}");
            // The same share of both.
            let share = |i: usize| rows[i] as f64 / tables[i].1 as f64;
            assert!((share(0) / share(1) - 1.0).abs() < 0.1, "{rows:?}");
            assert_eq!(holds_all(1_000_000, rows[0], 16), memory_bytes == 20 << 30);
        }
    }

    #[test]
    fn tables_that_are_empty_get_their_part_too() {
        let spec = spec(64);
        let settings = database(SsdSettings::new("x"), Some(64 << 20));
        let rows = |tables: &[(&TableSpec, u64)]| {
            max_rows(Some(64 << 20), Some(&settings), 4, tables).unwrap().unwrap()
        };
        let of_empty = rows(&[(&spec, 0)])[0];
        assert!(of_empty > 150_000, "{of_empty}");
        assert!(rows(&[(&spec, 0), (&spec, 100_000)])[0] > 10_000);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_sum() {
        let spec = spec(64);
        let tables = [(&spec, 1_000_000)];
        let text = max_rows(Some(1 << 20), None, 16, &tables).unwrap_err().to_string();
        assert!(text.contains("78524288") && text.contains("persistent_db"), "{text}");
        assert_eq!(max_rows(Some(100 << 20), None, 16, &tables).unwrap(), None);
        let settings = database(SsdSettings::new("x"), Some(1 << 20));
        let text = max_rows(Some(1 << 20), Some(&settings), 4096, &tables).unwrap_err().to_string();
        assert!(text.contains("num_partitions") && text.contains("1048576"), "{text}");
    }
}
