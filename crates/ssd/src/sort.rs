//! Rows in any order, to table files in RocksDB's: an external merge sort in bounded memory.
//!
//! ```text
//! put       rows gather in a piece of memory; a full one is sorted and written as a run, while the next one fills
//! finish    keys are cut into ranges of about one table file each; threads take one range after the other, merge what the runs
//!           and the last piece have of it, and write it as a table file
//! ```
//!
//! A table that fits into one piece is written once, a larger one twice (one of more than [`MAX_RUNS`] pieces three times), and none
//! needs to be compacted: table files do not overlap. Of a repeated key the last row stays: within a piece that of the last
//! position, among runs that of the latest.
//!
//! A load that was interrupted is gone through again from its beginning, but what it had done is not done again ([`Sorter::resume`]):
//! a piece with the same rows as before has its run already, and table files have names that tell what they were merged from.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hps_core::key::{Key, KeyWidth};
use hps_core::row::Rows;
use hps_core::tier::Written;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rocksdb::{Options, SstFileWriter};
use xxhash_rust::xxh3::Xxh3;

use crate::entry::order_of;
use crate::run::{Fingerprint, Run, RunReader, RunWriter, cannot_write, rows_per_block};

/// So many runs of one piece each become one: all are open while they are merged.
const MAX_RUNS: usize = 64;

/// Threads that write table files: each has the filter and the index of its file in memory, 10 to 20 bytes for each row.
const MAX_WRITERS: usize = 8;

/// The most rows of a table file, which bounds that.
const MAX_FILE_ROWS: usize = 4 << 20;

/// Rows between two calls of [`Written`].
const COUNTED_ROWS: u64 = 8192;

const TABLE_FILE: &str = ".sst";

/// From now on this thread gets little of the processors that others want: those which look rows up while a table is loaded.
fn yield_to_lookups() {
    // It cannot be taken back without rights, so that it is for threads of ours alone. Where it is not allowed, the load takes its share.
    let _ = rustix::process::nice(10);
}

/// Where a row sorts, and where it lies in its piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    order: u64,
    position: u32,
}

/// Rows in memory.
#[derive(Debug, Default)]
struct Piece {
    entries: Vec<Entry>,
    rows: Vec<u8>,
}

impl Piece {
    /// Before it is sorted.
    fn fingerprint(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        let mut orders = Vec::new();
        for entries in self.entries.chunks(4096) {
            orders.clear();
            orders.extend(entries.iter().flat_map(|entry| entry.order.to_le_bytes()));
            hash.update(&orders);
        }
        hash.update(&self.rows);
        hash.digest128()
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        self.entries.dedup_by(|later, earlier| {
            let is_repeated = later.order == earlier.order;
            if is_repeated {
                earlier.position = later.position;
            }
            is_repeated
        });
    }

    fn row(&self, entry: Entry, row_bytes: usize) -> Result<&[u8]> {
        let start = entry.position as usize * row_bytes;
        self.rows.get(start..start + row_bytes).ok_or_else(lost_row)
    }
}

/// A run that an earlier load left. It is opened when its first piece comes: there may be more of them than files may be open.
#[derive(Debug)]
struct Left {
    path: PathBuf,
    first_piece: u64,
    num_pieces: usize,
    num_rows: u64,
}

impl Left {
    /// None if it cannot be read or is not whole: then it is written again.
    fn find(path: PathBuf, row_bytes: usize) -> Option<Self> {
        let run = Run::open(path, row_bytes).ok().flatten()?;
        let (first_piece, num_pieces, num_rows) = (run.first_piece, run.pieces.len(), run.num_rows());
        Some(Self { path: run.path, first_piece, num_pieces, num_rows })
    }
}

/// What became of a piece.
#[derive(Debug)]
enum Done {
    /// It is the first one of this run, which was written now or by an earlier process.
    Begins(Run),
    /// It is the next one of the run that [`Sorter::following`] has.
    Follows,
}

/// What rows become.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// Table files that do not overlap.
    pub(crate) files: Vec<PathBuf>,
    /// Distinct keys.
    pub(crate) rows: u64,
}

/// See the module. Its files lie in a directory of its own, which goes with it unless they are left; that of a process which is killed
/// stays.
#[derive(Debug)]
pub(crate) struct Sorter {
    directory: PathBuf,
    row_bytes: usize,
    width: KeyWidth,
    /// Of one piece; there are two.
    piece_bytes: usize,
    max_runs: usize,
    /// Whole ones so far.
    num_pieces: u64,
    piece: Piece,
    /// A piece that is being written.
    writing: Option<JoinHandle<Result<(Done, Piece)>>>,
    runs: Vec<Run>,
    /// Runs that an earlier process left; of those that begin with the same piece the longest first.
    left: Vec<Left>,
    /// One of them that has more pieces than have come, and how many have.
    following: Option<(Run, usize)>,
}

