//! Comparing what is held of a table with the model files that it was loaded from.

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::batch::Batch;
pub use crate::checksums::Checksums;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId, mix};
use crate::load::Source;
use crate::observer::{Observer, Progress};
use crate::row::{Rows, RowsMut};
use crate::tier::{TableSpec, TruthTier};

/// Keys that are remembered at a time because some row of theirs in the files is not the one that is held. Rows of repeated keys are
/// among them, as the last one counts. If there are more, files are read several times, for a part of the keys each time.
const MAX_REMEMBERED: usize = 14 << 20;
/// Of so many keys in a row, one is looked up in any case: that lookups find what a scan reads.
const SAMPLED: usize = 256;
/// Keys that are named.
const MAX_NAMED: usize = 10;

/// What a comparison found. Nothing but `keys` is above 0 for a table that was loaded and not written since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Keys in the files, repeated ones included.
    pub keys: u64,
    /// Distinct keys of the files that are not held.
    pub missing: u64,
    /// Distinct keys that have another row than the last one of the files.
    pub differing: u64,
    /// Some of both.
    pub examples: Vec<Key>,
}

impl Difference {
    /// True if every key of the files has its row.
    pub fn is_none(&self) -> bool {
        self.missing == 0 && self.differing == 0
    }
}

/// How the last row of a key compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Same,
    Differs,
    Missing,
}

/// Reads every row of the table and returns their checksums. What the tier notices on the way, damaged blocks for one, is an
/// error.
///
/// # Errors
/// What the tier reports.
pub fn read_all(
    truth: &dyn TruthTier,
    table: TableId,
    spec: &TableSpec,
    observer: &dyn Observer,
) -> Result<Checksums> {
    let total = truth.about_rows(table)?;
    let mut read = Checksums::new(total);
    let show = |done, total| observer.progress(Progress { what: "reading", table: &spec.name, done, total });
    truth.scan(table, &mut |keys, rows| {
        read.add(keys, rows);
        // The number that was expected may be an estimate; the end is told below.
        show(read.rows(), total.max(read.rows() + 1));
        Ok(ControlFlow::Continue(()))
    })?;
    show(read.rows(), read.rows());
    Ok(read)
}

/// Compares the rows of the model files with those that are held and were read. Several sources share one key space (table fusion).
///
/// The files are read once if they have just these rows, and one key in [`SAMPLED`] is looked up. Only if something differs, for repeated
/// keys or updates perhaps, they are read again, and keys are looked up whose rows may be what differs; if those that differ are more than
/// 14 million, several times.
///
/// # Errors
/// What the tier and the files report.
pub fn compare_with_files(
    truth: &dyn TruthTier,
    table: TableId,
    spec: &TableSpec,
    held: &Checksums,
    sources: &[Source],
    observer: &dyn Observer,
) -> Result<Difference> {
    let comparison = Comparison { truth, table, spec, sources, observer, max_remembered: MAX_REMEMBERED };
    let (read, unlike) = comparison.read_files(held)?;
    if read == *held && unlike.is_empty() {
        return Ok(Difference { keys: read.rows(), ..Difference::default() });
    }
    // A lookup that finds something else than a scan says nothing of where others do.
    let suspect_all = unlike.iter().any(|&key| !held.differ_around(&read, key));
    comparison.find_difference(&|key| suspect_all || held.differ_around(&read, key))
}

/// What is compared with what.
struct Comparison<'a> {
    truth: &'a dyn TruthTier,
    table: TableId,
    spec: &'a TableSpec,
    sources: &'a [Source],
    observer: &'a dyn Observer,
    max_remembered: usize,
}

/// Of all keys those whose mixed bits leave `remainder` when divided by `parts`, which is a power of two.
#[derive(Clone, Copy)]
struct Part {
    remainder: u64,
    parts: u64,
}

impl Part {
    fn has(self, key: Key) -> bool {
        // Other bits than those that groups of checksums are made by.
        (mix(key) >> 32) % self.parts == self.remainder
    }

    fn halves(self) -> [Self; 2] {
        let parts = self.parts * 2;
        [self.remainder, self.remainder + self.parts].map(|remainder| Self { remainder, parts })
    }
}

