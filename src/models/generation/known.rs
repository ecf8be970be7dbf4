//! The settings of sampling that are not acted on, and what is known of them.
//!
//! Owns the tables. None of them is an error: a model whose publisher samples otherwise is still worth
//! having, but what the answers then lack is said.

use crate::models::known_keys::{
    Effect::{self, Nothing, ReadBy, WarningUnless},
    KeyRule,
    Plain::{Bool, Empty, Number, Text},
    rule,
};

const GREEDY: Effect = Nothing("it counts with 'do_sample' only");
const BEAMS: Effect = Nothing("it counts with several beams only");
const OUTPUTS: Effect = Nothing("it chooses what Python gets back");
const SPEED: Effect = Nothing("it chooses among ways to compute the same");
const GUESSING: Effect = Nothing("guessing several tokens ahead changes no answer");
const CONSTRAINT: Effect = WarningUnless(&[Empty], "it restricts which tokens may come");
const SEARCH: Effect = WarningUnless(&[Number(1.0)], "it searches among several answers");

/// Of `generation_config.json`.
pub(super) const GENERATION_CONFIG: &[KeyRule] = &[
    rule("eos_token_id", ReadBy("text::ends")),
    rule("bos_token_id", Nothing("the tokenizer's files say whether a prompt gets one")),
    rule("pad_token_id", Nothing("nothing is padded with tokens")),
    rule("decoder_start_token_id", Nothing("it is for models with an encoder")),
    rule("transformers_version", Nothing("it tells how the file was made")),
    rule("_*", Nothing("a name that begins so is private to the program that wrote it")),
    rule("temperature", GREEDY),
    rule("top_k", GREEDY),
    rule("top_p", GREEDY),
    rule("min_p", GREEDY),
    rule("max_length", Nothing("prompt and answer are limited by the context, answers by max_tokens")),
    rule("min_length", WarningUnless(&[Number(0.0)], "answers do not end before it")),
    rule("min_new_tokens", WarningUnless(&[Number(0.0)], "answers do not end before it")),
    rule("max_time", WarningUnless(&[], "answers are cut after so many seconds")),
    rule("stop_strings", WarningUnless(&[Empty], "they end answers; give them as 'stop' in requests")),
    rule("repetition_penalty", WarningUnless(&[Number(1.0)], "tokens that were there become less likely")),
    rule(
        "encoder_repetition_penalty",
        WarningUnless(&[Number(1.0)], "the prompt's tokens become more likely"),
    ),
    rule("frequency_penalty", WarningUnless(&[Number(0.0)], "tokens that were there become less likely")),
    rule("presence_penalty", WarningUnless(&[Number(0.0)], "tokens that were there become less likely")),
    rule("no_repeat_ngram_size", WarningUnless(&[Number(0.0)], "no run of so many tokens comes twice")),
    rule(
        "encoder_no_repeat_ngram_size",
        WarningUnless(&[Number(0.0)], "no run of so many tokens of the prompt comes again"),
    ),
    rule("typical_p", WarningUnless(&[Number(1.0)], "it restricts which tokens may come")),
    rule("top_h", WarningUnless(&[], "it restricts which tokens may come")),
    rule("epsilon_cutoff", WarningUnless(&[Number(0.0)], "it restricts which tokens may come")),
    rule("eta_cutoff", WarningUnless(&[Number(0.0)], "it restricts which tokens may come")),
    rule("bad_words_ids", CONSTRAINT),
    rule("suppress_tokens", CONSTRAINT),
    rule("begin_suppress_tokens", CONSTRAINT),
    rule("force_words_ids", CONSTRAINT),
    rule("constraints", CONSTRAINT),
    rule("sequence_bias", WarningUnless(&[Empty], "it makes some tokens more or less likely")),
    rule("forced_bos_token_id", WarningUnless(&[], "answers begin with it")),
    rule("forced_eos_token_id", WarningUnless(&[], "answers that are cut end with it")),
    rule("exponential_decay_length_penalty", WarningUnless(&[], "long answers become less likely")),
    rule("guidance_scale", WarningUnless(&[Number(1.0)], "it weighs a second prompt against the first")),
    rule("watermarking_config", WarningUnless(&[Empty], "it marks answers by their tokens")),
    rule("penalty_alpha", WarningUnless(&[Number(0.0)], "it searches among several answers")),
    rule("dola_layers", WarningUnless(&[Empty], "it weighs layers against each other")),
    rule("token_healing", WarningUnless(&[Bool(false)], "it lets answers change a prompt's last token")),
    rule("num_beams", SEARCH),
    rule("num_beam_groups", SEARCH),
    rule("num_return_sequences", SEARCH),
    rule("diversity_penalty", BEAMS),
    rule("early_stopping", BEAMS),
    rule("length_penalty", BEAMS),
    rule("low_memory", SPEED),
    rule("renormalize_logits", Nothing("likelihoods always add up to one before one is chosen")),
    rule("remove_invalid_values", Nothing("lines whose likelihoods are no numbers are errors")),
    rule("use_cache", SPEED),
    rule("cache_implementation", SPEED),
    rule("cache_config", SPEED),
    rule("max_cache_len", SPEED),
    rule("compile_config", SPEED),
    rule("disable_compile", SPEED),
    rule("prefill_chunk_size", SPEED),
    rule("continuous_batching_config", SPEED),
    rule("output_attentions", OUTPUTS),
    rule("output_hidden_states", OUTPUTS),
    rule("output_scores", OUTPUTS),
    rule("output_logits", OUTPUTS),
    rule("return_dict_in_generate", OUTPUTS),
    rule("use_mtp", GUESSING),
    rule("speculation_type", GUESSING),
    rule("is_assistant", GUESSING),
    rule("num_assistant_tokens", GUESSING),
    rule("num_assistant_tokens_schedule", GUESSING),
    rule("assistant_*", GUESSING),
    rule("target_lookbehind", GUESSING),
    rule("prompt_lookup_num_tokens", GUESSING),
    rule("max_matching_ngram_size", GUESSING),
];

/// Of GGUF files, after `general.sampling.`.
pub(super) const GGUF_SAMPLING: &[KeyRule] = &[
    rule("penalty_repeat", WarningUnless(&[Number(1.0)], "tokens that were there become less likely")),
    rule("penalty_last_n", Nothing("it counts with 'penalty_repeat' only")),
    rule("xtc_probability", WarningUnless(&[Number(0.0)], "it leaves out the likeliest tokens at times")),
    rule("xtc_threshold", Nothing("it counts with 'xtc_probability' only")),
    rule("mirostat", WarningUnless(&[Number(0.0)], "it adapts the choice to what came before")),
    rule("mirostat_tau", Nothing("it counts with 'mirostat' only")),
    rule("mirostat_eta", Nothing("it counts with 'mirostat' only")),
    rule("sequence", WarningUnless(&[Empty, Text("kpmt")], "it orders the filters in another way")),
];
