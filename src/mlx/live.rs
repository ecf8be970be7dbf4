//! Whose packed rows are whose: the KV of all running sequences during a forward pass.
//!
//! Owns what each sequence runs on and what a pass does to it layer by layer. Which decode rows see what
//! together is `cohort`'s decision, the arrays' layout `kv`'s and `slab`'s, the arithmetic `attention`'s, what is
//! kept beyond a sequence `segment`'s.
//!
//! ```text
//! sequence 1, prefills   |--- segment a ---|--- segment b ---|-- own --|
//! sequence 2, decodes    |--- segment a ---|--- segment c --|====slab====|   one copy of a
//! sequence 3, decodes    |--- segment a ---|- segment d -|===slab==|
//! ```

mod append;
mod live_pass;
mod prompts;

use std::{collections::HashMap, rc::Rc};

use mlx_rs::Array;

use super::{
    arrays::Copying,
    cohort::{Cohorts, Row},
    costs::Costs,
    device::ComputeDevice,
    error::{MlxError, Result},
    kv::LayerKv,
    packed::PassChunk,
    prompt_kv::PromptKv,
    segment::{Checkpoint, Segment, SegmentStore, long_segments},
    slab::{Joining, Slab},
    states::{LiveStates, RecurrentState},
};
use crate::engine::{SegmentId, SequenceId, StoredSegment};

pub(super) use live_pass::LivePass;
use live_pass::PassRun;

/// What one sequence runs on.
#[derive(Debug, Default)]
struct Sequence {
    /// Stored segments from position 0 on.
    path: Vec<Rc<Segment>>,
    /// Tokens after the path that are neither stored nor in the slab; one entry a layer or none.
    own: Vec<LayerKv>,
    /// Whether they may be views of more than they are.
    is_own_shared: bool,
    /// What the prompt has so far, own tokens included, which then are nowhere else.
    prompt_kv: Option<PromptKv>,
    /// Position up to which it prefills, as far as that is known.
    prefill_end: usize,
    num_own_tokens: usize,
    /// Of all of it, the slab included.
    num_tokens: usize,
}

impl Sequence {
    fn num_path_tokens(&self) -> usize {
        self.path.last().map_or(0, |segment| segment.first + segment.num_tokens)
    }

    /// Position after the path and what follows it outside the slab.
    fn own_end(&self) -> usize {
        self.num_path_tokens() + self.num_own_tokens
    }

    fn forget_own(&mut self) {
        self.own.clear();
        self.num_own_tokens = 0;
        self.is_own_shared = false;
    }
}

/// KV of all running sequences, by attention layer, and the states of their recurrent layers.
#[derive(Debug)]
pub(super) struct LiveKv {
    sequences: HashMap<SequenceId, Sequence>,
    slab: Slab,
    /// Whether a chunk attends to all that it sees as one array.
    chunks_want_one_array: bool,
    /// What copies of stored tokens may take, prompts' and the decode rows' together.
    max_copied_bytes: u64,
    device: ComputeDevice,
    /// Of what is stored.
    copying: Copying,
    /// The decode rows; they follow from what these run on.
    cohorts: Cohorts,
    /// Whether they are in the next pass: a pass of chunks alone leaves them as they are.
    are_decoding: bool,
    /// Whether the limit on copies has room for the slab in float32.
    slab_may_be_wide: bool,
    pub states: LiveStates,
}

