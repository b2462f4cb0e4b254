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
//! A run is a file of records `order (8 bytes, little endian) | row`, by ascending order (see [`order_of`]), each order once. It is
//! read in blocks, whose checksums stay in memory: nobody else verifies rows between the model files and RocksDB.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use hps_core::key::{Key, KeyWidth};
use hps_core::row::Rows;
use hps_core::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rocksdb::{Options, SstFileWriter};
use xxhash_rust::xxh3::xxh3_64;

use crate::entry::order_of;

/// About the size of a block of a run: what one read or write takes, and what each run that is merged has in memory.
const BLOCK_BYTES: usize = 64 << 10;

/// So many runs of one piece each become one: all are open while they are merged.
const MAX_RUNS: usize = 64;

/// Threads that write table files: each has the filter and the index of its file in memory, 10 to 20 bytes for each row.
const MAX_WRITERS: usize = 8;

/// The most rows of a table file, which bounds that.
const MAX_FILE_ROWS: usize = 4 << 20;

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

/// A sorted file.
#[derive(Debug)]
struct Run {
    path: PathBuf,
    file: File,
    num_rows: u64,
    blocks: Vec<Block>,
    /// How many runs were merged into it.
    num_pieces: usize,
}

/// Of a run.
#[derive(Debug)]
struct Block {
    first_order: u64,
    checksum: u64,
}

/// What rows become.
#[derive(Debug, Default)]
pub(crate) struct Sorted {
    /// Table files that do not overlap.
    pub(crate) files: Vec<PathBuf>,
    /// Distinct keys.
    pub(crate) rows: u64,
}

/// See the module. Its files lie in a directory of its own, which goes with it.
#[derive(Debug)]
pub(crate) struct Sorter {
    directory: PathBuf,
    row_bytes: usize,
    width: KeyWidth,
    /// Of one piece; there are two.
    piece_bytes: usize,
    max_runs: usize,
    /// Runs written so far, which gives each a name of its own.
    num_written: usize,
    piece: Piece,
    /// A piece that is being written.
    writing: Option<JoinHandle<Result<(Run, Piece)>>>,
    runs: Vec<Run>,
}

