//! Attention over live KV, as pure functions of arrays.
//!
//! Owns the two shapes of it: a prefill chunk (one sequence, many query rows) and a decode step
//! (many sequences, one row each). Where the KV comes from is `kv`'s business.

use mlx_rs::{Array, Dtype, fast, ops};

use super::{device::ComputeDevice, error::Result, kv::LayerKv, ops::Ops, sys};
use crate::models::AttentionSpec;

/// Query rows of a prefill chunk that are computed together on the CPU: it leaves out the keys
/// that none of them may see, half of all scores in a long chunk.
const QUERY_BLOCK: usize = 128;

/// Attention of one layer on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub spec: &'a AttentionSpec,
    pub ops: &'a Ops,
    pub device: ComputeDevice,
}

/// Query rows of one sequence at consecutive positions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    /// `(n, H, D)`, after RoPE.
    pub queries: &'a Array,
    /// Position of the first row.
    pub start: usize,
    /// KV up to the last row.
    pub kv: &'a LayerKv,
}

/// One query row of each of several sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeRows<'a> {
    /// `(B, H, D)`, after RoPE.
    pub queries: &'a Array,
    /// What each row sees of its sequence's body.
    pub bodies: &'a [LayerKv],
    /// The tail's keys and values with this step's, `(B, H_kv, W, D)`.
    pub tail: (&'a Array, &'a Array),
    /// Added to the tail's scores, `(B, 1, 1, W)`; `None` when every slot is seen.
    pub tail_mask: Option<&'a Array>,
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

    fn chunk_fused(&self, Chunk { queries, start, kv }: Chunk<'_>) -> Result<Array> {
        let num_rows = queries.dim(0);
        let queries = queries.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?;
        let mask;
        let mask_argument = if self.spec.window.is_none() {
            fast::ScaledDotProductAttentionMask::Causal
        } else {
            mask = self.causal_mask(start, num_rows as usize, kv, queries.dtype())?;
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

    fn chunk_in_blocks(&self, Chunk { queries, start, kv }: Chunk<'_>) -> Result<Array> {
        let num_rows = queries.dim(0) as usize;
        let queries = self.scale_queries(queries)?;
        let mut blocks = Vec::with_capacity(num_rows.div_ceil(QUERY_BLOCK));
        for first in (0..num_rows).step_by(QUERY_BLOCK) {
            let last = (first + QUERY_BLOCK).min(num_rows);
            let rows = if last - first == num_rows {
                queries.clone()
            } else {
                sys::slice_axis(&queries, 0, first, last)?
            };
            let seen = kv.slice(kv.first..start + last)?.visible_from(start + first, self.spec.window)?;
            blocks.push(self.block(&rows, start + first, &seen)?);
        }
        Ok(if blocks.len() == 1 { blocks.remove(0) } else { ops::concatenate(&blocks, 0)? })
    }

    /// Attends a block of scaled query rows `(n, H, D)` whose last row is the last key.
    fn block(&self, queries: &Array, start: usize, kv: &LayerKv) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = queries.dim(0);
        let num_keys = kv.num_tokens() as i32;
        // All heads that share a KV head as the rows of one matrix.
        let queries = queries
            .reshape(&[num_rows, num_kv_heads, num_groups, head_dim])?
            .transpose_axes(&[1, 2, 0, 3])?
            .reshape(&[1, num_kv_heads, num_groups * num_rows, head_dim])?;
        let mut scores = self.cap(queries.matmul(kv.keys.swap_axes(2, 3)?)?)?;
        if num_rows > 1 {
            let mask = self.causal_mask(start, num_rows as usize, kv, scores.dtype())?;
            scores = scores.reshape(&[num_kv_heads, num_groups, num_rows, num_keys])?.add(&mask)?;
            scores = scores.reshape(&[1, num_kv_heads, num_groups * num_rows, num_keys])?;
        }
        let attended = self.ops.softmax_last(&scores)?.matmul(&kv.values)?;
        Ok(attended
            .reshape(&[num_kv_heads, num_groups, num_rows, head_dim])?
            .transpose_axes(&[2, 0, 1, 3])?
            .reshape(&[num_rows, num_kv_heads * num_groups * head_dim])?)
    }

    /// 0 where the row may see the key and -inf where not, `(n, L)`.
    fn causal_mask(&self, start: usize, num_rows: usize, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        let num_keys = kv.num_tokens();
        let mut mask = Vec::with_capacity(num_rows * num_keys);
        for row in start..start + num_rows {
            let oldest = self.spec.window.map_or(0, |window| (row + 1).saturating_sub(window));
            mask.extend(
                (kv.first..kv.end()).map(
                    |key| {
                        if key <= row && key >= oldest { 0.0 } else { f32::NEG_INFINITY }
                    },
                ),
            );
        }
        Ok(Array::from_slice(&mask, &[num_rows as i32, num_keys as i32]).as_dtype(dtype)?)
    }

    /// Attends one decode step of all rows: `(B, H·D)`.
    ///
    /// Scores against each body and against the tail are joined before one softmax, so a row's
    /// answer is that of plain attention.
    pub(super) fn decode(&self, rows: DecodeRows<'_>) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = rows.queries.dim(0);
        let queries =
            self.scale_queries(rows.queries)?.reshape(&[num_rows, num_kv_heads, num_groups, head_dim])?;
        let body_tokens: Vec<usize> = rows.bodies.iter().map(LayerKv::num_tokens).collect();
        let max_body = body_tokens.iter().copied().max().unwrap_or(0);

        let mut tail_scores = self.cap(queries.matmul(rows.tail.0.swap_axes(2, 3)?)?)?;
        if let Some(mask) = rows.tail_mask {
            tail_scores = tail_scores.add(mask)?;
        }
        let scores = if max_body == 0 {
            tail_scores
        } else {
            let mut parts = Vec::with_capacity(rows.bodies.len());
            for (row, body) in rows.bodies.iter().enumerate() {
                // A window that lies in the tail as a whole leaves nothing of the body.
                if body_tokens[row] == 0 {
                    parts.push(self.nothing_seen(max_body, queries.dtype())?);
                    continue;
                }
                let query = sys::slice_axis(&queries, 0, row, row + 1)?;
                let scores = self.cap(query.matmul(body.keys.swap_axes(2, 3)?)?)?;
                parts.push(pad_last(&scores, max_body)?);
            }
            let body_scores = ops::concatenate(&parts, 0)?;
            ops::concatenate(&[&body_scores, &tail_scores], 3)?
        };
        let weights = self.ops.softmax_last(&scores)?;
        let num_scores = weights.dim(3) as usize;
        let mut attended = sys::slice_axis(&weights, 3, max_body, num_scores)?.matmul(rows.tail.1)?;
        if max_body > 0 {
            let mut parts = Vec::with_capacity(rows.bodies.len());
            for (row, body) in rows.bodies.iter().enumerate() {
                if body_tokens[row] == 0 {
                    let shape = [1, num_kv_heads, num_groups, head_dim];
                    parts.push(ops::zeros_dtype(&shape, queries.dtype())?);
                    continue;
                }
                let weights =
                    sys::slice_axis(&sys::slice_axis(&weights, 0, row, row + 1)?, 3, 0, body_tokens[row])?;
                parts.push(weights.matmul(&body.values)?);
            }
            attended = attended.add(ops::concatenate(&parts, 0)?)?;
        }
        Ok(attended.reshape(&[num_rows, num_kv_heads * num_groups * head_dim])?)
    }

    /// Scores of one row that sees none of `num_keys` keys.
    fn nothing_seen(&self, num_keys: usize, dtype: Dtype) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [1, num_kv_heads, self.num_groups(), num_keys as i32];
        let masked = Array::from_f32(f32::NEG_INFINITY).as_dtype(dtype)?;
        Ok(ops::broadcast_to(masked, &shape)?)
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

/// Widens the last axis to `width` with -inf.
fn pad_last(scores: &Array, width: usize) -> Result<Array> {
    let missing = width as i32 - scores.dim(-1);
    if missing == 0 {
        return Ok(scores.clone());
    }
    let fill = Array::from_f32(f32::NEG_INFINITY).as_dtype(scores.dtype())?;
    let pads: &[(i32, i32)] = &[(0, 0), (0, 0), (0, 0), (0, missing)];
    Ok(ops::pad(scores, pads, fill, None)?)
}
