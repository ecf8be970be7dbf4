//! Quantised matrices, one or the experts' of a layer on top of each other.
//!
//! Owns their loading, with settings read off shapes and types, and MLX's operations on them. Whether a
//! matrix stays quantised is the business of `matrices`.

use std::ops::Range;

use mlx_rs::{Array, Dtype};

use super::{
    device::ComputeDevice,
    error::{MlxError, Result},
    host_matrices::HostMatrices,
    matrices::{MatrixShape, Precision},
    packed_products::{Format, PackedMatrix, Scales},
    products::multiplied_by_transpose,
    sys::{self, Packing, QuantizedParts},
    weights::Weights,
};
use crate::models::{Quantization, QuantizationMode, QuantizationSpec};

/// What the largest scale of a tensor in nvfp4 stands for: the largest number of its scales' type times that of its
/// elements'.
pub(super) const NVFP4_FULL_SCALE: f32 = 448.0 * 6.0;

/// Numbers that share a scale in MLX's affine form, at least.
const MIN_MLX_GROUP: usize = 32;

/// Matrices `(outputs, inputs)`, or `(E, outputs, inputs)`, as MLX quantises them. A clone shares its memory.
#[derive(Debug, Clone)]
pub(super) struct Quantized {
    words: Array,
    scales: Array,
    biases: Option<Array>,
    /// On the numbers that the others give: one, or one for each of E matrices.
    factor: Option<Array>,
    quantization: Quantization,
}

impl Quantized {
    /// Takes `{path}.weight` with all that belongs to it, if it has scales; `num_matrices` is E.
    pub(super) fn take(
        weights: &mut Weights,
        path: &str,
        (num_matrices, shape): (Option<usize>, MatrixShape),
        (settings, precision): (Option<&QuantizationSpec>, Precision),
    ) -> Result<Option<Self>> {
        if !weights.contains(&format!("{path}.scales")) {
            return Ok(None);
        }
        let words = weights.take_any_shape(&format!("{path}.weight"))?;
        let scales = weights.take_any_shape(&format!("{path}.scales"))?;
        let quantization =
            quantization_of(path, (num_matrices, shape), (&words, &scales), weights.has_small_groups)?;
        if let Some(stated) = settings.and_then(|settings| settings.stated(path))
            && stated != Some(quantization)
        {
            let stated = stated.map_or_else(|| "no quantisation".to_owned(), |stated| stated.to_string());
            return Err(MlxError::Weights(format!(
                "'{path}' is stored with {quantization}, but the configuration says {stated}"
            )));
        }
        let is_affine = quantization.mode == QuantizationMode::Affine;
        let dtype = precision.dtype.mlx();
        let biases = if is_affine {
            let biases = weights.take_any_shape(&format!("{path}.biases"))?;
            if biases.shape() != scales.shape() {
                return Err(MlxError::Weights(format!("'{path}' has scales and biases of different shapes")));
            }
            Some(biases.as_dtype(dtype)?)
        } else {
            None
        };
        let factor = match format!("{path}.global_scale") {
            name if quantization.mode == QuantizationMode::Nvfp4 && weights.contains(&name) => {
                let largest = weights.take(&name, num_matrices.as_slice())?.as_dtype(Dtype::Float32)?;
                Some(largest.multiply(Array::from_f32(1.0 / NVFP4_FULL_SCALE))?.as_dtype(dtype)?)
            }
            _ => None,
        };
        let scales = if is_affine { scales.as_dtype(dtype)? } else { scales };
        Ok(Some(Self { words, scales, biases, factor, quantization }))
    }

    /// Whether it is expanded at load; has computed what it is made of where it is not.
    pub(super) fn is_widened(&self, precision: Precision) -> Result<bool> {
        if precision.widen_quantized && !precision.multiplies_packed() {
            return Ok(true);
        }
        self.settle()?;
        Ok(precision.widen_quantized && self.on_host().is_none())
    }

    /// Has everything computed that it is made of.
    pub(super) fn settle(&self) -> Result<()> {
        let arrays = [&self.words, &self.scales].into_iter().chain(&self.biases).chain(&self.factor);
        Ok(sys::compute(arrays)?)
    }

