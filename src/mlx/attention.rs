//! Attention over live KV, as pure functions of arrays.
//!
//! Owns the two shapes of it: a prefill chunk (one sequence, many query rows), here, and a decode
//! step (many sequences, one row each), in `decode`. Both see their keys in pieces that are never
//! joined: scores against each piece are taken apart, and one maximum and one sum over all of them
//! make it the softmax of plain attention. Where the KV comes from is `live`'s business.

mod decode;

use std::{cell::RefCell, collections::HashMap, ops::Range};

use mlx_rs::{Array, Dtype, fast, ops};

use super::{
    arrays::{in_row_blocks, rows_of},
    device::ComputeDevice,
    error::Result,
    kv::LayerKv,
    ops::Ops,
    sys,
};
use crate::models::AttentionSpec;

pub(super) use decode::{CohortRows, DecodeRows, RowsKv};

/// Query rows of a prefill chunk that are computed together at most on the CPU: that leaves out the
/// keys that none of them may see, half of all scores in a long chunk.
const MAX_BLOCK_ROWS: usize = 128;

/// Fewer rows make matrix products slow.
const MIN_BLOCK_ROWS: usize = 16;

/// Scores of one block at most, of all heads together: most of its operations are of this size.
const MAX_BLOCK_SCORES: usize = 1 << 19;

/// Attention of one layer on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub spec: &'a AttentionSpec,
    pub ops: &'a Ops,
    pub device: ComputeDevice,
    pub masks: &'a MaskCache,
}

/// Masks of one forward pass: layers of one kind hide the same keys.
#[derive(Debug, Default)]
pub(super) struct MaskCache(RefCell<HashMap<MaskKey, Array>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MaskKey {
    /// Keys that each row sees, counted from the first.
    seen: Vec<Range<usize>>,
    num_keys: usize,
}

impl MaskCache {
    fn get(&self, key: MaskKey, make: impl FnOnce(&MaskKey) -> Result<Array>) -> Result<Array> {
        if let Some(mask) = self.0.borrow().get(&key) {
            return Ok(mask.clone());
        }
        let mask = make(&key)?;
        self.0.borrow_mut().insert(key, mask.clone());
        Ok(mask)
    }
}

/// Query rows of one sequence at consecutive positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    /// `(n, H, D)`, after RoPE.
    pub queries: &'a Array,
    /// Position of the first row.
    pub start: usize,
    /// KV before the chunk's own piece, in order of position.
    pub earlier: &'a [LayerKv],
    /// The piece that ends with the chunk's last row.
    pub own: &'a LayerKv,
}

