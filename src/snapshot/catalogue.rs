//! What a snapshot holds: a tree of prefixes, each with the places of its bytes.
//!
//! Owns the union of what the file has and what is added. A node's bytes are a [`Piece`]: the extents
//! that its tokens lie in. Where a later prompt leaves a stored edge in its middle, the node is split and
//! no byte is written again: both halves have the extent that is cut. The tree itself, tiers and the
//! order of eviction are the prompt cache's.

use std::collections::BTreeMap;

use super::SnapshotError;
use super::piece::{Extent, Piece};
use crate::cache::{
    CacheLimits, Inserted, Match, NodeId, Place, PromptCache, Resume, ResumeRule, TokenId, common_prefix,
};

/// How much of some tokens a catalogue has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Covered {
    /// The node that ends with the last token it has.
    pub node: Option<NodeId>,
    pub num_tokens: usize,
}

/// The tree of what is in the file.
#[derive(Debug, Clone)]
pub(super) struct Catalogue(PromptCache<Piece>);

impl Catalogue {
    /// An empty one, for at most so many bytes.
    pub(super) fn new(max_bytes: Option<u64>, needs_checkpoints: bool) -> Self {
        let limits = CacheLimits { max_bytes: max_bytes.unwrap_or(u64::MAX), max_entries: None };
        let rule = if needs_checkpoints { ResumeRule::Checkpoints } else { ResumeRule::AnyToken };
        Self(PromptCache::new(limits, rule))
    }

    /// The cache, to look at.
    pub(super) fn cache(&self) -> &PromptCache<Piece> {
        &self.0
    }

    /// Finds how far a sequence could resume on the file.
    pub(super) fn find(&self, tokens: &[TokenId]) -> (Match, Resume) {
        let found = self.0.find(tokens);
        let resume = self.0.resume(&found);
        (found, resume)
    }

    /// Finds what there is of `tokens` below a node, and makes a node end where that ends.
    pub(super) fn cover(
        &mut self,
        parent: Option<NodeId>,
        tokens: &[TokenId],
    ) -> Result<Covered, SnapshotError> {
        let mut covered = Covered { node: parent, num_tokens: 0 };
        while let Some(first) = tokens.get(covered.num_tokens) {
            let tree = self.0.tree();
            let Some(child) = tree.child(covered.node, *first) else { break };
            let edge = tree.node(child).map_or(&[][..], |node| node.tokens());
            let rest = &tokens[covered.num_tokens..];
            let num_common = common_prefix(edge, rest);
            covered.num_tokens += num_common;
            if num_common < edge.len() {
                covered.node = Some(self.split(child, num_common)?);
                break;
            }
            covered.node = Some(child);
        }
        Ok(covered)
    }

    /// Cuts a node after its first `at` tokens; returns the upper half.
    fn split(&mut self, node: NodeId, at: usize) -> Result<NodeId, SnapshotError> {
        let piece = self.piece(node).ok_or(crate::cache::CacheError::Stale(node))?;
        let upper = piece.part(0..at);
        let lower = piece.part(at..piece.tokens().len()).below(Some(&upper));
        Ok(self.0.split(node, at, (upper, lower))?.upper)
    }

    /// A node's piece.
    pub(super) fn piece(&self, node: NodeId) -> Option<Piece> {
        self.0.tree().node(node)?.segment().cloned()
    }

    /// Hangs a piece below a node, where nothing may begin with the same token.
    pub(super) fn hang(
        &mut self,
        place: Place<'_>,
        piece: Piece,
        checkpoint: Option<Piece>,
    ) -> Result<Option<NodeId>, SnapshotError> {
        let node = self.hang_unused(place, piece, checkpoint)?;
        self.touch_all(node.as_slice())?;
        Ok(node)
    }

    /// Does the same, and leaves it to the caller to touch it.
    pub(super) fn hang_unused(
        &mut self,
        place: Place<'_>,
        piece: Piece,
        checkpoint: Option<Piece>,
    ) -> Result<Option<NodeId>, SnapshotError> {
        let above = place.parent.and_then(|parent| self.0.tree().node(parent)?.segment());
        let piece = piece.below(above);
        Ok(match self.0.insert_unused(place, piece, checkpoint)? {
            Inserted::New(node) => Some(node),
            Inserted::Overlaps { .. } => None,
        })
    }

    /// Sets the recurrent state at a node's end.
    pub(super) fn set_checkpoint(
        &mut self,
        node: NodeId,
        checkpoint: Option<Piece>,
    ) -> Result<(), SnapshotError> {
        self.0.set_checkpoint(node, checkpoint)?;
        Ok(())
    }

    /// Notes that a run uses a node and all above it.
    pub(super) fn mark_used(&mut self, node: NodeId, now: u64) -> Result<(), SnapshotError> {
        self.0.touch(node)?;
        let mut next = Some(node);
        while let Some(id) = next {
            let Some(piece) = self.piece(id) else { break };
            self.0.replace_segment(id, piece.used(now))?;
            next = self.0.tree().node(id).and_then(|node| node.parent());
        }
        Ok(())
    }

