//! The model types that are served, one row each.
//!
//! Owns the table, and of most attention-only families how they differ from llama's. What the fields mean, and
//! defaults, are those of the reference mlx-lm 0.32; where that passes over a field, or is known to be wrong,
//! what the publisher's own code makes of it. Families with Mamba-2 layers are `hybrid`'s, Granite's `granite`'s;
//! those with other recurrent layers have readers of their own.

use super::{
    attention::{AttentionTraits, NormTraits, Pairs, RotatedLayers, ScoreScale},
    falcon::FALCON_H1,
    family::{Bias, EmbeddingScale, Family, LLAMA, LogitsScale},
    fields::Fields,
    gemma4,
    granite::{GRANITE, GRANITE_HYBRID, GRANITE_MOE},
    hybrid::{MAMBA2, NEMOTRON_H},
    kimi_linear::KIMI_LINEAR,
    known,
    latent::LatentTraits,
    lfm2,
    moe::{self, MoeLayers, MoeTraits, Normalised, SharedTraits},
    qwen3_5,
    rope::RopeDefaults,
    windows::Windows,
};
use crate::models::{
    block_names::{BlockNames, ExpertNames, ExpertRows, FusedExperts, MlpNames, MoeNames, SingleExperts},
    known_keys::KeyRule,
    mlp_spec::{Activation, RouterScore, RoutingSpec},
    spec::{HeadNorms, ModelSpec, NormKind, NormWeight},
};

/// What is said of types that are only found inside others.
pub(super) const INSIDE: &str = "a language model inside another type";

/// One model type.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelType {
    pub name: &'static str,
    /// Published models of this type.
    pub about: &'static str,
    pub reader: Reader,
    /// What is known of the keys that the reader does not ask for.
    pub known: &'static [KeyRule],
    /// Types that the language model inside may have, for types that may have one; the first is meant where
    /// nothing is said.
    pub inner: &'static [&'static str],
}

/// How a type's language model is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reader {
    Family(&'static Family),
    Own(fn(&str, &Fields) -> Result<ModelSpec, String>),
    /// As the type of the language model inside says.
    Inner,
}

/// A model type without another inside.
const fn plain(
    name: &'static str,
    about: &'static str,
    family: &'static Family,
    known: &'static [KeyRule],
) -> ModelType {
    ModelType { name, about, reader: Reader::Family(family), known, inner: &[] }
}

/// A model type that is a language model with more around it, such as eyes.
const fn wrapper(name: &'static str, about: &'static str, inner: &'static [&'static str]) -> ModelType {
    ModelType { name, about, reader: Reader::Inner, known: &[], inner }
}

const fn own(
    name: &'static str,
    about: &'static str,
    read: fn(&str, &Fields) -> Result<ModelSpec, String>,
    known: &'static [KeyRule],
) -> ModelType {
    ModelType { name, about, reader: Reader::Own(read), known, inner: &[] }
}

