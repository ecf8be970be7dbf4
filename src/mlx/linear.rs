//! Matrices: dense or MLX-quantised, as projections and as embedding table.
//!
//! Owns their loading (shape checks, widening, quantisation settings read off the shapes) and
//! their products. Which matrices a model has is the decoder's business.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{
    device::ComputeDtype,
    error::{MlxError, Result},
    sys,
    weights::Weights,
};
use crate::models::{Quantization, QuantizationSpec};

/// How weights are brought to the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Precision {
    pub dtype: ComputeDtype,
    /// Expands quantised matrices at load: more memory, but the CPU's fast BLAS can serve them.
    pub widen_quantized: bool,
}

/// Outputs and inputs of a matrix stored as `(outputs, inputs)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct MatrixShape {
    pub outputs: usize,
    pub inputs: usize,
}

/// A matrix `(outputs, inputs)` as stored. A clone shares its memory.
#[derive(Debug, Clone)]
enum Matrix {
    /// The transposed view, `(inputs, outputs)`.
    Dense {
        transposed: Array,
    },
    Quantized {
        packed: Array,
        scales: Array,
        biases: Array,
        quantization: Quantization,
    },
}

impl Matrix {
    fn load(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        settings: Option<&QuantizationSpec>,
        precision: Precision,
    ) -> Result<Self> {
        let MatrixShape { outputs, inputs } = shape;
        let weight_name = format!("{path}.weight");
        if !weights.contains(&format!("{path}.scales")) {
            let weight = weights.take(&weight_name, &[outputs, inputs])?.as_dtype(precision.dtype.mlx())?;
            weight.eval()?;
            return Ok(Self::Dense { transposed: weight.t() });
        }
        let packed = weights.take_any_shape(&weight_name)?;
        let scales = weights.take_any_shape(&format!("{path}.scales"))?.as_dtype(precision.dtype.mlx())?;
        let biases = weights.take_any_shape(&format!("{path}.biases"))?.as_dtype(precision.dtype.mlx())?;
        let quantization = quantization_of(path, shape, &packed, &scales)?;
        if let Some(expected) = settings.and_then(|settings| settings.of(path))
            && expected != quantization
        {
            return Err(MlxError::Weights(format!(
                "'{path}' is stored with {} bits in groups of {}, but the configuration says {} in {}",
                quantization.bits, quantization.group_size, expected.bits, expected.group_size
            )));
        }
        if biases.shape() != scales.shape() {
            return Err(MlxError::Weights(format!("'{path}' has scales and biases of different shapes")));
        }
        let matrix = Self::Quantized { packed, scales, biases, quantization };
        if !precision.widen_quantized {
            if let Self::Quantized { packed, scales, biases, .. } = &matrix {
                mlx_rs::transforms::eval([packed, scales, biases])?;
            }
            return Ok(matrix);
        }
        let weight = matrix.rows(None)?;
        weight.eval()?;
        Ok(Self::Dense { transposed: weight.t() })
    }

    /// Rows of the matrix, all or the chosen ones, dequantised: `(rows, inputs)`.
    fn rows(&self, indices: Option<&Array>) -> Result<Array> {
        let pick = |array: &Array| match indices {
            Some(indices) => array.take_axis(indices, 0),
            None => Ok(array.clone()),
        };
        match self {
            Self::Dense { transposed } => Ok(pick(&transposed.t())?),
            Self::Quantized { packed, scales, biases, quantization } => Ok(ops::dequantize(
                pick(packed)?,
                pick(scales)?,
                &pick(biases)?,
                quantization.group_size as i32,
                quantization.bits as i32,
            )?),
        }
    }

