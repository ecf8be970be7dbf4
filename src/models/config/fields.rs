//! Typed reading of a configuration's fields.
//!
//! Owns the checks of single values, whose messages name the field. What a field means is the
//! families' business.

use serde_json::{Map, Value};

use crate::models::rope::{RopeScaling, RopeSpec};

/// No dimension of a real model comes near this; larger ones are damage.
const MAX_DIMENSION: u64 = 1 << 24;
/// Each layer keeps a frequency for every second one of these, before any weight is looked at.
const MAX_HEAD_DIM: usize = 1 << 13;
pub(super) const MAX_LAYERS: u64 = 1 << 12;

/// Typed access to a JSON object; absent and null are the same.
pub(super) struct Fields<'a> {
    pub fields: &'a Map<String, Value>,
    /// Where flags are looked for next.
    pub outer: &'a Map<String, Value>,
}

impl Fields<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    pub(super) fn integer(
        &self,
        name: &str,
        default: Option<u64>,
        min: u64,
        max: u64,
    ) -> Result<usize, String> {
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

    pub(super) fn dimension(&self, name: &str, default: Option<u64>) -> Result<usize, String> {
        self.integer(name, default, 1, MAX_DIMENSION)
    }

    pub(super) fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        self.get(name)
            .map(|value| value.as_f64().ok_or_else(|| format!("'{name}' must be a number, got {value}")))
            .transpose()
    }

    pub(super) fn number(&self, name: &str, default: Option<f64>) -> Result<f64, String> {
        self.optional_number(name)?.or(default).ok_or_else(|| format!("'{name}' is missing"))
    }

    /// The cap of `cap * tanh(x / cap)`, which must be a positive number as an f32 too.
    pub(super) fn softcap(&self, name: &str) -> Result<Option<f32>, String> {
        match self.optional_number(name)?.map(|cap| (cap, cap as f32)) {
            None => Ok(None),
            Some((_, cap)) if cap > 0.0 && cap.is_finite() => Ok(Some(cap)),
            Some((cap, _)) => Err(format!("'{name}' must be positive, got {cap}")),
        }
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.get(name).or_else(|| self.outer.get(name).filter(|value| !value.is_null())) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| format!("'{name}' must be true or false, got {value}"))
            }
        }
    }

    /// An object one level down, whose flags are looked for here next; `None` where absent.
    pub(super) fn nested(&self, name: &str) -> Result<Option<Fields<'_>>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Fields { fields, outer: self.fields })),
            Some(other) => Err(format!("'{name}' must be an object, got {other}")),
        }
    }

    /// A number to keep norms away from division by zero.
    pub(super) fn epsilon(&self, name: &str, default: Option<f64>) -> Result<f32, String> {
        let eps = self.number(name, default)?;
        if eps > 0.0 && eps < 1.0 {
            Ok(eps as f32)
        } else {
            Err(format!("'{name}' must lie between 0 and 1, got {eps}"))
        }
    }

    /// Heads of queries and of keys and values.
    pub(super) fn heads(&self, default_kv_heads: Option<u64>) -> Result<(usize, usize), String> {
        let num_heads = self.dimension("num_attention_heads", None)?;
        let num_kv_heads = self.dimension("num_key_value_heads", default_kv_heads)?;
        Self::check_heads(num_heads, num_kv_heads)?;
        Ok((num_heads, num_kv_heads))
    }

    pub(super) fn check_heads(num_heads: usize, num_kv_heads: usize) -> Result<(), String> {
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(format!(
                "'num_attention_heads' ({num_heads}) must be a multiple of 'num_key_value_heads' ({num_kv_heads})"
            ));
        }
        Ok(())
    }

    /// `head_dim`, by default an equal share of the hidden size.
    pub(super) fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize, String> {
        match self.get("head_dim") {
            None => Self::split_evenly(hidden_size, num_heads),
            Some(_) => self.dimension("head_dim", None),
        }
    }

    pub(super) fn split_evenly(hidden_size: usize, num_heads: usize) -> Result<usize, String> {
        if !hidden_size.is_multiple_of(num_heads) {
            return Err(format!(
                "'hidden_size' ({hidden_size}) must be a multiple of 'num_attention_heads' ({num_heads})"
            ));
        }
        Ok(hidden_size / num_heads)
    }

    /// One kind for each layer; `None` where the configuration does not say.
    pub(super) fn layer_types(&self, num_layers: usize) -> Result<Option<&[Value]>, String> {
        match self.get("layer_types") {
            None => Ok(None),
            Some(Value::Array(types)) if types.len() == num_layers => Ok(Some(types)),
            Some(_) => {
                Err(format!("'layer_types' must be a list with one entry for each of {num_layers} layers"))
            }
        }
    }

    /// A width of heads that rotary positions can be applied to.
    pub(super) fn check_head_dim(head_dim: usize) -> Result<(), String> {
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(format!(
                "'head_dim' must be even for rotary positions and at most {MAX_HEAD_DIM}, got {head_dim}"
            ));
        }
        Ok(())
    }

    /// Rotary positions of `dims` dimensions with the base `theta`, checked.
    pub(super) fn rope(
        dims: usize,
        theta: f64,
        interleaved: bool,
        scaling: &RopeScaling,
    ) -> Result<RopeSpec, String> {
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("'rope_theta' must be greater than 1, got {theta}"));
        }
        let rope = RopeSpec::new(dims, theta, interleaved, scaling);
        if !rope.is_usable() {
            return Err(
                "'rope_theta' and the settings of 'rope_scaling' give no finite frequencies".to_owned()
            );
        }
        Ok(rope)
    }

    /// `rope_theta`, which transformers 5 nests under `rope_parameters`.
    pub(super) fn rope_theta(&self, default: Option<f64>) -> Result<f64, String> {
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

    pub(super) fn rope_scaling(&self, max_context: usize) -> Result<RopeScaling, String> {
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
