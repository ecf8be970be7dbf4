//! The keys of `config.json` that no reader asks for, and what is known of them.
//!
//! Owns the tables. The families' readers ask for what they read, which `fields` remembers; the first table
//! that knows a key that is left decides: a family's own before the one for all.

mod hybrids;
mod kimi_linear;
mod quantized;

pub(super) use self::{
    hybrids::{FALCON_H1, GRANITE_HYBRID, MAMBA2, NEMOTRON_H},
    kimi_linear::{KIMI_DELTA, KIMI_LINEAR},
    quantized::{COMPRESSED_GROUP, COMPRESSED_TENSORS, COMPRESSED_WEIGHTS, GPTQ, PUBLISHED_QUANTIZATION},
};
use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing, ReadBy, WarningUnless},
    KeyRule,
    Plain::{Bool, Empty, Number, Text},
    rule,
};

const TRAINING: Effect = Nothing("it counts in training only");
const HISTORY: Effect = Nothing("it tells how the file was made");
const OTHER_TASK: Effect = Nothing("it is for classifiers, or encoders and decoders in one");
const OUTPUTS: Effect = Nothing("it chooses what Python gets back");
const MTP: Effect = Nothing("layers that guess several tokens at once are not run; answers are the same");
const PICTURES: Effect = Nothing("it is for pictures and sound, and requests with these are refused");
const SAMPLING: Effect = Nothing("transformers 5 drops it too: generation_config.json has its place");
const EXPERTS: Effect =
    ErrorUnless(&[Number(0.0)], "mixtures of experts are not supported for this model type");
const MULTIPLIER: Effect =
    ErrorUnless(&[Number(1.0)], "it multiplies what the layers compute, which this model type does not");
const ANOTHER_ATTENTION: Effect =
    ErrorUnless(&[Bool(false), Empty], "it asks for another attention than this model type has");
const SILU: Effect =
    ErrorUnless(&[Text("silu"), Text("swish")], "this model type is computed with silu in its MLP");
const GELU_TANH: Effect = ErrorUnless(
    &[Text("gelu_pytorch_tanh"), Text("gelu_tanh"), Text("gelu_new")],
    "this model type is computed with the tanh form of gelu in its MLP",
);

