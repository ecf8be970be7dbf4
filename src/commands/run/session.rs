//! The loop of a run: requests in as rows fall free, tokens to text, results out.
//!
//! Owns what is between reader, engine and writer, and the run's counters. Memory is bounded: at
//! most a window of requests is held beside the running batch.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    intake::{Intake, Next, PAUSE},
    job::{Counts, End, Ended, Job},
    model::OpenModel,
    overdue::Overdue,
    persist::Saver,
    prepare::{PreparedJob, PreparedRequest},
    timeline::Timeline,
    times::Timings,
    window::{Ready, Seat, Windows},
};
use crate::{
    batch::{FinishReason, Flow, Progress, Record, RequestError, ResultWriter, RunStats, Served},
    cache::{CacheLimits, CacheUsage},
    cli::RunArgs,
    commands::{interrupt::Interrupt, shared_prefixes::NamedPrefix},
    engine::{self, Engine, Event, GenerationRequest, Limits, RequestId, Runner, RunnerError, SubmitError},
    mlx::{ComputeDevice, MlxRunner},
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
    /// By its time limit.
    TimeUp,
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
    /// Lines that are read and have no record yet, by their place among the output lines.
    jobs: HashMap<u64, Job>,
    /// The requests in the engine.
    seats: HashMap<RequestId, Seat>,
    output_is_closed: bool,
    /// Whether a line that cannot be served ends the run.
    is_strict: bool,
    failures: Failures,
    /// Saves the cache file, if one is in use.
    pub saver: Option<Saver>,
    started: Instant,
    /// When it ends, done or not.
    pub deadline: Option<Instant>,
    /// When lines that have entered the batch are given up.
    overdue: Overdue,
    /// From when the model was ready.
    pub first_token_after: Option<Duration>,
    pub timings: Timings,
    pub timeline: Timeline,
}

/// Forward passes that failed.
#[derive(Debug, Default)]
struct Failures {
    /// Failures since the last token or score.
    num_in_a_row: usize,
    /// What the last one said; the requests it ended repeat it.
    reason: String,
    /// Whether the system gave it no memory.
    is_of_memory: bool,
}

