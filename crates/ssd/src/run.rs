//! Sorted files of rows, from which the table files of a load are merged.
//!
//! ```text
//! rows      order (8 bytes, little endian) | row, by ascending order (see order_of), each order once, in blocks
//! pieces    16 bytes for each piece of the load that is in the file: the fingerprint of its keys and rows
//! blocks    16 bytes for each block: its first order and its checksum
//! end       first piece, rows, number of pieces, number of blocks, checksum from `pieces` on, magic: 8 bytes each
//! ```
//!
//! A file describes itself, so that a process can go on with those of one that was killed: what was not written to its end has no
//! valid end, and blocks are checked when they are read.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hps_core::{Error, ErrorKind, Result};
use xxhash_rust::xxh3::xxh3_64;

/// About the size of a block of a run: what one read or write takes, and what each run that is merged has in memory.
const BLOCK_BYTES: usize = 64 << 10;

/// What ends a file; another format gets another.
const MAGIC: u64 = u64::from_le_bytes(*b"hps run1");
pub(crate) const END_BYTES: usize = 6 * size_of::<u64>();

/// Tells the keys and rows of a piece from others, in the order in which they were put.
pub(crate) type Fingerprint = u128;

/// A sorted file.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    file: File,
    row_bytes: usize,
    num_rows: u64,
    blocks: Vec<Block>,
    /// The number of the first piece that is in it.
    pub(crate) first_piece: u64,
    /// Of the pieces that are in it, in order.
    pub(crate) pieces: Vec<Fingerprint>,
}

#[derive(Debug)]
struct Block {
    first_order: u64,
    checksum: u64,
}

impl Run {
    /// What an earlier process wrote; None if it is no whole run.
    pub(crate) fn open(path: PathBuf, row_bytes: usize) -> Result<Option<Self>> {
        let read = || -> std::io::Result<Option<Self>> {
            let file = File::open(&path)?;
            let Some(description_at) = file.metadata()?.len().checked_sub(END_BYTES as u64) else {
                return Ok(None);
            };
            let mut end = [0; END_BYTES];
            file.read_exact_at(&mut end, description_at)?;
            let mut words = words_of(&end);
            let mut next = || words.next().unwrap_or_default();
            let [first_piece, num_rows, num_pieces, num_blocks, checksum, magic] =
                std::array::from_fn(|_| next());
            let record_bytes = (size_of::<u64>() + row_bytes) as u64;
            let data_bytes = num_rows.checked_mul(record_bytes);
            let Some(described_bytes) = data_bytes.and_then(|bytes| description_at.checked_sub(bytes)) else {
                return Ok(None);
            };
            let expected_bytes =
                num_pieces.checked_add(num_blocks).and_then(|entries| entries.checked_mul(16));
            let blocks_expected = num_rows.div_ceil(rows_per_block(row_bytes) as u64);
            if magic != MAGIC || expected_bytes != Some(described_bytes) || num_blocks != blocks_expected {
                return Ok(None);
            }
            let mut described = vec![0; described_bytes as usize + END_BYTES];
            file.read_exact_at(&mut described, num_rows * record_bytes)?;
            let checked = described.len() - 2 * size_of::<u64>();
            if described.get(..checked).map(xxh3_64) != Some(checksum) {
                return Ok(None);
            }
            let mut words = words_of(&described);
            let mut next = || words.next().unwrap_or_default();
            let pieces = (0..num_pieces)
                .map(|_| Fingerprint::from(next()) | Fingerprint::from(next()) << 64)
                .collect();
            let blocks = (0..num_blocks).map(|_| Block { first_order: next(), checksum: next() }).collect();
            Ok(Some(Self { path: path.clone(), file, row_bytes, num_rows, blocks, first_piece, pieces }))
        };
        read().map_err(|why| cannot_read(&path, why))
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// `Corrupt` if a block is not what was written.
    pub(crate) fn verify(&self) -> Result<()> {
        let mut reader = RunReader::open(self, 0)?;
        while reader.order().is_some() {
            reader.next_block()?;
        }
        Ok(())
    }

    /// The first order of each block.
    pub(crate) fn block_orders(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().map(|block| block.first_order)
    }

    /// Keys in it.
    pub(crate) fn num_rows(&self) -> u64 {
        self.num_rows
    }
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word))
}

