//! What the decays of a block's tokens come to in the gated delta rule.
//!
//! Owns the products of keys and queries with keys that have faded since they were written, where a head decays as a
//! whole and where each dimension of its keys does. What is made of them is `delta_rule`'s.

use mlx_rs::Array;

use super::blocks::{Decays, mask};
use crate::mlx::{error::Result, ops::Ops, sys};

/// Γᵢ being the product of a block's decays up to token i, of each head or of each dimension of its keys.
#[derive(Debug)]
pub(super) struct DeltaDecays {
    /// Γ, `(…, size, D_g)`.
    pub products: Array,
    /// Γ of the last token over that of each, `(…, size, D_g)`.
    pub to_end: Array,
    /// Γ of the last token, `(…, D_g, 1)`.
    pub totals: Array,
    between: Between,
}

/// What stands between tokens.
#[derive(Debug)]
enum Between {
    /// Γᵢ/Γⱼ of heads, `(…, size, size)`.
    Heads(Array),
    Dimensions(Vec<Level>),
}

/// Fading between the halves of pairs of runs: from each token of a first half to the end of it, and from there to
/// each token of the second.
#[derive(Debug)]
struct Level {
    /// Tokens of a half.
    half: i32,
    /// `(…, size, D_g)`.
    factors: Array,
}

impl DeltaDecays {
    /// Of logarithms `(…, size, D_g)`, at most 0; `size` is a power of two.
    pub(super) fn of(ops: &Ops, log_decays: &Array, size: i32) -> Result<Self> {
        if log_decays.dim(-1) == 1 {
            let Decays { products, ratios, to_end, totals } = Decays::of(ops, log_decays, size)?;
            return Ok(Self { products, to_end, totals, between: Between::Heads(ratios) });
        }
        let tokens = log_decays.ndim() as i32 - 2;
        let products = ops.exp_nonpositive(&log_decays.cumsum(tokens, None, None)?)?;
        let to_end = ops.exp_nonpositive(&log_decays.cumsum(tokens, true, false)?)?;
        let last = sys::slice_axis(&products, tokens as usize, size as usize - 1, size as usize)?;
        let halves = std::iter::successors(Some(1), |half| Some(2 * half)).take_while(|half| *half < size);
        let levels = halves.map(|half| Level::of(ops, log_decays, half)).collect::<Result<_>>()?;
        Ok(Self {
            totals: last.swap_axes(tokens, tokens + 1)?,
            products,
            to_end,
            between: Between::Dimensions(levels),
        })
    }

    /// Σ_d rᵢ_d · (Γᵢ/Γⱼ)_d · kⱼ_d for j ≤ i, `(…, size, size)`, of rows and keys `(…, size, D_k)`. Elsewhere it is no
    /// number of use, but finite.
    pub(super) fn faded_products(&self, rows: &Array, keys: &Array) -> Result<Array> {
        match &self.between {
            Between::Heads(ratios) => Ok(rows.matmul(keys.swap_axes(-1, -2)?)?.multiply(ratios)?),
            Between::Dimensions(levels) => {
                let size = rows.dim(-2);
                let unfaded = rows.multiply(keys)?.sum_axis(-1, true)?;
                let mut sum = unfaded.multiply(mask(size, |row, column| row == column))?;
                for Level { half, factors } in levels {
                    let keys = keys.multiply(factors)?;
                    let products = rows.multiply(factors)?.matmul(keys.swap_axes(-1, -2)?)?;
                    sum = sum.add(products.multiply(lower_quarters(size, *half))?)?;
                }
                Ok(sum)
            }
        }
    }
}

impl Level {
    /// All exponents are sums of what decays between two tokens: nothing cancels, and no factor is above 1.
    fn of(ops: &Ops, log_decays: &Array, half: i32) -> Result<Self> {
        let shape = log_decays.shape();
        let (outer, [size, width]) = shape.split_at(shape.len() - 2) else {
            unreachable!("tokens and dimensions are the last two axes")
        };
        let in_halves = [outer, &[size / (2 * half), 2, half, *width]].concat();
        let (halves, tokens) = (outer.len() + 1, outer.len() as i32 + 2);
        let in_halves = log_decays.reshape(&in_halves)?;
        let to_end = sys::slice_axis(&in_halves, halves, 0, 1)?.cumsum(tokens, true, false)?;
        let from_start = sys::slice_axis(&in_halves, halves, 1, 2)?.cumsum(tokens, None, None)?;
        let exponents = mlx_rs::ops::concatenate(&[&to_end, &from_start], halves as i32)?;
        Ok(Self { half, factors: ops.exp_nonpositive(&exponents.reshape(shape)?)? })
    }
}

/// 1 where a row is in the second half of a pair of runs and a column in the first of the same, `(size, size)`.
pub(super) fn lower_quarters(size: i32, half: i32) -> Array {
    mask(size, |row, column| {
        row / (2 * half) == column / (2 * half) && row % (2 * half) >= half && column % (2 * half) < half
    })
}
