//! The pieces that a written call is made of, and reading them one after the other.
//!
//! Owns what each piece takes and what it says of the call. Which pieces make up a model's way is the table's
//! in `calls`, literals that are no JSON are `literals`', types of bare text `typed`'s to tell.

use serde_json::{Map, Value};

use super::DraftCall;
use super::literals::{self, Dialect};
use super::typed;
use crate::json::{self, Parsed};

/// A piece; white space in front of it is passed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// This text.
    Text(&'static str),
    /// This text, if it is there.
    Optional(&'static str),
    /// A function's name, up to the first of these texts.
    Name(&'static [&'static str]),
    /// An id that holds the name, `functions.name:0`, up to this text.
    Id(&'static str),
    /// An id behind the first text, if that is there, up to one of the others.
    OptionalId(&'static str, &'static [&'static str]),
    /// Arguments as a JSON object.
    Arguments,
    /// A JSON object with name and arguments, or a list of such.
    Calls,
    /// Arguments one by one.
    Pairs(&'static Pair),
    /// Calls as Python writes them, in a list or line by line.
    Python,
    /// Arguments in braces, with names that have no quotes.
    Braces(&'static Dialect),
}

/// How one argument is written among others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub open: &'static str,
    pub key_end: &'static str,
    /// What may stand between key and value, and what the value then is; the first that is there counts.
    pub value_open: &'static [(&'static str, Typed)],
    pub close: &'static str,
}

/// What bare text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typed {
    /// What the tool's schema says.
    BySchema,
    Text,
    Json,
}

impl Part {
    /// The texts by which it is known.
    pub(super) fn marks(&self) -> impl Iterator<Item = &'static str> {
        let marks: Vec<&'static str> = match self {
            Part::Text(text) | Part::Optional(text) | Part::Id(text) => vec![text],
            Part::Name(ends) => ends.to_vec(),
            Part::OptionalId(open, ends) => [&[*open], *ends].concat(),
            Part::Pairs(pair) => vec![pair.open, pair.key_end, pair.close],
            Part::Braces(dialect) => dialect.quotes.to_vec(),
            Part::Arguments | Part::Calls | Part::Python => Vec::new(),
        };
        marks.into_iter()
    }
}

/// A text that is read from its beginning on.
pub(super) struct Reading<'a> {
    text: &'a str,
    at: usize,
    tools: Option<&'a Value>,
    calls: Vec<DraftCall>,
}

impl<'a> Reading<'a> {
    pub(super) fn new(text: &'a str, tools: Option<&'a Value>) -> Self {
        Self { text, at: 0, tools, calls: Vec::new() }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn go_back_to(&mut self, at: usize) {
        self.at = at;
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest().trim().is_empty()
    }

    pub(super) fn into_calls(self) -> Vec<DraftCall> {
        self.calls
    }

    /// Takes a text, behind any white space; false where it is not there.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let rest = self.rest();
        let lead = rest.len() - rest.trim_start().len();
        let is_there = rest[lead..].starts_with(text);
        if is_there {
            self.at += lead + text.len();
        }
        is_there
    }

    /// Reads all parts and adds their call, or calls; false, and nothing added, where one is malformed.
    pub(super) fn read(&mut self, parts: &[Part]) -> bool {
        let (start, num_calls) = (self.at, self.calls.len());
        let mut call = DraftCall::default();
        let is_read = parts.iter().all(|part| self.read_part(part, &mut call).is_some());
        if is_read && !call.name.is_empty() {
            if call.arguments.is_empty() {
                call.arguments.push_str("{}");
            }
            self.calls.push(call);
        }
        let is_read = is_read && self.calls.len() > num_calls;
        if !is_read {
            self.at = start;
            self.calls.truncate(num_calls);
        }
        is_read
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn read_part(&mut self, part: &Part, call: &mut DraftCall) -> Option<()> {
        match part {
            Part::Text(text) => self.take(text).then_some(()),
            Part::Optional(text) => {
                self.take(text);
                Some(())
            }
            Part::Name(ends) => {
                call.name = name(self.up_to(ends)?)?.to_owned();
                Some(())
            }
            Part::Id(end) => {
                let id = name(self.up_to(&[end])?)?;
                let bare = id.strip_prefix("functions.").unwrap_or(id);
                call.name = bare.rsplit_once(':').map_or(bare, |(bare, _)| bare).to_owned();
                call.id = Some(id.to_owned());
                Some(())
            }
            Part::OptionalId(open, ends) => {
                if self.take(open) {
                    call.id = Some(name(self.up_to(ends)?)?.to_owned());
                }
                Some(())
            }
            Part::Arguments => {
                call.arguments = arguments(&self.json()?)?;
                Some(())
            }
            Part::Calls => {
                let calls = calls(&self.json()?)?;
                self.calls.extend(calls);
                Some(())
            }
            Part::Pairs(pair) => {
                call.arguments = Value::Object(self.pairs(pair, &call.name)?).to_string();
                Some(())
            }
            Part::Python => {
                let (calls, length) = literals::python_calls(self.rest())?;
                self.at += length;
                self.calls.extend(calls);
                Some(())
            }
            Part::Braces(dialect) => {
                let (members, length) = literals::braces(self.rest(), dialect)?;
                self.at += length;
                call.arguments = Value::Object(members).to_string();
                Some(())
            }
        }
    }

    /// The text up to the first of several.
    fn up_to(&mut self, ends: &[&str]) -> Option<&'a str> {
        let rest = self.rest();
        let length = ends.iter().filter_map(|end| rest.trim_start().find(end)).min()?;
        let lead = rest.len() - rest.trim_start().len();
        self.at += lead + length;
        Some(rest[lead..lead + length].trim())
    }

