//! Model files: the `key` and `emb_vector` files of one table, as training writes them.
//!
//! ```text
//! <directory>/key          N x int64, little-endian, no header (8 bytes a key also when supportlonglong is false)
//! <directory>/emb_vector   N x dim x float32, little-endian, no header; row i belongs to key i
//! ```
//! Of a key that occurs more than once the last row counts. Other files (`slot_id`, `meta`) are ignored.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, KeyWidth};
use crate::row::Rows;

/// Bytes of rows read at a time: large enough for sequential reads, small beside any table.
const CHUNK_BYTES: usize = 4 << 20;
const KEY_BYTES: usize = 8;

/// One file at one moment; unchanged if size and time of modification are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Size in bytes.
    pub bytes: u64,
    /// Time of modification in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// The files of one table, found and checked against each other.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    directory: PathBuf,
    row_bytes: usize,
    key_width: KeyWidth,
    keys: FileState,
    vectors: FileState,
}

impl ModelFiles {
    /// Finds the files in `directory` and checks that their sizes agree with each other and with `row_bytes`.
    ///
    /// # Errors
    /// `Config`, naming file, found and expected, if a file is missing, empty, cut short or of another dim.
    pub fn open(directory: &Path, row_bytes: usize, key_width: KeyWidth) -> Result<Self> {
        let keys = file_state(&directory.join("key"))?;
        let vectors = file_state(&directory.join("emb_vector"))?;
        let problem = |file: &str, text: String| {
            Err(Error::new(ErrorKind::Config, format!("{}: {text}", directory.join(file).display())))
        };
        if keys.bytes == 0 {
            return problem("key", "the file is empty; expected 8 bytes (int64) for each key".into());
        }
        if keys.bytes % KEY_BYTES as u64 != 0 {
            return problem(
                "key",
                format!(
                    "{} bytes are no whole number of 8-byte (int64) keys; is the file cut short?",
                    keys.bytes
                ),
            );
        }
        let num_keys = keys.bytes / KEY_BYTES as u64;
        let expected = num_keys.checked_mul(row_bytes as u64);
        if expected != Some(vectors.bytes) {
            let hint = match vectors.bytes % (num_keys * 4) {
                0 if vectors.bytes > 0 => format!(
                    "the sizes of the two files agree with vectors of {} float32: correct \
                     embedding_vecsize_per_table if that is the table's dim",
                    vectors.bytes / num_keys / 4
                ),
                _ => "one of the two files is cut short or belongs to another table".into(),
            };
            return problem(
                "emb_vector",
                format!(
                    "found {} bytes, expected {num_keys} keys x {} float32 x 4 = {} bytes; {hint}",
                    vectors.bytes,
                    row_bytes / 4,
                    expected.map_or_else(|| "too many".into(), |bytes| bytes.to_string()),
                ),
            );
        }
        Ok(Self { directory: directory.to_owned(), row_bytes, key_width, keys, vectors })
    }

    /// Keys in the files, repeated ones included.
    pub fn num_keys(&self) -> u64 {
        self.keys.bytes / KEY_BYTES as u64
    }

    /// Where the files lie.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The `key` file when it was opened.
    pub fn keys_state(&self) -> &FileState {
        &self.keys
    }

    /// The `emb_vector` file when it was opened.
    pub fn vectors_state(&self) -> &FileState {
        &self.vectors
    }

