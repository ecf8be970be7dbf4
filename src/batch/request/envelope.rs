//! Which of the input forms a line has, and who it is.
//!
//! Owns telling the forms apart, `url` and `method`, and the id. What is inside the envelope is
//! for `messages` and `params`.

use serde_json::{Map, Value};

use super::super::line_error::RequestError;
use super::super::partial_json::MAX_ID_BYTES;
use super::Form;
use super::conversations;
use super::fields::{self, Fields};
use super::known_fields;

/// The request inside a line, whichever form the line has.
pub(super) struct Envelope {
    pub form: Form,
    pub fields: Fields,
    /// Names beside the batch form's body that mean nothing.
    pub unused: Vec<String>,
}

impl Envelope {
    pub fn open(object: Map<String, Value>) -> Result<Self, RequestError> {
        let is_batch_form = ["body", "url", "method"].iter().any(|name| object.contains_key(*name));
        if is_batch_form {
            return Self::open_batch_form(object);
        }
        let fields = Fields::new(object);
        let form = form_of(&fields)?;
        Ok(Self { form, fields, unused: Vec::new() })
    }

    fn open_batch_form(object: Map<String, Value>) -> Result<Self, RequestError> {
        let mut outer = Fields::new(object);
        if let Some(method) = outer.take_string("method")?
            && !method.eq_ignore_ascii_case("POST")
        {
            return Err(RequestError::unsupported("method", format!("must be \"POST\", not {method:?}")));
        }
        let url = outer.take_string("url")?;
        let body = outer
            .take_object("body")?
            .ok_or_else(|| RequestError::missing("body", "the batch form needs an object here"))?;
        let fields = Fields::new(body);
        let form = match url.as_deref().map(|url| url.trim_end_matches('/')) {
            Some("/v1/chat/completions") => Form::Chat,
            Some("/v1/completions") => Form::Text,
            Some(other) => {
                let reason =
                    format!("must be \"/v1/chat/completions\" or \"/v1/completions\", not {other:?}");
                return Err(RequestError::bad_request("unsupported_url", "url", reason));
            }
            None => form_of(&fields)?,
        };
        known_fields::take_ignored(&mut outer);
        Ok(Self { form, fields, unused: outer.into_unknown_names().collect() })
    }
}

fn form_of(fields: &Fields) -> Result<Form, RequestError> {
    match (conversations::field_of(fields)?, fields.get("prompt").is_some()) {
        (Some(_), false) => Ok(Form::Chat),
        (None, true) => Ok(Form::Text),
        (Some(name), true) => {
            let reason = format!("give either `{name}` or `prompt`, not both");
            Err(RequestError::invalid("prompt", reason))
        }
        (None, false) => {
            let reason = "a request needs `messages` (a conversation) or `prompt` (a text)";
            Err(RequestError::missing("messages", reason))
        }
    }
}

/// Who a line is.
pub(super) struct Identity {
    /// `custom_id`, else `id`, of those that can be used, else MT-Bench's `question_id`.
    pub id: Option<String>,
    pub problem: Option<RequestError>,
}

impl Identity {
    pub fn take(object: &mut Map<String, Value>) -> Self {
        let mut identity = Self { id: None, problem: None };
        let mut names = vec!["custom_id", "id"];
        // Elsewhere it is a column, which several lines may have alike.
        names.extend(has_turns(object).then_some("question_id"));
        for name in names {
            let Some(value) = object.swap_remove(name).filter(|id| !id.is_null()) else { continue };
            let given = id_of(name, value);
            match given {
                _ if identity.id.is_some() => {}
                Ok(id) => identity.id = Some(id),
                Err(problem) => drop(identity.problem.get_or_insert(problem)),
            }
        }
        identity
    }
}

/// Whether a line is one of MT-Bench, in the Batch API's envelope or without it.
fn has_turns(object: &Map<String, Value>) -> bool {
    let request = object.get("body").and_then(Value::as_object).unwrap_or(object);
    request.get(conversations::TURNS).is_some_and(Value::is_array)
}

fn id_of(name: &str, value: Value) -> Result<String, RequestError> {
    let text = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        other => return Err(fields::expected("a string or a number", name, &other)),
    };
    if text.is_empty() {
        return Err(RequestError::invalid(name, "must not be empty; leave it out to get `line-<number>`"));
    }
    // A copied blob would be 10 MB of id in memory.
    if text.len() > MAX_ID_BYTES {
        let reason = format!("has {} bytes; at most {MAX_ID_BYTES} are allowed", text.len());
        return Err(RequestError::invalid(name, reason));
    }
    Ok(text)
}
