//! The running batch: takes requests in, gives events out.
//!
//! Owns the waiting line, the running sequences and how a request comes and goes. Bringing them on,
//! pass by pass, is done in `passes`.

mod passes;

use std::collections::VecDeque;
use std::mem;
use std::time::Instant;

use super::pass::Pass;
use super::prefixes::{PersistStats, Prefixes};
use super::scheduler::Limits;
use super::sequence::{Sequence, State};
use super::stats::Stats;
#[cfg(test)]
use super::{Stored, StoredSegment};
#[cfg(test)]
use crate::cache::PromptCache;
use crate::cache::{CacheLimits, CacheUsage, Match};
use crate::snapshot::{SaveReport, Snapshot, SnapshotError};

use super::{
    Event, FinishReason, GenerationRequest, RequestId, Runner, RunnerError, SequenceId, SubmitError,
};

/// Generates for many requests at once, in one running batch.
///
/// Requests are submitted while there is room, [`step`](Engine::step) is called until the engine
/// is idle, and every request submitted ends in exactly one [`Event::Finished`] unless it is
/// aborted.
pub struct Engine<R: Runner> {
    limits: Limits,
    prefixes: Prefixes<R>,
    waiting: VecDeque<Sequence>,
    /// Admitted sequences, oldest first, until their last token is collected.
    running: Vec<Sequence>,
    /// Passes under way, oldest first.
    passes: VecDeque<Pass>,
    /// What the next step returns.
    events: Vec<Event>,
    failure: Option<Failure>,
    /// Requests that entered the running batch in the last step.
    admitted: Vec<RequestId>,
    num_submitted: u64,
    last_collected: Option<Instant>,
    stats: Stats,
}

/// A runner error that is yet to be returned, and what it ended.
struct Failure {
    error: RunnerError,
    events: Vec<Event>,
}

impl<R: Runner> Engine<R> {
    /// Makes an engine; without `cache` limits it stores no prefixes.
    pub fn new(runner: R, limits: Limits, cache: Option<CacheLimits>) -> Self {
        Engine {
            limits,
            prefixes: Prefixes::new(runner, cache),
            waiting: VecDeque::new(),
            running: Vec::new(),
            passes: VecDeque::new(),
            events: Vec::new(),
            failure: None,
            admitted: Vec::new(),
            num_submitted: 0,
            last_collected: None,
            stats: Stats::default(),
        }
    }

