//! Attention over live KV, as pure functions of arrays.
//!
//! Owns the two shapes of it: a prefill chunk (one sequence, many query rows) and a decode step
//! (many sequences, one row each). Both see their keys in pieces that are never joined: scores
//! against each piece are taken apart, and one maximum and one sum over all of them make it the
//! softmax of plain attention. Where the KV comes from is `live`'s business.

use std::{cell::RefCell, collections::HashMap, ops::Range};

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

/// Consecutive decode rows that run on the same stored segments.
#[derive(Debug, Clone)]
pub(super) struct CohortRows {
    pub rows: Range<usize>,
    /// The segments' KV of this layer, in order of position.
    pub pieces: Vec<LayerKv>,
}

/// KV of consecutive decode rows side by side, each row's its own.
#[derive(Debug, Clone)]
pub(super) struct RowsKv {
    pub rows: Range<usize>,
    /// `(n, H_kv, L, D)`
    pub keys: Array,
    pub values: Array,
    /// Hides what is not there or outside the window, `(n, 1, 1, L)`; float32.
    pub mask: Option<Array>,
}

/// One query row of each of several sequences.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeRows<'a> {
    /// `(B, H, D)`, after RoPE.
    pub queries: &'a Array,
    /// Position of each row.
    pub positions: &'a [usize],
    /// What rows share, in the order of rows; rows that share nothing are in none.
    pub cohorts: &'a [CohortRows],
    /// What rows have to themselves before the tail: in each list every row is in one entry at most,
    /// and entries are in the order of rows.
    pub private: &'a [Vec<RowsKv>],
    /// The tail's keys and values with this step's, `(B, H_kv, W, D)`.
    pub tail: (&'a Array, &'a Array),
    /// Added to the tail's scores, `(B, 1, 1, W)`; `None` when every slot is seen.
    pub tail_mask: Option<&'a Array>,
}

