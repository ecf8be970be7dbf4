//! Whose packed rows are whose: the KV of all running sequences during a forward pass.
//!
//! Owns what each sequence runs on and what a pass does to it layer by layer. The arrays' layout
//! is `kv`'s, the arithmetic `attention`'s, what is kept beyond a sequence `segment`'s.
//!
//! ```text
//! sequence 1   |--- segment a ---|--- segment b ---|-- own --|tail|
//! sequence 2   |--- segment a ---|--- segment c --|-- own --|tail|   one copy of a;
//! sequence 3   |--- segment a ---|- segment d -|- own -|tail|        1, 2 and 3 are a cohort
//! ```

mod pass;

use std::{collections::HashMap, rc::Rc};

use mlx_rs::Array;

use super::{
    arrays::{overlap, rows_of, rows_of_parts},
    attention::{ChunkKv, CohortRows, DecodeKv, PassKv, RunKv},
    cohort::{Cohorts, is_short, join_short_end, long_segments},
    error::{MlxError, Result},
    kv::{LayerKv, MAX_TAIL, Tail, TailRow},
    recurrent::{LiveStates, RecurrentState},
    segment::{Checkpoint, Segment, SegmentStore},
};
use crate::engine::{SegmentId, SequenceId, StoredSegment};

use pass::PassRun;
pub(super) use pass::{LivePass, PassChunk};

/// What one sequence runs on.
#[derive(Debug, Default)]
struct Sequence {
    /// Stored segments from position 0 on.
    path: Vec<Rc<Segment>>,
    /// Tokens after the path that are not stored, tail aside; one entry a layer or none.
    own: Vec<LayerKv>,
    /// Whether they may be views of more than they are, as rows side by side are.
    is_own_shared: bool,
    num_own_tokens: usize,
}

impl Sequence {
    fn num_path_tokens(&self) -> usize {
        self.path.last().map_or(0, |segment| segment.first + segment.num_tokens)
    }

    fn num_tokens(&self) -> usize {
        self.num_path_tokens() + self.num_own_tokens
    }
}

/// KV of all running sequences, by attention layer, and the states of their recurrent layers.
#[derive(Debug)]
pub(super) struct LiveKv {
    sequences: HashMap<SequenceId, Sequence>,
    tail: Tail,
    /// Follow from the tail's rows.
    cohorts: Cohorts,
    pub states: LiveStates,
}

impl LiveKv {
    /// No sequences yet; each will start with these states of the recurrent layers. Copies made for
    /// speed may take `max_copied_bytes`.
    pub(super) fn new(initial_states: Vec<RecurrentState>, max_copied_bytes: u64) -> Self {
        Self {
            sequences: HashMap::new(),
            tail: Tail::default(),
            cohorts: Cohorts::new(max_copied_bytes),
            states: LiveStates::new(initial_states),
        }
    }

    /// Begins a sequence on stored segments, which must follow each other from position 0, and on
    /// the states of the recurrent layers at their end.
    pub(super) fn resume(
        &mut self,
        sequence: SequenceId,
        path: Vec<Rc<Segment>>,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<()> {
        let mut end = 0;
        for segment in &path {
            if segment.first != end {
                return Err(MlxError::Unsupported(format!(
                    "segment {} begins at {}, not at {end}",
                    segment.id.0, segment.first
                )));
            }
            end += segment.num_tokens;
        }
        match checkpoint {
            Some(checkpoint) if checkpoint.position == end => {
                self.states.resume(sequence, checkpoint.states.clone());
            }
            None if end == 0 || !self.states.are_kept() => {}
            _ => {
                return Err(MlxError::Unsupported(format!(
                    "sequence {} cannot begin at {end} without the recurrent layers' states there",
                    sequence.0
                )));
            }
        }
        self.sequences.insert(sequence, Sequence { path, ..Sequence::default() });
        Ok(())
    }

    /// Begins a sequence without stored segments, unless it runs already.
    pub(super) fn begin(&mut self, sequence: SequenceId) {
        self.sequences.entry(sequence).or_default();
    }

    /// Drops a sequence. Its tail row goes with the next pass; there may be none after the last one.
    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
        self.states.release(sequence);
        if self.sequences.is_empty() {
            self.tail = Tail::default();
            self.cohorts.clear();
        }
    }

