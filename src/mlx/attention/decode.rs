//! One decode step: many sequences, one query row each.
//!
//! Owns what rows see, shared or their own, and how its parts make one softmax. Prefill chunks and
//! what both have in common are the parent's.

use std::ops::Range;

use mlx_rs::{Array, Dtype, ops};

use super::{Attention, ComputeDevice, LayerKv, Result, partial::Partial};
use crate::mlx::{
    arrays::{concatenated, padded, rows_of},
    ops::total,
    sys,
};

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
    /// Added to the tail's scores, `(B, 1, 1, W)`, float32; `None` when every slot is seen.
    pub tail_mask: Option<Array>,
}

/// One of [`DecodeKv::private`], and its width.
type PrivateList<'a> = (&'a [RowsKv], usize);

impl Attention<'_> {
    /// Attends one decode step of all rows, `(B, H, D)`: `(B, H·D)`.
    pub(super) fn decode(&self, queries: &Array, kv: &DecodeKv) -> Result<Array> {
        let num_rows = kv.positions.len();
        let width = (self.spec.num_heads * self.spec.head_dim) as i32;
        let queries = self.scaled(queries)?;
        let (scores, private) = self.own_scores(&queries, kv)?;
        let weigh = |weights: &Array| self.weigh_own(weights, &private, &kv.tail.1);
        if self.device == ComputeDevice::Gpu && kv.cohorts.is_empty() {
            // There a whole softmax is one kernel.
            let attended = weigh(&self.ops.softmax_last(&scores)?)?;
            return Ok(attended.reshape(&[num_rows as i32, width])?);
        }
        let by_row = |array: &Array| Ok(array.clone());
        let mut partials = vec![self.partial(vec![scores], |weights| weigh(&weights[0]), by_row)?];
        for cohort in &kv.cohorts {
            let of_cohort = rows_of(&queries, &cohort.rows, num_rows)?;
            for partial in self.shared(&of_cohort, &kv.positions[cohort.rows.clone()], &cohort.pieces)? {
                partials.push(partial.among(&cohort.rows, num_rows)?);
            }
        }
        Ok(Partial::merged(&partials, self.ops)?.reshape(&[num_rows as i32, width])?)
    }

    /// Scores of scaled queries `(B, H_kv, G, D)` against what rows have to themselves, the tail last:
    /// `(B, H_kv, G, L₁ + … + W)`. The lists come with their widths; rows that see less are padded.
    fn own_scores<'a>(&self, queries: &Array, kv: &'a DecodeKv) -> Result<(Array, Vec<PrivateList<'a>>)> {
        let mut private: Vec<PrivateList<'_>> = Vec::with_capacity(kv.private.len());
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
            scores = scores.add(mask.as_dtype(scores.dtype())?)?;
        }
        own.push(scores);
        Ok((concatenated(own, 3)?, private))
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

    /// Weights `(B, H_kv, G, L₁ + … + W)`, the tail's last, times the values that they are for: `(B, H_kv, G, D)`.
    fn weigh_own(&self, weights: &Array, private: &[PrivateList<'_>], tail_values: &Array) -> Result<Array> {
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
        Ok(total(&weighed)?)
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

    /// Scores of rows that see none of `num_keys` keys.
    fn nothing_seen(&self, num_rows: usize, num_keys: usize, dtype: Dtype) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [num_rows as i32, num_kv_heads, self.num_groups(), num_keys as i32];
        let masked = Array::from_f32(f32::NEG_INFINITY).as_dtype(dtype)?;
        Ok(ops::broadcast_to(masked, &shape)?)
    }
}
