//! What is known of keys of families with Mamba-2 layers.
//!
//! Owns their tables; what families have in common with others is the parent's.

use super::{MTP, OUTPUTS, SILU, TRAINING};
use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing, WarningUnless},
    KeyRule,
    Plain::{Bool, Number, Text},
    rule,
};

const CHUNKS: Effect = Nothing("it says how many tokens are computed together in computing the same");
const NO_ROTATION: Effect = Nothing("positions are not rotated");
const STATES_IN_FLOAT32: Effect = WarningUnless(&[Text("float32")], "states are kept as float32");

pub(in crate::models::config) const GRANITE_HYBRID: &[KeyRule] = &[
    rule("mamba_chunk_size", CHUNKS),
    rule("mamba_expand", Nothing("'mamba_d_head' says it too")),
    rule("mamba_*", Nothing("read where a layer is a Mamba-2 layer")),
    rule("time_step_limit", Nothing("read where a layer is a Mamba-2 layer")),
    rule("rope_theta", NO_ROTATION),
    rule("rope_scaling", NO_ROTATION),
    rule("rope_parameters", NO_ROTATION),
    rule("head_dim", Nothing("read where a layer has attention")),
    rule("normalization_function", ErrorUnless(&[Text("rmsnorm")], "norms divide by root mean squares")),
    rule("init_method", TRAINING),
    rule("intermediate_size", Nothing("'shared_intermediate_size' is the MLPs' where there are no experts")),
    rule("num_experts_per_tok", Nothing("read where there are experts")),
    rule("mlp_bias", ErrorUnless(&[Bool(false)], "projections have no biases")),
    rule("logits_to_keep", OUTPUTS),
    rule("num_logits_to_keep", OUTPUTS),
];

const NO_BIASES: Effect =
    ErrorUnless(&[Bool(false)], "projections have no biases, which factors would not reach");

pub(in crate::models::config) const FALCON_H1: &[KeyRule] = &[
    rule("mamba_chunk_size", CHUNKS),
    rule("mamba_expand", Nothing("'mamba_d_ssm' comes before it, or 'mamba_d_head'")),
    rule("mamba_use_mlp", ErrorUnless(&[Bool(true)], "every layer has an MLP")),
    rule("mamba_norm_before_gate", Nothing("read where there is a norm")),
    rule("mamba_proj_bias", NO_BIASES),
    rule("projectors_bias", NO_BIASES),
    rule("attention_bias", NO_BIASES),
    rule("mlp_bias", NO_BIASES),
    rule("attn_layer_indices", ErrorUnless(&[], "every layer has attention")),
    rule("layer_types", Nothing("every layer has attention and a state")),
    rule("layers_block_type", Nothing("every layer has attention and a state")),
    rule("mlp_expansion_factor", Nothing("'intermediate_size' says it too")),
    rule("num_logits_to_keep", OUTPUTS),
    rule("time_step_floor", TRAINING),
    rule("time_step_min", TRAINING),
    rule("time_step_max", TRAINING),
];

pub(in crate::models::config) const NEMOTRON_H: &[KeyRule] = &[
    rule("time_step_min", TRAINING),
    rule("time_step_max", TRAINING),
    rule("time_step_floor", TRAINING),
    rule("time_step_rank", Nothing("each head has a step of its own")),
    rule("expand", Nothing("the heads' number and width say it too")),
    rule("chunk_size", CHUNKS),
    rule("mlp_hidden_act", ErrorUnless(&[Text("relu2")], "MLPs square what is positive")),
    rule("mamba_hidden_act", SILU),
    rule("mamba_proj_bias", ErrorUnless(&[Bool(false)], "'use_bias' says whether projections have biases")),
    rule("mlp_bias", ErrorUnless(&[Bool(false)], "projections of MLPs have no biases")),
    rule("use_mamba_kernels", Nothing("it chooses among ways to compute the same")),
    rule("mamba_ssm_cache_dtype", STATES_IN_FLOAT32),
    rule(
        "attention_head_dim",
        ErrorUnless(&[Number(128.0)], "'head_dim' is what the publisher's code reads"),
    ),
    rule("residual_in_fp32", Nothing("sums are at least as exact")),
    rule("rescale_prenorm_residual", TRAINING),
    rule("num_logits_to_keep", OUTPUTS),
    rule("sliding_window", ErrorUnless(&[], "every layer of attention sees everything")),
    rule("moe_shared_expert_overlap", Nothing("it says when the same is computed")),
    rule("moe_*", Nothing("read where a layer has experts")),
    rule("n_group", Nothing("read where a layer has experts")),
    rule("topk_group", Nothing("read where a layer has experts")),
    rule("n_routed_experts", Nothing("read where a layer has experts")),
    rule("n_shared_experts", Nothing("read where a layer has experts")),
    rule("num_experts_per_tok", Nothing("read where a layer has experts")),
    rule("norm_topk_prob", Nothing("read where a layer has experts")),
    rule("routed_scaling_factor", Nothing("read where a layer has experts")),
    rule("intermediate_size", Nothing("read where a layer has an MLP")),
    rule("rope_theta", NO_ROTATION),
    rule("rope_scaling", NO_ROTATION),
    rule("rope_parameters", NO_ROTATION),
    rule("partial_rotary_factor", NO_ROTATION),
    rule("rms_norm_eps", Nothing("'layer_norm_epsilon' is this model type's")),
    rule("num_nextn_predict_layers", MTP),
    rule("mtp_*", MTP),
];

pub(in crate::models::config) const MAMBA2: &[KeyRule] = &[
    rule("intermediate_size", Nothing("the heads' number and width say it too")),
    rule("time_step_min", TRAINING),
    rule("time_step_max", TRAINING),
    rule("time_step_floor", TRAINING),
    rule("time_step_init_scheme", TRAINING),
    rule("time_step_scale", TRAINING),
    rule("time_step_rank", Nothing("each head has a step of its own")),
    rule("expand", Nothing("the heads' number and width say it too")),
    rule("chunk_size", CHUNKS),
    rule("ssm_state_size", Nothing("'state_size' is what the publisher's code reads")),
    rule("residual_in_fp32", Nothing("sums are at least as exact")),
    rule("rescale_prenorm_residual", TRAINING),
    rule("rms_norm", ErrorUnless(&[Bool(true)], "what states give is normed")),
    rule("norm_before_gate", Nothing("the publisher's code gates first, whatever it says")),
];
