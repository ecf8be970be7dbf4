//! One forward pass after the other, from composing to collecting.
//!
//! Owns the passes under way: who enters, what is launched, what becomes of its tokens or of its
//! failure. What a pass is made of is the scheduler's decision; what it computes, and every tensor,
//! is the runner's.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError};

use super::Engine;
use crate::engine::guiding::Guided;
use crate::engine::hold::Piece;
use crate::engine::pass::{Awaits, Pass, Row};
use crate::engine::prefixes::Resumable;
use crate::engine::scheduler::Composer;
use crate::engine::sequence::{Sequence, State, Work};
use crate::engine::{
    Event, FinishReason, Group, Outcome, Runner, RunnerError, SequenceId, TokenId, TokenReport,
};
use crate::guide::Next;
use crate::threads::on_threads;

/// Whether one that waits enters a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Enters,
    /// Another computes a prefix of its prompt.
    Waits,
    /// The pass or the batch is full.
    HasNoPlace,
}

impl Entry {
    /// Has a sequence begin where so many of its tokens are stored; `None` while more of them are being
    /// computed.
    fn of(composer: &Composer<'_>, sequence: &mut Sequence, resumable: Option<Resumable>) -> Self {
        let Some(Resumable { num_here, num_with_file }) = resumable else { return Self::Waits };
        sequence.enter(num_with_file);
        let mut counts = sequence.counts();
        // What is to be brought in takes memory as what is computed does.
        counts.max_kv_tokens = counts.max_kv_tokens.saturating_add(num_with_file - num_here);
        if composer.has_place(&counts) { Self::Enters } else { Self::HasNoPlace }
    }
}

impl<R: Runner> Engine<R> {
    /// Keeps the device busy with as many passes as it may have, then collects the oldest.
    pub(super) fn run_pass(&mut self) {
        let max_passes = if self.limits.lookahead { 2 } else { 1 };
        let mut failed_launch = None;
        let mut has_failed = false;
        while self.passes.len() < max_passes && failed_launch.is_none() {
            match self.compose() {
                Some(work) => failed_launch = self.launch(&work).err(),
                None => break,
            }
            // Where none is under way before it, all tokens are known that its guides have to know.
            if self.passes.len() == 1 && !self.choose() {
                has_failed = true;
                break;
            }
        }
        has_failed |= !self.collect();
        has_failed |= !self.choose();
        // Only now: its rows may have tokens in the pass that was just collected.
        if let Some((error, rows)) = failed_launch {
            self.fail(error, &rows);
        }
        // And only then: those rows may have been meant to run on what the failed passes stored.
        if has_failed {
            let taken_back = self.prefixes.passes_failed();
            self.note_outcome(taken_back);
        }
    }

    /// Decides the next pass and admits who is new in it.
    ///
    /// Whoever waits for a prefix that another computes is passed over until it is there, so that those
    /// behind who can run do: else prompts in groups, each with a prefix of its own, would come in one
    /// group a pass. For all else nobody overtakes.
    fn compose(&mut self) -> Option<Vec<(usize, Work)>> {
        let limits = self.limits.clone();
        let mut composer = Composer::new(&limits, self.running.iter().map(Sequence::counts));
        let max_restored_bytes =
            self.persist_stats().num_restored_bytes.saturating_add(limits.max_restored_bytes);
        let mut index = 0;
        composer.set_held(self.num_held_tokens());
        while composer.has_free_row()
            && index < self.waiting.len()
            && self.persist_stats().num_restored_bytes <= max_restored_bytes
        {
            match self.entry_of(&composer, index) {
                Entry::Waits => {
                    index += 1;
                    continue;
                }
                Entry::HasNoPlace => break,
                Entry::Enters => {}
            }
            let orders = self.waiting.iter().map(|sequence| sequence.request.plan.order);
            let first_order = orders.min().unwrap_or_default();
            let mut sequence = self.waiting.remove(index).expect("it was looked at just now");
            if let Err(error) = self.prefixes.admit(&mut sequence, first_order) {
                sequence.num_cached_tokens = 0;
                self.note_failure(error, vec![sequence.finished(FinishReason::Error)]);
                break;
            }
            self.prefixes.runner.expect_prefill(sequence.id, sequence.num_prefill_tokens());
            self.stats.num_admitted += 1;
            self.admitted.push(sequence.request_id());
            self.stats.num_prompt_tokens += sequence.request.prompt.len();
            self.stats.num_cached_tokens += sequence.num_cached_tokens;
            composer.add(sequence.counts());
            self.running.push(sequence);
            composer.set_held(self.num_held_tokens());
        }
        let work = composer.into_work();
        (!work.is_empty()).then_some(work)
    }

    /// Tokens that the prompt cache holds beyond its limit, since running sequences need them, less what
    /// these have stored there of their own prompts and are charged for already.
    fn num_held_tokens(&self) -> usize {
        let num_over_limit = self.prefixes.num_tokens_over_limit(self.limits.kv_bytes_per_token);
        // One that only waits for its last tokens holds what it has stored, and is charged for nothing.
        let charged = self.running.iter().filter(|sequence| sequence.counts().is_running());
        num_over_limit.saturating_sub(charged.map(|sequence| sequence.hold.num_tokens_as(Piece::Kept)).sum())
    }

