//! What nodes hold: storing, splitting, announcing and removing.
//!
//! Owns every change of the tree's nodes and payload bytes. In which order a caller may ask for them
//! is told by the errors; a refused call changes nothing.

use std::collections::BTreeMap;

use super::find::common_prefix;
use super::node::{Content, Node, OwnerId};
use super::{CacheError, NodeId, Payload, PerTier, PromptTree, Tier, TokenId};

/// Where a new node goes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The node that the tokens continue; `None` for the start of a prompt.
    pub parent: Option<NodeId>,
    pub tokens: &'a [TokenId],
    /// The tier of the span that the tokens belong to.
    pub tier: Tier,
}

/// What became of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    New(NodeId),
    /// Nothing was inserted: a child of the parent begins with the same tokens. Where it matches
    /// whole, go on below it, otherwise split it at `num_common` first.
    Overlaps {
        node: NodeId,
        num_common: usize,
    },
}

/// The two halves of a split node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitNode<P> {
    /// A new node with the first tokens.
    pub upper: NodeId,
    /// The node that was split, under its old id, with the last tokens and all that hung below.
    pub lower: NodeId,
    /// The segment that the halves replace, to be dropped by the caller.
    pub replaced: P,
}

impl<P: Payload> PromptTree<P> {
    /// Hangs a new node below a whole one, unless a child begins with the same tokens. Nobody has used it yet.
    pub(super) fn insert(&mut self, place: Place<'_>, content: Content<P>) -> Result<Inserted, CacheError> {
        let Place { parent, tokens, tier } = place;
        let first = *tokens.first().ok_or(CacheError::NoTokens)?;
        let mut start = 0;
        if let Some(parent) = parent {
            let node = self.live(parent)?;
            if node.owner().is_some() && matches!(content, Content::Stored { .. }) {
                return Err(CacheError::Pending(parent));
            }
            start = node.end;
        }
        if let Some(node) = self.child(parent, first) {
            return Ok(Inserted::Overlaps {
                node,
                num_common: common_prefix(&self.linked(node).edge, tokens),
            });
        }
        let (num_bytes, owner) = match &content {
            Content::Stored { segment, checkpoint } => (bytes_of(segment, checkpoint), None),
            Content::Pending { owner } => (0, Some(*owner)),
        };
        let id = self.arena.insert(Node {
            edge: tokens.to_vec(),
            parent,
            children: BTreeMap::new(),
            end: start + tokens.len(),
            content,
            tier,
            child_tiers: PerTier::default(),
            last_used: 0,
            num_pins: 0,
            expected: None,
        });
        self.num_bytes[tier] += num_bytes;
        if let Some(owner) = owner {
            self.announced.entry(owner).or_default().push(id);
        }
        self.children_mut(parent).insert(first, id);
        self.child_tier_changed(parent, None, Some(tier));
        self.changes.push(id);
        Ok(Inserted::New(id))
    }

    fn children_mut(&mut self, parent: Option<NodeId>) -> &mut BTreeMap<TokenId, NodeId> {
        match parent {
            Some(parent) => &mut self.linked_mut(parent).children,
            None => &mut self.roots,
        }
    }

    /// Cuts a node in two after its first `at` tokens.
    pub(super) fn split(
        &mut self,
        id: NodeId,
        at: usize,
        halves: (P, P),
    ) -> Result<SplitNode<P>, CacheError> {
        let node = self.live_mut(id)?;
        let num_tokens = node.edge.len();
        let Content::Stored { segment, .. } = &mut node.content else { return Err(CacheError::Pending(id)) };
        if at == 0 || at >= num_tokens {
            return Err(CacheError::SplitOutside { node: id, at, num_tokens });
        }
        let num_new_bytes = halves.0.num_bytes() + halves.1.num_bytes();
        let replaced = std::mem::replace(segment, halves.1);
        let lower_edge = node.edge[at..].to_vec();
        let mut upper_edge = std::mem::replace(&mut node.edge, lower_edge);
        upper_edge.truncate(at);
        upper_edge.shrink_to_fit();
        let (tier, parent) = (node.tier, node.parent);
        let mut child_tiers = PerTier::default();
        child_tiers[node.effective_tier()] = 1;
        let upper = Node {
            parent,
            children: BTreeMap::from([(node.edge[0], id)]),
            end: node.end - (num_tokens - at),
            content: Content::Stored { segment: halves.0, checkpoint: None },
            tier,
            child_tiers,
            last_used: node.last_used,
            // Whoever pinned the node holds its id, which the lower half keeps; the upper half is
            // safe as long as that hangs below it.
            num_pins: 0,
            expected: node.expected,
            edge: upper_edge,
        };
        let first = upper.edge[0];
        let upper = self.arena.insert(upper);
        self.linked_mut(id).parent = Some(upper);
        self.children_mut(parent).insert(first, upper);
        let held = &mut self.num_bytes[tier];
        *held = *held - replaced.num_bytes() + num_new_bytes;
        self.changes.push(upper);
        Ok(SplitNode { upper, lower: id, replaced })
    }

