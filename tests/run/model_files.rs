//! Models that are not whole: exit 1, a message that names the file and the way out, and an
//! output of an earlier run that is left as it was.

use std::fs;

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::json;

use crate::support::{Desk, MODEL, code_of, message_of};

const OLD_OUTPUT: &str = "{\"an\": \"older output\"}\n";

fn desk() -> Desk {
    let desk = Desk::with_input(
        "{\"prompt\": \"x\", \"max_tokens\": 1}\n{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n",
    );
    desk.write("out.jsonl", OLD_OUTPUT);
    desk
}

/// The run ends before it begins, and says all of `parts`.
fn refused(desk: &Desk, model: &str, parts: &[&str]) {
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", "out.jsonl", "--model", model]);
    let assert = command.assert().code(1).stdout(is_empty()).stderr(contains("panicked").not());
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.starts_with("mlxbatch: error: "), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
    let (error, causes) = stderr.split_once('\n').expect("it ends in a line end");
    for cause in causes.lines().filter_map(|line| line.strip_prefix("  because: ")) {
        assert!(!error.contains(cause), "the error is said twice: {stderr}");
    }
    assert_eq!(desk.read("out.jsonl"), OLD_OUTPUT);
    assert!(!desk.names().iter().any(|name| name.contains("partial")), "{:?}", desk.names());
}

#[test]
fn a_model_that_is_not_there() {
    let desk = desk();
    refused(&desk, "./no-such-model", &["--model ./no-such-model", "no such folder or file", "owner/name"]);
    refused(&desk, "no/such/model", &["no such folder or file"]);
    refused(&desk, "in.jsonl", &["not a .gguf file", "config.json"]);
    fs::create_dir(desk.path("empty")).expect("it is new");
    refused(&desk, "empty", &["config.json", "tokenizer.json", "safetensors"]);
}

#[test]
fn a_folder_that_lacks_a_file() {
    for (fixture, file, parts) in [
        (MODEL, "config.json", &["model", "config.json"][..]),
        (MODEL, "tokenizer.json", &["tokenizer.json"]),
        (MODEL, "model.safetensors", &["safetensors"]),
        ("tiny-llama-sharded", "model-00002-of-00002.safetensors", &["model-00002-of-00002.safetensors"]),
    ] {
        let desk = desk();
        let model = desk.copy_model(fixture);
        fs::remove_file(model.join(file)).expect("the fixture has it");
        refused(&desk, "model", parts);
    }
}

#[test]
fn weights_that_were_cut_short() {
    for (fixture, file) in
        [(MODEL, "model.safetensors"), ("tiny-llama-sharded", "model-00002-of-00002.safetensors")]
    {
        let desk = desk();
        let path = desk.copy_model(fixture).join(file);
        let whole = fs::read(&path).expect("the fixture has it");
        for num_bytes in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..num_bytes]).expect("there is room");
            refused(&desk, "model", &[file, "is damaged or not complete", "fetch it again"]);
        }
    }
}

#[test]
fn a_configuration_that_cannot_be() {
    for (field, value, parts) in [
        ("model_type", json!("rwkv9"), &["config.json", "'rwkv9' is not supported", "llama, mistral"][..]),
        ("model_type", json!(null), &["config.json", "'model_type' is missing"]),
        ("hidden_size", json!(0), &["config.json", "'hidden_size'", "got 0"]),
        ("num_attention_heads", json!(-4), &["config.json", "'num_attention_heads'"]),
        ("num_hidden_layers", json!(5), &["'model.layers.4.", "is missing"]),
        ("num_hidden_layers", json!(3), &["'model.layers.3.", "is not part of this model type"]),
        ("intermediate_size", json!(24), &["has shape [16, 32], expected [24, 32]"]),
        ("vocab_size", json!(305), &["model.embed_tokens.weight", "[304, 32]", "[305, 32]"]),
        ("attention_bias", json!(true), &["q_proj.bias", "is missing"]),
        ("tie_word_embeddings", json!(false), &["lm_head.weight", "is missing"]),
        (
            "rope_scaling",
            json!({"type": "dynamic", "factor": 2}),
            &["config.json", "'dynamic' is not supported"],
        ),
        ("quantization", json!({"bits": 4, "group_size": 63}), &["config.json", "group size"]),
    ] {
        let desk = desk();
        desk.copy_model(MODEL);
        desk.set_field("model/config.json", field, value);
        refused(&desk, "model", parts);
    }
    let desk = desk();
    desk.copy_model(MODEL);
    for (text, part) in [("{", "not valid JSON"), ("[]", "is not a JSON object"), ("", "not valid JSON")] {
        desk.write("model/config.json", text);
        refused(&desk, "model", &["config.json", part]);
    }
}

#[test]
fn a_weight_that_is_missing_and_one_too_many() {
    let desk = desk();
    let path = desk.copy_model(MODEL).join("model.safetensors");
    let whole = fs::read(&path).expect("the fixture has it");
    // Renaming within the header keeps every length.
    let renamed = |from: &str, to: &str| {
        let text = from.as_bytes();
        let at = whole.windows(text.len()).position(|window| window == text).expect("the weight is there");
        [&whole[..at], to.as_bytes(), &whole[at + text.len()..]].concat()
    };
    fs::write(&path, renamed("model.norm.weight", "model.morn.weight")).expect("there is room");
    refused(&desk, "model", &["'model.norm.weight' is missing"]);
    fs::write(&path, renamed("layers.3.mlp.up_proj", "layers.3.mlp.pu_proj")).expect("there is room");
    refused(&desk, "model", &["model.layers.3.mlp.up_proj.weight"]);
}

