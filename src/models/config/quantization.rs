//! Quantisation settings of a configuration.
//!
//! Owns which settings MLX's affine quantisation allows. Reading quantised matrices is `mlx/`'s.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::models::spec::{Quantization, QuantizationSpec};

/// Reads which matrices are quantised and how; `None` if none is.
pub(super) fn quantization(
    root: &Map<String, Value>,
    text_config: Option<&Map<String, Value>>,
) -> Result<Option<QuantizationSpec>, String> {
    let find =
        |object: &Map<String, Value>, name: &str| object.get(name).filter(|value| !value.is_null()).cloned();
    let Some(value) = find(root, "quantization")
        .or_else(|| find(root, "quantization_config"))
        .or_else(|| text_config.and_then(|text| find(text, "quantization_config")))
    else {
        return Ok(None);
    };
    let Value::Object(settings) = &value else {
        return Err(format!("'quantization' must be an object, got {value}"));
    };
    if let Some(method) = settings.get("quant_method") {
        return Err(format!(
            "weights quantised by {method} are not supported; use an MLX conversion (affine) of this model"
        ));
    }
    let default = affine(settings, None)?;
    let mut overrides = HashMap::new();
    for (path, entry) in settings {
        match entry {
            Value::Object(entry) => {
                overrides.insert(
                    path.clone(),
                    Some(affine(entry, Some(default)).map_err(|e| format!("{path}: {e}"))?),
                );
            }
            Value::Bool(false) => {
                overrides.insert(path.clone(), None);
            }
            _ => {}
        }
    }
    Ok(Some(QuantizationSpec { default, overrides }))
}

fn affine(settings: &Map<String, Value>, default: Option<Quantization>) -> Result<Quantization, String> {
    let fields = Fields { fields: settings, outer: settings };
    match fields.get("mode").map(|mode| mode.as_str()) {
        None | Some(Some("affine")) => {}
        Some(_) => {
            return Err(format!(
                "quantisation mode {} is not supported; affine is",
                settings.get("mode").unwrap_or(&Value::Null)
            ));
        }
    }
    let group_size = fields.integer("group_size", default.map(|d| d.group_size as u64), 1, 1024)?;
    let bits = fields.integer("bits", default.map(|d| d.bits as u64), 1, 8)?;
    if !matches!(group_size, 32 | 64 | 128) {
        return Err(format!("quantisation group size must be 32, 64 or 128, got {group_size}"));
    }
    if !matches!(bits, 2..=6 | 8) {
        return Err(format!("quantisation to {bits} bits is not supported (2, 3, 4, 5, 6 and 8 are)"));
    }
    Ok(Quantization { group_size, bits })
}
