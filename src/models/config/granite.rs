//! Granite's families.
//!
//! Owns how they differ from llama's, and from one another: Granite 3 with and without experts, Granite 4 with
//! Mamba-2 layers or without.

use super::{
    attention::{AttentionTraits, Pairs, RotatedLayers, ScoreScale},
    families::{LLAMA_DEFAULTS, MIXTRAL_NAMES},
    family::{Bias, EmbeddingScale, Family, LLAMA, LogitsScale},
    hybrid::{HybridTraits, LayerKinds, MambaTraits, StateTraits},
    moe::{self, MoeLayers, MoeTraits, Normalised, SharedTraits},
    windows::Windows,
};
use crate::models::{
    block_names::{BlockNames, ExpertNames, ExpertRows, FusedExperts, MlpNames, MoeNames},
    mlp_spec::RoutingSpec,
};

pub(super) const GRANITE: Family = Family {
    defaults: LLAMA_DEFAULTS,
    attention: AttentionTraits { scale: ScoreScale::Factor("attention_multiplier"), ..LLAMA.attention },
    embedding_scale: EmbeddingScale::Field("embedding_multiplier"),
    residual_scale: Some("residual_multiplier"),
    logits_scale: LogitsScale::DividedBy("logits_scaling"),
    ..LLAMA
};

pub(super) const GRANITE_MOE: Family = Family {
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits {
        num_experts: ("num_local_experts", None),
        num_per_token: ("num_experts_per_tok", None),
        intermediate_size: "intermediate_size",
        layers: MoeLayers::All,
        routing: RoutingSpec::softmax(true),
        normalised: Normalised::Known,
        ..moe::QWEN
    }),
    names: BlockNames {
        moe: MoeNames {
            router: "block_sparse_moe.router.layer",
            experts: ExpertNames {
                fused: Some(FusedExperts {
                    gate_up: "block_sparse_moe.input_linear",
                    down: "block_sparse_moe.output_linear",
                    rows: ExpertRows::Halves,
                    is_transposed: false,
                }),
                ..MIXTRAL_NAMES.experts
            },
            ..MIXTRAL_NAMES
        },
        ..BlockNames::PLAIN
    },
    ..GRANITE
};

/// Granite 4's: an MLP that all tokens go through in every layer, and experts beside it in some models.
pub(super) const GRANITE_HYBRID: Family = Family {
    attention: AttentionTraits {
        windows: Windows::Never,
        pairs: Pairs::Halves,
        rotated: RotatedLayers::IfRope("position_embedding_type"),
        ..GRANITE.attention
    },
    hybrid: Some(HybridTraits {
        layers: LayerKinds::Types,
        states: StateTraits::Mamba(&MambaTraits::PREFIXED),
    }),
    mlp_width: "shared_intermediate_size",
    moe: Some(MoeTraits {
        num_experts: ("num_local_experts", None),
        num_per_token: ("num_experts_per_tok", None),
        intermediate_size: "intermediate_size",
        layers: MoeLayers::IfAny("num_local_experts"),
        routing: RoutingSpec::softmax(true),
        normalised: Normalised::Known,
        shared: SharedTraits::Plain("shared_intermediate_size"),
        ..moe::QWEN
    }),
    names: BlockNames {
        mlp: SHARED_MLP,
        moe: MoeNames { shared: SHARED_MLP, ..GRANITE_MOE.names.moe },
        ..BlockNames::PLAIN
    },
    renamed_parts: &[(".shared_mlp.output_linear.", ".mlp.down_proj.")],
    ..GRANITE_MOE
};

/// In MLX's conversions without experts gate and up are cut already.
const SHARED_MLP: MlpNames = MlpNames { gate_up: Some("shared_mlp.input_linear"), ..MlpNames::PLAIN };
