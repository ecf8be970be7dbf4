//! The prompts of the matrix, the same in every run.
//!
//! Owns them and their order. What is planned of them is `common`'s business.

use std::sync::Arc;

use mlxbatch::{
    cache::{ResumeRule, Tier},
    engine::Runner,
    mlx::ComputeDevice,
};

use super::common::{
    batch::{Batch, Numbers, Prompt},
    load,
    wants::Wants,
};

/// New tokens of each request.
pub const NUM_NEW: usize = 10;

/// The numbers below `num_prompts` in an order that looks random and never changes.
pub fn shuffled(num_prompts: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..num_prompts).collect();
    Numbers(7).shuffle(&mut order);
    order
}

/// Two system parts, few-shot examples that branch below the first one, questions below those;
/// equal prompts, prompts that are the beginning of others, and some that share nothing.
pub fn batch_for(model: &str) -> Batch {
    let mut numbers = Numbers(1);
    let systems = [numbers.words(70), numbers.words(33)];
    let shots = [numbers.words(40), numbers.words(21), numbers.words(5)];
    let mut prompts = Vec::new();
    let mut add = |parts: &[&[u32]], system_end: Option<usize>| {
        let tokens = parts.concat();
        let system = system_end.map(|end| (end, Tier::System));
        let spans = system.into_iter().chain([(tokens.len(), Tier::User)]).collect();
        prompts.push(Prompt {
            tokens,
            spans,
            max_new_tokens: NUM_NEW,
            stopped_after: None,
            follows: None,
            wants: Wants::default(),
        });
    };
    let (first, second) = (&systems[0][..], &systems[1][..]);
    for length in [9, 1, 26] {
        add(&[first, &shots[0], &shots[2], &numbers.words(length)], Some(first.len()));
        add(&[first, &shots[0], &numbers.words(length + 2)], Some(first.len()));
        add(&[first, &shots[1], &numbers.words(length + 1)], Some(first.len()));
        add(&[second, &numbers.words(length)], Some(second.len()));
        add(&[&numbers.words(length)], None);
    }
    let long = numbers.words(30);
    add(&[first, &shots[0], &long], Some(first.len()));
    add(&[first, &shots[0], &long[..14]], Some(first.len()));
    add(&[first, &shots[0], &long[..15]], Some(first.len()));
    add(&[first, &shots[0], &long], Some(first.len()));
    add(&[first, &shots[0]], Some(first.len()));
    add(&[first], None);
    add(&[&first[..20]], None);
    add(&[second, &shots[2]], Some(second.len()));
    add(&[second, &shots[2]], Some(second.len()));
    let has_checkpoints = load(model, ComputeDevice::current()).resume_rule() == ResumeRule::Checkpoints;
    Batch { prompts, end_ids: Arc::from([]), has_checkpoints }
}
