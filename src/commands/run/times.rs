//! How long lines take: the moments of one, and what all of them come to.
//!
//! Owns percentiles of any number of lines in constant memory, and the slowest few. What a line is, and when
//! something happens to it, the session knows.

mod histogram;

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::histogram::Histogram;
use crate::batch::{RequestHead, TokenCounts};

/// So many of the slowest lines are told.
const NUM_SLOWEST: usize = 10;

/// Characters of an id that a report repeats.
const MAX_ID_CHARS: usize = 200;

/// When a line came to where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// It was ready to be planned.
    pub read: Instant,
    /// Its first request entered the running batch.
    pub entered: Option<Instant>,
    /// Its first token, of whichever choice, was there.
    pub first_token: Option<Instant>,
}

impl Moments {
    pub(super) fn begin() -> Self {
        Self { read: Instant::now(), entered: None, first_token: None }
    }
}

/// A line that is done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Timed {
    /// Its number in the input, from 1.
    pub line: u64,
    pub id: String,
    pub is_ok: bool,
    /// From being read until it entered the batch.
    pub queue: Duration,
    /// From then until its first token, if it had one.
    pub first_token: Option<Duration>,
    /// From entering the batch until its record.
    pub total: Duration,
    pub tokens: TokenCounts,
}

/// Times of all lines that have entered the batch.
#[derive(Debug, Default)]
pub(super) struct Timings {
    queue: Histogram,
    first_token: Histogram,
    total: Histogram,
    /// The slowest first.
    slowest: Vec<Timed>,
}

/// What of a run's times a report tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Percentiles {
    pub name: &'static str,
    pub num: u64,
    /// Seconds below which half of them are, and so on.
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Timings {
    /// Takes a line that has its record now, if it ever entered the batch.
    pub(super) fn add(&mut self, head: &RequestHead, moments: &Moments, tokens: Option<TokenCounts>) {
        let Some(entered) = moments.entered else { return };
        let timed = Timed {
            line: head.line,
            id: head.custom_id.chars().take(MAX_ID_CHARS).collect(),
            is_ok: tokens.is_some(),
            queue: entered.saturating_duration_since(moments.read),
            first_token: moments.first_token.map(|token| token.saturating_duration_since(entered)),
            total: entered.elapsed(),
            tokens: tokens.unwrap_or_default(),
        };
        self.add_timed(timed);
    }

    fn add_timed(&mut self, timed: Timed) {
        self.queue.add(timed.queue);
        self.total.add(timed.total);
        timed.first_token.iter().for_each(|time| self.first_token.add(*time));
        let place = self.slowest.partition_point(|other| Reverse(other.total) <= Reverse(timed.total));
        if place < NUM_SLOWEST {
            self.slowest.insert(place, timed);
            self.slowest.truncate(NUM_SLOWEST);
        }
    }

    /// Queue, first token and total.
    pub(super) fn percentiles(&self) -> [Percentiles; 3] {
        let of = |name, histogram: &Histogram| Percentiles {
            name,
            num: histogram.len(),
            p50: histogram.percentile(50).as_secs_f64(),
            p90: histogram.percentile(90).as_secs_f64(),
            p99: histogram.percentile(99).as_secs_f64(),
            max: histogram.percentile(100).as_secs_f64(),
        };
        [of("queue", &self.queue), of("first_token", &self.first_token), of("total", &self.total)]
    }

    pub(super) fn slowest(&self) -> &[Timed] {
        &self.slowest
    }
}

impl Percentiles {
    pub(super) fn to_json(self) -> Value {
        let Self { num, p50, p90, p99, max, .. } = self;
        json!({"num": num, "p50": p50, "p90": p90, "p99": p99, "max": max})
    }
}

impl Timed {
    pub(super) fn to_json(&self) -> Value {
        json!({
            "line": self.line,
            "id": self.id,
            "is_ok": self.is_ok,
            "queue_seconds": self.queue.as_secs_f64(),
            "first_token_seconds": self.first_token.map(|time| time.as_secs_f64()),
            "total_seconds": self.total.as_secs_f64(),
            "num_prompt_tokens": self.tokens.num_prompt_tokens,
            "num_cached_tokens": self.tokens.num_cached_tokens,
            "num_generated_tokens": self.tokens.num_completion_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(line: u64) -> Timed {
        let time = Duration::from_millis(line);
        Timed {
            line,
            id: format!("r{line}"),
            is_ok: true,
            queue: time,
            first_token: line.is_multiple_of(2).then_some(time),
            total: time * 2,
            tokens: TokenCounts::default(),
        }
    }

    #[test]
    fn the_slowest_ten_are_kept_in_order_whatever_comes_when() {
        let mut timings = Timings::default();
        (0..50).for_each(|step| timings.add_timed(timed((step * 17) % 50 + 1)));
        let lines: Vec<u64> = timings.slowest().iter().map(|timed| timed.line).collect();
        assert_eq!(lines, (41..=50).rev().collect::<Vec<_>>());
        let [queue, first_token, total] = timings.percentiles();
        assert_eq!((queue.num, first_token.num, total.num), (50, 25, 50));
        assert!((queue.p50 - 0.025).abs() < 0.001 && (total.max - 0.1).abs() < 1e-9, "{queue:?} {total:?}");
    }
}
