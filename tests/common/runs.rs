//! One run of a batch through the library, with a cache, a cache file or neither.
//!
//! Owns the engine's settings and what a run is measured by; which runs there are is each test's business.

use std::{collections::HashSet, num::NonZeroUsize, path::Path};

use mlxbatch::{
    cache::{CacheLimits, ResumeRule},
    engine::{
        AnswerRecurs, Engine, Event, FinishReason, GenerationRequest, Limits, PromptPlan, RequestId, Runner,
        SamplingParams, TokenReport,
    },
    mlx::{ComputeDevice, MlxRunner},
    snapshot::{CacheMode, Identity, IdentityPart, Snapshot, SnapshotError, SnapshotOptions},
};

use super::{batch::Batch, load_with};

#[derive(Debug, Clone)]
pub struct Setting {
    pub device: ComputeDevice,
    pub batch_size: usize,
    pub lookahead: bool,
    pub prefill_chunk: usize,
    /// What rows may copy to be decoded side by side.
    pub max_copied_bytes: u64,
    /// Prompts in the order of the input.
    pub order: Vec<usize>,
    /// What none of them shares is not stored, as in a run that nothing outlives.
    pub drops_private: bool,
    /// Prompts that go on with the answer of another are submitted when that is there, and planned then.
    pub plays_turns: bool,
}

impl Setting {
    /// One prompt by itself, on the CPU.
    #[allow(dead_code, reason = "not every test has one")]
    pub fn alone() -> Self {
        Self {
            device: ComputeDevice::Cpu,
            batch_size: 1,
            lookahead: false,
            prefill_chunk: 2048,
            max_copied_bytes: u64::MAX,
            order: vec![0],
            drops_private: false,
            plays_turns: false,
        }
    }
}

/// A limit that nothing reaches.
pub const AMPLE: u64 = 1 << 30;

/// What a run over a batch came to.
pub struct Outcome {
    /// Of each prompt, by its place in the batch.
    pub answers: Vec<Vec<u32>>,
    /// On each token of the answers, where the prompt wants them; by its place in the batch.
    pub reports: Vec<Vec<TokenReport>>,
    /// On the prompt's own tokens, where they are wanted; by its place in the batch.
    pub scores: Vec<Vec<TokenReport>>,
    /// Whether the answer is whole; by its place in the batch, too.
    pub is_whole: Vec<bool>,
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
    Engine::new(load_with(model, setting.device, setting.max_copied_bytes), limits, cache)
}

/// An engine with a cache that begins with what a cache file has, if there is one.
pub fn engine_with_file(model: &str, setting: &Setting, max_bytes: u64, path: &Path) -> Engine<MlxRunner> {
    let engine = engine_of(model, setting, Some(max_bytes));
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
    run_steps(engine, batch, setting, usize::MAX, |_, _| {})
}

/// Runs the batch to its end or for so many steps, whatever comes first; `between` is told after each how
/// many there were.
pub fn run_steps(
    engine: &mut Engine<MlxRunner>,
    batch: &Batch,
    setting: &Setting,
    max_steps: usize,
    mut between: impl FnMut(&mut Engine<MlxRunner>, usize),
) -> Outcome {
    let before = *engine.stats();
    let followers = batch.followers(setting);
    let later: HashSet<usize> = followers.values().flatten().copied().collect();
    let order = setting.order.iter().copied().filter(|index| !later.contains(index)).collect();
    let planned = batch.plan(&Setting { order, ..setting.clone() }, before.num_admitted as u64);
    let num_requests = setting.order.len();
    let num_decoding = setting.order.iter().filter(|index| batch.prompts[**index].max_new_tokens > 0).count();
    let request_of = |index: usize, mut plan: PromptPlan| {
        let is_awaited = followers.contains_key(&index);
        plan.drops_private &= !is_awaited;
        let answer_recurs = AnswerRecurs::default();
        GenerationRequest {
            id: RequestId(index as u64),
            prompt: batch.prompts[index].tokens.clone(),
            max_new_tokens: batch.prompts[index].max_new_tokens,
            end_ids: batch.end_ids.clone(),
            sampling: SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key: 0 },
            processors: batch.prompts[index].wants.processors.clone(),
            guide: batch.prompts[index].wants.guide.clone(),
            report: batch.prompts[index].wants.report,
            score: batch.prompts[index].wants.score,
            plan,
            answer_recurs: if is_awaited { answer_recurs.awaited() } else { answer_recurs },
        }
    };
    let requests: Vec<GenerationRequest> =
        planned.into_iter().map(|(index, plan)| request_of(index, plan)).collect();
    requests.iter().for_each(|request| engine.expect(request));
    let mut requests = requests.into_iter().peekable();
    let mut answers = vec![Vec::new(); batch.prompts.len()];
    let (mut reports, mut scores) = (vec![Vec::new(); answers.len()], vec![Vec::new(); answers.len()]);
    let mut is_whole = vec![false; batch.prompts.len()];
    let mut num_cached = 0;
    let mut num_steps = 0;
    while num_steps < max_steps && (requests.peek().is_some() || !engine.is_idle()) {
        while engine.has_room()
            && let Some(request) = requests.next()
        {
            engine.submit(request).unwrap();
        }
        num_steps += 1;
        for event in engine.step().unwrap() {
            match event {
                Event::Token { id, token, report } => {
                    let index = id.0 as usize;
                    reports[index].extend(report.map(|report| *report));
                    answers[index].push(token);
                    if batch.prompts[index].stopped_after == Some(answers[index].len()) {
                        engine.stop(id);
                    }
                }
                Event::Scored { id, position, reports } => {
                    let index = id.0 as usize;
                    let from = batch.prompts[index].wants.score.unwrap().from;
                    assert_eq!(position, from + scores[index].len(), "in order");
                    assert!(answers[index].is_empty(), "before the answer");
                    scores[index].extend(reports);
                }
                Event::Finished { id, reason, num_cached_tokens, .. } => {
                    assert!(matches!(reason, FinishReason::Stop | FinishReason::Length), "{reason:?}");
                    let index = id.0 as usize;
                    is_whole[index] = true;
                    num_cached += num_cached_tokens;
                    for &next in followers.get(&index).into_iter().flatten() {
                        let alone = Setting { order: vec![next], ..setting.clone() };
                        for (next, plan) in batch.plan(&alone, engine.present()) {
                            engine.submit_next(request_of(next, plan)).unwrap();
                        }
                    }
                }
            }
        }
        between(engine, num_steps);
    }
    let after = engine.stats();
    let outcome = Outcome {
        answers,
        reports,
        scores,
        is_whole,
        num_prefilled: after.num_prefilled_tokens() - before.num_prefilled_tokens(),
        num_cached: after.num_cached_tokens - before.num_cached_tokens,
    };
    if !engine.is_idle() {
        return outcome;
    }
    assert_eq!(outcome.num_cached, num_cached, "of the run and of its requests");
    // Every prompt's last token is neither: it is fed as the first decode row, where there is one.
    assert_eq!(after.num_last_tokens() - before.num_last_tokens(), num_decoding);
    let num_prompt_tokens = after.num_prompt_tokens - before.num_prompt_tokens;
    assert_eq!(num_prompt_tokens, outcome.num_prefilled + outcome.num_cached + num_requests);
    if let Some(usage) = engine.cache_usage() {
        assert_eq!(usage.num_cached_tokens(), after.num_cached_tokens, "of the cache and of the engine");
        assert_eq!(usage.num_bytes, engine.runner().num_stored_bytes(), "held and accounted");
    }
    outcome
}
