//! What a template leaves out of a prompt although the request has it.
//!
//! Owns what is said about tools, template variables and fields of messages that a template does
//! not look at: they change nothing, which whoever wrote them does not expect. Calls and results
//! that do not show are errors, see `calls`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::RenderRequest;

/// Something to be said once for all lines that it is true of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The same for all of its kind.
    pub key: String,
    pub text: String,
}

impl Notice {
    pub(super) fn text_beside_a_call() -> Self {
        Self {
            key: "text beside a call".to_owned(),
            text:
                "messages: the model's chat template passes over what an assistant says beside its tool calls"
                    .to_owned(),
        }
    }
}

/// Fields of a message that say where it belongs, and have said it when the roles are known.
const LINKS: [&str; 4] = ["role", "content", "tool_calls", "tool_call_id"];

/// What is known of a template beforehand.
#[derive(Debug)]
pub(super) struct Reads {
    /// Everything in the template's text that may be a variable.
    words: HashSet<String>,
    /// Whether it shows tools without further variables.
    shows_tools: bool,
}

impl Reads {
    /// `render` renders messages with a list of tools.
    pub(super) fn of(source: &str, render: impl Fn(&[Value], &Value) -> Option<String>) -> Reads {
        const PROBE: &str = "probetoolname";
        let is_break = |c: char| !(c.is_alphanumeric() || c == '_');
        let tools = json!([{"type": "function", "function": {
            "name": PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}}}]);
        let user = json!({"role": "user", "content": "Hi"});
        let system = json!({"role": "system", "content": "S"});
        let shows = |messages: &[Value]| render(messages, &tools).is_some_and(|text| text.contains(PROBE));
        Reads {
            words: source.split(is_break).map(str::to_owned).collect(),
            shows_tools: shows(std::slice::from_ref(&user)) || shows(&[system, user.clone()]),
        }
    }

    /// What of a request is not to be seen in `rendered`; `render` renders it with changes.
    pub(super) fn passed_over(
        &self,
        request: &RenderRequest,
        rendered: &str,
        render: impl Fn(&RenderRequest) -> Option<String>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some(name) = self.hidden_tool(request, rendered, &render) {
            notices.push(Notice {
                key: "tools that the template does not show".to_owned(),
                text: format!(
                    "tools: the model's chat template does not show the tool {name:?}; the model will not know it"
                ),
            });
        }
        let unread = request.extra.keys().filter(|name| !self.words.contains(name.as_str()));
        notices.extend(unread.map(|name| Notice {
            key: format!("template variable {name}"),
            text: format!("the model's chat template does not read {name:?}, which changes nothing"),
        }));
        let names = unusual_fields(request.messages);
        let is_read = |names: &[&str]| {
            let messages: Vec<Value> =
                request.messages.iter().map(|message| without(message, names)).collect();
            render(&RenderRequest { messages: &messages, ..*request }).as_deref() != Some(rendered)
        };
        if !names.is_empty() && (names.len() > 1 || !is_read(&names)) {
            let unread = names.iter().filter(|name| names.len() == 1 || !is_read(&[name]));
            notices.extend(unread.map(|name| Notice {
                key: format!("message field {name}"),
                text: format!(
                    "messages: the model's chat template passes over the field {name:?} of a message, which changes nothing"
                ),
            }));
        }
        notices
    }

    fn hidden_tool(
        &self,
        request: &RenderRequest,
        rendered: &str,
        render: impl Fn(&RenderRequest) -> Option<String>,
    ) -> Option<String> {
        let tools = request.tools?.as_array()?;
        let names =
            tools.iter().filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str());
        let mut names = names.peekable();
        let first = (*names.peek()?).to_owned();
        // A name may stand in the conversation although the tool does not.
        let shows_none = || {
            let without = render(&RenderRequest { tools: Some(&Value::Null), ..*request });
            without.as_deref() == Some(rendered)
        };
        if !self.shows_tools && shows_none() {
            return Some(first);
        }
        names.find(|name| !rendered.contains(name)).map(str::to_owned)
    }
}

fn unusual_fields(messages: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for message in messages {
        let is_result = message.get("role").is_some_and(|role| role == "tool");
        for (name, value) in message.as_object().into_iter().flatten() {
            let is_usual = LINKS.contains(&name.as_str()) || (is_result && name == "name");
            if !is_usual && !value.is_null() && !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
    }
    names
}

fn without(message: &Value, names: &[&str]) -> Value {
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|name, _| !names.contains(&name.as_str()));
    }
    message
}
