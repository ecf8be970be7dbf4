//! Configurations of qwen3_5 (text): gated delta nets with full attention every few layers.
//!
//! Owns what the fields mean, their defaults (mlx-lm 0.32's) and qwen3_next, whose
//! projections are fused. Experts are `moe`'s.

use serde_json::Value;

use super::{
    fields::{Fields, MAX_LAYERS},
    moe::{self, MoeTraits, Normalised, SharedTraits},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    block_names::BlockNames,
    context::ContextChoice,
    mlp_spec::{Activation, DenseSpec, MlpSpec},
    names::WeightNames,
    recurrent_spec::{DeltaGate, DeltaProjections, GatedDeltaSpec, RecurrentSpec},
    spec::{AttentionSpec, HeadNorms, LayerSpec, MixerSpec, ModelSpec, NormKind, NormSpec, NormWeight},
};

/// Reads the language model's fields.
pub(super) fn spec(model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
    read(model_type, fields, NormWeight::LessOneUnlessConverted, DeltaProjections::Joined)
}

/// The same of the generation before, whose projections are fused.
pub(super) fn spec_of_next(model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
    read(model_type, fields, NormWeight::LessOneUnlessConverted, DeltaProjections::ByKeyHead)
}

fn read(
    model_type: &str,
    fields: &Fields,
    norm_weight: NormWeight,
    projections: DeltaProjections,
) -> Result<ModelSpec, String> {
    let hidden_size = fields.dimension("hidden_size", None)?;
    let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
    let max_context = fields.dimension("max_position_embeddings", Some(131_072))?;
    let attention = attention(fields, hidden_size, max_context)?;
    let delta = RecurrentSpec::GatedDelta(GatedDeltaSpec { projections, ..gated_delta(fields)? });
    let mlps = mlps(fields, num_layers)?;
    let layers = full_attention(fields, num_layers)?
        .into_iter()
        .zip(mlps)
        .map(|(full, mlp)| {
            let mixer = if full {
                MixerSpec::Attention(attention.clone())
            } else {
                MixerSpec::Recurrent(delta.clone())
            };
            LayerSpec::plain(mixer, mlp)
        })
        .collect();
    Ok(ModelSpec {
        model_type: model_type.to_owned(),
        hidden_size,
        vocab_size: fields.dimension("vocab_size", None)?,
        max_context,
        context: ContextChoice::One,
        layers,
        norm: NormSpec {
            eps: fields.epsilon("rms_norm_eps", Some(1e-6))?,
            kind: NormKind::RootMeanSquare,
            weight: norm_weight,
        },
        embedding_scale: None,
        tied_head: fields.tied_head()?,
        per_layer_inputs: None,
        logits_scale: None,
        tied_logits_scale: None,
        folds: Vec::new(),
        final_logit_softcap: None,
        quantization: None,
        names: WeightNames::new(BlockNames::PLAIN),
    })
}

/// The MLP of each layer, or its experts where there are any.
fn mlps(fields: &Fields, num_layers: usize) -> Result<Vec<MlpSpec>, String> {
    let dense =
        |intermediate_size| DenseSpec { intermediate_size, activation: Activation::Silu, bias: false };
    if fields.integer(moe::num_experts_field(fields, "num_experts"), Some(0), 0, u64::MAX)? == 0 {
        return Ok(vec![MlpSpec::Dense(dense(fields.dimension("intermediate_size", None)?)); num_layers]);
    }
    let traits = MoeTraits {
        normalised: Normalised::Field("norm_topk_prob", true, 0.0),
        shared: SharedTraits::Gated("shared_expert_intermediate_size"),
        ..moe::QWEN
    };
    let experts = traits.spec(fields, dense(0))?;
    let are_moe = traits.layers.read(fields, num_layers)?;
    let dense = match are_moe.contains(&false) {
        true => Some(dense(fields.dimension("intermediate_size", None)?)),
        false => None,
    };
    Ok(are_moe
        .into_iter()
        .map(|is_moe| match dense {
            Some(dense) if !is_moe => MlpSpec::Dense(dense),
            _ => MlpSpec::Moe(experts),
        })
        .collect())
}

fn attention(fields: &Fields, hidden_size: usize, max_context: usize) -> Result<AttentionSpec, String> {
    let (num_heads, num_kv_heads) = fields.heads(None)?;
    let head_dim = fields.head_dim(hidden_size, num_heads)?;
    Fields::check_head_dim(head_dim)?;
    let bias = fields.flag("attention_bias", false)?;
    let defaults = RopeDefaults { rotated: 0.25, ..RopeDefaults::new(Some(100_000.0)) };
    let rope = fields.rope(LayerType::Full, head_dim, max_context, false, defaults)?;
    Ok(AttentionSpec {
        qkv_bias: bias,
        output_bias: bias,
        head_norms: HeadNorms::PerHead,
        output_gate: true,
        ..AttentionSpec::plain((num_heads, num_kv_heads), head_dim, Some(rope))
    })
}

