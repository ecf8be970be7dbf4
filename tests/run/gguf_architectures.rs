//! GGUF files of every architecture that is served answer as the folders that they were made from.
//!
//! Owns putting together what llama.cpp's converter makes of the tiny fixtures, by the recipes of
//! `fixtures/gguf_cases.json` (`scripts/make_gguf_cases.py`), and the adapted folders beside them.

use std::{collections::BTreeMap, fs, path::PathBuf};

use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use serde_json::Value;

use super::gguf::{GgufWriter, tokenizer_metadata};
use crate::support::{Desk, fixture_path};

/// Longer than the windows and first contexts of the tiny models.
const INPUT: &str = concat!(
    "{\"id\": \"a\", \"prompt\": [5,17,99,200,31,7,44,3,120,250,64,9,8,77,140,141,22,1,60,61,62,63,64,65,66,67,68,69,70,",
    "12,13,14,15,16,18,19], \"max_tokens\": 16, \"logprobs\": 3, \"ignore_eos\": true}\n",
    "{\"id\": \"b\", \"prompt\": [9, 2, 250], \"max_tokens\": 24, \"logprobs\": 3, \"ignore_eos\": true}\n",
);
const MAX_DIFFERENCE: f64 = 1e-3;

/// Numbers of a weight and its shape.
type Weight = (Vec<usize>, Vec<f32>);

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn f32s(values: &Value) -> Vec<f32> {
    list(values).iter().map(|number| number.as_f64().expect("a number") as f32).collect()
}

fn numbers_of(tensor: &TensorView) -> Vec<f32> {
    let data = tensor.data();
    match tensor.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::BF16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16))
            .collect(),
        other => panic!("{other:?} is in no tiny model"),
    }
}

fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The fixture's weights under the names that they have in the case.
fn weights_of(case: &Value) -> BTreeMap<String, Weight> {
    let file = fixture_path(text(&case["fixture"])).join("model.safetensors");
    let bytes = fs::read(file).expect("the fixture is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("the fixture is sound");
    let mut weights = BTreeMap::new();
    for (mut name, tensor) in tensors.tensors() {
        if list(&case["dropped"]).iter().any(|part| name.contains(text(part))) {
            continue;
        }
        for pair in list(&case["renamed"]) {
            name = name.replace(text(&pair[0]), text(&pair[1]));
        }
        weights.insert(name, (tensor.shape().to_vec(), numbers_of(&tensor)));
    }
    weights
}

/// Writes the folder of the case's model.
fn write_folder(desk: &Desk, case: &Value, weights: &BTreeMap<String, Weight>) -> PathBuf {
    let folder = desk.path(text(&case["name"]));
    fs::create_dir(&folder).expect("there is room");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        let from = fixture_path(text(&case["fixture"])).join(name);
        fs::copy(from, folder.join(name)).expect("the fixture is there");
    }
    fs::write(folder.join("config.json"), case["config"].to_string()).expect("there is room");
    let data: Vec<_> =
        weights.iter().map(|(name, (shape, numbers))| (name, shape, bytes_of(numbers))).collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        (*name, TensorView::new(Dtype::F32, (*shape).clone(), bytes).expect("numbers of this shape"))
    });
    let file = serialize(views, None).expect("sound tensors");
    fs::write(folder.join("model.safetensors"), file).expect("there is room");
    folder
}

/// The fixture's weight of this name; with "*" those of all experts, on top of each other.
fn weight(weights: &BTreeMap<String, Weight>, name: &str) -> Weight {
    let Some((before, after)) = name.split_once('*') else { return weights[name].clone() };
    let experts: Vec<&Weight> =
        (0..).map_while(|index| weights.get(&format!("{before}{index}{after}"))).collect();
    let shape = [&[experts.len()], experts[0].0.as_slice()].concat();
    (shape, experts.iter().flat_map(|(_, numbers)| numbers).copied().collect())
}

/// What the converter has made of a weight.
fn converted((shape, numbers): Weight, operation: &str) -> Vec<f32> {
    let words: Vec<&str> = operation.split(' ').collect();
    let number = |index: usize| words[index].parse::<usize>().expect("a number");
    let rows = |num_rows: usize| numbers.chunks(numbers.len() / num_rows).collect::<Vec<_>>();
    match words[0] {
        "same" => numbers,
        "plus_one" => numbers.iter().map(|number| number + 1.0).collect(),
        // Each head's two halves in turns.
        "pairs" => rows(shape[0])
            .chunks(shape[0] / number(1))
            .flat_map(|head| {
                let (first, second) = head.split_at(head.len() / 2);
                first.iter().zip(second).flat_map(|(one, other)| [*one, *other])
            })
            .flatten()
            .copied()
            .collect(),
        half @ ("first_half" | "second_half") => rows(2 * shape[0])
            .into_iter()
            .skip(usize::from(half == "second_half"))
            .step_by(2)
            .flatten()
            .copied()
            .collect(),
        "keys" => rows(number(1))
            .into_iter()
            .flat_map(|head| {
                let width = shape[1];
                let keys = &head[..number(2) * width];
                (0..width).flat_map(move |column| keys.iter().skip(column).step_by(width)).copied()
            })
            .collect(),
        "values" => {
            rows(number(1)).into_iter().flat_map(|head| &head[number(2) * shape[1]..]).copied().collect()
        }
        other => panic!("{other} is no operation"),
    }
}