    /// Whether one that waits can enter the pass. What a cache file has of its prompt is brought in once
    /// there is a place: before, it would only push out what others use, and be pushed out in turn.
    fn entry_of(&mut self, composer: &Composer<'_>, index: usize) -> Entry {
        let sequence = &mut self.waiting[index];
        let resumable = self.prefixes.resumable_with_file(sequence);
        let mut entry = Entry::of(composer, sequence, resumable);
        let mut brought_in = Ok(());
        if entry == Entry::Enters {
            // Where that fails it is computed instead.
            brought_in = self.prefixes.bring_in(sequence);
            let resumable = self.prefixes.resumable(sequence);
            let resumable = resumable.map(|num_here| Resumable { num_here, num_with_file: num_here });
            entry = Entry::of(composer, sequence, resumable);
            if entry != Entry::Enters {
                // Nobody resumes on what was brought in.
                self.prefixes.make_room();
            }
        }
        if entry != Entry::Enters {
            sequence.state = State::Waiting;
            sequence.num_cached_tokens = 0;
        }
        self.note_outcome(brought_in);
        entry
    }

    /// Launches a pass, and moves its sequences on as if none of them will turn out to have ended.
    fn launch(&mut self, work: &[(usize, Work)]) -> Result<(), (RunnerError, Vec<Row>)> {
        let groups: Vec<Group> = work.iter().map(|(index, work)| self.running[*index].group(work)).collect();
        let pass = Pass::new(&groups);
        if let Err(error) = self.prefixes.runner.launch(&groups) {
            return Err((error, pass.rows));
        }
        self.stats.peak_rows = self.stats.peak_rows.max(pass.rows.len());
        let rows = pass.rows.clone();
        self.passes.push_back(pass);
        self.prefixes.pass_launched();
        let mut failed: Option<(RunnerError, Vec<Row>)> = None;
        for ((index, work), row) in work.iter().zip(rows) {
            self.running[*index].advance(work);
            if let Err(error) = self.after_launch(*index, work) {
                failed.get_or_insert_with(|| (error, Vec::new())).1.push(row);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Stores what the launched work completes. An error ends this sequence alone.
    fn after_launch(&mut self, index: usize, work: &Work) -> Result<(), RunnerError> {
        let sequence = &mut self.running[index];
        if let Work::Prefill(range) = work {
            self.prefixes.reached(sequence, range.end)?;
        }
        // Its last token is launched: row and KV go to the next in line one pass early.
        if sequence.state == State::Draining {
            let end = sequence.num_prefill_tokens() + sequence.request.max_new_tokens;
            let taken = self.prefixes.take_rest(sequence, end);
            self.prefixes.runner.release(sequence.id);
            match taken {
                Ok(rest) => sequence.rest = rest.map(|rest| (rest, end)),
                // The answer is whole, it only cannot be kept.
                Err(error) => self.note_failure(error, Vec::new()),
            }
        }
        Ok(())
    }

    /// Has the tokens of the oldest pass chosen, if they wait for guides: no token before them is unknown. Returns
    /// false where that failed, and the pass with it.
    fn choose(&mut self) -> bool {
        let Some(pass) = self.passes.front_mut().filter(|pass| !pass.is_chosen) else { return true };
        pass.is_chosen = true;
        let rows: Vec<SequenceId> =
            pass.rows.iter().filter(|row| row.is_guided).map(|row| row.sequence).collect();
        let guided = self.ask_guides(&rows);
        let chosen = self
            .prefixes
            .runner
            .choose(rows.iter().map(|sequence| guided.get(sequence).and_then(Guided::allowed)).collect());
        for sequence in rows {
            match guided.get(&sequence).map(|guided| &guided.next) {
                Some(Ok(Next::Anything | Next::OneOf(_))) | None => {}
                Some(Ok(Next::Nothing)) => self.end_guided(sequence, FinishReason::Stop, None),
                Some(Err(error)) => self.end_guided(sequence, FinishReason::Stuck, Some(error.to_string())),
            }
        }
        let Err(error) = chosen else { return true };
        let failed = self.passes.pop_front().map(|pass| pass.rows).unwrap_or_default();
        self.fail(error, &failed);
        false
    }

    /// What the guides of these sequences say, those that have not ended; found out on all cores.
    fn ask_guides(&mut self, sequences: &[SequenceId]) -> HashMap<SequenceId, Guided> {
        let asked = self.running.iter_mut().filter(|sequence| sequences.contains(&sequence.id));
        let asked: Vec<_> = asked.filter_map(|sequence| Some((sequence.id, sequence.guide()?))).collect();
        let num_asked = asked.len();
        let queue = Mutex::new(asked.into_iter());
        let said = on_threads(num_asked, || {
            let mut said = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((sequence, (guiding, banned))) = next else { return said };
                said.push((sequence, Guided::of(guiding, &banned)));
            }
        });
        let guided: HashMap<SequenceId, Guided> = said.into_iter().flatten().collect();
        self.stats.num_guided_tokens += guided.len();
        self.stats.guide_time += guided.values().map(|guided| guided.time).sum::<std::time::Duration>();
        guided
    }

    /// Ends a sequence for which a guide has no token.
    fn end_guided(&mut self, sequence: SequenceId, reason: FinishReason, why: Option<String>) {
        let Some(index) = self.running.iter().position(|running| running.id == sequence) else { return };
        let mut finished = self.remove_running(index, reason == FinishReason::Stop).finished(reason);
        if let Event::Finished { problem, .. } = &mut finished {
            *problem = why;
        }
        self.events.push(finished);
    }

    /// Waits for the oldest pass, if any, and turns its tokens into events. Returns false where it
    /// failed, and with it those launched on top of it.
    fn collect(&mut self) -> bool {
        let Some(mut pass) = self.passes.pop_front() else { return true };
        let outcomes = match self.prefixes.runner.collect().and_then(|outcomes| as_asked(&pass, outcomes)) {
            Ok(outcomes) => outcomes,
            Err(error) => {
                self.fail_under_way(error, pass.rows);
                return false;
            }
        };

        self.prefixes.pass_collected();
        self.last_collected = Some(pass.note_collected(self.last_collected));
        let mut num_wasted = 0;
        for (row, outcome) in pass.rows.iter().zip(outcomes) {
            let index = self.running.iter().position(|sequence| sequence.id == row.sequence);
            match (index, outcome) {
                (_, Outcome::Nothing) => {}
                // It had ended before.
                (None, _) => num_wasted += usize::from(row.awaits == Awaits::Token),
                (Some(index), Outcome::Token(token, report)) => self.accept(index, token, report),
                (Some(index), Outcome::Scores(reports)) => self.accept_scores(index, row.awaits, reports),
                (Some(index), Outcome::NotNumbers) => self.end_without_numbers(index),
            }
        }
        pass.totals.num_wasted_rows = num_wasted;
        self.stats.add_pass(&pass.totals);
        true
    }

    /// Takes in a sampled token.
    fn accept(&mut self, index: usize, token: TokenId, report: Option<Box<TokenReport>>) {
        self.stats.num_generated_tokens += 1;
        let sequence = &mut self.running[index];
        let accepted = sequence.accept(token);
        let id = sequence.request_id();
        let (report, last_report) = if accepted.token.is_some() { (report, None) } else { (None, report) };
        self.events.extend(accepted.token.map(|token| Event::Token { id, token, report }));
        if let Some(reason) = accepted.reason {
            let mut finished = self.remove_running(index, reason != FinishReason::Stuck).finished(reason);
            if let Event::Finished { end_report, problem, .. } = &mut finished {
                *end_report = last_report;
                *problem = accepted.problem;
            }
            self.events.push(finished);
        }
    }

    /// Takes in the scores of prompt tokens.
    fn accept_scores(&mut self, index: usize, awaited: Awaits, reports: Vec<TokenReport>) {
        let Awaits::Scores { position, num_tokens } = awaited else { return };
        let sequence = &self.running[index];
        self.events.push(Event::Scored { id: sequence.request_id(), position, reports });
        if sequence.is_whole_at(position + num_tokens) {
            let sequence = self.remove_running(index, false);
            self.events.push(sequence.finished(FinishReason::Length));
        }
    }

    /// Ends a sequence for which the model computed no numbers.
    fn end_without_numbers(&mut self, index: usize) {
        self.stats.num_without_token += 1;
        // What it ran on may be to blame: nobody else is to begin with that.
        let dropped = self.prefixes.drop_unsound(&mut self.running, index);
        self.note_outcome(dropped);
        let finished = self.remove_running(index, false).finished(FinishReason::NotNumbers);
        self.events.push(finished);
    }

    /// Ends the sequences of a pass that failed, and of those launched on top of it.
    fn fail_under_way(&mut self, error: RunnerError, mut rows: Vec<Row>) {
        for pass in mem::take(&mut self.passes) {
            // Built on what failed; collected only to be rid of it, so its outcome is no news.
            let _ = self.prefixes.runner.collect();
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
        self.note_failure(error, events);
    }
}

/// The outcomes of a pass, if they are what it was asked for.
fn as_asked(pass: &Pass, outcomes: Vec<Outcome>) -> Result<Vec<Outcome>, RunnerError> {
    let (num_outcomes, num_groups) = (outcomes.len(), pass.rows.len());
    if num_outcomes != num_groups {
        return Err(RunnerError(format!(
            "a forward pass gave {num_outcomes} outcomes for {num_groups} groups"
        )));
    }
    match pass.rows.iter().zip(&outcomes).find(|(row, outcome)| !row.awaits.is_met_by(outcome)) {
        None => Ok(outcomes),
        Some((row, outcome)) => Err(RunnerError(format!(
            "a forward pass gave {outcome:?} where it was asked for {:?}",
            row.awaits
        ))),
    }
}