    /// Puts a request at the end of the waiting line.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<(), SubmitError> {
        let sequence = self.checked(request)?;
        if !self.has_room() {
            return Err(SubmitError::QueueFull { max_waiting: self.max_waiting() });
        }
        self.enqueue(sequence, VecDeque::push_back);
        Ok(())
    }

    /// Puts a request at the head of the waiting line, whether that has room or not: it goes on with the answer of
    /// one that has just ended and whose place it takes. It stands at [`Engine::present`] in the order of the run.
    pub fn submit_next(&mut self, request: GenerationRequest) -> Result<(), SubmitError> {
        let sequence = self.checked(request)?;
        self.enqueue(sequence, VecDeque::push_front);
        Ok(())
    }

    /// The place in the order of the run that it has come to.
    pub fn present(&self) -> u64 {
        self.prefixes.now()
    }

    /// A sequence for a request that can be served.
    fn checked(&self, request: GenerationRequest) -> Result<Sequence, SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.max_new_tokens == 0 && request.score.is_none() {
            return Err(SubmitError::NoNewTokens);
        }
        if self.running.iter().chain(&self.waiting).any(|other| other.request_id() == request.id) {
            return Err(SubmitError::DuplicateId(request.id));
        }
        let mut sequence = Sequence::new(SequenceId(self.num_submitted), request);
        sequence.request.plan.cuts.retain(|cut| cut.position > 0);
        let counts = sequence.counts();
        match self.limits.max_batch_tokens {
            Some(max_batch_tokens) if counts.max_kv_tokens > max_batch_tokens => Err(SubmitError::TooLong {
                num_prompt_tokens: sequence.request.prompt.len(),
                max_new_tokens: sequence.request.max_new_tokens,
                max_batch_tokens,
            }),
            _ => Ok(sequence),
        }
    }

    fn enqueue(&mut self, mut sequence: Sequence, push: fn(&mut VecDeque<Sequence>, Sequence)) {
        self.num_submitted += 1;
        if !sequence.has_work() {
            self.events.push(sequence.finished(FinishReason::Length));
            return;
        }
        // Of what was stored since it was planned, too.
        let told = self.prefixes.expect(&sequence.request, &mut sequence.found);
        self.note_outcome(told);
        push(&mut self.waiting, sequence);
    }

    /// Tells of a request that will be submitted: what is stored already may be meant for it.
    pub fn expect(&mut self, request: &GenerationRequest) {
        let told = self.prefixes.expect(request, &mut Match::default());
        self.note_outcome(told);
    }

    /// Returns how many more requests the waiting line takes.
    ///
    /// The line is as long as the batch is wide: enough to fill every row that falls free in a
    /// step, and no more, so that a caller can stream its input.
    pub fn num_free_slots(&self) -> usize {
        self.max_waiting().saturating_sub(self.waiting.len())
    }

    pub fn has_room(&self) -> bool {
        self.num_free_slots() > 0
    }

    /// Whether nothing is waiting, running or yet to be told.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.running.is_empty()
            && self.passes.is_empty()
            && self.events.is_empty()
            && self.failure.is_none()
    }

    /// Requests that entered the running batch in the last step.
    pub fn admitted(&self) -> &[RequestId] {
        &self.admitted
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub fn runner(&self) -> &R {
        &self.prefixes.runner
    }

    /// Has prefixes come from a cache file too; it must be of the runner's model.
    pub fn with_snapshot(mut self, mut snapshot: Snapshot) -> Self {
        snapshot.expect_planes(self.prefixes.runner.plane_widths());
        self.prefixes.attach(snapshot);
        self
    }

    /// The cache file, if there is one.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.prefixes.snapshot()
    }

    /// What was brought in from the cache file.
    pub fn persist_stats(&self) -> PersistStats {
        self.prefixes.persist_stats()
    }

    /// Saves what the prompt cache has and the cache file lacks. An error leaves the file as it was.
    pub fn save_snapshot(&mut self) -> Result<SaveReport, SnapshotError> {
        self.prefixes.save()
    }

    /// Whether so much is not saved that some may soon be evicted.
    pub fn has_much_unsaved(&self) -> bool {
        let Limits { prefill_chunk, kv_bytes_per_token, .. } = self.limits;
        self.prefixes.has_much_unsaved(kv_bytes_per_token.saturating_mul(prefill_chunk.get() as u64))
    }

    /// Counters of the prompt cache, if there is one.
    pub fn cache_usage(&self) -> Option<CacheUsage> {
        self.prefixes.usage()
    }

    #[cfg(test)]
    pub(super) fn runner_mut(&mut self) -> &mut R {
        &mut self.prefixes.runner
    }

    #[cfg(test)]
    pub(super) fn cache_mut(&mut self) -> Option<&mut PromptCache<StoredSegment>> {
        self.prefixes.cache_mut()
    }

    /// Bytes of answers whose tokens are not known yet.
    #[cfg(test)]
    pub(super) fn num_rest_bytes(&self) -> u64 {
        let rests = self.running.iter().filter_map(|sequence| sequence.rest);
        let bytes = |(rest, _): (Stored, usize)| {
            rest.segment.num_bytes + rest.checkpoint.map_or(0, |held| held.num_bytes)
        };
        rests.map(bytes).sum()
    }

    /// Ends a request because the caller has seen enough of its answer, such as a stop string.
    ///
    /// Its row is free at once, tokens of passes under way are dropped, and the next step tells
    /// that it finished with [`FinishReason::Stop`]. Returns false where the request had ended
    /// already: its last token may complete a stop string and reach `max_new_tokens` in one step.
    pub fn stop(&mut self, id: RequestId) -> bool {
        let sequence = self.take(id, true);
        self.events.extend(sequence.iter().map(|sequence| sequence.finished(FinishReason::Stop)));
        sequence.is_some()
    }

    /// Drops a request without a further event. Returns false where it had ended already.
    pub fn abort(&mut self, id: RequestId) -> bool {
        self.take(id, false).is_some()
    }

    /// Runs one forward pass and returns what came of it.
    ///
    /// With lookahead the pass returned is not the one just launched but the one before it. Events
    /// may be empty while prompts are computed.
    ///
    /// When the runner fails, what was collected before is returned first and the error by the
    /// step after. The failed pass ends the requests that were in it: the step that follows the
    /// error tells that they finished with [`FinishReason::Error`]. The others are unharmed, and a
    /// caller who has told the user may go on stepping: no pass is tried twice.
    pub fn step(&mut self) -> Result<Vec<Event>, RunnerError> {
        self.admitted.clear();
        if self.failure.is_none() {
            self.run_pass();
        }
        match self.failure.take_if(|_| self.events.is_empty()) {
            None => Ok(mem::take(&mut self.events)),
            Some(failure) => {
                self.events = failure.events;
                Err(failure.error)
            }
        }
    }

    /// What there is to tell without another pass, such as that a request was stopped.
    pub fn take_events(&mut self) -> Vec<Event> {
        // What comes behind an error is told after it.
        if self.failure.is_some() { Vec::new() } else { mem::take(&mut self.events) }
    }

    fn max_waiting(&self) -> usize {
        self.limits.max_batch_size.get()
    }

    /// Takes out a request wherever it is.
    fn take(&mut self, id: RequestId, keeps_answer: bool) -> Option<Sequence> {
        let is_it = |sequence: &Sequence| sequence.request_id() == id;
        match self.running.iter().position(is_it) {
            Some(index) => Some(self.remove_running(index, keeps_answer)),
            None => self.waiting.iter().position(is_it).and_then(|index| self.waiting.remove(index)),
        }
    }

    /// Takes out a running sequence; its KV goes with it, but for what the cache keeps.
    fn remove_running(&mut self, index: usize, keeps_answer: bool) -> Sequence {
        let mut sequence = self.running.remove(index);
        let kept = self.store_rest(&mut sequence, keeps_answer);
        // A draining sequence's KV went when its last token was launched.
        if sequence.state != State::Draining {
            self.prefixes.runner.release(sequence.id);
        }
        let let_go = self.prefixes.let_go(&mut sequence);
        // The answer itself is whole: told as an error of the run, without a request that ends.
        self.note_outcome(kept.and(let_go));
        sequence
    }

    /// Has an error told, and then these events; of several errors the first.
    fn note_failure(&mut self, error: RunnerError, events: Vec<Event>) {
        self.failure.get_or_insert_with(|| Failure { error, events: Vec::new() }).events.extend(events);
    }

    /// Has an error told, if there is one, that ends no request.
    fn note_outcome(&mut self, outcome: Result<(), RunnerError>) {
        outcome.unwrap_or_else(|error| self.note_failure(error, Vec::new()));
    }

    /// Has the cache keep what a sequence computed after its path, as far as its tokens are known.
    fn store_rest(&mut self, sequence: &mut Sequence, keeps_answer: bool) -> Result<(), RunnerError> {
        let keeps_answer = keeps_answer
            && self.prefixes.can_keep_answer(sequence)
            && sequence.request.answer_recurs.is_true_of(&sequence.new_tokens);
        let known = sequence.num_known_tokens();
        let rest = match sequence.rest.take() {
            Some(rest) => Some(rest),
            None if keeps_answer && matches!(sequence.state, State::Decoding { .. }) => {
                self.prefixes.take_rest(sequence, known)?.map(|rest| (rest, known))
            }
            None => None,
        };
        let Some((rest, end)) = rest else { return Ok(()) };
        if !keeps_answer || end > known {
            self.prefixes.discard(rest);
            return Ok(());
        }
        let tokens = sequence.tokens(sequence.hold.num_tokens()..end);
        self.prefixes.keep(sequence, &tokens, rest)
    }
}
