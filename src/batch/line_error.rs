//! What can be wrong with one input line.
//!
//! Owns the two kinds of failure and their fields, as the OpenAI Batch API names them: a request
//! that cannot be served, and a line that is no request at all. How they look on an output line
//! is `record`'s business.

use super::request::RequestHead;
use crate::guide::GuideError;

/// The code of lines that fail by what this machine has, or allows this process.
pub(super) const MACHINE_LIMIT: &str = "machine_limit";

/// Why a request cannot be served; becomes `response.body.error` under a 4xx or 5xx status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestError {
    pub status: u16,
    /// Names file, line and reason once [`RequestError::at`] has been called.
    pub message: String,
    /// The `type` field.
    pub kind: &'static str,
    /// The request's field at fault, such as `messages[2].role`.
    pub param: Option<String>,
    pub code: &'static str,
}

impl RequestError {
    /// A 400 about one field, or about the whole request when `param` is empty.
    pub fn bad_request(code: &'static str, param: &str, reason: impl AsRef<str>) -> Self {
        let reason = reason.as_ref();
        Self {
            status: 400,
            message: if param.is_empty() { reason.to_owned() } else { format!("{param}: {reason}") },
            kind: "invalid_request_error",
            param: (!param.is_empty()).then(|| param.to_owned()),
            code,
        }
    }

    /// A field that must be there is not.
    pub fn missing(param: &str, reason: impl AsRef<str>) -> Self {
        Self::bad_request("missing_required_parameter", param, reason)
    }

    /// A field of the wrong JSON type.
    pub fn wrong_type(param: &str, reason: impl AsRef<str>) -> Self {
        Self::bad_request("invalid_type", param, reason)
    }

    /// A field of the right type but out of range.
    pub fn invalid(param: &str, reason: impl AsRef<str>) -> Self {
        Self::bad_request("invalid_value", param, reason)
    }

    /// Something that cannot be honoured and whose neglect would change the answer.
    pub fn unsupported(param: &str, reason: impl AsRef<str>) -> Self {
        Self::bad_request("unsupported_value", param, reason)
    }

    /// A 500: the request is fine, computing its answer failed.
    pub fn internal(reason: impl Into<String>) -> Self {
        Self {
            status: 500,
            message: reason.into(),
            kind: "server_error",
            param: None,
            code: "internal_error",
        }
    }

    /// A 500: the request is fine, this machine or what it allows this process is not.
    pub fn machine(reason: impl Into<String>) -> Self {
        Self { code: MACHINE_LIMIT, ..Self::internal(reason) }
    }

    /// A constraint, given in this field, to which no answer can be held.
    pub fn of_constraint(param: &str, error: &GuideError) -> Self {
        match error {
            GuideError::NoThread(reason) => Self::machine(reason),
            _ => Self::unsupported(param, error.to_string()),
        }
    }

    /// A 500: what the model computed for this request are no numbers.
    pub fn not_numbers() -> Self {
        let reason = "what the model computed are no numbers: they are beyond the range of the element type \
                      (try --dtype bf16 or f32), or its weights are damaged";
        Self { code: "not_a_number", ..Self::internal(reason) }
    }

    /// A 408: the answer was not there in time.
    pub fn timeout(reason: impl Into<String>) -> Self {
        Self { status: 408, code: "timeout", ..Self::internal(reason) }
    }

    /// Says which turn of a conversation it is about, counted from 1, if there are several.
    pub fn in_turn(mut self, turn: usize, num_turns: usize) -> Self {
        if num_turns > 1 {
            self.message = format!("turn {turn} of {num_turns}: {}", self.message);
        }
        self
    }

    /// Puts `file:line: ` ahead of the message.
    pub fn at(mut self, file: &str, line: u64) -> Self {
        self.message = format!("{file}:{line}: {}", self.message);
        self
    }
}

/// What is wrong with an input line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineError {
    /// A request that cannot be served.
    Request(RequestError),
    /// No request at all; becomes the output line's top-level `error`.
    NotARequest { code: &'static str, message: String },
}

impl LineError {
    /// The text that names file, line and reason.
    pub fn message(&self) -> &str {
        match self {
            Self::Request(error) => &error.message,
            Self::NotARequest { message, .. } => message,
        }
    }

    /// The machine-readable kind.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Request(error) => error.code,
            Self::NotARequest { code, .. } => code,
        }
    }
}

/// An input line that gets an error for its output line.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedLine {
    pub head: RequestHead,
    pub error: LineError,
}
