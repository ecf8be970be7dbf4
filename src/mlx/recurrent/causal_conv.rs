//! Convolution of each channel by itself over the last few positions.
//!
//! Owns the convolution and the inputs it carries from chunk to chunk. A kernel sees a handful of
//! positions, so a sum of shifted products serves better than MLX's general convolution, and it
//! adds in the same order whatever the chunks are.

use mlx_rs::{Array, ops};

use crate::mlx::{error::Result, loader::Loader, sys};

/// A causal convolution by channel.
#[derive(Debug)]
pub(super) struct CausalConv {
    /// `(C,)` for each position seen, oldest first.
    kernel: Vec<Array>,
    bias: Option<Array>,
    num_channels: usize,
}

impl CausalConv {
    /// Loads `{path}.weight` and, where `has_bias`, `{path}.bias`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        path: &str,
        (num_channels, kernel_size): (usize, usize),
        has_bias: bool,
    ) -> Result<Self> {
        let kernel = loader.convolution(&format!("{path}.weight"), num_channels, kernel_size)?;
        let bias = if has_bias {
            let bias = loader.vector(&format!("{path}.bias"), num_channels)?;
            let bias = bias.as_dtype(loader.precision.dtype.mlx())?;
            bias.eval()?;
            Some(bias)
        } else {
            None
        };
        Ok(Self { kernel, bias, num_channels })
    }

    /// What one sequence's convolution sees before the first token: zeros, `(1, K - 1, C)`.
    pub(super) fn initial_tail(&self, dtype: mlx_rs::Dtype) -> Result<Array> {
        Ok(ops::zeros_dtype(&[1, self.kernel.len() as i32 - 1, self.num_channels as i32], dtype)?)
    }

    /// Convolves `(B, n, C)` that follow the inputs in `tail`; returns the outputs, of the same
    /// shape, and the tail after them.
    pub(super) fn forward(&self, x: &Array, tail: &Array) -> Result<(Array, Array)> {
        let num_tokens = x.dim(1) as usize;
        let inputs = ops::concatenate(&[tail, x], 1)?;
        let mut sum: Option<Array> = None;
        for (position, weight) in self.kernel.iter().enumerate() {
            let product = sys::slice_axis(&inputs, 1, position, position + num_tokens)?.multiply(weight)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&product)?,
                None => product,
            });
        }
        let mut sum = sum.expect("a kernel sees at least one position");
        if let Some(bias) = &self.bias {
            sum = sum.add(bias)?;
        }
        let tail_size = self.kernel.len() - 1;
        let tail = sys::slice_axis(&inputs, 1, num_tokens, num_tokens + tail_size)?.contiguous()?;
        Ok((sum, tail))
    }
}
