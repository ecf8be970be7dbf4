//! The output line: one JSON object in the shape of the OpenAI Batch API.
//!
//! Owns that shape and the ids in it, which follow from the input line alone so that a run can be
//! repeated. Where the line goes is the writer's business.

mod logprobs;
mod turns;

use serde::Serialize;
use serde_json::Value;

pub use self::logprobs::{Scored, Token, TokenLogprob};
pub use self::turns::Turn;

use self::turns::TurnFields;

use super::failures::Failure;
use super::line_error::{FailedLine, LineError, RequestError};
use super::request::{Form, RequestHead};
use crate::terminal::bounded;
use crate::text::{Reply, ToolCall};

/// What comes before a line's number in a record's `id`; behind the first input, that of the input stands between.
pub(super) const ID_PREFIX: &str = "batch_req_";

/// What comes before a line's digest in a record's `request_id`.
pub(super) const REQUEST_ID_PREFIX: &str = "req_";

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model's end token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// The answer calls tools.
    ToolCalls,
}

/// What else an answer ended with, where the request named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(u32),
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub text: String,
    pub finish_reason: FinishReason,
    pub stop_reason: Option<StopReason>,
    /// Of the tokens of the text, where that was asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Of the prompt's tokens.
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
    /// A conversation's answer taken apart.
    pub reply: Option<Reply>,
    /// Where a conversation has several turns to be generated, all of them, this last one included; else none.
    pub turns: Vec<Turn>,
}

/// All that a line's record tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// In the order of the prompts, those of one prompt side by side.
    pub choices: Vec<Choice>,
    /// A prompt counts once, however many answers it has; what the line's own choices left for each other is not
    /// cached.
    pub usage: TokenCounts,
}

/// Tokens that an answer, or a line, has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenCounts {
    pub num_prompt_tokens: u64,
    pub num_completion_tokens: u64,
    /// Prompt tokens whose KV was there.
    pub num_cached_tokens: u64,
    /// Tokens of thinking, where the model's way of it is known.
    pub num_reasoning_tokens: Option<u64>,
}

/// Who answers: the same for all records of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The model's name as the user gave it.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Leaves out what other runs with the same answers may have otherwise: which tokens were cached.
    pub is_repeatable: bool,
}

/// One output line and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    index: u64,
    line: String,
    /// Why it is no answer, where it is none.
    failure: Option<Failure>,
}

impl Record {
    /// The record of an answered request.
    pub fn success(head: &RequestHead, completion: &Completion, served: &Served) -> Self {
        let usage = Usage::new(&completion.usage, served);
        let (prefix, object) = match head.form {
            Form::Chat => ("chatcmpl", "chat.completion"),
            Form::Text => ("cmpl", "text_completion"),
        };
        let choices = completion.choices.iter().zip(0..);
        let answer = Answer {
            id: format!("{prefix}-{}", hex(&head.digest)),
            object,
            created: served.created,
            model: &served.model,
            choices: choices
                .map(|(choice, index)| ChoiceFields::new(head.form, index, choice, served))
                .collect(),
            usage,
            // A conversation has one prompt: it is told beside the choices, as vLLM does.
            prompt_logprobs: match (head.form, completion.choices.first()) {
                (Form::Chat, Some(choice)) => {
                    choice.prompt_logprobs.as_deref().map(logprobs::prompt_logprobs)
                }
                _ => None,
            },
        };
        Self::new(head, Some((200, Body::Answer(answer))), None)
    }

    /// The record of a request that cannot be served.
    pub fn request_error(head: &RequestHead, error: &RequestError) -> Self {
        Self::error_behind(head, error, Vec::new())
    }

    /// The record of a conversation one of whose turns cannot be served; those before it are told beside the error.
    pub fn turn_error(head: &RequestHead, error: &RequestError, before: &[Turn], served: &Served) -> Self {
        Self::error_behind(head, error, before.iter().map(|turn| TurnFields::new(turn, served)).collect())
    }

