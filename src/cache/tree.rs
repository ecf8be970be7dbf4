//! The radix tree of stored prefixes: which nodes there are and how they hang together.
//!
//! Owns structure, effective tiers and recency, and keeps a list of the nodes that each call changed.
//! Looking prompts up is [`super::find`]'s, what nodes hold is [`super::change`]'s. Limits and victims
//! are [`super::PromptCache`]'s, which is why everything that changes the tree is for it alone.

use std::collections::BTreeMap;

use super::node::{Expected, Node, OwnerId};
use super::{Arena, CacheError, NodeId, PerTier, Tier, TokenId};

/// A radix tree of prompts with compressed edges; see the [module docs](super).
#[derive(Debug, Clone)]
pub struct PromptTree<P> {
    pub(super) arena: Arena<Node<P>>,
    /// The nodes below the root, which itself is no node: an empty prefix has no KV.
    pub(super) roots: BTreeMap<TokenId, NodeId>,
    pub(super) announced: BTreeMap<OwnerId, Vec<NodeId>>,
    pub(super) num_bytes: PerTier<u64>,
    clock: u64,
    pub(super) changes: Vec<NodeId>,
    /// Tokens that lookups have compared.
    #[cfg(test)]
    pub(crate) num_compared: std::cell::Cell<usize>,
}

impl<P> PromptTree<P> {
    pub(super) fn new() -> Self {
        Self {
            arena: Arena::new(),
            roots: BTreeMap::new(),
            announced: BTreeMap::new(),
            num_bytes: PerTier::default(),
            clock: 0,
            changes: Vec::new(),
            #[cfg(test)]
            num_compared: std::cell::Cell::default(),
        }
    }

    /// The node of that name, unless it was removed.
    pub fn node(&self, id: NodeId) -> Option<&Node<P>> {
        self.arena.get(id)
    }

    /// The number of nodes, pending ones included.
    pub fn num_nodes(&self) -> usize {
        self.arena.len()
    }

    /// The bytes of all payloads whose tokens belong to a span of that tier.
    pub fn num_bytes_of(&self, tier: Tier) -> u64 {
        self.num_bytes[tier]
    }

    /// The bytes of all payloads.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes.iter().map(|(_, num_bytes)| num_bytes).sum()
    }

    /// Every node, each after its parent, children in the order of their tokens.
    pub fn preorder(&self) -> Vec<NodeId> {
        let mut order = Vec::with_capacity(self.num_nodes());
        let mut stack: Vec<NodeId> = self.roots.values().rev().copied().collect();
        while let Some(id) = stack.pop() {
            order.push(id);
            stack.extend(self.linked(id).children.values().rev());
        }
        order
    }

    /// The child of `parent` whose edge begins with that token.
    pub fn child(&self, parent: Option<NodeId>, first: TokenId) -> Option<NodeId> {
        let children = parent.map_or(&self.roots, |parent| &self.linked(parent).children);
        children.get(&first).copied()
    }

    /// A node that another node, or the root, links to.
    pub(super) fn linked(&self, id: NodeId) -> &Node<P> {
        self.arena.get(id).expect("a removed node is unlinked first")
    }

    pub(super) fn linked_mut(&mut self, id: NodeId) -> &mut Node<P> {
        self.arena.get_mut(id).expect("a removed node is unlinked first")
    }

    pub(super) fn live(&self, id: NodeId) -> Result<&Node<P>, CacheError> {
        self.arena.get(id).ok_or(CacheError::Stale(id))
    }

    pub(super) fn live_mut(&mut self, id: NodeId) -> Result<&mut Node<P>, CacheError> {
        self.changes.push(id);
        self.arena.get_mut(id).ok_or(CacheError::Stale(id))
    }

    /// The nodes changed since the last call; some may be named twice or be gone.
    pub(super) fn take_changes(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.changes)
    }

    /// Counts a child of `parent` under its new effective tier, and so on up the tree.
    pub(super) fn child_tier_changed(
        &mut self,
        mut parent: Option<NodeId>,
        mut old: Option<Tier>,
        mut new: Option<Tier>,
    ) {
        while let Some(id) = parent {
            self.changes.push(id);
            let node = self.linked_mut(id);
            let before = node.effective_tier();
            if let Some(tier) = old {
                node.child_tiers[tier] -= 1;
            }
            if let Some(tier) = new {
                node.child_tiers[tier] += 1;
            }
            let after = node.effective_tier();
            if before == after {
                break;
            }
            (old, new, parent) = (Some(before), Some(after), node.parent);
        }
    }

    /// Makes the node and all above it the most recently used.
    pub(super) fn touch(&mut self, id: NodeId) -> Result<(), CacheError> {
        self.live(id)?;
        self.clock += 1;
        let mut next = Some(id);
        while let Some(id) = next {
            self.changes.push(id);
            let now = self.clock;
            let node = self.linked_mut(id);
            node.last_used = now;
            next = node.parent;
        }
        Ok(())
    }

    /// Does what [`touch`](Self::touch) does to each of these in turn. The time it takes follows how many nodes
    /// there are, not how deep they lie.
    pub(super) fn touch_all(&mut self, ids: &[NodeId]) -> Result<(), CacheError> {
        for id in ids {
            self.live(*id)?;
        }
        let before = self.clock;
        self.clock += ids.len() as u64;
        // The last first: a node that has been touched since keeps that time, and so do all above it.
        for (id, now) in ids.iter().rev().zip((0..=self.clock).rev()) {
            let mut next = Some(*id);
            while let Some(id) = next {
                let node = self.linked_mut(id);
                if node.last_used > before {
                    break;
                }
                node.last_used = now;
                next = node.parent;
                self.changes.push(id);
            }
        }
        Ok(())
    }

    /// Adds planned users to the node and all above it; those before `now` are forgotten.
    pub(super) fn expect(&mut self, id: NodeId, users: Expected, now: u64) -> Result<(), CacheError> {
        self.live(id)?;
        let mut next = Some(id);
        while let Some(id) = next {
            let node = self.linked_mut(id);
            let standing = node.expected.filter(|expected| expected.last >= now);
            let widened = Some(standing.map_or(users, |standing| standing.widened(users)));
            if node.expected == widened {
                // Whoever uses a node uses all above it, so they know these users too.
                break;
            }
            node.expected = widened;
            next = node.parent;
            self.changes.push(id);
        }
        Ok(())
    }
}
