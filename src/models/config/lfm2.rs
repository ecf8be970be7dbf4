//! Configurations of lfm2: short convolutions with full attention in between.
//!
//! Owns what the fields mean and their defaults, those of the reference mlx-lm 0.32 or, where it
//! has none, of the publisher's own configuration class.

use serde_json::Value;

use super::{
    fields::{Fields, MAX_LAYERS},
    moe::{self, MoeLayers, MoeTraits, Normalised},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    block_names::BlockNames,
    context::ContextChoice,
    mlp_spec::{Activation, DenseSpec, MlpSpec, RouterScore, RoutingSpec},
    names::WeightNames,
    recurrent_spec::{RecurrentSpec, ShortConvSpec},
    spec::{AttentionSpec, HeadNorms, LayerSpec, MixerSpec, ModelSpec, NormKind, NormSpec, NormWeight},
};

/// Reads the model's fields.
pub(super) fn spec(model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
    read(model_type, fields, intermediate_size(fields)?, None)
}

/// The same with experts in all but the first layers.
pub(super) fn spec_with_experts(model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
    read(model_type, fields, fields.dimension("intermediate_size", None)?, Some(EXPERTS))
}

/// Sigmoid scores, with a bias for the choice.
const EXPERTS: MoeTraits = MoeTraits {
    layers: MoeLayers::From("num_dense_layers", 0),
    routing: RoutingSpec { score: RouterScore::Sigmoid, ..RoutingSpec::softmax(true) },
    selection_bias: Some("use_expert_bias"),
    normalised: Normalised::Field("norm_topk_prob", true, 1e-6),
    scale: Some("routed_scaling_factor"),
    ..moe::QWEN
};

fn read(
    model_type: &str,
    fields: &Fields,
    intermediate_size: usize,
    experts: Option<MoeTraits>,
) -> Result<ModelSpec, String> {
    let hidden_size = fields.dimension("hidden_size", None)?;
    if fields.dimension("block_dim", Some(hidden_size as u64))? != hidden_size {
        return Err(format!("'block_dim' must equal 'hidden_size' ({hidden_size})"));
    }
    let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
    let max_context = fields.dimension("max_position_embeddings", Some(128_000))?;
    let attention = attention(fields, hidden_size, max_context)?;
    let conv = RecurrentSpec::ShortConv(ShortConvSpec {
        kernel_size: fields.integer("conv_L_cache", Some(3), 2, 64)?,
        bias: fields.flag("conv_bias", false)?,
    });
    let dense = DenseSpec { intermediate_size, activation: Activation::Silu, bias: false };
    let mlps: Vec<MlpSpec> = match experts {
        None => vec![MlpSpec::Dense(dense); num_layers],
        Some(traits) => {
            let experts = MlpSpec::Moe(traits.spec(fields, dense)?);
            let are_moe = traits.layers.read(fields, num_layers)?.into_iter();
            are_moe.map(|is_moe| if is_moe { experts.clone() } else { MlpSpec::Dense(dense) }).collect()
        }
    };
    let layers = full_attention(fields, num_layers)?
        .into_iter()
        .zip(mlps)
        .map(|(full, mlp)| {
            let mixer = if full {
                MixerSpec::Attention(attention.clone())
            } else {
                MixerSpec::Recurrent(conv.clone())
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
            eps: fields.epsilon("norm_eps", Some(1e-5))?,
            kind: NormKind::RootMeanSquare,
            weight: NormWeight::Factor,
        },
        embedding_scale: None,
        tied_head: tied_head(fields)?,
        per_layer_inputs: None,
        logits_scale: None,
        tied_logits_scale: None,
        folds: Vec::new(),
        final_logit_softcap: None,
        quantization: None,
        names: WeightNames {
            final_norm: "model.embedding_norm",
            renamed_parts: &[
                (".feed_forward.w1.", ".feed_forward.gate_proj."),
                (".feed_forward.w3.", ".feed_forward.up_proj."),
                (".feed_forward.w2.", ".feed_forward.down_proj."),
            ],
            ..WeightNames::new(BlockNames::LFM2)
        },
    })
}

