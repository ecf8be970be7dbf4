//! The same answers as the reference on tiny weights: log-probabilities and greedy tokens of every family.
//!
//! `fixtures/tiny-*/golden.json` was computed by mlx-lm 0.32.2, or where that is known to be wrong by
//! transformers 5.24 (scripts/make_fixtures.py; fixtures/SOURCES.md says which); every greedy step there has a
//! gap of at least 5e-3 between the two best logits, so tokens must be equal whatever the batch.

mod common;

use std::{num::NonZeroUsize, sync::Arc};

use common::{
    Golden, golden, golden_of_adapter, golden_of_long_contexts, load, load_adapted, load_for_long_contexts,
    load_narrow, on_both_kinds,
};
use mlxbatch::{
    engine::{
        AnswerRecurs, Engine, Event, GenerationRequest, Limits, Processors, PromptPlan, RequestId,
        SamplingParams,
    },
    mlx::{ComputeDevice, ComputeDtype, MlxRunner},
};

const MODELS: &[&str] = &[
    "tiny-llama",
    "tiny-llama-sharded",
    "tiny-llama-rope3",
    "tiny-llama-linear",
    "tiny-llama-yarn",
    "tiny-llama-4bit",
    "tiny-mistral-swa",
    "tiny-qwen2",
    "tiny-qwen3",
    "tiny-gemma3",
    "tiny-lfm2",
    "tiny-qwen3_5",
    "tiny-qwen3_moe",
    "tiny-qwen3_moe-4bit",
    "tiny-qwen3_5_moe",
    "tiny-mixtral",
    "tiny-qwen2_moe",
    "tiny-lfm2_moe",
    "tiny-glm4_moe",
    "tiny-olmoe",
    "tiny-ernie4_5_moe",
    "tiny-granitemoe",
    "tiny-qwen3_next",
    "tiny-gpt_oss",
    "tiny-gpt_oss-mxfp4",
    "tiny-llama-mxfp4",
    "tiny-llama-mxfp8",
    "tiny-llama-nvfp4",
    "tiny-gemma2",
    "tiny-seed_oss",
    "tiny-ernie4_5",
    "tiny-qwen3_vl",
    "tiny-qwen2_5_vl",
    "tiny-mistral3",
    "tiny-smollm3",
    "tiny-ministral3",
    "tiny-minimax_m2",
    "tiny-olmo2",
    "tiny-olmo3",
    "tiny-exaone4",
    "tiny-granite",
    "tiny-gemma4",
    "tiny-gemma4-moe",
    "tiny-phi3",
    "tiny-glm4",
    "tiny-cohere2",
    "tiny-qwen3_vl_moe",
    "tiny-gpt_oss-blocks",
    "tiny-llama-awq",
    "tiny-deepseek_v2",
    "tiny-deepseek_v3",
    "tiny-glm4_moe_lite",
    "tiny-glm4_moe_lite-4bit",
    "tiny-mistral4",
    "tiny-granitemoehybrid",
    "tiny-granitemoehybrid-dense",
    "tiny-nemotron_h",
    "tiny-nemotron_h-moe",
    "tiny-falcon_h1",
    "tiny-mamba2",
    "tiny-kimi_linear",
    "tiny-kimi_linear-4bit",
];

#[derive(Debug, Clone, Copy)]
struct Setting {
    batch_size: usize,
    prefill_chunk: usize,
    lookahead: bool,
    /// Submits the prompts last to first.
    reversed: bool,
}

/// Greedy answers of all prompts, 40 tokens each, in the prompts' order.
fn answers(runner: MlxRunner, prompts: &[Golden], setting: Setting) -> Vec<Vec<u32>> {
    let limits = Limits {
        max_batch_size: NonZeroUsize::new(setting.batch_size).unwrap(),
        prefill_chunk: NonZeroUsize::new(setting.prefill_chunk).unwrap(),
        max_batch_tokens: None,
        kv_bytes_per_token: 1,
        max_restored_bytes: u64::MAX,
        lookahead: setting.lookahead,
    };
    let mut engine = Engine::new(runner, limits, None);
    let greedy = SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key: 0 };
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    if setting.reversed {
        order.reverse();
    }
    let mut order = order.into_iter().peekable();
    let mut answers = vec![Vec::new(); prompts.len()];
    loop {
        while engine.has_room() {
            let Some(index) = order.next() else { break };
            engine
                .submit(GenerationRequest {
                    id: RequestId(index as u64),
                    prompt: prompts[index].prompt.clone(),
                    max_new_tokens: 40,
                    end_ids: Arc::from([]),
                    sampling: greedy.clone(),
                    processors: Processors::default(),
                    guide: None,
                    report: None,
                    score: None,
                    plan: PromptPlan::default(),
                    answer_recurs: AnswerRecurs::default(),
                })
                .unwrap();
        }
        if order.peek().is_none() && engine.is_idle() {
            return answers;
        }
        for event in engine.step().unwrap() {
            if let Event::Token { id, token, .. } = event {
                answers[id.0 as usize].push(token);
            }
        }
    }
}

