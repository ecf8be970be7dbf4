//! `config.json` → [`ModelSpec`].
//!
//! Owns finding the family and its fields, the error type, and that no field is passed over: what nobody
//! asks for is looked up in `known`'s tables. What a family's fields mean is in one file each; every bad
//! configuration is a named error there instead of a crash later.

mod attention;
mod falcon;
mod families;
mod family;
mod fields;
mod gemma4;
mod granite;
mod hybrid;
mod kimi_linear;
mod known;
mod latent;
mod lfm2;
mod moe;
mod published_quantization;
mod quantization;
mod qwen3_5;
mod rope;
mod windows;

use std::{cell::RefCell, path::Path};

use serde_json::{Map, Value};
use thiserror::Error;

use self::families::{MODEL_TYPES, ModelType, Reader};
pub(super) use self::fields::Fields;
use super::{known_keys::Unread, spec::ModelSpec};
use crate::small_file;

/// More than the largest configuration in use by a factor of ten.
pub(super) const MAX_FILE_BYTES: u64 = 4 << 20;

/// Model types that `read_config` understands, as error messages list them.
pub fn supported_model_types() -> String {
    model_types().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
}

/// The model types that are served, each with published models of it; those of language models inside others are
/// left out.
pub fn model_types() -> impl Iterator<Item = (&'static str, &'static str)> {
    let types = MODEL_TYPES.iter().map(|known| (known.name, known.about));
    types.filter(|(_, about)| *about != families::INSIDE)
}

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not valid JSON: {source}")]
    Json { path: String, source: serde_json::Error },
    #[error("{path}: model type '{model_type}' is not supported; mlxbatch runs {}", supported_model_types())]
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
    let text = small_file::read_text(path, MAX_FILE_BYTES)
        .map_err(|source| ConfigError::Read { path: shown.clone(), source })?;
    let value: Value = crate::json::parse_python(&text)
        .map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
    parse_model_config(&value, &shown)
}

/// Reads `config.json` at `path` into a layer description.
pub fn read_config(path: &Path) -> Result<ModelSpec, ConfigError> {
    read_model_config(path).map(|config| config.spec)
}

#[cfg(test)]
pub(super) fn parse_config(value: &Value, path: &str) -> Result<ModelSpec, ConfigError> {
    parse_model_config(value, path).map(|config| config.spec)
}

fn parse_model_config(value: &Value, path: &str) -> Result<ModelConfig, ConfigError> {
    let (spec, stored_dtype, unread) = parse_fields(value, path)?;
    Ok(ModelConfig { spec, stored_dtype, warnings: unread.warnings(path) })
}

/// What a configuration says, with the name of the element type that weights are stored in, and the fields that
/// nobody has asked for.
pub(super) fn parse_fields(
    value: &Value,
    path: &str,
) -> Result<(ModelSpec, Option<String>, Unread), ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
    let map = value.as_object().ok_or_else(|| invalid("is not a JSON object".to_owned()))?;
    let unread = RefCell::default();
    let root = Fields::of_file(map, &unread);
    let model_type = match root.get("model_type") {
        Some(Value::String(model_type)) => model_type.as_str(),
        _ => return Err(invalid("'model_type' is missing or not a string".to_owned())),
    };
    let known = ModelType::of(model_type).ok_or_else(|| ConfigError::UnsupportedType {
        path: path.to_owned(),
        model_type: model_type.to_owned(),
    })?;
    let spec = known.read(&root).map_err(invalid)?;
    let stored_dtype = stored_dtype(&root).map_err(invalid)?;
    Ok((spec, stored_dtype, unread.into_inner()))
}

impl ModelType {
    fn read(&self, root: &Fields) -> Result<ModelSpec, String> {
        // Models with more around the language model keep its settings one level down.
        let text = match self.inner {
            [] => None,
            _ => root.nested("text_config")?,
        };
        let fields = text.as_ref().unwrap_or(root);
        let known = self.inner_type(text.as_ref())?;
        let mut spec = match known.reader {
            Reader::Family(family) => family.spec(self.name, fields)?,
            Reader::Own(read) => read(self.name, fields)?,
            Reader::Inner => return Err(format!("'{}' has no reader of its own", known.name)),
        };
        spec.quantization = quantization::quantization(root, text.as_ref())?;
        if let Some(settings) = &mut spec.quantization {
            // Written under the file's names; the decoder asks by its own.
            let overrides = std::mem::take(&mut settings.overrides).into_iter();
            settings.overrides =
                overrides.map(|(path, setting)| (spec.names.canonical(&path), setting)).collect();
        }
        let wrapper = if self.inner.is_empty() { &[] } else { known::WRAPPER };
        match &text {
            Some(text) => {
                text.account(&[known.known, known::COMMON])?;
                root.account(&[wrapper, known::COMMON])?;
            }
            // Older files of such a type have the language model's settings beside the others.
            None => root.account(&[known.known, wrapper, known::COMMON])?,
        }
        Ok(spec)
    }

    /// The type of the language model, which is this one where there is none inside.
    fn inner_type(&self, text: Option<&Fields>) -> Result<&Self, String> {
        let Some(meant) = self.inner.first() else { return Ok(self) };
        let name = match text.and_then(|text| text.get("model_type")) {
            None => meant,
            Some(found) => *self.inner.iter().find(|name| found == **name).ok_or_else(|| {
                format!(
                    "'text_config.model_type' must be {} inside {}, got {found}",
                    self.inner.join(" or "),
                    self.name
                )
            })?,
        };
        Self::of(name).ok_or_else(|| format!("'{name}' is not known"))
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
