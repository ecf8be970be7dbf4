//! Tests of the prompt cache.
//!
//! Owns what they share: payloads that are nothing but a name and a size, and a caller that stores
//! prompts as the engine does, splitting where it is told to.

mod eviction;
mod invariants;
mod model;
mod planned;
mod random;
mod reference;
mod sharing;

use super::*;

/// KV of which nothing but its size is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kv {
    pub id: u64,
    pub num_bytes: u64,
}

impl Payload for Kv {
    fn num_bytes(&self) -> u64 {
        self.num_bytes
    }
}

const UNLIMITED: CacheLimits = CacheLimits { max_bytes: u64::MAX, max_entries: None };

/// A cache and its caller, for whom a token's KV is a byte and a checkpoint ten.
pub(super) struct Caller {
    pub cache: PromptCache<Kv>,
    next_id: u64,
}

impl Caller {
    fn new(limits: CacheLimits, rule: ResumeRule) -> Self {
        Self { cache: PromptCache::new(limits, rule), next_id: 0 }
    }

    fn any_token(limits: CacheLimits) -> Self {
        Self::new(limits, ResumeRule::AnyToken)
    }

    fn kv(&mut self, num_bytes: usize) -> Kv {
        self.next_id += 1;
        Kv { id: self.next_id, num_bytes: num_bytes as u64 }
    }

    fn split(&mut self, node: NodeId, at: usize) -> SplitNode<Kv> {
        let num_tokens = self.cache.tree().node(node).unwrap().tokens().len();
        let halves = (self.kv(at), self.kv(num_tokens - at));
        self.cache.split(node, at, halves).unwrap()
    }

    /// Walks to where `tokens` leave the tree, which is a node's end afterwards.
    fn descend<'a>(&mut self, tokens: &'a [TokenId]) -> (Option<NodeId>, &'a [TokenId]) {
        let found = self.cache.find(tokens);
        let rest = &tokens[found.num_tokens..];
        match found.partial {
            Some(Partial { node, num_tokens, .. }) => (Some(self.split(node, num_tokens).upper), rest),
            None => (found.path.last().map(|step| step.node), rest),
        }
    }

    /// Stores what is new of `tokens`, without making room.
    fn insert(&mut self, tokens: &[TokenId], tier: Tier, has_checkpoint: bool) -> NodeId {
        let (parent, rest) = self.descend(tokens);
        let checkpoint = has_checkpoint.then(|| self.kv(10));
        if let (Some(node), []) = (parent, rest) {
            if checkpoint.is_some() {
                self.cache.set_checkpoint(node, checkpoint).unwrap();
            }
            self.cache.touch(node).unwrap();
            return node;
        }
        let segment = self.kv(rest.len());
        match self.cache.insert(Place { parent, tokens: rest, tier }, segment, checkpoint).unwrap() {
            Inserted::New(node) => node,
            Inserted::Overlaps { .. } => panic!("the tree was left at {parent:?}"),
        }
    }

    /// Stores what is new of `tokens` and makes room; no run is planned.
    fn store(&mut self, tokens: &[TokenId], tier: Tier) -> NodeId {
        let node = self.insert(tokens, tier, false);
        self.cache.make_room(0);
        node
    }

    /// The number of tokens a sequence with these reusable tokens resumes with.
    fn hit(&mut self, tokens: &[TokenId]) -> usize {
        let found = self.cache.find(tokens);
        let resume = self.cache.resume(&found);
        self.cache.record_hit(&found, &resume).unwrap();
        resume.num_tokens
    }

    fn num_entries(&self) -> usize {
        self.cache.usage().tiers.iter().map(|(_, tier)| tier.num_entries).sum()
    }

    fn num_bytes(&self) -> u64 {
        self.cache.usage().num_bytes
    }
}