/// The publisher's spelling comes before everybody's.
fn tied_head(fields: &Fields) -> Result<Option<bool>, String> {
    let [own, common] = ["tie_embedding", "tie_word_embeddings"].map(|name| fields.optional_flag(name));
    match (own?, common?) {
        (Some(own), Some(common)) if own != common => Err(format!(
            "'tie_embedding' and 'tie_word_embeddings' contradict each other: {own} and {common}; remove the \
             wrong one"
        )),
        (own, common) => Ok(own.or(common)),
    }
}

fn attention(fields: &Fields, hidden_size: usize, max_context: usize) -> Result<AttentionSpec, String> {
    let num_heads = fields.dimension("num_attention_heads", None)?;
    let (num_heads, num_kv_heads) = fields.heads(Some(num_heads as u64))?;
    let head_dim = fields.head_dim(hidden_size, num_heads)?;
    Fields::check_head_dim(head_dim)?;
    let defaults = RopeDefaults::new(Some(1_000_000.0));
    let rope = fields.rope(LayerType::Full, head_dim, max_context, false, defaults)?;
    Ok(AttentionSpec {
        head_norms: HeadNorms::PerHead,
        ..AttentionSpec::plain((num_heads, num_kv_heads), head_dim, Some(rope))
    })
}

/// Width of the MLP; the configuration's number may be one to be cut to two thirds and rounded up.
fn intermediate_size(fields: &Fields) -> Result<usize, String> {
    let names = ["block_ff_dim", "intermediate_size"];
    let name = if fields.get(names[0]).is_some() { names[0] } else { names[1] };
    let stated = fields.dimension(name, None)?;
    let other = fields.dimension(names[1], Some(stated as u64))?;
    if other != stated {
        return Err(format!(
            "'block_ff_dim' and 'intermediate_size' contradict each other: {stated} and {other}; remove the \
             wrong one"
        ));
    }
    if !fields.flag("block_auto_adjust_ff_dim", true)? {
        return Ok(stated);
    }
    let factor = fields.number("block_ffn_dim_multiplier", Some(1.0))?;
    let multiple = fields.dimension("block_multiple_of", Some(256))?;
    let two_thirds = (2 * stated / 3) as f64;
    let scaled = factor * two_thirds;
    // Both at most 2^24, so that the rounding up cannot overflow.
    if !(scaled >= 1.0 && scaled <= f64::from(1 << 24)) {
        return Err(format!(
            "'block_ffn_dim_multiplier' of {factor} makes no usable MLP of '{name}' {stated}"
        ));
    }
    Ok((scaled as usize).div_ceil(multiple) * multiple)
}

