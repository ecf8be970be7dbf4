//! The running batch: takes requests in, steps them through forward passes, gives events out.
//!
//! Owns the waiting line, the running sequences and the passes under way. What a pass is made of
//! is the scheduler's decision; what it computes, and every tensor, is the runner's.

use std::collections::VecDeque;
use std::mem;
use std::time::Instant;

use super::pass::{Pass, Row};
use super::prefixes::Prefixes;
use super::scheduler::{Composer, Limits};
use super::sequence::{Sequence, State, Work};
use super::stats::Stats;
use crate::cache::{CacheLimits, CacheUsage};

use super::{
    Event, FinishReason, GenerationRequest, Group, RequestId, Runner, RunnerError, SequenceId, SubmitError,
    TokenId,
};

/// Generates for many requests at once, in one running batch.
///
/// Requests are submitted while there is room, [`step`](Engine::step) is called until the engine
/// is idle, and every request submitted ends in exactly one [`Event::Finished`] unless it is
/// aborted.
pub struct Engine<R: Runner> {
    runner: R,
    limits: Limits,
    prefixes: Prefixes,
    waiting: VecDeque<Sequence>,
    /// Admitted sequences, oldest first, until their last token is collected.
    running: Vec<Sequence>,
    /// Passes under way, oldest first.
    passes: VecDeque<Pass>,
    /// What the next step returns.
    events: Vec<Event>,
    failure: Option<Failure>,
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
        let prefixes = Prefixes::new(cache, runner.resume_rule());
        Engine {
            runner,
            limits,
            prefixes,
            waiting: VecDeque::new(),
            running: Vec::new(),
            passes: VecDeque::new(),
            events: Vec::new(),
            failure: None,
            num_submitted: 0,
            last_collected: None,
            stats: Stats::default(),
        }
    }

    /// Puts a request at the end of the waiting line.
    pub fn submit(&mut self, request: GenerationRequest) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if request.max_new_tokens == 0 {
            return Err(SubmitError::NoNewTokens);
        }
        if self.running.iter().chain(&self.waiting).any(|other| other.request_id() == request.id) {
            return Err(SubmitError::DuplicateId(request.id));
        }
        let mut sequence = Sequence::new(SequenceId(self.num_submitted), request);
        sequence.request.plan.cuts.retain(|cut| cut.position > 0);
        let counts = sequence.counts();
        match self.limits.max_batch_tokens {
            Some(max_batch_tokens) if counts.max_kv_tokens > max_batch_tokens => {
                return Err(SubmitError::TooLong {
                    num_prompt_tokens: sequence.request.prompt.len(),
                    max_new_tokens: sequence.request.max_new_tokens,
                    max_batch_tokens,
                });
            }
            _ => {}
        }
        if !self.has_room() {
            return Err(SubmitError::QueueFull { max_waiting: self.max_waiting() });
        }
        if let Err(error) = self.prefixes.expect(&sequence.request.prompt, &sequence.request.plan) {
            self.failure.get_or_insert(Failure { error, events: Vec::new() });
        }
        self.num_submitted += 1;
        self.waiting.push_back(sequence);
        Ok(())
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

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub fn runner(&self) -> &R {
        &self.runner
    }

    /// Counters of the prompt cache, if there is one.
    pub fn cache_usage(&self) -> Option<CacheUsage> {
        self.prefixes.usage()
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

    fn max_waiting(&self) -> usize {
        self.limits.max_batch_size.get()
    }

    /// Keeps the device busy with as many passes as it may have, then collects the oldest.
    fn run_pass(&mut self) {
        let max_passes = if self.limits.lookahead { 2 } else { 1 };
        let mut failed_launch = None;
        while self.passes.len() < max_passes && failed_launch.is_none() {
            match self.compose() {
                Some(work) => failed_launch = self.launch(&work).err(),
                None => break,
            }
        }
        self.collect();
        // Only now: until they are collected, its rows may have tokens in the pass before.
        if let Some((error, rows)) = failed_launch {
            self.fail(error, &rows);
        }
    }

    /// Decides the next pass and admits who is new in it.
    fn compose(&mut self) -> Option<Vec<(usize, Work)>> {
        let mut composer = Composer::new(&self.limits, self.running.iter().map(Sequence::counts));
        while let Some(mut sequence) = self.waiting.pop_front() {
            // Whoever waits for a prefix that another computes holds up those behind: they are next
            // to it in the plan's order and would wait as well.
            let num_cached_tokens = self.prefixes.resumable(&sequence.request.prompt);
            if let Some(num_cached_tokens) = num_cached_tokens {
                sequence.enter(num_cached_tokens);
            }
            if num_cached_tokens.is_none() || !composer.has_place(&sequence.counts()) {
                sequence.state = State::Waiting;
                sequence.num_cached_tokens = 0;
                self.waiting.push_front(sequence);
                break;
            }
            let GenerationRequest { prompt, plan, .. } = &sequence.request;
            match self.prefixes.admit(&mut self.runner, sequence.id, prompt, plan) {
                Ok(hold) => sequence.hold = hold,
                Err(error) => {
                    self.failure =
                        Some(Failure { error, events: vec![sequence.finished(FinishReason::Error)] });
                    break;
                }
            }
            self.stats.num_admitted += 1;
            self.stats.num_prompt_tokens += sequence.request.prompt.len();
            self.stats.num_cached_tokens += sequence.num_cached_tokens;
            composer.add(sequence.counts());
            self.running.push(sequence);
        }
        let work = composer.into_work();
        (!work.is_empty()).then_some(work)
    }

    /// Launches a pass, and moves its sequences on as if none of them will turn out to have ended.
    fn launch(&mut self, work: &[(usize, Work)]) -> Result<(), (RunnerError, Vec<Row>)> {
        let groups: Vec<Group> = work.iter().map(|(index, work)| self.running[*index].group(work)).collect();
        let pass = Pass::new(&groups);
        if let Err(error) = self.runner.launch(&groups) {
            return Err((error, pass.rows));
        }
        self.stats.peak_rows = self.stats.peak_rows.max(pass.rows.len());
        let rows = pass.rows.clone();
        self.passes.push_back(pass);
        for (index, work) in work {
            self.running[*index].advance(work);
        }
        for (index, work) in work {
            self.after_launch(*index, work).map_err(|error| (error, rows.clone()))?;
        }
        Ok(())
    }

    /// Stores what the launched work completes.
    fn after_launch(&mut self, index: usize, work: &Work) -> Result<(), RunnerError> {
        let sequence = &mut self.running[index];
        if let Work::Prefill(range) = work {
            self.prefixes.reached(&mut self.runner, sequence.id, &mut sequence.hold, range.end)?;
        }
        // Its last token is launched: row and KV go to the next in line one pass early.
        if sequence.state == State::Draining {
            let end = sequence.num_prefill_tokens() + sequence.request.max_new_tokens;
            let rest = self.prefixes.take_rest(&mut self.runner, sequence.id, &sequence.hold, end)?;
            sequence.rest = rest.map(|rest| (rest, end));
            self.runner.release(sequence.id);
        }
        Ok(())
    }

    /// Waits for the oldest pass, if any, and turns its tokens into events.
    fn collect(&mut self) {
        let Some(mut pass) = self.passes.pop_front() else { return };
        let num_sampling = pass.sampling_rows().count();
        let tokens = match self.runner.collect() {
            Ok(tokens) if tokens.len() == num_sampling => tokens,
            Ok(tokens) => {
                let num_tokens = tokens.len();
                let error = format!("a forward pass gave {num_tokens} tokens for {num_sampling} rows");
                return self.fail_under_way(RunnerError(error), pass.rows);
            }
            Err(error) => return self.fail_under_way(error, pass.rows),
        };

        self.last_collected = Some(pass.note_collected(self.last_collected));
        let mut num_wasted = 0;
        for (id, token) in pass.sampling_rows().zip(tokens) {
            if !self.accept(id, token) {
                num_wasted += 1;
            }
        }
        pass.totals.num_wasted_rows = num_wasted;
        self.stats.add_pass(&pass.totals);
    }

    /// Takes in a sampled token. Returns false where its sequence had ended before.
    fn accept(&mut self, id: SequenceId, token: TokenId) -> bool {
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else { return false };
        self.stats.num_generated_tokens += 1;
        let sequence = &mut self.running[index];
        let accepted = sequence.accept(token);
        let id = sequence.request_id();
        self.events.extend(accepted.token.map(|token| Event::Token { id, token }));
        if let Some(reason) = accepted.reason {
            let sequence = self.remove_running(index, true);
            self.events.push(sequence.finished(reason));
        }
        true
    }

    /// Ends the sequences of a pass that failed, and of those launched on top of it.
    fn fail_under_way(&mut self, error: RunnerError, mut rows: Vec<Row>) {
        for pass in mem::take(&mut self.passes) {
            // Built on what failed; collected only to be rid of it, so its outcome is no news.
            let _ = self.runner.collect();
            rows.extend(pass.rows);
        }
        self.fail(error, &rows);
    }

    /// Ends the sequences of these rows, unless they have ended; the first error is the one told.
    fn fail(&mut self, error: RunnerError, rows: &[Row]) {
        let mut events = Vec::new();
        for row in rows {
            if let Some(index) = self.running.iter().position(|sequence| sequence.id == row.sequence) {
                events.push(self.remove_running(index, false).finished(FinishReason::Error));
            }
        }
        self.failure.get_or_insert_with(|| Failure { error, events: Vec::new() }).events.extend(events);
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
            self.runner.release(sequence.id);
        }
        let let_go = self.prefixes.let_go(&mut self.runner, sequence.id, &sequence.hold);
        if let Err(error) = kept.and(let_go) {
            // The answer itself is whole: told as an error of the run, without a request that ends.
            self.failure.get_or_insert(Failure { error, events: Vec::new() });
        }
        sequence
    }

    /// Has the cache keep what a sequence computed after its path, as far as its tokens are known.
    fn store_rest(&mut self, sequence: &mut Sequence, keeps_answer: bool) -> Result<(), RunnerError> {
        let known = sequence.num_known_tokens();
        let rest = match sequence.rest.take() {
            Some(rest) => Some(rest),
            None if keeps_answer && matches!(sequence.state, State::Decoding { .. }) => self
                .prefixes
                .take_rest(&mut self.runner, sequence.id, &sequence.hold, known)?
                .map(|rest| (rest, known)),
            None => None,
        };
        let Some((rest, end)) = rest else { return Ok(()) };
        if !keeps_answer || end > known {
            self.prefixes.drop_rest(&mut self.runner, rest);
            return Ok(());
        }
        let tokens = sequence.tokens(sequence.hold.num_tokens()..end);
        self.prefixes.keep(&mut self.runner, &sequence.hold, &tokens, rest)
    }
}