    /// Some of its outputs as a matrix, as a view.
    fn part(&self, outputs: &Range<usize>) -> Result<Self> {
        let rows = |array: &Array| sys::slice_axis(array, 0, outputs.start, outputs.end);
        Ok(match self {
            Self::Dense { transposed } => {
                Self::Dense { transposed: sys::slice_axis(transposed, 1, outputs.start, outputs.end)? }
            }
            Self::Quantized { packed, scales, biases, quantization } => Self::Quantized {
                packed: rows(packed)?,
                scales: rows(scales)?,
                biases: rows(biases)?,
                quantization: *quantization,
            },
        })
    }

    /// `(T, inputs)` → `(T, outputs)`.
    fn multiply(&self, x: &Array) -> Result<Array> {
        Ok(match self {
            Self::Dense { transposed } => x.matmul(transposed)?,
            Self::Quantized { packed, scales, biases, quantization } => ops::quantized_matmul(
                x,
                packed,
                scales,
                biases,
                true,
                quantization.group_size as i32,
                quantization.bits as i32,
            )?,
        })
    }
}

/// Reads bits and group size off the shapes; they are determined by the matrix's inputs.
fn quantization_of(path: &str, shape: MatrixShape, packed: &Array, scales: &Array) -> Result<Quantization> {
    let wrong = || {
        MlxError::Weights(format!(
            "quantised '{path}' has shapes {:?} and {:?}, which do not fit {} outputs of {} inputs",
            packed.shape(),
            scales.shape(),
            shape.outputs,
            shape.inputs
        ))
    };
    let [rows, columns] = *packed.shape() else { return Err(wrong()) };
    let [scale_rows, groups] = *scales.shape() else { return Err(wrong()) };
    let (columns, groups) = (columns as usize, groups as usize);
    if rows as usize != shape.outputs || scale_rows != rows || groups == 0 {
        return Err(wrong());
    }
    let bits = columns * 32 / shape.inputs;
    let group_size = shape.inputs / groups;
    if bits * shape.inputs != columns * 32
        || group_size * groups != shape.inputs
        || !matches!(group_size, 32 | 64 | 128)
        || !matches!(bits, 2..=6 | 8)
    {
        return Err(wrong());
    }
    Ok(Quantization { group_size, bits })
}

/// A projection with an optional bias.
#[derive(Debug)]
pub(super) struct Linear {
    matrix: Matrix,
    bias: Option<Array>,
}

impl Linear {
    /// Loads `{path}.weight` and, where `has_bias`, `{path}.bias`.
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        has_bias: bool,
        (settings, precision): (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        let matrix = Matrix::load(weights, path, shape, settings, precision)?;
        let bias = if has_bias {
            let bias =
                weights.take(&format!("{path}.bias"), &[shape.outputs])?.as_dtype(precision.dtype.mlx())?;
            bias.eval()?;
            Some(bias)
        } else {
            None
        };
        Ok(Self { matrix, bias })
    }

    /// `(T, inputs)` → `(T, n)`, some of the outputs alone.
    pub(super) fn forward_part(&self, x: &Array, outputs: &Range<usize>) -> Result<Array> {
        let y = self.matrix.part(outputs)?.multiply(x)?;
        Ok(match &self.bias {
            Some(bias) => y.add(sys::slice_axis(bias, 0, outputs.start, outputs.end)?)?,
            None => y,
        })
    }

    /// `(T, inputs)` → `(T, outputs)`.
    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.matrix.multiply(x)?;
        Ok(match &self.bias {
            Some(bias) => y.add(bias)?,
            None => y,
        })
    }
}

/// The table of token embeddings, which may serve as the head too.
#[derive(Debug)]
pub(super) struct Embedding {
    matrix: Matrix,
}

impl Embedding {
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        (settings, precision): (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        Ok(Self { matrix: Matrix::load(weights, path, shape, settings, precision)? })
    }

    /// Token ids `(T,)` → embeddings `(T, hidden)`.
    pub(super) fn lookup(&self, tokens: &Array) -> Result<Array> {
        self.matrix.rows(Some(tokens))
    }

    /// The head that is the table itself.
    pub(super) fn to_head(&self) -> Linear {
        Linear { matrix: self.matrix.clone(), bias: None }
    }
}
