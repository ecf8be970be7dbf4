//! How a model's answers are written, told from its chat template.
//!
//! Owns the trial: a conversation with a call is rendered, and the first of the ways counts that reads the call
//! in what the template wrote. A template that shows no calls is looked into for what begins one, then the
//! vocabulary is. Thinking is rewritten by most templates; its marks are looked for in their text.

use serde_json::{Map, Value, json};

use super::{CallSyntax, DraftCall, ReplySyntax, ThinkingSyntax, calls, channels};
use crate::text::spans::common_prefix;
use crate::text::{ChatTemplate, RenderRequest, Tokenizer};

const FUNCTION: &str = "probe_function";

impl ReplySyntax {
    /// The syntax of a template's answers.
    pub fn of_template(template: &ChatTemplate, tokenizer: &Tokenizer) -> Self {
        let source = template.source();
        let thinking = ThinkingSyntax::in_template(source);
        let is_channels = thinking.is_some_and(|syntax| syntax.marks().any(|mark| mark == channels::MESSAGE));
        let calls = match is_channels {
            true => CallSyntax::named("harmony"),
            false => by_trial(template).or_else(|| by_sign(|sign| source.contains(sign))),
        };
        let calls = calls.or_else(|| by_sign(|sign| tokenizer.token_id(sign).is_some()));
        Self { thinking, calls }
    }
}

fn by_sign(is_there: impl Fn(&str) -> bool) -> Option<&'static CallSyntax> {
    // Messages of channels are told by their thinking.
    let mut marked = calls::ALL.iter().skip(1);
    marked.find(|syntax| syntax.sign().is_some_and(&is_there))
}

fn by_trial(template: &ChatTemplate) -> Option<&'static CallSyntax> {
    let written = written_call(template)?;
    let expected = DraftCall {
        id: None,
        name: FUNCTION.to_owned(),
        arguments: json!({"probe_key": "probe value"}).to_string(),
    };
    let reads = |syntax: &&CallSyntax| {
        let found = match syntax.sign() {
            Some(_) => syntax.read(&written, None, false).1,
            None => syntax.read_block(written.trim_start(), None).map(|(calls, _)| calls).unwrap_or_default(),
        };
        found.first().is_some_and(|call| DraftCall { id: None, ..call.clone() } == expected)
    };
    calls::ALL.iter().skip(1).find(reads)
}

/// What a template writes of an answer that calls.
fn written_call(template: &ChatTemplate) -> Option<String> {
    let question = json!({"role": "user", "content": "Hi"});
    let call = json!({"role": "assistant", "tool_calls": [{"id": "call00001", "type": "function",
        "function": {"name": FUNCTION, "arguments": {"probe_key": "probe value"}}}]});
    let result = json!({"role": "tool", "tool_call_id": "call00001", "name": FUNCTION, "content": "1"});
    let tools = json!([{"type": "function", "function": {"name": FUNCTION, "description": "d",
        "parameters": {"type": "object", "properties": {"probe_key": {"type": "string", "description": "d"}},
            "required": ["probe_key"]}}}]);
    let extra = Map::new();
    let render = |messages: &[Value], add_generation_prompt: bool| {
        let request = RenderRequest { messages, tools: Some(&tools), add_generation_prompt, extra: &extra };
        template.render(&request).ok()
    };
    let prompt = render(std::slice::from_ref(&question), true)?;
    let whole = render(&[question, call, result], false)?;
    Some(whole[common_prefix(&prompt, &whole)..].to_owned())
}
