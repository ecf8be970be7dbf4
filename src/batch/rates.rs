//! How fast a run is going now, and how long it will take.
//!
//! Owns the window over which speed is measured. Pure: time is an argument, so tests need no
//! clock. Drawing is for `progress`.

use std::collections::VecDeque;
use std::time::Duration;

use super::summary::RunStats;

/// Long enough to cover whole prefills, short enough to follow a change of load.
const WINDOW: Duration = Duration::from_secs(15);

/// Samples closer together than this are merged, so that the window holds few.
const MIN_SPACING: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    num_prompt_tokens: u64,
    num_generated_tokens: u64,
}

/// Remembers the recent past of a run's counters.
#[derive(Debug, Default)]
pub(super) struct Rates {
    samples: VecDeque<Sample>,
}

/// Tokens per second; nothing before there is anything to compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    pub prompt: f64,
    pub generated: f64,
}

impl Rates {
    /// Notes the counters at `now`, the time since the run began.
    pub fn observe(&mut self, now: Duration, stats: &RunStats) {
        let sample = Sample {
            at: now,
            num_prompt_tokens: stats.num_prefilled_tokens(),
            num_generated_tokens: stats.num_generated_tokens,
        };
        if self.samples.back().is_some_and(|last| now < last.at + MIN_SPACING) {
            return;
        }
        self.samples.push_back(sample);
        // One sample from before the window stays: the window is measured from it.
        while self.samples.get(1).is_some_and(|second| second.at + WINDOW < now) {
            self.samples.pop_front();
        }
    }

    /// The speed over the window.
    pub fn speed(&self) -> Option<Speed> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let num_seconds = last.at.checked_sub(first.at)?.as_secs_f64();
        (num_seconds > 0.0).then(|| Speed {
            prompt: last.num_prompt_tokens.saturating_sub(first.num_prompt_tokens) as f64 / num_seconds,
            generated: last.num_generated_tokens.saturating_sub(first.num_generated_tokens) as f64
                / num_seconds,
        })
    }
}

/// The time left if the remaining requests take as long as the finished ones did.
pub(super) fn time_left(now: Duration, stats: &RunStats) -> Option<Duration> {
    let num_left = stats.num_total?.saturating_sub(stats.num_done());
    // What an earlier run has left took none of this one's time.
    match stats.num_done().saturating_sub(stats.num_kept) {
        0 => None,
        num_done => {
            let num_seconds = now.as_secs_f64() * num_left as f64 / num_done as f64;
            Duration::try_from_secs_f64(num_seconds).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(num_prompt_tokens: u64, num_generated_tokens: u64) -> RunStats {
        RunStats { num_prompt_tokens, num_generated_tokens, ..RunStats::default() }
    }

    #[test]
    fn speed_follows_the_window_not_the_whole_run() {
        let mut rates = Rates::default();
        assert_eq!(rates.speed(), None);
        for second in 0..60 {
            rates.observe(Duration::from_secs(second), &stats(1000 * second.min(30), 10 * second));
        }
        let speed = rates.speed().expect("there are samples");
        assert_eq!((speed.prompt, speed.generated), (0.0, 10.0));
        assert!(rates.samples.len() <= 18, "{}", rates.samples.len());
    }

    #[test]
    fn cached_tokens_are_not_speed() {
        let mut rates = Rates::default();
        rates.observe(Duration::ZERO, &stats(0, 0));
        let cached = RunStats { num_cached_tokens: 900, ..stats(1000, 0) };
        rates.observe(Duration::from_secs(1), &cached);
        assert_eq!(rates.speed().map(|speed| speed.prompt), Some(100.0));
    }

    #[test]
    fn the_time_left_is_known_once_something_is_done() {
        let now = Duration::from_secs(30);
        let run = |num_total, num_ok| RunStats { num_total, num_ok, ..RunStats::default() };
        assert_eq!(time_left(now, &run(Some(10), 0)), None);
        assert_eq!(time_left(now, &run(None, 5)), None);
        assert_eq!(time_left(now, &run(Some(10), 6)), Some(Duration::from_secs(20)));
        assert_eq!(time_left(now, &run(Some(10), 12)), Some(Duration::ZERO));
    }
}
