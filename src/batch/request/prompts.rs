//! The prompts of a raw completion: text or token ids, one of them or a list.
//!
//! Owns telling the four forms apart, which OpenAI's API has under one name: a text, a list of texts, a
//! list of token ids, which is one prompt, and a list of such lists.

use serde_json::Value;

use super::super::line_error::RequestError;
use super::Prompt;
use super::fields::{Fields, expected};

/// What conversations alone have, as clients write it for every request.
const NEUTRAL_OF_CHATS: [(&str, bool); 3] =
    [("add_generation_prompt", true), ("continue_final_message", false), ("parallel_tool_calls", true)];

/// Takes the prompts, at least one.
pub(super) fn take(fields: &mut Fields) -> Result<Vec<Prompt>, RequestError> {
    // Text has no tools to choose from.
    if fields.take("tool_choice").is_some_and(|choice| choice != "auto" && choice != "none") {
        let reason = "only a conversation's answer can be held to calls of tools; leave it out";
        return Err(RequestError::unsupported("tool_choice", reason));
    }
    fields.take("parse_tool_calls");
    for (name, neutral) in NEUTRAL_OF_CHATS {
        if fields.get(name).is_some_and(|value| *value == Value::Bool(neutral)) {
            fields.take(name);
        }
    }
    match fields.take("prompt") {
        None => Err(RequestError::missing("prompt", "a completion request needs a text")),
        Some(Value::String(text)) => Ok(vec![text_of("prompt", text)?]),
        Some(Value::Array(items)) if items.is_empty() => {
            Err(RequestError::invalid("prompt", "must not be empty"))
        }
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => {
            Ok(vec![tokens_of("prompt", &items)?])
        }
        Some(Value::Array(items)) => {
            let items = items.into_iter().enumerate();
            items.map(|(position, item)| item_of(&format!("prompt[{position}]"), item)).collect()
        }
        Some(other) => Err(expected("a string or a list", "prompt", &other)),
    }
}

fn item_of(param: &str, item: Value) -> Result<Prompt, RequestError> {
    match item {
        Value::String(text) => text_of(param, text),
        Value::Array(ids) => tokens_of(param, &ids),
        other => Err(expected("a string or a list of token ids", param, &other)),
    }
}

fn text_of(param: &str, text: String) -> Result<Prompt, RequestError> {
    match text.is_empty() {
        true => Err(RequestError::invalid(param, "must not be empty")),
        false => Ok(Prompt::Text(text)),
    }
}

fn tokens_of(param: &str, ids: &[Value]) -> Result<Prompt, RequestError> {
    if ids.is_empty() {
        return Err(RequestError::invalid(param, "must not be empty"));
    }
    token_ids(param, ids).map(Prompt::Tokens)
}

/// The token ids in a list.
pub(super) fn token_ids(param: &str, ids: &[Value]) -> Result<Vec<u32>, RequestError> {
    let id = |(position, id): (usize, &Value)| {
        id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            let param = format!("{param}[{position}]");
            match id.is_number() {
                true => RequestError::invalid(
                    &param,
                    format!("must be a token id from 0 to {}, not {id}", u32::MAX),
                ),
                false => expected("a token id", &param, id),
            }
        })
    };
    ids.iter().enumerate().map(id).collect()
}
