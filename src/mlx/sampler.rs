//! Logits → tokens.
//!
//! Owns greedy choice and sampling, by one chain of operations for all rows or on the host. Each row is chosen by its own parameters and
//! its own random number alone, so an answer does not depend on what else is in the batch. The
//! numbers come from `engine::uniform`.

use mlx_rs::{Array, Dtype, ops, ops::indexing};

use super::{
    device::ComputeDevice,
    error::{MlxError, Result},
    logit_edits, logit_rows,
    ops::Ops,
    sys,
};
use crate::{
    engine::{self, SamplingParams, uniform},
    guide::TokenSet,
};

/// Below it the most probable token is as good as certain, and logits over it could be infinite.
const MIN_TEMPERATURE: f32 = 1e-9;

/// One row of logits to choose from.
#[derive(Debug, Clone)]
pub(super) struct Choice<'a> {
    pub choice: &'a engine::Choice,
    /// Position that the chosen token will have: the counter of its random number.
    pub position: usize,
    /// The tokens to choose from, where not all are.
    pub allowed: Option<&'a TokenSet>,
}

impl Choice<'_> {
    /// Whether nothing is needed of the row but its most probable token.
    pub(super) fn needs_only_the_best(&self) -> bool {
        let engine::Choice { sampling, edits, report, .. } = self.choice;
        sampling.is_greedy() && edits.is_none() && report.is_none() && self.allowed.is_none()
    }
}

/// A token for each of R rows, and a number there that is finite where the logits are numbers: what is
/// chosen among what is none is no choice.
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

    /// What the host has chosen: a token for each row, and the number that it has been chosen by.
    pub(super) fn of_rows(chosen: Vec<(u32, f32)>) -> Self {
        let num_rows = chosen.len() as i32;
        let (tokens, largest): (Vec<u32>, Vec<f32>) = chosen.into_iter().unzip();
        Self {
            tokens: Array::from_slice(&tokens, &[num_rows]),
            largest: Array::from_slice(&largest, &[num_rows]),
        }
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

/// Chooses a token for each row of `(R, vocabulary)` logits, which `inputs` came before: `(R,)`, uint32.
pub(super) fn choose(ops: &Ops, logits: &Array, choices: &[Choice<'_>], inputs: &Array) -> Result<Chosen> {
    let edits = (0..).zip(choices).filter_map(|(row, choice)| Some((row, choice.choice.edits.as_deref()?)));
    let logits = &logit_edits::apply(logits, &edits.collect::<Vec<_>>(), inputs)?;
    if ops.device() == ComputeDevice::Cpu {
        return on_host(logits, choices);
    }
    let draws: Vec<Draw> = choices.iter().enumerate().filter_map(|(row, choice)| choice.draw(row)).collect();
    let is_guided = choices.iter().any(|choice| choice.allowed.is_some());
    let logits = &if is_guided { allowed_only(logits, choices)? } else { logits.clone() };
    if draws.is_empty() {
        return Chosen::most_probable(logits);
    }
    if draws.len() == choices.len() {
        return drawn(logits, &draws);
    }
    let rows: Vec<i32> = draws.iter().map(|draw| draw.row).collect();
    let rows = Array::from_slice(&rows, &[rows.len() as i32]);
    let (best, drawn) = (Chosen::most_probable(logits)?, drawn(&logits.take_axis(&rows, 0)?, &draws)?);
    Ok(Chosen {
        tokens: best.tokens.put_along_axis(&rows, &drawn.tokens, 0)?,
        largest: best.largest.put_along_axis(&rows, &drawn.largest, 0)?,
    })
}

/// A row that is chosen by a random number.
struct Draw<'a> {
    row: i32,
    params: &'a SamplingParams,
    random: f32,
}

impl Choice<'_> {
    fn random(&self) -> f32 {
        uniform(self.choice.sampling.key, self.position as u64)
    }

    fn draw(&self, row: usize) -> Option<Draw<'_>> {
        let params = &self.choice.sampling;
        (!params.is_greedy()).then(|| Draw { row: row as i32, params, random: self.random() })
    }
}

