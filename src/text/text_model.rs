//! A model's text side as one thing: tokenizer, chat templates and end tokens.
//!
//! Owns loading the three together and turning a request into token ids. Each part's own rules
//! are in its module.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Map, Value};

use super::spans::{self, Span};
use super::template::special_tokens;
use super::templates::Templates;
use super::{
    ChatTemplate, Notice, PromptThinking, RenderRequest, Rendered, ReplySyntax, TextError, ThinkingSyntax,
    Tokenizer, ends,
};
use crate::deep::{fingerprint, for_each_line};
use crate::guide::{Compiler, Constraint, GuideError, Pattern, Preamble};
use crate::models::GgufHeader;

/// What is needed to turn requests into tokens and tokens into answers.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    templates: Templates,
    end_ids: Vec<u32>,
    /// What constraints are compiled with, once one is asked for.
    compiler: OnceLock<Result<Compiler, GuideError>>,
    /// Whether plain answers come back in later prompts, by template, variables and shape.
    plain_recurs: Mutex<HashMap<u64, bool>>,
    /// What was found out of syntaxes' marks; a run has few syntaxes.
    control_marks: Mutex<Vec<(ReplySyntax, bool)>>,
}

/// Shapes of answers that are remembered.
const MAX_PLAIN_RECURS: usize = 1024;

/// How a conversation becomes a prompt, beside what its template sees.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatOptions<'a> {
    /// The text of the request's own template.
    pub template: Option<&'a str>,
    /// Whether the prompt ends with the text of the last message, whatever is written behind it.
    pub ends_within_last: bool,
    /// Whether the tokenizer adds what the template has not written, as for a raw prompt.
    pub add_special_tokens: bool,
    /// How the model writes its thinking, where that is of interest.
    pub thinking: Option<&'static ThinkingSyntax>,
    /// A prompt that has more tokens is not made; it is told of where that is known before.
    pub max_tokens: Option<usize>,
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    pub tokens: Vec<u32>,
    pub spans: Vec<Span>,
    /// What the chat template has passed over.
    pub notices: Vec<Notice>,
    /// Whether the answer begins within thinking.
    pub thinking: PromptThinking,
}

impl TextModel {
    fn of(tokenizer: Tokenizer, templates: Templates, end_ids: Vec<u32>) -> TextModel {
        TextModel {
            tokenizer,
            templates,
            end_ids,
            compiler: OnceLock::new(),
            plain_recurs: Mutex::default(),
            control_marks: Mutex::default(),
        }
    }

    /// Loads a model folder's text files.
    pub fn from_folder(dir: &Path) -> Result<TextModel, TextError> {
        let tokenizer = Tokenizer::from_folder(dir)?;
        let template = required(ChatTemplate::from_folder(dir), dir)?;
        let end_ids = ends::from_folder(dir, &tokenizer, template.as_ref().ok())?;
        let templates = Templates::new(template, special_tokens::from_folder(dir)?);
        Ok(TextModel::of(tokenizer, templates, end_ids))
    }

    /// Rebuilds the text side from a GGUF file's metadata.
    pub fn from_gguf(header: &GgufHeader) -> Result<TextModel, TextError> {
        let tokenizer = Tokenizer::from_gguf(header)?;
        let template = required(ChatTemplate::from_gguf(header), header.path())?;
        let end_ids = ends::from_gguf(header, &tokenizer, template.as_ref().ok());
        let templates = Templates::new(template, special_tokens::from_gguf(header));
        Ok(TextModel::of(tokenizer, templates, end_ids))
    }

