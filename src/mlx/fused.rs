//! Several elementwise operations in one pass over the numbers, for large arrays on the CPU.
//!
//! Owns these loops over slices. MLX's CPU backend makes a pass over memory for each operation, some
//! twenty for an exponential, on one core. Which arrays they are for is the business of `ops`.

use super::sys::{Instructions, NUM_LANES, WideWork, do_with_wide_vectors, with_wide_vectors};

/// Coefficients of 2^f on [-0.5, 0.5], highest power first (Cephes, `exp2f.c`).
pub(super) const EXP2: [f32; 7] =
    [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0];

/// 1.5·2²³ + 127: added to a float it leaves its rounded value, plus 127, in the low bits.
pub(super) const ROUNDER: f32 = 12_582_912.0 + 127.0;

/// Below any score that is seen, and finite: the maximum of rows that see nothing.
pub(super) const NOTHING_SEEN: f32 = -1e30;

pub(super) const MIN_EXPONENT: f32 = -126.0;

pub(super) const MAX_EXPONENT: f32 = 126.0;

/// 0.044715 of GELU's tanh approximation, and twice √(2/π).
pub(super) const GELU_CUBIC: f32 = 0.044_715;
pub(super) const GELU_SCALE: f32 = 1.595_769;

/// So many of them are added up in float32.
const SUMMED_CHUNKS: usize = 16;

/// 2^x for x from -126 to 126, operation by operation as `Ops::exp2_in_range`.
#[inline(always)]
pub(super) fn exp2_in_range(x: f32) -> f32 {
    let shifted = x + ROUNDER;
    let fraction = x - (shifted - ROUNDER);
    let mut sum = fraction * EXP2[0] + EXP2[1];
    for coefficient in &EXP2[2..] {
        sum = sum * fraction + coefficient;
    }
    sum * f32::from_bits(shifted.to_bits() << 23)
}

/// The larger of two; where one is no number, `right`. So what may be none, and is to be told of, stands
/// on the right.
#[inline(always)]
fn larger(left: f32, right: f32) -> f32 {
    if left > right { left } else { right }
}

/// Puts e^(score - max) in place of the scores of each row, which may come in pieces, one slice each with
/// the same number of rows. Returns the rows' maxima and sums.
pub(super) fn weigh_rows(pieces: &mut [&mut [f32]], num_rows: usize) -> (Vec<f32>, Vec<f32>) {
    let mut maxima = vec![NOTHING_SEEN; num_rows];
    let mut sums = vec![0.0; num_rows];
    do_with_wide_vectors(WeighRows { pieces, maxima: &mut maxima, sums: &mut sums });
    (maxima, sums)
}

struct WeighRows<'a, 'b> {
    pieces: &'a mut [&'b mut [f32]],
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WideWork for WeighRows<'_, '_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let num_rows = self.maxima.len().max(1);
        for (row, (max, sum)) in self.maxima.iter_mut().zip(self.sums).enumerate() {
            for piece in self.pieces.iter() {
                let width = piece.len() / num_rows;
                *max = larger(max_of(&piece[row * width..][..width]), *max);
            }
            for piece in self.pieces.iter_mut() {
                let width = piece.len() / num_rows;
                *sum += weigh(&mut piece[row * width..][..width], *max);
            }
        }
    }
}

/// The largest of some scores, or [`NOTHING_SEEN`].
#[inline(always)]
pub(super) fn max_of(scores: &[f32]) -> f32 {
    let (chunks, rest) = scores.as_chunks::<NUM_LANES>();
    let mut lanes = [NOTHING_SEEN; NUM_LANES];
    for chunk in chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*score, *lane);
        }
    }
    lanes.iter().chain(rest).copied().fold(NOTHING_SEEN, larger)
}

/// e^(score - max), where no score lies above `max`; far below it the result is tiny rather than 0.
#[inline(always)]
pub(super) fn weight_of(score: f32, max: f32) -> f32 {
    exp2_in_range(larger(MIN_EXPONENT, (score - max) * std::f32::consts::LOG2_E))
}

/// Sum of e^(score - max) over all scores, of which most may be tiny beside the largest: what is added up in float32
/// is so little that none of them is lost.
#[inline(always)]
pub(super) fn sum_of_weights(scores: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    for block in scores.chunks(SUMMED_CHUNKS * NUM_LANES) {
        let (chunks, rest) = block.as_chunks::<NUM_LANES>();
        let mut lanes = [0.0_f32; NUM_LANES];
        for chunk in chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane += weight_of(*score, max);
            }
        }
        sum += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        sum += rest.iter().map(|score| f64::from(weight_of(*score, max))).sum::<f64>();
    }
    sum
}

