//! What is shown on standard error while a run works.
//!
//! Owns the bar on a terminal, the plain lines elsewhere, the JSON for programs and the silence of `--quiet`. How fast
//! it goes is computed in `rates`; the end of a run is told by `summary`.

use std::env;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::rates::{Rates, TimeLeft, time_left};
use super::summary::RunStats;
use super::units::{counted, duration, grouped};
use crate::terminal::{can_redraw, eprint_event, eprint_line};

/// How often a log file gets a line.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);

/// How often a program is told.
const JSON_INTERVAL: Duration = Duration::from_secs(1);

/// How often the numbers beside the bar change.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Shows how far a run is.
pub struct Progress {
    display: Display,
    started: Instant,
    due: Duration,
    rates: Rates,
}

/// Which way it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressKind {
    /// A bar if standard error is a terminal, else plain lines.
    Auto,
    Plain,
    Json,
    /// None; what there is to say is said.
    None,
    /// None, and nothing is said but what must be.
    Quiet,
}

enum Display {
    Bar(ProgressBar),
    Plain,
    Json,
    None,
    Quiet,
}

impl Progress {
    /// Begins to show a run over so many requests.
    pub fn new(num_total: Option<u64>, kind: ProgressKind) -> Self {
        let display = match kind {
            ProgressKind::Quiet => Display::Quiet,
            ProgressKind::None => Display::None,
            ProgressKind::Json => Display::Json,
            ProgressKind::Auto if can_redraw() => Display::Bar(bar(num_total)),
            ProgressKind::Auto | ProgressKind::Plain => Display::Plain,
        };
        let due = match display {
            Display::Bar(_) => Duration::ZERO,
            Display::Json => JSON_INTERVAL,
            _ => PLAIN_INTERVAL,
        };
        Self { display, started: Instant::now(), due, rates: Rates::default() }
    }

    /// Shows the counters if it is time to; cheap enough for every step.
    pub fn update(&mut self, stats: &RunStats) {
        let now = self.started.elapsed();
        self.rates.observe(now, stats);
        if now < self.due {
            return;
        }
        match &self.display {
            Display::Quiet | Display::None => {}
            Display::Json => {
                self.due = now + JSON_INTERVAL;
                eprint_event(&counters("progress", now, stats, &self.rates));
            }
            Display::Plain => {
                self.due = now + PLAIN_INTERVAL;
                say(&plain_line(now, stats, &self.rates));
            }
            Display::Bar(bar) => {
                self.due = now + BAR_INTERVAL;
                // A file that grew after it was counted must not end in a bar past its end.
                if let Some(num_total) = stats.num_total {
                    bar.set_length(num_total.max(stats.num_done()));
                }
                bar.set_position(stats.num_done());
                bar.set_message(details(now, stats, &self.rates));
            }
        }
    }

