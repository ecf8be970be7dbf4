//! How many answers a request wants, which tokens they may have, where they end and what is told of them.
//!
//! Owns their names, types and ranges. They are a request's own: no flag and no model file has a say in
//! them. What steers the choice of tokens and has defaults is in `params`.

use serde_json::Value;

use super::super::line_error::RequestError;
use super::constraints::{self, AnswerConstraint};
use super::fields::{Fields, expected};
use super::prompts::token_ids;
use super::{Form, MAX_CHOICES, RequestParams};
use crate::text::ShownThinking;

/// Most answers to one prompt, as in OpenAI's API.
const MAX_N: i128 = 128;

/// Most tokens that are told of at one place, as in OpenAI's API.
const MAX_TOP: i128 = 20;

/// Furthest that a logit is moved, as in OpenAI's API.
const MAX_BIAS: f64 = 100.0;

/// What a request says of its answers.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerOptions {
    /// Answers to each prompt, at least one.
    pub num_choices: usize,
    /// Tokens that end an answer beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether what ended an answer, a stop string or a stop token, is part of its text.
    pub includes_stop: bool,
    /// Whether special tokens show in its text.
    pub shows_special_tokens: bool,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that no answer has.
    pub bad_words: Vec<String>,
    /// What the answer has to be.
    pub constraint: Option<AnswerConstraint>,
    /// How many of the most probable tokens are told with the log-probability of each token of the text.
    pub logprobs: Option<u32>,
    /// The same for each token of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// The first of the prompt's tokens whose log-probability is told.
    pub logprob_start: usize,
    /// Whether a choice's text begins with the prompt.
    pub echo: bool,
    /// What becomes of thinking.
    pub shown_thinking: ShownThinking,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            num_choices: 1,
            stop_token_ids: Vec::new(),
            includes_stop: false,
            shows_special_tokens: false,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            logprob_start: 0,
            echo: false,
            shown_thinking: ShownThinking::default(),
        }
    }
}

impl AnswerOptions {
    pub(super) fn take(fields: &mut Fields, form: Form) -> Result<Self, RequestError> {
        let num_choices = fields.take_integer("n", 1..=MAX_N)?.and_then(|n| usize::try_from(n).ok());
        let echo = fields.take_bool("echo")?.unwrap_or(false);
        if echo && form == Form::Chat {
            let reason = "only a text is repeated in front of its answer; leave it out";
            return Err(RequestError::unsupported("echo", reason));
        }
        Ok(Self {
            num_choices: num_choices.unwrap_or(1),
            stop_token_ids: take_token_ids(fields, "stop_token_ids")?,
            includes_stop: fields.take_bool("include_stop_str_in_output")?.unwrap_or(false),
            shows_special_tokens: !fields.take_bool("skip_special_tokens")?.unwrap_or(true),
            logit_bias: take_logit_bias(fields)?,
            bad_words: take_bad_words(fields)?,
            constraint: constraints::take(fields)?,
            logprobs: match form {
                Form::Chat => take_chat_logprobs(fields)?,
                Form::Text => take_logprobs(fields)?,
            },
            prompt_logprobs: take_top(fields, "prompt_logprobs")?,
            logprob_start: take_logprob_start(fields)?,
            echo,
            shown_thinking: take_shown_thinking(fields)?,
        })
    }

    /// Whether the prompt's tokens are told of.
    pub fn tells_prompt_logprobs(&self) -> bool {
        self.prompt_logprobs.is_some() || (self.echo && self.logprobs.is_some())
    }

    /// Holds the answer to one more constraint.
    pub(super) fn constrain(&mut self, constraint: Option<AnswerConstraint>) -> Result<(), RequestError> {
        match (&self.constraint, constraint) {
            (_, None) => Ok(()),
            (None, constraint) => {
                self.constraint = constraint;
                Ok(())
            }
            (Some(first), Some(second)) => {
                let reason = format!(
                    "calls of tools are not what `{}` wants of the answer; give one of them",
                    first.param
                );
                Err(RequestError::invalid(&second.param, reason))
            }
        }
    }

    /// Checks what cannot be told from one field alone.
    pub(super) fn check(&self, params: &RequestParams) -> Result<(), RequestError> {
        let max_tokens = params.max_tokens;
        if max_tokens == Some(0) && !self.echo && self.prompt_logprobs.is_none() {
            let reason = "must be 1 or more; 0 asks for nothing but `echo` or `prompt_logprobs`";
            return Err(RequestError::invalid("max_tokens", reason));
        }
        if let (Some(least), Some(most)) = (params.min_tokens, max_tokens)
            && least > most
        {
            let reason = format!("must be from 0 to max_tokens, which is {most}, not {least}");
            return Err(RequestError::invalid("min_tokens", reason));
        }
        Ok(())
    }

    /// Checks what is told of a conversation of so many turns to be generated.
    pub(super) fn check_turns(&self, num_turns: usize) -> Result<(), RequestError> {
        if num_turns > MAX_CHOICES {
            let reason = format!("has {num_turns} turns to be generated; one line may have {MAX_CHOICES}");
            return Err(RequestError::invalid("messages", reason));
        }
        if num_turns > 1 && self.prompt_logprobs.is_some() {
            let reason = "is not told of a conversation with several turns to be generated; give each turn a \
                          line of its own";
            return Err(RequestError::unsupported("prompt_logprobs", reason));
        }
        Ok(())
    }
}

