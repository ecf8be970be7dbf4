//! The architectures that are served from GGUF files, one row each.
//!
//! Owns the table: what llama.cpp (its converters, `gguf-py` and `src/models/*.cpp`, read in the tree that
//! llama-cpp-python 0.3.36 ships) calls an architecture, which `model_type` it is here, which of its keys are
//! which fields of `config.json`, and what its converter has done to weights. How keys are read is the parent
//! module's, what tensors are called `gguf_names`'.

use super::known::{FINETUNED, NO_SECTIONS, SIGMOID, SOFTMAX};
use crate::models::{
    gguf::{GgufHeader, GgufValue},
    known_keys::{Effect::Nothing, KeyRule, rule},
};

/// One architecture, or those of its models that have something in common.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// What keys of the metadata begin with.
    pub name: &'static str,
    /// Which files of this name are meant; of several rows the first that fits counts.
    pub when: When,
    /// `model_type` of a configuration of the same model.
    pub model_type: &'static str,
    /// Published models.
    pub about: &'static str,
    /// Field of what keeps norms from division by zero.
    pub eps_field: &'static str,
    pub heads: Heads,
    pub windows: Option<WindowKeys>,
    pub rope: RopeKeys,
    /// Whether blocks that guess several tokens at once are counted among the others.
    pub has_extra_blocks: bool,
    pub keys: &'static [Key],
    /// Flags that say whether there is this tensor.
    pub by_tensor: &'static [(&'static str, &'static str)],
    /// Fields that llama.cpp has in its code.
    pub fixed: &'static [(&'static str, Fixed)],
    /// Whether rows of queries and keys are stored by pairs of neighbours in each head (`LlamaModel.permute`).
    pub are_rows_paired: bool,
    /// Parts of tensor names that mean another part here, as (found, meant).
    pub aliases: &'static [(&'static str, &'static str)],
    /// What is known of keys that are not read; before what is known for all.
    pub known: &'static [KeyRule],
}

/// Which files of an architecture's name a row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// Where this key is there and not 0.
    NotZero(&'static str),
    /// Where this key has this value.
    Is(&'static str, u64),
}

/// A key that is a field.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub field: &'static str,
    pub key: &'static str,
    pub kind: Kind,
}

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Count,
    /// A number; 0 stands for absent. What is then meant, if anything is.
    NumberUnlessZero(Option<f32>),
    /// False where absent.
    Flag,
}

/// A value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fixed {
    Flag(bool),
    Count(u64),
    Text(&'static str),
}

/// How heads are described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// Rotated whole.
    Whole,
    /// Of queries that are scaled by their width, but by the even share in the one size with so many layers.
    ScaledByWidth { unless_layers: u64 },
    /// Rotated in part.
    Partial,
    /// As [`Heads::Whole`]; layers with no heads of keys are convolutions (LFM2).
    OrConvolution,
    /// Two sizes, those of layers with a window apart (Gemma 4).
    TwoSizes,
    /// One latent of which keys and values are made (DeepSeek).
    Latent,
}

/// How files say which layers have a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowKeys {
    /// Of so many layers the last sees everything where the file has no pattern; 0: none does.
    pub period: u64,
    /// The window where the file does not say.
    pub default: Option<u64>,
    /// The field of a base of their own and the base where the file does not say; `None`: the others' base.
    pub base: Option<(&'static str, f32)>,
}

/// What files say of rotary positions besides their base and a linear or yarn scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeKeys {
    pub factors: FactorTensors,
    /// Whether yarn's bounds between kept and stretched pairs are whole numbers.
    pub truncates: bool,
    /// What `yarn_log_multiplier` is a multiple of; `None`: it is not known.
    pub log_multiplier: Option<LogMultiplier>,
    /// Whether queries grow with their position (`attention.temperature_scale`).
    pub temperature: bool,
}

/// `mscale_all_dim` of yarn in a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogMultiplier {
    /// What is stored for 1.
    pub unit: f64,
    /// Whether `mscale` is the same; else it is 1.
    pub is_both: bool,
}

