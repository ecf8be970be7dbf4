//! Live KV: what the running sequences have computed so far.
//!
//! Owns the arrays and their growth. Every array is immutable once made, so passes under way keep
//! what they read. A decoding sequence's KV lies in two places:
//!
//! ```text
//! body  one per sequence   |.......................|              grows by whole tails
//! tail  one per batch      |row 0: ......    |  all rows step together, so a decode step
//!                          |row 1:    ...    |  appends with one concatenation a layer;
//!                          |row 2: ......    |  a row that joined later starts further right
//! ```
//!
//! Appending one row to each body every step would copy all KV every step; a tail of at most
//! [`MAX_TAIL`] steps bounds that. Keys are stored after RoPE.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{error::Result, sys};
use crate::engine::SequenceId;

/// Decode steps that the shared tail holds before it is moved into the bodies.
pub(super) const MAX_TAIL: usize = 32;

/// KV of consecutive positions of one sequence in one layer, `(1, H_kv, L, D)` each.
#[derive(Debug, Clone)]
pub(super) struct LayerKv {
    /// Position of the first token held; greater than 0 where a window let earlier ones go.
    pub first: usize,
    pub keys: Array,
    pub values: Array,
}

impl LayerKv {
    pub(super) fn num_tokens(&self) -> usize {
        self.keys.dim(2) as usize
    }

    /// Position after the last token held.
    pub(super) fn end(&self) -> usize {
        self.first + self.num_tokens()
    }

    /// This KV followed by the next positions' `(1, H_kv, n, D)`.
    pub(super) fn followed_by(&self, keys: &Array, values: &Array) -> Result<Self> {
        Ok(Self {
            first: self.first,
            keys: ops::concatenate(&[&self.keys, keys], 2)?,
            values: ops::concatenate(&[&self.values, values], 2)?,
        })
    }

    /// The tokens that positions from `position` on can still see through `window`, as a view.
    pub(super) fn visible_from(&self, position: usize, window: Option<usize>) -> Result<Self> {
        let Some(window) = window else { return Ok(self.clone()) };
        let oldest = (position + 1).saturating_sub(window).clamp(self.first, self.end());
        self.slice(oldest..self.end())
    }

    /// The tokens at these positions, as a view.
    pub(super) fn slice(&self, positions: Range<usize>) -> Result<Self> {
        if positions.start == self.first && positions.end == self.end() {
            return Ok(self.clone());
        }
        let (start, stop) = (positions.start - self.first, positions.end - self.first);
        Ok(Self {
            first: positions.start,
            keys: sys::slice_axis(&self.keys, 2, start, stop)?,
            values: sys::slice_axis(&self.values, 2, start, stop)?,
        })
    }

    /// A copy that holds no more memory than its own tokens.
    pub(super) fn compact(&self) -> Result<Self> {
        Ok(Self { first: self.first, keys: self.keys.contiguous()?, values: self.values.contiguous()? })
    }
}

/// KV of one sequence up to its tail, in every layer.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Tokens in it, those let go by windows included.
    pub num_tokens: usize,
    /// Empty before the first chunk.
    pub layers: Vec<LayerKv>,
}

/// A decoding sequence's place in the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TailRow {
    pub sequence: SequenceId,
    /// The first slot that is this sequence's.
    pub start: usize,
}

/// The last few tokens of all decoding sequences.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub rows: Vec<TailRow>,
    /// Slots in use, the same for every row.
    pub num_slots: usize,
    /// Keys and values `(B, H_kv, num_slots, D)` of each layer; empty when `num_slots` is 0.
    pub layers: Vec<(Array, Array)>,
}

impl Tail {
    /// Tokens of row `row` that are in the tail.
    pub(super) fn num_tokens(&self, row: usize) -> usize {
        self.num_slots - self.rows[row].start
    }

    /// Drops the rows for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(SequenceId) -> bool) -> Result<()> {
        let kept: Vec<i32> =
            (0..self.rows.len()).filter(|&row| keep(self.rows[row].sequence)).map(|row| row as i32).collect();
        if kept.len() == self.rows.len() {
            return Ok(());
        }
        if kept.is_empty() {
            *self = Self::default();
            return Ok(());
        }
        let indices = Array::from_slice(&kept, &[kept.len() as i32]);
        for (keys, values) in &mut self.layers {
            *keys = keys.take_axis(&indices, 0)?;
            *values = values.take_axis(&indices, 0)?;
        }
        self.rows = kept.iter().map(|&row| self.rows[row as usize]).collect();
        Ok(())
    }

    /// Adds sequences that start to decode; their earlier slots are never looked at.
    pub(super) fn join(&mut self, sequences: &[SequenceId]) -> Result<()> {
        if sequences.is_empty() {
            return Ok(());
        }
        let start = self.num_slots;
        self.rows.extend(sequences.iter().map(|&sequence| TailRow { sequence, start }));
        for (keys, values) in &mut self.layers {
            let mut shape = keys.shape().to_vec();
            shape[0] = sequences.len() as i32;
            let unused = ops::zeros_dtype(&shape, keys.dtype())?;
            *keys = ops::concatenate(&[&*keys, &unused], 0)?;
            *values = ops::concatenate(&[&*values, &unused], 0)?;
        }
        Ok(())
    }

    /// The tokens of one row in one layer, `(1, H_kv, n, D)` each.
    pub(super) fn row_kv(&self, layer: usize, row: usize) -> Result<(Array, Array)> {
        let (keys, values) = &self.layers[layer];
        let start = self.rows[row].start;
        let pick = |array: &Array| -> Result<Array> {
            Ok(sys::slice_axis(&sys::slice_axis(array, 0, row, row + 1)?, 2, start, self.num_slots)?)
        };
        Ok((pick(keys)?, pick(values)?))
    }

    /// Forgets the tokens, keeping the rows: they have been moved into the bodies.
    pub(super) fn clear_slots(&mut self) {
        self.num_slots = 0;
        self.layers.clear();
        for row in &mut self.rows {
            row.start = 0;
        }
    }
}
