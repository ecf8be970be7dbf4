//! How few tokens a text can have, told from its length alone.
//!
//! Owns the bound and when there is none. It is never too high: where a tokenizer may drop text, or make
//! one token of any amount of it, nothing is said.

use serde_json::Value;
use tokenizers::{Model, ModelWrapper};

use super::bytes::char_of;

/// Unicode's normal forms and lower case take no more than this many bytes to one, as of the Kelvin sign or
/// mathematical letters.
const MAX_SHRINKING: usize = 4;

/// What is known of a tokenizer's tokens.
pub(super) struct Bound {
    /// The most bytes of text that one token can stand for.
    max_bytes_per_token: usize,
    /// Bytes that no text loses: a byte without a token may be dropped.
    is_kept: [bool; 256],
    /// Some token takes in all white space beside it.
    takes_white_space: bool,
}

impl Bound {
    /// Looks at a tokenizer; `None` where texts of any length may have few tokens.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let normalizer = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
        let (ModelWrapper::BPE(bpe), true) = (tokenizer.get_model(), keeps_all(&pre_tokenizer)) else {
            return None;
        };
        let shrinking = shrinking(&normalizer)?;
        let added = tokenizer.get_added_tokens_decoder();
        let takes_white_space = added.values().any(|token| token.lstrip || token.rstrip);
        if bpe.continuing_subword_prefix.is_some() || bpe.end_of_word_suffix.is_some() {
            return None;
        }
        let is_byte_level = has_step(&pre_tokenizer, "ByteLevel") || has_step(&normalizer, "ByteLevel");
        let is_kept = std::array::from_fn(|byte| {
            let byte = byte as u8;
            match is_byte_level {
                true => bpe.token_to_id(char_of(byte).encode_utf8(&mut [0; 4])).is_some(),
                false => bpe.byte_fallback && bpe.token_to_id(&format!("<0x{byte:02X}>")).is_some(),
            }
        });
        // What a normalizer changes, and what is a token only with the bytes beside it, needs them all.
        let is_whole = (0..=u8::MAX).all(|byte| is_kept[usize::from(byte)] || is_in_no_text(byte));
        if !is_whole && (shrinking > 1 || !is_byte_level) {
            return None;
        }
        let length = |token: &String| if is_byte_level { token.chars().count() } else { token.len() };
        let vocab = bpe.get_vocab();
        let longest =
            vocab.keys().map(length).chain(added.values().map(|token| token.content.len())).max()?;
        Some(Self { max_bytes_per_token: longest.checked_mul(shrinking)?.max(1), is_kept, takes_white_space })
    }

    /// Tokens that a text has at least.
    pub(super) fn min_tokens(&self, text: &str) -> usize {
        let num_kept = |text: &str| text.bytes().filter(|byte| self.is_kept[usize::from(*byte)]).count();
        let num_kept: usize = match self.takes_white_space {
            true => text.split(char::is_whitespace).map(num_kept).sum(),
            false => num_kept(text),
        };
        num_kept.div_ceil(self.max_bytes_per_token)
    }
}

/// Whether UTF-8 has no such byte.
fn is_in_no_text(byte: u8) -> bool {
    matches!(byte, 0xc0 | 0xc1 | 0xf5..)
}

/// The steps of a normalizer or pre-tokenizer, as `tokenizer.json` has them.
fn steps(value: &Value) -> Vec<&Value> {
    match value.get("normalizers").or(value.get("pretokenizers")).and_then(Value::as_array) {
        Some(inner) => inner.iter().flat_map(steps).collect(),
        None if value.is_null() => Vec::new(),
        None => vec![value],
    }
}

fn has_step(value: &Value, kind: &str) -> bool {
    steps(value).iter().any(|step| step["type"] == kind)
}

/// Bytes that a normalizer may make one of; `None` where it may drop any number of them.
fn shrinking(normalizer: &Value) -> Option<usize> {
    steps(normalizer).into_iter().try_fold(1_usize, |factor, step| {
        let of_step = match step["type"].as_str()? {
            "Prepend" | "ByteLevel" => 1,
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase" => MAX_SHRINKING,
            "Replace" => {
                let (from, to) = (step["pattern"]["String"].as_str()?, step["content"].as_str()?);
                (to.len() >= from.len()).then_some(1)?
            }
            _ => return None,
        };
        factor.checked_mul(of_step)
    })
}

fn keeps_all(pre_tokenizer: &Value) -> bool {
    steps(pre_tokenizer).iter().all(|step| match step["type"].as_str() {
        Some("ByteLevel" | "Metaspace" | "Digits") => true,
        Some("Split") => step["behavior"] != "Removed",
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::Tokenizer;
    use crate::text::testing::{byte_fallback, byte_level, byte_level_json};

    fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Tokenizer {
        let mut json = byte_level_json();
        change(&mut json);
        Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).expect("loads")
    }

    /// Phi's and Llama 2's tokens are of this kind, and a line of 56 MB was tokenised whole.
    #[test]
    fn white_space_that_a_token_may_take_in_counts_nothing() {
        let stripping = changed(|json| json["added_tokens"][0]["rstrip"] = true.into());
        assert_eq!(stripping.min_tokens(&" \n\u{3000}".repeat(1000)), 0);
        assert!((100..=3000).contains(&stripping.min_tokens(&"the ".repeat(1000))));
    }

    #[test]
    fn nothing_is_said_where_a_tokenizer_may_drop_text() {
        let text = "the ".repeat(1000);
        assert!((100..=4000).contains(&byte_level().min_tokens(&text)));
        let removing =
            json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false});
        for tokenizer in [
            changed(|json| {
                json["normalizer"] = json!({"type": "Strip", "strip_left": true, "strip_right": true})
            }),
            changed(|json| {
                json["normalizer"] = json!({"type": "Replace", "pattern": {"String": "th"}, "content": ""});
            }),
            changed(|json| {
                json["pre_tokenizer"] =
                    json!({"type": "Sequence", "pretokenizers": [removing, json["pre_tokenizer"]]});
            }),
        ] {
            assert_eq!(tokenizer.min_tokens(&text), 0);
        }
    }

    proptest! {
        #[test]
        fn no_text_has_fewer_tokens(text in "(\\PC|[a-c ]|the|<\\|end\\|>|\u{1112}\u{1161}\u{11ab}|\u{212a}|\u{1d400}){0,80}") {
            let composed = changed(|json| json["normalizer"] = json!({"type": "NFKC"}));
            let stripping = changed(|json| {
                json["added_tokens"][0]["lstrip"] = true.into();
                json["added_tokens"][0]["rstrip"] = true.into();
            });
            for tokenizer in [byte_level(), byte_fallback(), composed, stripping] {
                let num_tokens = tokenizer.encode(&text, false).expect("encodes").len();
                prop_assert!(tokenizer.min_tokens(&text) <= num_tokens);
            }
        }
    }
}
