//! `config.json` → [`ModelSpec`].
//!
//! Owns finding the family and its fields, the error type, and that no field is passed over: what nobody
//! asks for is looked up in `known`'s tables. What a family's fields mean is in one file each; every bad
//! configuration is a named error there instead of a crash later.

mod fields;
mod known;
mod lfm2;
mod quantization;
mod qwen3_5;
mod rope;
mod transformer;

use std::{cell::RefCell, path::Path};

use serde_json::{Map, Value};
use thiserror::Error;

pub(super) use self::fields::Fields;
use self::transformer::Family;
use super::{known_keys::KeyRule, spec::ModelSpec};

/// Model types that `read_config` understands, as error messages list them.
pub const SUPPORTED_MODEL_TYPES: &str = "llama, mistral, qwen2, qwen3, qwen3_5, gemma3, gemma3_text, lfm2";

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not valid JSON: {source}")]
    Json { path: String, source: serde_json::Error },
    #[error("{path}: model type '{model_type}' is not supported; mlxbatch runs {SUPPORTED_MODEL_TYPES}")]
    UnsupportedType { path: String, model_type: String },
    #[error("{path}: {reason}")]
    Invalid { path: String, reason: String },
}

/// What a configuration says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub spec: ModelSpec,
    /// Name of the element type that the weights are stored in, if the file says so.
    pub stored_dtype: Option<String>,
    /// What the file says that is not acted on, or not known.
    pub warnings: Vec<String>,
}

/// Reads `config.json` at `path`.
pub fn read_model_config(path: &Path) -> Result<ModelConfig, ConfigError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
    let value: Value =
        serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
    parse_model_config(&value, &shown)
}

/// Reads `config.json` at `path` into a layer description.
pub fn read_config(path: &Path) -> Result<ModelSpec, ConfigError> {
    read_model_config(path).map(|config| config.spec)
}

pub(super) fn parse_config(value: &Value, path: &str) -> Result<ModelSpec, ConfigError> {
    parse_model_config(value, path).map(|config| config.spec)
}

fn parse_model_config(value: &Value, path: &str) -> Result<ModelConfig, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    let map = value.as_object().ok_or_else(|| invalid("is not a JSON object".to_owned()))?;
    let unread = RefCell::default();
    let root = Fields::of_file(map, &unread);
    let model_type = match root.get("model_type") {
        Some(Value::String(model_type)) => model_type.as_str(),
        _ => return Err(invalid("'model_type' is missing or not a string".to_owned())),
    };
    let reader = Reader::of(model_type).ok_or_else(|| ConfigError::UnsupportedType {
        path: path.to_owned(),
        model_type: model_type.to_owned(),
    })?;
    let spec = reader.read(model_type, &root).map_err(invalid)?;
    let stored_dtype = stored_dtype(&root).map_err(invalid)?;
    Ok(ModelConfig { spec, stored_dtype, warnings: unread.into_inner().warnings(path) })
}

/// Reads a model type's fields, which lie in a `text_config` where the flag is set.
type ReadSpec = fn(&str, &Fields, bool) -> Result<ModelSpec, String>;

/// How the configurations of some model types are read.
struct Reader {
    spec: ReadSpec,
    /// What is known of the keys that it does not ask for.
    known: &'static [KeyRule],
    /// `model_type` of the language model inside, for model types that may have one.
    inner_type: Option<&'static str>,
}

impl Reader {
    fn of(model_type: &str) -> Option<Self> {
        let (spec, known, inner_type): (ReadSpec, &[KeyRule], _) = match model_type {
            "llama" => (|name, fields, inner| Family::Llama.spec(name, fields, inner), known::LLAMA, None),
            "mistral" => (|name, fields, inner| Family::Mistral.spec(name, fields, inner), &[], None),
            "qwen2" => (|name, fields, inner| Family::Qwen2.spec(name, fields, inner), known::QWEN2, None),
            "qwen3" => (|name, fields, inner| Family::Qwen3.spec(name, fields, inner), known::QWEN3, None),
            "gemma3" | "gemma3_text" => (
                |name, fields, inner| Family::Gemma3.spec(name, fields, inner),
                known::GEMMA3,
                Some("gemma3_text"),
            ),
            "qwen3_5" | "qwen3_5_text" => {
                (|name, fields, _| qwen3_5::spec(name, fields), known::QWEN3_5, Some("qwen3_5_text"))
            }
            "lfm2" => (|name, fields, _| lfm2::spec(name, fields), known::LFM2, None),
            _ => return None,
        };
        Some(Self { spec, known, inner_type })
    }

    fn read(&self, model_type: &str, root: &Fields) -> Result<ModelSpec, String> {
        // Multimodal models keep the language model's settings one level down.
        let text = match self.inner_type {
            Some(_) => root.nested("text_config")?,
            None => None,
        };
        let fields = text.as_ref().unwrap_or(root);
        let inner_type = fields.get("model_type").filter(|_| text.is_some());
        if let (Some(found), Some(expected)) = (inner_type, self.inner_type)
            && found != expected
        {
            return Err(format!(
                "'text_config.model_type' must be {expected} inside {model_type}, got {found}"
            ));
        }
        let mut spec = (self.spec)(model_type, fields, text.is_some())?;
        spec.quantization = quantization::quantization(root, text.as_ref())?;
        if let Some(settings) = &mut spec.quantization {
            // Written under the file's names; the decoder asks by its own.
            settings.overrides = std::mem::take(&mut settings.overrides)
                .into_iter()
                .map(|(path, setting)| {
                    let path = spec.names.canonical(&path);
                    (path.strip_prefix(&spec.names.prefix).unwrap_or(&path).to_owned(), setting)
                })
                .collect();
        }
        fields.account(&[self.known, known::COMMON])?;
        if text.is_some() {
            root.account(&[known::WRAPPER, known::COMMON])?;
        }
        Ok(spec)
    }
}

/// Name of the weights' element type, as `dtype` or, before transformers 5, as `torch_dtype`.
fn stored_dtype(root: &Fields) -> Result<Option<String>, String> {
    let of = |map: &Map<String, Value>| {
        let [new, old] = ["dtype", "torch_dtype"].map(|name| map.get(name).and_then(Value::as_str));
        match (new, old) {
            (Some(new), Some(old)) if new != old => Err(format!(
                "'dtype' and 'torch_dtype' contradict each other: {new} and {old}; remove the wrong one"
            )),
            _ => Ok(new.or(old).map(str::to_owned)),
        }
    };
    let inner = root.map().get("text_config").and_then(Value::as_object);
    match (of(root.map())?, inner) {
        (None, Some(inner)) => of(inner),
        (found, _) => Ok(found),
    }
}

#[cfg(test)]
mod forms_tests;
#[cfg(test)]
mod known_tests;
#[cfg(test)]
mod published;
#[cfg(test)]
mod tests;
