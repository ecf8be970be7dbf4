//! A model one of whose tokens is poisoned: the lines that hold it fail, and nobody else notices.
//!
//! Owns rows of no numbers in real runs. How a whole model overflows is `model_files`' business.

use std::collections::HashMap;
use std::fs;

use predicates::str::contains;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::support::{Desk, MODEL, fixture_path, id_of, message_of, text_of};

/// Puts numbers that are none into the embedding of the token "~"; no answer has it.
fn poison(desk: &Desk) {
    let bytes = fs::read(fixture_path(MODEL).join("model.safetensors")).expect("the fixture is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("the fixture is sound");
    let tokenizer: Value = serde_json::from_str(&desk.read("model/tokenizer.json")).expect("JSON");
    let token = tokenizer["model"]["vocab"]["~"].as_u64().expect("the token is there") as usize;
    let embeddings = tensors.tensor("model.embed_tokens.weight").expect("it is there");
    let (shape, width) = (embeddings.shape().to_vec(), embeddings.shape()[1] * 4);
    let mut head = embeddings.data().to_vec();
    let mut poisoned = head.clone();
    // Nobody answers with it.
    head[token * width..(token + 1) * width].fill(0);
    for number in poisoned[token * width..(token + 1) * width].chunks_exact_mut(4) {
        number.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    let mut all: HashMap<String, TensorView> = tensors.tensors().into_iter().collect();
    let view = |data| TensorView::new(Dtype::F32, shape.clone(), data).expect("the same shape");
    all.insert("model.embed_tokens.weight".to_owned(), view(&poisoned));
    all.insert("lm_head.weight".to_owned(), view(&head));
    let bytes = safetensors::serialize(all, None).expect("it can be written");
    desk.write("model/model.safetensors", bytes);
    desk.set_field("model/config.json", "tie_word_embeddings", json!(false));
}

/// 120 of 320 lines on one poisoned prefix gave 32 output lines and exit code 1.
#[test]
fn lines_on_a_poisoned_prefix_fail_by_themselves_and_all_others_are_answered() {
    let lines: Vec<(bool, String)> = (0..320)
        .map(|index| {
            let is_poisoned = index % 8 < 3;
            let prompt = match is_poisoned {
                true => format!("The sea and ~ all that these lines begin with {index}"),
                false => format!("The sea and all that line {index} asks about"),
            };
            (is_poisoned, json!({"id": format!("r{index}"), "prompt": prompt, "max_tokens": 4}).to_string())
        })
        .collect();
    let input = |with_poisoned: bool| -> String {
        let wanted = lines.iter().filter(|(is_poisoned, _)| with_poisoned || !is_poisoned);
        wanted.map(|(_, line)| format!("{line}\n")).collect()
    };
    let desk = Desk::with_input(input(false));
    let model = desk.copy_model(MODEL);
    poison(&desk);
    desk.run_with(&model).arg("-q").assert().code(0);
    let clean: HashMap<String, String> =
        desk.output().iter().map(|line| (id_of(line).to_owned(), text_of(line).to_owned())).collect();
    assert_eq!(clean.len(), 200);

    desk.write("in.jsonl", input(true));
    // Once cold, once on what the first has saved.
    for _ in 0..2 {
        let command = desk.run_with(&model).args(["--persist-cache", "cache.bin"]).assert().code(3);
        command.stderr(contains("200 ok, 120 failed"));
        let output = desk.output();
        assert_eq!(output.len(), 320);
        for (line, (is_poisoned, _)) in output.iter().zip(&lines) {
            if *is_poisoned {
                assert_eq!(line["response"]["body"]["error"]["code"], "not_a_number");
                assert!(message_of(line).contains("no numbers"), "{line}");
            } else {
                assert_eq!(text_of(line), clean[id_of(line)], "{line}");
            }
        }
    }
}