fn take_token_ids(fields: &mut Fields, name: &str) -> Result<Vec<u32>, RequestError> {
    match fields.take(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => token_ids(name, &ids),
        Some(other) => Err(expected("a list of token ids", name, &other)),
    }
}

fn take_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, RequestError> {
    let biases = fields.take_object("logit_bias")?.unwrap_or_default();
    let bias = |(id, bias): (String, Value)| {
        let param = format!("logit_bias.{id}");
        let id = id.parse().map_err(|_| RequestError::invalid(&param, "must be named by a token id"))?;
        match bias.as_f64() {
            Some(bias) if bias.abs() <= MAX_BIAS => Ok((id, bias as f32)),
            Some(_) => {
                let reason = format!("must be from {} to {MAX_BIAS}, not {bias}", -MAX_BIAS);
                Err(RequestError::invalid(&param, reason))
            }
            None => Err(expected("a number", &param, &bias)),
        }
    };
    biases.into_iter().map(bias).collect()
}

fn take_bad_words(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let words = match fields.take("bad_words") {
        None => return Ok(Vec::new()),
        Some(Value::Array(words)) => words,
        Some(other) => return Err(expected("a list of strings", "bad_words", &other)),
    };
    let word = |(position, word): (usize, Value)| {
        let param = format!("bad_words[{position}]");
        match word {
            Value::String(word) if word.trim().is_empty() => {
                Err(RequestError::invalid(&param, "must not be empty: no answer could be given"))
            }
            Value::String(word) => Ok(word),
            other => Err(expected("a string", &param, &other)),
        }
    };
    words.into_iter().enumerate().map(word).collect()
}

/// A conversation says whether, and how many, in two fields.
fn take_chat_logprobs(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    // What some clients write for "no".
    if fields.get("logprobs").is_some_and(|value| value.as_u64() == Some(0)) {
        fields.take("logprobs");
    }
    let wants = fields.take_bool("logprobs")?.unwrap_or(false);
    let top = take_top(fields, "top_logprobs")?.unwrap_or(0);
    if top > 0 && !wants {
        let reason = "tells nothing unless `logprobs` is true";
        return Err(RequestError::invalid("top_logprobs", reason));
    }
    Ok(wants.then_some(top))
}

/// A raw completion says how many, which may be none.
fn take_logprobs(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let top = fields.take_integer("top_logprobs", 0..=MAX_TOP)?;
    if top.is_some_and(|top| top > 0) {
        let reason = "is a conversation's; a completion says their number in `logprobs`";
        return Err(RequestError::unsupported("top_logprobs", reason));
    }
    take_top(fields, "logprobs")
}

/// A number of tokens; `false` is none.
fn take_top(fields: &mut Fields, name: &str) -> Result<Option<u32>, RequestError> {
    if fields.get(name) == Some(&Value::Bool(false)) {
        fields.take(name);
    }
    Ok(fields.take_integer(name, 0..=MAX_TOP)?.and_then(|top| u32::try_from(top).ok()))
}

/// Takes what becomes of thinking, in the words of SGLang, llama.cpp and vLLM; leaving it out wins.
fn take_shown_thinking(fields: &mut Fields) -> Result<ShownThinking, RequestError> {
    let is_apart = fields.take_bool("separate_reasoning")?;
    let is_told = fields.take_bool("include_reasoning")?.unwrap_or(true);
    let format = match fields.take_string("reasoning_format")?.as_deref() {
        None => None,
        Some("auto" | "deepseek" | "parsed") => Some(ShownThinking::Apart),
        Some("none" | "raw") => Some(ShownThinking::Within),
        Some("hidden") => Some(ShownThinking::LeftOut),
        Some(other) => {
            let reason = format!(
                "must be \"auto\", \"deepseek\" or \"parsed\", \"none\" or \"raw\", or \"hidden\", not {other:?}"
            );
            return Err(RequestError::invalid("reasoning_format", reason));
        }
    };
    let separated =
        is_apart.map(|is_apart| if is_apart { ShownThinking::Apart } else { ShownThinking::Within });
    match (is_told, format, separated) {
        (false, ..) => Ok(ShownThinking::LeftOut),
        (true, Some(format), Some(separated)) if format != separated => {
            let reason = "differs from `reasoning_format`; give one of them";
            Err(RequestError::invalid("separate_reasoning", reason))
        }
        (true, format, separated) => Ok(format.or(separated).unwrap_or_default()),
    }
}

fn take_logprob_start(fields: &mut Fields) -> Result<usize, RequestError> {
    // SGLang writes "none of the prompt's" as -1, which is what is told unless it is asked for.
    let start = fields.take_integer("logprob_start_len", -1..=i128::from(u32::MAX))?;
    Ok(start.and_then(|start| usize::try_from(start).ok()).unwrap_or(0))
}