/// All of them.
pub(super) const MODEL_TYPES: &[ModelType] = &[
    plain("llama", "Llama 2 to 3.3, SmolLM2, Yi, many others", &LLAMA, known::LLAMA),
    plain("mistral", "Mistral 7B, Nemo, Small; Devstral", &MISTRAL, &[]),
    plain("qwen2", "Qwen2 and 2.5, Qwen2.5-Coder, QwQ, DeepSeek-R1 distillates", &QWEN2, known::QWEN2),
    plain("qwen3", "Qwen3 0.6B to 32B", &QWEN3, known::QWEN3),
    plain("gemma2", "Gemma 2", &GEMMA2, known::GEMMA2),
    wrapper("gemma3", "Gemma 3 4B to 27B", &["gemma3_text"]),
    plain("gemma3_text", "Gemma 3 270M, 1B", &GEMMA3, known::GEMMA3),
    wrapper("qwen3_5", "Qwen3.5, 3.6 and 3.8, dense", &["qwen3_5_text"]),
    own("qwen3_5_text", INSIDE, qwen3_5::spec, known::QWEN3_5),
    wrapper("qwen3_5_moe", "Qwen3.5 and 3.6 with experts, such as 35B-A3B", &["qwen3_5_moe_text"]),
    own("qwen3_5_moe_text", INSIDE, qwen3_5::spec, known::QWEN3_5),
    own("qwen3_next", "Qwen3-Next 80B-A3B, Qwen3-Coder-Next", qwen3_5::spec_of_next, known::QWEN3_5),
    own("lfm2", "LFM2 350M to 2.6B", lfm2::spec, known::LFM2),
    own("lfm2_moe", "LFM2 8B-A1B", lfm2::spec_with_experts, known::LFM2),
    plain("qwen3_moe", "Qwen3 30B-A3B, 235B-A22B, Qwen3-Coder", &QWEN3_MOE, known::QWEN3),
    wrapper("qwen3_vl", "Qwen3-VL, dense", &["qwen3_vl_text"]),
    plain("qwen3_vl_text", INSIDE, &QWEN3, known::QWEN3),
    wrapper("qwen3_vl_moe", "Qwen3-VL with experts", &["qwen3_vl_moe_text"]),
    plain("qwen3_vl_moe_text", INSIDE, &QWEN3_VL_MOE, known::QWEN3),
    plain("qwen2_moe", "Qwen1.5-MoE, Qwen2 57B-A14B", &QWEN2_MOE, known::QWEN2),
    wrapper("qwen2_vl", "Qwen2-VL", &["qwen2_vl_text"]),
    plain("qwen2_vl_text", INSIDE, &QWEN2, known::QWEN2),
    wrapper("qwen2_5_vl", "Qwen2.5-VL", &["qwen2_5_vl_text"]),
    plain("qwen2_5_vl_text", INSIDE, &QWEN2, known::QWEN2),
    wrapper(
        "mistral3",
        "Mistral Small 3.1 and later, Ministral 3, Devstral Small 2",
        &["mistral", "llama", "ministral3", "mistral4"],
    ),
    plain("ministral3", INSIDE, &MINISTRAL3, &[]),
    plain("mixtral", "Mixtral 8x7B, 8x22B", &MIXTRAL, known::MIXTRAL),
    plain("olmoe", "OLMoE 7B-A1B", &OLMOE, known::OLMO),
    plain("olmo2", "OLMo 2", &OLMO2, known::OLMO),
    plain("olmo3", "OLMo 3", &OLMO3, known::OLMO),
    plain("seed_oss", "Seed-OSS 36B", &SEED_OSS, known::SEED_OSS),
    plain("ernie4_5", "ERNIE 4.5 0.3B", &ERNIE, known::ERNIE),
    plain("ernie4_5_moe", "ERNIE 4.5 21B-A3B, 300B-A47B", &ERNIE_MOE, known::ERNIE),
    plain("glm4_moe", "GLM-4.5, 4.5-Air, 4.6, 4.7", &GLM4_MOE, known::GLM4_MOE),
    plain("granite", "Granite 3", &GRANITE, known::GRANITE),
    plain("granitemoe", "Granite 3 1B-A400M, 3B-A800M", &GRANITE_MOE, known::GRANITE),
    plain("granitemoehybrid", "Granite 4.0, all sizes", &GRANITE_HYBRID, known::GRANITE_HYBRID),
    plain("nemotron_h", "Nemotron-H, Nemotron Nano 2, Nemotron 3 Nano", &NEMOTRON_H, known::NEMOTRON_H),
    plain("falcon_h1", "Falcon-H1, all sizes", &FALCON_H1, known::FALCON_H1),
    plain("mamba2", "Mamba-2, Codestral Mamba", &MAMBA2, known::MAMBA2),
    plain("gpt_oss", "gpt-oss 20B, 120B", &GPT_OSS, known::GPT_OSS),
    plain("smollm3", "SmolLM3", &SMOLLM3, known::SMOLLM3),
    plain("minimax_m2", "MiniMax M2", &MINIMAX_M2, known::MINIMAX_M2),
    plain("exaone4", "EXAONE 4.0", &EXAONE4, known::EXAONE4),
    wrapper("gemma4", "Gemma 4, all sizes", &["gemma4_text"]),
    wrapper("gemma4_unified", "the same", &["gemma4_text"]),
    own("gemma4_text", INSIDE, gemma4::spec, known::GEMMA4),
    plain(
        "phi3",
        "Phi-3, 3.5 and 4 mini, Phi-4 (LongRoPE: --long-context beyond 4,096 tokens)",
        &PHI3,
        known::PHI3,
    ),
    plain("glm4", "GLM-4 0414", &GLM4, &[]),
    plain("cohere2", "Command R7B, Command A", &COHERE2, known::COHERE2),
    plain("deepseek_v2", "DeepSeek-V2, V2-Lite, Coder-V2", &DEEPSEEK_V2, known::DEEPSEEK_V2),
    plain("deepseek_v3", "DeepSeek-V3, V3.1, R1", &DEEPSEEK_V3, known::DEEPSEEK_V3),
    plain("kimi_k2", "Kimi K2", &DEEPSEEK_V3, known::DEEPSEEK_V3),
    wrapper("kimi_k25", "Kimi K2.5 and later", &["kimi_k2", "deepseek_v3"]),
    plain("kimi_linear", "Kimi Linear 48B-A3B", &KIMI_LINEAR, known::KIMI_LINEAR),
    plain("joyai_llm_flash", "JoyAI-LLM-Flash", &DEEPSEEK_V3, known::DEEPSEEK_V3),
    plain("glm4_moe_lite", "GLM-4.7-Flash", &GLM4_MOE_LITE, known::DEEPSEEK_V3),
    plain("mistral4", INSIDE, &MISTRAL4, known::MISTRAL4),
    plain(
        "deepseek_v32",
        "DeepSeek-V3.2, up to as many tokens as its indexer chooses",
        &DEEPSEEK_V32,
        known::DEEPSEEK_V32,
    ),
    plain(
        "glm_moe_dsa",
        "GLM-5, up to as many tokens as its indexer chooses",
        &DEEPSEEK_V32,
        known::DEEPSEEK_V32,
    ),
];

