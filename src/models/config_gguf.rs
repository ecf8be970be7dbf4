//! GGUF metadata → [`ModelSpec`].
//!
//! Owns the translation of llama.cpp's keys into the fields of `config.json`, so that both go through the
//! same checks in `config`, what llama.cpp takes where a key is absent or sets by size, and that no key is
//! passed over. Which architectures there are is `architectures`' table, heads and windows are `layers`',
//! rotary positions `rope`'s; what tensors are called is `gguf_names`' business.

pub(super) mod architectures;
mod known;
mod layers;
mod rope;

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value, json};

use self::architectures::{Architecture, COMMON, Fixed, Kind};
use super::{
    config::{ConfigError, ModelConfig, parse_fields},
    gguf::{GgufHeader, GgufValue, decoder},
    known_keys::Unread,
    spec::NormWeight,
};

/// Turns a GGUF header into a layer description.
pub fn read_gguf_config(header: &GgufHeader) -> Result<ModelConfig, ConfigError> {
    let path = header.path().display().to_string();
    let invalid = |reason: String| ConfigError::Invalid { path: path.clone(), reason };
    let architecture = Architecture::of(header).map_err(invalid)?;
    if let Some(tensor) = header.tensors().iter().find(|tensor| decoder(tensor.ggml_type.code()).is_none()) {
        return Err(ConfigError::Invalid {
            path: header.files()[tensor.file].display().to_string(),
            reason: format!(
                "tensor '{}' is of type {}, which cannot be read; use another quantisation of this model",
                tensor.name,
                tensor.ggml_type.name(),
            ),
        });
    }
    let translator = Translator { header, architecture, asked: RefCell::default() };
    let config = translator.config().map_err(invalid)?;
    let (mut spec, _, of_fields) = parse_fields(&config, &path)?;
    // A key that the family has no use for would else be passed over.
    if let Some(field) = of_fields.unknown() {
        return Err(invalid(format!(
            "the metadata set {field}, which '{}' does not have",
            architecture.name
        )));
    }
    translator.scale_frequencies(&mut spec).map_err(invalid)?;
    // llama.cpp's converter has added the one already.
    spec.norm.weight = NormWeight::Factor;
    let mut warnings = translator.account().map_err(invalid)?.warnings(&path);
    warnings.extend(of_fields.warnings(&path));
    // The types say nothing of the range of what is computed, which may be out of float16's, as Gemma's
    // hidden states are.
    Ok(ModelConfig { spec, stored_dtype: None, warnings })
}

struct Translator<'a> {
    header: &'a GgufHeader,
    architecture: &'static Architecture,
    /// Keys that were asked for, there or not.
    asked: RefCell<BTreeSet<String>>,
}

