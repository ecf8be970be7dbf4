//! What is known of keys of Kimi Linear.
//!
//! Owns its tables; what families have in common with others is the parent's.

use super::{EVERY_LAYER, MTP, ONE_LATENT};
use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing},
    KeyRule,
    Plain::{Bool, Number, Text},
    rule,
};

const NO_ROTATION: Effect = Nothing("positions are not rotated");

pub(in crate::models::config) const KIMI_LINEAR: &[KeyRule] = &[
    rule("mla_use_nope", ErrorUnless(&[Bool(true)], "positions are not rotated")),
    rule("rope_theta", NO_ROTATION),
    rule("rope_scaling", NO_ROTATION),
    rule("rope_parameters", NO_ROTATION),
    rule("num_key_value_heads", ONE_LATENT),
    rule("head_dim", ONE_LATENT),
    rule("max_position_embeddings", Nothing("'model_max_length' comes before it")),
    rule("moe_router_activation_func", ErrorUnless(&[Text("sigmoid")], "experts are scored by sigmoid")),
    rule("moe_layer_freq", EVERY_LAYER),
    rule(
        "use_grouped_topk",
        ErrorUnless(&[Bool(true)], "experts are chosen by groups, or there is one group"),
    ),
    rule("num_nextn_predict_layers", MTP),
    rule("linear_head_dim", Nothing("'linear_attn_config' comes before it")),
    rule("linear_num_heads", Nothing("'linear_attn_config' comes before it")),
    rule("linear_conv_kernel_dim", Nothing("'linear_attn_config' comes before it")),
];

/// For the object of the gated delta nets.
pub(in crate::models::config) const KIMI_DELTA: &[KeyRule] = &[
    rule("gate_lower_bound", ErrorUnless(&[], "decays have no bound here")),
    rule("use_full_rank_gate", ErrorUnless(&[Bool(false)], "gates are made through fewer numbers")),
    rule("num_kv_heads", ErrorUnless(&[], "as many heads have keys as have values")),
    rule("expand_v", ErrorUnless(&[Number(1.0)], "values are as wide as keys")),
];
