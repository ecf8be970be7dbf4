//! Norms and rotations of rows in one pass over the numbers, for the CPU.
//!
//! Owns these loops over slices. MLX's CPU backend makes nine operations of a norm and eleven of a rotation, each of
//! which is handed to another thread and goes through memory. Which arrays they are for is `norm`'s and `rope`'s
//! business.

use super::sys::{Instructions, NUM_LANES, WideWork, do_with_wide_vectors};

/// So many of them are added up in float32 before they join what is added up in float64.
const SUMMED_CHUNKS: usize = 16;

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// The root of the mean of the squares.
    RootMeanSquare,
    /// The standard deviation; the mean is taken off first.
    Deviation,
}

/// Norms each row of `width` numbers of `rows` into `normed`: divided by its spread, to whose square `eps` is added,
/// and multiplied by `factors`, `(width,)`.
pub(super) fn norm_rows(
    rows: &[f32],
    width: usize,
    (spread, eps): (Spread, f32),
    factors: Option<&[f32]>,
    normed: &mut [f32],
) {
    do_with_wide_vectors(NormRows { rows, width, spread, eps, factors, normed });
}

struct NormRows<'a> {
    rows: &'a [f32],
    width: usize,
    spread: Spread,
    eps: f32,
    factors: Option<&'a [f32]>,
    normed: &'a mut [f32],
}

impl WideWork for NormRows<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let width = self.width.max(1);
        for (row, normed) in self.rows.chunks_exact(width).zip(self.normed.chunks_exact_mut(width)) {
            let mean = match self.spread {
                Spread::RootMeanSquare => 0.0,
                Spread::Deviation => (sum_of(row, |x| x) / width as f64) as f32,
            };
            let mean_square = sum_of(row, |x| (x - mean) * (x - mean)) / width as f64;
            let scale = 1.0 / (mean_square as f32 + self.eps).sqrt();
            match self.factors {
                Some(factors) => {
                    for ((normed, x), factor) in normed.iter_mut().zip(row).zip(factors) {
                        *normed = (x - mean) * scale * factor;
                    }
                }
                None => normed.iter_mut().zip(row).for_each(|(normed, x)| *normed = (x - mean) * scale),
            }
        }
    }
}

/// Sum of what is made of each number: its rounding does not grow with their count.
#[inline(always)]
fn sum_of(numbers: &[f32], term: impl Fn(f32) -> f32) -> f64 {
    let mut sum = 0.0;
    for block in numbers.chunks(SUMMED_CHUNKS * NUM_LANES) {
        let (chunks, rest) = block.as_chunks::<NUM_LANES>();
        let mut lanes = [0.0_f32; NUM_LANES];
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += term(*x);
            }
        }
        let lanes: f32 = lanes.iter().sum();
        let rest: f32 = rest.iter().map(|x| term(*x)).sum();
        sum += f64::from(lanes + rest);
    }
    sum
}

/// How heads are rotated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotation {
    pub num_heads: usize,
    pub head_dim: usize,
    /// Numbers of a head that are rotated, from its first on.
    pub dims: usize,
    /// Whether neighbours are a pair; otherwise each number of the first half is one with its like in the second.
    pub interleaved: bool,
}

/// Rotates heads `(T, H, D)` into `rotated`, each token by its cosines and sines, `(T, dims / 2)` each.
pub(super) fn rotate_heads(
    heads: &[f32],
    rotation: Rotation,
    (cosines, sines): (&[f32], &[f32]),
    rotated: &mut [f32],
) {
    do_with_wide_vectors(RotateHeads { heads, rotation, cosines, sines, rotated });
}

struct RotateHeads<'a> {
    heads: &'a [f32],
    rotation: Rotation,
    cosines: &'a [f32],
    sines: &'a [f32],
    rotated: &'a mut [f32],
}

impl WideWork for RotateHeads<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Rotation { num_heads, head_dim, dims, interleaved } = self.rotation;
        let half = dims / 2;
        let width = (num_heads * head_dim).max(1);
        let tokens = self.heads.chunks_exact(width).zip(self.rotated.chunks_exact_mut(width));
        let turns = self.cosines.chunks_exact(half.max(1)).zip(self.sines.chunks_exact(half.max(1)));
        for ((heads, rotated), (cosines, sines)) in tokens.zip(turns) {
            for (head, rotated) in heads.chunks_exact(head_dim).zip(rotated.chunks_exact_mut(head_dim)) {
                rotated[dims..].copy_from_slice(&head[dims..]);
                let turns = cosines.iter().zip(sines);
                if interleaved {
                    let pairs = head[..dims].as_chunks::<2>().0.iter();
                    for (([first, second], rotated), (cos, sin)) in
                        pairs.zip(rotated[..dims].as_chunks_mut::<2>().0).zip(turns)
                    {
                        *rotated = [first * cos - second * sin, first * sin + second * cos];
                    }
                } else {
                    let pairs = head[..half].iter().zip(&head[half..dims]);
                    let (rotated_first, rotated_second) = rotated[..dims].split_at_mut(half);
                    let rotated = rotated_first.iter_mut().zip(rotated_second);
                    for (((first, second), rotated), (cos, sin)) in pairs.zip(rotated).zip(turns) {
                        *rotated.0 = first * cos - second * sin;
                        *rotated.1 = first * sin + second * cos;
                    }
                }
            }
        }
    }
}
