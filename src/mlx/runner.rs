//! The real [`Runner`]: forward passes on MLX.
//!
//! Owns what lies between two passes: which sampled tokens are still on the device and which
//! passes have not been collected. Tensors' arithmetic is the decoder's and `live`'s.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;
use std::ops::Range;

use mlx_rs::{Array, ops, transforms};

use super::{
    arrays::{concatenated, first_number},
    asked::{Asked, PassRows},
    attention::chunks_are_fused,
    decoder::Decoder,
    error::{MlxError, Result},
    live::LiveKv,
    model::LoadedModel,
    packed::PassChunk,
    segment::{Segment, SegmentStore},
    sys,
};
use crate::cache::ResumeRule;
use crate::engine::{
    Exported, Group, ImportError, Input, Outcome, Runner, RunnerError, SegmentId, SequenceId, Stored,
    StoredSegment, TokenId, Want,
};
use crate::guide::TokenSet;
use crate::models::{AttentionSpec, KvLayout};

/// Runs one loaded model.
#[derive(Debug)]
pub struct MlxRunner {
    decoder: Decoder,
    live: LiveKv,
    segments: SegmentStore,
    /// The token that each sequence sampled last, maybe not computed yet.
    last_sampled: HashMap<SequenceId, SampledToken>,
    /// Passes not collected yet, oldest first.
    launched: VecDeque<Launched>,
    /// The latest of them, as long as its guides are waited for.
    unchosen: Option<Unchosen>,
    num_passes: u64,
}

fn stored(segment: &Segment) -> StoredSegment {
    StoredSegment { id: segment.id, num_bytes: segment.num_bytes() }
}

/// A pass that is not collected.
#[derive(Debug)]
struct Launched {
    /// `None` until its tokens are chosen.
    asked: Option<Asked>,
    /// A number of the last KV, to wait for where nothing else is asked for. A copy: arrays that somebody holds are
    /// not written in place by the next pass.
    last_number: Option<Array>,
}

/// What a pass has computed and what is to come of it.
#[derive(Debug)]
struct Unchosen {
    groups: Vec<Group>,
    /// Each group's last packed row.
    last_row: HashMap<SequenceId, usize>,
    /// Of all packed rows, `(T, hidden)`.
    hidden: Array,
    /// The packed input tokens, `(T,)`.
    tokens: Array,
    /// Sequences of it that were released meanwhile.
    released: HashSet<SequenceId>,
}

/// A place in the tokens that one pass sampled.
#[derive(Debug, Clone)]
struct SampledToken {
    pass: u64,
    tokens: Array,
    row: usize,
}

impl MlxRunner {
    /// Takes over a loaded model. Copies of KV that let rows decode faster may take
    /// `max_copied_bytes`.
    pub fn new(model: LoadedModel, max_copied_bytes: u64) -> Self {
        let decoder = model.into_decoder();
        let are_fused = decoder.spec.kv_layers().all(|spec| chunks_are_fused(decoder.device(), spec));
        let live = LiveKv::new(decoder.initial_states().to_vec(), decoder.device(), max_copied_bytes);
        Self {
            live: live.with_chunks_on_one_array(are_fused),
            decoder,
            segments: SegmentStore::default(),
            last_sampled: HashMap::new(),
            launched: VecDeque::new(),
            unchosen: None,
            num_passes: 0,
        }
    }

    fn launch_pass(&mut self, groups: &[Group]) -> Result<()> {
        if self.unchosen.is_some() {
            return Err(MlxError::Unsupported(
                "a pass before the tokens of the last one are chosen".to_owned(),
            ));
        }
        let (unchosen, kv) = self.build_pass(groups)?;
        if groups.iter().any(Group::is_guided) {
            transforms::async_eval(std::iter::once(&unchosen.hidden).chain(&kv))?;
            self.unchosen = Some(unchosen);
            self.launched.push_back(Launched { asked: None, last_number: None });
            return Ok(());
        }
        let asked = self.ask(&unchosen, &[])?;
        let is_asked = asked.arrays().next().is_some();
        let last_number = kv.last().filter(|_| !is_asked).map(first_number).transpose()?;
        transforms::async_eval(asked.arrays().chain(&kv).chain(&last_number))?;
        self.launched.push_back(Launched { asked: Some(asked), last_number });
        Ok(())
    }

    fn choose_tokens(&mut self, allowed: &[Option<TokenSet>]) -> Result<()> {
        let Some(unchosen) = self.unchosen.take() else {
            return Err(MlxError::Unsupported("no pass whose tokens are to be chosen".to_owned()));
        };
        let asked = self.ask(&unchosen, allowed).and_then(|asked| {
            transforms::async_eval(asked.arrays())?;
            Ok(asked)
        });
        match (asked, self.launched.back_mut()) {
            (Ok(asked), Some(launched)) => launched.asked = Some(asked),
            (Err(error), _) => {
                self.launched.pop_back();
                return Err(error);
            }
            (Ok(_), None) => {}
        }
        Ok(())
    }

