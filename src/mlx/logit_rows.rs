//! Rows of logits on the host: which token is chosen, how probable tokens are.
//!
//! Owns these loops over slices. MLX's CPU backend makes a pass over memory for each operation, some of them
//! slow ones, on one core; where the memory is not the host's, `sampler` and `reports` do the same by
//! operations for all rows.

use std::sync::atomic::{AtomicUsize, Ordering};

use mlx_rs::Array;

use super::error::{MlxError, Result};
use super::fused::{MIN_EXPONENT, NOTHING_SEEN, exp2_in_range, max_of, sum_of_weights};
use super::sys::{NUM_LANES, on_team, with_wide_vectors};
use crate::engine::{SamplingParams, TokenReport};
use crate::guide::TokenSet;

/// Logits from which on several threads look at them.
const MIN_SHARED_LOGITS: usize = 1 << 16;

/// Logits among which the largest is looked for at once.
const SEARCHED_TOGETHER: usize = 16 * NUM_LANES;

/// How far the search for the tokens that make up a probability widens each time.
const WIDENING: f32 = 16.0;

/// Does something with each row of `(R, vocabulary)` logits, float32, which are computed first.
pub(super) fn of_each<T: Send>(logits: &Array, work: impl Fn(usize, &[f32]) -> T + Sync) -> Result<Vec<T>> {
    let (num_rows, num_columns) = (logits.dim(0) as usize, logits.dim(-1) as usize);
    let logits = logits.contiguous()?;
    logits.eval()?;
    let all = logits
        .try_as_slice::<f32>()
        .map_err(|error| MlxError::Unsupported(format!("logits cannot be read: {error}")))?;
    let max_threads = if all.len() < MIN_SHARED_LOGITS { 1 } else { num_rows };
    let next = AtomicUsize::new(0);
    let of_thread = on_team(max_threads, || {
        let mut made = Vec::new();
        loop {
            let row = next.fetch_add(1, Ordering::Relaxed);
            if row >= num_rows {
                return made;
            }
            made.push((row, work(row, &all[row * num_columns..][..num_columns])));
        }
    });
    let mut made: Vec<_> = of_thread.into_iter().flatten().collect();
    made.sort_unstable_by_key(|(row, _)| *row);
    Ok(made.into_iter().map(|(_, made)| made).collect())
}

/// The first of the largest logits, with its token; no number where one of them is none.
pub(super) fn best(logits: &[f32]) -> (u32, f32) {
    let (seen, num_none) = with_wide_vectors(|| (max_of(logits), num_none(logits)));
    if num_none > 0.0 {
        return (0, f32::NAN);
    }
    let largest =
        if seen > NOTHING_SEEN { seen } else { logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) };
    let is_in = |block: &[f32]| block.iter().fold(false, |found, logit| found | (*logit == largest));
    let mut blocks = logits.chunks(SEARCHED_TOGETHER).enumerate();
    let block = with_wide_vectors(|| blocks.find(|(_, block)| is_in(block)));
    let place = block.and_then(|(index, block)| {
        Some(index * SEARCHED_TOGETHER + block.iter().position(|logit| *logit == largest)?)
    });
    (place.unwrap_or_default() as u32, largest)
}

/// The token chosen by these parameters and a random number in [0, 1); `None` where the logits are no
/// numbers.
pub(super) fn choose(logits: &[f32], params: &SamplingParams, random: f32) -> Option<u32> {
    if params.is_greedy() {
        let (token, logit) = best(logits);
        return logit.is_finite().then_some(token);
    }
    let weights = weights(logits, params.temperature)?;
    let least = least_weight(&weights, params);
    let kept = |weight: f32| if weight >= least { f64::from(weight) } else { 0.0 };
    let target = f64::from(random) * weights.iter().copied().map(kept).sum::<f64>();
    let mut total = 0.0;
    let mut last = None;
    for (token, &weight) in (0..).zip(&weights) {
        if kept(weight) > 0.0 {
            total += kept(weight);
            last = Some(token);
            if total > target {
                break;
            }
        }
    }
    last
}

