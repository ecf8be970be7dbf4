//! `config.json` → [`ModelSpec`].
//!
//! Owns what each family's configuration means and every check that makes a bad configuration a
//! named error instead of a crash later. Defaults are those of the reference, mlx-lm 0.32.

use std::{collections::HashMap, path::Path};

use serde_json::{Map, Value};
use thiserror::Error;

use super::{
    rope::{RopeScaling, RopeSpec},
    spec::{
        Activation, AttentionSpec, LayerSpec, ModelSpec, NormSpec, Quantization, QuantizationSpec,
        WeightNames,
    },
};

/// Model types that `read_config` understands, as error messages list them.
pub const SUPPORTED_MODEL_TYPES: &str = "llama, mistral, qwen2, qwen3, gemma3, gemma3_text";

/// No dimension of a real model comes near this; larger ones are damage.
const MAX_DIMENSION: u64 = 1 << 24;
/// Each layer keeps a frequency for every second one of these, before any weight is looked at.
const MAX_HEAD_DIM: usize = 1 << 13;
const MAX_LAYERS: u64 = 1 << 12;

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
    let family = Family::of(model_type).ok_or_else(|| ConfigError::UnsupportedType {
        path: path.to_owned(),
        model_type: model_type.to_owned(),
    })?;
    // Multimodal Gemma keeps the language model's settings one level down.
    let text_config = match (family, root.get("text_config")) {
        (Family::Gemma3, Some(Value::Object(text))) => Some(text),
        _ => None,
    };
    let fields = Fields { fields: text_config.unwrap_or(root), outer: root };
    let mut spec = family.spec(model_type, &fields, text_config.is_some()).map_err(invalid)?;
    spec.quantization = quantization(root, text_config).map_err(invalid)?;
    Ok(spec)
}

/// What differs between the supported families before any number is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

impl Family {
    fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" | "mistral" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            _ => return None,
        })
    }

    fn spec(self, model_type: &str, fields: &Fields, nested: bool) -> Result<ModelSpec, String> {
        let gemma = self == Self::Gemma3;
        let hidden_size = fields.dimension("hidden_size", gemma.then_some(1152))?;
        let num_layers = fields.integer("num_hidden_layers", gemma.then_some(26), 1, MAX_LAYERS)?;
        let vocab_size = match fields.outer.get("vocab_size") {
            Some(_) if nested => {
                Fields { fields: fields.outer, outer: fields.outer }.dimension("vocab_size", None)?
            }
            _ => fields.dimension("vocab_size", gemma.then_some(if nested { 262_208 } else { 262_144 }))?,
        };
        let max_context = fields.dimension("max_position_embeddings", Some(32_768))?;
        let eps = fields.number("rms_norm_eps", gemma.then_some(1e-6))?;
        if !(eps > 0.0 && eps < 1.0) {
            return Err(format!("'rms_norm_eps' must lie between 0 and 1, got {eps}"));
        }
        let shape = Shape::read(self, fields, hidden_size, nested)?;
        let layers = (0..num_layers)
            .map(|index| self.layer(fields, &shape, index, num_layers, max_context))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(ModelSpec {
            model_type: model_type.to_owned(),
            hidden_size,
            vocab_size,
            max_context,
            layers,
            norm: NormSpec { eps: eps as f32, one_plus_weight: gemma },
            embedding_scale: gemma.then(|| round_to_bfloat16((hidden_size as f32).sqrt())),
            tied_head: match self {
                Self::Gemma3 => None,
                Self::Qwen3 => Some(fields.flag("tie_word_embeddings", false)?),
                Self::Llama | Self::Qwen2 => Some(fields.flag("tie_word_embeddings", true)?),
            },
            final_logit_softcap: fields.softcap("final_logit_softcapping")?,
            quantization: None,
            names: WeightNames {
                prefix: if nested { "language_model.".to_owned() } else { String::new() },
                ignored_prefixes: if nested {
                    vec!["vision_tower.".to_owned(), "multi_modal_projector.".to_owned()]
                } else {
                    Vec::new()
                },
            },
        })
    }

    fn layer(
        self,
        fields: &Fields,
        shape: &Shape,
        index: usize,
        num_layers: usize,
        max_context: usize,
    ) -> Result<LayerSpec, String> {
        let gemma = self == Self::Gemma3;
        let window = self.window(fields, index, num_layers)?;
        let theta = match self {
            Self::Gemma3 if window.is_some() => fields.number("rope_local_base_freq", Some(10_000.0))?,
            Self::Gemma3 => fields.number("rope_theta", Some(1_000_000.0))?,
            Self::Qwen2 => fields.rope_theta(Some(1_000_000.0))?,
            Self::Qwen3 => fields.rope_theta(None)?,
            Self::Llama => fields.rope_theta(Some(10_000.0))?,
        };
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("'rope_theta' must be greater than 1, got {theta}"));
        }
        let scaling =
            if gemma && window.is_some() { RopeScaling::None } else { fields.rope_scaling(max_context)? };
        let qkv_bias = match self {
            Self::Qwen2 => true,
            Self::Llama => fields.flag("attention_bias", false)?,
            Self::Qwen3 | Self::Gemma3 => false,
        };
        let interleaved =
            matches!(self, Self::Llama | Self::Qwen2) && fields.flag("rope_traditional", false)?;
        let rope = RopeSpec::new(shape.head_dim, theta, interleaved, &scaling);
        if !rope.is_usable() {
            return Err(
                "'rope_theta' and the settings of 'rope_scaling' give no finite frequencies".to_owned()
            );
        }
        Ok(LayerSpec {
            attention: AttentionSpec {
                num_heads: shape.num_heads,
                num_kv_heads: shape.num_kv_heads,
                head_dim: shape.head_dim,
                scale: shape.score_scale,
                qkv_bias,
                output_bias: self == Self::Llama && qkv_bias,
                qk_norm: matches!(self, Self::Qwen3 | Self::Gemma3),
                rope,
                window,
                score_softcap: fields.softcap("attn_logit_softcapping")?,
            },
            intermediate_size: shape.intermediate_size,
            mlp_bias: self == Self::Llama && fields.flag("mlp_bias", false)?,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            post_norms: gemma,
        })
    }

    /// Window of layer `index`: the layer types decide, and a bare `sliding_window` does not.
    fn window(self, fields: &Fields, index: usize, num_layers: usize) -> Result<Option<usize>, String> {
        let slides = match self {
            Self::Gemma3 => {
                let pattern = fields.integer("sliding_window_pattern", Some(6), 1, MAX_LAYERS)?;
                !(index + 1).is_multiple_of(pattern)
            }
            Self::Llama => match fields.fields.get("layer_types") {
                None | Some(Value::Null) => false,
                Some(Value::Array(types)) if types.len() == num_layers => match types[index].as_str() {
                    Some("full_attention") => false,
                    Some("sliding_attention") => true,
                    _ => {
                        return Err(format!(
                            "'layer_types' entry {index} must be full_attention or sliding_attention, got {}",
                            types[index]
                        ));
                    }
                },
                Some(_) => {
                    return Err(format!(
                        "'layer_types' must be a list with one entry for each of {num_layers} layers"
                    ));
                }
            },
            // mlx-lm computes these families with full attention throughout.
            Self::Qwen2 | Self::Qwen3 => false,
        };
        if !slides {
            return Ok(None);
        }
        fields.dimension("sliding_window", (self == Self::Gemma3).then_some(512)).map(Some)
    }
}

