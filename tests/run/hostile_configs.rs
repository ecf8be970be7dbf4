//! Configurations as hostile as one field can make them, against the real loader.
//!
//! Owns the promise that a model folder is data: whatever its config.json says, the outcome is a
//! model or an error with a text, never a panic, an abort or memory without end. Runs in this
//! process, so that an abort fails the whole test.

use std::path::PathBuf;

use mlxbatch::mlx::{ComputeDevice, ComputeDtype, LoadedModel, WeightSource};
use mlxbatch::models::read_config;
use serde_json::{Value, json};

use crate::support::{Desk, fixture_path};

/// Fields that the fixtures lack but the reader knows.
const MORE_FIELDS: [&str; 14] = [
    "sliding_window",
    "layer_types",
    "rope_scaling",
    "rope_parameters",
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "quantization",
    "query_pre_attn_scalar",
    "text_config",
    "sliding_window_pattern",
    "rope_local_base_freq",
    "rope_traditional",
    "head_dim",
    "quantization_config",
];

fn strange_values() -> Vec<Value> {
    vec![
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(3),
        json!(0.5),
        json!(1u64 << 24),
        json!(1u64 << 31),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(1e-300),
        json!("junk"),
        json!(""),
        json!(null),
        json!([]),
        json!({}),
        json!(true),
        json!(false),
        json!([1, "full_attention", null]),
        json!(["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]),
        json!({"type": "linear", "factor": 1e-300}),
        json!({"type": "linear", "factor": 0}),
        json!({"type": "yarn", "factor": 1e300}),
        json!({"rope_type": "yarn", "factor": 4, "beta_fast": 1e300}),
        json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
        json!({"bits": 4, "group_size": 64}),
        json!({"bits": 9, "group_size": 64}),
        json!({"rope_theta": 0}),
    ]
}

fn load(config: &Value, weights: &[PathBuf]) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().join("config.json");
    std::fs::write(&path, config.to_string()).map_err(|error| error.to_string())?;
    let spec = read_config(&path).map_err(|error| error.to_string())?;
    let source = WeightSource::Safetensors(weights.to_vec());
    let loaded = LoadedModel::load(&spec, &source, ComputeDevice::current(), ComputeDtype::Float32);
    loaded.map(drop).map_err(|error| error.to_string())
}

#[test]
fn any_one_field_may_be_anything() {
    for model in [
        "tiny-llama",
        "tiny-gemma3",
        "tiny-llama-4bit",
        "tiny-deepseek_v3",
        "tiny-granitemoehybrid",
        "tiny-kimi_linear",
    ] {
        let folder = fixture_path(model);
        let text = std::fs::read_to_string(folder.join("config.json")).expect("the fixture is there");
        let sound: Value = serde_json::from_str(&text).expect("the fixture is JSON");
        let weights = [folder.join("model.safetensors")];
        load(&sound, &weights).expect("the fixture itself loads");
        let fields = sound.as_object().expect("a configuration is an object").keys().map(String::as_str);
        let mut num_errors = 0;
        for field in fields.chain(MORE_FIELDS) {
            for value in strange_values() {
                let mut config = sound.clone();
                config[field] = value.clone();
                if let Err(message) = load(&config, &weights) {
                    assert!(message.len() > 20, "{model}, {field} = {value}: {message}");
                    num_errors += 1;
                }
            }
        }
        assert!(num_errors > 100, "{model}: only {num_errors} of them are errors");
    }
}

/// What loads must also run: the forward pass may not meet a number the loader let through.
#[test]
fn what_loads_also_runs() {
    let cases = [
        ("tiny-llama", "max_position_embeddings", json!(1)),
        ("tiny-llama", "rms_norm_eps", json!(1e-300)),
        ("tiny-llama", "rope_theta", json!(1.0001)),
        ("tiny-llama", "sliding_window", json!(1)),
        ("tiny-gemma3", "sliding_window", json!(1)),
        ("tiny-gemma3", "sliding_window", json!(1u64 << 24)),
        ("tiny-gemma3", "sliding_window_pattern", json!(1)),
        ("tiny-gemma3", "query_pre_attn_scalar", json!(1e-300)),
        ("tiny-gemma3", "final_logit_softcapping", json!(1e-30)),
        ("tiny-gemma3", "attn_logit_softcapping", json!(1e30)),
        ("tiny-glm4_moe_lite", "rope_interleave", json!(false)),
        ("tiny-glm4_moe_lite", "rms_norm_eps", json!(1e-300)),
        ("tiny-granitemoehybrid", "time_step_limit", json!([0.0, 1e-30])),
        ("tiny-granitemoehybrid", "time_step_limit", json!([1e30, 1e38])),
    ];
    for (model, field, value) in cases {
        let desk = Desk::with_input(
            "{\"prompt\": \"Once upon a time\", \"max_tokens\": 4}\n{\"prompt\": \"x\", \"max_tokens\": 3, \"temperature\": 1}\n",
        );
        let path = desk.copy_model(model);
        desk.set_field("model/config.json", field, value.clone());
        let output = desk.run_with(path).output().expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(0 | 1 | 3)),
            "{field} = {value}: {:?} {stderr}",
            output.status
        );
        assert!(!stderr.contains("panicked"), "{field} = {value}: {stderr}");
    }
}
