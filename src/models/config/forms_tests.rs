//! One model in the forms in which its configuration is written: as published, and as transformers 5 saves
//! it. Owns that both forms of every family mean the same, and what becomes of both in one file.

use serde_json::json;

use super::{
    published::{changed, gemma3, gemma3_text, lfm2, llama, mistral, qwen2, qwen3, qwen3_5, repeated},
    *,
};
use crate::models::ContextChoice;

/// Parses, and expects that nothing is left to be said.
fn silent(config: &Value) -> ModelConfig {
    let parsed =
        parse_model_config(config, "config.json").unwrap_or_else(|error| panic!("{error}: {config}"));
    assert_eq!(parsed.warnings, Vec::<String>::new(), "{config}");
    parsed
}

/// What transformers saves in every configuration.
fn saved_by_transformers_5(config: Value) -> Value {
    changed(
        config,
        json!({"transformers_version": "5.24.0", "dtype": "bfloat16", "torch_dtype": null, "use_cache": true,
               "output_hidden_states": false, "return_dict": true, "chunk_size_feed_forward": 0,
               "is_encoder_decoder": false, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
               "problem_type": null, "output_attentions": false, "_name_or_path": "x"}),
    )
}

/// Each family as published and as transformers 5 saves it.
fn pairs() -> Vec<(Value, Value)> {
    let no_rope = json!({"rope_theta": null, "rope_scaling": null, "rope_local_base_freq": null});
    let new =
        |old: Value, changes: Value| saved_by_transformers_5(changed(changed(old, no_rope.clone()), changes));
    let gemma_types =
        |num_layers| repeated(&[&["sliding_attention"; 5][..], &["full_attention"]].concat(), num_layers);
    let mut new_gemma3 = saved_by_transformers_5(gemma3());
    new_gemma3["text_config"] = new(
        gemma3_text(),
        json!({"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024,
               "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072,
               "vocab_size": 262208, "sliding_window_pattern": null, "_sliding_window_pattern": 6,
               "layer_types": gemma_types(34), "use_bidirectional_attention": false, "rope_parameters": {
                   "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                   "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    );
    let mut new_qwen3_5 = saved_by_transformers_5(qwen3_5());
    new_qwen3_5["text_config"] = new(
        new_qwen3_5["text_config"].take(),
        json!({"partial_rotary_factor": null, "full_attention_interval": null,
               "layer_types": repeated(&[&["linear_attention"; 3][..], &["full_attention"]].concat(), 24),
               "rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10],
                                   "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25}}),
    );
    let attends = |index: usize| [2, 5, 8, 10, 12, 14].contains(&index);
    let lfm2_types: Value =
        (0..16).map(|index| if attends(index) { "full_attention" } else { "conv" }).collect();
    vec![
        (
            llama(),
            new(
                llama(),
                json!({"rope_parameters": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3", "rope_theta": 500000.0}}),
            ),
        ),
        (
            mistral(),
            new(mistral(), json!({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}})),
        ),
        (
            qwen2(),
            new(
                qwen2(),
                json!({"layer_types": repeated(&["full_attention"], 28), "sliding_window": null,
                       "rope_parameters": {"factor": 4.0, "original_max_position_embeddings": 32768,
                                           "rope_type": "yarn", "type": "yarn", "rope_theta": 1000000.0}}),
            ),
        ),
        (
            qwen3(),
            new(
                qwen3(),
                json!({"layer_types": repeated(&["full_attention"], 36),
                       "rope_parameters": {"rope_type": "default", "rope_theta": 1000000}}),
            ),
        ),
        (
            gemma3_text(),
            new(
                gemma3_text(),
                json!({"sliding_window_pattern": null, "_sliding_window_pattern": 6, "layer_types": gemma_types(26),
                       "use_bidirectional_attention": false, "rope_parameters": {
                           "full_attention": {"rope_type": "default", "rope_theta": 1000000},
                           "sliding_attention": {"rope_type": "default", "rope_theta": 10000}}}),
            ),
        ),
        (gemma3(), new_gemma3),
        (qwen3_5(), new_qwen3_5),
        (
            lfm2(),
            new(
                lfm2(),
                json!({"block_ff_dim": null, "intermediate_size": 12288, "full_attn_idxs": null,
                       "layer_types": lfm2_types, "tie_embedding": null, "tie_word_embeddings": true,
                       "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
            ),
        ),
    ]
}

/// A Gemma 3 4B configuration as transformers 5 saves it was read with defaults for all that it nests by
/// type of layer: full layers without their factor of 8.
#[test]
fn a_model_means_the_same_in_the_published_and_in_the_newer_form() {
    let pairs = pairs();
    assert_eq!(pairs.len(), 8, "one for each family, gemma3 twice");
    for (old, new) in pairs {
        let (old, new) = (silent(&old), silent(&new));
        assert!(old.spec == new.spec, "{}: not the same", old.spec.model_type);
        assert_eq!(old.stored_dtype.as_deref(), Some("bfloat16"), "{}", old.spec.model_type);
        assert_eq!(new.stored_dtype.as_deref(), Some("bfloat16"), "{}", new.spec.model_type);
    }
}

#[test]
fn what_is_nested_by_type_of_layer_counts_for_that_type() {
    let (_, new) = pairs().swap_remove(5);
    let spec = silent(&new).spec;
    let rope = |index: usize| {
        spec.layers[index].attention().expect("all layers attend").rope.clone().expect("they have positions")
    };
    assert_eq!(rope(5).frequencies[0], 8.0);
    assert_eq!(rope(5).frequencies[1], (8.0 * 1e6f64.powf(2.0 / 256.0)) as f32);
    assert_eq!(rope(4).frequencies[0], 1.0);
    assert_eq!(rope(4).frequencies[1], 1e4f64.powf(2.0 / 256.0) as f32);
    assert_eq!(spec.max_context, 131_072);
}

/// Files that were edited by hand, or saved by something in between, have both forms.
#[test]
fn both_forms_may_stand_side_by_side_if_they_agree() {
    for (old, new) in pairs() {
        let mut both = changed(old.clone(), new.clone());
        if let (Some(old_text), Some(text)) = (old.get("text_config"), new.get("text_config")) {
            both["text_config"] = changed(old_text.clone(), text.clone());
        }
        assert!(silent(&both).spec == silent(&old).spec, "{both}");
    }
}

#[test]
fn forms_that_contradict_each_other_are_an_error_that_names_both() {
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let cases: [(Value, &[&str]); 16] = [
        (
            changed(llama(), json!({"rope_parameters": {"rope_theta": 10000.0}})),
            &["'rope_theta'", "'rope_parameters.rope_theta'"],
        ),
        (
            changed(llama(), json!({"rope_parameters": linear.clone()})),
            &["'rope_scaling'", "'rope_parameters'"],
        ),
        (changed(llama(), json!({"dtype": "float16"})), &["'dtype'", "'torch_dtype'"]),
        (
            changed(llama(), json!({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2}})),
            &["'rope_scaling.rope_type'", "'rope_scaling.type'"],
        ),
        (
            changed(
                llama(),
                json!({"partial_rotary_factor": 1.0, "rope_scaling": null, "rope_parameters": {"partial_rotary_factor": 0.5}}),
            ),
            &["'partial_rotary_factor'", "'rope_parameters.partial_rotary_factor'"],
        ),
        (
            changed(qwen2(), json!({"layer_types": repeated(&["sliding_attention"], 28)})),
            &["'layer_types'", "'use_sliding_window'"],
        ),
        (
            changed(
                qwen2(),
                json!({"use_sliding_window": true, "max_window_layers": 4, "layer_types": repeated(&["full_attention"], 28)}),
            ),
            &["'layer_types'", "'max_window_layers'"],
        ),
        (
            changed(gemma3_text(), json!({"layer_types": repeated(&["full_attention"], 26)})),
            &["'layer_types'", "'sliding_window_pattern'"],
        ),
        (
            changed(gemma3_text(), json!({"_sliding_window_pattern": 5})),
            &["'sliding_window_pattern'", "'_sliding_window_pattern'"],
        ),
        (
            changed(
                gemma3_text(),
                json!({"rope_parameters": {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {}}}),
            ),
            &["'rope_theta'", "'rope_parameters.full_attention.rope_theta'"],
        ),
        (
            changed(
                gemma3_text(),
                json!({"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 5.0}}}),
            ),
            &["'rope_local_base_freq'", "'rope_parameters.sliding_attention.rope_theta'"],
        ),
        (
            changed(
                gemma3_text(),
                json!({"rope_scaling": linear.clone(), "rope_parameters": {"full_attention": {}, "sliding_attention": {}}}),
            ),
            &["'rope_scaling'", "'rope_parameters.full_attention'"],
        ),
        (
            changed(gemma3(), json!({"vocab_size": 7, "text_config": gemma3_text()})),
            &["'vocab_size'", "'text_config.vocab_size'"],
        ),
        (changed(lfm2(), json!({"intermediate_size": 7})), &["'block_ff_dim'", "'intermediate_size'"]),
        (
            changed(lfm2(), json!({"tie_word_embeddings": false})),
            &["'tie_embedding'", "'tie_word_embeddings'"],
        ),
        (
            changed(lfm2(), json!({"layer_types": repeated(&["full_attention"], 16)})),
            &["'full_attn_idxs'", "'layer_types'"],
        ),
    ];
    for (config, keys) in cases {
        let message =
            parse_model_config(&config, "config.json").expect_err("it contradicts itself").to_string();
        assert!(message.contains("config.json") && message.contains("contradict"), "{message}");
        assert!(keys.iter().all(|key| message.contains(key)), "{keys:?}: {message}");
    }
}

/// What one object for all layers would mean for layers that differ is not for us to guess.
#[test]
fn rotary_positions_by_type_of_layer_have_to_be_complete() {
    for parameters in [
        json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}),
        json!({"full_attention": {"rope_type": "default"}}),
        json!({"sliding_attention": {"rope_type": "default"}}),
    ] {
        let config = changed(gemma3_text(), json!({"rope_parameters": parameters}));
        let message = parse_model_config(&config, "config.json").expect_err("a type is missing").to_string();
        assert!(message.contains("'rope_parameters'") && message.contains("_attention"), "{message}");
    }
}

/// mlx-lm 0.32 attends fully here. Mistral 7B's first version has this window in all layers, and Qwen's
/// models from the layer `max_window_layers` on.
#[test]
fn windows_that_the_publishers_code_reads_are_windows() {
    let mistral = silent(&mistral()).spec;
    assert!(mistral.kv_layers().all(|attention| attention.window == Some(4096)));
    let config = changed(qwen2(), json!({"use_sliding_window": true, "max_window_layers": 3}));
    let windows: Vec<_> = silent(&config).spec.kv_layers().map(|attention| attention.window).collect();
    assert_eq!(windows[..5], [None, None, None, Some(131_072), Some(131_072)]);
}

/// Yarn's optional settings, of which mlx-lm 0.32 reads no factor on the attention and no `truncate`.
#[test]
fn yarns_settings_are_those_of_transformers() {
    let rope = |changes: Value| {
        let mut scaling =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        scaling = changed(scaling, changes);
        let spec = silent(&changed(qwen2(), json!({"rope_scaling": scaling}))).spec;
        spec.kv_layers().next().expect("all layers attend").rope.clone().expect("they have positions")
    };
    let usual = rope(json!({}));
    assert_eq!(usual.input_scale, (0.1 * 4.0f64.ln() + 1.0) as f32);
    assert_eq!(rope(json!({"attention_factor": 2.0})).input_scale, 2.0);
    assert_eq!(rope(json!({"mscale": 0.7})).input_scale, usual.input_scale);
    assert_eq!(rope(json!({"mscale": 0.7, "mscale_all_dim": 0.7})).input_scale, 1.0);
    assert_ne!(rope(json!({"truncate": false})).frequencies, usual.frequencies);
    // Without it, the context that the model is for is the one it was trained for.
    assert_eq!(rope(json!({"original_max_position_embeddings": null})), usual);
}

/// LongRoPE's long factors are the model's by a choice, and then for all lengths.
#[test]
fn long_contexts_have_factors_of_their_own_that_are_chosen_for_all() {
    let published: Vec<(String, Value)> = published::all();
    let (_, config) = published.into_iter().find(|(name, _)| name == "phi3.json").expect("it is there");
    let short = parse_config(&config, "config.json").unwrap();
    assert_eq!(
        (short.max_context, short.context),
        (4096, ContextChoice::Short { max_long_context: 131_072 })
    );
    let long = short.clone().for_long_contexts().unwrap();
    assert_eq!((long.max_context, long.context), (131_072, ContextChoice::Long));
    assert_eq!(long.clone().for_long_contexts(), None);
    let rope = |spec: &ModelSpec| spec.layers[7].attention().unwrap().rope.clone().unwrap();
    let settings = &config["rope_scaling"];
    let usual = (1.0 + 32f64.ln() / 4096f64.ln()).sqrt() as f32;
    for (rope, factors) in [(rope(&short), "short_factor"), (rope(&long), "long_factor")] {
        let last = settings[factors].as_array().and_then(|factors| factors.last()?.as_f64()).unwrap();
        let (dims, frequency) = (rope.dims as f64, *rope.frequencies.last().unwrap());
        let expected = 10_000f64.powf((dims - 2.0) / dims) * last;
        assert!((f64::from(frequency) / expected - 1.0).abs() < 1e-6, "{factors}: {frequency} {expected}");
        assert_eq!(rope.input_scale, usual);
    }
    assert_eq!(rope(&long).long, None);
    let mut stated = config.clone();
    stated["rope_scaling"]["long_mscale"] = json!(1.5);
    let stated = parse_config(&stated, "config.json").unwrap();
    assert_eq!(rope(&stated).input_scale, usual);
    assert_eq!(rope(&stated.for_long_contexts().unwrap()).input_scale, 1.5);
    assert_eq!(parse_config(&llama(), "config.json").unwrap().for_long_contexts(), None);
}

#[test]
fn nothing_is_left_to_be_said_of_the_fixtures() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut num_models = 0;
    for entry in std::fs::read_dir(fixtures).expect("the folder is there").flatten() {
        let folder = entry.path();
        if folder.join("config.json").is_file() {
            let config = read_model_config(&folder.join("config.json")).expect("it is sound");
            let generation = crate::models::read_generation_config(&folder).expect("it is sound");
            assert_eq!([config.warnings, generation.warnings].concat(), Vec::<String>::new());
            num_models += 1;
        }
    }
    assert!(num_models >= 10, "only {num_models}");
}

/// Of published configurations all that matters is read, or it is said that it is not.
#[test]
fn nothing_is_left_to_be_said_of_published_configurations_but_what_is_not_served() {
    let mut said: Vec<String> = Vec::new();
    for (name, config) in published::all() {
        match parse_model_config(&config, &name) {
            Ok(config) => said.extend(config.warnings),
            Err(error) => said.push(error.to_string()),
        }
    }
    // Python code that is not run, several forms in one model.
    let expected = [
        ("kimi_linear.json", "'auto_map'"),
        ("minimax_m2.json", "'auto_map'"),
        ("nemotron_h-moe.json", "'auto_map'"),
        ("nemotron_h.json", "'auto_map'"),
        ("phi3.json", "'auto_map'"),
        ("qwen3_5_moe-nvfp4.json", "modelopt"),
    ];
    said.sort();
    assert_eq!(said.len(), expected.len(), "{said:?}");
    for (said, (name, what)) in said.iter().zip(expected) {
        assert!(said.starts_with(name) && said.contains(what), "{said}");
    }
}

/// transformers 5 saves the number of Qwen's experts under another name: it was missed.
#[test]
fn experts_are_counted_by_either_name() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-qwen3_moe/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let old = silent(&config);
    let count = config["num_experts"].clone();
    config["num_local_experts"] = count.clone();
    assert!(silent(&config).spec == old.spec);
    config.as_object_mut().unwrap().remove("num_experts");
    assert!(silent(&config).spec == old.spec);
    config["num_experts"] = json!(count.as_u64().unwrap() * 2);
    let error = parse_model_config(&config, "config.json").expect_err("they differ").to_string();
    assert!(error.contains("by one name"), "{error}");
}
