//! Changes of tables, in one order: one stream, and pinned buffers through which keys and rows reach it.

use hps_core::{Error, ErrorKind, Key, Result, Rows};

use crate::driver::{Device, Event, Stream};
use crate::memory::PinnedBuffer;
use crate::table::{Batch, Change, GpuTable};

/// Bytes of rows, and keys, that one buffer holds at most.
const ROWS_BYTES: usize = 8 << 20;
const MAX_KEYS: usize = 1 << 16;

/// Keys and rows on their way.
#[derive(Debug)]
struct Stage {
    keys: PinnedBuffer,
    rows: PinnedBuffer,
    /// The kernel that reads them.
    event: Event,
}

/// See the module. Its owner holds a lock while it sends changes, so that their order is that of the lock.
#[derive(Debug)]
pub(crate) struct Writer {
    device: &'static Device,
    stages: [Stage; 2],
    next: usize,
    /// Last of the fields: the stream is destroyed after the events.
    stream: Stream,
}

impl Stage {
    fn new(device: &'static Device) -> Result<Self> {
        Ok(Self {
            keys: PinnedBuffer::new(device, (MAX_KEYS * size_of::<Key>()) as u64)?,
            rows: PinnedBuffer::new(device, ROWS_BYTES as u64)?,
            event: Event::new(device)?,
        })
    }
}

impl Writer {
    /// The device must have been entered, for this and every other function.
    pub(crate) fn new(device: &'static Device) -> Result<Self> {
        Ok(Self {
            device,
            stages: [Stage::new(device)?, Stage::new(device)?],
            next: 0,
            stream: Stream::new(device)?,
        })
    }

    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sends a change of any number of keys. Of a repeated key the last row wins.
    pub(crate) fn change(
        &mut self,
        table: &GpuTable,
        change: Change,
        keys: &[Key],
        rows: Option<Rows<'_>>,
    ) -> Result<()> {
        let row_bytes = table.row_bytes() as usize;
        if rows.is_some_and(|rows| rows.row_bytes() != row_bytes || rows.len() != keys.len()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "rows of another size or number than the keys'",
            ));
        }
        let at_once = (ROWS_BYTES / row_bytes.max(1)).clamp(1, MAX_KEYS);
        let mut start = 0;
        while start < keys.len() {
            let end = end_of_distinct(keys, start, at_once);
            let piece = keys.get(start..end).unwrap_or_default();
            let bytes = rows.and_then(|rows| rows.bytes().get(start * row_bytes..end * row_bytes));
            self.send(table, change, piece, bytes)?;
            start = end;
        }
        Ok(())
    }

    fn send(&mut self, table: &GpuTable, change: Change, keys: &[Key], rows: Option<&[u8]>) -> Result<()> {
        let number = self.next;
        self.next = (number + 1) % self.stages.len();
        let stage = self.stages.get_mut(number).ok_or_else(no_stage)?;
        stage.event.wait()?;
        if rows.is_some_and(|rows| rows.len() > stage.rows.num_bytes()) {
            stage.rows = PinnedBuffer::new(self.device, rows.map_or(0, <[u8]>::len) as u64)?;
        }
        // SAFETY: numbers; the kernel that read them before was waited for.
        let to = unsafe { stage.keys.slice_mut(0, keys.len()) }.ok_or_else(no_stage)?;
        to.copy_from_slice(keys);
        if let Some(rows) = rows {
            // SAFETY: as above.
            let to = unsafe { stage.rows.slice_mut(0, rows.len()) }.ok_or_else(no_stage)?;
            to.copy_from_slice(rows);
        }
        let batch = Batch {
            keys: stage.keys.address(),
            rows: stage.rows.address(),
            indices: 0,
            num_keys: keys.len() as u32,
        };
        // SAFETY: the stage keeps keys and rows until its event has passed.
        unsafe { table.change(self.device, change, batch, &self.stream)? };
        stage.event.record(self.stream.handle())
    }

    /// Waits until all changes sent so far are seen by lookups that start.
    pub(crate) fn wait(&self) -> Result<()> {
        self.stream.synchronize()
    }

    /// Fails if rows were refused by a table that has to hold them all.
    pub(crate) fn check_refused(&self, table: &GpuTable) -> Result<()> {
        match table.results(self.device, &self.stream)?.refused {
            0 => Ok(()),
            refused => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{refused} rows have no room in the table on the GPU, which was made for {} slots when the store was \
                     opened; close and open it again",
                    table.num_slots()
                ),
            )
            .at("table", &table.settings.name)),
        }
    }
}

/// The end of the longest piece from `start` on, of at most `most` keys, in which no key comes twice: kernels treat the keys of
/// a launch in any order.
fn end_of_distinct(keys: &[Key], start: usize, most: usize) -> usize {
    let piece = keys.get(start..).unwrap_or_default();
    let piece = piece.get(..most).unwrap_or(piece);
    let mut sorted: Vec<(Key, usize)> = piece.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    let repeated = sorted.windows(2).filter_map(|pair| match pair {
        [(a, _), (b, again)] if a == b => Some(*again),
        _ => None,
    });
    start + repeated.min().unwrap_or(piece.len())
}

fn no_stage() -> Error {
    Error::new(ErrorKind::Internal, "a piece of a change does not fit its buffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_ends_before_a_key_comes_again() {
        let keys = [5, 6, 7, 6, 8, 8, 9];
        assert_eq!(end_of_distinct(&keys, 0, 100), 3);
        assert_eq!(end_of_distinct(&keys, 3, 100), 5);
        assert_eq!(end_of_distinct(&keys, 5, 100), 7);
        assert_eq!(end_of_distinct(&keys, 0, 2), 2);
        assert_eq!(end_of_distinct(&keys, 6, 1), 7);
    }
}