impl Comparison<'_> {
    fn num_keys(&self) -> u64 {
        self.sources.iter().map(|source| source.files.num_keys()).sum()
    }

    fn progress(&self, what: &str, done: u64, total: u64) {
        self.observer.progress(Progress { what, table: &self.spec.name, done, total });
    }

    /// Looks keys up, and tells how the row of each compares with the one that is expected.
    fn look_up<'r>(
        &self,
        keys: &[Key],
        expected: impl Iterator<Item = &'r [u8]>,
        mut tell: impl FnMut(Key, Last),
    ) -> Result<()> {
        let (mut held, mut misses) = (vec![0; keys.len() * self.spec.row_bytes], Vec::new());
        let mut target = RowsMut::from_bytes(&mut held, self.spec.row_bytes).ok_or_else(not_whole)?;
        self.truth.lookup(self.table, Batch::all(keys), &mut target, &mut misses)?;
        let held = Rows::new(&held, self.spec.row_bytes).ok_or_else(not_whole)?;
        let mut misses = misses.into_iter().peekable();
        for (i, (&key, (expected, held))) in keys.iter().zip(expected.zip(held.iter())).enumerate() {
            let last = match misses.next_if_eq(&(i as u32)) {
                Some(_) => Last::Missing,
                None if expected == held => Last::Same,
                None => Last::Differs,
            };
            tell(key, last);
        }
        Ok(())
    }

    /// Checksums of the files, and keys of the sample of which a lookup does not find this row.
    fn read_files(&self, held: &Checksums) -> Result<(Checksums, Vec<Key>)> {
        let total = self.num_keys();
        let (mut read, mut unlike) = (held.like(), Vec::new());
        for source in self.sources {
            source.files.read(&mut |keys, rows| {
                read.add(keys, rows);
                let sample: Vec<Key> = keys.iter().copied().step_by(SAMPLED).collect();
                self.look_up(&sample, rows.iter().step_by(SAMPLED), |key, last| {
                    if last != Last::Same {
                        unlike.push(key);
                    }
                })?;
                self.progress("reading model files", read.rows(), total);
                Ok(())
            })?;
        }
        Ok((read, unlike))
    }

    /// Looks every key up that is suspect.
    fn find_difference(&self, is_suspect: &dyn Fn(Key) -> bool) -> Result<Difference> {
        let mut found = Difference { keys: self.num_keys(), ..Difference::default() };
        let mut parts = vec![Part { remainder: 0, parts: 1 }];
        while let Some(part) = parts.pop() {
            match self.find_unlike(&|key| is_suspect(key) && part.has(key))? {
                Some(unlike) => add(&mut found, unlike),
                None => parts.extend(part.halves()),
            }
        }
        Ok(found)
    }

    /// How the last row compared of keys that are suspect and had another one, the last one or one before. None if that are too many.
    fn find_unlike(&self, is_suspect: &dyn Fn(Key) -> bool) -> Result<Option<HashMap<Key, Last>>> {
        let total = self.num_keys();
        let mut remembered: HashMap<Key, Last> = HashMap::new();
        let mut done = 0;
        for source in self.sources {
            let read = source.files.read(&mut |keys, rows| {
                let (suspects, expected): (Vec<Key>, Vec<&[u8]>) =
                    keys.iter().copied().zip(rows.iter()).filter(|&(key, _)| is_suspect(key)).unzip();
                self.look_up(&suspects, expected.into_iter(), |key, last| {
                    if last != Last::Same || remembered.contains_key(&key) {
                        remembered.insert(key, last);
                    }
                })?;
                done += keys.len() as u64;
                self.progress("comparing", done, total);
                // An error, as nothing else ends the reading.
                if remembered.len() > self.max_remembered { Err(too_many()) } else { Ok(()) }
            });
            if remembered.len() > self.max_remembered {
                return Ok(None);
            }
            read?;
        }
        Ok(Some(remembered))
    }
}

fn add(found: &mut Difference, unlike: HashMap<Key, Last>) {
    for (key, last) in unlike {
        match last {
            Last::Same => continue,
            Last::Missing => found.missing += 1,
            Last::Differs => found.differing += 1,
        }
        found.examples.push(key);
    }
    found.examples.sort_unstable();
    found.examples.truncate(MAX_NAMED);
}

