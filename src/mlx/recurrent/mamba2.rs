//! Mamba-2's state-space layer.
//!
//! Owns the layer around the recurrence: the projection, the convolution, step and decay of each token, what
//! passes by the states, and the gated norm of what is read. The recurrence itself is `state_space`'s.

use mlx_rs::{Array, Dtype, fast, ops};

use super::{
    causal_conv::CausalConv,
    state_space::{self, StateRows},
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
    models::{Mamba2Spec, StateNorm},
};

/// A Mamba-2 layer.
#[derive(Debug)]
pub(in crate::mlx) struct Mamba2 {
    spec: Mamba2Spec,
    dtype: ComputeDtype,
    /// To gates, inputs, what is written with, what is read with, and steps, in this order.
    input: Linear,
    conv: CausalConv,
    /// -e^A of each head, in float32.
    decay_rate: Array,
    /// Added to the steps' projection, in float32.
    step_bias: Array,
    /// What of each head's inputs passes by its states, `(H, 1)` in float32.
    bypass: Array,
    /// `None` where what is read is gated alone.
    norm: Option<Norm>,
    output: Linear,
}

impl Mamba2 {
    pub(super) fn load(loader: &mut Loader<'_>, block_path: &str, spec: Mamba2Spec) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let mixer = loader.spec.names.block.mamba;
        let path = |name: &str| format!("{block_path}.{mixer}.{name}");
        let heads = spec.num_heads;
        // Decays multiply up over a whole prompt, so their parameters are never rounded.
        let mut of_heads = |name: &str| -> Result<Array> {
            Ok(loader.vector(&path(name), heads)?.as_dtype(Dtype::Float32)?)
        };
        let decay_rate = of_heads("A_log")?.exp()?.negative()?;
        let step_bias = of_heads("dt_bias")?;
        let bypass = of_heads("D")?.expand_dims(1)?;
        mlx_rs::transforms::eval([&decay_rate, &step_bias, &bypass])?;
        let conv = (spec.conv_width(), spec.kernel_size);
        Ok(Self {
            spec,
            dtype: loader.precision.dtype,
            input: loader.linear(&path("in_proj"), spec.projected_width(), hidden, spec.input_bias)?,
            conv: CausalConv::load(loader, &path("conv1d"), conv, spec.conv_bias)?,
            decay_rate,
            step_bias,
            bypass,
            norm: match spec.norm {
                StateNorm::None => None,
                _ => Some(loader.plain_norm(&path("norm"), spec.inner_width())?),
            },
            output: loader.linear(&path("out_proj"), hidden, spec.inner_width(), spec.output_bias)?,
        })
    }

    pub(super) fn initial_state(&self) -> Result<RecurrentState> {
        let spec = &self.spec;
        let of_group = spec.inner_width() / spec.num_groups;
        let memory = [1, spec.num_groups as i32, spec.state_dim as i32, of_group as i32];
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
        let spec = &self.spec;
        let projected = self.input.forward(normed)?;
        let part = |start: usize, width: usize| sys::slice_axis(&projected, 1, start, start + width);
        let gates = part(0, spec.inner_width())?;
        let convolving = part(spec.inner_width(), spec.conv_width())?;
        let steps = self.steps(&part(spec.inner_width() + spec.conv_width(), spec.num_heads)?)?;
        let log_decays = steps.multiply(&self.decay_rate)?;

        let read = advance(&mut |group, state| {
            let (convolved, conv_tail) = self.conv.forward(&group.of(&convolving)?, &state.conv_tail)?;
            let convolved = ops.silu(&convolved)?.as_dtype(Dtype::Float32)?;
            let (inputs, keys, queries) = self.heads(&convolved)?;
            let values = inputs.multiply(group.of(&steps)?.expand_dims(3)?)?;
            let rows = StateRows { queries, keys, values, log_decays: group.of(&log_decays)? };
            let memory = state.memory.as_ref().expect("initial_state gives every Mamba-2 layer a memory");
            let (read, memory) = state_space::advance(ops, &rows, memory)?;
            let read = read.add(inputs.multiply(&self.bypass)?)?;
            Ok((group.pack(&read)?, RecurrentState { conv_tail, memory: Some(memory) }))
        })?;

        let gates = ops.silu(&gates.as_dtype(Dtype::Float32)?)?;
        let gated = match spec.norm {
            StateNorm::BeforeGates => self.normed(&read)?.multiply(gates)?,
            StateNorm::AfterGates | StateNorm::None => self.normed(&read.multiply(gates)?)?,
        };
        self.output.forward(&gated.as_dtype(self.dtype.mlx())?)
    }

    /// How far the states of each head move on with a token: `(T, H)` → the same, in float32.
    fn steps(&self, projected: &Array) -> Result<Array> {
        let steps = projected.as_dtype(Dtype::Float32)?.add(&self.step_bias)?;
        let steps = ops::logaddexp(&steps, Array::from_f32(0.0))?;
        let (least, greatest) = self.spec.step_limits;
        let steps = if least > 0.0 { ops::maximum(steps, Array::from_f32(least))? } else { steps };
        Ok(if greatest.is_finite() { ops::minimum(steps, Array::from_f32(greatest))? } else { steps })
    }

    /// Inputs by head, `(B, n, H, D_v)`, and what groups write and read with, `(B, n, G, D_k)`, of `(B, n, C)`.
    fn heads(&self, convolved: &Array) -> Result<(Array, Array, Array)> {
        let spec = &self.spec;
        let (num_sequences, num_tokens) = (convolved.dim(0), convolved.dim(1));
        let part = |start: usize, num_heads: usize, head_dim: usize| -> Result<Array> {
            let columns = sys::slice_axis(convolved, 2, start, start + num_heads * head_dim)?;
            Ok(columns.reshape(&[num_sequences, num_tokens, num_heads as i32, head_dim as i32])?)
        };
        let (inner, group) = (spec.inner_width(), spec.group_width());
        Ok((
            part(0, spec.num_heads, spec.head_dim)?,
            part(inner, spec.num_groups, spec.state_dim)?,
            part(inner + group, spec.num_groups, spec.state_dim)?,
        ))
    }

    /// `(T, W)` normed, each group's heads by themselves, where there is a norm.
    fn normed(&self, rows: &Array) -> Result<Array> {
        let Some(norm) = &self.norm else { return Ok(rows.clone()) };
        let num_groups = self.spec.num_groups as i32;
        if num_groups == 1 {
            return norm.forward(rows);
        }
        let num_rows = rows.dim(0);
        let by_group = rows.reshape(&[num_rows, num_groups, -1])?;
        let normed = fast::rms_norm(&by_group, None, norm.eps)?.reshape(&[num_rows, -1])?;
        match &norm.weight {
            Some(weight) => Ok(normed.multiply(weight)?),
            None => Ok(normed),
        }
    }
}
