//! One node of the prompt tree.
//!
//! Owns what is known about a run of tokens. How nodes hang together is [`super::tree`]'s business;
//! the fields are its to write, the getters are for everybody.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::{NodeId, PerTier, Tier, TokenId};

/// Names whoever computes an announced node, so that its announcements can be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(pub u64);

/// What a node holds: the two states exclude each other.
#[derive(Debug, Clone)]
pub(super) enum Content<P> {
    Stored { segment: P, checkpoint: Option<P> },
    Pending { owner: OwnerId },
}

/// The planned requests that use a node, as places in the order of the run.
///
/// Users of a node stand next to each other in depth-first order, so first and last say it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expected {
    pub first: u64,
    pub last: u64,
}

impl Expected {
    /// The smallest range that holds this one and `users`.
    pub(super) fn widened(self, users: Expected) -> Self {
        Self { first: self.first.min(users.first), last: self.last.max(users.last) }
    }
}

impl From<RangeInclusive<u64>> for Expected {
    fn from(users: RangeInclusive<u64>) -> Self {
        Self { first: *users.start(), last: *users.end() }
    }
}

/// A run of tokens below one prefix, and the KV stored for it.
#[derive(Debug, Clone)]
pub struct Node<P> {
    /// The tokens of the edge that leads here; never empty.
    pub(super) edge: Vec<TokenId>,
    pub(super) parent: Option<NodeId>,
    /// By the first token of their edges, so no two children share one.
    pub(super) children: BTreeMap<TokenId, NodeId>,
    pub(super) end: usize,
    pub(super) content: Content<P>,
    pub(super) tier: Tier,
    /// Children counted by their effective tier.
    pub(super) child_tiers: PerTier<usize>,
    /// No smaller than any child's.
    pub(super) last_used: u64,
    pub(super) num_pins: usize,
    pub(super) expected: Option<Expected>,
}

impl<P> Node<P> {
    /// The tokens from the parent's end to this node's end.
    pub fn tokens(&self) -> &[TokenId] {
        &self.edge
    }

    /// The node that the tokens continue; `None` below the root.
    pub fn parent(&self) -> Option<NodeId> {
        self.parent
    }

    /// The nodes that continue this one, by their first token.
    pub fn children(&self) -> impl Iterator<Item = NodeId> {
        self.children.values().copied()
    }

    /// Whether nothing continues this node.
    pub fn is_leaf(&self) -> bool {
        self.children.is_empty()
    }

    /// The number of prompt tokens from the root up to this node's end.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The KV of [`Node::tokens`]; `None` while it is being computed.
    pub fn segment(&self) -> Option<&P> {
        match &self.content {
            Content::Stored { segment, .. } => Some(segment),
            Content::Pending { .. } => None,
        }
    }

    /// The recurrent state at [`Node::end`], if one is held.
    pub fn checkpoint(&self) -> Option<&P> {
        match &self.content {
            Content::Stored { checkpoint, .. } => checkpoint.as_ref(),
            Content::Pending { .. } => None,
        }
    }

    /// Who computes this node, while it is being computed.
    pub fn owner(&self) -> Option<OwnerId> {
        match self.content {
            Content::Stored { .. } => None,
            Content::Pending { owner } => Some(owner),
        }
    }

    /// The tier of the span that [`Node::tokens`] belong to.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The most persistent tier of any span that ends here or below.
    pub fn effective_tier(&self) -> Tier {
        let most_persistent =
            self.child_tiers.iter().filter(|(_, num)| **num > 0).map(|(tier, _)| tier).last();
        most_persistent.map_or(self.tier, |tier| tier.max(self.tier))
    }

    /// When the node was last used, on the tree's own clock: later is more.
    pub fn last_used(&self) -> u64 {
        self.last_used
    }

    /// How many running sequences end their stored prefix here.
    pub fn num_pins(&self) -> usize {
        self.num_pins
    }

    /// The planned requests that use this node, as far as they were told.
    pub fn expected(&self) -> Option<Expected> {
        self.expected
    }
}
