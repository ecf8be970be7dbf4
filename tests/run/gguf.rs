//! GGUF files: the tiny model in that form answers as its folder does, and damaged ones are named.
//!
//! Owns writing such a file, independently of the reader: F32 tensors under llama.cpp's names.

use std::{fs, path::Path};

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{Desk, MODEL, fixture_path, text_of};

const INPUT: &str = concat!(
    "{\"prompt\": \"Once upon a time\", \"max_tokens\": 20}\n",
    "{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief\"}, {\"role\": \"user\", \"content\": \"Wie viele Böte?\"}], ",
    "\"max_tokens\": 20}\n",
);
const F32: u32 = 0;
const ALIGNMENT: usize = 32;

#[derive(Default)]
struct GgufWriter {
    keys: Vec<u8>,
    num_keys: u64,
    infos: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
    }

    fn number(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    fn float(&mut self, name: &str, value: f32) {
        self.key(name, 6, &value.to_le_bytes());
    }

    fn text(&mut self, name: &str, value: &str) {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.key(name, 8, &bytes);
    }

    fn texts(&mut self, name: &str, values: &[String]) {
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| put_text(&mut bytes, value));
        self.key(name, 9, &bytes);
    }

    fn integers(&mut self, name: &str, values: &[i32]) {
        let mut bytes = 5u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.key(name, 9, &bytes);
    }

    fn tensor(&mut self, name: &str, kind: u32, shape: &[usize], data: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        put_text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| self.infos.extend((size as u64).to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.num_tensors += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.num_tensors.to_le_bytes());
        out.extend(self.num_keys.to_le_bytes());
        out.extend(self.keys);
        out.extend(self.infos);
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out.extend(self.data);
        out
    }
}

fn json_of(name: &str) -> Value {
    let text = std::fs::read_to_string(fixture_path(MODEL).join(name)).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

/// The metadata of the tiny model, as llama.cpp's converter writes them.
fn metadata(writer: &mut GgufWriter, architecture: &str) {
    let (config, tokenizer) = (json_of("config.json"), json_of("tokenizer.json"));
    let number = |name: &str| config[name].as_u64().and_then(|n| u32::try_from(n).ok()).expect("a count");
    writer.text("general.architecture", architecture);
    for (key, field) in [
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("context_length", "max_position_embeddings"),
    ] {
        writer.number(&format!("{architecture}.{key}"), number(field));
    }
    writer.float(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-6);
    writer.float(&format!("{architecture}.rope.freq_base"), 10_000.0);

    let mut tokens = vec![(String::new(), 1); number("vocab_size") as usize];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("a vocabulary") {
        tokens[id.as_u64().expect("an id") as usize] = (token.clone(), 1);
    }
    for added in tokenizer["added_tokens"].as_array().expect("a list") {
        let text = added["content"].as_str().expect("a text").to_owned();
        tokens[added["id"].as_u64().expect("an id") as usize] = (text, 3);
    }
    let (texts, kinds): (Vec<String>, Vec<i32>) = tokens.into_iter().unzip();
    let merge =
        |pair: &Value| format!("{} {}", pair[0].as_str().expect("text"), pair[1].as_str().expect("text"));
    let merges: Vec<String> =
        tokenizer["model"]["merges"].as_array().expect("a list").iter().map(merge).collect();
    writer.text("tokenizer.ggml.model", "gpt2");
    writer.text("tokenizer.ggml.pre", "gpt-2");
    writer.texts("tokenizer.ggml.tokens", &texts);
    writer.integers("tokenizer.ggml.token_type", &kinds);
    writer.texts("tokenizer.ggml.merges", &merges);
    writer.number("tokenizer.ggml.eos_token_id", 303);
    writer.number("tokenizer.ggml.eot_token_id", 301);
    let template = json_of("tokenizer_config.json")["chat_template"].as_str().expect("a template").to_owned();
    writer.text("tokenizer.chat_template", &template);
}

/// llama.cpp's name of a weight, and the heads whose rows its converter reorders.
fn gguf_name(name: &str) -> (String, Option<usize>) {
    let simple = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        _ => {
            let rest = name.strip_prefix("model.layers.").expect("all else is in a layer");
            let (index, part) = rest.split_once('.').expect("a layer's number comes first");
            let (part, num_heads) = match part {
                "self_attn.q_proj.weight" => ("attn_q", Some(4)),
                "self_attn.k_proj.weight" => ("attn_k", Some(2)),
                "self_attn.v_proj.weight" => ("attn_v", None),
                "self_attn.o_proj.weight" => ("attn_output", None),
                "mlp.gate_proj.weight" => ("ffn_gate", None),
                "mlp.up_proj.weight" => ("ffn_up", None),
                "mlp.down_proj.weight" => ("ffn_down", None),
                "input_layernorm.weight" => ("attn_norm", None),
                "post_attention_layernorm.weight" => ("ffn_norm", None),
                other => panic!("{other} has no name there"),
            };
            return (format!("blk.{index}.{part}.weight"), num_heads);
        }
    };
    (simple.to_owned(), None)
}

