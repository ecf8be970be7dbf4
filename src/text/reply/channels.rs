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
        let (said, header) = parted(&rest[..header_length]);
        if !said.is_empty() {
            add(&mut draft.content, said);
        }
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
        let is_call = call.is_some();
        let call = call.and_then(|name| {
            let arguments = parts::arguments_of_json(body.trim())?;
            Some(DraftCall { id: None, name: parts::name(name)?.to_owned(), arguments })
        });
        match call {
            Some(call) => draft.calls.push(call),
            // All of what was written of it.
            None if is_call => add(&mut draft.content, &format!("{header}{MESSAGE}{body}")),
            None if is_thinking && parts_thinking => add(&mut draft.reasoning, body),
            None => add(&mut draft.content, body),
        }
    }
    // Text without a header; a header without a text says nothing.
    let (said, _) = parted(rest);
    if !said.is_empty() && draft.content.is_empty() {
        draft.content.push_str(said);
    } else if !said.trim().is_empty() {
        add(&mut draft.content, said);
    }
    draft
}

/// What is said in front of a header, and the header: its channel or its recipient, behind the role.
fn parted(text: &str) -> (&str, &str) {
    let unmarked = text.trim_start();
    let is_header = [START, CHANNEL, "to="].iter().any(|mark| unmarked.starts_with(mark));
    if is_header || unmarked.starts_with("assistant") && text.contains(CHANNEL) {
        return ("", text);
    }
    match [START, CHANNEL].iter().filter_map(|mark| text.find(mark)).min() {
        // A mark within a sentence begins no message where none follows.
        Some(at) if text[at..].contains(CHANNEL) => text.split_at(at),
        _ => (text, ""),
    }
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
