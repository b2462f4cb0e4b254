//! One load of a table at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};

/// Whether a table is being loaded by this process. A tier has one for each table.
#[derive(Debug, Default)]
pub struct LoadFlag(AtomicBool);

/// The right to load a table, given back when dropped.
#[derive(Debug)]
#[must_use = "another load may begin once this is dropped"]
pub struct LoadTurn<'t>(&'t AtomicBool);

impl LoadFlag {
    /// Begins a load.
    ///
    /// # Errors
    /// `Unsupported` while another one is under way; the caller names the table.
    pub fn take_turn(&self) -> Result<LoadTurn<'_>> {
        if self.0.swap(true, Ordering::AcqRel) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the table is being loaded by this process already",
            ));
        }
        Ok(LoadTurn(&self.0))
    }
}

impl Drop for LoadTurn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_one_after_the_other() {
        let flag = LoadFlag::default();
        for _ in 0..2 {
            let turn = flag.take_turn().unwrap();
            assert_eq!(flag.take_turn().unwrap_err().kind(), ErrorKind::Unsupported);
            drop(turn);
        }
    }
}