    /// What the groups of a pass want of it; `allowed` is for the guided ones, in their order.
    fn ask(&mut self, pass: &Unchosen, allowed: &[Option<TokenSet>]) -> Result<Asked> {
        let Unchosen { groups, last_row, hidden, tokens, released } = pass;
        let rows = PassRows { last_row, hidden, tokens };
        let asked = Asked::new(&self.decoder, groups, &rows, allowed)?;
        if let Some(tokens) = asked.tokens().cloned() {
            self.note_sampled(groups, released, &tokens);
        }
        Ok(asked)
    }

    /// Makes all operations of a pass up to its hidden states, and the KV of chunks, which nothing else depends
    /// on.
    fn build_pass(&mut self, groups: &[Group]) -> Result<(Unchosen, Vec<Array>)> {
        let decoding: HashMap<SequenceId, &Group> = groups
            .iter()
            .filter(|group| !matches!(group.input, Input::Prompt(_)))
            .map(|group| (group.sequence, group))
            .collect();
        let mut sequences: Vec<SequenceId> = decoding.keys().copied().collect();
        sequences.sort_unstable();
        // A prompt of one token has no prefill: its sequence comes into being with its first step.
        for group in groups {
            if matches!(group.input, Input::Last(_)) && group.start == 0 {
                self.live.begin(group.sequence);
            }
        }
        self.live.prepare_decode(&sequences, !self.launched.is_empty())?;

        // Packed rows: the decode rows in the cohorts' order, then the chunks, those on the same long
        // segments next to each other.
        let order: Vec<&Group> = self.live.decode_order().map(|sequence| decoding[&sequence]).collect();
        let mut prompt_tokens: Vec<TokenId> = Vec::new();
        let mut chunks = Vec::new();
        // Each group's last packed row.
        let mut last_row: HashMap<SequenceId, usize> =
            order.iter().enumerate().map(|(row, group)| (group.sequence, row)).collect();
        groups.iter().try_for_each(|group| self.check(group))?;
        let mut prompts: Vec<&Group> =
            groups.iter().filter(|group| matches!(group.input, Input::Prompt(_))).collect();
        prompts.sort_by_cached_key(|group| self.live.long_path(group.sequence));
        for group in prompts {
            let Input::Prompt(tokens) = &group.input else { continue };
            prompt_tokens.extend(tokens);
            chunks.push(PassChunk { sequence: group.sequence, num_tokens: tokens.len(), start: group.start });
            last_row.insert(group.sequence, order.len() + prompt_tokens.len() - 1);
        }
        let mut inputs = self.decode_tokens(&order)?;
        if !prompt_tokens.is_empty() {
            inputs.push(Array::from_slice(&prompt_tokens, &[prompt_tokens.len() as i32]));
        }
        if inputs.is_empty() {
            return Err(MlxError::Unsupported("a pass without tokens".to_owned()));
        }
        let tokens = concatenated(inputs, 0)?;

        let chunk_sequences: Vec<SequenceId> = chunks.iter().map(|chunk| chunk.sequence).collect();
        let pass = self.live.begin_pass(chunks)?;
        let hidden = self.decoder.forward(&tokens, &pass, &mut self.live)?;

        let kv =
            chunk_sequences.iter().flat_map(|&sequence| self.live.own_arrays(sequence)).cloned().collect();
        let released = HashSet::new();
        Ok((Unchosen { groups: groups.to_vec(), last_row, hidden, tokens, released }, kv))
    }

