//! The special-token variables that chat templates see: `bos_token`, `eos_token`, ….
//!
//! Owns collecting them from a folder's files or a GGUF file. Which ids end an answer is
//! `ends`' business.

use std::path::Path;

use serde_json::{Map, Value};

use crate::models::GgufHeader;
use crate::text::TextError;
use crate::text::files::{read_json, token_text};

/// Collects them from `tokenizer_config.json`, then from `special_tokens_map.json`.
pub(super) fn from_folder(
    dir: &Path,
    tokenizer_config: Option<&Value>,
) -> Result<Map<String, Value>, TextError> {
    let map = read_json(&dir.join("special_tokens_map.json"))?;
    let mut tokens = Map::new();
    for source in [tokenizer_config, map.as_ref()].into_iter().flatten().filter_map(Value::as_object) {
        for (name, value) in source.iter().filter(|(name, _)| name.ends_with("_token")) {
            if let (Some(text), false) = (token_text(value), tokens.contains_key(name)) {
                tokens.insert(name.clone(), text.into());
            }
        }
    }
    Ok(tokens)
}

/// Collects them from the ids in a GGUF file's metadata.
pub(super) fn from_gguf(header: &GgufHeader) -> Map<String, Value> {
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