    /// Moves the first `num_tokens` tokens after a sequence's path into a stored segment, which
    /// becomes the end of the path.
    pub(super) fn store(
        &mut self,
        sequence: SequenceId,
        num_tokens: usize,
        store: &mut SegmentStore,
    ) -> Result<Rc<Segment>> {
        let row = self.tail.row_of(sequence);
        let in_tail = row.map_or(0, |row| self.tail.num_tokens(row));
        let state = self.sequences.get_mut(&sequence);
        let state =
            state.ok_or_else(|| MlxError::Unsupported(format!("sequence {} is not running", sequence.0)))?;
        if num_tokens == 0 || num_tokens > state.num_own_tokens + in_tail {
            return Err(MlxError::Unsupported(format!(
                "sequence {} has {} tokens to store, not {num_tokens}",
                sequence.0,
                state.num_own_tokens + in_tail
            )));
        }
        let first = state.num_path_tokens();
        let layers = if num_tokens == state.num_own_tokens && !state.is_own_shared {
            // A prefill stores all it has: the arrays themselves.
            std::mem::take(&mut state.own)
        } else if num_tokens <= state.num_own_tokens {
            let stored = |kv: &LayerKv| kv.slice(first..first + num_tokens)?.compact();
            state.own.iter().map(stored).collect::<Result<Vec<_>>>()?
        } else {
            let row = row.expect("what is not its own is in the tail");
            let from_tail = num_tokens - state.num_own_tokens;
            (0..self.tail.layers.len())
                .map(|layer| {
                    let (keys, values) = self.tail.row_kv(layer, row, from_tail)?;
                    LayerKv::after(state.own.get(layer), first, vec![keys], vec![values])
                })
                .collect::<Result<Vec<_>>>()?
        };
        mlx_rs::transforms::async_eval(layers.iter().flat_map(|kv| [&kv.keys, &kv.values]))?;
        let segment = store.insert(first, num_tokens, layers);
        // What came from the tail is still in it: only a sequence that ends stores so much.
        if num_tokens == state.num_own_tokens {
            state.own.clear();
            state.num_own_tokens = 0;
            state.is_own_shared = false;
            state.path.push(Rc::clone(&segment));
        }
        Ok(segment)
    }

    /// Puts the halves of a segment that was split in its place wherever sequences run on it: so paths stay a
    /// tree, and the whole is free.
    pub(super) fn replace(&mut self, whole: SegmentId, halves: [&Rc<Segment>; 2]) {
        let mut is_used = false;
        for state in self.sequences.values_mut() {
            if let Some(place) = state.path.iter().position(|segment| segment.id == whole) {
                state.path.splice(place..=place, halves.map(Rc::clone));
                is_used = true;
            }
        }
        if is_used {
            self.cohorts.forget(whole);
        }
    }

    /// Stores a sequence's states where it stands at the end of a segment just stored; a sequence
    /// that has computed more has no states of that position any more.
    pub(super) fn checkpoint_after(
        &self,
        sequence: SequenceId,
        segment: &Segment,
        store: &mut SegmentStore,
    ) -> Result<Option<StoredSegment>> {
        let position = segment.first + segment.num_tokens;
        if !self.states.are_kept() || self.num_tokens(sequence) != position {
            return Ok(None);
        }
        let checkpoint = Checkpoint { position, states: self.states.checkpoint(sequence)? };
        mlx_rs::transforms::async_eval(checkpoint.states.iter().flat_map(RecurrentState::arrays))?;
        Ok(Some(store.insert_checkpoint(checkpoint)))
    }

    /// Sequences in the order of their decode rows.
    pub(super) fn decode_order(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.tail.rows.iter().map(|row| row.sequence)
    }

