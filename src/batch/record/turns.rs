//! The turns of a conversation in its record.
//!
//! Owns what is told of each: its message and the fields of a choice, with the usage of its own.

use serde::Serialize;
use serde_json::Value;

use super::{Choice, FinishReason, Message, Served, StopReason, TokenCounts, Usage, logprobs};
use crate::batch::request::Form;

/// One turn that was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Without turns of its own.
    pub answer: Choice,
    /// Its prompt is all of the conversation before the answer, and what earlier turns left of it is cached.
    pub usage: TokenCounts,
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
        let Turn { answer, usage } = turn;
        let logprobs = answer.logprobs.as_deref();
        Self {
            message: Message::of(answer),
            logprobs: logprobs.map(|tokens| logprobs::logprobs(Form::Chat, &answer.text, tokens)),
            finish_reason: answer.finish_reason,
            stop_reason: answer.stop_reason.as_ref(),
            usage: Usage::new(usage, served),
        }
    }
}
