//! KV arrays: of one range of tokens, and of the last tokens of all decoding sequences.
//!
//! Owns the arrays' layout and growth; whose they are is `live`'s business. Every array is
//! immutable once made, so passes under way and other sequences keep what they read. Keys are
//! stored after RoPE at their absolute position.

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{
    arrays::{compact, padded},
    error::Result,
    sys,
};
use crate::engine::SequenceId;

/// Decode steps that the tail holds before it is moved into the sequences' own KV.
pub(super) const MAX_TAIL: usize = 64;

/// Slots that the tail gets at least when it is full.
const MIN_FREE_SLOTS: usize = 2;

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

    /// KV of the positions from `first` on, which comes in parts of `(1, H_kv, n, D)`, after what `earlier`
    /// holds of the positions before; a copy in any case.
    pub(super) fn after(
        earlier: Option<&Self>,
        first: usize,
        keys: Vec<Array>,
        values: Vec<Array>,
    ) -> Result<Self> {
        let joined = |earlier: Option<&Array>, parts: Vec<Array>| -> Result<Array> {
            let parts: Vec<Array> = earlier.cloned().into_iter().chain(parts).collect();
            if let [single] = parts.as_slice() { compact(single) } else { Ok(ops::concatenate(&parts, 2)?) }
        };
        Ok(Self {
            first: earlier.map_or(first, |earlier| earlier.first),
            keys: joined(earlier.map(|kv| &kv.keys), keys)?,
            values: joined(earlier.map(|kv| &kv.values), values)?,
        })
    }

    /// Neighbouring pieces, at least one, as one; a single one is not copied.
    pub(super) fn joined<'a>(pieces: impl Iterator<Item = &'a Self>) -> Result<Self> {
        let pieces: Vec<&Self> = pieces.collect();
        let [first, _, ..] = pieces.as_slice() else { return Ok(pieces[0].clone()) };
        let keys: Vec<_> = pieces.iter().map(|kv| &kv.keys).collect();
        let values: Vec<_> = pieces.iter().map(|kv| &kv.values).collect();
        Ok(Self {
            first: first.first,
            keys: ops::concatenate(&keys, 2)?,
            values: ops::concatenate(&values, 2)?,
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
///   |row 0: ......  |   a decode step fills the next slot of every row, with one operation a
///   |row 1:    ...  |   layer; a row that joined later starts further right, and there is room
///   |row 2: ......  |   for the next few steps
/// ```
///
/// Appending to each sequence's own KV instead would copy all of it every step.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub rows: Vec<TailRow>,
    /// Slots in use, the same for every row.
    pub num_slots: usize,
    /// Keys and values `(B, H_kv, C, D)` of each layer, `C` being slots in use or more; empty when
    /// `num_slots` is 0.
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

    /// Fills the last slot in use of one layer with keys and values `(B, H_kv, 1, D)`, and returns those of
    /// all slots, `(B, H_kv, num_slots, D)`. Layers come in order.
    pub(super) fn fill_slot(&mut self, layer: usize, keys: Array, values: Array) -> Result<(Array, Array)> {
        let slot = self.num_slots - 1;
        // An eighth more than there are: a third of the copies, and little memory without use.
        let num_slots = (slot + (slot / 8).max(MIN_FREE_SLOTS)).min(MAX_TAIL);
        let filled = |all: Array, new: Array| -> Result<Array> {
            let is_full = all.dim(2) as usize == slot;
            Ok(sys::set_axis(if is_full { padded(&all, 2, num_slots, 0.0)? } else { all }, 2, slot, &new)?)
        };
        let is_first = layer == self.layers.len();
        if is_first {
            self.layers.push((padded(&keys, 2, num_slots, 0.0)?, padded(&values, 2, num_slots, 0.0)?));
        }
        let all = &mut self.layers[layer];
        if !is_first {
            // Not held here meanwhile: what nobody holds is written in place.
            let (all_keys, all_values) = std::mem::replace(all, (keys.clone(), values.clone()));
            *all = (filled(all_keys, keys)?, filled(all_values, values)?);
        }
        Ok((sys::slice_axis(&all.0, 2, 0, self.num_slots)?, sys::slice_axis(&all.1, 2, 0, self.num_slots)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills the next slot of all rows with one number a row, and returns what all slots hold by row.
    fn step(tail: &mut Tail, numbers: &[f32]) -> Vec<Vec<f32>> {
        let new = || Array::from_slice(numbers, &[numbers.len() as i32, 1, 1, 1]);
        tail.num_slots += 1;
        let (keys, values) = tail.fill_slot(0, new(), new()).unwrap();
        assert!(keys.eq(&values).unwrap().all(None).unwrap().item_exact::<bool>());
        let rows = compact(&keys).unwrap().to_vec_exact::<f32>().unwrap();
        rows.chunks(tail.num_slots).map(<[f32]>::to_vec).collect()
    }

    fn memory(tail: &Tail) -> *const f32 {
        tail.layers[0].0.try_as_slice::<f32>().unwrap().as_ptr()
    }

    #[test]
    fn slots_are_filled_in_place_while_there_is_room() {
        let mut tail = Tail::default();
        tail.arrange(&[SequenceId(1), SequenceId(2)]).unwrap();
        let mut expected = vec![Vec::new(), Vec::new()];
        let mut num_moves = 0;
        for slot in 0..MAX_TAIL {
            let before = (slot > 0).then(|| memory(&tail));
            let numbers = [slot as f32, -(slot as f32)];
            for (row, number) in expected.iter_mut().zip(numbers) {
                row.push(number);
            }
            assert_eq!(step(&mut tail, &numbers), expected);
            num_moves += usize::from(before.is_some_and(|before| before != memory(&tail)));
            assert!(tail.layers[0].0.dim(2) as usize <= tail.num_slots + MIN_FREE_SLOTS.max(slot / 8));
        }
        assert_eq!(tail.layers[0].0.dim(2) as usize, MAX_TAIL);
        assert!(num_moves <= MAX_TAIL / 3, "moved {num_moves} times in {MAX_TAIL} steps");
    }

    #[test]
    fn slots_that_only_rows_now_gone_had_tokens_in_are_dropped() {
        let [first, second, third] = [1, 2, 3].map(SequenceId);
        let mut tail = Tail::default();
        tail.arrange(&[first]).unwrap();
        for number in 0..6 {
            step(&mut tail, &[number as f32]);
        }
        tail.arrange(&[first, second]).unwrap();
        step(&mut tail, &[6.0, 60.0]);
        tail.arrange(&[third, second]).unwrap();
        let starts = |tail: &Tail| tail.rows.iter().map(|row| row.start).collect::<Vec<_>>();
        assert_eq!((tail.num_slots, starts(&tail)), (1, vec![1, 0]));
        assert_eq!(step(&mut tail, &[70.0, 61.0])[1], [60.0, 61.0]);
        let (keys, _) = tail.row_kv(0, 1, 2).unwrap();
        assert_eq!(compact(&keys).unwrap().to_vec_exact::<f32>().unwrap(), [60.0, 61.0]);
        // Those who joined and have not stepped yet have no slots.
        tail.arrange(&[first, second]).unwrap();
        tail.arrange(&[first]).unwrap();
        assert_eq!((tail.num_slots, tail.layers.len(), starts(&tail)), (0, 0, vec![0]));
        assert_eq!(step(&mut tail, &[8.0]), [[8.0]]);
    }
}
