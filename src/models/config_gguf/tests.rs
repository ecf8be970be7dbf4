//! What llama.cpp takes from the metadata, and from the sizes where they are silent (its `load_hparams`).

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::models::{
    gguf::testing::{GgufFile, write},
    known_keys::{Effect, KeyRule, Plain},
    spec::{AttentionSpec, HeadNorms, ModelSpec},
};

type Keys = BTreeMap<String, Value>;

/// What llama.cpp's converter made of the tiny fixtures.
fn cases() -> Vec<Value> {
    let cases = std::fs::read_to_string("fixtures/gguf_cases.json").expect("the fixture is there");
    serde_json::from_str(&cases).expect("the fixture is JSON")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// A case's metadata.
fn keys_of(case: &Value) -> Keys {
    let rows = case["metadata"].as_array().expect("a list");
    rows.iter().map(|row| (text(&row[0]).to_owned(), row[2].clone())).collect()
}

/// A file with these metadata and a case's tensors, which hold numbers where these say how layers are.
fn file_of(case: &Value, keys: &Keys) -> GgufFile {
    let mut file = keys.iter().fold(GgufFile::default(), |file, (key, value)| put(file, key, value));
    for tensor in case["tensors"].as_array().expect("a list") {
        let shape: Vec<u64> =
            tensor[1].as_array().expect("a list").iter().rev().filter_map(Value::as_u64).collect();
        let numbers: Vec<f32> = match tensor[2][0].as_f64() {
            Some(_) => tensor[2]
                .as_array()
                .expect("a list")
                .iter()
                .filter_map(Value::as_f64)
                .map(|x| x as f32)
                .collect(),
            None => vec![0.0; shape.iter().product::<u64>() as usize],
        };
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        file = file.tensor(text(&tensor[0]), 0, &shape, &bytes);
    }
    file
}

fn read_file(file: &GgufFile) -> Result<ModelConfig, String> {
    let file = write(&file.bytes());
    let header = GgufHeader::read(file.path()).map_err(|error| error.to_string())?;
    read_gguf_config(&header).map_err(|error| error.to_string())
}

/// Metadata of a small model; `{}` in a name stands for the architecture.
fn keys(architecture: &str, more: Value) -> Keys {
    let mut keys = json!({
        "general.architecture": architecture, "{}.embedding_length": 64, "{}.feed_forward_length": 96,
        "{}.block_count": 12, "{}.context_length": 512, "{}.attention.head_count": 4,
        "{}.attention.layer_norm_rms_epsilon": 1e-5,
    });
    let map = keys.as_object_mut().expect("an object");
    map.extend(more.as_object().expect("an object").clone());
    map.iter().map(|(key, value)| (key.replace("{}", architecture), value.clone())).collect()
}

fn put(file: GgufFile, key: &str, value: &Value) -> GgufFile {
    match value {
        Value::Null => file,
        Value::Bool(flag) => file.bool(key, *flag),
        Value::Number(number) => match number.as_u64() {
            Some(number) => file.u32(key, number as u32),
            None => file.raw(key, 6, &(number.as_f64().expect("a number") as f32).to_le_bytes()),
        },
        Value::String(text) => file.str(key, text),
        Value::Array(list) if list.iter().all(Value::is_u64) => {
            file.i32s(key, &list.iter().map(|number| number.as_u64().unwrap_or(0) as i32).collect::<Vec<_>>())
        }
        Value::Array(list) if list.iter().all(|entry| entry.is_f64()) => file.f32s(
            key,
            &list.iter().filter_map(Value::as_f64).map(|number| number as f32).collect::<Vec<_>>(),
        ),
        Value::Array(flags) if flags.iter().all(Value::is_boolean) => {
            let mut bytes = 7u32.to_le_bytes().to_vec();
            bytes.extend((flags.len() as u64).to_le_bytes());
            bytes.extend(flags.iter().map(|flag| u8::from(*flag == true)));
            file.raw(key, 9, &bytes)
        }
        _ => file.strings(key, &["a"]),
    }
}

fn file(keys: &Keys) -> GgufFile {
    let file = keys.iter().fold(GgufFile::default(), |file, (key, value)| put(file, key, value));
    file.tensor("token_embd.weight", 0, &[1, 32], &[0; 128])
}

fn read(keys: &Keys) -> Result<ModelConfig, String> {
    read_gguf_config(&file(keys).header()).map_err(|error| error.to_string())
}

fn spec(architecture: &str, more: Value) -> ModelSpec {
    let config = read(&keys(architecture, more)).unwrap_or_else(|message| panic!("{message}"));
    assert_eq!(config.warnings, Vec::<String>::new());
    config.spec
}

fn attention(spec: &ModelSpec, index: usize) -> &AttentionSpec {
    spec.layers[index].attention().expect("all layers attend")
}

/// The sizes of the published ones. 27B was read with the width of a head, 128, as all others are.
#[test]
fn gemma_3_of_27b_scales_its_queries_by_another_width_than_a_heads() {
    for (num_layers, hidden, num_heads, num_kv_heads, head_dim, scaled_by) in [
        (18, 640, 4, 1, 256, 256.0f64),
        (26, 1152, 4, 1, 256, 256.0),
        (34, 2560, 8, 4, 256, 256.0),
        (48, 3840, 16, 8, 256, 256.0),
        (62, 5376, 32, 16, 128, 168.0),
    ] {
        let spec = spec(
            "gemma3",
            json!({"{}.block_count": num_layers, "{}.embedding_length": hidden,
                "{}.attention.head_count": num_heads, "{}.attention.head_count_kv": num_kv_heads,
                "{}.attention.key_length": head_dim, "{}.attention.value_length": head_dim,
                "{}.attention.sliding_window": 1024, "{}.rope.freq_base": 1e6,
                "{}.rope.scaling.type": "linear", "{}.rope.scaling.factor": 8.0}),
        );
        assert_eq!(attention(&spec, 0).scale, scaled_by.powf(-0.5) as f32, "{num_layers} layers");
        // Five layers with a window, a base of their own and no scaling, then one with neither.
        for index in 0..num_layers {
            let attention = attention(&spec, index);
            let is_full = (index + 1) % 6 == 0;
            assert_eq!(attention.window, (!is_full).then_some(1024), "{num_layers} layers, {index}");
            let base = if is_full { 1e6f64 } else { 1e4 };
            let factor = if is_full { 8.0 } else { 1.0 };
            assert_eq!(attention.rope.as_ref().unwrap().frequencies[0], factor as f32);
            assert_eq!(
                attention.rope.as_ref().unwrap().frequencies[1],
                (factor * base.powf(2.0 / f64::from(head_dim))) as f32
            );
        }
        assert_eq!((spec.norm.weight, spec.score_softcaps()), (NormWeight::Factor, vec![None; num_layers]));
    }
}

impl ModelSpec {
    fn score_softcaps(&self) -> Vec<Option<f32>> {
        self.kv_layers().map(|attention| attention.score_softcap).collect()
    }
}

#[test]
fn gemmas_windows_have_a_pattern_a_size_and_a_base() {
    let windows = |more: Value| {
        let spec = spec("gemma3", more);
        spec.kv_layers().map(|attention| attention.window).collect::<Vec<_>>()
    };
    let every = |period: usize| {
        (1..=12).map(|number: usize| (!number.is_multiple_of(period)).then_some(9)).collect::<Vec<_>>()
    };
    assert_eq!(windows(json!({"{}.attention.sliding_window": 9})), every(6));
    let pattern = json!({"{}.attention.sliding_window": 9, "{}.attention.sliding_window_pattern": 4});
    assert_eq!(windows(pattern), every(4));
    let flags: Vec<bool> = (1..=12).map(|number: usize| !number.is_multiple_of(3)).collect();
    let pattern = json!({"{}.attention.sliding_window": 9, "{}.attention.sliding_window_pattern": flags});
    assert_eq!(windows(pattern), every(3));
    for none in
        [json!({}), json!({"{}.attention.sliding_window": 0, "{}.attention.sliding_window_pattern": 6})]
    {
        assert_eq!(windows(none), [None; 12]);
    }
    let own_base = spec("gemma3", json!({"{}.attention.sliding_window": 9, "{}.rope.freq_base_swa": 16.0}));
    assert_eq!(attention(&own_base, 0).rope.as_ref().unwrap().frequencies[4], 16f32.sqrt());
    assert_eq!(attention(&own_base, 5).rope.as_ref().unwrap().frequencies[4], 10_000f32.sqrt());
}

/// Qwen's and Gemma's own defaults are a base of 1,000,000; llama.cpp's is one for all.
#[test]
fn absent_keys_mean_what_they_mean_to_llama_cpp() {
    for architecture in ["llama", "qwen2", "gemma3"] {
        let spec = spec(architecture, json!({}));
        let attention = attention(&spec, 0);
        assert_eq!(attention.rope.as_ref().unwrap().frequencies[4], 100.0, "{architecture}");
        assert_eq!((attention.num_kv_heads, attention.head_dim), (4, 16), "{architecture}");
        assert_eq!((attention.scale, attention.rope.as_ref().unwrap().dims), (0.25, 16), "{architecture}");
        assert_eq!(
            (attention.rope.as_ref().unwrap().interleaved, attention.window),
            (false, None),
            "{architecture}"
        );
        assert_eq!(attention.qkv_bias, architecture == "qwen2");
        assert_eq!(attention.head_norms == HeadNorms::PerHead, architecture == "gemma3");
        assert_eq!(spec.final_logit_softcap, None);
    }
}

/// Without a head's width in the file it is the even share; with it, as in Mistral Nemo, it is not.
#[test]
fn heads_may_be_narrower_than_an_even_share() {
    for architecture in ["llama", "qwen2", "gemma3"] {
        let more = json!({"{}.attention.key_length": 8, "{}.attention.value_length": 8,
            "{}.rope.dimension_count": 8, "{}.attention.head_count_kv": 2});
        let spec = spec(architecture, more);
        let attention = attention(&spec, 0);
        assert_eq!(
            (attention.head_dim, attention.rope.as_ref().unwrap().dims, attention.num_kv_heads),
            (8, 8, 2)
        );
        assert_eq!(attention.scale, 8f64.powf(-0.5) as f32);
        for key in ["attention.value_length", "rope.dimension_count"] {
            let message = read(&keys(architecture, json!({format!("{{}}.{key}"): 8}))).unwrap_err();
            assert!(message.contains(key) && message.contains("key_length"), "{message}");
        }
    }
}

/// A list of one number for each layer was taken for no number: as many KV heads as heads.
#[test]
fn numbers_for_each_layer_have_to_be_the_same() {
    let same = spec("llama", json!({"{}.attention.head_count_kv": vec![2; 12]}));
    assert_eq!(attention(&same, 0).num_kv_heads, 2);
    for (key, value) in [
        ("attention.head_count_kv", json!([2, 4])),
        ("feed_forward_length", json!([96, 64])),
        ("attention.head_count_kv", json!("two")),
        ("context_length", json!(-1.5)),
        ("rope.freq_base", json!("x")),
        ("rope.scaling.type", json!(2)),
    ] {
        let message = read(&keys("llama", json!({format!("{{}}.{key}"): value}))).unwrap_err();
        assert!(message.contains(&format!("'llama.{key}'")), "{message}");
    }
}

#[test]
fn rotary_scaling_is_that_of_a_configuration() {
    let rope = |more: Value| attention(&spec("qwen2", more), 0).rope.clone();
    let plain = rope(json!({}));
    let linear = rope(json!({"{}.rope.scaling.type": "linear", "{}.rope.scaling.factor": 4.0}));
    assert_eq!(
        linear.as_ref().unwrap().frequencies,
        plain.as_ref().unwrap().frequencies.iter().map(|frequency| frequency * 4.0).collect::<Vec<_>>()
    );
    // Without a type it is linear, and before there were types the key had another name.
    assert_eq!(rope(json!({"{}.rope.scaling.factor": 4.0})), linear);
    assert_eq!(rope(json!({"{}.rope.scale_linear": 4.0})), linear);
    assert_eq!(rope(json!({"{}.rope.scaling.type": "none", "{}.rope.scaling.factor": 4.0})), plain);
    assert_eq!(rope(json!({"{}.rope.scaling.type": "linear", "{}.rope.scaling.factor": 0.0})), plain);

    let config = json!({"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "vocab_size": 32,
        "max_position_embeddings": 512, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}});
    let (expected, _, _) = parse_fields(&config, "config.json").expect("it is sound");
    let yarn = json!({"{}.rope.scaling.type": "yarn", "{}.rope.scaling.factor": 4.0,
        "{}.rope.scaling.original_context_length": 128});
    assert_eq!(rope(yarn.clone()), attention(&expected, 0).rope);
    let mut own = yarn;
    own["{}.rope.scaling.attn_factor"] = json!(0.5);
    assert_eq!(rope(own).unwrap().input_scale, (0.5 * (0.1 * 4f64.ln() + 1.0)) as f32);
    let message = read(&keys("llama", json!({"{}.rope.scaling.type": "longrope"}))).unwrap_err();
    assert!(message.contains("longrope"), "{message}");
}

