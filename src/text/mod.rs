//! Text on both sides of the model: chat template, tokenizer, streaming decode, stop strings.
//!
//! Owns everything between a request's messages and token ids, and between answer tokens and
//! what the answer says. Request formats are `batch/`'s, running the tokens the engine's business.

mod answer;
mod bounds;
mod bytes;
mod ends;
mod error;
mod files;
mod gguf_tokenizer;
mod reply;
mod spans;
mod stop;
mod stream;
mod template;
mod templates;
#[cfg(test)]
mod testing;
mod text_model;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_limits;

pub use answer::{Answer, AnswerText};
pub use error::TextError;
pub use reply::{
    Asked, CallSyntax, ExpectedCalls, Occasion, PromptThinking, Reply, ReplyReader, ReplySettings,
    ReplySyntax, ShownThinking, ThinkingSyntax, ToolCall,
};
pub use spans::{Span, system_end};
pub use stop::{StopMatcher, Stopped};
pub use stream::StreamDecoder;
pub use template::{ChatTemplate, Notice, RenderRequest, Rendered};
pub use text_model::{ChatOptions, ChatPrompt, TextModel};
pub use tokenizer::Tokenizer;