impl LiveKv {
    /// No sequences yet; each will start with these states of the recurrent layers. Copies made for
    /// speed may take `max_copied_bytes`.
    pub(super) fn new(
        initial_states: Vec<RecurrentState>,
        device: ComputeDevice,
        max_copied_bytes: u64,
    ) -> Self {
        Self {
            sequences: HashMap::new(),
            slab: Slab::new(device),
            device,
            chunks_want_one_array: false,
            max_copied_bytes,
            copying: Copying::of(device),
            cohorts: Cohorts::new(Costs::of(device), max_copied_bytes),
            are_decoding: false,
            slab_may_be_wide: false,
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
        self.sequences.insert(sequence, Sequence { path, num_tokens: end, ..Sequence::default() });
        Ok(())
    }

    /// Begins a sequence without stored segments, unless it runs already.
    pub(super) fn begin(&mut self, sequence: SequenceId) {
        self.sequences.entry(sequence).or_default();
    }

    /// How many pieces the decode rows see beside the slab, and whether some see less of it than others.
    #[cfg(test)]
    pub(super) fn decode_rows(&self) -> DecodeRows {
        let widths: Vec<usize> = self
            .cohorts
            .rows
            .iter()
            .map(|(row, place)| self.sequences[row].num_tokens - place.from)
            .collect();
        DecodeRows {
            pieces: self.cohorts.pieces.len(),
            is_masked: widths.windows(2).any(|pair| pair[0] != pair[1]),
        }
    }

    /// Bytes that the slab takes more in float32.
    #[cfg(test)]
    pub(super) fn slab_bytes_beyond_kv(&self) -> u64 {
        self.slab.widening_bytes().0
    }

    /// Drops a sequence.
    pub(super) fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
        self.slab.leave(sequence);
        self.states.release(sequence);
        if self.sequences.is_empty() {
            self.cohorts.clear();
        }
    }

