//! Finds line and column of a place in a text, quickly even where a hostile text has a million faults in one line.

use crate::problem::Position;

/// Bytes that are counted again for each place.
const BLOCK_BYTES: usize = 4096;

/// An index of a text.
pub(crate) struct Positions<'t> {
    text: &'t [u8],
    /// Byte offset of each line's start.
    lines: Vec<usize>,
    /// Characters before each block.
    chars: Vec<usize>,
}

impl<'t> Positions<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let text = text.as_bytes();
        let newlines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let lines = std::iter::once(0).chain(newlines.map(|(offset, _)| offset + 1)).collect();
        let mut before = 0;
        let mut chars = vec![0];
        for block in text.chunks(BLOCK_BYTES) {
            before += count_chars(block);
            chars.push(before);
        }
        Self { text, lines, chars }
    }

    /// Line and column of a byte offset.
    pub(crate) fn of(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        Position { line, column: 1 + self.chars_before(offset) - self.chars_before(start) }
    }

    fn chars_before(&self, offset: usize) -> usize {
        let block = offset / BLOCK_BYTES;
        let rest = self.text.get(block * BLOCK_BYTES..offset).unwrap_or_default();
        self.chars.get(block).copied().unwrap_or(0) + count_chars(rest)
    }
}

/// How many characters begin in a part of a UTF-8 text.
fn count_chars(part: &[u8]) -> usize {
    part.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_counting() {
        let text = "a\n\né😀\r\nüb".repeat(3000);
        let positions = Positions::new(&text);
        let (mut line, mut column) = (1, 1);
        for (offset, letter) in text.char_indices() {
            assert_eq!(positions.of(offset), Position { line, column }, "{offset}");
            (line, column) = if letter == '\n' { (line + 1, 1) } else { (line, column + 1) };
        }
        assert_eq!(positions.of(text.len()), Position { line, column });
        assert_eq!(Positions::new("").of(0), Position { line: 1, column: 1 });
    }
}
