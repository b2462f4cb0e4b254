//! One version of a table: its extents, and what is done to them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hps_core::batch::no_such_position;
use hps_core::key::mix;
use hps_core::tier::Visitor;
use hps_core::{Batch, Error, ErrorKind, Key, Result, Rows, RowsMut};
use parking_lot::RwLock;

use crate::extent::{Changed, Extent, Field, Found, Place, Sizes, WAYS};
use crate::policy::Clock;
use crate::segment::Segment;
use crate::settings::Limit;

/// Keys that take a step together: while one waits for memory, others are asked for.
const GROUP: usize = 16;
/// The smallest extent.
const MIN_ROWS: u64 = 1024;
/// Each is half of all before, or a 256th where only a few keys have found no place.
const MAX_EXTENTS: usize = 200;
/// Rows that a victim is chosen among, and the most buckets that are looked into for them.
const SAMPLE: usize = 16;
const MAX_SAMPLED_BUCKETS: usize = 64;
/// A table that is full has rows in so many samples, or has none.
const MAX_SAMPLES: usize = 1000;

/// The name of a table's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stem(pub(crate) u128);

impl Stem {
    pub(crate) fn served(self) -> String {
        format!("{:032x}.served", self.0)
    }

    pub(crate) fn info(self, version: u64) -> String {
        format!("{:032x}.{version}.info", self.0)
    }

    pub(crate) fn extent(self, version: u64, number: usize) -> String {
        format!("{:032x}.{version}.{number}", self.0)
    }

    /// True for a file of any version of the table.
    pub(crate) fn is_a_version(self, name: &str) -> bool {
        self.version_of(name).is_some()
    }

    /// True for a file of that version of the table.
    pub(crate) fn is_version(self, name: &str, version: u64) -> bool {
        self.version_of(name) == Some(version)
    }

    fn version_of(self, name: &str) -> Option<u64> {
        let rest = name.strip_prefix(&format!("{:032x}.", self.0))?;
        rest.split_once('.')?.0.parse().ok()
    }
}

/// A version that this process has mapped.
#[derive(Debug)]
pub(crate) struct Version {
    segment: Arc<Segment>,
    stem: Stem,
    /// Storage name, for messages.
    name: String,
    pub(crate) number: u64,
    row_bytes: usize,
    limit: Option<Limit>,
    /// The first never goes; others are added by any process.
    first: Arc<Extent>,
    extents: RwLock<Vec<Arc<Extent>>>,
    /// Of samples; of this process alone.
    random: AtomicU64,
}

impl Version {
    /// Makes an empty version with room for that many rows.
    pub(crate) fn make(
        segment: &Arc<Segment>,
        (stem, name, number): (Stem, &str, u64),
        row_bytes: usize,
        num_rows: u64,
        limit: Option<Limit>,
    ) -> Result<Self> {
        let num_rows = limit.map_or(num_rows, |limit| num_rows.min(limit.rows)).max(MIN_ROWS);
        let sizes = Sizes::of(num_rows, row_bytes)?;
        let file = segment.make_file(&stem.extent(number, 0), sizes.num_bytes(), name)?;
        let first = Extent::make(&file, sizes)?;
        first.field(Field::Extents).store(1, Ordering::Release);
        Ok(Self::on(segment, (stem, name, number), row_bytes, limit, first))
    }

    /// Maps a version that was made.
    pub(crate) fn open(
        segment: &Arc<Segment>,
        (stem, name, number): (Stem, &str, u64),
        row_bytes: usize,
        limit: Option<Limit>,
    ) -> Result<Option<Self>> {
        let file = match segment.open_file(&stem.extent(number, 0)) {
            Ok(file) => file,
            // It was replaced just now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(crate::segment::cannot("open", segment.directory(), error)),
        };
        let first = Extent::open(&file, row_bytes).map_err(|error| error.at("table", name))?;
        Ok(Some(Self::on(segment, (stem, name, number), row_bytes, limit, first)))
    }