impl Sorter {
    /// `directory` is made when it is needed. `memory_bytes` are for rows.
    pub(crate) fn new(directory: PathBuf, row_bytes: usize, width: KeyWidth, memory_bytes: usize) -> Self {
        Self {
            directory,
            row_bytes,
            width,
            piece_bytes: memory_bytes / 2,
            max_runs: MAX_RUNS,
            num_pieces: 0,
            piece: Piece::default(),
            writing: None,
            runs: Vec::new(),
            left: Vec::new(),
            following: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        let has_runs = !self.runs.is_empty() || self.following.is_some();
        self.piece.entries.is_empty() && !has_runs && self.writing.is_none()
    }

    /// Goes on with what an earlier process has left in `directory`, where files of this one will lie, too. Returns how many rows are
    /// sorted already. Must come before the first row; everything has to be put all the same.
    pub(crate) fn resume(&mut self, directory: PathBuf) -> u64 {
        self.directory = directory;
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let paths =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "run"));
        self.left = paths.filter_map(|path| Left::find(path, self.row_bytes)).collect();
        self.left.sort_by_key(|run| (run.first_piece, Reverse(run.num_pieces)));
        let (mut num_rows, mut next_piece) = (0, 0);
        let is_next = |run: &&Left, piece: u64| run.first_piece == piece && run.num_pieces > 0;
        while let Some(run) = self.left.iter().find(|run| is_next(run, next_piece)) {
            num_rows += run.num_rows;
            next_piece += run.num_pieces as u64;
        }
        num_rows
    }

    /// Takes rows of keys that can be stored, one for each.
    pub(crate) fn put(&mut self, keys: &[Key], rows: Rows<'_>) -> Result<()> {
        let per_piece =
            (self.piece_bytes / (self.row_bytes + size_of::<Entry>())).clamp(1, u32::MAX as usize);
        let (mut keys, mut bytes) = (keys, rows.bytes());
        while !keys.is_empty() {
            let room = per_piece.saturating_sub(self.piece.entries.len());
            if room == 0 {
                self.write_piece()?;
                continue;
            }
            let taken = room.min(keys.len());
            let (now, later) = keys.split_at(taken);
            let (rows_now, rows_later) = bytes.split_at(taken * self.row_bytes);
            let out_of_memory = |why| {
                Error::new(ErrorKind::OutOfMemory, "no memory to sort the rows of a load").caused_by(why)
            };
            self.piece.entries.try_reserve(taken).map_err(out_of_memory)?;
            self.piece.rows.try_reserve(taken * self.row_bytes).map_err(out_of_memory)?;
            let first = (self.piece.rows.len() / self.row_bytes) as u32;
            let width = self.width;
            self.piece.entries.extend(
                (first..).zip(now).map(|(position, &key)| Entry { order: order_of(key, width), position }),
            );
            self.piece.rows.extend_from_slice(rows_now);
            (keys, bytes) = (later, rows_later);
        }
        Ok(())
    }

    /// Hands the piece to a thread that sorts and writes it, after the one before.
    fn write_piece(&mut self) -> Result<()> {
        let mut next = self.finish_writing()?.unwrap_or_default();
        self.merge_runs()?;
        next.entries.clear();
        next.rows.clear();
        let mut piece = std::mem::replace(&mut self.piece, next);
        std::fs::create_dir_all(&self.directory).map_err(|why| cannot_write(&self.directory, why))?;
        let number = self.num_pieces;
        self.num_pieces += 1;
        let expected = self.following.as_ref().and_then(|(run, done)| run.pieces.get(*done)).copied();
        let left: Vec<Left> = match expected {
            Some(_) => Vec::new(),
            None => self.left.extract_if(.., |run| run.first_piece == number).collect(),
        };
        let path = self.directory.join(format!("{number:06}.run"));
        let row_bytes = self.row_bytes;
        let work = move || {
            yield_to_lookups();
            let fingerprint = piece.fingerprint();
            if let Some(expected) = expected {
                return if fingerprint == expected { Ok((Done::Follows, piece)) } else { Err(changed()) };
            }
            // All of a run is verified before its first piece is forgotten: afterwards nobody could write it again.
            let is_whole = |run: &Run| run.pieces.first() == Some(&fingerprint) && run.verify().is_ok();
            let mut runs = left.into_iter().filter_map(|run| Run::open(run.path, row_bytes).ok().flatten());
            if let Some(run) = runs.find(is_whole) {
                return Ok((Done::Begins(run), piece));
            }
            piece.sort();
            let mut writer = RunWriter::create(path, row_bytes)?;
            for &entry in &piece.entries {
                writer.write(entry.order, piece.row(entry, row_bytes)?)?;
            }
            Ok((Done::Begins(writer.finish(number, vec![fingerprint])?), piece))
        };
        let thread = std::thread::Builder::new().name("hps-sort".into()).spawn(work).map_err(|why| {
            Error::new(ErrorKind::Internal, "cannot start a thread that sorts the rows of a load")
                .caused_by(why)
        })?;
        self.writing = Some(thread);
        Ok(())
    }

    /// Makes one run of the last ones of one piece each, if they are many.
    fn merge_runs(&mut self) -> Result<()> {
        let first = self.runs.iter().rposition(|run| run.pieces.len() > 1).map_or(0, |merged| merged + 1);
        let runs = self.runs.get(first..).unwrap_or_default();
        if runs.len() < self.max_runs {
            return Ok(());
        }
        let pieces: Vec<Fingerprint> = runs.iter().flat_map(|run| &run.pieces).copied().collect();
        let first_piece = runs.first().map_or(0, |run| run.first_piece);
        let name = format!("{first_piece:06}-{:06}.run", first_piece + pieces.len() as u64 - 1);
        let mut writer = RunWriter::create(self.directory.join(name), self.row_bytes)?;
        let sources = runs.iter().map(|run| Ok(Source::File(RunReader::open(run, 0)?)));
        merge(sources.collect::<Result<_>>()?, None, self.row_bytes, |order, row| writer.write(order, row))?;
        let merged = writer.finish(first_piece, pieces)?;
        for run in self.runs.drain(first..) {
            // What is left goes with the directory.
            drop(std::fs::remove_file(run.path));
        }
        self.runs.push(merged);
        Ok(())
    }

    /// Waits for the piece that is being written, and gives its memory back.
    fn finish_writing(&mut self) -> Result<Option<Piece>> {
        let Some(thread) = self.writing.take() else { return Ok(None) };
        let (done, piece) = thread.join().map_err(|_| stopped())??;
        let begun = match done {
            Done::Begins(run) => Some((run, 1)),
            Done::Follows => self.following.take().map(|(run, done)| (run, done + 1)),
        };
        match begun {
            Some((run, done)) if done == run.pieces.len() => self.runs.push(run),
            begun => self.following = begun,
        }
        Ok(Some(piece))
    }

    /// Writes everything that was put since the last time as table files of about `file_bytes`, and forgets it. The files are in the
    /// directory, with names that begin with `name`; so are the runs, until [`Self::clear`].
    pub(crate) fn finish(
        &mut self,
        name: &str,
        options: &Options,
        file_bytes: usize,
        num_threads: usize,
        written: Written<'_>,
    ) -> Result<Sorted> {
        drop(self.finish_writing()?);
        if self.following.is_some() {
            return Err(changed());
        }
        if self.is_empty() {
            return Ok(Sorted::default());
        }
        let last_piece = self.piece.fingerprint();
        self.piece.sort();
        std::fs::create_dir_all(&self.directory).map_err(|why| cannot_write(&self.directory, why))?;
        let begins = self.range_begins(file_bytes);
        let name = format!("{name}-{:016x}", self.fingerprint(last_piece, &begins));
        let merge = Merge {
            sorter: self,
            options,
            name: &name,
            left: self.table_files_left(&name),
            num_written: AtomicU64::new(0),
            written,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            done: Mutex::new(Ok(Sorted::default())),
        };
        std::thread::scope(|scope| {
            let work = || {
                yield_to_lookups();
                merge.work(&begins);
            };
            let start = |_: &usize| {
                std::thread::Builder::new().name("hps-sort".into()).spawn_scoped(scope, work).is_ok()
            };
            // If the system has no more threads, those that are there do all of it.
            if (0..num_threads.min(begins.len()).min(MAX_WRITERS)).filter(start).count() == 0 {
                merge.work(&begins);
            }
        });
        let sorted = merge.done.into_inner()?;
        self.runs.clear();
        self.piece = Piece::default();
        Ok(sorted)
    }

    /// Tells what is about to be merged, and how it is cut, from other rows and cuts.
    fn fingerprint(&self, last_piece: Fingerprint, begins: &[u64]) -> u64 {
        let mut hash = Xxh3::new();
        for piece in self.runs.iter().flat_map(|run| &run.pieces).chain([&last_piece]) {
            hash.update(&piece.to_le_bytes());
        }
        for begin in begins {
            hash.update(&begin.to_le_bytes());
        }
        hash.digest()
    }

    /// The table files that an earlier process has written under this `name`, by number, with their rows.
    fn table_files_left(&self, name: &str) -> HashMap<usize, (PathBuf, u64)> {
        let read = |path: PathBuf| {
            let (number, rows) =
                path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?.split_once('-')?;
            Some((number.parse().ok()?, (path.clone(), rows.strip_suffix(TABLE_FILE)?.parse().ok()?)))
        };
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| read(entry.path())).collect()
    }

    /// Forgets all rows, and removes the directory.
    pub(crate) fn clear(&mut self) {
        drop(self.finish_writing());
        self.runs.clear();
        self.left.clear();
        self.following = None;
        self.piece = Piece::default();
        // What cannot be removed now is removed by the next load or start. Afterwards the directory may be another load's.
        drop(std::fs::remove_dir_all(std::mem::take(&mut self.directory)));
    }

    /// Forgets all rows, and leaves for [`Self::resume`] what is sorted of them; nothing if that could not be written.
    pub(crate) fn leave(&mut self) {
        if self.finish_writing().is_ok() {
            self.directory = PathBuf::new();
        }
        self.clear();
    }

    /// The first order of each table file's range, ascending; of the first one 0.
    fn range_begins(&self, file_bytes: usize) -> Vec<u64> {
        let rows_per_block = rows_per_block(self.row_bytes);
        let mut orders: Vec<u64> =
            self.piece.entries.iter().step_by(rows_per_block).map(|entry| entry.order).collect();
        orders.extend(self.runs.iter().flat_map(Run::block_orders));
        orders.sort_unstable();
        let rows_per_file = (file_bytes / (self.row_bytes + size_of::<Key>())).min(MAX_FILE_ROWS);
        let blocks_per_file = (rows_per_file / rows_per_block).max(1);
        let mut begins = vec![0];
        begins.extend(orders.iter().skip(blocks_per_file).step_by(blocks_per_file));
        begins.dedup();
        begins
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The merge of everything that was put.
struct Merge<'s> {
    sorter: &'s Sorter,
    options: &'s Options,
    /// What names of table files begin with.
    name: &'s str,
    /// Table files that are there already.
    left: HashMap<usize, (PathBuf, u64)>,
    num_written: AtomicU64,
    written: Written<'s>,
    /// The next range that nobody has taken.
    next: AtomicUsize,
    has_failed: AtomicBool,
    done: Mutex<Result<Sorted>>,
}