    /// Its matrices in host memory, where all arrays are such as the program's own loops take: none with a factor, and
    /// scales and biases in float32. They must be [settled](Self::settle).
    pub(super) fn on_host(&self) -> Option<HostMatrices<'_>> {
        fn slice<T: mlx_rs::ArrayElement>(array: &Array) -> Option<&[T]> {
            array.try_as_slice::<T>().ok()
        }
        let Quantization { bits, mode, group_size } = self.quantization;
        let (format, scales) = match mode {
            QuantizationMode::Affine => (Format::Affine { bits }, Scales::Numbers(slice(&self.scales)?)),
            QuantizationMode::Mxfp4 => (Format::Mxfp4, Scales::Bytes(slice(&self.scales)?)),
            QuantizationMode::Nvfp4 => (Format::Nvfp4, Scales::Bytes(slice(&self.scales)?)),
            QuantizationMode::Mxfp8 => (Format::Mxfp8, Scales::Bytes(slice(&self.scales)?)),
        };
        let biases = match &self.biases {
            Some(biases) => Some(slice(biases)?),
            None => None,
        };
        let words: &[u32] = slice(&self.words)?;
        let (outputs, num_inputs) = self.shape();
        let num_outputs = words.len() * 32 / (num_inputs * bits).max(1);
        let all = PackedMatrix { words, scales, biases, num_outputs, num_inputs, group_size, format };
        Some(HostMatrices::new(all, outputs)).filter(|_| self.factor.is_none())
    }

    /// `(outputs, inputs)` of one matrix.
    fn shape(&self) -> (usize, usize) {
        let outputs = self.words.dim(-2) as usize;
        (outputs, self.words.dim(-1) as usize * 32 / self.quantization.bits)
    }

    /// The same of each of its arrays that has an entry for each output.
    fn map(&self, mut each: impl FnMut(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Self {
            words: each(&self.words)?,
            scales: each(&self.scales)?,
            biases: self.biases.as_ref().map(&mut each).transpose()?,
            factor: self.factor.clone(),
            quantization: self.quantization,
        })
    }

    /// The chosen rows of one matrix.
    pub(super) fn rows(&self, indices: &Array) -> Result<Self> {
        self.map(|array| Ok(array.take_axis(indices, 0)?))
    }

    /// Some of the outputs of one matrix, as a view.
    pub(super) fn part(&self, outputs: &Range<usize>) -> Result<Self> {
        self.map(|array| Ok(sys::slice_axis(array, 0, outputs.start, outputs.end)?))
    }

    /// One of E matrices, as a view.
    pub(super) fn matrix(&self, index: usize) -> Result<Self> {
        let of_matrix = |array: &Array| Ok(sys::slice_axis(array, 0, index, index + 1)?.squeeze_axes(&[0])?);
        let factor = self.factor.as_ref().map(of_matrix).transpose()?;
        Ok(Self { factor, ..self.map(of_matrix)? })
    }

    /// Its numbers in `dtype`.
    pub(super) fn numbers(&self, dtype: Dtype) -> Result<Array> {
        if self.quantization.group_size >= MIN_MLX_GROUP || self.quantization.mode != QuantizationMode::Affine
        {
            return self.scaled(sys::dequantize(self.parts(), dtype)?);
        }
        self.settle()?;
        let matrices = self.on_host().ok_or_else(|| {
            MlxError::Unsupported("small groups that are not in the host's memory".to_owned())
        })?;
        let mut shape = self.words.shape().to_vec();
        *shape.last_mut().expect("a matrix has inputs") = self.shape().1 as i32;
        Ok(matrices.all_numbers(&shape)?.as_dtype(dtype)?)
    }

    /// `(T, inputs)` → `(T, outputs)` by one matrix, or `(E, T, inputs)` → `(E, T, outputs)` by each of E.
    pub(super) fn multiply(&self, x: &Array) -> Result<Array> {
        self.scaled(sys::quantized_matmul(x, self.parts())?)
    }

    /// `(T, inputs)` → `(T, outputs)` by matrix `index` of E, or by the only one, on the CPU, whose own products with
    /// quantised matrices are slow and, in 16 bits, inexact.
    pub(super) fn multiply_on_cpu(&self, index: usize, x: &Array) -> Result<Array> {
        // It may be a part of another.
        self.settle()?;
        if let Some(matrices) = self.on_host()
            && let Some(y) = matrices.multiply(index, x)?
        {
            return Ok(y);
        }
        let x = sys::in_order(x)?;
        multiplied_by_transpose(&x, &self.numbers_of_matrix(index, x.dtype())?, ComputeDevice::Cpu)
    }

    /// Numbers of matrix `index` of E, or of the only one, by all cores of the CPU; everything it is made of must be
    /// computed.
    fn numbers_of_matrix(&self, index: usize, dtype: Dtype) -> Result<Array> {
        match self.on_host() {
            Some(matrices) => Ok(matrices.numbers(index)?.as_dtype(dtype)?),
            None if self.words.ndim() == 3 => self.matrix(index)?.numbers(dtype),
            None => self.numbers(dtype),
        }
    }

    /// `(n, 1, inputs)` → `(n, 1, outputs)`, each by the one of E matrices that `indices`, `(n,)`, names.
    /// `is_sorted`: the indices never fall.
    pub(super) fn multiply_gathered(&self, x: &Array, indices: &Array, is_sorted: bool) -> Result<Array> {
        let y = sys::gather_quantized_matmul(x, self.parts(), indices, is_sorted)?;
        Ok(match &self.factor {
            Some(factor) => y.multiply(factor.take_axis(indices, 0)?.reshape(&[-1, 1, 1])?)?,
            None => y,
        })
    }

    fn scaled(&self, numbers: Array) -> Result<Array> {
        Ok(match &self.factor {
            // One for each of several matrices, or one.
            Some(factor) if factor.ndim() == 1 => {
                numbers.multiply(factor.as_dtype(numbers.dtype())?.reshape(&[-1, 1, 1])?)?
            }
            Some(factor) => numbers.multiply(factor.as_dtype(numbers.dtype())?)?,
            None => numbers,
        })
    }

    fn parts(&self) -> QuantizedParts<'_> {
        let Quantization { group_size, bits, mode } = self.quantization;
        QuantizedParts {
            words: &self.words,
            scales: &self.scales,
            biases: self.biases.as_ref(),
            packing: Packing {
                group_size: group_size as i32,
                bits: bits as i32,
                mode: match mode {
                    QuantizationMode::Affine => c"affine",
                    QuantizationMode::Mxfp4 => c"mxfp4",
                    QuantizationMode::Nvfp4 => c"nvfp4",
                    QuantizationMode::Mxfp8 => c"mxfp8",
                },
            },
        }
    }
}