/// Tensors of one factor for each rotated pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactorTensors {
    None,
    /// `rope_freqs`: llama3's scaling.
    Scaled,
    /// `rope_factors_short` and `rope_factors_long`: LongRoPE.
    ShortAndLong,
    /// `rope_freqs`, of layers without a window: 1, or so large that a pair rests (Gemma 4).
    OneOrRest,
}

const fn count(field: &'static str, key: &'static str) -> Key {
    Key { field, key, kind: Kind::Count }
}

const fn number_unless_zero(field: &'static str, key: &'static str, default: Option<f32>) -> Key {
    Key { field, key, kind: Kind::NumberUnlessZero(default) }
}

/// What all architectures have.
pub const COMMON: &[Key] = &[
    count("hidden_size", "embedding_length"),
    count("max_position_embeddings", "context_length"),
    number_unless_zero("attn_logit_softcapping", "attn_logit_softcapping", None),
    number_unless_zero("final_logit_softcapping", "final_logit_softcapping", None),
];

const WIDTH: Key = count("intermediate_size", "feed_forward_length");
const NUM_PER_TOKEN: Key = count("num_experts_per_tok", "expert_used_count");
const NUM_EXPERTS: Key = count("num_experts", "expert_count");
const NUM_LOCAL_EXPERTS: Key = count("num_local_experts", "expert_count");
const NUM_ROUTED_EXPERTS: Key = count("n_routed_experts", "expert_count");
const EXPERT_WIDTH: Key = count("moe_intermediate_size", "expert_feed_forward_length");

const ATTENTION_BIAS: (&str, &str) = ("attention_bias", "blk.0.attn_q.bias");

const PLAIN_ROPE: RopeKeys =
    RopeKeys { factors: FactorTensors::None, truncates: true, log_multiplier: None, temperature: false };
const LLAMA3_ROPE: RopeKeys = RopeKeys { factors: FactorTensors::Scaled, ..PLAIN_ROPE };

const fn windows(period: u64) -> Option<WindowKeys> {
    Some(WindowKeys { period, default: None, base: None })
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    when: When::Always,
    model_type: "llama",
    about: "Llama 2 to 3.3, Mistral, SmolLM2, many others",
    eps_field: "rms_norm_eps",
    heads: Heads::Whole,
    windows: None,
    rope: LLAMA3_ROPE,
    has_extra_blocks: false,
    keys: &[WIDTH],
    by_tensor: &[ATTENTION_BIAS, ("mlp_bias", "blk.0.ffn_gate.bias")],
    fixed: &[],
    are_rows_paired: true,
    aliases: &[],
    known: &[],
};

const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    about: "Qwen2 and 2.5, QwQ, DeepSeek-R1 distillates",
    rope: PLAIN_ROPE,
    by_tensor: &[],
    are_rows_paired: false,
    ..LLAMA
};

const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    about: "Qwen3, dense",
    by_tensor: &[ATTENTION_BIAS],
    ..QWEN2
};

const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    model_type: "qwen3_moe",
    about: "Qwen3 30B-A3B, 235B-A22B, Qwen3-Coder",
    keys: &[NUM_EXPERTS, NUM_PER_TOKEN, EXPERT_WIDTH],
    fixed: &[("norm_topk_prob", Fixed::Flag(true))],
    known: &[NO_DENSE],
    ..QWEN3
};

/// Pictures come in through other files.
const NO_PICTURES: KeyRule =
    rule("n_deepstack_layers", Nothing("it is for pictures, and requests with these are refused"));
const NO_DENSE: KeyRule = rule("feed_forward_length", Nothing("all layers have experts"));

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    about: "Gemma 3, all sizes",
    // The one Gemma 3 whose queries are not scaled by the width of a head: 27B.
    heads: Heads::ScaledByWidth { unless_layers: 62 },
    windows: Some(WindowKeys { period: 6, default: None, base: Some(("rope_local_base_freq", 10_000.0)) }),
    ..QWEN2
};

