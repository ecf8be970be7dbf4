//! Matrices as projections and as embedding table.
//!
//! Owns their loading, whether quantised ones are widened, and their products. Quantised ones are
//! `quantized`'s; which matrices a model has is the decoder's business.

use std::ops::Range;

use mlx_rs::{Array, Dtype};

use super::{
    device::{ComputeDevice, ComputeDtype},
    error::Result,
    host::summed,
    low_rank::{LowRank, StoredUpdate},
    products::multiplied,
    quantized::Quantized,
    sys,
    weights::Weights,
};
use crate::models::QuantizationSpec;

/// How weights are brought to the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Precision {
    pub dtype: ComputeDtype,
    pub device: ComputeDevice,
    /// Expands quantised matrices at load that only MLX could multiply by, which a CPU's BLAS does far faster with
    /// more memory.
    pub widen_quantized: bool,
    /// Adds an adapter's updates into the numbers of the matrices, which are widened for it.
    pub fuse_updates: bool,
}

impl Precision {
    /// Whether products with quantised matrices are made by the program's own loops.
    pub(super) fn multiplies_packed(&self) -> bool {
        self.device.multiplies_packed(self.dtype)
    }
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
        device: ComputeDevice,
    },
    Quantized {
        matrix: Quantized,
        precision: Precision,
    },
}

impl Matrix {
    fn load(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        (settings, precision): (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        let dtype = precision.dtype.mlx();
        let weight = match Quantized::take(weights, path, (None, shape), (settings, precision))? {
            Some(matrix) if !matrix.is_widened(precision)? => {
                return Ok(Self::Quantized { matrix, precision });
            }
            Some(matrix) => matrix.numbers(dtype)?,
            None => {
                let shape = [shape.outputs, shape.inputs];
                weights.take(&format!("{path}.weight"), &shape)?.as_dtype(dtype)?
            }
        };
        Self::dense(&weight, precision.device)
    }

    /// Loads the matrix with its update, which is returned where it stays beside it.
    fn load_updated(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        settings: (Option<&QuantizationSpec>, Precision),
    ) -> Result<(Self, Option<LowRank>)> {
        Self::load(weights, path, shape, settings)?.updated(weights, path, shape, settings.1)
    }

    /// The matrix with the update that there is for one at `path`.
    fn updated(
        self,
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        precision: Precision,
    ) -> Result<(Self, Option<LowRank>)> {
        let dtype = precision.dtype.mlx();
        match StoredUpdate::take(weights, path, (None, shape))? {
            None => Ok((self, None)),
            Some(update) if precision.fuse_updates => {
                let weight = update.fused_into(self.numbers()?)?.as_dtype(dtype)?;
                Ok((Self::dense(&weight, precision.device)?, None))
            }
            Some(update) => {
                let beside = update.beside(dtype, || self.numbers())?;
                Ok((self, Some(beside)))
            }
        }
    }

    /// A matrix of numbers, `(outputs, inputs)`.
    fn dense(weight: &Array, device: ComputeDevice) -> Result<Self> {
        let transposed = weight.t();
        transposed.eval()?;
        Ok(Self::Dense { transposed, device })
    }

    fn device(&self) -> ComputeDevice {
        match self {
            Self::Dense { device, .. } => *device,
            Self::Quantized { precision, .. } => precision.device,
        }
    }

    /// All of the matrix as numbers, `(outputs, inputs)`.
    fn numbers(&self) -> Result<Array> {
        match self {
            Self::Dense { transposed, .. } => Ok(transposed.t()),
            Self::Quantized { matrix, .. } => matrix.numbers(Dtype::Float32),
        }
    }

    /// The chosen rows of the matrix as numbers: `(rows, inputs)`.
    fn rows(&self, indices: &Array) -> Result<Array> {
        match self {
            Self::Dense { transposed, .. } => Ok(transposed.t().take_axis(indices, 0)?),
            Self::Quantized { matrix, precision } => {
                let by_host =
                    if precision.multiplies_packed() { matrix.numbers_of_rows(indices)? } else { None };
                match by_host {
                    Some(numbers) => Ok(numbers),
                    None => matrix.rows(indices)?.numbers(precision.dtype.mlx()),
                }
            }
        }
    }

    /// Some of its outputs as a matrix, as a view.
    fn part(&self, outputs: &Range<usize>) -> Result<Self> {
        Ok(match self {
            Self::Dense { transposed, device } => Self::Dense {
                transposed: sys::slice_axis(transposed, 1, outputs.start, outputs.end)?,
                device: *device,
            },
            Self::Quantized { matrix, precision } => {
                Self::Quantized { matrix: matrix.part(outputs)?, precision: *precision }
            }
        })
    }

    /// `(T, inputs)` → `(T, outputs)`.
    fn multiply(&self, x: &Array) -> Result<Array> {
        Ok(match self {
            Self::Dense { transposed, device } => multiplied(x, transposed, *device)?,
            Self::Quantized { matrix, precision } if precision.device == ComputeDevice::Cpu => {
                matrix.multiply_on_cpu(0, x)?
            }
            Self::Quantized { matrix, .. } => matrix.multiply(x)?,
        })
    }
}

/// A projection with an optional bias.
#[derive(Debug)]
pub(super) struct Linear {
    matrix: Matrix,
    /// What an adapter adds to it.
    update: Option<LowRank>,
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
        let (matrix, update) = Matrix::load_updated(weights, path, shape, (settings, precision))?;
        let bias = if has_bias {
            let bias =
                weights.take(&format!("{path}.bias"), &[shape.outputs])?.as_dtype(precision.dtype.mlx())?;
            bias.eval()?;
            Some(bias)
        } else {
            None
        };
        Ok(Self { matrix, update, bias })
    }

    /// `(T, inputs)` → `(T, n)`, some of the outputs alone.
    pub(super) fn forward_part(&self, x: &Array, outputs: &Range<usize>) -> Result<Array> {
        let y = self.matrix.part(outputs)?.multiply(x)?;
        let y = match &self.update {
            Some(update) => update.part(outputs)?.added(x, y)?,
            None => y,
        };
        Ok(match &self.bias {
            Some(bias) => {
                summed(&y, &sys::slice_axis(bias, 0, outputs.start, outputs.end)?, self.matrix.device())?
            }
            None => y,
        })
    }

    /// `(T, inputs)` → `(T, outputs)`.
    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        let y = self.matrix.multiply(x)?;
        let y = match &self.update {
            Some(update) => update.added(x, y)?,
            None => y,
        };
        Ok(match &self.bias {
            Some(bias) => summed(&y, bias, self.matrix.device())?,
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
        settings: (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        Ok(Self { matrix: Matrix::load(weights, path, shape, settings)? })
    }

    /// Token ids `(T,)` → embeddings `(T, hidden)`.
    pub(super) fn lookup(&self, tokens: &Array) -> Result<Array> {
        self.matrix.rows(tokens)
    }

    /// The head that is the table itself, with the update that there is for one at `path`.
    pub(super) fn to_head(
        &self,
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        precision: Precision,
    ) -> Result<Linear> {
        let (matrix, update) = self.matrix.clone().updated(weights, path, shape, precision)?;
        Ok(Linear { matrix, update, bias: None })
    }
}