fn gated_delta(fields: &Fields) -> Result<GatedDeltaSpec, String> {
    // Far above any real model; they keep the state, the product of three, within reason.
    let head = |name: &str| fields.integer(name, None, 1, 1024);
    let spec = GatedDeltaSpec {
        num_value_heads: head("linear_num_value_heads")?,
        num_key_heads: head("linear_num_key_heads")?,
        key_head_dim: head("linear_key_head_dim")?,
        value_head_dim: head("linear_value_head_dim")?,
        kernel_size: fields.integer("linear_conv_kernel_dim", Some(4), 2, 64)?,
        projections: DeltaProjections::Joined,
        decays_by_dimension: false,
        gate_rank: None,
        gate: DeltaGate::Silu,
    };
    if !spec.num_value_heads.is_multiple_of(spec.num_key_heads) {
        return Err(format!(
            "'linear_num_value_heads' ({}) must be a multiple of 'linear_num_key_heads' ({})",
            spec.num_value_heads, spec.num_key_heads
        ));
    }
    Ok(spec)
}

/// Which layers attend to all positions; `layer_types` decides where it is given.
fn full_attention(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, String> {
    let known = [("full_attention", true), ("linear_attention", false)];
    let full: Vec<bool> = match fields.layer_types(num_layers, known)? {
        Some(full) => full,
        None => {
            let interval = fields.integer("full_attention_interval", Some(4), 1, MAX_LAYERS)?;
            (1..=num_layers).map(|number| number.is_multiple_of(interval)).collect()
        }
    };
    if !full.contains(&true) {
        let field = if fields.get("layer_types").is_some_and(Value::is_array) {
            "layer_types"
        } else {
            "full_attention_interval"
        };
        return Err(format!("'{field}' leaves none of {num_layers} layers with full attention"));
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::{
        config::parse_config,
        spec::{Quantization, QuantizationMode},
    };

    fn config() -> Value {
        json!({
            "model_type": "qwen3_5", "tie_word_embeddings": true,
            "text_config": {
                "model_type": "qwen3_5_text", "hidden_size": 32, "num_hidden_layers": 8, "intermediate_size": 48,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
                "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
                "linear_value_head_dim": 16, "tie_word_embeddings": true,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
            }
        })
    }

    fn error(field: &str, value: Value) -> String {
        let mut config = config();
        config["text_config"][field] = value;
        parse_config(&config, "config.json").unwrap_err().to_string()
    }

    #[test]
    fn every_fourth_layer_attends_and_the_others_keep_a_state() {
        let spec = parse_config(&config(), "config.json").unwrap();
        let full: Vec<bool> = spec.layers.iter().map(|layer| layer.attention().is_some()).collect();
        assert_eq!(full, [false, false, false, true, false, false, false, true]);
        let attention = spec.kv_layers().next().unwrap();
        assert!(attention.output_gate && attention.head_norms == HeadNorms::PerHead);
        assert_eq!(attention.rope.as_ref().unwrap().frequencies, [1.0, 100.0]);
        assert_eq!(spec.kv_bytes_per_token(4), 2 * 2 * 2 * 16 * 4);
        // Three positions of 2·2·8 + 4·16 channels, and a matrix of 8 × 16 for each of 4 heads.
        assert_eq!(spec.state_bytes(2), 6 * (3 * 96 * 2 + 4 * 8 * 16 * 4));
    }

    #[test]
    fn names_of_all_three_layouts_become_one() {
        let names = parse_config(&config(), "config.json").unwrap().names;
        for prefix in ["language_model.model.", "model.language_model.", "model."] {
            assert_eq!(names.canonical(&format!("{prefix}norm.weight")), "model.norm.weight");
        }
        assert_eq!(names.canonical("language_model.lm_head.weight"), "lm_head.weight");
        for unused in ["model.visual.patch.weight", "mtp.fc.weight", "language_model.mtp.fc.weight"] {
            assert!(names.is_ignored(&names.canonical(unused)), "{unused}");
        }
    }

    #[test]
    fn a_text_only_configuration_is_not_nested() {
        let mut text = config()["text_config"].take();
        text["model_type"] = json!("qwen3_5_text");
        let spec = parse_config(&text, "config.json").unwrap();
        assert_eq!((spec.hidden_size, spec.layers.len(), spec.tied_head), (32, 8, Some(true)));
    }

    /// MLX writes overrides under the file's names, and the decoder asks by its own.
    #[test]
    fn quantisation_overrides_are_found_under_the_files_names() {
        let mut config = config();
        config["quantization"] = json!({
            "group_size": 64, "bits": 4,
            "language_model.model.layers.0.linear_attn.in_proj_b": {"group_size": 32, "bits": 8}
        });
        let spec = parse_config(&config, "config.json").unwrap();
        let settings = spec.quantization.unwrap();
        let eight_bits = Some(Some(Quantization { group_size: 32, bits: 8, mode: QuantizationMode::Affine }));
        assert_eq!(settings.stated("model.layers.0.linear_attn.in_proj_b"), eight_bits);
    }

    #[test]
    fn bad_values_name_the_field() {
        for (field, value) in [
            ("num_experts", json!(-8)),
            ("linear_num_value_heads", json!(3)),
            ("linear_key_head_dim", json!(1 << 20)),
            ("linear_conv_kernel_dim", json!(1)),
            ("full_attention_interval", json!(9)),
            ("full_attention_interval", json!(0)),
            ("layer_types", json!(["full_attention"])),
            ("layer_types", json!(vec!["linear_attention"; 8])),
            ("layer_types", json!(vec!["sliding_attention"; 8])),
            ("rope_parameters", json!({"partial_rotary_factor": 0.01})),
            ("rope_parameters", json!("x")),
            ("head_dim", json!(0)),
        ] {
            let message = error(field, value.clone());
            let named = message.contains(field) || message.contains("partial_rotary_factor");
            assert!(named && message.contains("config.json"), "{field} {value}: {message}");
        }
    }
}
