//! Makes room in one of two full buckets by moving other keys to their other buckets.

use super::Buckets;
use super::bucket::WAYS;
use crate::prefetch::prefetch;

/// Full buckets looked behind before giving up: five times as many are looked at.
const MAX_NODES: usize = 512;

/// A bucket that could make room, reached by moving the entry (`parent`'s bucket, `way`) into it.
#[derive(Clone, Copy, Default)]
struct Node {
    bucket: u32,
    parent: u16,
    way: u8,
}

/// `parent` of the two buckets that the search began with.
const NO_PARENT: u16 = u16::MAX;

impl Buckets {
    /// Empties an entry of `first` or `second`, both full, by the shortest chain of moves; returns bucket and way.
    /// None, and nothing changed, if there is no short one.
    pub(super) fn make_room(&mut self, first: usize, second: usize) -> Option<(usize, usize)> {
        self.move_one(first, second).or_else(|| self.move_several(first, second))
    }

    fn other(&self, at: usize, way: usize) -> Option<usize> {
        let (first, second) = self.both(self.buckets.get(at)?.entry(way)?.key);
        Some(if at == first { second } else { first })
    }

    /// A single move is enough four times in five even where one bucket in six has an empty entry: try that at once
    /// for all keys, with the buckets asked for beforehand.
    fn move_one(&mut self, first: usize, second: usize) -> Option<(usize, usize)> {
        let mut others = [0; 2 * WAYS];
        let places = || [first, second].into_iter().flat_map(|at| (0..WAYS).map(move |way| (at, way)));
        for (other, (at, way)) in others.iter_mut().zip(places()) {
            *other = self.other(at, way)?;
            prefetch(self.buckets.get(*other)?);
        }
        for (other, from) in others.into_iter().zip(places()) {
            if let Some(empty) = self.buckets.get(other)?.empty_way() {
                self.move_entry(from, (other, empty))?;
                return Some(from);
            }
        }
        None
    }

    #[cold]
    fn move_several(&mut self, first: usize, second: usize) -> Option<(usize, usize)> {
        let mut nodes = [Node::default(); MAX_NODES];
        let root = |bucket: usize| Node { bucket: bucket as u32, parent: NO_PARENT, way: 0 };
        *nodes.first_mut()? = root(first);
        *nodes.get_mut(1)? = root(second);
        let mut num_nodes = 2;
        let mut at = 0;
        while at < num_nodes {
            let from = nodes.get(at)?.bucket as usize;
            let mut others = [0; WAYS];
            for (way, other) in others.iter_mut().enumerate() {
                *other = self.other(from, way)?;
                prefetch(self.buckets.get(*other)?);
            }
            for (way, to) in others.into_iter().enumerate() {
                let node = Node { bucket: to as u32, parent: at as u16, way: way as u8 };
                if let Some(empty) = self.buckets.get(to)?.empty_way() {
                    return self.move_along(&nodes, node, empty);
                }
                if let Some(next) = nodes.get_mut(num_nodes) {
                    *next = node;
                    num_nodes += 1;
                }
            }
            at += 1;
        }
        None
    }

    /// Moves entries from the far end of the chain, so that each goes into an entry that is empty. No bucket occurs
    /// twice in a chain: the search would have ended below its first occurrence.
    fn move_along(&mut self, nodes: &[Node], last: Node, empty: usize) -> Option<(usize, usize)> {
        let mut node = last;
        let mut empty = (node.bucket as usize, empty);
        while node.parent != NO_PARENT {
            let parent = *nodes.get(usize::from(node.parent))?;
            let from = (parent.bucket as usize, usize::from(node.way));
            self.move_entry(from, empty)?;
            empty = from;
            node = parent;
        }
        Some(empty)
    }

    fn move_entry(&mut self, from: (usize, usize), to: (usize, usize)) -> Option<()> {
        let entry = self.vacate(from.0, from.1)?;
        self.buckets.get_mut(to.0)?.set(to.1, entry);
        let (first, _) = self.both(entry.key);
        if to.0 != first {
            self.buckets.get_mut(first)?.sent_away();
        }
        Some(())
    }
}