impl Sorter {
    /// `directory` must not exist. `memory_bytes` are for rows.
    pub(crate) fn new(directory: PathBuf, row_bytes: usize, width: KeyWidth, memory_bytes: usize) -> Self {
        Self {
            directory,
            row_bytes,
            width,
            piece_bytes: memory_bytes / 2,
            max_runs: MAX_RUNS,
            num_written: 0,
            piece: Piece::default(),
            writing: None,
            runs: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.piece.entries.is_empty() && self.runs.is_empty() && self.writing.is_none()
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
        let path = self.next_path()?;
        let row_bytes = self.row_bytes;
        let work = move || {
            piece.sort();
            let mut writer = RunWriter::create(path, row_bytes)?;
            for &entry in &piece.entries {
                writer.write(entry.order, piece.row(entry, row_bytes)?)?;
            }
            Ok((writer.finish(1)?, piece))
        };
        let thread = std::thread::Builder::new().name("hps-sort".into()).spawn(work).map_err(|why| {
            Error::new(ErrorKind::Internal, "cannot start a thread that sorts the rows of a load")
                .caused_by(why)
        })?;
        self.writing = Some(thread);
        Ok(())
    }

    fn next_path(&mut self) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.directory).map_err(|why| cannot_write(&self.directory, why))?;
        self.num_written += 1;
        Ok(self.directory.join(format!("{:06}.run", self.num_written)))
    }

    /// Makes one run of the last ones of one piece each, if they are many.
    fn merge_runs(&mut self) -> Result<()> {
        let first = self.runs.iter().rposition(|run| run.num_pieces > 1).map_or(0, |merged| merged + 1);
        if self.runs.len() - first < self.max_runs {
            return Ok(());
        }
        let path = self.next_path()?;
        let runs = self.runs.split_off(first);
        let mut writer = RunWriter::create(path, self.row_bytes)?;
        let sources = runs.iter().map(|run| Ok(Source::File(RunReader::open(run, 0, self.row_bytes)?)));
        merge(sources.collect::<Result<_>>()?, None, self.row_bytes, |order, row| writer.write(order, row))?;
        self.runs.push(writer.finish(runs.len())?);
        for run in runs {
            // What is left goes with the directory.
            drop(std::fs::remove_file(run.path));
        }
        Ok(())
    }

    /// Waits for the piece that is being written, and gives its memory back.
    fn finish_writing(&mut self) -> Result<Option<Piece>> {
        let Some(thread) = self.writing.take() else { return Ok(None) };
        let (run, piece) = thread.join().map_err(|_| stopped())??;
        self.runs.push(run);
        Ok(Some(piece))
    }

    /// Writes everything that was put since the last time as table files of about `file_bytes`, and forgets it. The files are in the
    /// directory, with names that begin with `name`.
    pub(crate) fn finish(
        &mut self,
        name: &str,
        options: &Options,
        file_bytes: usize,
        num_threads: usize,
    ) -> Result<Sorted> {
        drop(self.finish_writing()?);
        self.piece.sort();
        if self.is_empty() {
            return Ok(Sorted::default());
        }
        std::fs::create_dir_all(&self.directory).map_err(|why| cannot_write(&self.directory, why))?;
        let begins = self.range_begins(file_bytes);
        let merge = Merge {
            sorter: self,
            options,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            done: Mutex::new(Ok(Sorted::default())),
        };
        std::thread::scope(|scope| {
            for _ in 1..num_threads.min(begins.len()).min(MAX_WRITERS) {
                // If the system has no more threads, those that are there do all of it.
                let started = std::thread::Builder::new().name("hps-sort".into());
                drop(started.spawn_scoped(scope, || merge.work(name, &begins)));
            }
            merge.work(name, &begins);
        });
        let sorted = merge.done.into_inner()?;
        for run in self.runs.drain(..) {
            drop(std::fs::remove_file(run.path));
        }
        self.piece = Piece::default();
        Ok(sorted)
    }

    /// Forgets all rows, and removes the directory.
    pub(crate) fn clear(&mut self) {
        drop(self.finish_writing());
        self.runs.clear();
        self.piece = Piece::default();
        // What cannot be removed now is removed by the next start.
        drop(std::fs::remove_dir_all(&self.directory));
    }

    /// The first order of each table file's range, ascending; of the first one 0.
    fn range_begins(&self, file_bytes: usize) -> Vec<u64> {
        let rows_per_block = rows_per_block(self.row_bytes);
        let mut orders: Vec<u64> =
            self.piece.entries.iter().step_by(rows_per_block).map(|entry| entry.order).collect();
        orders.extend(self.runs.iter().flat_map(|run| &run.blocks).map(|block| block.first_order));
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

fn rows_per_block(row_bytes: usize) -> usize {
    (BLOCK_BYTES / (size_of::<u64>() + row_bytes)).max(1)
}

struct RunWriter {
    path: PathBuf,
    file: File,
    row_bytes: usize,
    num_rows: u64,
    blocks: Vec<Block>,
    block: Vec<u8>,
}

impl RunWriter {
    fn create(path: PathBuf, row_bytes: usize) -> Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|why| cannot_write(&path, why))?;
        Ok(Self { path, file, row_bytes, num_rows: 0, blocks: Vec::new(), block: Vec::new() })
    }

    fn write(&mut self, order: u64, row: &[u8]) -> Result<()> {
        if self.block.is_empty() {
            self.blocks.push(Block { first_order: order, checksum: 0 });
        }
        self.block.extend_from_slice(&order.to_le_bytes());
        self.block.extend_from_slice(row);
        self.num_rows += 1;
        if self.num_rows.is_multiple_of(rows_per_block(self.row_bytes) as u64) {
            self.end_block()
        } else {
            Ok(())
        }
    }

    fn end_block(&mut self) -> Result<()> {
        if let Some(block) = self.blocks.last_mut() {
            block.checksum = xxh3_64(&self.block);
        }
        self.file.write_all(&self.block).map_err(|why| cannot_write(&self.path, why))?;
        self.block.clear();
        Ok(())
    }

    fn finish(mut self, num_pieces: usize) -> Result<Run> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        Ok(Run { path: self.path, file: self.file, num_rows: self.num_rows, blocks: self.blocks, num_pieces })
    }
}

/// The merge of everything that was put.
struct Merge<'s> {
    sorter: &'s Sorter,
    options: &'s Options,
    /// The next range that nobody has taken.
    next: AtomicUsize,
    has_failed: AtomicBool,
    done: Mutex<Result<Sorted>>,
}