    fn on(
        segment: &Arc<Segment>,
        (stem, name, number): (Stem, &str, u64),
        row_bytes: usize,
        limit: Option<Limit>,
        first: Extent,
    ) -> Self {
        let first = Arc::new(first);
        Self {
            segment: Arc::clone(segment),
            stem,
            name: name.to_owned(),
            number,
            row_bytes,
            limit,
            extents: RwLock::new(vec![Arc::clone(&first)]),
            first,
            random: AtomicU64::new(std::process::id().into()),
        }
    }

    pub(crate) fn num_rows(&self) -> u64 {
        self.first.get(Field::Rows)
    }

    pub(crate) fn num_evicted(&self) -> u64 {
        self.first.get(Field::Evicted)
    }

    pub(crate) fn num_bytes(&self) -> Result<u64> {
        Ok(self.extents()?.iter().map(|extent| extent.num_bytes() as u64).sum())
    }

    /// All extents there are by now. `Closed` if the version was replaced, and their files are gone.
    fn extents(&self) -> Result<Vec<Arc<Extent>>> {
        let wanted = self.first.field(Field::Extents).load(Ordering::Acquire) as usize;
        let known = self.extents.read();
        if known.len() >= wanted {
            return Ok(known.clone());
        }
        drop(known);
        let mut known = self.extents.write();
        while known.len() < wanted.min(MAX_EXTENTS) {
            let name = self.stem.extent(self.number, known.len());
            let file = match self.segment.open_file(&name) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Error::new(ErrorKind::Closed, "the table was replaced").caused_by(error));
                }
                Err(error) => return Err(crate::segment::cannot("open", self.segment.directory(), error)),
            };
            known.push(Arc::new(Extent::open(&file, self.row_bytes)?));
        }
        Ok(known.clone())
    }

    fn clock(&self, num_accesses: u64) -> Option<Clock> {
        let limit = self.limit?;
        let accesses = self.first.field(Field::Accesses).fetch_add(num_accesses, Ordering::Relaxed);
        Some(Clock::new(limit, accesses))
    }

    // ---- reading ----

    /// See [`hps_core::tier::Tier::lookup`].
    pub(crate) fn lookup(
        &self,
        batch: Batch<'_>,
        rows: &mut RowsMut<'_>,
        misses: &mut Vec<u32>,
    ) -> Result<()> {
        let extents = self.extents()?;
        let clock = self.clock(batch.len() as u64);
        let mut keys = [0; GROUP];
        let mut positions = [0; GROUP];
        let mut found: [Option<(&Extent, Found)>; GROUP];
        for start in (0..batch.len()).step_by(GROUP) {
            let num = batch.copy_from(start, &mut keys, &mut positions).ok_or_else(no_such_position)?;
            let keys = keys.get(..num).unwrap_or_default();
            found = [None; GROUP];
            if let [first, ..] = extents.as_slice() {
                keys.iter().for_each(|&key| first.approach(first.place(key)));
                for (found, &key) in found.iter_mut().zip(keys) {
                    let place = first.place(key);
                    match first.find_first(key, place) {
                        Some(at) => {
                            first.approach_row(at);
                            *found = Some((first.as_ref(), at));
                        }
                        None => first.approach_second(place),
                    }
                }
            }
            for (found, &key) in found.iter_mut().zip(keys).filter(|(found, _)| found.is_none()) {
                *found = find(&extents, key);
                if let Some((extent, found)) = found {
                    extent.approach_row(*found);
                }
            }
            for ((&key, &position), found) in keys.iter().zip(&positions).zip(&found) {
                let Some((extent, found)) = *found else {
                    misses.push(position);
                    continue;
                };
                let row = rows.get_mut(position as usize).ok_or_else(no_such_position)?;
                match copy(&extents, key, extent, found, row) {
                    Some((extent, found)) => {
                        if let Some(clock) = clock {
                            extent.remember(found, clock.after_use(found.word.mark()));
                        }
                    }
                    None => misses.push(position),
                }
            }
        }
        Ok(())
    }

    /// Shows every row, in pieces of at least so many rows.
    pub(crate) fn scan(&self, num_rows: usize, visit: &mut Visitor<'_>) -> Result<()> {
        let (mut keys, mut bytes) = (Vec::new(), Vec::new());
        let mut row = vec![0; self.row_bytes];
        let mut show = |keys: &[Key], bytes: &[u8]| match Rows::new(bytes, self.row_bytes) {
            Some(rows) if !rows.is_empty() => visit(keys, rows),
            _ => Ok(ControlFlow::Continue(())),
        };
        let extents = self.extents()?;
        for extent in &extents {
            for bucket in 0..extent.num_buckets() {
                for (key, found) in extent.bucket_entries(bucket) {
                    // One that changes is looked for once more, wherever it is then; one that is gone was erased.
                    if copy(&extents, key, extent, found, &mut row).is_some() {
                        keys.push(key);
                        bytes.extend_from_slice(&row);
                    }
                }
                if keys.len() >= num_rows {
                    if show(&keys, &bytes)?.is_break() {
                        return Ok(());
                    }
                    keys.clear();
                    bytes.clear();
                }
            }
        }
        show(&keys, &bytes).map(drop)
    }

    /// Begins to write, by whoever holds the table's lock: mends what a writer has left that was killed.
    pub(crate) fn begin_write(&self) -> Result<Writing<'_>> {
        let extents = self.extents()?;
        if self.first.field(Field::Dirty).swap(1, Ordering::AcqRel) != 0 {
            let mut rows = 0;
            for extent in &extents {
                rows += extent.recount()?;
            }
            self.first.set(Field::Rows, rows);
        }
        Ok(Writing { version: self, extents, is_load: false })
    }

    /// A number below `end`.
    fn below(&self, end: usize) -> usize {
        let number = self.random.fetch_add(1, Ordering::Relaxed);
        ((u128::from(mix(number)) * end as u128) >> 64) as usize
    }
}

