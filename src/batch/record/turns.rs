//! The turns of a conversation in its record.
//!
//! Owns what is told of each: its message and the fields of a choice, with the usage of its own.

use serde::Serialize;
use serde_json::Value;

use super::{Choice, FinishReason, Message, Served, StopReason, Usage, logprobs};
use crate::batch::request::Form;

/// One turn that was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Without turns of its own.
    pub answer: Choice,
    /// All of the conversation before the answer.
    pub num_prompt_tokens: u64,
    pub num_completion_tokens: u64,
    /// Prompt tokens whose KV was there, that of earlier turns included.
    pub num_cached_tokens: u64,
}

#[derive(Serialize)]
pub(super) struct TurnFields<'a> {
    message: Message<'a>,
    logprobs: Option<Value>,
    finish_reason: FinishReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a StopReason>,
    usage: Usage,
}

impl<'a> TurnFields<'a> {
    pub(super) fn new(turn: &'a Turn, served: &Served) -> Self {
        let Turn { answer, num_prompt_tokens, num_completion_tokens, num_cached_tokens } = turn;
        let logprobs = answer.logprobs.as_deref();
        Self {
            message: Message::of(answer),
            logprobs: logprobs.map(|tokens| logprobs::logprobs(Form::Chat, &answer.text, tokens)),
            finish_reason: answer.finish_reason,
            stop_reason: answer.stop_reason.as_ref(),
            usage: Usage::new(*num_prompt_tokens, *num_completion_tokens, *num_cached_tokens, served),
        }
    }
}