    /// Moves the first `num_tokens` tokens after a sequence's path into a stored segment. Where these are all
    /// that a sequence which prefills has computed, the segment becomes the end of its path.
    pub(super) fn store(
        &mut self,
        sequence: SequenceId,
        num_tokens: usize,
        store: &mut SegmentStore,
    ) -> Result<Rc<Segment>> {
        let state = self.sequences.get_mut(&sequence);
        let state =
            state.ok_or_else(|| MlxError::Unsupported(format!("sequence {} is not running", sequence.0)))?;
        let first = state.num_path_tokens();
        let num_there = state.num_tokens - first;
        if num_tokens == 0 || num_tokens > num_there {
            return Err(MlxError::Unsupported(format!(
                "sequence {} has {num_there} tokens to store, not {num_tokens}",
                sequence.0
            )));
        }
        let layers = if let Some(prompt) = &state.prompt_kv {
            prompt.compact(&(first..first + num_tokens), self.copying)?
        } else if num_tokens == state.num_own_tokens && !state.is_own_shared {
            // A prefill stores all it has: the arrays themselves.
            std::mem::take(&mut state.own)
        } else if num_tokens <= state.num_own_tokens {
            let stored = |kv: &LayerKv| kv.copied(first..first + num_tokens, self.copying);
            state.own.iter().map(stored).collect::<Result<Vec<_>>>()?
        } else {
            let in_slab = self.slab.num_tokens(sequence).unwrap_or(0);
            let start = state.own_end();
            let skip = in_slab - (state.num_tokens - start);
            let from_slab =
                self.slab.copy_out(sequence, skip, first + num_tokens - start, start, self.copying)?;
            after(&state.own, from_slab)?
        };
        mlx_rs::transforms::async_eval(layers.iter().flat_map(|kv| kv.planes.arrays()))?;
        let segment = store.insert(first, num_tokens, layers);
        // What came from the slab is still in it: only a sequence that ends stores so much.
        if num_tokens == state.num_own_tokens {
            state.forget_own();
            state.path.push(Rc::clone(&segment));
            self.note_stored_prompt(sequence);
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

    /// Stores a sequence's states where it stands at the end of a segment just stored, or has gone one step too
    /// far; a sequence that has computed more has no states of that position any more.
    pub(super) fn checkpoint_after(
        &self,
        sequence: SequenceId,
        segment: &Segment,
        store: &mut SegmentStore,
    ) -> Result<Option<StoredSegment>> {
        let position = segment.first + segment.num_tokens;
        if !self.states.are_kept() {
            return Ok(None);
        }
        let states = match self.num_tokens(sequence) - position {
            0 => Some(self.states.checkpoint(sequence)?),
            1 => self.states.checkpoint_before_step(sequence)?,
            _ => None,
        };
        let Some(states) = states else { return Ok(None) };
        let checkpoint = Checkpoint { position, states };
        mlx_rs::transforms::async_eval(checkpoint.states.iter().flat_map(RecurrentState::arrays))?;
        Ok(Some(store.insert_checkpoint(checkpoint)))
    }

    /// Sequences in the order of their decode rows in the next pass.
    pub(super) fn decode_order(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.cohorts.rows.iter().filter(|_| self.are_decoding).map(|(sequence, _)| *sequence)
    }

    /// Number of tokens of a sequence, 0 if it is not known.
    pub(super) fn num_tokens(&self, sequence: SequenceId) -> usize {
        self.sequences.get(&sequence).map_or(0, |state| state.num_tokens)
    }

    /// Makes these sequences the decode rows of the next pass, cohorts side by side. Where it `is_ahead` of tokens
    /// that are not read, it may be one too many for some of them.
    pub(super) fn prepare_decode(&mut self, decoding: &[SequenceId], is_ahead: bool) -> Result<()> {
        if let Some(unknown) = decoding.iter().find(|sequence| !self.sequences.contains_key(sequence)) {
            return Err(MlxError::Unsupported(format!("sequence {} is not running", unknown.0)));
        }
        self.are_decoding = !decoding.is_empty();
        if !self.are_decoding {
            return Ok(());
        }
        let is_same = decoding.len() == self.cohorts.rows.len()
            && decoding.iter().all(|&sequence| self.decode_order().any(|row| row == sequence));
        if !is_same || self.cohorts.is_outdated {
            self.form_cohorts(decoding)?;
        }
        let order: Vec<SequenceId> = self.decode_order().collect();
        self.states.align_decode(&order)?;
        self.states.begin_step(is_ahead);
        Ok(())
    }

    fn form_cohorts(&mut self, decoding: &[SequenceId]) -> Result<()> {
        // All rows of the slab step together: who does not, waits outside.
        let waiting: Vec<SequenceId> =
            self.slab.sequences().filter(|sequence| !decoding.contains(sequence)).collect();
        for sequence in waiting {
            self.leave_slab(sequence)?;
        }
        for sequence in decoding {
            if let Some(state) = self.sequences.get_mut(sequence) {
                state.leave_prompt_kv(self.copying)?;
            }
        }
        self.cohorts.max_copied_bytes = self.max_copied_bytes.saturating_sub(self.num_prompt_copied_bytes());
        let places = self.cohorts.places(&rows_of_cohorts(&self.sequences, &self.slab, decoding));
        for (&sequence, _) in decoding.iter().zip(&places).filter(|(_, place)| place.leaves_slab) {
            self.leave_slab(sequence)?;
        }
        let rows = rows_of_cohorts(&self.sequences, &self.slab, decoding);
        let joining: Vec<Joining<'_>> = rows
            .iter()
            .zip(&places)
            .filter(|(row, _)| row.num_in_slab.is_none())
            .map(|(row, place)| {
                let stored = row.path.iter().filter(|segment| segment.first >= place.from);
                let mut pieces: Vec<&[LayerKv]> = stored.map(|segment| segment.layers.as_slice()).collect();
                if place.from < row.num_tokens {
                    pieces.extend((!row.own.is_empty()).then_some(row.own));
                }
                Joining { sequence: row.sequence, pieces, num_tokens: row.num_tokens - place.from }
            })
            .collect();
        self.slab.join(&joining)?;
        let moved: Vec<SequenceId> =
            joining.iter().filter(|row| row.num_tokens > 0).map(|row| row.sequence).collect();
        for sequence in moved {
            // What it had to itself is in the slab now, and there alone.
            if let Some(state) = self.sequences.get_mut(&sequence) {
                state.forget_own();
            }
        }
        self.cohorts = self.cohorts.form(
            &rows_of_cohorts(&self.sequences, &self.slab, decoding),
            &places,
            |sequence| self.slab.slot_of(sequence),
        )?;
        Ok(())
    }

    /// Moves what a sequence has in the slab, and is not stored, out of it.
    fn leave_slab(&mut self, sequence: SequenceId) -> Result<()> {
        let in_slab = self.slab.num_tokens(sequence).unwrap_or(0);
        if let Some(state) = self.sequences.get_mut(&sequence) {
            let start = state.own_end();
            let num_tokens = state.num_tokens - start;
            if num_tokens > 0 {
                let from_slab =
                    self.slab.copy_out(sequence, in_slab - num_tokens, num_tokens, start, self.copying)?;
                mlx_rs::transforms::async_eval(from_slab.iter().flat_map(|kv| kv.planes.arrays()))?;
                state.own = after(&state.own, from_slab)?;
                state.num_own_tokens += num_tokens;
            }
        }
        self.slab.leave(sequence);
        Ok(())
    }

    /// Starts a pass: one decode row for each of the sequences that were made such, then the chunks.
    pub(super) fn begin_pass(&mut self, chunks: Vec<PassChunk>) -> Result<LivePass> {
        chunks.iter().for_each(|chunk| self.join_prompt(chunk));
        let mut pass = LivePass { runs: self.runs_of(&chunks), chunks, ..LivePass::default() };
        if self.are_decoding {
            self.slab.step()?;
            let others = self.num_prompt_copied_bytes().saturating_add(self.cohorts.num_copied_bytes);
            let with_slab = others.saturating_add(self.slab.widening_bytes().1);
            self.slab_may_be_wide = self.cohorts.costs.are_widened() && with_slab <= self.max_copied_bytes;
            let mut rows = Vec::with_capacity(self.cohorts.rows.len());
            for &(sequence, place) in &self.cohorts.rows {
                let Some(state) = self.sequences.get_mut(&sequence) else { continue };
                pass.decode_positions.push(state.num_tokens);
                state.num_tokens += 1;
                rows.push((sequence, state.num_tokens - place.from));
            }
            pass.slab_rows = Rc::new(self.slab.rows(&rows));
        }
        let mut first = pass.decode_positions.len();
        for chunk in &pass.chunks {
            pass.chunk_rows.push(first..first + chunk.num_tokens);
            first += chunk.num_tokens;
            self.sequences.entry(chunk.sequence).or_default();
        }
        Ok(pass)
    }

    /// Long segments that a sequence runs on and attends to apart; chunks on the same ones are to be next to each
    /// other.
    pub(super) fn long_path(&self, sequence: SequenceId) -> Vec<SegmentId> {
        let Some(state) = self.sequences.get(&sequence) else { return Vec::new() };
        if state.prompt_kv.is_some() && self.chunks_want_one_array {
            return Vec::new();
        }
        long_segments(&state.path).map(|segment| segment.id).collect()
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
                state.num_tokens += chunk.num_tokens;
                if state.prompt_kv.is_some() {
                    state.own.clear();
                }
            }
        }
    }

