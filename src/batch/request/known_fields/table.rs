//! The tables: fields of OpenAI's API, vLLM, SGLang, llama.cpp, mlx-lm, LM Studio, TGI, Ollama,
//! transformers and others, with the values that change nothing.

use serde_json::Value;

use super::Refused;

const fn refused(name: &'static str, is_neutral: fn(&Value) -> bool, reason: &'static str) -> Refused {
    Refused { name, is_neutral, reason }
}

const NO_CHOICE: &str = "the best of several answers is not looked for; `n` returns them all";
const NO_BEAMS: &str = "answers are sampled token by token, there is no beam search; leave it out";
const USE_LOGPROBS: &str = "is not read; use `logprobs`, `prompt_logprobs` or `echo`";
const USE_PENALTY: &str = "is not read; `repetition_penalty`, `presence_penalty` and `frequency_penalty` are";
const USE_GUIDE: &str = "is not read; `response_format` and `structured_outputs` are";
const NO_SAMPLER: &str = "this sampler is not served; temperature, top_p, top_k and min_p are. Leave it out";
const NO_ADAPTER: &str =
    "is not read; one adapter answers the whole run, whose folder is --adapter's. Leave it out";
const USE_BIAS: &str = "is not read; `logit_bias` and `bad_words` are";
const USE_MINIMUM: &str = "is not read; use `min_tokens`";
const NO_CUT: &str = "prompts are never cut; shorten the prompt, or leave it out";
const NO_IDS: &str = "is not read; token ids are given in `prompt`, embeddings not at all";
const NO_MEDIA: &str = "only text is read and written";
const NO_TIME_LIMIT: &str = "an answer has no time limit; use `max_tokens`";
const NO_SEARCH: &str = "nothing is looked up; leave it out";
const ONE_TURN: &str =
    "is not read; an answer goes on with the last message where the request says `continue_final_message`";
const BESIDE: &str = "is not the template's; put it beside `chat_template_kwargs`";
const USE_MAX_TOKENS: &str = "is not read; use `max_tokens`";
const USE_STOP: &str = "is not read; use `stop` or `stop_token_ids`";
const USE_KWARGS: &str =
    "templates differ in its name; put what this model's reads into `chat_template_kwargs`";
const USE_MESSAGES: &str = "is read beside `turns` and `conversations` alone; put it into `messages`";
const USE_FIELDS: &str = "is not read; put its parameters into the request itself";
const OLD_TOOLS: &str = "the deprecated function-calling fields are not served; use `tools`";

