//! Configurations of llama, mistral, qwen2, qwen3 and gemma3.
//!
//! Owns what the fields of these attention-only families mean and their defaults, those of the
//! reference mlx-lm 0.32. Families with recurrent layers have files of their own.

use super::fields::{Fields, MAX_LAYERS};
use crate::models::{
    names::{BlockNames, WeightNames},
    rope::RopeScaling,
    spec::{Activation, AttentionSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec, NormWeight},
};

/// What differs between the supported families before any number is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

impl Family {
    pub(super) fn of(model_type: &str) -> Option<Self> {
        Some(match model_type {
            "llama" | "mistral" => Self::Llama,
            "qwen2" => Self::Qwen2,
            "qwen3" => Self::Qwen3,
            "gemma3" | "gemma3_text" => Self::Gemma3,
            _ => return None,
        })
    }

    /// Reads the language model's fields; `nested`: they lie in a `text_config`.
    pub(super) fn spec(self, model_type: &str, fields: &Fields, nested: bool) -> Result<ModelSpec, String> {
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
        let eps = fields.epsilon("rms_norm_eps", gemma.then_some(1e-6))?;
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
            norm: NormSpec { eps, weight: if gemma { NormWeight::LessOne } else { NormWeight::Factor } },
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
                block: if gemma { BlockNames::GEMMA } else { BlockNames::PLAIN },
                ..WeightNames::default()
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
        let scaling =
            if gemma && window.is_some() { RopeScaling::None } else { fields.rope_scaling(max_context)? };
        let qkv_bias = match self {
            Self::Qwen2 => true,
            Self::Llama => fields.flag("attention_bias", false)?,
            Self::Qwen3 | Self::Gemma3 => false,
        };
        let interleaved =
            matches!(self, Self::Llama | Self::Qwen2) && fields.flag("rope_traditional", false)?;
        Ok(LayerSpec {
            mixer: MixerSpec::Attention(AttentionSpec {
                num_heads: shape.num_heads,
                num_kv_heads: shape.num_kv_heads,
                head_dim: shape.head_dim,
                scale: shape.score_scale,
                qkv_bias,
                output_bias: self == Self::Llama && qkv_bias,
                qk_norm: matches!(self, Self::Qwen3 | Self::Gemma3),
                output_gate: false,
                rope: Fields::rope(shape.head_dim, theta, interleaved, &scaling)?,
                window,
                score_softcap: fields.softcap("attn_logit_softcapping")?,
            }),
            intermediate_size: shape.intermediate_size,
            mlp_bias: self == Self::Llama && fields.flag("mlp_bias", false)?,
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        })
    }

    /// Window of layer `index`: the layer types decide, and a bare `sliding_window` does not.
    fn window(self, fields: &Fields, index: usize, num_layers: usize) -> Result<Option<usize>, String> {
        let slides = match self {
            Self::Gemma3 => {
                let pattern = fields.integer("sliding_window_pattern", Some(6), 1, MAX_LAYERS)?;
                !(index + 1).is_multiple_of(pattern)
            }
            Self::Llama => match fields.layer_types(num_layers)?.and_then(|types| types.get(index)) {
                None => false,
                Some(kind) => match kind.as_str() {
                    Some("full_attention") => false,
                    Some("sliding_attention") => true,
                    _ => {
                        return Err(format!(
                            "'layer_types' entry {index} must be full_attention or sliding_attention, got {kind}"
                        ));
                    }
                },
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
        Fields::check_heads(num_heads, num_kv_heads)?;
        let head_dim = match family {
            Family::Qwen2 => Fields::split_evenly(hidden_size, num_heads)?,
            Family::Gemma3 => fields.dimension("head_dim", Some(256))?,
            Family::Llama | Family::Qwen3 => fields.head_dim(hidden_size, num_heads)?,
        };
        Fields::check_head_dim(head_dim)?;
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

/// Rounds to the nearest bfloat16, ties to even, as the reference rounds Gemma's embedding factor.
pub(super) fn round_to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}
