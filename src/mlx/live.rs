//! Whose packed rows are whose: the KV of all running sequences during a forward pass.
//!
//! Owns the map from sequences to KV and what a pass does to it layer by layer. The arrays'
//! layout is `kv`'s, the arithmetic `attention`'s.

use std::collections::HashMap;

use mlx_rs::{Array, ops};

use super::{
    attention::{Attention, Chunk, DecodeRows},
    error::{MlxError, Result},
    kv::{Body, LayerKv, MAX_TAIL, Tail},
    recurrent::{LiveStates, RecurrentState},
    sys,
};
use crate::engine::SequenceId;

/// A prefill chunk in a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct PassChunk {
    pub sequence: SequenceId,
    pub num_tokens: usize,
    /// Position of its first token.
    pub start: usize,
}

/// Whose tokens a pass computes: first one row per decoding sequence, then the chunks.
#[derive(Debug, Default)]
pub(super) struct LivePass {
    /// Position of each decode row, in the order of the tail's rows.
    pub decode_positions: Vec<usize>,
    pub chunks: Vec<PassChunk>,
    /// What each window hides of the tail, by window; `None` where nothing.
    tail_masks: HashMap<Option<usize>, Option<Array>>,
}

impl LivePass {
    /// Positions of the packed rows.
    pub(super) fn positions(&self) -> Vec<i32> {
        let chunks = self.chunks.iter().flat_map(|chunk| chunk.start..chunk.start + chunk.num_tokens);
        self.decode_positions.iter().copied().chain(chunks).map(|position| position as i32).collect()
    }
}

/// Packed queries, keys and values of one layer after RoPE, `(T, H or H_kv, D)`.
#[derive(Debug)]
pub(super) struct LayerRows {
    pub queries: Array,
    pub keys: Array,
    pub values: Array,
}

/// KV of all running sequences, by attention layer, and the states of their recurrent layers.
#[derive(Debug, Default)]
pub(super) struct LiveKv {
    bodies: HashMap<SequenceId, Body>,
    tail: Tail,
    pub states: LiveStates,
}

impl LiveKv {
    /// No sequences yet; each will start with these states of the recurrent layers.
    pub(super) fn new(initial_states: Vec<RecurrentState>) -> Self {
        Self { states: LiveStates::new(initial_states), ..Self::default() }
    }

