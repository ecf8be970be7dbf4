//! One input line into one request.
//!
//! Owns the request's types and the order in which a line is taken apart: JSON, identity,
//! envelope, prompt, parameters. The parts are checked in the submodules; reading lines is for
//! `reader`.

mod envelope;
mod fields;
mod messages;
mod params;
mod unsupported;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Map, Value};

use self::envelope::Envelope;
use self::fields::Fields;
use super::line_error::{FailedLine, LineError, RequestError};
use super::warnings::Warnings;

pub use self::params::RequestParams;

/// One request, checked and ready to be rendered and tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub head: RequestHead,
    pub prompt: Prompt,
    pub params: RequestParams,
}

/// What the output line needs to know of a request; light enough to keep while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHead {
    /// Counted from 0 without gaps: the place of the output line.
    pub index: u64,
    /// Line number in the input, counted from 1, blank lines included.
    pub line: u64,
    /// The request's own id, or `line-<n>`.
    pub custom_id: String,
    /// BLAKE3 over line number and bytes, shortened; output ids are made from it.
    pub digest: [u8; 16],
    pub form: Form,
    /// Passed through to the output line.
    pub metadata: Option<Value>,
}

/// Which shape the answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `/v1/chat/completions`: a message.
    Chat,
    /// `/v1/completions`: bare text.
    Text,
}

/// What the model is given.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, to be rendered by the chat template.
    Chat {
        /// Objects with a known `role`. Text parts are joined and an absent `content` is `""`, so
        /// `content` is always a string; the `arguments` of tool calls are objects.
        messages: Vec<Value>,
        /// A list of tools that is not empty.
        tools: Option<Value>,
        /// More variables for the template, `chat_template_kwargs` in the request.
        template_kwargs: Map<String, Value>,
    },
    /// Text that goes to the tokenizer as it is; not empty.
    Text(String),
}

/// Where a line stands in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub index: u64,
    pub line: u64,
}

/// Parses lines and remembers what must be unique among them.
pub(super) struct RequestParser {
    file: Arc<str>,
    served_model: Option<String>,
    /// 128 bits of each id's digest, however long the id.
    seen_ids: HashSet<u128>,
    pub warnings: Warnings,
}

impl RequestParser {
    pub fn new(file: Arc<str>, served_model: Option<String>) -> Self {
        Self { file, served_model, seen_ids: HashSet::new(), warnings: Warnings::default() }
    }

    /// Parses one line without its end.
    pub fn parse(&mut self, place: Place, bytes: &[u8]) -> Result<Request, Box<FailedLine>> {
        let mut head = self.head(place, bytes);
        let object = match self.parse_object(place.line, bytes) {
            Ok(object) => object,
            Err(error) => return Err(Box::new(FailedLine { head, error })),
        };
        match self.parse_request(&mut head, object) {
            Ok((prompt, params)) => Ok(Request { head, prompt, params }),
            Err(error) => {
                let error = LineError::Request(error.at(&self.file, place.line));
                Err(Box::new(FailedLine { head, error }))
            }
        }
    }

    /// The failure of a line over the limit, whose bytes nobody has.
    pub fn too_long(&self, place: Place, num_bytes: u64, max_bytes: usize) -> Box<FailedLine> {
        let reason = format!("the line has {num_bytes} bytes; at most {max_bytes} are read");
        Box::new(FailedLine {
            head: self.head(place, &num_bytes.to_le_bytes()),
            error: self.not_a_request(place.line, "line_too_long", &reason),
        })
    }

    /// What is known of a line without looking into it.
    pub fn head(&self, place: Place, bytes: &[u8]) -> RequestHead {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&place.line.to_le_bytes());
        hasher.update(bytes);
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        RequestHead {
            index: place.index,
            line: place.line,
            custom_id: format!("line-{}", place.line),
            digest,
            form: Form::Chat,
            metadata: None,
        }
    }

    fn not_a_request(&self, line: u64, code: &'static str, reason: &str) -> LineError {
        LineError::NotARequest { code, message: format!("{}:{line}: {reason}", self.file) }
    }

    fn parse_object(&self, line: u64, bytes: &[u8]) -> Result<Map<String, Value>, LineError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let column = error.valid_up_to() + 1;
            let hint = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "; the file looks like UTF-16, save it as UTF-8",
                _ => "",
            };
            self.not_a_request(line, "invalid_utf8", &format!("not valid UTF-8 at byte {column}{hint}"))
        })?;
        let value: Value = serde_json::from_str(text).map_err(|error| {
            let place = format!(" at line {} column {}", error.line(), error.column());
            let what = error.to_string();
            let what = what.strip_suffix(&place).unwrap_or(&what);
            let hint = match text.trim() {
                "{" | "[" | "[{" | "}" | "]" | "}," | "}]" => {
                    "; the input must be JSON Lines, one whole object on each line"
                }
                _ => "",
            };
            let reason = format!("not valid JSON: {what} at column {}{hint}", error.column());
            self.not_a_request(line, "invalid_json", &reason)
        })?;
        match value {
            Value::Object(object) => Ok(object),
            other => {
                let reason = format!(
                    "expected a JSON object such as {{\"messages\": […]}}, found {}",
                    fields::type_name(&other)
                );
                Err(self.not_a_request(line, "not_an_object", &reason))
            }
        }
    }

    fn parse_request(
        &mut self,
        head: &mut RequestHead,
        mut object: Map<String, Value>,
    ) -> Result<(Prompt, RequestParams), RequestError> {
        head.metadata = object.swap_remove("metadata").filter(|metadata| !metadata.is_null());
        if let Some(custom_id) = envelope::take_custom_id(&mut object)? {
            head.custom_id = custom_id;
        }
        if !self.seen_ids.insert(id_digest(&head.custom_id)) {
            let reason = format!("{:?} was used by an earlier line; ids must be unique", head.custom_id);
            return Err(RequestError::bad_request("duplicate_custom_id", "custom_id", reason));
        }

        let Envelope { form, mut fields, unused } = Envelope::open(object)?;
        head.form = form;
        self.warn_unknown(head.line, unused);
        if head.metadata.is_none() {
            head.metadata = fields.take("metadata");
        }
        self.check_model(head.line, &mut fields)?;

        unsupported::check(&mut fields)?;
        let params = RequestParams::take(&mut fields)?;
        let prompt = match form {
            Form::Chat => messages::take_chat(&mut fields)?,
            Form::Text => Prompt::Text(messages::take_text(&mut fields)?),
        };
        self.warn_unknown(head.line, fields.into_unknown_names());
        Ok((prompt, params))
    }

    fn check_model(&mut self, line: u64, fields: &mut Fields) -> Result<(), RequestError> {
        let Some(wanted) = fields.take_string("model")? else { return Ok(()) };
        let Some(served) = &self.served_model else { return Ok(()) };
        if wanted != *served {
            let file = &self.file;
            self.warnings.add(&format!("model {wanted}"), || {
                format!("{file}:{line}: asks for the model {wanted:?}; every request of a run is answered by {served}")
            });
        }
        Ok(())
    }

    fn warn_unknown(&mut self, line: u64, names: impl IntoIterator<Item = String>) {
        for name in names {
            let file = &self.file;
            self.warnings.add(&format!("field {name}"), || {
                format!("{file}:{line}: the field {name:?} is not used by mlxbatch and is ignored")
            });
        }
    }
}

fn id_digest(custom_id: &str) -> u128 {
    let mut bytes = [0; 16];
    blake3::Hasher::new().update(custom_id.as_bytes()).finalize_xof().fill(&mut bytes);
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
