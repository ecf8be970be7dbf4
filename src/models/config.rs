//! `config.json` → [`ModelSpec`].
//!
//! Owns finding the family and its fields, and the error type. What a family's fields mean is in
//! one file each; every bad configuration is a named error there instead of a crash later.

mod fields;
mod lfm2;
mod quantization;
mod qwen3_5;
mod transformer;

use std::path::Path;

use serde_json::Value;
use thiserror::Error;

use self::{fields::Fields, transformer::Family};
use super::spec::ModelSpec;

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

/// Reads `config.json` at `path` into a layer description.
pub fn read_config(path: &Path) -> Result<ModelSpec, ConfigError> {
    let shown = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
    let value: Value =
        serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
    parse_config(&value, &shown)
}

pub(super) fn parse_config(value: &Value, path: &str) -> Result<ModelSpec, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    let root = value.as_object().ok_or_else(|| invalid("is not a JSON object".to_owned()))?;
    let model_type = match root.get("model_type") {
        Some(Value::String(model_type)) => model_type.as_str(),
        _ => return Err(invalid("'model_type' is missing or not a string".to_owned())),
    };
    // Multimodal models keep the language model's settings one level down.
    let text_config = match (model_type, root.get("text_config")) {
        ("gemma3" | "gemma3_text" | "qwen3_5", Some(Value::Object(text))) => Some(text),
        _ => None,
    };
    let fields = Fields { fields: text_config.unwrap_or(root), outer: root };
    let spec = match model_type {
        "lfm2" => lfm2::spec(model_type, &fields),
        "qwen3_5" | "qwen3_5_text" => qwen3_5::spec(model_type, &fields),
        _ => {
            let family = Family::of(model_type).ok_or_else(|| ConfigError::UnsupportedType {
                path: path.to_owned(),
                model_type: model_type.to_owned(),
            })?;
            family.spec(model_type, &fields, text_config.is_some())
        }
    };
    let mut spec = spec.map_err(invalid)?;
    spec.quantization = quantization::quantization(root, text_config).map_err(invalid)?;
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
    Ok(spec)
}

#[cfg(test)]
mod tests;