    /// Stores what was computed for a pending node, whose parent must be stored by then.
    pub(super) fn fulfil(&mut self, id: NodeId, segment: P, checkpoint: Option<P>) -> Result<(), CacheError> {
        let node = self.live(id)?;
        let owner = node.owner().ok_or(CacheError::NotPending(id))?;
        if let Some(parent) = node.parent.filter(|parent| self.linked(*parent).owner().is_some()) {
            return Err(CacheError::Pending(parent));
        }
        let num_bytes = bytes_of(&segment, &checkpoint);
        let node = self.linked_mut(id);
        node.content = Content::Stored { segment, checkpoint };
        let tier = node.tier;
        self.num_bytes[tier] += num_bytes;
        self.forget_announced(owner, id);
        self.touch(id)
    }

    /// Removes what `owner` announced and did not fulfil, with the pending nodes of others below it.
    pub(super) fn cancel(&mut self, owner: OwnerId) -> Vec<OwnerId> {
        let mut others = Vec::new();
        for id in self.announced.remove(&owner).unwrap_or_default() {
            // It may have gone with an earlier one.
            if self.arena.get(id).is_some() {
                let removed = self.remove_subtree(id);
                others.extend(removed.iter().filter_map(Node::owner).filter(|other| *other != owner));
            }
        }
        others.sort_unstable();
        others.dedup();
        others
    }

    /// Replaces a node's segment by another form of the same KV, and returns the old one.
    pub(super) fn replace_segment(&mut self, id: NodeId, new: P) -> Result<P, CacheError> {
        let node = self.live_mut(id)?;
        let tier = node.tier;
        let Content::Stored { segment, .. } = &mut node.content else { return Err(CacheError::Pending(id)) };
        let num_new_bytes = new.num_bytes();
        let old = std::mem::replace(segment, new);
        let held = &mut self.num_bytes[tier];
        *held = *held - old.num_bytes() + num_new_bytes;
        Ok(old)
    }

    /// Sets or takes away a node's checkpoint, and returns the old one.
    pub(super) fn set_checkpoint(&mut self, id: NodeId, new: Option<P>) -> Result<Option<P>, CacheError> {
        let node = self.live_mut(id)?;
        let tier = node.tier;
        let Content::Stored { checkpoint, .. } = &mut node.content else {
            return Err(CacheError::Pending(id));
        };
        let bytes_of = |checkpoint: &Option<P>| checkpoint.as_ref().map_or(0, Payload::num_bytes);
        let num_new_bytes = bytes_of(&new);
        let old = std::mem::replace(checkpoint, new);
        let held = &mut self.num_bytes[tier];
        *held = *held - bytes_of(&old) + num_new_bytes;
        Ok(old)
    }

    /// Removes a node and all below it, none of which may be pinned or pending.
    pub(super) fn remove(&mut self, id: NodeId) -> Result<Vec<Node<P>>, CacheError> {
        self.live(id)?;
        for id in self.subtree(id) {
            let node = self.linked(id);
            if node.num_pins > 0 {
                return Err(CacheError::Pinned(id));
            }
            if node.owner().is_some() {
                return Err(CacheError::Pending(id));
            }
        }
        Ok(self.remove_subtree(id))
    }

    fn subtree(&self, id: NodeId) -> Vec<NodeId> {
        let mut ids = vec![id];
        let mut next = 0;
        while let Some(id) = ids.get(next) {
            ids.extend(self.linked(*id).children.values());
            next += 1;
        }
        ids
    }

    fn remove_subtree(&mut self, id: NodeId) -> Vec<Node<P>> {
        let ids = self.subtree(id);
        let node = self.linked(id);
        let (parent, first, tier) = (node.parent, node.edge[0], node.effective_tier());
        self.children_mut(parent).remove(&first);
        self.child_tier_changed(parent, Some(tier), None);
        self.changes.extend(&ids);
        let mut removed = Vec::with_capacity(ids.len());
        for id in ids {
            let node = self.arena.remove(id).expect("the subtree was listed just now");
            match &node.content {
                Content::Stored { segment, checkpoint } => {
                    self.num_bytes[node.tier] -= bytes_of(segment, checkpoint);
                }
                Content::Pending { owner } => self.forget_announced(*owner, id),
            }
            removed.push(node);
        }
        removed
    }

    fn forget_announced(&mut self, owner: OwnerId, id: NodeId) {
        if let Some(ids) = self.announced.get_mut(&owner) {
            ids.retain(|announced| *announced != id);
            if ids.is_empty() {
                self.announced.remove(&owner);
            }
        }
    }
}

fn bytes_of<P: Payload>(segment: &P, checkpoint: &Option<P>) -> u64 {
    segment.num_bytes() + checkpoint.as_ref().map_or(0, Payload::num_bytes)
}
