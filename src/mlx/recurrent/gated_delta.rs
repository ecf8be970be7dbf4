//! Qwen3.5's gated delta net.
//!
//! Owns the layer around the recurrence: projections, convolution, normalised queries and keys,
//! decay and write strength of each token, and the gated norm of what is read. The recurrence
//! itself is `delta_rule`'s.

use mlx_rs::{Array, Dtype, fast, ops};

use super::{
    causal_conv::CausalConv,
    delta_rule::{self, DeltaRows},
};
use crate::{
    mlx::{
        device::ComputeDtype,
        error::Result,
        linear::Linear,
        loader::Loader,
        norm::Norm,
        ops::Ops,
        states::{Mixed, RecurrentState, RowGroup},
        sys,
    },
    models::GatedDeltaSpec,
};

/// Keeps queries and keys away from division by zero, added to the sum of their squares.
const NORMALISE_EPS: f32 = 1e-6;

/// A gated-delta layer.
#[derive(Debug)]
pub(in crate::mlx) struct GatedDelta {
    spec: GatedDeltaSpec,
    dtype: ComputeDtype,
    /// To queries, keys and values, in this order.
    input: Linear,
    output_gate: Linear,
    write_strength: Linear,
    decay: Linear,
    conv: CausalConv,
    /// -e^A of each value head, in float32.
    decay_rate: Array,
    /// Added to the decay's projection, in float32.
    decay_bias: Array,
    norm: Norm,
    output: Linear,
}

/// Makes of Qwen3-Next's two matrices, which go key head by key head, the projections of Qwen3.5.
fn cut_fused_projections(
    loader: &mut Loader<'_>,
    spec: &GatedDeltaSpec,
    path: impl Fn(&str) -> String,
) -> Result<()> {
    let num_shared = spec.num_value_heads / spec.num_key_heads;
    // The rows of some parts of each head, part by part.
    let rows_of = |widths: &[usize], parts: &[usize]| -> Vec<i32> {
        let of_head: usize = widths.iter().sum();
        let rows = parts.iter().flat_map(|&part| {
            let first: usize = widths[..part].iter().sum();
            (0..spec.num_key_heads).flat_map(move |head| {
                let start = (head * of_head + first) as i32;
                start..start + widths[part] as i32
            })
        });
        rows.collect()
    };
    let values = num_shared * spec.value_head_dim;
    let widths = [spec.key_head_dim, spec.key_head_dim, values, values];
    let parts =
        [(path("in_proj_qkv"), rows_of(&widths, &[0, 1, 2])), (path("in_proj_z"), rows_of(&widths, &[3]))];
    loader.weights.cut(&path("in_proj_qkvz"), 0, &parts)?;
    let widths = [num_shared, num_shared];
    let parts = [(path("in_proj_b"), rows_of(&widths, &[0])), (path("in_proj_a"), rows_of(&widths, &[1]))];
    loader.weights.cut(&path("in_proj_ba"), 0, &parts)
}

impl GatedDelta {
    pub(super) fn load(loader: &mut Loader<'_>, block_path: &str, spec: GatedDeltaSpec) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let path = |name: &str| format!("{block_path}.linear_attn.{name}");
        let heads = spec.num_value_heads;
        if spec.has_fused_projections {
            cut_fused_projections(loader, &spec, path)?;
        }
        // Decays multiply up over a whole prompt, so their parameters are never rounded.
        let log_rate = loader.vector(&path("A_log"), heads)?.as_dtype(Dtype::Float32)?;
        let decay_rate = log_rate.exp()?.negative()?;
        let decay_bias = loader.vector(&path("dt_bias"), heads)?.as_dtype(Dtype::Float32)?;
        mlx_rs::transforms::eval([&decay_rate, &decay_bias])?;
        Ok(Self {
            spec,
            dtype: loader.precision.dtype,
            input: loader.linear(&path("in_proj_qkv"), spec.conv_width(), hidden, false)?,
            output_gate: loader.linear(&path("in_proj_z"), spec.value_width(), hidden, false)?,
            write_strength: loader.linear(&path("in_proj_b"), heads, hidden, false)?,
            decay: loader.linear(&path("in_proj_a"), heads, hidden, false)?,
            conv: CausalConv::load(loader, &path("conv1d"), (spec.conv_width(), spec.kernel_size), false)?,
            decay_rate,
            decay_bias,
            norm: loader.plain_norm(&path("norm"), spec.value_head_dim)?,
            output: loader.linear(&path("out_proj"), hidden, spec.value_width(), false)?,
        })
    }