/// For every model type.
pub(super) const COMMON: &[KeyRule] = &[
    rule("bos_token_id", ReadBy("the tokenizer's files say whether a prompt gets one")),
    rule("eos_token_id", ReadBy("text::ends")),
    rule("pad_token_id", Nothing("nothing is padded with tokens")),
    rule("sep_token_id", OTHER_TASK),
    rule("decoder_start_token_id", OTHER_TASK),
    rule("dtype", DTYPE),
    rule("torch_dtype", DTYPE),
    rule("architectures", HISTORY),
    rule("transformers_version", HISTORY),
    rule("transformers.js_config", HISTORY),
    rule("name_or_path", HISTORY),
    rule("unsloth_*", HISTORY),
    rule("_*", Nothing("a name that begins so is private to the program that wrote it")),
    rule("tokenizer_class", Nothing("the tokenizer's files decide")),
    rule("auto_map", WarningUnless(&[Empty], "the publisher's own Python code, which is not run")),
    rule("attn_implementation", Nothing("it chooses among ways to compute the same")),
    rule("cache_implementation", Nothing("it chooses among ways to compute the same")),
    rule("use_cache", Nothing("there is always a cache")),
    rule("chunk_size_feed_forward", Nothing("it saves memory in computing the same")),
    rule("pretraining_tp", Nothing("it cuts matrices in computing the same")),
    rule("quantization_config", Nothing("'quantization', which MLX writes, comes before it")),
    rule("initializer_range", TRAINING),
    rule("attention_dropout", TRAINING),
    rule("hidden_dropout", TRAINING),
    rule("hidden_dropout_prob", TRAINING),
    rule("attention_probs_dropout_prob", TRAINING),
    rule("resid_pdrop", TRAINING),
    rule("embd_pdrop", TRAINING),
    rule("attn_pdrop", TRAINING),
    rule("router_aux_loss_coef", TRAINING),
    rule("output_router_logits", OUTPUTS),
    rule("output_attentions", OUTPUTS),
    rule("output_hidden_states", OUTPUTS),
    rule("output_scores", OUTPUTS),
    rule("return_dict", OUTPUTS),
    rule("return_dict_in_generate", OUTPUTS),
    rule("torchscript", OUTPUTS),
    rule("use_bfloat16", OUTPUTS),
    rule("tf_legacy_loss", OUTPUTS),
    rule("is_decoder", Nothing("it always is one")),
    rule("is_encoder_decoder", ErrorUnless(&[Bool(false)], "models with an encoder are not supported")),
    rule("add_cross_attention", ErrorUnless(&[Bool(false)], "models with an encoder are not supported")),
    rule("cross_attention_hidden_size", ErrorUnless(&[], "models with an encoder are not supported")),
    rule("tie_encoder_decoder", OTHER_TASK),
    rule("id2label", OTHER_TASK),
    rule("label2id", OTHER_TASK),
    rule("num_labels", OTHER_TASK),
    rule("problem_type", OTHER_TASK),
    rule("classifier_dropout", OTHER_TASK),
    rule("finetuning_task", OTHER_TASK),
    rule("task_specific_params", OTHER_TASK),
    rule("pruned_heads", ErrorUnless(&[Empty], "heads that were taken out are not supported")),
    rule("prefix", SAMPLING),
    rule("do_sample", SAMPLING),
    rule("temperature", SAMPLING),
    rule("top_k", SAMPLING),
    rule("top_p", SAMPLING),
    rule("typical_p", SAMPLING),
    rule("max_length", SAMPLING),
    rule("min_length", SAMPLING),
    rule("max_new_tokens", SAMPLING),
    rule("num_beams", SAMPLING),
    rule("num_beam_groups", SAMPLING),
    rule("num_return_sequences", SAMPLING),
    rule("diversity_penalty", SAMPLING),
    rule("early_stopping", SAMPLING),
    rule("length_penalty", SAMPLING),
    rule("repetition_penalty", SAMPLING),
    rule("no_repeat_ngram_size", SAMPLING),
    rule("encoder_no_repeat_ngram_size", SAMPLING),
    rule("bad_words_ids", SAMPLING),
    rule("suppress_tokens", SAMPLING),
    rule("begin_suppress_tokens", SAMPLING),
    rule("forced_bos_token_id", SAMPLING),
    rule("forced_eos_token_id", SAMPLING),
    rule("remove_invalid_values", SAMPLING),
    rule("exponential_decay_length_penalty", SAMPLING),
    rule("hidden_act", SILU),
    rule("hidden_activation", SILU),
    rule("intermediate_size", Nothing("all layers have experts")),
    rule("num_experts", EXPERTS),
    rule("num_local_experts", EXPERTS),
    rule("n_routed_experts", EXPERTS),
    rule("embedding_multiplier", MULTIPLIER),
    rule("residual_multiplier", MULTIPLIER),
    rule("logits_scaling", MULTIPLIER),
    rule("logit_scale", MULTIPLIER),
    rule("attention_multiplier", ErrorUnless(&[], "it scales the attention, which this model type does not")),
    rule(
        "query_pre_attn_scalar",
        ErrorUnless(&[], "it scales the attention, which this model type does not"),
    ),
    rule("alibi", ANOTHER_ATTENTION),
    rule("clip_qkv", ANOTHER_ATTENTION),
    rule("use_qk_norm", ANOTHER_ATTENTION),
    rule("qk_norm", ANOTHER_ATTENTION),
    rule("qk_layernorm", ANOTHER_ATTENTION),
    rule("no_rope_layers", ANOTHER_ATTENTION),
    rule("use_bidirectional_attention", ANOTHER_ATTENTION),
    rule("rope_local_base_freq", ErrorUnless(&[], "this model type has one base for all layers")),
    rule("sliding_window_pattern", ErrorUnless(&[], "this model type has windows by 'layer_types' only")),
    rule("text_config", ErrorUnless(&[], "this model type has no configuration inside its own")),
    rule("rope_traditional", ErrorUnless(&[Bool(false)], "this model type rotates the halves of a head")),
];

const DTYPE: Effect = WarningUnless(
    &[Text("float32"), Text("float16"), Text("bfloat16")],
    "a precision that is not known; the device's usual one is taken unless --dtype says otherwise",
);

const WINDOW_UNUSED: Effect = Nothing("without 'layer_types' that slide all layers see everything");

pub(super) const LLAMA: &[KeyRule] = &[rule("sliding_window", WINDOW_UNUSED)];

const QWEN_WINDOW_UNUSED: Effect = Nothing("it counts with 'use_sliding_window' only");

