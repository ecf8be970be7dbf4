//! Weights that compressed-tensors has stored (LLM Compressor's and others') → MLX's forms, or plain numbers.
//!
//! Owns its forms, which the names and types of a matrix's arrays show: whole numbers packed into words or as bytes, and
//! floating-point numbers of 4 and 8 bits. What is said of activations is the configuration's business; they stay as
//! they are computed.

use std::collections::HashMap;

use mlx_rs::{Array, Dtype, ops};

use super::{
    codes::{Codes, unpacked, words_of},
    drop_activation_scales, fp8, misshapen, stems,
};
use crate::mlx::{
    error::{MlxError, Result},
    quantized::NVFP4_FULL_SCALE,
};

/// `block`: of 8-bit floating-point numbers with a factor for each block.
/// `stated_bits`: of whole numbers, a bit for each number of them that there may be; 0 for any.
pub(super) fn convert(
    arrays: &mut HashMap<String, Array>,
    block: Option<(usize, usize)>,
    stated_bits: u64,
) -> Result<()> {
    for stem in stems(arrays, ".weight_packed") {
        let parts = Parts::take(arrays, &stem, "weight_packed")?;
        match parts.weight.dtype() {
            Dtype::Int32 => {
                let codes = parts.words()?;
                // Older files may hold whole codes alone in a word, which the shape does not show.
                if stated_bits != 0 && stated_bits & 1 << codes.bits == 0 {
                    return Err(
                        parts.wrong("words of as many bits a code as the configuration's 'num_bits' says")
                    );
                }
                codes.store(arrays, &stem)?;
            }
            Dtype::Uint8 => parts.store_four_bit_floats(arrays)?,
            _ => return Err(parts.wrong("words or bytes")),
        }
    }
    for stem in stems(arrays, ".weight_scale") {
        let of_weight = arrays.get(&format!("{stem}.weight")).map(Array::dtype);
        let of_scales = arrays.get(&format!("{stem}.weight_scale")).map(Array::dtype);
        match (of_weight, of_scales) {
            (Some(Dtype::Int8), _) => Parts::take(arrays, &stem, "weight")?.bytes()?.store(arrays, &stem)?,
            // Powers of two.
            (Some(Dtype::Uint8), Some(Dtype::Uint8)) => {
                Parts::take(arrays, &stem, "weight")?.store_eight_bit_floats(arrays)?;
            }
            (Some(Dtype::Uint8), _) => drop_zeros(arrays, &stem)?,
            _ => {
                return Err(MlxError::Weights(format!(
                    "'{stem}.weight' is missing beside its scale, or is not of bytes"
                )));
            }
        }
    }
    fp8(arrays, block)?;
    drop_activation_scales(arrays);
    Ok(())
}

/// What belongs to one matrix.
struct Parts {
    stem: String,
    weight_name: String,
    weight: Array,
    scales: Array,
    zeros: Option<Array>,
    /// Outputs and inputs.
    shape: Option<Array>,
    groups: Option<Array>,
    global_scale: Option<Array>,
}

impl Parts {
    fn take(arrays: &mut HashMap<String, Array>, stem: &str, weight: &str) -> Result<Self> {
        let mut take = |end: &str| arrays.remove(&format!("{stem}.{end}"));
        let missing = |end: &str| MlxError::Weights(format!("'{stem}.{end}' is missing"));
        Ok(Self {
            weight_name: format!("{stem}.{weight}"),
            weight: take(weight).ok_or_else(|| missing(weight))?,
            scales: take("weight_scale").ok_or_else(|| missing("weight_scale"))?,
            zeros: take("weight_zero_point"),
            shape: take("weight_shape"),
            groups: take("weight_g_idx"),
            global_scale: take("weight_global_scale"),
            stem: stem.to_owned(),
        })
    }

    fn wrong(&self, expected: &str) -> MlxError {
        misshapen(&self.weight_name, &self.weight, expected)
    }

    /// Packed along the inputs, each code more than its number by half the range.
    fn words(&self) -> Result<Codes> {
        let wrong =
            || self.wrong("words of codes along the inputs, with a shape, scales and zeros that fit them");
        let &[outputs, num_words] = self.weight.shape() else { return Err(wrong()) };
        let shape = self.shape.as_ref().map(numbers).transpose()?;
        let Some([rows, columns]) = shape.as_deref() else { return Err(wrong()) };
        let (num_inputs, num_words) = (*columns as usize, num_words as usize);
        let bits = (num_words * 32).checked_div(num_inputs).unwrap_or_default();
        if *rows as i32 != outputs || bits * num_inputs != num_words * 32 || !Codes::fits(num_inputs, bits) {
            return Err(wrong());
        }
        self.codes(self.weight.view_dtype(Dtype::Uint32)?, bits)
    }

    /// Numbers of 8 bits with a sign.
    fn bytes(&self) -> Result<Codes> {
        let wrong = || self.wrong("a matrix of bytes, with scales and zeros that fit it");
        let &[_, num_inputs] = self.weight.shape() else { return Err(wrong()) };
        if !Codes::fits(num_inputs as usize, 8) {
            return Err(wrong());
        }
        // The code is the number and half the range; what does not fit into a byte is gone.
        let codes = self.weight.view_dtype(Dtype::Uint8)?.add(Array::from_slice(&[128u8], &[1]))?;
        self.codes(codes.view_dtype(Dtype::Uint32)?, 8)
    }