    fn json(&mut self) -> Option<Value> {
        let (value, length) = json_prefix(self.rest())?;
        self.at += length;
        Some(value)
    }

    fn pairs(&mut self, pair: &Pair, function: &str) -> Option<Map<String, Value>> {
        let mut members = Map::new();
        while self.take(pair.open) {
            let key = self.up_to(&[pair.key_end])?;
            self.take(pair.key_end);
            let (_, typed) = pair.value_open.iter().find(|(open, _)| self.take_value_open(open))?;
            let rest = self.rest();
            let length = rest.find(pair.close)?;
            let text = &rest[..length];
            self.at += length + pair.close.len();
            // One line end on each side is layout.
            let text = text.strip_prefix('\n').unwrap_or(text);
            let text = text.strip_suffix('\n').unwrap_or(text);
            let value = match typed {
                Typed::Text => Value::String(text.to_owned()),
                Typed::Json => typed::json_or_text(text),
                Typed::BySchema => typed::by_schema(text, self.tools, function, key),
            };
            members.insert(key.to_owned(), value);
        }
        Some(members)
    }

    /// A value may begin with white space of its own: nothing is passed over where nothing marks it.
    fn take_value_open(&mut self, open: &str) -> bool {
        open.is_empty() || self.take(open)
    }
}

/// A text that can be a function's name.
pub(super) fn name(text: &str) -> Option<&str> {
    const MAX_BYTES: usize = 256;
    let is_odd = |c: char| c.is_whitespace() || c.is_control() || "<>{}[]()\"'`,=".contains(c);
    (!text.is_empty() && text.len() <= MAX_BYTES && !text.contains(is_odd)).then_some(text)
}

/// The JSON value that a text begins with, and its length.
fn json_prefix(text: &str) -> Option<(Value, usize)> {
    // Halves of surrogate pairs are mended by escapes of the same length.
    let mended = json::mend_surrogates(text);
    let text = mended.as_deref().unwrap_or(text);
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    values.next()?.ok()?;
    let length = values.byte_offset();
    let Parsed { value, .. } = json::parse(&text[..length]).ok()?;
    Some((value, length))
}

/// Arguments are an object, or the text of one.
fn arguments(value: &Value) -> Option<String> {
    match value {
        Value::Object(_) => Some(value.to_string()),
        Value::Null => Some("{}".to_owned()),
        Value::String(text) => arguments_of_json(text.trim()),
        _ => None,
    }
}

/// Calls are an object, or a list of objects that is not empty.
fn calls(value: &Value) -> Option<Vec<DraftCall>> {
    match value {
        Value::Object(members) => Some(vec![call(members)?]),
        Value::Array(items) if !items.is_empty() => {
            items.iter().map(|item| item.as_object().and_then(call)).collect()
        }
        _ => None,
    }
}

fn call(members: &Map<String, Value>) -> Option<DraftCall> {
    // OpenAI's own form, which some models were shown.
    if let Some(Value::Object(function)) = members.get("function") {
        return call(function);
    }
    let given = ["name", "tool_name", "function"].iter().find_map(|key| members.get(*key))?;
    let given_values = ["arguments", "parameters", "args"].iter().filter_map(|key| members.get(*key));
    let values = given_values.clone().find(|value| !value.is_null()).or(given_values.clone().next());
    // An object that has a name is not yet a call.
    let arguments = match values {
        Some(values) => arguments(values)?,
        None if members.len() == 1 => "{}".to_owned(),
        None => return None,
    };
    let id = ["id", "tool_call_id"].iter().find_map(|key| members.get(*key)?.as_str()).map(str::to_owned);
    // Quotes say where it ends: it may have any letters.
    let name = given.as_str().map(str::trim).filter(|name| !name.is_empty())?.to_owned();
    Some(DraftCall { id, name, arguments })
}

/// Calls in a text that is nothing else.
pub(super) fn calls_of_json(text: &str) -> Option<Vec<DraftCall>> {
    let (value, length) = json_prefix(text)?;
    text[length..].trim().is_empty().then(|| calls(&value)).flatten()
}

/// The arguments in a text that is nothing else.
pub(super) fn arguments_of_json(text: &str) -> Option<String> {
    let (value, length) = json_prefix(text)?;
    let is_whole = value.is_object() && text[length..].trim().is_empty();
    is_whole.then(|| value.to_string())
}
