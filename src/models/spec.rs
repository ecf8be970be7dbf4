//! The layer description: what a decoder computes, as plain numbers.
//!
//! Owns the vocabulary that `config` fills in and `mlx/` builds from. A new model family is a
//! new way to fill this in before it is a new file anywhere else.

use std::collections::HashMap;

use super::{
    context::ContextChoice, mlp_spec::MlpSpec, names::WeightNames, recurrent_spec::RecurrentSpec,
    rope::RopeSpec,
};

/// A decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `model_type` as the configuration spells it.
    pub model_type: String,
    pub hidden_size: usize,
    pub vocab_size: usize,
    /// Positions that are served; prompts and answers together must fit.
    pub max_context: usize,
    /// Whether there are more by another choice.
    pub context: ContextChoice,
    pub layers: Vec<LayerSpec>,
    pub norm: NormSpec,
    /// Factor on the embeddings (Gemma: the square root of the width, rounded to bfloat16).
    pub embedding_scale: Option<f32>,
    /// Whether the head is the embedding matrix. `None`: the weights decide.
    pub tied_head: Option<bool>,
    /// What is added to each layer's result besides, from a table of its own.
    pub per_layer_inputs: Option<PerLayerInputSpec>,
    /// Factor on the logits.
    pub logits_scale: Option<f32>,
    /// A further one where the head is the embedding matrix.
    pub tied_logits_scale: Option<f32>,
    /// Factors that are in the weights of MLX's conversions, and in the publisher's files are not.
    pub folds: Vec<Fold>,
    /// Cap of `cap * tanh(logits / cap)`.
    pub final_logit_softcap: Option<f32>,
    pub quantization: Option<QuantizationSpec>,
    pub names: WeightNames,
}

impl ModelSpec {
    /// Bytes of KV that one token adds, all attention layers together, at `bytes_per_element`.
    pub fn kv_bytes_per_token(&self, bytes_per_element: usize) -> usize {
        self.kv_layers().map(|attention| attention.kv_layout().num_elements() * bytes_per_element).sum()
    }

    /// Bytes of recurrent state of one sequence, however long, all recurrent layers together; 0 for
    /// a model of attention layers only.
    pub fn state_bytes(&self, bytes_per_element: usize) -> usize {
        self.recurrent_layers()
            .map(|recurrent| recurrent.state_bytes(self.hidden_size, bytes_per_element))
            .sum()
    }

    /// The layers in order that keep KV: those with attention that use no other layer's.
    pub fn kv_layers(&self) -> impl Iterator<Item = &AttentionSpec> {
        let attention = self.layers.iter().filter_map(LayerSpec::attention);
        attention.filter(|attention| !matches!(attention.kv, KeyValueSource::Layer(_)))
    }

    /// The recurrent layers in order; state is kept for these only.
    pub fn recurrent_layers(&self) -> impl Iterator<Item = &RecurrentSpec> {
        self.layers.iter().filter_map(LayerSpec::recurrent)
    }
}

/// One transformer block: a mixer, which looks at other positions, and what follows it, which does not; or one of
/// these alone.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    pub mixer: Option<MixerSpec>,
    pub mlp: Option<MlpSpec>,
    /// Factor on what the mixer and the MLP add to their input.
    pub residual_scale: f32,
    /// Whether the MLP sees what the mixer sees, and both are added at once.
    pub is_parallel: bool,
    /// Whether there is a factor on the layer's result, among the weights.
    pub output_scale: bool,
}

impl LayerSpec {
    /// A block of both halves with none of what few models have.
    pub fn plain(mixer: MixerSpec, mlp: MlpSpec) -> Self {
        Self {
            mixer: Some(mixer),
            mlp: Some(mlp),
            residual_scale: 1.0,
            is_parallel: false,
            output_scale: false,
        }
    }

    /// The attention of this layer, if it has any.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        match &self.mixer {
            Some(MixerSpec::Attention(attention)) => Some(attention),
            Some(MixerSpec::Latent(latent)) => Some(&latent.attention),
            Some(MixerSpec::SideBySide(attention, _)) => Some(attention),
            Some(MixerSpec::Recurrent(_)) | None => None,
        }
    }

    /// What of this layer keeps a state, if anything does.
    pub fn recurrent(&self) -> Option<&RecurrentSpec> {
        match &self.mixer {
            Some(MixerSpec::Recurrent(recurrent) | MixerSpec::SideBySide(_, recurrent)) => Some(recurrent),
            Some(MixerSpec::Attention(_) | MixerSpec::Latent(_)) | None => None,
        }
    }
}

/// A second table of embeddings, of all layers side by side, of which each layer adds what it makes of its own
/// (Gemma 3n, Gemma 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerLayerInputSpec {
    /// Rows of the table.
    pub vocab_size: usize,
    /// Columns of each layer.
    pub width: usize,
}

/// How a layer looks at other positions.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// Keeps keys and values of every position.
    Attention(AttentionSpec),
    /// Keeps one latent of every position, of which keys and values of all heads are made.
    Latent(LatentSpec),
    /// Keeps a state of fixed size, valid at one position only.
    Recurrent(RecurrentSpec),
    /// Both of the same rows, added up (Falcon-H1).
    SideBySide(AttentionSpec, RecurrentSpec),
}

