//! The tiered spans of a chat prompt: where its system part, its messages and the answer's header
//! end.
//!
//! Owns the choice of boundaries and their tiers. Knows of templates only what rendering shows:
//! whatever a template does with headers, tools or earlier turns, a boundary is where the prompt
//! stops agreeing with the same conversation continued otherwise. What is stored at a boundary
//! is the engine's business, rendering and tokens are the other modules'.
//!
//! | span                               | tier      | why                                            |
//! |------------------------------------|-----------|------------------------------------------------|
//! | up to the first user's own text    | system    | the same for every conversation of its kind    |
//! | messages up to the last user's     | user      | part of every continuation of the conversation |
//! | messages after it, answer's header | assistant | templates rewrite these once a user replies    |
//!
//! Few-shot answers are thus tier user: they are input, and no template rewrites them again.
//! A long conversation does not get a boundary after each message, as each costs a rendering and
//! cuts prefill: the system part, the last user message, the last two messages, and messages 1,
//! 2, 4, 8 … counted from the front, so that conversations which share a beginning share the
//! boundaries in it.

mod partial;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::tokenizer::ByteRange;
use super::{ChatTemplate, RenderRequest};
use crate::cache::Tier;
pub(super) use partial::PartialRenders;

/// A tiered piece of a prompt; it begins where the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// Tokens of the prompt before its end.
    pub end: usize,
    pub tier: Tier,
}

impl Span {
    /// Returns the spans of a raw prompt, which has no parts that could be told apart.
    pub fn of_raw_prompt(num_tokens: usize) -> Vec<Span> {
        vec![Span { end: num_tokens, tier: Tier::User }]
    }
}

/// Returns where the system part ends, if the prompt has one and goes on behind it.
pub fn system_end(spans: &[Span]) -> Option<usize> {
    let end = spans.iter().rev().find(|span| span.tier == Tier::System)?.end;
    spans.last().filter(|last| last.end > end).map(|_| end)
}

/// User messages that have not even their first letter in common.
const PROBES: [&str; 2] = ["Xylophone", "Quartz"];

/// A boundary in the rendered text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TextBoundary {
    pub end: usize,
    pub tier: Tier,
}

/// Finds the boundaries within `full`, the rendered prompt of `request`; ascending, each tier
/// below the next, the end of the prompt excluded.
///
/// A template that refuses a part of the conversation has no boundary there, which is no error.
pub(super) fn text_boundaries(
    template: &ChatTemplate,
    renders: &PartialRenders,
    request: &RenderRequest,
    full: &str,
) -> Vec<TextBoundary> {
    let messages = request.messages;
    let num_system = messages.iter().take_while(|message| is_system(message)).count();
    let num_user = messages.iter().rposition(|message| role(message) == "user").map_or(0, |at| at + 1);
    let keys = partial::Keys::new(request);

    let mut boundaries = Vec::new();
    let mut add = |end: usize, tier: Tier| {
        if end > boundaries.last().map_or(0, |last: &TextBoundary| last.end) && end < full.len() {
            boundaries.push(TextBoundary { end, tier });
        }
    };
    let system_end = renders
        .get_or_render(keys.of_probe(num_system), || shared_by_all(template, request, num_system))
        .map_or(0, |shared| common_prefix(&shared, full));
    add(system_end, Tier::System);
    for num_messages in chosen(messages.len(), num_system, num_user) {
        let partial = renders.get_or_render(keys.of_messages(num_messages), || {
            let messages = messages.get(..num_messages)?;
            template.render(&RenderRequest { messages, add_generation_prompt: false, ..*request }).ok()
        });
        let Some(partial) = partial else { continue };
        let end = common_prefix(&partial, full);
        if partial.len() - end <= MAX_ENDING_BYTES {
            add(end, if num_messages <= num_user { Tier::User } else { Tier::Assistant });
        }
    }
    boundaries
}

/// A message that ends the conversation may end in a way of its own, such as gpt-oss's
/// `<|return|>`. One that differs by more is written in another way once messages follow it.
const MAX_ENDING_BYTES: usize = 32;

