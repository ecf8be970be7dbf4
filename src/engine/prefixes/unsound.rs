//! Stored prefixes whose KV are no numbers: dropped as soon as they are known.
//!
//! Owns finding them, when a row that ran on them has no token, and parting running sequences from
//! them. They are not looked for otherwise: whoever computes such a prefix anew gets the same.

use super::{Prefixes, discard_all, make_room};
use crate::cache::{NodeId, OwnerId, PromptCache};
use crate::engine::sequence::Sequence;
use crate::engine::{Runner, RunnerError, StoredSegment};

impl Prefixes {
    /// Drops what is no number of the stored path of a sequence that has no next token, with all that
    /// continues it; no other sequence begins with it any more.
    ///
    /// Those that run on it go on: the KV is theirs alone from here on, and a model whose layers see
    /// only so far back may yet find numbers.
    pub(in crate::engine) fn drop_unsound(
        &mut self,
        runner: &mut impl Runner,
        running: &mut [Sequence],
        index: usize,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let mut unsound = None;
        for id in path_to(cache, running[index].hold.node) {
            let Some(node) = cache.tree().node(id) else { break };
            for stored in node.segment().into_iter().chain(node.checkpoint()) {
                if !runner.is_finite(stored.id)? {
                    unsound = Some((id, node.parent(), node.end() - node.tokens().len()));
                }
            }
            if unsound.is_some() {
                break;
            }
        }
        let Some((id, parent, start)) = unsound else { return Ok(()) };
        for sequence in running {
            let Some(held) = sequence.hold.node.filter(|&held| path_to(cache, Some(held)).contains(&id))
            else {
                continue;
            };
            cache.cancel(OwnerId(sequence.id.0));
            self.awaited.retain(|_, owner| *owner != sequence.id);
            if let Some(parent) = parent {
                cache.pin(parent)?;
            }
            cache.unpin(held)?;
            sequence.hold.node = parent;
            sequence.hold.detach_from(start);
        }
        discard_all(runner, cache.remove(id)?);
        // What it continued may be an entry by itself again.
        make_room(cache, runner, self.now);
        Ok(())
    }
}

/// The nodes from the root down to this one.
fn path_to(cache: &PromptCache<StoredSegment>, mut node: Option<NodeId>) -> Vec<NodeId> {
    let mut path = Vec::new();
    while let Some(id) = node {
        path.push(id);
        node = cache.tree().node(id).and_then(|node| node.parent());
    }
    path.reverse();
    path
}
