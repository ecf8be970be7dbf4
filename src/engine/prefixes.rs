//! The runner and the prompt cache over it: what sequences resume from, announce, store and hold on to.
//!
//! Owns both, and the traffic between them and the running sequences, so that a prefix that several requests share
//! is computed once: `prompts` for what comes before the first new token, `answers` for what comes after,
//! `persisted` for what a cache file has, `unsound` for what turns out to be no numbers. What is kept for how long
//! is the cache's rule; which requests run when, the scheduler's. Where there is no cache, it is one that stays
//! empty: what a sequence computes is its own from its first token on.
//!
//! ```text
//!   cache                            sequences
//!   ── system ──┬── question A ──    1 announced all of its path and stores it piece by piece;
//!               │                    it holds the end of what it has stored
//!               └┄┄ question B ┄┄    2 waited until "system" was stored, resumed there and
//!                                    announced the rest; 3 has the same prompt and waits for 2
//! ```
//!
//! A sequence pins one node, below which it stores the next; so all above it stays too. What is
//! stored of a pass that later fails is taken back.

mod answers;
mod persisted;
mod prompts;
mod unsound;

pub use persisted::PersistStats;
pub(super) use persisted::Resumable;

use std::collections::{BTreeMap, VecDeque};

use self::persisted::Persisted;
use super::sequence::Sequence;
use super::{GenerationRequest, Runner, RunnerError, SequenceId, Stored, StoredSegment};
use crate::cache::{
    CacheError, CacheLimits, CacheUsage, Claim, Match, NodeId, OwnerId, Payload, PromptCache,
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

/// Something stored whose values are not computed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Unconfirmed {
    Node(NodeId),
    Checkpoint(NodeId),
}

/// The runner, and the prompt cache over what it has stored.
#[derive(Debug)]
pub(super) struct Prefixes<R> {
    pub runner: R,
    cache: PromptCache<StoredSegment>,
    /// Not set: there are no limits, and the cache stays empty.
    is_on: bool,
    /// Lowest order of the requests that had not begun when one was last admitted: planned uses before
    /// it are over.
    now: u64,
    /// Stored nodes whose missing recurrent state a running sequence will bring.
    awaited: BTreeMap<NodeId, SequenceId>,
    /// What was stored since the launch of each pass under way, oldest first.
    unconfirmed: VecDeque<Vec<Unconfirmed>>,
    persisted: Persisted,
}

impl<R: Runner> Prefixes<R> {
    /// Takes over a runner; without limits nothing is stored or found.
    pub(super) fn new(runner: R, limits: Option<CacheLimits>) -> Self {
        let nothing = CacheLimits { max_bytes: 0, max_entries: None };
        Self {
            cache: PromptCache::new(limits.unwrap_or(nothing), runner.resume_rule()),
            is_on: limits.is_some(),
            runner,
            now: 0,
            awaited: BTreeMap::new(),
            unconfirmed: VecDeque::new(),
            persisted: Persisted::default(),
        }
    }

    /// Counters of the cache, if there is one.
    pub(super) fn usage(&self) -> Option<CacheUsage> {
        self.is_on.then(|| self.cache.usage())
    }

    #[cfg(test)]
    pub(super) fn cache_mut(&mut self) -> Option<&mut PromptCache<StoredSegment>> {
        self.is_on.then_some(&mut self.cache)
    }

    /// Tells the cache of the plan of a request, given what was found of it: what is stored already may be meant
    /// for it.
    pub(super) fn expect(
        &mut self,
        request: &GenerationRequest,
        found: &mut Match,
    ) -> Result<(), RunnerError> {
        self.cache.tree().find_again(found, request.reusable());
        let whole = found.path.iter().map(|step| (step.node, step.end));
        let partial = found.partial.map(|partial| (partial.node, found.num_tokens));
        let plan = &request.plan;
        let mut cuts = plan.cuts.iter().peekable();
        for (node, end) in whole.chain(partial) {
            while cuts.next_if(|cut| cut.position < end).is_some() {}
            let users = match cuts.peek() {
                Some(cut) => cut.users.clone(),
                None => plan.order..=plan.order,
            };
            self.cache.expect(node, users)?;
        }
        Ok(())
    }

    /// The place in the order of the run that it has come to: what this one uses is still to be used.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Lets go of what a sequence that has ended held, and of what it will not compute any more.
    pub(super) fn let_go(&mut self, sequence: &mut Sequence) -> Result<(), RunnerError> {
        let hold = std::mem::take(&mut sequence.hold);
        self.withdraw(sequence.id);
        if let Some(node) = hold.node {
            if sequence.request.answer_recurs.is_awaited() {
                self.cache.expect(node, self.now..=self.now)?;
            }
            self.cache.unpin(node)?;
        }
        self.make_room();
        Ok(())
    }

    /// Withdraws what a sequence was to bring to the cache.
    fn withdraw(&mut self, sequence: SequenceId) {
        self.cache.cancel(OwnerId(sequence.0));
        self.awaited.retain(|_, owner| *owner != sequence);
    }

    /// Notes that a pass is launched: what is stored from now on may depend on it.
    pub(super) fn pass_launched(&mut self) {
        self.unconfirmed.push_back(Vec::new());
    }

    /// Notes that the oldest pass under way was computed.
    pub(super) fn pass_collected(&mut self) {
        self.unconfirmed.pop_front();
    }

