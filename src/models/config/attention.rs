//! The attention of a family's layers in a configuration.
//!
//! Owns heads, scales, norms and which layers have rotary positions. Windows are `windows`' business, the
//! frequencies `rope`'s.

use serde_json::Value;

use super::{
    family::{Bias, Sizes},
    fields::{Fields, MAX_LAYERS},
    rope::{LayerType, RopeDefaults},
    windows::Windows,
};
use crate::models::{
    rope::RopeSpec,
    spec::{AttentionSpec, HeadNorms, PositionScale},
};

/// How a family's attention differs from others'.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionTraits {
    pub qkv_bias: Bias,
    pub output_bias: Bias,
    pub head_norms: NormTraits,
    pub scale: ScoreScale,
    pub windows: Windows,
    pub rope: RopeDefaults,
    /// Of layers with a window, where it differs.
    pub sliding_rope: Option<RopeDefaults>,
    pub pairs: Pairs,
    pub rotated: RotatedLayers,
    pub sinks: bool,
    pub position_scale: bool,
}

impl AttentionTraits {
    pub(super) const LLAMA: Self = Self {
        qkv_bias: Bias::Field("attention_bias"),
        output_bias: Bias::Field("attention_bias"),
        head_norms: NormTraits::Always(HeadNorms::None),
        scale: ScoreScale::HeadDim,
        windows: Windows::ByTypes,
        rope: RopeDefaults::new(Some(10_000.0)),
        sliding_rope: None,
        pairs: Pairs::Field,
        rotated: RotatedLayers::All,
        sinks: false,
        position_scale: false,
    };
}

/// Which norms queries and keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormTraits {
    Always(HeadNorms),
    /// Those of each head where this flag says so.
    PerHeadIf(&'static str),
}