#[test]
fn a_tokenizer_that_is_damaged() {
    let desk = desk();
    desk.copy_model(MODEL);
    let whole = desk.read("model/tokenizer.json");
    for text in ["", "{", "[]", "{\"version\": \"1.0\"}", &whole[..whole.len() / 2]] {
        desk.write("model/tokenizer.json", text);
        refused(&desk, "model", &["model/tokenizer.json", "cannot be used"]);
    }
    // The tokenizers crate panics on this one; nothing of it may show.
    let mut json: serde_json::Value = serde_json::from_str(&whole).expect("the fixture is JSON");
    json["model"]["continuing_subword_prefix"] = json!("longer than any merge");
    desk.write("model/tokenizer.json", json.to_string());
    refused(&desk, "model", &["model/tokenizer.json", "cannot be used"]);
    desk.write("model/tokenizer.json", &whole);
    desk.write("model/tokenizer_config.json", "{");
    // A template that cannot be read is no obstacle to prompts, but an end token might be there.
    refused(&desk, "model", &["tokenizer_config.json", "not valid JSON"]);
}

/// Only the chat template and the names of special tokens were read.
#[test]
fn settings_of_the_tokenizer_are_named_where_they_are_not_acted_on() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    desk.set_field("model/tokenizer_config.json", "chat_template_type", json!("deepseek_v32"));
    refused(&desk, "model", &["tokenizer_config.json", "chat_template_type"]);
    desk.set_field("model/tokenizer_config.json", "chat_template_type", json!(null));
    desk.set_field("model/tokenizer_config.json", "use_default_system_prompt", json!(true));
    desk.set_field("model/tokenizer_config.json", "of_tomorrow", json!(1));
    let named = contains("use_default_system_prompt").and(contains("of_tomorrow"));
    desk.run_with(model).assert().code(0).stderr(named);
}

#[test]
fn a_template_that_does_not_parse_fails_conversations_and_not_prompts() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    desk.write("model/chat_template.jinja", "{% for m in messages %}\n{{ m.content }}\n{% endfr %}");
    desk.run_with(model).assert().code(3).stderr(contains("panicked").not());
    let output = desk.output();
    assert_eq!(code_of(&output[0]), "ok");
    let message = message_of(&output[1]);
    assert!(message.contains("chat_template.jinja") && message.contains("line 3"), "{message}");
}

#[test]
fn a_model_without_a_template_says_what_to_do() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    desk.set_field("model/tokenizer_config.json", "chat_template", json!(null));
    desk.run_with(model).assert().code(3);
    let output = desk.output();
    assert_eq!((code_of(&output[0]), code_of(&output[1])), ("ok", "no_chat_template"));
    assert!(message_of(&output[1]).contains("send \"prompt\" lines"), "{}", output[1]);
}

#[test]
fn tokenizer_and_weights_that_do_not_belong_together() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    let mut json: serde_json::Value =
        serde_json::from_str(&desk.read("model/tokenizer.json")).expect("the fixture is JSON");
    json["model"]["vocab"]["x"] = json!(70_000);
    desk.write("model/tokenizer.json", json.to_string());
    desk.run_with(model).assert().code(3).stderr(contains("panicked").not());
    let message = desk.output()[0]["response"]["body"]["error"]["message"].to_string();
    assert!(message.contains("token 70000") && message.contains("304 tokens"), "{message}");
}

/// Answers were token 0 over and over, and good ones as far as anybody was told.
#[test]
fn weights_that_are_no_numbers() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("the fixture has it");
    let num_header_bytes = u64::from_le_bytes(*bytes.first_chunk().expect("it has a header")) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..8 + num_header_bytes]).expect("the header is JSON");
    let place =
        header["model.norm.weight"]["data_offsets"][0].as_u64().expect("it has a final norm") as usize;
    bytes[8 + num_header_bytes + place..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).expect("there is room");

    let mut command = desk.run_with(&model);
    command.args(["--report", "report.json", "--persist-cache", "cache.bin"]);
    command.assert().code(3).stderr(contains("cache.bin").and(contains("no numbers")));
    for (line, number) in desk.output().iter().zip(1..) {
        assert_eq!(line["response"]["status_code"], 500);
        let message = message_of(line);
        assert!(message.contains(&format!("in.jsonl:{number}")), "{message}");
        assert!(message.contains("no numbers") && message.contains("--dtype"), "{message}");
    }
    // The KV before the final norm are numbers, and may be saved.
    desk.bare().args(["cache", "verify", "cache.bin"]).assert().code(0);
}

/// Keys that nobody had looked at were passed over: answers could be wrong, and nothing was said.
#[test]
fn settings_that_are_not_acted_on_are_named_once() {
    let desk = desk();
    let model = desk.copy_model(MODEL);
    desk.set_field("model/config.json", "new_attention", json!({"kind": "sparse"}));
    desk.write(
        "model/generation_config.json",
        json!({"repetition_penalty": 1.05, "num_beams": 1}).to_string(),
    );
    let output = desk.run_with(&model).output().expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("model/")).collect();
    let [config, generation] = warnings[..] else { panic!("two files, two warnings: {stderr}") };
    assert!(config.contains("config.json: not known") && config.contains("'new_attention'"), "{config}");
    assert!(generation.contains("generation_config.json: not acted on"), "{generation}");
    assert!(
        generation.contains("'repetition_penalty' = 1.05") && !generation.contains("num_beams"),
        "{generation}"
    );
    let quiet = desk.run_with(&model).arg("--quiet").assert().code(0);
    assert!(quiet.get_output().stderr.is_empty());

    desk.write("out.jsonl", OLD_OUTPUT);
    desk.set_field("model/config.json", "hidden_act", json!("relu2"));
    refused(&desk, "model", &["config.json", "'hidden_act' = \"relu2\"", "silu"]);
}
