//! Logits → tokens.
//!
//! Owns greedy choice and sampling on the device. Each row is chosen by its own parameters and
//! its own random number alone, so an answer does not depend on what else is in the batch. The
//! numbers come from `engine::uniform`.

use mlx_rs::{Array, Dtype, ops, ops::indexing};

use super::{
    error::{MlxError, Result},
    ops::Ops,
    sys,
};
use crate::engine::{self, SamplingParams, uniform};

/// One row of logits to choose from.
#[derive(Debug, Clone)]
pub(super) struct Choice<'a> {
    pub choice: &'a engine::Choice,
    /// Position that the chosen token will have: the counter of its random number.
    pub position: usize,
}

impl Choice<'_> {
    /// Whether nothing is needed of the row but its most probable token.
    pub(super) fn needs_only_the_best(&self) -> bool {
        let engine::Choice { sampling, edits, report } = self.choice;
        sampling.is_greedy() && edits.is_none() && report.is_none()
    }
}

/// A token for each of R rows, and the largest logit there: what is chosen among what is no number is no
/// choice.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    /// `(R,)`, uint32.
    pub tokens: Array,
    /// `(R,)`, float32.
    pub largest: Array,
}

impl Chosen {
    /// Takes the most probable token of each row of `(R, vocabulary)` logits.
    pub(super) fn most_probable(logits: &Array) -> Result<Self> {
        let tokens = indexing::argmax_axis(logits, -1, true)?;
        let largest = indexing::take_along_axis(logits, &tokens, -1)?;
        Ok(Self { tokens: tokens.squeeze_axes(&[1])?, largest: largest.squeeze_axes(&[1])? })
    }

    /// What has to be computed.
    pub(super) fn arrays(&self) -> [&Array; 2] {
        [&self.tokens, &self.largest]
    }

    /// The tokens when they are computed; nothing where the logits are no numbers.
    pub(super) fn read(&self) -> Result<Vec<Option<u32>>> {
        mlx_rs::transforms::eval(self.arrays())?;
        let unreadable = |error| MlxError::Unsupported(format!("sampled tokens cannot be read: {error}"));
        let tokens = self.tokens.to_vec_exact::<u32>().map_err(unreadable)?;
        let largest = self.largest.to_vec_exact::<f32>().map_err(unreadable)?;
        Ok(tokens.into_iter().zip(largest).map(|(token, logit)| logit.is_finite().then_some(token)).collect())
    }
}

