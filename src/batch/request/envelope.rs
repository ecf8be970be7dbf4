//! Which of the input forms a line has, and who it is.
//!
//! Owns telling the forms apart, `url` and `method`, and the id. What is inside the envelope is
//! for `messages` and `params`.

use serde_json::{Map, Value};

use super::super::line_error::RequestError;
use super::Form;
use super::fields::{self, Fields};

/// Makes a copied blob in the id field an error rather than 10 MB of id in memory.
const MAX_ID_BYTES: usize = 4096;

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
        Ok(Self { form, fields, unused: outer.into_unknown_names().collect() })
    }
}

fn form_of(fields: &Fields) -> Result<Form, RequestError> {
    match (fields.get("messages").is_some(), fields.get("prompt").is_some()) {
        (true, false) => Ok(Form::Chat),
        (false, true) => Ok(Form::Text),
        (true, true) => Err(RequestError::invalid("prompt", "give either `messages` or `prompt`, not both")),
        (false, false) => {
            let reason = "a request needs `messages` (a conversation) or `prompt` (a text)";
            Err(RequestError::missing("messages", reason))
        }
    }
}

/// Takes `custom_id`, else `id`.
pub(super) fn take_custom_id(object: &mut Map<String, Value>) -> Result<Option<String>, RequestError> {
    let id = object.swap_remove("id").filter(|id| !id.is_null());
    let custom_id = object.swap_remove("custom_id").filter(|id| !id.is_null());
    let (name, value) = match (custom_id, id) {
        (Some(value), _) => ("custom_id", value),
        (None, Some(value)) => ("id", value),
        (None, None) => return Ok(None),
    };
    let text = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        other => return Err(fields::expected("a string or a number", name, &other)),
    };
    if text.is_empty() {
        return Err(RequestError::invalid(name, "must not be empty; leave it out to get `line-<number>`"));
    }
    if text.len() > MAX_ID_BYTES {
        let reason = format!("has {} bytes; at most {MAX_ID_BYTES} are allowed", text.len());
        return Err(RequestError::invalid(name, reason));
    }
    Ok(Some(text))
}