/// Folders of `fixtures/adapters`, whose answers are those of the program that wrote them.
const ADAPTERS: &[&str] = &[
    "llama-qv",
    "llama-4bit-all",
    "llama-4bit-dora",
    "qwen3_moe-4bit-all",
    "glm4-all",
    "llama-full",
    "phi3-peft",
    "qwen2-peft-dora",
    "qwen2-peft-bias",
    "qwen3_moe-peft-experts",
];

/// How far the log-probabilities after a prompt are from the reference's at most.
fn farthest(runner: &mut MlxRunner, golden: &Golden) -> f64 {
    let ours = runner.next_log_probabilities(&golden.prompt).unwrap();
    assert_eq!(ours.len(), golden.last_logprobs.len());
    let distances =
        ours.iter().zip(&golden.last_logprobs).map(|(&ours, theirs)| (f64::from(ours) - theirs).abs());
    distances.fold(0.0, f64::max)
}

#[test]
fn log_probabilities_of_the_last_position_agree() {
    for (model, device) in on_both_kinds(MODELS.iter().copied()) {
        let mut runner = load(model, device);
        for (index, golden) in golden(model).iter().enumerate() {
            let worst = farthest(&mut runner, golden);
            assert!(worst < 1e-3, "{model}, {device:?}, prompt {index}: {worst}");
        }
    }
}

/// Rows of recurrent layers are float32 in models of 16 bits, too: where a CPU's loops took the factors of their norms
/// for that as well, none of these models answered.
#[test]
fn in_16_bits_all_models_compute_numbers() {
    for model in MODELS {
        for dtype in [ComputeDtype::Bfloat16, ComputeDtype::Float16] {
            // Random weights make much of little, experts that are chosen otherwise above all: how far the numbers
            // are from the reference's says nothing.
            let ours = load_narrow(model, dtype).next_log_probabilities(&golden(model)[0].prompt).unwrap();
            assert!(ours.iter().all(|number| number.is_finite()), "{model}, {dtype:?}");
        }
    }
}

#[test]
fn log_probabilities_agree_with_an_adapter_beside_the_weights_and_in_them() {
    for (adapter, device) in on_both_kinds(ADAPTERS.iter().copied()) {
        for is_fused in [false, true] {
            let mut runner = load_adapted(adapter, device, is_fused);
            for (index, golden) in golden_of_adapter(adapter).iter().enumerate() {
                let worst = farthest(&mut runner, golden);
                assert!(worst < 1e-3, "{adapter}, {device:?}, fused {is_fused}, prompt {index}: {worst}");
            }
        }
    }
}

/// The prompts that are longer than LongRoPE's first context: there the reference has the other factors throughout.
#[test]
fn long_contexts_agree_by_themselves_and_in_batches() {
    for device in ComputeDevice::KINDS {
        let prompts = golden_of_long_contexts("tiny-phi3");
        assert_eq!(prompts.len(), 2);
        let mut runner = load_for_long_contexts("tiny-phi3", device);
        for golden in &prompts {
            let worst = farthest(&mut runner, golden);
            assert!(worst < 1e-3, "{device:?}, {} tokens: {worst}", golden.prompt.len());
        }
        for setting in settings() {
            let ours = answers(load_for_long_contexts("tiny-phi3", device), &prompts, setting);
            for (ours, golden) in ours.iter().zip(&prompts) {
                assert_eq!(ours, &golden.greedy, "{device:?}, {setting:?}");
            }
        }
    }
}

fn settings() -> [Setting; 4] {
    let base = Setting { batch_size: 1, prefill_chunk: 512, lookahead: false, reversed: false };
    [
        base,
        Setting { batch_size: 8, lookahead: true, ..base },
        Setting { batch_size: 3, reversed: true, ..base },
        // Chunks cut within prompts and windows, and the last prompts join a running batch.
        Setting { batch_size: 2, prefill_chunk: 13, lookahead: true, reversed: true },
    ]
}

#[test]
fn greedy_tokens_agree_whatever_the_batch() {
    for (model, device) in on_both_kinds(MODELS.iter().copied()) {
        let prompts = golden(model);
        for setting in settings() {
            let ours = answers(load(model, device), &prompts, setting);
            for (index, (ours, golden)) in ours.iter().zip(&prompts).enumerate() {
                assert_eq!(ours, &golden.greedy, "{model}, {device:?}, prompt {index}, {setting:?}");
            }
        }
    }
}

#[test]
fn greedy_tokens_agree_with_an_adapter_whatever_the_batch() {
    for (adapter, device) in on_both_kinds(ADAPTERS.iter().copied()) {
        let prompts = golden_of_adapter(adapter);
        for (setting, is_fused) in settings().into_iter().zip([false, false, true, false]) {
            let ours = answers(load_adapted(adapter, device, is_fused), &prompts, setting);
            for (index, (ours, golden)) in ours.iter().zip(&prompts).enumerate() {
                assert_eq!(
                    ours, &golden.greedy,
                    "{adapter}, {device:?}, fused {is_fused}, prompt {index}, {setting:?}"
                );
            }
        }
    }
}