/// Factor on the scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ScoreScale {
    /// One over the square root of a head's width.
    HeadDim,
    /// One over the square root of this field.
    Field(&'static str, f64),
    /// This field.
    Factor(&'static str),
    /// The first, times this field.
    HeadDimTimes(&'static str),
}

/// Which dimensions of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    Halves,
    Neighbours,
    /// Neighbours where the flag `rope_traditional` says so.
    Field,
}

/// Which layers have rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RotatedLayers {
    All,
    None,
    /// All where this field says "rope", none where it is absent or "nope".
    IfRope(&'static str),
    /// Those with a window; all where none has one.
    Sliding,
    /// Those with a 1 in `no_rope_layers`; by default all but every so many, `no_rope_layer_interval`.
    Listed,
}

impl RotatedLayers {
    fn read(self, fields: &Fields, windows: &[Option<usize>]) -> Result<Vec<bool>, String> {
        let num_layers = windows.len();
        match self {
            Self::All => Ok(vec![true; num_layers]),
            Self::None => Ok(vec![false; num_layers]),
            Self::IfRope(field) => match fields.get(field).map(|kind| (kind.as_str(), kind)) {
                None | Some((Some("nope"), _)) => Ok(vec![false; num_layers]),
                Some((Some("rope"), _)) => Ok(vec![true; num_layers]),
                Some((_, kind)) => Err(format!("'{field}' must be rope or nope, got {kind}")),
            },
            Self::Sliding if windows.iter().all(Option::is_none) => Ok(vec![true; num_layers]),
            Self::Sliding => Ok(windows.iter().map(Option::is_some).collect()),
            Self::Listed => {
                let Some(list) = fields.get("no_rope_layers") else {
                    let interval = fields.integer("no_rope_layer_interval", Some(4), 1, MAX_LAYERS)?;
                    return Ok((1..=num_layers).map(|number| !number.is_multiple_of(interval)).collect());
                };
                let wrong =
                    || format!("'no_rope_layers' must be a list of {num_layers} numbers 0 and 1, got {list}");
                let list = list.as_array().filter(|list| list.len() == num_layers).ok_or_else(wrong)?;
                let is_rotated = |entry: &Value| match entry.as_u64() {
                    Some(0) => Some(false),
                    Some(1) => Some(true),
                    _ => None,
                };
                list.iter().map(is_rotated).collect::<Option<_>>().ok_or_else(wrong)
            }
        }
    }
}

impl AttentionTraits {
    /// The attention of each layer, given the hidden size, the number of layers and the longest context.
    pub(super) fn layers(
        &self,
        sizes: &Sizes<'_>,
        (hidden_size, num_layers, max_context): (usize, usize, usize),
    ) -> Result<Vec<AttentionSpec>, String> {
        let fields = sizes.fields;
        let num_heads = sizes.dimension("num_attention_heads")?;
        let num_kv_heads = match sizes.default("num_key_value_heads") {
            // As many as queries have.
            Some(0) => fields.dimension("num_key_value_heads", Some(num_heads as u64))?,
            default => fields.dimension("num_key_value_heads", default)?,
        };
        Fields::check_heads(num_heads, num_kv_heads)?;
        let head_dim = match sizes.default("head_dim") {
            Some(default) => fields.dimension("head_dim", Some(default))?,
            None => fields.head_dim(hidden_size, num_heads)?,
        };
        Fields::check_head_dim(head_dim)?;
        let scale = self.scale.read(fields, head_dim)?;
        let windows = self.windows.read(sizes, num_layers)?;
        let are_rotated = self.rotated.read(fields, &windows)?;
        let rope = |is_sliding: bool| -> Result<Option<RopeSpec>, String> {
            let mut layers = windows.iter().zip(&are_rotated);
            if !layers.any(|(window, is_rotated)| *is_rotated && window.is_some() == is_sliding) {
                return Ok(None);
            }
            let interleaved = match self.pairs {
                Pairs::Halves => false,
                Pairs::Neighbours => true,
                Pairs::Field => fields.flag("rope_traditional", false)?,
            };
            let (layer_type, defaults) = match self.sliding_rope {
                Some(defaults) if is_sliding => (LayerType::Sliding, defaults),
                _ if is_sliding => (LayerType::Sliding, self.rope),
                _ => (LayerType::Full, self.rope),
            };
            fields.rope(layer_type, head_dim, max_context, interleaved, defaults).map(Some)
        };
        let (full_rope, sliding_rope) = (rope(false)?, rope(true)?);
        let plain = AttentionSpec {
            scale,
            qkv_bias: self.qkv_bias.read(fields)?,
            output_bias: self.output_bias.read(fields)?,
            head_norms: match self.head_norms {
                NormTraits::Always(norms) => norms,
                NormTraits::PerHeadIf(flag) if fields.flag(flag, false)? => HeadNorms::PerHead,
                NormTraits::PerHeadIf(_) => HeadNorms::None,
            },
            score_softcap: fields.softcap("attn_logit_softcapping")?,
            sinks: self.sinks,
            position_scale: if self.position_scale { position_scale(fields)? } else { None },
            ..AttentionSpec::plain((num_heads, num_kv_heads), head_dim, None)
        };
        let of_layer = |(window, is_rotated): (Option<usize>, bool)| AttentionSpec {
            rope: if window.is_some() { &sliding_rope } else { &full_rope }.clone().filter(|_| is_rotated),
            window,
            ..plain.clone()
        };
        Ok(windows.into_iter().zip(are_rotated).map(of_layer).collect())
    }
}

impl ScoreScale {
    fn read(self, fields: &Fields, head_dim: usize) -> Result<f32, String> {
        match self {
            Self::HeadDim => Ok((head_dim as f64).powf(-0.5) as f32),
            Self::Field(name, default) => match fields.number(name, Some(default))? {
                base if base > 0.0 && base.is_finite() => Ok(base.powf(-0.5) as f32),
                base => Err(format!("'{name}' must be positive, got {base}")),
            },
            Self::Factor(name) => fields.factor(name, None),
            Self::HeadDimTimes(name) => {
                Ok((head_dim as f64).powf(-0.5) as f32 * fields.factor(name, Some(1.0))?)
            }
        }
    }
}

/// Ministral's and Llama 4's factor on queries, which grows with the position.
pub(super) fn position_scale(fields: &Fields) -> Result<Option<PositionScale>, String> {
    let Some(parameters) = fields.nested("rope_parameters")? else { return Ok(None) };
    let Some(beta) = parameters.optional_number("llama_4_scaling_beta")? else { return Ok(None) };
    let original = parameters.number("original_max_position_embeddings", None)?;
    if !(beta >= 0.0 && beta.is_finite() && original >= 1.0 && original.is_finite()) {
        return Err(format!(
            "'rope_parameters': 'llama_4_scaling_beta' of {beta} and 'original_max_position_embeddings' of {original} \
             give no usable factor"
        ));
    }
    Ok(Some(PositionScale { beta: beta as f32, original_context: original as usize }))
}
