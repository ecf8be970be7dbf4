//! What memory a run needs beside what the machine runs already: weights, KV, states and working memory.
//!
//! Owns the estimates, which follow from the model's description and the size of the batch. What becomes of them
//! as limits is the run's business, how they are told to people the plan's.

use super::model::Description;
use crate::{
    mlx::{ComputeDevice, ComputeDtype, has_even_rows, matrix_bytes},
    models::{AttentionSpec, ModelSpec},
};

/// Tensors of the width of a row that a block has at once, of each kind; measured with SmolLM2 and Qwen2.5.
const NUM_HIDDEN: usize = 4;
const NUM_INNER: usize = 3;
const NUM_HEADS: usize = 3;

/// The same of rows over the vocabulary: logits, their probabilities, and a sorted copy.
const NUM_LOGITS: usize = 3;

/// Numbers on their way are float32 at most.
const NUMBER_BYTES: usize = 4;

/// Bytes that a run needs at a batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct MemoryNeeds {
    pub weight_bytes: u64,
    /// States of recurrent layers of a whole batch: its rows side by side, and once more while rows come and go.
    pub state_bytes: u64,
    /// What a pass takes beside all of them.
    pub working_bytes: u64,
}

/// How many rows a pass may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchShape {
    pub batch_size: u32,
    pub prefill_chunk: u32,
}

impl MemoryNeeds {
    /// Estimates them for a model that is not loaded.
    pub(super) fn of(
        model: &Description,
        device: ComputeDevice,
        dtype: ComputeDtype,
        shape: BatchShape,
    ) -> Self {
        let Description { spec, files, stored_dtype, is_quantized, adapter, .. } = model;
        let in_files = files.weight_bytes();
        let is_fused = adapter.as_ref().is_some_and(|adapter| adapter.used().is_fused);
        let weight_bytes = match (device, stored_dtype) {
            // Matrices stay as they are stored, but for such as the program's own loops do not take.
            (ComputeDevice::Cpu, _) if device.multiplies_packed(dtype) && !is_fused => {
                let added_bytes = match is_quantized {
                    // Scales and biases come to be float32; at most half of the smallest groups is theirs.
                    true => in_files / 2,
                    false if has_even_rows(spec) => 0,
                    false => in_files,
                };
                matrix_bytes(spec, dtype).min(in_files.saturating_add(added_bytes))
            }
            // Quantised ones are widened where they fit.
            (ComputeDevice::Cpu, _) => matrix_bytes(spec, dtype),
            (ComputeDevice::Gpu, Some(stored)) if spec.quantization.is_none() => {
                in_files / stored.num_bytes() as u64 * dtype.num_bytes() as u64
            }
            (ComputeDevice::Gpu, _) => in_files,
        };
        let adapter_bytes =
            adapter.as_ref().map_or(0, |adapter| adapter.used().added_bytes(spec, device, dtype));
        let weight_bytes = weight_bytes.saturating_add(adapter_bytes);
        Self { weight_bytes, ..Self::beside_weights(spec, dtype, shape) }
    }

    /// Estimates what comes to the weights.
    pub(super) fn beside_weights(spec: &ModelSpec, dtype: ComputeDtype, shape: BatchShape) -> Self {
        let (batch_size, chunk) = (shape.batch_size as usize, shape.prefill_chunk as usize);
        let row_bytes = widest_row(spec).saturating_mul(NUMBER_BYTES);
        let logits = spec.vocab_size.saturating_mul(NUM_LOGITS * NUMBER_BYTES);
        let working = batch_size
            .saturating_add(chunk)
            .saturating_mul(row_bytes)
            .saturating_add(batch_size.saturating_mul(logits));
        Self {
            weight_bytes: 0,
            state_bytes: 2 * u64::from(shape.batch_size) * spec.state_bytes(dtype.num_bytes()) as u64,
            working_bytes: working as u64,
        }
    }

    /// All but the weights.
    pub(super) fn beside(&self) -> u64 {
        self.state_bytes.saturating_add(self.working_bytes)
    }
}

/// Numbers that the block which needs most has of one row at once.
fn widest_row(spec: &ModelSpec) -> usize {
    let inner = spec.layers.iter().filter_map(|layer| layer.mlp.as_ref()).map(|mlp| {
        let dense = mlp.dense().map_or(0, |dense| dense.intermediate_size);
        let experts = mlp.moe().map_or(0, |moe| moe.num_per_token * moe.expert.intermediate_size);
        dense.saturating_add(experts)
    });
    let heads = spec.layers.iter().filter_map(|layer| layer.attention());
    let heads = heads.map(|attention: &AttentionSpec| attention.num_heads * attention.head_dim);
    (NUM_HIDDEN * spec.hidden_size)
        .saturating_add(NUM_INNER * inner.max().unwrap_or(0))
        .saturating_add(NUM_HEADS * heads.max().unwrap_or(0))
}
