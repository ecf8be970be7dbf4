//! What the parts of a block are called, family by family.
//!
//! Owns the spelling, as constants, below `model.layers.{index}.`. Which parts a block has is the layer
//! description's business, but for norms: a block has those that have a name here.

/// Names of a block's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNames {
    /// Before the mixer.
    pub mixer_norm: Option<&'static str>,
    /// After the mixer, before its result is added.
    pub mixer_post_norm: Option<&'static str>,
    /// Before the MLP.
    pub mlp_norm: Option<&'static str>,
    /// After the MLP, before its result is added.
    pub mlp_post_norm: Option<&'static str>,
    pub attention: AttentionNames,
    pub latent: LatentNames,
    pub delta: DeltaNames,
    /// What all parts of a Mamba-2 layer are below.
    pub mamba: &'static str,
    pub mlp: MlpNames,
    pub moe: MoeNames,
    /// Of an MLP and experts side by side: after the MLP, before the experts, after them.
    pub both_norms: [&'static str; 3],
}

impl BlockNames {
    /// llama's, which most families follow.
    pub const PLAIN: Self = Self {
        mixer_norm: Some("input_layernorm"),
        mixer_post_norm: None,
        mlp_norm: Some("post_attention_layernorm"),
        mlp_post_norm: None,
        attention: AttentionNames::PLAIN,
        latent: LatentNames::DEEPSEEK,
        delta: DeltaNames::QWEN,
        mamba: "mamba",
        mlp: MlpNames::PLAIN,
        moe: MoeNames::QWEN,
        both_norms: [
            "post_feedforward_layernorm_1",
            "pre_feedforward_layernorm_2",
            "post_feedforward_layernorm_2",
        ],
    };

    /// Gemma's, where `post_attention_layernorm` is what it says.
    pub const GEMMA: Self = Self {
        mixer_post_norm: Some("post_attention_layernorm"),
        mlp_norm: Some("pre_feedforward_layernorm"),
        mlp_post_norm: Some("post_feedforward_layernorm"),
        ..Self::PLAIN
    };

    /// Gemma 4's.
    pub const GEMMA4: Self = Self {
        moe: MoeNames {
            router: "router.proj",
            experts: ExpertNames {
                stacked: [
                    "experts.switch_glu.gate_proj",
                    "experts.switch_glu.up_proj",
                    "experts.switch_glu.down_proj",
                ],
                single: None,
                fused: Some(FusedExperts {
                    gate_up: "experts.gate_up_proj",
                    down: "experts.down_proj",
                    rows: ExpertRows::Halves,
                    is_transposed: false,
                }),
            },
            ..MoeNames::QWEN
        },
        ..Self::GEMMA
    };

    /// Phi-3's: llama's with fused matrices.
    pub const PHI3: Self = Self {
        attention: AttentionNames { fused: Some("self_attn.qkv_proj"), ..AttentionNames::PLAIN },
        mlp: MlpNames { gate_up: Some("mlp.gate_up_proj"), ..MlpNames::PLAIN },
        ..Self::PLAIN
    };

    /// GLM-4's.
    pub const GLM4: Self = Self {
        mixer_post_norm: Some("post_self_attn_layernorm"),
        mlp_post_norm: Some("post_mlp_layernorm"),
        mlp: MlpNames { gate_up: Some("mlp.gate_up_proj"), ..MlpNames::PLAIN },
        ..Self::PLAIN
    };

    /// Those of blocks with one half, whichever it is.
    pub const HALVES: Self = Self {
        mixer_norm: Some("norm"),
        mlp_norm: Some("norm"),
        attention: AttentionNames {
            query: "mixer.q_proj",
            key: "mixer.k_proj",
            value: "mixer.v_proj",
            output: "mixer.o_proj",
            ..AttentionNames::PLAIN
        },
        mamba: "mixer",
        mlp: MlpNames { up: "mixer.up_proj", down: "mixer.down_proj", ..MlpNames::PLAIN },
        moe: MoeNames {
            router: "mixer.gate",
            selection_bias: "mixer.gate.e_score_correction_bias",
            latent: ["mixer.fc1_latent_proj", "mixer.fc2_latent_proj"],
            experts: ExpertNames {
                stacked: ["mixer.switch_mlp.gate_proj", "mixer.switch_mlp.fc1", "mixer.switch_mlp.fc2"],
                single: Some(SingleExperts {
                    list: "mixer.experts",
                    names: ["gate_proj", "up_proj", "down_proj"],
                }),
                fused: None,
            },
            shared: MlpNames {
                up: "mixer.shared_experts.up_proj",
                down: "mixer.shared_experts.down_proj",
                ..MlpNames::PLAIN
            },
            ..MoeNames::QWEN
        },
        ..Self::PLAIN
    };

