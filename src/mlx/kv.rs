//! KV arrays: of one range of tokens, and of the last tokens of all decoding sequences.
//!
//! Owns the arrays' layout and growth; whose they are is `live`'s business. Every array is
//! immutable once made, so passes under way and other sequences keep what they read. Keys are
//! stored after RoPE at their absolute position.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{arrays::compact, error::Result, sys};
use crate::engine::SequenceId;

/// Decode steps that the tail holds before it is moved into the sequences' own KV.
pub(super) const MAX_TAIL: usize = 64;

/// KV of consecutive positions of one sequence in one layer, `(1, H_kv, L, D)` each.
#[derive(Debug, Clone)]
pub(super) struct LayerKv {
    /// Position of the first token held.
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

    /// KV of packed rows from position `first` on, which come in parts of `(n, H_kv, D)`, after what
    /// `earlier` holds of the positions before; a copy in any case.
    pub(super) fn of_rows(
        earlier: Option<&Self>,
        first: usize,
        keys: &[Array],
        values: &[Array],
    ) -> Result<Self> {
        let by_head = |rows: &Array| rows.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3]);
        let joined = |earlier: Option<&Array>, rows: &[Array]| -> Result<Array> {
            let mut parts: Vec<Array> = earlier.into_iter().cloned().collect();
            for rows in rows {
                parts.push(by_head(rows)?);
            }
            if let [single] = parts.as_slice() { compact(single) } else { Ok(ops::concatenate(&parts, 2)?) }
        };
        Ok(Self {
            first: earlier.map_or(first, |earlier| earlier.first),
            keys: joined(earlier.map(|kv| &kv.keys), keys)?,
            values: joined(earlier.map(|kv| &kv.values), values)?,
        })
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
        Ok(Self { first: self.first, keys: compact(&self.keys)?, values: compact(&self.values)? })
    }

    /// Bytes of keys and values.
    pub(super) fn num_bytes(&self) -> u64 {
        (self.keys.nbytes() + self.values.nbytes()) as u64
    }
}

/// A decoding sequence's place in the tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TailRow {
    pub sequence: SequenceId,
    /// The first slot that is this sequence's.
    pub start: usize,
}

/// The last few tokens of all decoding sequences, which step together:
///
/// ```text
///   |row 0: ......    |   a decode step appends one slot to every row, with one concatenation
///   |row 1:    ...    |   a layer; a row that joined later starts further right
///   |row 2: ......    |
/// ```
///
/// Appending to each sequence's own KV instead would copy all of it every step.
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

    /// Row of a sequence.
    pub(super) fn row_of(&self, sequence: SequenceId) -> Option<usize> {
        self.rows.iter().position(|row| row.sequence == sequence)
    }

    /// Makes these the rows, in this order: known ones keep their tokens, others join with none,
    /// and what is not named is dropped.
    pub(super) fn arrange(&mut self, sequences: &[SequenceId]) -> Result<()> {
        if sequences.iter().eq(self.rows.iter().map(|row| &row.sequence)) {
            return Ok(());
        }
        if !sequences.iter().any(|&sequence| self.row_of(sequence).is_some()) {
            self.num_slots = 0;
            self.layers.clear();
        }
        let unused = self.rows.len() as i32;
        let mut joins = false;
        let mut sources = Vec::with_capacity(sequences.len());
        let mut rows = Vec::with_capacity(sequences.len());
        for &sequence in sequences {
            match self.row_of(sequence) {
                Some(row) => {
                    sources.push(row as i32);
                    rows.push(self.rows[row]);
                }
                None => {
                    joins = true;
                    sources.push(unused);
                    rows.push(TailRow { sequence, start: self.num_slots });
                }
            }
        }
        let sources = Array::from_slice(&sources, &[sources.len() as i32]);
        for (keys, values) in &mut self.layers {
            for array in [keys, values] {
                if joins {
                    let mut shape = array.shape().to_vec();
                    shape[0] = 1;
                    let row = ops::zeros_dtype(&shape, array.dtype())?;
                    *array = ops::concatenate(&[&*array, &row], 0)?;
                }
                *array = array.take_axis(&sources, 0)?;
            }
        }
        self.rows = rows;
        self.drop_unseen_slots()
    }

    /// Drops slots that only rows now gone had tokens in.
    fn drop_unseen_slots(&mut self) -> Result<()> {
        let first = self.rows.iter().map(|row| row.start).min().unwrap_or(0);
        if first == 0 {
            return Ok(());
        }
        if first == self.num_slots {
            self.clear_slots();
            return Ok(());
        }
        for (keys, values) in &mut self.layers {
            *keys = sys::slice_axis(keys, 2, first, self.num_slots)?;
            *values = sys::slice_axis(values, 2, first, self.num_slots)?;
        }
        self.num_slots -= first;
        for row in &mut self.rows {
            row.start -= first;
        }
        Ok(())
    }

    /// The first `num_tokens` tokens of one row in one layer, `(1, H_kv, n, D)` each.
    pub(super) fn row_kv(&self, layer: usize, row: usize, num_tokens: usize) -> Result<(Array, Array)> {
        let (keys, values) = &self.layers[layer];
        let start = self.rows[row].start;
        let pick = |array: &Array| -> Result<Array> {
            Ok(sys::slice_axis(&sys::slice_axis(array, 0, row, row + 1)?, 2, start, start + num_tokens)?)
        };
        Ok((pick(keys)?, pick(values)?))
    }

    /// Forgets the tokens, keeping the rows: they have been moved elsewhere.
    pub(super) fn clear_slots(&mut self) {
        self.num_slots = 0;
        self.layers.clear();
        for row in &mut self.rows {
            row.start = 0;
        }
    }
}
