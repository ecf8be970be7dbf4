//! Tool calls and their results in the form that a template shows.
//!
//! Owns the forms a call may be given in, and finding out whether a template shows what it is
//! given. Templates differ: one looks for calls where the content is null, one where it is empty;
//! one writes arguments that are objects, one those that are text already. A template that wants
//! another form leaves the call out without a word, and two different conversations become one
//! prompt. So nothing is told from a template's text: names, arguments and results are replaced by
//! words that occur nowhere else, and the form counts whose rendering contains them.

use serde_json::{Map, Value, json};

use crate::json::{self, Parsed};

/// How an assistant message that calls tools has its content where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum NoContent {
    /// As the request has it; a null is left out, as transformers 5 does.
    #[default]
    AsGiven,
    Empty,
    Absent,
    Null,
}

/// How a call's arguments are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Arguments {
    #[default]
    Object,
    /// JSON text, as the OpenAI form has it.
    Text,
}

/// How a tool message's content is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum ResultContent {
    #[default]
    Text,
    /// A list of one text part.
    Parts,
}

/// One way to give calls and results to a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CallForm {
    pub no_content: NoContent,
    pub arguments: Arguments,
    pub result: ResultContent,
}

impl CallForm {
    /// All forms, the likeliest first.
    fn all() -> impl Iterator<Item = CallForm> {
        use NoContent::{Absent, AsGiven, Empty, Null};
        let results = [ResultContent::Text, ResultContent::Parts];
        results.into_iter().flat_map(|result| {
            [Arguments::Object, Arguments::Text].into_iter().flat_map(move |arguments| {
                let contents = [AsGiven, Empty, Absent, Null];
                contents.into_iter().map(move |no_content| CallForm { no_content, arguments, result })
            })
        })
    }

    /// All forms, those in front that show a small conversation whole.
    pub(super) fn by_trial(render: impl Fn(&[Value], CallForm) -> Option<String>) -> Vec<CallForm> {
        let messages = [
            json!({"role": "user", "content": "Hi"}),
            json!({"role": "assistant", "tool_calls": [
                {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}]}),
            json!({"role": "tool", "tool_call_id": "call00001", "name": "f", "content": "z"}),
        ];
        let mut forms: Vec<CallForm> = CallForm::all().collect();
        if let Some(probe) = Probe::of(&messages) {
            forms.sort_by_key(|form| probe.judge(render(&probe.messages, *form).as_deref()));
        }
        forms
    }
}

/// What became of a conversation's calls and results in a rendering; the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shown {
    Whole,
    /// All but the text beside a call: the publisher's own way in some templates.
    WithoutText,
    /// All is there, but the arguments look as Python prints a dictionary, or are quoted twice.
    Distorted,
    /// The part of this number is not there, or not where it belongs.
    NotAll(usize),
    /// The template refuses the form.
    Failed,
}

/// A conversation whose calls and results are replaced by words that occur nowhere else.
pub(super) struct Probe {
    pub messages: Vec<Value>,
    parts: Vec<Part>,
}

/// A word that is to be seen in place of a part of a message.
struct Part {
    word: String,
    kind: Kind,
    message: usize,
    what: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    /// Of an argument; its quotes show how arguments are written.
    Key,
    Value,
    Result,
    /// What an assistant says beside its calls.
    Text,
}