/// Rows of each head's two halves in turns, as llama.cpp's converter reorders them.
fn interleave(data: &[u8], num_rows: usize, num_heads: usize) -> Vec<u8> {
    let (row_bytes, head_dim) = (data.len() / num_rows, num_rows / num_heads);
    let source = |row: usize| {
        let (head, within) = (row / head_dim, row % head_dim);
        head * head_dim + (within % 2) * (head_dim / 2) + within / 2
    };
    (0..num_rows).flat_map(|row| &data[source(row) * row_bytes..][..row_bytes]).copied().collect()
}

pub fn tiny_gguf() -> Vec<u8> {
    let bytes = std::fs::read(fixture_path(MODEL).join("model.safetensors")).expect("the fixture is there");
    let weights = SafeTensors::deserialize(&bytes).expect("the fixture is sound");
    let mut writer = GgufWriter::default();
    metadata(&mut writer, "llama");
    for (name, tensor) in weights.tensors() {
        let (name, num_heads) = gguf_name(&name);
        let data = match num_heads {
            Some(num_heads) => interleave(tensor.data(), tensor.shape()[0], num_heads),
            None => tensor.data().to_vec(),
        };
        writer.tensor(&name, F32, tensor.shape(), &data);
    }
    writer.finish()
}

#[test]
fn a_gguf_file_answers_as_the_folder_it_was_made_from() {
    let desk = Desk::with_input(INPUT);
    desk.run().assert().code(0);
    let from_folder = desk.output();
    desk.write("tiny.gguf", tiny_gguf());
    desk.run_with("tiny.gguf").assert().code(0);
    let from_gguf = desk.output();
    assert_eq!(from_gguf.len(), 2);
    for (folder, gguf) in from_folder.iter().zip(&from_gguf) {
        assert_eq!(text_of(folder), text_of(gguf));
        assert_eq!(folder["response"]["body"]["usage"], gguf["response"]["body"]["usage"]);
        assert_eq!(gguf["response"]["body"]["model"], "tiny.gguf");
    }
}

/// The example model, which `make test` fetches, with 0, the end of a text, as its only end: the answer ran
/// on through `\nsystem\n\nuser\n` until its limit, 60 tokens instead of 8. Its template ends each turn with
/// another token.
#[test]
fn an_answer_ends_with_its_turn_though_the_file_names_another_token() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(".mlx/models/smollm2/SmolLM2-135M-Instruct.gguf");
    let mut bytes = fs::read(&model).expect("the model is there: run make model");
    let mut key = Vec::new();
    put_text(&mut key, "tokenizer.ggml.eos_token_id");
    key.extend(4u32.to_le_bytes());
    let at =
        bytes.windows(key.len()).position(|window| window == key).expect("the file has the key") + key.len();
    assert_eq!(bytes[at..at + 4], 2u32.to_le_bytes(), "the publisher's end");
    bytes[at..at + 4].copy_from_slice(&0u32.to_le_bytes());
    let desk = Desk::with_input(concat!(
        r#"{"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 60}"#,
        "\n"
    ));
    desk.write("other_end.gguf", bytes);
    desk.run_with("other_end.gguf").assert().code(0);
    let line = &desk.output()[0];
    assert_eq!(text_of(line), "The capital of France is Paris.");
    assert_eq!(line["response"]["body"]["usage"]["completion_tokens"], 8);
    assert_eq!(line["response"]["body"]["choices"][0]["finish_reason"], "stop");
}

/// The run ends with exit code 1, one of whose lines holds all of `parts`.
fn refused(desk: &Desk, bytes: &[u8], parts: &[&str]) {
    desk.write("bad.gguf", bytes);
    let assert = desk
        .run_with("bad.gguf")
        .assert()
        .code(1)
        .stdout(is_empty())
        .stderr(contains("mlxbatch: error: ").and(contains("bad.gguf")).and(contains("panicked").not()));
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
    assert_eq!(desk.read("out.jsonl"), "older\n");
}

#[test]
fn a_gguf_file_that_cannot_be_used_is_named_with_the_way_out() {
    let desk = Desk::with_input(INPUT);
    desk.write("out.jsonl", "older\n");
    let whole = tiny_gguf();
    for num_bytes in [4, 23, 24, 100, 2_000, 9_000, whole.len() / 2, whole.len() - 1] {
        refused(&desk, &whole[..num_bytes], &["download the file again"]);
    }
    for stub in ["", "GG", "version https://git-lfs.github.com/spec/v1\n", "<html>404</html>"] {
        refused(&desk, stub.as_bytes(), &["does not start as a GGUF file does", "fetch it again"]);
    }
    let mut with_type = GgufWriter::default();
    metadata(&mut with_type, "llama");
    const IQ4_NL: u32 = 20;
    with_type.tensor("token_embd.weight", IQ4_NL, &[304, 32], &[0; 304 * 18]);
    refused(&desk, &with_type.finish(), &["'token_embd.weight'", "IQ4_NL", "use another quantisation"]);
    let mut other = GgufWriter::default();
    metadata(&mut other, "mamba");
    refused(&desk, &other.finish(), &["architecture 'mamba' are not supported", "llama, qwen2 and gemma3"]);
    let mut without_weights = GgufWriter::default();
    metadata(&mut without_weights, "llama");
    without_weights.tensor("token_embd.weight", F32, &[304, 32], &[0; 304 * 32 * 4]);
    refused(&desk, &without_weights.finish(), &["is missing"]);
}
