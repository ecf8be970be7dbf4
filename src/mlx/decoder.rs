//! The one decoder: a stack of transformer blocks built from a `ModelSpec`.
//!
//! Owns which matrices and norms a block has and the order of its operations. Linear layers see
//! the packed rows of all sequences at once, `(T, hidden)`; attention is computed per sequence or
//! decode batch by `attention`, over the KV that `live` keeps.

use mlx_rs::{Array, fast};

use super::{
    attention::Attention,
    device::ComputeDevice,
    error::{MlxError, Result},
    linear::{Embedding, Linear, MatrixShape, Precision},
    live::{LayerRows, LiveKv, LivePass},
    ops::Ops,
    rope::{Rope, RopeTable},
    weights::Weights,
};
use crate::models::{Activation, LayerSpec, ModelSpec, NormSpec};

/// A loaded model.
#[derive(Debug)]
pub(super) struct Decoder {
    pub spec: ModelSpec,
    pub precision: Precision,
    device: ComputeDevice,
    ops: Ops,
    embedding: Embedding,
    embedding_scale: Option<Array>,
    blocks: Vec<Block>,
    /// The distinct rotations of the layers.
    ropes: Vec<Rope>,
    norm: Norm,
    /// `None`: the embedding table is the head.
    head: Option<Linear>,
}

#[derive(Debug)]
struct Block {
    spec: LayerSpec,
    /// Index into `Decoder::ropes`.
    rope: usize,
    input_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
    post_attention_norm: Option<Norm>,
    mlp_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_mlp_norm: Option<Norm>,
}

/// Root-mean-square norm over the last axis.
#[derive(Debug)]
struct Norm {
    weight: Array,
    eps: f32,
}

impl Norm {
    fn load(loader: &mut Loader<'_>, path: &str, size: usize) -> Result<Self> {
        let NormSpec { eps, one_plus_weight } = loader.spec.norm;
        let mut weight = loader
            .weights
            .take(&format!("{path}.weight"), &[size])?
            .as_dtype(loader.precision.dtype.mlx())?;
        if one_plus_weight {
            weight = weight.add(Array::from_f32(1.0).as_dtype(weight.dtype())?)?;
        }
        weight.eval()?;
        Ok(Self { weight, eps })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        Ok(fast::rms_norm(x, Some(&self.weight), self.eps)?)
    }
}

/// What loading needs at hand everywhere.
struct Loader<'a> {
    spec: &'a ModelSpec,
    weights: &'a mut Weights,
    precision: Precision,
}

impl Loader<'_> {
    fn linear(&mut self, path: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let settings = (self.spec.quantization.as_ref(), self.precision);
        Linear::load(self.weights, path, MatrixShape { outputs, inputs }, bias, settings)
    }

    fn block(&mut self, index: usize, layer: &LayerSpec, rope: usize) -> Result<Block> {
        let hidden = self.spec.hidden_size;
        let attention = &layer.attention;
        let query_width = attention.num_heads * attention.head_dim;
        let kv_width = attention.num_kv_heads * attention.head_dim;
        let path = format!("model.layers.{index}");
        let attention_path = format!("{path}.self_attn");
        let mlp_path = format!("{path}.mlp");
        // With norms on both sides of the MLP, `post_attention_layernorm` comes after attention;
        // without, it is the name of the norm before the MLP.
        let mlp_norm =
            if layer.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Ok(Block {
            spec: layer.clone(),
            rope,
            input_norm: Norm::load(self, &format!("{path}.input_layernorm"), hidden)?,
            query: self.linear(
                &format!("{attention_path}.q_proj"),
                query_width,
                hidden,
                attention.qkv_bias,
            )?,
            key: self.linear(&format!("{attention_path}.k_proj"), kv_width, hidden, attention.qkv_bias)?,
            value: self.linear(&format!("{attention_path}.v_proj"), kv_width, hidden, attention.qkv_bias)?,
            output: self.linear(
                &format!("{attention_path}.o_proj"),
                hidden,
                query_width,
                attention.output_bias,
            )?,
            query_norm: self.optional_norm(
                attention.qk_norm,
                &format!("{attention_path}.q_norm"),
                attention.head_dim,
            )?,
            key_norm: self.optional_norm(
                attention.qk_norm,
                &format!("{attention_path}.k_norm"),
                attention.head_dim,
            )?,
            post_attention_norm: self.optional_norm(
                layer.post_norms,
                &format!("{path}.post_attention_layernorm"),
                hidden,
            )?,
            mlp_norm: Norm::load(self, &format!("{path}.{mlp_norm}"), hidden)?,
            gate: self.linear(
                &format!("{mlp_path}.gate_proj"),
                layer.intermediate_size,
                hidden,
                layer.mlp_bias,
            )?,
            up: self.linear(
                &format!("{mlp_path}.up_proj"),
                layer.intermediate_size,
                hidden,
                layer.mlp_bias,
            )?,
            down: self.linear(
                &format!("{mlp_path}.down_proj"),
                hidden,
                layer.intermediate_size,
                layer.mlp_bias,
            )?,
            post_mlp_norm: self.optional_norm(
                layer.post_norms,
                &format!("{path}.post_feedforward_layernorm"),
                hidden,
            )?,
        })
    }

    fn optional_norm(&mut self, wanted: bool, path: &str, size: usize) -> Result<Option<Norm>> {
        if wanted { Norm::load(self, path, size).map(Some) } else { Ok(None) }
    }
}

