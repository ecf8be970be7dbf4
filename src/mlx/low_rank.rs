//! Updates of matrices by products of two narrow ones: LoRA and DoRA.
//!
//! Owns their arithmetic, beside a matrix that stays as it is, or added into its numbers. Which matrices have one is
//! what `adapter` puts among the weights; DoRA is LoRA whose result is scaled by what makes each row's norm its own.

use mlx_rs::{Array, Dtype, ops};

use super::{
    error::{MlxError, Result},
    linear::MatrixShape,
    sys,
    weights::{UPDATE_DOWN, UPDATE_MAGNITUDE, UPDATE_UP, Weights},
};

/// The update of a matrix `(outputs, inputs)`, or of each of E, as it is stored: float32, with the scale in `up`.
#[derive(Debug)]
pub(super) struct StoredUpdate {
    /// `(r, inputs)` or `(E, r, inputs)`.
    down: Array,
    /// `(outputs, r)` or `(E, outputs, r)`.
    up: Array,
    /// `(outputs,)`, of one matrix alone: the norms that its rows get.
    magnitude: Option<Array>,
}

/// An update beside its matrix, or matrices.
#[derive(Debug, Clone)]
pub(super) struct LowRank {
    /// `(inputs, r)` or `(E, inputs, r)`.
    down: Array,
    /// `(r, outputs)` or `(E, r, outputs)`.
    up: Array,
    /// `(outputs,)`, on the products of matrix and update.
    factor: Option<Array>,
}

impl StoredUpdate {
    /// Takes the update of the matrix at `path`, if it has one.
    pub(super) fn take(
        weights: &mut Weights,
        path: &str,
        (num_matrices, shape): (Option<usize>, MatrixShape),
    ) -> Result<Option<Self>> {
        let name = |part: &str| format!("{path}.{part}");
        if !weights.contains(&name(UPDATE_DOWN)) {
            return Ok(None);
        }
        let down = weights.take_any_shape(&name(UPDATE_DOWN))?;
        let up = weights.take_any_shape(&name(UPDATE_UP))?;
        let magnitude = match name(UPDATE_MAGNITUDE) {
            name if weights.contains(&name) => Some(weights.take_any_shape(&name)?),
            _ => None,
        };
        let sizes =
            |array: &Array| -> Vec<usize> { array.shape().iter().map(|&size| size as usize).collect() };
        let expected = |last: [usize; 2]| [num_matrices.as_slice(), &last].concat();
        let rank = up.dim(-1) as usize;
        if sizes(&down) != expected([rank, shape.inputs])
            || sizes(&up) != expected([shape.outputs, rank])
            || magnitude
                .as_ref()
                .is_some_and(|norms| sizes(norms) != [shape.outputs] || num_matrices.is_some())
        {
            let of = num_matrices.map(|count| format!("{count} matrices of ")).unwrap_or_default();
            return Err(MlxError::Adapter(format!(
                "its update of '{path}' has shapes {:?} and {:?}, and the model has {of}{} inputs and {} outputs there",
                down.shape(),
                up.shape(),
                shape.inputs,
                shape.outputs
            )));
        }
        Ok(Some(Self { down, up, magnitude }))
    }

    /// Makes of it what stands beside the matrix, whose `numbers`, `(outputs, inputs)`, are asked for where it needs
    /// them.
    pub(super) fn beside(self, dtype: Dtype, numbers: impl FnOnce() -> Result<Array>) -> Result<LowRank> {
        let factor = match &self.magnitude {
            Some(magnitude) => Some(magnitude.divide(norms(&self.added_to(numbers()?)?)?)?.as_dtype(dtype)?),
            None => None,
        };
        let update = LowRank {
            down: self.down.as_dtype(dtype)?.swap_axes(-1, -2)?,
            up: self.up.as_dtype(dtype)?.swap_axes(-1, -2)?,
            factor,
        };
        mlx_rs::transforms::eval([&update.down, &update.up].into_iter().chain(&update.factor))?;
        Ok(update)
    }

    /// The numbers of the matrix, or matrices, with the update in them: float32.
    pub(super) fn fused_into(self, numbers: Array) -> Result<Array> {
        let sum = self.added_to(numbers)?;
        Ok(match &self.magnitude {
            Some(magnitude) => sum.multiply(magnitude.divide(norms(&sum)?)?.expand_dims(1)?)?,
            None => sum,
        })
    }

    fn added_to(&self, numbers: Array) -> Result<Array> {
        Ok(numbers.as_dtype(Dtype::Float32)?.add(self.up.matmul(&self.down)?)?)
    }
}

/// `(outputs, inputs)` → `(outputs,)`.
fn norms(numbers: &Array) -> Result<Array> {
    Ok(numbers.multiply(numbers)?.sum_axis(-1, false)?.sqrt()?)
}

impl LowRank {
    /// What matrix and update make of rows `x`, `(T, inputs)`, of which the matrix makes `y`, `(T, outputs)`; each of
    /// them of some outputs alone where `up` and factor are a [`Self::part`].
    pub(super) fn added(&self, x: &Array, y: Array) -> Result<Array> {
        let sum = y.add(x.matmul(&self.down)?.matmul(&self.up)?)?;
        Ok(match &self.factor {
            Some(factor) => sum.multiply(factor)?,
            None => sum,
        })
    }

    /// The update of some of the outputs.
    pub(super) fn part(&self, outputs: &std::ops::Range<usize>) -> Result<Self> {
        let factor = self.factor.as_ref();
        Ok(Self {
            down: self.down.clone(),
            up: sys::slice_axis(&self.up, 1, outputs.start, outputs.end)?,
            factor: factor.map(|all| sys::slice_axis(all, 0, outputs.start, outputs.end)).transpose()?,
        })
    }

    /// The update of one of E matrices.
    pub(super) fn of_matrix(&self, index: usize) -> Result<Self> {
        let of_matrix = |array: &Array| -> Result<Array> {
            Ok(sys::slice_axis(array, 0, index, index + 1)?.squeeze_axes(&[0])?)
        };
        Ok(Self { down: of_matrix(&self.down)?, up: of_matrix(&self.up)?, factor: None })
    }

    /// The same as [`Self::added`] of rows `(n, 1, inputs)` and `(n, 1, outputs)`, each by the one of E updates that
    /// `indices`, `(n,)`, names.
    pub(super) fn added_gathered(
        &self,
        x: &Array,
        y: Array,
        indices: &Array,
        is_sorted: bool,
    ) -> Result<Array> {
        let narrow = ops::gather_mm(x, &self.down, None, indices, is_sorted)?;
        Ok(y.add(ops::gather_mm(narrow, &self.up, None, indices, is_sorted)?)?)
    }
}