impl Merge<'_> {
    fn work(&self, begins: &[u64]) {
        let _stops_others = StopsOthers(&self.has_failed);
        while !self.has_failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&begin) = begins.get(number) else { return };
            let end = begins.get(number + 1).copied();
            let written = match self.left.get(&number) {
                Some((path, rows)) => {
                    self.count(*rows);
                    Ok(Some((path.clone(), *rows)))
                }
                None => self.write_range(number, begin, end),
            };
            let mut done = self.done.lock();
            match (written, done.as_mut()) {
                (Ok(None), _) | (Ok(_), Err(_)) => {}
                (Ok(Some((path, rows))), Ok(sorted)) => {
                    sorted.files.push(path);
                    sorted.rows += rows;
                }
                (Err(why), _) => {
                    self.has_failed.store(true, Ordering::Relaxed);
                    *done = Err(why);
                }
            }
        }
    }

    fn count(&self, rows: u64) {
        (self.written)(self.num_written.fetch_add(rows, Ordering::Relaxed) + rows);
    }

    /// Writes the rows from `begin` on, before `end`, as one table file, if there are any. Returns it and their number.
    fn write_range(&self, number: usize, begin: u64, end: Option<u64>) -> Result<Option<(PathBuf, u64)>> {
        // Until it is complete, and on the disk, it has another name.
        let path = self.sorter.directory.join(format!("{}-{number:06}.part", self.name));
        let failed = |why: rocksdb::Error| {
            Error::new(ErrorKind::Storage, "cannot write a table file")
                .at("path", path.display())
                .caused_by(why)
        };
        let Sorter { row_bytes, width, piece, runs, .. } = self.sorter;
        let mut sources = Vec::new();
        for run in runs {
            sources.push(Source::File(RunReader::open(run, begin)?));
        }
        // The latest, and so the last.
        let first = piece.entries.partition_point(|entry| entry.order < begin);
        sources.push(Source::Memory { piece, next: first });

        let mut writer = SstFileWriter::create(self.options);
        let mut rows: u64 = 0;
        merge(sources, end, *row_bytes, |order, row| {
            if rows == 0 {
                writer.open(&path).map_err(failed)?;
            }
            rows += 1;
            if rows.is_multiple_of(COUNTED_ROWS) {
                self.count(COUNTED_ROWS);
            }
            match width {
                KeyWidth::Bits64 => writer.put(order.to_be_bytes(), row),
                KeyWidth::Bits32 => writer.put((order as u32).to_be_bytes(), row),
            }
            .map_err(failed)
        })?;
        if rows == 0 {
            return Ok(None);
        }
        writer.finish().map_err(failed)?;
        self.count(rows % COUNTED_ROWS);
        let complete = self.sorter.directory.join(format!("{}-{number:06}-{rows}{TABLE_FILE}", self.name));
        std::fs::rename(&path, &complete).map_err(|why| cannot_write(&complete, why))?;
        Ok(Some((complete, rows)))
    }
}

