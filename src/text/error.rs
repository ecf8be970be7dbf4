//! What can go wrong between a request's text and its tokens.
//!
//! Owns the error texts of the whole folder; each names the file, line or message and what to
//! do. Cloneable, so that one load-time failure can be reported by every request it affects.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::deep::NotDone;

/// Why text could not be turned into tokens or back.
#[derive(Debug, Clone, Error)]
pub enum TextError {
    #[error("{}: cannot be read: {message}", path.display())]
    Io { path: PathBuf, message: String },
    #[error("{}: not valid JSON: {message}", path.display())]
    Json { path: PathBuf, message: String },
    #[error(
        "{}: no tokenizer.json there: download the model's tokenizer.json into that folder \
         (a tokenizer.model or vocab.json alone is not enough)",
        dir.display()
    )]
    NoTokenizer { dir: PathBuf },
    #[error("{}: the tokenizer cannot be used: {message}", path.display())]
    Tokenizer { path: PathBuf, message: String },
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
    #[error("tokens cannot be turned into text: {0}")]
    Decode(String),
    #[error(
        "{}: the model has no chat template, so \"messages\" cannot be rendered: send \"prompt\" lines, use an \
         instruction-tuned model, or add a chat_template.jinja beside its tokenizer",
        path.display()
    )]
    NoChatTemplate { path: PathBuf },
    #[error("{origin}: the chat template cannot be parsed, line {line}: {message}")]
    TemplateSyntax { origin: String, line: usize, message: String },
    #[error("{origin}: the chat template failed, line {line}: {message}")]
    TemplateFailed { origin: String, line: usize, message: String },
    /// The template called `raise_exception`: it refuses these messages.
    #[error("the model's chat template refuses these messages: {0}")]
    TemplateRaised(String),
    /// The machine is at fault, or what it allows this process.
    #[error("{}", NotDone::no_thread_text(*stack_bytes, reason))]
    NoThread { stack_bytes: usize, reason: String },
    #[error("\"messages\" is empty: a chat template needs at least one message")]
    NoMessages,
    #[error("the prompt has at least {at_least} tokens; the model's context leaves room for {max_tokens}")]
    TooManyTokens { at_least: usize, max_tokens: usize },
    #[error("messages[{index}]: {problem}")]
    Message { index: usize, problem: String },
}

impl TextError {
    /// Whether the request's own messages are at fault, not the model's files.
    pub fn is_request_fault(&self) -> bool {
        matches!(
            self,
            TextError::TemplateRaised(_)
                | TextError::NoMessages
                | TextError::Message { .. }
                | TextError::TooManyTokens { .. }
                | TextError::Encode(_)
        )
    }

    pub(super) fn io(path: &Path, error: &std::io::Error) -> TextError {
        TextError::Io { path: path.to_owned(), message: error.to_string() }
    }

    pub(super) fn tokenizer(path: &Path, message: impl ToString) -> TextError {
        TextError::Tokenizer { path: path.to_owned(), message: message.to_string() }
    }
}
