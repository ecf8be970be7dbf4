//! Matrices as projections and as embedding table.
//!
//! Owns what comes to their products: biases, and adapters' updates beside them. The matrices themselves are
//! `matrices`'; which of them a model has is the decoder's business.

use std::ops::Range;

use mlx_rs::Array;

use super::{
    error::Result,
    host::summed,
    host_matrices::HostMatrices,
    low_rank::LowRank,
    matrices::{Matrices, MatrixShape, Precision},
    sys,
    weights::Weights,
};
use crate::models::QuantizationSpec;

/// A projection with an optional bias.
#[derive(Debug)]
pub(super) struct Linear {
    matrix: Matrices,
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
        let sizes = (None, shape);
        let matrix = Matrices::load(weights, path, sizes, (settings, precision))?;
        let (matrix, update) = matrix.updated(weights, path, sizes)?;
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
    matrix: Matrices,
}

impl Embedding {
    pub(super) fn load(
        weights: &mut Weights,
        path: &str,
        shape: MatrixShape,
        settings: (Option<&QuantizationSpec>, Precision),
    ) -> Result<Self> {
        Ok(Self { matrix: Matrices::load(weights, path, (None, shape), settings)? })
    }

    /// Token ids `(T,)` → embeddings `(T, hidden)`.
    pub(super) fn lookup(&self, tokens: &Array) -> Result<Array> {
        self.matrix.rows(tokens)
    }

    /// The head that is the table itself, with the update that there is for one at `path`.
    pub(super) fn to_head(&self, weights: &mut Weights, path: &str, shape: MatrixShape) -> Result<Linear> {
        let (matrix, update) = self.matrix.clone().updated(weights, path, (None, shape))?;
        Ok(Linear { matrix, update, bias: None })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use mlx_rs::Dtype;

    use super::*;
    use crate::mlx::device::{ComputeDevice, ComputeDtype};

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