/// Tells the other threads if this one panics.
struct StopsOthers<'a>(&'a AtomicBool);

impl Drop for StopsOthers<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Shows what `sources` have before `end`, in order; of an order that several have, the row of the last of them.
fn merge(
    mut sources: Vec<Source<'_>>,
    end: Option<u64>,
    row_bytes: usize,
    mut show: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let is_within = |order: &u64| end.is_none_or(|end| *order < end);
    let mut heap = BinaryHeap::new();
    for (number, source) in sources.iter().enumerate() {
        if let Some(order) = source.order().filter(is_within) {
            heap.push((Reverse(order), number));
        }
    }
    let mut last = None;
    while let Some(mut top) = heap.peek_mut() {
        let (Reverse(order), number) = *top;
        let source = sources.get_mut(number).ok_or_else(lost_row)?;
        if last != Some(order) {
            show(order, source.row(row_bytes)?)?;
            last = Some(order);
        }
        source.advance()?;
        match source.order().filter(is_within) {
            Some(order) => top.0 = Reverse(order),
            None => drop(PeekMut::pop(top)),
        }
    }
    Ok(())
}

/// Rows in ascending order.
enum Source<'s> {
    File(RunReader<'s>),
    Memory { piece: &'s Piece, next: usize },
}

impl Source<'_> {
    /// Of the next row.
    fn order(&self) -> Option<u64> {
        match self {
            Self::File(reader) => reader.order(),
            Self::Memory { piece, next } => piece.entries.get(*next).map(|entry| entry.order),
        }
    }

    fn row(&self, row_bytes: usize) -> Result<&[u8]> {
        match self {
            Self::File(reader) => reader.row().ok_or_else(lost_row),
            Self::Memory { piece, next } => {
                let entry = piece.entries.get(*next).ok_or_else(lost_row)?;
                piece.row(*entry, row_bytes)
            }
        }
    }

    fn advance(&mut self) -> Result<()> {
        match self {
            Self::File(reader) => reader.advance(),
            Self::Memory { next, .. } => {
                *next += 1;
                Ok(())
            }
        }
    }
}

