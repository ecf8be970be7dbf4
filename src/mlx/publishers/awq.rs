//! AWQ's words of 4 bits (AutoAWQ's "gemm") → MLX's affine form.
//!
//! Owns their order. In MLX's form the words lie along the inputs, in AWQ's along the outputs.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype};

use super::{codes::words_of, misshapen, stems};
use crate::mlx::error::{MlxError, Result};

/// Where in a word each of eight consecutive outputs is.
const AWQ_ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// `{stem}.qweight` `(inputs, outputs / 8)`, and `{stem}.qzeros` and `{stem}.scales` for each group of inputs; a
/// number is (code - zero) · scale.
pub(super) fn convert(arrays: &mut HashMap<String, Array>, group_size: usize) -> Result<()> {
    for stem in stems(arrays, ".qweight") {
        let mut take = |end: &str| {
            let name = format!("{stem}.{end}");
            arrays.remove(&name).ok_or_else(|| MlxError::Weights(format!("'{name}' is missing")))
        };
        let (codes, scales, zeros) = (take("qweight")?, take("scales")?, take("qzeros")?);
        let name = format!("{stem}.qweight");
        let (&[inputs, packed], &[num_groups, outputs]) = (codes.shape(), scales.shape()) else {
            return Err(misshapen(&name, &codes, "a matrix of words"));
        };
        if codes.dtype() != Dtype::Int32
            || zeros.dtype() != Dtype::Int32
            || zeros.shape() != [num_groups, packed]
            || outputs != packed * 8
            || inputs % 8 != 0
            || inputs as usize != num_groups as usize * group_size
        {
            return Err(misshapen(&name, &codes, "words of eight outputs, and zeros and scales of groups"));
        }
        let (inputs, outputs, packed) = (inputs as usize, outputs as usize, packed as usize);
        let code_of = |words: &[u32], row: usize, output: usize| {
            (words[row * packed + output / 8] >> (4 * AWQ_ORDER[output % 8])) & 0xf
        };
        let words = words_of(&codes)?;
        let mut by_output = vec![0_u32; outputs * inputs / 8];
        for (index, word) in by_output.iter_mut().enumerate() {
            let (output, first) = (index / (inputs / 8), index % (inputs / 8) * 8);
            *word = (0..8).map(|at| code_of(&words, first + at, output) << (4 * at)).sum();
        }
        let zero_words = words_of(&zeros)?;
        let zeros: Vec<f32> = (0..outputs)
            .flat_map(|output| (0..num_groups as usize).map(move |group| (output, group)))
            .map(|(output, group)| -(code_of(&zero_words, group, output) as f32))
            .collect();
        let scales = scales.t().as_dtype(Dtype::Float32)?;
        let biases = Array::from_slice(&zeros, &[outputs as i32, num_groups]).multiply(&scales)?;
        let words = Array::from_slice(&by_output, &[outputs as i32, (inputs / 8) as i32]);
        arrays.insert(format!("{stem}.weight"), words);
        arrays.insert(format!("{stem}.scales"), scales.contiguous()?);
        arrays.insert(format!("{stem}.biases"), biases);
    }
    Ok(())
}
