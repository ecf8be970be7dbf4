//! A model's text side as one thing: tokenizer, chat template and end tokens.
//!
//! Owns loading the three together and turning a request into token ids. Each part's own rules
//! are in its module.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::spans::{self, PartialRenders, Span};
use super::{ChatTemplate, Notice, RenderRequest, Rendered, TextError, Tokenizer, ends};
use crate::models::GgufHeader;

/// What is needed to turn requests into tokens and tokens into answers.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Tokenizer,
    /// A template that cannot be used is no obstacle to raw prompts; messages get the error.
    template: Result<ChatTemplate, TextError>,
    end_ids: Vec<u32>,
    partial_renders: PartialRenders,
}

/// A conversation as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatPrompt {
    pub tokens: Vec<u32>,
    pub spans: Vec<Span>,
    /// What the chat template has passed over.
    pub notices: Vec<Notice>,
}

impl TextModel {
    /// Loads a model folder's text files.
    pub fn from_folder(dir: &Path) -> Result<TextModel, TextError> {
        let tokenizer = Tokenizer::from_folder(dir)?;
        let template = required(ChatTemplate::from_folder(dir), dir);
        let end_ids = ends::from_folder(dir, &tokenizer, template.as_ref().ok())?;
        Ok(TextModel { tokenizer, template, end_ids, partial_renders: PartialRenders::default() })
    }

    /// Rebuilds the text side from a GGUF file's metadata.
    pub fn from_gguf(header: &GgufHeader) -> Result<TextModel, TextError> {
        let tokenizer = Tokenizer::from_gguf(header)?;
        let template = required(ChatTemplate::from_gguf(header), header.path());
        let end_ids = ends::from_gguf(header, &tokenizer, template.as_ref().ok());
        Ok(TextModel { tokenizer, template, end_ids, partial_renders: PartialRenders::default() })
    }

    /// Renders a conversation and turns it into token ids; the template alone decides about
    /// special tokens.
    pub fn encode_chat(&self, request: &RenderRequest) -> Result<Vec<u32>, TextError> {
        self.tokenizer.encode(&self.render_chat(request)?, false)
    }

    /// Does what [`TextModel::encode_chat`] does and cuts the prompt into tiered spans, the last
    /// of which ends with it. `add_special_tokens` lets the tokenizer add what the template has not
    /// written, as for a raw prompt.
    pub fn encode_chat_with_spans(
        &self,
        request: &RenderRequest,
        add_special_tokens: bool,
    ) -> Result<ChatPrompt, TextError> {
        let template = self.template.as_ref().map_err(TextError::clone)?;
        let Rendered { text, notices } = template.render_whole(request)?;
        let boundaries = spans::text_boundaries(template, &self.partial_renders, request, &text);
        let (tokens, ranges) = self.tokenizer.encode_with_ranges(&text, add_special_tokens)?;
        Ok(ChatPrompt { tokens, spans: spans::spans_of(&boundaries, &ranges), notices })
    }

    /// Whether an answer of these tokens comes back word for word in the prompts that continue its
    /// conversation, so that it is worth storing; templates that drop thinking rewrite it.
    ///
    /// A short conversation stands for its own: what templates do to an answer depends on what it says
    /// and on the variables `extra`, not on what was said before.
    pub fn answer_recurs(&self, extra: &Map<String, Value>, answer: &[u32]) -> bool {
        let (Ok(template), Ok(answer)) = (&self.template, self.tokenizer.decode(answer)) else {
            return false;
        };
        spans::answer_recurs(template, extra, &answer)
    }

    #[cfg(test)]
    pub(super) fn partial_renders(&self) -> &PartialRenders {
        &self.partial_renders
    }

    /// Renders a conversation to text.
    pub fn render_chat(&self, request: &RenderRequest) -> Result<String, TextError> {
        Ok(self.template.as_ref().map_err(TextError::clone)?.render_whole(request)?.text)
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

    /// Whether the model has a chat template that can be used.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_ok()
    }
}

fn required(
    template: Result<Option<ChatTemplate>, TextError>,
    path: &Path,
) -> Result<ChatTemplate, TextError> {
    template?.ok_or_else(|| TextError::NoChatTemplate { path: PathBuf::from(path) })
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
