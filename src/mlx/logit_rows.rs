//! One row of logits on the host: how probable its tokens are.
//!
//! Owns these loops over a slice. MLX's CPU backend makes a pass over memory for each operation, some of them
//! slow ones, on one core; where the memory is the device's own, `reports` does the same by operations.

use super::fused::{NOTHING_SEEN, max_of, sum_of_weights};
use super::sys::with_wide_vectors;
use crate::engine::TokenReport;

/// Numbers that are looked at together.
const NUM_LANES: usize = 16;

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
    let log_sum = max + sum.ln();
    let top = largest(logits, num_top).into_iter();
    Some(TokenReport {
        token,
        log_probability: chosen - log_sum,
        rank: num_above + 1,
        top: top.map(|(token, logit)| (token, logit - log_sum)).collect(),
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