    pub(super) fn initial_state(&self) -> Result<RecurrentState> {
        let spec = &self.spec;
        let memory = [1, spec.num_value_heads as i32, spec.key_head_dim as i32, spec.value_head_dim as i32];
        Ok(RecurrentState {
            conv_tail: self.conv.initial_tail(self.dtype.mlx())?,
            memory: Some(ops::zeros_dtype(&memory, Dtype::Float32)?),
        })
    }

    /// Mixes packed rows `(T, hidden)`; `advance` runs what depends on states, group by group.
    pub(super) fn forward(
        &self,
        normed: &Array,
        ops: &Ops,
        advance: impl FnOnce(&mut dyn FnMut(RowGroup, &RecurrentState) -> Result<Mixed>) -> Result<Array>,
    ) -> Result<Array> {
        let input = self.input.forward(normed)?;
        let write_strengths = ops.sigmoid(&self.write_strength.forward(normed)?.as_dtype(Dtype::Float32)?)?;
        let time_steps = self.decay.forward(normed)?.as_dtype(Dtype::Float32)?.add(&self.decay_bias)?;
        let softplus = ops::logaddexp(&time_steps, Array::from_f32(0.0))?;
        let log_decays = softplus.multiply(&self.decay_rate)?;

        let read = advance(&mut |group, state| {
            let (convolved, conv_tail) = self.conv.forward(&group.of(&input)?, &state.conv_tail)?;
            let (queries, keys, values) = self.heads(&ops.silu(&convolved)?)?;
            let rows = DeltaRows {
                queries,
                keys,
                values,
                log_decays: group.of(&log_decays)?,
                write_strengths: group.of(&write_strengths)?,
            };
            let memory = state.memory.as_ref().expect("initial_state gives every gated-delta layer a memory");
            let (read, memory) = delta_rule::advance(ops, &rows, memory)?;
            Ok((group.pack(&read)?, RecurrentState { conv_tail, memory: Some(memory) }))
        })?;

        let num_rows = normed.dim(0);
        let by_head = [num_rows, self.spec.num_value_heads as i32, self.spec.value_head_dim as i32];
        let normed_read = self.norm.forward(&read.reshape(&by_head)?)?.reshape(&[num_rows, -1])?;
        let gate = ops.silu(&self.output_gate.forward(normed)?.as_dtype(Dtype::Float32)?)?;
        self.output.forward(&normed_read.multiply(gate)?.as_dtype(self.dtype.mlx())?)
    }

    /// Queries, keys (both of length 1, queries scaled too) and values of `(B, n, C)`, by head in
    /// float32: `(B, n, H, D)`.
    fn heads(&self, convolved: &Array) -> Result<(Array, Array, Array)> {
        let spec = &self.spec;
        let convolved = convolved.as_dtype(Dtype::Float32)?;
        let (num_sequences, num_tokens) = (convolved.dim(0), convolved.dim(1));
        let part = |start: usize, num_heads: usize, head_dim: usize| -> Result<Array> {
            let columns = sys::slice_axis(&convolved, 2, start, start + num_heads * head_dim)?;
            Ok(columns.reshape(&[num_sequences, num_tokens, num_heads as i32, head_dim as i32])?)
        };
        let key_width = spec.key_width();
        // x / |x| by way of x / rms(x), whose square is smaller by a factor of the dimension.
        let per_dimension = 1.0 / spec.key_head_dim as f32;
        let normalise = |x: Array, factor: f32| -> Result<Array> {
            Ok(fast::rms_norm(&x, None, NORMALISE_EPS * per_dimension)?.multiply(Array::from_f32(factor))?)
        };
        Ok((
            normalise(part(0, spec.num_key_heads, spec.key_head_dim)?, per_dimension)?,
            normalise(part(key_width, spec.num_key_heads, spec.key_head_dim)?, per_dimension.sqrt())?,
            part(2 * key_width, spec.num_value_heads, spec.value_head_dim)?,
        ))
    }
}
