//! The loop of a run: requests in as rows fall free, tokens to text, results out.
//!
//! Owns what is between reader, engine and writer, and the run's counters. Memory is bounded: at
//! most a window of requests is held beside the running batch.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    intake::{Intake, Next, PAUSE},
    model::OpenModel,
    persist::Saver,
    prepare::Prepared,
    window::{Ready, Windows},
};
use crate::{
    batch::{
        Completion, FinishReason, Flow, Progress, Record, RequestError, RequestHead, ResultWriter, RunStats,
        Served,
    },
    cache::{CacheLimits, CacheUsage},
    cli::RunArgs,
    commands::interrupt::Interrupt,
    engine::{
        self, AnswerRecurs, Engine, Event, Limits, RequestId, Runner, RunnerError, SubmitError, TokenId,
    },
    mlx::{ComputeDevice, MlxRunner},
    text::Answer,
};

/// How long an idle run waits for input before it looks at Ctrl-C and its progress again.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// Lines that are read ahead in each step while the engine has planned work.
const LINES_A_STEP: usize = 32;

/// Read from a cache file within about the time of a decode pass.
const MAX_RESTORED_BYTES: u64 = 32 << 20;

/// One pass may fail for what is in it, such as memory for one long prompt; as many as this in a
/// row, without a token in between, mean that the device is at fault.
const MAX_FAILURES_IN_A_ROW: usize = 3;

/// Why a run's loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Every request has its output line.
    InputUsedUp,
    /// By Ctrl-C.
    Interrupted,
    /// Nobody reads the output any more.
    OutputClosed,
}

/// A run under way.
pub(super) struct Session<R: Runner> {
    pub stats: RunStats,
    pub progress: Progress,
    pub intake: Intake,
    engine: Engine<R>,
    served: Served,
    windows: Windows,
    active: HashMap<RequestId, Active>,
    output_is_closed: bool,
    failures: Failures,
    /// Saves the cache file, if one is in use.
    pub saver: Option<Saver>,
    started: Instant,
    /// From when the model was ready.
    pub first_token_after: Option<Duration>,
}

/// Forward passes that failed.
#[derive(Debug, Default)]
struct Failures {
    /// Failures since the last token.
    num_in_a_row: usize,
    /// What the last one said; the requests it ended repeat it.
    reason: String,
}

/// A request in the engine.
struct Active {
    head: RequestHead,
    answer: Answer,
    /// A stop string has been found.
    is_stopped: bool,
}

impl Session<MlxRunner> {
    pub(super) fn new(
        model: OpenModel,
        intake: Intake,
        args: &RunArgs,
        served: Served,
        stats: RunStats,
        progress: Progress,
    ) -> Self {
        let positive = |number: u32| NonZeroUsize::new(number as usize).unwrap_or(NonZeroUsize::MIN);
        let limits = Limits {
            max_batch_size: positive(args.compute.batch_size),
            prefill_chunk: positive(args.compute.prefill_chunk),
            max_batch_tokens: model.max_kv_tokens,
            kv_bytes_per_token: model.kv_bytes_per_token,
            lookahead: LOOKAHEAD_ON_CPU || model.device == ComputeDevice::Gpu,
            max_restored_bytes: MAX_RESTORED_BYTES,
        };
        let max_cache_bytes = args.compute.cache_bytes.unwrap_or(model.default_cache_bytes);
        let cache = (max_cache_bytes > 0).then_some(CacheLimits {
            max_bytes: max_cache_bytes,
            max_entries: args.compute.cache_entries.map(|entries| entries as usize),
        });
        let saver = model.snapshot.is_some().then(|| Saver::new(&args.persist));
        let mut engine = Engine::new(model.runner, limits, cache);
        if let Some(snapshot) = model.snapshot {
            engine = engine.with_snapshot(snapshot);
        }
        Self {
            stats,
            progress,
            intake,
            engine,
            served,
            windows: Windows::default(),
            active: HashMap::new(),
            output_is_closed: false,
            failures: Failures::default(),
            saver,
            started: Instant::now(),
            first_token_after: None,
        }
    }
}