    /// Drops a sequence. Its tail row goes with the next pass.
    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.bodies.remove(&sequence);
        self.states.release(sequence);
    }

    /// Sequences in the order of their decode rows.
    pub(super) fn decode_order(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.tail.rows.iter().map(|row| row.sequence)
    }

    /// Number of tokens of a sequence, 0 if it is not known.
    pub(super) fn num_tokens(&self, sequence: SequenceId) -> usize {
        let tail = self
            .tail
            .rows
            .iter()
            .position(|row| row.sequence == sequence)
            .map_or(0, |row| self.tail.num_tokens(row));
        self.bodies.get(&sequence).map_or(0, |body| body.num_tokens + tail)
    }

    /// Brings the tail's rows in line with the sequences that decode in the next pass and makes
    /// room for one more slot. Those that are not decoding yet join.
    pub(super) fn prepare_decode(
        &mut self,
        decoding: &[SequenceId],
        windows: &[Option<usize>],
    ) -> Result<()> {
        self.tail.retain(|sequence| decoding.contains(&sequence))?;
        if self.tail.num_slots >= MAX_TAIL {
            self.move_tail_into_bodies(windows)?;
        }
        let joining: Vec<SequenceId> = decoding
            .iter()
            .copied()
            .filter(|sequence| !self.tail.rows.iter().any(|row| row.sequence == *sequence))
            .collect();
        if let Some(unknown) = joining.iter().find(|sequence| !self.bodies.contains_key(sequence)) {
            return Err(MlxError::Unsupported(format!("sequence {} decodes before its prefill", unknown.0)));
        }
        self.tail.join(&joining)?;
        let order: Vec<SequenceId> = self.decode_order().collect();
        self.states.align_decode(&order)
    }

    fn move_tail_into_bodies(&mut self, windows: &[Option<usize>]) -> Result<()> {
        let mut moved = Vec::new();
        for (row, tail_row) in self.tail.rows.iter().enumerate() {
            let Some(body) = self.bodies.get_mut(&tail_row.sequence) else { continue };
            let num_tokens = self.tail.num_tokens(row);
            if num_tokens == 0 {
                continue;
            }
            body.num_tokens += num_tokens;
            for (layer, kv) in body.layers.iter_mut().enumerate() {
                let (keys, values) = self.tail.row_kv(layer, row)?;
                *kv = kv
                    .followed_by(&keys, &values)?
                    .visible_from(body.num_tokens, windows[layer])?
                    .compact()?;
                moved.push(kv.keys.clone());
                moved.push(kv.values.clone());
            }
        }
        mlx_rs::transforms::async_eval(&moved)?;
        self.tail.clear_slots();
        Ok(())
    }

    /// Starts a pass: one decode row for each of the tail's rows, then the chunks.
    pub(super) fn begin_pass(
        &mut self,
        chunks: Vec<PassChunk>,
        windows: &[Option<usize>],
    ) -> Result<LivePass> {
        let mut pass = LivePass { chunks, ..LivePass::default() };
        for (row, tail_row) in self.tail.rows.iter().enumerate() {
            let body = self.bodies.get(&tail_row.sequence).map_or(0, |body| body.num_tokens);
            pass.decode_positions.push(body + self.tail.num_tokens(row));
        }
        for chunk in &pass.chunks {
            self.bodies.entry(chunk.sequence).or_default();
        }
        if !self.tail.rows.is_empty() {
            self.tail.num_slots += 1;
            for &window in windows {
                pass.tail_masks.entry(window).or_insert_with(|| self.tail_mask(window));
            }
        }
        Ok(pass)
    }

    /// Hides slots before a row's start or outside the window, `(B, 1, 1, W)`; float32.
    fn tail_mask(&self, window: Option<usize>) -> Option<Array> {
        let num_slots = self.tail.num_slots;
        let outside = window.map_or(0, |window| num_slots.saturating_sub(window));
        if self.tail.rows.iter().all(|row| row.start.max(outside) == 0) {
            return None;
        }
        let mask: Vec<f32> = self
            .tail
            .rows
            .iter()
            .flat_map(|row| {
                let first = row.start.max(outside);
                (0..num_slots).map(move |slot| if slot < first { f32::NEG_INFINITY } else { 0.0 })
            })
            .collect();
        Some(Array::from_slice(&mask, &[self.tail.rows.len() as i32, 1, 1, num_slots as i32]))
    }

    /// Appends the pass's keys and values of one layer and attends: `(T, H·D)`.
    pub(super) fn attend(
        &mut self,
        layer: usize,
        attention: &Attention<'_>,
        rows: &LayerRows,
        pass: &LivePass,
    ) -> Result<Array> {
        let mut parts = Vec::with_capacity(1 + pass.chunks.len());
        let num_decode = pass.decode_positions.len();
        if num_decode > 0 {
            parts.push(self.attend_decode(layer, attention, rows, pass)?);
        }
        let mut first = num_decode;
        for chunk in &pass.chunks {
            let last = first + chunk.num_tokens;
            parts.push(self.attend_chunk(layer, attention, rows, (first, last), chunk)?);
            first = last;
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { ops::concatenate(&parts, 0)? })
    }

    fn attend_decode(
        &mut self,
        layer: usize,
        attention: &Attention<'_>,
        rows: &LayerRows,
        pass: &LivePass,
    ) -> Result<Array> {
        let num_decode = pass.decode_positions.len();
        let step = |array: &Array| -> Result<Array> {
            Ok(sys::slice_axis(array, 0, 0, num_decode)?.expand_dims(2)?)
        };
        let (new_keys, new_values) = (step(&rows.keys)?, step(&rows.values)?);
        let (keys, values) = match self.tail.layers.get(layer) {
            Some((keys, values)) => {
                (ops::concatenate(&[keys, &new_keys], 2)?, ops::concatenate(&[values, &new_values], 2)?)
            }
            None => (new_keys.contiguous()?, new_values.contiguous()?),
        };
        let window = attention.spec.window;
        let bodies = self
            .tail
            .rows
            .iter()
            .zip(&pass.decode_positions)
            .map(|(row, &position)| {
                let body = self.bodies.get(&row.sequence).and_then(|body| body.layers.get(layer));
                body.ok_or_else(|| MlxError::Unsupported("a decode row has no prefilled KV".to_owned()))?
                    .visible_from(position, window)
            })
            .collect::<Result<Vec<LayerKv>>>()?;
        let tail_mask = pass.tail_masks.get(&window).and_then(Option::as_ref);
        let tail_mask = tail_mask.map(|mask| mask.as_dtype(keys.dtype())).transpose()?;
        let attended = attention.decode(DecodeRows {
            queries: &sys::slice_axis(&rows.queries, 0, 0, num_decode)?,
            bodies: &bodies,
            tail: (&keys, &values),
            tail_mask: tail_mask.as_ref(),
        })?;
        if layer < self.tail.layers.len() {
            self.tail.layers[layer] = (keys, values);
        } else {
            self.tail.layers.push((keys, values));
        }
        Ok(attended)
    }

    fn attend_chunk(
        &mut self,
        layer: usize,
        attention: &Attention<'_>,
        rows: &LayerRows,
        (first, last): (usize, usize),
        chunk: &PassChunk,
    ) -> Result<Array> {
        let window = attention.spec.window;
        let pick = |array: &Array| sys::slice_axis(array, 0, first, last);
        let by_head = |array: &Array| -> Result<Array> {
            Ok(pick(array)?.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?)
        };
        let (new_keys, new_values) = (by_head(&rows.keys)?, by_head(&rows.values)?);
        let body = self.bodies.get_mut(&chunk.sequence).expect("begin_pass has made it");
        let kv = match body.layers.get(layer) {
            Some(earlier) => earlier.followed_by(&new_keys, &new_values)?,
            None => LayerKv { first: chunk.start, keys: new_keys, values: new_values }.compact()?,
        };
        let attended =
            attention.chunk(Chunk { queries: &pick(&rows.queries)?, start: chunk.start, kv: &kv })?;
        let end = kv.end();
        let kept = kv.visible_from(end, window)?.compact()?;
        if layer < body.layers.len() {
            body.layers[layer] = kept;
        } else {
            body.layers.push(kept);
        }
        body.num_tokens = end;
        Ok(attended)
    }

    /// The arrays of a sequence's body and states, for evaluation.
    pub(super) fn body_arrays(&self, sequence: SequenceId) -> impl Iterator<Item = &Array> {
        self.bodies
            .get(&sequence)
            .into_iter()
            .flat_map(|body| body.layers.iter().flat_map(|kv| [&kv.keys, &kv.values]))
            .chain(self.states.arrays(sequence))
    }
}
