//! A request → what the engine runs.
//!
//! Owns the order of precedence of parameters, the context limit and the key of a request's
//! random numbers. Formats are `batch/`'s, templates and tokens `text/`'s.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    batch::{Prompt, RequestError, RequestHead, RequestParams},
    engine::{
        AnswerRecurs, GenerationRequest, Processors, PromptPlan, RequestId, SamplingParams, TokenId,
        sampling_key,
    },
    text::{ChatPrompt, Notice, RenderRequest, Span, TextError, TextModel, system_end},
};

/// A prompt of so many bytes is tokenised in any case, so that its error says how long it is. To tokenise a
/// text takes some 140 times its memory.
const MAX_COUNTED_BYTES: usize = 256 << 10;

/// What all requests of a run share.
#[derive(Debug)]
pub(in crate::commands) struct Preparer {
    pub end_ids: Arc<[TokenId]>,
    /// Flags over the model's generation_config.json.
    pub fallback: RequestParams,
    /// Longest answer where nobody has spoken.
    pub default_max_tokens: u32,
    pub max_context: usize,
    pub vocab_size: usize,
    /// Whether the model resumes at checkpoints only, which are taken at every boundary.
    pub has_checkpoints: bool,
}

/// A request ready to be submitted.
#[derive(Debug)]
pub(in crate::commands) struct Prepared {
    pub generation: GenerationRequest,
    /// What a chat template was given beside the messages; nothing of a raw prompt.
    pub template_kwargs: Option<Map<String, Value>>,
    pub stops: Vec<String>,
    /// The tiered pieces of the prompt.
    pub spans: Vec<Span>,
    /// Positions at which the prompt is cut whatever the other prompts are.
    pub boundaries: Vec<usize>,
    /// What the chat template has passed over.
    pub notices: Vec<Notice>,
}

impl Preparer {
    /// Renders, tokenises and checks a request.
    pub(in crate::commands) fn prepare(
        &self,
        text: &TextModel,
        head: &RequestHead,
        prompt: &Prompt,
        params: RequestParams,
    ) -> Result<Prepared, RequestError> {
        let param = prompt_param(prompt);
        let too_long = |num_tokens: String| {
            RequestError::bad_request(
                "context_length_exceeded",
                param,
                format!(
                    "the prompt has {num_tokens} tokens; the model's context of {} leaves no room for an answer",
                    self.max_context
                ),
            )
        };
        let min_tokens = min_tokens(text, prompt);
        if min_tokens >= self.max_context {
            return Err(too_long(format!("at least {min_tokens}")));
        }
        let ChatPrompt { tokens, spans, notices } = encode(text, prompt, params.add_special_tokens)?;
        let num_tokens = tokens.len();
        if num_tokens == 0 {
            return Err(RequestError::invalid(param, "the prompt has no tokens"));
        }
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            return Err(RequestError::invalid(
                param,
                format!(
                    "the tokenizer gave token {token}, but the model knows {} tokens; they do not belong together",
                    self.vocab_size
                ),
            ));
        }
        if num_tokens >= self.max_context {
            return Err(too_long(num_tokens.to_string()));
        }
        let own_seed = params.seed;
        let params = params.or(&self.fallback);
        let max_tokens = params.max_tokens.unwrap_or(self.default_max_tokens) as usize;
        let sampling = SamplingParams {
            temperature: params.temperature.unwrap_or(0.0),
            top_p: params.top_p.unwrap_or(1.0),
            top_k: params.top_k.unwrap_or(0),
            min_p: params.min_p.unwrap_or(0.0),
            key: key(own_seed, params.seed, head),
        };
        Ok(Prepared {
            generation: GenerationRequest {
                id: RequestId(head.index),
                prompt: tokens,
                max_new_tokens: max_tokens.min(self.max_context - num_tokens),
                end_ids: Arc::clone(&self.end_ids),
                sampling,
                processors: Processors::default(),
                report: None,
                score: None,
                plan: PromptPlan::default(),
                answer_recurs: AnswerRecurs::default(),
            },
            template_kwargs: match prompt {
                Prompt::Chat { template_kwargs, .. } => Some(template_kwargs.clone()),
                Prompt::Text(_) => None,
            },
            stops: params.stop.unwrap_or_default(),
            boundaries: if self.has_checkpoints {
                spans.iter().map(|span| span.end).collect()
            } else {
                // Only what outlives the rest is worth a node of its own.
                system_end(&spans).into_iter().collect()
            },
            spans,
            notices,
        })
    }
}

/// A request's own seed alone makes its answer; the run's seed is told apart by the request's id,
/// so that equal prompts under one seed are drawn independently, in whatever order they stand.
fn key(own_seed: Option<u64>, seed: Option<u64>, head: &RequestHead) -> u64 {
    match own_seed {
        Some(seed) => sampling_key(seed, 0),
        None => {
            let id = blake3::hash(own_id(head).as_bytes());
            let request_key = id.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            sampling_key(seed.unwrap_or(0), request_key)
        }
    }
}

/// What tells a request from others whatever these are: a made-up id steps aside where another line has that
/// id, and then ends in a number more.
fn own_id(head: &RequestHead) -> String {
    let made_up = format!("line-{}", head.line);
    let number = head.custom_id.strip_prefix(&made_up).and_then(|rest| rest.strip_prefix('-'));
    let is_made_up = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    if is_made_up { made_up } else { head.custom_id.clone() }
}

