//! Law 4: what the prompt cache counts is what MLX holds, after any inserts, splits and evictions.
//!
//! Owns one test in a process of its own, as MLX counts the memory of a whole process.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use mlxbatch::{
    cache::CacheLimits,
    engine::{Engine, Event, GenerationRequest, Limits, PromptPlan, RequestId, SamplingParams},
    mlx::{LoadedModel, MlxRunner, WeightSource, active_memory_bytes},
    models::read_config,
};
use safetensors::{Dtype, tensor::TensorView};

const NUM_REQUESTS: usize = 200;

/// Some 20 prompts of those below.
const MAX_CACHED_TOKENS: u64 = 6_000;

const NUM_LAYERS: usize = 2;
const NUM_HEADS: usize = 4;
const WIDTH: usize = 32;

/// Wide heads: MLX hands out buffers that it keeps for reuse where they are up to two pages larger
/// than asked for, which is little of 64 tokens' keys only if a token's are as large as in real models.
const HEAD_DIM: usize = 256;

/// A llama of no use, with so many heads of keys and values. What is cut from a single head is in
/// order as it lies, and so was once never copied.
fn model(num_kv_heads: usize) -> MlxRunner {
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        r#"{{"model_type": "llama", "vocab_size": 304, "hidden_size": {WIDTH}, "intermediate_size": 16,
        "num_hidden_layers": {NUM_LAYERS}, "num_attention_heads": {NUM_HEADS},
        "num_key_value_heads": {num_kv_heads}, "head_dim": {HEAD_DIM}, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": true}}"#
    );
    fs::write(folder.path().join("config.json"), config).unwrap();
    let (queries, keys) = (NUM_HEADS * HEAD_DIM, num_kv_heads * HEAD_DIM);
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    shapes.insert("model.embed_tokens.weight".to_owned(), vec![304, WIDTH]);
    shapes.insert("model.norm.weight".to_owned(), vec![WIDTH]);
    for layer in 0..NUM_LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![WIDTH]),
            ("post_attention_layernorm", vec![WIDTH]),
            ("self_attn.q_proj", vec![queries, WIDTH]),
            ("self_attn.k_proj", vec![keys, WIDTH]),
            ("self_attn.v_proj", vec![keys, WIDTH]),
            ("self_attn.o_proj", vec![WIDTH, queries]),
            ("mlp.gate_proj", vec![16, WIDTH]),
            ("mlp.up_proj", vec![16, WIDTH]),
            ("mlp.down_proj", vec![WIDTH, 16]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let mut numbers = Numbers(1);
    let weights: BTreeMap<&String, Vec<u8>> = shapes
        .iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).map(|_| numbers.within(0, 2001) as f32 / 5e3 - 0.2);
            (name, values.flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = shapes
        .iter()
        .map(|(name, shape)| (name, TensorView::new(Dtype::F32, shape.clone(), &weights[name]).unwrap()));
    let path = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let spec = read_config(&folder.path().join("config.json")).unwrap();
    MlxRunner::new(LoadedModel::load(&spec, &WeightSource::Safetensors(vec![path]), None, None).unwrap())
}

/// SplitMix64: the same numbers in every run of the test.
struct Numbers(u64);

impl Numbers {
    /// A number below `end`, at least `start`.
    fn within(&mut self, start: usize, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        start + (mixed ^ (mixed >> 31)) as usize % (end - start)
    }

    /// 64 to 512 tokens, of which the first ones are another prompt's.
    fn prompt(&mut self, earlier: &[Vec<u32>]) -> (Vec<u32>, usize) {
        let num_tokens = self.within(64, 513);
        let mut prompt = Vec::new();
        if !earlier.is_empty() {
            let from = &earlier[self.within(earlier.len().saturating_sub(20), earlier.len())];
            let end = self.within(1, from.len().min(num_tokens));
            prompt.extend_from_slice(&from[..end]);
        }
        let num_shared = prompt.len();
        prompt.extend((num_shared..num_tokens).map(|_| self.within(0, 303) as u32));
        (prompt, num_shared)
    }
}