fn put(writer: &mut GgufWriter, row: &Value) {
    let (key, value) = (text(&row[0]), &row[2]);
    let array = |kind: u32, entries: Vec<Vec<u8>>| {
        let head = [kind.to_le_bytes().to_vec(), (entries.len() as u64).to_le_bytes().to_vec()];
        head.into_iter().chain(entries).flatten().collect::<Vec<u8>>()
    };
    match text(&row[1]) {
        "uint32" => writer.number(key, value.as_u64().expect("a count") as u32),
        "float32" => writer.float(key, value.as_f64().expect("a number") as f32),
        "string" => writer.text(key, text(value)),
        "bool" => writer.key(key, 7, &[u8::from(value == true)]),
        "[bool]" => {
            let flags = list(value).iter().map(|flag| vec![u8::from(flag == true)]).collect();
            writer.key(key, 9, &array(7, flags));
        }
        "[int32]" | "[uint32]" => {
            let whole = |number: &Value| (number.as_i64().expect("a number") as i32).to_le_bytes().to_vec();
            writer.key(key, 9, &array(5, list(value).iter().map(whole).collect()));
        }
        other => panic!("{key} is {other}"),
    }
}

/// The case's file.
fn gguf_of(case: &Value, weights: &BTreeMap<String, Weight>) -> Vec<u8> {
    let mut writer = GgufWriter::default();
    list(&case["metadata"]).iter().for_each(|row| put(&mut writer, row));
    tokenizer_metadata(&mut writer);
    for tensor in list(&case["tensors"]) {
        let shape: Vec<usize> =
            list(&tensor[1]).iter().map(|size| size.as_u64().expect("a size") as usize).collect();
        let recipe = &tensor[2];
        let numbers = match recipe[0].as_str() {
            Some(name) => converted(weight(weights, name), text(&recipe[1])),
            None => f32s(recipe),
        };
        writer.tensor(text(&tensor[0]), 0, &shape, &bytes_of(&numbers));
    }
    writer.finish()
}

/// The tokens and their log-probabilities of all answers.
fn answers(desk: &Desk) -> Vec<(Value, Vec<f64>)> {
    let of = |line: &Value| {
        let logprobs = &line["response"]["body"]["choices"][0]["logprobs"];
        let numbers = list(&logprobs["token_logprobs"]).iter().filter_map(Value::as_f64).collect();
        (logprobs["tokens"].clone(), numbers)
    };
    desk.output().iter().map(of).collect()
}

/// Only llama, qwen2 and gemma3 were served; of the others each stores something in a way of its own: rows by pairs,
/// norms that mean another place, fused matrices, experts on top of each other, latents cut by head.
#[test]
fn files_of_every_architecture_answer_as_the_folders_they_were_made_from() {
    let cases = fs::read_to_string(fixture_path("gguf_cases.json")).expect("the fixture is there");
    let cases: Vec<Value> = serde_json::from_str(&cases).expect("the fixture is JSON");
    assert!(cases.len() >= 29);
    for case in &cases {
        let name = text(&case["name"]);
        let desk = Desk::with_input(INPUT);
        let weights = weights_of(case);
        let folder = write_folder(&desk, case, &weights);
        desk.write("tiny.gguf", gguf_of(case, &weights));
        // LongRoPE's two sets of factors.
        let has_choice = case["config"]["rope_scaling"]["long_factor"].is_array();
        let flags: [&[&str]; 2] = [&[], &["--long-context"]];
        for flags in &flags[..1 + usize::from(has_choice)] {
            desk.run_with(&folder).args(*flags).assert().code(0);
            let expected = answers(&desk);
            desk.run_with("tiny.gguf").args(*flags).assert().code(0);
            let found = answers(&desk);
            assert_eq!((found.len(), found[0].1.len(), found[1].1.len()), (2, 16, 24), "{name}");
            for ((found, found_numbers), (expected, expected_numbers)) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{name}");
                for (found, expected) in found_numbers.iter().zip(expected_numbers) {
                    assert!((found - expected).abs() < MAX_DIFFERENCE, "{name}: {found} {expected}");
                }
            }
        }
    }
}