pub(super) const QWEN2: &[KeyRule] = &[
    rule("sliding_window", QWEN_WINDOW_UNUSED),
    rule("max_window_layers", QWEN_WINDOW_UNUSED),
    rule("use_mrope", ErrorUnless(&[Bool(false)], "it is for pictures")),
    rule("attention_bias", Nothing("queries, keys and values always have biases, and weights are checked")),
];

pub(super) const QWEN3: &[KeyRule] =
    &[rule("sliding_window", QWEN_WINDOW_UNUSED), rule("max_window_layers", QWEN_WINDOW_UNUSED)];

pub(super) const GEMMA2: &[KeyRule] = &[
    rule("sliding_window_size", Nothing("'sliding_window' is what the publisher's code reads")),
    rule(
        "hidden_act",
        Nothing("'hidden_activation' is what the publisher's code reads, and gelu's tanh form is meant"),
    ),
    rule("hidden_activation", GELU_TANH),
    rule("tie_word_embeddings", Nothing("the weights show whether the head is one of them")),
    rule("sliding_window", Nothing("read where a layer has a window")),
];

pub(super) const OLMO: &[KeyRule] = &[rule("clip_qkv", ErrorUnless(&[], "it cuts queries, keys and values"))];

pub(super) const SEED_OSS: &[KeyRule] = &[rule("residual_dropout", TRAINING)];

pub(super) const ERNIE: &[KeyRule] = &[
    rule("moe_gate_act", ErrorUnless(&[Text("softmax")], "experts are scored by softmax")),
    rule("moe_capacity", TRAINING),
    rule("num_nextn_predict_layers", MTP),
    rule("moe_use_aux_free", Nothing("the weights show whether there are biases for the choice")),
    rule("fuse_rms_norm", Nothing("it chooses among ways to compute the same")),
];

pub(super) const GLM4_MOE: &[KeyRule] =
    &[rule("scoring_func", ErrorUnless(&[Text("sigmoid")], "experts are scored by sigmoid"))];

const ONE_LATENT: Effect = Nothing("all heads' keys and values are made of one latent");
const EVERY_LAYER: Effect = ErrorUnless(&[Number(1.0)], "every layer after the dense ones has experts");

pub(super) const DEEPSEEK_V3: &[KeyRule] = &[
    rule("scoring_func", ErrorUnless(&[Text("sigmoid")], "experts are scored by sigmoid")),
    rule("moe_layer_freq", EVERY_LAYER),
    rule("num_key_value_heads", ONE_LATENT),
    rule("head_dim", ONE_LATENT),
    rule("ep_size", Nothing("it spreads experts over machines in computing the same")),
    rule("aux_loss_alpha", TRAINING),
    rule("seq_aux", TRAINING),
    rule("num_mtp_layers", MTP),
];

pub(super) const DEEPSEEK_V2: &[KeyRule] = &[
    rule("scoring_func", ErrorUnless(&[Text("softmax")], "experts are scored by softmax")),
    rule("norm_topk_prob", ErrorUnless(&[Bool(false)], "experts' weights are not made to add up to 1")),
    rule("n_group", Nothing("read where 'topk_method' goes by groups")),
    rule("topk_group", Nothing("read where 'topk_method' goes by groups")),
    rule("mlp_bias", ErrorUnless(&[Bool(false)], "projections have no biases")),
    rule("moe_layer_freq", EVERY_LAYER),
    rule("num_key_value_heads", ONE_LATENT),
    rule("head_dim", ONE_LATENT),
    rule("ep_size", Nothing("it spreads experts over machines in computing the same")),
    rule("aux_loss_alpha", TRAINING),
    rule("seq_aux", TRAINING),
];

pub(super) const MISTRAL4: &[KeyRule] = &[
    rule("moe_layer_freq", EVERY_LAYER),
    rule("num_key_value_heads", ONE_LATENT),
    rule("head_dim", ONE_LATENT),
    rule("sliding_window", ErrorUnless(&[], "every layer sees everything")),
];

const INDEXER: Effect = WarningUnless(
    &[],
    "contexts longer than 'index_topk' need the indexer, which is not run: they are refused",
);

pub(super) const DEEPSEEK_V32: &[KeyRule] = &[
    rule("index_n_heads", INDEXER),
    rule("index_*", Nothing("'index_n_heads' says that there is an indexer")),
    rule("indexer_*", Nothing("'index_n_heads' says that there is an indexer")),
    rule("scoring_func", ErrorUnless(&[Text("sigmoid")], "experts are scored by sigmoid")),
    rule("moe_layer_freq", EVERY_LAYER),
    rule("num_key_value_heads", ONE_LATENT),
    rule("head_dim", ONE_LATENT),
    rule("ep_size", Nothing("it spreads experts over machines in computing the same")),
    rule("num_mtp_layers", MTP),
];

