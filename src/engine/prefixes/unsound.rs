//! Stored prefixes whose KV are no numbers: dropped as soon as they are known.
//!
//! Owns finding them, when a row that ran on them has no token, and parting running sequences from
//! them. They are not looked for otherwise: whoever computes such a prefix anew gets the same.

use super::Prefixes;
use crate::cache::NodeId;
use crate::engine::sequence::Sequence;
use crate::engine::{Runner, RunnerError};

impl<R: Runner> Prefixes<R> {
    /// Drops what is no number of the stored path of a sequence that has no next token, with all that
    /// continues it; no other sequence begins with it any more.
    ///
    /// Those that run on it go on: the KV is theirs alone from here on, and a model whose layers see
    /// only so far back may yet find numbers.
    pub(in crate::engine) fn drop_unsound(
        &mut self,
        running: &mut [Sequence],
        index: usize,
    ) -> Result<(), RunnerError> {
        let Some(id) = self.first_unsound(running[index].hold.node)? else { return Ok(()) };
        let Some(node) = self.cache.tree().node(id) else { return Ok(()) };
        let (parent, start) = (node.parent(), node.end() - node.tokens().len());
        for sequence in running {
            let held = sequence.hold.node.filter(|held| self.path_to(Some(*held)).contains(&id));
            let Some(held) = held else { continue };
            self.withdraw(sequence.id);
            parent.map_or(Ok(()), |parent| self.cache.pin(parent))?;
            self.cache.unpin(held)?;
            sequence.hold.node = parent;
            sequence.hold.detach_from(start);
        }
        self.remove(id)?;
        // What it continued may be an entry by itself again.
        self.make_room();
        Ok(())
    }

    /// The first node on the way to this one that holds anything but numbers.
    fn first_unsound(&mut self, node: Option<NodeId>) -> Result<Option<NodeId>, RunnerError> {
        for id in self.path_to(node) {
            let node = self.cache.tree().node(id);
            for stored in
                node.into_iter().flat_map(|node| node.segment().into_iter().chain(node.checkpoint()))
            {
                if !self.runner.is_finite(stored.id)? {
                    return Ok(Some(id));
                }
            }
        }
        Ok(None)
    }

    /// The nodes from the root down to this one.
    fn path_to(&self, mut node: Option<NodeId>) -> Vec<NodeId> {
        let mut path = Vec::new();
        while let Some(id) = node {
            path.push(id);
            node = self.cache.tree().node(id).and_then(|node| node.parent());
        }
        path.reverse();
        path
    }
}