const KV_SHARED_LAYERS: Key = count("num_kv_shared_layers", "attention.shared_kv_layers");
const PER_LAYER_INPUTS: Key = count("hidden_size_per_layer_input", "embedding_length_per_layer_input");

const GEMMA4: Architecture = Architecture {
    name: "gemma4",
    model_type: "gemma4_text",
    about: "Gemma 4, dense",
    heads: Heads::TwoSizes,
    windows: Some(WindowKeys { period: 6, default: None, base: None }),
    rope: RopeKeys { factors: FactorTensors::OneOrRest, ..PLAIN_ROPE },
    keys: &[KV_SHARED_LAYERS, PER_LAYER_INPUTS],
    ..QWEN2
};

const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    about: "OLMo 2",
    by_tensor: &[ATTENTION_BIAS],
    ..QWEN2
};

const GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    about: "Granite 3, dense",
    keys: &[
        WIDTH,
        number_unless_zero("attention_multiplier", "attention.scale", None),
        number_unless_zero("embedding_multiplier", "embedding_scale", None),
        number_unless_zero("residual_multiplier", "residual_scale", None),
        number_unless_zero("logits_scaling", "logit_scale", None),
    ],
    known: &[FINETUNED],
    ..LLAMA
};

const LFM2: Architecture = Architecture {
    name: "lfm2",
    model_type: "lfm2",
    about: "LFM2 350M to 2.6B",
    eps_field: "norm_eps",
    heads: Heads::OrConvolution,
    keys: &[WIDTH, count("conv_L_cache", "shortconv.l_cache")],
    // The width is that which comes of it.
    fixed: &[("block_auto_adjust_ff_dim", Fixed::Flag(false))],
    aliases: &[("token_embd_norm", "output_norm")],
    ..QWEN2
};

const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    when: When::Is("expert_gating_func", 2),
    model_type: "deepseek_v3",
    about: "DeepSeek-V3, R1, GLM-4.7-Flash",
    heads: Heads::Latent,
    rope: RopeKeys { log_multiplier: Some(LogMultiplier { unit: 0.1, is_both: true }), ..PLAIN_ROPE },
    has_extra_blocks: true,
    keys: &[
        WIDTH,
        NUM_ROUTED_EXPERTS,
        NUM_PER_TOKEN,
        EXPERT_WIDTH,
        count("n_shared_experts", "expert_shared_count"),
        count("first_k_dense_replace", "leading_dense_block_count"),
        count("n_group", "expert_group_count"),
        count("topk_group", "expert_group_used_count"),
        number_unless_zero("routed_scaling_factor", "expert_weights_scale", Some(1.0)),
        Key { field: "norm_topk_prob", key: "expert_weights_norm", kind: Kind::Flag },
    ],
    known: &[rule("expert_gating_func", Nothing("it tells which kind of DeepSeek's experts there are"))],
    ..QWEN2
};