impl Attention<'_> {
    fn num_groups(&self) -> i32 {
        (self.spec.num_heads / self.spec.num_kv_heads) as i32
    }

    fn dims(&self) -> (i32, i32) {
        (self.spec.num_kv_heads as i32, self.spec.head_dim as i32)
    }

    /// Attends a prefill chunk: `(n, H·D)`.
    pub(super) fn chunk(&self, chunk: Chunk<'_>) -> Result<Array> {
        if self.device == ComputeDevice::Gpu && self.spec.score_softcap.is_none() {
            self.chunk_fused(chunk)
        } else {
            self.chunk_in_blocks(chunk)
        }
    }

    /// MLX's fused kernel wants all keys in one array.
    fn chunk_fused(&self, chunk: Chunk<'_>) -> Result<Array> {
        let num_rows = chunk.queries.dim(0);
        let mut keys = Vec::with_capacity(chunk.earlier.len() + 1);
        let mut values = Vec::with_capacity(chunk.earlier.len() + 1);
        let mut first = chunk.own.first;
        for piece in chunk.earlier.iter().chain([chunk.own]) {
            let seen = piece.visible_from(chunk.start, self.spec.window)?;
            if seen.num_tokens() > 0 {
                first = first.min(seen.first);
                keys.push(seen.keys);
                values.push(seen.values);
            }
        }
        let kv = LayerKv { first, keys: ops::concatenate(&keys, 2)?, values: ops::concatenate(&values, 2)? };
        let queries = chunk.queries.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?;
        let mask;
        let mask_argument = if self.spec.window.is_none() {
            fast::ScaledDotProductAttentionMask::Causal
        } else {
            mask = self.causal_mask(chunk.start, num_rows as usize, &kv, queries.dtype())?;
            fast::ScaledDotProductAttentionMask::Array(&mask)
        };
        let attended = fast::scaled_dot_product_attention(
            &queries,
            &kv.keys,
            &kv.values,
            self.spec.scale,
            Some(mask_argument),
            None,
        )?;
        let width = (self.spec.num_heads * self.spec.head_dim) as i32;
        Ok(attended.transpose_axes(&[0, 2, 1, 3])?.reshape(&[num_rows, width])?)
    }

    fn chunk_in_blocks(&self, chunk: Chunk<'_>) -> Result<Array> {
        let num_rows = chunk.queries.dim(0) as usize;
        let num_block_rows = |first| self.num_block_rows(chunk.start + first);
        in_row_blocks(self.device, num_rows, num_block_rows, |rows| {
            let position = chunk.start + rows.start;
            // The block's own keys apart: only they need a mask, and it is the same for all blocks.
            let before = chunk.own.slice(chunk.own.first..position)?;
            let within = chunk.own.slice(position..chunk.start + rows.end)?;
            let mut seen = Vec::with_capacity(chunk.earlier.len() + 2);
            for piece in chunk.earlier.iter().chain([&before, &within]) {
                let piece = piece.visible_from(position, self.spec.window)?;
                if piece.num_tokens() > 0 {
                    seen.push(piece);
                }
            }
            let queries = self.scale_queries(&rows_of(chunk.queries, &rows, num_rows)?)?;
            self.block(&queries, position, &seen)
        })
    }

    /// Rows of the block that begins at a position.
    fn num_block_rows(&self, position: usize) -> usize {
        let num_keys = self.spec.window.map_or(position, |window| position.min(window)) + MAX_BLOCK_ROWS;
        let num_rows = MAX_BLOCK_SCORES / (self.spec.num_heads * num_keys);
        (num_rows / MIN_BLOCK_ROWS * MIN_BLOCK_ROWS).clamp(MIN_BLOCK_ROWS, MAX_BLOCK_ROWS)
    }

    /// Attends a block of scaled query rows `(n, H, D)` whose last row is the last key.
    fn block(&self, queries: &Array, start: usize, pieces: &[LayerKv]) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = queries.dim(0);
        // All heads that share a KV head as the rows of one matrix.
        let queries = queries
            .reshape(&[num_rows, num_kv_heads, num_groups, head_dim])?
            .transpose_axes(&[1, 2, 0, 3])?
            .reshape(&[1, num_kv_heads, num_groups * num_rows, head_dim])?;
        let scores = pieces
            .iter()
            .map(|piece| {
                let num_keys = piece.num_tokens() as i32;
                let scores = self.cap(queries.matmul(piece.keys.swap_axes(2, 3)?)?)?;
                if !self.hides(start, num_rows as usize, piece) {
                    return Ok(scores);
                }
                let mask = self.causal_mask(start, num_rows as usize, piece, scores.dtype())?;
                let masked = scores.reshape(&[num_kv_heads, num_groups, num_rows, num_keys])?.add(&mask)?;
                Ok(masked.reshape(&[1, num_kv_heads, num_groups * num_rows, num_keys])?)
            })
            .collect::<Result<Vec<Array>>>()?;
        let attended = if let [scores] = scores.as_slice() {
            self.ops.softmax_last(scores)?.matmul(&pieces[0].values)?
        } else {
            let maxima = scores
                .iter()
                .map(|scores| scores.max_axis(-1, true))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            let max = largest(&maxima)?;
            let mut sums = Vec::with_capacity(scores.len());
            let mut weighed = Vec::with_capacity(scores.len());
            for (scores, piece) in scores.iter().zip(pieces) {
                let weights = self.ops.exp_below(scores, &max)?;
                sums.push(weights.sum_axis(-1, true)?);
                weighed.push(weights.matmul(&piece.values)?);
            }
            total(&weighed)?.divide(total(&sums)?)?
        };
        Ok(attended
            .reshape(&[num_kv_heads, num_groups, num_rows, head_dim])?
            .transpose_axes(&[2, 0, 1, 3])?
            .reshape(&[num_rows, num_kv_heads * num_groups * head_dim])?)
    }

    /// Whether any of the rows may not see some key of a piece.
    fn hides(&self, start: usize, num_rows: usize, piece: &LayerKv) -> bool {
        let after = piece.end() > start + 1;
        let before =
            self.spec.window.is_some_and(|window| (start + num_rows).saturating_sub(window) > piece.first);
        after || before
    }

    /// 0 where the row may see the key and -inf where not, `(n, L)`.
    fn causal_mask(&self, start: usize, num_rows: usize, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        self.mask(start..start + num_rows, kv, dtype)
    }

    fn mask(&self, rows: impl Iterator<Item = usize>, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        let index_of = |position: usize| position.saturating_sub(kv.first);
        let seen = rows.map(|row| index_of(self.oldest_seen(row))..index_of(row + 1)).collect();
        self.masks.get(MaskKey { seen, num_keys: kv.num_tokens() }, |key| {
            let mut mask = Vec::with_capacity(key.seen.len() * key.num_keys);
            for seen in &key.seen {
                mask.extend(
                    (0..key.num_keys).map(|key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY }),
                );
            }
            let shape = [key.seen.len() as i32, key.num_keys as i32];
            Ok(Array::from_slice(&mask, &shape).as_dtype(dtype)?)
        })
    }

    /// First position that the row at `position` may see.
    fn oldest_seen(&self, position: usize) -> usize {
        self.spec.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn scale_queries(&self, queries: &Array) -> Result<Array> {
        Ok(queries.multiply(Array::from_f32(self.spec.scale).as_dtype(queries.dtype())?)?)
    }

    fn cap(&self, scores: Array) -> Result<Array> {
        Ok(match self.spec.score_softcap {
            Some(cap) => self.ops.softcap(&scores, cap)?,
            None => scores,
        })
    }
}

/// Elementwise maximum of several arrays.
fn largest(arrays: &[Array]) -> Result<Array> {
    let (first, rest) = arrays.split_first().expect("the caller has at least one piece");
    rest.iter().try_fold(first.clone(), |max, array| Ok(ops::maximum(&max, array)?))
}

/// Elementwise sum of several arrays.
fn total(arrays: &[Array]) -> Result<Array> {
    let (first, rest) = arrays.split_first().expect("the caller has at least one piece");
    rest.iter().try_fold(first.clone(), |sum, array| Ok(sum.add(array)?))
}
