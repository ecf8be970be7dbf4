//! Falcon-H1: attention and a Mamba-2 layer side by side in every block, and factors of maximal-update
//! parametrisation at every matrix.
//!
//! Owns what these factors multiply. MLX's conversions have them in their weights, all but the keys', which mlx-lm
//! passes over, so that they are in the scale of the scores here; the publisher's files have none.

use serde_json::Value;

use super::{
    attention::{AttentionTraits, ScoreScale},
    family::{Bias, Family, LLAMA, LogitsScale},
    fields::Fields,
    hybrid::{HybridTraits, LayerKinds, MambaNorm, MambaTraits, StateTraits},
    rope::RopeDefaults,
    windows::Windows,
};
use crate::models::{
    block_names::{BlockNames, MlpNames},
    recurrent_spec::RecurrentSpec,
    spec::{Fold, FoldFactors, LayerSpec},
};

pub(super) const FALCON_H1: Family = Family {
    defaults: &[("max_position_embeddings", 8192), ("num_key_value_heads", 8)],
    eps: ("rms_norm_eps", Some(1e-5)),
    attention: AttentionTraits {
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        scale: ScoreScale::HeadDimTimes("key_multiplier"),
        windows: Windows::Never,
        rope: RopeDefaults::new(Some(10_000.0)),
        ..AttentionTraits::LLAMA
    },
    hybrid: Some(HybridTraits {
        layers: LayerKinds::SideBySide,
        states: StateTraits::Mamba(&MambaTraits {
            width: Some("mamba_d_ssm"),
            input_bias: Bias::Never,
            output_bias: Bias::Never,
            norm: MambaNorm::Flags("mamba_rms_norm", "mamba_norm_before_gate"),
            ..MambaTraits::PREFIXED
        }),
    }),
    mlp_bias: Bias::Never,
    logits_scale: LogitsScale::RatioIfTied("lm_head_multiplier", "embedding_multiplier"),
    folds: Some(folds),
    names: BlockNames {
        mlp_norm: Some("pre_ff_layernorm"),
        mlp: MlpNames {
            gate: "feed_forward.gate_proj",
            up: "feed_forward.up_proj",
            down: "feed_forward.down_proj",
            gate_up: None,
        },
        ..BlockNames::PLAIN
    },
    renamed_parts: &[("model.final_layernorm.", "model.norm.")],
    ..LLAMA
};

fn folds(fields: &Fields, layers: &[LayerSpec]) -> Result<Vec<Fold>, String> {
    let factor = |name| fields.factor(name, Some(1.0));
    let attention_in = factor("attention_in_multiplier")?;
    let [gate, down] = factors(fields, "mlp_multipliers")?;
    let mut folds = Vec::new();
    for (ending, factor) in [
        ("embed_tokens", factor("embedding_multiplier")?),
        ("lm_head", factor("lm_head_multiplier")?),
        ("self_attn.q_proj", attention_in),
        ("self_attn.k_proj", attention_in),
        ("self_attn.v_proj", attention_in),
        ("self_attn.o_proj", factor("attention_out_multiplier")?),
        ("mamba.out_proj", factor("ssm_out_multiplier")?),
        ("feed_forward.gate_proj", gate),
        ("feed_forward.down_proj", down),
    ] {
        folds.push(Fold { ending, factors: FoldFactors::All(factor) });
    }
    let input = factor("ssm_in_multiplier")?;
    let [gates, inputs, writes, reads, steps] = factors(fields, "ssm_multipliers")?;
    if let Some(RecurrentSpec::Mamba2(mamba)) = layers.iter().find_map(LayerSpec::recurrent) {
        let runs = vec![
            (mamba.inner_width(), gates * input),
            (mamba.inner_width(), inputs * input),
            (mamba.group_width(), writes * input),
            (mamba.group_width(), reads * input),
            (mamba.num_heads, steps * input),
        ];
        folds.push(Fold { ending: "mamba.in_proj", factors: FoldFactors::Runs(runs) });
    }
    Ok(folds)
}

