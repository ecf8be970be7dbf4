//! How far rounding alone takes what a model says of a token.
//!
//! Owns measuring it: a prompt by itself without a cache, computed in every way that there is. What some models do
//! enlarges rounding a hundred times behind one document of thirty: a router that chooses between experts that are nearly
//! alike, a delta rule that subtracts what its memory holds already, random weights with scores far apart. A bound for all
//! documents of such a model would hide what is wrong in the others.

use std::collections::HashMap;

use mlxbatch::{engine::TokenReport, mlx::ComputeDevice};

use crate::common::{
    batch::{Batch, Prompt},
    runs::{Outcome, Setting, engine_of, run},
};

/// Chunks in which prompts are computed.
const PREFILL_CHUNKS: [usize; 3] = [2048, 100, 17];

/// What a run may be off, in the distances of the ways: those are some of many.
const ALLOWANCE: f32 = 2.0;

/// Reports on the same tokens, computed in each way; those on the answer and those on the prompt.
type Ways = Vec<(Vec<TokenReport>, Vec<TokenReport>)>;

pub struct Rounding {
    model: &'static str,
    by_prompt: HashMap<usize, Ways>,
}

/// Which reports of a prompt.
#[derive(Clone, Copy)]
pub enum Reported {
    Answer,
    Prompt,
}

/// The largest distance between two reports on a token, or none where they are on different ones.
pub fn distance(left: &TokenReport, right: &TokenReport) -> Option<f32> {
    let are_alike = left.token == right.token && left.top.len() == right.top.len();
    let tops = left.top.iter().zip(&right.top).map(|(left, right)| (left.1 - right.1).abs());
    let all = tops.chain([(left.log_probability - right.log_probability).abs()]);
    // What is no number stays none.
    are_alike
        .then(|| all.fold(0.0, |most: f32, next| if next <= most || most.is_nan() { most } else { next }))
}

impl Rounding {
    pub fn new(model: &'static str) -> Self {
        Self { model, by_prompt: HashMap::new() }
    }

    /// How far a report on a prompt of the batch may be off.
    pub fn allowed(
        &mut self,
        batch: &Batch,
        index: usize,
        (reported, place): (Reported, usize),
        expected: &TokenReport,
    ) -> f32 {
        let ways = self.by_prompt.entry(index).or_insert_with(|| ways(self.model, batch, index));
        let distances = ways.iter().filter_map(|(of_answer, of_prompt)| {
            let found = match reported {
                Reported::Answer => of_answer.get(place)?,
                Reported::Prompt => of_prompt.get(place)?,
            };
            distance(found, expected)
        });
        ALLOWANCE * distances.fold(0.0, f32::max)
    }
}

fn ways(model: &str, batch: &Batch, index: usize) -> Ways {
    let Prompt { tokens, spans, max_new_tokens, stopped_after, wants, .. } = &batch.prompts[index];
    let prompt = Prompt {
        tokens: tokens.clone(),
        spans: spans.clone(),
        max_new_tokens: *max_new_tokens,
        stopped_after: *stopped_after,
        follows: None,
        wants: wants.clone(),
    };
    let (end_ids, has_checkpoints) = (batch.end_ids.clone(), batch.has_checkpoints);
    let alone = Batch { prompts: vec![prompt], end_ids, has_checkpoints };
    let all = ComputeDevice::KINDS.into_iter().flat_map(|device| PREFILL_CHUNKS.map(|chunk| (device, chunk)));
    all.map(|(device, prefill_chunk)| {
        let setting = Setting { device, prefill_chunk, ..Setting::alone() };
        let mut engine = engine_of(model, &setting, None);
        let Outcome { mut reports, mut scores, .. } = run(&mut engine, &alone, &setting);
        (reports.remove(0), scores.remove(0))
    })
    .collect()
}
