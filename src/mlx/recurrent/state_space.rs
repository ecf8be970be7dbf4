//! Mamba-2's recurrence, as pure functions of arrays.
//!
//! Owns the recurrence over a head's memory S, `(D_k, D_v)`, for each token with decay g, key k (the papers' B),
//! value v (its input times its step) and query q (C):
//!
//! ```text
//! S ← g·S + kᵀ·v        read q·S
//! ```
//!
//! Heads of a group have queries and keys in common, and their memories lie side by side, `(D_k, heads · D_v)`, so
//! that they are written and read by one matrix product. A decode step computes the recurrence as it stands (on the CPU
//! in `state_step`'s one pass); a prefill chunk is computed in blocks of [`MAX_BLOCK`] tokens, the "state-space dual" form of Dao and Gu,
//! "Transformers are SSMs" (arXiv 2405.21060, section 6). With Γᵢ the product of a block's decays up to token i:
//!
//! ```text
//! read = diag(Γ)·Q·S₀ + M·V      Mᵢⱼ = (Γᵢ/Γⱼ)·qᵢ·kⱼ  for j ≤ i
//! S    = Γ_C·S₀ + Kᵀ·diag(Γ_C/Γ)·V
//! ```
//!
//! of which all but the products with S₀ is computed for all blocks at once.

use mlx_rs::Array;

use super::{
    blocks::{Blocks, Decays, mask},
    state_step::{self, StepRows},
};
use crate::mlx::{
    arrays::concatenated,
    error::{MlxError, Result},
    ops::Ops,
    sys,
};

/// Tokens computed together; a power of two. There is a decay for each pair of a block's tokens and head, so that
/// larger ones cost more than the products with the memory that they save.
const MAX_BLOCK: usize = 64;

/// What B sequences of n tokens each bring to the recurrence; all in float32.
#[derive(Debug)]
pub(super) struct StateRows {
    /// `(B, n, G, D_k)`.
    pub queries: Array,
    /// `(B, n, G, D_k)`.
    pub keys: Array,
    /// `(B, n, H, D_v)`; H is a multiple of G.
    pub values: Array,
    /// Logarithms of the decays, at most 0, `(B, n, H)`.
    pub log_decays: Array,
}

/// Runs the recurrence from `memory`, `(B, G, D_k, H / G · D_v)`; returns what was read, `(B, n, H, D_v)`, and the
/// memory after the last token.
pub(super) fn advance(ops: &Ops, rows: &StateRows, memory: &Array) -> Result<(Array, Array)> {
    if rows.queries.dim(1) == 1 { step(ops, rows, memory) } else { blocks(ops, rows, memory) }
}

fn step(ops: &Ops, rows: &StateRows, memory: &Array) -> Result<(Array, Array)> {
    let (num_sequences, num_groups, key_dim) = (rows.keys.dim(0), rows.keys.dim(2), rows.keys.dim(3));
    let (num_heads, value_dim) = (rows.values.dim(2), rows.values.dim(3));
    let sharing = num_heads / num_groups;
    let side_by_side = [num_sequences, num_groups, key_dim, sharing * value_dim];
    let decays =
        ops.exp_nonpositive(&rows.log_decays)?.reshape(&[num_sequences, num_groups, 1, sharing, 1])?;
    let faded = memory
        .reshape(&[num_sequences, num_groups, key_dim, sharing, value_dim])?
        .multiply(decays)?
        .reshape(&side_by_side)?;
    if ops.works_on_slices(&faded) {
        let (reads, memory) = in_one_pass(rows, faded, sharing * value_dim)?;
        return Ok((reads.reshape(&[num_sequences, 1, num_heads, value_dim])?, memory));
    }
    let keys = rows.keys.reshape(&[num_sequences, num_groups, key_dim, 1])?;
    let values = rows.values.reshape(&[num_sequences, num_groups, 1, sharing * value_dim])?;
    let memory = faded.add(keys.multiply(values)?)?;
    let queries = rows.queries.reshape(&[num_sequences, num_groups, 1, key_dim])?;
    Ok((queries.matmul(&memory)?.reshape(&[num_sequences, 1, num_heads, value_dim])?, memory))
}