    /// Says something, above the bar if there is one; not even `--quiet` hides it.
    pub fn say(&self, text: &str) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| say(text)),
            _ => say(text),
        }
    }

    /// The same, but for what `--quiet` hides.
    pub fn tell(&self, text: &str) {
        if !matches!(self.display, Display::Quiet) {
            self.say(text);
        }
    }

    /// Says how the run ended; `summary` is what a person is told of it.
    pub fn end(&self, stats: &RunStats, summary: &[String]) {
        match self.display {
            Display::Quiet => {}
            Display::Json => {
                let mut event = counters("end", self.started.elapsed(), stats, &self.rates);
                event["summary"] = summary.into();
                eprint_event(&event);
            }
            _ => summary.iter().for_each(|line| say(line)),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn say(text: &str) {
    eprint_line(text);
}

fn bar(num_total: Option<u64>) -> ProgressBar {
    let has_colour = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let bar = ProgressBar::with_draw_target(num_total, ProgressDrawTarget::stderr());
    bar.set_style(bar_style(num_total.is_some(), has_colour));
    bar
}

fn bar_style(is_total_known: bool, has_colour: bool) -> ProgressStyle {
    let template = match (is_total_known, has_colour) {
        (true, true) => "{bar:16.cyan/dim} {human_pos}/{human_len} {wide_msg:.dim}",
        (true, false) => "{bar:16} {human_pos}/{human_len} {wide_msg}",
        (false, true) => "{spinner:.cyan} {human_pos} done {wide_msg:.dim}",
        (false, false) => "{spinner} {human_pos} done {wide_msg}",
    };
    ProgressStyle::with_template(template).expect("the templates above parse").progress_chars("━╸─")
}

/// `  3m 05s left  212 prompt + 98.1 generated tok/s`; what matters most comes first, since a
/// narrow terminal cuts the end.
fn details(now: Duration, stats: &RunStats, rates: &Rates) -> String {
    let mut text = String::new();
    if stats.num_failed > 0 {
        text += &format!("  {} failed", grouped(stats.num_failed));
    }
    match time_left(now, stats) {
        Some(TimeLeft::About(left)) => text += &format!("  {} left", duration(left)),
        Some(TimeLeft::AtMost(left)) => text += &format!("  at most {} left", duration(left)),
        Some(TimeLeft::OfPrompts(left)) => text += &format!("  prompts take {} more", duration(left)),
        None => {}
    }
    if let Some(speed) = rates.speed() {
        text += &format!("  {:.0} prompt + {:.1} generated tok/s", speed.prompt, speed.generated);
    }
    text
}

fn plain_line(now: Duration, stats: &RunStats, rates: &Rates) -> String {
    let done = match stats.num_total {
        Some(num_total) => {
            let num_total = num_total.max(stats.num_done());
            format!("{}/{}", grouped(stats.num_done()), counted(num_total, "request"))
        }
        None => counted(stats.num_done(), "request"),
    };
    let details = details(now, stats, rates).replace("  ", ", ");
    format!("mlxbatch: {done} done after {}{details}", duration(now))
}

/// The counters of a run as an event.
fn counters(event: &str, now: Duration, stats: &RunStats, rates: &Rates) -> Value {
    let speed = rates.speed();
    json!({
        "event": event,
        "seconds": now.as_secs_f64(),
        "num_done": stats.num_done(),
        "num_failed": stats.num_failed,
        "num_total": stats.num_total,
        "num_prompt_tokens": stats.num_prompt_tokens,
        "num_cached_tokens": stats.num_cached_tokens,
        "num_generated_tokens": stats.num_generated_tokens,
        "prompt_tokens_per_second": speed.map(|speed| speed.prompt),
        "generated_tokens_per_second": speed.map(|speed| speed.generated),
        "seconds_left": time_left(now, stats).and_then(TimeLeft::of_run).map(|left| left.as_secs_f64()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_tells_all_there_is() {
        let mut rates = Rates::default();
        let before = RunStats::default();
        rates.observe(Duration::ZERO, &before);
        let stats = RunStats {
            num_total: Some(40),
            num_ok: 9,
            num_failed: 1,
            num_prompt_tokens: 2_000,
            num_generated_tokens: 505,
            ..RunStats::default()
        };
        rates.observe(Duration::from_secs(10), &stats);
        assert_eq!(
            plain_line(Duration::from_secs(10), &stats, &rates),
            "mlxbatch: 10/40 requests done after 10s, 1 failed, 30s left, 200 prompt + 50.5 generated tok/s"
        );
        assert_eq!(
            plain_line(Duration::from_secs(10), &before, &Rates::default()),
            "mlxbatch: 0 requests done after 10s"
        );
    }

    #[test]
    fn what_a_program_is_told_is_null_where_it_is_not_known() {
        let stats = RunStats { num_ok: 3, num_failed: 1, num_generated_tokens: 9, ..RunStats::default() };
        let event = counters("progress", Duration::from_secs(2), &stats, &Rates::default());
        assert_eq!(
            event.to_string(),
            "{\"event\":\"progress\",\"seconds\":2.0,\"num_done\":4,\"num_failed\":1,\"num_total\":null,\
             \"num_prompt_tokens\":0,\"num_cached_tokens\":0,\"num_generated_tokens\":9,\
             \"prompt_tokens_per_second\":null,\"generated_tokens_per_second\":null,\"seconds_left\":null}"
        );
    }

    #[test]
    fn all_styles_parse() {
        for (is_total_known, has_colour) in [(true, true), (true, false), (false, true), (false, false)] {
            bar_style(is_total_known, has_colour);
        }
    }

    #[test]
    fn a_line_is_due_every_ten_seconds_only() {
        let mut progress = Progress::new(Some(2), ProgressKind::Quiet);
        progress.display = Display::Plain;
        progress.update(&RunStats::default());
        assert_eq!(progress.due, PLAIN_INTERVAL);
        progress.started =
            Instant::now().checked_sub(Duration::from_secs(11)).expect("the clock is past 11 s");
        progress.update(&RunStats::default());
        assert!(progress.due >= Duration::from_secs(21), "{:?}", progress.due);
    }
}
