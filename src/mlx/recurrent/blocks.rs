//! Tokens in blocks, for recurrences that are computed by matrix products.
//!
//! Owns the masks between the tokens of a block, what their decays come to, and the tokens that are missing in
//! the last block. What is made of them is the recurrences' own.

use mlx_rs::{Array, ops};

use crate::mlx::{error::Result, ops::Ops, sys};

/// How many tokens of a sequence are computed together, and how many times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    num_tokens: i32,
    /// Tokens of a block; a power of two.
    pub size: i32,
    pub count: i32,
}

impl Blocks {
    /// Blocks of at most `max_size` tokens, a power of two.
    pub(super) fn of(num_tokens: i32, max_size: usize) -> Self {
        let size = (num_tokens as usize).next_power_of_two().min(max_size);
        Self { num_tokens, size: size as i32, count: (num_tokens as usize).div_ceil(size) as i32 }
    }

    /// `(B, n, …)` → `(B, count · size, W)`. Missing tokens of the last block are zeros: they neither decay nor
    /// write.
    pub(super) fn padded(&self, x: &Array) -> Result<Array> {
        let missing = self.count * self.size - self.num_tokens;
        let x = x.reshape(&[x.dim(0), self.num_tokens, -1])?;
        if missing == 0 {
            return Ok(x);
        }
        let zeros = ops::zeros_dtype(&[x.dim(0), missing, x.dim(2)], x.dtype())?;
        Ok(ops::concatenate(&[&x, &zeros], 1)?)
    }

    /// `(B, count · size, …)` without the missing tokens.
    pub(super) fn unpadded(&self, x: &Array) -> Result<Array> {
        Ok(sys::slice_axis(x, 1, 0, self.num_tokens as usize)?)
    }
}

/// What the decays of a block's tokens come to, Γᵢ being their product up to token i.
///
/// A ratio Γᵢ/Γⱼ is the exponential of the sum of the logarithms between j and i, summed for each pair: quotients
/// would be 0/0 after strong decay, and differences of running sums would cancel.
#[derive(Debug)]
pub(super) struct Decays {
    /// Γ, `(…, size, 1)`.
    pub products: Array,
    /// Γᵢ/Γⱼ for j ≤ i, `(…, size, size)`; elsewhere 1.
    pub ratios: Array,
    /// Those of the last token to each, `(…, size, 1)`.
    pub to_end: Array,
    /// Γ of the last token, `(…, 1, 1)`.
    pub totals: Array,
}

impl Decays {
    /// Of logarithms `(…, size, 1)`, at most 0.
    pub(super) fn of(ops: &Ops, log_decays: &Array, size: i32) -> Result<Self> {
        let tokens = log_decays.ndim() as i32 - 2;
        let products = ops.exp_nonpositive(&log_decays.cumsum(tokens, None, None)?)?;
        let sums = log_decays.multiply(mask(size, |row, column| column < row))?.cumsum(tokens, None, None)?;
        let ratios = ops.exp_nonpositive(&sums)?;
        let last = |x: &Array| sys::slice_axis(x, tokens as usize, size as usize - 1, size as usize);
        let (to_end, totals) = (last(&ratios)?.swap_axes(tokens, tokens + 1)?, last(&products)?);
        Ok(Self { products, ratios, to_end, totals })
    }
}

/// 1 where `holds(row, column)` and 0 elsewhere, `(size, size)`.
pub(super) fn mask(size: i32, holds: impl Fn(i32, i32) -> bool) -> Array {
    let holds = &holds;
    let values: Vec<f32> = (0..size)
        .flat_map(|row| (0..size).map(move |column| if holds(row, column) { 1.0 } else { 0.0 }))
        .collect();
    Array::from_slice(&values, &[size, size])
}
