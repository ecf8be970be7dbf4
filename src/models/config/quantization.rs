//! Quantisation settings of a configuration.
//!
//! Owns which settings MLX's affine quantisation allows. Reading quantised matrices is `mlx/`'s.

use std::collections::HashMap;

use serde_json::Value;

use super::{fields::Fields, known::QUANTIZATION};
use crate::models::spec::{Quantization, QuantizationSpec};

/// Reads which matrices are quantised and how; `None` if none is.
pub(super) fn quantization(root: &Fields, text: Option<&Fields>) -> Result<Option<QuantizationSpec>, String> {
    let places =
        [(Some(root), "quantization"), (Some(root), "quantization_config"), (text, "quantization_config")];
    let found = places.into_iter().find_map(|(fields, name)| fields?.nested(name).transpose());
    let Some(settings) = found.transpose()? else {
        return Ok(None);
    };
    if let Some(method) = settings.get("quant_method") {
        return Err(format!(
            "weights quantised by {method} are not supported; use an MLX conversion (affine) of this model"
        ));
    }
    let default = affine(&settings, None)?;
    let mut overrides = HashMap::new();
    for (path, entry) in settings.map() {
        match entry {
            Value::Object(entry) => {
                settings.get(path);
                let entry = settings.inside(path, entry);
                let setting = affine(&entry, Some(default)).map_err(|e| format!("{path}: {e}"))?;
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
    Ok(Some(QuantizationSpec { default, overrides }))
}

/// Whether the tables know a key, so that it is no weight's path.
fn is_setting(key: &str) -> bool {
    QUANTIZATION.iter().any(|rule| rule.key == key)
}

fn affine(fields: &Fields, default: Option<Quantization>) -> Result<Quantization, String> {
    match fields.get("mode") {
        None => {}
        Some(mode) if mode == "affine" => {}
        Some(mode) => return Err(format!("quantisation mode {mode} is not supported; affine is")),
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
