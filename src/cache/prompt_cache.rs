//! The prompt cache: the tree with its limits kept.
//!
//! Owns the calls that change the tree, the limits and the counters. Holds no tensors: what it says
//! to drop, the caller frees; when to wait, to split and to store is the engine's business.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use super::node::{Content, Node};
use super::ranking::{Claim, Ranking, Standing};
use super::{
    CacheError, CacheUsage, Inserted, Match, NodeId, OwnerId, Payload, PerTier, Place, PromptTree, Resume,
    ResumeRule, SplitNode, TierUsage, TokenId,
};

/// What the prompt cache may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// `--cache-bytes`
    pub max_bytes: u64,
    /// `--cache-entries`
    pub max_entries: Option<usize>,
}

/// Stored prefixes, their tiers and limits; see the [module docs](super).
#[derive(Debug, Clone)]
pub struct PromptCache<P> {
    tree: PromptTree<P>,
    ranking: Ranking,
    limits: CacheLimits,
    rule: ResumeRule,
    /// The node stored last: not a victim while there is another.
    newest: Option<NodeId>,
    peak_bytes: u64,
    num_over_limit: usize,
    num_evictions: PerTier<usize>,
    num_cached_tokens: PerTier<usize>,
}

impl<P: Payload> PromptCache<P> {
    /// An empty cache for models that resume by `rule`.
    pub fn new(limits: CacheLimits, rule: ResumeRule) -> Self {
        Self {
            tree: PromptTree::new(),
            ranking: Ranking::default(),
            limits,
            rule,
            newest: None,
            peak_bytes: 0,
            num_over_limit: 0,
            num_evictions: PerTier::default(),
            num_cached_tokens: PerTier::default(),
        }
    }

    /// What it may hold.
    pub fn limits(&self) -> CacheLimits {
        self.limits
    }

    /// The tree, to look at.
    pub fn tree(&self) -> &PromptTree<P> {
        &self.tree
    }

    /// Follows a prompt down the tree; see [`super::reusable`] for what to look up.
    pub fn find(&self, tokens: &[TokenId]) -> Match {
        self.tree.find(tokens)
    }

    /// The deepest point of a match from which this cache's models can resume.
    pub fn resume(&self, found: &Match) -> Resume {
        found.resume(self.rule)
    }

    /// Counts a sequence's stored prefix as served, and refreshes the recency of all its nodes.
    pub fn record_hit(&mut self, found: &Match, resume: &Resume) -> Result<(), CacheError> {
        let Some(deepest) = found.node_of(resume) else { return Ok(()) };
        let mut served = PerTier::<usize>::default();
        for step in found.path.iter().take(resume.num_nodes) {
            let node = self.tree.live(step.node)?;
            served[node.tier()] += node.tokens().len();
        }
        if let Some(partial) = resume.partial {
            served[self.tree.live(partial.node)?.tier()] += partial.num_tokens;
        }
        self.touch(deepest)?;
        for (tier, num_tokens) in served.iter() {
            self.num_cached_tokens[tier] += num_tokens;
        }
        Ok(())
    }

    /// Stores the KV of `place.tokens`, with the recurrent state after them if there is one.
    ///
    /// A model without attention stores segments of no bytes.
    pub fn insert(
        &mut self,
        place: Place<'_>,
        segment: P,
        checkpoint: Option<P>,
    ) -> Result<Inserted, CacheError> {
        let inserted = self.insert_unused(place, segment, checkpoint)?;
        if let Inserted::New(id) = inserted {
            self.touch(id)?;
        }
        Ok(inserted)
    }

    /// Does the same, and leaves it to the caller to [`touch`](Self::touch_all) all that was stored.
    pub fn insert_unused(
        &mut self,
        place: Place<'_>,
        segment: P,
        checkpoint: Option<P>,
    ) -> Result<Inserted, CacheError> {
        let inserted = self.tree.insert(place, Content::Stored { segment, checkpoint })?;
        if let Inserted::New(id) = inserted {
            self.newest = Some(id);
        }
        self.settle();
        Ok(inserted)
    }

    /// Says that `owner` is about to compute the KV of `place.tokens`, so that others wait for it.
    pub fn announce(&mut self, place: Place<'_>, owner: OwnerId) -> Result<Inserted, CacheError> {
        let inserted = self.tree.insert(place, Content::Pending { owner })?;
        if let Inserted::New(id) = inserted {
            self.tree.touch(id)?;
        }
        self.settle();
        Ok(inserted)
    }

    /// Stores what was announced; nodes of one path are fulfilled from the root down.
    pub fn fulfil(&mut self, id: NodeId, segment: P, checkpoint: Option<P>) -> Result<(), CacheError> {
        self.tree.fulfil(id, segment, checkpoint)?;
        self.newest = Some(id);
        self.settle();
        Ok(())
    }

    /// Withdraws what `owner` has announced and not stored; returns the others who had announced
    /// nodes below, which are withdrawn with it.
    pub fn cancel(&mut self, owner: OwnerId) -> Vec<OwnerId> {
        let others = self.tree.cancel(owner);
        self.settle();
        others
    }