pub(super) const GRANITE: &[KeyRule] = &[];

pub(super) const GPT_OSS: &[KeyRule] = &[
    rule("experts_per_token", Nothing("'num_experts_per_tok' is what the publisher's code reads")),
    rule("initial_context_length", Nothing("'rope_scaling' says it too")),
    rule("swiglu_limit", ErrorUnless(&[Number(7.0)], "gates are cut at 7")),
];

pub(super) const SMOLLM3: &[KeyRule] = &[
    rule("no_rope_layer_interval", Nothing("read where there is no 'no_rope_layers'")),
    rule("sliding_window", QWEN_WINDOW_UNUSED),
    rule("max_window_layers", QWEN_WINDOW_UNUSED),
];

pub(super) const MINIMAX_M2: &[KeyRule] = &[
    rule("use_qk_norm", ErrorUnless(&[Bool(true)], "queries and keys are normed")),
    rule("use_routing_bias", ErrorUnless(&[Bool(true)], "experts are chosen with a bias")),
    rule(
        "shared_intermediate_size",
        ErrorUnless(&[Number(0.0)], "there are no experts that all tokens go through"),
    ),
    rule(
        "qk_norm_type",
        ErrorUnless(&[Text("per_layer")], "queries and keys are normed over their full width"),
    ),
    rule("scoring_func", ErrorUnless(&[Text("sigmoid")], "experts are scored by sigmoid")),
    rule("mtp_*", MTP),
    rule("use_sliding_window", ErrorUnless(&[Bool(false)], "this model type has no windows")),
    rule(
        "num_mtp_modules",
        Nothing("layers that guess several tokens at once are not run; answers are the same"),
    ),
    rule("use_mtp", Nothing("layers that guess several tokens at once are not run; answers are the same")),
];

pub(super) const EXAONE4: &[KeyRule] = &[
    rule("sliding_window_pattern", Nothing("read where there is no 'layer_types'")),
    rule("sliding_window", Nothing("read where a layer has a window")),
];

pub(super) const GEMMA4: &[KeyRule] = &[
    rule("hidden_activation", GELU_TANH),
    rule("hidden_act", GELU_TANH),
    rule("num_global_key_value_heads", Nothing("read where values are keys")),
    rule("use_double_wide_mlp", Nothing("read where layers share keys and values")),
    rule("num_experts", Nothing("read with 'enable_moe_block'")),
    rule("top_k_experts", Nothing("read with 'enable_moe_block'")),
    rule("moe_intermediate_size", Nothing("read with 'enable_moe_block'")),
    rule("vocab_size_per_layer_input", Nothing("read where layers have inputs of their own")),
    rule(
        "use_bidirectional_attention",
        ErrorUnless(&[Bool(false), Text("vision")], "texts are read forwards"),
    ),
    rule("tie_word_embeddings", Nothing("the weights show whether the head is one of them")),
    rule(
        "global_partial_rotary_factor",
        ErrorUnless(&[Number(0.25)], "'rope_parameters' says how many are rotated"),
    ),
];

pub(super) const PHI3: &[KeyRule] = &[
    rule("original_max_position_embeddings", Nothing("read with longrope")),
    rule("full_attn_mod", ErrorUnless(&[Number(1.0)], "layers attend alike")),
    rule("interpolate_factor", ErrorUnless(&[Number(1.0)], "positions are not stretched")),
    rule("lm_head_bias", ErrorUnless(&[Bool(false)], "projections have no biases")),
    rule("mlp_bias", ErrorUnless(&[Bool(false)], "projections have no biases")),
    rule("attention_bias", ErrorUnless(&[Bool(false)], "projections have no biases")),
];

pub(super) const COHERE2: &[KeyRule] = &[
    rule("rms_norm_eps", Nothing("'layer_norm_eps' is this model type's")),
    rule("layer_norm_bias", ErrorUnless(&[Bool(false)], "norms have no biases")),
    rule("use_qk_norm", ErrorUnless(&[Bool(false)], "queries and keys are not normed")),
    rule("sliding_window_pattern", Nothing("read where there is no 'layer_types'")),
    rule("use_parallel_block", ErrorUnless(&[Bool(true)], "the MLP sees what the attention sees")),
    rule("layer_switch", Nothing("'sliding_window_pattern' says it too")),
    rule("use_parallel_embedding", Nothing("it chooses among ways to compute the same")),
    rule("rotary_pct", ErrorUnless(&[Number(1.0)], "whole heads are rotated")),
    rule("position_embedding_type", ErrorUnless(&[Text("rope_gptj")], "neighbouring dimensions are rotated")),
    rule(
        "order_of_interleaved_layers",
        ErrorUnless(&[Text("local_attn_first")], "layers with a window come first"),
    ),
    rule("use_embedding_sharing", Nothing("the weights show whether the head is one of them")),
    rule("use_gated_activation", ErrorUnless(&[Bool(true)], "MLPs have gates")),
    rule("cache_implementation", Nothing("it chooses among ways to compute the same")),
];

