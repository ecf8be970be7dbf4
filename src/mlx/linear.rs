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
    host_matrices::HostMatrices,
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

    /// Numbers of a matrix `(…, outputs, inputs)` as they are multiplied by: as they are stored where the program's own loops
    /// take them so, which is half the memory to read.
    pub(super) fn kept(&self, stored: Array) -> Result<Array> {
        if self.keeps(stored.dtype(), stored.dim(-1) as usize) {
            return Ok(stored.contiguous()?);
        }
        Ok(stored.as_dtype(self.dtype.mlx())?)
    }

    /// Whether the stored numbers of a matrix with so many inputs stay as they are.
    pub(super) fn keeps(&self, stored: Dtype, num_inputs: usize) -> bool {
        self.multiplies_packed() && HostMatrices::takes(stored, num_inputs)
    }
}

/// Outputs and inputs of a matrix stored as `(outputs, inputs)`.
#[derive(Debug, Clone, Copy)]
pub(super) struct MatrixShape {
    pub outputs: usize,
    pub inputs: usize,
}

/// A matrix `(outputs, inputs)`. A clone shares its memory.
#[derive(Debug, Clone)]
struct Matrix {
    form: Form,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Form {
    /// The transposed view, `(inputs, outputs)`.
    Dense {
        transposed: Array,
    },
    Quantized(Quantized),
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
                return Ok(Self { form: Form::Quantized(matrix), precision });
            }
            Some(matrix) => matrix.numbers(dtype)?,
            None => {
                let shape = [shape.outputs, shape.inputs];
                precision.kept(weights.take(&format!("{path}.weight"), &shape)?)?
            }
        };
        Self::dense(&weight, precision)
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
                Ok((Self::dense(&weight, precision)?, None))
            }
            Some(update) => {
                let beside = update.beside(dtype, || self.numbers())?;
                Ok((self, Some(beside)))
            }
        }
    }

    /// A matrix of numbers, `(outputs, inputs)`.
    fn dense(weight: &Array, precision: Precision) -> Result<Self> {
        let transposed = weight.t();
        transposed.eval()?;
        Ok(Self { form: Form::Dense { transposed }, precision })
    }

    fn device(&self) -> ComputeDevice {
        self.precision.device
    }

    /// All of the matrix as numbers, `(outputs, inputs)`.
    fn numbers(&self) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => Ok(transposed.t()),
            Form::Quantized(matrix) => matrix.numbers(Dtype::Float32),
        }
    }

    /// The chosen rows of the matrix as numbers: `(rows, inputs)`.
    fn rows(&self, indices: &Array) -> Result<Array> {
        if let Some(matrix) = self.on_host()?
            && let Some(rows) = matrix.rows(indices)?
        {
            return Ok(rows);
        }
        let dtype = self.precision.dtype.mlx();
        match &self.form {
            Form::Dense { transposed } => Ok(transposed.t().take_axis(indices, 0)?.as_dtype(dtype)?),
            Form::Quantized(matrix) => matrix.rows(indices)?.numbers(dtype),
        }
    }

    /// The matrix as the program's own loops take it.
    fn on_host(&self) -> Result<Option<HostMatrices<'_>>> {
        if !self.precision.multiplies_packed() {
            return Ok(None);
        }
        match &self.form {
            Form::Dense { transposed } => HostMatrices::of_numbers(transposed),
            Form::Quantized(matrix) => {
                // It may be a part of another.
                matrix.settle()?;
                Ok(matrix.on_host())
            }
        }
    }

    /// Some of its outputs as a matrix, as a view.
    fn part(&self, outputs: &Range<usize>) -> Result<Self> {
        let form = match &self.form {
            Form::Dense { transposed } => {
                Form::Dense { transposed: sys::slice_axis(transposed, 1, outputs.start, outputs.end)? }
            }
            Form::Quantized(matrix) => Form::Quantized(matrix.part(outputs)?),
        };
        Ok(Self { form, precision: self.precision })
    }

    /// `(T, inputs)` → `(T, n)`, some of the outputs alone.
    fn multiply_part(&self, x: &Array, outputs: &Range<usize>) -> Result<Array> {
        // What is but a slice of memory need not be a view, which is an operation.
        if let Some(matrix) = self.on_host()?
            && let Some(mut y) = HostMatrices::multiply_each(&[matrix.part(outputs.clone())], x)?
        {
            return Ok(y.swap_remove(0));
        }
        self.part(outputs)?.multiply(x)
    }

    /// `(T, inputs)` → `(T, outputs)`.
    fn multiply(&self, x: &Array) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => multiplied(x, transposed, self.device()),
            Form::Quantized(matrix) if self.device() == ComputeDevice::Cpu => matrix.multiply_on_cpu(0, x),
            Form::Quantized(matrix) => matrix.multiply(x),
        }
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
        let y = self.matrix.multiply_part(x, outputs)?;
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
        self.completed(x, self.matrix.multiply(x)?)
    }

    /// `(T, inputs)` → `(T, outputs)` by each of several projections. Where the program's own loops multiply, all are one
    /// piece of work to them: it is parted more evenly, and the rows are laid out once.
    pub(super) fn forward_each(projections: &[&Self], x: &Array) -> Result<Vec<Array>> {
        let matrices = projections.iter().map(|projection| projection.matrix.on_host());
        let products = match matrices.collect::<Result<Option<Vec<_>>>>()? {
            Some(matrices) => HostMatrices::multiply_each(&matrices, x)?,
            None => None,
        };
        match products {
            Some(products) => {
                let products = projections.iter().zip(products);
                products.map(|(projection, product)| projection.completed(x, product)).collect()
            }
            None => projections.iter().map(|projection| projection.forward(x)).collect(),
        }
    }

    /// What the matrix made of `x`, with the update and the bias.
    fn completed(&self, x: &Array, y: Array) -> Result<Array> {
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::mlx::device::ComputeDtype;

    /// Half the memory that numbers in float32 would take, where the program's own loops multiply by them.
    #[test]
    fn matrices_of_sixteen_bits_stay_as_they_are_stored() {
        let stays = cfg!(target_os = "linux");
        for (device, dtype, inputs, kept) in [
            (
                ComputeDevice::Cpu,
                ComputeDtype::Float32,
                64,
                if stays { Dtype::Bfloat16 } else { Dtype::Float32 },
            ),
            (ComputeDevice::Cpu, ComputeDtype::Float32, 60, Dtype::Float32),
            (ComputeDevice::Cpu, ComputeDtype::Float16, 64, Dtype::Float16),
            (ComputeDevice::Gpu, ComputeDtype::Float32, 64, Dtype::Float32),
            (ComputeDevice::Gpu, ComputeDtype::Bfloat16, 64, Dtype::Bfloat16),
        ] {
            let outputs = 6;
            let numbers: Vec<f32> = (0..outputs * inputs).map(|at| (at as f32 * 0.37).sin()).collect();
            let stored = Array::from_slice(&numbers, &[outputs, inputs]).as_dtype(Dtype::Bfloat16).unwrap();
            let mut weights = Weights::from_arrays(HashMap::from([("m.weight".to_owned(), stored.clone())]));
            let precision = Precision { dtype, device, widen_quantized: true, fuse_updates: false };
            let shape = MatrixShape { outputs: outputs as usize, inputs: inputs as usize };
            let table = Embedding::load(&mut weights, "m", shape, (None, precision)).unwrap();
            let Form::Dense { transposed } = &table.matrix.form else { panic!("it is not quantised") };
            assert_eq!(transposed.dtype(), kept, "{device:?} {dtype:?} {inputs}");
            // What comes of it has the type that is computed in.
            let chosen = Array::from_slice(&[5_u32, 0], &[2]);
            let rows = table.lookup(&chosen).unwrap();
            let expected = stored.take_axis(&chosen, 0).unwrap().as_dtype(dtype.mlx()).unwrap();
            assert_eq!(rows.dtype(), dtype.mlx());
            assert!(rows.eq(&expected).unwrap().all(false).unwrap().item_exact::<bool>());
            let products = table.matrix.multiply(&rows).unwrap();
            assert_eq!((products.dtype(), products.shape()), (dtype.mlx(), &[2, outputs][..]));
        }
    }

    /// Few rows, which the program's own loops multiply by all of them at once, and many; numbers that they are not for.
    #[test]
    fn several_projections_give_what_each_gives_alone() {
        let inputs = 64;
        for (device, dtypes) in [
            (ComputeDevice::Cpu, [Dtype::Bfloat16, Dtype::Float32, Dtype::Float16]),
            (ComputeDevice::Cpu, [Dtype::Bfloat16; 3]),
            (ComputeDevice::Gpu, [Dtype::Float32; 3]),
        ] {
            let precision = Precision {
                dtype: ComputeDtype::Float32,
                device,
                widen_quantized: true,
                fuse_updates: false,
            };
            let numbers = |shape: &[i32], seed: f32| {
                let size: i32 = shape.iter().product();
                let numbers: Vec<f32> = (0..size).map(|at| ((at as f32 + seed) * 0.37).sin()).collect();
                Array::from_slice(&numbers, shape)
            };
            let projections: Vec<Linear> = [(40, dtypes[0]), (7, dtypes[1]), (130, dtypes[2])]
                .into_iter()
                .map(|(outputs, dtype)| {
                    let weight = numbers(&[outputs, inputs], outputs as f32).as_dtype(dtype).unwrap();
                    let arrays = [("m.weight", weight), ("m.bias", numbers(&[outputs], 0.5))];
                    let arrays = arrays.map(|(name, array)| (name.to_owned(), array));
                    let shape = MatrixShape { outputs: outputs as usize, inputs: inputs as usize };
                    let mut weights = Weights::from_arrays(HashMap::from(arrays));
                    Linear::load(&mut weights, "m", shape, true, (None, precision)).unwrap()
                })
                .collect();
            let projections: Vec<&Linear> = projections.iter().collect();
            for num_rows in [1, 2, 9, 63, 64, 100] {
                let x = numbers(&[num_rows, inputs], 3.0);
                let together = Linear::forward_each(&projections, &x).unwrap();
                assert_eq!(together.len(), projections.len());
                for (projection, together) in projections.iter().zip(together) {
                    let alone = projection.forward(&x).unwrap();
                    assert_eq!(together.shape(), alone.shape());
                    assert!(together.eq(&alone).unwrap().all(false).unwrap().item_exact::<bool>());
                }
            }
            assert!(Linear::forward_each(&[], &numbers(&[2, inputs], 0.0)).unwrap().is_empty());
        }
    }
}
