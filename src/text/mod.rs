//! Text on both sides of the model: chat template, tokenizer, streaming decode, stop strings.
//!
//! Owns everything between a request's messages and token ids, and between answer tokens and
//! the answer's text. Request formats are `batch/`'s, running the tokens the engine's business.

mod bytes;
mod error;
mod files;
mod gguf_merges;
mod gguf_tokenizer;
mod template;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use error::TextError;
pub use template::{ChatTemplate, RenderRequest};
pub use tokenizer::Tokenizer;
