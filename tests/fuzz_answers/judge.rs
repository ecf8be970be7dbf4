//! What is made of an answer that differs: whether the model, asked again, would have it so.
//!
//! Owns asking, token by token; how much may be excused is the caller's business.

use std::fmt;

use mlxbatch::{
    cache::ResumeRule,
    engine::{Runner, TokenReport},
    mlx::{ComputeDevice, MlxRunner},
};

use crate::common::{
    batch::Batch,
    load,
    wants::{faults, processed},
};

/// What says which of two tokens a model prefers.
pub struct Judge {
    runner: MlxRunner,
}

/// Where an answer leaves the one it is held to, or goes on otherwise than the model would.
pub struct Flip {
    position: usize,
    expected: Option<u32>,
    found: Option<u32>,
    /// By how much the best logit there is better.
    pub gap: f32,
}

impl fmt::Display for Flip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, expected, found, gap } = self;
        write!(f, "token {position} is {found:?} instead of {expected:?}, {gap} below the best")
    }
}

impl Judge {
    pub fn new(model: &str) -> Self {
        Self { runner: load(model, ComputeDevice::Cpu) }
    }

    pub fn has_checkpoints(&self) -> bool {
        self.runner.resume_rule() == ResumeRule::Checkpoints
    }

    /// What is wrong with some of a prompt's reports and scores.
    pub fn faults(
        &mut self,
        batch: &Batch,
        index: usize,
        reports: &[TokenReport],
        scores: &[TokenReport],
    ) -> Vec<String> {
        faults(&mut self.runner, batch, index, reports, scores)
    }

    /// By how much the best token after these, which begin with a prompt of the batch, is better than the best
    /// of `tokens`, as that prompt's processors have it; infinity where it is unclear.
    pub fn gap(&mut self, batch: &Batch, index: usize, text: &[u32], tokens: &[u32]) -> f32 {
        let logits = processed(&mut self.runner, batch, index, text);
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return f32::INFINITY;
        }
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        tokens.iter().fold(f32::INFINITY, |gap, &token| gap.min(best - logits[token as usize]))
    }

    /// All tokens from the first difference on that are not the most probable after those before them, and
    /// that first one. An answer that is not whole may end anywhere.
    pub fn flips(
        &mut self,
        batch: &Batch,
        index: usize,
        expected: &[u32],
        found: &[u32],
        is_whole: bool,
    ) -> Vec<Flip> {
        let prompt = &batch.prompts[index];
        let first = expected.iter().zip(found).take_while(|(left, right)| left == right).count();
        if found.len() == first && (!is_whole || expected.len() == first) {
            return Vec::new();
        }
        let ends_itself =
            is_whole && found.len() < prompt.max_new_tokens && prompt.stopped_after != Some(found.len());
        let mut text = [&prompt.tokens, &found[..first]].concat();
        let mut flips = Vec::new();
        for position in first..found.len() + usize::from(ends_itself) {
            let token = found.get(position).copied();
            let candidates = token.as_ref().map_or(&batch.end_ids[..], std::slice::from_ref);
            let gap = self.gap(batch, index, &text, candidates);
            if position == first || gap > 0.0 {
                flips.push(Flip { position, expected: expected.get(position).copied(), found: token, gap });
            }
            text.extend(token);
        }
        flips
    }
}