/// Writes to a version; all is as it should be when it is dropped.
pub(crate) struct Writing<'v> {
    version: &'v Version,
    extents: Vec<Arc<Extent>>,
    is_load: bool,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // After a panic nobody knows.
        if !std::thread::panicking() {
            self.version.first.field(Field::Dirty).store(0, Ordering::Release);
        }
    }
}

impl Writing<'_> {
    /// Says that no more rows come than the version was made for.
    pub(crate) fn of_a_load(mut self) -> Self {
        self.is_load = true;
        self
    }

    fn first(&self) -> &Extent {
        &self.version.first
    }

    /// Adds a row, or overwrites it if `overwrites`. True if it is new.
    pub(crate) fn insert(&mut self, key: Key, row: &[u8], overwrites: bool) -> Result<bool> {
        if find(&self.extents, key).is_some() {
            if overwrites {
                self.update(key, row)?;
            }
            return Ok(false);
        }
        if self.version.limit.is_some_and(|limit| self.version.num_rows() >= limit.rows) {
            self.evict_one()?;
        }
        let mark = self.version.clock(1).map_or(0, Clock::of_new_row);
        self.add(key, row, mark)?;
        self.first().set(Field::Rows, self.version.num_rows() + 1);
        Ok(true)
    }

    /// Puts a key that is nowhere into the first extent that has room.
    fn add(&mut self, key: Key, row: &[u8], mark: u64) -> Result<()> {
        loop {
            let vacancy =
                |extent: &Arc<Extent>| Some((Arc::clone(extent), extent.vacancy(extent.place(key))?));
            if let Some((extent, entry)) = self.extents.iter().find_map(vacancy) {
                return extent.add(entry, key, row, mark);
            }
            self.grow()?;
        }
    }

    fn grow(&mut self) -> Result<()> {
        let Version { segment, stem, name, number, row_bytes, .. } = self.version;
        if self.extents.len() >= MAX_EXTENTS {
            return Err(Error::new(
                ErrorKind::OutOfMemory,
                "the table has grown by too many pieces; load it anew, which makes it one",
            )
            .at("table", name));
        }
        // Where a few keys find no place although there is room, little is enough: at the end of a load, too. Otherwise a table that is nearly
        // full goes on to grow, and little would be full at once, over and over.
        let room = self.extents.iter().map(|extent| extent.num_rows_at_most()).sum::<usize>() as u64;
        let has_room = self.version.limit.is_some_and(|limit| room >= limit.rows);
        let little = (room / 256).max(MIN_ROWS);
        let had_little = self.extents.len() > 1
            && self.extents.last().is_some_and(|last| last.num_rows_at_most() as u64 <= little);
        let is_full = match self.is_load {
            true => had_little || self.version.num_rows() >= room,
            false => self.version.num_rows().saturating_mul(10) > room.saturating_mul(9),
        };
        let num_rows = if is_full && !has_room { (room / 2).max(MIN_ROWS) } else { little };
        let sizes = Sizes::of(num_rows, *row_bytes)?;
        // One that was made by a process that was killed before it counted is in the way.
        let file_name = stem.extent(*number, self.extents.len());
        segment.remove_files(|found| found == file_name)?;
        let file = segment.make_file(&file_name, sizes.num_bytes(), name)?;
        self.extents.push(Arc::new(Extent::make(&file, sizes)?));
        self.first().field(Field::Extents).store(self.extents.len() as u64, Ordering::Release);
        Ok(())
    }

    /// Overwrites the row of a key that is present.
    pub(crate) fn update(&mut self, key: Key, row: &[u8]) -> Result<()> {
        let Some((extent, found)) = find(&self.extents, key) else { return Ok(()) };
        let mark = found.word.mark();
        let clock = self.version.clock(1);
        extent.replace(found, row, clock.map_or(mark, |clock| clock.after_write(mark)))
    }

    /// Removes a key if it is present.
    pub(crate) fn erase(&mut self, key: Key) -> Result<()> {
        let Some((extent, found)) = find(&self.extents, key) else { return Ok(()) };
        extent.remove(found)?;
        self.first().set(Field::Rows, self.version.num_rows().saturating_sub(1));
        Ok(())
    }

    /// Removes the row of the lowest score of a sample.
    fn evict_one(&mut self) -> Result<()> {
        let Some(clock) = self.version.clock(0) else { return Ok(()) };
        for _ in 0..MAX_SAMPLES {
            let mut lowest: Option<(u64, &Extent, Found)> = None;
            let mut num_seen = 0;
            for _ in 0..MAX_SAMPLED_BUCKETS {
                let Some((extent, bucket)) = self.any_bucket() else { break };
                // Among equals any: from a way on that is drawn.
                let turn = self.version.below(WAYS);
                let entries = || extent.bucket_entries(bucket).map(|(_, found)| found);
                for found in entries().skip(turn).chain(entries().take(turn)) {
                    let score = clock.score(found.word.mark());
                    num_seen += 1;
                    if lowest.is_none_or(|(lowest, ..)| score < lowest) {
                        lowest = Some((score, extent, found));
                    }
                }
                if num_seen >= SAMPLE {
                    break;
                }
            }
            if let Some((_, extent, found)) = lowest {
                extent.remove(found)?;
                self.first().set(Field::Rows, self.version.num_rows().saturating_sub(1));
                self.first().set(Field::Evicted, self.version.num_evicted() + 1);
                return Ok(());
            }
        }
        Ok(())
    }

    fn any_bucket(&self) -> Option<(&Extent, usize)> {
        let num_buckets: usize = self.extents.iter().map(|extent| extent.num_buckets()).sum();
        let mut bucket = self.version.below(num_buckets);
        for extent in &self.extents {
            if bucket < extent.num_buckets() {
                return Some((extent, bucket));
            }
            bucket -= extent.num_buckets();
        }
        None
    }
}

#[inline]
fn find(extents: &[Arc<Extent>], key: Key) -> Option<(&Extent, Found)> {
    extents.iter().find_map(|extent| {
        let place: Place = extent.place(key);
        Some((extent.as_ref(), extent.find(key, place)?))
    })
}

/// Copies a key's row; looks for it again as often as it changes meanwhile. None if it is gone.
#[inline]
fn copy<'e>(
    extents: &'e [Arc<Extent>],
    key: Key,
    extent: &'e Extent,
    found: Found,
    row: &mut [u8],
) -> Option<(&'e Extent, Found)> {
    let mut at = (extent, found);
    // Each turn is a write that came to its end.
    while let Err(Changed) = at.0.copy(at.1, row) {
        at = find(extents, key)?;
    }
    Some(at)
}
