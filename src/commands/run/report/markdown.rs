//! The summary of a job on GitHub Actions: what a run came to, as Markdown behind what is there.
//!
//! Owns its words and that strangers' text stays text: it stands in code spans alone.

use std::{env, fs::OpenOptions, io::Write, time::Duration};

use super::{Report, outcome};
use crate::{
    batch::{duration_text, number_text, rate_text, size_text},
    terminal::shown,
};

/// Names the file to which a step of a job adds its summary.
const VARIABLE: &str = "GITHUB_STEP_SUMMARY";

/// Adds the summary where the environment asks for it; returns what went wrong with that.
pub(super) fn append(report: &Report) -> Option<String> {
    let path = env::var_os(VARIABLE).filter(|path| !path.is_empty())?;
    let opened = OpenOptions::new().append(true).create(true).open(&path);
    let written = opened.and_then(|mut file| file.write_all(render(report).as_bytes()));
    let told =
        |error| format!("the summary was not added to {} ({VARIABLE}): {error}", path.to_string_lossy());
    written.err().map(told)
}

fn render(report: &Report) -> String {
    let Report { about, stats, engine, times, .. } = report;
    let mut text = format!("### mlxbatch: {}\n\n", outcome(report));
    text += &format!("{} → {}\n\n| | |\n|---|---|\n", code(&about.input), code(&about.output));
    let mut row = |name: &str, value: String| text += &format!("| {name} | {value} |\n");
    if let Some(name) = about.model.get("name").and_then(|name| name.as_str()) {
        row("model", code(name));
    }
    row("time", duration_text(stats.wall));
    let speed =
        |speed: Option<f64>| speed.map_or_else(String::new, |speed| format!(", {}/s", rate_text(speed)));
    let num_cached = stats.num_cached_tokens;
    row(
        "prompt tokens",
        format!(
            "{}: {} computed{}, {} cached ({:.1}%)",
            number_text(stats.num_prompt_tokens),
            number_text(stats.num_prefilled_tokens()),
            speed(engine.prefill_tokens_per_second()),
            number_text(num_cached),
            100.0 * num_cached as f64 / stats.num_prompt_tokens.max(1) as f64
        ),
    );
    row(
        "generated tokens",
        format!("{}{}", number_text(stats.num_generated_tokens), speed(engine.decode_tokens_per_second())),
    );
    let [_, _, total] = times;
    if total.num > 0 {
        let time = |seconds| duration_text(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
        row(
            "time per request",
            format!("{} median, {} p90, {} p99", time(total.p50), time(total.p90), time(total.p99)),
        );
    }
    if let Some(num_bytes) = stats.peak_memory_bytes {
        row("memory", format!("{} at its peak", size_text(num_bytes)));
    }
    let failures: Vec<_> = stats.failures.each().collect();
    if !failures.is_empty() {
        text += "\n| failed | lines | such as |\n|---|--:|---|\n";
        for (name, num, examples) in failures {
            let example = examples.first().map(|example| code(example)).unwrap_or_default();
            text += &format!("| {} | {} | {example} |\n", code(name), number_text(num));
        }
    }
    text + "\n"
}

/// A code span with this text on one line of a table.
fn code(text: &str) -> String {
    let text = shown(text).replace('\t', " ").replace('|', "\\|");
    let longest = text.split(|char| char != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    // Blanks keep backticks at the ends apart from the fence; readers take them away.
    format!("{fence} {text} {fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_text_stays_within_its_span() {
        assert_eq!(code("a"), "` a `");
        assert_eq!(code("a|b``c\n# d\u{202e}"), "``` a\\|b``c\\u{a}# d\\u{202e} ```");
        assert_eq!(code("`"), "`` ` ``");
    }
}
