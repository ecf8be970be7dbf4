//! Whole numbers with scales and zeros → MLX's affine form, or plain numbers where that cannot hold them.
//!
//! Owns what GPTQ and compressed-tensors have in common: a number is (code - zero) · scale, with one zero and scale for
//! each group of an output's inputs, and codes lie bit by bit one after the other, as MLX has them too.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype, ops};

use crate::{
    mlx::{
        error::{MlxError, Result},
        sys::{self, Packing, QuantizedParts},
    },
    models::QuantizationMode,
};

/// Group sizes of MLX's affine form, the largest first.
const GROUP_SIZES: [usize; 3] = [128, 64, 32];

/// A matrix of codes.
#[derive(Debug)]
pub(super) struct Codes {
    /// `(outputs, inputs · bits / 32)`, uint32.
    pub words: Array,
    pub bits: usize,
    /// `(outputs, groups)`, float32.
    pub scales: Array,
    /// The same.
    pub zeros: Array,
    /// The group of each input, `(inputs,)`, where these are not one after the other.
    pub groups: Option<Array>,
}

impl Codes {
    /// Puts the matrix among the arrays, quantised if it can be without any change.
    pub(super) fn store(self, arrays: &mut HashMap<String, Array>, stem: &str) -> Result<()> {
        let num_inputs = self.num_inputs();
        let num_groups = self.scales.dim(1) as usize;
        let size = num_inputs / num_groups;
        let affine = GROUP_SIZES.into_iter().find(|&affine| {
            size.is_multiple_of(affine) && QuantizationMode::Affine.allows(affine, self.bits)
        });
        let Some(affine) = affine.filter(|_| self.groups.is_none()) else {
            arrays.insert(format!("{stem}.weight"), self.numbers()?);
            return Ok(());
        };
        let biases = self.scales.multiply(self.zeros.negative()?)?;
        let repeated = |array: Array| -> Result<Array> {
            Ok(ops::repeat_axis::<f32>(array, (size / affine) as i32, 1)?)
        };
        arrays.insert(format!("{stem}.weight"), self.words);
        arrays.insert(format!("{stem}.scales"), repeated(self.scales)?);
        arrays.insert(format!("{stem}.biases"), repeated(biases)?);
        Ok(())
    }

    fn num_inputs(&self) -> usize {
        self.words.dim(1) as usize * 32 / self.bits
    }

    /// `(outputs, inputs)`, not computed before it is asked for.
    fn numbers(&self) -> Result<Array> {
        let (num_inputs, num_groups) = (self.num_inputs(), self.scales.dim(1) as usize);
        let (outputs, bits) = (self.words.dim(0), self.bits as i32);
        let of_each = [outputs, num_inputs as i32 / 32];
        let codes = sys::dequantize(
            QuantizedParts {
                words: &self.words,
                scales: &ops::ones::<f32>(&of_each)?,
                biases: Some(&ops::zeros::<f32>(&of_each)?),
                packing: Packing { group_size: 32, bits, mode: c"affine" },
            },
            Dtype::Float32,
        )?;
        let groups = match &self.groups {
            Some(groups) => groups.clone(),
            None => {
                let size = num_inputs / num_groups;
                let groups: Vec<i32> = (0..num_inputs).map(|input| (input / size) as i32).collect();
                Array::from_slice(&groups, &[num_inputs as i32])
            }
        };
        let of_inputs = |array: &Array| array.take_axis(&groups, 1);
        Ok(codes.subtract(of_inputs(&self.zeros)?)?.multiply(of_inputs(&self.scales)?)?)
    }

    /// Whether so many inputs of so many bits fill whole words, of which MLX can make numbers.
    pub(super) fn fits(num_inputs: usize, bits: usize) -> bool {
        num_inputs > 0 && num_inputs.is_multiple_of(32) && QuantizationMode::Affine.allows(32, bits)
    }
}

/// Words of 32 bits in host memory.
pub(super) fn words_of(array: &Array) -> Result<Vec<u32>> {
    let words = array.view_dtype(Dtype::Uint32)?.contiguous()?;
    words.eval()?;
    words
        .to_vec_exact::<u32>()
        .map_err(|error| MlxError::Weights(format!("packed weights cannot be read: {error}")))
}

/// The first `count` codes of one row of words.
pub(super) fn unpacked(words: &[u32], bits: usize, count: usize) -> impl Iterator<Item = u32> + '_ {
    (0..count).map(move |index| {
        let (word, shift) = (index * bits / 32, index * bits % 32);
        let next = words.get(word + 1).copied().unwrap_or_default();
        let both = u64::from(words[word]) | u64::from(next) << 32;
        (both >> shift) as u32 & ((1 << bits) - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_lie_bit_by_bit_across_words() {
        let codes: Vec<u32> = (0..32).map(|index| index * 5 % 8).collect();
        let mut words = [0u32; 3];
        for (index, code) in codes.iter().enumerate() {
            for bit in 0..3 {
                let place = index * 3 + bit;
                words[place / 32] |= (code >> bit & 1) << (place % 32);
            }
        }
        assert_eq!(unpacked(&words, 3, 32).collect::<Vec<_>>(), codes);
        assert_eq!(unpacked(&[0x8765_4321], 4, 8).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
