//! The tokens that end an answer.
//!
//! Owns gathering them from everywhere a model may name them. Stop strings of a request are
//! `stop`'s business.

use std::path::Path;

use serde_json::Value;

use super::files::{read_json, token_text};
use super::{TextError, Tokenizer};
use crate::models::GgufHeader;

/// Gathers the end tokens of a model folder, ascending.
///
/// It is the union of what `generation_config.json`, `config.json` and `tokenizer_config.json`
/// say: chat models often have their base model's end in one and their turn's end in another.
pub(super) fn from_folder(dir: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, TextError> {
    let mut ids = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        if let Some(config) = read_json(&dir.join(name))? {
            for config in [Some(&config), config.get("text_config")].into_iter().flatten() {
                match config.get("eos_token_id") {
                    Some(Value::Array(list)) => ids.extend(list.iter().filter_map(token_id)),
                    Some(value) => ids.extend(token_id(value)),
                    None => {}
                }
            }
        }
    }
    if let Some(config) = read_json(&dir.join("tokenizer_config.json"))? {
        let eos = config.get("eos_token").and_then(token_text);
        ids.extend(eos.and_then(|token| tokenizer.token_id(token)));
    }
    Ok(sorted(ids))
}

/// Gathers the end tokens that a GGUF file names: end of text, of turn and of message.
pub(super) fn from_gguf(header: &GgufHeader) -> Vec<u32> {
    let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    sorted(keys.iter().filter_map(|key| u32::try_from(header.u64(key)?).ok()).collect())
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::gguf::testing::GgufFile;
    use crate::text::testing::byte_level;

    fn ends(files: &[(&str, &str)]) -> Result<Vec<u32>, TextError> {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        from_folder(dir.path(), &byte_level())
    }

    #[test]
    fn the_union_of_all_files_counts() {
        let all = ends(&[
            ("generation_config.json", r#"{"eos_token_id": [7, 5]}"#),
            ("config.json", r#"{"eos_token_id": 5, "text_config": {"eos_token_id": [9]}}"#),
            ("tokenizer_config.json", r#"{"eos_token": {"content": "<|end|>"}}"#),
        ]);
        assert_eq!(all.expect("well-formed"), [5, 7, 9, 258]);
        let by_text = ends(&[("tokenizer_config.json", r#"{"eos_token": "<|end|>"}"#)]);
        assert_eq!(by_text.expect("well-formed"), [258]);
    }

    #[test]
    fn missing_and_odd_entries_add_nothing_broken_files_fail() {
        assert_eq!(ends(&[]).expect("nothing to read"), Vec::<u32>::new());
        let odd = ends(&[
            ("config.json", r#"{"eos_token_id": null, "text_config": 5}"#),
            ("generation_config.json", r#"{"eos_token_id": [-1, 1.5, "x", 99999999999, 3]}"#),
            ("tokenizer_config.json", r#"{"eos_token": "no such token"}"#),
        ]);
        assert_eq!(odd.expect("well-formed"), [3]);
        assert!(matches!(ends(&[("generation_config.json", "{]")]), Err(TextError::Json { .. })));
    }

    #[test]
    fn gguf_files_name_ends_of_text_and_turn() {
        let file = GgufFile::default().u32("tokenizer.ggml.eos_token_id", 9);
        let file = file.u32("tokenizer.ggml.eot_token_id", 4).u32("tokenizer.ggml.eom_token_id", 9);
        assert_eq!(from_gguf(&file.header()), [4, 9]);
        assert_eq!(from_gguf(&GgufFile::default().header()), Vec::<u32>::new());
    }
}
