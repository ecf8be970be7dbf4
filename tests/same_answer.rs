//! Law 1: the same greedy tokens whatever the cache holds, the batch size and the order of the input.
//!
//! Owns the matrix: model families with plain KV, sliding windows, recurrent layers and latents, by what is in
//! the cache, by batch size, by order, by the kind of device. The prompts are in `same_answer/`; that
//! the answers are mlx-lm's own is shown by `golden`.

#[path = "same_answer/batch.rs"]
mod batch;
mod common;

use std::path::{Path, PathBuf};

use batch::{NUM_NEW, batch_for, shuffled};
use common::{
    batch::Batch,
    runs::{AMPLE, Setting, engine_of, engine_with_file, run},
};
use mlxbatch::{mlx::ComputeDevice, snapshot};

/// The window of tiny-gemma3 is 16 tokens, far shorter than what the prompts share.
/// tiny-gemma4 has shapes by layer and layers that use others' KV, tiny-gpt_oss sinks and experts,
/// tiny-nemotron_h-moe layers of one half, of which some keep states and one KV, tiny-mamba2 states alone,
/// tiny-kimi_linear states that fade by dimension among latents.
const MODELS: [&str; 11] = [
    "tiny-llama",
    "tiny-gemma3",
    "tiny-qwen3_5",
    "tiny-lfm2",
    "tiny-gemma4",
    "tiny-gpt_oss",
    "tiny-qwen3_5_moe",
    "tiny-glm4_moe_lite",
    "tiny-nemotron_h-moe",
    "tiny-mamba2",
    "tiny-kimi_linear",
];

/// Alone and side by side, as given and shuffled; once with chunks that end within prompts and windows
/// and next to no memory for copies.
fn settings(device: ComputeDevice, num_prompts: usize) -> [Setting; 5] {
    let given: Vec<usize> = (0..num_prompts).collect();
    let setting = |batch_size, lookahead, prefill_chunk, order: &[usize]| Setting {
        device,
        batch_size,
        lookahead,
        prefill_chunk,
        max_copied_bytes: if prefill_chunk < 512 { 40_000 } else { u64::MAX },
        order: order.to_vec(),
        drops_private: false,
        plays_turns: false,
    };
    let shuffled = shuffled(num_prompts);
    [
        setting(1, false, 512, &given),
        setting(1, false, 512, &shuffled),
        setting(8, true, 512, &given),
        setting(8, true, 512, &shuffled),
        setting(8, false, 24, &shuffled),
    ]
}

fn file_in(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    folder.path().join(name)
}

/// Runs half of the batch with a cache file of its own and saves it.
fn save_half(model: &str, batch: &Batch, setting: &Setting, half: usize, path: &Path) {
    let mut engine = engine_with_file(model, setting, AMPLE, path);
    let order = setting.order.iter().copied().filter(|index| index % 2 == half).collect();
    run(&mut engine, batch, &Setting { order, ..setting.clone() });
    assert!(engine.save_snapshot().unwrap().num_new_tokens > 0);
}

