use serde_json::json;

use super::*;
use crate::models::{
    block_names::BlockNames,
    spec::{HeadNorms, NormWeight, Quantization, QuantizationMode},
};

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 300,
        "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": true
    })
}

fn with(field: &str, value: Value) -> Result<ModelSpec, ConfigError> {
    let mut config = llama();
    config[field] = value;
    parse_config(&config, "config.json")
}

fn error(field: &str, value: Value) -> String {
    with(field, value).expect_err("the configuration is bad").to_string()
}

#[test]
fn llama_defaults_follow_the_reference() {
    let spec = parse_config(&llama(), "config.json").unwrap();
    assert_eq!(spec.layers.len(), 2);
    let attention = spec.layers[0].attention().unwrap();
    assert_eq!((attention.num_heads, attention.num_kv_heads, attention.head_dim), (4, 2, 16));
    assert_eq!(attention.scale, 0.25);
    assert!(!attention.qkv_bias && attention.head_norms == HeadNorms::None && attention.window.is_none());
    assert_eq!(spec.tied_head, Some(true));
    assert_eq!(spec.kv_bytes_per_token(4), 2 * 2 * 2 * 16 * 4);
}

#[test]
fn bad_values_name_the_file_and_the_field() {
    for (field, value) in [
        ("hidden_size", json!(0)),
        ("num_hidden_layers", json!(0)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("vocab_size", json!(-1)),
        ("vocab_size", json!(1u64 << 60)),
        ("intermediate_size", json!("many")),
        ("rms_norm_eps", json!(0.0)),
        ("rope_theta", json!(0)),
        ("head_dim", json!(15)),
        // With 4096 layers the frequencies alone would have taken 128 GB.
        ("head_dim", json!(1 << 24)),
        // Zero divides by zero: every answer would be made of NaN.
        ("final_logit_softcapping", json!(0)),
        ("attn_logit_softcapping", json!(-1.5)),
        ("final_logit_softcapping", json!(1e39)),
        ("rope_theta", json!(1e300)),
        ("rope_scaling", json!({"type": "linear", "factor": 1e300})),
        ("rope_scaling", json!({"type": "yarn", "factor": 4, "mscale": 1e300, "mscale_all_dim": -1})),
    ] {
        let message = error(field, value.clone());
        assert!(message.contains("config.json") && message.contains(field), "{field} {value}: {message}");
    }
}

#[test]
fn an_unknown_model_type_lists_the_known_ones() {
    let message = error("model_type", json!("rwkv7"));
    assert!(message.contains("rwkv7") && message.contains("gemma3"), "{message}");
}

#[test]
fn layer_types_decide_the_window_and_a_bare_window_does_not() {
    let bare = with("sliding_window", json!(16)).unwrap();
    assert!(bare.kv_layers().all(|attention| attention.window.is_none()));
    let mut config = llama();
    config["sliding_window"] = json!(16);
    config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    let mixed = parse_config(&config, "config.json").unwrap();
    assert_eq!(mixed.layers[0].attention().unwrap().window, Some(16));
    assert_eq!(mixed.layers[1].attention().unwrap().window, None);
    assert!(error("layer_types", json!(["full_attention"])).contains("layer_types"));
    assert!(error("layer_types", json!(["full_attention", "other"])).contains("layer_types"));
}

#[test]
fn quantisation_overrides_single_layers() {
    let spec = with(
        "quantization",
        json!({"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}, "model.norm": false}),
    )
    .unwrap();
    let quantization = spec.quantization.unwrap();
    let affine = Quantization { group_size: 32, bits: 8, mode: QuantizationMode::Affine };
    assert_eq!(quantization.stated("anything"), None);
    assert_eq!(quantization.stated("lm_head"), Some(Some(affine)));
    assert_eq!(quantization.stated("model.norm"), Some(None));
    assert!(error("quantization", json!({"group_size": 7, "bits": 4})).contains("group size"));
    assert!(error("quantization_config", json!({"quant_method": "quip"})).contains("quip"));
}

/// gpt-oss's conversions say mxfp4 for all, and have every other matrix in an entry of its own without a mode.
#[test]
fn quantisation_modes_have_their_settings_and_an_entry_without_a_mode_is_affine() {
    let settings = json!({"group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": {"group_size": 64, "bits": 8},
        "a": {"mode": "nvfp4"}, "b": {"mode": "mxfp8", "bits": 8}});
    let quantization = with("quantization", settings).unwrap().quantization.unwrap();
    let stated = |path| quantization.stated(path).unwrap().unwrap();
    let of = |group_size, bits, mode| Quantization { group_size, bits, mode };
    assert_eq!(stated("lm_head"), of(64, 8, QuantizationMode::Affine));
    assert_eq!(stated("a"), of(16, 4, QuantizationMode::Nvfp4));
    assert_eq!(stated("b"), of(32, 8, QuantizationMode::Mxfp8));
    for (settings, named) in [
        (json!({"mode": "mxfp4", "bits": 8}), "mxfp4"),
        (json!({"mode": "int4"}), "int4"),
        (json!({"bits": 4}), "group_size"),
        (json!({"group_size": 64, "bits": 4, "lm_head": {"mode": "nvfp4", "group_size": 32}}), "lm_head"),
    ] {
        let message = error("quantization", settings);
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn unknown_rope_scaling_is_refused_rather_than_ignored() {
    assert!(error("rope_scaling", json!({"rope_type": "longrope", "factor": 2})).contains("longrope"));
    assert!(error("rope_scaling", json!({"rope_type": "llama3", "factor": 0})).contains("factor"));
    assert!(with("rope_scaling", json!({"rope_type": "default"})).is_ok());
}

#[test]
fn gemma_scales_its_embeddings_by_a_bfloat16_root() {
    let config = json!({"model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 6});
    let spec = parse_config(&config, "config.json").unwrap();
    assert_eq!(spec.embedding_scale, Some(5.65625));
    assert_eq!(spec.layers[4].attention().unwrap().window, Some(512));
    assert_eq!(spec.layers[5].attention().unwrap().window, None);
    assert_eq!((spec.norm.weight, spec.names.block), (NormWeight::LessOne, BlockNames::GEMMA));
}

#[test]
fn nested_gemma_reads_the_text_config_and_skips_the_vision_tower() {
    let config = json!({
        "model_type": "gemma3", "vocab_size": 262208,
        "text_config": {"hidden_size": 64, "num_hidden_layers": 6, "model_type": "gemma3_text"}
    });
    let spec = parse_config(&config, "config.json").unwrap();
    assert_eq!((spec.hidden_size, spec.vocab_size), (64, 262_208));
    assert_eq!(spec.layers[0].attention().unwrap().num_heads, 8);
    assert_eq!(spec.names.canonical("language_model.model.norm.weight"), "model.norm.weight");
    assert!(spec.names.is_ignored("vision_tower.x"));
}

#[test]
fn any_json_value_is_an_answer_or_an_error_but_never_a_panic() {
    let strange =
        [json!(null), json!(-1), json!(1e300), json!("x"), json!([]), json!({}), json!(true), json!(0)];
    let fields: Vec<String> = llama().as_object().unwrap().keys().cloned().collect();
    let extra = [
        "head_dim",
        "rope_scaling",
        "rope_parameters",
        "layer_types",
        "sliding_window",
        "quantization",
        "text_config",
    ];
    for model_type in MODEL_TYPES.iter().map(|known| known.name) {
        for field in fields.iter().map(String::as_str).chain(extra) {
            for value in &strange {
                let mut config = llama();
                config["model_type"] = json!(model_type);
                config[field] = value.clone();
                let _ = parse_config(&config, "config.json");
            }
        }
    }
}