    /// Cuts a stored node in two after its first `at` tokens, `halves` being copies of its segment.
    ///
    /// The lower half keeps the id, and with it pins, children, checkpoint; both keep tier, recency
    /// and planned users.
    pub fn split(&mut self, id: NodeId, at: usize, halves: (P, P)) -> Result<SplitNode<P>, CacheError> {
        let split = self.tree.split(id, at, halves)?;
        self.settle();
        Ok(split)
    }

    /// Replaces a segment by another form of the same KV and returns the old one to be dropped.
    pub fn replace_segment(&mut self, id: NodeId, segment: P) -> Result<P, CacheError> {
        let old = self.tree.replace_segment(id, segment)?;
        self.settle();
        Ok(old)
    }

    /// Sets or takes away the recurrent state at a node's end; returns the old one to be dropped.
    pub fn set_checkpoint(&mut self, id: NodeId, checkpoint: Option<P>) -> Result<Option<P>, CacheError> {
        let is_stored = checkpoint.is_some();
        let old = self.tree.set_checkpoint(id, checkpoint)?;
        if is_stored {
            self.newest = Some(id);
        }
        self.settle();
        Ok(old)
    }

    /// Removes a node and all below it and returns what they held to be dropped.
    ///
    /// Refused where any of them is pinned or pending.
    pub fn remove(&mut self, id: NodeId) -> Result<Vec<P>, CacheError> {
        let removed = self.tree.remove(id)?;
        self.settle();
        Ok(removed.iter().flat_map(payloads_of).collect())
    }

    /// Keeps a node from being evicted while a sequence uses it; with it all nodes above keep their
    /// segments, as only leaves go.
    pub fn pin(&mut self, id: NodeId) -> Result<(), CacheError> {
        self.tree.live_mut(id)?.num_pins += 1;
        self.settle();
        Ok(())
    }

    /// Takes back one [`PromptCache::pin`].
    pub fn unpin(&mut self, id: NodeId) -> Result<(), CacheError> {
        let num_pins = &mut self.tree.live_mut(id)?.num_pins;
        *num_pins = num_pins.checked_sub(1).ok_or(CacheError::NotPinned(id))?;
        self.settle();
        Ok(())
    }

    /// Makes a node and all above it the most recently used.
    pub fn touch(&mut self, id: NodeId) -> Result<(), CacheError> {
        self.tree.touch(id)?;
        self.settle();
        Ok(())
    }

    /// Does the same to each of these in turn.
    pub fn touch_all(&mut self, ids: &[NodeId]) -> Result<(), CacheError> {
        self.tree.touch_all(ids)?;
        self.settle();
        Ok(())
    }

    /// Adds planned users, as places in the order of the run, to a node and all above it.
    pub fn expect(&mut self, id: NodeId, users: RangeInclusive<u64>) -> Result<(), CacheError> {
        self.tree.expect(id, users.into(), self.ranking.now())?;
        self.settle();
        Ok(())
    }

    /// Evicts until the limits hold; returns what to drop.
    ///
    /// To be called after every insertion. `now_order` is the place in the order of the run that the
    /// run has come to: the first request that has not resumed yet. Never takes what is pinned or
    /// pending, nor the only entry.
    pub fn make_room(&mut self, now_order: u64) -> Vec<P> {
        self.ranking.advance(now_order);
        self.evict_until_fits(0, self.newest, Claim::Needed)
    }

    /// Evicts until `num_bytes` more would fit, so that storing them never exceeds the limit.
    ///
    /// The node to be continued must be pinned, else it may be among the evicted.
    pub fn make_room_for(&mut self, num_bytes: u64, now_order: u64, claim: Claim) -> Vec<P> {
        self.ranking.advance(now_order);
        if claim == Claim::Spare && !self.has_room_for(num_bytes) && !self.could_spare(num_bytes) {
            return Vec::new();
        }
        self.evict_until_fits(num_bytes, None, claim)
    }

    /// Evicts the one entry that goes first, whatever the limits say; `None` where nothing can go.
    pub fn evict_first(&mut self) -> Option<Vec<P>> {
        let victim = self.ranking.victim(None, Claim::Needed)?;
        let mut dropped = Vec::new();
        self.evict(victim, &mut dropped);
        Some(dropped)
    }

    /// Whether `num_bytes` more would be within the limit.
    pub fn has_room_for(&self, num_bytes: u64) -> bool {
        !self.is_over_limit_with(num_bytes)
    }

    /// Bytes held beyond the limit, since all was in use.
    pub fn num_bytes_over_limit(&self) -> u64 {
        self.tree.num_bytes().saturating_sub(self.limits.max_bytes)
    }

    /// Whether more is held than the limits allow.
    pub fn is_over_limit(&self) -> bool {
        self.is_over_limit_with(0)
    }

    /// What is held now, and what has been done so far.
    pub fn usage(&self) -> CacheUsage {
        let mut usage = CacheUsage {
            tiers: PerTier::default(),
            num_bytes: self.tree.num_bytes(),
            peak_bytes: self.peak_bytes,
            num_over_limit: self.num_over_limit,
        };
        for tier in super::Tier::ALL {
            usage.tiers[tier] = TierUsage {
                num_bytes: self.tree.num_bytes_of(tier),
                num_entries: self.ranking.num_entries_of(tier),
                num_evictions: self.num_evictions[tier],
                num_cached_tokens: self.num_cached_tokens[tier],
            };
        }
        usage
    }