    /// Renders a conversation by the model's template and turns it into token ids; the template alone
    /// decides about special tokens.
    pub fn encode_chat(&self, request: &RenderRequest) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(&self.render_chat(request, &ChatOptions::default())?, false)
    }

    /// Renders a conversation, turns it into token ids and cuts the prompt into tiered spans, the last of
    /// which ends with it.
    pub fn encode_chat_with_spans(
        &self,
        request: &RenderRequest,
        options: &ChatOptions,
    ) -> Result<ChatPrompt, TextError> {
        let templated = self.templates.get(options.template)?;
        let Rendered { text, notices } = render(&templated.template, request, options)?;
        if let Some(max_tokens) = options.max_tokens.filter(|&max_tokens| text.len() > max_tokens) {
            let at_least = self.tokenizer.min_tokens(&text);
            if at_least > max_tokens {
                return Err(TextError::TooManyTokens { at_least, max_tokens });
            }
        }
        let boundaries = spans::text_boundaries(&templated.template, &templated.renders, request, &text);
        let (tokens, ranges) = self.tokenizer.encode_with_ranges(&text, options.add_special_tokens)?;
        let thinking =
            options.thinking.map_or(PromptThinking::Unsaid, |syntax| match options.ends_within_last {
                true => syntax.within(last_content(request)),
                false => syntax.behind(&text),
            });
        Ok(ChatPrompt { tokens, spans: spans::spans_of(&boundaries, &ranges), notices, thinking })
    }

    /// Whether an answer of these tokens comes back word for word in the prompts that continue its
    /// conversation, so that it is worth storing; templates that drop thinking rewrite it.
    ///
    /// A short conversation stands for its own: what templates do to an answer depends on what it says
    /// and on the variables `extra`, not on what was said before. `template` is the request's own.
    pub fn answer_recurs(
        self: &Arc<Self>,
        template: Option<&str>,
        extra: &Map<String, Value>,
        answer: &[u32],
    ) -> bool {
        let Ok(answer) = self.tokenizer.decode(answer) else { return false };
        let shape = spans::plain_shape(&answer).map(|shape| fingerprint(&(template, extra, shape)));
        let known = || self.plain_recurs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recurs) = shape.and_then(|shape| known().get(&shape).copied()) {
            return recurs;
        }
        // All that is rendered for it goes to another thread at once.
        let (text, template, extra) = (Arc::clone(self), template.map(str::to_owned), extra.clone());
        let recurs = for_each_line(vec![answer], move |answer| {
            let templated = text.templates.get(template.as_deref());
            templated.is_ok_and(|templated| spans::answer_recurs(&templated.template, &extra, &answer))
        });
        let recurs = recurs.contains(&true);
        if let Some(shape) = shape {
            let mut known = known();
            // As many as this come of templates that requests bring.
            if known.len() >= MAX_PLAIN_RECURS {
                known.clear();
            }
            known.insert(shape, recurs);
        }
        recurs
    }

    #[cfg(test)]
    pub(super) fn num_partial_renders(&self) -> usize {
        self.templates.of_model().map_or(0, |templated| templated.renders.len())
    }

    /// Renders a conversation to text.
    pub fn render_chat(&self, request: &RenderRequest, options: &ChatOptions) -> Result<String, TextError> {
        Ok(render(&self.templates.get(options.template)?.template, request, options)?.text)
    }

    /// Turns a raw prompt into token ids; `add_special_tokens` has the tokenizer add its own,
    /// usually a BOS in front, unless the prompt begins with it.
    pub fn encode_prompt(&self, prompt: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(prompt, add_special_tokens)
    }

    /// Returns what is to be said about settings of the model's files that are not acted on.
    pub fn warnings(&self) -> &[String] {
        self.tokenizer.warnings()
    }

    /// Returns the tokenizer, cheap to clone.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns one more than the largest token id.
    pub fn num_vocab(&self) -> usize {
        self.tokenizer.num_vocab()
    }

    /// Returns the ids that end an answer, ascending.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// Checks that answers can be held to a constraint, and thinking in front of them to its length. What all
    /// constraints of the model share is made for the first one.
    pub fn pattern(
        &self,
        constraint: Option<&Arc<Constraint>>,
        preamble: Option<Preamble>,
    ) -> Result<Pattern, GuideError> {
        let compiler = self.compiler.get_or_init(|| Compiler::new(self.tokenizer.vocabulary(&self.end_ids)));
        compiler.as_ref().map_err(Clone::clone)?.pattern(constraint, preamble)
    }

    /// How the answers of a template are written, the request's own or else the model's; nothing where it
    /// cannot be used.
    pub fn reply_syntax(&self, template: Option<&str>) -> ReplySyntax {
        let templated = self.templates.get(template);
        templated.map_or_else(|_| ReplySyntax::default(), |templated| templated.reply_syntax(&self.tokenizer))
    }

    /// Whether any mark of a syntax is made of control tokens, which an answer's text does not show by default.
    pub fn has_control_marks(&self, syntax: &ReplySyntax) -> bool {
        let is_control = |mark: &str| {
            let tokens = self.tokenizer.encode(mark, false).unwrap_or_default();
            tokens.iter().any(|token| self.tokenizer.is_special(*token))
        };
        let lock = || self.control_marks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, has)) = lock().iter().find(|(known, _)| known == syntax) {
            return *has;
        }
        let has = syntax.marks().any(is_control);
        lock().push((*syntax, has));
        has
    }

    /// Whether the model has a chat template that can be used.
    pub fn has_chat_template(&self) -> bool {
        self.templates.of_model().is_ok()
    }
}