pub(super) const MIXTRAL: &[KeyRule] = &[rule("router_jitter_noise", TRAINING)];

pub(super) const GEMMA3: &[KeyRule] = &[
    rule("rope_theta", Nothing("read where a layer sees everything")),
    rule("rope_local_base_freq", Nothing("read where a layer has a window")),
    rule("sliding_window", Nothing("read where a layer has a window")),
    rule("hidden_act", GELU_TANH),
    rule("hidden_activation", GELU_TANH),
    rule("tie_word_embeddings", Nothing("the weights show whether the head is one of them")),
];

pub(super) const QWEN3_5: &[KeyRule] = &[
    rule("full_attention_interval", Nothing("'layer_types' comes before it")),
    rule("attn_output_gate", ErrorUnless(&[Bool(true)], "attention without a gate is not supported")),
    rule("mamba_ssm_dtype", WarningUnless(&[Text("float32")], "states are kept as float32")),
    rule("mlp_only_layers", Nothing("every layer's MLP is dense")),
    rule("mtp_*", MTP),
    rule("use_sliding_window", ErrorUnless(&[Bool(false)], "this model type has no windows")),
];

pub(super) const LFM2: &[KeyRule] = &[
    rule("rms_norm_eps", Nothing("'norm_eps' is this model type's")),
    rule("block_norm_eps", Nothing("'norm_eps' is this model type's, in the publisher's code as well")),
    rule("block_mlp_init_scale", TRAINING),
    rule("block_out_init_scale", TRAINING),
    rule("block_use_xavier_init", TRAINING),
    rule("conv_use_xavier_init", TRAINING),
    rule("block_use_swiglu", ErrorUnless(&[Bool(true)], "MLPs without a gate are not supported")),
    rule("use_pos_enc", ErrorUnless(&[Bool(true)], "attention without positions is not supported")),
    rule("conv_dim", Nothing("convolutions have the hidden size, in the publisher's code as well")),
    rule("conv_dim_out", Nothing("convolutions have the hidden size, in the publisher's code as well")),
    rule("num_heads", Nothing("'num_attention_heads' is what the publisher's code reads")),
    rule("block_multiple_of", LFM2_ADJUSTING),
    rule("block_ffn_dim_multiplier", LFM2_ADJUSTING),
];

const LFM2_ADJUSTING: Effect = Nothing("it counts with 'block_auto_adjust_ff_dim' only");

/// For the outer object of models whose language model has a `text_config`.
pub(super) const WRAPPER: &[KeyRule] = &[
    rule("vision_*", PICTURES),
    rule("image_*", PICTURES),
    rule("video_*", PICTURES),
    rule("spatial_merge_size", PICTURES),
    rule("projector_*", PICTURES),
    rule("multimodal_projector_bias", PICTURES),
    rule("audio_*", PICTURES),
    rule("boi_*", PICTURES),
    rule("boa_*", PICTURES),
    rule("eoa_*", PICTURES),
    rule("eoi_*", PICTURES),
    rule("mm_tokens_per_image", PICTURES),
    rule("language_model_only", PICTURES),
    rule("tie_word_embeddings", Nothing("the language model's own setting comes before it")),
];

/// For the objects of rotary positions.
pub(super) const ROPE: &[KeyRule] = &[
    rule("max_position_embeddings", Nothing("the configuration's own is read")),
    rule("llama_4_scaling_beta", ErrorUnless(&[Number(0.0)], "queries would grow with their position")),
    rule("mrope_section", Nothing("a text's positions are the same in all sections")),
    rule("mrope_interleaved", Nothing("a text's positions are the same in all sections")),
];

/// For the object of quantisation settings.
pub(super) const QUANTIZATION: &[KeyRule] =
    &[rule("quantize_activations", ErrorUnless(&[Bool(false)], "activations are not quantised here"))];