/// `(R, vocabulary)` logits with negative infinity for tokens that are not allowed.
fn allowed_only(logits: &Array, choices: &[Choice<'_>]) -> Result<Array> {
    let num_columns = logits.dim(-1) as usize;
    let num_words = num_columns.div_ceil(32);
    let mut words: Vec<u32> = Vec::with_capacity(choices.len() * num_words);
    for choice in choices {
        let end = words.len() + num_words;
        match choice.allowed {
            Some(allowed) => words.extend(allowed.words().iter().take(num_words)),
            None => words.resize(end, u32::MAX),
        }
        words.resize(end, 0);
    }
    let words = Array::from_slice(&words, &[choices.len() as i32, num_words as i32, 1]);
    // Each bit of a word in turn becomes its highest.
    let shifts = Array::from_slice(&(0..32).rev().collect::<Vec<u32>>(), &[32]);
    let is_allowed = sys::left_shift(&words, &shifts)?.ge(Array::from_slice(&[1u32 << 31], &[1]))?;
    let is_allowed = is_allowed.reshape(&[choices.len() as i32, num_words as i32 * 32])?;
    let is_allowed = sys::slice_axis(&is_allowed, 1, 0, num_columns)?;
    Ok(ops::select(is_allowed, logits, Array::from_f32(f32::NEG_INFINITY))?)
}

fn on_host(logits: &Array, choices: &[Choice<'_>]) -> Result<Chosen> {
    let tokens = logit_rows::of_each(logits, |row, logits| {
        let choice = &choices[row];
        match choice.allowed {
            None => logit_rows::choose(logits, &choice.choice.sampling, choice.random()),
            Some(allowed) => {
                logit_rows::choose_allowed(logits, allowed, &choice.choice.sampling, choice.random())
            }
        }
    })?;
    Ok(Chosen::of_rows(
        tokens.into_iter().map(|token| token.map_or((0, f32::NAN), |token| (token, 0.0))).collect(),
    ))
}

/// Draws a token for each row of `(S, vocabulary)` logits, by as many operations for many rows as for one.
///
/// A filter keeps what is at least as probable as the last token that it has room for, so all of them
/// together are one least probability, and tokens are drawn in the order of the vocabulary whether there
/// are filters or not.
fn drawn(logits: &Array, draws: &[Draw<'_>]) -> Result<Chosen> {
    let num_columns = logits.dim(-1) as usize;
    let temperatures = column(draws, |draw| draw.params.temperature.max(MIN_TEMPERATURE));
    let mut weights = ops::softmax_axis(logits.divide(temperatures)?, -1, true)?;
    if num_columns > 1 && draws.iter().any(Draw::is_filtered) {
        let least = least_weights(&weights, draws)?;
        // What is no number is not less than anything, and stays to be found.
        weights = ops::select(weights.lt(least)?, Array::from_f32(0.0), &weights)?;
    }
    let totals = weights.cumsum(-1, None, None)?;
    let total = sys::slice_axis(&totals, 1, num_columns - 1, num_columns)?;
    // The first token whose total lies above the target has as many before it as do not.
    let target = total.multiply(column(draws, |draw| draw.random))?;
    let tokens = totals.le(&target)?.sum_axis(-1, false)?;
    // The target is a number where the probabilities are.
    Ok(Chosen { tokens: tokens.view_dtype(Dtype::Uint32)?, largest: target.squeeze_axes(&[1])? })
}

/// A number of each draw, `(S, 1)`.
fn column(draws: &[Draw<'_>], of: impl Fn(&Draw<'_>) -> f32) -> Array {
    let numbers: Vec<f32> = draws.iter().map(of).collect();
    Array::from_slice(&numbers, &[draws.len() as i32, 1])
}

/// The least of `(S, vocabulary)` probabilities that the filters keep, `(S, 1)`.
fn least_weights(weights: &Array, draws: &[Draw<'_>]) -> Result<Array> {
    let num_columns = weights.dim(-1) as usize;
    let falling = sys::reversed_last_axis(&ops::sort_axis(weights, -1)?)?;
    let totals = falling.cumsum(-1, None, None)?;
    let last_of_k: Vec<u32> = draws.iter().map(|draw| draw.num_kept(num_columns) - 1).collect();
    let last_of_k = Array::from_slice(&last_of_k, &[draws.len() as i32, 1]);
    // Without a limit nothing is dropped, not even what is lost in the total's rounding.
    let shares = column(draws, |draw| match draw.params {
        SamplingParams { top_p, .. } if *top_p < 1.0 => *top_p,
        SamplingParams { top_k, .. } if *top_k > 0 => 1.0,
        _ => f32::INFINITY,
    });
    let limits = indexing::take_along_axis(&totals, &last_of_k, -1)?.multiply(shares)?;
    // A token stays while those before it have not yet reached the limit; the first always does.
    let before = sys::slice_axis(&totals, 1, 0, num_columns - 1)?;
    let others = sys::slice_axis(&falling, 1, 1, num_columns)?;
    let largest = sys::slice_axis(&falling, 1, 0, 1)?;
    let least = ops::select(before.lt(limits)?, others, &largest)?.min_axis(-1, true)?;
    Ok(ops::maximum(least, largest.multiply(column(draws, |draw| draw.params.min_p.min(1.0)))?)?)
}

impl Draw<'_> {
    fn is_filtered(&self) -> bool {
        self.params.top_k > 0 || self.params.top_p < 1.0 || self.params.min_p > 0.0
    }

    /// How many tokens `top_k` keeps.
    fn num_kept(&self, num_columns: usize) -> u32 {
        let num_columns = num_columns as u32;
        if self.params.top_k == 0 { num_columns } else { self.params.top_k.min(num_columns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32, top_p: f32, top_k: u32, min_p: f32, key: u64) -> SamplingParams {
        SamplingParams { temperature, top_p, top_k, min_p, key }
    }

    fn choice(params: &SamplingParams) -> engine::Choice {
        engine::Choice { sampling: params.clone(), edits: None, report: None, is_guided: false }
    }

    fn plain(choice: &engine::Choice, position: usize) -> Choice<'_> {
        Choice { choice, position, allowed: None }
    }

    fn inputs(num_rows: i32) -> Array {
        Array::from_slice(&vec![0u32; num_rows as usize], &[num_rows])
    }

    /// The token chosen, the same on both kinds of device.
    fn draw(logits: &[f32], params: &SamplingParams, position: usize) -> u32 {
        let row = Array::from_slice(logits, &[1, logits.len() as i32]);
        let [on_cpu, on_gpu] = ComputeDevice::KINDS.map(|device| {
            let chosen =
                choose(&Ops::new(device), &row, &[plain(&choice(params), position)], &inputs(1)).unwrap();
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
        let choices: Vec<Choice> = own.iter().map(|choice| plain(choice, 9)).collect();
        let alone: Vec<Option<u32>> =
            (0..4).map(|row| Some(draw(&rows[row * 50..(row + 1) * 50], &all[row], 9))).collect();
        for ops in ComputeDevice::KINDS.map(Ops::new) {
            let batch = choose(&ops, &Array::from_slice(&rows, &[4, 50]), &choices, &inputs(4)).unwrap();
            assert_eq!(batch.read().unwrap(), alone);
        }
    }

    /// Sharp, flat and tied logits under all sorts of parameters: whatever else is in the batch, and on
    /// either kind of device.
    #[test]
    fn many_rows_with_parameters_of_their_own_are_chosen_as_each_alone() {
        let (num_rows, num_columns) = (40, 203);
        let logit = |at: usize| match at / num_columns % 3 {
            0 => ((at as f32 * 0.37).sin() * 12.0).round() / 2.0,
            1 => (at as f32 * 1.7).sin() * 2.0,
            _ => (at as f32 * 0.9).sin() * 9.0,
        };
        let rows: Vec<f32> = (0..num_rows * num_columns).map(logit).collect();
        let all: Vec<engine::Choice> = (0..num_rows)
            .map(|row| {
                let temperature = [0.0, 0.7, 1.0, 1.6, 1e-3][row % 5];
                let (top_p, top_k) = ([1.0, 0.9, 0.3, 0.999][row % 4], [0, 0, 40, 3, 1, 500][row % 6]);
                choice(&params(temperature, top_p, top_k, [0.0, 0.0, 0.05][row % 3], row as u64))
            })
            .collect();
        for position in 0..25 {
            let choices: Vec<Choice> = all.iter().map(|choice| plain(choice, position)).collect();
            let [on_cpu, on_gpu] = ComputeDevice::KINDS.map(|device| {
                let ops = Ops::new(device);
                let logits = Array::from_slice(&rows, &[num_rows as i32, num_columns as i32]);
                let batch =
                    choose(&ops, &logits, &choices, &inputs(num_rows as i32)).unwrap().read().unwrap();
                for row in 0..num_rows {
                    let logits = sys::slice_axis(&logits, 0, row, row + 1).unwrap();
                    let alone = choose(&ops, &logits, &choices[row..=row], &inputs(1)).unwrap();
                    assert_eq!(alone.read().unwrap(), batch[row..=row], "{:?}", all[row]);
                }
                batch
            });
            // A number within rounding of a boundary may fall on either side.
            let num_different = on_cpu.iter().zip(&on_gpu).filter(|(left, right)| left != right).count();
            assert!(num_different <= 1, "{num_different} of {num_rows}");
        }
    }

    #[test]
    fn a_filter_keeps_what_is_as_probable_as_the_last_that_it_keeps() {
        let logits = [1.0f32, 2.0, 1.0, 0.0, 1.0];
        for filtered in [params(1.0, 1.0, 2, 0.0, 5), params(1.0, 0.6, 0, 0.0, 5)] {
            let mut seen: Vec<u32> = (0..200).map(|position| draw(&logits, &filtered, position)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, [0, 1, 2, 4], "{filtered:?}");
        }
    }

    /// Rows with sets of their own beside rows without, sampled and greedy: each as if it had no other tokens.
    #[test]
    fn only_allowed_tokens_are_chosen_as_if_there_were_no_others() {
        let (num_rows, num_columns) = (24, 203);
        let rows: Vec<f32> = (0..num_rows * num_columns).map(|at| (at as f32 * 1.7).sin() * 4.0).collect();
        let sets: Vec<Option<TokenSet>> = (0..num_rows as u32)
            .map(|row| match row % 4 {
                0 => None,
                1 => Some((0..40).map(|token| (token * 37 + row) % 203).collect()),
                2 => Some([row, 202, 500].into_iter().collect()),
                _ => Some((0..203).filter(|token| token % 32 > row % 20).collect()),
            })
            .collect();
        let all: Vec<engine::Choice> = (0..num_rows)
            .map(|row| {
                let temperature = [0.0, 0.0, 0.7, 1.3][row / 4 % 4];
                choice(&params(temperature, [1.0, 0.8][row % 2], [0, 5][row / 2 % 2], 0.0, row as u64))
            })
            .collect();
        let logits = Array::from_slice(&rows, &[num_rows as i32, num_columns as i32]);
        for position in 0..20 {
            let choices: Vec<Choice> = all
                .iter()
                .zip(&sets)
                .map(|(choice, allowed)| Choice { choice, position, allowed: allowed.as_ref() })
                .collect();
            let expected: Vec<Option<u32>> = (0..num_rows)
                .map(|row| {
                    let mut only = rows[row * num_columns..][..num_columns].to_vec();
                    if let Some(allowed) = &sets[row] {
                        let forbidden = (0..).zip(&mut only).filter(|(token, _)| !allowed.contains(*token));
                        forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                    }
                    logit_rows::choose(&only, &all[row].sampling, choices[row].random())
                })
                .collect();
            for ops in ComputeDevice::KINDS.map(Ops::new) {
                let chosen =
                    choose(&ops, &logits, &choices, &inputs(num_rows as i32)).unwrap().read().unwrap();
                // On a GPU a number within rounding of a boundary may fall on either side.
                let num_different =
                    chosen.iter().zip(&expected).filter(|(left, right)| left != right).count();
                let max_different = usize::from(ops.device() == ComputeDevice::Gpu);
                assert!(num_different <= max_different, "{position}, {ops:?}: {chosen:?} {expected:?}");
                let is_allowed = |(token, allowed): (&Option<u32>, &Option<TokenSet>)| {
                    allowed.as_ref().is_none_or(|allowed| allowed.contains(token.expect("numbers")))
                };
                assert!(chosen.iter().zip(&sets).all(is_allowed), "{position}, {ops:?}");
            }
        }
    }

    #[test]
    fn nothing_is_chosen_among_what_is_no_number() {
        let rows = [[1.0, 2.0, 0.5], [f32::NAN; 3], [3.0, f32::INFINITY, 0.0], [f32::NEG_INFINITY; 3]];
        let logits = Array::from_slice(rows.as_flattened(), &[4, 3]);
        for params in [params(0.0, 1.0, 0, 0.0, 1), params(1.0, 1.0, 0, 0.0, 1), params(1.0, 0.9, 2, 0.0, 1)]
        {
            let own = choice(&params);
            let choices = vec![plain(&own, 2); 4];
            for ops in ComputeDevice::KINDS.map(Ops::new) {
                let chosen = choose(&ops, &logits, &choices, &inputs(4)).unwrap().read().unwrap();
                let of_numbers: Vec<bool> = chosen.iter().map(Option::is_some).collect();
                assert_eq!(of_numbers, [true, false, false, false], "{chosen:?} {params:?} {ops:?}");
            }
        }
    }
}