impl ModelType {
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        MODEL_TYPES.iter().find(|known| known.name == name)
    }
}

/// A default of heads of keys and values that stands for as many as queries have.
const AS_QUERIES: (&str, u64) = ("num_key_value_heads", 0);

pub(super) const LLAMA_DEFAULTS: &[(&str, u64)] = &[("max_position_embeddings", 32_768), AS_QUERIES];

const MISTRAL: Family =
    Family { attention: AttentionTraits { windows: Windows::IfStated, ..LLAMA.attention }, ..LLAMA };

const QWEN2: Family = Family {
    defaults: &[("max_position_embeddings", 32_768)],
    attention: AttentionTraits {
        qkv_bias: Bias::Always,
        output_bias: Bias::Never,
        windows: Windows::FromLayer,
        rope: RopeDefaults::new(Some(1_000_000.0)),
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    ..LLAMA
};

const QWEN3: Family = Family {
    attention: AttentionTraits {
        qkv_bias: Bias::Field("attention_bias"),
        output_bias: Bias::Field("attention_bias"),
        head_norms: NormTraits::Always(HeadNorms::PerHead),
        rope: RopeDefaults::new(None),
        pairs: Pairs::Halves,
        ..QWEN2.attention
    },
    ..QWEN2
};

const QWEN3_MOE: Family = Family { moe: Some(moe::QWEN), ..QWEN3 };

const QWEN3_VL_MOE: Family = Family {
    moe: Some(MoeTraits { normalised: Normalised::Field("norm_topk_prob", true, 0.0), ..moe::QWEN }),
    names: BlockNames {
        moe: MoeNames {
            experts: ExpertNames {
                fused: Some(FusedExperts { is_transposed: true, ..QWEN_FUSED }),
                ..ExpertNames::QWEN
            },
            ..MoeNames::QWEN
        },
        ..BlockNames::PLAIN
    },
    ..QWEN3_MOE
};

const QWEN_FUSED: FusedExperts = FusedExperts {
    gate_up: "mlp.experts.gate_up_proj",
    down: "mlp.experts.down_proj",
    rows: ExpertRows::Halves,
    is_transposed: false,
};

const QWEN2_MOE: Family = Family {
    attention: AttentionTraits { qkv_bias: Bias::FieldOrTrue("qkv_bias"), ..QWEN2.attention },
    moe: Some(MoeTraits { shared: SharedTraits::Gated("shared_expert_intermediate_size"), ..moe::QWEN }),
    ..QWEN2
};

const GEMMA2: Family = Family {
    defaults: &[
        ("hidden_size", 3072),
        ("num_hidden_layers", 28),
        ("max_position_embeddings", 8192),
        ("intermediate_size", 24_576),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 16),
        ("head_dim", 256),
        ("vocab_size", 256_000),
        ("sliding_window", 4096),
    ],
    eps: ("rms_norm_eps", Some(1e-6)),
    norm: (NormKind::RootMeanSquare, NormWeight::LessOne),
    attention: AttentionTraits {
        scale: ScoreScale::Field("query_pre_attn_scalar", 256.0),
        windows: Windows::AllBut { fields: &[], default: 2 },
        pairs: Pairs::Halves,
        ..AttentionTraits::LLAMA
    },
    activation: Activation::GeluTanh,
    mlp_bias: Bias::Never,
    embedding_scale: EmbeddingScale::SqrtWidth,
    says_if_tied: false,
    names: BlockNames::GEMMA,
    ..LLAMA
};