    /// Holds a group to the contract, so that a wrong one is an error and not a wrong answer.
    fn check(&self, group: &Group) -> Result<()> {
        let vocab_size = self.decoder.spec.vocab_size;
        let tokens = match &group.input {
            Input::Prompt(tokens) => tokens.as_slice(),
            Input::Last(token) => std::slice::from_ref(token),
            Input::Sampled => &[],
        };
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(MlxError::Unsupported(format!(
                "token {token} is outside the vocabulary of {vocab_size}"
            )));
        }
        let num_tokens = self.live.num_tokens(group.sequence);
        let is_empty = matches!(&group.input, Input::Prompt(tokens) if tokens.is_empty());
        if is_empty || group.start != num_tokens {
            return Err(MlxError::Unsupported(format!(
                "a group at position {} does not continue the {num_tokens} tokens of its sequence",
                group.start
            )));
        }
        Ok(())
    }

    /// The input tokens of decode rows, in up to two arrays to be joined.
    fn decode_tokens(&self, rows: &[&Group]) -> Result<Vec<Array>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let sequences: Vec<SequenceId> =
            rows.iter().filter(|group| group.input == Input::Sampled).map(|group| group.sequence).collect();
        if sequences.len() == rows.len() {
            return Ok(vec![self.sampled_tokens(&sequences)?]);
        }
        // First decode steps among them: their tokens are known here, the others' perhaps not.
        let mut known = Vec::new();
        let mut sources = Vec::with_capacity(rows.len());
        let mut num_sampled = 0;
        for group in rows {
            if let Input::Last(token) = group.input {
                sources.push((sequences.len() + known.len()) as i32);
                known.push(token);
            } else {
                sources.push(num_sampled);
                num_sampled += 1;
            }
        }
        let known = Array::from_slice(&known, &[known.len() as i32]);
        let all = if sequences.is_empty() {
            known
        } else {
            ops::concatenate(&[&self.sampled_tokens(&sequences)?, &known], 0)?
        };
        Ok(vec![all.take_axis(Array::from_slice(&sources, &[sources.len() as i32]), 0)?])
    }

    /// Notes where the token is that each of these groups chooses.
    fn note_sampled(&mut self, groups: &[Group], released: &HashSet<SequenceId>, tokens: &Array) {
        self.num_passes += 1;
        let choosing = groups.iter().filter(|group| matches!(group.want, Want::Token(_)));
        for (row, group) in choosing.enumerate().filter(|(_, group)| !released.contains(&group.sequence)) {
            let token = SampledToken { pass: self.num_passes, tokens: tokens.clone(), row };
            self.last_sampled.insert(group.sequence, token);
        }
    }

    /// The tokens that these sequences sampled last, `(B,)`.
    fn sampled_tokens(&self, sequences: &[SequenceId]) -> Result<Array> {
        let sampled = sequences
            .iter()
            .map(|sequence| {
                self.last_sampled.get(sequence).ok_or_else(|| {
                    MlxError::Unsupported(format!("sequence {} decodes before it sampled", sequence.0))
                })
            })
            .collect::<Result<Vec<_>>>()?;
        // As a rule they all come from the pass before.
        let Some(first) = sampled.first() else {
            return Err(MlxError::Unsupported("no sequence to decode".to_owned()));
        };
        if sampled.iter().all(|token| token.pass == first.pass) {
            let rows: Vec<i32> = sampled.iter().map(|token| token.row as i32).collect();
            return Ok(first.tokens.take_axis(Array::from_slice(&rows, &[rows.len() as i32]), 0)?);
        }
        let tokens = sampled
            .iter()
            .map(|token| sys::slice_axis(&token.tokens, 0, token.row, token.row + 1))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(ops::concatenate(&tokens, 0)?)
    }

    fn collect_pass(&mut self) -> Result<Vec<Outcome>> {
        let Some(pass) = self.launched.pop_front() else {
            return Err(MlxError::Unsupported("no pass to collect".to_owned()));
        };
        let Some(asked) = pass.asked else {
            self.unchosen = None;
            return Err(MlxError::Unsupported("a pass is collected before its tokens are chosen".to_owned()));
        };
        if let Some(number) = pass.last_number {
            number.eval()?;
        }
        asked.read()
    }

    /// Of every layer that keeps KV.
    fn kv_layouts(&self) -> Vec<KvLayout> {
        self.decoder.spec.kv_layers().map(AttentionSpec::kv_layout).collect()
    }

    /// Bytes of all stored segments and checkpoints.
    pub fn num_stored_bytes(&self) -> u64 {
        self.segments.num_bytes()
    }

    /// Log-probabilities of the token after `prompt`, computed on its own.
    pub fn next_log_probabilities(&mut self, prompt: &[TokenId]) -> Result<Vec<f32>> {
        let mut logits = self.next_logits(prompt)?;
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let log_sum = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum::<f64>().ln() + max;
        logits.iter_mut().for_each(|logit| *logit = (f64::from(*logit) - log_sum) as f32);
        Ok(logits)
    }

    /// Logits of the token after `prompt`, computed on its own.
    pub fn next_logits(&mut self, prompt: &[TokenId]) -> Result<Vec<f32>> {
        let mut live = LiveKv::new(self.decoder.initial_states().to_vec(), self.decoder.device(), 0);
        let chunk = PassChunk { sequence: SequenceId(0), num_tokens: prompt.len(), start: 0 };
        let pass = live.begin_pass(vec![chunk])?;
        let tokens = Array::from_slice(prompt, &[prompt.len() as i32]);
        let hidden = self.decoder.forward(&tokens, &pass, &mut live)?;
        let logits = self.decoder.logits(&hidden, &[prompt.len() as i32 - 1])?;
        logits.eval()?;
        logits
            .to_vec_exact::<f32>()
            .map_err(|error| MlxError::Unsupported(format!("logits cannot be read: {error}")))
    }
}

