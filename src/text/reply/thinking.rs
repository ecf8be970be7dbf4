//! The ways in which models write their thinking.
//!
//! Owns their table, and where thinking ends in an answer's text. Channels, in which messages of several kinds
//! follow each other, are `channels`' to read.

use super::{PromptThinking, channels};

/// One way of writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThinkingSyntax {
    /// Its name as a setting, then others that other programs have for it.
    pub names: &'static [&'static str],
    /// What begins it.
    pub open: &'static str,
    /// What ends it.
    pub close: &'static str,
    /// What may stand around all that is said behind it.
    around_said: Option<(&'static str, &'static str)>,
    /// What closes it where the model does not do so in time.
    pub forced_close: &'static str,
    /// What is to be found in a chat template whose model writes so.
    in_template: &'static [&'static str],
}

const fn tags(
    names: &'static [&'static str],
    open: &'static str,
    close: &'static str,
    forced_close: &'static str,
) -> ThinkingSyntax {
    ThinkingSyntax { names, open, close, around_said: None, forced_close, in_template: &[] }
}

/// All of them; of those that a template shows the first counts.
pub const ALL: &[ThinkingSyntax] = &[
    ThinkingSyntax {
        names: &["harmony", "gpt_oss", "openai_gptoss"],
        open: "<|channel|>",
        close: "<|channel|>final<|message|>",
        around_said: None,
        forced_close: "<|end|><|start|>assistant<|channel|>final<|message|>",
        in_template: &["<|channel|>", channels::MESSAGE],
    },
    tags(&["gemma4"], "<|channel>thought", "<channel|>", "<channel|>"),
    ThinkingSyntax {
        around_said: Some(("<|START_RESPONSE|>", "<|END_RESPONSE|>")),
        ..tags(&["cohere"], "<|START_THINKING|>", "<|END_THINKING|>", "<|END_THINKING|>")
    },
    tags(&["seed_oss"], "<seed:think>", "</seed:think>", "\n</seed:think>"),
    tags(&["mistral", "magistral"], "[THINK]", "[/THINK]", "[/THINK]"),
    tags(&["exaone"], "<thought>", "</thought>", "\n</thought>\n\n"),
    ThinkingSyntax {
        around_said: Some(("<response>", "</response>")),
        in_template: &["<think>", "<response>"],
        ..tags(&["granite"], "<think>", "</think>", "</think><response>")
    },
    ThinkingSyntax {
        around_said: Some(("<answer>", "</answer>")),
        in_template: &["<think>", "<answer>"],
        ..tags(&["hunyuan", "hunyuan_a13b"], "<think>", "</think>", "\n</think>\n<answer>\n")
    },
    ThinkingSyntax {
        in_template: &["</think>"],
        ..tags(
            &[
                "think",
                "deepseek_r1",
                "qwen3",
                "glm45",
                "minimax_m2",
                "deepseek_v3",
                "kimi_k2",
                "olmo3",
                "step3",
            ],
            "<think>",
            "</think>",
            "\n</think>\n\n",
        )
    },
];

/// An answer in two parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split<'a> {
    pub thinking: &'a str,
    pub said: &'a str,
    /// Bytes up to the end of the thinking.
    pub num_bytes: usize,
}

impl ThinkingSyntax {
    /// The syntax of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|syntax| syntax.names.contains(&name))
    }

    /// The names under which they can be asked for, each with its other names.
    pub fn all_names() -> impl Iterator<Item = &'static [&'static str]> {
        ALL.iter().map(|syntax| syntax.names)
    }

    /// The syntax that a template's text shows.
    pub(super) fn in_template(source: &str) -> Option<&'static Self> {
        ALL.iter().find(|syntax| match syntax.in_template {
            [] => source.contains(syntax.close),
            marks => marks.iter().all(|mark| source.contains(mark)),
        })
    }

    pub(super) fn marks(&'static self) -> impl Iterator<Item = &'static str> {
        let around = self.around_said.into_iter().flat_map(|(open, close)| [open, close]);
        [self.open, self.close].into_iter().chain(around).chain(self.in_template.iter().copied())
    }

    /// What a prompt says of it that ends where the answer begins. Messages of channels say themselves what they
    /// are: whatever comes before the last one is not yet what is said.
    pub fn behind(&self, prompt: &str) -> PromptThinking {
        let prompt = prompt.trim_end();
        if self.is_of_channels() {
            PromptThinking::Open
        } else if prompt.ends_with(self.close) {
            PromptThinking::Closed
        } else if prompt.ends_with(self.open) {
            PromptThinking::Open
        } else {
            PromptThinking::Unsaid
        }
    }

    /// The same of a prompt that ends within a message's text.
    pub fn within(&self, text: &str) -> PromptThinking {
        match text.rfind(self.open) {
            Some(open) if !text[open..].contains(self.close) => PromptThinking::Open,
            _ => PromptThinking::Closed,
        }
    }

    /// Whether thinking and answer are messages of their own.
    pub(super) fn is_of_channels(&self) -> bool {
        self.close.ends_with(channels::MESSAGE)
    }

    /// Parts thinking from what is said: it stands at the beginning of an answer, and where it is not closed
    /// nothing has been said yet.
    pub(super) fn split<'a>(&self, text: &'a str, begins_thinking: bool) -> Split<'a> {
        let lead = text.len() - text.trim_start().len();
        let start = match text[lead..].starts_with(self.open) {
            true => lead + self.open.len(),
            false if begins_thinking => 0,
            false => return Split { thinking: "", said: self.unwrapped(text), num_bytes: 0 },
        };
        let (thinking, said, num_bytes) = match text[start..].find(self.close) {
            Some(length) => {
                let end = start + length + self.close.len();
                (&text[start..start + length], text[end..].trim_start(), end)
            }
            None => (&text[start..], "", text.len()),
        };
        Split { thinking: thinking.trim(), said: self.unwrapped(said), num_bytes }
    }

    fn unwrapped<'a>(&self, said: &'a str) -> &'a str {
        let Some((open, close)) = self.around_said else { return said };
        let Some(inner) = said.trim_start().strip_prefix(open) else { return said };
        let inner = inner.trim_start_matches('\n');
        inner.trim_end().strip_suffix(close).map_or(inner, |inner| inner.trim_end_matches('\n'))
    }
}
