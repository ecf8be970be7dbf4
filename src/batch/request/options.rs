//! How many answers a request wants, where they end and what is told of them.
//!
//! Owns their names, types and ranges. They are a request's own: no flag and no model file has a say in
//! them. What steers the choice of tokens and has defaults is in `params`.

use serde_json::Value;

use super::super::line_error::RequestError;
use super::fields::{Fields, expected};
use super::prompts::token_ids;
use super::{Form, RequestParams};

/// Most answers to one prompt, as in OpenAI's API.
const MAX_N: i128 = 128;

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
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self { num_choices: 1, stop_token_ids: Vec::new(), includes_stop: false, shows_special_tokens: false }
    }
}

impl AnswerOptions {
    pub(super) fn take(fields: &mut Fields, _form: Form) -> Result<Self, RequestError> {
        let num_choices = fields.take_integer("n", 1..=MAX_N)?.and_then(|n| usize::try_from(n).ok());
        Ok(Self {
            num_choices: num_choices.unwrap_or(1),
            stop_token_ids: take_token_ids(fields, "stop_token_ids")?,
            includes_stop: fields.take_bool("include_stop_str_in_output")?.unwrap_or(false),
            shows_special_tokens: !fields.take_bool("skip_special_tokens")?.unwrap_or(true),
        })
    }

    /// Checks what cannot be told from one field alone.
    pub(super) fn check(&self, _params: &RequestParams) -> Result<(), RequestError> {
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