/// Waits for passes under way: a process that exits while OpenBLAS computes can hang for ever in
/// that library's own clean-up.
impl Drop for MlxRunner {
    fn drop(&mut self) {
        for pass in self.launched.drain(..) {
            // Nobody is left to hear of a failure.
            let _ = transforms::eval(pass.asked.iter().flat_map(Asked::arrays));
            if let Some(number) = &pass.last_number {
                let _ = number.eval();
            }
        }
    }
}

impl Runner for MlxRunner {
    fn launch(&mut self, groups: &[Group]) -> std::result::Result<(), RunnerError> {
        Ok(self.launch_pass(groups)?)
    }

    fn choose(&mut self, allowed: Vec<Option<TokenSet>>) -> std::result::Result<(), RunnerError> {
        Ok(self.choose_tokens(&allowed)?)
    }

    fn collect(&mut self) -> std::result::Result<Vec<Outcome>, RunnerError> {
        Ok(self.collect_pass()?)
    }

    fn resume(
        &mut self,
        sequence: SequenceId,
        path: &[SegmentId],
        checkpoint: Option<SegmentId>,
    ) -> std::result::Result<(), RunnerError> {
        let path = path.iter().map(|&segment| self.segments.get(segment)).collect::<Result<Vec<_>>>()?;
        let checkpoint = checkpoint.map(|id| self.segments.checkpoint(id)).transpose()?;
        Ok(self.live.resume(sequence, path, checkpoint.as_deref())?)
    }

    fn expect_prefill(&mut self, sequence: SequenceId, end: usize) {
        self.live.expect_prefill(sequence, end);
    }

    fn store(&mut self, sequence: SequenceId, num_tokens: usize) -> std::result::Result<Stored, RunnerError> {
        let segment = self.live.store(sequence, num_tokens, &mut self.segments)?;
        let checkpoint = self.live.checkpoint_after(sequence, &segment, &mut self.segments)?;
        Ok(Stored { segment: stored(&segment), checkpoint })
    }

    fn split(
        &mut self,
        segment: SegmentId,
        at: usize,
    ) -> std::result::Result<(StoredSegment, StoredSegment), RunnerError> {
        let (upper, lower) = self.segments.split(segment, at)?;
        self.live.replace(segment, [&upper, &lower]);
        Ok((stored(&upper), stored(&lower)))
    }

    fn plane_widths(&self) -> Vec<u32> {
        let element_bytes = sys::element_bytes(self.decoder.precision.dtype.mlx());
        let widths = |layout: KvLayout| {
            layout.plane_dims().map(move |head_dim| (layout.num_heads * head_dim * element_bytes) as u32)
        };
        self.kv_layouts().into_iter().flat_map(widths).collect()
    }

    fn export(
        &mut self,
        segment: SegmentId,
        tokens: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<(), RunnerError> {
        Ok(self.segments.export(segment, tokens, bytes)?)
    }

    fn export_checkpoint(
        &mut self,
        checkpoint: SegmentId,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<(), RunnerError> {
        Ok(self.segments.export_checkpoint(checkpoint, bytes)?)
    }

    fn import(&mut self, exported: Exported<'_>) -> std::result::Result<StoredSegment, ImportError> {
        let dtype = self.decoder.precision.dtype.mlx();
        Ok(stored(&*self.segments.import(exported, &self.kv_layouts(), dtype)?))
    }

    fn import_checkpoint(
        &mut self,
        position: usize,
        bytes: &mut dyn Read,
    ) -> std::result::Result<StoredSegment, ImportError> {
        Ok(self.segments.import_checkpoint(position, bytes, self.decoder.initial_states())?)
    }

    fn resume_rule(&self) -> ResumeRule {
        if self.decoder.initial_states().is_empty() { ResumeRule::AnyToken } else { ResumeRule::Checkpoints }
    }

    fn is_finite(&mut self, stored: SegmentId) -> std::result::Result<bool, RunnerError> {
        Ok(self.segments.is_finite(stored)?)
    }

    fn discard(&mut self, segment: SegmentId) {
        self.segments.discard(segment);
    }

    fn release(&mut self, sequence: SequenceId) {
        self.live.release(sequence);
        self.last_sampled.remove(&sequence);
        if let Some(unchosen) = &mut self.unchosen {
            unchosen.released.insert(sequence);
        }
    }
}

#[cfg(test)]
#[path = "runner/launch_tests.rs"]
mod launch_tests;

#[cfg(test)]
#[path = "runner/prompt_tests.rs"]
mod prompt_tests;