    /// Takes back all that may depend on the passes under way, which have failed. To be called when
    /// their sequences have let go.
    pub(super) fn passes_failed(&mut self) -> Result<(), RunnerError> {
        for stored in std::mem::take(&mut self.unconfirmed).into_iter().flatten() {
            match stored {
                Unconfirmed::Node(node) | Unconfirmed::Checkpoint(node)
                    if self.cache.tree().node(node).is_none() => {}
                Unconfirmed::Node(node) => self.remove(node)?,
                Unconfirmed::Checkpoint(node) => self.replace_checkpoint(node, None)?,
            }
        }
        Ok(())
    }

    fn note_stored(&mut self, stored: Unconfirmed) {
        if let Some(last) = self.unconfirmed.back_mut() {
            last.push(stored);
        }
    }

    /// Tokens of so many bytes that are stored beyond the cache's limit.
    pub(super) fn num_tokens_over_limit(&self, bytes_per_token: u64) -> usize {
        let num_bytes = self.cache.num_bytes_over_limit();
        usize::try_from(num_bytes.div_ceil(bytes_per_token.max(1))).unwrap_or(usize::MAX)
    }

    /// Evicts what the limits have no room for.
    pub(super) fn make_room(&mut self) {
        let dropped = self.cache.make_room(self.now);
        self.discard_all(dropped);
    }

    /// Makes room for what is about to be stored, so that it never counts beside what it pushes out; what
    /// it continues must be pinned. Says whether there is.
    fn make_room_for(&mut self, num_bytes: u64, claim: Claim) -> bool {
        let dropped = self.cache.make_room_for(num_bytes, self.now, claim);
        self.discard_all(dropped);
        self.cache.has_room_for(num_bytes)
    }

    /// Makes room for what is to come at or below a node, which stays; says whether there is.
    fn make_room_at(
        &mut self,
        node: Option<NodeId>,
        num_bytes: u64,
        claim: Claim,
    ) -> Result<bool, RunnerError> {
        node.map_or(Ok(()), |node| self.cache.pin(node))?;
        let has_room = self.make_room_for(num_bytes, claim);
        node.map_or(Ok(()), |node| self.cache.unpin(node))?;
        Ok(has_room)
    }

    /// Makes room for a leaf that nobody needs in this run, and says whether it could stay itself.
    ///
    /// It must not be pinned yet: rather than what this run still needs, or the limit, it goes.
    fn make_room_for_leaf(&mut self, leaf: NodeId) -> Result<bool, RunnerError> {
        self.make_room();
        if self.cache.is_over_limit() && self.cache.tree().node(leaf).is_some() {
            self.remove(leaf)?;
        }
        Ok(self.cache.tree().node(leaf).is_some())
    }

    /// Gives a stored node the recurrent state at its end, if there is room for that.
    fn set_checkpoint(&mut self, node: NodeId, checkpoint: StoredSegment) -> Result<(), RunnerError> {
        if !self.make_room_at(Some(node), checkpoint.num_bytes, Claim::Needed)? {
            self.runner.discard(checkpoint.id);
            return Ok(());
        }
        self.replace_checkpoint(node, Some(checkpoint))?;
        // It may be an entry more.
        self.make_room();
        if self.cache.is_over_limit() && self.cache.tree().node(node).is_some() {
            self.replace_checkpoint(node, None)?;
        }
        self.note_stored(Unconfirmed::Checkpoint(node));
        Ok(())
    }

    fn replace_checkpoint(
        &mut self,
        node: NodeId,
        checkpoint: Option<StoredSegment>,
    ) -> Result<(), RunnerError> {
        let old = self.cache.set_checkpoint(node, checkpoint)?;
        self.discard_all(old);
        Ok(())
    }

    /// Removes a node and all below it.
    fn remove(&mut self, node: NodeId) -> Result<(), RunnerError> {
        let dropped = self.cache.remove(node)?;
        self.discard_all(dropped);
        Ok(())
    }

    /// Makes a node end after so many of the tokens that were found.
    fn node_at(&mut self, found: &Match, num_tokens: usize) -> Result<Option<NodeId>, RunnerError> {
        let num_whole = found.path.iter().take_while(|step| step.end <= num_tokens).count();
        let (whole, beyond) = found.path.split_at(num_whole);
        let start = whole.last().map_or(0, |step| step.end);
        let cut = beyond.first().map(|step| step.node).or(found.partial.map(|partial| partial.node));
        match cut.filter(|_| start < num_tokens) {
            Some(node) => self.split(node, num_tokens - start).map(Some),
            None => Ok(whole.last().map(|step| step.node)),
        }
    }

    /// Cuts a stored node after its first `at` tokens and returns the upper half.
    fn split(&mut self, node: NodeId, at: usize) -> Result<NodeId, RunnerError> {
        let halves = self.runner.split(self.segment_of(node)?.id, at)?;
        let upper = self.cache.split(node, at, halves)?.upper;
        // Whatever the whole depended on, both halves depend on.
        for stored in &mut self.unconfirmed {
            if stored.contains(&Unconfirmed::Node(node)) {
                stored.push(Unconfirmed::Node(upper));
            }
        }
        Ok(upper)
    }

    fn segment_of(&self, node: NodeId) -> Result<StoredSegment, RunnerError> {
        let segment = self.cache.tree().node(node).and_then(|node| node.segment().copied());
        segment.ok_or_else(|| CacheError::Stale(node).into())
    }

    /// Drops what was stored and is in no tree.
    pub(super) fn discard(&mut self, stored: Stored) {
        self.discard_all([stored.segment].into_iter().chain(stored.checkpoint));
    }

    fn discard_all(&mut self, dropped: impl IntoIterator<Item = StoredSegment>) {
        dropped.into_iter().for_each(|held| self.runner.discard(held.id));
    }
}
