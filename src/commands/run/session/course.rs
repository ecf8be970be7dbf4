//! The times of a session: when lines enter the batch and are given up, and how far the run is.
//!
//! Owns bringing the counters up to date. What they come to is `times`' and `timeline`'s, how they are shown
//! `batch`'s.

use std::time::Instant;

use super::{Seat, Session};
use crate::{
    batch::{RequestError, ResultWriter, count_text, duration_text},
    commands::run::timeline::Moment,
    engine::Runner,
    machine_memory, mlx,
};

impl<R: Runner> Session<R> {
    /// Notes which lines have entered the batch with a step that began then.
    pub(super) fn note_entries(&mut self, step_began: Instant) {
        for id in self.engine.admitted() {
            let Some(seat) = self.seats.get(id) else { continue };
            let Some(job) = self.jobs.get_mut(&seat.job).filter(|job| job.moments.entered.is_none()) else {
                continue;
            };
            job.moments.entered = Some(step_began);
            self.overdue.note(seat.job, step_began);
        }
    }

    /// Gives up lines that have had their time.
    pub(super) fn end_overdue(&mut self, writer: &mut ResultWriter) -> anyhow::Result<()> {
        loop {
            let next = self.overdue.next(Instant::now(), |line| self.jobs.contains_key(&line));
            let Some((line, timeout)) = next else { return Ok(()) };
            let Some(job) = self.jobs.get(&line) else { continue };
            let reason = format!(
                "no whole answer within the {} of --timeout; {} of it were there",
                duration_text(timeout),
                count_text(job.num_running_tokens() as u64, "token")
            );
            let seat = Seat { job: line, choice: job.unfinished() };
            if let Some(record) = self.fail(seat, RequestError::timeout(reason)) {
                self.write(writer, &record)?;
            }
        }
    }

    /// Brings the counters up to date and shows them.
    pub(super) fn show(&mut self) {
        let stats = self.engine.stats();
        let num_computed = stats.num_prefilled_tokens() + stats.num_last_tokens();
        self.stats.num_prompt_tokens = (num_computed + stats.num_cached_tokens) as u64;
        self.stats.num_cached_tokens = stats.num_cached_tokens as u64;
        self.stats.num_generated_tokens = stats.num_generated_tokens as u64;
        self.stats.prefill_tokens_per_second = stats.prefill_tokens_per_second();
        self.stats.decode_tokens_per_second = stats.decode_tokens_per_second();
        self.stats.wall = self.started.elapsed();
        self.progress.update(&self.stats);
        if self.timeline.is_due(self.stats.wall) {
            self.note_moment();
        }
    }

    /// Notes how far the run is, such as at its end.
    pub(in crate::commands::run) fn note_moment(&mut self) {
        let stats = &self.stats;
        self.timeline.note(Moment {
            at: self.started.elapsed(),
            num_done: stats.num_done(),
            num_computed_tokens: stats.num_prefilled_tokens(),
            num_cached_tokens: stats.num_cached_tokens,
            num_generated_tokens: stats.num_generated_tokens,
            memory_bytes: machine_memory::resident_bytes(),
            array_bytes: mlx::active_memory_bytes(),
            cache_bytes: self.engine.cache_usage().map(|usage| usage.num_bytes),
        });
    }
}
