//! The conversation of a request: its messages, and how its template is to render them.
//!
//! Owns checking them, one shape for content, which is text, and where answers are to be filled in. What a
//! template wants beyond that, such as tool arguments as objects or as text, is found out where it is rendered.

use serde_json::{Map, Value};

use super::super::line_error::RequestError;
use super::fields::{Fields, expected};
use super::known_fields;
use super::tools::Tools;
use super::{Conversation, LaterTurn, PromptEnding};
use crate::json::{self, Parsed};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Fields of an assistant message that may stand in for its content.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// A message of a conversation, checked.
enum Checked {
    Message(Value),
    /// An assistant's message without content: the answer is to be generated.
    Gap(Map<String, Value>),
}

/// Takes a conversation of these messages, each with its place in the line, with its tools and template
/// variables.
pub(super) fn take_chat(
    fields: &mut Fields,
    written: Vec<(String, Value)>,
    tools: Tools,
) -> Result<Conversation, RequestError> {
    let (messages, later, ends_with_gap) = parted(written)?;
    let last = later.last().map_or(&messages, |turn| &turn.messages);
    let ending = take_ending(fields, last.last().filter(|_| !ends_with_gap))?;
    if ending == PromptEnding::LastMessage && !later.is_empty() {
        let reason = "without the header of the assistant's message there is no place for the answers of \
                      several turns; leave it out";
        return Err(RequestError::unsupported("add_generation_prompt", reason));
    }
    let template = fields.take_string("chat_template")?.filter(|template| !template.is_empty());
    let template_kwargs = take_template_kwargs(fields, &tools)?;
    let Tools { shown, expected_calls, .. } = tools;
    Ok(Conversation { messages, later, tools: shown, expected_calls, template_kwargs, template, ending })
}

/// Checks messages and parts them where answers are to be generated. A last message without content asks for
/// what a conversation without it asks for; whether there is one is told, too.
fn parted(written: Vec<(String, Value)>) -> Result<(Vec<Value>, Vec<LaterTurn>, bool), RequestError> {
    let mut messages = Vec::new();
    let mut later: Vec<LaterTurn> = Vec::new();
    for (param, message) in written {
        let open = later.last_mut().map_or(&mut messages, |turn| &mut turn.messages);
        match check_message(message, &param)? {
            Checked::Message(message) => open.push(message),
            Checked::Gap(_) if open.is_empty() => {
                let reason = "an answer to be generated needs a message before it that it answers";
                return Err(RequestError::missing(&format!("{param}.content"), reason));
            }
            Checked::Gap(gap) => later.push(LaterTurn { gap, messages: Vec::new() }),
        }
    }
    let ends_with_gap = later.pop_if(|turn| turn.messages.is_empty()).is_some();
    Ok((messages, later, ends_with_gap))
}

/// Takes the variables of the template, under their own names or within `chat_template_kwargs`, which wins.
fn take_template_kwargs(fields: &mut Fields, tools: &Tools) -> Result<Map<String, Value>, RequestError> {
    let mut template_kwargs = fields.take_object("chat_template_kwargs")?.unwrap_or_default();
    known_fields::check_kwargs(&mut template_kwargs)?;
    let effort = fields.take_string("reasoning_effort")?.map(Value::String);
    let thinking = fields.take_bool("enable_thinking")?.map(Value::Bool);
    // Without tools there is no call, and models call several at once unless they are told not to.
    let parallel = (tools.shown.is_some() && !tools.may_call_several).then_some(false);
    for (name, value) in [
        ("reasoning_effort", effort),
        ("enable_thinking", thinking),
        ("parallel_tool_calls", parallel.map(Value::Bool)),
    ] {
        if let Some(value) = value {
            template_kwargs.entry(name).or_insert(value);
        }
    }
    Ok(template_kwargs)
}

/// Takes where the prompt ends, the last turn's if there are several; `last` is the message it ends with, if
/// that has content.
fn take_ending(fields: &mut Fields, last: Option<&Value>) -> Result<PromptEnding, RequestError> {
    let adds_header = fields.take_bool("add_generation_prompt")?;
    if !fields.take_bool("continue_final_message")?.unwrap_or(false) {
        return Ok(match adds_header {
            Some(false) => PromptEnding::LastMessage,
            Some(true) | None => PromptEnding::NewTurn,
        });
    }
    let refused = |reason: &str| Err(RequestError::invalid("continue_final_message", reason));
    if adds_header == Some(true) {
        return refused(
            "a new turn (`add_generation_prompt`) cannot go on with the final message; give one of them",
        );
    }
    let content = last.and_then(|message| message.get("content")).and_then(Value::as_str);
    if content.is_none_or(|content| content.trim().is_empty()) {
        return refused("the final message has no text to go on with");
    }
    Ok(PromptEnding::WithinLastMessage)
}