/// Scores of all rows against one kind of piece, and what is needed to weigh its values.
enum Part<'a> {
    /// One cohort's rows against one shared piece: `(1, H_kv, n·G, L)`.
    Shared { rows: Range<usize>, piece: LayerKv, scores: Array },
    /// Every row against what it has to itself, the tail last: `(B, H_kv, G, L₁ + … + W)`. The lists
    /// come with their widths; rows that see less are padded.
    Own { private: Vec<(&'a [RowsKv], usize)>, scores: Array },
}

impl Part<'_> {
    fn scores(&self) -> &Array {
        match self {
            Self::Shared { scores, .. } | Self::Own { scores, .. } => scores,
        }
    }
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
        Ok(if blocks.len() == 1 { blocks.remove(0) } else { ops::concatenate(&blocks, 0)? })
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

    /// Attends one decode step of all rows: `(B, H·D)`.
    pub(super) fn decode(&self, rows: DecodeRows<'_>) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = rows.queries.dim(0);
        let queries =
            self.scale_queries(rows.queries)?.reshape(&[num_rows, num_kv_heads, num_groups, head_dim])?;
        let parts = self.decode_parts(&rows, &queries)?;

        // With one part, a softmax of its own; else one maximum over all parts.
        let attended = if let [Part::Own { private, scores }] = parts.as_slice() {
            self.weigh_own(&self.ops.softmax_last(scores)?, private, rows.tail.1)?
        } else {
            let mut maxima = Vec::with_capacity(parts.len());
            for part in &parts {
                let max = part.scores().max_axis(-1, true)?;
                maxima.push(self.spread_from(part, max, num_rows, f32::NEG_INFINITY)?);
            }
            let max = largest(&maxima)?;
            let mut sums = Vec::with_capacity(parts.len());
            let mut weighed = Vec::with_capacity(parts.len());
            for part in &parts {
                let weights = self.ops.exp_below(part.scores(), &self.gathered_for(part, &max)?)?;
                sums.push(self.spread_from(part, weights.sum_axis(-1, true)?, num_rows, 0.0)?);
                let values = match part {
                    Part::Shared { piece, .. } => weights.matmul(&piece.values)?,
                    Part::Own { private, .. } => self.weigh_own(&weights, private, rows.tail.1)?,
                };
                weighed.push(self.spread_from(part, values, num_rows, 0.0)?);
            }
            total(&weighed)?.divide(total(&sums)?)?
        };
        Ok(attended.reshape(&[num_rows, num_kv_heads * num_groups * head_dim])?)
    }

    /// Scores of scaled queries `(B, H_kv, G, D)` against everything the rows see.
    fn decode_parts<'a>(&self, rows: &DecodeRows<'a>, queries: &Array) -> Result<Vec<Part<'a>>> {
        let mut parts = Vec::new();
        for cohort in rows.cohorts {
            let positions = &rows.positions[cohort.rows.clone()];
            let oldest_row = positions.iter().copied().min().unwrap_or(0);
            let query =
                self.cohort_layout(&sys::slice_axis(queries, 0, cohort.rows.start, cohort.rows.end)?)?;
            for piece in &cohort.pieces {
                let seen = piece.visible_from(oldest_row, self.spec.window)?;
                if seen.num_tokens() == 0 {
                    continue;
                }
                let mut scores = self.cap(query.matmul(seen.keys.swap_axes(2, 3)?)?)?;
                if let Some(mask) = self.cohort_mask(positions, &seen, scores.dtype())? {
                    scores = scores.add(mask)?;
                }
                parts.push(Part::Shared { rows: cohort.rows.clone(), piece: seen, scores });
            }
        }
        let mut private = Vec::with_capacity(rows.private.len());
        let mut own = Vec::with_capacity(rows.private.len() + 1);
        for list in rows.private {
            let width = list.iter().map(|kv| kv.keys.dim(2) as usize).max().unwrap_or(0);
            if width > 0 {
                own.push(self.private_scores(queries, list, width)?);
                private.push((list.as_slice(), width));
            }
        }
        let mut scores = self.cap(queries.matmul(rows.tail.0.swap_axes(2, 3)?)?)?;
        if let Some(mask) = rows.tail_mask {
            scores = scores.add(mask)?;
        }
        own.push(scores);
        let scores = if own.len() == 1 { own.remove(0) } else { ops::concatenate(&own, 3)? };
        parts.push(Part::Own { private, scores });
        Ok(parts)
    }

    /// Hides what a window keeps from some rows of a cohort but not from all: `(n·G, L)`.
    fn cohort_mask(&self, positions: &[usize], piece: &LayerKv, dtype: Dtype) -> Result<Option<Array>> {
        if positions.iter().all(|&position| self.oldest_seen(position) <= piece.first) {
            return Ok(None);
        }
        let num_groups = self.num_groups() as usize;
        // A row of the cohort's matrix for each head group.
        let rows = positions.iter().flat_map(|&position| std::iter::repeat_n(position, num_groups)).collect();
        Ok(Some(self.mask(rows, piece, dtype)?))
    }

    /// Rows against their own keys, padded with -inf to the width: `(B, H_kv, G, width)`.
    fn private_scores(&self, queries: &Array, list: &[RowsKv], width: usize) -> Result<Array> {
        let num_rows = queries.dim(0) as usize;
        let mut scores = Vec::with_capacity(list.len());
        let mut next = 0;
        for kv in list {
            if next < kv.rows.start {
                scores.push(self.nothing_seen(kv.rows.start - next, width, queries.dtype())?);
            }
            let queries = rows_of(queries, &kv.rows, num_rows)?;
            let mut seen = self.cap(queries.matmul(kv.keys.swap_axes(2, 3)?)?)?;
            if let Some(mask) = &kv.mask {
                seen = seen.add(mask.as_dtype(seen.dtype())?)?;
            }
            scores.push(pad_last(&seen, width)?);
            next = kv.rows.end;
        }
        if next < num_rows {
            scores.push(self.nothing_seen(num_rows - next, width, queries.dtype())?);
        }
        Ok(if scores.len() == 1 { scores.remove(0) } else { ops::concatenate(&scores, 0)? })
    }

    /// Weights of [`Part::Own`] times the values that they are for: `(B, H_kv, G, D)`.
    fn weigh_own(
        &self,
        weights: &Array,
        private: &[(&[RowsKv], usize)],
        tail_values: &Array,
    ) -> Result<Array> {
        let mut weighed = Vec::with_capacity(private.len() + 1);
        let mut start = 0;
        for &(list, width) in private {
            let weights = sys::slice_axis(weights, 3, start, start + width)?;
            weighed.push(self.weigh_private(&weights, list)?);
            start += width;
        }
        if start == 0 {
            return Ok(weights.matmul(tail_values)?);
        }
        let end = weights.dim(3) as usize;
        weighed.push(sys::slice_axis(weights, 3, start, end)?.matmul(tail_values)?);
        total(&weighed)
    }

    /// Padded weights `(B, H_kv, G, width)` times the rows' own values: `(B, H_kv, G, D)`.
    fn weigh_private(&self, weights: &Array, list: &[RowsKv]) -> Result<Array> {
        let num_rows = weights.dim(0) as usize;
        let mut weighed = Vec::with_capacity(list.len());
        let mut next = 0;
        for kv in list {
            if next < kv.rows.start {
                weighed.push(self.nothing_weighed(kv.rows.start - next, weights.dtype())?);
            }
            let weights = rows_of(weights, &kv.rows, num_rows)?;
            let weights = sys::slice_axis(&weights, 3, 0, kv.values.dim(2) as usize)?;
            weighed.push(weights.matmul(&kv.values)?);
            next = kv.rows.end;
        }
        if next < num_rows {
            weighed.push(self.nothing_weighed(num_rows - next, weights.dtype())?);
        }
        Ok(if weighed.len() == 1 { weighed.remove(0) } else { ops::concatenate(&weighed, 0)? })
    }

    fn nothing_weighed(&self, num_rows: usize, dtype: Dtype) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        Ok(ops::zeros_dtype(&[num_rows as i32, num_kv_heads, self.num_groups(), head_dim], dtype)?)
    }

    /// `(n, H_kv, G, X)` → `(1, H_kv, n·G, X)`: the rows of a cohort as those of one matrix.
    fn cohort_layout(&self, array: &Array) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let (num_rows, width) = (array.dim(0), array.dim(3));
        Ok(array.transpose_axes(&[1, 0, 2, 3])?.reshape(&[
            1,
            num_kv_heads,
            num_rows * self.num_groups(),
            width,
        ])?)
    }

    /// What a part needs of a per-row array `(B, H_kv, G, X)`, in the layout of its scores.
    fn gathered_for(&self, part: &Part<'_>, array: &Array) -> Result<Array> {
        match part {
            Part::Shared { rows, .. } => {
                self.cohort_layout(&sys::slice_axis(array, 0, rows.start, rows.end)?)
            }
            Part::Own { .. } => Ok(array.clone()),
        }
    }

    /// The reverse: a part's result as `(B, H_kv, G, X)`, with `fill` for rows that are not in it.
    fn spread_from(&self, part: &Part<'_>, array: Array, num_rows: i32, fill: f32) -> Result<Array> {
        let Part::Shared { rows, .. } = part else { return Ok(array) };
        let (num_kv_heads, _) = self.dims();
        let width = array.dim(3);
        let by_row = array
            .reshape(&[num_kv_heads, rows.len() as i32, self.num_groups(), width])?
            .transpose_axes(&[1, 0, 2, 3])?;
        let after = num_rows - rows.end as i32;
        if rows.start == 0 && after == 0 {
            return Ok(by_row);
        }
        let pads: &[(i32, i32)] = &[(rows.start as i32, after), (0, 0), (0, 0), (0, 0)];
        let fill = Array::from_f32(fill).as_dtype(by_row.dtype())?;
        Ok(ops::pad(by_row, pads, fill, None)?)
    }

    /// Scores of rows that see none of `num_keys` keys.
    fn nothing_seen(&self, num_rows: usize, num_keys: usize, dtype: Dtype) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [num_rows as i32, num_kv_heads, self.num_groups(), num_keys as i32];
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

/// Some rows of an array that has `num_rows` of them.
fn rows_of(array: &Array, rows: &Range<usize>, num_rows: usize) -> Result<Array> {
    Ok(if rows.len() == num_rows { array.clone() } else { sys::slice_axis(array, 0, rows.start, rows.end)? })
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
