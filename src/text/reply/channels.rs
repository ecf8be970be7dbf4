//! OpenAI's harmony format: an answer of several messages, each in a channel.
//!
//! Owns taking them apart. Source: openai/harmony, docs/format.md.
//!
//! ```text
//!     <|channel|>analysis<|message|>thinking<|end|>
//!     <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>
//!     <|start|>assistant<|channel|>final<|message|>what is said<|return|>
//! ```

use super::{Draft, DraftCall, parts};

/// What parts a message's header from its text.
pub(super) const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const START: &str = "<|start|>";
const ENDS: [&str; 4] = ["<|end|>", "<|call|>", "<|return|>", START];
/// What recipients of calls are called before their name.
const FUNCTIONS: &str = "functions.";

/// Takes an answer apart; thinking and calls that are not looked for are part of what is said.
pub(super) fn read(text: &str, parts_thinking: bool, parts_calls: bool) -> Draft {
    let mut draft = Draft::default();
    let mut rest = text;
    while let Some(header_length) = rest.find(MESSAGE) {
        let header = &rest[..header_length];
        let body = &rest[header_length + MESSAGE.len()..];
        let length = ENDS.iter().filter_map(|end| body.find(end)).min().unwrap_or(body.len());
        let (body, behind) = body.split_at(length);
        let end = ENDS.iter().find(|end| **end != START && behind.starts_with(**end));
        rest = &behind[end.map_or(0, |end| end.len())..];
        let is_thinking = word_behind(header, CHANNEL) == Some("analysis");
        if is_thinking && parts_thinking {
            draft.num_thinking_bytes = text.len() - rest.len();
        }
        let recipient = word_behind(header, "to=");
        let call = recipient.and_then(|recipient| recipient.strip_prefix(FUNCTIONS)).filter(|_| parts_calls);
        let call = call.and_then(|name| {
            let arguments = parts::arguments_of_json(body.trim())?;
            Some(DraftCall { id: None, name: name.to_owned(), arguments })
        });
        match call {
            Some(call) => draft.calls.push(call),
            None if is_thinking && parts_thinking => add(&mut draft.reasoning, body),
            None => add(&mut draft.content, body),
        }
    }
    // Text without a header; a header without a text says nothing.
    if !rest.contains(CHANNEL) && !rest.contains(START) {
        draft.content.push_str(rest);
    }
    draft
}

fn add(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(more);
}

fn word_behind<'a>(header: &'a str, mark: &str) -> Option<&'a str> {
    let behind = &header[header.find(mark)? + mark.len()..];
    let length = behind.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(behind.len());
    Some(&behind[..length]).filter(|word| !word.is_empty())
}