/// All of them.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        when: When::NotZero("expert_count"),
        model_type: "mixtral",
        about: "Mixtral 8x7B, 8x22B",
        keys: &[WIDTH, NUM_LOCAL_EXPERTS, NUM_PER_TOKEN],
        by_tensor: &[ATTENTION_BIAS],
        ..LLAMA
    },
    LLAMA,
    QWEN2,
    Architecture {
        name: "qwen2moe",
        model_type: "qwen2_moe",
        about: "Qwen1.5-MoE, Qwen2 57B-A14B",
        keys: &[
            NUM_EXPERTS,
            NUM_PER_TOKEN,
            EXPERT_WIDTH,
            count("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ],
        by_tensor: &[("qkv_bias", "blk.0.attn_q.bias")],
        fixed: &[("norm_topk_prob", Fixed::Flag(false))],
        known: &[NO_DENSE],
        ..QWEN2
    },
    Architecture { name: "qwen2vl", about: "Qwen2-VL and 2.5-VL, the language model", ..QWEN2 },
    QWEN3,
    QWEN3_MOE,
    Architecture { name: "qwen3vl", about: "Qwen3-VL, the language model", known: &[NO_PICTURES], ..QWEN3 },
    Architecture {
        name: "qwen3vlmoe",
        about: "Qwen3-VL with experts, the language model",
        known: &[NO_PICTURES, NO_DENSE],
        ..QWEN3_MOE
    },
    Architecture {
        name: "gemma2",
        model_type: "gemma2",
        about: "Gemma 2",
        heads: Heads::ScaledByWidth { unless_layers: 46 },
        windows: Some(WindowKeys { period: 2, default: Some(4096), base: None }),
        keys: &[
            WIDTH,
            number_unless_zero("attn_logit_softcapping", "attn_logit_softcapping", Some(50.0)),
            number_unless_zero("final_logit_softcapping", "final_logit_softcapping", Some(30.0)),
        ],
        ..QWEN2
    },
    GEMMA3,
    Architecture {
        when: When::NotZero("expert_count"),
        about: "Gemma 4 26B-A4B",
        keys: &[
            KV_SHARED_LAYERS,
            PER_LAYER_INPUTS,
            NUM_EXPERTS,
            count("top_k_experts", "expert_used_count"),
            EXPERT_WIDTH,
        ],
        fixed: &[("enable_moe_block", Fixed::Flag(true))],
        ..GEMMA4
    },
    GEMMA4,
    Architecture {
        name: "phi3",
        model_type: "phi3",
        about: "Phi-3, 3.5 and 4 mini, Phi-4 (LongRoPE: --long-context beyond their first context)",
        heads: Heads::Partial,
        windows: windows(0),
        rope: RopeKeys { factors: FactorTensors::ShortAndLong, ..PLAIN_ROPE },
        aliases: &[("ffn_up", "ffn_gate_up")],
        ..QWEN2
    },
    Architecture {
        name: "gpt-oss",
        model_type: "gpt_oss",
        about: "gpt-oss 20B, 120B",
        windows: windows(2),
        // llama.cpp rounds the bounds here too; the publisher does not.
        rope: RopeKeys { truncates: false, ..PLAIN_ROPE },
        keys: &[NUM_LOCAL_EXPERTS, NUM_PER_TOKEN, count("intermediate_size", "expert_feed_forward_length")],
        by_tensor: &[ATTENTION_BIAS],
        aliases: &[("post_attention_norm", "ffn_norm")],
        known: &[NO_DENSE],
        ..QWEN2
    },
    Architecture {
        name: "mistral3",
        model_type: "ministral3",
        about: "Ministral 3, Mistral Small 3.1 and later, Devstral Small 2",
        rope: RopeKeys {
            log_multiplier: Some(LogMultiplier { unit: 1.0, is_both: false }),
            temperature: true,
            ..LLAMA3_ROPE
        },
        ..LLAMA
    },
    Architecture {
        when: When::NotZero("attention.sliding_window"),
        model_type: "olmo3",
        about: "OLMo 3",
        windows: windows(4),
        ..OLMO2
    },
    OLMO2,
    Architecture {
        name: "olmoe",
        model_type: "olmoe",
        about: "OLMoE 7B-A1B",
        keys: &[WIDTH, NUM_EXPERTS, NUM_PER_TOKEN],
        by_tensor: &[ATTENTION_BIAS],
        fixed: &[("norm_topk_prob", Fixed::Flag(false))],
        ..QWEN2
    },
    Architecture {
        name: "glm4",
        model_type: "glm4",
        about: "GLM-4 0414",
        heads: Heads::Partial,
        by_tensor: &[ATTENTION_BIAS],
        aliases: &[("ffn_up", "ffn_gate_up")],
        known: &[NO_SECTIONS],
        ..QWEN2
    },
    Architecture {
        name: "glm4moe",
        model_type: "glm4_moe",
        about: "GLM-4.5, 4.5-Air, 4.6, 4.7",
        heads: Heads::Partial,
        has_extra_blocks: true,
        keys: DEEPSEEK2.keys,
        by_tensor: &[ATTENTION_BIAS, ("use_qk_norm", "blk.0.attn_q_norm.weight")],
        aliases: &[("post_attention_norm", "ffn_norm")],
        known: &[SIGMOID, NO_SECTIONS],
        ..QWEN2
    },
    GRANITE,
    Architecture {
        name: "granitemoe",
        model_type: "granitemoe",
        about: "Granite 3 1B-A400M, 3B-A800M",
        keys: &[
            WIDTH,
            number_unless_zero("attention_multiplier", "attention.scale", None),
            number_unless_zero("embedding_multiplier", "embedding_scale", None),
            number_unless_zero("residual_multiplier", "residual_scale", None),
            number_unless_zero("logits_scaling", "logit_scale", None),
            NUM_LOCAL_EXPERTS,
            NUM_PER_TOKEN,
        ],
        by_tensor: &[ATTENTION_BIAS],
        rope: PLAIN_ROPE,
        ..GRANITE
    },
    Architecture {
        name: "smollm3",
        model_type: "smollm3",
        about: "SmolLM3",
        fixed: &[("no_rope_layer_interval", Fixed::Count(4))],
        ..LLAMA
    },
    Architecture {
        name: "exaone4",
        model_type: "exaone4",
        about: "EXAONE 4.0",
        windows: windows(4),
        rope: LLAMA3_ROPE,
        ..QWEN2
    },
    Architecture {
        name: "seed_oss",
        model_type: "seed_oss",
        about: "Seed-OSS 36B",
        by_tensor: &[ATTENTION_BIAS, ("attention_out_bias", "blk.0.attn_output.bias")],
        aliases: &[("post_attention_norm", "ffn_norm")],
        ..QWEN2
    },
    LFM2,
    Architecture {
        name: "lfm2moe",
        model_type: "lfm2_moe",
        about: "LFM2 8B-A1B",
        keys: &[
            WIDTH,
            count("conv_L_cache", "shortconv.l_cache"),
            NUM_EXPERTS,
            NUM_PER_TOKEN,
            EXPERT_WIDTH,
            count("num_dense_layers", "leading_dense_block_count"),
            number_unless_zero("routed_scaling_factor", "expert_weights_scale", Some(1.0)),
        ],
        by_tensor: &[],
        fixed: &[("norm_topk_prob", Fixed::Flag(true))],
        known: &[SIGMOID],
        ..LFM2
    },
    DEEPSEEK2,
    Architecture {
        when: When::Always,
        model_type: "deepseek_v2",
        about: "DeepSeek-V2, V2-Lite, Coder-V2",
        // By groups, of which there may be one.
        fixed: &[("topk_method", Fixed::Text("group_limited_greedy"))],
        known: &[SOFTMAX],
        ..DEEPSEEK2
    },
];

impl Architecture {
    /// The row for a file; the name that has none, where there is none.
    pub fn of(header: &GgufHeader) -> Result<&'static Self, String> {
        let name = header
            .str("general.architecture")
            .ok_or_else(|| "'general.architecture' is missing".to_owned())?;
        let row = ARCHITECTURES.iter().find(|row| row.name == name && row.when.fits(name, header));
        row.ok_or_else(|| {
            format!(
                "GGUF files of architecture '{name}' are not supported ({} are); use the model's safetensors \
                 folder",
                gguf_architecture_names().join(", ")
            )
        })
    }
}

impl When {
    fn fits(self, name: &str, header: &GgufHeader) -> bool {
        let whole = |key: &str| match header.value(&format!("{name}.{key}")) {
            Some(GgufValue::Unsigned(number)) => Some(*number),
            Some(GgufValue::Signed(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        match self {
            Self::Always => true,
            Self::NotZero(key) => whole(key).is_some_and(|number| number != 0),
            Self::Is(key, value) => whole(key) == Some(value),
        }
    }
}

/// The architectures' names, each once.
pub fn gguf_architecture_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = ARCHITECTURES.iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The architectures, each with published models of it.
pub fn gguf_architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    ARCHITECTURES.iter().map(|row| (row.name, row.about))
}