fn prompt_param(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Chat { .. } => "messages",
        Prompt::Text(_) => "prompt",
    }
}

/// Tokens that a long prompt has at least, known before it is tokenised; 0 for one that is soon counted.
fn min_tokens(text: &TextModel, prompt: &Prompt) -> usize {
    let of_text = |prompt: &str| match prompt.len() {
        ..=MAX_COUNTED_BYTES => 0,
        _ => text.tokenizer().min_tokens(prompt),
    };
    match prompt {
        Prompt::Text(prompt) => of_text(prompt),
        Prompt::Chat { messages, .. }
            if messages.iter().map(text_bytes).sum::<usize>() <= MAX_COUNTED_BYTES =>
        {
            0
        }
        // A template may leave out any of it. What it says of them is told when they are encoded.
        Prompt::Chat { messages, tools, template_kwargs } => {
            let request = render_request(messages, tools.as_ref(), template_kwargs);
            text.render_chat(&request).map_or(0, |text| of_text(&text))
        }
    }
}

/// Bytes of all texts in a JSON value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}

fn render_request<'a>(
    messages: &'a [Value],
    tools: Option<&'a Value>,
    template_kwargs: &'a Map<String, Value>,
) -> RenderRequest<'a> {
    RenderRequest { messages, tools, add_generation_prompt: true, extra: template_kwargs }
}

/// A raw prompt gets the tokenizer's own tokens, a chat template writes them itself, unless the
/// request says otherwise.
fn encode(
    text: &TextModel,
    prompt: &Prompt,
    add_special_tokens: Option<bool>,
) -> Result<ChatPrompt, RequestError> {
    let encoded = match prompt {
        Prompt::Text(prompt) => {
            text.encode_prompt(prompt, add_special_tokens.unwrap_or(true)).map(|tokens| {
                let spans = Span::of_raw_prompt(tokens.len());
                ChatPrompt { tokens, spans, notices: Vec::new() }
            })
        }
        Prompt::Chat { messages, tools, template_kwargs } => {
            let request = render_request(messages, tools.as_ref(), template_kwargs);
            text.encode_chat_with_spans(&request, add_special_tokens.unwrap_or(false))
        }
    };
    encoded.map_err(|error| {
        let code = match &error {
            TextError::NoChatTemplate { .. } => "no_chat_template",
            _ if error.is_request_fault() => "template_error",
            _ => "text_error",
        };
        match error {
            TextError::Message { index, problem } => {
                RequestError::bad_request(code, &format!("messages[{index}]"), problem)
            }
            error => RequestError::bad_request(code, prompt_param(prompt), error.to_string()),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    /// Llama 2's text side, whose template writes BOS.
    fn text_model() -> TextModel {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        fs::copy("fixtures/tokenizers/llama2.json", dir.path().join("tokenizer.json")).expect("copied");
        let cases = fs::read("fixtures/tokenizers/cases.json").expect("the fixture is there");
        let cases: Value = serde_json::from_slice(&cases).expect("JSON");
        let mut cases = cases["cases"].as_array().expect("a list").iter();
        let case = cases.find(|case| case["name"] == "Llama 2 chat").expect("it is there");
        for (name, content) in case["files"].as_object().expect("an object") {
            fs::write(dir.path().join(name), content.to_string()).expect("written");
        }
        TextModel::from_folder(dir.path()).expect("loads")
    }

    /// A made-up id that stepped aside for another line's drew other tokens.
    #[test]
    fn what_is_drawn_does_not_depend_on_the_ids_of_other_lines() {
        let key_of = |custom_id: &str| {
            let head = RequestHead {
                index: 2,
                line: 3,
                custom_id: custom_id.into(),
                digest: [0; 16],
                form: crate::batch::Form::Text,
                metadata: None,
            };
            key(None, None, &head)
        };
        assert_eq!(key_of("line-3"), key_of("line-3-2"));
        assert_ne!(key_of("line-3"), key_of("line-30"));
        assert_ne!(key_of("line-3"), key_of("line-3-b"));
    }

    /// The field was ignored as unknown, and every raw prompt began with BOS.
    #[test]
    fn a_request_says_whether_special_tokens_are_added() {
        let text = text_model();
        let tokens = |prompt: &Prompt, add: Option<bool>| {
            let ChatPrompt { tokens, spans, .. } = encode(&text, prompt, add).expect("encodes");
            assert_eq!(spans.last().map(|span| span.end), Some(tokens.len()));
            tokens
        };
        let raw = Prompt::Text("Hello".into());
        let with_bos = tokens(&raw, None);
        assert_eq!((with_bos[0], tokens(&raw, Some(true))), (1, with_bos.clone()));
        assert_eq!(tokens(&raw, Some(false)), with_bos[1..]);
        let chat = Prompt::Chat {
            messages: vec![json!({"role": "user", "content": "Hello"})],
            tools: None,
            template_kwargs: Map::new(),
        };
        let rendered = tokens(&chat, None);
        assert!(rendered[0] == 1 && rendered[1] != 1, "{rendered:?}");
        assert_eq!([Some(false), Some(true)].map(|add| tokens(&chat, add)), [rendered.clone(), rendered]);
    }
}
