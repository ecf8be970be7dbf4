//! The one decoder: embeddings, a stack of blocks and a head, built from a `ModelSpec`.
//!
//! Owns what comes before and after the blocks. Linear layers see the packed rows of all
//! sequences at once, `(T, hidden)`; what happens within a block is `block`'s business.

use std::ops::Range;

use mlx_rs::Array;

use super::{
    arrays::{concatenated, rows_of},
    block::{Block, BlockPass, Places, row_blocks},
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
        let row_blocks = row_blocks(self.device, positions.len(), pass.decode_positions.len());
        let dtype = self.precision.dtype.mlx();
        let rotations = self
            .ropes
            .iter()
            .map(|rope| {
                let table = |rows: &Range<usize>| rope.table(&positions[rows.clone()], dtype);
                Ok((rope, row_blocks.iter().map(table).collect::<Result<_>>()?))
            })
            .collect::<Result<_>>()?;
        let mut hidden = Vec::with_capacity(row_blocks.len());
        for rows in &row_blocks {
            let rows = self.embedding.lookup(&rows_of(tokens, rows, positions.len())?)?;
            hidden.push(match &self.embedding_scale {
                Some(scale) => rows.multiply(scale)?,
                None => rows,
            });
        }
        let mut block_pass = BlockPass {
            ops: &self.ops,
            device: self.device,
            row_blocks,
            rotations,
            rows: pass,
            live: &mut *live,
        };
        for block in &self.blocks {
            block.forward(&mut hidden, &mut block_pass)?;
            // What a layer makes of many chunks is many small operations: they are under way before
            // the next layer's are made.
            if self.device == ComputeDevice::Cpu && !pass.chunks.is_empty() {
                mlx_rs::transforms::async_eval(&hidden)?;
            }
        }
        live.end_pass(pass);
        concatenated(hidden, 0)
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
