//! What a run's output and its progress look like, as typed.
//!
//! Owns the names of the kinds and what is said of them. The flags that take them are in `cli`.

use clap::ValueEnum;

use crate::batch::OutputFormat;

pub(super) const PROGRESS_HELP: &str = "\
How to show progress on standard error

With json every line there is a JSON object with an `event`: progress, every second, and end have the counters so far \
(seconds, num_done, num_failed, num_total, num_prompt_tokens, num_cached_tokens, num_generated_tokens), speeds \
(prompt_tokens_per_second, generated_tokens_per_second) and seconds_left, each null where it is not known; warning, failed, error \
and message have a `text`. end is there once, with its `summary` as lines of text, unless the run ends with an error.";

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Records of the OpenAI Batch API, one on each line
    Openai,
    /// Flat objects: id, output, finish_reason, error_code, error, prompt_tokens, completion_tokens and what was asked for
    Simple,
    /// The same as a table with a row of names
    Csv,
}

impl From<FormatArg> for OutputFormat {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Openai => Self::Openai,
            FormatArg::Simple => Self::Simple,
            FormatArg::Csv => Self::Csv,
        }
    }
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressArg {
    /// A bar on a terminal, else plain
    Auto,
    /// A line every ten seconds
    Plain,
    /// One JSON object a line, every second
    Json,
    /// Warnings, failures and the summary alone
    None,
}
