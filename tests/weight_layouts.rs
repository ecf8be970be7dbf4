//! Weights as their publishers name and shape them answer as mlx-lm's conversions do.
//!
//! The fixtures are conversions; here they are turned back: PyTorch's order of a convolution's
//! axes, Qwen3.5's norms less one, and the parts of a file that are not run.

use std::{collections::HashMap, path::Path};

use mlxbatch::{
    mlx::{ComputeDevice, ComputeDtype, LoadedModel, MlxError, MlxRunner, WeightSource},
    models::read_config,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// A tensor in float32.
#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn read(model: &str) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(format!("fixtures/{model}/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                Dtype::BF16 => {
                    let halves = view.data().chunks_exact(2);
                    halves
                        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                        .collect()
                }
                Dtype::F32 => {
                    let words = view.data().chunks_exact(4);
                    words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                }
                other => panic!("{name} is {other:?}"),
            };
            (name, Tensor { shape: view.shape().to_vec(), values })
        })
        .collect()
}

/// The largest difference to mlx-lm's log-probabilities after each golden prompt.
fn worst_difference(model: &str, weights: &HashMap<String, Tensor>) -> Result<f64, MlxError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes: HashMap<&String, Vec<u8>> = weights
        .iter()
        .map(|(name, tensor)| (name, tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = weights.iter().map(|(name, tensor)| {
        (name, TensorView::new(Dtype::F32, tensor.shape.clone(), &bytes[name]).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();

    let spec = read_config(&Path::new("fixtures").join(model).join("config.json")).unwrap();
    let source = WeightSource::Safetensors(vec![path]);
    let loaded = LoadedModel::load(&spec, &source, ComputeDevice::current(), ComputeDtype::Float32)?;
    let mut runner = MlxRunner::new(loaded, u64::MAX);
    let golden = std::fs::read_to_string(format!("fixtures/{model}/golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let mut worst = 0.0f64;
    for prompt in golden["prompts"].as_array().unwrap() {
        let tokens: Vec<u32> = numbers(&prompt["prompt_ids"]).into_iter().map(|token| token as u32).collect();
        let ours = runner.next_log_probabilities(&tokens).unwrap();
        for (ours, theirs) in ours.iter().zip(numbers(&prompt["last_logprobs"])) {
            worst = worst.max((f64::from(*ours) - theirs).abs());
        }
    }
    Ok(worst)
}

/// Puts every convolution's axes into PyTorch's order; with one input a channel no number moves.
fn as_pytorch(weights: &mut HashMap<String, Tensor>, suffix: &str) {
    let mut found = 0;
    for (_, tensor) in weights.iter_mut().filter(|(name, _)| name.ends_with(suffix)) {
        tensor.shape.swap(1, 2);
        found += 1;
    }
    assert!(found > 0, "no {suffix}");
}

#[test]
fn qwen3_5_as_published() {
    let mut weights = read("tiny-qwen3_5");
    as_pytorch(&mut weights, "conv1d.weight");
    let mut published: HashMap<String, Tensor> = weights
        .into_iter()
        .map(|(name, mut tensor)| {
            if name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight") {
                tensor.values.iter_mut().for_each(|factor| *factor -= 1.0);
            }
            let name = name.replacen("language_model.model.", "model.language_model.", 1);
            (name, tensor)
        })
        .collect();
    for unused in ["mtp.fc.weight", "model.visual.patch_embed.proj.weight"] {
        published.insert(unused.to_owned(), Tensor { shape: vec![1], values: vec![0.0] });
    }
    let worst = worst_difference("tiny-qwen3_5", &published).unwrap();
    assert!(worst < 1e-3, "{worst}");

    let text_only: HashMap<String, Tensor> = published
        .into_iter()
        .map(|(name, tensor)| (name.replacen("model.language_model.", "model.", 1), tensor))
        .collect();
    let worst = worst_difference("tiny-qwen3_5", &text_only).unwrap();
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn lfm2_as_published() {
    let mut weights = read("tiny-lfm2");
    as_pytorch(&mut weights, "conv.conv.weight");
    let worst = worst_difference("tiny-lfm2", &weights).unwrap();
    assert!(worst < 1e-3, "{worst}");
}

/// Its experts one by one.
#[test]
fn nemotron_h_as_published() {
    let mut weights = read("tiny-nemotron_h-moe");
    as_pytorch(&mut weights, "conv1d.weight");
    let mut published = HashMap::new();
    for (name, tensor) in weights {
        let Some((list, which)) = name.split_once(".switch_mlp.") else {
            published.insert(name, tensor);
            continue;
        };
        let projection = if which.starts_with("fc1") { "up_proj" } else { "down_proj" };
        let size = tensor.values.len() / tensor.shape[0];
        for (expert, values) in tensor.values.chunks(size).enumerate() {
            let tensor = Tensor { shape: tensor.shape[1..].to_vec(), values: values.to_vec() };
            published.insert(format!("{list}.experts.{expert}.{projection}.weight"), tensor);
        }
    }
    assert!(published.contains_key("backbone.layers.1.mixer.experts.7.up_proj.weight"));
    let worst = worst_difference("tiny-nemotron_h-moe", &published).unwrap();
    assert!(worst < 1e-3, "{worst}");
}

/// As mlx-lm converts it: factors are in the weights, but for the keys'.
#[test]
fn falcon_h1_as_converted() {
    let config: Value =
        serde_json::from_str(&std::fs::read_to_string("fixtures/tiny-falcon_h1/config.json").unwrap())
            .unwrap();
    let number = |field: &str| config[field].as_f64().unwrap() as f32;
    let of_list = |field: &str| -> Vec<f32> {
        config[field].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
    };
    let mlp = of_list("mlp_multipliers");
    // 64 gates and inputs, 2 · 8 numbers to write and to read with, 4 steps.
    let widths = [64, 64, 16, 16, 4];
    let of_input = of_list("ssm_multipliers").into_iter().zip(widths);
    let of_input: Vec<f32> = of_input
        .flat_map(|(factor, width)| std::iter::repeat_n(factor * number("ssm_in_multiplier"), width))
        .collect();
    let mut weights = read("tiny-falcon_h1");
    as_pytorch(&mut weights, "conv1d.weight");
    for (name, tensor) in &mut weights {
        let factors = match name.rsplit('.').nth(1).unwrap() {
            "embed_tokens" => vec![number("embedding_multiplier")],
            "lm_head" => vec![number("lm_head_multiplier")],
            "o_proj" => vec![number("attention_out_multiplier")],
            "out_proj" => vec![number("ssm_out_multiplier")],
            "gate_proj" => vec![mlp[0]],
            "down_proj" => vec![mlp[1]],
            "in_proj" => of_input.clone(),
            _ => continue,
        };
        let num_columns = *tensor.shape.last().unwrap();
        for (row, values) in tensor.values.chunks_mut(num_columns).enumerate() {
            values.iter_mut().for_each(|value| *value *= factors[row % factors.len()]);
        }
    }
    let worst = worst_difference("tiny-falcon_h1", &weights).unwrap();
    assert!(worst < 1e-3, "{worst}");
}

#[test]
fn a_convolution_of_another_shape_is_named() {
    let mut weights = read("tiny-lfm2");
    let name = "model.layers.0.conv.conv.weight";
    let conv = weights.get_mut(name).unwrap();
    conv.shape = vec![conv.values.len()];
    let message = worst_difference("tiny-lfm2", &weights).unwrap_err().to_string();
    assert!(message.contains(name) && message.contains("[32, 3, 1]"), "{message}");
}