/// llama3's scaling is a tensor of factors, which no other architecture knows.
#[test]
fn frequency_factors_scale_llamas_positions() {
    let factors: Vec<u8> = (1..=8u8).flat_map(|factor| f32::from(factor).to_le_bytes()).collect();
    let with = |architecture: &str| {
        let file = file(&keys(architecture, json!({}))).tensor("rope_freqs.weight", 0, &[8], &factors);
        let file = write(&file.bytes());
        let header = GgufHeader::read(file.path()).expect("the test file is well-formed");
        read_gguf_config(&header).map_err(|error| error.to_string())
    };
    let plain = spec("llama", json!({}));
    let expected: Vec<f32> = attention(&plain, 0)
        .rope
        .as_ref()
        .unwrap()
        .frequencies
        .iter()
        .zip(1u8..)
        .map(|(f, n)| f * f32::from(n))
        .collect();
    let scaled = with("llama").expect("it is sound").spec;
    assert_eq!(attention(&scaled, 11).rope.as_ref().unwrap().frequencies, expected);
    assert!(with("qwen2").unwrap_err().contains("rope_freqs.weight"));
}

/// What a key that is asked for can be set to so that it is not what it was.
fn probe(key: &str, usual: Option<&Value>) -> Value {
    match key {
        "embedding_length" => json!(128),
        "rope.scaling.type" => json!(if usual == Some(&json!("yarn")) { "none" } else { "yarn" }),
        "attention.layer_norm_rms_epsilon"
        | "rope.scaling.attn_factor"
        | "rope.scaling.yarn_attn_factor"
        | "rope.scaling.yarn_log_multiplier"
        | "attention.temperature_scale" => json!(0.5),
        "attn_logit_softcapping" | "final_logit_softcapping" | "rope.freq_base" | "rope.freq_base_swa" => {
            json!(77.5)
        }
        "rope.scaling.yarn_beta_fast" => json!(1.5),
        "rope.scaling.yarn_beta_slow" => json!(30.5),
        "rope.scaling.factor"
        | "rope.scale_linear"
        | "attention.scale"
        | "embedding_scale"
        | "residual_scale"
        | "logit_scale"
        | "expert_weights_scale" => json!(3.5),
        "expert_weights_norm" => json!(usual != Some(&json!(true))),
        "attention.head_count_kv" => json!(3),
        "block_count" | "attention.sliding_window_pattern" | "expert_used_count" => json!(1),
        "feed_forward_length"
        | "context_length"
        | "attention.head_count"
        | "attention.key_length"
        | "attention.key_length_mla"
        | "attention.key_length_swa"
        | "attention.kv_lora_rank"
        | "attention.q_lora_rank"
        | "attention.shared_kv_layers"
        | "attention.sliding_window"
        | "attention.value_length"
        | "attention.value_length_mla"
        | "attention.value_length_swa"
        | "embedding_length_per_layer_input"
        | "expert_count"
        | "expert_feed_forward_length"
        | "expert_shared_feed_forward_length"
        | "rope.dimension_count"
        | "rope.dimension_count_swa"
        | "rope.scaling.original_context_length"
        | "shortconv.l_cache" => json!(2),
        "expert_group_count"
        | "expert_group_used_count"
        | "expert_shared_count"
        | "leading_dense_block_count"
        | "nextn_predict_layers" => {
            json!(usual.and_then(Value::as_u64).unwrap_or(1) + 1)
        }
        other => panic!("'{other}' is read: say here what a value of it is that changes something"),
    }
}

