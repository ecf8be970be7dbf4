//! What the parts of a model need at hand while they load.
//!
//! Owns taking matrices, norms and convolutions from the weights in the precision asked for. Which
//! of them a part has is the part's business, reading files `weights`'.

use mlx_rs::Array;

use super::{
    error::{MlxError, Result},
    linear::{Embedding, Linear},
    matrices::{MatrixShape, Precision},
    norm::Norm,
    weights::Weights,
};
use crate::models::{ModelSpec, NormKind, NormWeight};

/// A model's description and the weights not taken yet.
pub(super) struct Loader<'a> {
    pub spec: &'a ModelSpec,
    pub weights: &'a mut Weights,
    pub precision: Precision,
    /// Whether norms are stored as the factor less one.
    less_one: bool,
}

impl<'a> Loader<'a> {
    pub(super) fn new(spec: &'a ModelSpec, weights: &'a mut Weights, precision: Precision) -> Self {
        let less_one = match spec.norm.weight {
            NormWeight::Factor => false,
            NormWeight::LessOne => true,
            NormWeight::LessOneUnlessConverted => weights.are_published(),
        };
        Self { spec, weights, precision, less_one }
    }

    /// The matrix `{path}.weight` with its bias, if it has one.
    pub(super) fn linear(&mut self, path: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear> {
        let settings = (self.spec.quantization.as_ref(), self.precision);
        Linear::load(self.weights, path, MatrixShape { outputs, inputs }, bias, settings)
    }

    /// A table with a row for each token.
    pub(super) fn table(&mut self, path: &str, num_rows: usize, width: usize) -> Result<Embedding> {
        let shape = MatrixShape { outputs: num_rows, inputs: width };
        Embedding::load(self.weights, path, shape, (self.spec.quantization.as_ref(), self.precision))
    }

    /// A norm that is stored as the family stores them.
    pub(super) fn norm(&mut self, path: &str, size: usize) -> Result<Norm> {
        let factor =
            if self.less_one { self.factor(path, size, 1.0)? } else { self.factor(path, size, 0.0)? };
        Ok(Norm {
            kind: self.spec.norm.kind,
            weight: Some(factor),
            eps: self.spec.norm.eps,
            device: self.precision.device,
        })
    }

    /// A norm that is stored as its factor in every family.
    pub(super) fn plain_norm(&mut self, path: &str, size: usize) -> Result<Norm> {
        let factor = self.factor(path, size, 0.0)?;
        Ok(Norm {
            kind: NormKind::RootMeanSquare,
            weight: Some(factor),
            eps: self.spec.norm.eps,
            device: self.precision.device,
        })
    }

    /// What a norm multiplies by: its weight and this.
    fn factor(&mut self, path: &str, size: usize, added: f32) -> Result<Array> {
        let weight = self.vector(&format!("{path}.weight"), size)?.as_dtype(self.precision.dtype.mlx())?;
        let factor = match added {
            0.0 => weight,
            added => weight.add(Array::from_f32(added).as_dtype(weight.dtype())?)?,
        };
        factor.eval()?;
        Ok(factor)
    }

    /// A vector as it is stored.
    pub(super) fn vector(&mut self, name: &str, size: usize) -> Result<Array> {
        self.weights.take(name, &[size])
    }

    /// So many numbers as a vector, whatever axes they are stored with.
    pub(super) fn flat_vector(&mut self, name: &str, size: usize) -> Result<Array> {
        let stored = self.weights.take_any_shape(name)?;
        if stored.size() != size {
            return Err(MlxError::Weights(format!(
                "'{name}' has shape {:?}, expected {size} numbers",
                stored.shape()
            )));
        }
        Ok(stored.reshape(&[size as i32])?)
    }

    /// Weights of a convolution of each channel by itself, one array `(channels,)` for each of the
    /// positions it sees, oldest first.
    pub(super) fn convolution(
        &mut self,
        name: &str,
        channels: usize,
        kernel_size: usize,
    ) -> Result<Vec<Array>> {
        let stored = self.weights.take_any_shape(name)?;
        let found: Vec<usize> = stored.shape().iter().map(|&dim| dim as usize).collect();
        // PyTorch's layout and MLX's; with one input a channel they hold the same order.
        if found != [channels, 1, kernel_size] && found != [channels, kernel_size, 1] {
            return Err(MlxError::Weights(format!(
                "'{name}' has shape {found:?}, expected [{channels}, {kernel_size}, 1] or [{channels}, 1, {kernel_size}]"
            )));
        }
        let by_position =
            stored.as_dtype(self.precision.dtype.mlx())?.reshape(&[channels as i32, kernel_size as i32])?.t();
        let positions = (0..kernel_size)
            .map(|position| Ok(by_position.take_axis(Array::from_int(position as i32), 0)?))
            .collect::<Result<Vec<_>>>()?;
        mlx_rs::transforms::eval(&positions)?;
        Ok(positions)
    }
}
