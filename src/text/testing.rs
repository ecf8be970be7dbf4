//! Small tokenizers for tests, and folders of files.
//!
//! Owns a byte-level and a byte-fallback tokenizer of a few hundred tokens; compiled for tests
//! only.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Tokenizer;
use super::bytes::char_of;

/// A temporary folder with these files.
pub(super) fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).expect("written");
    }
    dir
}

/// A byte-level tokenizer.json: all bytes, two merges, a special and an ordinary added token.
pub(super) fn byte_level_json() -> Value {
    let mut vocab: Map<String, Value> =
        (0..=255u8).map(|byte| (char_of(byte).to_string(), json!(byte))).collect();
    for (id, token) in [(256, "th"), (257, "Ġth"), (258, "<|end|>"), (259, "<tool>")] {
        vocab.insert(token.to_owned(), json!(id));
    }
    let added = |id: u32, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(258, "<|end|>", true), added(259, "<tool>", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["t", "h"], ["Ġ", "th"]]}
    })
}

/// The tokenizer of [`byte_level_json`].
pub(super) fn byte_level() -> Tokenizer {
    Tokenizer::from_json(byte_level_json().to_string().as_bytes(), Path::new("byte-level"))
        .expect("well-formed")
}

/// A SentencePiece-like tokenizer: letters, byte fallback, and a decoder that strips one leading
/// space.
pub(super) fn byte_fallback() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    tokens.push("▁".to_owned());
    tokens.extend(('a'..='z').map(String::from));
    tokens.extend(["▁a".to_owned(), "é".to_owned(), "�".to_owned()]);
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": [["▁", "a"]]}
    });
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("byte-fallback")).expect("well-formed")
}
