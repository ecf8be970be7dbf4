//! The gated delta rule, as pure functions of arrays.
//!
//! Owns the recurrence over a head's memory S, `(D_k, D_v)`, for each token with query q, key k,
//! value v, decay g and write strength β:
//!
//! ```text
//! S ← g·S        δ = β·(v − k·S)        S ← S + kᵀ·δ        read q·S
//! ```
//!
//! Where each dimension of keys has a decay of its own (Kimi Linear, arXiv 2510.26692), g is diag(g).
//!
//! A decode step computes it as it stands. A prefill chunk is computed in blocks of
//! [`MAX_BLOCK`] tokens by matrix products, the chunkwise form of Yang, Kautz and Hatamizadeh,
//! "Gated Delta Networks" (arXiv 2412.06464, section 3.3). With Γᵢ the product of a block's
//! decays up to token i and Δ its rows δ, the recurrence from the block's first memory S₀ says
//!
//! ```text
//! (I + A)·Δ = diag(β)·(V − diag(Γ)·K·S₀)     Aᵢⱼ = βᵢ·(Γᵢ/Γⱼ)·kᵢ·kⱼ  for j < i
//! read      = diag(Γ)·Q·S₀ + M·Δ             Mᵢⱼ = (Γᵢ/Γⱼ)·qᵢ·kⱼ     for j ≤ i
//! S         = Γ_C·S₀ + (diag(Γ_C/Γ)·K)ᵀ·Δ
//! ```
//!
//! so that only the products with S₀ go from block to block. Decays by dimension stand between the factors of the
//! products with keys: Aᵢⱼ = βᵢ·Σ_d (Γᵢ/Γⱼ)_d·kᵢ_d·kⱼ_d.

use mlx_rs::{Array, ops};

use super::{
    blocks::{Blocks, mask},
    delta_decays::{DeltaDecays, lower_quarters},
};

use crate::mlx::{arrays::concatenated, error::Result, ops::Ops, sys};

/// Tokens computed together. Products within a block grow with its size, those with the memory
/// are shared by its tokens; a power of two, as `unit_lower_inverse` wants.
const MAX_BLOCK: usize = 32;

/// What B sequences of n tokens each bring to the recurrence; all in float32.
#[derive(Debug)]
pub(super) struct DeltaRows {
    /// `(B, n, H_k, D_k)`; each serves `H_v / H_k` heads of values.
    pub queries: Array,
    /// `(B, n, H_k, D_k)`.
    pub keys: Array,
    /// `(B, n, H_v, D_v)`.
    pub values: Array,
    /// Logarithms of the decays, at most 0, `(B, n, H_v, D_g)`: one of each head, or one of each dimension of its keys.
    pub log_decays: Array,
    /// `(B, n, H_v)`.
    pub write_strengths: Array,
}

/// Runs the recurrence from `memory`, `(B, H_v, D_k, D_v)`; returns what was read,
/// `(B, n, H_v, D_v)`, and the memory after the last token.
pub(super) fn advance(ops: &Ops, rows: &DeltaRows, memory: &Array) -> Result<(Array, Array)> {
    if rows.queries.dim(1) == 1 { step(ops, rows, memory) } else { blocks(ops, rows, memory) }
}

fn step(ops: &Ops, rows: &DeltaRows, memory: &Array) -> Result<(Array, Array)> {
    let (num_sequences, num_key_heads, key_dim) = (rows.keys.dim(0), rows.keys.dim(2), rows.keys.dim(3));
    let (num_heads, value_dim) = (rows.values.dim(2), rows.values.dim(3));
    let sharing = num_heads / num_key_heads;
    // (B, H_k, sharing, rows, columns) throughout.
    let of_key_head = |x: &Array| x.reshape(&[num_sequences, num_key_heads, 1, 1, key_dim]);
    let of_head = |x: &Array, width: i32| x.reshape(&[num_sequences, num_key_heads, sharing, 1, width]);
    let (queries, keys) = (of_key_head(&rows.queries)?, of_key_head(&rows.keys)?);
    let decays = ops.exp_nonpositive(&rows.log_decays)?;
    let decays = decays.reshape(&[num_sequences, num_key_heads, sharing, decays.dim(3), 1])?;
    let memory =
        memory.reshape(&[num_sequences, num_key_heads, sharing, key_dim, value_dim])?.multiply(decays)?;
    let surprise = of_head(&rows.values, value_dim)?.subtract(keys.matmul(&memory)?)?;
    let writes = surprise.multiply(of_head(&rows.write_strengths, 1)?)?;
    let memory = memory.add(keys.swap_axes(3, 4)?.multiply(&writes)?)?;
    Ok((
        queries.matmul(&memory)?.reshape(&[num_sequences, 1, num_heads, value_dim])?,
        memory.reshape(&[num_sequences, num_heads, key_dim, value_dim])?,
    ))
}