/// Fields of a request that would change its answer.
pub(super) const REQUEST: &[Refused] = &[
    // How many answers, and what of them is returned.
    refused("best_of", is_one, NO_CHOICE),
    refused("num_return_sequences", is_one, "is not read; use `n`"),
    refused("use_beam_search", is_off, NO_BEAMS),
    refused("num_beams", is_one, NO_BEAMS),
    refused("beam_width", is_one, NO_BEAMS),
    refused("length_penalty", is_one, NO_BEAMS),
    refused("early_stopping", is_off, NO_BEAMS),
    refused("diversity_penalty", is_zero, NO_BEAMS),
    refused("stream", is_off, "answers are written whole, one line each; leave `stream` out"),
    refused("n_probs", is_zero, USE_LOGPROBS),
    refused("top_n_tokens", is_zero, USE_LOGPROBS),
    refused("return_logprob", is_off, USE_LOGPROBS),
    refused("decoder_input_details", is_off, USE_LOGPROBS),
    refused("return_hidden_states", is_off, "only text is returned"),
    refused("return_token_ids", is_off, "only text is returned"),
    refused("return_tokens_as_token_ids", is_off, "only text is returned"),
    refused("return_full_text", is_off, "the prompt is not repeated in the answer"),
    refused("suffix", is_empty, "text can only be continued, not filled in"),
    refused("no_stop_trim", is_off, "a stop is not part of the answer; leave it out"),
    refused("watermark", is_off, "answers are not watermarked"),
    // Formats.
    refused("structural_tag", never, USE_GUIDE),
    refused("grammar_lazy", is_off, "an answer is constrained from its first token on; leave it out"),
    refused("verbosity", is_medium, "the length of answers cannot be set in words; say it in the prompt"),
    // Which tokens may be chosen.
    refused("allowed_token_ids", is_empty, USE_BIAS),
    refused("bad_words_ids", is_empty, USE_BIAS),
    refused("banned_strings", is_empty, USE_BIAS),
    refused("banned_tokens", is_empty, USE_BIAS),
    refused("custom_token_bans", is_empty, USE_BIAS),
    refused("suppress_tokens", is_empty, USE_BIAS),
    refused("force_words_ids", is_empty, USE_BIAS),
    refused("logits_processors", is_empty, USE_BIAS),
    refused("custom_logit_processor", is_empty, USE_BIAS),
    refused("repeat_penalty", is_one, USE_PENALTY),
    refused("encoder_repetition_penalty", is_one, USE_PENALTY),
    refused("no_repeat_ngram_size", is_zero, USE_PENALTY),
    refused("dry_multiplier", is_zero, USE_PENALTY),
    refused("penalty_alpha", is_zero, NO_SAMPLER),
    refused("do_sample", is_on, "greedy answers are asked for with `temperature` 0"),
    refused("xtc_probability", is_zero, NO_SAMPLER),
    refused("typical_p", is_one, NO_SAMPLER),
    refused("tfs_z", is_one, NO_SAMPLER),
    refused("tfs", is_one, NO_SAMPLER),
    refused("top_a", is_zero, NO_SAMPLER),
    refused("top_n_sigma", is_not_positive, NO_SAMPLER),
    refused("nsigma", is_not_positive, NO_SAMPLER),
    refused("epsilon_cutoff", is_zero, NO_SAMPLER),
    refused("eta_cutoff", is_zero, NO_SAMPLER),
    refused("smoothing_factor", is_zero, NO_SAMPLER),
    refused("min_keep", is_zero_or_one, NO_SAMPLER),
    refused("mirostat", is_zero, NO_SAMPLER),
    refused("mirostat_mode", is_zero, NO_SAMPLER),
    refused("dynamic_temperature", is_off, NO_SAMPLER),
    refused("dynatemp_range", is_zero, NO_SAMPLER),
    refused("adaptive_target", is_not_positive, NO_SAMPLER),
    refused("temperature_last", is_off, NO_SAMPLER),
    refused("samplers", never, "the order is temperature, top_k, top_p, min_p; leave it out"),
    refused("sampler_priority", never, "the order is temperature, top_k, top_p, min_p; leave it out"),
    refused("guidance_scale", is_one, "there is no guidance by a second prompt; leave it out"),
    refused("cfg_scale", is_one, "there is no guidance by a second prompt; leave it out"),
    refused("negative_prompt", is_empty, "there is no guidance by a second prompt; leave it out"),
    // Where an answer ends.
    refused("max_new_tokens", never, USE_MAX_TOKENS),
    refused("max_output_tokens", never, USE_MAX_TOKENS),
    refused("max_length", never, USE_MAX_TOKENS),
    refused("n_predict", is_minus_one, USE_MAX_TOKENS),
    refused("num_predict", is_minus_one, USE_MAX_TOKENS),
    refused("min_new_tokens", is_zero, USE_MINIMUM),
    refused("min_length", is_zero, USE_MINIMUM),
    refused("ban_eos_token", is_off, "is not read; `ignore_eos` and `min_tokens` are"),
    refused("stop_sequences", is_empty, USE_STOP),
    refused("stop_strings", is_empty, USE_STOP),
    refused("stop_regex", is_empty, USE_STOP),
    refused("max_time", never, NO_TIME_LIMIT),
    refused("t_max_predict_ms", is_not_positive, NO_TIME_LIMIT),
    refused("n_indent", is_zero, "lines have no least indentation here; leave it out"),
    // Thinking.
    refused("preserve_thinking", never, USE_KWARGS),
    // The model.
    refused("adapters", is_empty, NO_ADAPTER),
    refused("adapter_id", is_empty, NO_ADAPTER),
    refused("lora", is_empty, NO_ADAPTER),
    refused("lora_request", never, NO_ADAPTER),
    refused("lora_path", is_empty, NO_ADAPTER),
    refused("lora_adapter", is_empty, NO_ADAPTER),
    // The prompt.
    refused("truncate_prompt_tokens", is_minus_one, NO_CUT),
    refused("truncation", is_off_or_disabled, NO_CUT),
    refused("num_ctx", never, "the context is the model's; leave it out"),
    refused("n_keep", is_zero_or_minus_one, NO_CUT),
    refused("n_discard", is_zero, NO_CUT),
    refused("num_keep", is_zero, NO_CUT),
    refused("transforms", is_empty, NO_CUT),
    refused("input_ids", never, NO_IDS),
    refused("prompt_token_ids", never, NO_IDS),
    refused("input_embeds", never, NO_IDS),
    refused("prompt_embeds", never, NO_IDS),
    refused("token_healing", is_off, "prompts are continued as they are; leave it out"),
    refused("role_mapping", is_empty, "roles have their own names; write them into `chat_template`"),
    refused("system", is_empty, USE_MESSAGES),
    refused("documents", is_empty, "documents are template variables; put them into `chat_template_kwargs`"),
    refused("image_data", is_empty, NO_MEDIA),
    refused("multi_modal_data", is_empty, NO_MEDIA),
    refused("mm_processor_kwargs", is_empty, NO_MEDIA),
    refused("modalities", is_text_only, NO_MEDIA),
    refused("audio", never, NO_MEDIA),
    // Tools.
    refused("functions", is_empty, OLD_TOOLS),
    refused("function_call", is_free_choice, OLD_TOOLS),
    refused("web_search_options", never, NO_SEARCH),
    refused("enable_search", is_off, NO_SEARCH),
];

