//! Parameters that are refused because ignoring them would change the answer.
//!
//! Owns that list and the values at which each of them changes nothing. A parameter that is
//! served leaves this list for `params`.

use serde_json::Value;

use super::super::line_error::RequestError;
use super::fields::Fields;

/// A parameter and the values that make it mean nothing.
struct Refused {
    name: &'static str,
    is_neutral: fn(&Value) -> bool,
    reason: &'static str,
}

const fn refused(name: &'static str, is_neutral: fn(&Value) -> bool, reason: &'static str) -> Refused {
    Refused { name, is_neutral, reason }
}

const ONE_ANSWER: &str =
    "one answer per request is computed; repeat the line with another custom_id and seed";
const NO_LOGPROBS: &str = "log-probabilities are not returned";
const NO_PENALTY: &str = "penalties are not applied; leave it out";
const NO_GUIDE: &str = "answers cannot be constrained to a format; leave it out";
const OLD_TOOLS: &str = "the deprecated function-calling fields are not served; use `tools`";

const REFUSED: [Refused; 32] = [
    refused("n", is_one, ONE_ANSWER),
    refused("best_of", is_one, ONE_ANSWER),
    refused("use_beam_search", is_off, ONE_ANSWER),
    refused("stream", is_off, "answers are written whole, one line each; leave `stream` out"),
    refused("logprobs", is_off, NO_LOGPROBS),
    refused("top_logprobs", is_zero, NO_LOGPROBS),
    refused("prompt_logprobs", is_off, NO_LOGPROBS),
    refused("echo", is_off, "the prompt is not repeated in the answer"),
    refused("suffix", is_empty, "text can only be continued, not filled in"),
    refused("response_format", is_text_format, NO_GUIDE),
    refused("guided_json", never, NO_GUIDE),
    refused("guided_regex", never, NO_GUIDE),
    refused("guided_choice", never, NO_GUIDE),
    refused("guided_grammar", never, NO_GUIDE),
    refused("structured_outputs", never, NO_GUIDE),
    refused("grammar", never, NO_GUIDE),
    refused("logit_bias", is_empty, "token biases are not applied; leave it out"),
    refused("presence_penalty", is_zero, NO_PENALTY),
    refused("frequency_penalty", is_zero, NO_PENALTY),
    refused("repetition_penalty", is_one, NO_PENALTY),
    refused("length_penalty", is_one, NO_PENALTY),
    refused("min_tokens", is_zero, "a minimum length is not enforced; leave it out"),
    refused("ignore_eos", is_off, "an answer ends at the model's end token"),
    refused("stop_token_ids", is_empty, "give the stop as text in `stop`"),
    refused("bad_words", is_empty, "words cannot be forbidden; leave it out"),
    refused("tool_choice", is_free_choice, "must be \"auto\" or \"none\": a tool call cannot be forced"),
    refused("functions", is_empty, OLD_TOOLS),
    refused("function_call", is_free_choice, OLD_TOOLS),
    refused("modalities", is_text_only, "only text is answered"),
    refused("audio", never, "only text is answered"),
    refused("add_generation_prompt", is_on, "every answer starts a new assistant turn"),
    refused("continue_final_message", is_off, "every answer starts a new assistant turn"),
];

/// Takes every parameter of the list and refuses the first that would matter.
///
/// `tool_choice` is left in place for `messages`, which acts on it.
pub(super) fn check(fields: &mut Fields) -> Result<(), RequestError> {
    for Refused { name, is_neutral, reason } in &REFUSED {
        if fields.get(name).is_some_and(|value| !is_neutral(value)) {
            return Err(RequestError::unsupported(name, reason));
        }
        if *name != "tool_choice" {
            fields.take(name);
        }
    }
    Ok(())
}

fn never(_: &Value) -> bool {
    false
}

fn is_off(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_on(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn is_text_format(value: &Value) -> bool {
    value.get("type").and_then(Value::as_str) == Some("text")
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

fn is_free_choice(value: &Value) -> bool {
    value == "auto" || value == "none"
}