fn blocks(ops: &Ops, rows: &DeltaRows, memory: &Array) -> Result<(Array, Array)> {
    let (num_sequences, num_tokens) = (rows.keys.dim(0), rows.keys.dim(1));
    let (num_key_heads, key_dim) = (rows.keys.dim(2), rows.keys.dim(3));
    let (num_heads, value_dim) = (rows.values.dim(2), rows.values.dim(3));
    let (sharing, rows_of_heads) = (num_heads / num_key_heads, num_sequences * num_key_heads);
    let blocks = Blocks::of(num_tokens, MAX_BLOCK);
    let (size, num_blocks) = (blocks.size, blocks.count);

    // (blocks, B·H_k, sharing, tokens, width).
    let blocked = |x: &Array, sharing: i32, width: i32| -> Result<Array> {
        Ok(blocks
            .padded(x)?
            .reshape(&[num_sequences, num_blocks, size, num_key_heads, sharing, width])?
            .transpose_axes(&[1, 0, 3, 4, 2, 5])?
            .reshape(&[num_blocks, rows_of_heads, sharing, size, width])?)
    };
    let queries = blocked(&rows.queries, 1, key_dim)?;
    let keys = blocked(&rows.keys, 1, key_dim)?;
    let values = blocked(&rows.values, sharing, value_dim)?;
    let write_strengths = blocked(&rows.write_strengths, sharing, 1)?;
    let log_decays = blocked(&rows.log_decays, sharing, rows.log_decays.dim(3))?;
    let decays = DeltaDecays::of(ops, &log_decays, size)?;
    let DeltaDecays { products, to_end, totals, .. } = &decays;

    let reads_writes =
        decays.faded_products(&queries, &keys)?.multiply(mask(size, |row, column| column <= row))?;
    let overlaps = decays
        .faded_products(&keys, &keys)?
        .multiply(&write_strengths)?
        .multiply(mask(size, |row, column| column < row))?;
    let solve = unit_lower_inverse(&overlaps, size)?;
    // Δ = solve·diag(β)·V − solve·diag(β·Γ)·K·S₀; the latter factor stands above diag(Γ)·Q, to be
    // multiplied with S₀ together.
    let written = solve.matmul(values.multiply(&write_strengths)?)?;
    let erasing = solve.matmul(keys.multiply(write_strengths.multiply(products)?)?)?.negative()?;
    let on_memory = ops::concatenate(&[&erasing, &queries.multiply(products)?], 3)?;
    let keys_to_end = keys.multiply(to_end)?.swap_axes(3, 4)?;

    let mut memory = memory.reshape(&[1, rows_of_heads, sharing, key_dim, value_dim])?;
    let mut reads = Vec::with_capacity(num_blocks as usize);
    for block in 0..num_blocks as usize {
        let of_block = |x: &Array| sys::slice_axis(x, 0, block, block + 1);
        let from_memory = of_block(&on_memory)?.matmul(&memory)?;
        let writes = of_block(&written)?.add(sys::slice_axis(&from_memory, 3, 0, size as usize)?)?;
        let read = sys::slice_axis(&from_memory, 3, size as usize, 2 * size as usize)?;
        reads.push(read.add(of_block(&reads_writes)?.matmul(&writes)?)?);
        memory = memory.multiply(of_block(totals)?)?.add(of_block(&keys_to_end)?.matmul(&writes)?)?;
    }
    let reads = concatenated(reads, 0)?;
    let reads = reads
        .reshape(&[num_blocks, num_sequences, num_key_heads, sharing, size, value_dim])?
        .transpose_axes(&[1, 0, 4, 2, 3, 5])?
        .reshape(&[num_sequences, num_blocks * size, num_heads, value_dim])?;
    Ok((blocks.unpadded(&reads)?, memory.reshape(&[num_sequences, num_heads, key_dim, value_dim])?))
}

/// (I + A)⁻¹ of strictly lower triangular matrices A, `(…, size, size)`.
///
/// Goes from the inverses of the diagonal blocks to those of blocks twice the size,
///
/// ```text
/// [X   ]⁻¹   [    X⁻¹         ]
/// [B  Y]   = [-Y⁻¹·B·X⁻¹  Y⁻¹ ]
/// ```
///
/// for all blocks at once: with T the block-diagonal inverse so far and B all the lower left
/// quarters, T − T·B·T. Every intermediate is part of the true inverse, so it stays accurate
/// where the power series, whose terms grow and cancel, does not (many equal keys).
fn unit_lower_inverse(lower: &Array, size: i32) -> Result<Array> {
    let mut inverse = mask(size, |row, column| row == column);
    let mut half = 1;
    while half < size {
        let quarter = lower.multiply(lower_quarters(size, half))?;
        inverse = if half == 1 {
            inverse.subtract(quarter)?
        } else {
            inverse.subtract(inverse.matmul(quarter)?.matmul(&inverse)?)?
        };
        half *= 2;
    }
    Ok(inverse)
}

#[cfg(test)]
mod tests;