/// How many leading messages the boundaries are put after, ascending.
fn chosen(num_messages: usize, num_system: usize, num_user: usize) -> Vec<usize> {
    let doubling = std::iter::successors(Some(1usize), |num| num.checked_mul(2));
    let mut chosen: Vec<usize> = doubling.take_while(|num| *num < num_messages).collect();
    chosen.extend([num_user, num_messages.saturating_sub(1), num_messages]);
    // The system part has its own.
    chosen.retain(|num| *num > num_system);
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// What all conversations with these system messages, tools and variables begin with: two of them
/// are rendered that differ in the first user message.
fn shared_by_all(template: &ChatTemplate, request: &RenderRequest, num_system: usize) -> Option<String> {
    let system = request.messages.get(..num_system)?;
    let render = |probe: &str| {
        let messages = [system, &[json!({"role": "user", "content": probe})]].concat();
        template.render(&RenderRequest { messages: &messages, ..*request }).ok()
    };
    let [first, second] = PROBES.map(render);
    let (mut first, second) = (first?, second?);
    first.truncate(common_prefix(&first, &second));
    Some(first)
}

/// Whether an answer comes back word for word in the prompts that continue its conversation.
///
/// Templates that drop the thinking of earlier turns, or trim what a message says, change an
/// answer as soon as a user replies to it: a stored answer would never be hit.
pub(super) fn answer_recurs(template: &ChatTemplate, extra: &Map<String, Value>, answer: &str) -> bool {
    let [question, reply] = PROBES.map(|probe| json!({"role": "user", "content": probe}));
    let messages = [question, json!({"role": "assistant", "content": answer}), reply];
    let render = |messages: &[Value]| {
        template.render(&RenderRequest { messages, tools: None, add_generation_prompt: true, extra }).ok()
    };
    let (Some(prompt), Some(continued)) = (render(&messages[..1]), render(&messages)) else { return false };
    continued.strip_prefix(prompt.as_str()).is_some_and(|rest| rest.starts_with(answer.trim_end()))
}

/// What a template may see of an answer that has words and common punctuation alone: which space is around it. Nothing
/// of others, in which templates look for marks of thinking and of calls.
pub(super) fn plain_shape(answer: &str) -> Option<(&str, &str)> {
    let is_plain = |c: char| c.is_alphanumeric() || c.is_whitespace() || ".,;:!?'\"()-".contains(c);
    let start = answer.len() - answer.trim_start().len();
    let end = answer.trim_end().len();
    (end > start && answer.chars().all(is_plain)).then(|| (&answer[..start], &answer[end..]))
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

fn is_system(message: &Value) -> bool {
    matches!(role(message), "system" | "developer")
}

/// The length of the common prefix in bytes, always at a character's end.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let mut length = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    while !a.is_char_boundary(length) {
        length -= 1;
    }
    length
}

/// Brings boundaries from bytes of the text to tokens; a token that reaches over a boundary is
/// behind it. `ranges` are where the tokens come from in the text.
///
/// A token that takes in spaces on both sides of a boundary may be counted before it, where the
/// tokenizer leaves spaces out of the ranges; that moves the boundary by this one token.
pub(super) fn spans_of(boundaries: &[TextBoundary], ranges: &[ByteRange]) -> Vec<Span> {
    let num_tokens = ranges.len();
    let mut spans: Vec<Span> = Vec::new();
    let mut end = 0;
    for boundary in boundaries {
        while ranges.get(end).is_some_and(|range| range.1 <= boundary.end) {
            end += 1;
        }
        if end > spans.last().map_or(0, |last| last.end) && end < num_tokens {
            spans.push(Span { end, tier: boundary.tier });
        }
    }
    if num_tokens > 0 {
        let has_header = spans.last().is_some_and(|last| last.tier != Tier::System);
        spans.push(Span { end: num_tokens, tier: if has_header { Tier::Assistant } else { Tier::User } });
    }
    spans
}