fn check_message(message: Value, param: &str) -> Result<Checked, RequestError> {
    let mut message = match message {
        Value::Object(message) => message,
        other => return Err(expected("an object", param, &other)),
    };
    let role = check_role(&message, param)?;
    known_fields::check_message(&mut message, param)?;
    let content = match message.swap_remove("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => Some(join_parts(parts, &role, param)?),
        None | Some(Value::Null) => None,
        Some(other) => {
            return Err(expected("a string or a list of text parts", &format!("{param}.content"), &other));
        }
    };
    let content = match (content, take_refusal(&mut message, &role, param)?) {
        (content, None) => content,
        (content, Some(refusal)) => Some(content.unwrap_or_default() + &refusal),
    };
    check_tool_calls(&mut message, param)?;
    match content {
        Some(text) => drop(message.insert("content".into(), Value::String(text))),
        // How a call without text is given is told from the template.
        None if role == "assistant" && has_calls(&message) => {}
        None if role == "assistant" && has_reasoning(&message) => {
            message.insert("content".into(), Value::String(String::new()));
        }
        None if role == "assistant" => {
            message.shift_remove("tool_calls");
            return Ok(Checked::Gap(message));
        }
        None => {
            let reason = format!("the {role} message has no content");
            return Err(RequestError::missing(&format!("{param}.content"), reason));
        }
    }
    Ok(Checked::Message(Value::Object(message)))
}

/// A model that declined said so: what it said is its answer's text.
fn take_refusal(
    message: &mut Map<String, Value>,
    role: &str,
    param: &str,
) -> Result<Option<String>, RequestError> {
    let param = format!("{param}.refusal");
    match message.shift_remove("refusal") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if role == "assistant" => Ok(Some(text)),
        Some(Value::String(_)) => Err(RequestError::unsupported(&param, "only an assistant can decline")),
        Some(other) => Err(expected("a string", &param, &other)),
    }
}

fn check_role(message: &Map<String, Value>, param: &str) -> Result<String, RequestError> {
    let param = format!("{param}.role");
    match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => Ok(role.clone()),
        Some(Value::String(role)) if role == "function" => {
            let reason = "the deprecated role \"function\" is not served; use \"tool\"";
            Err(RequestError::unsupported(&param, reason))
        }
        Some(Value::String(role)) => {
            let reason = format!("{role:?} is not a role; use one of {}", ROLES.join(", "));
            Err(RequestError::invalid(&param, reason))
        }
        Some(Value::Null) | None => {
            Err(RequestError::missing(&param, format!("use one of {}", ROLES.join(", "))))
        }
        Some(other) => Err(expected("a string", &param, other)),
    }
}

fn has_calls(message: &Map<String, Value>) -> bool {
    message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
}

fn has_reasoning(message: &Map<String, Value>) -> bool {
    REASONING_FIELDS.iter().any(|name| message.get(*name).is_some_and(Value::is_string))
}

fn join_parts(parts: Vec<Value>, role: &str, param: &str) -> Result<String, RequestError> {
    let mut text = String::new();
    for (position, part) in parts.into_iter().enumerate() {
        let param = format!("{param}.content[{position}]");
        match part {
            Value::String(piece) => text.push_str(&piece),
            Value::Object(part) => {
                let name = match part.get("type").and_then(Value::as_str) {
                    Some("text") => "text",
                    Some("refusal") if role == "assistant" => "refusal",
                    Some(kind) => {
                        let reason = format!("a part of type {kind:?} cannot be read; only text can");
                        return Err(RequestError::unsupported(&param, reason));
                    }
                    None => return Err(RequestError::missing(&format!("{param}.type"), "use \"text\"")),
                };
                let param = format!("{param}.{name}");
                match part.get(name) {
                    Some(Value::String(piece)) => text.push_str(piece),
                    Some(other) => return Err(expected("a string", &param, other)),
                    None => return Err(RequestError::missing(&param, format!("a {name} part needs it"))),
                }
            }
            other => return Err(expected("a text part", &param, &other)),
        }
    }
    Ok(text)
}

/// Checks that calls have names, and arguments that are objects or the text of one.
fn check_tool_calls(message: &mut Map<String, Value>, param: &str) -> Result<(), RequestError> {
    let calls = match message.get_mut("tool_calls") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(expected("a list", &format!("{param}.tool_calls"), other)),
    };
    for (position, call) in calls.iter_mut().enumerate() {
        let mut param = format!("{param}.tool_calls[{position}]");
        if !call.is_object() {
            return Err(expected("an object", &param, call));
        }
        let has_function = call.get("function").is_some();
        let function = if has_function { &mut call["function"] } else { call };
        if has_function {
            param.push_str(".function");
        }
        let Value::Object(function) = function else { return Err(expected("an object", &param, function)) };
        match function.get("name") {
            Some(Value::String(name)) if !name.is_empty() => {}
            None | Some(Value::Null | Value::String(_)) => {
                return Err(RequestError::missing(
                    &format!("{param}.name"),
                    "a call needs the function's name",
                ));
            }
            Some(other) => return Err(expected("a string", &format!("{param}.name"), other)),
        }
        check_arguments(function, &format!("{param}.arguments"))?;
    }
    Ok(())
}

fn check_arguments(function: &mut Map<String, Value>, param: &str) -> Result<(), RequestError> {
    match function.get_mut("arguments") {
        None | Some(Value::Object(_)) => {}
        Some(arguments @ Value::Null) => *arguments = Value::Object(Map::new()),
        Some(Value::String(text)) if text.trim().is_empty() => {}
        Some(Value::String(text)) => match json::parse(text) {
            Ok(Parsed { value: Value::Object(_), mended }) => {
                *text = mended.unwrap_or_else(|| std::mem::take(text))
            }
            Ok(Parsed { value, .. }) => return Err(expected("a JSON object", param, &value)),
            Err(error) => return Err(RequestError::invalid(param, format!("is not valid JSON: {error}"))),
        },
        Some(other) => return Err(expected("an object or the text of one", param, other)),
    }
    Ok(())
}
