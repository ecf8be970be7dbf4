//! Latent attention in a configuration.
//!
//! Owns the widths of its parts and the factor on its scores. What they are is `spec`'s, the frequencies of rotary
//! positions are `rope`'s.

use super::{
    attention::position_scale,
    family::{Bias, Sizes},
    fields::{Fields, MAX_HEAD_DIM},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    rope::RopeScaling,
    spec::{AttentionSpec, KeyValueSource, LatentSpec},
};

/// Publishers' code has it fixed, whatever the other norms have.
const NORM_EPS: f32 = 1e-6;

/// How a family's latent attention differs from others'.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentTraits {
    pub bias: Bias,
    pub rope: RopeDefaults,
    /// The field of how many positions each one sees, chosen by a projection of its own; contexts end there, as up to
    /// so many it sees all.
    pub max_seen: Option<&'static str>,
    pub position_scale: bool,
}

impl LatentTraits {
    pub(super) const DEEPSEEK: Self = Self {
        bias: Bias::Field("attention_bias"),
        rope: RopeDefaults::new(Some(10_000.0)),
        max_seen: None,
        position_scale: false,
    };

    /// The attention of each layer, all alike.
    pub(super) fn spec(&self, sizes: &Sizes<'_>, max_context: usize) -> Result<LatentSpec, String> {
        let fields = sizes.fields;
        let num_heads = sizes.dimension("num_attention_heads")?;
        let part = |name: &str| fields.integer(name, sizes.default(name), 1, MAX_HEAD_DIM as u64);
        let [rank, rotated_dim, plain_dim, value_dim] =
            ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"].map(part);
        let (rank, rotated_dim, plain_dim, value_dim) = (rank?, rotated_dim?, plain_dim?, value_dim?);
        if !rotated_dim.is_multiple_of(2) {
            return Err(format!("'qk_rope_head_dim' must be even for rotary positions, got {rotated_dim}"));
        }
        let query_dim = plain_dim + rotated_dim;
        if let Some(stated) = fields.get("qk_head_dim")
            && stated.as_u64() != Some(query_dim as u64)
        {
            return Err(format!(
                "'qk_head_dim' must be {query_dim}, as 'qk_nope_head_dim' and 'qk_rope_head_dim' say, got {stated}"
            ));
        }
        let query_rank = match fields.get("q_lora_rank") {
            None => None,
            Some(_) => Some(fields.dimension("q_lora_rank", None)?),
        };
        let interleaved = fields.flag("rope_interleave", true)?;
        let rope = fields.rope(LayerType::Full, rotated_dim, max_context, interleaved, self.rope)?;
        if rope.dims != rotated_dim {
            return Err(format!(
                "'partial_rotary_factor' rotates {} of the {rotated_dim} dimensions that 'qk_rope_head_dim' says are",
                rope.dims
            ));
        }
        let bias = self.bias.read(fields)?;
        let scale = (query_dim as f64).powf(-0.5) * yarn_score_factor(fields)?;
        let attention = AttentionSpec {
            scale: scale as f32,
            qkv_bias: bias,
            output_bias: bias,
            position_scale: if self.position_scale { position_scale(fields)? } else { None },
            kv: KeyValueSource::WithinKeys { value_dim: rank },
            ..AttentionSpec::plain((num_heads, 1), rank + rotated_dim, Some(rope))
        };
        Ok(LatentSpec { attention, query_rank, plain_dim, value_dim, norm_eps: NORM_EPS })
    }

    /// The longest context in which each position sees all before it.
    pub(super) fn max_context(&self, fields: &Fields, max_context: usize) -> Result<usize, String> {
        match self.max_seen {
            None => Ok(max_context),
            Some(name) => Ok(fields.dimension(name, None)?.min(max_context)),
        }
    }
}

/// Yarn's further factor on scores: the square of what `mscale_all_dim` gives.
fn yarn_score_factor(fields: &Fields) -> Result<f64, String> {
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(object) = fields.nested(name)? else { continue };
        let kind = ["rope_type", "type"].into_iter().find_map(|kind| object.get(kind)?.as_str());
        if kind == Some("yarn")
            && let Some(all_dims) = object.optional_number("mscale_all_dim")?
        {
            let factor = RopeScaling::yarn_mscale(object.number("factor", None)?, all_dims).powi(2);
            return match factor > 0.0 && (factor as f32).is_finite() {
                true => Ok(factor),
                false => Err(format!("'{name}': 'mscale_all_dim' of {all_dims} gives no usable factor")),
            };
        }
    }
    Ok(1.0)
}
