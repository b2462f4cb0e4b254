//! Changes of tables, in one order: one stream, and pinned buffers through which keys and rows reach it.

use hps_core::{Error, ErrorKind, Key, Result, Rows};

use crate::driver::{Device, Event, Stream};
use crate::fp8;
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
        let row_bytes = table.row_bytes_of(change);
        if rows.is_some_and(|rows| rows.row_bytes() != row_bytes || rows.len() != keys.len()) {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "rows of another size or number than the keys'",
            ));
        }
        // Kernels treat the keys of a launch in any order, so none may come twice.
        if let Some(last) = last_of_each(keys) {
            let distinct: Vec<Key> = last.iter().filter_map(|&i| keys.get(i)).copied().collect();
            let kept = rows.map(|rows| last.iter().filter_map(|&i| rows.get(i)).collect::<Vec<_>>().concat());
            return self.send_all(table, change, &distinct, kept.as_deref());
        }
        self.send_all(table, change, keys, rows.map(|rows| rows.bytes()))
    }

    fn send_all(
        &mut self,
        table: &GpuTable,
        change: Change,
        keys: &[Key],
        rows: Option<&[u8]>,
    ) -> Result<()> {
        let row_bytes = table.row_bytes_of(change);
        let at_once = (ROWS_BYTES / row_bytes.max(1)).clamp(1, MAX_KEYS);
        for (number, keys) in keys.chunks(at_once).enumerate() {
            let start = number * at_once * row_bytes;
            let rows = rows.and_then(|rows| rows.get(start..start + keys.len() * row_bytes));
            self.send(table, change, keys, rows)?;
        }
        Ok(())
    }

    fn send(&mut self, table: &GpuTable, change: Change, keys: &[Key], rows: Option<&[u8]>) -> Result<()> {
        let number = self.next;
        self.next = (number + 1) % self.stages.len();
        let stage = self.stages.get_mut(number).ok_or_else(no_stage)?;
        stage.event.wait()?;
        let num_bytes = keys.len() * table.stored_bytes_of(change);
        if rows.is_some() && num_bytes > stage.rows.num_bytes() {
            stage.rows = PinnedBuffer::new(self.device, num_bytes as u64)?;
        }
        // SAFETY: numbers; the kernel that read them before was waited for.
        let to = unsafe { stage.keys.slice_mut(0, keys.len()) }.ok_or_else(no_stage)?;
        to.copy_from_slice(keys);
        if let Some(rows) = rows {
            // SAFETY: as above.
            let to = unsafe { stage.rows.slice_mut(0, num_bytes) }.ok_or_else(no_stage)?;
            if table.settings.is_fp8 {
                fp8::store_rows(rows, table.settings.row_bytes, to)?;
            } else {
                to.copy_from_slice(rows);
            }
        }
        let batch = Batch {
            keys: stage.keys.address(),
            rows: stage.rows.address(),
            indices: 0,
            num_keys: keys.len() as u32,
        };
        // SAFETY: the stage keeps keys and rows until its event has passed.
        let sent = unsafe { table.change(self.device, change, batch, &self.stream) };
        // Whatever failed, the stage must not be written while a kernel reads it.
        stage.event.record(self.stream.handle()).or_else(|why| self.stream.synchronize().and(Err(why)))?;
        sent
    }

    /// Waits until all changes sent so far are seen by lookups that start.
    pub(crate) fn wait(&self) -> Result<()> {
        self.stream.synchronize()
    }

    /// Fails if rows were refused since the last time by a table that has to hold them all.
    pub(crate) fn check_refused(&self, table: &GpuTable) -> Result<()> {
        match table.newly_refused(self.device, &self.stream)? {
            0 => Ok(()),
            refused => Err(Error::new(
                ErrorKind::OutOfMemory,
                format!(
                    "{refused} rows have no room in the table on the GPU, which was made when the store was opened: for {}; \
                     close and open the store again",
                    table.capacity()
                ),
            )
            .at("table", &table.settings.name)),
        }
    }
}

/// Positions of the last occurrence of each key, if some key comes more than once.
fn last_of_each(keys: &[Key]) -> Option<Vec<usize>> {
    let mut sorted: Vec<(Key, usize)> = keys.iter().copied().zip(0..).collect();
    sorted.sort_unstable();
    let is_repeated = |pair: &[(Key, usize)]| matches!(pair, [(a, _), (b, _)] if a == b);
    if !sorted.windows(2).any(is_repeated) {
        return None;
    }
    let mut last: Vec<usize> = Vec::new();
    let mut later = None;
    for &(key, position) in sorted.iter().rev() {
        if later != Some(key) {
            last.push(position);
        }
        later = Some(key);
    }
    Some(last)
}

fn no_stage() -> Error {
    Error::new(ErrorKind::Internal, "a piece of a change does not fit its buffer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_repeated_key_the_last_position_is_taken() {
        assert_eq!(last_of_each(&[5, 6, 7]), None);
        assert_eq!(last_of_each(&[]), None);
        let mut last = last_of_each(&[5, 6, 7, 6, 8, 8, 5, 9]).unwrap();
        last.sort_unstable();
        assert_eq!(last, [2, 3, 5, 6, 7]);
    }
}