    /// The KV arrays that a sequence has computed and not stored, and its states, for evaluation.
    pub(super) fn own_arrays(&self, sequence: SequenceId) -> impl Iterator<Item = &Array> {
        self.sequences
            .get(&sequence)
            .into_iter()
            .flat_map(|state| {
                let prompt = state.prompt_kv.iter().flat_map(PromptKv::arrays);
                prompt.chain(state.own.iter().flat_map(|kv| kv.planes.arrays()))
            })
            .chain(self.states.arrays(sequence))
    }
}

/// How the decode rows are divided.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct DecodeRows {
    pub pieces: usize,
    pub is_masked: bool,
}

/// What sequences run on, in this order.
fn rows_of_cohorts<'a>(
    sequences: &'a HashMap<SequenceId, Sequence>,
    slab: &Slab,
    order: &[SequenceId],
) -> Vec<Row<'a>> {
    let row = |&sequence: &SequenceId| {
        sequences.get(&sequence).map(|state| Row {
            sequence,
            path: &state.path,
            own: &state.own,
            num_own_tokens: state.num_own_tokens,
            num_tokens: state.num_tokens,
            num_in_slab: slab.num_tokens(sequence),
        })
    };
    order.iter().filter_map(row).collect()
}

/// KV of every layer, and that of the tokens after it.
fn after(own: &[LayerKv], from_slab: Vec<LayerKv>) -> Result<Vec<LayerKv>> {
    if own.is_empty() {
        return Ok(from_slab);
    }
    own.iter().zip(&from_slab).map(|(own, after)| LayerKv::joined([own, after].into_iter())).collect()
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
