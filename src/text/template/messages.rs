//! A request's messages in the form a template expects.
//!
//! Owns the differences between the OpenAI form and what templates handle: nulls, names of the
//! reasoning field and content as a list of text parts. The forms of tool calls are for `calls`,
//! rendering is the parent module's business.

use serde_json::{Map, Value, json};

use super::calls::{self, CallForm};
use crate::text::TextError;

/// How a template takes the content of each role's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ContentForm {
    system: RoleForm,
    user: RoleForm,
    assistant: RoleForm,
    /// Whether the template has a place for the role `developer`. Others would drop its messages
    /// in silence, or show the model a role it was never trained on: they get `system` instead.
    pub(super) knows_developer: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum RoleForm {
    /// Text only; lists of parts are joined first.
    #[default]
    Text,
    /// Either; content is passed as the request has it.
    Both,
    /// Lists of parts only; text is made a list of one.
    Parts,
}

const FIRST: &str = "probeone";
const SECOND: &str = "probetwo";

impl ContentForm {
    /// Finds out by rendering small conversations: a template that handles parts shows the texts
    /// of two parts in order and nothing of the list around them.
    ///
    /// Telling from the template's text is what others do; it fails on templates that loop in
    /// macros, or that take only the first part of a system message and lose the rest.
    pub(super) fn probe(render: impl Fn(&[Value]) -> Option<String>) -> ContentForm {
        let parts = json!([{"type": "text", "text": FIRST}, {"type": "text", "text": SECOND}]);
        let text = json!(FIRST);
        let form_of = |before: &[Value], role: &str, after: &[Value]| {
            let with = |content: &Value| {
                let message = json!({"role": role, "content": content});
                render(&[before, &[message], after].concat())
            };
            let takes_parts = with(&parts).is_some_and(|out| shows_both(&out));
            let takes_text = || with(&text).is_some_and(|out| out.contains(FIRST));
            match takes_parts {
                false => RoleForm::Text,
                true if takes_text() => RoleForm::Both,
                true => RoleForm::Parts,
            }
        };
        let user = form_of(&[], "user", &[]);
        let neighbour = match user {
            RoleForm::Parts => json!({"role": "user", "content": [{"type": "text", "text": "x"}]}),
            _ => json!({"role": "user", "content": "x"}),
        };
        let neighbour = std::slice::from_ref(&neighbour);
        ContentForm {
            system: form_of(&[], "system", neighbour),
            user,
            assistant: form_of(neighbour, "assistant", neighbour),
            knows_developer: false,
        }
    }

    fn of_role(self, role: &str) -> RoleForm {
        match role {
            "system" => self.system,
            "user" => self.user,
            "assistant" => self.assistant,
            _ => RoleForm::Text,
        }
    }
}

fn shows_both(rendered: &str) -> bool {
    let Some((before, rest)) = rendered.split_once(FIRST) else {
        return false;
    };
    let Some((between, _)) = rest.split_once(SECOND) else {
        return false;
    };
    // A list printed as a whole has its keys around the texts.
    !between.contains("text") && !before.ends_with("'text': '") && !before.ends_with("\"text\": \"")
}

/// Copies the messages, changing what the template would not handle.
pub(super) fn prepare(
    messages: &[Value],
    form: ContentForm,
    calls: CallForm,
) -> Result<Vec<Value>, TextError> {
    messages
        .iter()
        .enumerate()
        .map(|(index, message)| {
            prepare_one(message, form, calls).map_err(|problem| TextError::Message { index, problem })
        })
        .collect()
}

fn prepare_one(message: &Value, form: ContentForm, calls: CallForm) -> Result<Value, String> {
    let mut message = message.as_object().ok_or("it is no JSON object")?.clone();
    normalize(&mut message);
    if let Some(role) = message.get_mut("role").filter(|role| !form.knows_developer && **role == "developer")
    {
        *role = json!("system");
    }
    let role = message.get("role").and_then(Value::as_str).ok_or("it has no \"role\"")?;
    let role_form = form.of_role(role);
    match message.get_mut("content") {
        None => {}
        Some(content @ Value::String(_)) if role_form == RoleForm::Parts => {
            *content = json!([{"type": "text", "text": content}]);
        }
        Some(Value::String(_)) => {}
        Some(content @ Value::Array(_)) => {
            // Joined in any case, which checks that all parts are text.
            let joined = join_parts(content.as_array().map_or(&[], Vec::as_slice))?;
            if role_form == RoleForm::Text {
                *content = Value::String(joined);
            }
        }
        Some(_) => return Err("its \"content\" is neither a string nor a list of parts".to_owned()),
    }
    calls::apply(&mut message, calls);
    Ok(Value::Object(message))
}