/// Puts e^(score - max) in place of each score and returns their sum.
#[inline(always)]
pub(super) fn weigh(scores: &mut [f32], max: f32) -> f32 {
    let (chunks, rest) = scores.as_chunks_mut::<NUM_LANES>();
    let mut lanes = [0.0; NUM_LANES];
    for chunk in chunks {
        for (lane, score) in lanes.iter_mut().zip(chunk) {
            *score = weight_of(*score, max);
            *lane += *score;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for score in rest {
        *score = weight_of(*score, max);
        sum += *score;
    }
    sum
}

/// Puts x · sigmoid(x) · up in place of each x.
pub(super) fn gate_with_silu(gate: &mut [f32], up: &[f32]) {
    gate_with(gate, up, |x| x);
}

/// Puts x · sigmoid(2·√(2/π)·(x + 0.044715·x³)) · up in place of each x: GELU's tanh approximation.
pub(super) fn gate_with_gelu(gate: &mut [f32], up: &[f32]) {
    gate_with(gate, up, |x| (x * x * GELU_CUBIC + 1.0) * x * GELU_SCALE);
}

/// Puts max(x, 0) · up in place of each x.
pub(super) fn gate_with_relu(gate: &mut [f32], up: &[f32]) {
    with_wide_vectors(|| {
        for (x, up) in gate.iter_mut().zip(up) {
            *x = if *x < 0.0 { 0.0 } else { *x } * up;
        }
    });
}

/// Puts x · sigmoid(sharpness · x) · (up + 1) in place of each x, after x is cut above at `limit` and `up` to
/// `±limit`: gpt-oss's (its `swiglu`).
pub(super) fn gate_with_clamped_silu(gate: &mut [f32], up: &mut [f32], limit: f32, sharpness: f32) {
    with_wide_vectors(|| {
        for (x, up) in gate.iter_mut().zip(up.iter_mut()) {
            // What is no number stays none.
            *x = if *x > limit { limit } else { *x };
            *up = if *up > limit { limit } else { *up };
            *up = if *up < -limit { -limit } else { *up } + 1.0;
        }
    });
    gate_with(gate, up, |x| sharpness * x);
}

#[inline(always)]
fn gate_with(gate: &mut [f32], up: &[f32], inner: impl Fn(f32) -> f32) {
    with_wide_vectors(|| {
        for (x, up) in gate.iter_mut().zip(up) {
            let exponent = larger(MIN_EXPONENT, inner(*x) * -std::f32::consts::LOG2_E);
            let exponent = if exponent > MAX_EXPONENT { MAX_EXPONENT } else { exponent };
            *x = *x / (1.0 + exp2_in_range(exponent)) * up;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * 0.713).sin() * scale).collect()
    }

    #[test]
    fn rows_in_pieces_are_weighed_as_in_double_precision() {
        for widths in [vec![1], vec![16], vec![300], vec![7, 40, 1], vec![64, 33]] {
            let num_rows = 5;
            let mut scores: Vec<Vec<f32>> = widths
                .iter()
                .enumerate()
                .map(|(at, width)| numbers(width * num_rows, 20.0 + at as f32))
                .collect();
            // The second row sees only the last key, the third nothing.
            for (piece, width) in scores.iter_mut().zip(&widths) {
                piece[*width..3 * width].fill(f32::NEG_INFINITY);
            }
            let last = scores.last_mut().unwrap();
            let width = widths.last().unwrap();
            last[2 * width - 1] = 3.0;
            let given = scores.clone();
            let mut pieces: Vec<&mut [f32]> = scores.iter_mut().map(Vec::as_mut_slice).collect();
            let (maxima, sums) = weigh_rows(&mut pieces, num_rows);
            assert_eq!((maxima[1], maxima[2]), (3.0, NOTHING_SEEN));
            for row in 0..num_rows {
                let of_row = |pieces: &[Vec<f32>]| -> Vec<f32> {
                    let rows =
                        pieces.iter().zip(&widths).map(|(piece, width)| &piece[row * width..][..*width]);
                    rows.flatten().copied().collect()
                };
                let max = of_row(&given).into_iter().fold(NOTHING_SEEN, f32::max);
                assert_eq!(maxima[row], max);
                let expected: Vec<f64> =
                    of_row(&given).iter().map(|score| f64::from(score - max).exp()).collect();
                for (weight, expected) in of_row(&scores).iter().zip(&expected) {
                    let difference = (f64::from(*weight) - expected).abs();
                    // e^-20 and less: the argument itself is rounded.
                    assert!(difference <= 4e-6 * expected + 1e-30, "{weight} {expected}");
                }
                let sum: f64 = expected.iter().sum();
                assert!((f64::from(sums[row]) - sum).abs() <= 1e-6 * sum + 1e-30, "{} {sum}", sums[row]);
            }
        }
    }

    #[test]
    fn what_is_no_number_is_not_made_one() {
        // As the softmax's arguments are held above a limit, a score that was no number became one.
        for (bad, at) in [(f32::NAN, 3), (f32::NAN, 40), (f32::INFINITY, 3), (f32::INFINITY, 40)] {
            let mut scores = numbers(3 * 41, 5.0);
            scores[41 + at] = bad;
            let (_, sums) = weigh_rows(&mut [&mut scores], 3);
            assert_eq!(sums.iter().map(|sum| sum.is_nan()).collect::<Vec<_>>(), [false, true, false]);
        }
        let mut gate = [1.0, f32::NAN, 2.0];
        gate_with_silu(&mut gate, &[1.0; 3]);
        assert_eq!(gate.map(f32::is_nan), [false, true, false]);
    }

    #[test]
    fn gates_are_as_in_double_precision_and_finite_everywhere() {
        let mut gate = numbers(1000, 30.0);
        gate.extend([-1e30, -500.0, -0.0, 0.0, 500.0, 1e30]);
        let up = numbers(gate.len(), 2.0);
        type GateWith = fn(&mut [f32], &[f32]);
        type Inner = fn(f64) -> f64;
        let gates: [(GateWith, Inner); 2] = [
            (gate_with_silu, |x| x),
            (gate_with_gelu, |x| (8.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))),
        ];
        for (gate_with, inner) in gates {
            let mut gated = gate.clone();
            gate_with(&mut gated, &up);
            for ((found, x), up) in gated.iter().zip(&gate).zip(&up) {
                let (x, up) = (f64::from(*x), f64::from(*up));
                let expected = x / (1.0 + (-inner(x)).exp()) * up;
                assert!(found.is_finite(), "{x}");
                if x.abs() < 1e3 {
                    let difference = (f64::from(*found) - expected).abs();
                    assert!(difference <= 4e-6 * expected.abs() + 1e-6, "{x}: {found} {expected}");
                }
            }
        }
    }
}
