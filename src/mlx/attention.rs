//! Attention over live KV, as pure functions of arrays.
//!
//! Owns the two shapes of it: a prefill chunk (one sequence, many query rows), here, and a decode
//! step (many sequences, one row each), in `decode`. Both see their keys in pieces that are never joined: scores
//! against each piece are taken apart, and one maximum and one sum over all of them make it the
//! softmax of plain attention. Where the KV comes from is `live`'s business.

mod decode;

use std::{cell::RefCell, collections::HashMap, ops::Range};

use mlx_rs::{Array, Dtype, fast, ops};

use super::{arrays::concatenated, device::ComputeDevice, error::Result, kv::LayerKv, ops::Ops, sys};
use crate::models::AttentionSpec;

pub(super) use decode::{CohortRows, DecodeRows, RowsKv};

/// Query rows of a prefill chunk that are computed together on the CPU: it leaves out the keys
/// that none of them may see, half of all scores in a long chunk.
const QUERY_BLOCK: usize = 128;

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
    /// Positions of the rows.
    rows: Vec<usize>,
    keys: Range<usize>,
    window: Option<usize>,
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
        let queries = self.scale_queries(chunk.queries)?;
        let mut blocks = Vec::with_capacity(num_rows.div_ceil(QUERY_BLOCK));
        for first in (0..num_rows).step_by(QUERY_BLOCK) {
            let last = (first + QUERY_BLOCK).min(num_rows);
            let rows = if last - first == num_rows {
                queries.clone()
            } else {
                sys::slice_axis(&queries, 0, first, last)?
            };
            let own = chunk.own.slice(chunk.own.first..chunk.start + last)?;
            let mut seen = Vec::with_capacity(chunk.earlier.len() + 1);
            for piece in chunk.earlier.iter().chain([&own]) {
                let piece = piece.visible_from(chunk.start + first, self.spec.window)?;
                if piece.num_tokens() > 0 {
                    seen.push(piece);
                }
            }
            blocks.push(self.block(&rows, chunk.start + first, &seen)?);
        }
        concatenated(blocks, 0)
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
        self.mask((start..start + num_rows).collect(), kv, dtype)
    }

    fn mask(&self, rows: Vec<usize>, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        let key = MaskKey { rows, keys: kv.first..kv.end(), window: self.spec.window };
        self.masks.get(key, |key| {
            let mut mask = Vec::with_capacity(key.rows.len() * key.keys.len());
            for &row in &key.rows {
                let seen = self.oldest_seen(row)..=row;
                mask.extend(
                    key.keys.clone().map(|key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY }),
                );
            }
            let shape = [key.rows.len() as i32, key.keys.len() as i32];
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
