//! The state of one recurrent layer, of one sequence or of several side by side.
//!
//! Owns putting states of sequences together and taking them apart. What the arrays mean is the
//! layers' business, whose they are `live_states`'.

use mlx_rs::{Array, ops};

use crate::mlx::{arrays::compact, error::Result, sys};

/// State of one recurrent layer after some position, of B sequences.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct RecurrentState {
    /// The convolution's last inputs, oldest first, `(B, K - 1, C)`.
    pub conv_tail: Array,
    /// What keys have written, by head `(B, H, D_k, D_v)` or by group of heads, in float32; `None` in a layer of
    /// convolution only.
    pub memory: Option<Array>,
}

impl RecurrentState {
    /// Arrays made one by one from these, the convolution's tail first.
    pub(in crate::mlx) fn map(&self, mut change: impl FnMut(&Array) -> Result<Array>) -> Result<Self> {
        Ok(Self {
            conv_tail: change(&self.conv_tail)?,
            memory: self.memory.as_ref().map(change).transpose()?,
        })
    }

    pub(in crate::mlx) fn num_sequences(&self) -> usize {
        self.conv_tail.dim(0) as usize
    }

    /// The states of several sequences side by side, in the order given.
    pub(super) fn side_by_side(states: &[Self]) -> Result<Self> {
        if let [only] = states {
            return Ok(only.clone());
        }
        let tails: Vec<&Array> = states.iter().map(|state| &state.conv_tail).collect();
        let memories: Vec<&Array> = states.iter().filter_map(|state| state.memory.as_ref()).collect();
        Ok(Self {
            conv_tail: ops::concatenate(&tails, 0)?,
            memory: if memories.is_empty() { None } else { Some(ops::concatenate(&memories, 0)?) },
        })
    }

    /// The states of the chosen sequences, in the order given.
    pub(super) fn select(&self, sequences: &[usize]) -> Result<Self> {
        let indices: Vec<i32> = sequences.iter().map(|&index| index as i32).collect();
        let indices = Array::from_slice(&indices, &[indices.len() as i32]);
        self.map(|array| Ok(array.take_axis(&indices, 0)?))
    }

    /// A copy of one sequence's state that holds no memory of the others.
    pub(super) fn of(&self, sequence: usize) -> Result<Self> {
        self.map(|array| compact(&sys::slice_axis(array, 0, sequence, sequence + 1)?))
    }

    /// The arrays, for evaluation and accounting.
    pub(in crate::mlx) fn arrays(&self) -> impl Iterator<Item = &Array> {
        std::iter::once(&self.conv_tail).chain(&self.memory)
    }

    /// Bytes of all arrays.
    pub(in crate::mlx) fn num_bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }
}