    fn is_over_limit_with(&self, num_bytes: u64) -> bool {
        let held = self.tree.num_bytes().saturating_add(num_bytes);
        let max_entries = self.limits.max_entries.unwrap_or(usize::MAX);
        held > self.limits.max_bytes || self.ranking.num_entries() > max_entries
    }

    /// Whether `num_bytes` more would fit if all went that no running or planned request uses.
    fn could_spare(&self, num_bytes: u64) -> bool {
        if num_bytes > self.limits.max_bytes {
            return false;
        }
        // Nearly always the next few to go are enough, or there is none. To look at all nodes whenever something is
        // stored would take time that grows with the square of a run.
        let num_missing =
            self.tree.num_bytes().saturating_add(num_bytes).saturating_sub(self.limits.max_bytes);
        let mut unplanned = self.ranking.all_unplanned().map(|id| self.evicted_bytes(id)).peekable();
        if num_missing > 0 && unplanned.peek().is_none() {
            return false;
        }
        let mut num_spared = 0u64;
        num_missing == 0
            || unplanned.any(|num_bytes| {
                num_spared = num_spared.saturating_add(num_bytes);
                num_spared >= num_missing
            })
            || self.could_spare_with_inner_nodes(num_bytes)
    }

    /// What goes with an entry that is evicted.
    fn evicted_bytes(&self, id: NodeId) -> u64 {
        let node = self.tree.linked(id);
        let segment = node.segment().filter(|_| node.is_leaf());
        segment.into_iter().chain(node.checkpoint()).map(Payload::num_bytes).sum()
    }

    /// The same by looking at all nodes: those whose children are all evicted follow them.
    fn could_spare_with_inner_nodes(&self, num_bytes: u64) -> bool {
        let now = self.ranking.now();
        let mut kept = HashSet::new();
        let mut num_kept_bytes = 0u64;
        // Children first: what is kept keeps all above it.
        for id in self.tree.preorder().into_iter().rev() {
            let node = self.tree.linked(id);
            let is_dead = self.rule == ResumeRule::Checkpoints && node.checkpoint().is_none();
            let is_planned = node.expected().is_some_and(|expected| expected.last >= now);
            let is_in_use = node.num_pins() > 0 || node.segment().is_none();
            if !(is_in_use || is_planned && !is_dead || kept.contains(&id)) {
                continue;
            }
            kept.extend(node.parent());
            let checkpoint = node.checkpoint().filter(|_| is_in_use || is_planned);
            let held = node.segment().into_iter().chain(checkpoint).map(Payload::num_bytes);
            num_kept_bytes = num_kept_bytes.saturating_add(held.sum());
        }
        num_bytes.saturating_add(num_kept_bytes) <= self.limits.max_bytes
    }

    fn evict_until_fits(&mut self, num_bytes: u64, newest: Option<NodeId>, claim: Claim) -> Vec<P> {
        let mut dropped = Vec::new();
        while self.is_over_limit_with(num_bytes) {
            let Some(victim) = self.ranking.victim(newest, claim) else {
                self.num_over_limit += usize::from(self.is_over_limit());
                break;
            };
            self.evict(victim, &mut dropped);
        }
        dropped
    }

    /// Takes a leaf, or the checkpoint of a node that others continue.
    fn evict(&mut self, id: NodeId, dropped: &mut Vec<P>) {
        let node = self.tree.linked(id);
        self.num_evictions[node.effective_tier()] += 1;
        if node.is_leaf() {
            let removed = self.tree.remove(id).expect("what is pinned or pending is not up for eviction");
            dropped.extend(removed.iter().flat_map(payloads_of));
        } else {
            let checkpoint = self.tree.set_checkpoint(id, None).expect("a pending node is no entry");
            dropped.extend(checkpoint);
        }
        self.settle();
    }

    /// Ranks the nodes anew that the last call changed.
    fn settle(&mut self) {
        for id in self.tree.take_changes() {
            let standing = self.tree.node(id).and_then(|node| self.standing(node));
            self.ranking.update(id, standing);
        }
        self.peak_bytes = self.peak_bytes.max(self.tree.num_bytes());
    }

    /// How a node ranks, if eviction could take something of it.
    fn standing(&self, node: &Node<P>) -> Option<Standing> {
        let is_entry = node.segment().is_some() && (node.is_leaf() || node.checkpoint().is_some());
        is_entry.then(|| Standing {
            tier: node.effective_tier(),
            is_pinned: node.num_pins() > 0,
            is_dead: self.rule == ResumeRule::Checkpoints && node.checkpoint().is_none(),
            last_used: node.last_used(),
            end: node.end(),
            expected: node.expected(),
        })
    }
}

fn payloads_of<P: Payload>(node: &Node<P>) -> impl Iterator<Item = P> {
    node.segment().into_iter().chain(node.checkpoint()).cloned()
}