impl Translator<'_> {
    /// The value of a key of this architecture.
    fn value(&self, name: &str) -> Option<(String, &GgufValue)> {
        let key = format!("{}.{name}", self.architecture.name);
        self.asked.borrow_mut().insert(key.clone());
        self.header.value(&key).map(|value| (key, value))
    }

    /// A whole number; llama.cpp may write one for each layer, which have to be the same.
    fn integer(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(numbers) = self.integers(name)? else { return Ok(None) };
        match numbers.as_slice() {
            [first, others @ ..] if others.iter().all(|number| number == first) => Ok(Some(*first)),
            _ => Err(format!(
                "'{}.{name}' differs from layer to layer, which is not supported",
                self.architecture.name
            )),
        }
    }

    /// Whole numbers, one or one for each layer.
    fn integers(&self, name: &str) -> Result<Option<Vec<u64>>, String> {
        let whole = |value: &GgufValue| match value {
            GgufValue::Unsigned(number) => Some(*number),
            GgufValue::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let Some((key, value)) = self.value(name) else { return Ok(None) };
        let numbers = match value {
            GgufValue::Numbers(numbers) => numbers.iter().map(|number| whole(&number)).collect(),
            one => whole(one).map(|number| vec![number]),
        };
        numbers.map(Some).ok_or_else(|| format!("'{key}' must be a whole number, got {}", shown(value)))
    }

    fn number(&self, name: &str) -> Result<Option<f32>, String> {
        let Some((key, value)) = self.value(name) else { return Ok(None) };
        match value {
            GgufValue::Float(number) => Ok(Some(*number as f32)),
            GgufValue::Unsigned(number) => Ok(Some(*number as f32)),
            GgufValue::Signed(number) => Ok(Some(*number as f32)),
            _ => Err(format!("'{key}' must be a number, got {}", shown(value))),
        }
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        match self.value(name) {
            None => Ok(None),
            Some((_, GgufValue::Bool(flag))) => Ok(Some(*flag)),
            Some((key, other)) => Err(format!("'{key}' must be true or false, got {}", shown(other))),
        }
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors().iter().any(|tensor| tensor.name == name)
    }

    /// The fields of `config.json` that say the same; where keys are absent, what llama.cpp then takes.
    fn config(&self) -> Result<Value, String> {
        let architecture = self.architecture;
        let mut config = Map::new();
        let mut put = |field: &str, value: Value| config.insert(field.to_owned(), value);
        put("model_type", json!(architecture.model_type));
        if let Some(num_layers) = self.num_layers()? {
            put("num_hidden_layers", json!(num_layers));
        }
        if self.architecture.has_extra_blocks
            && let Some(extra) = self.integer("nextn_predict_layers")?
        {
            put("num_nextn_predict_layers", json!(extra));
        }
        if let Some(eps) = self.number("attention.layer_norm_rms_epsilon")? {
            put(architecture.eps_field, json!(eps));
        }
        for key in COMMON.iter().chain(architecture.keys) {
            let value = match key.kind {
                Kind::Count => self.integer(key.key)?.map(|number| json!(number)),
                Kind::NumberUnlessZero(default) => {
                    let number = self.number(key.key)?.filter(|number| *number != 0.0);
                    number.or(default).map(|number| json!(number))
                }
                Kind::Flag => Some(json!(self.flag(key.key)?.unwrap_or(false))),
            };
            if let Some(value) = value {
                put(key.field, value);
            }
        }
        for (field, value) in architecture.fixed {
            put(
                field,
                match *value {
                    Fixed::Flag(flag) => json!(flag),
                    Fixed::Count(number) => json!(number),
                    Fixed::Text(text) => json!(text),
                },
            );
        }
        for (field, tensor) in architecture.by_tensor {
            put(field, json!(self.has_tensor(tensor)));
        }
        let table = self.header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight");
        if let Some(vocabulary) = table.and_then(|tensor| tensor.shape.first()) {
            put("vocab_size", json!(vocabulary));
        }
        put("tie_word_embeddings", json!(!self.has_tensor("output.weight")));
        self.heads(&mut config)?;
        self.windows(&mut config)?;
        self.rope(&mut config)?;
        Ok(Value::Object(config))
    }

    /// Layers that are run.
    fn num_layers(&self) -> Result<Option<u64>, String> {
        let all = self.integer("block_count")?;
        if !self.architecture.has_extra_blocks {
            return Ok(all);
        }
        let extra = self.integer("nextn_predict_layers")?.unwrap_or(0);
        Ok(all.map(|all| all.saturating_sub(extra)))
    }

    /// Looks at all keys that are not asked for above.
    fn account(&self) -> Result<Unread, String> {
        let mut unread = Unread::default();
        let prefix = format!("{}.", self.architecture.name);
        let asked = self.asked.borrow();
        let (own, general): (Vec<_>, Vec<_>) = self
            .header
            .metadata()
            .filter(|(key, _)| !asked.contains(*key))
            .map(|(key, value)| (key, json_of(value)))
            .partition(|(key, _)| key.starts_with(&prefix));
        let own = own.iter().map(|(key, value)| (&key[prefix.len()..], value));
        unread.account(&prefix, own, |_| false, &[self.architecture.known, known::ARCHITECTURE])?;
        unread.account("", general.iter().map(|(key, value)| (*key, value)), |_| false, &[known::GENERAL])?;
        Ok(unread)
    }
}

/// A value as a table of known keys can look at it: of a list only whether it is empty.
fn json_of(value: &GgufValue) -> Value {
    let list = |num_entries: usize| match num_entries {
        0 => json!([]),
        more => json!(format!("a list of {more}")),
    };
    match value {
        GgufValue::Unsigned(number) => json!(number),
        GgufValue::Signed(number) => json!(number),
        GgufValue::Float(number) => json!(number),
        GgufValue::Bool(flag) => json!(flag),
        GgufValue::String(text) => json!(text),
        GgufValue::Strings(texts) => list(texts.len()),
        GgufValue::Numbers(numbers) => list(numbers.len()),
        GgufValue::Nested(lists) => list(lists.len()),
    }
}

/// A value for a message.
fn shown(value: &GgufValue) -> String {
    json_of(value).to_string()
}

#[cfg(test)]
mod tests;