fn asked(file: &GgufFile) -> BTreeSet<String> {
    let file = write(&file.bytes());
    let header = GgufHeader::read(file.path()).expect("the test file is well-formed");
    let architecture = Architecture::of(&header).expect("it is known");
    let translator = Translator { header: &header, architecture, asked: RefCell::default() };
    translator.config().expect("it is sound");
    translator.asked.into_inner()
}

/// Of every architecture, with the metadata that llama.cpp's converter writes, and rotary positions scaled.
#[test]
fn each_key_that_is_read_changes_the_computation_or_is_an_error() {
    let mut passed_over = Vec::new();
    // Heads of few pairs may have none between yarn's bounds, wherever these are.
    let is_of_bounds = |key: &str| key.contains(".yarn_beta_") || key.ends_with(".original_context_length");
    let mut moved_bounds = BTreeSet::new();
    for case in cases() {
        let mut base = keys_of(&case);
        let name = text(&base["general.architecture"]).to_owned();
        let has_factors = |tensor: &Value| text(&tensor[0]).starts_with("rope_factors");
        let is_scaled = base.contains_key(&format!("{name}.rope.scaling.type"))
            || case["tensors"].as_array().expect("a list").iter().any(has_factors);
        if !is_scaled && name != "gemma4" {
            for (key, value) in
                [("type", json!("yarn")), ("factor", json!(8.0)), ("original_context_length", json!(256))]
            {
                base.insert(format!("{name}.rope.scaling.{key}"), value);
            }
        }
        for key in asked(&file_of(&case, &base)) {
            let mut usual = base.clone();
            if key.ends_with(".rope.scale_linear") {
                usual.insert(format!("{name}.rope.scaling.factor"), Value::Null);
            }
            let mut changed = usual.clone();
            changed.insert(key.clone(), probe(&key[name.len() + 1..], usual.get(&key)));
            let usual = read_file(&file_of(&case, &usual)).unwrap_or_else(|message| panic!("{message}")).spec;
            match read_file(&file_of(&case, &changed)) {
                Err(message) => assert!(message.len() > 20, "{message}"),
                Ok(found) if found.spec != usual && is_of_bounds(&key) => {
                    moved_bounds.insert(key[name.len() + 1..].to_owned());
                }
                Ok(found) if found.spec != usual => {}
                Ok(_) if is_of_bounds(&key) => {}
                Ok(_) => passed_over.push(format!("{}: {key}", case["name"])),
            }
        }
    }
    assert_eq!(moved_bounds.len(), 3, "{moved_bounds:?}");
    assert_eq!(passed_over, Vec::<String>::new());
}