    fn error_behind(head: &RequestHead, error: &RequestError, turns: Vec<TurnFields<'_>>) -> Self {
        // All errors of lines come through here or `not_a_request`: many quote what somebody else wrote.
        let message = bounded(&error.message);
        let param = error.param.as_deref().map(bounded);
        let fields = RequestErrorFields {
            message: &message,
            kind: error.kind,
            param: param.as_deref(),
            code: error.code,
        };
        let failure = Failure { code: error.code.to_owned(), message: message.to_string() };
        let response = Some((error.status, Body::Error { error: fields, turns }));
        Self { failure: Some(failure), ..Self::new(head, response, None) }
    }

    /// The record of a line that is no request.
    pub fn not_a_request(head: &RequestHead, code: &str, message: &str) -> Self {
        let message = &*bounded(message);
        let failure = Failure { code: code.to_owned(), message: message.to_owned() };
        Self { failure: Some(failure), ..Self::new(head, None, Some(LineErrorFields { code, message })) }
    }

    /// The record of a line that the reader could not make a request of.
    pub fn failed(failed: &FailedLine) -> Self {
        match &failed.error {
            LineError::Request(error) => Self::request_error(&failed.head, error),
            LineError::NotARequest { code, message } => Self::not_a_request(&failed.head, code, message),
        }
    }

    fn new(
        head: &RequestHead,
        response: Option<(u16, Body<'_>)>,
        error: Option<LineErrorFields<'_>>,
    ) -> Self {
        let line = OutputLine {
            id: format!("{ID_PREFIX}{}", head.file.line_name(head.line)),
            custom_id: &head.custom_id,
            response: response.map(|(status_code, body)| Response {
                status_code,
                request_id: format!("{REQUEST_ID_PREFIX}{}", hex(&head.digest)),
                body,
            }),
            error,
            metadata: head.metadata.as_ref(),
            input: head.input.as_ref(),
        };
        let line = serde_json::to_string(&line).expect("strings, numbers and parsed JSON serialise");
        Self { index: head.index, line: one_line(line), failure: None }
    }

    /// Why it is no answer, where it is none.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Its place among the output lines, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The JSON text, without a line end.
    pub fn to_line(&self) -> String {
        self.line.clone()
    }

    pub(super) fn line(&self) -> &str {
        &self.line
    }
}

#[derive(Serialize)]
struct OutputLine<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<LineErrorFields<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a Value>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: String,
    body: Body<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Body<'a> {
    Answer(Answer<'a>),
    Error {
        error: RequestErrorFields<'a>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        turns: Vec<TurnFields<'a>>,
    },
}

#[derive(Serialize)]
struct Answer<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChoiceFields<'a>>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
}

#[derive(Serialize)]
struct ChoiceFields<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    /// Readers of the API's answers expect the key, also where it is null.
    logprobs: Option<Value>,
    finish_reason: FinishReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'a StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    turns: Vec<TurnFields<'a>>,
}

impl<'a> ChoiceFields<'a> {
    fn new(form: Form, index: u32, choice: &'a Choice, served: &Served) -> Self {
        let (message, text) = match form {
            Form::Chat => (Some(Message::of(choice)), None),
            Form::Text => (None, Some(choice.text.as_str())),
        };
        let of_prompt = choice.prompt_logprobs.as_deref().filter(|_| form == Form::Text);
        Self {
            index,
            message,
            text,
            logprobs: choice.logprobs.as_deref().map(|tokens| logprobs::logprobs(form, &choice.text, tokens)),
            finish_reason: choice.finish_reason,
            stop_reason: choice.stop_reason.as_ref(),
            prompt_logprobs: of_prompt.map(logprobs::prompt_logprobs),
            turns: choice.turns.iter().map(|turn| TurnFields::new(turn, served)).collect(),
        }
    }
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
}