    /// LFM2's.
    pub const LFM2: Self = Self {
        mixer_norm: Some("operator_norm"),
        mlp_norm: Some("ffn_norm"),
        attention: AttentionNames {
            output: "self_attn.out_proj",
            query_norm: "self_attn.q_layernorm",
            key_norm: "self_attn.k_layernorm",
            ..AttentionNames::PLAIN
        },
        mlp: MlpNames {
            gate: "feed_forward.gate_proj",
            up: "feed_forward.up_proj",
            down: "feed_forward.down_proj",
            ..MlpNames::PLAIN
        },
        moe: MoeNames {
            router: "feed_forward.gate",
            selection_bias: "feed_forward.expert_bias",
            experts: ExpertNames {
                stacked: [
                    "feed_forward.switch_mlp.gate_proj",
                    "feed_forward.switch_mlp.up_proj",
                    "feed_forward.switch_mlp.down_proj",
                ],
                single: Some(SingleExperts { list: "feed_forward.experts", names: ["w1", "w3", "w2"] }),
                fused: Some(FusedExperts {
                    gate_up: "feed_forward.experts.gate_up_proj",
                    down: "feed_forward.experts.down_proj",
                    rows: ExpertRows::Halves,
                    is_transposed: false,
                }),
            },
            ..MoeNames::QWEN
        },
        ..Self::PLAIN
    };
}

/// Names of attention's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionNames {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    pub output: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    /// A score of each head, with all that follows `.weight` in other names.
    pub sinks: &'static str,
    /// One matrix that holds the outputs of queries, keys and values, where files have it.
    pub fused: Option<&'static str>,
}

impl AttentionNames {
    pub const PLAIN: Self = Self {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        sinks: "self_attn.sinks",
        fused: None,
    };
}

/// Names of the parts of latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentNames {
    /// Where queries are made at once.
    pub query: &'static str,
    /// Where they are made through fewer numbers.
    pub query_down: &'static str,
    pub query_norm: &'static str,
    pub query_up: &'static str,
    /// Makes latents and what of keys is rotated.
    pub latent: &'static str,
    pub latent_norm: &'static str,
    /// Of each head a matrix from queries to latents and one from latents to values, as MLX conversions have them.
    pub embed_query: &'static str,
    pub unembed_output: &'static str,
    /// Both in one, as publishers have them: the rows of each head from latents to keys, then to values.
    pub both: &'static str,
    pub output: &'static str,
}

impl LatentNames {
    pub const DEEPSEEK: Self = Self {
        query: "self_attn.q_proj",
        query_down: "self_attn.q_a_proj",
        query_norm: "self_attn.q_a_layernorm",
        query_up: "self_attn.q_b_proj",
        latent: "self_attn.kv_a_proj_with_mqa",
        latent_norm: "self_attn.kv_a_layernorm",
        embed_query: "self_attn.embed_q",
        unembed_output: "self_attn.unembed_out",
        both: "self_attn.kv_b_proj",
        output: "self_attn.o_proj",
    };
}

/// Names of the parts of a gated delta net.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaNames {
    /// Make queries, keys and values: one matrix for all, or one each.
    pub inputs: &'static [&'static str],
    /// The convolutions over what each of these makes.
    pub convs: &'static [&'static str],
    /// Make decays: one matrix, or one to fewer numbers and one from these; the same of output gates.
    pub decay: &'static [&'static str],
    pub output_gate: &'static [&'static str],
    pub write_strength: &'static str,
    /// Logarithms of the rates of decay, with all that follows `.weight` in other names; the next is added to what
    /// makes decays.
    pub log_rate: &'static str,
    pub decay_bias: &'static str,
    pub norm: &'static str,
    pub output: &'static str,
    /// Matrices that hold several of these, key head by key head: of `inputs` and output gates, of write strengths
    /// and decays.
    pub by_key_head: [&'static str; 2],
}

