//! One decode step: many sequences, one query row each.
//!
//! Owns what rows see, shared or their own, and how its parts make one softmax. Prefill chunks and
//! what both have in common are the parent's.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops};

use super::{Attention, ComputeDevice, LayerKv, Result, largest, sys, total};
use crate::mlx::arrays::{concatenated, padded, rows_of};

/// Scores of one layer up to which further operations are made before they are computed: beyond it
/// the memory that MLX takes ahead on the CPU, see `chunk_in_blocks`, would be mostly scores.
const MAX_SCORES_AHEAD: usize = 1 << 18;

/// Consecutive decode rows that run on the same stored segments.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct CohortRows {
    pub rows: Range<usize>,
    /// The segments' KV of this layer, in order of position.
    pub pieces: Vec<LayerKv>,
}

/// KV of consecutive decode rows side by side, each row's its own.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct RowsKv {
    pub rows: Range<usize>,
    /// `(n, H_kv, L, D)`
    pub keys: Array,
    pub values: Array,
    /// Hides what is not there or outside the window, `(n, 1, 1, L)`; float32.
    pub mask: Option<Array>,
}

/// KV of one layer as decode rows see it, one row of each of several sequences.
#[derive(Debug)]
pub(in crate::mlx) struct DecodeKv {
    /// Position of each row.
    pub positions: Vec<usize>,
    /// What rows share, in the order of rows; rows that share nothing are in none.
    pub cohorts: Vec<CohortRows>,
    /// What rows have to themselves before the tail: in each list every row is in one entry at most,
    /// and entries are in the order of rows.
    pub private: Vec<Vec<RowsKv>>,
    /// The tail's keys and values with this step's, `(B, H_kv, W, D)`.
    pub tail: (Array, Array),
    /// Added to the tail's scores, `(B, 1, 1, W)`; `None` when every slot is seen.
    pub tail_mask: Option<Array>,
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
    /// Attends one decode step of all rows, `(B, H, D)`: `(B, H·D)`.
    pub(super) fn decode(&self, queries: &Array, kv: &DecodeKv) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = queries.dim(0);
        let queries =
            self.scale_queries(queries)?.reshape(&[num_rows, num_kv_heads, num_groups, head_dim])?;
        let parts = self.decode_parts(kv, &queries)?;

        // With one part, a softmax of its own; else one maximum over all parts.
        let attended = if let [Part::Own { private, scores }] = parts.as_slice() {
            self.weigh_own(&self.ops.softmax_last(scores)?, private, &kv.tail.1)?
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
                    Part::Own { private, .. } => self.weigh_own(&weights, private, &kv.tail.1)?,
                };
                weighed.push(self.spread_from(part, values, num_rows, 0.0)?);
            }
            total(&weighed)?.divide(total(&sums)?)?
        };
        let num_scores: usize = parts.iter().map(|part| part.scores().size()).sum();
        if self.device == ComputeDevice::Cpu && num_scores > MAX_SCORES_AHEAD {
            drop(parts);
            attended.eval()?;
        }
        Ok(attended.reshape(&[num_rows, num_kv_heads * num_groups * head_dim])?)
    }

    /// Scores of scaled queries `(B, H_kv, G, D)` against everything the rows see.
    fn decode_parts<'a>(&self, kv: &'a DecodeKv, queries: &Array) -> Result<Vec<Part<'a>>> {
        let mut parts = Vec::new();
        for cohort in &kv.cohorts {
            let positions = &kv.positions[cohort.rows.clone()];
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
        let mut private = Vec::with_capacity(kv.private.len());
        let mut own = Vec::with_capacity(kv.private.len() + 1);
        for list in &kv.private {
            let width = list.iter().map(|kv| kv.keys.dim(2) as usize).max().unwrap_or(0);
            if width > 0 {
                own.push(self.private_scores(queries, list, width)?);
                private.push((list.as_slice(), width));
            }
        }
        let mut scores = self.cap(queries.matmul(kv.tail.0.swap_axes(2, 3)?)?)?;
        if let Some(mask) = &kv.tail_mask {
            scores = scores.add(mask)?;
        }
        own.push(scores);
        let scores = concatenated(own, 3)?;
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
        let rows = positions.iter().flat_map(|&position| std::iter::repeat_n(position, num_groups));
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
            scores.push(padded(&seen, 3, width, f32::NEG_INFINITY)?);
            next = kv.rows.end;
        }
        if next < num_rows {
            scores.push(self.nothing_seen(num_rows - next, width, queries.dtype())?);
        }
        concatenated(scores, 0)
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
        concatenated(weighed, 0)
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
}