impl Probe {
    /// Replaces the calls and results of a conversation; nothing where there are none.
    pub(super) fn of(messages: &[Value]) -> Option<Probe> {
        let mut probe = Probe { messages: messages.to_vec(), parts: Vec::new() };
        for (index, message) in messages.iter().enumerate() {
            let calls = message.get("tool_calls").and_then(Value::as_array);
            for (position, call) in calls.into_iter().flatten().enumerate() {
                probe.replace_call(index, position, call);
            }
            let is_result = message.get("role").is_some_and(|role| role == "tool");
            if is_result && !is_blank(message.get("content")) {
                probe.replace_content(index, Kind::Result);
            }
            let is_call = calls.is_some_and(|calls| !calls.is_empty());
            if is_call
                && message.get("content").and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty())
            {
                probe.replace_content(index, Kind::Text);
            }
        }
        (!probe.parts.is_empty()).then_some(probe)
    }

    fn replace_content(&mut self, index: usize, kind: Kind) {
        let word = self.add(index, kind, "the result in it".to_owned());
        self.messages[index]["content"] = json!(word);
    }

    fn replace_call(&mut self, index: usize, position: usize, call: &Value) {
        let function = call.get("function").unwrap_or(call);
        let Some(name) = function.get("name").and_then(Value::as_str) else { return };
        let name_word = self.add(index, Kind::Name, format!("the call of {name:?}"));
        let mut arguments = Map::new();
        if !is_blank(function.get("arguments")) {
            let what = || format!("the arguments of the call of {name:?}");
            let key = self.add(index, Kind::Key, what());
            let value = self.add(index, Kind::Value, what());
            arguments.insert(key, json!(value));
        }
        let call = &mut self.messages[index]["tool_calls"][position];
        let function = if call.get("function").is_some() { &mut call["function"] } else { call };
        function["name"] = json!(name_word);
        function["arguments"] = Value::Object(arguments);
    }

    fn add(&mut self, message: usize, kind: Kind, what: String) -> String {
        let word = format!("probe{kind:?}{}end", self.parts.len());
        self.parts.push(Part { word: word.clone(), kind, message, what });
        word
    }

    /// Looks for all parts in what a template made of the probe.
    pub(super) fn judge(&self, rendered: Option<&str>) -> Shown {
        let Some(rendered) = rendered else { return Shown::Failed };
        let is_hidden = |part: &Part| !rendered.contains(&part.word);
        let is_distorted = |part: &Part| {
            let (python, twice) = (format!("'{}'", part.word), format!("\\\"{}\\\"", part.word));
            part.kind == Kind::Key && (rendered.contains(&python) || rendered.contains(&twice))
        };
        let missing = self.parts.iter().position(|part| part.kind != Kind::Text && is_hidden(part));
        match missing {
            Some(missing) => Shown::NotAll(missing),
            None if self.parts.iter().any(is_distorted) => Shown::Distorted,
            None if self.parts.iter().any(is_hidden) => Shown::WithoutText,
            None => Shown::Whole,
        }
    }

    /// The message of a part that is not shown, and what it is.
    pub(super) fn describe(&self, missing: usize) -> (usize, &str) {
        let part = &self.parts[missing];
        (part.message, &part.what)
    }
}

/// Whether there is nothing that could be shown.
fn is_blank(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => matches!(text.trim(), "" | "{}"),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(members)) => members.is_empty(),
        Some(_) => false,
    }
}

/// Puts the calls or the result of one message into a form.
pub(super) fn apply(message: &mut Map<String, Value>, form: CallForm) {
    if message.get("role").is_some_and(|role| role == "tool")
        && form.result == ResultContent::Parts
        && let Some(content @ Value::String(_)) = message.get_mut("content")
    {
        *content = json!([{"type": "text", "text": content}]);
    }
    let Some(calls) = message.get_mut("tool_calls").and_then(Value::as_array_mut) else { return };
    if calls.is_empty() {
        return;
    }
    calls.iter_mut().for_each(|call| write_arguments(call, form.arguments));
    let says_nothing = message.get("content").is_none_or(|content| content == "");
    match form.no_content {
        NoContent::AsGiven => {}
        _ if !says_nothing => {}
        NoContent::Empty => drop(message.insert("content".to_owned(), json!(""))),
        NoContent::Absent => drop(message.shift_remove("content")),
        NoContent::Null => drop(message.insert("content".to_owned(), Value::Null)),
    }
}

/// Text that is no object is left to the template.
fn write_arguments(call: &mut Value, form: Arguments) {
    let holder = if call.get("function").is_some() { call.get_mut("function") } else { Some(call) };
    let Some(arguments) = holder.and_then(|holder| holder.get_mut("arguments")) else { return };
    match (form, &*arguments) {
        (Arguments::Object, Value::String(text)) if text.trim().is_empty() => *arguments = json!({}),
        (Arguments::Object, Value::String(text)) => {
            if let Ok(Parsed { value: value @ Value::Object(_), .. }) = json::parse(text) {
                *arguments = value;
            }
        }
        (Arguments::Text, Value::String(text)) if text.trim().is_empty() => *arguments = json!("{}"),
        // As the client that got this call has it: Python's way of writing JSON.
        (Arguments::Text, Value::Object(_)) => *arguments = json!(super::json::dumps(arguments)),
        _ => {}
    }
}