    /// Reads both files once, in order and in bounded memory, and shows them piece by piece. Returns a checksum
    /// (XXH3, 64 bits) of all bytes of `key` followed by the one of all bytes of `emb_vector`.
    ///
    /// # Errors
    /// What `visit` returns; `Storage` if a file cannot be opened any more or read; `Config` if a key does not fit 32 bits in 32-bit
    /// mode or if a file changes meanwhile.
    pub fn read(&self, visit: &mut dyn FnMut(&[Key], Rows<'_>) -> Result<()>) -> Result<String> {
        let key_path = self.directory.join("key");
        let vector_path = self.directory.join("emb_vector");
        let mut key_file = open_again(&key_path)?;
        let mut vector_file = open_again(&vector_path)?;
        let chunk_rows = (CHUNK_BYTES / self.row_bytes).clamp(1, 1 << 16) as u64;
        let mut key_bytes = Vec::new();
        let mut row_bytes = Vec::new();
        let mut keys = Vec::new();
        let (mut key_hash, mut vector_hash) = (Xxh3::new(), Xxh3::new());
        let mut done = 0;
        while done < self.num_keys() {
            let rows = chunk_rows.min(self.num_keys() - done) as usize;
            fill(&mut key_file, &key_path, &mut key_bytes, rows * KEY_BYTES)?;
            fill(&mut vector_file, &vector_path, &mut row_bytes, rows * self.row_bytes)?;
            key_hash.update(&key_bytes);
            vector_hash.update(&row_bytes);
            keys.clear();
            for (i, &raw) in key_bytes.as_chunks::<KEY_BYTES>().0.iter().enumerate() {
                keys.push(self.key(i64::from_le_bytes(raw), done + i as u64)?);
            }
            let rows_read = Rows::new(&row_bytes, self.row_bytes)
                .ok_or_else(|| Error::new(ErrorKind::Internal, "rows of size 0"))?;
            visit(&keys, rows_read)?;
            done += rows as u64;
        }
        for (path, before) in [(&key_path, &self.keys), (&vector_path, &self.vectors)] {
            if state_of(&open_again(path)?, path)? != *before {
                return Err(Error::new(
                    ErrorKind::Config,
                    format!(
                        "{}: the file was changed while it was loaded; open the store again",
                        path.display()
                    ),
                ));
            }
        }
        Ok(format!("{:016x}{:016x}", key_hash.digest(), vector_hash.digest()))
    }

    /// Reads the first `most` keys, in order.
    ///
    /// # Errors
    /// As [`Self::read`]; `OutOfMemory`.
    pub fn read_keys(&self, most: u64) -> Result<Vec<Key>> {
        let wanted = usize::try_from(most.min(self.num_keys())).unwrap_or(usize::MAX);
        let mut keys = Vec::new();
        keys.try_reserve_exact(wanted).map_err(|why| {
            let path = self.directory.join("key");
            Error::new(ErrorKind::OutOfMemory, format!("{}: no memory for its keys", path.display()))
                .caused_by(why)
        })?;
        self.each_key(wanted as u64, |key| keys.push(key))?;
        Ok(keys)
    }

    /// The largest key. Reads the `key` file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn largest_key(&self) -> Result<Option<Key>> {
        let mut largest = None;
        self.each_key(self.num_keys(), |key| largest = largest.max(Some(key)))?;
        Ok(largest)
    }

    /// Shows the first `wanted` keys, in order.
    fn each_key(&self, wanted: u64, mut visit: impl FnMut(Key)) -> Result<()> {
        let path = self.directory.join("key");
        let mut file = open_again(&path)?;
        let mut bytes = Vec::new();
        let mut done = 0;
        while done < wanted {
            let piece = (wanted - done).min(1 << 16);
            fill(&mut file, &path, &mut bytes, piece as usize * KEY_BYTES)?;
            for (&raw, position) in bytes.as_chunks::<KEY_BYTES>().0.iter().zip(done..) {
                visit(self.key(i64::from_le_bytes(raw), position)?);
            }
            done += piece;
        }
        Ok(())
    }

    fn key(&self, raw: i64, position: u64) -> Result<Key> {
        match self.key_width {
            KeyWidth::Bits64 => Ok(raw.cast_unsigned()),
            // As int32 or as uint32; both name the same 32 bits.
            KeyWidth::Bits32 if (i64::from(i32::MIN)..=i64::from(u32::MAX)).contains(&raw) => {
                Ok(raw.cast_unsigned() & 0xFFFF_FFFF)
            }
            KeyWidth::Bits32 => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "{}: key {raw} at position {position} does not fit 32 bits; set \"supportlonglong\": true or \
                     renumber the keys",
                    self.directory.join("key").display()
                ),
            )),
        }
    }
}

fn cannot_open(kind: ErrorKind, path: &Path, why: std::io::Error) -> Error {
    Error::new(kind, format!("{}: cannot open the model file", path.display())).caused_by(why)
}

/// A file that was there before.
fn open_again(path: &Path) -> Result<File> {
    File::open(path).map_err(|why| cannot_open(ErrorKind::Storage, path, why))
}

fn file_state(path: &Path) -> Result<FileState> {
    let file = File::open(path).map_err(|why| cannot_open(ErrorKind::Config, path, why))?;
    state_of(&file, path)
}

fn state_of(file: &File, path: &Path) -> Result<FileState> {
    let metadata = file.metadata().map_err(|why| {
        Error::new(ErrorKind::Storage, format!("{}: cannot read the file's size", path.display()))
            .caused_by(why)
    })?;
    if !metadata.is_file() {
        return Err(Error::new(
            ErrorKind::Config,
            format!("{}: found something else, expected a file", path.display()),
        ));
    }
    let mtime_ns = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Ok(FileState { bytes: metadata.len(), mtime_ns })
}