impl Decoder {
    /// Builds the model, taking every weight it needs and refusing any it does not know.
    pub(super) fn load(
        spec: &ModelSpec,
        mut weights: Weights,
        precision: Precision,
        device: ComputeDevice,
    ) -> Result<Self> {
        let tied = spec.tied_head.unwrap_or_else(|| !weights.contains("lm_head.weight"));
        let mut loader = Loader { spec, weights: &mut weights, precision };
        let table = MatrixShape { outputs: spec.vocab_size, inputs: spec.hidden_size };
        let embedding = Embedding::load(
            loader.weights,
            "model.embed_tokens",
            table,
            (spec.quantization.as_ref(), precision),
        )?;
        let mut rope_specs = Vec::new();
        let mut blocks = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let rope =
                rope_specs.iter().position(|known| *known == layer.attention.rope).unwrap_or_else(|| {
                    rope_specs.push(layer.attention.rope.clone());
                    rope_specs.len() - 1
                });
            blocks.push(loader.block(index, layer, rope)?);
        }
        let norm = Norm::load(&mut loader, "model.norm", spec.hidden_size)?;
        let head = if tied {
            for part in ["weight", "scales", "biases"] {
                loader.weights.drop_duplicate(&format!("lm_head.{part}"));
            }
            None
        } else {
            Some(loader.linear("lm_head", spec.vocab_size, spec.hidden_size, false)?)
        };
        weights.finish(&spec.names)?;
        Ok(Self {
            precision,
            device,
            ops: Ops::new(device),
            embedding,
            embedding_scale: spec
                .embedding_scale
                .map(|scale| Array::from_f32(scale).as_dtype(precision.dtype.mlx()))
                .transpose()?,
            blocks,
            ropes: rope_specs.iter().map(|rope| Rope::new(rope, device)).collect(),
            norm,
            head,
            spec: spec.clone(),
        })
    }

    /// Runs the packed tokens through all blocks and returns their hidden states, `(T, hidden)`.
    ///
    /// `tokens` is `(T,)`; `pass` says whose they are, and `live` gets their KV.
    pub(super) fn forward(&self, tokens: &Array, pass: &LivePass, live: &mut LiveKv) -> Result<Array> {
        let positions = pass.positions();
        if positions.len() != tokens.size() {
            return Err(MlxError::Unsupported(format!(
                "a pass of {} positions got {} tokens",
                positions.len(),
                tokens.size()
            )));
        }
        let tables = self
            .ropes
            .iter()
            .map(|rope| rope.table(&positions, self.precision.dtype.mlx()))
            .collect::<Result<Vec<_>>>()?;
        let mut hidden = self.embedding.lookup(tokens)?;
        if let Some(scale) = &self.embedding_scale {
            hidden = hidden.multiply(scale)?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            hidden = self.block_forward(block, index, &hidden, &tables, (pass, live))?;
        }
        live.end_pass(pass);
        Ok(hidden)
    }

    fn block_forward(
        &self,
        block: &Block,
        index: usize,
        hidden: &Array,
        tables: &[RopeTable],
        (pass, live): (&LivePass, &mut LiveKv),
    ) -> Result<Array> {
        let spec = &block.spec.attention;
        let num_tokens = hidden.dim(0);
        let heads =
            |x: Array, num_heads: usize| x.reshape(&[num_tokens, num_heads as i32, spec.head_dim as i32]);
        let normed = block.input_norm.forward(hidden)?;
        let mut queries = heads(block.query.forward(&normed)?, spec.num_heads)?;
        let mut keys = heads(block.key.forward(&normed)?, spec.num_kv_heads)?;
        let values = heads(block.value.forward(&normed)?, spec.num_kv_heads)?;
        if let (Some(query_norm), Some(key_norm)) = (&block.query_norm, &block.key_norm) {
            queries = query_norm.forward(&queries)?;
            keys = key_norm.forward(&keys)?;
        }
        let (rope, table) = (&self.ropes[block.rope], &tables[block.rope]);
        let rows =
            LayerRows { queries: rope.rotate(&queries, table)?, keys: rope.rotate(&keys, table)?, values };
        let attention = Attention { spec, ops: &self.ops, device: self.device, masks: &pass.masks };
        let attended = live.attend(index, &attention, &rows, pass)?;

        let mut update = block.output.forward(&attended)?;
        if let Some(norm) = &block.post_attention_norm {
            update = norm.forward(&update)?;
        }
        let hidden = hidden.add(&update)?;

        let normed = block.mlp_norm.forward(&hidden)?;
        let gate = block.gate.forward(&normed)?;
        let gate = match block.spec.activation {
            Activation::Silu => self.ops.silu(&gate)?,
            Activation::GeluTanh => self.ops.gelu_tanh(&gate)?,
        };
        let mut update = block.down.forward(&gate.multiply(block.up.forward(&normed)?)?)?;
        if let Some(norm) = &block.post_mlp_norm {
            update = norm.forward(&update)?;
        }
        Ok(hidden.add(&update)?)
    }

    /// The elementwise functions of this device.
    pub(super) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Logits of the given rows of the hidden states: `(R, vocabulary)`, float32.
    pub(super) fn logits(&self, hidden: &Array, rows: &[i32]) -> Result<Array> {
        let rows = Array::from_slice(rows, &[rows.len() as i32]);
        let normed = self.norm.forward(&hidden.take_axis(&rows, 0)?)?;
        let logits = match &self.head {
            Some(head) => head.forward(&normed)?,
            None => self.embedding.as_head(&normed)?,
        }
        .as_dtype(mlx_rs::Dtype::Float32)?;
        match self.spec.final_logit_softcap {
            Some(cap) => Ok(self.ops.softcap(&logits, cap)?),
            None => Ok(logits),
        }
    }
}