/// Factors on the outputs of all matrices whose names end alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    /// End of the name without `.weight`.
    pub ending: &'static str,
    pub factors: FoldFactors,
}

/// What outputs are multiplied by.
#[derive(Debug, Clone, PartialEq)]
pub enum FoldFactors {
    All(f32),
    /// So many outputs by each, in this order.
    Runs(Vec<(usize, f32)>),
}

/// Grouped-query attention.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    /// Width of queries and keys, and of values too unless `kv` says otherwise.
    pub head_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    pub qkv_bias: bool,
    pub output_bias: bool,
    /// Norms of queries and keys before RoPE.
    pub head_norms: HeadNorms,
    /// Whether the query projection also yields a gate: what is attended is multiplied by its sigmoid.
    pub output_gate: bool,
    /// `None`: positions count by the order of what is seen alone.
    pub rope: Option<RopeSpec>,
    /// A position sees itself and the `window - 1` tokens before it; `None` sees all.
    pub window: Option<usize>,
    /// Cap of `cap * tanh(scores / cap)`.
    pub score_softcap: Option<f32>,
    /// Whether each head has a score of its own that takes its share of the softmax and has no value
    /// (gpt-oss; arXiv 2309.17453).
    pub sinks: bool,
    /// Factor on queries that grows with their position.
    pub position_scale: Option<PositionScale>,
    pub kv: KeyValueSource,
    /// Whether values are normalised per head, without a weight.
    pub value_norm: bool,
}

impl AttentionSpec {
    /// Attention of so many heads of queries, and of keys and values, with none of what few models have.
    pub fn plain((num_heads, num_kv_heads): (usize, usize), head_dim: usize, rope: Option<RopeSpec>) -> Self {
        Self {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5) as f32,
            qkv_bias: false,
            output_bias: false,
            head_norms: HeadNorms::None,
            output_gate: false,
            rope,
            window: None,
            score_softcap: None,
            sinks: false,
            position_scale: None,
            kv: KeyValueSource::Own,
            value_norm: false,
        }
    }

    /// What one token's keys and values are in this layer.
    pub fn kv_layout(&self) -> KvLayout {
        let (num_heads, key_dim) = (self.num_kv_heads, self.head_dim);
        let values = match self.kv {
            KeyValueSource::WithinKeys { value_dim } => ValueColumns::OfKeys(value_dim),
            _ => ValueColumns::Own(key_dim),
        };
        KvLayout { num_heads, key_dim, values }
    }

    /// Width of what each head makes of what it attends to.
    pub fn value_dim(&self) -> usize {
        self.kv_layout().value_dim()
    }
}

/// Keys and values of one token in one layer, as they are stored: in planes, arrays with an entry for each head and
/// token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    pub num_heads: usize,
    pub key_dim: usize,
    pub values: ValueColumns,
}

/// Where a head's values are, so many columns of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueColumns {
    /// In a plane of their own.
    Own(usize),
    /// The first of the keys'.
    OfKeys(usize),
}

impl KvLayout {
    /// Width of a head's values.
    pub fn value_dim(&self) -> usize {
        match self.values {
            ValueColumns::Own(value_dim) | ValueColumns::OfKeys(value_dim) => value_dim,
        }
    }

    /// Width of a head in each plane, the keys' first.
    pub fn plane_dims(&self) -> impl Iterator<Item = usize> + use<> {
        let own = match self.values {
            ValueColumns::Own(value_dim) => Some(value_dim),
            ValueColumns::OfKeys(_) => None,
        };
        std::iter::once(self.key_dim).chain(own)
    }

    /// Numbers of one token, all planes together.
    pub fn num_elements(&self) -> usize {
        self.num_heads * self.plane_dims().sum::<usize>()
    }
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): all heads' keys and values are linear in
/// one latent vector a token, beside which the keys have a rotated part that heads share. Computed on the latents
/// themselves: each head's queries are brought into their space, and what it attends to out of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentSpec {
    /// Attention to latents ‖ rotated parts, the one head of keys, whose values are the latents.
    pub attention: AttentionSpec,
    /// Width that queries are made through, with a norm; `None`: they are made at once.
    pub query_rank: Option<usize>,
    /// Width of a head's queries that is not rotated.
    pub plain_dim: usize,
    /// Width of a head's values as they come out of latents.
    pub value_dim: usize,
    /// Of the norms of latents.
    pub norm_eps: f32,
}

impl LatentSpec {
    /// Width of the latents.
    pub fn rank(&self) -> usize {
        self.attention.value_dim()
    }

    /// Width of the rotated part of queries and keys.
    pub fn rotated_dim(&self) -> usize {
        self.attention.head_dim - self.rank()
    }