fn lost_row() -> Error {
    Error::new(ErrorKind::Internal, "a load has lost a row")
}

fn changed() -> Error {
    Error::new(
        ErrorKind::Config,
        "the model files have other rows than when a load of them was interrupted, although their sizes and times are the same; open \
         the store again to load them from the beginning",
    )
}

fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the thread that sorts the rows of a load has stopped")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use hps_core::key::mix;
    use hps_core::testing::row_of;
    use rocksdb::{DB, IngestExternalFileOptions};

    use super::*;
    use crate::entry::{fits, read_key};
    use crate::run::END_BYTES;

    const ROW_BYTES: usize = 12;

    /// Loads `batches` of (key, version) and returns what RocksDB then holds.
    fn sorted(
        batches: &[Vec<(Key, u64)>],
        width: KeyWidth,
        piece_bytes: usize,
        file_bytes: usize,
        num_threads: usize,
    ) -> (BTreeMap<Key, Vec<u8>>, usize) {
        let directory = tempfile::tempdir().unwrap();
        let database = DB::open_default(directory.path().join("database")).unwrap();
        let sorting = directory.path().join("sorting");
        let mut sorter = Sorter::new(sorting.clone(), ROW_BYTES, width, 2 * piece_bytes);
        sorter.max_runs = 5;
        for batch in batches {
            let keys: Vec<Key> = batch.iter().map(|&(key, _)| key).collect();
            let rows: Vec<u8> =
                batch.iter().flat_map(|&(key, version)| row_of(key, version, ROW_BYTES)).collect();
            sorter.put(&keys, Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
        }
        let options = Options::default();
        let sorted = sorter.finish("a", &options, file_bytes, num_threads, &|_| {}).unwrap();
        assert!(sorter.is_empty());
        let mut moving = IngestExternalFileOptions::default();
        moving.set_move_files(true);
        // Files that overlap would need numbers.
        moving.set_allow_global_seqno(false);
        if !sorted.files.is_empty() {
            database.ingest_external_file_opts(&moving, sorted.files.clone()).unwrap();
        }
        drop(sorter);
        assert!(!sorting.exists(), "nothing is left");
        let found: BTreeMap<Key, Vec<u8>> = database
            .iterator(rocksdb::IteratorMode::Start)
            .map(|entry| entry.unwrap())
            .map(|(key, row)| (read_key(&key, width).unwrap(), row.to_vec()))
            .collect();
        assert_eq!(sorted.rows, found.len() as u64);
        (found, sorted.files.len())
    }

    #[test]
    fn rows_are_all_there_and_the_last_of_a_key_counts() {
        for width in [KeyWidth::Bits64, KeyWidth::Bits32] {
            for (num_keys, piece_bytes, file_bytes, num_threads) in [
                (0, 1 << 20, 1 << 20, 2),
                (1, 1, 1, 4),
                (5_000, 1 << 20, 1 << 30, 1),
                (20_000, 40_000, 60_000, 3),
            ] {
                // Keys come up to three times, in batches of any size, in no order.
                let draw = |i: u64| match width {
                    KeyWidth::Bits64 => mix(mix(i) % num_keys.max(1)),
                    KeyWidth::Bits32 => mix(mix(i) % num_keys.max(1)) >> 32,
                };
                let rows: Vec<(Key, u64)> = (0..num_keys * 3).map(|i| (draw(i), i)).collect();
                assert!(rows.iter().all(|&(key, _)| fits(key, width)));
                let batches: Vec<Vec<(Key, u64)>> = rows.chunks(777).map(<[_]>::to_vec).collect();
                let expected: BTreeMap<Key, Vec<u8>> =
                    rows.iter().map(|&(key, version)| (key, row_of(key, version, ROW_BYTES))).collect();
                let (found, num_files) = sorted(&batches, width, piece_bytes, file_bytes, num_threads);
                assert!(found == expected, "{} of {} rows", found.len(), expected.len());
                if num_keys == 20_000 {
                    assert!(num_files > 3, "{num_files} files");
                }
            }
        }
    }

    #[test]
    fn keys_that_come_in_order_or_all_the_same_are_sorted_too() {
        let ascending: Vec<(Key, u64)> = (0..30_000).map(|key| (key, key)).collect();
        let (found, _) = sorted(&[ascending], KeyWidth::Bits64, 50_000, 100_000, 2);
        assert_eq!(found.len(), 30_000);
        let same: Vec<(Key, u64)> = (0..30_000).map(|version| (7, version)).collect();
        let (found, num_files) = sorted(&[same], KeyWidth::Bits64, 50_000, 100_000, 2);
        assert_eq!(found, BTreeMap::from([(7, row_of(7, 29_999, ROW_BYTES))]));
        assert_eq!(num_files, 1);
    }

    /// What a process that is killed now leaves.
    fn left_by(sorter: &mut Sorter, to: &Path) {
        let writing = sorter.finish_writing().unwrap();
        drop(writing);
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(&sorter.directory).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }

    fn put(sorter: &mut Sorter, keys: std::ops::Range<Key>, version: u64) {
        for start in keys.clone().step_by(1_000) {
            let keys: Vec<Key> = (start..keys.end.min(start + 1_000)).map(|key| mix(key) >> 40).collect();
            let rows: Vec<u8> = keys.iter().flat_map(|&key| row_of(key, version, ROW_BYTES)).collect();
            sorter.put(&keys, Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
        }
    }

    /// Names of the table files, and what is in them.
    fn finished(sorter: &mut Sorter) -> (Vec<PathBuf>, BTreeMap<Key, Vec<u8>>) {
        let mut sorted = sorter.finish("0", &Options::default(), 60_000, 2, &|_| {}).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let database = DB::open_default(directory.path()).unwrap();
        database.ingest_external_file(sorted.files.clone()).unwrap();
        let entries = database.iterator(rocksdb::IteratorMode::Start).map(|entry| entry.unwrap());
        let rows: BTreeMap<Key, Vec<u8>> =
            entries.map(|(key, row)| (read_key(&key, KeyWidth::Bits64).unwrap(), row.to_vec())).collect();
        assert_eq!(sorted.rows, rows.len() as u64);
        sorted.files.sort();
        (sorted.files.iter().map(|path| path.file_name().unwrap().into()).collect(), rows)
    }

    fn modified(path: &Path) -> std::time::SystemTime {
        std::fs::metadata(path).unwrap().modified().unwrap()
    }

    #[test]
    fn what_an_interrupted_load_has_sorted_is_not_sorted_again() {
        let directory = tempfile::tempdir().unwrap();
        let sorter = |name: &str| {
            let piece_bytes = 40_000;
            let mut sorter =
                Sorter::new(directory.path().join(name), ROW_BYTES, KeyWidth::Bits64, 2 * piece_bytes);
            sorter.max_runs = 5;
            sorter
        };
        // Pieces have 1,428 rows; five of them are merged.
        let mut whole = sorter("whole");
        put(&mut whole, 0..20_000, 1);
        left_by(&mut whole, &directory.path().join("put"));
        let expected = finished(&mut whole);
        left_by(&mut whole, &directory.path().join("finished"));
        assert!(expected.0.len() > 3);

        for (left, sorted) in [("put", 19_987), ("finished", 19_987)] {
            let path = directory.path().join(left);
            let run = path.join("000000-000004.run");
            let before = modified(&run);
            let tables: Vec<(PathBuf, std::time::SystemTime)> = expected
                .0
                .iter()
                .map(|name| path.join(name))
                .filter(|file| file.exists())
                .map(|file| (file.clone(), modified(&file)))
                .collect();
            assert_eq!(tables.len(), if left == "finished" { expected.0.len() } else { 0 });
            let mut again = sorter("unused");
            assert_eq!(again.resume(path.clone()), sorted, "{left}");
            put(&mut again, 0..20_000, 1);
            let found = finished(&mut again);
            assert!(found == expected, "{left}");
            assert_eq!(modified(&run), before);
            assert!(
                tables.iter().all(|(file, time)| modified(file) == *time),
                "table files are not written again"
            );
            assert!(path.exists());
            drop(again);
            assert!(!path.exists(), "nothing is left");
        }
        // Table files of other rows are no use.
        let mut first = sorter("one piece");
        put(&mut first, 0..1_000, 1);
        drop(finished(&mut first));
        left_by(&mut first, &directory.path().join("one piece left"));
        let mut second = sorter("unused");
        second.resume(directory.path().join("one piece left"));
        put(&mut second, 0..1_000, 2);
        let (_, rows) = finished(&mut second);
        assert!(rows.iter().all(|(&key, row)| *row == row_of(key, 2, ROW_BYTES)));
    }

    #[test]
    fn of_what_an_interrupted_load_has_left_nothing_counts_that_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        let sorter = |path: &Path| Sorter::new(path.to_owned(), ROW_BYTES, KeyWidth::Bits64, 80_000);
        let mut whole = sorter(&directory.path().join("whole"));
        put(&mut whole, 0..9_000, 1);
        left_by(&mut whole, &directory.path().join("left"));
        let expected = finished(&mut whole);

        type Damage = (&'static str, fn(&mut Vec<u8>));
        let damages: [Damage; 6] = [
            ("cut short", |file| file.truncate(file.len() / 2)),
            ("empty", Vec::clear),
            ("without its last byte", |file| file.truncate(file.len() - 1)),
            ("with another row", |file| file[5_000] ^= 1),
            ("with another fingerprint", |file| {
                let at = file.len() - END_BYTES - 10;
                file[at] ^= 1;
            }),
            ("with another number of rows", |file| {
                let at = file.len() - END_BYTES + 8;
                file[at] ^= 1;
            }),
        ];
        for (what, damage) in damages {
            let path = directory.path().join(what);
            std::fs::create_dir(&path).unwrap();
            for file in std::fs::read_dir(directory.path().join("left")).unwrap().flatten() {
                std::fs::copy(file.path(), path.join(file.file_name())).unwrap();
            }
            let run = path.join("000002.run");
            let mut content = std::fs::read(&run).unwrap();
            damage(&mut content);
            std::fs::write(&run, content).unwrap();
            // A table file that was not written to its end, and something else.
            let part = expected.0[0].to_str().unwrap().rsplit_once('-').unwrap().0;
            std::fs::write(path.join(format!("{part}.part")), [1; 100]).unwrap();
            std::fs::write(path.join("other.run"), [1; 1_000]).unwrap();
            let mut again = sorter(&directory.path().join("unused"));
            assert!(again.resume(path) > 0, "{what}");
            put(&mut again, 0..9_000, 1);
            assert!(finished(&mut again) == expected, "{what}");
        }
    }

    #[test]
    fn other_rows_than_those_of_an_interrupted_load_are_sorted_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let sorter = |name: &str| {
            let mut sorter = Sorter::new(directory.path().join(name), ROW_BYTES, KeyWidth::Bits64, 80_000);
            sorter.max_runs = 3;
            sorter
        };
        let versions = |sorter: &mut Sorter, first: u64, second: u64| {
            put(sorter, 0..2_000, first);
            put(sorter, 2_000..9_000, second);
        };
        for (first, second, is_refused) in [(2, 1, false), (1, 2, true)] {
            let mut before = sorter("before");
            versions(&mut before, 1, 1);
            let left = directory.path().join(format!("left {first}"));
            left_by(&mut before, &left);
            drop(before);
            assert!(left.join("000000-000002.run").exists());

            let mut again = sorter("unused");
            assert!(again.resume(left) > 0);
            let put = || -> Result<()> {
                for start in (0..9_000).step_by(1_000) {
                    let keys: Vec<Key> = (start..start + 1_000).map(|key| mix(key) >> 40).collect();
                    let version = if start < 2_000 { first } else { second };
                    let rows: Vec<u8> =
                        keys.iter().flat_map(|&key| row_of(key, version, ROW_BYTES)).collect();
                    again.put(&keys, Rows::new(&rows, ROW_BYTES).unwrap())?;
                }
                Ok(())
            };
            let mut put = put;
            if is_refused {
                let error = put().unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Config, "{error}");
                continue;
            }
            put().unwrap();
            let found = finished(&mut again);
            let mut fresh = sorter("fresh");
            versions(&mut fresh, first, second);
            assert!(found == finished(&mut fresh));
        }
        // Fewer rows than there were.
        let mut before = sorter("longer");
        versions(&mut before, 1, 1);
        let left = directory.path().join("left longer");
        left_by(&mut before, &left);
        let mut again = sorter("unused");
        again.resume(left);
        super::tests::put(&mut again, 0..2_000, 1);
        let error = again.finish("0", &Options::default(), 60_000, 2, &|_| {}).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }

    /// How much this thread leaves to others, from 0 on.
    fn niceness() -> i32 {
        rustix::process::nice(0).unwrap()
    }

    #[test]
    fn threads_that_merge_leave_the_processors_to_lookups_and_the_caller_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let before = niceness();
        let mut sorter =
            Sorter::new(directory.path().join("s"), ROW_BYTES, KeyWidth::Bits64, 2 * 40_000 * ROW_BYTES);
        put(&mut sorter, 0..100_000, 1);
        let (least, num_calls) = (std::sync::atomic::AtomicI32::new(i32::MAX), AtomicUsize::new(0));
        let written = |_: u64| {
            least.fetch_min(niceness(), Ordering::Relaxed);
            num_calls.fetch_add(1, Ordering::Relaxed);
        };
        sorter.finish("0", &Options::default(), 400_000, 2, &written).unwrap();
        assert!(num_calls.into_inner() > 2);
        assert_eq!(least.into_inner(), (before + 10).min(19));
        assert_eq!(niceness(), before);
    }

    #[test]
    fn a_run_that_the_disk_gives_back_otherwise_is_an_error_not_other_rows() {
        for damage in [|file: &File| file.set_len(1_000), |file: &File| file.write_all_at(&[0xAA], 5_000)] {
            let directory = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(directory.path().join("s"), ROW_BYTES, KeyWidth::Bits64, 20_000);
            let keys: Vec<Key> = (0..3_000).collect();
            let rows = vec![1; keys.len() * ROW_BYTES];
            sorter.put(&keys, Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
            drop(sorter.finish_writing().unwrap());
            let run = File::options().write(true).open(&sorter.runs[0].path).unwrap();
            damage(&run).unwrap();
            let error = sorter.finish("a", &Options::default(), 1 << 20, 2, &|_| {}).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::Corrupt), "{error}");
            assert!(error.to_string().contains("000000.run"), "{error}");
        }
    }
}
