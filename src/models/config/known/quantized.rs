//! What is known of the settings with which publishers have quantised their weights.
//!
//! Owns their tables, one for all and one for each form.

use super::HISTORY;
use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing, WarningUnless},
    KeyRule,
    Plain::{Bool, Empty, Text},
    rule,
};

/// For the object of a publisher's own quantisation settings.
pub(in crate::models::config) const PUBLISHED_QUANTIZATION: &[KeyRule] = &[
    rule("modules_to_not_convert", WEIGHTS_SHOW),
    rule("ignore", WEIGHTS_SHOW),
    rule("ignored_layers", WEIGHTS_SHOW),
    rule("activation_scheme", EXACT_ACTIVATIONS),
    rule("kv_cache_scheme", Nothing("keys and values are kept as they are computed, which is more exact")),
    rule("fmt", ErrorUnless(&[Text("float8_e4m3fn"), Text("e4m3")], "another 8-bit format")),
    rule("scale_fmt", WEIGHTS_SHOW),
    rule("dequantize", WEIGHTS_SHOW),
    rule("config_groups", WEIGHTS_SHOW),
    rule("producer", HISTORY),
    rule("zero_point", WEIGHTS_SHOW),
];

const WEIGHTS_SHOW: Effect = Nothing("the weights show what is quantised, and how");
const EXACT_ACTIVATIONS: Effect = Nothing("activations are not rounded, which is more exact");

const SPEED: Effect = Nothing("it chooses among ways to compute the same");

/// GPTQ's, as AutoGPTQ, optimum and GPTQModel write them.
pub(in crate::models::config) const GPTQ: &[KeyRule] = &[
    rule("desc_act", WEIGHTS_SHOW),
    rule("sym", WEIGHTS_SHOW),
    rule("static_groups", WEIGHTS_SHOW),
    rule("dynamic", WEIGHTS_SHOW),
    rule("lm_head", WEIGHTS_SHOW),
    rule("is_marlin_format", ErrorUnless(&[Bool(false)], "words in another order")),
    rule("pack_dtype", ErrorUnless(&[Text("int32")], "codes are packed into words of 32 bits")),
    rule("rotation", ErrorUnless(&[Empty], "weights that are turned")),
    rule("preprocessors", ErrorUnless(&[Empty], "weights that are changed before they are packed")),
    rule("activation", ErrorUnless(&[Empty], "activations that are rounded")),
    rule("adapter", ErrorUnless(&[Empty], "updates beside the weights")),
    rule("method", HISTORY),
    rule("meta", HISTORY),
    rule("true_sequential", HISTORY),
    rule("damp_percent", HISTORY),
    rule("damp_auto_increment", HISTORY),
    rule("act_group_aware", HISTORY),
    rule("mse", HISTORY),
    rule("dataset", HISTORY),
    rule("tokenizer", HISTORY),
    rule("batch_size", HISTORY),
    rule("model_seqlen", HISTORY),
    rule("pad_token_id", HISTORY),
    rule("model_name_or_path", HISTORY),
    rule("model_file_base_name", HISTORY),
    rule("block_name_to_quantize", HISTORY),
    rule("module_name_preceding_first_block", HISTORY),
    rule("modules_in_block_to_quantize", HISTORY),
    rule("cache_block_outputs", HISTORY),
    rule("use_cuda_fp16", SPEED),
    rule("use_exllama", SPEED),
    rule("disable_exllama", SPEED),
    rule("exllama_config", SPEED),
    rule("max_input_length", SPEED),
    rule("backend", SPEED),
    rule("offload_to_disk", SPEED),
];

/// compressed-tensors'.
pub(in crate::models::config) const COMPRESSED_TENSORS: &[KeyRule] = &[
    rule("transform_config", ErrorUnless(&[Empty], "activations would be turned before each matrix")),
    rule("moe_sparsity_config", ErrorUnless(&[Empty], "experts that are left out")),
    rule("global_compression_ratio", HISTORY),
    rule("quantization_status", HISTORY),
    rule("version", HISTORY),
];

const ROUNDED_ACTIVATIONS: Effect =
    WarningUnless(&[], "activations are not rounded here, so that answers are those of the weights alone");

/// One of its groups of matrices.
pub(in crate::models::config) const COMPRESSED_GROUP: &[KeyRule] = &[
    rule("targets", WEIGHTS_SHOW),
    rule("input_activations", ROUNDED_ACTIVATIONS),
    rule("output_activations", ROUNDED_ACTIVATIONS),
];

/// What is said of a group's weights.
pub(in crate::models::config) const COMPRESSED_WEIGHTS: &[KeyRule] = &[
    rule("type", WEIGHTS_SHOW),
    rule("symmetric", WEIGHTS_SHOW),
    rule("strategy", WEIGHTS_SHOW),
    rule("group_size", WEIGHTS_SHOW),
    rule("actorder", WEIGHTS_SHOW),
    rule("scale_dtype", WEIGHTS_SHOW),
    rule("zp_dtype", WEIGHTS_SHOW),
    rule("dynamic", ErrorUnless(&[Bool(false)], "weights have their scales in the file")),
    rule("observer", HISTORY),
    rule("observer_kwargs", HISTORY),
];
