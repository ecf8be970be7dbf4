//! What an answer is: its text, its end, its usage numbers; and what it may not depend on.

use std::collections::BTreeMap;

use predicates::str::is_empty;
use serde_json::{Value, json};

use crate::support::{Desk, MODEL, fixture_path, id_of, text_of};

const TOPICS: [&str; 10] = [
    "boats",
    "the harbour",
    "red sails",
    "Zürich",
    "a very long story about the sea and the men in it",
    "7",
    "What?",
    "bread",
    "the end",
    "snow & ice",
];

fn conversations() -> Vec<Value> {
    let chat = |(index, topic): (usize, &&str)| json!({"id": format!("r{index}"), "messages": [{"role": "user", "content": format!("Tell of {topic}.")}]});
    TOPICS.iter().enumerate().map(chat).collect()
}

/// Text, finish reason and usage by id.
fn answers(lines: &[Value], arguments: &[&str]) -> BTreeMap<String, Value> {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let desk = Desk::with_input(input);
    desk.run().args(arguments).arg("-q").assert().code(0).stderr(is_empty());
    let answer = |line: &Value| {
        let body = &line["response"]["body"];
        json!([text_of(line), body["choices"][0]["finish_reason"], body["usage"]])
    };
    desk.output().iter().map(|line| (id_of(line).to_owned(), answer(line))).collect()
}

#[test]
fn the_chat_answers_are_those_of_the_reference() {
    for model in [MODEL, "tiny-qwen3", "tiny-gemma3", "tiny-llama-sharded", "tiny-llama-4bit"] {
        let golden = std::fs::read_to_string(fixture_path(model).join("golden.json")).expect("it is there");
        let golden: Value = serde_json::from_str(&golden).expect("golden.json is JSON");
        let chats = golden["chat"].as_array().cloned().unwrap_or_default();
        let input: String =
            chats.iter().map(|chat| format!("{}\n", json!({"messages": chat["messages"]}))).collect();
        let desk = Desk::with_input(input);
        desk.run_with(fixture_path(model)).args(["--max-tokens", "40"]).assert().code(0);
        let output = desk.output();
        assert_eq!(output.len(), chats.len(), "{model}");
        for (line, chat) in output.iter().zip(&chats) {
            assert_eq!(text_of(line), chat["greedy_text_no_special"], "{model}");
            let num_prompt_tokens = chat["prompt_ids"].as_array().map(Vec::len);
            assert_eq!(
                line["response"]["body"]["usage"]["prompt_tokens"],
                json!(num_prompt_tokens),
                "{model}"
            );
        }
    }
    let golden = std::fs::read_to_string(fixture_path(MODEL).join("golden.json")).expect("it is there");
    assert!(golden.contains("greedy_text_no_special"), "there is a chat to compare with");
}

#[test]
fn usage_adds_up_and_the_finish_reason_tells_why() {
    let lengths = answers(&conversations(), &["--max-tokens", "25"]);
    assert_eq!(lengths.len(), TOPICS.len());
    let mut reasons = BTreeMap::new();
    for answer in lengths.values() {
        let [_, reason, usage] = answer.as_array().expect("made above").as_slice() else { unreachable!() };
        let count = |name: &str| usage[name].as_u64().expect("usage holds counts");
        assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("usage holds counts");
        assert!(cached < count("prompt_tokens"), "the last prompt token is always run");
        match reason.as_str() {
            Some("length") => assert_eq!(count("completion_tokens"), 25),
            Some("stop") => assert!((1..=25).contains(&count("completion_tokens"))),
            _ => panic!("{answer}"),
        }
        *reasons.entry(reason.to_string()).or_insert(0) += 1;
    }
    // Both ways of ending are among these answers, or the test would prove less than it says.
    assert_eq!(reasons.len(), 2, "{reasons:?}");
}

#[test]
fn greedy_answers_depend_neither_on_the_batch_nor_on_the_order() {
    let lines = conversations();
    let base = answers(&lines, &["--max-tokens", "24", "--batch-size", "1"]);
    let mut shuffled = lines.clone();
    shuffled.reverse();
    shuffled.swap(1, 6);
    for (lines, arguments) in [
        (&lines, ["--batch-size", "8"]),
        (&shuffled, ["--batch-size", "3"]),
        (&shuffled, ["--prefill-chunk", "7"]),
    ] {
        assert_eq!(
            answers(lines, &[&["--max-tokens", "24"][..], &arguments].concat()),
            base,
            "{arguments:?}"
        );
    }
}

#[test]
fn a_seed_makes_sampled_answers_repeatable_in_any_batch_and_order() {
    let lines = conversations();
    let sampled = |lines: &[Value], seed: &str, batch_size: &str| {
        let arguments = ["--max-tokens", "16", "--temperature", "1.2", "--top-p", "0.95", "--top-k", "60"];
        answers(lines, &[&arguments[..], &["--seed", seed, "--batch-size", batch_size]].concat())
    };
    let base = sampled(&lines, "7", "1");
    let mut shuffled = lines.clone();
    shuffled.rotate_left(3);
    assert_eq!(sampled(&lines, "7", "8"), base);
    assert_eq!(sampled(&shuffled, "7", "4"), base);
    assert_ne!(sampled(&lines, "8", "8"), base);
}

#[test]
fn one_seed_for_a_run_draws_equal_prompts_apart_and_a_seed_in_the_request_draws_them_alike() {
    let same = |id: &str, seed: Option<u64>| {
        let mut line = json!({"id": id, "prompt": "Once upon", "max_tokens": 12, "temperature": 1.5});
        if let Some(seed) = seed {
            line["seed"] = json!(seed);
        }
        line
    };
    let lines =
        [same("a", None), same("b", None), same("c", Some(5)), same("d", Some(5)), same("e", Some(6))];
    let found = answers(&lines, &["--seed", "5"]);
    assert_ne!(found["a"], found["b"]);
    assert_eq!(found["c"], found["d"]);
    assert_ne!(found["c"], found["e"]);
}

#[test]
fn an_answer_ends_before_its_stop_string() {
    let whole = answers(&conversations(), &["--max-tokens", "20"]);
    let (id, text) = whole
        .iter()
        .map(|(id, answer)| (id, answer[0].as_str().expect("a text")))
        .max_by_key(|(_, text)| text.len())
        .expect("there are answers");
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let at = text.find(&stop).expect("taken from it");
    let line: Vec<Value> = conversations().into_iter().filter(|line| line["id"] == id.as_str()).collect();
    let stopped = answers(&line, &["--max-tokens", "20", "--stop", "not to be found", "--stop", &stop]);
    assert_eq!((&stopped[id][0], &stopped[id][1]), (&json!(&text[..at]), &json!("stop")));
    // A request's own list takes the place of the flags', also when it is empty.
    let mut own = line;
    own[0]["stop"] = json!([]);
    assert_eq!(answers(&own, &["--max-tokens", "20", "--stop", &stop])[id][0], json!(text));
}

#[test]
fn every_precision_answers_and_f32_is_what_the_cpu_takes_by_itself() {
    let lines = &conversations()[..3];
    let by_default = answers(lines, &["--max-tokens", "8"]);
    if cfg!(target_os = "linux") && std::env::var_os("MLX_VARIANT").is_none() {
        assert_eq!(answers(lines, &["--max-tokens", "8", "--dtype", "f32"]), by_default);
    }
    for dtype in ["bf16", "f16"] {
        let found = answers(lines, &["--max-tokens", "8", "--dtype", dtype]);
        assert_eq!(found.len(), 3, "{dtype}");
    }
}
