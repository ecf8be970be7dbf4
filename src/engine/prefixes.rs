//! Sequences on stored prefixes: what each resumes from, announces, stores and holds on to.
//!
//! Owns the traffic between running sequences, the prompt cache and the runner's segments, so that
//! a prefix that several requests share is computed once. What is kept for how long is the
//! cache's rule; which requests run when, the scheduler's.
//!
//! A sequence holds on to one node, the end of the path it runs on; it is pinned, and so is all
//! above it. The first to need a prefix announces it and stores it as soon as it is launched;
//! whoever comes meanwhile waits.

use std::collections::VecDeque;

use super::{PromptPlan, Runner, RunnerError, SegmentId, SequenceId, Stored, StoredSegment, TokenId};
use crate::cache::{
    CacheError, CacheLimits, CacheUsage, Inserted, NodeId, OwnerId, Payload, Place, PromptCache, ResumeRule,
    Tier, reusable,
};

impl Payload for StoredSegment {
    fn num_bytes(&self) -> u64 {
        self.num_bytes
    }
}

impl From<CacheError> for RunnerError {
    fn from(error: CacheError) -> Self {
        RunnerError(error.to_string())
    }
}

/// A sequence's hold on the prompt cache.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The pinned end of its path.
    node: Option<NodeId>,
    /// Tokens on its path.
    num_tokens: usize,
    /// What it is to store, in order: nodes and the positions where they end.
    announced: VecDeque<(NodeId, usize)>,
    /// Something on its path was not kept, so nothing more can be stored below it.
    is_detached: bool,
}

impl Hold {
    /// Tokens on the path that the sequence runs on.
    pub(super) fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// The prompt cache as the engine uses it; without limits nothing is stored or found.
#[derive(Debug)]
pub(super) struct Prefixes {
    cache: Option<PromptCache<StoredSegment>>,
    /// Order of the request admitted last: planned uses before it are over.
    now: u64,
}

impl Prefixes {
    pub(super) fn new(limits: Option<CacheLimits>, rule: ResumeRule) -> Self {
        Self { cache: limits.map(|limits| PromptCache::new(limits, rule)), now: 0 }
    }

    /// Counters of the cache, if there is one.
    pub(super) fn usage(&self) -> Option<CacheUsage> {
        self.cache.as_ref().map(PromptCache::usage)
    }

    /// Tells the cache of a request's plan: what is stored already may be meant for it.
    pub(super) fn expect(&mut self, prompt: &[TokenId], plan: &PromptPlan) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let found = cache.find(reusable(prompt));
        let mut cuts = plan.cuts.iter().peekable();
        for step in &found.path {
            while cuts.next_if(|cut| cut.position < step.end).is_some() {}
            let users = match cuts.peek() {
                Some(cut) => cut.users.clone(),
                None => plan.order..=plan.order,
            };
            cache.expect(step.node, users)?;
        }
        Ok(())
    }

    /// Prompt tokens that a sequence would resume with now; `None` if it should wait for another
    /// that is computing more of them.
    pub(super) fn resumable(&self, prompt: &[TokenId]) -> Option<usize> {
        let Some(cache) = &self.cache else { return Some(0) };
        let found = cache.find(reusable(prompt));
        if found.pending().is_some() {
            return None;
        }
        Some(cache.resume(&found).num_tokens)
    }

    /// Begins a sequence on what is stored of its prompt and announces the rest.
    pub(super) fn admit(
        &mut self,
        runner: &mut impl Runner,
        sequence: SequenceId,
        prompt: &[TokenId],
        plan: &PromptPlan,
    ) -> Result<Hold, RunnerError> {
        self.now = self.now.max(plan.order);
        let Some(cache) = &mut self.cache else { return Ok(Hold::default()) };
        let tokens = reusable(prompt);
        let found = cache.find(tokens);
        let resume = cache.resume(&found);
        cache.record_hit(&found, &resume)?;
        let mut end = found.path[..resume.num_nodes].last().map(|step| step.node);
        if let Some(partial) = resume.partial {
            let whole = segment_of(cache, partial.node)?;
            let halves = runner.split(whole.id, partial.num_tokens)?;
            end = Some(cache.split(partial.node, partial.num_tokens, halves)?.upper);
        }
        let mut path = Vec::new();
        let mut next = end;
        while let Some(id) = next {
            path.push(segment_of(cache, id)?.id);
            next = cache.tree().node(id).and_then(|node| node.parent());
        }
        path.reverse();
        if let Some(id) = end {
            let checkpoint = cache.tree().node(id).and_then(|node| node.checkpoint()).map(|held| held.id);
            runner.resume(sequence, &path, checkpoint)?;
            cache.pin(id)?;
        }
        let mut hold = Hold { node: end, num_tokens: resume.num_tokens, ..Hold::default() };
        announce(cache, sequence, tokens, plan, &mut hold)?;
        Ok(hold)
    }

