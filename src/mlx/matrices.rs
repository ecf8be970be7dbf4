//! Matrices in the form that they are kept in: one, or several of one shape on top of each other.
//!
//! Owns what becomes of stored ones at load: which stay quantised or of 16 bits, which become numbers, and into which
//! an adapter's update is added; and who multiplies by them. Quantised ones are `quantized`'s, products on the host
//! `host_matrices`' and `products`'.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops};

use super::{
    device::{ComputeDevice, ComputeDtype},
    error::Result,
    host_matrices::HostMatrices,
    low_rank::{LowRank, StoredUpdate},
    packed_products::MIN_BLAS_ROWS,
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

/// Matrices `(outputs, inputs)` or `(E, outputs, inputs)`. A clone shares their memory.
#[derive(Debug, Clone)]
pub(super) struct Matrices {
    form: Form,
    precision: Precision,
}

#[derive(Debug, Clone)]
enum Form {
    /// The transposed view, `(…, inputs, outputs)`.
    Dense {
        transposed: Array,
    },
    Quantized(Quantized),
}

impl Matrices {
    /// Takes `{path}.weight` with all that belongs to it; `num_matrices` is E.
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        (num_matrices, shape): (Option<usize>, MatrixShape),
        (settings, precision): (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        let sizes = (num_matrices, shape);
        let weight = match Quantized::take(weights, path, sizes, (settings, precision))? {
            Some(matrices) if !matrices.is_widened(precision)? => {
                return Ok(Self { form: Form::Quantized(matrices), precision });
            }
            Some(matrices) => matrices.numbers(precision.dtype.mlx())?,
            None => {
                let shape = [num_matrices.as_slice(), &[shape.outputs, shape.inputs]].concat();
                weights.take(&format!("{path}.weight"), &shape)?
            }
        };
        Self::dense(weight, precision)
    }

    /// Matrices of numbers, `(…, outputs, inputs)`, as they are stored.
    pub(super) fn dense(stored: Array, precision: Precision) -> Result<Self> {
        let weight = precision.kept(stored)?;
        let transposed = weight.swap_axes(-1, -2)?;
        transposed.eval()?;
        Ok(Self { form: Form::Dense { transposed }, precision })
    }

    /// The matrices with the update that there is for those at `path`, which is returned where it stays beside them.
    pub(super) fn updated(
        self,
        weights: &mut Weights,
        path: &str,
        sizes: (Option<usize>, MatrixShape),
    ) -> Result<(Self, Option<LowRank>)> {
        let dtype = self.precision.dtype.mlx();
        match StoredUpdate::take(weights, path, sizes)? {
            None => Ok((self, None)),
            Some(update) if self.precision.fuse_updates => {
                let weight = update.fused_into(self.numbers()?)?.as_dtype(dtype)?;
                Ok((Self::dense(weight, self.precision)?, None))
            }
            Some(update) => {
                let beside = update.beside(dtype, || self.numbers())?;
                Ok((self, Some(beside)))
            }
        }
    }

    pub(super) fn device(&self) -> ComputeDevice {
        self.precision.device
    }

    /// Their numbers, `(…, outputs, inputs)`.
    fn numbers(&self) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => Ok(transposed.swap_axes(-1, -2)?),
            Form::Quantized(matrices) => matrices.numbers(Dtype::Float32),
        }
    }

    /// The matrices as the program's own loops take them.
    pub(super) fn on_host(&self) -> Result<Option<HostMatrices<'_>>> {
        if !self.precision.multiplies_packed() {
            return Ok(None);
        }
        match &self.form {
            Form::Dense { transposed } => HostMatrices::of_numbers(transposed),
            Form::Quantized(matrices) => {
                // They may be a part of others.
                matrices.settle()?;
                Ok(matrices.on_host())
            }
        }
    }

    /// The chosen rows of the only matrix as numbers: `(rows, inputs)`.
    pub(super) fn rows(&self, indices: &Array) -> Result<Array> {
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

    /// `(T, inputs)` → `(T, outputs)` by the only matrix.
    pub(super) fn multiply(&self, x: &Array) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => multiplied(x, transposed, self.device()),
            Form::Quantized(matrix) if self.device() == ComputeDevice::Cpu => matrix.multiply_on_cpu(0, x),
            Form::Quantized(matrix) => matrix.multiply(x),
        }
    }

    /// `(T, inputs)` → `(T, n)`, some of the outputs of the only matrix alone.
    pub(super) fn multiply_part(&self, x: &Array, outputs: &Range<usize>) -> Result<Array> {
        // What is but a slice of memory need not be a view, which is an operation.
        if let Some(matrix) = self.on_host()?
            && let Some(mut y) = HostMatrices::multiply_each(&[matrix.part(outputs.clone())], x)?
        {
            return Ok(y.swap_remove(0));
        }
        let form = match &self.form {
            Form::Dense { transposed } => {
                Form::Dense { transposed: sys::slice_axis(transposed, 1, outputs.start, outputs.end)? }
            }
            Form::Quantized(matrix) => Form::Quantized(matrix.part(outputs)?),
        };
        Self { form, precision: self.precision }.multiply(x)
    }

    /// `(T, inputs)` → `(T, outputs)` by one of E matrices, on the CPU.
    pub(super) fn multiply_by(&self, index: usize, x: &Array) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => {
                let transposed = sys::slice_axis(transposed, 0, index, index + 1)?.squeeze_axes(&[0])?;
                multiplied(x, &transposed, self.device())
            }
            Form::Quantized(matrices) => matrices.multiply_on_cpu(index, x),
        }
    }

    /// `(E, T, inputs)` → `(E, T, outputs)`, each by its own of E matrices.
    pub(super) fn multiply_each(&self, x: &Array) -> Result<Array> {
        let [num_matrices, num_rows] = [x.dim(0), x.dim(1)].map(|size| size as usize);
        if num_rows < MIN_BLAS_ROWS
            && let Some(matrices) = self.on_host()?
        {
            let groups: Vec<(usize, usize)> = (0..num_matrices).map(|index| (index, num_rows)).collect();
            return Ok(HostMatrices::multiply_groups(&[matrices], x, &groups)?.swap_remove(0));
        }
        match &self.form {
            Form::Dense { transposed } => Ok(x.matmul(transposed)?),
            Form::Quantized(matrices) if self.device() == ComputeDevice::Cpu => {
                Ok(x.matmul(matrices.numbers(x.dtype())?.swap_axes(1, 2)?)?)
            }
            Form::Quantized(matrices) => matrices.multiply(x),
        }
    }

    /// `(n, 1, inputs)` → `(n, 1, outputs)`, each by the one of E matrices that `indices`, `(n,)`, names.
    /// `is_sorted`: the indices never fall.
    pub(super) fn multiply_gathered(&self, x: &Array, indices: &Array, is_sorted: bool) -> Result<Array> {
        match &self.form {
            Form::Dense { transposed } => Ok(ops::gather_mm(x, transposed, None, indices, is_sorted)?),
            Form::Quantized(matrices) => matrices.multiply_gathered(x, indices, is_sorted),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

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
            let table = Matrices::load(&mut weights, "m", (None, shape), (None, precision)).unwrap();
            let Form::Dense { transposed } = &table.form else { panic!("it is not quantised") };
            assert_eq!(transposed.dtype(), kept, "{device:?} {dtype:?} {inputs}");
            // What comes of it has the type that is computed in.
            let chosen = Array::from_slice(&[5_u32, 0], &[2]);
            let rows = table.rows(&chosen).unwrap();
            let expected = stored.take_axis(&chosen, 0).unwrap().as_dtype(dtype.mlx()).unwrap();
            assert_eq!(rows.dtype(), dtype.mlx());
            assert!(rows.eq(&expected).unwrap().all(false).unwrap().item_exact::<bool>());
            let products = table.multiply(&rows).unwrap();
            assert_eq!((products.dtype(), products.shape()), (dtype.mlx(), &[2, outputs][..]));
        }
    }

    /// Heads' of latent attention, too, were widened on a CPU whose loops multiply by them as they are.
    #[test]
    fn quantised_matrices_are_widened_where_only_mlx_could_multiply_by_them() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-glm4_moe_lite-4bit");
        for (dtype, widen_quantized, is_widened) in [
            (ComputeDtype::Float32, true, cfg!(not(target_os = "linux"))),
            (ComputeDtype::Float32, false, false),
            (ComputeDtype::Float16, true, true),
            (ComputeDtype::Float16, false, false),
        ] {
            let arrays = Array::load_safetensors(path.join("model.safetensors")).unwrap();
            let mut weights = Weights::from_arrays(arrays.into_iter().collect::<HashMap<_, _>>());
            let device = ComputeDevice::Cpu;
            let precision = Precision { dtype, device, widen_quantized, fuse_updates: false };
            let sizes = (Some(2), MatrixShape { outputs: 32, inputs: 32 });
            let name = "model.layers.0.self_attn.embed_q";
            let matrices = Matrices::load(&mut weights, name, sizes, (None, precision)).unwrap();
            assert_eq!(
                matches!(matrices.form, Form::Dense { .. }),
                is_widened,
                "{dtype:?} {widen_quantized}"
            );
        }
    }
}
