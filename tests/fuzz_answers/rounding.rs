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

/// Chunks in which prompts are computed, on both kinds of device each. One token at a time is how what was an answer once
/// was computed.
const PREFILL_CHUNKS: [usize; 12] = [2048, 100, 17, 1, 300, 64, 512, 90, 7, 150, 75, 48];

/// How many of them are, before it is seen whether that is enough.
const CHUNKS_AT_ONCE: usize = 3;

/// What a run may be off, in the distances of the ways: of errors as rounding makes them the largest of two dozen is some
/// two deviations, the largest of a million five. What is beside a prompt in a batch is no way of its own: a batch that
/// computes something else would measure itself.
const ALLOWANCE: f32 = 3.0;

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

    /// How far a report on a prompt of the batch may be off, which is by so much: more ways are gone while that is not
    /// allowed.
    pub fn allowed(
        &mut self,
        (batch, index): (&Batch, usize),
        (reported, place): (Reported, usize),
        expected: &TokenReport,
        found_distance: f32,
    ) -> f32 {
        let ways = self.by_prompt.entry(index).or_default();
        let mut chunks = PREFILL_CHUNKS.chunks(CHUNKS_AT_ONCE);
        // Those that were gone for another report.
        let num_gone = ways.len() / (CHUNKS_AT_ONCE * ComputeDevice::KINDS.len());
        chunks.by_ref().take(num_gone).for_each(drop);
        loop {
            let distances = ways.iter().filter_map(|(of_answer, of_prompt)| {
                let found = match reported {
                    Reported::Answer => of_answer.get(place)?,
                    Reported::Prompt => of_prompt.get(place)?,
                };
                distance(found, expected)
            });
            let allowed = ALLOWANCE * distances.fold(0.0, f32::max);
            match chunks.next() {
                Some(chunks) if found_distance > allowed => {
                    ways.extend(ways_in(chunks, self.model, batch, index));
                }
                _ => return allowed,
            }
        }
    }
}

fn ways_in(chunks: &[usize], model: &str, batch: &Batch, index: usize) -> Ways {
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
    let all =
        ComputeDevice::KINDS.into_iter().flat_map(|device| chunks.iter().map(move |&chunk| (device, chunk)));
    all.map(|(device, prefill_chunk)| {
        let setting = Setting { device, prefill_chunk, ..Setting::alone() };
        let mut engine = engine_of(model, &setting, None);
        let Outcome { mut reports, mut scores, .. } = run(&mut engine, &alone, &setting);
        (reports.remove(0), scores.remove(0))
    })
    .collect()
}
