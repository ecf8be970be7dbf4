//! No key of a configuration is passed over: for every model type, each key that is known is set to what it
//! is not, and something has to come of it.

use std::collections::BTreeSet;

use serde_json::json;

use super::{
    known::{
        COMMON, COMPRESSED_GROUP, COMPRESSED_TENSORS, COMPRESSED_WEIGHTS, GPTQ, KIMI_DELTA, QUANTIZATION,
        ROPE, WRAPPER,
    },
    published::{changed, gemma3, gemma3_text, lfm2, llama, mistral, qwen2, qwen3, qwen3_5},
    *,
};
use crate::models::known_keys::{Effect, KeyRule, Plain};

/// A configuration of each way to read one, in which as many keys count as can at once.
fn bases() -> Vec<Value> {
    let mut qwen3_5_text = qwen3_5()["text_config"].take();
    qwen3_5_text["torch_dtype"] = json!("bfloat16");
    let sliding = json!({"use_sliding_window": true, "max_window_layers": 4, "sliding_window": 64});
    let mut bases = vec![
        llama(),
        mistral(),
        changed(qwen2(), sliding.clone()),
        changed(qwen3(), sliding),
        gemma3_text(),
        qwen3_5_text,
        lfm2(),
    ];
    let published = published::all();
    let text_of = |config: &Value| match config.get("text_config") {
        Some(text) => changed(text.clone(), json!({"torch_dtype": "bfloat16"})),
        None => config.clone(),
    };
    for name in PUBLISHED {
        let (_, config) = published.iter().find(|(file, _)| file == name).expect("it is there");
        let mut base = changed(text_of(config), json!({"quantization_config": null, "auto_map": null}));
        if base.get("max_window_layers").is_some() {
            // So that the window's flag counts for some layers.
            base = changed(base, json!({"max_window_layers": 3, "sliding_window": 64}));
        }
        bases.push(base);
    }
    bases
}

/// One of each other family.
const PUBLISHED: [&str; 25] = [
    "qwen3_moe.json",
    "qwen2_moe.json",
    "qwen3_5_moe.json",
    "qwen3_next.json",
    "mixtral.json",
    "lfm2_moe.json",
    "glm4_moe.json",
    "olmoe.json",
    "ernie4_5_moe.json",
    "granitemoe.json",
    "gpt_oss.json",
    "gemma2.json",
    "seed_oss.json",
    "smollm3.json",
    "ministral3.json",
    "minimax_m2.json",
    "olmo3.json",
    "exaone4.json",
    "gemma4.json",
    "cohere2.json",
    "granitemoehybrid.json",
    "nemotron_h-moe.json",
    "mamba2.json",
    "falcon_h1.json",
    "kimi_linear.json",
];

fn parse(config: &Value) -> Result<ModelConfig, String> {
    parse_model_config(config, "config.json").map_err(|error| error.to_string())
}

/// The names that the reader of a configuration asks for, there or not.
fn asked(config: &Value) -> BTreeSet<String> {
    let unread = RefCell::default();
    let map = config.as_object().expect("a configuration is an object");
    let root = Fields::of_file(map, &unread);
    let model_type = config["model_type"].as_str().expect("it has a type");
    ModelType::of(model_type).expect("the type is known").read(&root).expect("it is sound");
    let mut asked = root.asked();
    asked.insert("model_type".to_owned());
    asked
}

/// What a key that a reader asks for can be set to so that it is not what it was. No list of keys needs to
/// be kept: a key without an entry here fails the test.
fn probe(key: &str, usual: &Value) -> Value {
    match key {
        "model_type" => json!("rwkv7"),
        "text_config" => json!(5),
        "layer_types" => json!(["full_attention", "full_attention"]),
        "hybrid_override_pattern" => json!("M"),
        "position_embedding_type" => json!("rope"),
        "mlp_multipliers" => json!([0.25, 3.0]),
        "ssm_multipliers" => json!([0.25, 3.0, 1.0, 1.0, 1.0]),
        "time_step_limit" => json!([0.125, 2.0]),
        "full_attn_idxs" => json!([1]),
        "rope_scaling" | "rope_parameters" => {
            json!({"rope_type": "linear", "factor": 3.0, "rope_theta": 77.0})
        }
        "quantization" | "quantization_config" => {
            json!({"group_size": 32, "bits": 8, "lm_head": {"bits": 4}})
        }
        "linear_attn_config" => json!({"num_heads": 2}),
        "partial_rotary_factor" => json!(0.375),
        "qkv_bias" => json!(false),
        "rms_norm_eps" | "norm_eps" => json!(0.5),
        "rope_theta"
        | "rope_local_base_freq"
        | "query_pre_attn_scalar"
        | "attn_logit_softcapping"
        | "final_logit_softcapping" => json!(77.5),
        "block_ffn_dim_multiplier" => json!(1.25),
        "block_multiple_of" => json!(1000),
        "tie_word_embeddings" => json!(!usual.as_bool().unwrap_or(true)),
        "attention_bias"
        | "mlp_bias"
        | "conv_bias"
        | "rope_traditional"
        | "tie_embedding"
        | "use_sliding_window"
        | "block_auto_adjust_ff_dim" => {
            json!(!usual.as_bool().unwrap_or(false))
        }
        "hidden_size"
        | "num_hidden_layers"
        | "intermediate_size"
        | "max_position_embeddings"
        | "vocab_size"
        | "num_attention_heads"
        | "num_key_value_heads"
        | "head_dim"
        | "sliding_window"
        | "block_dim"
        | "block_ff_dim"
        | "conv_L_cache"
        | "linear_num_value_heads"
        | "linear_num_key_heads"
        | "linear_key_head_dim"
        | "linear_value_head_dim"
        | "linear_conv_kernel_dim"
        | "full_attention_interval"
        | "max_window_layers"
        | "num_experts"
        | "sliding_window_pattern"
        | "_sliding_window_pattern" => match usual.as_u64() {
            Some(8) => json!(4),
            _ => json!(8),
        },
        "mlp_only_layers" => json!([1]),
        "no_rope_layers" => json!(vec![0; usual.as_array().map_or(0, Vec::len)]),
        other => match usual {
            Value::Bool(flag) => json!(!flag),
            Value::Number(number) if number.is_u64() => json!(if *usual == json!(4) { 8 } else { 4 }),
            Value::Number(_) => json!(0.375),
            Value::Null => match other {
                _ if other.starts_with("use_") || other.ends_with("_bias") => json!(true),
                _ => json!(4),
            },
            _ => panic!("'{other}' is read: say here what a value of it is that changes something"),
        },
    }
}