    /// Stores what a sequence has announced, as far as it is launched.
    pub(super) fn reached(
        &mut self,
        runner: &mut impl Runner,
        sequence: SequenceId,
        hold: &mut Hold,
        position: usize,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        while let Some(&(node, end)) = hold.announced.front().filter(|(_, end)| *end <= position) {
            hold.announced.pop_front();
            let stored = runner.store(sequence, end - hold.num_tokens)?;
            cache.fulfil(node, stored.segment, stored.checkpoint)?;
            cache.pin(node)?;
            if let Some(before) = hold.node.replace(node) {
                cache.unpin(before)?;
            }
            hold.num_tokens = end;
            make_room(cache, runner, self.now);
        }
        Ok(())
    }

    /// Takes what a sequence has computed after its path out of the runner, `num_tokens` of it, for
    /// [`Prefixes::keep`] once its tokens are known. The sequence must not run on.
    pub(super) fn take_rest(
        &self,
        runner: &mut impl Runner,
        sequence: SequenceId,
        hold: &Hold,
        end: usize,
    ) -> Result<Option<Stored>, RunnerError> {
        if self.cache.is_none() || hold.is_detached || end <= hold.num_tokens {
            return Ok(None);
        }
        runner.store(sequence, end - hold.num_tokens).map(Some)
    }

    /// Keeps the end of a sequence's tokens, `rest` from its path on, as an answer, if there is room
    /// and it is not there already.
    pub(super) fn keep(
        &mut self,
        runner: &mut impl Runner,
        hold: &Hold,
        rest: &[TokenId],
        stored: Stored,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let place = Place { parent: hold.node, tokens: rest, tier: Tier::Assistant };
        match cache.insert(place, stored.segment, stored.checkpoint)? {
            Inserted::New(_) => make_room(cache, runner, self.now),
            Inserted::Overlaps { .. } => discard(runner, stored),
        }
        Ok(())
    }

    /// Drops what [`Prefixes::take_rest`] took.
    pub(super) fn drop_rest(&self, runner: &mut impl Runner, rest: Stored) {
        discard(runner, rest);
    }

    /// Lets go of what a sequence that has ended held, and of what it will not compute any more.
    pub(super) fn let_go(
        &mut self,
        runner: &mut impl Runner,
        sequence: SequenceId,
        hold: &Hold,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        cache.cancel(OwnerId(sequence.0));
        if let Some(node) = hold.node {
            cache.unpin(node)?;
        }
        make_room(cache, runner, self.now);
        Ok(())
    }
}

/// Announces the rest of a prompt, cut where its plan says.
fn announce(
    cache: &mut PromptCache<StoredSegment>,
    sequence: SequenceId,
    tokens: &[TokenId],
    plan: &PromptPlan,
    hold: &mut Hold,
) -> Result<(), RunnerError> {
    let whole = (tokens.len(), Tier::User, plan.order..=plan.order);
    let cuts = plan.cuts.iter().map(|cut| (cut.position, cut.tier, cut.users.clone()));
    let mut parent = hold.node;
    let mut start = hold.num_tokens;
    for (end, tier, users) in cuts.chain([whole]) {
        if end <= start || end > tokens.len() {
            continue;
        }
        match cache.announce(Place { parent, tokens: &tokens[start..end], tier }, OwnerId(sequence.0))? {
            Inserted::New(node) => {
                cache.expect(node, users)?;
                hold.announced.push_back((node, end));
                (parent, start) = (Some(node), end);
            }
            // Stored without the checkpoint that this model would need to resume there: the
            // sequence computes it for itself.
            Inserted::Overlaps { .. } => {
                hold.is_detached = true;
                break;
            }
        }
    }
    Ok(())
}

fn segment_of(cache: &PromptCache<StoredSegment>, node: NodeId) -> Result<StoredSegment, RunnerError> {
    let segment = cache.tree().node(node).and_then(|node| node.segment().copied());
    segment.ok_or_else(|| CacheError::Stale(node).into())
}

fn make_room(cache: &mut PromptCache<StoredSegment>, runner: &mut impl Runner, now: u64) {
    for dropped in cache.make_room(now) {
        runner.discard(dropped.id);
    }
}

fn discard(runner: &mut impl Runner, stored: Stored) {
    let ids: [Option<SegmentId>; 2] = [Some(stored.segment.id), stored.checkpoint.map(|held| held.id)];
    for id in ids.into_iter().flatten() {
        runner.discard(id);
    }
}