impl<'a> Message<'a> {
    fn of(choice: &'a Choice) -> Self {
        let reply = choice.reply.as_ref();
        Self {
            role: "assistant",
            content: reply.map_or(Some(choice.text.as_str()), |reply| reply.content.as_deref()),
            reasoning_content: reply.and_then(|reply| reply.reasoning.as_deref()),
            tool_calls: reply
                .map(|reply| reply.calls.iter().map(ToolCall::to_json).collect())
                .unwrap_or_default(),
        }
    }
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(Serialize)]
struct CompletionTokensDetails {
    reasoning_tokens: u64,
}

impl Usage {
    fn new(counts: &TokenCounts, served: &Served) -> Self {
        let cached_tokens = counts.num_cached_tokens;
        Self {
            prompt_tokens: counts.num_prompt_tokens,
            completion_tokens: counts.num_completion_tokens,
            total_tokens: counts.num_prompt_tokens.saturating_add(counts.num_completion_tokens),
            prompt_tokens_details: (!served.is_repeatable).then_some(PromptTokensDetails { cached_tokens }),
            completion_tokens_details: counts
                .num_reasoning_tokens
                .map(|reasoning_tokens| CompletionTokensDetails { reasoning_tokens }),
        }
    }
}

#[derive(Serialize)]
struct PromptTokensDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct RequestErrorFields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: &'a str,
}

#[derive(Serialize)]
struct LineErrorFields<'a> {
    code: &'a str,
    message: &'a str,
}