#[test]
fn each_key_that_is_read_changes_the_computation_or_is_an_error() {
    let mut passed_over = Vec::new();
    for base in bases() {
        let usual = parse(&base).expect("the base is sound").spec;
        for key in asked(&base) {
            // What a file says twice is an error unless it agrees: alone it has to count.
            let alone = match key.as_str() {
                "quantization_config" => json!({"quantization": null}),
                "tie_word_embeddings" => json!({"tie_embedding": null}),
                "_sliding_window_pattern" => json!({"sliding_window_pattern": null}),
                "rope_parameters" | "rope_theta" => json!({"rope_scaling": null, "rope_theta": null}),
                _ => json!({}),
            };
            let config = changed(changed(base.clone(), alone), json!({&key: probe(&key, &base[&key])}));
            match parse(&config) {
                Err(message) => assert!(message.contains("config.json"), "{message}"),
                Ok(found) if found.spec != usual => {}
                Ok(_) => passed_over.push(format!("{}: {key}", usual.model_type)),
            }
        }
    }
    assert_eq!(passed_over, Vec::<String>::new());
}

/// A value that none of these is.
fn not(neutral: &[Plain]) -> Value {
    match neutral.first() {
        Some(Plain::Bool(flag)) => json!(!flag),
        Some(Plain::Number(number)) => json!(number + 4.0),
        Some(Plain::Empty) => json!({"a": 1}),
        Some(Plain::Text(_)) | None => json!("something else"),
    }
}

fn json_of(plain: Plain) -> Value {
    match plain {
        Plain::Bool(flag) => json!(flag),
        Plain::Number(number) => json!(number),
        Plain::Text(text) => json!(text),
        Plain::Empty => json!([]),
    }
}

/// Sets each key of a table, where `config` puts it into a configuration.
fn check_table(table: &[KeyRule], asked: &BTreeSet<String>, config: impl Fn(&str, Value) -> Value) {
    for rule in table {
        let key = rule.key.replace('*', "anything");
        if asked.contains(&key) {
            continue;
        }
        let usual = parse(&config("_", json!(null))).expect("the base is sound").spec;
        let of = |value: Value| parse(&config(&key, value));
        let changes_nothing = |value: Value| {
            let found = of(value).unwrap_or_else(|message| panic!("{message}"));
            assert!(found.spec == usual, "{key} changes something");
            assert_eq!(found.warnings, Vec::<String>::new(), "{key}");
        };
        let named = format!("{key}' = ");
        match rule.effect {
            Effect::ReadBy(reason) | Effect::Nothing(reason) => {
                assert!(reason.len() > 5, "{key} has a reason");
                for value in [json!(3), json!("x"), json!({"a": [true]})] {
                    changes_nothing(value);
                }
            }
            Effect::ErrorUnless(neutral, what) => {
                neutral.iter().for_each(|plain| changes_nothing(json_of(*plain)));
                let message = of(not(neutral)).expect_err("the answer would be wrong");
                assert!(message.contains(&named) && message.contains(what), "{message}");
            }
            Effect::WarningUnless(neutral, what) => {
                neutral.iter().for_each(|plain| changes_nothing(json_of(*plain)));
                let found = of(not(neutral)).expect("worth a warning only");
                assert!(found.spec == usual && found.warnings.len() == 1, "{key}: {:?}", found.warnings);
                let warning = &found.warnings[0];
                assert!(warning.contains(&named) && warning.contains(what), "{warning}");
            }
        }
    }
}

