use serde_json::json;

use super::*;
use crate::models::{
    config::{parse_config, published::changed},
    recurrent_spec::RecurrentSpec,
    spec::ModelSpec,
};

fn nemotron() -> Value {
    json!({
        "model_type": "nemotron_h", "hidden_size": 32, "hybrid_override_pattern": "M-*E", "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "vocab_size": 300,
        "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 16, "n_groups": 2, "conv_kernel": 4,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "moe_latent_size": 20,
        "moe_shared_expert_intermediate_size": 24, "n_shared_experts": 1, "time_step_limit": [0.0, 1e308]
    })
}

fn granite() -> Value {
    json!({
        "model_type": "granitemoehybrid", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "intermediate_size": 12, "shared_intermediate_size": 24,
        "rms_norm_eps": 1e-5, "attention_multiplier": 0.25, "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4, "mamba_d_head": "auto", "mamba_d_state": 8, "num_local_experts": 4,
        "num_experts_per_tok": 2, "position_embedding_type": "nope"
    })
}

fn read(config: &Value) -> Result<ModelSpec, String> {
    parse_config(config, "config.json").map_err(|error| error.to_string())
}

fn with(config: Value, changes: Value) -> Result<ModelSpec, String> {
    read(&changed(config, changes))
}

fn mamba_of(spec: &ModelSpec) -> Mamba2Spec {
    match spec.recurrent_layers().next() {
        Some(RecurrentSpec::Mamba2(mamba)) => *mamba,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_letter_is_one_half_of_a_block() {
    let spec = read(&nemotron()).unwrap();
    let halves: Vec<(bool, bool)> =
        spec.layers.iter().map(|layer| (layer.mixer.is_some(), layer.mlp.is_some())).collect();
    assert_eq!(halves, [(true, false), (false, true), (true, false), (false, true)]);
    let attention = spec.layers[2].attention().unwrap();
    assert!(attention.rope.is_none() && attention.head_dim == 16);
    let experts = spec.layers[3].mlp.as_ref().unwrap().moe().unwrap();
    assert_eq!((experts.latent_size, experts.expert.intermediate_size), (Some(20), 12));
    assert_eq!(experts.shared.unwrap().mlp.intermediate_size, 24);
    // One layer of keys and values; three positions of 4·8 + 2·2·16 channels, and 16 × 8 numbers for each of 4 heads.
    assert_eq!(spec.kv_bytes_per_token(4), 2 * 2 * 16 * 4);
    assert_eq!(spec.state_bytes(2), 3 * 96 * 2 + 4 * 8 * 16 * 4);
}

#[test]
fn letters_and_names_say_the_same_and_may_not_contradict_each_other() {
    let spec = read(&nemotron()).unwrap();
    for names in [
        json!(["mamba", "mlp", "attention", "moe"]),
        json!(["linear_attention", "mlp", "full_attention", "moe"]),
        json!(["M", "-", "*", "E"]),
    ] {
        let by_name = json!({"hybrid_override_pattern": null, "layers_block_type": names});
        assert_eq!(with(nemotron(), by_name).unwrap(), spec);
        assert_eq!(
            with(nemotron(), json!({"layers_block_type": names, "num_hidden_layers": 4})).unwrap(),
            spec
        );
    }
    for (changes, named) in [
        (json!({"layers_block_type": ["mamba"]}), "'layers_block_type' contradict"),
        (json!({"num_hidden_layers": 5}), "'num_hidden_layers'"),
        (json!({"hybrid_override_pattern": "M-X"}), "'hybrid_override_pattern'"),
        (json!({"hybrid_override_pattern": ""}), "'hybrid_override_pattern'"),
        (json!({"hybrid_override_pattern": null}), "'hybrid_override_pattern' is missing"),
        (json!({"hybrid_override_pattern": "M".repeat(5000)}), "'hybrid_override_pattern'"),
        (json!({"layers_block_type": [1, 2, 3, 4]}), "'layers_block_type'"),
    ] {
        let message = with(nemotron(), changes.clone()).unwrap_err();
        assert!(message.contains(named) && message.contains("config.json"), "{changes}: {message}");
    }
}

#[test]
fn steps_may_have_limits_in_each_spelling_of_infinity() {
    let limits =
        |stated: Value| mamba_of(&with(nemotron(), json!({"time_step_limit": stated})).unwrap()).step_limits;
    for unlimited in [json!(null), json!([0.0, 1e308]), json!([0, {"__float__": "Infinity"}])] {
        assert_eq!(limits(unlimited), (0.0, f32::INFINITY));
    }
    assert_eq!(limits(json!([0.001, 100.0])), (0.001, 100.0));
    for wrong in
        [json!([0.1]), json!([1.0, 0.5]), json!([-1.0, 0.5]), json!("x"), json!([null, 1.0]), json!(0.5)]
    {
        let message = with(nemotron(), json!({"time_step_limit": wrong})).unwrap_err();
        assert!(message.contains("'time_step_limit'"), "{message}");
    }
}

#[test]
fn granite_has_an_mlp_in_each_layer_and_experts_beside_it_where_it_says_so() {
    let spec = read(&granite()).unwrap();
    assert_eq!(mamba_of(&spec).head_dim, 16);
    let experts = spec.layers[0].mlp.as_ref().unwrap().moe().unwrap();
    assert_eq!((experts.expert.intermediate_size, experts.shared.unwrap().mlp.intermediate_size), (12, 24));
    assert!(spec.layers[1].attention().unwrap().rope.is_none());
    let changes = json!({"num_local_experts": 0, "position_embedding_type": "rope", "rope_theta": 16.0});
    let dense = with(granite(), changes).unwrap();
    assert_eq!(dense.layers[1].mlp.as_ref().unwrap().dense().unwrap().intermediate_size, 24);
    assert_eq!(dense.layers[1].attention().unwrap().rope.as_ref().unwrap().frequencies[1], 2.0);
}

#[test]
fn a_model_of_states_alone_has_no_keys_and_values() {
    let config = json!({
        "model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 300, "num_heads": 4,
        "head_dim": 16, "state_size": 8, "n_groups": 1
    });
    let spec = read(&config).unwrap();
    assert_eq!((spec.kv_bytes_per_token(4), spec.recurrent_layers().count()), (0, 3));
    assert_eq!(spec.names.canonical("backbone.layers.0.mixer.D"), "model.layers.0.mixer.D");
    assert_eq!(spec.names.canonical("backbone.norm_f.weight"), "model.norm.weight");
}

#[test]
fn bad_values_name_the_field() {
    for (field, value) in [
        ("mamba_num_heads", json!(3)),
        ("mamba_num_heads", json!(1 << 20)),
        ("mamba_head_dim", json!(0)),
        ("ssm_state_size", json!(null)),
        ("ssm_state_size", json!(1 << 20)),
        ("n_groups", json!(3)),
        ("conv_kernel", json!(1)),
        ("conv_kernel", json!(1 << 20)),
        ("n_shared_experts", json!(2)),
        ("num_experts_per_tok", json!(9)),
        ("moe_latent_size", json!(0)),
        ("mlp_hidden_act", json!("silu")),
        ("mamba_proj_bias", json!(true)),
    ] {
        let message = with(nemotron(), json!({field: value})).unwrap_err();
        assert!(message.contains(field) && message.contains("config.json"), "{field} {value}: {message}");
    }
    for (field, value) in [
        ("mamba_n_heads", json!(7)),
        ("mamba_d_head", json!("wide")),
        ("layer_types", json!(["mamba", "sliding_attention"])),
        ("layer_types", json!(null)),
        ("position_embedding_type", json!("alibi")),
        ("mamba_n_groups", json!(3)),
    ] {
        let message = with(granite(), json!({field: value})).unwrap_err();
        assert!(message.contains(field) && message.contains("config.json"), "{field} {value}: {message}");
    }
}