/// What a step writes to memories of this width, which nobody else holds, and what it reads.
fn in_one_pass(rows: &StateRows, faded: Array, width: i32) -> Result<(Array, Array)> {
    let [queries, keys, values] =
        [rows.queries.contiguous()?, rows.keys.contiguous()?, rows.values.contiguous()?];
    mlx_rs::transforms::eval([&queries, &keys, &values])?;
    let step = StepRows {
        queries: numbers(&queries)?,
        keys: numbers(&keys)?,
        values: numbers(&values)?,
        width: width as usize,
    };
    let mut reads = Vec::new();
    let memory = sys::changed_in_place(vec![faded], |memories| {
        if let [memories] = memories {
            reads = state_step::write_and_read(memories, step);
        }
    })?;
    let memory = memory.into_iter().next().expect("as many as were given");
    Ok((Array::from_slice(&reads, &[reads.len() as i32]), memory))
}

fn numbers(array: &Array) -> Result<&[f32]> {
    let unreadable = |error| MlxError::Unsupported(format!("a step's rows cannot be read: {error}"));
    array.try_as_slice::<f32>().map_err(unreadable)
}

fn blocks(ops: &Ops, rows: &StateRows, memory: &Array) -> Result<(Array, Array)> {
    let (num_sequences, num_tokens) = (rows.keys.dim(0), rows.keys.dim(1));
    let (num_groups, key_dim) = (rows.keys.dim(2), rows.keys.dim(3));
    let (num_heads, value_dim) = (rows.values.dim(2), rows.values.dim(3));
    let sharing = num_heads / num_groups;
    let blocks = Blocks::of(num_tokens, MAX_BLOCK);
    let (size, count) = (blocks.size, blocks.count);

    // (blocks, B, G, tokens, width).
    let blocked = |x: &Array, width: i32| -> Result<Array> {
        Ok(blocks
            .padded(x)?
            .reshape(&[num_sequences, count, size, num_groups, width])?
            .transpose_axes(&[1, 0, 3, 2, 4])?)
    };
    // What lies side by side, head by head, and back: tokens are the last axis but one or two.
    let by_head = |x: &Array, tokens: i32, width: i32| -> Result<Array> {
        Ok(x.reshape(&[count, num_sequences, num_groups, tokens, sharing, width])?
            .transpose_axes(&[0, 1, 2, 4, 3, 5])?)
    };
    let heads_last = |x: &Array| x.transpose_axes(&[0, 1, 2, 4, 3, 5]);
    let (queries, keys) = (blocked(&rows.queries, key_dim)?, blocked(&rows.keys, key_dim)?);
    let values = blocked(&rows.values, sharing * value_dim)?;
    let decays = Decays::of(ops, &by_head(&blocked(&rows.log_decays, sharing)?, size, 1)?, size)?;

    // Within the blocks.
    let keys_across = keys.swap_axes(3, 4)?;
    let overlaps = queries.matmul(&keys_across)?.multiply(mask(size, |row, column| column <= row))?;
    let weights = overlaps.expand_dims(3)?.multiply(&decays.ratios)?;
    let from_block = heads_last(&weights.matmul(by_head(&values, size, value_dim)?)?)?;

    // From block to block.
    let with_heads = [count, num_sequences, num_groups, size, sharing, value_dim];
    let to_write = values.reshape(&with_heads)?.multiply(heads_last(&decays.to_end)?)?;
    let written = keys_across.matmul(to_write.reshape(&[
        count,
        num_sequences,
        num_groups,
        size,
        sharing * value_dim,
    ])?)?;
    let totals = heads_last(&decays.totals)?;
    let side_by_side = [1, num_sequences, num_groups, key_dim, sharing * value_dim];
    let mut memory = memory.reshape(&side_by_side)?;
    let mut from_memory = Vec::with_capacity(count as usize);
    for block in 0..count as usize {
        let of_block = |x: &Array| sys::slice_axis(x, 0, block, block + 1);
        from_memory.push(of_block(&queries)?.matmul(&memory)?);
        let faded = memory
            .reshape(&[1, num_sequences, num_groups, key_dim, sharing, value_dim])?
            .multiply(of_block(&totals)?)?
            .reshape(&side_by_side)?;
        memory = faded.add(of_block(&written)?)?;
    }
    let from_memory = concatenated(from_memory, 0)?.reshape(&with_heads)?;
    let reads = from_block
        .add(from_memory.multiply(heads_last(&decays.products)?)?)?
        .transpose_axes(&[1, 0, 3, 2, 4, 5])?
        .reshape(&[num_sequences, count * size, num_heads, value_dim])?;
    Ok((
        blocks.unpadded(&reads)?,
        memory.reshape(&[num_sequences, num_groups, key_dim, sharing * value_dim])?,
    ))
}

#[cfg(test)]
mod tests;
