//! What a snapshot holds: a tree of prefixes, each with the place of its bytes.
//!
//! Owns the union of what the file has and what is added. A node's bytes are a [`Piece`] of an extent,
//! which several nodes may share: where a later prompt leaves a stored edge in its middle, the node is
//! split and no byte is written again. The tree itself, tiers and the order of eviction are the prompt
//! cache's.

use std::{collections::BTreeMap, ops::Range};

use super::{SnapshotError, format::Checksum};
use crate::cache::{
    CacheLimits, Inserted, Match, NodeId, Payload, Place, PromptCache, Resume, ResumeRule, TokenId,
    common_prefix,
};

/// Bytes in the file that are read and verified together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub num_bytes: u64,
    /// Tokens whose KV it is; 0 for a recurrent state.
    pub num_tokens: u32,
    pub checksum: Checksum,
}

/// What a node has of an extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub extent: Extent,
    /// Tokens of the extent before the node's.
    pub first: u32,
    pub num_tokens: u32,
    /// When a run last used it, in seconds since 1970.
    pub used_at: u64,
}

impl Piece {
    /// All of an extent.
    pub fn whole(extent: Extent, used_at: u64) -> Self {
        Self { extent, first: 0, num_tokens: extent.num_tokens, used_at }
    }

    /// The extent's tokens that are the node's.
    pub fn tokens(&self) -> Range<usize> {
        self.first as usize..self.first as usize + self.num_tokens as usize
    }

    /// The piece's own tokens in this range.
    pub(super) fn part(&self, tokens: Range<usize>) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Self { first: self.first + number(tokens.start), num_tokens: number(tokens.len()), ..*self }
    }
}

impl Payload for Piece {
    fn num_bytes(&self) -> u64 {
        let Extent { num_bytes, num_tokens, .. } = self.extent;
        if num_tokens == 0 {
            return num_bytes;
        }
        let share = u128::from(num_bytes) * u128::from(self.num_tokens) / u128::from(num_tokens);
        u64::try_from(share).unwrap_or(num_bytes)
    }
}

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
        let halves = (piece.part(0..at), piece.part(at..piece.num_tokens as usize));
        Ok(self.0.split(node, at, halves)?.upper)
    }

    /// A node's piece.
    pub(super) fn piece(&self, node: NodeId) -> Option<Piece> {
        self.0.tree().node(node)?.segment().copied()
    }

    /// Hangs a piece below a node, where nothing may begin with the same token.
    pub(super) fn hang(
        &mut self,
        place: Place<'_>,
        piece: Piece,
        checkpoint: Option<Piece>,
    ) -> Result<Option<NodeId>, SnapshotError> {
        Ok(match self.0.insert(place, piece, checkpoint)? {
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
            self.0.replace_segment(id, Piece { used_at: now.max(piece.used_at), ..piece })?;
            next = self.0.tree().node(id).and_then(|node| node.parent());
        }
        Ok(())
    }

    /// Makes a node and all above it the most recently used.
    pub(super) fn touch(&mut self, node: NodeId) -> Result<(), SnapshotError> {
        Ok(self.0.touch(node)?)
    }

    /// Removes a node and all below it.
    pub(super) fn remove(&mut self, node: NodeId) -> Result<(), SnapshotError> {
        self.0.remove(node)?;
        Ok(())
    }

    /// Removes every node whose KV is in an extent, with all below it, and the recurrent state that is
    /// in it.
    pub(super) fn drop_extent(&mut self, extent: &Extent) -> Result<(), SnapshotError> {
        for id in self.0.tree().preorder() {
            // Gone with a node above.
            let Some(node) = self.0.tree().node(id) else { continue };
            if node.segment().is_some_and(|piece| piece.extent == *extent) {
                self.remove(id)?;
            } else if node.checkpoint().is_some_and(|piece| piece.extent == *extent) {
                self.set_checkpoint(id, None)?;
            }
        }
        Ok(())
    }

    /// Drops what the limit has no room for, in the order of eviction; returns how many pieces.
    pub(super) fn keep_limit(&mut self) -> Result<usize, SnapshotError> {
        let mut num_dropped = self.0.make_room(u64::MAX).len();
        // In memory a single entry may be over the limit for a run; a file has no such need, and keeps
        // as much of its beginning as there is room for.
        while self.0.is_over_limit() {
            let Some(&leaf) = self.0.tree().preorder().last() else { break };
            num_dropped += self.0.remove(leaf)?.len();
        }
        Ok(num_dropped)
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
        let pieces = pieces.filter(|piece| piece.extent.num_bytes > 0);
        pieces.map(|piece| (piece.extent.offset, piece.extent)).collect()
    }

    /// Has every piece look for its extent where `moved` says; pieces of other extents go.
    pub(super) fn relocate(&mut self, moved: &BTreeMap<u64, Extent>) -> Result<(), SnapshotError> {
        for id in self.0.tree().preorder() {
            // Gone with a node above.
            let Some(node) = self.0.tree().node(id) else { continue };
            let (segment, checkpoint) = (node.segment().copied(), node.checkpoint().copied());
            let place = |piece: Piece| match piece.extent.num_bytes {
                0 => Some(piece),
                _ => moved.get(&piece.extent.offset).map(|&extent| Piece { extent, ..piece }),
            };
            match segment.map(place) {
                Some(Some(segment)) => drop(self.0.replace_segment(id, segment)?),
                _ => {
                    self.remove(id)?;
                    continue;
                }
            }
            if let Some(checkpoint) = checkpoint {
                self.set_checkpoint(id, place(checkpoint))?;
            }
        }
        Ok(())
    }
}
