//! A GGUF file's tokenizer metadata, rebuilt as the `tokenizer.json` the model once had.
//!
//! Owns the two families in use: byte-level BPE (`gpt2`) with the splitting rules that `splits` knows by
//! name, and SentencePiece BPE with byte fallback, its merges in scores (`llama`) or listed (`gemma4`).
//! Loading the result is `tokenizer`'s business.

mod merges;
mod metadata;
mod splits;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use self::merges::{Piece, spm_merges};
use self::metadata::{Kind, Metadata};
use self::splits::{Split, byte_level_step};
use super::TextError;
use crate::models::GgufHeader;

/// Qwen's added tokens that show in text, although its GGUF files mark all of them as control.
const QWEN2_PLAIN: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<|fim_",
    "<|repo_name",
    "<|file_sep",
];
/// Gemma's only true control tokens; its other added tokens are runs of spaces, HTML tags, …
const GEMMA_SPECIAL: &[&str] = &[
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
];

/// A `tokenizer.json`. The large parts are plain lists, not JSON values: with a quarter of a
/// million tokens the difference is seconds.
#[derive(Debug, Serialize)]
pub(super) struct TokenizerJson {
    version: &'static str,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Option<Value>,
    decoder: Value,
    model: Bpe,
}

#[derive(Debug, Default, Serialize)]
struct Bpe {
    r#type: &'static str,
    unk_token: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: Vec<(String, u32)>,
    merges: Vec<(String, String)>,
}

fn as_map<S: Serializer>(pairs: &[(String, u32)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(token, id)| (token, id)))
}

/// Longer pieces are in no vocabulary; finding their merges takes time by the square of it.
const MAX_PIECE_BYTES: usize = 1024;

/// Builds the tokenizer that the metadata describe.
pub(super) fn tokenizer_json(header: &GgufHeader) -> Result<TokenizerJson, TextError> {
    let metadata = Metadata::read(header)?;
    match header.str("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(&metadata),
        Some("llama") => sentence_piece(&metadata, false),
        Some("gemma4") => sentence_piece(&metadata, true),
        Some(other) => Err(metadata.unusable(format!(
            "tokenizer.ggml.model is {other:?}; gpt2, llama and gemma4 are known: use the model's folder form"
        ))),
        None => Err(metadata.unusable("the file has no tokenizer (no tokenizer.ggml.model)")),
    }
}

/// Returns the text of the token that begins a text.
pub(super) fn bos(header: &GgufHeader) -> Option<&str> {
    let id = usize::try_from(header.u64("tokenizer.ggml.bos_token_id")?).ok()?;
    header.strings("tokenizer.ggml.tokens")?.get(id).map(|text| &**text)
}

fn byte_level(metadata: &Metadata) -> Result<TokenizerJson, TextError> {
    let name = metadata.header.str("tokenizer.ggml.pre").unwrap_or_default();
    let split = Split::of(name).ok_or_else(|| {
        metadata.unusable(format!(
            "tokenizer.ggml.pre is {name:?}; known are {}: use the model's folder form",
            Split::known_names()
        ))
    })?;
    let merges = listed_merges(metadata)?;

    let is_qwen = name.contains("qwen");
    let mut vocab = Vec::new();
    let mut added = Vec::new();
    for (id, token, kind) in metadata.entries() {
        if kind == Kind::Unused {
            continue;
        }
        // Added tokens are in the vocabulary too: the text's merges cannot produce them, and so
        // each keeps its id.
        vocab.push((token.to_owned(), id));
        if matches!(kind, Kind::Control | Kind::User) {
            let is_plain = is_qwen && QWEN2_PLAIN.iter().any(|start| token.starts_with(start));
            added.push(added_token(id, token, kind == Kind::Control && !is_plain));
        }
    }
    let step = byte_level_step(true, false, true);
    let post_processor = match metadata.put_around(split.adds_bos)? {
        Some(around) => json!({"type": "Sequence", "processors": [step, around]}),
        None => step,
    };
    Ok(TokenizerJson {
        version: "1.0",
        added_tokens: added,
        normalizer: split.normalizer(),
        pre_tokenizer: split.pre_tokenizer(),
        post_processor: Some(post_processor),
        decoder: byte_level_step(true, true, true),
        model: Bpe { r#type: "BPE", ignore_merges: split.ignores_merges, vocab, merges, ..Bpe::default() },
    })
}

/// The pairs of tokens that are merged, the first ones first.
fn listed_merges(metadata: &Metadata) -> Result<Vec<(String, String)>, TextError> {
    metadata
        .header
        .strings("tokenizer.ggml.merges")
        .ok_or_else(|| metadata.unusable("tokenizer.ggml.merges is missing or no list of strings"))?
        .iter()
        .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| metadata.unusable("an entry of tokenizer.ggml.merges is not two tokens"))
}

fn sentence_piece(metadata: &Metadata, lists_merges: bool) -> Result<TokenizerJson, TextError> {
    let scores = metadata
        .header
        .f32s("tokenizer.ggml.scores")
        .filter(|scores| scores.len() == metadata.tokens.len())
        .ok_or_else(|| metadata.unusable("tokenizer.ggml.scores is missing or not one number per token"))?;

    let mut vocab = Vec::new();
    let mut added = Vec::new();
    let mut pieces = Vec::new();
    for ((id, token, kind), score) in metadata.entries().zip(scores) {
        if token.len() > MAX_PIECE_BYTES {
            return Err(metadata.unusable(format!("token {id} is longer than {MAX_PIECE_BYTES} bytes")));
        }
        // llama.cpp writes user-defined pieces with plain spaces and a score of -1000, where the
        // model's own file has U+2581 and 0.
        let (text, score) = if kind == Kind::User {
            (token.replace(' ', "\u{2581}"), 0.0)
        } else {
            (token.to_owned(), score)
        };
        vocab.push((text.clone(), id));
        if matches!(kind, Kind::Control | Kind::User | Kind::Unknown) {
            // Files of Gemma 4 mark what shows in text.
            let special = match metadata.is_gemma() && !lists_merges {
                true => GEMMA_SPECIAL.contains(&text.as_str()),
                false => kind != Kind::User,
            };
            added.push(added_token(id, &text, special));
        }
        pieces.push(Piece { text, score, merges: matches!(kind, Kind::Normal | Kind::User) });
    }
    let merges = match lists_merges {
        true => listed_merges(metadata)?,
        false => {
            spm_merges(&pieces).into_iter().map(|(left, right)| (left.to_owned(), right.to_owned())).collect()
        }
    };

    let unknown_id = metadata.header.u64("tokenizer.ggml.unknown_token_id").unwrap_or(0);
    let unknown = usize::try_from(unknown_id).ok().and_then(|id| pieces.get(id)).ok_or_else(|| {
        metadata.unusable(format!("tokenizer.ggml.unknown_token_id {unknown_id} is no token"))
    })?;

    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let normalizer = if metadata.header.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true) {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}, replace]})
    } else {
        replace
    };
    let pre_tokenizer = match metadata.is_gemma() {
        true => json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                       "invert": false}),
        false => Value::Null,
    };
    Ok(TokenizerJson {
        version: "1.0",
        added_tokens: added,
        normalizer,
        pre_tokenizer,
        post_processor: metadata.put_around(true)?,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: Bpe {
            r#type: "BPE",
            unk_token: Some(unknown.text.clone()),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab,
            merges,
        },
    })
}

fn added_token(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

#[cfg(test)]
mod tests;