/// Which layers attend to all positions, by `full_attn_idxs` or `layer_types`.
fn full_attention(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, String> {
    let by_index = match fields.get("full_attn_idxs") {
        Some(indices) => Some(by_index(indices, num_layers)?),
        None => None,
    };
    let by_type = fields.layer_types(num_layers, [("full_attention", true), ("conv", false)])?;
    let (full, field) = match (by_index, by_type) {
        (Some(by_index), Some(by_type)) if by_index != by_type => {
            return Err(
                "'full_attn_idxs' and 'layer_types' contradict each other; remove the wrong one".to_owned()
            );
        }
        (Some(full), _) => (full, "full_attn_idxs"),
        (None, Some(full)) => (full, "layer_types"),
        (None, None) => return Err("'layer_types' is missing, and so is 'full_attn_idxs'".to_owned()),
    };
    if !full.contains(&true) {
        return Err(format!("'{field}' leaves none of {num_layers} layers with full attention"));
    }
    Ok(full)
}

fn by_index(indices: &Value, num_layers: usize) -> Result<Vec<bool>, String> {
    let wrong = || format!("'full_attn_idxs' must be a list of layers below {num_layers}, got {indices}");
    let mut full = vec![false; num_layers];
    for index in indices.as_array().ok_or_else(wrong)? {
        let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
        *index.and_then(|index| full.get_mut(index)).ok_or_else(wrong)? = true;
    }
    Ok(full)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::models::config::parse_config;

    fn config() -> Value {
        json!({
            "model_type": "lfm2", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "norm_eps": 1e-5, "vocab_size": 300, "max_position_embeddings": 512,
            "conv_bias": false, "conv_L_cache": 3, "block_dim": 32, "block_ff_dim": 48,
            "block_auto_adjust_ff_dim": false, "layer_types": ["conv", "full_attention", "conv"]
        })
    }

    fn with(field: &str, value: Value) -> Result<ModelSpec, String> {
        let mut config = config();
        config[field] = value;
        parse_config(&config, "config.json").map_err(|error| error.to_string())
    }

    #[test]
    fn layer_types_say_which_layers_attend() {
        let spec = parse_config(&config(), "config.json").unwrap();
        let full: Vec<bool> = spec.layers.iter().map(|layer| layer.attention().is_some()).collect();
        assert_eq!(full, [false, true, false]);
        assert_eq!(spec.kv_layers().next().unwrap().head_dim, 8);
        assert_eq!(spec.kv_bytes_per_token(4), 2 * 2 * 8 * 4);
        assert_eq!(spec.state_bytes(4), 2 * 2 * 32 * 4);
        let mut config = config();
        let types = config["layer_types"].take();
        config["full_attn_idxs"] = json!([1]);
        assert_eq!(parse_config(&config, "config.json").unwrap(), spec);
        config["layer_types"] = types;
        assert_eq!(parse_config(&config, "config.json").unwrap(), spec);
        config["full_attn_idxs"] = json!([2]);
        let message = parse_config(&config, "config.json").unwrap_err().to_string();
        assert!(message.contains("'full_attn_idxs' and 'layer_types'"), "{message}");
    }

    #[test]
    fn the_mlp_may_be_cut_to_two_thirds_and_rounded_up() {
        let mut config = config();
        config["block_auto_adjust_ff_dim"] = json!(true);
        config["block_multiple_of"] = json!(20);
        config["block_ffn_dim_multiplier"] = json!(1.3);
        let spec = parse_config(&config, "config.json").unwrap();
        // 48 → 32 → 41 → 60.
        assert_eq!(spec.layers[0].mlp.as_ref().unwrap().dense().unwrap().intermediate_size, 60);
        config["block_ffn_dim_multiplier"] = json!(1e300);
        let message = parse_config(&config, "config.json").unwrap_err().to_string();
        assert!(message.contains("block_ffn_dim_multiplier"), "{message}");
    }

    #[test]
    fn the_nested_theta_comes_first() {
        let spec = with("rope_parameters", json!({"rope_theta": 16.0, "rope_type": "default"})).unwrap();
        assert_eq!(spec.kv_layers().next().unwrap().rope.as_ref().unwrap().frequencies[1], 2.0);
    }

    #[test]
    fn bad_values_name_the_field() {
        for (field, value) in [
            ("block_dim", json!(64)),
            ("conv_L_cache", json!(1)),
            ("layer_types", json!(["conv", "conv", "conv"])),
            ("layer_types", json!(["conv", "mamba", "conv"])),
            ("layer_types", json!(null)),
            ("full_attn_idxs", json!([3])),
            ("full_attn_idxs", json!([])),
            ("num_key_value_heads", json!(3)),
            ("num_attention_heads", json!(5)),
            ("rope_theta", json!(1)),
        ] {
            let message = with(field, value.clone()).unwrap_err();
            assert!(message.contains(field) && message.contains("config.json"), "{field} {value}: {message}");
        }
    }
}