/// Reads the settings off the shapes, which determine bits and group size given a matrix's inputs, and off
/// the scales' type: those of floating-point modes are bytes.
fn quantization_of(
    path: &str,
    (num_matrices, shape): (Option<usize>, MatrixShape),
    (words, scales): (&Array, &Array),
    has_small_groups: bool,
) -> Result<Quantization> {
    let wrong = || {
        MlxError::Weights(format!(
            "quantised '{path}' has shapes {:?} and {:?}, which do not fit {} outputs of {} inputs",
            words.shape(),
            scales.shape(),
            shape.outputs,
            shape.inputs
        ))
    };
    let of_matrix = |array: &Array| -> Option<usize> {
        let sizes: Vec<usize> = array.shape().iter().map(|&size| size as usize).collect();
        let (columns, rows) = sizes.split_last()?;
        let expected: Vec<usize> = num_matrices.into_iter().chain([shape.outputs]).collect();
        (rows == expected && *columns > 0).then_some(*columns)
    };
    let columns = of_matrix(words).ok_or_else(wrong)?;
    let num_groups = of_matrix(scales).ok_or_else(wrong)?;
    let bits = columns * 32 / shape.inputs;
    let group_size = shape.inputs / num_groups;
    if words.dtype() != Dtype::Uint32
        || bits * shape.inputs != columns * 32
        || group_size * num_groups != shape.inputs
    {
        return Err(wrong());
    }
    let mode = QuantizationMode::ALL.into_iter().find(|mode| {
        let is_affine = *mode == QuantizationMode::Affine;
        let is_small = is_affine
            && has_small_groups
            && group_size == MIN_MLX_GROUP / 2
            && shape.inputs.is_multiple_of(MIN_MLX_GROUP);
        let allowed_size = if is_small { MIN_MLX_GROUP } else { group_size };
        is_affine == (scales.dtype() != Dtype::Uint8) && mode.allows(allowed_size, bits)
    });
    Ok(Quantization { group_size, bits, mode: mode.ok_or_else(wrong)? })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::mlx::device::ComputeDtype;

    const PRECISION: Precision = Precision {
        dtype: ComputeDtype::Float32,
        device: ComputeDevice::Cpu,
        widen_quantized: true,
        fuse_updates: false,
    };

    fn taken(arrays: [(&str, Array); 3], shape: MatrixShape, has_small_groups: bool) -> Result<Quantized> {
        let arrays = arrays.map(|(name, array)| (format!("m.{name}"), array));
        let mut weights = Weights::from_arrays(HashMap::from(arrays));
        weights.has_small_groups = has_small_groups;
        let taken = Quantized::take(&mut weights, "m", (None, shape), (None, PRECISION))?;
        Ok(taken.expect("it has scales"))
    }

    /// 64 numbers of 2 bits are 0, 1, 2, 3 and so on; group g has the scale g + 1 and the bias -g.
    fn small_groups(inputs: usize) -> [(&'static str, Array); 3] {
        let num_groups = inputs / 16;
        let of_groups = |number: fn(usize) -> f32| {
            Array::from_slice(&(0..num_groups).map(number).collect::<Vec<_>>(), &[1, num_groups as i32])
        };
        let words = vec![0xe4e4_e4e4_u32; inputs / 16];
        [
            ("weight", Array::from_slice(&words, &[1, words.len() as i32])),
            ("scales", of_groups(|group| group as f32 + 1.0)),
            ("biases", of_groups(|group| -(group as f32))),
        ]
    }

    /// MLX has none, and no converter writes them: what looks so is another mistake.
    #[test]
    fn groups_of_16_come_from_gguf_alone() {
        for (inputs, is_gguf) in [(64, false), (48, false), (48, true)] {
            let error = taken(small_groups(inputs), MatrixShape { outputs: 1, inputs }, is_gguf).unwrap_err();
            assert!(error.to_string().contains("do not fit"), "{inputs} {is_gguf}: {error}");
        }
        let matrix = taken(small_groups(64), MatrixShape { outputs: 1, inputs: 64 }, true).unwrap();
        let numbers = matrix.numbers(Dtype::Float32).unwrap();
        let expected: Vec<f32> =
            (0..64).map(|at| (at / 16 + 1) as f32 * (at % 4) as f32 - (at / 16) as f32).collect();
        assert_eq!(numbers.as_slice::<f32>(), expected);
    }

    /// MLX does not take rows of nvfp4 apart whose width is no multiple of 32.
    #[test]
    fn rows_are_numbers_whatever_their_width() {
        let (num_rows, width) = (5, 48);
        let words: Vec<u32> =
            (0..num_rows * width as u32 / 8).map(|at| at.wrapping_mul(0x9e37_79b9)).collect();
        let scales: Vec<u8> = (0..num_rows * 3).map(|at| 0x38 + at as u8).collect();
        let arrays = HashMap::from([
            ("m.weight".to_owned(), Array::from_slice(&words, &[num_rows as i32, width / 8])),
            ("m.scales".to_owned(), Array::from_slice(&scales, &[num_rows as i32, 3])),
        ]);
        let mut weights = Weights::from_arrays(arrays);
        let shape = MatrixShape { outputs: num_rows as usize, inputs: width as usize };
        let matrix = Quantized::take(&mut weights, "m", (None, shape), (None, PRECISION)).unwrap().unwrap();
        matrix.settle().unwrap();
        let all = matrix.numbers_of_matrix(0, Dtype::Float32).unwrap();
        let all = all.as_slice::<f32>().to_vec();
        let indices = Array::from_slice(&[3_u32, 0, 3], &[3]);
        let on_host = matrix.on_host().expect("the host takes it");
        let rows = on_host.rows(&indices).unwrap().expect("there are these rows");
        let expected = [3, 0, 3].map(|row: usize| &all[row * width as usize..][..width as usize]).concat();
        assert_eq!(rows.as_slice::<f32>(), expected);
        let beyond = Array::from_slice(&[num_rows], &[1]);
        assert!(on_host.rows(&beyond).unwrap().is_none());
    }
}
