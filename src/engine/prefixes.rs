//! Sequences on stored prefixes: what each resumes from, announces, stores and holds on to.
//!
//! Owns the traffic between running sequences, the prompt cache and the runner's segments, so that
//! a prefix that several requests share is computed once: `prompts` for what comes before the first
//! new token, `answers` for what comes after, `persisted` for what a cache file has, `unsound` for what
//! turns out to be no numbers. What is kept for
//! how long is the cache's rule; which requests run when, the scheduler's.
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
use super::{PromptPlan, Runner, RunnerError, SegmentId, SequenceId, Stored, StoredSegment, TokenId};
use crate::cache::{
    CacheError, CacheLimits, CacheUsage, Claim, NodeId, OwnerId, Payload, PromptCache, ResumeRule,
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

/// The prompt cache as the engine uses it; without limits nothing is stored or found.
#[derive(Debug)]
pub(super) struct Prefixes {
    cache: Option<PromptCache<StoredSegment>>,
    rule: ResumeRule,
    /// Lowest order of the requests that had not begun when one was last admitted: planned uses before
    /// it are over.
    now: u64,
    /// Stored nodes whose missing recurrent state a running sequence will bring.
    awaited: BTreeMap<NodeId, SequenceId>,
    /// What was stored since the launch of each pass under way, oldest first.
    unconfirmed: VecDeque<Vec<Unconfirmed>>,
    persisted: Persisted,
}

impl Prefixes {
    pub(super) fn new(limits: Option<CacheLimits>, rule: ResumeRule) -> Self {
        Self {
            cache: limits.map(|limits| PromptCache::new(limits, rule)),
            rule,
            now: 0,
            awaited: BTreeMap::new(),
            unconfirmed: VecDeque::new(),
            persisted: Persisted::default(),
        }
    }

    /// Counters of the cache, if there is one.
    pub(super) fn usage(&self) -> Option<CacheUsage> {
        self.cache.as_ref().map(PromptCache::usage)
    }

    #[cfg(test)]
    pub(super) fn cache_mut(&mut self) -> Option<&mut PromptCache<StoredSegment>> {
        self.cache.as_mut()
    }

    /// Tells the cache of a request's plan, given the tokens that may come from it: what is stored already may be meant for it.
    pub(super) fn expect(&mut self, reusable: &[TokenId], plan: &PromptPlan) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let found = cache.find(reusable);
        let whole = found.path.iter().map(|step| (step.node, step.end));
        let partial = found.partial.map(|partial| (partial.node, found.num_tokens));
        let mut cuts = plan.cuts.iter().peekable();
        for (node, end) in whole.chain(partial) {
            while cuts.next_if(|cut| cut.position < end).is_some() {}
            let users = match cuts.peek() {
                Some(cut) => cut.users.clone(),
                None => plan.order..=plan.order,
            };
            cache.expect(node, users)?;
        }
        Ok(())
    }

    /// The place in the order of the run that it has come to: what this one uses is still to be used.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Lets go of what a sequence that has ended held, and of what it will not compute any more.
    pub(super) fn let_go(
        &mut self,
        runner: &mut impl Runner,
        sequence: &mut Sequence,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let hold = std::mem::take(&mut sequence.hold);
        cache.cancel(OwnerId(sequence.id.0));
        self.awaited.retain(|_, owner| *owner != sequence.id);
        if let Some(node) = hold.node {
            if sequence.request.answer_recurs.is_awaited() {
                cache.expect(node, self.now..=self.now)?;
            }
            cache.unpin(node)?;
        }
        make_room(cache, runner, self.now);
        Ok(())
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
    pub(super) fn passes_failed(&mut self, runner: &mut impl Runner) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        for stored in self.unconfirmed.drain(..).flatten() {
            match stored {
                Unconfirmed::Node(node) | Unconfirmed::Checkpoint(node)
                    if cache.tree().node(node).is_none() => {}
                Unconfirmed::Node(node) => discard_all(runner, cache.remove(node)?),
                Unconfirmed::Checkpoint(node) => discard_all(runner, cache.set_checkpoint(node, None)?),
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
        let num_bytes = self.cache.as_ref().map_or(0, PromptCache::num_bytes_over_limit);
        usize::try_from(num_bytes.div_ceil(bytes_per_token.max(1))).unwrap_or(usize::MAX)
    }

    /// Evicts what the limits have no room for.
    pub(super) fn make_room(&mut self, runner: &mut impl Runner) {
        if let Some(cache) = &mut self.cache {
            make_room(cache, runner, self.now);
        }
    }

    /// Gives a stored node the recurrent state at its end, if there is room for that.
    fn set_checkpoint(
        &mut self,
        runner: &mut impl Runner,
        node: NodeId,
        checkpoint: StoredSegment,
    ) -> Result<(), RunnerError> {
        let has_room = self.make_room_at(runner, Some(node), checkpoint.num_bytes, Claim::Needed)?;
        let Some(cache) = self.cache.as_mut().filter(|_| has_room) else {
            runner.discard(checkpoint.id);
            return Ok(());
        };
        discard_all(runner, cache.set_checkpoint(node, Some(checkpoint))?);
        // It may be an entry more.
        make_room(cache, runner, self.now);
        if cache.is_over_limit() && cache.tree().node(node).is_some() {
            discard_all(runner, cache.set_checkpoint(node, None)?);
        }
        self.note_stored(Unconfirmed::Checkpoint(node));
        Ok(())
    }

    /// Makes room for what is to come at or below a node, which stays; says whether there is.
    fn make_room_at(
        &mut self,
        runner: &mut impl Runner,
        node: Option<NodeId>,
        num_bytes: u64,
        claim: Claim,
    ) -> Result<bool, RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(false) };
        if let Some(node) = node {
            cache.pin(node)?;
        }
        let has_room = make_room_for(cache, runner, num_bytes, self.now, claim);
        if let Some(node) = node {
            cache.unpin(node)?;
        }
        Ok(has_room)
    }

    /// Cuts a stored node after its first `at` tokens and returns the upper half.
    fn split(&mut self, runner: &mut impl Runner, node: NodeId, at: usize) -> Result<NodeId, RunnerError> {
        let cache = self.cache.as_mut().expect("only nodes of a cache are split");
        let halves = runner.split(segment_of(cache, node)?.id, at)?;
        let upper = cache.split(node, at, halves)?.upper;
        // Whatever the whole depended on, both halves depend on.
        for stored in &mut self.unconfirmed {
            if stored.contains(&Unconfirmed::Node(node)) {
                stored.push(Unconfirmed::Node(upper));
            }
        }
        Ok(upper)
    }
}