/// Names that a file's own columns may have, too: refused where they hold what a program acts on,
/// else as unknown as other columns.
pub(super) const REQUEST_OR_COLUMN: &[Refused] = &[
    refused("options", is_no_object, USE_FIELDS),
    refused("parameters", is_no_object, USE_FIELDS),
    refused("sampling_params", is_no_object, USE_FIELDS),
    refused("extra_body", is_no_object, USE_FIELDS),
    refused("generation_config", is_no_object, USE_FIELDS),
    refused("vllm_xargs", is_no_object, USE_FIELDS),
    refused("custom_params", is_no_object, USE_FIELDS),
    refused("format", is_no_format, USE_GUIDE),
    refused("reasoning", is_no_object, USE_KWARGS),
    refused("thinking", is_no_object, USE_KWARGS),
    refused("think", is_no_switch, USE_KWARGS),
    refused("raw", is_no_switch, "text that no template is put around is sent as `prompt`"),
    refused("context", is_no_id_list, NO_IDS),
];

/// Fields that change no answer: bookkeeping and speed, and what means something only beside a
/// field that is refused.
pub(super) const IGNORED: &[&str] = &[
    // Who asks, and where it is kept.
    "user",
    "store",
    "service_tier",
    "safety_identifier",
    "request_id",
    "rid",
    "session_id",
    "priority",
    // Speed and memory.
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_salt",
    "cache_prompt",
    "id_slot",
    "slot_id",
    "keep_alive",
    "ttl",
    "prediction",
    "draft_model",
    "num_draft_tokens",
    "speculative",
    "kv_transfer_params",
    "data_parallel_rank",
    "extra_key",
    // How a stream would look, or what is told of its speed.
    "stream_options",
    "stream_interval",
    "timings_per_token",
    "return_progress",
    "spaces_between_special_tokens",
    // Which library would constrain an answer.
    "guided_decoding_backend",
    "grammar_triggers",
    // Details of samplers that are refused when they are on.
    "xtc_threshold",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dry_range",
    "mirostat_tau",
    "mirostat_eta",
    "dynatemp_exponent",
    "smoothing_curve",
    "adaptive_decay",
    "repeat_last_n",
    "penalty_range",
];

/// Fields of a message that would change the answer, or change none anywhere.
pub(super) const MESSAGE: &[Refused] = &[
    refused(
        "function_call",
        never,
        "the deprecated function-calling fields are not served; use `tool_calls`",
    ),
    refused("audio", is_empty, NO_MEDIA),
    refused("images", is_empty, NO_MEDIA),
    refused("prefix", is_off, ONE_TURN),
    refused("partial", is_off, ONE_TURN),
    // Citations that came with an answer, training weights, and what is to be cached.
    refused("annotations", always, ""),
    refused("weight", always, ""),
    refused("cache_control", always, ""),
];

/// Template variables that are not a request's to set.
pub(super) const KWARGS: &[Refused] = &[
    refused("messages", never, "are the request's own; put them beside it"),
    refused("tools", never, "are the request's own; put them beside it"),
    refused("chat_template", is_empty, BESIDE),
    refused("add_generation_prompt", is_on, BESIDE),
    refused("continue_final_message", is_off, BESIDE),
    // Arguments of transformers' function, not of templates.
    refused("tokenize", always, ""),
    refused("return_dict", always, ""),
    refused("return_tensors", always, ""),
    refused("padding", always, ""),
    refused("truncation", is_off, NO_CUT),
    refused("max_length", never, NO_CUT),
];

fn never(_: &Value) -> bool {
    false
}

fn always(_: &Value) -> bool {
    true
}

fn is_off(value: &Value) -> bool {
    *value == Value::Bool(false)
}

fn is_off_or_disabled(value: &Value) -> bool {
    is_off(value) || value == "disabled"
}

fn is_on(value: &Value) -> bool {
    *value == Value::Bool(true)
}

fn is_number(value: &Value, numbers: &[f64]) -> bool {
    value.as_f64().is_some_and(|value| numbers.contains(&value))
}

fn is_zero(value: &Value) -> bool {
    is_number(value, &[0.0])
}

fn is_one(value: &Value) -> bool {
    is_number(value, &[1.0])
}

fn is_zero_or_one(value: &Value) -> bool {
    is_number(value, &[0.0, 1.0])
}

/// What llama.cpp and its like write for "no limit".
fn is_minus_one(value: &Value) -> bool {
    is_number(value, &[-1.0])
}

fn is_zero_or_minus_one(value: &Value) -> bool {
    is_number(value, &[0.0, -1.0])
}

fn is_not_positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|value| value <= 0.0)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn is_no_object(value: &Value) -> bool {
    value.as_object().is_none_or(serde_json::Map::is_empty)
}

fn is_no_switch(value: &Value) -> bool {
    !value.is_boolean()
}

fn is_no_format(value: &Value) -> bool {
    is_no_object(value) && value != "json"
}

fn is_no_id_list(value: &Value) -> bool {
    value.as_array().is_none_or(|ids| ids.is_empty() || !ids.iter().all(Value::is_u64))
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

fn is_free_choice(value: &Value) -> bool {
    value == "auto" || value == "none"
}

fn is_medium(value: &Value) -> bool {
    value == "medium"
}