/// The head and MLP dimensions, the same in every layer.
struct Shape {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    score_scale: f32,
}

impl Shape {
    fn read(family: Family, fields: &Fields, hidden_size: usize, nested: bool) -> Result<Self, String> {
        let gemma = family == Family::Gemma3;
        let num_heads =
            fields.dimension("num_attention_heads", gemma.then_some(if nested { 8 } else { 4 }))?;
        let num_kv_heads = fields.dimension(
            "num_key_value_heads",
            match family {
                Family::Gemma3 => Some(if nested { 4 } else { 1 }),
                Family::Llama => Some(num_heads as u64),
                Family::Qwen2 | Family::Qwen3 => None,
            },
        )?;
        if num_heads % num_kv_heads != 0 {
            return Err(format!(
                "'num_attention_heads' ({num_heads}) must be a multiple of 'num_key_value_heads' ({num_kv_heads})"
            ));
        }
        let head_dim = match family {
            Family::Qwen2 => split_evenly(hidden_size, num_heads)?,
            Family::Gemma3 => fields.dimension("head_dim", Some(256))?,
            Family::Llama | Family::Qwen3 => match fields.fields.get("head_dim") {
                None | Some(Value::Null) => split_evenly(hidden_size, num_heads)?,
                Some(_) => fields.dimension("head_dim", None)?,
            },
        };
        if head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM {
            return Err(format!(
                "'head_dim' must be even for rotary positions and at most {MAX_HEAD_DIM}, got {head_dim}"
            ));
        }
        let scale_base = match family {
            Family::Gemma3 => fields.number("query_pre_attn_scalar", Some(256.0))?,
            _ => head_dim as f64,
        };
        if !(scale_base > 0.0 && scale_base.is_finite()) {
            return Err(format!("'query_pre_attn_scalar' must be positive, got {scale_base}"));
        }
        Ok(Self {
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: fields.dimension("intermediate_size", gemma.then_some(6912))?,
            score_scale: scale_base.powf(-0.5) as f32,
        })
    }
}

fn split_evenly(hidden_size: usize, num_heads: usize) -> Result<usize, String> {
    if !hidden_size.is_multiple_of(num_heads) {
        return Err(format!(
            "'hidden_size' ({hidden_size}) must be a multiple of 'num_attention_heads' ({num_heads})"
        ));
    }
    Ok(hidden_size / num_heads)
}