const GEMMA3: Family = Family {
    defaults: &[
        ("hidden_size", 1152),
        ("num_hidden_layers", 26),
        ("max_position_embeddings", 131_072),
        ("intermediate_size", 6912),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 1),
        ("head_dim", 256),
        ("vocab_size", 262_144),
        ("sliding_window", 512),
    ],
    nested_defaults: &[("num_attention_heads", 8), ("num_key_value_heads", 4), ("vocab_size", 262_208)],
    attention: AttentionTraits {
        head_norms: NormTraits::Always(HeadNorms::PerHead),
        windows: Windows::AllBut {
            fields: &["sliding_window_pattern", "_sliding_window_pattern"],
            default: 6,
        },
        rope: RopeDefaults::new(Some(1_000_000.0)),
        sliding_rope: Some(RopeDefaults {
            theta_field: "rope_local_base_freq",
            is_scaled: false,
            ..RopeDefaults::new(Some(10_000.0))
        }),
        ..GEMMA2.attention
    },
    ..GEMMA2
};

const MINISTRAL3: Family = Family {
    attention: AttentionTraits {
        rope: RopeDefaults { scales_queries: true, ..LLAMA.attention.rope },
        position_scale: true,
        ..LLAMA.attention
    },
    ..LLAMA
};

const MIXTRAL: Family = Family {
    defaults: &[("max_position_embeddings", 32_768), ("num_key_value_heads", 8)],
    eps: ("rms_norm_eps", Some(1e-5)),
    attention: AttentionTraits { rope: RopeDefaults::new(Some(1_000_000.0)), ..MISTRAL.attention },
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits {
        num_experts: ("num_local_experts", Some(8)),
        num_per_token: ("num_experts_per_tok", Some(2)),
        intermediate_size: "intermediate_size",
        layers: MoeLayers::All,
        routing: RoutingSpec::softmax(true),
        normalised: Normalised::Known,
        ..moe::QWEN
    }),
    names: BlockNames { moe: MIXTRAL_NAMES, ..BlockNames::PLAIN },
    ..LLAMA
};

pub(super) const MIXTRAL_NAMES: MoeNames = MoeNames {
    router: "block_sparse_moe.gate",
    selection_bias: "block_sparse_moe.e_score_correction_bias",
    experts: ExpertNames {
        stacked: [
            "block_sparse_moe.switch_mlp.gate_proj",
            "block_sparse_moe.switch_mlp.up_proj",
            "block_sparse_moe.switch_mlp.down_proj",
        ],
        single: Some(SingleExperts { list: "block_sparse_moe.experts", names: ["w1", "w3", "w2"] }),
        fused: Some(QWEN_FUSED),
    },
    ..MoeNames::QWEN
};

const MINIMAX_M2: Family = Family {
    attention: AttentionTraits {
        head_norms: NormTraits::Always(HeadNorms::FullWidth),
        rope: RopeDefaults { rotated_dims_field: Some("rotary_dim"), ..RopeDefaults::new(Some(5_000_000.0)) },
        windows: Windows::ByTypes,
        ..MIXTRAL.attention
    },
    moe: Some(MoeTraits {
        num_experts: ("num_local_experts", None),
        num_per_token: ("num_experts_per_tok", None),
        routing: RoutingSpec {
            score: RouterScore::Sigmoid,
            selection_bias: true,
            normalised: Some(1e-20),
            ..RoutingSpec::softmax(true)
        },
        intermediate_size: "intermediate_size",
        layers: MoeLayers::All,
        normalised: Normalised::Known,
        ..moe::QWEN
    }),
    ..MIXTRAL
};

const OLMOE: Family = Family {
    defaults: LLAMA_DEFAULTS,
    eps: ("rms_norm_eps", Some(1e-5)),
    attention: AttentionTraits { head_norms: NormTraits::Always(HeadNorms::FullWidth), ..LLAMA.attention },
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits { intermediate_size: "intermediate_size", layers: MoeLayers::All, ..moe::QWEN }),
    ..LLAMA
};

