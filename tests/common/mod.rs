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
    mlx::{ComputeDevice, ComputeDtype, LoadedModel, MlxRunner, WeightSource},
    models::read_config,
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
    let config = Path::new("fixtures").join(model).join("config.json");
    let max_context = read_config(&config).unwrap().max_context;
    let text = std::fs::read_to_string(format!("fixtures/{model}/golden.json")).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    let token = |value: &Value| value.as_u64().map(|token| token as u32);
    value["prompts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|prompt| Golden {
            prompt: numbers(&prompt["prompt_ids"], token),
            greedy: numbers(&prompt["greedy_ids"], token),
            last_logprobs: numbers(&prompt["last_logprobs"], Value::as_f64),
        })
        .filter(|golden| golden.prompt.len() + golden.greedy.len() <= max_context)
        .collect()
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

/// Loads a tiny model that may copy so many bytes of KV to decode faster.
pub fn load_with(model: &str, device: ComputeDevice, max_copied_bytes: u64) -> MlxRunner {
    let folder = Path::new("fixtures").join(model);
    let spec = read_config(&folder.join("config.json")).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    MlxRunner::new(
        LoadedModel::load(&spec, &WeightSource::Safetensors(files), device, ComputeDtype::Float32).unwrap(),
        max_copied_bytes,
    )
}