    /// Number of tokens of a sequence, 0 if it is not known.
    pub(super) fn num_tokens(&self, sequence: SequenceId) -> usize {
        let tail = self.tail.row_of(sequence).map_or(0, |row| self.tail.num_tokens(row));
        self.sequences.get(&sequence).map_or(0, |state| state.num_tokens() + tail)
    }

    /// Brings the tail's rows in line with the sequences that decode in the next pass, cohorts
    /// side by side, and makes room for one more slot.
    pub(super) fn prepare_decode(&mut self, decoding: &[SequenceId]) -> Result<()> {
        if let Some(unknown) = decoding.iter().find(|sequence| !self.sequences.contains_key(sequence)) {
            return Err(MlxError::Unsupported(format!("sequence {} is not running", unknown.0)));
        }
        let is_same = decoding.len() == self.tail.rows.len()
            && decoding.iter().all(|&sequence| self.tail.row_of(sequence).is_some());
        if !is_same || self.cohorts.is_outdated {
            let path = |sequence: &SequenceId| (*sequence, self.sequences[sequence].path.as_slice());
            let (order, cohorts) = self.cohorts.form(&decoding.iter().map(path).collect())?;
            self.tail.arrange(&order)?;
            self.cohorts = cohorts;
        }
        let is_tail_full = self.tail.num_slots >= MAX_TAIL;
        if is_tail_full {
            self.move_tail_into_sequences()?;
            self.cohorts.take_apart();
        }
        self.step_cohorts()?;
        if is_tail_full {
            self.compute_own_of_rows()?;
        }
        let order: Vec<SequenceId> = self.decode_order().collect();
        self.states.align_decode(&order)
    }

    fn step_cohorts(&mut self) -> Result<()> {
        let own_of = |sequences: &mut HashMap<SequenceId, Sequence>, row: &TailRow| {
            sequences.get_mut(&row.sequence).map(|state| std::mem::take(&mut state.own)).unwrap_or_default()
        };
        let mut own: Vec<_> = self.tail.rows.iter().map(|row| own_of(&mut self.sequences, row)).collect();
        let stepped = self.cohorts.step(&mut own);
        for (row, own) in own.into_iter().enumerate() {
            if let Some(state) = self.sequences.get_mut(&self.tail.rows[row].sequence) {
                state.is_own_shared |= self.cohorts.has_block_of(row);
                state.own = own;
            }
        }
        stepped
    }

    fn move_tail_into_sequences(&mut self) -> Result<()> {
        for (row, tail_row) in self.tail.rows.iter().enumerate() {
            let num_tokens = self.tail.num_tokens(row);
            let Some(state) = self.sequences.get_mut(&tail_row.sequence).filter(|_| num_tokens > 0) else {
                continue;
            };
            let first = state.num_path_tokens();
            for layer in 0..self.tail.layers.len() {
                let (keys, values) = self.tail.row_kv(layer, row, num_tokens)?;
                let kv = LayerKv::after(state.own.get(layer), first, vec![keys], vec![values])?;
                put(&mut state.own, layer, kv);
            }
            state.num_own_tokens += num_tokens;
        }
        self.tail.clear_slots();
        Ok(())
    }

    /// Has what the decode rows have to themselves computed, layer by layer: what it is made of is there
    /// until then.
    fn compute_own_of_rows(&self) -> Result<()> {
        let own: Vec<&[LayerKv]> =
            self.tail.rows.iter().map(|row| self.sequences[&row.sequence].own.as_slice()).collect();
        for layer in 0..own.iter().map(|own| own.len()).max().unwrap_or(0) {
            let layer = own.iter().filter_map(|own| own.get(layer));
            mlx_rs::transforms::async_eval(layer.flat_map(|kv| [&kv.keys, &kv.values]))?;
        }
        Ok(())
    }