/// The names under which a message's reasoning is found; templates read the first, gpt-oss's the
/// second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Does what transformers 5 does to every message before any template sees it.
///
/// Many templates print a null as "None" or fail on it, while all handle a missing key.
pub(super) fn normalize(message: &mut Map<String, Value>) {
    message.retain(|_, value| !value.is_null());
    if let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name)).cloned() {
        message.entry("thinking").or_insert_with(|| reasoning.clone());
        message.insert("reasoning_content".to_owned(), reasoning);
    }
}

fn join_parts(parts: &[Value]) -> Result<String, String> {
    let mut joined = String::new();
    for (i, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => joined.push_str(text),
            (Some("text"), None) => return Err(format!("content[{i}] has no \"text\" string")),
            (Some(kind), _) => {
                return Err(format!("content[{i}] is of type {kind:?}: only \"text\" is supported"));
            }
            (None, _) => return Err(format!("content[{i}] has no \"type\"")),
        }
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: ContentForm = ContentForm {
        system: RoleForm::Both,
        user: RoleForm::Both,
        assistant: RoleForm::Both,
        knows_developer: false,
    };

    fn prepare(messages: &[Value], form: ContentForm) -> Result<Vec<Value>, TextError> {
        super::prepare(messages, form, CallForm::default())
    }

    fn parts(texts: &[&str]) -> Value {
        texts.iter().map(|text| json!({"type": "text", "text": text})).collect()
    }

    #[test]
    fn parts_are_joined_only_where_the_template_needs_it() {
        let messages = [json!({"role": "user", "content": parts(&["a", " b"])})];
        let joined = prepare(&messages, ContentForm::default()).expect("text parts");
        assert_eq!(joined, [json!({"role": "user", "content": "a b"})]);
        assert_eq!(prepare(&messages, BOTH).expect("text parts"), messages);
        let tool = [json!({"role": "tool", "content": parts(&["a", "b"])})];
        assert_eq!(prepare(&tool, BOTH).expect("text parts"), [json!({"role": "tool", "content": "ab"})]);
        let text = [json!({"role": "user", "content": "a"})];
        let form = ContentForm { user: RoleForm::Parts, ..BOTH };
        assert_eq!(prepare(&text, form).expect("text"), [json!({"role": "user", "content": parts(&["a"])})]);
    }

    #[test]
    fn a_developer_is_the_system_where_the_template_does_not_know_it() {
        let role = |form: ContentForm| {
            let given = [json!({"role": "developer", "content": "a"})];
            prepare(&given, form).expect("well-formed")[0]["role"].clone()
        };
        assert_eq!(role(BOTH), "system");
        assert_eq!(role(ContentForm { knows_developer: true, ..BOTH }), "developer");
    }

    #[test]
    fn arguments_become_objects() {
        let call = |arguments: Value| {
            [json!({"role": "assistant", "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": arguments}}]})]
        };
        for (given, expected) in [
            (json!("{\"b\": 1, \"a\": [2.5]}"), json!({"b": 1, "a": [2.5]})),
            (json!(" "), json!({})),
            (json!("not json"), json!("not json")),
            (json!("[1]"), json!("[1]")),
            (json!({"a": 1}), json!({"a": 1})),
        ] {
            assert_eq!(prepare(&call(given), BOTH).expect("well-formed"), call(expected));
        }
    }

    /// OpenAI clients send `"content": null` with tool calls, and templates printed "None".
    #[test]
    fn nulls_vanish_and_reasoning_has_all_its_names() {
        let message = |json: Value| prepare(&[json], BOTH).expect("well-formed");
        let given = json!({"role": "assistant", "content": null, "name": null});
        assert_eq!(message(given), [json!({"role": "assistant"})]);
        let all = json!({"role": "assistant", "thinking": "hm", "reasoning_content": "hm"});
        for name in ["thinking", "reasoning_content"] {
            assert_eq!(message(json!({"role": "assistant", name: "hm"})), std::slice::from_ref(&all));
        }
    }

    #[test]
    fn unusable_messages_say_which_and_why() {
        for (bad, problem) in [
            (json!("hello"), "no JSON object"),
            (json!({"content": "a"}), "no \"role\""),
            (json!({"role": 5, "content": "a"}), "no \"role\""),
            (json!({"role": "user", "content": 5}), "neither a string nor a list"),
            (json!({"role": "user", "content": ["a"]}), "content[0] has no \"type\""),
            (json!({"role": "user", "content": [{"type": "text"}]}), "content[0] has no \"text\""),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "\"image_url\": only \"text\""),
        ] {
            let messages = [json!({"role": "user", "content": "fine"}), bad];
            let error = prepare(&messages, BOTH).expect_err(problem).to_string();
            assert!(error.starts_with("messages[1]: ") && error.contains(problem), "{error}");
        }
    }
}