fn check(model: &str) {
    let batch = batch_for(model);
    let num_prompts = batch.prompts.len();
    // Without a cache, one by one: what all others are held to, those computed as on a GPU too.
    let first = &settings(ComputeDevice::Cpu, num_prompts)[0];
    let alone = run(&mut engine_of(model, first, None), &batch, first).answers;
    for setting in &ComputeDevice::KINDS.map(|device| settings(device, num_prompts)).concat() {
        let told = format!("{model}, {setting:?}");
        let folder = tempfile::tempdir().unwrap();
        let off = run(&mut engine_of(model, setting, None), &batch, setting);
        assert!(off.answers.iter().all(|answer| answer.len() == NUM_NEW), "{told}");
        assert_eq!(off.answers, alone, "cache off: {told}");
        assert_eq!((off.num_prefilled, off.num_cached), (batch.num_reusable(), 0), "{told}");

        let saved = file_in(&folder, "saved.cache");
        let mut engine = engine_with_file(model, setting, AMPLE, &saved);
        let cold = run(&mut engine, &batch, setting);
        assert_eq!(cold.answers, alone, "cold: {told}");
        let at_least = batch.num_distinct() - batch.num_continued();
        let once = at_least..=batch.num_distinct();
        assert!(once.contains(&cold.num_prefilled), "{}, not {once:?}: {told}", cold.num_prefilled);
        assert_eq!(cold.num_cached, batch.num_reusable() - cold.num_prefilled, "{told}");
        let warm = run(&mut engine, &batch, setting);
        assert_eq!(warm.answers, alone, "warm: {told}");
        assert_eq!((warm.num_prefilled, warm.num_cached), (0, batch.num_reusable()), "warm: {told}");
        assert!(engine.save_snapshot().unwrap().num_new_tokens >= at_least, "{told}");
        let held = engine.cache_usage().unwrap();
        assert_eq!((held.num_evictions(), held.num_over_limit), (0, 0), "{told}");
        drop(engine);

        let only_shared = Setting { drops_private: true, ..setting.clone() };
        let mut engine = engine_of(model, &only_shared, Some(AMPLE));
        assert_eq!(run(&mut engine, &batch, &only_shared).answers, alone, "only what is shared: {told}");
        drop(engine);
        let mut engine = engine_of(model, setting, Some(held.num_bytes / 8));
        let tight = run(&mut engine, &batch, setting);
        assert_eq!(tight.answers, alone, "little room: {told}");
        assert!(engine.cache_usage().unwrap().num_evictions() > 0, "little room: {told}");
        drop(engine);

        let halves = ["even.cache", "odd.cache"].map(|name| file_in(&folder, name));
        for (half, path) in halves.iter().enumerate() {
            save_half(model, &batch, setting, half, path);
        }
        let merged = file_in(&folder, "merged.cache");
        snapshot::merge(&halves.each_ref().map(PathBuf::as_path), &merged).unwrap();
        for (name, path) in [("restored", &saved), ("merged", &merged)] {
            let mut engine = engine_with_file(model, setting, AMPLE, path);
            let restored = run(&mut engine, &batch, setting);
            assert_eq!(restored.answers, alone, "{name}: {told}");
            assert_eq!(
                (restored.num_prefilled, restored.num_cached),
                (0, batch.num_reusable()),
                "{name}: {told}"
            );
            // Every token once, however many prompts begin with it.
            let num_restored = engine.persist_stats().num_restored_tokens;
            assert!(once.contains(&num_restored), "{num_restored}, not {once:?}, {name}: {told}");
            assert_eq!(engine.snapshot().unwrap().num_damaged(), 0, "{name}: {told}");
        }
    }
}

#[test]
fn plain_kv_answers_the_same_whatever_is_cached() {
    check(MODELS[0]);
}

#[test]
fn a_window_shorter_than_the_shared_prefix_answers_the_same_whatever_is_cached() {
    check(MODELS[1]);
}

#[test]
fn gated_delta_layers_answer_the_same_whatever_is_cached() {
    check(MODELS[2]);
}

#[test]
fn short_convolutions_answer_the_same_whatever_is_cached() {
    check(MODELS[3]);
}

#[test]
fn layers_of_several_shapes_that_share_kv_answer_the_same_whatever_is_cached() {
    check(MODELS[4]);
}

#[test]
fn sinks_and_experts_answer_the_same_whatever_is_cached() {
    check(MODELS[5]);
}

#[test]
fn experts_on_recurrent_layers_answer_the_same_whatever_is_cached() {
    check(MODELS[6]);
}

#[test]
fn latents_answer_the_same_whatever_is_cached() {
    check(MODELS[7]);
}

#[test]
fn halves_of_blocks_with_states_answer_the_same_whatever_is_cached() {
    check(MODELS[8]);
}

#[test]
fn states_alone_answer_the_same_whatever_is_cached() {
    check(MODELS[9]);
}

#[test]
fn delta_layers_among_latents_answer_the_same_whatever_is_cached() {
    check(MODELS[10]);
}
