//! What the files beside `tokenizer.json` say about tokens: `tokenizer_config.json` first, then
//! `special_tokens_map.json` and `added_tokens.json`.
//!
//! Owns reading them into settings and the names of the special tokens. What a class of
//! tokenizers makes of the settings is `classes`', which keys there are `keys`', changing the
//! tokenizer `apply`'s business.
//!
//! The reference is transformers 5, which mlx-lm loads tokenizers with, except where it passes
//! over what the publisher's files say: it then gives other tokens than the model was trained on.
//!
//! | setting                      | here                                    | transformers 5         | 4             |
//! |------------------------------|-----------------------------------------|------------------------|---------------|
//! | steps of tokenizer.json      | kept                                    | some classes put theirs| kept          |
//! | Llama's `legacy` not true    | no space after a special token          | the same               | not acted on  |
//! | Llama's `legacy` true        | a space where a piece begins without    | the same               | always a space|
//! | Llama, file without a prefix | none unless `add_prefix_space`          | a space                | none          |
//! | `add_bos_token`, `add_eos_…` | acted on where the class knows them     | not acted on           | the same      |
//! | tokens without weights       | not added, with a warning               | added                  | added         |

mod apply;
mod classes;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use self::classes::Class;
use super::TextError;
use super::files::{read_json, token_text};

/// A folder's settings for its tokenizer.
#[derive(Debug)]
pub(super) struct TokenizerConfig {
    path: PathBuf,
    entries: Map<String, Value>,
    class: Option<&'static Class>,
    /// `bos_token` and the like by name, as chat templates see them.
    special_tokens: Map<String, Value>,
    /// By id.
    added_tokens: BTreeMap<u32, AddedToken>,
    model: ModelFacts,
    warnings: Vec<String>,
}

/// What decides about tokens in `config.json`.
#[derive(Debug, Default)]
struct ModelFacts {
    kind: Option<String>,
    tokenizer_class: Option<String>,
    /// Tokens that have weights.
    vocab_size: Option<usize>,
    transformers_version: Option<String>,
}

impl TokenizerConfig {
    /// Reads a model folder; what is not there says nothing.
    pub(super) fn read(dir: &Path) -> Result<TokenizerConfig, TextError> {
        let path = dir.join("tokenizer_config.json");
        let mut entries = read_object(&path)?;
        let model = ModelFacts::read(dir)?;
        let class_name = entries.get("tokenizer_class").and_then(Value::as_str);
        let class = Class::by_name(class_name.or(model.tokenizer_class.as_deref()).unwrap_or_default());
        let added_tokens = match entries.get("added_tokens_decoder").filter(|value| !value.is_null()) {
            Some(list) => read_added_tokens_decoder(list, &path)?,
            None => read_added_tokens(&dir.join("added_tokens.json"))?,
        };
        let mut warnings = keys::account(&entries, &path)?;
        let map_path = dir.join("special_tokens_map.json");
        let map = read_object(&map_path)?;
        // The map is of an older form: transformers reads it only where the newer one is missing.
        if entries.get("added_tokens_decoder").is_none_or(Value::is_null) {
            entries.extend(map.clone());
        }
        let special_tokens = name_special_tokens(&entries, class);
        let passed_over: Vec<&str> = map
            .iter()
            .filter(|(name, value)| {
                let text = token_text(value);
                name.ends_with("_token")
                    && text.is_some()
                    && special_tokens.get(*name).and_then(Value::as_str) != text
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if !passed_over.is_empty() {
            warnings.push(format!(
                "{}: {} differs from tokenizer_config.json, whose added_tokens_decoder makes it the one that counts",
                map_path.display(),
                passed_over.join(", ")
            ));
        }
        Ok(TokenizerConfig { path, entries, class, special_tokens, added_tokens, model, warnings })
    }

    /// Returns the special tokens' texts by their names, such as `bos_token`.
    pub(super) fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    /// Returns what is to be said about settings that are not acted on.
    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.entries.get(key).and_then(Value::as_bool)
    }

    fn warn(&mut self, what: impl std::fmt::Display) {
        self.warnings.push(format!("{}: {what}", self.path.display()));
    }

    fn unusable(&self, what: impl std::fmt::Display) -> TextError {
        TextError::tokenizer(&self.path, what)
    }
}

impl ModelFacts {
    fn read(dir: &Path) -> Result<ModelFacts, TextError> {
        let config = read_object(&dir.join("config.json"))?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
        let inner = config.get("text_config").and_then(|inner| inner.get("vocab_size"));
        let vocab_size = config.get("vocab_size").or(inner).and_then(Value::as_u64);
        Ok(ModelFacts {
            kind: text("model_type"),
            tokenizer_class: text("tokenizer_class"),
            vocab_size: vocab_size.and_then(|size| usize::try_from(size).ok()),
            transformers_version: text("transformers_version"),
        })
    }
}

/// Returns a file's object, an empty one if there is no such file.
fn read_object(path: &Path) -> Result<Map<String, Value>, TextError> {
    match read_json(path)? {
        None => Ok(Map::new()),
        Some(Value::Object(object)) => Ok(object),
        Some(_) => Err(TextError::Json { path: path.to_owned(), message: "not an object".to_owned() }),
    }
}

/// The configuration's names, under them the class's.
fn name_special_tokens(entries: &Map<String, Value>, class: Option<&Class>) -> Map<String, Value> {
    let is_token = |(name, value): &(&String, &Value)| {
        name.ends_with("_token") && (value.is_null() || token_text(value).is_some())
    };
    let mut named: Map<String, Value> =
        entries.iter().filter(is_token).map(|(name, value)| (name.clone(), value.clone())).collect();
    for key in ["extra_special_tokens", "model_specific_special_tokens"] {
        let more = entries.get(key).and_then(Value::as_object);
        named.extend(more.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())));
    }
    for (name, text) in class.map_or(&[][..], |class| class.special_tokens) {
        named.entry(*name).or_insert_with(|| (*text).into());
    }
    // A token that is said to be null is none, whatever its class has.
    named.into_iter().filter_map(|(name, value)| Some((name, token_text(&value)?.into()))).collect()
}

fn read_added_tokens_decoder(list: &Value, path: &Path) -> Result<BTreeMap<u32, AddedToken>, TextError> {
    let unusable = |what: String| TextError::tokenizer(path, what);
    let list = list
        .as_object()
        .ok_or_else(|| unusable("added_tokens_decoder is no object of tokens by id".into()))?;
    let read = |id: &str, token: &Value| Some((id.parse().ok()?, added_token(token.as_object()?)?));
    list.iter()
        .map(|(id, token)| {
            read(id, token).ok_or_else(|| {
                unusable(format!(
                    "added_tokens_decoder[{id:?}] is not an id and a token with its \"content\""
                ))
            })
        })
        .collect()
}

/// Reads the older form, texts with their ids.
fn read_added_tokens(path: &Path) -> Result<BTreeMap<u32, AddedToken>, TextError> {
    let entries = read_object(path)?;
    let read = |(text, id): (&String, &Value)| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| TextError::tokenizer(path, format!("{text:?} has no id")))?;
        Ok((id, AddedToken::from(text.clone(), false).normalized(true)))
    };
    entries.iter().map(read).collect()
}

fn added_token(token: &Map<String, Value>) -> Option<AddedToken> {
    let flag = |key: &str| token.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: token.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