    /// Elements of all its matrices.
    pub fn num_matrix_elements(&self, hidden_size: usize) -> usize {
        let heads = self.attention.num_heads;
        let queries = heads.saturating_mul(self.plain_dim + self.rotated_dim());
        let of_queries = match self.query_rank {
            None => queries.saturating_mul(hidden_size),
            Some(rank) => rank.saturating_mul(hidden_size.saturating_add(queries)),
        };
        let of_latents = self.attention.head_dim.saturating_mul(hidden_size);
        let of_heads = heads.saturating_mul(self.plain_dim + self.value_dim).saturating_mul(self.rank());
        let output = heads.saturating_mul(self.value_dim).saturating_mul(hidden_size);
        [of_queries, of_latents, of_heads, output].into_iter().fold(0, usize::saturating_add)
    }
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorms {
    None,
    PerHead,
    /// Over all heads together.
    FullWidth,
}

/// Where keys and values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyValueSource {
    Own,
    /// Values are what keys are before they are normed and rotated (Gemma 4).
    ValuesFromKeys,
    /// Values are the first columns of keys as they are stored, and not stored again.
    WithinKeys {
        value_dim: usize,
    },
    /// Those of an earlier layer: the index among the layers that have their own.
    Layer(usize),
}

/// Queries at position p are multiplied by `1 + beta · ln(1 + ⌊p / original_context⌋)` (Llama 4, Ministral 3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PositionScale {
    pub beta: f32,
    pub original_context: usize,
}

/// The norms of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    pub eps: f32,
    pub kind: NormKind,
    pub weight: NormWeight,
}

/// What rows are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// The root of the mean of their squares.
    RootMeanSquare,
    /// Their standard deviation, after the mean is taken off.
    Layer,
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

/// MLX's quantisation of one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    pub group_size: usize,
    pub bits: usize,
    pub mode: QuantizationMode,
}

impl std::fmt::Display for Quantization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bits in groups of {} ({})", self.bits, self.group_size, self.mode.name())
    }
}

/// What the packed numbers of a group are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizationMode {
    /// Whole numbers, times a scale and plus a bias of the group.
    Affine,
    /// Floating-point numbers of 4 bits (E2M1), times a power of two of the group (OCP Microscaling 1.0).
    Mxfp4,
    /// The same, times a floating-point number of 8 bits (E4M3) of a smaller group.
    Nvfp4,
    /// Floating-point numbers of 8 bits (E4M3), times a power of two of the group.
    Mxfp8,
}

impl QuantizationMode {
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Nvfp4, Self::Mxfp8];

    /// MLX's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
    }

    /// Whether MLX has it with these settings.
    pub fn allows(self, group_size: usize, bits: usize) -> bool {
        match self {
            Self::Affine => matches!(group_size, 32 | 64 | 128) && matches!(bits, 2..=6 | 8),
            _ => (group_size, bits) == self.defaults(),
        }
    }

    /// Group size and bits where nothing is said.
    pub fn defaults(self) -> (usize, usize) {
        match self {
            Self::Affine => (64, 4),
            Self::Mxfp4 => (32, 4),
            Self::Nvfp4 => (16, 4),
            Self::Mxfp8 => (32, 8),
        }
    }
}

/// How matrices are quantised; the weights themselves show which are. What is said of all of them alike
/// can be wrong, and their shapes tell, so that only what is said of single ones counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizationSpec {
    /// Settings of single matrices by weight path; `None` keeps that matrix unquantised.
    pub overrides: HashMap<String, Option<Quantization>>,
    /// The form in which a publisher has quantised them, where it is not MLX's.
    pub publisher: Option<PublisherFormat>,
}

/// Forms of quantised weights besides MLX's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublisherFormat {
    /// gpt-oss's experts: `…_blocks` of 16 bytes and `…_scales`.
    Mxfp4Blocks,
    /// 8-bit floating point (E4M3) with a factor for each block of `(rows, columns)`, or for each matrix.
    Fp8 {
        block: Option<(usize, usize)>,
    },
    /// AWQ's packing of 4 bits along the outputs (AutoAWQ's "gemm").
    Awq {
        group_size: usize,
    },
    Gptq(GptqFormat),
    /// compressed-tensors', of which names and types of arrays show which it is; 8-bit floating-point numbers may have
    /// a factor for each block of `(rows, columns)`.
    CompressedTensors {
        block: Option<(usize, usize)>,
        /// The bits that are said of any group of matrices, a bit of this for each; 0 where nothing is said.
        stated_bits: u64,
    },
    /// NVIDIA's ModelOpt: 4-bit floating point in groups of 16 with 8-bit scales and a factor for each matrix.
    ModelOptNvfp4,
}

/// GPTQ's packing along the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptqFormat {
    /// Of a code, unless the arrays of a matrix show others.
    pub bits: usize,
    /// Inputs that have a scale together, the last of them perhaps fewer; none: all have one.
    pub group_size: Option<usize>,
    /// Whether codes that do not fill words lie across them in another order (`gptq_p`).
    pub is_planar: bool,
    /// Whether zeros are stored less one (the first form of such files).
    pub stores_zeros_less_one: bool,
}

impl QuantizationSpec {
    /// What is said of the one matrix at `path` (its weight name without `.weight`), if anything is.
    pub fn stated(&self, path: &str) -> Option<Option<Quantization>> {
        self.overrides.get(path).copied()
    }
}
