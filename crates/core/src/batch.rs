//! The keys of one call, and which of them a tier is asked for.

use crate::error::{Error, ErrorKind};
use crate::key::Key;

/// The most keys that go through the tiers at a time; a larger call is cut. It bounds scratch memory (4 bytes per
/// missed key) and keeps positions within 32 bits.
pub const MAX_BATCH_KEYS: usize = 1 << 20;

/// Keys of one call, all of them or those at some positions.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    keys: &'a [Key],
    positions: Option<&'a [u32]>,
}

impl<'a> Batch<'a> {
    /// Every key of the call.
    pub fn all(keys: &'a [Key]) -> Self {
        Self { keys, positions: None }
    }

    /// Only the keys at `positions`, which ascend and lie within `keys`: what the tier above missed.
    pub fn at(keys: &'a [Key], positions: &'a [u32]) -> Self {
        Self { keys, positions: Some(positions) }
    }

    /// Of the same keys, only those at `positions`.
    #[must_use]
    pub fn only<'b>(&self, positions: &'b [u32]) -> Batch<'b>
    where
        'a: 'b,
    {
        Batch { keys: self.keys, positions: Some(positions) }
    }

    /// Number of keys asked for.
    #[inline]
    pub fn len(&self) -> usize {
        self.positions.map_or(self.keys.len(), <[u32]>::len)
    }

    /// True if no key is asked for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `i`-th key asked for and the position of its row in the caller's output.
    #[inline]
    pub fn get(&self, i: usize) -> Option<(u32, Key)> {
        let position = match self.positions {
            None => i as u32,
            Some(positions) => *positions.get(i)?,
        };
        Some((position, *self.keys.get(position as usize)?))
    }

    /// Copies the keys asked for from the `start`-th on, and the positions of their rows, as many as both slices take or as there
    /// are. Returns how many; None if a position lies outside of the keys.
    #[inline]
    pub fn copy_from(&self, start: usize, keys: &mut [Key], positions: &mut [u32]) -> Option<usize> {
        let start = start.min(self.len());
        let wanted = keys.len().min(positions.len()).min(self.len() - start);
        let (keys, positions) = (keys.get_mut(..wanted)?, positions.get_mut(..wanted)?);
        match self.positions {
            None => {
                keys.copy_from_slice(self.keys.get(start..start + wanted)?);
                positions.iter_mut().zip(start as u32..).for_each(|(position, at)| *position = at);
            }
            Some(asked) => {
                positions.copy_from_slice(asked.get(start..start + wanted)?);
                for (key, &position) in keys.iter_mut().zip(positions.iter()) {
                    *key = *self.keys.get(position as usize)?;
                }
            }
        }
        Some(wanted)
    }

    /// The keys asked for, each with the position of its row.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Key)> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

/// What a tier answers to a batch that names a position without a key or a row.
#[cold]
pub fn no_such_position() -> Error {
    Error::new(ErrorKind::InvalidArgument, "a position of the batch lies outside of its keys or of the rows")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_at_positions_names_the_rows_of_those_positions() {
        let keys = [10, 20, 30, 40];
        let batch = Batch::at(&keys, &[1, 3]);
        assert_eq!(batch.iter().collect::<Vec<_>>(), [(1, 20), (3, 40)]);
        assert_eq!(batch.len(), 2);
        assert_eq!(Batch::all(&keys).iter().last(), Some((3, 40)));
    }

    #[test]
    fn pieces_are_what_one_would_get_key_by_key() {
        let keys = [10, 20, 30, 40];
        for batch in [Batch::all(&keys), Batch::at(&keys, &[0, 1, 3])] {
            for (start, room) in (0..5).flat_map(|start| (0..4).map(move |room| (start, room))) {
                let (mut some_keys, mut positions) = ([7; 4], [7; 4]);
                let copied = batch.copy_from(start, &mut some_keys[..room], &mut positions).unwrap();
                assert_eq!(copied, room.min(batch.len().saturating_sub(start)));
                for i in 0..4 {
                    let expected = if i < copied { batch.get(start + i).unwrap() } else { (7, 7) };
                    assert_eq!((positions[i], some_keys[i]), expected);
                }
            }
        }
        assert_eq!(Batch::at(&keys, &[1, 4]).copy_from(0, &mut [0; 4], &mut [0; 4]), None);
    }
}
