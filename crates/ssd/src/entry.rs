//! Keys and values as RocksDB sees them.

use hps_core::key::{Key, KeyWidth, display_key};
use hps_core::tier::TableSpec;
use hps_core::{Error, ErrorKind};

/// Bytes of a stored key.
pub(crate) fn key_bytes(width: KeyWidth) -> usize {
    match width {
        KeyWidth::Bits32 => 4,
        KeyWidth::Bits64 => 8,
    }
}

/// True if the key can be stored with this width.
#[inline]
pub(crate) fn fits(key: Key, width: KeyWidth) -> bool {
    width == KeyWidth::Bits64 || u32::try_from(key).is_ok()
}

/// A number that orders keys as RocksDB does. Its lowest `key_bytes` bytes, most significant first, are the stored key.
#[inline]
pub(crate) fn order_of(key: Key, width: KeyWidth) -> u64 {
    match width {
        KeyWidth::Bits64 => key.swap_bytes(),
        KeyWidth::Bits32 => key.swap_bytes() >> 32,
    }
}

/// The key that has this order.
#[cfg(test)]
pub(crate) fn key_of(order: u64, width: KeyWidth) -> Key {
    match width {
        KeyWidth::Bits64 => order.swap_bytes(),
        KeyWidth::Bits32 => (order << 32).swap_bytes(),
    }
}

/// Hands the stored form of `key` to `take`.
#[inline]
pub(crate) fn with_stored_key<T>(key: Key, width: KeyWidth, take: impl FnOnce(&[u8]) -> T) -> T {
    match width {
        KeyWidth::Bits64 => take(&key.to_le_bytes()),
        KeyWidth::Bits32 => take(&(key as u32).to_le_bytes()),
    }
}

/// Reads a stored key; None if it has another length.
#[inline]
pub(crate) fn read_key(stored: &[u8], width: KeyWidth) -> Option<Key> {
    match width {
        KeyWidth::Bits64 => stored.try_into().ok().map(u64::from_le_bytes),
        KeyWidth::Bits32 => stored.try_into().ok().map(u32::from_le_bytes).map(u64::from),
    }
}

/// A stored row that has another size than the table's.
pub(crate) fn wrong_row(spec: &TableSpec, key: Key, found_bytes: usize) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored row has the wrong size; it is not served")
        .at("table", &spec.name)
        .at("key", display_key(key, spec.key_width))
        .at("found bytes", found_bytes)
        .at("expected bytes", spec.row_bytes)
}

/// A stored key that has another size than the table's.
pub(crate) fn wrong_key(spec: &TableSpec, found_bytes: usize) -> Error {
    Error::new(ErrorKind::Corrupt, "a stored key has the wrong size")
        .at("table", &spec.name)
        .at("found bytes", found_bytes)
        .at("expected bytes", key_bytes(spec.key_width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_the_stored_bytes_and_can_be_undone() {
        for width in [KeyWidth::Bits64, KeyWidth::Bits32] {
            let keys: Vec<Key> = [0, 1, 255, 256, 65_535, 1 << 31, 0xFFFF_FFFF, 1 << 40, u64::MAX]
                .into_iter()
                .filter(|&key| fits(key, width))
                .collect();
            let stored = |key| with_stored_key(key, width, <[u8]>::to_vec);
            for &a in &keys {
                assert_eq!(key_of(order_of(a, width), width), a);
                assert_eq!(read_key(&stored(a), width), Some(a));
                assert_eq!(stored(a), order_of(a, width).to_be_bytes()[8 - key_bytes(width)..]);
                for &b in &keys {
                    assert_eq!(order_of(a, width).cmp(&order_of(b, width)), stored(a).cmp(&stored(b)));
                }
            }
        }
    }

    #[test]
    fn a_key_of_another_length_is_not_read() {
        assert_eq!(read_key(&[0; 4], KeyWidth::Bits64), None);
        assert_eq!(read_key(&[0; 8], KeyWidth::Bits32), None);
        assert!(!fits(1 << 32, KeyWidth::Bits32));
    }
}
