//! The metadata keys of GGUF files that say nothing about the layers, and what is known of them.
//!
//! Owns the tables: of keys under the architecture's name, without it, and of all others. Keys about layers
//! are asked for by the parent module.

use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing, ReadBy, WarningUnless},
    KeyRule,
    Plain::{Bool, Empty, Number, Text},
    rule,
};

const EXPERTS: Effect = ErrorUnless(&[Number(0.0)], "mixtures of experts are not supported");
const MULTIPLIER: Effect =
    ErrorUnless(&[Number(0.0), Number(1.0)], "it multiplies what the layers compute, which is not supported");
const EMBEDDING_MODEL: Effect = Nothing("it is for models that embed texts");

const SHAPES: Effect = ErrorUnless(&[Number(0.0)], "layers have another shape then, which is not supported");

/// Of architectures whose experts' scores are each a sigmoid.
pub(super) const SIGMOID: KeyRule = rule(
    "expert_gating_func",
    ErrorUnless(&[Number(0.0), Number(2.0)], "experts' scores are sigmoids in this architecture"),
);
/// Of architectures whose experts' scores are a softmax.
pub(super) const SOFTMAX: KeyRule = rule(
    "expert_gating_func",
    ErrorUnless(&[Number(0.0), Number(1.0)], "experts' scores are a softmax in this architecture"),
);
/// Of architectures that rotate nothing where this is false.
pub(super) const FINETUNED: KeyRule =
    rule("rope.scaling.finetuned", ErrorUnless(&[Bool(true)], "layers without positions are not supported"));
/// Of architectures whose weights are stored otherwise where positions have sections.
pub(super) const NO_SECTIONS: KeyRule =
    rule("rope.dimension_sections", ErrorUnless(&[Empty], "models with pictures are not supported"));

/// Keys under the architecture's name.
pub(super) const ARCHITECTURE: &[KeyRule] = &[
    rule("vocab_size", Nothing("the embedding's rows are counted")),
    rule("tensor_data_layout", Nothing("the converter has put the tensors into one order")),
    rule(
        "attention.sliding_window",
        WarningUnless(&[Number(0.0)], "all layers see everything, as in llama.cpp"),
    ),
    rule("attention.causal", ErrorUnless(&[Bool(true)], "each token sees only those before it")),
    rule("attention.scale", ErrorUnless(&[Number(0.0)], "it scales the attention, which is not supported")),
    rule("attention.max_alibi_bias", ErrorUnless(&[Number(0.0)], "positions as biases are not supported")),
    rule("attention.clamp_kqv", ErrorUnless(&[Number(0.0)], "limits within the attention are not supported")),
    rule(
        "attention.layer_norm_epsilon",
        ErrorUnless(&[Number(0.0)], "another kind of norm is not supported"),
    ),
    rule("use_parallel_residual", ErrorUnless(&[Bool(false)], "layers side by side are not supported")),
    rule("embedding_scale", MULTIPLIER),
    rule("residual_scale", MULTIPLIER),
    rule("logit_scale", MULTIPLIER),
    rule("expert_count", EXPERTS),
    rule("expert_used_count", EXPERTS),
    rule("expert_shared_count", EXPERTS),
    rule("expert_feed_forward_length", EXPERTS),
    rule("expert_shared_feed_forward_length", EXPERTS),
    rule("leading_dense_block_count", EXPERTS),
    rule(
        "expert_group_count",
        ErrorUnless(&[Number(0.0), Number(1.0)], "experts in groups are not supported"),
    ),
    rule(
        "expert_group_used_count",
        ErrorUnless(&[Number(0.0), Number(1.0)], "experts in groups are not supported"),
    ),
    rule("expert_weights_scale", MULTIPLIER),
    rule("expert_weights_norm", Nothing("the architecture says whether weights are made to add up to 1")),
    SOFTMAX,
    rule("attention.key_length_mla", SHAPES),
    rule("attention.value_length_mla", SHAPES),
    rule("attention.key_length_swa", SHAPES),
    rule("attention.value_length_swa", SHAPES),
    rule("attention.kv_lora_rank", SHAPES),
    rule("attention.q_lora_rank", SHAPES),
    rule("attention.shared_kv_layers", SHAPES),
    rule("attention.sliding_window_pattern", Nothing("it counts with a window only")),
    rule(
        "attention.temperature_scale",
        ErrorUnless(&[Number(0.0)], "queries that grow with their position are not supported"),
    ),
    rule("shortconv.l_cache", SHAPES),
    rule("rope.dimension_count_swa", SHAPES),
    rule("pooling_type", EMBEDDING_MODEL),
    rule("classifier.output_labels", EMBEDDING_MODEL),
    rule(
        "nextn_predict_layers",
        ErrorUnless(&[Number(0.0)], "layers that guess several tokens are not known here"),
    ),
    rule("rope.scaling.type", ErrorUnless(&[Text("none")], "waves of another length are not supported")),
    rule("rope.scaling.factor", SCALING),
    rule("rope.scale_linear", SCALING),
    rule("rope.scaling.attn_factor", ErrorUnless(&[Number(1.0)], "it scales queries and keys")),
    rule("rope.scaling.finetuned", Nothing("it tells how the model was trained")),
    rule("rope.scaling.original_context_length", YARN_ONLY),
    rule("rope.scaling.yarn_beta_fast", YARN_ONLY),
    rule("rope.scaling.yarn_beta_slow", YARN_ONLY),
    rule("rope.scaling.yarn_ext_factor", ErrorUnless(&[Number(1.0)], "it mixes frequencies in another way")),
    rule(
        "rope.scaling.yarn_attn_factor",
        ErrorUnless(&[Number(1.0)], "it scales queries and keys in another way"),
    ),
    rule("rope.scaling.yarn_log_multiplier", ErrorUnless(&[Number(0.0)], "it scales the attention")),
    rule("rope.scaling.alpha", ErrorUnless(&[Number(0.0), Number(1.0)], "it changes the rotary base")),
    rule("rope.dimension_sections", Nothing("a text's positions are the same in all sections")),
];