impl<R: Runner> Session<R> {
    /// Runs until the input is used up, the user interrupts or nobody reads the output.
    pub(super) fn run(&mut self, writer: &mut ResultWriter, interrupt: &Interrupt) -> anyhow::Result<Stop> {
        let mut has_more = true;
        loop {
            let was_read_for_a_window = !self.windows.has_planned();
            has_more &= self.read_ahead(writer, interrupt)?;
            if self.output_is_closed {
                return Ok(Stop::OutputClosed);
            }
            if !self.windows.has_planned() && (was_read_for_a_window || !has_more) {
                self.plan(has_more);
            }
            self.submit_planned(writer)?;
            if interrupt.is_set() {
                return Ok(Stop::Interrupted);
            }
            if self.engine.is_idle() {
                if !has_more && self.windows.is_empty() {
                    return Ok(Stop::InputUsedUp);
                }
                self.show();
                continue;
            }
            let events = match self.engine.step() {
                Ok(events) => events,
                Err(error) => {
                    self.note_failure(error)?;
                    continue;
                }
            };
            for event in events {
                if let Some(record) = self.handle(event)? {
                    self.write(writer, &record)?;
                }
            }
            if self.output_is_closed {
                return Ok(Stop::OutputClosed);
            }
            if self.saver.as_ref().is_some_and(|saver| saver.is_due(&self.engine)) {
                self.save_cache();
            }
            self.show();
        }
    }

    /// Saves the cache file, if one is in use.
    pub(super) fn save_cache(&mut self) {
        if let Some(saver) = &mut self.saver {
            saver.save(&mut self.engine);
        }
    }

