//! LFM2's gated short convolution.
//!
//! Owns the layer: one projection gives two gates and the inputs; the inputs are gated, convolved
//! over the last few positions, gated again and projected back.

use mlx_rs::Array;

use super::causal_conv::CausalConv;
use crate::{
    mlx::{
        device::ComputeDtype,
        error::Result,
        linear::Linear,
        loader::Loader,
        states::{Mixed, RecurrentState, RowGroup},
        sys,
    },
    models::ShortConvSpec,
};

/// A short-convolution layer.
#[derive(Debug)]
pub(in crate::mlx) struct ShortConv {
    hidden_size: usize,
    dtype: ComputeDtype,
    /// To input gate, output gate and inputs, in this order.
    input: Linear,
    conv: CausalConv,
    output: Linear,
}

impl ShortConv {
    pub(super) fn load(loader: &mut Loader<'_>, block_path: &str, spec: ShortConvSpec) -> Result<Self> {
        let hidden_size = loader.spec.hidden_size;
        let path = format!("{block_path}.conv");
        Ok(Self {
            hidden_size,
            dtype: loader.precision.dtype,
            input: loader.linear(&format!("{path}.in_proj"), 3 * hidden_size, hidden_size, spec.bias)?,
            conv: CausalConv::load(
                loader,
                &format!("{path}.conv"),
                (hidden_size, spec.kernel_size),
                spec.bias,
            )?,
            output: loader.linear(&format!("{path}.out_proj"), hidden_size, hidden_size, spec.bias)?,
        })
    }

    pub(super) fn initial_state(&self) -> Result<RecurrentState> {
        Ok(RecurrentState { conv_tail: self.conv.initial_tail(self.dtype.mlx())?, memory: None })
    }

    /// Mixes packed rows `(T, hidden)`; `advance` runs what depends on states, group by group.
    pub(super) fn forward(
        &self,
        normed: &Array,
        advance: impl FnOnce(&mut dyn FnMut(RowGroup, &RecurrentState) -> Result<Mixed>) -> Result<Array>,
    ) -> Result<Array> {
        let projected = self.input.forward(normed)?;
        let third = |index: usize| {
            sys::slice_axis(&projected, 1, index * self.hidden_size, (index + 1) * self.hidden_size)
        };
        let gated = third(0)?.multiply(third(2)?)?;
        let convolved = advance(&mut |group, state| {
            let (output, conv_tail) = self.conv.forward(&group.of(&gated)?, &state.conv_tail)?;
            Ok((group.pack(&output)?, RecurrentState { conv_tail, memory: None }))
        })?;
        self.output.forward(&third(1)?.multiply(&convolved)?)
    }
}