impl Failures {
    /// The error of a request that the last failure has ended.
    fn told(&self) -> RequestError {
        let reason = format!("computing the answer failed: {}", self.reason);
        match self.is_of_memory {
            false => RequestError::internal(reason),
            true => RequestError::machine(format!(
                "{reason}: the system gave no more memory; raise the limit on address space (`ulimit -v`), or have the \
                 run take less with --max-memory or --batch-size"
            )),
        }
    }
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
            max_batch_tokens: model.memory.budget.max_kv_tokens,
            kv_bytes_per_token: model.kv_bytes_per_token,
            lookahead: LOOKAHEAD_ON_CPU || model.device == ComputeDevice::Gpu,
            max_restored_bytes: MAX_RESTORED_BYTES,
        };
        let max_cache_bytes = model.memory.budget.max_cache_bytes;
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
            jobs: HashMap::new(),
            seats: HashMap::new(),
            output_is_closed: false,
            is_strict: args.strict,
            failures: Failures::default(),
            saver,
            started: Instant::now(),
            deadline: None,
            overdue: Overdue::new(args.timeout),
            first_token_after: None,
            timings: Timings::default(),
            timeline: Timeline::default(),
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
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(Stop::TimeUp);
            }
            if self.engine.is_idle() {
                if !has_more && self.windows.is_empty() {
                    return Ok(Stop::InputUsedUp);
                }
                self.show();
                continue;
            }
            let step_began = Instant::now();
            let stepped = self.engine.step();
            self.note_entries(step_began);
            let mut events = match stepped {
                Ok(events) => events,
                Err(error) => {
                    self.note_failure(error)?;
                    continue;
                }
            };
            // An answer that is stopped has ended: where another turn follows, the next pass is to have it.
            while !events.is_empty() {
                for event in events {
                    if let Some(record) = self.handle(event)? {
                        self.write(writer, &record)?;
                    }
                }
                events = self.engine.take_events();
            }
            self.end_overdue(writer)?;
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
                Next::Ready(job) => self.gather(*job),
                Next::Failed(record) => {
                    if let Some(failure) = record.failure().filter(|_| self.is_strict) {
                        bail!("{} (--strict)", failure.message);
                    }
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

    fn gather(&mut self, job: PreparedJob) {
        let num_choices = job.requests.len();
        let PreparedJob { head, format, dialogue, .. } = self.windows.gather(job);
        self.jobs.insert(head.index, Job::new(head, format, dialogue, num_choices));
    }

    /// Plans the window that has been read, and has what earlier ones stored kept for those who use it.
    fn plan(&mut self, has_more: bool) {
        self.windows.plan(!has_more && self.saver.is_none(), self.intake.text().tokenizer());
        self.stats.outlook = (!has_more).then(|| self.windows.outlook());
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
            let Some(Ready { seat, request }) = self.windows.next() else { break };
            // The record of a line that failed by one of its choices is written.
            if self.jobs.contains_key(&seat.job)
                && let Some(record) = self.submit(seat, request, Engine::submit)?
            {
                self.write(writer, &record)?;
            }
        }
        Ok(())
    }

    /// Hands a request to the engine; returns the record of a line that fails by it.
    fn submit(
        &mut self,
        seat: Seat,
        request: PreparedRequest,
        submit: fn(&mut Engine<R>, GenerationRequest) -> Result<(), SubmitError>,
    ) -> anyhow::Result<Option<Record>> {
        let Some(job) = self.jobs.get_mut(&seat.job) else { return Ok(None) };
        let id = request.generation.id;
        job.begin(seat.choice, &request, self.intake.text().tokenizer());
        match submit(&mut self.engine, request.generation) {
            Ok(()) => {
                self.seats.insert(id, seat);
                Ok(None)
            }
            Err(error @ SubmitError::TooLong { .. }) => {
                let error = RequestError::bad_request("memory_limit_exceeded", "", error.to_string());
                Ok(self.fail(seat, error))
            }
            Err(error) => Err(error).context("the engine refused a request"),
        }
    }

    /// Hands the next turn of a choice to the engine, now that the answer before it is there; returns the record
    /// of a line that fails by it.
    fn next_turn(&mut self, seat: Seat) -> anyhow::Result<Option<Record>> {
        let Some(job) = self.jobs.get(&seat.job) else { return Ok(None) };
        let Some(dialogue) = job.dialogue() else { return Ok(None) };
        match self.intake.next_turn(&job.head, dialogue, seat.choice, &job.answers(seat.choice)) {
            Ok(request) => {
                let before = job.prompt(seat.choice);
                let Ready { request, .. } =
                    self.windows.next_turn(seat, request, self.engine.present(), before);
                self.submit(seat, request, Engine::submit_next)
            }
            Err(error) => Ok(self.fail(seat, error)),
        }
    }

    fn write(&mut self, writer: &mut ResultWriter, record: &Record) -> anyhow::Result<()> {
        for told in record.failure().map(|failure| self.stats.failures.add(failure)).unwrap_or_default() {
            self.progress.tell(&format!("mlxbatch: failed: {told}"));
        }
        self.output_is_closed |= writer.write(record)? == Flow::Closed;
        Ok(())
    }

    /// Lives with a failed pass, which costs the requests in it an error line each, unless nothing
    /// works any more: then the run ends, rather than fail all that is left of the input.
    fn note_failure(&mut self, error: RunnerError) -> anyhow::Result<()> {
        self.failures.num_in_a_row += 1;
        self.failures.reason = error.to_string();
        self.failures.is_of_memory = error.is_of_memory();
        if self.failures.num_in_a_row < MAX_FAILURES_IN_A_ROW {
            return Ok(());
        }
        Err(error).context("computing the answers failed, time after time")
    }

    /// Takes one event of the engine; returns the record of a line that is done with.
    fn handle(&mut self, event: Event) -> anyhow::Result<Option<Record>> {
        match event {
            Event::Token { id, token, report } => {
                self.failures.num_in_a_row = 0;
                self.first_token_after.get_or_insert_with(|| self.started.elapsed());
                let Some((seat, job)) = self.seated(id) else { return Ok(None) };
                job.moments.first_token.get_or_insert_with(Instant::now);
                match job.push(seat.choice, token, report.map(|report| *report)) {
                    Ok(false) => Ok(None),
                    Ok(true) => {
                        self.engine.stop(id);
                        Ok(None)
                    }
                    Err(error) => Ok(self.fail(seat, error)),
                }
            }
            Event::Scored { id, reports, .. } => {
                self.failures.num_in_a_row = 0;
                if let Some((seat, job)) = self.seated(id) {
                    job.score(seat.choice, reports);
                }
                Ok(None)
            }
            Event::Finished {
                id,
                reason,
                num_prompt_tokens,
                num_cached_tokens,
                num_new_tokens,
                end_token,
                end_report,
                problem,
            } => {
                let Some(seat) = self.seats.remove(&id) else { return Ok(None) };
                let Some(job) = self.jobs.get_mut(&seat.job) else { return Ok(None) };
                let counts = Counts { num_prompt_tokens, num_cached_tokens, num_new_tokens };
                let end = end_token.map(|token| End { token, report: end_report.map(|report| *report) });
                let ending = match reason {
                    engine::FinishReason::Stop => Ok(FinishReason::Stop),
                    engine::FinishReason::Length => Ok(FinishReason::Length),
                    engine::FinishReason::NotNumbers => Err(RequestError::not_numbers()),
                    engine::FinishReason::Stuck => {
                        let reason = problem.unwrap_or_default();
                        Err(RequestError::bad_request("constraint_not_met", "", reason))
                    }
                    engine::FinishReason::Error => Err(self.failures.told()),
                };
                let tokenizer = self.intake.text().tokenizer();
                match job.finish(seat.choice, ending, end, counts, tokenizer) {
                    Ok(Ended::Open) => Ok(None),
                    Ok(Ended::Turn) => self.next_turn(seat),
                    Ok(Ended::Whole(completion)) => {
                        self.stats.num_ok += 1;
                        let Some(job) = self.jobs.remove(&seat.job) else { return Ok(None) };
                        self.timings.add(&job.head, &job.moments, Some(completion.usage));
                        Ok(Some(Record::success(&job.head, &completion, &self.served)))
                    }
                    Err(error) => Ok(self.fail(seat, error)),
                }
            }
        }
    }

    /// Which choice of which line a request is.
    fn seated(&mut self, id: RequestId) -> Option<(Seat, &mut Job)> {
        let seat = *self.seats.get(&id)?;
        Some((seat, self.jobs.get_mut(&seat.job)?))
    }

    /// Gives up a line by one of its choices: the others are of no use without it. Returns its record.
    fn fail(&mut self, seat: Seat, error: RequestError) -> Option<Record> {
        let mut job = self.jobs.remove(&seat.job)?;
        for id in job.running() {
            self.seats.remove(&id);
            self.engine.abort(id);
        }
        self.stats.num_failed += 1;
        self.timings.add(&job.head, &job.moments, None);
        let (error, before) = job.failed(seat.choice, error);
        let error = error.at(&job.head.file.name, job.head.line);
        Some(Record::turn_error(&job.head, &error, &before, &self.served))
    }

    /// Counters of the prompt cache, if there is one.
    pub(super) fn cache_usage(&self) -> Option<CacheUsage> {
        self.engine.cache_usage()
    }

    /// Distinct prompt tokens of all windows.
    pub(super) fn num_unique_tokens(&self) -> usize {
        self.windows.num_unique_tokens
    }

    /// The prefixes whose sharing saves most.
    pub(super) fn largest_shared(&self) -> Vec<NamedPrefix> {
        self.windows.shared.largest()
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

mod course;

/// Whether the CPU gets a pass before the tokens of the last one are read.
const LOOKAHEAD_ON_CPU: bool = false;

#[cfg(test)]
mod tests;
