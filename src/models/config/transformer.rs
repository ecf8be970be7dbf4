//! Configurations of llama, mistral, qwen2, qwen3 and gemma3.
//!
//! Owns what the fields of these attention-only families mean and their defaults, those of the
//! reference mlx-lm 0.32; where that passes over a field, what the publisher's own code makes of it.
//! Families with recurrent layers have files of their own.

use super::{
    fields::{Fields, MAX_LAYERS},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    names::{BlockNames, WeightNames},
    rope::RopeSpec,
    spec::{Activation, AttentionSpec, LayerSpec, MixerSpec, ModelSpec, NormSpec, NormWeight},
};

/// What differs between the families before any number is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
}

impl Family {
    fn is_llama(self) -> bool {
        matches!(self, Self::Llama | Self::Mistral)
    }

    /// Reads the language model's fields; `nested`: they lie in a `text_config`.
    pub(super) fn spec(self, model_type: &str, fields: &Fields, nested: bool) -> Result<ModelSpec, String> {
        let gemma = self == Self::Gemma3;
        let hidden_size = fields.dimension("hidden_size", gemma.then_some(1152))?;
        let num_layers = fields.integer("num_hidden_layers", gemma.then_some(26), 1, MAX_LAYERS)?;
        let max_context =
            fields.dimension("max_position_embeddings", Some(if gemma { 131_072 } else { 32_768 }))?;
        let eps = fields.epsilon("rms_norm_eps", gemma.then_some(1e-6))?;
        let vocab_size = self.vocab_size(fields, nested)?;
        let heads = Heads::read(self, fields, hidden_size, nested)?;
        let windows = self.windows(fields, num_layers)?;
        let rope = |layer_type| self.rope(fields, layer_type, heads.head_dim, max_context);
        let full_rope = windows.contains(&None).then(|| rope(LayerType::Full)).transpose()?;
        let sliding_rope =
            windows.iter().any(Option::is_some).then(|| rope(LayerType::Sliding)).transpose()?;
        let intermediate_size = fields.dimension("intermediate_size", gemma.then_some(6912))?;
        let mlp_bias = self.is_llama() && fields.flag("mlp_bias", false)?;
        let layers = windows
            .into_iter()
            .map(|window| LayerSpec {
                mixer: MixerSpec::Attention(AttentionSpec {
                    num_heads: heads.num_heads,
                    num_kv_heads: heads.num_kv_heads,
                    head_dim: heads.head_dim,
                    scale: heads.scale,
                    qkv_bias: heads.qkv_bias,
                    output_bias: heads.output_bias,
                    qk_norm: matches!(self, Self::Qwen3 | Self::Gemma3),
                    output_gate: false,
                    rope: if window.is_some() { &sliding_rope } else { &full_rope }
                        .clone()
                        .expect("made for each type of layer that there is"),
                    window,
                    score_softcap: heads.score_softcap,
                }),
                intermediate_size,
                mlp_bias,
                activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            })
            .collect();
        Ok(ModelSpec {
            model_type: model_type.to_owned(),
            hidden_size,
            vocab_size,
            max_context,
            layers,
            norm: NormSpec { eps, weight: if gemma { NormWeight::LessOne } else { NormWeight::Factor } },
            embedding_scale: gemma.then(|| round_to_bfloat16((hidden_size as f32).sqrt())),
            tied_head: if gemma { None } else { fields.tied_head()? },
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

    /// Rows of the embedding; where it stands beside the `text_config`, that is the one.
    fn vocab_size(self, fields: &Fields, nested: bool) -> Result<usize, String> {
        let default = (self == Self::Gemma3).then_some(if nested { 262_208 } else { 262_144 });
        let around = fields.outer().filter(|outer| outer.get("vocab_size").is_some());
        let Some(around) = around else { return fields.dimension("vocab_size", default) };
        let around = around.dimension("vocab_size", None)?;
        let inner = fields.dimension("vocab_size", Some(around as u64))?;
        if inner != around {
            return Err(format!(
                "'vocab_size' and 'text_config.vocab_size' contradict each other: {around} and {inner}; remove \
                 the wrong one"
            ));
        }
        Ok(inner)
    }

    fn rope(
        self,
        fields: &Fields,
        layer_type: LayerType,
        head_dim: usize,
        max_context: usize,
    ) -> Result<RopeSpec, String> {
        let defaults = match (self, layer_type) {
            (Self::Gemma3, LayerType::Sliding) => RopeDefaults {
                theta_field: "rope_local_base_freq",
                is_scaled: false,
                ..RopeDefaults::new(10_000.0)
            },
            (Self::Gemma3, LayerType::Full) | (Self::Qwen2, _) => RopeDefaults::new(1_000_000.0),
            (Self::Qwen3, _) => RopeDefaults::new(None),
            (Self::Llama | Self::Mistral, _) => RopeDefaults::new(10_000.0),
        };
        let may_interleave = self.is_llama() || self == Self::Qwen2;
        let interleaved = may_interleave && fields.flag("rope_traditional", false)?;
        fields.rope(layer_type, head_dim, max_context, interleaved, defaults)
    }

    /// The window of each layer. `layer_types` decide where they are given; what else says so has to agree.
    fn windows(self, fields: &Fields, num_layers: usize) -> Result<Vec<Option<usize>>, String> {
        let known = [("full_attention", false), ("sliding_attention", true)];
        let stated = fields.layer_types(num_layers, known)?;
        let other = match self {
            Self::Llama => None,
            Self::Mistral => fields
                .get("sliding_window")
                .filter(|_| stated.is_none())
                .map(|_| Other { field: "sliding_window", slides: vec![true; num_layers] }),
            Self::Qwen2 | Self::Qwen3 => Some(Other::from_layer(fields, num_layers)?),
            Self::Gemma3 => Other::by_pattern(fields, num_layers, stated.is_none())?,
        };
        let slides = match (stated, other) {
            (Some(stated), Some(other)) if stated != other.slides => {
                return Err(format!(
                    "'layer_types' and '{}' contradict each other about which layers have a window; remove the \
                     wrong one",
                    other.field
                ));
            }
            (Some(slides), _) | (None, Some(Other { slides, .. })) => slides,
            (None, None) => vec![false; num_layers],
        };
        if !slides.contains(&true) {
            return Ok(vec![None; num_layers]);
        }
        let window = fields.dimension("sliding_window", (self == Self::Gemma3).then_some(512))?;
        Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
    }
}

/// Which layers slide by another field than `layer_types`.
struct Other {
    field: &'static str,
    slides: Vec<bool>,
}

impl Other {
    /// Qwen's: all layers from one on, if any.
    fn from_layer(fields: &Fields, num_layers: usize) -> Result<Self, String> {
        if !fields.flag("use_sliding_window", false)? {
            return Ok(Self { field: "use_sliding_window", slides: vec![false; num_layers] });
        }
        let first = fields.integer("max_window_layers", Some(28), 0, MAX_LAYERS)?;
        Ok(Self { field: "max_window_layers", slides: (0..num_layers).map(|index| index >= first).collect() })
    }

    /// Gemma's: all but every so many. The field has two spellings; the pattern's default counts only
    /// `by_default`.
    fn by_pattern(fields: &Fields, num_layers: usize, by_default: bool) -> Result<Option<Self>, String> {
        let spellings = ["sliding_window_pattern", "_sliding_window_pattern"];
        let found = spellings.into_iter().filter(|field| fields.get(field).is_some()).collect::<Vec<_>>();
        let of = |field| -> Result<Self, String> {
            let pattern = fields.integer(field, Some(6), 1, MAX_LAYERS)?;
            let slides = (1..=num_layers).map(|number| !number.is_multiple_of(pattern)).collect();
            Ok(Self { field, slides })
        };
        match found[..] {
            [] if !by_default => Ok(None),
            [] => of(spellings[0]).map(Some),
            [field] => of(field).map(Some),
            _ => {
                let [one, other] = [of(spellings[0])?, of(spellings[1])?];
                match one.slides == other.slides {
                    true => Ok(Some(one)),
                    false => Err(format!(
                        "'{}' and '{}' contradict each other; remove the wrong one",
                        one.field, other.field
                    )),
                }
            }
        }
    }
}

/// What the attention of all layers has in common.
struct Heads {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    /// Factor on the scores.
    scale: f32,
    qkv_bias: bool,
    output_bias: bool,
    score_softcap: Option<f32>,
}

impl Heads {
    fn read(family: Family, fields: &Fields, hidden_size: usize, nested: bool) -> Result<Self, String> {
        let gemma = family == Family::Gemma3;
        let num_heads =
            fields.dimension("num_attention_heads", gemma.then_some(if nested { 8 } else { 4 }))?;
        let num_kv_heads = fields.dimension(
            "num_key_value_heads",
            match family {
                Family::Gemma3 => Some(if nested { 4 } else { 1 }),
                Family::Llama | Family::Mistral => Some(num_heads as u64),
                Family::Qwen2 | Family::Qwen3 => None,
            },
        )?;
        Fields::check_heads(num_heads, num_kv_heads)?;
        let head_dim = match gemma {
            true => fields.dimension("head_dim", Some(256))?,
            false => fields.head_dim(hidden_size, num_heads)?,
        };
        Fields::check_head_dim(head_dim)?;
        let scale_base = match gemma {
            true => fields.number("query_pre_attn_scalar", Some(256.0))?,
            false => head_dim as f64,
        };
        if !(scale_base > 0.0 && scale_base.is_finite()) {
            return Err(format!("'query_pre_attn_scalar' must be positive, got {scale_base}"));
        }
        let bias = family != Family::Qwen2 && fields.flag("attention_bias", false)?;
        Ok(Self {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: scale_base.powf(-0.5) as f32,
            qkv_bias: bias || family == Family::Qwen2,
            output_bias: bias,
            score_softcap: fields.softcap("attn_logit_softcapping")?,
        })
    }
}

/// Rounds to the nearest bfloat16, ties to even, as the reference rounds Gemma's embedding factor.
pub(super) fn round_to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}
