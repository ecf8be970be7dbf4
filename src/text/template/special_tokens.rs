//! The special-token variables that chat templates see: `bos_token`, `eos_token`, ….
//!
//! Owns collecting them from a folder's files or a GGUF file. Which ids end an answer is
//! `ends`' business.

use std::path::Path;

use serde_json::{Map, Value};

use crate::models::GgufHeader;
use crate::text::TextError;
use crate::text::tokenizer_config::TokenizerConfig;

/// Collects them from a folder's files, as its tokenizer does.
pub(in crate::text) fn from_folder(dir: &Path) -> Result<Map<String, Value>, TextError> {
    Ok(TokenizerConfig::read(dir)?.special_tokens().clone())
}

/// Collects them from the ids in a GGUF file's metadata.
pub(in crate::text) fn from_gguf(header: &GgufHeader) -> Map<String, Value> {
    let Some(texts) = header.strings("tokenizer.ggml.tokens") else {
        return Map::new();
    };
    let names = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("sep_token", "tokenizer.ggml.seperator_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("cls_token", "tokenizer.ggml.cls_token_id"),
        ("mask_token", "tokenizer.ggml.mask_token_id"),
    ];
    let text = |key: &str| texts.get(usize::try_from(header.u64(key)?).ok()?);
    names.iter().filter_map(|(name, key)| Some(((*name).to_owned(), Value::from(&**text(key)?)))).collect()
}
