//! One input line into one request.
//!
//! Owns the request's types and the order in which a line is taken apart: JSON, identity,
//! envelope, prompt, parameters. The parts are checked in the submodules; reading lines is for
//! `reader`.

mod constraints;
mod conversations;
mod envelope;
mod fields;
mod known_fields;
mod messages;
mod options;
mod params;
mod prompts;
mod tools;
mod turns;

use std::sync::Arc;

use serde_json::{Map, Value};

use self::conversations::Written;
use self::envelope::{Envelope, Identity};
use self::fields::Fields;
use self::tools::Tools;
use super::ids::{Claim, Ids};
use super::json_values::{MAX_LINE_VALUES, count_values};
use super::lead_in::odd_character;
use super::line_error::{FailedLine, LineError, RequestError};
use super::lines::Content;
use super::partial_json::find_id;
use super::paths::InputFile;
use super::reader::ReaderOptions;
use super::rows::Rows;
use super::warnings::Warnings;
use crate::json::{self, Parsed};
use crate::text::ExpectedCalls;

pub use self::constraints::AnswerConstraint;
pub use self::known_fields::{SERVED, ServedField, ServedGroup, ignored_fields, refused_fields};
pub use self::options::AnswerOptions;
pub use self::params::{PENALTY_RANGE, REPETITION_PENALTY_RANGE, RequestParams};
pub use self::turns::LaterTurn;

/// What of a line its record does not repeat.
const PROMPTS: [&str; 6] = ["messages", "prompt", "body", "tools", "turns", "conversations"];

/// Most answers that one line may ask for: a window of requests holds them all.
pub const MAX_CHOICES: usize = 4096;

/// What one line asks for, checked and ready to be rendered and tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub head: RequestHead,
    /// At least one, each of which is answered as often as the options say; a conversation stands alone.
    pub prompts: Vec<Prompt>,
    pub params: RequestParams,
    pub options: AnswerOptions,
}

/// What the output line needs to know of a request; light enough to keep while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestHead {
    /// Counted from 0 without gaps: the place of the output line.
    pub index: u64,
    /// The input that the line is of.
    pub file: InputFile,
    /// Line number in that input, counted from 1, blank lines included.
    pub line: u64,
    /// The request's own id, or one that was made up, `line-<n>`.
    pub custom_id: String,
    /// BLAKE3 over line number and bytes, and the input's number behind the first, shortened; output ids are made from it.
    pub digest: [u8; 16],
    /// BLAKE3 over the bytes alone: what answers depend on is the same wherever a line stands.
    pub content_digest: [u8; 16],
    pub form: Form,
    /// Passed through to the output line.
    pub metadata: Option<Value>,
    /// What else of the input line is passed through.
    pub input: Option<Value>,
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
    Chat(Conversation),
    /// Text that goes to the tokenizer as it is; not empty.
    Text(String),
    /// Token ids, at least one; whether the model has them is not known here.
    Tokens(Vec<u32>),
}

/// A conversation, to be rendered by a chat template.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Objects with a known `role`. Text parts are joined, so `content` is a string; it may be
    /// absent beside tool calls, whose `arguments` are objects or the text of one.
    pub messages: Vec<Value>,
    /// The turns that follow answers; without any, the answer to `messages` is the only one.
    pub later: Vec<LaterTurn>,
    /// A list of tools that is not empty.
    pub tools: Option<Arc<Value>>,
    /// How the answer calls them.
    pub expected_calls: ExpectedCalls,
    /// More variables for the template, `chat_template_kwargs` in the request.
    pub template_kwargs: Map<String, Value>,
    /// The request's own template, in place of the model's.
    pub template: Option<String>,
    /// Of the last turn.
    pub ending: PromptEnding,
}

/// Where the prompt of a conversation ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnding {
    /// Behind the header of the assistant's next message.
    #[default]
    NewTurn,
    /// Behind the last message and all that the template writes after it.
    LastMessage,
    /// Behind the text of the last message, which the answer goes on with.
    WithinLastMessage,
}