fn segment_of(cache: &PromptCache<StoredSegment>, node: NodeId) -> Result<StoredSegment, RunnerError> {
    let segment = cache.tree().node(node).and_then(|node| node.segment().copied());
    segment.ok_or_else(|| CacheError::Stale(node).into())
}

fn make_room(cache: &mut PromptCache<StoredSegment>, runner: &mut impl Runner, now: u64) {
    discard_all(runner, cache.make_room(now));
}

/// Makes room for what is about to be stored, so that it never counts beside what it pushes out; what
/// it continues must be pinned. Says whether there is.
fn make_room_for(
    cache: &mut PromptCache<StoredSegment>,
    runner: &mut impl Runner,
    num_bytes: u64,
    now: u64,
    claim: Claim,
) -> bool {
    discard_all(runner, cache.make_room_for(num_bytes, now, claim));
    cache.has_room_for(num_bytes)
}

/// Makes room for a leaf that nobody needs in this run, and says whether it could stay itself.
///
/// It must not be pinned yet: rather than what this run still needs, or the limit, it goes.
fn make_room_for_leaf(
    cache: &mut PromptCache<StoredSegment>,
    runner: &mut impl Runner,
    leaf: NodeId,
    now: u64,
) -> Result<bool, RunnerError> {
    make_room(cache, runner, now);
    if cache.is_over_limit() && cache.tree().node(leaf).is_some() {
        discard_all(runner, cache.remove(leaf)?);
    }
    Ok(cache.tree().node(leaf).is_some())
}

fn discard_all(runner: &mut impl Runner, dropped: impl IntoIterator<Item = StoredSegment>) {
    for segment in dropped {
        runner.discard(segment.id);
    }
}

fn discard(runner: &mut impl Runner, stored: Stored) {
    let ids: [Option<SegmentId>; 2] = [Some(stored.segment.id), stored.checkpoint.map(|held| held.id)];
    for id in ids.into_iter().flatten() {
        runner.discard(id);
    }
}