/// The layers of a file are those of the configuration that it was made from, but for what is rounded to float32 in
/// it and what is said by weights alone.
#[test]
fn layers_of_a_file_are_those_of_its_models_configuration() {
    let mut served = BTreeSet::new();
    for case in cases() {
        let found = read_file(&file_of(&case, &keys_of(&case))).unwrap_or_else(|message| panic!("{message}"));
        let (expected, _, _) = parse_fields(&case["config"], "config.json").expect("it is sound");
        let (found, expected) = (&found.spec, &expected);
        let name = &case["name"];
        let sizes =
            |spec: &ModelSpec| (spec.hidden_size, spec.vocab_size, spec.max_context, spec.layers.len());
        assert_eq!(sizes(found), sizes(expected), "{name}");
        assert_eq!(found.score_softcaps(), expected.score_softcaps(), "{name}");
        for (layer, (found, expected)) in found.layers.iter().zip(&expected.layers).enumerate() {
            assert_eq!(found.mlp, expected.mlp, "{name}, layer {layer}");
            let pair = found.attention().zip(expected.attention());
            assert_eq!(pair.is_some(), expected.attention().is_some(), "{name}, layer {layer}");
            let Some((found, expected)) = pair else { continue };
            assert_eq!(found.kv_layout(), expected.kv_layout(), "{name}, layer {layer}");
            assert_eq!(found.window, expected.window, "{name}, layer {layer}");
            assert_eq!(found.kv, expected.kv, "{name}, layer {layer}");
            let rope =
                |attention: &AttentionSpec| attention.rope.as_ref().map(|rope| (rope.dims, rope.interleaved));
            assert_eq!(rope(found), rope(expected), "{name}, layer {layer}");
        }
        served.insert(text(&keys_of(&case)["general.architecture"]).to_owned());
    }
    let all = architectures::gguf_architecture_names();
    // Its converter wants an image processor's settings, and its layers are those of qwen3moe.
    let without_case = ["qwen3vlmoe"];
    assert_eq!(
        served.iter().map(String::as_str).chain(without_case).collect::<BTreeSet<_>>(),
        all.into_iter().collect()
    );
}