/// A request without its head.
struct Asked {
    prompts: Vec<Prompt>,
    params: RequestParams,
    options: AnswerOptions,
}

/// Where a line stands in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub index: u64,
    pub line: u64,
}

/// Parses lines and remembers what must be unique among them.
pub(super) struct RequestParser {
    /// What lines come from at the moment.
    pub file: InputFile,
    served_model: Option<String>,
    served_adapter: Option<String>,
    rows: Option<Arc<Rows>>,
    keeps_input: bool,
    ids: Ids,
    pub warnings: Warnings,
}

impl RequestParser {
    pub fn new(file: InputFile, options: ReaderOptions, ids: Ids) -> Self {
        let ReaderOptions { served_model, served_adapter, rows, keeps_input, .. } = options;
        Self { file, served_model, served_adapter, rows, keeps_input, ids, warnings: Warnings::default() }
    }

    /// Adds a warning that names file and line.
    pub fn warn(&mut self, line: u64, key: &str, text: impl FnOnce() -> String) {
        self.warn_of(&self.file.clone(), line, key, text);
    }

    /// The same of a line of this input.
    pub fn warn_of(&mut self, file: &InputFile, line: u64, key: &str, text: impl FnOnce() -> String) {
        self.warnings.add(key, || format!("{}:{line}: {}", file.name, text()));
    }

    /// Parses one line without its end.
    pub fn parse(&mut self, place: Place, bytes: &[u8]) -> Result<Request, Box<FailedLine>> {
        let object = match self.parse_object(place.line, bytes) {
            Ok(object) => object,
            Err(error) => return Err(self.failed(place, bytes, find_id(bytes), error)),
        };
        let mut head = self.head(place, bytes);
        match self.parse_request(&mut head, object) {
            Ok(asked) => {
                let Asked { prompts, params, options } = asked;
                Ok(Request { head, prompts, params, options })
            }
            Err(error) => {
                let error = LineError::Request(error.at(&self.file.name, place.line));
                Err(Box::new(FailedLine { head, error }))
            }
        }
    }

    /// The failure of a line over the limit, of which only the start is known.
    pub fn too_long(
        &mut self,
        place: Place,
        num_bytes: u64,
        max_bytes: usize,
        start: &[u8],
    ) -> Box<FailedLine> {
        let reason = format!("the line has {num_bytes} bytes; at most {max_bytes} are read");
        let error = self.not_a_request(place.line, "line_too_long", &reason);
        self.failed(place, &num_bytes.to_le_bytes(), find_id(start), error)
    }

    /// The failure of a line whose JSON would take far more memory than its text.
    pub fn too_many_values(&mut self, place: Place, num_values: usize, bytes: &[u8]) -> Box<FailedLine> {
        let reason = format!(
            "the line has {num_values} JSON values and names; at most {MAX_LINE_VALUES} are read: make several lines of it"
        );
        let error = self.not_a_request(place.line, "too_many_values", &reason);
        self.failed(place, bytes, find_id(bytes), error)
    }

    /// Takes note of a line that another process answers: ids are unique among the lines of all.
    pub fn pass_over(&mut self, line: u64, content: &Content<'_>) {
        let id = match content {
            Content::Bytes(bytes) => match self.object_of(bytes) {
                Some(mut object) => Identity::take(&mut object).id,
                None => find_id(bytes),
            },
            Content::TooLong { start, .. } => find_id(start),
            Content::Filler(_) => return,
        };
        match id {
            Some(id) => drop(self.ids.claim(&id)),
            None => drop(self.ids.make_up(&self.file, line)),
        }
    }

    /// A line's object, or of a row what its request is known by.
    fn object_of(&self, bytes: &[u8]) -> Option<Map<String, Value>> {
        let is_read = bytes.len() <= MAX_LINE_VALUES || count_values(bytes) <= MAX_LINE_VALUES;
        let text = std::str::from_utf8(bytes).ok().filter(|_| is_read)?;
        let Parsed { value: Value::Object(line), .. } = json::parse(text).ok()? else { return None };
        Some(match &self.rows {
            Some(rows) => rows.identity_of(&line),
            None => line,
        })
    }