/// The same among allowed tokens only.
pub(super) fn choose_allowed(
    logits: &[f32],
    allowed: &TokenSet,
    params: &SamplingParams,
    random: f32,
) -> Option<u32> {
    if params.is_greedy() {
        let known = allowed.iter().take_while(|token| (*token as usize) < logits.len());
        let best = known.fold(None, |best: Option<(u32, f32)>, token| {
            let logit = logits[token as usize];
            if best.is_none_or(|(_, other)| logit > other) { Some((token, logit)) } else { best }
        });
        return best.filter(|(_, logit)| logit.is_finite() && are_numbers(logits)).map(|(token, _)| token);
    }
    let mut only = vec![f32::NEG_INFINITY; logits.len()];
    for token in allowed.iter().take_while(|token| (*token as usize) < logits.len()) {
        only[token as usize] = logits[token as usize];
    }
    choose(&only, params, random).filter(|_| are_numbers(logits))
}

fn are_numbers(logits: &[f32]) -> bool {
    let (max, num_none) = with_wide_vectors(|| (max_of(logits), num_none(logits)));
    max > NOTHING_SEEN && max.is_finite() && num_none == 0.0
}

/// How many of them are no numbers.
#[inline(always)]
fn num_none(logits: &[f32]) -> f32 {
    logits.iter().fold(0.0, |sum, logit| sum + if logit.is_nan() { 1.0 } else { 0.0 })
}

/// Probabilities at a temperature, but for a factor: the largest is 1. `None` where there are none.
fn weights(logits: &[f32], temperature: f32) -> Option<Vec<f32>> {
    // Less than the largest first: divided by a tiny temperature, several would be infinite and so alike.
    let max = max_of(logits);
    let temperature = temperature.max(f32::MIN_POSITIVE);
    let mut weights = logits.to_vec();
    with_wide_vectors(|| {
        for weight in &mut weights {
            let exponent = (*weight - max) / temperature * std::f32::consts::LOG2_E;
            let power = exp2_in_range(if exponent < MIN_EXPONENT { MIN_EXPONENT } else { exponent });
            *weight = if exponent < MIN_EXPONENT { 0.0 } else { power };
        }
    });
    let is_number = max > NOTHING_SEEN && weights.iter().sum::<f32>().is_finite();
    is_number.then_some(weights)
}

/// The least weight that the filters keep; whatever is as probable stays too.
fn least_weight(weights: &[f32], params: &SamplingParams) -> f32 {
    let mut least: f32 = 0.0;
    let top_k = params.top_k as usize;
    if (1..weights.len()).contains(&top_k) {
        let mut falling = weights.to_vec();
        let (_, kth, _) = falling.select_nth_unstable_by(top_k - 1, |left, right| right.total_cmp(left));
        least = *kth;
    }
    if params.top_p < 1.0 {
        least = least.max(least_of_mass(weights, least, params.top_p));
    }
    // The largest is 1.
    least.max(params.min_p.min(1.0))
}

/// The least of the largest weights, those from `least` on alone, that are needed to make up a share of them.
fn least_of_mass(weights: &[f32], least: f32, share: f32) -> f32 {
    let sum_from = |least: f32| -> f64 {
        weights.iter().map(|&weight| if weight >= least { f64::from(weight) } else { 0.0 }).sum()
    };
    let limit = sum_from(least) * f64::from(share);
    let mut cut = 1.0 / WIDENING;
    while cut > least.max(f32::MIN_POSITIVE) && sum_from(cut) < limit {
        cut /= WIDENING;
    }
    let cut = cut.max(least);
    let mut falling: Vec<f32> = weights.iter().copied().filter(|weight| *weight >= cut).collect();
    falling.sort_unstable_by(|left, right| right.total_cmp(left));
    let mut sum = 0.0;
    for &weight in &falling {
        sum += f64::from(weight);
        if sum >= limit {
            return weight;
        }
    }
    least
}

/// Log-probability and rank of a token, and the most probable ones; `None` where the logits are no numbers.
pub(super) fn report(logits: &[f32], token: u32, num_top: usize) -> Option<TokenReport> {
    let chosen = *logits.get(token as usize)?;
    let (max, sum, num_above) = with_wide_vectors(|| {
        let max = max_of(logits);
        let num_above = logits.iter().map(|logit| u32::from(*logit > chosen)).sum::<u32>();
        (max, sum_of_weights(logits, max), num_above)
    });
    if max <= NOTHING_SEEN || !sum.is_finite() || !chosen.is_finite() {
        return None;
    }
    let log_probability = |logit: f32| (f64::from(logit) - f64::from(max) - sum.ln()) as f32;
    let top = largest(logits, num_top).into_iter();
    Some(TokenReport {
        token,
        log_probability: log_probability(chosen),
        rank: num_above + 1,
        top: top.map(|(token, logit)| (token, log_probability(logit))).collect(),
    })
}