fn request(id: usize, prompt: Vec<u32>, max_new_tokens: usize) -> GenerationRequest {
    let sampling = SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key: 0 };
    let (id, end_ids) = (RequestId(id as u64), Arc::from([]));
    GenerationRequest { id, prompt, max_new_tokens, end_ids, sampling, plan: PromptPlan::default() }
}

/// Runs until nothing is left to do; returns how many tokens each request found in the cache.
fn run(engine: &mut Engine<MlxRunner>) -> Vec<(RequestId, usize)> {
    let mut num_cached = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished { id, num_cached_tokens, .. } = event {
                num_cached.push((id, num_cached_tokens));
            }
        }
    }
    num_cached
}

/// What the cache says it holds, and what MLX holds beyond `others`.
fn accounted_and_held(engine: &Engine<MlxRunner>, others: u64) -> (u64, u64) {
    let usage = engine.cache_usage().unwrap();
    assert_eq!((usage.num_bytes, usage.outside_bytes), (engine.runner().num_stored_bytes(), 0));
    // What was launched last may still be under way, and hold what it reads until it is over.
    let begun = Instant::now();
    loop {
        let held = active_memory_bytes().unwrap() - others;
        if held == usage.num_bytes || begun.elapsed() > Duration::from_millis(100) {
            return (usage.num_bytes, held);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bytes_held_by_mlx_are_the_bytes_accounted() {
    for num_kv_heads in [2, 1] {
        let limits = Limits {
            max_batch_size: NonZeroUsize::new(4).unwrap(),
            prefill_chunk: NonZeroUsize::new(512).unwrap(),
            max_batch_tokens: None,
            lookahead: true,
        };
        let bytes_per_token = (NUM_LAYERS * 2 * num_kv_heads * HEAD_DIM * size_of::<f32>()) as u64;
        let max_bytes = MAX_CACHED_TOKENS * bytes_per_token;
        let cache = CacheLimits { max_bytes, max_entries: None };
        let mut engine = Engine::new(model(num_kv_heads), limits, Some(cache));
        let others = accounted_and_held(&engine, 0).1;

        let mut numbers = Numbers(3);
        let mut prompts: Vec<Vec<u32>> = Vec::new();
        // Where an edge of the tree may end, as prompts part or end there.
        let mut ends: HashSet<Vec<u32>> = HashSet::new();
        let (mut num_splits, mut worst) = (0, 0.0f64);
        while prompts.len() < NUM_REQUESTS {
            let first = prompts.len();
            let mut shared = Vec::new();
            for id in first..first + 4 {
                let (prompt, num_shared) = numbers.prompt(&prompts);
                engine.submit(request(id, prompt.clone(), numbers.within(1, 40))).unwrap();
                shared.push(prompt[..num_shared].to_vec());
                prompts.push(prompt);
            }
            for (id, num_cached) in run(&mut engine) {
                // Found whole, although no edge ended there: it was cut.
                let prefix = &shared[id.0 as usize - first];
                num_splits += usize::from(num_cached == prefix.len() && ends.insert(prefix.clone()));
            }
            ends.extend(prompts[first..].iter().map(|prompt| prompt[..prompt.len() - 1].to_vec()));
            let (accounted, held) = accounted_and_held(&engine, others);
            assert!(accounted <= max_bytes, "{accounted} bytes of {max_bytes}");
            worst = worst.max((held as f64 / accounted as f64 - 1.0).abs());
        }
        let num_evictions = engine.cache_usage().unwrap().num_evictions();
        println!(
            "{num_kv_heads} KV heads: {num_splits} splits, {num_evictions} evictions, off by {worst:.4}"
        );
        assert!(num_splits >= 80 && num_evictions >= 200, "{num_splits} splits, {num_evictions} evictions");
        assert!(worst < 0.05, "{num_kv_heads} KV heads: off by {worst}");
    }
}
