//! The one decoder: embeddings, a stack of blocks and a head, built from a `ModelSpec`.
//!
//! Owns what comes before and after the blocks. Linear layers see the packed rows of all
//! sequences at once, `(T, hidden)`; what happens within a block is `block`'s business.

use mlx_rs::Array;

use super::{
    block::{Block, BlockPass, Places},
    device::ComputeDevice,
    error::{MlxError, Result},
    linear::{Embedding, Linear, Precision},
    live::{LiveKv, LivePass},
    loader::Loader,
    norm::Norm,
    ops::Ops,
    recurrent::RecurrentState,
    rope::Rope,
    weights::Weights,
};
use crate::models::ModelSpec;

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
    initial_states: Vec<RecurrentState>,
    /// The distinct rotations of the layers.
    ropes: Vec<Rope>,
    norm: Norm,
    /// `None`: the embedding table is the head.
    head: Option<Linear>,
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
        let mut loader = Loader::new(spec, &mut weights, precision);
        let embedding = loader.embedding("model.embed_tokens")?;
        let mut places = Places::default();
        let blocks = spec
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| Block::load(&mut loader, index, layer, &mut places))
            .collect::<Result<Vec<_>>>()?;
        let norm = loader.norm(spec.names.final_norm, spec.hidden_size)?;
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
            initial_states: blocks.iter().filter_map(Block::initial_state).collect::<Result<_>>()?,
            blocks,
            ropes: places.ropes.iter().map(|rope| Rope::new(rope, device)).collect(),
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
        let rotations = self
            .ropes
            .iter()
            .map(|rope| Ok((rope, rope.table(&positions, self.precision.dtype.mlx())?)))
            .collect::<Result<Vec<_>>>()?;
        let mut hidden = self.embedding.lookup(tokens)?;
        if let Some(scale) = &self.embedding_scale {
            hidden = hidden.multiply(scale)?;
        }
        let mut block_pass =
            BlockPass { ops: &self.ops, device: self.device, rotations, rows: pass, live: &mut *live };
        for block in &self.blocks {
            hidden = block.forward(hidden, &mut block_pass)?;
        }
        live.end_pass(pass);
        Ok(hidden)
    }

    /// The states of all recurrent layers before the first token.
    pub(super) fn initial_states(&self) -> &[RecurrentState] {
        &self.initial_states
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