impl DeltaNames {
    pub const QWEN: Self = Self {
        inputs: &["linear_attn.in_proj_qkv"],
        convs: &["linear_attn.conv1d"],
        decay: &["linear_attn.in_proj_a"],
        output_gate: &["linear_attn.in_proj_z"],
        write_strength: "linear_attn.in_proj_b",
        log_rate: "linear_attn.A_log",
        decay_bias: "linear_attn.dt_bias",
        norm: "linear_attn.norm",
        output: "linear_attn.out_proj",
        by_key_head: ["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"],
    };

    pub const KIMI: Self = Self {
        inputs: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        convs: &["self_attn.q_conv1d", "self_attn.k_conv1d", "self_attn.v_conv1d"],
        decay: &["self_attn.f_a_proj", "self_attn.f_b_proj"],
        output_gate: &["self_attn.g_a_proj", "self_attn.g_b_proj"],
        write_strength: "self_attn.b_proj",
        log_rate: "self_attn.A_log",
        decay_bias: "self_attn.dt_bias",
        norm: "self_attn.o_norm",
        output: "self_attn.o_proj",
        ..Self::QWEN
    };
}

/// Names of an MLP's matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlpNames {
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// One matrix that holds the gate's outputs, then those of `up`, where files have it.
    pub gate_up: Option<&'static str>,
}

impl MlpNames {
    pub const PLAIN: Self =
        Self { gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj", gate_up: None };
}

/// Names of the parts of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeNames {
    pub router: &'static str,
    /// With all that follows `.weight` in other names.
    pub selection_bias: &'static str,
    pub per_expert_scale: &'static str,
    /// The factors of the router's own norm.
    pub router_norm: &'static str,
    /// To the width of what experts see, and back.
    pub latent: [&'static str; 2],
    pub experts: ExpertNames,
    pub shared: MlpNames,
    pub shared_gate: &'static str,
}

impl MoeNames {
    /// Qwen's.
    pub const QWEN: Self = Self {
        router: "mlp.gate",
        selection_bias: "mlp.gate.e_score_correction_bias",
        per_expert_scale: "router.per_expert_scale",
        router_norm: "router.scale",
        latent: ["mlp.fc1_latent_proj", "mlp.fc2_latent_proj"],
        experts: ExpertNames::QWEN,
        shared: MlpNames {
            gate: "mlp.shared_expert.gate_proj",
            up: "mlp.shared_expert.up_proj",
            down: "mlp.shared_expert.down_proj",
            gate_up: None,
        },
        shared_gate: "mlp.shared_expert_gate",
    };
}

/// Names of the experts' matrices in the forms in which files have them; the first is what the others are made
/// into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertNames {
    /// Gate, up and down of all experts, `(E, outputs, inputs)` each, as MLX stores them.
    pub stacked: [&'static str; 3],
    /// Each expert by itself.
    pub single: Option<SingleExperts>,
    /// Gate and up of all experts in one.
    pub fused: Option<FusedExperts>,
}

impl ExpertNames {
    pub const QWEN: Self = Self {
        stacked: ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.up_proj", "mlp.switch_mlp.down_proj"],
        single: Some(SingleExperts { list: "mlp.experts", names: ["gate_proj", "up_proj", "down_proj"] }),
        fused: Some(FusedExperts {
            gate_up: "mlp.experts.gate_up_proj",
            down: "mlp.experts.down_proj",
            rows: ExpertRows::Halves,
            is_transposed: false,
        }),
    };
}

/// `{list}.{index}.{name}` for each expert and matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SingleExperts {
    pub list: &'static str,
    /// Of gate, up and down.
    pub names: [&'static str; 3],
}

/// All experts in two arrays, `(E, 2 · intermediate, hidden)` and `(E, hidden, intermediate)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusedExperts {
    pub gate_up: &'static str,
    pub down: &'static str,
    pub rows: ExpertRows,
    /// Whether the last two axes of both are the other way round.
    pub is_transposed: bool,
}

/// Which outputs of a fused matrix are the gate's; the others are those of `up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertRows {
    /// The first half.
    Halves,
    /// The even ones.
    EveryOther,
}