    /// Starts a pass: one decode row for each of the tail's rows, then the chunks.
    pub(super) fn begin_pass(&mut self, chunks: Vec<PassChunk>, windows: &[Option<usize>]) -> LivePass {
        let mut pass = LivePass { runs: self.runs_of(&chunks), chunks, ..LivePass::default() };
        for (row, tail_row) in self.tail.rows.iter().enumerate() {
            let before = self.sequences.get(&tail_row.sequence).map_or(0, Sequence::num_tokens);
            pass.decode_positions.push(before + self.tail.num_tokens(row));
        }
        let mut first = pass.decode_positions.len();
        for chunk in &pass.chunks {
            pass.chunk_rows.push(first..first + chunk.num_tokens);
            first += chunk.num_tokens;
            self.sequences.entry(chunk.sequence).or_default();
        }
        if !self.tail.rows.is_empty() {
            self.tail.num_slots += 1;
            for &window in windows {
                pass.tail_masks.entry(window).or_insert_with(|| self.tail_mask(window));
            }
        }
        pass
    }

    /// Long segments that a sequence runs on; chunks on the same ones are to be next to each other.
    pub(super) fn long_path(&self, sequence: SequenceId) -> Vec<SegmentId> {
        let path = self.sequences.get(&sequence).map_or(&[][..], |state| &state.path);
        long_segments(path).map(|segment| segment.id).collect()
    }

