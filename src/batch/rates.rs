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

/// What is planned of an input, once all of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    pub num_prompt_tokens: u64,
    /// Of all answers at full length.
    pub max_new_tokens: u64,
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

/// How long a run will still take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum TimeLeft {
    /// If the remaining requests take as long as the finished ones did.
    About(Duration),
    /// If all answers become as long as they may, as long as none has ended.
    AtMost(Duration),
    /// Until the prompts are computed; how fast answers come is not known before.
    OfPrompts(Duration),
}

impl TimeLeft {
    /// Until the end of the run, where that is known.
    pub fn of_run(self) -> Option<Duration> {
        match self {
            Self::About(left) | Self::AtMost(left) => Some(left),
            Self::OfPrompts(_) => None,
        }
    }
}

/// The time left of a run that has come so far at `now`.
pub(super) fn time_left(now: Duration, stats: &RunStats) -> Option<TimeLeft> {
    let num_left = stats.num_total?.saturating_sub(stats.num_done());
    let duration = |num_seconds: f64| Duration::try_from_secs_f64(num_seconds).ok();
    // What an earlier run has left took none of this one's time.
    let num_done = stats.num_done().saturating_sub(stats.num_kept);
    if num_done > 0 {
        return duration(now.as_secs_f64() * num_left as f64 / num_done as f64).map(TimeLeft::About);
    }
    let outlook = stats.outlook?;
    // What is still to come is taken to be in the cache as often as what came.
    let num_prompt_left = outlook.num_prompt_tokens.saturating_sub(stats.num_prompt_tokens) as f64;
    let share_computed = stats.num_prefilled_tokens() as f64 / stats.num_prompt_tokens.max(1) as f64;
    let of_prompts = num_prompt_left * share_computed / stats.prefill_tokens_per_second?;
    let num_new_left = outlook.max_new_tokens.saturating_sub(stats.num_generated_tokens) as f64;
    match stats.decode_tokens_per_second {
        Some(speed) => duration(of_prompts + num_new_left / speed).map(TimeLeft::AtMost),
        None => duration(of_prompts).map(TimeLeft::OfPrompts),
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
        assert_eq!(time_left(now, &run(Some(10), 6)), Some(TimeLeft::About(Duration::from_secs(20))));
        assert_eq!(time_left(now, &run(Some(10), 12)), Some(TimeLeft::About(Duration::ZERO)));
    }

    /// Long prompts were computed for minutes without a word of how long.
    #[test]
    fn before_anything_is_done_the_plan_says_how_long_it_takes_at_most() {
        let now = Duration::from_secs(10);
        let mut run = RunStats {
            num_total: Some(10),
            outlook: Some(Outlook { num_prompt_tokens: 9_000, max_new_tokens: 640 }),
            num_prompt_tokens: 3_000,
            num_cached_tokens: 1_000,
            prefill_tokens_per_second: Some(200.0),
            ..RunStats::default()
        };
        assert_eq!(time_left(now, &run), Some(TimeLeft::OfPrompts(Duration::from_secs(20))));
        run.decode_tokens_per_second = Some(10.0);
        run.num_generated_tokens = 40;
        assert_eq!(time_left(now, &run), Some(TimeLeft::AtMost(Duration::from_secs(80))));
        assert_eq!(time_left(now, &RunStats { outlook: None, ..run.clone() }), None);
        run.num_prompt_tokens = 20_000;
        assert_eq!(time_left(now, &run), Some(TimeLeft::AtMost(Duration::from_secs(60))));
    }
}