    /// Makes each of these nodes in turn, with all above it, the most recently used.
    pub(super) fn touch_all(&mut self, nodes: &[NodeId]) -> Result<(), SnapshotError> {
        Ok(self.0.touch_all(nodes)?)
    }

    /// Notes that a run has used a node at that time, and nothing of those above.
    pub(super) fn set_used(&mut self, node: NodeId, now: u64) -> Result<(), SnapshotError> {
        if let Some(piece) = self.piece(node) {
            self.0.replace_segment(node, piece.used(now))?;
        }
        Ok(())
    }

    /// Removes a node and all below it.
    pub(super) fn remove(&mut self, node: NodeId) -> Result<(), SnapshotError> {
        self.0.remove(node)?;
        Ok(())
    }

    /// Removes all KV from an extent on for which `is_gone` says so, with all that continues it, and the
    /// recurrent states that are in one.
    pub(super) fn drop_extents(&mut self, is_gone: impl Fn(&Extent) -> bool) -> Result<(), SnapshotError> {
        for id in self.0.tree().preorder() {
            // Gone with a node above.
            let Some(node) = self.0.tree().node(id) else { continue };
            let num_sound = node.segment().and_then(|piece| piece.num_tokens_before(&is_gone));
            let has_lost_state =
                node.checkpoint().is_some_and(|state| state.num_tokens_before(&is_gone).is_some());
            match num_sound {
                Some(num_sound) => {
                    if num_sound > 0 {
                        self.split(id, num_sound)?;
                    }
                    self.remove(id)?;
                }
                None if has_lost_state => self.set_checkpoint(id, None)?,
                None => {}
            }
        }
        Ok(())
    }

    /// Drops what the limit has no room for, in the order of eviction; returns how many pieces.
    pub(super) fn keep_limit(&mut self) -> Result<usize, SnapshotError> {
        let mut num_dropped = self.0.make_room(u64::MAX).len();
        // In memory a single entry may be over the limit for a run; a file has no such need, and keeps
        // as much of its beginning as there is room for.
        let mut order = self.0.tree().preorder();
        while self.0.is_over_limit() {
            // With all that comes after it gone, it is a leaf.
            let Some(leaf) = order.pop() else { break };
            num_dropped += self.0.remove(leaf)?.len();
        }
        Ok(num_dropped)
    }

    /// Drops entries in the order of eviction until this many tokens are gone, one entry at least; returns
    /// how many tokens. `None` where there is no entry.
    pub(super) fn drop_first(&mut self, num_tokens: u64) -> Option<usize> {
        let mut num_dropped = None;
        while num_dropped.is_none_or(|num| (num as u64) < num_tokens)
            && let Some(dropped) = self.0.evict_first()
        {
            let num_gone: usize = dropped.iter().map(|piece| piece.tokens().len()).sum();
            num_dropped = Some(num_dropped.unwrap_or(0) + num_gone);
        }
        num_dropped
    }

    /// Tokens of all nodes together.
    pub(super) fn num_tokens(&self) -> usize {
        let tree = self.0.tree();
        tree.preorder().iter().filter_map(|id| tree.node(*id)).map(|node| node.tokens().len()).sum()
    }

    /// The tokens from the start of the prompt up to a node's end.
    pub(super) fn path_tokens(&self, node: NodeId) -> Vec<TokenId> {
        let tree = self.0.tree();
        let mut edges = Vec::new();
        let mut next = tree.node(node);
        while let Some(node) = next {
            edges.push(node.tokens());
            next = node.parent().and_then(|parent| tree.node(parent));
        }
        edges.iter().rev().copied().flatten().copied().collect()
    }

    /// All extents that a node uses, by place.
    pub(super) fn extents(&self) -> BTreeMap<u64, Extent> {
        let tree = self.0.tree();
        let nodes = tree.preorder();
        let pieces = nodes.iter().filter_map(|id| tree.node(*id)).flat_map(|node| {
            let segment = node.segment().into_iter();
            segment.chain(node.checkpoint())
        });
        // An extent of no bytes has no place of its own.
        let extents = pieces.flat_map(Piece::extents).filter(|extent| extent.num_bytes > 0);
        extents.map(|extent| (extent.offset, *extent)).collect()
    }

    /// Has every piece look for its extents where `moved` says; what is of others goes.
    pub(super) fn relocate(&mut self, moved: &BTreeMap<u64, u64>) -> Result<(), SnapshotError> {
        self.drop_extents(|extent| extent.num_bytes > 0 && !moved.contains_key(&extent.offset))?;
        for id in self.0.tree().preorder() {
            let Some(node) = self.0.tree().node(id) else { continue };
            let checkpoint = node.checkpoint().map(|checkpoint| checkpoint.moved(moved));
            if let Some(segment) = node.segment().map(|segment| segment.moved(moved)) {
                self.0.replace_segment(id, segment)?;
            }
            if checkpoint.is_some() {
                self.set_checkpoint(id, checkpoint)?;
            }
        }
        Ok(())
    }
}