/// Chooses a token for each row of `(R, vocabulary)` logits.
pub(super) fn choose(ops: &Ops, logits: &Array, choices: &[Choice<'_>], _inputs: &Array) -> Result<Chosen> {
    let tokens = choices
        .iter()
        .enumerate()
        .map(|(row, choice)| choose_one(ops, &sys::slice_axis(logits, 0, row, row + 1)?, choice))
        .collect::<Result<Vec<_>>>()?;
    Ok(Chosen { tokens: ops::concatenate(&tokens, 0)?, largest: logits.max_axis(-1, false)? })
}

/// Chooses from one row, `(1, vocabulary)`: `(1,)`.
fn choose_one(ops: &Ops, logits: &Array, choice: &Choice<'_>) -> Result<Array> {
    let params = &choice.choice.sampling;
    if params.is_greedy() {
        return Ok(indexing::argmax_axis(logits, -1, false)?);
    }
    let random = Array::from_f32(uniform(params.key, choice.position as u64));
    // Less than the largest first: divided by a tiny temperature, several would be infinite and so alike.
    let largest = logits.max_axis(-1, true)?;
    let temperature = Array::from_f32(params.temperature.max(f32::MIN_POSITIVE));
    let scaled = logits.subtract(largest)?.divide(temperature)?;
    let unfiltered = params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0;
    if unfiltered {
        let weights = ops.softmax_last(&scaled)?;
        return pick(&weights, &random);
    }
    let order = ops::argsort_axis(scaled.negative()?, -1)?;
    let weights = ops.softmax_last(&indexing::take_along_axis(&scaled, &order, -1)?)?;
    let weights = filter(&weights, params)?;
    let rank = pick(&weights, &random)?;
    Ok(indexing::take_along_axis(&order, rank.expand_dims(1)?, -1)?.squeeze_axes(&[1])?)
}

/// Zeroes what the filters drop of probabilities in falling order, `(1, vocabulary)`.
fn filter(weights: &Array, params: &SamplingParams) -> Result<Array> {
    let mut weights = weights.clone();
    let keep = |weights: &Array, kept: Array| -> Result<Array> {
        Ok(weights.multiply(kept.as_dtype(Dtype::Float32)?)?)
    };
    if params.top_k > 0 {
        let ranks = ops::arange::<_, i32>(None, weights.dim(-1), None)?;
        let limit = i32::try_from(params.top_k).unwrap_or(i32::MAX);
        weights = keep(&weights, ranks.lt(Array::from_int(limit))?)?;
    }
    if params.top_p < 1.0 {
        // A token stays while those before it have not yet reached top_p.
        let before = weights.cumsum(-1, None, Some(false))?;
        let limit = weights.sum_axis(-1, true)?.multiply(Array::from_f32(params.top_p))?;
        let first = ops::arange::<_, i32>(None, weights.dim(-1), None)?.eq(Array::from_int(0))?;
        weights = keep(&weights, before.lt(limit)?.logical_or(first)?)?;
    }
    if params.min_p > 0.0 {
        let limit = sys::slice_axis(&weights, 1, 0, 1)?.multiply(Array::from_f32(params.min_p))?;
        weights = keep(&weights, weights.ge(limit)?)?;
    }
    Ok(weights)
}

/// Index at which the running total of `(1, n)` weights passes `random` of their sum: `(1,)`.
fn pick(weights: &Array, random: &Array) -> Result<Array> {
    let totals = weights.cumsum(-1, None, None)?;
    let count = weights.dim(-1) as usize;
    let target = sys::slice_axis(&totals, 1, count - 1, count)?.multiply(random)?;
    // The first index whose total lies above the target; argmax takes the first of equals.
    let above = totals.gt(target)?.as_dtype(Dtype::Int32)?;
    Ok(indexing::argmax_axis(&above, -1, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx::device::ComputeDevice;

    fn params(temperature: f32, top_p: f32, top_k: u32, min_p: f32, key: u64) -> SamplingParams {
        SamplingParams { temperature, top_p, top_k, min_p, key }
    }

    fn choice(params: &SamplingParams) -> engine::Choice {
        engine::Choice { sampling: params.clone(), edits: None, report: None }
    }

    fn inputs(num_rows: i32) -> Array {
        Array::from_slice(&vec![0u32; num_rows as usize], &[num_rows])
    }

    /// The token chosen, the same on both kinds of device.
    fn draw(logits: &[f32], params: &SamplingParams, position: usize) -> u32 {
        let row = Array::from_slice(logits, &[1, logits.len() as i32]);
        let [on_cpu, on_gpu] = ComputeDevice::KINDS.map(|device| {
            let chosen =
                choose(&Ops::new(device), &row, &[Choice { choice: &choice(params), position }], &inputs(1))
                    .unwrap();
            chosen.read().unwrap()[0].expect("the logits are numbers")
        });
        assert_eq!(on_cpu, on_gpu, "{params:?}, {position}");
        on_cpu
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(draw(&[0.0, 3.0, -1.0, 3.0], &params(0.0, 1.0, 0, 0.0, 1), 0), 1);
    }

    /// Logits over such a temperature were infinite, and token 0 was taken.
    #[test]
    fn tiny_temperatures_take_what_greedy_takes() {
        let logits = [1.0f32, -30.0, 12.0, 11.999, 8.5, -f32::MAX, 3.0];
        for temperature in [1e-6, 1e-30, 1e-38, f32::MIN_POSITIVE, 1e-40, f32::from_bits(1)] {
            for (top_p, top_k, min_p) in
                [(1.0, 0, 0.0), (0.9, 0, 0.0), (1e-9, 0, 0.0), (1.0, 2, 0.0), (1.0, 0, 1.0), (0.5, 3, 0.1)]
            {
                let params = params(temperature, top_p, top_k, min_p, 9);
                let drawn = (0..20).map(|position| draw(&logits, &params, position));
                assert!(drawn.clone().all(|token| token == 2), "{:?} {params:?}", drawn.collect::<Vec<_>>());
                // All below zero, all equal but one.
                assert_eq!(draw(&[-9.0, -8.0, -9.0], &params, 3), 1, "{params:?}");
            }
        }
    }

    #[test]
    fn samples_follow_the_distribution() {
        let logits = [1.0f32, 0.0, 2.0, -1.0];
        let mut counts = [0usize; 4];
        for position in 0..2000 {
            counts[draw(&logits, &params(1.0, 1.0, 0, 0.0, 42), position) as usize] += 1;
        }
        let sum: f32 = logits.iter().map(|x| x.exp()).sum();
        for (logit, count) in logits.iter().zip(counts) {
            let expected = 2000.0 * logit.exp() / sum;
            assert!((count as f32 - expected).abs() < 4.0 * expected.sqrt() + 1.0, "{counts:?}");
        }
    }

    #[test]
    fn filters_drop_the_unlikely_and_never_the_best() {
        let logits = [0.0f32, 4.0, 3.0, -2.0, 2.5];
        let allowed = |params: SamplingParams| {
            let mut seen: Vec<u32> = (0..300).map(|position| draw(&logits, &params, position)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(allowed(params(1.0, 1.0, 2, 0.0, 7)), [1, 2]);
        assert_eq!(allowed(params(1.0, 0.7, 0, 0.0, 7)), [1, 2]);
        assert_eq!(allowed(params(1.0, 1e-6, 0, 0.0, 7)), [1]);
        assert_eq!(allowed(params(1.0, 1.0, 0, 0.3, 7)), [1, 2]);
        assert_eq!(allowed(params(1.0, 1.0, 1, 1.0, 7)), [1]);
        assert_eq!(allowed(params(5.0, 1.0, 0, 0.0, 7)), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_row_is_chosen_alike_alone_and_among_others() {
        let rows: Vec<f32> = (0..4 * 50).map(|i| (i as f32 * 1.7).sin() * 4.0).collect();
        let all = [
            params(0.8, 0.9, 0, 0.0, 1),
            params(0.0, 1.0, 0, 0.0, 2),
            params(1.0, 1.0, 10, 0.0, 3),
            params(1.3, 1.0, 0, 0.0, 4),
        ];
        let own = all.clone().map(|params| choice(&params));
        let choices: Vec<Choice> = own.iter().map(|choice| Choice { choice, position: 9 }).collect();
        let alone: Vec<Option<u32>> =
            (0..4).map(|row| Some(draw(&rows[row * 50..(row + 1) * 50], &all[row], 9))).collect();
        for ops in ComputeDevice::KINDS.map(Ops::new) {
            let batch = choose(&ops, &Array::from_slice(&rows, &[4, 50]), &choices, &inputs(4)).unwrap();
            assert_eq!(batch.read().unwrap(), alone);
        }
    }

    #[test]
    fn nothing_is_chosen_among_what_is_no_number() {
        let rows = [[1.0, 2.0, 0.5], [f32::NAN; 3], [3.0, f32::INFINITY, 0.0], [f32::NEG_INFINITY; 3]];
        let logits = Array::from_slice(rows.as_flattened(), &[4, 3]);
        for params in [params(0.0, 1.0, 0, 0.0, 1), params(1.0, 1.0, 0, 0.0, 1), params(1.0, 0.9, 2, 0.0, 1)]
        {
            let own = choice(&params);
            let choices = vec![Choice { choice: &own, position: 2 }; 4];
            for ops in ComputeDevice::KINDS.map(Ops::new) {
                let chosen = choose(&ops, &logits, &choices, &inputs(4)).unwrap().read().unwrap();
                let of_numbers: Vec<bool> = chosen.iter().map(Option::is_some).collect();
                assert_eq!(of_numbers, [true, false, false, false], "{chosen:?} {params:?} {ops:?}");
            }
        }
    }
}
