//! Whose recurrent states are whose while sequences run.
//!
//! Owns the map from sequences to states. Sequences that decode keep theirs side by side, one
//! batch a layer, so that a step needs no gathering; the batch is rebuilt only when its rows
//! change. Sequences that prefill have one each. What a layer does to a state is its business.

use std::collections::HashMap;

use mlx_rs::Array;

use super::state::RecurrentState;
use crate::{
    engine::SequenceId,
    mlx::{
        arrays::concatenated,
        error::{MlxError, Result},
        packed::PassChunk,
        sys,
    },
};

/// Packed rows that a layer mixes together: one row of each decoding sequence, or a chunk of one.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct RowGroup {
    first: usize,
    pub num_sequences: usize,
    /// Rows of each sequence.
    pub num_tokens: usize,
}

impl RowGroup {
    /// This group's rows of a packed `(T, W)`, by sequence: `(B, n, W)`.
    pub(in crate::mlx) fn of(&self, packed: &Array) -> Result<Array> {
        let last = self.first + self.num_sequences * self.num_tokens;
        let shape = [self.num_sequences as i32, self.num_tokens as i32, packed.dim(1)];
        Ok(sys::slice_axis(packed, 0, self.first, last)?.reshape(&shape)?)
    }

    /// Back to packed rows: `(B, n, …)` → `(B·n, W)`.
    pub(in crate::mlx) fn pack(&self, by_sequence: &Array) -> Result<Array> {
        Ok(by_sequence.reshape(&[(self.num_sequences * self.num_tokens) as i32, -1])?)
    }
}

/// Whose a pass's packed rows are: one for each decoding sequence, in the order of the last
/// `align_decode`, then the chunks.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct RowOwners<'a> {
    pub num_decode: usize,
    pub chunks: &'a [PassChunk],
}

/// What a layer does with one group: its packed output rows and the state after them.
pub(in crate::mlx) type Mixed = (Array, RecurrentState);

/// States of all running sequences.
#[derive(Debug, Default)]
pub(in crate::mlx) struct LiveStates {
    /// What every sequence starts with, by recurrent layer; empty in a model without such layers.
    initial: Vec<RecurrentState>,
    /// Sequences that do not decode, by recurrent layer.
    waiting: HashMap<SequenceId, Vec<RecurrentState>>,
    /// Rows of `decoding`; `None` where the sequence has been released.
    decode_order: Vec<Option<SequenceId>>,
    /// Side by side, by recurrent layer; empty where nothing decodes.
    decoding: Vec<RecurrentState>,
    /// The same before the last step, where that may prove to be one too many; else empty.
    before: Vec<RecurrentState>,
    keeps_before: bool,
}

impl LiveStates {
    /// No sequences yet; each will start with the states given.
    pub(in crate::mlx) fn new(initial: Vec<RecurrentState>) -> Self {
        Self { initial, ..Self::default() }
    }

    /// Whether the model has recurrent layers at all.
    pub(in crate::mlx) fn are_kept(&self) -> bool {
        !self.initial.is_empty()
    }

    /// Drops a sequence. Its row of the batch goes when the batch is next rebuilt, or with the last.
    pub(in crate::mlx) fn release(&mut self, sequence: SequenceId) {
        self.waiting.remove(&sequence);
        for row in &mut self.decode_order {
            row.take_if(|row| *row == sequence);
        }
        if self.decode_order.iter().all(Option::is_none) {
            self.decode_order.clear();
            self.decoding.clear();
            self.before.clear();
        }
    }

    /// Begins a decode step. Where it `is_ahead` of tokens that may turn out to end their answers, what the
    /// states are before it stays until the next one.
    pub(in crate::mlx) fn begin_step(&mut self, is_ahead: bool) {
        self.before.clear();
        self.keeps_before = is_ahead;
    }

    /// The states of a decode row before the last step, where they are there still.
    pub(in crate::mlx) fn checkpoint_before_step(
        &self,
        sequence: SequenceId,
    ) -> Result<Option<Vec<RecurrentState>>> {
        let row = self.decode_order.iter().position(|row| *row == Some(sequence));
        match row.filter(|_| self.before.len() == self.initial.len()) {
            Some(row) => self.before.iter().map(|state| state.of(row)).collect::<Result<_>>().map(Some),
            None => Ok(None),
        }
    }

