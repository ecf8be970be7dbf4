//! The prompt of a request: its messages and tools, or its text.
//!
//! Owns checking them and bringing them into the one shape that chat templates expect: string
//! content, tool arguments as objects. Rendering is the template's business.

use serde_json::{Map, Value};

use super::super::line_error::RequestError;
use super::Prompt;
use super::fields::{Fields, expected};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Fields of an assistant message that may stand in for its content.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "reasoning", "thinking"];

/// Takes a conversation with its tools and template variables.
pub(super) fn take_chat(fields: &mut Fields) -> Result<Prompt, RequestError> {
    let messages = match fields.take("messages") {
        Some(Value::Array(messages)) => messages,
        Some(other) => return Err(expected("a list", "messages", &other)),
        None => return Err(RequestError::missing("messages", "a chat request needs a list of messages")),
    };
    if messages.is_empty() {
        return Err(RequestError::invalid("messages", "must hold at least one message"));
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(position, message)| check_message(message, &format!("messages[{position}]")))
        .collect::<Result<Vec<_>, _>>()?;

    let mut template_kwargs = fields.take_object("chat_template_kwargs")?.unwrap_or_default();
    if let Some(effort) = fields.take_string("reasoning_effort")? {
        template_kwargs.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(Prompt::Chat { messages, tools: take_tools(fields)?, template_kwargs })
}

/// Takes the text of a raw completion.
pub(super) fn take_text(fields: &mut Fields) -> Result<String, RequestError> {
    let text = match fields.take("prompt") {
        Some(Value::String(text)) => text,
        Some(Value::Array(mut texts)) if texts.len() == 1 => match texts.pop() {
            Some(Value::String(text)) => text,
            _ => return Err(RequestError::unsupported("prompt", "must be text, not token ids")),
        },
        Some(Value::Array(_)) => {
            let reason = "must be one string: one prompt per line, no lists and no token ids";
            return Err(RequestError::unsupported("prompt", reason));
        }
        Some(other) => return Err(expected("a string", "prompt", &other)),
        None => return Err(RequestError::missing("prompt", "a completion request needs a text")),
    };
    if text.is_empty() {
        return Err(RequestError::invalid("prompt", "must not be empty"));
    }
    Ok(text)
}

fn take_tools(fields: &mut Fields) -> Result<Option<Value>, RequestError> {
    // A model that is not shown the tools cannot call them: that is what "none" asks for.
    let is_hidden = fields.take("tool_choice").is_some_and(|choice| choice == "none");
    let tools = match fields.take("tools") {
        None => return Ok(None),
        Some(Value::Array(tools)) => tools,
        Some(other) => return Err(expected("a list", "tools", &other)),
    };
    if let Some((position, tool)) = tools.iter().enumerate().find(|(_, tool)| !tool.is_object()) {
        return Err(expected("an object", &format!("tools[{position}]"), tool));
    }
    Ok((!tools.is_empty() && !is_hidden).then_some(Value::Array(tools)))
}

fn check_message(message: Value, param: &str) -> Result<Value, RequestError> {
    let mut message = match message {
        Value::Object(message) => message,
        other => return Err(expected("an object", param, &other)),
    };
    let role = check_role(&message, param)?;
    let content = match message.swap_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_parts(parts, param)?,
        None | Some(Value::Null) => {
            if role != "assistant" || !stands_without_content(&message) {
                let reason = format!("the {role} message has no content");
                return Err(RequestError::missing(&format!("{param}.content"), reason));
            }
            String::new()
        }
        Some(other) => {
            return Err(expected("a string or a list of text parts", &format!("{param}.content"), &other));
        }
    };
    message.insert("content".into(), Value::String(content));
    if message.get("function_call").is_some_and(|call| !call.is_null()) {
        let reason = "the deprecated function-calling fields are not served; use `tool_calls`";
        return Err(RequestError::unsupported(&format!("{param}.function_call"), reason));
    }
    parse_tool_arguments(&mut message, param)?;
    Ok(Value::Object(message))
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

/// An assistant turn may consist of tool calls or reasoning alone.
fn stands_without_content(message: &Map<String, Value>) -> bool {
    let has_calls =
        message.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty());
    has_calls || REASONING_FIELDS.iter().any(|name| message.get(*name).is_some_and(Value::is_string))
}

fn join_parts(parts: Vec<Value>, param: &str) -> Result<String, RequestError> {
    let mut text = String::new();
    for (position, part) in parts.into_iter().enumerate() {
        let param = format!("{param}.content[{position}]");
        match part {
            Value::String(piece) => text.push_str(&piece),
            Value::Object(part) => match part.get("type").and_then(Value::as_str) {
                Some("text") => match part.get("text") {
                    Some(Value::String(piece)) => text.push_str(piece),
                    Some(other) => return Err(expected("a string", &format!("{param}.text"), other)),
                    None => {
                        return Err(RequestError::missing(&format!("{param}.text"), "a text part needs it"));
                    }
                },
                Some(kind) => {
                    let reason = format!("a part of type {kind:?} cannot be read; only text can");
                    return Err(RequestError::unsupported(&param, reason));
                }
                None => return Err(RequestError::missing(&format!("{param}.type"), "use \"text\"")),
            },
            other => return Err(expected("a text part", &param, &other)),
        }
    }
    Ok(text)
}

/// Turns `arguments` written as JSON text, as the OpenAI API has it, into the object it means:
/// templates print it with `tojson`, which would quote the text once more.
fn parse_tool_arguments(message: &mut Map<String, Value>, param: &str) -> Result<(), RequestError> {
    let calls = match message.get_mut("tool_calls") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(expected("a list", &format!("{param}.tool_calls"), other)),
    };
    for (position, call) in calls.iter_mut().enumerate() {
        let param = format!("{param}.tool_calls[{position}]");
        if !call.is_object() {
            return Err(expected("an object", &param, call));
        }
        let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
        else {
            continue;
        };
        if let Value::String(text) = arguments {
            *arguments = match serde_json::from_str::<Value>(text) {
                Ok(object @ Value::Object(_)) => object,
                Ok(_) | Err(_) if text.trim().is_empty() => Value::Object(Map::new()),
                Ok(other) => {
                    return Err(expected("a JSON object", &format!("{param}.function.arguments"), &other));
                }
                Err(error) => {
                    let reason = format!("is not valid JSON: {error}");
                    return Err(RequestError::invalid(&format!("{param}.function.arguments"), reason));
                }
            };
        }
    }
    Ok(())
}