/// So many factors; 1 each where there are none.
fn factors<const N: usize>(fields: &Fields, name: &str) -> Result<[f32; N], String> {
    let Some(stated) = fields.get(name) else { return Ok([1.0; N]) };
    let wrong = || format!("'{name}' must be {N} positive numbers, got {stated}");
    let numbers = stated.as_array().and_then(|list| <&[Value; N]>::try_from(list.as_slice()).ok());
    let mut factors = [1.0; N];
    for (factor, number) in factors.iter_mut().zip(numbers.ok_or_else(wrong)?) {
        let number = number.as_f64().map(|number| number as f32);
        *factor = number.filter(|number| *number > 0.0 && number.is_finite()).ok_or_else(wrong)?;
    }
    Ok(factors)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::{
        config::{parse_config, published::changed},
        recurrent_spec::StateNorm,
        spec::{MixerSpec, ModelSpec},
    };

    fn read(changes: Value) -> Result<ModelSpec, String> {
        let config = json!({
            "model_type": "falcon_h1", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "vocab_size": 300, "mamba_d_ssm": 24,
            "mamba_n_heads": 4, "mamba_d_head": "auto", "mamba_d_state": 8, "mamba_n_groups": 2,
            "key_multiplier": 0.5, "lm_head_multiplier": 0.25, "embedding_multiplier": 4.0,
            "ssm_in_multiplier": 2.0, "ssm_multipliers": [1.0, 2.0, 3.0, 4.0, 5.0]
        });
        parse_config(&changed(config, changes), "config.json").map_err(|error| error.to_string())
    }

    #[test]
    fn each_block_attends_and_keeps_a_state() {
        let spec = read(json!({})).unwrap();
        let Some(MixerSpec::SideBySide(attention, RecurrentSpec::Mamba2(mamba))) = &spec.layers[1].mixer
        else {
            panic!("{:?}", spec.layers[1].mixer)
        };
        assert_eq!((attention.scale, mamba.head_dim, mamba.norm), (0.125, 6, StateNorm::None));
        assert_eq!((spec.kv_layers().count(), spec.recurrent_layers().count()), (2, 2));
        assert_eq!((spec.logits_scale, spec.tied_logits_scale), (None, Some(0.0625)));
    }

    #[test]
    fn the_inputs_factors_go_by_what_its_outputs_are() {
        let spec = read(json!({})).unwrap();
        let of_input = spec.folds.iter().find(|fold| fold.ending == "mamba.in_proj").unwrap();
        let runs = vec![(24, 2.0), (24, 4.0), (16, 6.0), (16, 8.0), (4, 10.0)];
        assert_eq!(of_input.factors, FoldFactors::Runs(runs));
    }

    #[test]
    fn a_norm_may_stand_before_the_gates_or_after_them() {
        let norm = |changes| match read(changes).unwrap().recurrent_layers().next() {
            Some(RecurrentSpec::Mamba2(mamba)) => mamba.norm,
            other => panic!("{other:?}"),
        };
        assert_eq!(norm(json!({"mamba_rms_norm": true})), StateNorm::BeforeGates);
        let after = json!({"mamba_rms_norm": true, "mamba_norm_before_gate": false});
        assert_eq!(norm(after), StateNorm::AfterGates);
    }

    #[test]
    fn bad_values_name_the_field() {
        for (field, value) in [
            ("mamba_d_ssm", json!(25)),
            ("mamba_d_head", json!(7)),
            ("mlp_multipliers", json!([1.0])),
            ("mlp_multipliers", json!([1.0, 0.0])),
            ("ssm_multipliers", json!([1.0, 1.0, 1.0, 1.0, "x"])),
            ("ssm_multipliers", json!(2.0)),
            ("key_multiplier", json!(0)),
            ("lm_head_multiplier", json!(-1.0)),
            ("attention_bias", json!(true)),
            ("projectors_bias", json!(true)),
        ] {
            let message = read(json!({field: value})).unwrap_err();
            let named =
                message.contains(field) || field == "mamba_d_ssm" && message.contains("mamba_n_heads");
            assert!(named && message.contains("config.json"), "{field} {value}: {message}");
        }
    }
}