fn fill(file: &mut File, path: &Path, buffer: &mut Vec<u8>, num_bytes: usize) -> Result<()> {
    buffer.resize(num_bytes, 0);
    file.read_exact(buffer).map_err(|why| {
        Error::new(ErrorKind::Storage, format!("{}: cannot read the model file", path.display()))
            .caused_by(why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, keys: &[i64], row_bytes: usize) {
        std::fs::write(
            directory.join("key"),
            keys.iter().flat_map(|key| key.to_le_bytes()).collect::<Vec<_>>(),
        )
        .unwrap();
        let rows: Vec<u8> = (0..keys.len() * row_bytes).map(|i| i as u8).collect();
        std::fs::write(directory.join("emb_vector"), rows).unwrap();
    }

    fn message(directory: &Path, row_bytes: usize) -> String {
        ModelFiles::open(directory, row_bytes, KeyWidth::Bits64).unwrap_err().to_string()
    }

    #[test]
    fn reads_every_row_in_order_and_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let keys: Vec<i64> = (0..5_000).map(|i| i * 7 - 9_000).collect();
        write(directory.path(), &keys, 2_048);
        let files = ModelFiles::open(directory.path(), 2_048, KeyWidth::Bits64).unwrap();
        let (mut seen_keys, mut seen_rows, mut pieces) = (Vec::new(), Vec::new(), 0);
        let checksum = files
            .read(&mut |keys, rows| {
                seen_keys.extend(keys.iter().map(|key| key.cast_signed()));
                seen_rows.extend_from_slice(rows.bytes());
                pieces += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(seen_keys, keys);
        assert_eq!(seen_rows, std::fs::read(directory.path().join("emb_vector")).unwrap());
        assert!(pieces > 2, "10 MB must come in pieces");
        assert_eq!(checksum, files.read(&mut |_, _| Ok(())).unwrap());
        write(directory.path(), &keys[1..], 2_048);
        let other = ModelFiles::open(directory.path(), 2_048, KeyWidth::Bits64).unwrap();
        assert_ne!(checksum, other.read(&mut |_, _| Ok(())).unwrap());
    }

    #[test]
    fn short_odd_empty_and_missing_files_are_named_with_found_and_expected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert!(message(path, 16).contains("key: cannot open"));
        write(path, &[1, 2, 3], 16);
        assert!(message(path, 32).contains("vectors of 4 float32"), "{}", message(path, 32));
        std::fs::write(path.join("emb_vector"), [0; 47]).unwrap();
        let text = message(path, 16);
        assert!(
            text.contains("found 47 bytes") && text.contains("= 48 bytes") && text.contains("cut short"),
            "{text}"
        );
        std::fs::write(path.join("key"), [0; 23]).unwrap();
        assert!(message(path, 16).contains("23 bytes"));
        std::fs::write(path.join("key"), []).unwrap();
        assert!(message(path, 16).contains("empty"));
        std::fs::remove_file(path.join("key")).unwrap();
        std::fs::create_dir(path.join("key")).unwrap();
        assert!(message(path, 16).contains("expected a file"));
    }

    #[test]
    fn in_32_bit_mode_keys_are_unsigned_and_must_fit() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[-1, 7, i64::from(u32::MAX)], 4);
        let files = ModelFiles::open(directory.path(), 4, KeyWidth::Bits32).unwrap();
        let mut seen = Vec::new();
        files
            .read(&mut |keys, _| {
                seen.extend_from_slice(keys);
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [0xFFFF_FFFF, 7, 0xFFFF_FFFF]);
        write(directory.path(), &[1 << 32], 4);
        let files = ModelFiles::open(directory.path(), 4, KeyWidth::Bits32).unwrap();
        let text = files.read(&mut |_, _| Ok(())).unwrap_err().to_string();
        assert!(text.contains("4294967296") && text.contains("supportlonglong"), "{text}");
    }

    #[test]
    fn files_that_are_gone_when_they_are_read_are_a_matter_of_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        for is_there_at_first in [false, true] {
            write(directory.path(), &[1, 2], 4);
            let files = ModelFiles::open(directory.path(), 4, KeyWidth::Bits64).unwrap();
            let remove = || std::fs::remove_file(directory.path().join("emb_vector")).unwrap();
            if !is_there_at_first {
                remove();
            }
            let error = files
                .read(&mut |_, _| {
                    remove();
                    Ok(())
                })
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Storage);
            assert!(error.to_string().contains("emb_vector: cannot open the model file"), "{error}");
        }
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), &[1, 2], 4);
        let files = ModelFiles::open(directory.path(), 4, KeyWidth::Bits64).unwrap();
        let error = files
            .read(&mut |_, _| {
                write(directory.path(), &[1, 2, 3], 4);
                Ok(())
            })
            .unwrap_err();
        assert!(error.to_string().contains("changed while"), "{error}");
    }
}
