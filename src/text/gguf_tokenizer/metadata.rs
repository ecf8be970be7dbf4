//! The GGUF keys that both tokenizer families share.
//!
//! Owns reading tokens, their types and the BOS and EOS settings, and refusing what does not fit together.
//! What is built from them is the parent module's business.

use serde_json::{Map, Value, json};

use crate::models::GgufHeader;
use crate::text::TextError;

/// What llama.cpp calls a token's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    User,
    Unused,
    Byte,
}

/// The tokenizer part of a GGUF file's metadata, its lists checked against each other.
pub(super) struct Metadata<'a> {
    pub(super) header: &'a GgufHeader,
    pub(super) tokens: &'a [Box<str>],
    kinds: Vec<Kind>,
}

impl<'a> Metadata<'a> {
    pub(super) fn read(header: &'a GgufHeader) -> Result<Metadata<'a>, TextError> {
        let unusable = |message: String| TextError::tokenizer(header.path(), message);
        let tokens = header
            .strings("tokenizer.ggml.tokens")
            .ok_or_else(|| unusable("tokenizer.ggml.tokens is missing or no list of strings".to_owned()))?;
        if u32::try_from(tokens.len()).is_err() {
            return Err(unusable(format!("{} tokens are too many", tokens.len())));
        }
        let kinds = match header.value("tokenizer.ggml.token_type") {
            None => vec![Kind::Normal; tokens.len()],
            Some(_) => header
                .i64s("tokenizer.ggml.token_type")
                .ok_or_else(|| unusable("tokenizer.ggml.token_type is no list of integers".to_owned()))?
                .into_iter()
                .map(|code| match code {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::User,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => Kind::Normal,
                })
                .collect(),
        };
        if kinds.len() != tokens.len() {
            return Err(unusable(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                kinds.len(),
                tokens.len()
            )));
        }
        Ok(Metadata { header, tokens, kinds })
    }

    pub(super) fn unusable(&self, message: impl ToString) -> TextError {
        TextError::tokenizer(self.header.path(), message)
    }

    /// Returns every token with its id and kind.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &str, Kind)> {
        self.tokens.iter().zip(&self.kinds).zip(0..).map(|((token, kind), id)| (id, &**token, *kind))
    }

    pub(super) fn is_gemma(&self) -> bool {
        self.header.str("general.architecture").is_some_and(|name| name.starts_with("gemma"))
    }

    /// Returns the post-processor that puts BOS in front and EOS behind, if the file asks for them.
    pub(super) fn put_around(&self, bos_by_default: bool) -> Result<Option<Value>, TextError> {
        let bos = self.asked_token("bos", bos_by_default)?;
        let eos = self.asked_token("eos", false)?;
        if bos.is_none() && eos.is_none() {
            return Ok(None);
        }
        let special = |token: &Option<(u64, &str)>, type_id: u32| {
            token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
        };
        let around = |sequence: &str, type_id: u32| {
            let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
            special(&bos, type_id).into_iter().chain([text]).chain(special(&eos, type_id))
        };
        let ids: Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
            .collect();
        Ok(Some(json!({
            "type": "TemplateProcessing",
            "single": around("A", 0).collect::<Vec<_>>(),
            "pair": around("A", 0).chain(around("B", 1)).collect::<Vec<_>>(),
            "special_tokens": ids,
        })))
    }

    /// Returns id and text of BOS or EOS, if it is to be put there.
    fn asked_token(&self, name: &str, by_default: bool) -> Result<Option<(u64, &str)>, TextError> {
        let add = self.header.bool(&format!("tokenizer.ggml.add_{name}_token")).unwrap_or(by_default);
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.header.u64(&key).filter(|_| add) else {
            return Ok(None);
        };
        let token = usize::try_from(id)
            .ok()
            .and_then(|id| self.tokens.get(id))
            .ok_or_else(|| self.unusable(format!("{key} {id} is not among {} tokens", self.tokens.len())))?;
        Ok(Some((id, token)))
    }
}
