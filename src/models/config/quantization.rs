//! Quantisation settings of a configuration.
//!
//! Owns how MLX's modes are written; publishers' own forms are `published_quantization`'s. Reading quantised matrices
//! is `mlx/`'s.

use std::collections::HashMap;

use serde_json::Value;

use super::{fields::Fields, known::QUANTIZATION, published_quantization::publisher_format};
use crate::models::spec::{Quantization, QuantizationMode, QuantizationSpec};

/// Reads which matrices are quantised and how; `None` if none is.
pub(super) fn quantization(root: &Fields, text: Option<&Fields>) -> Result<Option<QuantizationSpec>, String> {
    let places =
        [(Some(root), "quantization"), (Some(root), "quantization_config"), (text, "quantization_config")];
    let found = places.into_iter().find_map(|(fields, name)| fields?.nested(name).transpose());
    let Some(settings) = found.transpose()? else {
        return Ok(None);
    };
    if let Some(method) = settings.get("quant_method") {
        let publisher = Some(publisher_format(method, &settings)?);
        return Ok(Some(QuantizationSpec { overrides: HashMap::new(), publisher }));
    }
    let default = settings_of(&settings, None)?;
    let mut overrides = HashMap::new();
    for (path, entry) in settings.map() {
        match entry {
            Value::Object(entry) => {
                settings.get(path);
                let entry = settings.inside(path, entry);
                let setting = settings_of(&entry, Some(default)).map_err(|e| format!("{path}: {e}"))?;
                entry.account(&[QUANTIZATION])?;
                overrides.insert(path.clone(), Some(setting));
            }
            Value::Bool(false) if !is_setting(path) => {
                settings.get(path);
                overrides.insert(path.clone(), None);
            }
            _ => {}
        }
    }
    settings.account(&[QUANTIZATION])?;
    Ok(Some(QuantizationSpec { overrides, publisher: None }))
}

/// Whether the tables know a key, so that it is no weight's path.
fn is_setting(key: &str) -> bool {
    QUANTIZATION.iter().any(|rule| rule.key == key)
}

/// One set of settings; what it leaves out is as in `default`.
fn settings_of(fields: &Fields, default: Option<Quantization>) -> Result<Quantization, String> {
    // A matrix's own entry that names no mode is affine, whatever the others are.
    let mode = match fields.get("mode") {
        None => QuantizationMode::Affine,
        Some(name) => {
            QuantizationMode::ALL.into_iter().find(|mode| name == mode.name()).ok_or_else(|| {
                format!("quantisation mode {name} is not supported; affine, mxfp4, nvfp4 and mxfp8 are")
            })?
        }
    };
    let default =
        default.filter(|default| default.mode == mode).map(|default| (default.group_size, default.bits));
    let has_default = default.is_some() || mode != QuantizationMode::Affine;
    let (default_size, default_bits) = default.unwrap_or_else(|| mode.defaults());
    let or_default = |number: usize| has_default.then_some(number as u64);
    let group_size = fields.integer("group_size", or_default(default_size), 1, 1024)?;
    let bits = fields.integer("bits", or_default(default_bits), 1, 8)?;
    if mode.allows(group_size, bits) {
        return Ok(Quantization { group_size, bits, mode });
    }
    Err(match mode {
        QuantizationMode::Affine if matches!(bits, 2..=6 | 8) => {
            format!("quantisation group size must be 32, 64 or 128, got {group_size}")
        }
        QuantizationMode::Affine => {
            format!("quantisation to {bits} bits is not supported (2, 3, 4, 5, 6 and 8 are)")
        }
        mode => {
            let (group_size, bits) = mode.defaults();
            format!("quantisation mode {} has {bits} bits in groups of {group_size}", mode.name())
        }
    })
}