    fn codes(&self, words: Array, bits: usize) -> Result<Codes> {
        let wrong = || self.wrong("codes with a scale for all, for each output or for each group of inputs");
        let (outputs, num_inputs) = (words.dim(0), words.dim(1) as usize * 32 / bits);
        let scales = self.scales.as_dtype(Dtype::Float32)?;
        let scales = match *self.scales.shape() {
            [] | [1] => ops::broadcast_to(&scales.reshape(&[1, 1])?, &[outputs, 1])?,
            [rows] if rows == outputs => scales.reshape(&[outputs, 1])?,
            [1, 1] => ops::broadcast_to(&scales, &[outputs, 1])?,
            [rows, groups] if rows == outputs && groups > 0 => scales,
            _ => return Err(wrong()),
        };
        if outputs < 1 {
            return Err(wrong());
        }
        let num_groups = scales.dim(1) as usize;
        let groups = match &self.groups {
            Some(groups) if groups.size() == num_inputs => {
                let groups = numbers(groups)?;
                // -1 stands for groups one after the other.
                match groups.iter().all(|group| (0..num_groups as i64).contains(group)) {
                    true => Some(groups.iter().map(|group| *group as i32).collect::<Vec<_>>()),
                    false if groups.contains(&-1) => None,
                    false => return Err(wrong()),
                }
            }
            Some(_) => return Err(wrong()),
            None => None,
        };
        if groups.is_none() && !num_inputs.is_multiple_of(num_groups) {
            return Err(wrong());
        }
        Ok(Codes {
            words: words.contiguous()?,
            bits,
            zeros: self.zeros_of_codes(&scales, bits)?,
            scales: scales.contiguous()?,
            groups: groups.map(|groups| Array::from_slice(&groups, &[num_inputs as i32])),
        })
    }

    /// The codes of zero, of the shape of `scales`.
    fn zeros_of_codes(&self, scales: &Array, bits: usize) -> Result<Array> {
        let half_range = (1 << (bits - 1)) as f32;
        let (outputs, num_groups) = (scales.dim(0) as usize, scales.dim(1) as usize);
        let Some(zeros) = &self.zeros else {
            return Ok(ops::full::<f32>(scales.shape(), Array::from_f32(half_range))?);
        };
        if zeros.dtype() == Dtype::Int32
            && zeros.shape() == [(outputs * bits).div_ceil(32) as i32, num_groups as i32]
        {
            // Packed along the outputs, as codes themselves.
            let words = words_of(&zeros.t().contiguous()?)?;
            let of_group = words.chunks(words.len() / num_groups);
            let by_group: Vec<f32> =
                of_group.flat_map(|words| unpacked(words, bits, outputs)).map(|zero| zero as f32).collect();
            let by_group = Array::from_slice(&by_group, &[num_groups as i32, outputs as i32]);
            return Ok(by_group.t().contiguous()?);
        }
        if zeros.size() != 1 && zeros.size() != scales.size() {
            return Err(misshapen(
                &format!("{}.weight_zero_point", self.stem),
                zeros,
                "a zero for each scale",
            ));
        }
        let zeros = zeros.as_dtype(Dtype::Float32)?.add(Array::from_f32(half_range))?;
        let shape = if zeros.size() == 1 { vec![1, 1] } else { scales.shape().to_vec() };
        Ok(ops::broadcast_to(&zeros.reshape(&shape)?, scales.shape())?.contiguous()?)
    }

    /// Of 4 bits, two in a byte: nvfp4 with a factor, by which scales were multiplied, or mxfp4 with powers of two.
    fn store_four_bit_floats(self, arrays: &mut HashMap<String, Array>) -> Result<()> {
        if self.scales.dtype() != Dtype::Uint8 || self.weight.ndim() != 2 || self.weight.dim(-1) % 4 != 0 {
            return Err(self.wrong("a matrix of bytes, with scales in bytes"));
        }
        if let Some(factor) = &self.global_scale {
            if factor.size() != 1 {
                return Err(self.wrong("a matrix with one factor"));
            }
            let factor = factor.as_dtype(Dtype::Float32)?.reshape(&[])?;
            let largest = Array::from_f32(NVFP4_FULL_SCALE).divide(factor)?;
            arrays.insert(format!("{}.global_scale", self.stem), largest);
        }
        self.store_words(arrays)
    }

    /// Of 8 bits, with powers of two.
    fn store_eight_bit_floats(self, arrays: &mut HashMap<String, Array>) -> Result<()> {
        if self.weight.ndim() != 2 || self.weight.dim(-1) % 4 != 0 {
            return Err(self.wrong("a matrix of bytes, with scales in bytes"));
        }
        self.store_words(arrays)
    }

    fn store_words(self, arrays: &mut HashMap<String, Array>) -> Result<()> {
        arrays.insert(format!("{}.weight", self.stem), self.weight.view_dtype(Dtype::Uint32)?);
        arrays.insert(format!("{}.scales", self.stem), self.scales);
        Ok(())
    }
}

/// Forgets zeros of floating-point numbers, which must be none.
fn drop_zeros(arrays: &mut HashMap<String, Array>, stem: &str) -> Result<()> {
    let name = format!("{stem}.weight_zero_point");
    let Some(zeros) = arrays.remove(&name) else { return Ok(()) };
    let is_zero = zeros.as_dtype(Dtype::Float32)?.abs()?.max(None)?;
    is_zero.eval()?;
    match is_zero.to_vec_exact::<f32>().ok().as_deref() {
        Some([0.0]) => Ok(()),
        _ => {
            Err(MlxError::Weights(format!("'{name}' moves zero, which 8-bit floating-point numbers do not")))
        }
    }
}

/// A few whole numbers in host memory.
fn numbers(array: &Array) -> Result<Vec<i64>> {
    let wide = array.as_dtype(Dtype::Int64)?.contiguous()?;
    wide.eval()?;
    wide.to_vec_exact::<i64>().map_err(|error| MlxError::Weights(format!("a shape cannot be read: {error}")))
}