const OLMO2: Family = Family {
    moe: None,
    names: BlockNames {
        mixer_norm: None,
        mixer_post_norm: Some("post_attention_layernorm"),
        mlp_norm: None,
        mlp_post_norm: Some("post_feedforward_layernorm"),
        ..BlockNames::PLAIN
    },
    ..OLMOE
};

const OLMO3: Family = Family {
    attention: AttentionTraits {
        windows: Windows::AllBut { fields: &[], default: 4 },
        sliding_rope: Some(RopeDefaults { is_plain: true, ..RopeDefaults::new(Some(10_000.0)) }),
        ..OLMO2.attention
    },
    ..OLMO2
};

const EXAONE4: Family = Family {
    attention: AttentionTraits {
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        head_norms: NormTraits::Always(HeadNorms::PerHead),
        windows: Windows::AllBut { fields: &["sliding_window_pattern"], default: 4 },
        rotated: RotatedLayers::Sliding,
        pairs: Pairs::Halves,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    ..OLMO2
};

const SEED_OSS: Family = Family {
    defaults: &[("max_position_embeddings", 524_288), ("head_dim", 128), AS_QUERIES],
    attention: AttentionTraits { output_bias: Bias::Field("attention_out_bias"), ..LLAMA.attention },
    ..LLAMA
};

const ERNIE: Family = Family {
    defaults: LLAMA_DEFAULTS,
    attention: AttentionTraits {
        qkv_bias: Bias::Field("use_bias"),
        output_bias: Bias::Field("use_bias"),
        rope: RopeDefaults::new(Some(500_000.0)),
        pairs: Pairs::Neighbours,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Field("use_bias"),
    ..LLAMA
};

const ERNIE_MOE: Family = Family {
    moe: Some(MoeTraits {
        num_experts: ("moe_num_experts", None),
        num_per_token: ("moe_k", None),
        layers: MoeLayers::Ernie,
        // The publisher's `norm_min`.
        routing: RoutingSpec { selection_bias: true, normalised: Some(1e-12), ..RoutingSpec::softmax(true) },
        normalised: Normalised::Known,
        shared: SharedTraits::Experts("moe_num_shared_experts"),
        ..moe::QWEN
    }),
    names: BlockNames {
        moe: MoeNames {
            selection_bias: "mlp.moe_statics.e_score_correction_bias",
            shared: SHARED_EXPERTS,
            ..MoeNames::QWEN
        },
        ..BlockNames::PLAIN
    },
    ..ERNIE
};

pub(super) const SHARED_EXPERTS: MlpNames = MlpNames {
    gate: "mlp.shared_experts.gate_proj",
    up: "mlp.shared_experts.up_proj",
    down: "mlp.shared_experts.down_proj",
    gate_up: None,
};

const GLM4_MOE: Family = Family {
    defaults: &[("max_position_embeddings", 131_072)],
    attention: AttentionTraits {
        output_bias: Bias::Never,
        head_norms: NormTraits::PerHeadIf("use_qk_norm"),
        rope: RopeDefaults { rotated: 0.5, ..RopeDefaults::new(Some(10_000.0)) },
        pairs: Pairs::Halves,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    moe: Some(moe::DEEPSEEK_V3),
    extra_layers: Some("num_nextn_predict_layers"),
    names: BlockNames { moe: MoeNames { shared: SHARED_EXPERTS, ..MoeNames::QWEN }, ..BlockNames::PLAIN },
    ..LLAMA
};

const DEEPSEEK_V3: Family = Family {
    defaults: LLAMA_DEFAULTS,
    eps: ("rms_norm_eps", Some(1e-6)),
    latent: Some(LatentTraits::DEEPSEEK),
    mlp_bias: Bias::Never,
    moe: Some(moe::DEEPSEEK_V3),
    extra_layers: Some("num_nextn_predict_layers"),
    names: GLM4_MOE.names,
    ..LLAMA
};

const DEEPSEEK_V2: Family = Family { moe: Some(moe::DEEPSEEK_V2), ..DEEPSEEK_V3 };

const GLM4_MOE_LITE: Family = Family {
    eps: ("rms_norm_eps", Some(1e-5)),
    latent: Some(LatentTraits { rope: RopeDefaults::new(Some(1_000_000.0)), ..LatentTraits::DEEPSEEK }),
    moe: Some(MoeTraits { layers: MoeLayers::From("first_k_dense_replace", 1), ..moe::DEEPSEEK_V3 }),
    ..DEEPSEEK_V3
};

const MISTRAL4: Family = Family {
    latent: Some(LatentTraits {
        rope: RopeDefaults { scales_queries: true, ..RopeDefaults::new(Some(10_000.0)) },
        position_scale: true,
        rotates_share_of_head: true,
        ..LatentTraits::DEEPSEEK
    }),
    moe: Some(moe::MISTRAL4),
    extra_layers: None,
    ..DEEPSEEK_V3
};

/// Of as many positions as the indexer would choose all are seen: up to there it changes nothing.
const DEEPSEEK_V32: Family = Family {
    latent: Some(LatentTraits { max_seen: Some("index_topk"), ..LatentTraits::DEEPSEEK }),
    ignored_parts: &[".self_attn.indexer."],
    ..DEEPSEEK_V3
};

const GPT_OSS: Family = Family {
    defaults: &[
        ("max_position_embeddings", 131_072),
        ("head_dim", 64),
        ("num_key_value_heads", 8),
        ("sliding_window", 128),
    ],
    eps: ("rms_norm_eps", Some(1e-5)),
    attention: AttentionTraits {
        qkv_bias: Bias::FieldOrTrue("attention_bias"),
        output_bias: Bias::FieldOrTrue("attention_bias"),
        windows: Windows::AllBut { fields: &[], default: 2 },
        rope: RopeDefaults::new(Some(150_000.0)),
        pairs: Pairs::Halves,
        sinks: true,
        ..LLAMA.attention
    },
    activation: moe::GPT_OSS_ACTIVATION,
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits {
        num_experts: ("num_local_experts", None),
        num_per_token: ("num_experts_per_tok", Some(4)),
        intermediate_size: "intermediate_size",
        layers: MoeLayers::All,
        expert_bias: true,
        routing: RoutingSpec { router_bias: true, ..RoutingSpec::softmax(true) },
        normalised: Normalised::Known,
        ..moe::QWEN
    }),
    names: BlockNames {
        moe: MoeNames {
            router: "mlp.router",
            experts: ExpertNames {
                stacked: ["mlp.experts.gate_proj", "mlp.experts.up_proj", "mlp.experts.down_proj"],
                single: None,
                fused: Some(FusedExperts { rows: ExpertRows::EveryOther, is_transposed: true, ..QWEN_FUSED }),
            },
            ..MoeNames::QWEN
        },
        ..BlockNames::PLAIN
    },
    ..LLAMA
};

const SMOLLM3: Family = Family {
    defaults: LLAMA_DEFAULTS,
    attention: AttentionTraits {
        windows: Windows::FromLayer,
        rope: RopeDefaults::new(Some(2_000_000.0)),
        rotated: RotatedLayers::Listed,
        ..LLAMA.attention
    },
    ..LLAMA
};

const PHI3: Family = Family {
    defaults: LLAMA_DEFAULTS,
    attention: AttentionTraits {
        qkv_bias: Bias::Never,
        output_bias: Bias::Never,
        windows: Windows::IfStated,
        pairs: Pairs::Halves,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    names: BlockNames::PHI3,
    ..LLAMA
};

const GLM4: Family = Family {
    attention: AttentionTraits {
        output_bias: Bias::Never,
        rope: RopeDefaults { rotated: 0.5, ..RopeDefaults::new(Some(10_000.0)) },
        pairs: Pairs::Neighbours,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    names: BlockNames::GLM4,
    ..LLAMA
};

const COHERE2: Family = Family {
    defaults: &[("max_position_embeddings", 8192), ("sliding_window", 4096), AS_QUERIES],
    eps: ("layer_norm_eps", Some(1e-5)),
    norm: (NormKind::Layer, NormWeight::Factor),
    attention: AttentionTraits {
        windows: Windows::AllBut { fields: &["sliding_window_pattern"], default: 4 },
        rope: RopeDefaults::new(Some(10_000.0)),
        pairs: Pairs::Neighbours,
        rotated: RotatedLayers::Sliding,
        ..LLAMA.attention
    },
    mlp_bias: Bias::Never,
    is_parallel: true,
    logits_scale: LogitsScale::Times("logit_scale", 0.0625),
    names: BlockNames { mlp_norm: None, ..BlockNames::PLAIN },
    ..LLAMA
};
