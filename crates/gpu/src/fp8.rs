//! Rows of 8-bit floats (`fp8_quant`): a quarter of the memory and a scale, and 8 values from one power of two to the next.
//!
//! A row of numbers x becomes numbers q in E4M3 (sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity), and one scale,
//! so that float(q) * scale is close to x:
//!
//! ```text
//! scale = max(largest |x| / 448, 1 / (448 * 512))
//! q     = x / scale, rounded to the nearest of E4M3, ties to even
//! ```
//!
//! as the predecessor's static cache does it. 448 is the largest number of E4M3. A NaN stays one and does not count as largest; an
//! infinity does, so that the other numbers of its row cannot be told and read as NaN. The layout is that of
//! `cuda/include/fp8_rows.cuh`, which reads it.

use hps_core::{Error, ErrorKind, Result};

const LARGEST: f32 = 448.0;
const SMALLEST_SCALE: f32 = 1.0 / (448.0 * 512.0);
/// Numbers below are multiples of the smallest one.
const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
const STEPS_BELOW: f32 = 512.0;
const NAN: u8 = 0x7f;

/// Bytes that a row of so many bytes of float32 takes.
pub(crate) fn stored_bytes(row_bytes: usize) -> usize {
    (row_bytes / size_of::<f32>()).next_multiple_of(4) + size_of::<f32>()
}

/// Stores rows of float32, `row_bytes` each, to `stored`.
///
/// # Errors
/// `Internal` if `stored` is not as long as they take.
pub(crate) fn store_rows(rows: &[u8], row_bytes: usize, stored: &mut [u8]) -> Result<()> {
    let taken = stored_bytes(row_bytes);
    if row_bytes == 0 || rows.len() / row_bytes * taken != stored.len() {
        return Err(Error::new(ErrorKind::Internal, "no room for rows of 8-bit floats"));
    }
    for (row, to) in rows.chunks_exact(row_bytes).zip(stored.chunks_exact_mut(taken)) {
        store_row(row, to);
    }
    Ok(())
}

fn store_row(row: &[u8], to: &mut [u8]) {
    let numbers = || row.chunks_exact(4).map(|bytes| bytes.try_into().map_or(0.0, f32::from_le_bytes));
    // NaNs are passed over.
    let largest = numbers().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = (largest / LARGEST).max(SMALLEST_SCALE);
    let (quarters, end) = to.split_at_mut(to.len() - size_of::<f32>());
    quarters.fill(0);
    for (q, x) in quarters.iter_mut().zip(numbers()) {
        *q = to_e4m3(x / scale);
    }
    end.copy_from_slice(&scale.to_le_bytes());
}

/// The nearest number of E4M3, ties to the even one; beyond the largest, the largest.
fn to_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return NAN;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let x = x.abs().min(LARGEST);
    if x < SMALLEST_NORMAL {
        return sign | (x * STEPS_BELOW).round_ties_even() as u8;
    }
    // 20 bits of the mantissa go; what they round up goes into the exponent, as it should. Its bias was 127.
    let bits = x.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

/// What is read of a row that was stored.
#[cfg(test)]
pub(crate) fn round_trip(row: &[u8]) -> Vec<u8> {
    let mut stored = vec![0; stored_bytes(row.len())];
    store_row(row, &mut stored);
    let (quarters, scale) = stored.split_at(stored.len() - 4);
    let scale = f32::from_le_bytes(scale.try_into().unwrap());
    let numbers = quarters.iter().take(row.len() / 4).map(|&q| tests::of_e4m3(q) * scale);
    numbers.flat_map(f32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition of the format.
    pub(super) fn of_e4m3(q: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(q >> 3 & 15), f32::from(q & 7));
        let magnitude = match (exponent, q & 7) {
            (15, 7) => f32::NAN,
            (0, _) => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        if q & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_number_of_the_format_is_itself() {
        for q in (0..=255u8).filter(|q| q & 0x7f != NAN) {
            assert_eq!(to_e4m3(of_e4m3(q)), q);
        }
        assert_eq!(to_e4m3(f32::NAN), NAN);
        assert_eq!((of_e4m3(0x7e), of_e4m3(0x01)), (448.0, 2f32.powi(-9)));
    }

    #[test]
    fn others_become_the_nearest_and_halves_the_even_one() {
        for q in 0..0x7e {
            let (below, above) = (of_e4m3(q), of_e4m3(q + 1));
            let middle = f32::midpoint(below, above);
            let just_below = f32::from_bits(middle.to_bits() - 1);
            let just_above = f32::from_bits(middle.to_bits() + 1);
            assert_eq!(to_e4m3(just_below), q, "{just_below}");
            assert_eq!(to_e4m3(just_above), q + 1, "{just_above}");
            assert_eq!(to_e4m3(middle), q + (q & 1), "{middle}");
            assert_eq!(to_e4m3(-just_above), 0x80 | (q + 1));
        }
        assert_eq!((to_e4m3(448.01), to_e4m3(1e30), to_e4m3(f32::NEG_INFINITY)), (0x7e, 0x7e, 0xfe));
        assert_eq!((to_e4m3(-0.0), to_e4m3(1e-30)), (0x80, 0));
    }

    #[test]
    fn a_row_is_scaled_by_its_largest_number() {
        let row = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let read = |numbers: &[f32]| -> Vec<f32> {
            let bytes = round_trip(&row(numbers));
            bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
        };
        assert_eq!(read(&[448.0, -224.0, 1.0, 0.0, 3.13]), [448.0, -224.0, 1.0, 0.0, 3.25]);
        assert_eq!(read(&[2.0, -2.0, 1.0]), [2.0, -2.0, 1.0]);
        // The scale has a lower bound: smaller numbers vanish.
        assert_eq!(read(&[1e-20, 0.0]), [0.0, 0.0]);
        let read = read(&[f32::NAN, 7.0]);
        assert!(read[0].is_nan() && read[1] == 7.0);
        assert!(
            round_trip(&row(&[f32::INFINITY, 7.0]))
                .chunks_exact(4)
                .all(|x| { f32::from_le_bytes(x.try_into().unwrap()).is_nan() })
        );
        assert_eq!([4, 8, 16, 20, 128, 512].map(stored_bytes), [8, 8, 8, 12, 36, 132]);
        assert!(store_rows(&[0; 32], 16, &mut [0; 15]).is_err());
    }
}
