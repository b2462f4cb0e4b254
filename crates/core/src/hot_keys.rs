//! Which keys a cache held, hottest first, in a file: so that the next start warms up with them and not with any.
//!
//! ```text
//! "HPSHOT01" | number of keys (8 bytes) | XXH3 of the keys (8 bytes) | keys (8 bytes each)      all little endian
//! ```
//! The file is a hint. One that is damaged, or of another table, costs nothing but what it was for.

use std::fs::File;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::batch::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Key, TableId};
use crate::observer::{Observer, Progress};
use crate::row::{Rows, RowsMut, uneven};
use crate::tier::{CacheTier, Promotion, TableSpec, TruthTier};
use crate::update_clock::UpdateClock;

const MAGIC: &[u8; 8] = b"HPSHOT01";
const HEADER_BYTES: usize = 24;
const KEY_BYTES: usize = size_of::<Key>();
/// Keys that are looked up at a time.
const BATCH: usize = 8192;

/// The file of a table.
pub fn file_of(folder: &Path, spec: &TableSpec) -> PathBuf {
    // Names are anybody's; those of files are not.
    folder.join(format!("{:032x}.hot", xxh3_128(spec.name.as_bytes())))
}

/// Writes a file anew: whoever reads it sees the old one or the new one.
///
/// # Errors
/// `Storage`.
pub fn save(file: &Path, keys: &[Key]) -> Result<()> {
    let failed = |error| {
        Error::new(ErrorKind::Storage, "cannot save the hot keys of a table")
            .at("file", file.display())
            .caused_by(error)
    };
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(HEADER_BYTES + keys.len() * KEY_BYTES).map_err(|error| {
        Error::new(ErrorKind::OutOfMemory, "no memory to save the hot keys of a table").caused_by(error)
    })?;
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(keys.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend(keys.iter().flat_map(|key| key.to_le_bytes()));
    let checksum = xxh3_64(bytes.get(HEADER_BYTES..).unwrap_or_default());
    if let Some(place) = bytes.get_mut(16..HEADER_BYTES) {
        place.copy_from_slice(&checksum.to_le_bytes());
    }
    // Another process may save the same list.
    let draft = file.with_extension(format!("draft-{}", std::process::id()));
    let write = || {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut opened = File::create(&draft)?;
        opened.write_all(&bytes)?;
        opened.sync_all()?;
        std::fs::rename(&draft, file)
    };
    write().map_err(failed)
}

/// The keys of a file; None if there is none.
///
/// # Errors
/// `Corrupt` if it is damaged, `Storage` if it cannot be read.
pub fn load(file: &Path) -> Result<Option<Vec<Key>>> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::new(ErrorKind::Storage, "cannot read the hot keys of a table")
                .at("file", file.display())
                .caused_by(error));
        }
    };
    let parse = || {
        let (header, keys) = bytes.split_at_checked(HEADER_BYTES)?;
        let number = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?));
        let is_whole = header.starts_with(MAGIC)
            && number(8)?.checked_mul(KEY_BYTES as u64)? == keys.len() as u64
            && number(16)? == xxh3_64(keys);
        is_whole.then(|| keys.as_chunks().0.iter().map(|key| Key::from_le_bytes(*key)).collect())
    };
    parse().map(Some).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "the file with the hot keys of a table is damaged")
            .at("file", file.display())
    })
}

/// Carries the rows of these keys up, as far as the truth has them, and uses each: the hottest, which are the first, last. Returns how many
/// were carried.
///
/// # Errors
/// Whatever the tiers report.
pub fn fill_cache(
    cache: &dyn CacheTier,
    truth: &dyn TruthTier,
    (table, spec): (TableId, &TableSpec),
    clock: &UpdateClock,
    keys: &[Key],
    observer: &dyn Observer,
) -> Result<u64> {
    let snapshot = clock.snapshot();
    let total = keys.len() as u64;
    let (mut done, mut carried) = (0, 0);
    for keys in keys.rchunks(BATCH) {
        let keys: Vec<Key> = keys.iter().rev().copied().collect();
        let mut bytes = vec![0; keys.len() * spec.row_bytes];
        let mut misses = Vec::new();
        let mut rows = RowsMut::from_bytes(&mut bytes, spec.row_bytes).ok_or_else(uneven)?;
        truth.lookup(table, Batch::all(&keys), &mut rows, &mut misses)?;
        let (mut found_keys, mut found_rows) = (Vec::new(), Vec::new());
        let mut misses = misses.into_iter().peekable();
        for ((i, &key), row) in (0..).zip(&keys).zip(bytes.chunks_exact(spec.row_bytes)) {
            if misses.next_if_eq(&i).is_none() {
                found_keys.push(key);
                found_rows.extend_from_slice(row);
            }
        }
        let rows = Rows::new(&found_rows, spec.row_bytes).ok_or_else(uneven)?;
        carried += cache.promote(table, Promotion { keys: &found_keys, rows, clock, snapshot: &snapshot })?;
        done += keys.len() as u64;
        observer.progress(Progress {
            what: "warming (hot keys)",
            table: &spec.name,
            done,
            total: total.max(1),
        });
    }
    // To be there is one use. All of these get one more, the hotter half another, and so on.
    for part in [1, 2, 4, 8] {
        use_rows(cache, (table, spec), keys.get(..keys.len() / part).unwrap_or_default())?;
    }
    Ok(carried)
}

/// Uses the rows of these keys, the first ones last.
fn use_rows(cache: &dyn CacheTier, (table, spec): (TableId, &TableSpec), keys: &[Key]) -> Result<()> {
    for keys in keys.rchunks(BATCH) {
        let keys: Vec<Key> = keys.iter().rev().copied().collect();
        let mut bytes = vec![0; keys.len() * spec.row_bytes];
        let mut rows = RowsMut::from_bytes(&mut bytes, spec.row_bytes).ok_or_else(uneven)?;
        cache.lookup(table, Batch::all(&keys), &mut rows, &mut Vec::new())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_in_their_order_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/x.hot");
        assert_eq!(load(&file).unwrap(), None);
        for keys in [vec![], vec![3, u64::MAX, 0, 7], (0..100_000).rev().collect()] {
            save(&file, &keys).unwrap();
            assert_eq!(load(&file).unwrap(), Some(keys));
        }
        let whole = std::fs::read(&file).unwrap();
        for damaged in [&whole[..0], &whole[..23], &whole[..whole.len() - 1]] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(load(&file).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        for at in [0, 9, 17, 25, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(load(&file).unwrap_err().kind(), ErrorKind::Corrupt, "byte {at}");
        }
    }
}
