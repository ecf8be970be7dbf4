//! The forms in which a line writes its conversation: OpenAI's messages, MT-Bench's turns, ShareGPT's
//! conversations.
//!
//! Owns telling them apart and bringing them into OpenAI's form. Checking the messages is for `messages`.

use serde_json::{Value, json};

use super::super::line_error::RequestError;
use super::MAX_CHOICES;
use super::fields::{Fields, expected};

const MESSAGES: &str = "messages";
/// Questions, each of which is answered.
pub(super) const TURNS: &str = "turns";
const CONVERSATIONS: &str = "conversations";

/// What those who speak are called in conversations, and the role they have.
const SPEAKERS: &[(&str, &str)] = &[
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
];

/// What is said where the end of a conversation is no part of the prompt.
pub(super) const REFERENCE_LEFT_OUT: &str = "its conversation ends with a message of the model, which is taken for \
                                             a reference answer and left out of the prompt";

/// A conversation as OpenAI's messages.
pub(super) struct Written {
    /// With the place of each in the line, for what is wrong with it.
    pub messages: Vec<(String, Value)>,
    /// Whether a reference answer was left out.
    pub has_reference: bool,
}

/// The field that holds the conversation, if there is one. Data sets have columns of such names, too: a field that
/// is no list is one where another holds the conversation or the text.
pub(super) fn field_of(fields: &Fields) -> Result<Option<&'static str>, RequestError> {
    let is_list = |name: &&'static str| fields.get(name).is_some_and(Value::is_array);
    let is_given = |name: &&'static str| fields.get(name).is_some();
    let messages = Some(MESSAGES).filter(is_given);
    let mut given = messages.into_iter().chain([TURNS, CONVERSATIONS].into_iter().filter(is_list));
    match (given.next(), given.next()) {
        (Some(first), Some(second)) => {
            let reason = format!("give either `{first}` or `{second}`, not both");
            Err(RequestError::invalid(second, reason))
        }
        (first @ Some(_), None) => Ok(first),
        (None, _) if fields.get("prompt").is_some() => Ok(None),
        // Of another type than it has to be, as will be said.
        (None, _) => Ok([TURNS, CONVERSATIONS].into_iter().find(is_given)),
    }
}

/// Takes the conversation, whichever form it has.
pub(super) fn take(fields: &mut Fields) -> Result<Written, RequestError> {
    let Some(name) = field_of(fields)? else {
        return Err(RequestError::missing(MESSAGES, "a chat request needs a list of messages"));
    };
    let items = match fields.take(name) {
        Some(Value::Array(items)) if items.is_empty() => {
            return Err(RequestError::invalid(name, "must hold at least one message"));
        }
        Some(Value::Array(items)) => items,
        other => return Err(expected("a list", name, &other.unwrap_or_default())),
    };
    if name == TURNS && items.len() > MAX_CHOICES {
        let reason = format!("{} answers are asked for; one line may have {MAX_CHOICES}", items.len());
        return Err(RequestError::invalid(TURNS, reason));
    }
    let items = items.into_iter().enumerate().map(|(position, item)| (format!("{name}[{position}]"), item));
    let mut written = Written { messages: Vec::new(), has_reference: false };
    match name {
        MESSAGES => {
            written.messages = items.collect();
            return Ok(written);
        }
        TURNS => {
            for (param, item) in items {
                let Value::String(text) = item else { return Err(expected("a string", &param, &item)) };
                written.messages.push((param.clone(), json!({"role": "user", "content": text})));
                written.messages.push((param, json!({"role": "assistant"})));
            }
        }
        _ => {
            for (param, item) in items {
                let message = message_of(item, &param)?;
                written.messages.push((param, message));
            }
            let goes_on = fields.get("continue_final_message") == Some(&Value::Bool(true));
            let has_reference = |(_, message): &mut (String, Value)| !goes_on && is_answer(message);
            while written.messages.pop_if(has_reference).is_some() {
                written.has_reference = true;
            }
            if written.messages.is_empty() {
                return Err(RequestError::invalid(name, "holds nothing but answers"));
            }
        }
    }
    if let Some(system) = fields.take_string("system")?.filter(|system| !system.is_empty()) {
        if written.messages.iter().any(|(_, message)| message["role"] == "system") {
            return Err(RequestError::invalid("system", format!("`{name}` has a system message of its own")));
        }
        let message = json!({"role": "system", "content": system});
        written.messages.insert(0, ("system".to_owned(), message));
    }
    Ok(written)
}

/// A message of ShareGPT's as one of OpenAI's; those that are OpenAI's stay as they are.
fn message_of(item: Value, param: &str) -> Result<Value, RequestError> {
    let Value::Object(mut item) = item else { return Ok(item) };
    let from = match item.shift_remove("from") {
        Some(Value::String(from)) => from,
        None => return Ok(Value::Object(item)),
        Some(other) => return Err(expected("a string", &format!("{param}.from"), &other)),
    };
    let Some((_, role)) = SPEAKERS.iter().find(|(name, _)| from.eq_ignore_ascii_case(name)) else {
        let names: Vec<&str> = SPEAKERS.iter().map(|(name, _)| *name).collect();
        let reason = format!("{from:?} is nobody known; use one of {}", names.join(", "));
        return Err(RequestError::invalid(&format!("{param}.from"), reason));
    };
    item.insert("role".to_owned(), json!(role));
    let param = format!("{param}.value");
    match item.shift_remove("value") {
        Some(Value::String(text)) => drop(item.insert("content".to_owned(), Value::String(text))),
        None | Some(Value::Null) if *role == "assistant" => {}
        None | Some(Value::Null) => {
            return Err(RequestError::missing(&param, format!("what the {from} says is not there")));
        }
        Some(other) => return Err(expected("a string", &param, &other)),
    }
    Ok(Value::Object(item))
}

/// Whether a message is the model's, and not one to be generated.
fn is_answer(message: &Value) -> bool {
    let has_calls = message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty());
    message["role"] == "assistant" && (!message["content"].is_null() || has_calls)
}