const SCALING: Effect = ErrorUnless(&[Number(0.0), Number(1.0)], "waves of another length are not supported");
const YARN_ONLY: Effect = Nothing("it counts with yarn only");
const TOKENIZER: Effect = ReadBy("text::gguf_tokenizer");
const ENDS: Effect = ReadBy("text::ends");
const TEMPLATE: Effect = ReadBy("text::template");
const INFILLING: Effect = Nothing("infilling of code is not offered");
const DEFAULTS: Effect = ReadBy("models::generation");

/// All other keys.
pub(super) const GENERAL: &[KeyRule] = &[
    rule("general.architecture", ReadBy("models::config_gguf")),
    rule("general.alignment", ReadBy("models::gguf")),
    rule("general.type", ErrorUnless(&[Text("model")], "the file holds something else than a model")),
    rule("general.sampling.*", DEFAULTS),
    rule("general.*", Nothing("it tells what the model is and where it came from")),
    rule("split.*", ReadBy("models::gguf")),
    rule("quantize.imatrix.*", Nothing("it tells how the file was made")),
    rule("imatrix.*", Nothing("it tells how the file was made")),
    rule("mradermacher.*", Nothing("it tells how the file was made")),
    rule("tokenizer.ggml.model", TOKENIZER),
    rule("tokenizer.ggml.pre", TOKENIZER),
    rule("tokenizer.ggml.tokens", TOKENIZER),
    rule("tokenizer.ggml.token_type", TOKENIZER),
    rule("tokenizer.ggml.scores", TOKENIZER),
    rule("tokenizer.ggml.merges", TOKENIZER),
    rule("tokenizer.ggml.bos_token_id", TOKENIZER),
    rule("tokenizer.ggml.unknown_token_id", TOKENIZER),
    rule("tokenizer.ggml.add_bos_token", TOKENIZER),
    rule("tokenizer.ggml.add_eos_token", TOKENIZER),
    rule("tokenizer.ggml.add_space_prefix", TOKENIZER),
    rule("tokenizer.ggml.eos_token_id", ENDS),
    rule("tokenizer.ggml.eot_token_id", ENDS),
    rule("tokenizer.ggml.eom_token_id", ENDS),
    rule("tokenizer.ggml.eos_token_ids", ENDS),
    rule("tokenizer.ggml.seperator_token_id", TEMPLATE),
    rule("tokenizer.ggml.padding_token_id", TEMPLATE),
    rule("tokenizer.ggml.cls_token_id", TEMPLATE),
    rule("tokenizer.ggml.mask_token_id", TEMPLATE),
    rule("tokenizer.chat_template", TEMPLATE),
    rule("tokenizer.chat_template.tool_use", TEMPLATE),
    rule("tokenizer.chat_template.*", Nothing("a template that nobody has asked for by its name")),
    rule("tokenizer.chat_templates", Nothing("it lists the templates")),
    rule("tokenizer.ggml.add_sep_token", WarningUnless(&[Bool(false)], "it puts a token behind raw prompts")),
    rule(
        "tokenizer.ggml.remove_extra_whitespaces",
        WarningUnless(&[Bool(false)], "it makes one of several spaces"),
    ),
    rule(
        "tokenizer.ggml.precompiled_charsmap",
        WarningUnless(&[Empty], "it replaces characters of a prompt"),
    ),
    rule("tokenizer.ggml.suppress_tokens", WarningUnless(&[Empty], "tokens that are never to be answered")),
    rule("tokenizer.ggml.token_type_count", EMBEDDING_MODEL),
    rule("tokenizer.ggml.fim_*", INFILLING),
    rule("tokenizer.ggml.prefix_token_id", INFILLING),
    rule("tokenizer.ggml.suffix_token_id", INFILLING),
    rule("tokenizer.ggml.middle_token_id", INFILLING),
    rule("tokenizer.huggingface.json", Nothing("'tokenizer.ggml' comes before it, as in llama.cpp")),
];
