//! The keys of `adapter_config.json` that are not read, and what is known of them.
//!
//! Owns the tables, one for each program that writes such files.

use crate::models::known_keys::{
    Effect::{self, ErrorUnless, Nothing},
    KeyRule,
    Plain::{Bool, Empty, Text},
    rule,
};

const TRAINING: Effect = Nothing("it says how the adapter was trained");
const PATHS: Effect = Nothing("it says where files were; --model and --adapter do");
const ABOUT: Effect = Nothing("it tells how the file was made");
const START: Effect = Nothing("it counts with 'init_lora_weights' only");

/// Of mlx_lm.lora.
pub(super) const MLX_LM: &[KeyRule] = &[
    rule("model", PATHS),
    rule("data", PATHS),
    rule("adapter_path", PATHS),
    rule("adapter_file", PATHS),
    rule("resume_adapter_file", PATHS),
    rule("config", PATHS),
    rule("hf_dataset", PATHS),
    rule("train", TRAINING),
    rule("test", TRAINING),
    rule("optimizer", TRAINING),
    rule("optimizer_config", TRAINING),
    rule("seed", TRAINING),
    rule("batch_size", TRAINING),
    rule("iters", TRAINING),
    rule("val_batches", TRAINING),
    rule("learning_rate", TRAINING),
    rule("steps_per_report", TRAINING),
    rule("steps_per_eval", TRAINING),
    rule("save_every", TRAINING),
    rule("test_batches", TRAINING),
    rule("max_seq_length", TRAINING),
    rule("grad_checkpoint", TRAINING),
    rule("grad_accumulation_steps", TRAINING),
    rule("gradient_accumulation_steps", TRAINING),
    rule("clear_cache_threshold", TRAINING),
    rule("lr_schedule", TRAINING),
    rule("mask_prompt", TRAINING),
    rule("report_to", TRAINING),
    rule("wandb", TRAINING),
    rule("project_name", TRAINING),
    rule("trust_remote_code", Nothing("no code is read")),
    rule("prompt_feature", TRAINING),
    rule("text_feature", TRAINING),
    rule("completion_feature", TRAINING),
    rule("chat_feature", TRAINING),
];

/// Of its `lora_parameters`.
pub(super) const MLX_LM_PARAMETERS: &[KeyRule] = &[
    rule("dropout", TRAINING),
    // mlx-lm refuses a file without `scale`, and acts on that alone.
    rule("alpha", Nothing("'scale' counts")),
];

/// Of peft.
pub(super) const PEFT: &[KeyRule] = &[
    rule("base_model_name_or_path", PATHS),
    rule("base_model_class", ABOUT),
    rule("parent_library", ABOUT),
    rule("revision", PATHS),
    rule("auto_mapping", ABOUT),
    rule("peft_version", ABOUT),
    rule("unsloth_fixed", ABOUT),
    rule("inference_mode", Nothing("nothing is trained")),
    rule("lora_dropout", TRAINING),
    rule("exclude_modules", Nothing("the weights tell what was trained")),
    rule("layers_pattern", Nothing("layers are found by their numbers")),
    rule("fan_in_fan_out", Nothing("it counts with layers that no served family has")),
    rule("runtime_config", Nothing("it chooses among ways to compute the same")),
    rule("megatron_core", Nothing("it counts with 'megatron_config' only")),
    rule("qalora_group_size", Nothing("it counts with 'use_qalora' only")),
    rule("loftq_config", START),
    rule("eva_config", START),
    rule("corda_config", START),
    rule("lora_ga_config", START),
    rule(
        "task_type",
        ErrorUnless(&[Text("CAUSAL_LM"), Empty], "such a model has another head, and does not continue text"),
    ),
    rule(
        "init_lora_weights",
        ErrorUnless(
            &[Bool(true), Bool(false), Text("gaussian"), Text("orthogonal"), Text("eva")],
            "the base's weights were changed before the training; save the adapter with peft's \
             `path_initial_model_for_weight_conversion`",
        ),
    ),
    rule("lora_bias", ErrorUnless(&[Bool(false)], "the update has biases of its own")),
    rule("use_qalora", ErrorUnless(&[Bool(false)], "inputs are averaged in groups before the update")),
    rule("use_bdlora", ErrorUnless(&[Bool(false)], "the update's matrices are made of blocks")),
    rule("trainable_token_indices", ErrorUnless(&[Empty], "rows of the embedding table are replaced")),
    rule("alora_invocation_tokens", ErrorUnless(&[Empty], "the adapter begins where these tokens are")),
    rule("layer_replication", ErrorUnless(&[Empty], "the model has some of its layers several times")),
    rule(
        "ensure_weight_tying",
        ErrorUnless(&[Bool(false)], "embedding table and head share what was trained"),
    ),
    rule("megatron_config", ErrorUnless(&[], "it is for models of another library")),
    rule("velora_config", ErrorUnless(&[], "this kind of update is not known")),
    rule("monteclora_config", ErrorUnless(&[], "this kind of update is not known")),
    rule("arrow_config", ErrorUnless(&[], "several adapters are chosen among for each token")),
    rule("kasa_config", ErrorUnless(&[], "the update has factors of its own")),
];
