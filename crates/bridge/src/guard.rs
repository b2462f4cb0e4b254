//! Turns panics into errors at the boundary.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hps_core::{Error, ErrorKind, Result};

/// Runs `body`; a panic becomes an error that asks for a bug report.
///
/// State that a panic may have left half-changed lies behind locks of parking_lot, which do not poison; rows are only
/// written whole, so what readers see stays right.
pub(crate) fn no_panic<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        Err(Error::new(
            ErrorKind::Internal,
            format!("internal error in hps, please report it: {}", text_of(payload.as_ref())),
        ))
    })
}

fn text_of(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let error = no_panic::<()>(|| panic!("number {}", 7)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.to_string().contains("number 7"), "{error}");
    }
}