/// Renders a conversation as far as its prompt goes.
fn render(
    template: &ChatTemplate,
    request: &RenderRequest,
    options: &ChatOptions,
) -> Result<Rendered, TextError> {
    let mut rendered = template.render_whole(request)?;
    if options.ends_within_last {
        let end = end_within(&rendered.text, last_content(request)).ok_or_else(|| TextError::Message {
            index: request.messages.len().saturating_sub(1),
            problem: "the chat template does not show this message as it is, so it cannot be gone on with"
                .to_owned(),
        })?;
        rendered.text.truncate(end);
    }
    Ok(rendered)
}

fn last_content<'a>(request: &RenderRequest<'a>) -> &'a str {
    let content = request.messages.last().and_then(|message| message.get("content"));
    content.and_then(Value::as_str).unwrap_or_default()
}

/// Where a message's text ends in the rendered conversation whose last it is; spaces at its end count as
/// far as the template leaves them there, as in transformers.
fn end_within(rendered: &str, content: &str) -> Option<usize> {
    let trimmed = content.trim();
    let start = rendered.rfind(trimmed).filter(|_| !trimmed.is_empty())?;
    let whole = content.trim_start();
    Some(start + if rendered[start..].starts_with(whole) { whole.len() } else { trimmed.len() })
}

/// The template, or what is told to requests that need one. What is no fault of the template ends it all.
fn required(
    template: Result<Option<ChatTemplate>, TextError>,
    path: &Path,
) -> Result<Result<ChatTemplate, TextError>, TextError> {
    match template {
        Err(error @ TextError::NoThread { .. }) => Err(error),
        Err(error) => Ok(Err(error)),
        Ok(template) => Ok(template.ok_or_else(|| TextError::NoChatTemplate { path: PathBuf::from(path) })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::models::gguf::testing::GgufFile;
    use crate::text::testing::{byte_level_json, folder};

    fn hello(model: &TextModel) -> Result<Vec<u32>, TextError> {
        let messages: [Value; 1] = [json!({"role": "user", "content": "th"})];
        let extra = Map::new();
        model.encode_chat(&RenderRequest {
            messages: &messages,
            tools: None,
            add_generation_prompt: false,
            extra: &extra,
        })
    }

    #[test]
    fn a_folder_encodes_messages_and_prompts() {
        let mut tokenizer = byte_level_json();
        tokenizer["post_processor"] = json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [258], "tokens": ["<|end|>"]}}});
        let config = json!({"eos_token": "<|end|>",
            "chat_template": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"});
        let dir = folder(&[
            ("tokenizer.json", tokenizer.to_string()),
            ("tokenizer_config.json", config.to_string()),
        ]);
        let model = TextModel::from_folder(dir.path()).expect("loads");
        assert_eq!(hello(&model).expect("encodes"), [256, 258], "no special tokens but the template's");
        assert_eq!(model.encode_prompt("th", true).expect("encodes"), [258, 256]);
        assert_eq!((model.end_ids(), model.num_vocab()), (&[258][..], 260));
        assert!(model.has_chat_template());
    }

    /// A base model has no template, and some models ship one that needs what we lack: prompts
    /// must work with both.
    #[test]
    fn prompts_need_no_template() {
        for (template, problem) in
            [(None, "no chat template"), (Some("{% nonsense %}"), "cannot be parsed, line 1")]
        {
            let mut files = vec![("tokenizer.json", byte_level_json().to_string())];
            files.extend(template.map(|text| ("chat_template.jinja", text.to_owned())));
            let dir = folder(&files);
            let model = TextModel::from_folder(dir.path()).expect("loads");
            assert_eq!(model.encode_prompt("th", true).expect("encodes"), [256]);
            assert!(!model.has_chat_template());
            let error = hello(&model).expect_err("no usable template").to_string();
            assert!(error.contains(problem), "{error}");
            assert!(error.contains(dir.path().to_str().expect("temporary paths are UTF-8")), "{error}");
        }
    }

    #[test]
    fn a_gguf_file_has_all_of_it() {
        let tokens: Vec<String> =
            (0..=255u8).map(|byte| crate::text::bytes::char_of(byte).to_string()).collect();
        let tokens = [tokens, vec!["th".to_owned(), "<|im_end|>".to_owned()]].concat();
        let types: Vec<i32> = (0..tokens.len()).map(|id| if id == 257 { 3 } else { 1 }).collect();
        let header = GgufFile::default()
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "smollm")
            .strings("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &types)
            .strings("tokenizer.ggml.merges", &["t h"])
            .u32("tokenizer.ggml.eos_token_id", 257)
            .str(
                "tokenizer.chat_template",
                "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
            )
            .header();
        let model = TextModel::from_gguf(&header).expect("loads");
        assert_eq!(hello(&model).expect("encodes"), [256, 257]);
        assert_eq!((model.end_ids(), model.num_vocab()), (&[257][..], 258));
    }
}
