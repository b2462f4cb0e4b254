//! What a number's digits stand for.

/// A number, exact where 64 bits can hold it.
///
/// `4096`, `4096.0` and `4.096e3` are the same integer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    /// An integer below zero, written without fraction and exponent.
    Negative(i64),
    /// An integer, zero or more.
    Unsigned(u64),
    /// Everything else; always finite.
    Float(f64),
}

impl Number {
    /// The number that `text`, which follows JSON's grammar, stands for. `is_plain`: it has neither fraction nor
    /// exponent. `None` if it is too large for floating point.
    pub(super) fn new(text: &str, is_plain: bool) -> Option<Self> {
        let integer = match (text.starts_with('-'), is_plain) {
            (false, _) => exact_integer(text).map(Self::Unsigned),
            // -0 is an integer like any other: 0. But -0.0 keeps its sign.
            (true, true) => {
                text.parse().ok().map(|n| if n == 0 { Self::Unsigned(0) } else { Self::Negative(n) })
            }
            (true, false) => None,
        };
        integer.or_else(|| text.parse().ok().filter(|float: &f64| float.is_finite()).map(Self::Float))
    }
}

/// The integer that an unsigned number stands for, if it is one and 64 bits can hold it.
fn exact_integer(number: &str) -> Option<u64> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let cut = i64::try_from(digits.len() - significant.len()).ok()?;
    let point = i64::try_from(fraction.len()).ok()?;
    let zeros = exponent.parse::<i64>().ok()?.checked_sub(point)?.checked_add(cut)?;
    let scale = 10_u64.checked_pow(u32::try_from(zeros).ok()?)?;
    significant.parse::<u64>().ok()?.checked_mul(scale)
}
