//! Keys, and the hash that decides where a key lives.

pub use hps_config::KeyWidth;

/// The 64-bit id of one row. Every value is legal: emptiness is marked outside the key.
///
/// 64-bit mode: the two's-complement bits of the caller's int64. 32-bit mode (`supportlonglong: false`): the
/// caller's int32 read as unsigned and zero-extended, so that int32 -1 is key 0xFFFF_FFFF.
pub type Key = u64;

/// A storage table of one store: its position in the list of tables that every tier was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableId(pub u32);

impl TableId {
    /// The table's position in the list of tables.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Mixes a key's 64 bits: Pelle Evensen's public-domain `rrxmrrxmsx_0`.
///
/// The partition of a key is `mix(key) % num_partitions`. The predecessor used the same function, so that its Redis
/// data and Kafka producers agree with ours on where a key lives: it must never change.
#[inline]
pub fn mix(key: Key) -> u64 {
    let mut x = key;
    x ^= x.rotate_right(25) ^ x.rotate_right(50);
    x = x.wrapping_mul(0xA24B_AED4_963E_E407);
    x ^= x.rotate_right(24) ^ x.rotate_right(49);
    x = x.wrapping_mul(0x9FB2_1C65_1E98_DF25);
    x ^ (x >> 28)
}

/// A key as people know it: signed in 64-bit mode, unsigned in 32-bit mode.
pub fn display_key(key: Key, width: KeyWidth) -> String {
    match width {
        KeyWidth::Bits64 => key.cast_signed().to_string(),
        KeyWidth::Bits32 => key.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors computed from the predecessor's definition: key, mix, mod 8, mod 16, mod 15.
    #[test]
    fn mix_agrees_with_the_predecessor() {
        let vectors: [(u64, u64, u64, u64, u64); 11] = [
            (0, 0x0000_0000_0000_0000, 0, 0, 0),
            (1, 0x0dad_bfee_b7d6_4133, 3, 3, 3),
            (2, 0x90ae_ea20_4343_5d3e, 6, 14, 3),
            (3, 0x27c6_40c5_3309_12d0, 0, 0, 4),
            (42, 0x7e54_08d0_aa97_9155, 5, 5, 2),
            (1000, 0x3b1e_3778_bd1c_f415, 5, 5, 11),
            (123_456_789, 0xcc0f_5d71_df7f_53ac, 4, 12, 10),
            (i64::MAX as u64, 0x2122_d66f_bafe_88ae, 6, 14, 2),
            (-1i64 as u64, 0xe398_180a_dc04_d6fc, 4, 12, 8),
            (-2i64 as u64, 0x9b33_f887_512a_d406, 6, 6, 0),
            (0xFFFF_FFFF, 0xccf7_26cd_1741_b44b, 3, 11, 2),
        ];
        for (key, mixed, mod8, mod16, mod15) in vectors {
            assert_eq!(mix(key), mixed, "key {key}");
            assert_eq!((mixed % 8, mixed % 16, mixed % 15), (mod8, mod16, mod15), "key {key}");
        }
    }

    #[test]
    fn keys_are_shown_in_the_sign_of_their_mode() {
        assert_eq!(display_key(u64::MAX, KeyWidth::Bits64), "-1");
        assert_eq!(display_key(0xFFFF_FFFF, KeyWidth::Bits32), "4294967295");
    }
}
