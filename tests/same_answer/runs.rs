//! One run of the batch through the library, with a cache, a cache file or neither.
//!
//! Owns the engine's settings and what a run is measured by; which runs there are is the matrix's
//! business.

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use mlxbatch::{
    cache::{CacheLimits, ResumeRule},
    engine::{AnswerRecurs, Engine, Event, GenerationRequest, Limits, RequestId, Runner, SamplingParams},
    mlx::MlxRunner,
    snapshot::{CacheMode, Identity, IdentityPart, Snapshot, SnapshotError, SnapshotOptions},
};

use super::{
    batch::{Batch, NUM_NEW},
    common::load_with,
};

#[derive(Debug, Clone)]
pub struct Setting {
    pub batch_size: usize,
    pub lookahead: bool,
    pub prefill_chunk: usize,
    /// What rows may copy to be decoded side by side.
    pub max_copied_bytes: u64,
    /// Prompts in the order of the input.
    pub order: Vec<usize>,
    /// What none of them shares is not stored, as in a run that nothing outlives.
    pub drops_private: bool,
}

/// A limit that nothing reaches.
pub const AMPLE: u64 = 1 << 30;

/// What a run over a batch came to.
pub struct Outcome {
    /// Of each prompt, by its place in the batch.
    pub answers: Vec<Vec<u32>>,
    /// Prompt tokens computed in chunks.
    pub num_prefilled: usize,
    /// Prompt tokens whose KV was there.
    pub num_cached: usize,
}

/// An engine without a cache file; without a limit it has no prompt cache either.
pub fn engine_of(model: &str, setting: &Setting, max_bytes: Option<u64>) -> Engine<MlxRunner> {
    let limits = Limits {
        max_batch_size: NonZeroUsize::new(setting.batch_size).unwrap(),
        prefill_chunk: NonZeroUsize::new(setting.prefill_chunk).unwrap(),
        max_batch_tokens: None,
        lookahead: setting.lookahead,
        kv_bytes_per_token: 1,
        // One after the other, or all at once.
        max_restored_bytes: if setting.lookahead { 0 } else { u64::MAX },
    };
    let cache = max_bytes.map(|max_bytes| CacheLimits { max_bytes, max_entries: None });
    Engine::new(load_with(model, setting.max_copied_bytes), limits, cache)
}

/// An engine with a cache that begins with what a cache file has, if there is one.
pub fn engine_with_file(model: &str, setting: &Setting, path: &Path) -> Engine<MlxRunner> {
    let engine = engine_of(model, setting, Some(AMPLE));
    let identity = Identity {
        model: model.to_owned(),
        needs_checkpoints: engine.runner().resume_rule() == ResumeRule::Checkpoints,
        parts: vec![IdentityPart::new("weights", model.as_bytes())],
        stamps: Vec::new(),
    };
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    let snapshot = Snapshot::open(path, options, |_| Ok::<_, SnapshotError>(identity)).unwrap();
    engine.with_snapshot(snapshot)
}

/// Runs the batch, or what the setting's order has of it, and checks that the counters agree.
pub fn run(engine: &mut Engine<MlxRunner>, batch: &Batch, setting: &Setting) -> Outcome {
    let before = *engine.stats();
    let planned = batch.plan(setting, before.num_admitted as u64);
    let num_requests = planned.len();
    let mut planned = planned.into_iter().peekable();
    let mut answers = vec![Vec::new(); batch.prompts.len()];
    let mut num_cached = 0;
    while planned.peek().is_some() || !engine.is_idle() {
        while engine.has_room()
            && let Some((index, plan)) = planned.next()
        {
            let sampling = SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key: 0 };
            let request = GenerationRequest {
                id: RequestId(index as u64),
                prompt: batch.prompts[index].tokens.clone(),
                max_new_tokens: NUM_NEW,
                end_ids: Arc::from([]),
                sampling,
                plan,
                answer_recurs: AnswerRecurs::default(),
            };
            engine.submit(request).unwrap();
        }
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token } => answers[id.0 as usize].push(token),
                Event::Finished { num_cached_tokens, .. } => num_cached += num_cached_tokens,
            }
        }
    }
    let after = engine.stats();
    let outcome = Outcome {
        answers,
        num_prefilled: after.num_prefilled_tokens() - before.num_prefilled_tokens(),
        num_cached: after.num_cached_tokens - before.num_cached_tokens,
    };
    assert_eq!(outcome.num_cached, num_cached, "of the run and of its requests");
    // Every prompt's last token is neither: it is fed as the first decode row.
    assert_eq!(after.num_last_tokens() - before.num_last_tokens(), num_requests);
    let num_prompt_tokens = after.num_prompt_tokens - before.num_prompt_tokens;
    assert_eq!(num_prompt_tokens, outcome.num_prefilled + outcome.num_cached + num_requests);
    if let Some(usage) = engine.cache_usage() {
        assert_eq!(usage.num_cached_tokens(), after.num_cached_tokens, "of the cache and of the engine");
        assert_eq!(usage.num_bytes, engine.runner().num_stored_bytes(), "held and accounted");
    }
    outcome
}