    /// The states of a sequence at its present position: a checkpoint. Those of a sequence that is
    /// not known are what every sequence starts with.
    pub(in crate::mlx) fn checkpoint(&self, sequence: SequenceId) -> Result<Vec<RecurrentState>> {
        if let Some(states) = self.waiting.get(&sequence) {
            return Ok(states.clone());
        }
        match self.decode_order.iter().position(|row| *row == Some(sequence)) {
            Some(row) => self.decoding.iter().map(|state| state.of(row)).collect(),
            None => Ok(self.initial.clone()),
        }
    }

    /// Starts a sequence, or puts it back, at the position of a checkpoint.
    pub(in crate::mlx) fn resume(&mut self, sequence: SequenceId, checkpoint: Vec<RecurrentState>) {
        self.release(sequence);
        self.waiting.insert(sequence, checkpoint);
    }

    /// Brings the batch in line with the sequences that decode in the next pass, in that order.
    /// Those that have left it without being released wait with their own copies.
    pub(in crate::mlx) fn align_decode(&mut self, order: &[SequenceId]) -> Result<()> {
        let unchanged = self.decode_order.iter().copied().eq(order.iter().copied().map(Some));
        if !self.are_kept() || unchanged {
            return Ok(());
        }
        let leaving: Vec<SequenceId> =
            self.decode_order.iter().flatten().copied().filter(|row| !order.contains(row)).collect();
        for sequence in leaving {
            let checkpoint = self.checkpoint(sequence)?;
            self.resume(sequence, checkpoint);
        }
        // Each row's source: a row of the old batch, or one of the joining states that follow it.
        let num_old = self.decode_order.len();
        let mut joining: Vec<Vec<RecurrentState>> = Vec::new();
        let mut sources = Vec::with_capacity(order.len());
        for &sequence in order {
            let old = self.decode_order.iter().position(|row| *row == Some(sequence));
            sources.push(old.unwrap_or(num_old + joining.len()));
            if old.is_none() {
                joining.push(self.waiting.remove(&sequence).unwrap_or_else(|| self.initial.clone()));
            }
        }
        let mut decoding = Vec::with_capacity(self.initial.len());
        if !order.is_empty() {
            for layer in 0..self.initial.len() {
                let joining = joining.iter().map(|states| states[layer].clone());
                let parts: Vec<RecurrentState> =
                    self.decoding.get(layer).cloned().into_iter().chain(joining).collect();
                let together = RecurrentState::side_by_side(&parts)?;
                let in_order = sources.iter().copied().eq(0..together.num_sequences());
                decoding.push(if in_order { together } else { together.select(&sources)? });
            }
        }
        self.decoding = decoding;
        self.decode_order = order.iter().copied().map(Some).collect();
        Ok(())
    }

    /// Runs one layer over a pass's rows, group by group, and keeps the states after them.
    /// Returns the packed output rows, `(T, W)`.
    pub(in crate::mlx) fn advance(
        &mut self,
        layer: usize,
        RowOwners { num_decode, chunks }: RowOwners<'_>,
        mix: &mut dyn FnMut(RowGroup, &RecurrentState) -> Result<Mixed>,
    ) -> Result<Array> {
        let mut outputs = Vec::with_capacity(1 + chunks.len());
        if num_decode > 0 {
            let state = self.decoding.get_mut(layer).filter(|state| state.num_sequences() == num_decode);
            let state = state
                .ok_or_else(|| MlxError::Unsupported("decode rows without recurrent states".to_owned()))?;
            let (output, next) = mix(RowGroup { first: 0, num_sequences: num_decode, num_tokens: 1 }, state)?;
            let before = std::mem::replace(state, next);
            if self.keeps_before {
                self.before.push(before);
            }
            outputs.push(output);
        }
        let mut first = num_decode;
        for chunk in chunks {
            let states = self.waiting.entry(chunk.sequence).or_insert_with(|| self.initial.clone());
            let state = states
                .get_mut(layer)
                .ok_or_else(|| MlxError::Unsupported(format!("no state for recurrent layer {layer}")))?;
            let group = RowGroup { first, num_sequences: 1, num_tokens: chunk.num_tokens };
            let (output, next) = mix(group, state)?;
            *state = next;
            outputs.push(output);
            first += chunk.num_tokens;
        }
        concatenated(outputs, 0)
    }

    /// The arrays of a sequence that does not decode, for evaluation.
    pub(in crate::mlx) fn arrays(&self, sequence: SequenceId) -> impl Iterator<Item = &Array> {
        self.waiting.get(&sequence).into_iter().flatten().flat_map(RecurrentState::arrays)
    }
}

#[cfg(test)]
mod tests;
