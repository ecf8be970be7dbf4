//! Configurations of Kimi Linear: gated delta nets that decay by dimension, with latent attention every few layers.
//!
//! Owns how they differ from DeepSeek-V3's, the two forms in which the layers are written, and the sizes of the delta
//! nets. Fields and names are the publisher's (`modeling_kimi.py`, arXiv 2510.26692) and those that transformers saves.

use serde_json::Value;

use super::{
    families::SHARED_EXPERTS,
    family::{Bias, Family, LLAMA},
    fields::{Fields, MAX_LAYERS},
    hybrid::{HybridTraits, LayerKind, LayerKinds, MixerKind, StateTraits},
    known::KIMI_DELTA,
    latent::LatentTraits,
    moe::{self, MoeTraits, Normalised, SharedTraits},
};
use crate::models::{
    block_names::{BlockNames, DeltaNames, ExpertNames, MoeNames, SingleExperts},
    mlp_spec::GroupScore,
    recurrent_spec::{DeltaGate, DeltaProjections, GatedDeltaSpec},
};

const CONFIG: &str = "linear_attn_config";

pub(super) const KIMI_LINEAR: Family = Family {
    defaults: &[],
    context_fields: &["model_max_length", "max_position_embeddings"],
    eps: ("rms_norm_eps", Some(1e-5)),
    latent: Some(LatentTraits { is_rotated: false, ..LatentTraits::DEEPSEEK }),
    hybrid: Some(HybridTraits { layers: LayerKinds::KimiLists, states: StateTraits::KimiDelta }),
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits {
        num_experts: ("num_experts", None),
        num_per_token: ("num_experts_per_token", None),
        normalised: Normalised::Field("moe_renormalize", true, 1e-20),
        groups: Some(("num_expert_group", "topk_group", GroupScore::TwoBest)),
        methods: &[],
        shared: SharedTraits::Experts("num_shared_experts"),
        ..moe::DEEPSEEK_V3
    }),
    // Its own say `block_sparse_moe`, MLX's conversions `mlp`, with the bias beside the router.
    renamed_parts: &[
        (".block_sparse_moe.", ".mlp."),
        (".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
        (".q_conv.conv.", ".q_conv1d."),
        (".k_conv.conv.", ".k_conv1d."),
        (".v_conv.conv.", ".v_conv1d."),
    ],
    names: BlockNames {
        delta: DeltaNames::KIMI,
        moe: MoeNames {
            experts: ExpertNames {
                single: Some(SingleExperts { list: "mlp.experts", names: ["w1", "w3", "w2"] }),
                ..ExpertNames::QWEN
            },
            shared: SHARED_EXPERTS,
            ..MoeNames::QWEN
        },
        ..BlockNames::PLAIN
    },
    ..LLAMA
};

/// The layers as two lists of them say, counted from 1, or `layer_types`; both have to agree.
pub(super) fn layers(fields: &Fields) -> Result<Vec<LayerKind>, String> {
    let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
    let (states, attention) = (LayerKind::of(MixerKind::States), LayerKind::ATTENTION);
    let known = [("linear_attention", states), ("full_attention", attention)];
    let typed = fields.layer_types(num_layers, known)?;
    let Some(config) = fields.nested(CONFIG)? else {
        return typed.ok_or_else(|| format!("'{CONFIG}' is missing"));
    };
    let mut listed: Vec<Option<LayerKind>> = vec![None; num_layers];
    for (name, kind) in [("kda_layers", states), ("full_attn_layers", attention)] {
        let wrong =
            || format!("'{CONFIG}.{name}' must be a list of layers from 1 to {num_layers}, each in one list");
        let layers = config.get(name).and_then(Value::as_array).ok_or_else(wrong)?;
        for layer in layers {
            let index = layer.as_u64().and_then(|layer| usize::try_from(layer).ok()?.checked_sub(1));
            let place = index.and_then(|index| listed.get_mut(index)).ok_or_else(wrong)?;
            if place.replace(kind).is_some() {
                return Err(wrong());
            }
        }
    }
    let layers: Option<Vec<LayerKind>> = listed.iter().copied().collect();
    let layers = layers.ok_or_else(|| {
        let missing = listed.iter().position(Option::is_none).unwrap_or_default() + 1;
        format!("'{CONFIG}' has layer {missing} in neither 'kda_layers' nor 'full_attn_layers'")
    })?;
    match typed {
        Some(typed) if typed != layers => {
            Err(format!("'layer_types' and '{CONFIG}' contradict each other; remove the wrong one"))
        }
        _ => Ok(layers),
    }
}

/// The delta nets, in an object of their own or, as transformers saves them, beside the other fields.
pub(super) fn gated_delta(fields: &Fields) -> Result<GatedDeltaSpec, String> {
    // Far above any real model; they keep the state, the product of three, within reason.
    let read = |fields: &Fields, [heads, head_dim, kernel]: [&str; 3]| {
        let (num_heads, head_dim) =
            (fields.integer(heads, None, 1, 1024)?, fields.integer(head_dim, None, 1, 1024)?);
        Ok(GatedDeltaSpec {
            num_value_heads: num_heads,
            num_key_heads: num_heads,
            key_head_dim: head_dim,
            value_head_dim: head_dim,
            kernel_size: fields.integer(kernel, Some(4), 2, 64)?,
            projections: DeltaProjections::Apart,
            decays_by_dimension: true,
            gate_rank: Some(head_dim),
            gate: DeltaGate::Sigmoid,
        })
    };
    let Some(config) = fields.nested(CONFIG)? else {
        return read(fields, ["linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"]);
    };
    let spec = read(&config, ["num_heads", "head_dim", "short_conv_kernel_size"])
        .map_err(|reason: String| format!("'{CONFIG}': {reason}"))?;
    for of_layers in ["kda_layers", "full_attn_layers"] {
        config.get(of_layers);
    }
    config.account(&[KIMI_DELTA])?;
    Ok(spec)
}

#[cfg(test)]
mod tests;
