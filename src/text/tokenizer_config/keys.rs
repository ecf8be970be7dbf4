//! The keys of `tokenizer_config.json`.
//!
//! Owns which of them are read, and of the others which change nothing, with the reason, or at
//! which values. What the keys that are read do is the other modules' business.

use std::path::Path;

use serde_json::{Map, Value};

use crate::models::known_keys::{Effect, KeyRule, Plain, Unread, rule};
use crate::text::TextError;
use crate::text::files::token_text;

/// Beside these, every key that ends in `_token` and holds a token names that token.
pub(super) const READ: &[&str] = &[
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "fix_mistral_regex",
    "legacy",
    "model_specific_special_tokens",
    "split_special_tokens",
    "tokenizer_class",
];

const NOT_CUT: Effect = Effect::Nothing("a prompt is neither cut nor padded");
const SAVED: Effect = Effect::Nothing("says where and how the file was made");
const PARSING: Effect =
    Effect::Nothing("is about taking answers apart, which are given as the model writes them");

pub(super) const RULES: &[KeyRule] = &[
    rule("model_max_length", NOT_CUT),
    rule("max_length", NOT_CUT),
    rule("max_len", NOT_CUT),
    rule("stride", NOT_CUT),
    rule("truncation", NOT_CUT),
    rule("truncation_side", NOT_CUT),
    rule("truncation_strategy", NOT_CUT),
    rule("padding", NOT_CUT),
    rule("padding_side", NOT_CUT),
    rule("pad_to_multiple_of", NOT_CUT),
    rule("pad_token_id", NOT_CUT),
    rule("pad_token_type_id", NOT_CUT),
    rule("model_input_names", Effect::Nothing("token ids are the only input")),
    rule("return_token_type_ids", Effect::Nothing("token ids are the only input")),
    rule("trim_offsets", Effect::Nothing("moves positions in the text, not tokens")),
    rule("spaces_between_special_tokens", Effect::Nothing("special tokens are left out of answers")),
    rule("sp_model_kwargs", Effect::Nothing("tokenizer.json is read, not a SentencePiece model")),
    rule("from_slow", Effect::Nothing("tokenizer.json is read, not what it was made from")),
    rule("use_fast", Effect::Nothing("tokenizer.json is read, not what it was made from")),
    rule("name_or_path", SAVED),
    rule("_name_or_path", SAVED),
    rule("_commit_hash", SAVED),
    rule("init_inputs", SAVED),
    rule("is_local", SAVED),
    rule("local_files_only", SAVED),
    rule("files_loaded", SAVED),
    rule("tokenizer_file", SAVED),
    rule("vocab_file", SAVED),
    rule("merges_file", SAVED),
    rule("special_tokens_map_file", SAVED),
    rule("transformers_version", SAVED),
    rule("trust_remote_code", SAVED),
    rule("device_map", SAVED),
    rule("processor_class", Effect::Nothing("names what prepares images, and only text is answered")),
    rule("response_schema", PARSING),
    rule("response_template", PARSING),
    rule("chat_control_tokens", PARSING),
    rule("tool_parser_type", PARSING),
    rule(
        "errors",
        Effect::WarningUnless(&[Plain::Text("replace")], "broken characters of answers become U+FFFD"),
    ),
    rule(
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        Effect::WarningUnless(&[Plain::Bool(false)], "answers keep the spaces that the model writes"),
    ),
    rule(
        "use_default_system_prompt",
        Effect::WarningUnless(
            &[Plain::Bool(false)],
            "a default system prompt has to be in the chat template",
        ),
    ),
    rule("do_lower_case", Effect::WarningUnless(&[Plain::Bool(false)], "the steps of tokenizer.json count")),
    rule(
        "backend",
        Effect::WarningUnless(&[Plain::Text("tokenizers")], "another program would make the tokens there"),
    ),
    rule(
        "auto_map",
        Effect::WarningUnless(&[Plain::Empty], "the model's own Python code would make the tokens"),
    ),
    rule(
        "chat_template_type",
        Effect::ErrorUnless(&[], "mlx-lm's own Python code would write the prompt, not the chat template"),
    ),
];

/// Looks at all keys; returns what is to be said of those that would change something.
pub(super) fn account(entries: &Map<String, Value>, path: &Path) -> Result<Vec<String>, TextError> {
    let is_token = |key: &str, value: &Value| key.ends_with("_token") && token_text(value).is_some();
    let entries =
        entries.iter().filter(|(key, value)| !is_token(key, value)).map(|(key, value)| (key.as_str(), value));
    let mut unread = Unread::default();
    unread
        .account("", entries, |key| READ.contains(&key), &[RULES])
        .map_err(|message| TextError::tokenizer(path, message))?;
    Ok(unread.warnings(&path.display().to_string()))
}
