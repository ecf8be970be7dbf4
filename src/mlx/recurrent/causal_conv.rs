//! Convolution of each channel by itself over the last few positions.
//!
//! Owns the convolution and the inputs it carries from chunk to chunk. A kernel sees a handful of
//! positions, so a sum of shifted products serves better than MLX's general convolution, and it
//! adds in the same order whatever the chunks are.

use mlx_rs::{Array, ops};

use crate::mlx::{
    arrays::{compact, concatenated},
    error::Result,
    loader::Loader,
    sys,
};

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

    /// Loads convolutions without biases that are computed as one, of the channels `(path, num_channels)` one after
    /// the other.
    pub(super) fn load_joined(
        loader: &mut Loader<'_>,
        parts: &[(String, usize)],
        kernel_size: usize,
    ) -> Result<Self> {
        let mut kernels = Vec::with_capacity(parts.len());
        for (path, num_channels) in parts {
            kernels.push(loader.convolution(&format!("{path}.weight"), *num_channels, kernel_size)?);
        }
        let of_position = |position: usize| {
            concatenated(kernels.iter().map(|kernel| kernel[position].clone()).collect(), 0)
        };
        let kernel = (0..kernel_size).map(of_position).collect::<Result<Vec<_>>>()?;
        mlx_rs::transforms::eval(&kernel)?;
        let num_channels = parts.iter().map(|(_, num_channels)| num_channels).sum();
        Ok(Self { kernel, bias: None, num_channels })
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
        let tail = compact(&sys::slice_axis(&inputs, 1, num_tokens, num_tokens + tail_size)?)?;
        Ok((sum, tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(array: &Array) -> Vec<f32> {
        let array = array.contiguous().unwrap();
        array.eval().unwrap();
        array.to_vec_exact::<f32>().unwrap()
    }

    /// Whatever the cuts, the outputs are the same to the last bit, and those of MLX's convolution.
    #[test]
    fn cuts_change_nothing_and_mlx_agrees() {
        let (channels, kernel_size, num_tokens) = (3usize, 4usize, 11usize);
        let number = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 17.0;
        let stored: Vec<f32> = (0..channels * kernel_size).map(number).collect();
        let kernel = (0..kernel_size)
            .map(|position| {
                let of_position: Vec<f32> =
                    (0..channels).map(|channel| stored[channel * kernel_size + position]).collect();
                Array::from_slice(&of_position, &[channels as i32])
            })
            .collect();
        let bias = Array::from_slice(&[0.5f32, -1.0, 2.0], &[channels as i32]);
        let conv = CausalConv { kernel, bias: Some(bias.clone()), num_channels: channels };
        let inputs: Vec<f32> = (0..num_tokens * channels).map(|index| number(index + 5)).collect();
        let inputs = Array::from_slice(&inputs, &[1, num_tokens as i32, channels as i32]);
        let initial = conv.initial_tail(mlx_rs::Dtype::Float32).unwrap();
        let (whole, last) = conv.forward(&inputs, &initial).unwrap();

        for cuts in [vec![1; num_tokens], vec![2, 9], vec![6, 1, 4]] {
            let (mut tail, mut outputs, mut first) = (initial.clone(), Vec::new(), 0);
            for piece in cuts {
                let part = sys::slice_axis(&inputs, 1, first, first + piece).unwrap();
                let (output, next) = conv.forward(&part, &tail).unwrap();
                outputs.extend(values(&output));
                tail = next;
                first += piece;
            }
            assert_eq!(outputs, values(&whole));
            assert_eq!(values(&tail), values(&last));
        }

        let weight = Array::from_slice(&stored, &[channels as i32, kernel_size as i32, 1]);
        let padded = ops::concatenate(&[&initial, &inputs], 1).unwrap();
        let reference = ops::conv1d(&padded, &weight, 1, 0, 1, channels as i32).unwrap().add(&bias).unwrap();
        for (ours, theirs) in values(&whole).iter().zip(values(&reference)) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
    }
}
