//! Prompts of a line as tokens.
//!
//! Owns what of a request the text side is told, the code of each of its errors, and that a prompt that is far too long
//! is not tokenised to find that out. What a template does with messages is `text/`'s business.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    batch::{Conversation, Prompt, PromptEnding, RequestError},
    engine::{AnswerRecurs, TokenId},
    text::{
        ChatOptions, ChatPrompt, PromptThinking, RenderRequest, Span, TextError, TextModel, ThinkingSyntax,
    },
};

/// A prompt of so many bytes is tokenised in any case, so that its error says how long it is. To tokenise a
/// text takes some 140 times its memory.
const MAX_COUNTED_BYTES: usize = 256 << 10;

/// Whether the answer to a prompt is worth keeping: only a conversation's template could rewrite it.
pub(super) fn recurs(text: &Arc<TextModel>, prompt: &Prompt) -> AnswerRecurs {
    let Prompt::Chat(Conversation { template, template_kwargs, .. }) = prompt else {
        return AnswerRecurs::default();
    };
    let (text, template, kwargs) = (Arc::clone(text), template.clone(), template_kwargs.clone());
    AnswerRecurs::asking(move |tokens: &[TokenId]| text.answer_recurs(template.as_deref(), &kwargs, tokens))
}

/// Tokens that a long prompt has at least, known before it is tokenised; 0 for one that is soon counted.
pub(super) fn min_tokens(text: &TextModel, prompt: &Prompt) -> usize {
    let of_text = |prompt: &str| match prompt.len() {
        ..=MAX_COUNTED_BYTES => 0,
        _ => text.tokenizer().min_tokens(prompt),
    };
    match prompt {
        Prompt::Tokens(tokens) => tokens.len(),
        Prompt::Text(prompt) => of_text(prompt),
        Prompt::Chat(chat) if chat.messages.iter().map(text_bytes).sum::<usize>() <= MAX_COUNTED_BYTES => 0,
        // A template may leave out any of it. What it says of them is told when they are encoded.
        Prompt::Chat(chat) => text
            .render_chat(&render_request(chat), &chat_options(chat, None, None, None))
            .map_or(0, |text| of_text(&text)),
    }
}

/// Bytes of all texts in a JSON value.
pub(super) fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.values().map(text_bytes).sum(),
        _ => 0,
    }
}

fn render_request(chat: &Conversation) -> RenderRequest<'_> {
    RenderRequest {
        messages: &chat.messages,
        tools: chat.tools.as_deref(),
        add_generation_prompt: chat.ending == PromptEnding::NewTurn,
        extra: &chat.template_kwargs,
    }
}

fn chat_options<'a>(
    chat: &'a Conversation,
    max_tokens: Option<usize>,
    add_special_tokens: Option<bool>,
    thinking: Option<&'static ThinkingSyntax>,
) -> ChatOptions<'a> {
    ChatOptions {
        thinking,
        max_tokens,
        template: chat.template.as_deref(),
        ends_within_last: chat.ending == PromptEnding::WithinLastMessage,
        add_special_tokens: add_special_tokens.unwrap_or(false),
    }
}

/// A raw prompt gets the tokenizer's own tokens, a chat template writes them itself, unless the
/// request says otherwise; `param` names the prompt in errors. What a template makes far longer than `max_tokens` is
/// not tokenised to find that out.
pub(super) fn encode(
    text: &TextModel,
    (param, max_tokens): (&str, usize),
    prompt: Prompt,
    add_special_tokens: Option<bool>,
    thinking: Option<&'static ThinkingSyntax>,
) -> Result<ChatPrompt, RequestError> {
    let raw = |tokens: Vec<TokenId>| {
        let spans = Span::of_raw_prompt(tokens.len());
        ChatPrompt { tokens, spans, notices: Vec::new(), thinking: PromptThinking::Unsaid }
    };
    let has_own_template = matches!(&prompt, Prompt::Chat(chat) if chat.template.is_some());
    let encoded = match prompt {
        Prompt::Tokens(tokens) => Ok(raw(tokens)),
        Prompt::Text(prompt) => text.encode_prompt(&prompt, add_special_tokens.unwrap_or(true)).map(raw),
        Prompt::Chat(chat) => {
            let options = chat_options(&chat, Some(max_tokens), add_special_tokens, thinking);
            text.encode_chat_with_spans(&render_request(&chat), &options)
        }
    };
    encoded.map_err(|error| match error {
        TextError::NoChatTemplate { .. } => {
            RequestError::bad_request("no_chat_template", param, error.to_string())
        }
        TextError::TemplateSyntax { .. } | TextError::TemplateFailed { .. } if has_own_template => {
            RequestError::bad_request("template_error", "chat_template", error.to_string())
        }
        TextError::NoThread { .. } => RequestError::machine(error.to_string()),
        TextError::TooManyTokens { .. } => {
            RequestError::bad_request("context_length_exceeded", param, error.to_string())
        }
        TextError::Message { index, problem } => {
            RequestError::bad_request("template_error", &format!("messages[{index}]"), problem)
        }
        error => {
            let code = if error.is_request_fault() { "template_error" } else { "text_error" };
            RequestError::bad_request(code, param, error.to_string())
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

    /// The field was ignored as unknown, and every raw prompt began with BOS.
    #[test]
    fn a_request_says_whether_special_tokens_are_added() {
        let text = text_model();
        let tokens = |prompt: &Prompt, add: Option<bool>| {
            let ChatPrompt { tokens, spans, .. } =
                encode(&text, ("prompt", 4096), prompt.clone(), add, None).expect("encodes");
            assert_eq!(spans.last().map(|span| span.end), Some(tokens.len()));
            tokens
        };
        let raw = Prompt::Text("Hello".into());
        let with_bos = tokens(&raw, None);
        assert_eq!((with_bos[0], tokens(&raw, Some(true))), (1, with_bos.clone()));
        assert_eq!(tokens(&raw, Some(false)), with_bos[1..]);
        let chat = Prompt::Chat(Conversation {
            messages: vec![json!({"role": "user", "content": "Hello"})],
            ..Conversation::default()
        });
        let rendered = tokens(&chat, None);
        assert!(rendered[0] == 1 && rendered[1] != 1, "{rendered:?}");
        assert_eq!([Some(false), Some(true)].map(|add| tokens(&chat, add)), [rendered.clone(), rendered]);
    }
}