/// Escapes the characters at which some readers end a line, Python's `splitlines` among them; in JSON they
/// can only stand in strings.
fn one_line(json: String) -> String {
    const ENDS: [(char, &str); 3] = [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    if !json.contains(ENDS.map(|(end, _)| end)) {
        return json;
    }
    ENDS.iter().fold(json, |json, (end, escaped)| json.replace(*end, escaped))
}

/// A digest as it stands in ids.
pub(super) fn hex(digest: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*digest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn head(form: Form) -> RequestHead {
        let metadata = Some(json!({"split": "test"}));
        RequestHead {
            index: 1,
            file: crate::batch::paths::InputFile { number: 1, name: "in.jsonl".into() },
            line: 3,
            custom_id: "a".into(),
            digest: [0xab; 16],
            content_digest: [0; 16],
            form,
            metadata,
            input: None,
        }
    }

    fn parsed(record: &Record) -> Value {
        serde_json::from_str(&record.to_line()).expect("an output line is JSON")
    }

    /// `raise_exception` with ten megabytes of text, and an expression of as many, were records of as many.
    #[test]
    fn errors_that_quote_others_at_length_are_shortened() {
        let long = "ü".repeat(5 << 20);
        let error = RequestError::bad_request("template_error", &long, format!("no: {long}, and so on"));
        let error = error.at("in.jsonl", 3);
        let served = Served { model: "tiny".into(), created: 0, is_repeatable: true };
        for record in [
            Record::request_error(&head(Form::Chat), &error),
            Record::turn_error(&head(Form::Chat), &error, &[], &served),
            Record::not_a_request(&head(Form::Chat), "invalid_json", &error.message),
        ] {
            assert!(record.to_line().len() < 40_000);
            let failure = record.failure().expect("it is one");
            assert!(
                failure.message.starts_with("in.jsonl:3: ü") && failure.message.ends_with("ü, and so on")
            );
        }
    }

    fn completion(texts: &[&str]) -> Completion {
        let choice = |text: &&str| Choice {
            text: (*text).to_owned(),
            finish_reason: FinishReason::Length,
            stop_reason: None,
            logprobs: None,
            prompt_logprobs: None,
            reply: None,
            turns: Vec::new(),
        };
        Completion {
            choices: texts.iter().map(choice).collect(),
            usage: TokenCounts {
                num_prompt_tokens: 7,
                num_completion_tokens: 2,
                num_cached_tokens: 5,
                num_reasoning_tokens: None,
            },
        }
    }

    #[test]
    fn a_chat_answer_has_the_shape_of_the_batch_api() {
        let completion = completion(&["Hi \"there\"\n"]);
        let served = Served { model: "tiny".into(), created: 1_700_000_000, is_repeatable: false };
        let record = Record::success(&head(Form::Chat), &completion, &served);
        assert_eq!(record.index(), 1);
        assert!(!record.to_line().contains('\n'));
        let hash = "ab".repeat(16);
        assert_eq!(
            parsed(&record),
            json!({
                "id": "batch_req_3",
                "custom_id": "a",
                "response": {
                    "status_code": 200,
                    "request_id": format!("req_{hash}"),
                    "body": {
                        "id": format!("chatcmpl-{hash}"),
                        "object": "chat.completion",
                        "created": 1_700_000_000,
                        "model": "tiny",
                        "choices": [{
                            "index": 0,
                            "message": {"role": "assistant", "content": "Hi \"there\"\n"},
                            "logprobs": null,
                            "finish_reason": "length",
                        }],
                        "usage": {
                            "prompt_tokens": 7,
                            "completion_tokens": 2,
                            "total_tokens": 9,
                            "prompt_tokens_details": {"cached_tokens": 5},
                        },
                    },
                },
                "error": null,
                "metadata": {"split": "test"},
            })
        );
    }

    #[test]
    fn an_answer_that_was_taken_apart_has_its_parts() {
        let call = ToolCall { id: "call_1".into(), name: "f".into(), arguments: "{\"a\":1}".into() };
        let mut completion = completion(&["as written"]);
        completion.usage.num_reasoning_tokens = Some(1);
        completion.choices[0].finish_reason = FinishReason::ToolCalls;
        let reply = Reply { reasoning: Some("Hm".into()), calls: vec![call], ..Reply::default() };
        completion.choices[0].reply = Some(reply);
        let served = Served { model: "tiny".into(), created: 0, is_repeatable: true };
        let line = parsed(&Record::success(&head(Form::Chat), &completion, &served));
        let body = &line["response"]["body"];
        assert_eq!(
            body["choices"][0],
            json!({
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": null,
                    "reasoning_content": "Hm",
                    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}],
                },
                "logprobs": null,
                "finish_reason": "tool_calls",
            })
        );
        assert_eq!(body["usage"]["completion_tokens_details"], json!({"reasoning_tokens": 1}));
    }

    #[test]
    fn a_raw_completion_has_text_in_place_of_a_message() {
        let served = Served { model: "tiny".into(), created: 0, is_repeatable: false };
        let mut completion = completion(&["", "b"]);
        completion.choices[1].finish_reason = FinishReason::Stop;
        completion.choices[1].stop_reason = Some(StopReason::Token(7));
        let line = parsed(&Record::success(&head(Form::Text), &completion, &served));
        let body = &line["response"]["body"];
        assert_eq!(body["object"], "text_completion");
        assert_eq!(
            body["choices"],
            json!([
                {"index": 0, "text": "", "logprobs": null, "finish_reason": "length"},
                {"index": 1, "text": "b", "logprobs": null, "finish_reason": "stop", "stop_reason": 7},
            ])
        );
    }

    #[test]
    fn a_refused_request_has_its_error_in_the_body() {
        let error = RequestError::invalid("top_p", "must be from 0 to 1, not 2").at("in.jsonl", 3);
        let line = parsed(&Record::request_error(&head(Form::Chat), &error));
        assert_eq!(line["response"]["status_code"], 400);
        assert_eq!(line["error"], Value::Null);
        assert_eq!(
            line["response"]["body"],
            json!({"error": {
                "message": "in.jsonl:3: top_p: must be from 0 to 1, not 2",
                "type": "invalid_request_error",
                "param": "top_p",
                "code": "invalid_value",
            }})
        );
    }

    #[test]
    fn a_line_that_is_no_request_has_no_response() {
        let line = parsed(&Record::not_a_request(&head(Form::Chat), "invalid_json", "in.jsonl:3: no"));
        assert_eq!(line["response"], Value::Null);
        assert_eq!(line["error"], json!({"code": "invalid_json", "message": "in.jsonl:3: no"}));
    }
}
