//! Kimi Linear's layers and sizes, in both forms, and what is wrong with them.

use serde_json::{Value, json};

use super::super::{parse_config, parse_model_config, published};
use crate::models::{
    recurrent_spec::{DeltaGate, DeltaProjections, RecurrentSpec},
    spec::{LayerSpec, MixerSpec, ModelSpec},
};

/// A configuration of `fixtures/configs`.
fn config(name: &str) -> Value {
    let found = published::all().into_iter().find(|(file, _)| file == name);
    found.unwrap_or_else(|| panic!("there is no {name}")).1
}

fn read(config: &Value) -> Result<ModelSpec, String> {
    parse_config(config, "config.json").map_err(|error| error.to_string())
}

#[test]
fn every_fourth_layer_and_the_last_attend_to_latents_and_the_others_keep_a_state() {
    let spec = read(&config("kimi_linear.json")).unwrap();
    assert_eq!((spec.layers.len(), spec.max_context), (27, 1 << 20));
    let full: Vec<usize> = (1..=27).filter(|layer| spec.layers[layer - 1].attention().is_some()).collect();
    assert_eq!(full, [4, 8, 12, 16, 20, 24, 27]);
    let Some(MixerSpec::Latent(latent)) = &spec.layers[3].mixer else { panic!("it has latents") };
    assert_eq!(
        (latent.rank(), latent.rotated_dim(), latent.plain_dim, latent.value_dim),
        (512, 64, 128, 128)
    );
    assert_eq!(latent.attention.rope, None);
    assert_eq!(latent.attention.scale, (192f64).powf(-0.5) as f32);
    let Some(RecurrentSpec::GatedDelta(delta)) = spec.layers[0].recurrent() else {
        panic!("it keeps a state")
    };
    assert!(delta.decays_by_dimension && delta.gate == DeltaGate::Sigmoid);
    assert_eq!((delta.projections, delta.gate_rank), (DeltaProjections::Apart, Some(128)));
    assert_eq!((delta.decay_width(), delta.conv_width()), (32 * 128, 3 * 32 * 128));
    // Three positions of all channels, and a matrix for each of 32 heads.
    assert_eq!(spec.state_bytes(2), 20 * (3 * 3 * 4096 * 2 + 32 * 128 * 128 * 4));
    assert_eq!(spec.kv_bytes_per_token(2), 7 * 576 * 2);
    let has_experts = |layer: &LayerSpec| layer.mlp.as_ref().is_some_and(|mlp| mlp.moe().is_some());
    assert!(!has_experts(&spec.layers[0]) && spec.layers[1..].iter().all(has_experts));
    let moe = spec.layers[1].mlp.as_ref().and_then(|mlp| mlp.moe()).unwrap();
    assert_eq!((moe.num_experts, moe.num_per_token, moe.routing.scale), (256, 8, 2.446));
}

#[test]
fn what_transformers_saves_means_the_same() {
    let published = read(&config("kimi_linear.json")).unwrap();
    let mut saved = config("kimi_linear-saved.json");
    assert_eq!(read(&saved).unwrap(), published);
    saved.as_object_mut().unwrap().remove("linear_attn_config");
    assert_eq!(read(&saved).unwrap(), published);
}

#[test]
fn names_of_all_layouts_become_one() {
    let names = read(&config("kimi_linear.json")).unwrap().names;
    for (found, meant) in [
        ("block_sparse_moe.gate.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        ("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),
        ("block_sparse_moe.experts.7.w1.weight", "mlp.experts.7.w1.weight"),
        ("self_attn.k_conv.conv.weight", "self_attn.k_conv1d.weight"),
    ] {
        assert_eq!(names.canonical(&format!("model.layers.1.{found}")), format!("model.layers.1.{meant}"));
    }
}

#[test]
fn wrong_values_and_what_is_of_later_models_are_named() {
    for (path, value) in [
        ("/linear_attn_config/kda_layers", json!([1, 2])),
        ("/linear_attn_config/kda_layers", json!([0])),
        ("/linear_attn_config/kda_layers", json!("all")),
        ("/linear_attn_config/full_attn_layers", json!([1, 4])),
        ("/linear_attn_config/full_attn_layers", json!([28])),
        ("/linear_attn_config/num_heads", json!(0)),
        ("/linear_attn_config/head_dim", json!(1 << 20)),
        ("/linear_attn_config/short_conv_kernel_size", json!(1)),
        ("/linear_attn_config/gate_lower_bound", json!(-5.0)),
        ("/linear_attn_config/use_full_rank_gate", json!(true)),
        ("/linear_attn_config", json!(7)),
        ("/layer_types", json!(vec!["linear_attention"; 27])),
        ("/mla_use_nope", json!(false)),
        ("/moe_router_activation_func", json!("softmax")),
        ("/kv_lora_rank", json!(0)),
    ] {
        let mut wrong = config("kimi_linear.json");
        let (object, key) = path.rsplit_once('/').unwrap();
        wrong.pointer_mut(object).unwrap()[key] = value.clone();
        let message = read(&wrong).expect_err(path);
        assert!(message.contains(key), "{path} = {value}: {message}");
    }
    let mut unknown = config("kimi_linear.json");
    unknown["linear_attn_config"]["something_new"] = json!(3);
    let found = parse_model_config(&unknown, "config.json").unwrap();
    assert!(found.warnings.iter().any(|warning| warning.contains("something_new")), "{:?}", found.warnings);
}
