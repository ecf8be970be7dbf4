//! GGUF files: the tiny model in that form answers as its folder does, whole or in parts, and damaged ones
//! are named.
//!
//! Owns writing such files, independently of the reader: tensors under llama.cpp's names.

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
#[cfg(target_os = "linux")]
const F16: u32 = 1;
const U16: u32 = 2;
const I32: u32 = 5;
const ARRAY: u32 = 9;
const F64: u32 = 12;
const ALIGNMENT: usize = 32;

#[derive(Default)]
pub struct GgufWriter {
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
    pub fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        put_text(&mut self.keys, name);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
    }

    pub fn number(&mut self, name: &str, value: u32) {
        self.key(name, 4, &value.to_le_bytes());
    }

    pub fn float(&mut self, name: &str, value: f32) {
        self.key(name, 6, &value.to_le_bytes());
    }

    pub fn text(&mut self, name: &str, value: &str) {
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

    pub fn tensor(&mut self, name: &str, kind: u32, shape: &[usize], data: &[u8]) {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        put_text(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| self.infos.extend((size as u64).to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.num_tensors += 1;
    }

    pub fn finish(self) -> Vec<u8> {
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
    let config = json_of("config.json");
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
    tokenizer_metadata(writer);
}

/// The tokenizer of all tiny models.
pub fn tokenizer_metadata(writer: &mut GgufWriter) {
    let (config, tokenizer) = (json_of("config.json"), json_of("tokenizer.json"));
    let number = |name: &str| config[name].as_u64().and_then(|n| u32::try_from(n).ok()).expect("a count");
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

/// The tiny model's tensors under llama.cpp's names, with their shapes and F32 data.
fn tensors() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(fixture_path(MODEL).join("model.safetensors")).expect("the fixture is there");
    let weights = SafeTensors::deserialize(&bytes).expect("the fixture is sound");
    let tensor = |(name, tensor): (String, safetensors::tensor::TensorView)| {
        let (name, num_heads) = gguf_name(&name);
        let data = match num_heads {
            Some(num_heads) => interleave(tensor.data(), tensor.shape()[0], num_heads),
            None => tensor.data().to_vec(),
        };
        (name, tensor.shape().to_vec(), data)
    };
    weights.tensors().into_iter().map(tensor).collect()
}

pub fn tiny_gguf() -> Vec<u8> {
    tiny_gguf_with(|_| {})
}

/// The tiny model with more metadata.
fn tiny_gguf_with(more: impl FnOnce(&mut GgufWriter)) -> Vec<u8> {
    let mut writer = GgufWriter::default();
    metadata(&mut writer, "llama");
    more(&mut writer);
    for (name, shape, data) in tensors() {
        writer.tensor(&name, F32, &shape, &data);
    }
    writer.finish()
}

/// The tiny model in three files as `gguf-split` makes them: all metadata are in the first.
fn tiny_parts() -> [Vec<u8>; 3] {
    let tensors = tensors();
    let per_part = tensors.len().div_ceil(3);
    std::array::from_fn(|number| {
        let mut writer = GgufWriter::default();
        if number == 0 {
            metadata(&mut writer, "llama");
        }
        writer.key("split.no", U16, &(number as u16).to_le_bytes());
        writer.key("split.count", U16, &3_u16.to_le_bytes());
        writer.key("split.tensors.count", I32, &(tensors.len() as i32).to_le_bytes());
        for (name, shape, data) in tensors.iter().skip(number * per_part).take(per_part) {
            writer.tensor(name, F32, shape, data);
        }
        writer.finish()
    })
}

fn part_name(number: usize) -> String {
    format!("tiny-{number:05}-of-00003.gguf")
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

/// Estimated were half as many bytes again, as scales and biases take where there are any. What has not whole vectors of
/// inputs, as the tiny model's MLPs have not, is widened.
#[cfg(target_os = "linux")]
#[test]
fn a_plan_counts_numbers_of_16_bits_as_they_are_stored() {
    for (width, widening) in [(16, 2), (32, 1)] {
        let mut writer = GgufWriter::default();
        metadata(&mut writer, "llama");
        for (name, mut shape, data) in tensors() {
            if shape.len() < 2 {
                writer.tensor(&name, F32, &shape, &data);
                continue;
            }
            shape.iter_mut().filter(|size| **size == 16).for_each(|size| *size = width);
            // A plan reads no numbers.
            writer.tensor(&name, F16, &shape, &vec![0; 2 * shape.iter().product::<usize>()]);
        }
        let mut file = writer.finish();
        let key = b"llama.feed_forward_length";
        let place = file.windows(key.len()).position(|bytes| bytes == key).expect("it is stated");
        // Behind the value's type.
        file[place + key.len() + 4..][..4].copy_from_slice(&(width as u32).to_le_bytes());
        let stored_bytes = file.len() as u64;
        let desk = Desk::with_input(INPUT);
        desk.write("halves.gguf", file);
        let output =
            desk.bare().args(["plan", "in.jsonl", "--json", "--model", "halves.gguf"]).assert().code(0);
        let plan: Value = serde_json::from_slice(&output.get_output().stdout).expect("a plan is JSON");
        let planned = plan["weight_bytes"].as_u64().expect("a plan tells of memory");
        assert!(planned <= widening * stored_bytes, "{width}: {planned} for {stored_bytes}");
        assert!(planned > (widening - 1) * stored_bytes, "{width}: {planned} for {stored_bytes}");
    }
}

fn answers(desk: &Desk) -> Vec<String> {
    desk.output().iter().map(|line| text_of(line).to_owned()).collect()
}

/// MLX's own reader, which read the file once more behind ours, ended the process at such a key: SIGSEGV,
/// exit code 139, no word.
#[test]
fn a_float64_in_the_metadata_is_a_number_like_any_other() {
    let desk = Desk::with_input(INPUT);
    desk.run().assert().code(0);
    let expected = answers(&desk);
    let number = 0.1_f64.to_le_bytes().to_vec();
    let list =
        [F64.to_le_bytes().to_vec(), 2_u64.to_le_bytes().to_vec(), number.clone(), number.clone()].concat();
    for (kind, value) in [(F64, number), (ARRAY, list)] {
        desk.write("doubles.gguf", tiny_gguf_with(|writer| writer.key("general.doubles", kind, &value)));
        desk.run_with("doubles.gguf").assert().code(0);
        assert_eq!(answers(&desk), expected);
    }
}

/// A block of 32 numbers in one of the types that are a scale, perhaps a least number, and codes; and the
/// numbers that it then stands for. Each as the type's definition says, independently of the reader.
fn quantised(kind: u32, numbers: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (least, most) =
        numbers.iter().fold((0.0_f32, 0.0_f32), |(least, most), &x| (least.min(x), most.max(x)));
    let (num_codes, has_least) = match kind {
        Q4_0 => (16.0, false),
        Q4_1 => (16.0, true),
        Q5_0 => (32.0, false),
        Q5_1 => (32.0, true),
        _ => (256.0, false),
    };
    // Powers of two are what they are in float16, too.
    let range = if has_least { most - least } else { 2.0 * most.max(-least) };
    let scale = (range / (num_codes - 2.0)).max(1e-4).log2().ceil().exp2();
    let offset = if has_least { (least / scale).floor() * scale } else { -scale * num_codes / 2.0 };
    let codes: Vec<u8> =
        numbers.iter().map(|x| ((x - offset) / scale).round().clamp(0.0, num_codes - 1.0) as u8).collect();
    let float16 = |x: f32| half_of(x).to_le_bytes();
    let mut block = float16(scale).to_vec();
    if has_least {
        block.extend(float16(offset));
    }
    if num_codes == 32.0 {
        let high = codes.iter().enumerate().fold(0_u32, |bits, (at, code)| bits | u32::from(code >> 4) << at);
        block.extend(high.to_le_bytes());
    }
    match kind {
        Q8_0 => block.extend(codes.iter().map(|code| code ^ 0x80)),
        _ => block.extend((0..16).map(|at| codes[at] & 15 | codes[at + 16] << 4)),
    }
    (block, codes.iter().map(|&code| f32::from(code) * scale + offset).collect())
}

const Q4_0: u32 = 2;
const Q4_1: u32 = 3;
const Q5_0: u32 = 6;
const Q5_1: u32 = 7;
const Q8_0: u32 = 8;

/// Float16 of a number that it holds exactly and that is not too small for a full exponent.
fn half_of(x: f32) -> u16 {
    if x == 0.0 {
        return 0;
    }
    let bits = x.to_bits();
    assert_eq!(bits & 0x1fff, 0, "{x} is no float16");
    let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
    assert!((1..31).contains(&exponent), "{x} is no normal float16");
    (bits >> 16 & 0x8000) as u16 | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}

/// A file of `Q4_K_M` has rows of other types beside those of its name: one of Q5_0 was refused whole.
#[test]
fn a_file_of_mixed_types_answers_as_the_numbers_that_it_holds() {
    let (mut mixed, mut plain) = (GgufWriter::default(), GgufWriter::default());
    metadata(&mut mixed, "llama");
    metadata(&mut plain, "llama");
    for (number, (name, shape, data)) in tensors().into_iter().enumerate() {
        let kind = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0][number % 5];
        if shape.len() < 2 || shape[1] % 32 != 0 {
            mixed.tensor(&name, F32, &shape, &data);
            plain.tensor(&name, F32, &shape, &data);
            continue;
        }
        let numbers: Vec<f32> =
            data.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect();
        let (blocks, meant): (Vec<_>, Vec<_>) =
            numbers.chunks(32).map(|numbers| quantised(kind, numbers)).unzip();
        let meant: Vec<u8> = meant.concat().iter().flat_map(|x| x.to_le_bytes()).collect();
        mixed.tensor(&name, kind, &shape, &blocks.concat());
        plain.tensor(&name, F32, &shape, &meant);
    }
    let desk = Desk::with_input(INPUT);
    let [from_mixed, from_plain] = [("mixed.gguf", mixed), ("plain.gguf", plain)].map(|(name, writer)| {
        desk.write(name, writer.finish());
        desk.run_with(name).assert().code(0);
        answers(&desk)
    });
    assert_eq!(from_mixed, from_plain);
}

/// Part 1 alone was "a weight is missing", and the others "general.architecture is missing".
#[test]
fn a_model_in_parts_answers_as_the_whole_from_the_name_of_each() {
    let desk = Desk::with_input(INPUT);
    desk.write("whole.gguf", tiny_gguf());
    desk.run_with("whole.gguf").assert().code(0);
    let expected = answers(&desk);
    for (number, bytes) in tiny_parts().into_iter().enumerate() {
        desk.write(&part_name(number + 1), bytes);
    }
    for number in 1..=3 {
        desk.run_with(part_name(number)).assert().code(0);
        assert_eq!(answers(&desk), expected, "from part {number}");
    }
}

#[test]
fn parts_that_are_missing_or_do_not_belong_together_are_named() {
    let desk = Desk::with_input(INPUT);
    desk.write("out.jsonl", "older\n");
    let parts = tiny_parts();
    let refused_with = |given: &str, written: &[(String, &[u8])], expected: &[&str]| {
        for number in 1..=3 {
            let _ = std::fs::remove_file(desk.path(&part_name(number)));
        }
        written.iter().for_each(|(name, bytes)| desk.write(name, bytes));
        let assert = desk.run_with(given).assert().code(1).stderr(contains("panicked").not());
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        expected.iter().for_each(|part| assert!(stderr.contains(part), "no {part:?} in: {stderr}"));
        assert_eq!(desk.read("out.jsonl"), "older\n");
    };
    let all = || (1..=3).map(|number| (part_name(number), parts[number - 1].as_slice())).collect::<Vec<_>>();
    let without =
        |number: usize| all().into_iter().filter(|(name, _)| *name != part_name(number)).collect::<Vec<_>>();
    refused_with(&part_name(1), &without(2), &[&part_name(2), "is not there", "one of 3 parts"]);
    refused_with(&part_name(3), &without(1), &[&part_name(1), "is not there"]);
    refused_with(&part_name(1), &all()[..1], &[&part_name(2), "2 parts are missing"]);
    let mut twice = all();
    twice[2].1 = &parts[1];
    refused_with(&part_name(1), &twice, &[&part_name(3), "does not belong", "split.no is 1"]);
    let whole = tiny_gguf();
    let mut other = all();
    other[1].1 = &whole;
    refused_with(&part_name(1), &other, &[&part_name(2), "does not belong", "split.count is missing"]);
    refused_with(
        "renamed.gguf",
        &[("renamed.gguf".to_owned(), &parts[1])],
        &["-00002-of-00003.gguf", "part 2 of 3"],
    );
    // Another model's second part, which has one more of the first one's tensors.
    let mut foreign = GgufWriter::default();
    foreign.text("general.architecture", "qwen2");
    foreign.key("split.no", U16, &1_u16.to_le_bytes());
    foreign.key("split.count", U16, &3_u16.to_le_bytes());
    let foreign = foreign.finish();
    let mut mixed = all();
    mixed[1].1 = &foreign;
    refused_with(&part_name(1), &mixed, &[&part_name(2), "another value of 'general.architecture'"]);
    let mut empty = GgufWriter::default();
    empty.key("split.no", U16, &1_u16.to_le_bytes());
    empty.key("split.count", U16, &3_u16.to_le_bytes());
    let empty = empty.finish();
    let mut short = all();
    short[1].1 = &empty;
    refused_with(&part_name(2), &short, &["split.tensors.count"]);
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
    const Q8_1: u32 = 9;
    with_type.tensor("token_embd.weight", Q8_1, &[304, 32], &[0; 304 * 36]);
    refused(&desk, &with_type.finish(), &["'token_embd.weight'", "Q8_1", "use another quantisation"]);
    let mut other = GgufWriter::default();
    metadata(&mut other, "mamba");
    refused(&desk, &other.finish(), &["architecture 'mamba' are not supported", "qwen3moe"]);
    let mut without_weights = GgufWriter::default();
    metadata(&mut without_weights, "llama");
    without_weights.tensor("token_embd.weight", F32, &[304, 32], &[0; 304 * 32 * 4]);
    refused(&desk, &without_weights.finish(), &["is missing"]);
}