#[test]
fn each_key_that_is_not_read_is_harmless_or_named() {
    for base in bases() {
        let model_type = base["model_type"].as_str().expect("it has a type");
        let reader = ModelType::of(model_type).expect("the type is known");
        let asked = asked(&base);
        let own: BTreeSet<&str> = reader.known.iter().map(|rule| rule.key).collect();
        let put = |key: &str, value: Value| {
            changed(base.clone(), json!({"dtype": null, "torch_dtype": null, key: value}))
        };
        check_table(reader.known, &asked, put);
        let common: Vec<KeyRule> = COMMON.iter().filter(|rule| !own.contains(rule.key)).copied().collect();
        check_table(&common, &asked, put);
    }
}

#[test]
fn so_is_each_key_of_the_objects_inside() {
    let inside = |base: &Value, name: &str, key: &str, value: Value| {
        let mut config = base.clone();
        config[name] = changed(config[name].clone(), json!({key: value}));
        config
    };
    let none = BTreeSet::new();
    check_table(WRAPPER, &none, |key, value| changed(gemma3(), json!({key: value})));
    check_table(ROPE, &none, |key, value| inside(&llama(), "rope_scaling", key, value));
    check_table(QUANTIZATION, &none, |key, value| inside(&qwen3(), "quantization", key, value));
    let bases = bases();
    let kimi = bases.iter().find(|base| base["model_type"] == "kimi_linear").expect("it is there");
    check_table(KIMI_DELTA, &none, |key, value| inside(kimi, "linear_attn_config", key, value));
    let gptq = changed(llama(), json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}));
    check_table(GPTQ, &none, |key, value| inside(&gptq, "quantization_config", key, value));
    let packed = |groups: Value| {
        let settings = json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": groups}});
        changed(llama(), json!({"quantization_config": settings}))
    };
    check_table(COMPRESSED_TENSORS, &none, |key, value| {
        inside(&packed(json!({})), "quantization_config", key, value)
    });
    check_table(COMPRESSED_GROUP, &none, |key, value| packed(json!({key: value})));
    check_table(COMPRESSED_WEIGHTS, &none, |key, value| packed(json!({"weights": {key: value}})));
    let entry =
        changed(qwen3(), json!({"quantization": {"group_size": 64, "bits": 4, "lm_head": {"bits": 8}}}));
    check_table(QUANTIZATION, &none, |key, value| {
        let mut config = entry.clone();
        config["quantization"] = inside(&config["quantization"], "lm_head", key, value);
        config
    });
}

#[test]
fn a_key_that_nobody_knows_is_named_wherever_it_stands() {
    let mut gemma = gemma3();
    gemma["new_outer"] = json!(1);
    gemma["text_config"]["new_inner"] = json!([]);
    gemma["text_config"]["rope_scaling"]["new_rope"] = json!(true);
    gemma["quantization"] =
        json!({"group_size": 64, "bits": 4, "new_setting": 1, "x.y": {"bits": 8, "new_entry": 1}});
    let warnings = parse(&gemma).expect("worth a warning only").warnings;
    assert_eq!(warnings.len(), 1);
    for key in [
        "'new_outer'",
        "'text_config.new_inner'",
        "'text_config.rope_scaling.new_rope'",
        "'quantization.new_setting'",
        "'quantization.x.y.new_entry'",
    ] {
        assert!(
            warnings[0].starts_with("config.json: ") && warnings[0].contains(key),
            "{key}: {}",
            warnings[0]
        );
    }
    let mut by_type = gemma3_text();
    by_type["rope_parameters"] =
        json!({"full_attention": {"new": 1}, "sliding_attention": {}, "chunked_attention": {}});
    let warning = parse(&by_type).expect("worth a warning only").warnings.concat();
    for key in ["'rope_parameters.full_attention.new'", "'rope_parameters.chunked_attention'"] {
        assert!(warning.contains(key), "{key}: {warning}");
    }
}

/// Each setting of rotary positions that is read, in an object where it counts.
#[test]
fn each_setting_of_rotary_positions_changes_them() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
        "mscale": 1.0, "mscale_all_dim": 0.8});
    let llama3 = llama()["rope_scaling"].clone();
    for (scaling, settings) in [
        (json!({"rope_type": "linear", "factor": 2.0}), &["factor", "rope_type", "rope_theta"][..]),
        (json!({"type": "linear", "factor": 2.0}), &["type", "partial_rotary_factor"]),
        (llama3, &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
        (
            yarn,
            &[
                "factor",
                "original_max_position_embeddings",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "attention_factor",
                "truncate",
            ],
        ),
    ] {
        let config = |scaling: &Value| {
            changed(llama(), json!({"rope_theta": null, "rope_parameters": scaling, "rope_scaling": null}))
        };
        let usual = parse(&config(&scaling)).expect("it is sound").spec;
        for setting in settings {
            let value = match *setting {
                "rope_type" | "type" => json!("default"),
                "truncate" => json!(false),
                "partial_rotary_factor" => json!(0.5),
                _ => json!(3.5),
            };
            let found =
                parse(&config(&changed(scaling.clone(), json!({*setting: value})))).expect("it is sound");
            assert!(found.spec != usual, "{scaling} {setting}");
        }
    }
}