pub(crate) fn rows_per_block(row_bytes: usize) -> usize {
    (BLOCK_BYTES / (size_of::<u64>() + row_bytes)).max(1)
}

pub(crate) struct RunWriter {
    path: PathBuf,
    file: File,
    row_bytes: usize,
    num_rows: u64,
    blocks: Vec<Block>,
    block: Vec<u8>,
}

impl RunWriter {
    pub(crate) fn create(path: PathBuf, row_bytes: usize) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|why| cannot_write(&path, why))?;
        Ok(Self { path, file, row_bytes, num_rows: 0, blocks: Vec::new(), block: Vec::new() })
    }

    pub(crate) fn write(&mut self, order: u64, row: &[u8]) -> Result<()> {
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

    /// Ends the file. It has the `pieces` from number `first_piece` on.
    pub(crate) fn finish(mut self, first_piece: u64, pieces: Vec<Fingerprint>) -> Result<Run> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        let mut end: Vec<u8> = pieces.iter().flat_map(|piece| piece.to_le_bytes()).collect();
        let put = |end: &mut Vec<u8>, word: u64| end.extend_from_slice(&word.to_le_bytes());
        for block in &self.blocks {
            put(&mut end, block.first_order);
            put(&mut end, block.checksum);
        }
        for word in [first_piece, self.num_rows, pieces.len() as u64, self.blocks.len() as u64] {
            put(&mut end, word);
        }
        let checksum = xxh3_64(&end);
        put(&mut end, checksum);
        put(&mut end, MAGIC);
        self.file.write_all(&end).map_err(|why| cannot_write(&self.path, why))?;
        let Self { path, file, row_bytes, num_rows, blocks, .. } = self;
        Ok(Run { path, file, row_bytes, num_rows, blocks, first_piece, pieces })
    }
}

pub(crate) struct RunReader<'s> {
    run: &'s Run,
    /// The number of the block in memory.
    number: usize,
    /// Its records; none behind the last block.
    block: Vec<u8>,
    /// Where the next record begins in it.
    at: usize,
}

impl<'s> RunReader<'s> {
    /// At the first row from `begin` on.
    pub(crate) fn open(run: &'s Run, begin: u64) -> Result<Self> {
        let number = run.blocks.partition_point(|block| block.first_order < begin).saturating_sub(1);
        let mut reader = Self { run, number, block: Vec::new(), at: 0 };
        reader.read_block()?;
        while reader.order().is_some_and(|order| order < begin) {
            reader.advance()?;
        }
        Ok(reader)
    }

    fn read_block(&mut self) -> Result<()> {
        let rows_per_block = rows_per_block(self.run.row_bytes);
        let record_bytes = size_of::<u64>() + self.run.row_bytes;
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

    fn next_block(&mut self) -> Result<()> {
        self.number += 1;
        self.read_block()
    }

    pub(crate) fn order(&self) -> Option<u64> {
        let order = self.block.get(self.at..self.at + size_of::<u64>())?;
        order.try_into().ok().map(u64::from_le_bytes)
    }

    pub(crate) fn row(&self) -> Option<&[u8]> {
        let start = self.at + size_of::<u64>();
        self.block.get(start..start + self.run.row_bytes)
    }

    pub(crate) fn advance(&mut self) -> Result<()> {
        self.at += size_of::<u64>() + self.run.row_bytes;
        if self.at >= self.block.len() && !self.block.is_empty() { self.next_block() } else { Ok(()) }
    }
}

pub(crate) fn cannot_write(path: &Path, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, "cannot write the rows of a load")
        .at("path", path.display())
        .caused_by(cause)
}

pub(crate) fn cannot_read(path: &Path, cause: std::io::Error) -> Error {
    Error::new(ErrorKind::Storage, "cannot read back the rows of a load")
        .at("path", path.display())
        .caused_by(cause)
}
