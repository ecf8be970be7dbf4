//! Tiny models and their golden answers, for the tests that run real tensors.
//!
//! Owns reading `fixtures/tiny-*`, and in its parts prompts with their plan and runs over them; what is
//! compared is each test's business.

#![allow(dead_code)] // Each test file uses its own part of this.

pub mod batch;
pub mod runs;
pub mod wants;

use std::path::Path;

use mlxbatch::{
    mlx::{ComputeDevice, ComputeDtype, LoadedModel, MlxRunner, UsedAdapter, WeightSource},
    models::{Adapter, ModelSpec, read_config},
};
use serde_json::Value;

pub struct Golden {
    pub prompt: Vec<u32>,
    pub greedy: Vec<u32>,
    pub last_logprobs: Vec<f64>,
}

fn numbers<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    value.as_array().unwrap().iter().map(|item| convert(item).unwrap()).collect()
}

/// The prompts of a model and what its reference made of them, as far as prompt and answer fit into the contexts
/// that are served.
pub fn golden(model: &str) -> Vec<Golden> {
    golden_in(model, model)
}

/// The same of an adapter's folder below `fixtures/adapters`.
pub fn golden_of_adapter(adapter: &str) -> Vec<Golden> {
    let folder = format!("adapters/{adapter}");
    golden_in(&folder, golden_file(&folder)["base"].as_str().unwrap())
}

/// The prompts that are longer than the contexts that are served without a choice.
pub fn golden_of_long_contexts(model: &str) -> Vec<Golden> {
    let max_context = spec_of(model).max_context;
    all_golden_in(model).filter(|golden| golden.prompt.len() > max_context).collect()
}

fn golden_in(folder: &str, model: &str) -> Vec<Golden> {
    let max_context = spec_of(model).max_context;
    all_golden_in(folder).filter(|golden| golden.prompt.len() + golden.greedy.len() <= max_context).collect()
}

fn spec_of(model: &str) -> ModelSpec {
    read_config(&Path::new("fixtures").join(model).join("config.json")).unwrap()
}

fn all_golden_in(folder: &str) -> impl Iterator<Item = Golden> {
    let value = golden_file(folder);
    let token = |value: &Value| value.as_u64().map(|token| token as u32);
    let read = move |prompt: &Value| Golden {
        prompt: numbers(&prompt["prompt_ids"], token),
        greedy: numbers(&prompt["greedy_ids"], token),
        last_logprobs: numbers(&prompt["last_logprobs"], Value::as_f64),
    };
    value["prompts"].as_array().unwrap().iter().map(read).collect::<Vec<_>>().into_iter()
}

fn golden_file(folder: &str) -> Value {
    let text = std::fs::read_to_string(format!("fixtures/{folder}/golden.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Each of the models as it is computed on a CPU and as on a GPU.
pub fn on_both_kinds<'a>(
    models: impl IntoIterator<Item = &'a str>,
) -> impl Iterator<Item = (&'a str, ComputeDevice)> {
    models.into_iter().flat_map(|model| ComputeDevice::KINDS.map(|device| (model, device)))
}

/// Loads a tiny model, to be computed in float32 as on that kind of device.
pub fn load(model: &str, device: ComputeDevice) -> MlxRunner {
    load_with(model, device, u64::MAX)
}

/// Loads a tiny model with its factors for long contexts.
pub fn load_for_long_contexts(model: &str, device: ComputeDevice) -> MlxRunner {
    let (spec, weights) = described(model);
    let spec = spec.for_long_contexts().unwrap();
    let loaded = LoadedModel::load(&spec, &weights, device, ComputeDtype::Float32).unwrap();
    MlxRunner::new(loaded, u64::MAX)
}

/// Loads a tiny model whose numbers are of 16 bits.
pub fn load_narrow(model: &str, dtype: ComputeDtype) -> MlxRunner {
    let (spec, weights) = described(model);
    MlxRunner::new(LoadedModel::load(&spec, &weights, ComputeDevice::Cpu, dtype).unwrap(), u64::MAX)
}

/// Loads a tiny model that may copy so many bytes of KV to decode faster.
pub fn load_with(model: &str, device: ComputeDevice, max_copied_bytes: u64) -> MlxRunner {
    let (spec, weights) = described(model);
    let loaded = LoadedModel::load(&spec, &weights, device, ComputeDtype::Float32).unwrap();
    MlxRunner::new(loaded, max_copied_bytes)
}

/// Loads the tiny model of an adapter with it, beside the weights or fused into them.
pub fn load_adapted(adapter: &str, device: ComputeDevice, is_fused: bool) -> MlxRunner {
    let folder = format!("adapters/{adapter}");
    let (spec, weights) = described(golden_file(&folder)["base"].as_str().unwrap());
    let adapter = Adapter::read(&Path::new("fixtures").join(folder), &spec).unwrap();
    assert_eq!(adapter.warnings, Vec::<String>::new());
    let used = UsedAdapter { adapter: &adapter, is_fused };
    let loaded = LoadedModel::load_adapted(&spec, &weights, Some(used), device, ComputeDtype::Float32);
    MlxRunner::new(loaded.unwrap(), u64::MAX)
}

fn described(model: &str) -> (ModelSpec, WeightSource) {
    let (folder, spec) = (Path::new("fixtures").join(model), spec_of(model));
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    (spec, WeightSource::Safetensors(files))
}