/// The largest numbers with their places, those first; among equals the first.
fn largest(numbers: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(numbers.len());
    let mut found: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return found;
    }
    for (chunk_index, chunk) in numbers.chunks(NUM_LANES).enumerate() {
        let least = if found.len() == count { found[count - 1].1 } else { f32::NEG_INFINITY };
        if found.len() == count && chunk.iter().all(|number| *number <= least) {
            continue;
        }
        for (place, &number) in chunk.iter().enumerate() {
            let behind = found.partition_point(|(_, other)| *other >= number);
            if behind < count {
                found.insert(behind, ((chunk_index * NUM_LANES + place) as u32, number));
                found.truncate(count);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|index| ((index as f32 * 0.713).sin() * 9.0).round() * 0.5).collect()
    }

    #[test]
    fn the_best_is_the_first_of_the_largest_wherever_it_is() {
        for len in [1, 2, 15, 16, 17, SEARCHED_TOGETHER - 1, SEARCHED_TOGETHER, 5 * SEARCHED_TOGETHER + 3] {
            for at in [0, 1, 16, SEARCHED_TOGETHER, len / 2, len - 1].into_iter().filter(|at| *at < len) {
                let mut logits = row(len);
                logits[at..].iter_mut().step_by(7).for_each(|logit| *logit = 50.0);
                assert_eq!(best(&logits), (at as u32, 50.0), "{len}");
                logits.iter_mut().for_each(|logit| *logit -= 4e30);
                assert_eq!(best(&logits).0, 0, "all alike: {len}");
                logits.fill(f32::NEG_INFINITY);
                assert_eq!(best(&logits), (0, f32::NEG_INFINITY));
                logits[at] = f32::MIN;
                assert_eq!(best(&logits), (at as u32, f32::MIN));
                logits[at] = f32::NAN;
                assert!(best(&logits).1.is_nan(), "{len} {at}");
                logits[at] = f32::INFINITY;
                assert_eq!(best(&logits), (at as u32, f32::INFINITY));
            }
        }
    }

    #[test]
    fn a_report_is_as_in_double_precision() {
        for len in [1, 2, 15, 16, 17, 300, 5000] {
            let logits = row(len);
            let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            for token in [0, len / 2, len - 1] {
                let report = report(&logits, token as u32, 7).unwrap();
                let expected = |token: usize| f64::from(logits[token]) - sum.ln();
                assert!((f64::from(report.log_probability) - expected(token)).abs() < 1e-5);
                let num_above = logits.iter().filter(|logit| **logit > logits[token]).count();
                assert_eq!(report.rank as usize, num_above + 1);
                assert_eq!(report.top.len(), len.min(7));
                for ((found, log_probability), &token) in report.top.iter().zip(&order) {
                    assert_eq!(*found as usize, token, "{len}");
                    assert!((f64::from(*log_probability) - expected(token)).abs() < 1e-5);
                }
            }
        }
    }

    /// Of a large vocabulary, most of which is hardly probable; 3e-5 were missing at each token, and a thousandth at
    /// a continuation of some dozens.
    #[test]
    fn the_least_probable_tokens_count() {
        let mut logits: Vec<f32> = (0..49_152).map(|index| -17.0 + (index as f32 * 0.37).sin()).collect();
        logits[3] = 0.5;
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let found = report(&logits, 3, 1).unwrap().log_probability;
        assert!((f64::from(found) - (0.5 - sum.ln())).abs() < 1e-6, "{found}");
    }

    #[test]
    fn nothing_is_reported_of_what_is_no_number() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = row(100);
            logits[40] = bad;
            assert_eq!(report(&logits, 3, 2), None);
        }
        assert_eq!(report(&[f32::NEG_INFINITY; 20], 3, 2), None);
        assert_eq!(report(&row(10), 10, 0), None, "outside the vocabulary");
    }
}