fn check_table(table: &[KeyRule], prefix: &str) {
    let base = keys("llama", json!({}));
    let asked = asked(&file(&base));
    let usual = read(&base).expect("the base is sound").spec;
    for rule in table {
        let key = format!("{prefix}{}", rule.key.replace('*', "anything"));
        if asked.contains(&key) || key == "general.architecture" || key == "general.alignment" {
            continue;
        }
        let of = |value: Value| {
            let mut keys = base.clone();
            keys.insert(key.clone(), value);
            read(&keys)
        };
        let changes_nothing = |value: Value| {
            let found = of(value).unwrap_or_else(|message| panic!("{message}"));
            assert!(found.spec == usual && found.warnings.is_empty(), "{key}: {:?}", found.warnings);
        };
        let (Effect::ErrorUnless(neutral, what) | Effect::WarningUnless(neutral, what)) = rule.effect else {
            [json!(3), json!("x"), json!(["a"])].into_iter().for_each(changes_nothing);
            continue;
        };
        for plain in neutral {
            changes_nothing(match *plain {
                Plain::Bool(flag) => json!(flag),
                Plain::Number(number) => json!(number),
                Plain::Text(text) => json!(text),
                Plain::Empty => json!(""),
            });
        }
        let other = match neutral.first() {
            Some(Plain::Bool(flag)) => json!(!flag),
            Some(Plain::Number(number)) => json!(number + 4.0),
            _ => json!("something else"),
        };
        let named = match (rule.effect, of(other)) {
            (Effect::ErrorUnless(..), Err(message)) => message,
            (Effect::WarningUnless(..), Ok(found)) => found.warnings.concat(),
            (_, found) => panic!("{key}: {:?}", found.map(|config| config.warnings)),
        };
        assert!(named.contains(&format!("'{key}' = ")) && named.contains(what), "{named}");
    }
}

#[test]
fn each_key_that_is_not_read_is_harmless_or_named() {
    check_table(known::ARCHITECTURE, "llama.");
    check_table(known::GENERAL, "");
    let mut keys = keys("llama", json!({"{}.new": 1, "other.new": ["a"]}));
    keys.insert("tokenizer.ggml.new".to_owned(), json!(true));
    let warnings = read(&keys).expect("worth a warning only").warnings;
    assert_eq!(warnings.len(), 1);
    for key in ["'llama.new'", "'other.new'", "'tokenizer.ggml.new'"] {
        assert!(warnings[0].contains(key), "{}", warnings[0]);
    }
}