fn too_many() -> Error {
    Error::new(ErrorKind::Internal, "more keys differ than are remembered at a time")
}

fn not_whole() -> Error {
    Error::new(ErrorKind::Internal, "rows of a comparison are not whole")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::key::KeyWidth;
    use crate::model_files::ModelFiles;
    use crate::observer::Silent;
    use crate::testing::MapTier;
    use crate::tier::{Tier, TierKind};

    const TABLE: TableId = TableId(0);

    fn source(directory: &Path, rows: &[(i64, u32)]) -> Source {
        let keys: Vec<u8> = rows.iter().flat_map(|(key, _)| key.to_le_bytes()).collect();
        let vectors: Vec<u8> = rows.iter().flat_map(|(_, row)| row.to_le_bytes()).collect();
        std::fs::write(directory.join("key"), keys).unwrap();
        std::fs::write(directory.join("emb_vector"), vectors).unwrap();
        let files = ModelFiles::open(directory, 4, KeyWidth::Bits64).unwrap();
        Source { table: "t".into(), files }
    }

    fn insert(tier: &MapTier, key: Key, row: u32) {
        tier.insert(TABLE, &[key], Rows::new(&row.to_le_bytes(), 4).unwrap()).unwrap();
    }

    #[test]
    fn the_last_row_of_a_key_counts_and_every_difference_is_found() {
        let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes: 4, key_width: KeyWidth::Bits64 };
        let tier = MapTier::new(TierKind::Ssd, std::slice::from_ref(&spec));
        let directory = tempfile::tempdir().unwrap();
        // 1 has two rows, the last of which counts; so has 5, but the first one is held.
        let files = [(1, 10), (2, 20), (1, 11), (3, 30), (5, 50), (4, 40), (5, 51), (-1, 99)];
        let sources = [source(directory.path(), &files)];
        for (key, row) in [(1, 11), (2, 20), (3, 30), (4, 40), (5, 51), (u64::MAX, 99), (77, 7)] {
            insert(&tier, key, row);
        }
        assert_eq!(read_all(&tier, TABLE, &spec, &Silent).unwrap().rows(), 7);
        let compare = || {
            let held = read_all(&tier, TABLE, &spec, &Silent).unwrap();
            compare_with_files(&tier, TABLE, &spec, &held, &sources, &Silent).unwrap()
        };
        let fine = compare();
        assert!(fine.is_none() && fine.keys == 8, "{fine:?}");
        insert(&tier, 5, 50);
        insert(&tier, 2, 21);
        tier.erase(TABLE, &[u64::MAX, 4]).unwrap();
        let found = compare();
        assert_eq!((found.missing, found.differing), (2, 2));
        assert_eq!(found.examples, [2, 4, 5, u64::MAX]);
    }

    #[test]
    fn all_rows_are_looked_up_only_where_something_differs_and_every_difference_is_seen() {
        let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes: 4, key_width: KeyWidth::Bits64 };
        let directory = tempfile::tempdir().unwrap();
        let sources = [source(directory.path(), &[(1, 10), (2, 20), (3, 30)])];
        // The same, another row, rows of two keys exchanged, a row that another key has, a bit, another key.
        let cases = [
            ([(1, 10), (2, 20), (3, 30)], 0),
            ([(1, 10), (2, 21), (3, 30)], 1),
            ([(1, 20), (2, 10), (3, 30)], 2),
            ([(1, 10), (2, 10), (3, 30)], 1),
            ([(1, 10), (2, 20), (3, 30 ^ 1 << 31)], 1),
            ([(1, 10), (2, 20), (4, 30)], 1),
        ];
        for (rows, num_differing) in cases {
            let tier = MapTier::new(TierKind::Ssd, std::slice::from_ref(&spec));
            rows.iter().for_each(|&(key, row)| insert(&tier, key, row));
            let num_lookups = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&num_lookups);
            tier.set_hook(move |operation| {
                counter.fetch_add(u64::from(operation == "lookup"), Ordering::Relaxed);
                Ok(())
            });
            let held = read_all(&tier, TABLE, &spec, &Silent).unwrap();
            let found = compare_with_files(&tier, TABLE, &spec, &held, &sources, &Silent).unwrap();
            assert_eq!(found.keys, 3);
            assert_eq!(found.missing + found.differing, num_differing, "{rows:?}");
            let is_looked_up = u64::from(num_differing > 0);
            assert_eq!(num_lookups.load(Ordering::Relaxed), 1 + is_looked_up, "{rows:?}");
        }
    }

    #[test]
    fn few_keys_are_looked_up_where_few_rows_differ() {
        const ROWS: i64 = 100_000;
        let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes: 4, key_width: KeyWidth::Bits64 };
        let directory = tempfile::tempdir().unwrap();
        // The last key comes twice.
        let rows: Vec<(i64, u32)> = (0..ROWS).chain([ROWS - 1]).map(|key| (key, key as u32)).collect();
        let sources = [source(directory.path(), &rows)];
        let tier = MapTier::new(TierKind::Ssd, std::slice::from_ref(&spec));
        rows.iter().for_each(|&(key, row)| insert(&tier, key as Key, row));
        // One that is in the sample, if that is each 256th, and one that is not; one that the files lack.
        insert(&tier, 256, 1);
        insert(&tier, 1_000, 2);
        insert(&tier, ROWS as Key + 5, 3);
        tier.erase(TABLE, &[77]).unwrap();

        let held = read_all(&tier, TABLE, &spec, &Silent).unwrap();
        let before = tier.num_looked_up();
        let found = compare_with_files(&tier, TABLE, &spec, &held, &sources, &Silent).unwrap();

        assert_eq!((found.missing, found.differing, found.keys), (1, 2, 100_001));
        assert_eq!(found.examples, [77, 256, 1_000]);
        let (num_looked_up, sampled) = (tier.num_looked_up() - before, ROWS as u64 / SAMPLED as u64);
        assert!((sampled..2 * sampled + 100).contains(&num_looked_up), "{num_looked_up} of {ROWS}");
    }

    #[test]
    fn more_differences_than_are_remembered_are_found_in_parts() {
        let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes: 4, key_width: KeyWidth::Bits64 };
        let directory = tempfile::tempdir().unwrap();
        let rows: Vec<(i64, u32)> = (0..1_000).map(|key| (key, 1)).collect();
        let sources = [source(directory.path(), &rows)];
        let tier = MapTier::new(TierKind::Ssd, std::slice::from_ref(&spec));
        // Every third key is missing, every other third differs.
        (0..1_000).filter(|key| key % 3 != 0).for_each(|key| insert(&tier, key, key as u32 % 3));
        for max_remembered in [1, 10, 1_000] {
            let comparison = Comparison {
                truth: &tier,
                table: TABLE,
                spec: &spec,
                sources: &sources,
                observer: &Silent,
                max_remembered,
            };
            let found = comparison.find_difference(&|_| true).unwrap();
            assert_eq!((found.missing, found.differing, found.keys), (334, 333, 1_000));
            assert_eq!(found.examples, [0, 2, 3, 5, 6, 8, 9, 11, 12, 14]);
        }
    }

    #[test]
    fn rows_that_a_scan_reads_and_a_lookup_does_not_find_are_seen() {
        let spec = TableSpec { name: "hps_et.m.t".into(), row_bytes: 4, key_width: KeyWidth::Bits64 };
        let directory = tempfile::tempdir().unwrap();
        let sources = [source(directory.path(), &[(1, 10), (2, 20)])];
        for (lost, differing) in [(Some(1), 0), (None, 1)] {
            let tier = MapTier::new(TierKind::Ssd, std::slice::from_ref(&spec));
            [(1, 10), (2, 20)].iter().for_each(|&(key, row)| insert(&tier, key, row));
            let held = read_all(&tier, TABLE, &spec, &Silent).unwrap();
            match lost {
                Some(key) => tier.erase(TABLE, &[key]).unwrap(),
                None => insert(&tier, 1, 11),
            }
            let found = compare_with_files(&tier, TABLE, &spec, &held, &sources, &Silent).unwrap();
            assert_eq!((found.missing, found.differing), (1 - differing, differing));
            assert_eq!(found.examples, [1]);
        }
    }
}
