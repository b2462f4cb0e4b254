//! Views of rows in host memory. A row is bytes here: what its elements are is decided by who reads it.

use crate::error::{Error, ErrorKind, Result};
use crate::key::Key;

/// Refuses rows of another size than a table's.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_row_bytes(expected: usize, given: usize) -> Result<()> {
    if expected == given {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("the table has rows of {expected} bytes, but rows of {given} bytes were given"),
    ))
}

/// Refuses rows of another size than a table's, or of another number than their keys.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_rows(row_bytes: usize, keys: &[Key], rows: Rows<'_>) -> Result<()> {
    check_row_bytes(row_bytes, rows.row_bytes())?;
    if keys.len() == rows.len() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("{} keys were given, but {} rows", keys.len(), rows.len()),
    ))
}

/// For a buffer of this process that cannot be seen as rows.
pub(crate) fn uneven() -> Error {
    Error::new(ErrorKind::Internal, "a buffer is no whole number of rows")
}

/// Rows to read, one after another without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    bytes: &'a [u8],
    row_bytes: usize,
}

impl<'a> Rows<'a> {
    /// `bytes` as rows of `row_bytes` each; None unless they divide evenly.
    pub fn new(bytes: &'a [u8], row_bytes: usize) -> Option<Self> {
        (row_bytes > 0 && bytes.len().is_multiple_of(row_bytes)).then_some(Self { bytes, row_bytes })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All rows' bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The rows in order.
    pub fn iter(&self) -> std::slice::ChunksExact<'a, u8> {
        self.bytes.chunks_exact(self.row_bytes)
    }

    /// Row `position`; None past the end.
    #[inline]
    pub fn get(&self, position: usize) -> Option<&'a [u8]> {
        let start = position.checked_mul(self.row_bytes)?;
        self.bytes.get(start..start.checked_add(self.row_bytes)?)
    }
}

/// Rows to write: a caller's output.
#[derive(Debug)]
pub struct RowsMut<'a> {
    bytes: &'a mut [u8],
    row_bytes: usize,
}

impl<'a> RowsMut<'a> {
    /// `bytes` as rows of `row_bytes` each; None unless they divide evenly.
    pub fn from_bytes(bytes: &'a mut [u8], row_bytes: usize) -> Option<Self> {
        (row_bytes > 0 && bytes.len().is_multiple_of(row_bytes)).then_some(Self { bytes, row_bytes })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Row `position`, to be written; None past the end.
    #[inline]
    pub fn get_mut(&mut self, position: usize) -> Option<&mut [u8]> {
        let start = position.checked_mul(self.row_bytes)?;
        self.bytes.get_mut(start..start.checked_add(self.row_bytes)?)
    }

    /// Writes `row` at `position`. False, and nothing written, if the position or the length is out of range.
    #[inline]
    #[must_use]
    pub fn write(&mut self, position: usize, row: &[u8]) -> bool {
        match self.get_mut(position) {
            Some(target) if target.len() == row.len() => {
                target.copy_from_slice(row);
                true
            }
            _ => false,
        }
    }

    /// The rows as written so far.
    pub fn as_rows(&self) -> Rows<'_> {
        Rows { bytes: self.bytes, row_bytes: self.row_bytes }
    }

    /// All rows in pieces of `num_rows`, at least one; the last may have fewer.
    pub(crate) fn pieces(&mut self, num_rows: usize) -> impl Iterator<Item = RowsMut<'_>> {
        let row_bytes = self.row_bytes;
        self.bytes
            .chunks_mut(num_rows.saturating_mul(row_bytes))
            .map(move |bytes| RowsMut { bytes, row_bytes })
    }

    /// The rows `start..end`; None if they are out of range.
    pub fn slice(&mut self, start: usize, end: usize) -> Option<RowsMut<'_>> {
        let range = start.checked_mul(self.row_bytes)?..end.checked_mul(self.row_bytes)?;
        Some(RowsMut { bytes: self.bytes.get_mut(range)?, row_bytes: self.row_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_must_divide_evenly() {
        assert!(Rows::new(&[0; 8], 3).is_none());
        assert!(Rows::new(&[], 0).is_none());
        assert_eq!(Rows::new(&[0; 9], 3).unwrap().len(), 3);
    }

    #[test]
    fn writing_out_of_range_or_with_a_wrong_length_changes_nothing() {
        let mut bytes = [7u8; 6];
        let mut rows = RowsMut::from_bytes(&mut bytes, 3).unwrap();
        assert!(!rows.write(2, &[1, 2, 3]));
        assert!(!rows.write(usize::MAX, &[1, 2, 3]));
        assert!(!rows.write(0, &[1, 2]));
        assert!(rows.write(1, &[1, 2, 3]));
        assert!(rows.slice(1, 2).unwrap().write(0, &[4, 5, 6]));
        assert!(rows.slice(1, 3).is_none());
        assert_eq!(bytes, [7, 7, 7, 4, 5, 6]);
    }
}