impl Merge<'_> {
    fn work(&self, name: &str, begins: &[u64]) {
        let _stops_others = StopsOthers(&self.has_failed);
        while !self.has_failed.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&begin) = begins.get(number) else { return };
            let end = begins.get(number + 1).copied();
            let path = self.sorter.directory.join(format!("{name}-{number:06}.sst"));
            let written = self.write_range(begin, end, &path);
            let mut done = self.done.lock();
            match (written, done.as_mut()) {
                (Ok(0), _) | (Ok(_), Err(_)) => {}
                (Ok(rows), Ok(sorted)) => {
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

    /// Writes the rows from `begin` on, before `end`, as one table file, if there are any. Returns their number.
    fn write_range(&self, begin: u64, end: Option<u64>, path: &Path) -> Result<u64> {
        let failed = |why: rocksdb::Error| {
            Error::new(ErrorKind::Storage, "cannot write a table file")
                .at("path", path.display())
                .caused_by(why)
        };
        let Sorter { row_bytes, width, piece, runs, .. } = self.sorter;
        let mut sources = Vec::new();
        for run in runs {
            sources.push(Source::File(RunReader::open(run, begin, *row_bytes)?));
        }
        // The latest, and so the last.
        let first = piece.entries.partition_point(|entry| entry.order < begin);
        sources.push(Source::Memory { piece, next: first });

        let mut writer = SstFileWriter::create(self.options);
        let mut rows = 0;
        merge(sources, end, *row_bytes, |order, row| {
            if rows == 0 {
                writer.open(path).map_err(failed)?;
            }
            rows += 1;
            match width {
                KeyWidth::Bits64 => writer.put(order.to_be_bytes(), row),
                KeyWidth::Bits32 => writer.put((order as u32).to_be_bytes(), row),
            }
            .map_err(failed)
        })?;
        if rows > 0 {
            writer.finish().map_err(failed)?;
        }
        Ok(rows)
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

struct RunReader<'s> {
    run: &'s Run,
    row_bytes: usize,
    /// The number of the block in memory.
    number: usize,
    /// Its records; none behind the last block.
    block: Vec<u8>,
    /// Where the next record begins in it.
    at: usize,
}

impl<'s> RunReader<'s> {
    /// At the first row from `begin` on.
    fn open(run: &'s Run, begin: u64, row_bytes: usize) -> Result<Self> {
        let number = run.blocks.partition_point(|block| block.first_order < begin).saturating_sub(1);
        let mut reader = Self { run, row_bytes, number, block: Vec::new(), at: 0 };
        reader.read_block()?;
        while reader.order().is_some_and(|order| order < begin) {
            reader.advance()?;
        }
        Ok(reader)
    }

    fn read_block(&mut self) -> Result<()> {
        let rows_per_block = rows_per_block(self.row_bytes);
        let record_bytes = size_of::<u64>() + self.row_bytes;
        let first_row = (self.number * rows_per_block) as u64;
        let num_rows = self.run.num_rows.saturating_sub(first_row).min(rows_per_block as u64) as usize;
        self.block.resize(num_rows * record_bytes, 0);
        self.at = 0;
        let Some(block) = self.run.blocks.get(self.number) else { return Ok(()) };
        let read = self.run.file.read_exact_at(&mut self.block, first_row * record_bytes as u64);
        read.map_err(|why| cannot_read(&self.run.path, why))?;
        if xxh3_64(&self.block) == block.checksum {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "the disk gave back other rows of a load than were written")
            .at("path", self.run.path.display()))
    }

    fn order(&self) -> Option<u64> {
        let order = self.block.get(self.at..self.at + size_of::<u64>())?;
        order.try_into().ok().map(u64::from_le_bytes)
    }

    fn row(&self) -> Option<&[u8]> {
        let start = self.at + size_of::<u64>();
        self.block.get(start..start + self.row_bytes)
    }

    fn advance(&mut self) -> Result<()> {
        self.at += size_of::<u64>() + self.row_bytes;
        if self.at >= self.block.len() && !self.block.is_empty() {
            self.number += 1;
            self.read_block()?;
        }
        Ok(())
    }
}

fn cannot_write(path: &Path, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, "cannot write the rows of a load")
        .at("path", path.display())
        .caused_by(cause)
}

fn cannot_read(path: &Path, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, "cannot read back the rows of a load")
        .at("path", path.display())
        .caused_by(cause)
}

fn lost_row() -> Error {
    Error::new(ErrorKind::Internal, "a load has lost a row")
}

fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the thread that sorts the rows of a load has stopped")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hps_core::key::mix;
    use hps_core::testing::row_of;
    use rocksdb::{DB, IngestExternalFileOptions};

    use super::*;
    use crate::entry::{fits, read_key};

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
        let sorted = sorter.finish("a", &options, file_bytes, num_threads).unwrap();
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

    #[test]
    fn a_run_that_the_disk_gives_back_otherwise_is_an_error_not_other_rows() {
        for damage in [|file: &File| file.set_len(1_000), |file: &File| file.write_all_at(&[0xAA], 5_000)] {
            let directory = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(directory.path().join("s"), ROW_BYTES, KeyWidth::Bits64, 20_000);
            let keys: Vec<Key> = (0..3_000).collect();
            let rows = vec![1; keys.len() * ROW_BYTES];
            sorter.put(&keys, Rows::new(&rows, ROW_BYTES).unwrap()).unwrap();
            drop(sorter.finish_writing().unwrap());
            damage(&sorter.runs[0].file).unwrap();
            let error = sorter.finish("a", &Options::default(), 1 << 20, 2).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::Corrupt), "{error}");
            assert!(error.to_string().contains("000001.run"), "{error}");
        }
    }
}
