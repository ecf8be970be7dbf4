//! The layer description: what a decoder computes, as plain numbers.
//!
//! Owns the vocabulary that `config` fills in and `mlx/` builds from. A new model family is a
//! new way to fill this in before it is a new file anywhere else.

use std::collections::HashMap;

use super::rope::RopeSpec;

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
    /// Bytes of KV that one token adds, all layers together, at `bytes_per_element`.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        self.layers
            .iter()
            .map(|layer| 2 * layer.attention.num_kv_heads * layer.attention.head_dim * bytes_per_element)
            .sum()
    }
}

/// One transformer block.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    pub attention: AttentionSpec,
    pub intermediate_size: usize,
    pub mlp_bias: bool,
    pub activation: Activation,
    /// Gemma's extra norms after attention and MLP, before their residual is added.
    pub post_norms: bool,
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
    /// Whether the stored weight is the factor less one (Gemma).
    pub one_plus_weight: bool,
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

/// Where the decoder's weights are among a file's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightNames {
    /// Put before every name, e.g. `language_model.`.
    pub prefix: String,
    /// Names that begin so belong to parts which are not run (vision towers).
    pub ignored_prefixes: Vec<String>,
}

impl WeightNames {
    /// Whether a name that the decoder did not ask for is known to be of no use.
    pub fn is_ignored(&self, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq")
            || self.ignored_prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}
