//! `adapter_config.json` as mlx_lm.lora writes it.
//!
//! Owns what its keys mean: a copy of all settings of the training, of which few matter afterwards. What is known of
//! the others is in `known`.

use serde_json::Value;

use super::{AdapterKind, Settings, checked_scale, in_layer, known};
use crate::models::config::Fields;

/// More than any matrix has rows.
const MAX_RANK: u64 = 1 << 24;

/// What the configuration says.
#[derive(Debug)]
pub(super) struct MlxLmSettings {
    kind: AdapterKind,
    /// Rank and scale; `None` where weights are replaced.
    update: Option<(usize, f32)>,
    /// Layers before it are as they were.
    first_layer: usize,
    /// Names of the adapted modules, in their layers or in the model; all linear ones where there is none.
    keys: Option<Vec<String>>,
}

/// Reads it for a model of so many layers.
pub(super) fn read(fields: &Fields, num_layers: usize) -> Result<MlxLmSettings, String> {
    let kind = match (fields.get("fine_tune_type"), fields.own_flag("use_dora")?) {
        (None, Some(true)) => AdapterKind::Dora,
        (None, _) => AdapterKind::Lora,
        (Some(name), is_dora) => {
            let kinds = [AdapterKind::Lora, AdapterKind::Dora, AdapterKind::Full];
            let kind = kinds.into_iter().find(|kind| name == kind.name());
            let kind =
                kind.ok_or_else(|| format!("'fine_tune_type' must be lora, dora or full, got {name}"))?;
            if is_dora == Some(true) && kind != AdapterKind::Dora {
                return Err(format!(
                    "'use_dora' and 'fine_tune_type' contradict each other: true and {name}"
                ));
            }
            kind
        }
    };
    // The older name.
    let num_adapted = match (fields.get("num_layers"), fields.get("lora_layers")) {
        (None, None) if kind == AdapterKind::Full => num_layers,
        (None, None) => return Err("'num_layers' is missing".to_owned()),
        (Some(value), _) | (None, Some(value)) => match value.as_i64() {
            // mlx-lm takes the last so many, and all where that is none.
            Some(count) if count <= 0 => num_layers,
            Some(count) => count as usize,
            None => return Err(format!("'num_layers' must be a whole number, got {value}")),
        },
    };
    let (mut update, mut keys) = (None, None);
    if kind != AdapterKind::Full {
        let parameters = fields.nested("lora_parameters")?.ok_or("'lora_parameters' is missing")?;
        let named = |reason: String| format!("lora_parameters: {reason}");
        let rank = parameters.integer("rank", None, 1, MAX_RANK).map_err(named)?;
        let scale = parameters.number("scale", None).map_err(named)?;
        update = Some((rank, checked_scale(scale, "'lora_parameters.scale'")?));
        keys = match parameters.get("keys") {
            None => None,
            Some(value) => Some(names(value).ok_or_else(|| {
                format!("'lora_parameters.keys' must be a list of modules' names, got {value}")
            })?),
        };
        parameters.account(&[known::MLX_LM_PARAMETERS])?;
    } else {
        // Null as mlx-lm writes it; whatever else it says has no part in it.
        fields.get("lora_parameters");
    }
    fields.account(&[known::MLX_LM])?;
    Ok(MlxLmSettings { kind, update, first_layer: num_layers.saturating_sub(num_adapted), keys })
}

impl Settings for MlxLmSettings {
    fn kind(&self) -> AdapterKind {
        self.kind
    }

    fn update_of(&self, path: &str) -> Result<(usize, f32), String> {
        let Some(update) = self.update else {
            return Err(format!("'{path}' has an update, and 'fine_tune_type' says full"));
        };
        let is_key = |name: &str| self.keys.iter().flatten().any(|key| key == name);
        let in_model = is_key(path);
        match in_layer(path) {
            _ if in_model => Ok(update),
            Some((layer, _)) if layer < self.first_layer => Err(format!(
                "'{path}' has an update, and 'num_layers' says that layers from {} on have",
                self.first_layer
            )),
            Some((_, inner)) if self.keys.is_none() || is_key(inner) => Ok(update),
            _ => Err(format!("'{path}' has an update, and 'lora_parameters.keys' does not name it")),
        }
    }

    fn update_of_parameter(&self, _: &str) -> Option<Result<(usize, f32), String>> {
        None
    }

    fn unties(&self, name: &str) -> Result<bool, String> {
        match self.kind {
            AdapterKind::Full => Ok(false),
            _ => {
                Err(format!("'{name}' is none of 'lora_a', 'lora_b' and 'm', which an adapter of mlx-lm has"))
            }
        }
    }
}

/// A list of texts.
pub(super) fn names(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}