    /// Reads into the next window; returns whether the input may have more.
    ///
    /// While the engine has planned work, a few lines a step are enough; else the window is read
    /// until it is full or the input ends or falls silent.
    fn read_ahead(&mut self, writer: &mut ResultWriter, interrupt: &Interrupt) -> anyhow::Result<bool> {
        let mut num_left = if self.windows.has_planned() { LINES_A_STEP } else { usize::MAX };
        while num_left > 0 && !self.windows.is_full() && !interrupt.is_set() && !self.output_is_closed {
            num_left -= 1;
            // An input that is silent holds up nothing that can be computed.
            let patience = match (self.engine.is_idle(), self.windows.is_empty()) {
                (true, true) => IDLE_WAIT,
                (true, false) => PAUSE,
                (false, _) => Duration::ZERO,
            };
            match self.intake.next(patience)? {
                Next::Ready(ready) => self.windows.gather(*ready),
                Next::Failed(record) => {
                    self.stats.num_failed += 1;
                    self.write(writer, &record)?;
                    self.show();
                }
                Next::Pending => return Ok(true),
                Next::End => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Plans the window that has been read, and has what earlier ones stored kept for those who use it.
    fn plan(&mut self, has_more: bool) {
        self.windows.plan(!has_more && self.saver.is_none());
        for request in self.windows.planned() {
            self.engine.expect(request);
        }
    }

    /// Hands planned requests to the engine as long as it has room.
    ///
    /// Where they run out, what was read in the meantime is not planned until as much of it is there as
    /// a window has: a plan sees only what is shared within its window.
    fn submit_planned(&mut self, writer: &mut ResultWriter) -> anyhow::Result<()> {
        while self.engine.has_room() {
            let Some(Ready { head, prepared }) = self.windows.next() else { break };
            let Prepared { mut generation, stops, template_kwargs, .. } = prepared;
            let id = generation.id;
            if let Some(template_kwargs) = template_kwargs {
                let text = Arc::clone(self.intake.text());
                let recurs = move |tokens: &[TokenId]| text.answer_recurs(&template_kwargs, tokens);
                generation.answer_recurs = AnswerRecurs::asking(recurs);
            }
            match self.engine.submit(generation) {
                Ok(()) => {
                    let answer = Answer::new(self.intake.text().tokenizer(), &stops);
                    self.active.insert(id, Active { head, answer, is_stopped: false });
                }
                Err(error @ SubmitError::TooLong { .. }) => {
                    let error = RequestError::bad_request("memory_limit_exceeded", "", error.to_string());
                    let record = self.failed(&head, error);
                    self.write(writer, &record)?;
                }
                Err(error) => return Err(error).context("the engine refused a request"),
            }
        }
        Ok(())
    }

    fn write(&mut self, writer: &mut ResultWriter, record: &Record) -> anyhow::Result<()> {
        self.output_is_closed |= writer.write(record)? == Flow::Closed;
        Ok(())
    }

    /// Lives with a failed pass, which costs the requests in it an error line each, unless nothing
    /// works any more: then the run ends, rather than fail all that is left of the input.
    fn note_failure(&mut self, error: RunnerError) -> anyhow::Result<()> {
        self.failures.num_in_a_row += 1;
        self.failures.reason = error.to_string();
        if self.failures.num_in_a_row < MAX_FAILURES_IN_A_ROW {
            return Ok(());
        }
        Err(error).context("computing the answers failed, time after time")
    }

    /// Takes one event of the engine; returns the record of a request that ended.
    fn handle(&mut self, event: Event) -> anyhow::Result<Option<Record>> {
        match event {
            Event::Token { id, token, .. } => {
                self.failures.num_in_a_row = 0;
                self.first_token_after.get_or_insert_with(|| self.started.elapsed());
                let Some(active) = self.active.get_mut(&id) else { return Ok(None) };
                match active.answer.push(token) {
                    Ok(None) => Ok(None),
                    Ok(Some(_)) => {
                        active.is_stopped = true;
                        self.engine.stop(id);
                        Ok(None)
                    }
                    // The tokens are no use without their text; the row goes to another.
                    Err(error) => {
                        let failed = self.active.remove(&id).map(|active| active.head);
                        self.engine.abort(id);
                        Ok(failed.map(|head| self.failed(&head, RequestError::internal(error.to_string()))))
                    }
                }
            }
            // No request asks for scores.
            Event::Scored { .. } => Ok(None),
            Event::Finished { id, reason, num_prompt_tokens, num_cached_tokens, num_new_tokens, .. } => {
                let Some(mut active) = self.active.remove(&id) else { return Ok(None) };
                let found_stop = match active.answer.finish() {
                    Ok(stopped) => stopped.is_some() || active.is_stopped,
                    Err(error) => {
                        return Ok(Some(
                            self.failed(&active.head, RequestError::internal(error.to_string())),
                        ));
                    }
                };
                let finish_reason = match reason {
                    _ if found_stop => FinishReason::Stop,
                    engine::FinishReason::Stop => FinishReason::Stop,
                    engine::FinishReason::Length => FinishReason::Length,
                    engine::FinishReason::NotNumbers => {
                        return Ok(Some(self.failed(&active.head, RequestError::not_numbers())));
                    }
                    engine::FinishReason::Error => {
                        let reason = format!("computing the answer failed: {}", self.failures.reason);
                        return Ok(Some(self.failed(&active.head, RequestError::internal(reason))));
                    }
                };
                self.stats.num_ok += 1;
                let completion = Completion {
                    text: active.answer.into_text(),
                    finish_reason,
                    num_prompt_tokens: num_prompt_tokens as u64,
                    num_completion_tokens: num_new_tokens as u64,
                    num_cached_tokens: num_cached_tokens as u64,
                };
                Ok(Some(Record::success(&active.head, &completion, &self.served)))
            }
        }
    }

    /// The output line of a request that was begun and has no answer.
    fn failed(&mut self, head: &RequestHead, error: RequestError) -> Record {
        self.stats.num_failed += 1;
        Record::request_error(head, &error.at(self.intake.reader().name(), head.line))
    }

    /// Brings the counters up to date and shows them.
    fn show(&mut self) {
        let stats = self.engine.stats();
        let num_computed = stats.num_prefilled_tokens() + stats.num_last_tokens();
        self.stats.num_prompt_tokens = (num_computed + stats.num_cached_tokens) as u64;
        self.stats.num_cached_tokens = stats.num_cached_tokens as u64;
        self.stats.num_generated_tokens = stats.num_generated_tokens as u64;
        self.stats.prefill_tokens_per_second = stats.prefill_tokens_per_second();
        self.stats.decode_tokens_per_second = stats.decode_tokens_per_second();
        self.stats.wall = self.started.elapsed();
        self.progress.update(&self.stats);
    }

    /// Counters of the prompt cache, if there is one.
    pub(super) fn cache_usage(&self) -> Option<CacheUsage> {
        self.engine.cache_usage()
    }

    /// Distinct prompt tokens of all windows.
    pub(super) fn num_unique_tokens(&self) -> usize {
        self.windows.num_unique_tokens
    }

    /// What requests run on.
    pub(super) fn engine(&self) -> &Engine<R> {
        &self.engine
    }

    /// The engine's own counters.
    pub(super) fn engine_stats(&self) -> &engine::Stats {
        self.engine.stats()
    }
}

/// Whether the CPU gets a pass before the tokens of the last one are read.
const LOOKAHEAD_ON_CPU: bool = false;

#[cfg(test)]
mod tests;