    /// Divides the chunks of a pass by the long segments they run on.
    fn runs_of(&self, chunks: &[PassChunk]) -> Vec<PassRun> {
        let mut runs: Vec<PassRun> = Vec::new();
        let mut long_path = Vec::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let path = self.long_path(chunk.sequence);
            match runs.last_mut() {
                Some(run) if !path.is_empty() && path == long_path => run.chunks.end = index + 1,
                _ => runs.push(PassRun { chunks: index..index + 1, shared: Vec::new() }),
            }
            long_path = path;
        }
        for run in runs.iter_mut().filter(|run| run.chunks.len() > 1) {
            let path = &self.sequences[&chunks[run.chunks.start].sequence].path;
            run.shared = long_segments(path).cloned().collect();
        }
        runs
    }

    /// Ends a pass: the chunks' tokens count as computed.
    pub(super) fn end_pass(&mut self, pass: &LivePass) {
        for chunk in &pass.chunks {
            if let Some(state) = self.sequences.get_mut(&chunk.sequence) {
                state.num_own_tokens += chunk.num_tokens;
            }
        }
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

    /// Appends the packed rows' keys and values of one layer, which come in parts of `(n, H_kv, D)`
    /// after RoPE; decode rows are in the first part. Returns the layer as the rows see it.
    pub(super) fn append(
        &mut self,
        layer: usize,
        window: Option<usize>,
        keys: &[Array],
        values: &[Array],
        pass: &LivePass,
    ) -> Result<PassKv> {
        let num_decode = pass.decode_positions.len();
        let decode = if num_decode == 0 {
            None
        } else {
            let step = |rows: &[Array]| -> Result<Array> {
                Ok(rows_of(&rows[0], &(0..num_decode), rows[0].dim(0) as usize)?.expand_dims(2)?)
            };
            Some(self.append_step(layer, window, step(keys)?, step(values)?, pass)?)
        };
        let as_views = self.chunks_as_views(keys, pass);
        let mut runs = Vec::with_capacity(pass.runs.len());
        for run in &pass.runs {
            let of_layer = |segment: &Rc<Segment>| segment.layers[layer].clone();
            let shared: Vec<LayerKv> = run.shared.iter().map(of_layer).collect();
            let mut chunks = Vec::with_capacity(run.chunks.len());
            for index in run.chunks.clone() {
                let chunk = &pass.chunks[index];
                let rows = pass.chunk_rows[index].clone();
                let state = self.sequences.get_mut(&chunk.sequence).expect("begin_pass has made it");
                let by_head = |parts: &[Array]| -> Result<Vec<Array>> {
                    let rows = rows_of_parts(parts, &rows)?;
                    rows.iter().map(|rows| Ok(rows.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?)).collect()
                };
                let (keys, values) = (by_head(keys)?, by_head(values)?);
                let own = match (keys.as_slice(), values.as_slice()) {
                    ([keys], [values]) if as_views[index] => {
                        state.is_own_shared = true;
                        LayerKv { first: chunk.start, keys: keys.clone(), values: values.clone() }
                    }
                    _ => LayerKv::after(state.own.get(layer), chunk.start, keys, values)?,
                };
                put(&mut state.own, layer, own.clone());
                let mut earlier = join_short_end(state.path.iter().map(of_layer).collect())?;
                earlier.retain(|piece| !shared.iter().any(|shared| shared.first == piece.first));
                let num_seen: usize = shared.iter().chain(&earlier).map(LayerKv::num_tokens).sum();
                if num_seen != state.num_path_tokens() {
                    return Err(MlxError::Unsupported(format!(
                        "sequence {} would see {num_seen} of its path's {} tokens",
                        chunk.sequence.0,
                        state.num_path_tokens()
                    )));
                }
                chunks.push(ChunkKv { rows, start: chunk.start, earlier, own });
            }
            runs.push(RunKv { shared, chunks });
        }
        Ok(PassKv { decode, runs })
    }

    /// Which chunks keep their KV as views of the packed rows' arrays: short ones that begin a sequence's
    /// own KV, where they are most of the rows that are kept with them. Copies of them would be many small
    /// arrays, and be copied again when rows are put side by side.
    fn chunks_as_views(&self, parts: &[Array], pass: &LivePass) -> Vec<bool> {
        let mut as_views = vec![false; pass.chunks.len()];
        let mut first = 0;
        for part in parts {
            let of_part = first..first + part.dim(0) as usize;
            first = of_part.end;
            let is_candidate = |index: &usize| {
                let (chunk, rows) = (&pass.chunks[*index], &pass.chunk_rows[*index]);
                let state = self.sequences.get(&chunk.sequence);
                is_short(chunk.num_tokens)
                    && state.is_none_or(|state| state.num_own_tokens == 0)
                    && overlap(rows, &of_part) == *rows
            };
            let candidates: Vec<usize> = (0..pass.chunks.len()).filter(is_candidate).collect();
            let num_kept: usize = candidates.iter().map(|&index| pass.chunks[index].num_tokens).sum();
            if 2 * num_kept > of_part.len() {
                candidates.into_iter().for_each(|index| as_views[index] = true);
            }
        }
        as_views
    }

    /// Fills the tail's new slot in one layer, `(B, H_kv, 1, D)`.
    fn append_step(
        &mut self,
        layer: usize,
        window: Option<usize>,
        keys: Array,
        values: Array,
        pass: &LivePass,
    ) -> Result<DecodeKv> {
        let tail = self.tail.fill_slot(layer, keys, values)?;
        let cohorts = self
            .cohorts
            .shared
            .iter()
            .map(|shared| CohortRows {
                rows: shared.rows.clone(),
                pieces: shared.segments.iter().map(|segment| segment.layers[layer].clone()).collect(),
            })
            .collect();
        let own: Vec<Option<&LayerKv>> = self
            .tail
            .rows
            .iter()
            .map(|row| self.sequences.get(&row.sequence).and_then(|state| state.own.get(layer)))
            .collect();
        let tail_mask = pass.tail_masks.get(&window).and_then(Option::as_ref);
        Ok(DecodeKv {
            positions: pass.decode_positions.clone(),
            cohorts,
            private: self.cohorts.private(layer, &own, &pass.decode_positions, window)?,
            tail_mask: tail_mask.map(|mask| mask.as_dtype(tail.0.dtype())).transpose()?,
            tail,
        })
    }

    /// The KV arrays that a sequence has computed and not stored, and its states, for evaluation.
    pub(super) fn own_arrays(&self, sequence: SequenceId) -> impl Iterator<Item = &Array> {
        self.sequences
            .get(&sequence)
            .into_iter()
            .flat_map(|state| state.own.iter().flat_map(|kv| [&kv.keys, &kv.values]))
            .chain(self.states.arrays(sequence))
    }
}

/// Sets the entry of a layer; layers come in order.
fn put<T>(layers: &mut Vec<T>, layer: usize, value: T) {
    if layer < layers.len() {
        layers[layer] = value;
    } else {
        layers.push(value);
    }
}

#[cfg(test)]
mod tests;