    fn failed(
        &mut self,
        place: Place,
        digested: &[u8],
        id: Option<String>,
        error: LineError,
    ) -> Box<FailedLine> {
        let mut head = self.head(place, digested);
        head.custom_id = match id {
            Some(id) => {
                // Whether it is another line's too is not what is wrong with this one.
                self.ids.claim(&id);
                id
            }
            None => self.ids.make_up(&self.file, place.line),
        };
        Box::new(FailedLine { head, error })
    }

    /// A head without an id.
    fn head(&self, place: Place, bytes: &[u8]) -> RequestHead {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&place.line.to_le_bytes());
        hasher.update(bytes);
        if self.file.number > 1 {
            hasher.update(&self.file.number.to_le_bytes());
        }
        let mut digest = [0; 16];
        hasher.finalize_xof().fill(&mut digest);
        let mut content_digest = [0; 16];
        blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut content_digest);
        RequestHead {
            index: place.index,
            file: self.file.clone(),
            line: place.line,
            custom_id: String::new(),
            digest,
            content_digest,
            form: Form::Chat,
            metadata: None,
            input: None,
        }
    }

    fn not_a_request(&self, line: u64, code: &'static str, reason: &str) -> LineError {
        LineError::NotARequest { code, message: format!("{}:{line}: {reason}", self.file.name) }
    }

    fn parse_object(&mut self, line: u64, bytes: &[u8]) -> Result<Map<String, Value>, LineError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let column = error.valid_up_to() + 1;
            let hint = match bytes {
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "; the file looks like UTF-16, save it as UTF-8",
                _ => "",
            };
            self.not_a_request(line, "invalid_utf8", &format!("not valid UTF-8 at byte {column}{hint}"))
        })?;
        let Parsed { value, mended } = json::parse(text).map_err(|error| {
            let place = format!(" at line {} column {}", error.line(), error.column());
            let what = error.to_string();
            let what = what.strip_suffix(&place).unwrap_or(&what);
            let hint = match text.trim() {
                "{" | "[" | "[{" | "}" | "]" | "}," | "}]" => {
                    "; the input must be JSON Lines, one whole object on each line".to_owned()
                }
                _ => odd_character(text, error.column(), &self.file.name)
                    .map_or_else(String::new, |odd| format!("; {odd}")),
            };
            let reason = format!("not valid JSON: {what} at column {}{hint}", error.column());
            self.not_a_request(line, "invalid_json", &reason)
        })?;
        if mended.is_some() {
            self.warn(line, "half of a surrogate pair", || {
                "holds half of a surrogate pair such as \\ud83d, which is no character; U+FFFD takes its place"
                    .to_owned()
            });
        }
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
        line: Map<String, Value>,
    ) -> Result<Asked, RequestError> {
        if self.keeps_input {
            let kept = line.iter().filter(|(name, _)| !PROMPTS.contains(&name.as_str()));
            head.input = Some(kept.map(|(name, value)| (name.clone(), value.clone())).collect());
        }
        let (mut object, made) = match &self.rows {
            Some(rows) => rows.request_of(&line),
            None => (line, Ok(())),
        };
        head.metadata = object.swap_remove("metadata").filter(|metadata| !metadata.is_null());
        let Identity { id, problem } = Identity::take(&mut object);
        let claim = id.as_ref().map(|id| self.ids.claim(id));
        head.custom_id = id.unwrap_or_else(|| self.ids.make_up(&self.file, head.line));
        if let Some(problem) = problem {
            return Err(problem);
        }
        match claim {
            Some(Claim::Taken) => {
                let reason = format!("{:?} was used by an earlier line; ids must be unique", head.custom_id);
                return Err(RequestError::bad_request("duplicate_custom_id", "custom_id", reason));
            }
            Some(Claim::MadeUpFor(line)) => self.warn(head.line, "id like a made-up one", || {
                format!("{:?} is also what {line} was called, which has no id", head.custom_id)
            }),
            Some(Claim::Own) | None => {}
        }

        made?;
        let Envelope { form, mut fields, unused } = Envelope::open(object)?;
        head.form = form;
        self.warn_unknown(head.line, unused);
        if head.metadata.is_none() {
            head.metadata = fields.take("metadata");
        }
        self.check_model(head.line, &mut fields)?;

        // First: beside some of its forms, fields are read that others refuse.
        let written = match form {
            Form::Chat => Some(conversations::take(&mut fields)?),
            Form::Text => None,
        };
        known_fields::check_request(&mut fields)?;
        let params = RequestParams::take(&mut fields)?;
        let mut options = AnswerOptions::take(&mut fields, form)?;
        let prompts = match written {
            Some(Written { messages, has_reference }) => {
                if has_reference {
                    self.warn(head.line, "reference answer", || conversations::REFERENCE_LEFT_OUT.to_owned());
                }
                let tools = Tools::take(&mut fields)?;
                if let Some(name) = tools.unheld_function() {
                    self.warn(head.line, "strict tools", || tools::not_held(name));
                }
                options.constrain(tools.constraint()?)?;
                let chat = messages::take_chat(&mut fields, messages, tools)?;
                options.check_turns(chat.num_turns())?;
                vec![Prompt::Chat(chat)]
            }
            None => {
                if params.thinking_budget.is_some() {
                    let reason =
                        "only a conversation's answer has thinking that is told from it; leave it out";
                    return Err(RequestError::unsupported("thinking_budget", reason));
                }
                prompts::take(&mut fields)?
            }
        };
        let num_choices = prompts.len().saturating_mul(options.num_choices);
        if num_choices > MAX_CHOICES {
            let reason = format!("{num_choices} answers are asked for; one line may have {MAX_CHOICES}");
            return Err(RequestError::invalid("prompt", reason));
        }
        options.check(&params)?;
        self.warn_unknown(head.line, fields.into_unknown_names());
        Ok(Asked { prompts, params, options })
    }

    /// Compares the model, or `model:adapter`, and the adapter that a request names with those of the run.
    fn check_model(&mut self, line: u64, fields: &mut Fields) -> Result<(), RequestError> {
        let (wanted, adapter) = (fields.take_string("model")?, fields.take_string("adapter")?);
        let Some(served) = &self.served_model else { return Ok(()) };
        let of_model =
            wanted.as_ref().and_then(|wanted| wanted.strip_prefix(served.as_str())?.strip_prefix(':'));
        let adapter = adapter.as_deref().filter(|name| !name.is_empty());
        for (field, name) in [("model", of_model), ("adapter", adapter)] {
            if let Some(name) = name
                && self.served_adapter.as_deref() != Some(name)
            {
                let ours = match &self.served_adapter {
                    Some(ours) => format!("every request of this run is answered with {ours:?}"),
                    None => "this run has none; give its folder as --adapter".to_owned(),
                };
                return Err(RequestError::invalid(field, format!("asks for the adapter {name:?}; {ours}")));
            }
        }
        let Some(wanted) = wanted.as_ref().filter(|_| of_model.is_none()) else { return Ok(()) };
        let answering = match &self.served_adapter {
            Some(ours) if adapter.is_none() => format!("{served}:{ours}"),
            _ => served.clone(),
        };
        if *wanted != answering {
            let text =
                format!("asks for the model {wanted:?}; every request of a run is answered by {answering}");
            self.warn(line, &format!("model {wanted}"), || text);
        }
        Ok(())
    }

    fn warn_unknown(&mut self, line: u64, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.warn(line, &format!("field {name}"), || {
                format!("the field {name:?} is not used by mlxbatch and is ignored")
            });
        }
    }
}

#[cfg(test)]
mod tests;