/// Typed access to a JSON object; absent and null are the same.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    outer: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    fn integer(&self, name: &str, default: Option<u64>, min: u64, max: u64) -> Result<usize, String> {
        let number = match self.get(name) {
            Some(value) => value
                .as_u64()
                .ok_or_else(|| format!("'{name}' must be a positive whole number, got {value}"))?,
            None => default.ok_or_else(|| format!("'{name}' is missing"))?,
        };
        if number < min || number > max {
            return Err(format!("'{name}' must lie between {min} and {max}, got {number}"));
        }
        Ok(number as usize)
    }

    fn dimension(&self, name: &str, default: Option<u64>) -> Result<usize, String> {
        self.integer(name, default, 1, MAX_DIMENSION)
    }

    fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        self.get(name)
            .map(|value| value.as_f64().ok_or_else(|| format!("'{name}' must be a number, got {value}")))
            .transpose()
    }

    fn number(&self, name: &str, default: Option<f64>) -> Result<f64, String> {
        self.optional_number(name)?.or(default).ok_or_else(|| format!("'{name}' is missing"))
    }

    /// The cap of `cap * tanh(x / cap)`, which must be a positive number as an f32 too.
    fn softcap(&self, name: &str) -> Result<Option<f32>, String> {
        match self.optional_number(name)?.map(|cap| (cap, cap as f32)) {
            None => Ok(None),
            Some((_, cap)) if cap > 0.0 && cap.is_finite() => Ok(Some(cap)),
            Some((cap, _)) => Err(format!("'{name}' must be positive, got {cap}")),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.get(name).or_else(|| self.outer.get(name).filter(|value| !value.is_null())) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| format!("'{name}' must be true or false, got {value}"))
            }
        }
    }

    /// `rope_theta`, which transformers 5 nests under `rope_parameters`.
    fn rope_theta(&self, default: Option<f64>) -> Result<f64, String> {
        if let Some(theta) = self.optional_number("rope_theta")? {
            return Ok(theta);
        }
        match self.get("rope_parameters") {
            Some(Value::Object(nested)) => {
                Fields { fields: nested, outer: nested }.number("rope_theta", default)
            }
            _ => default.ok_or_else(|| "'rope_theta' is missing".to_owned()),
        }
    }

    fn rope_scaling(&self, max_context: usize) -> Result<RopeScaling, String> {
        let (name, scaling) = match (self.get("rope_scaling"), self.get("rope_parameters")) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, Some(scaling)) => ("rope_parameters", scaling),
            (None, None) => return Ok(RopeScaling::None),
        };
        let Value::Object(scaling) = scaling else {
            return Err(format!("'{name}' must be an object, got {scaling}"));
        };
        let scaling = Fields { fields: scaling, outer: scaling };
        let kind = scaling.get("type").or_else(|| scaling.get("rope_type"));
        let kind = kind.map_or(Ok("default"), |kind| {
            kind.as_str().ok_or_else(|| format!("'{name}' has a type that is not a string"))
        })?;
        let in_scaling = |reason: String| format!("in '{name}': {reason}");
        let positive = |field: &str, default: Option<f64>| {
            let number = scaling.number(field, default).map_err(in_scaling)?;
            if number > 0.0 && number.is_finite() {
                Ok(number)
            } else {
                Err(in_scaling(format!("'{field}' must be positive, got {number}")))
            }
        };
        Ok(match kind {
            "default" | "mrope" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: positive("factor", None)? },
            "llama3" => RopeScaling::Llama3 {
                factor: positive("factor", None)?,
                low_freq_factor: positive("low_freq_factor", Some(1.0))?,
                high_freq_factor: positive("high_freq_factor", Some(4.0))?,
                original_context: positive("original_max_position_embeddings", Some(8192.0))?,
            },
            "yarn" => RopeScaling::Yarn {
                factor: positive("factor", None)?,
                original_context: positive(
                    "original_max_position_embeddings",
                    Some(4096.0f64.min(max_context as f64)),
                )?,
                beta_fast: positive("beta_fast", Some(32.0))?,
                beta_slow: positive("beta_slow", Some(1.0))?,
                mscale: scaling.number("mscale", Some(1.0)).map_err(in_scaling)?,
                mscale_all_dim: scaling.number("mscale_all_dim", Some(0.0)).map_err(in_scaling)?,
            },
            other => {
                return Err(format!(
                    "'{name}' of type '{other}' is not supported (default, linear, llama3 and yarn are)"
                ));
            }
        })
    }
}

fn quantization(
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

/// Rounds to the nearest bfloat16, ties to even, as the reference rounds Gemma's embedding factor.
pub(super) fn round_to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}

#[cfg(test)]
mod tests;
