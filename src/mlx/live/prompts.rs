//! Which prompts have their KV in one array.
//!
//! Owns from when to when they do, and that what is there twice by that stays within the limit on copies. A prompt in
//! several chunks would else be brought together anew for each of them. The arrays are `prompt_kv`'s.

use super::{LiveKv, Sequence};
use crate::{
    engine::SequenceId,
    mlx::{
        arrays::Copying,
        error::Result,
        kv::{LayerKv, is_short},
        packed::PassChunk,
        planes::Planes,
        prompt_kv::PromptKv,
    },
};

impl Sequence {
    /// Bytes that tokens take in its prompt's arrays which are stored as well.
    fn num_copied_bytes(&self) -> u64 {
        self.prompt_kv.as_ref().map_or(0, |prompt| prompt.num_bytes_before(self.num_path_tokens()))
    }

    /// Takes its own tokens out of its prompt's arrays: it does not prefill any more.
    pub(super) fn leave_prompt_kv(&mut self, copying: Copying) -> Result<()> {
        let Some(prompt) = self.prompt_kv.take() else { return Ok(()) };
        if self.num_own_tokens > 0 {
            self.own = prompt.compact(&(self.num_path_tokens()..self.own_end()), copying)?;
            self.is_own_shared = false;
        }
        Ok(())
    }

    /// Writes a chunk's KV of one layer, in parts of `(1, H_kv, n, D)`, into its prompt's array, which begins with as
    /// much of `joined`, the path or nothing, as the layer's window shows. Returns all that is there, as a view.
    pub(super) fn append_to_prompt(
        &mut self,
        (layer, window): (usize, Option<usize>),
        start: usize,
        parts: &[Planes],
        joined: &[LayerKv],
    ) -> Result<LayerKv> {
        let prompt = self.prompt_kv.as_mut().expect("the caller has looked");
        prompt.append(layer, start, parts, || {
            let seen = joined.iter().map(|piece| piece.visible_from(start, window));
            let seen = seen.chain(self.own.get(layer).cloned().map(Ok)).collect::<Result<Vec<_>>>()?;
            Ok(seen.into_iter().filter(|piece| piece.num_tokens() > 0).collect())
        })
    }
}

impl LiveKv {
    /// Has prompts in one array with what is stored of them, where they come in several chunks: for models all of whose
    /// layers want it.
    pub(in crate::mlx) fn with_chunks_on_one_array(mut self, want_it: bool) -> Self {
        self.chunks_want_one_array = want_it;
        self
    }

    /// Notes up to which position a sequence will prefill.
    pub(in crate::mlx) fn expect_prefill(&mut self, sequence: SequenceId, end: usize) {
        self.sequences.entry(sequence).or_default().prefill_end = end;
    }

    /// Bytes that copies made for speed take: prompts', the decode rows', and what the slab takes more in float32.
    fn num_copied_bytes(&self) -> u64 {
        let of_prompts = self.num_prompt_copied_bytes();
        of_prompts.saturating_add(self.cohorts.num_copied_bytes).saturating_add(self.slab.widening_bytes().0)
    }

    /// Bytes that prompts in one array take of stored tokens.
    pub(super) fn num_prompt_copied_bytes(&self) -> u64 {
        self.sequences.values().map(Sequence::num_copied_bytes).sum()
    }

    /// Has a prompt in one array from a chunk on that is neither the first of its tokens nor the last.
    pub(super) fn join_prompt(&mut self, chunk: &PassChunk) {
        let num_copied_bytes = self.num_copied_bytes();
        let Some(state) = self.sequences.get_mut(&chunk.sequence) else { return };
        let num_joined = if self.chunks_want_one_array { state.num_tokens } else { state.num_own_tokens };
        let is_last = chunk.start + chunk.num_tokens >= state.prefill_end;
        if state.prompt_kv.is_some() || is_short(num_joined) || is_last {
            return;
        }
        let path = state.path.iter().filter(|_| self.chunks_want_one_array);
        let num_bytes: u64 = path.map(|segment| segment.num_bytes()).sum();
        if num_copied_bytes.saturating_add(num_bytes) <= self.max_copied_bytes {
            state.prompt_kv = Some(PromptKv::new(state.prefill_end, num_bytes));
        }
    }

    /// Drops what is not needed of a prompt's arrays now that a sequence has stored all that it has computed: all of it
    /// where the prompt is over, or what is there twice has become too much.
    pub(super) fn note_stored_prompt(&mut self, sequence: SequenceId) {
        let num_copied_bytes = self.num_copied_bytes();
        let Some(state) = self.sequences.get_mut(&sequence) else { return };
        let is_over = state.num_tokens >= state.prefill_end;
        if is_over || !self.chunks_want_one_array || num_copied_bytes > self.max_copied_bytes {
            state.prompt_kv = None;
        }
    }
}
