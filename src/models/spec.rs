//! The layer description: what a decoder computes, as plain numbers.
//!
//! Owns the vocabulary that `config` fills in and `mlx/` builds from. A new model family is a
//! new way to fill this in before it is a new file anywhere else.

use std::collections::HashMap;

use super::{names::WeightNames, recurrent_spec::RecurrentSpec, rope::RopeSpec};

/// A decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `model_type` as the configuration spells it.
    pub model_type: String,
    pub hidden_size: usize,
    pub vocab_size: usize,
    /// Positions the model was made for; prompts and answers together must fit.
    pub max_context: usize,
    pub layers: Vec<LayerSpec>,
    pub norm: NormSpec,
    /// Factor on the embeddings (Gemma: the square root of the width, rounded to bfloat16).
    pub embedding_scale: Option<f32>,
    /// Whether the head is the embedding matrix. `None`: the weights decide.
    pub tied_head: Option<bool>,
    /// Cap of `cap * tanh(logits / cap)`.
    pub final_logit_softcap: Option<f32>,
    pub quantization: Option<QuantizationSpec>,
    pub names: WeightNames,
}

impl ModelSpec {
    /// Bytes of KV that one token adds, all attention layers together, at `bytes_per_element`.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        self.attention_layers()
            .map(|attention| 2 * attention.num_kv_heads * attention.head_dim * bytes_per_element)
            .sum()
    }

    /// Bytes of recurrent state of one sequence, however long, all recurrent layers together; 0 for
    /// a model of attention layers only.
    pub fn state_bytes(&self, bytes_per_element: usize) -> usize {
        self.recurrent_layers()
            .map(|recurrent| recurrent.state_bytes(self.hidden_size, bytes_per_element))
            .sum()
    }

    /// The attention layers in order; KV is kept for these only.
    pub fn attention_layers(&self) -> impl Iterator<Item = &AttentionSpec> {
        self.layers.iter().filter_map(LayerSpec::attention)
    }

    /// The recurrent layers in order; state is kept for these only.
    pub fn recurrent_layers(&self) -> impl Iterator<Item = &RecurrentSpec> {
        self.layers.iter().filter_map(|layer| match &layer.mixer {
            MixerSpec::Attention(_) => None,
            MixerSpec::Recurrent(recurrent) => Some(recurrent),
        })
    }
}

/// One transformer block: a mixer, which looks at other positions, and a gated MLP.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    pub mixer: MixerSpec,
    pub intermediate_size: usize,
    pub mlp_bias: bool,
    pub activation: Activation,
}

impl LayerSpec {
    /// The attention of this layer, if it has any.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::Recurrent(_) => None,
        }
    }
}

/// How a layer looks at other positions.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// Keeps keys and values of every position.
    Attention(AttentionSpec),
    /// Keeps a state of fixed size, valid at one position only.
    Recurrent(RecurrentSpec),
}

/// Grouped-query attention with rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    pub qkv_bias: bool,
    pub output_bias: bool,
    /// Whether queries and keys are normalised per head before RoPE.
    pub qk_norm: bool,
    /// Whether the query projection also yields a gate: what is attended is multiplied by its sigmoid.
    pub output_gate: bool,
    pub rope: RopeSpec,
    /// A position sees itself and the `window - 1` tokens before it; `None` sees all.
    pub window: Option<usize>,
    /// Cap of `cap * tanh(scores / cap)`.
    pub score_softcap: Option<f32>,
}

/// Root-mean-square norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    pub eps: f32,
    pub weight: NormWeight,
}

/// What the stored weight of a norm means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormWeight {
    Factor,
    /// The factor less one (Gemma).
    LessOne,
    /// The factor less one in the publisher's files, the factor in MLX conversions of them; the
    /// layout of the convolutions, `(channels, 1, kernel)` or `(channels, kernel, 1)`, tells which.
    LessOneUnlessConverted,
}

/// Activation of the gate in the gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// MLX affine quantisation of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    pub group_size: usize,
    pub bits: usize,
}

/// Which matrices are quantised, and how; a matrix without scales is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationSpec {
    pub default: Quantization,
    /// Settings of single matrices by weight path; `None` keeps that matrix unquantised.
    pub overrides: HashMap<String, Option<Quantization>>,
}

impl QuantizationSpec {
    /// Settings of the matrix at `path` (its weight name without `.weight`).
    pub fn of(&self, path: &str) -> Option<Quantization> {
        self.overrides.get(path).copied().unwrap_or(Some(self.default))
    }
}
