//! Model files that were cut short, lengthened or changed at random: what is read is exactly what is there, and what cannot
//! be a table is an error. `PROPTEST_CASES` says how many.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;

use hps_core::model_files::ModelFiles;
use hps_core::{ErrorKind, Key, KeyWidth};
use proptest::prelude::*;

/// What happens to a file.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Append(Vec<u8>),
    Flip(usize, u8),
    Empty,
    Missing,
    Directory,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0usize..400).prop_map(Damage::Cut),
        prop::collection::vec(any::<u8>(), 1..40).prop_map(Damage::Append),
        (0usize..400, 1u8..=255).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        Just(Damage::Empty),
        Just(Damage::Missing),
        Just(Damage::Directory),
    ]
}

/// Writes a file as it is after what happened to it; returns its content, if it is one.
fn write(path: &Path, mut bytes: Vec<u8>, damages: &[Damage]) -> Option<Vec<u8>> {
    let mut is_file = true;
    for damage in damages {
        match damage {
            Damage::Cut(at) => bytes.truncate(*at),
            Damage::Append(more) => bytes.extend(more),
            Damage::Flip(at, bits) => {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= bits;
                }
            }
            Damage::Empty => bytes.clear(),
            Damage::Missing => is_file = false,
            Damage::Directory => {
                std::fs::create_dir_all(path).unwrap();
                return None;
            }
        }
    }
    if is_file {
        std::fs::write(path, &bytes).unwrap();
    }
    is_file.then_some(bytes)
}

/// What a loop would read, or None.
fn expected(
    keys: Option<Vec<u8>>,
    vectors: Option<Vec<u8>>,
    row_bytes: usize,
    width: KeyWidth,
) -> Option<Vec<(Key, Vec<u8>)>> {
    let (keys, vectors) = (keys?, vectors?);
    if keys.is_empty() || keys.len() % 8 != 0 || vectors.len() != keys.len() / 8 * row_bytes {
        return None;
    }
    let key = |bytes: &[u8]| {
        let key = i64::from_le_bytes(bytes.try_into().unwrap());
        match width {
            KeyWidth::Bits64 => Some(key as u64),
            KeyWidth::Bits32 if (i64::from(i32::MIN)..=i64::from(u32::MAX)).contains(&key) => {
                Some(u64::from(key as u32))
            }
            KeyWidth::Bits32 => None,
        }
    };
    keys.chunks(8)
        .zip(vectors.chunks(row_bytes))
        .map(|(bytes, row)| Some((key(bytes)?, row.to_vec())))
        .collect()
}

proptest! {
    #[test]
    fn what_is_read_is_what_is_there(
        keys in prop::collection::vec(prop_oneof![any::<i64>(), -5i64..1_000], 0..12),
        dim in 1usize..5,
        is_wide in any::<bool>(),
        seed in any::<u8>(),
        of_keys in prop::collection::vec(damage(), 0..3),
        of_vectors in prop::collection::vec(damage(), 0..3),
    ) {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let row_bytes = dim * 4;
        let vectors: Vec<u8> = (0..keys.len() * row_bytes).map(|i| seed.wrapping_add(i as u8)).collect();
        let key_bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let width = if is_wide { KeyWidth::Bits64 } else { KeyWidth::Bits32 };
        let key_bytes = write(&directory.path().join("key"), key_bytes, &of_keys);
        let vectors = write(&directory.path().join("emb_vector"), vectors, &of_vectors);
        let expected = expected(key_bytes, vectors, row_bytes, width);
        let mut found = Vec::new();
        let read = ModelFiles::open(directory.path(), row_bytes, width).and_then(|files| {
            files.read(&mut |keys, rows| {
                found.extend(keys.iter().copied().zip(rows.iter().map(<[u8]>::to_vec)));
                Ok(())
            })
        });
        match (read, expected) {
            (Ok(_), Some(expected)) => prop_assert_eq!(found, expected),
            (Ok(_), None) => prop_assert!(false, "files that are no table were read: {found:?}"),
            (Err(error), None) => {
                let kind = error.kind();
                prop_assert!(matches!(kind, ErrorKind::Config | ErrorKind::Storage | ErrorKind::NotFound), "{}", error);
            }
            (Err(error), Some(_)) => prop_assert!(false, "files that are a table were refused: {}", error),
        }
    }
}
