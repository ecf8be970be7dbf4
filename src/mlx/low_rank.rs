//! Updates of matrices by products of two narrow ones: LoRA and DoRA.
//!
//! Owns their arithmetic, beside a matrix that stays as it is, or added into its numbers. Which matrices have one is
//! what `adapter` puts among the weights; DoRA is LoRA whose result is scaled by what makes each row's norm its own.

use mlx_rs::{Array, Dtype, ops};

use super::{
    error::{MlxError, Result},
    matrices::MatrixShape,
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        mlx::{
            device::{ComputeDevice, ComputeDtype},
            linear::Linear,
            matrices::Precision,
        },
        models::{Fold, FoldFactors},
    };

    const OUTPUTS: usize = 6;
    const INPUTS: usize = 4;
    const RANK: usize = 2;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|at| ((at as f32 + seed) * 1.713).sin()).collect()
    }

    fn array(numbers: &[f32], rows: usize) -> Array {
        Array::from_slice(numbers, &[rows as i32, (numbers.len() / rows) as i32])
    }

    /// A matrix with a bias and an update at `path`, of so many rows.
    fn weights(path: &str, outputs: usize, has_magnitude: bool) -> Weights {
        let mut arrays = HashMap::from([
            (format!("{path}.weight"), array(&numbers(outputs * INPUTS, 0.1), outputs)),
            (format!("{path}.bias"), Array::from_slice(&numbers(outputs, 0.2), &[outputs as i32])),
            (format!("{path}.{UPDATE_DOWN}"), array(&numbers(RANK * INPUTS, 0.3), RANK)),
            (format!("{path}.{UPDATE_UP}"), array(&numbers(outputs * RANK, 0.4), outputs)),
        ]);
        if has_magnitude {
            let norms = Array::from_slice(&numbers(outputs, 0.5), &[outputs as i32]);
            arrays.insert(format!("{path}.{UPDATE_MAGNITUDE}"), norms);
        }
        Weights::from_arrays(arrays)
    }

    fn load(weights: &mut Weights, path: &str, fuse_updates: bool) -> Result<Linear> {
        let (dtype, device) = (ComputeDtype::Float32, ComputeDevice::Cpu);
        let precision = Precision { dtype, device, widen_quantized: false, fuse_updates };
        let shape = MatrixShape { outputs: OUTPUTS, inputs: INPUTS };
        Linear::load(weights, path, shape, true, (None, precision))
    }

    fn forward(linear: &Linear, x: &[f32]) -> Vec<f32> {
        let y = linear.forward(&array(x, x.len() / INPUTS)).unwrap().contiguous().unwrap();
        y.eval().unwrap();
        y.to_vec_exact::<f32>().unwrap()
    }

    /// In double precision, output by output.
    fn expected(x: &[f32], has_magnitude: bool) -> Vec<f64> {
        let wide = |numbers: Vec<f32>| -> Vec<f64> { numbers.into_iter().map(f64::from).collect() };
        let [weight, bias, down, up, norms] = [
            numbers(OUTPUTS * INPUTS, 0.1),
            numbers(OUTPUTS, 0.2),
            numbers(RANK * INPUTS, 0.3),
            numbers(OUTPUTS * RANK, 0.4),
            numbers(OUTPUTS, 0.5),
        ]
        .map(wide);
        let row = |output: usize| -> Vec<f64> {
            let sum = |input: usize| {
                let added = (0..RANK).map(|rank| up[output * RANK + rank] * down[rank * INPUTS + input]);
                weight[output * INPUTS + input] + added.sum::<f64>()
            };
            let row: Vec<f64> = (0..INPUTS).map(sum).collect();
            let norm = row.iter().map(|number| number * number).sum::<f64>().sqrt();
            let factor = if has_magnitude { norms[output] / norm } else { 1.0 };
            row.into_iter().map(|number| number * factor).collect()
        };
        let of_row = |x: &[f32]| -> Vec<f64> {
            let product = |output: usize| {
                row(output).iter().zip(x).map(|(weight, x)| weight * f64::from(*x)).sum::<f64>()
                    + bias[output]
            };
            (0..OUTPUTS).map(product).collect()
        };
        x.chunks(INPUTS).flat_map(of_row).collect()
    }

    fn assert_near(found: &[f32], expected: &[f64], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5, "{what}: {found} {expected}");
        }
    }

    #[test]
    fn updates_are_as_in_double_precision_beside_a_matrix_and_in_it() {
        let x = numbers(3 * INPUTS, 0.7);
        for has_magnitude in [false, true] {
            for is_fused in [false, true] {
                let linear = load(&mut weights("m", OUTPUTS, has_magnitude), "m", is_fused).unwrap();
                let what = format!("norms {has_magnitude}, fused {is_fused}");
                assert_near(&forward(&linear, &x), &expected(&x, has_magnitude), &what);
            }
        }
    }

    #[test]
    fn some_of_the_outputs_are_those_of_all() {
        let x = numbers(3 * INPUTS, 0.7);
        for has_magnitude in [false, true] {
            let linear = load(&mut weights("m", OUTPUTS, has_magnitude), "m", false).unwrap();
            let all = forward(&linear, &x);
            for outputs in [0..1, 2..5, 0..OUTPUTS] {
                let part = linear.forward_part(&array(&x, 3), &outputs).unwrap().contiguous().unwrap();
                part.eval().unwrap();
                let part = part.to_vec_exact::<f32>().unwrap();
                for (row, part) in part.chunks(outputs.len()).enumerate() {
                    let expected: Vec<f64> =
                        all[row * OUTPUTS..][outputs.clone()].iter().copied().map(f64::from).collect();
                    assert_near(part, &expected, &format!("{outputs:?}"));
                }
            }
        }
    }

    #[test]
    fn the_update_of_several_matrices_in_one_is_cut_with_them() {
        let mut together = weights("both", 2 * OUTPUTS, true);
        let half = |first: usize| (first..first + OUTPUTS).map(|row| row as i32).collect();
        let parts = [("a".to_owned(), half(0)), ("b".to_owned(), half(OUTPUTS))];
        together.cut("both", 0, &parts).unwrap();
        let x = numbers(INPUTS, 0.7);
        let first = load(&mut together, "a", false).unwrap();
        assert_near(
            &forward(&first, &x),
            &expected(&x, true),
            "the first half's numbers are those of one alone",
        );
        assert_ne!(forward(&load(&mut together, "b", false).unwrap(), &x), forward(&first, &x));
        // Beside one of them by itself it would be passed over.
        let mut twice = weights("both", 2 * OUTPUTS, false);
        twice.insert(format!("a.{UPDATE_UP}"), array(&numbers(OUTPUTS * RANK, 0.4), OUTPUTS)).unwrap();
        assert!(
            twice
                .cut("both", 0, &parts)
                .unwrap_err()
                .to_string()
                .contains("'a.lora_b' is there beside 'both'")
        );
    }

    /// As where a publisher's model multiplies what a matrix made, and its weights are multiplied instead.
    #[test]
    fn factors_of_outputs_are_on_updates_too() {
        let x = numbers(INPUTS, 0.7);
        let factors = FoldFactors::Runs(vec![(2, 3.0), (4, -0.5)]);
        for has_magnitude in [false, true] {
            let mut folded = weights("x.proj", OUTPUTS, has_magnitude);
            folded.replace("x.proj.bias", Array::from_slice(&[0.0f32; OUTPUTS], &[OUTPUTS as i32])).unwrap();
            let fold = Fold { ending: "proj", factors: factors.clone() };
            folded.fold(&fold).unwrap();
            folded.fold_updates(&fold).unwrap();
            let found = forward(&load(&mut folded, "x.proj", false).unwrap(), &x);
            let bias = numbers(OUTPUTS, 0.2);
            let expected: Vec<f64> = expected(&x, has_magnitude)
                .into_iter()
                .enumerate()
                .map(|(output, y)| (y - f64::from(bias[output])) * if output < 2 { 3.0 } else { -0.5 })
                .collect();
            assert_near(&found, &expected, &format!("norms {has_magnitude}"));
        }
    }

    #[test]
    fn an_update_of_other_sizes_or_of_nothing_is_named() {
        for (part, rows) in [(UPDATE_DOWN, 1), (UPDATE_UP, 1), (UPDATE_MAGNITUDE, 2)] {
            let mut wrong = weights("m", OUTPUTS, true);
            wrong.replace("m.bias", Array::from_slice(&[0.0f32; OUTPUTS], &[OUTPUTS as i32])).unwrap();
            drop(wrong.take_any_shape(&format!("m.{part}")));
            wrong.insert(format!("m.{part}"), array(&numbers(12, 0.1), rows)).unwrap();
            let error = load(&mut wrong, "m", false).unwrap_err().to_string();
            assert!(error.contains("'m'") && error.contains("4 inputs and 6 outputs"), "{part}: {error}");
        }
        let mut none = weights("m", OUTPUTS, false);
        drop(none.take_any_shape("m.weight"));
        drop(none.take_any_shape("m.bias"));
        let names = crate::models::WeightNames::new(crate::models::BlockNames::PLAIN);
        let error = none.finish(&names).unwrap_err().to_string();
        assert!(error.contains("updates 'm', which is no linear layer"), "{error}");
    }
}
