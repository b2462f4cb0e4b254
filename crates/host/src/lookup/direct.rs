//! The read path of tables where most keys have slots of their own: a row is asked for while others, of keys before, are copied.
//! Keys without a slot are looked up after, by hashing.

use hps_core::batch::no_such_position;
use hps_core::{Batch, Result, RowsMut};

use super::{Lookup, approach_row, hashed};
use crate::partition::View;
use crate::slab::{RowRef, out_of_memory};

/// Keys whose rows are asked for ahead. More wait for each other: the first-level cache has about two dozen requests under way.
const AHEAD: usize = 16;

/// A key on its way.
#[derive(Clone, Copy)]
struct Coming<'v, 'p> {
    position: u32,
    slot: u32,
    row: RowRef<'p>,
    view: &'v View<'p>,
}

/// Looks keys up.
pub(super) fn look_up(lookup: &Lookup<'_, '_>, rows: &mut RowsMut<'_>, misses: &mut Vec<u32>) -> Result<()> {
    let known_misses = misses.len();
    let mut others = Vec::new();
    let mut coming: [Option<Coming<'_, '_>>; AHEAD] = [None; AHEAD];
    for i in lookup.start..lookup.end + AHEAD {
        let Some(place) = coming.get_mut(i % AHEAD) else { continue };
        if let Some(Coming { position, slot, row, view }) = place.take() {
            if !view.direct.holds(slot) {
                misses.push(position);
            } else if !rows.write(position as usize, view.slabs.bytes(row)) {
                return Err(no_such_position());
            }
        }
        if i >= lookup.end {
            continue;
        }
        let (position, key) = lookup.batch.get(i).ok_or_else(no_such_position)?;
        let view = lookup.view(key)?;
        *place = view.direct.slot(key).and_then(|slot| {
            let row = approach_row(view, slot, lookup.num_lines)?;
            Some(Coming { position, slot, row, view })
        });
        if place.is_none() {
            others.try_reserve(1).map_err(out_of_memory)?;
            others.push(position);
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    let own_misses = misses.len();
    let batch: Batch<'_> = lookup.batch.only(&others);
    hashed::look_up(&Lookup { batch, start: 0, end: others.len(), ..*lookup }, rows, misses)?;
    if own_misses > known_misses && misses.len() > own_misses {
        misses.get_mut(known_misses..).into_iter().for_each(<[u32]>::sort_unstable);
    }
    Ok(())
}
