//! `--adapter`: answers with an adapter are the same in every state of the cache, and never mixed with those of
//! another.
//!
//! Owns what a user sees of adapters. That their numbers are right is `golden.rs`'s business, what their files may say
//! that of `models::adapter`'s tests.

use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

use crate::gguf::tiny_gguf;
use crate::persist::{conversations, run_on, texts, warm_answers_with};
use crate::support::{Desk, MODEL, fixture_path};

fn adapter(name: &str) -> String {
    fixture_path(&format!("adapters/{name}")).display().to_string()
}

#[test]
fn a_warm_run_with_an_adapter_answers_as_a_cold_one() {
    for (model, name) in [
        ("tiny-llama", "llama-qv"),
        ("tiny-llama-4bit", "llama-4bit-dora"),
        ("tiny-qwen3_moe-4bit", "qwen3_moe-4bit-all"),
    ] {
        warm_answers_with(&fixture_path(model), &["--adapter", &adapter(name)]);
    }
    warm_answers_with(
        &fixture_path("tiny-llama-4bit"),
        &["--adapter", &adapter("llama-4bit-all"), "--fuse-adapter"],
    );
}

/// One file for all of them: each run takes nothing of what another left, and says why.
#[test]
fn a_cache_of_the_base_or_of_another_adapter_is_never_taken() {
    let model = fixture_path(MODEL);
    let desk = Desk::with_input(conversations());
    let qv = adapter("llama-qv");
    // The same weights with half the scale.
    desk.copy_folder("adapters/llama-qv", "half");
    let config = desk.read("half/adapter_config.json").replace("20.0", "10.0");
    desk.write("half/adapter_config.json", config);

    let base = run_on(&desk, &model, "cache.bin", &[]);
    let full = adapter("llama-full");
    let mut seen = vec![base.clone()];
    for arguments in [
        vec!["--adapter", &qv],
        vec!["--adapter", "half"],
        vec!["--adapter", &full],
        vec!["--adapter", &qv, "--fuse-adapter"],
    ] {
        let mut command = desk.run_with(&model);
        command.args(["--persist-cache", "cache.bin", "--report", "report.json"]).args(&arguments);
        command.assert().code(0).stderr(contains("adapter differs"));
        assert_eq!(desk.report()["cache_file"]["num_restored_tokens"], 0, "{arguments:?}");
        let answers = texts(&desk);
        match arguments.len() {
            2 => assert!(!seen.contains(&answers), "{arguments:?} answers as another"),
            _ => assert_eq!(answers, seen[1], "in the weights it answers as beside them"),
        }
        seen.push(answers);
    }
    // And the base's is still there, untouched.
    assert_eq!(run_on(&desk, &model, "cache.bin", &["--require-cache"]), base);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
}

#[test]
fn records_and_report_name_the_adapter() {
    let desk = Desk::with_input("{\"prompt\": \"Once upon a time\", \"max_tokens\": 4}\n");
    let mut command = desk.run_with(fixture_path(MODEL));
    command.args(["--adapter", &adapter("llama-qv"), "--report", "report.json", "-v"]);
    command
        .assert()
        .code(0)
        .stderr(contains("adapter llama-qv: lora, 6 matrices updated beside the weights"));
    let model = desk.output_lines()[0]["response"]["body"]["model"].clone();
    assert!(model.as_str().is_some_and(|name| name.ends_with("tiny-llama:llama-qv")), "{model}");
    let told = desk.report()["model"]["adapter"].clone();
    let expected =
        json!({"name": "llama-qv", "kind": "lora", "num_updates": 6, "num_replaced": 0, "is_fused": false});
    assert_eq!(told, expected);
}

#[test]
fn a_request_for_another_adapter_is_an_error_line() {
    let line =
        |adapter: &str| json!({"prompt": "Once upon", "max_tokens": 3, "adapter": adapter}).to_string();
    let desk = Desk::with_input(format!("{}\n{}\n", line("llama-qv"), line("other")));
    let mut command = desk.run_with(fixture_path(MODEL));
    command.args(["--adapter", &adapter("llama-qv")]).assert().code(3);
    let output = desk.output_lines();
    assert_eq!(output[0]["error"], Value::Null);
    let message = output[1]["response"]["body"]["error"]["message"].as_str().expect("it says why").to_owned();
    assert!(
        message.contains("in.jsonl:2") && message.contains("\"other\"") && message.contains("llama-qv"),
        "{message}"
    );
}

#[test]
fn a_run_is_not_gone_on_with_under_another_adapter() {
    let desk = Desk::with_input("{\"prompt\": \"Once upon\", \"max_tokens\": 3}\n{\"prompt\": 1}\n");
    let mut first = desk.run_with(fixture_path(MODEL));
    first.args(["--adapter", &adapter("llama-qv")]).assert().code(3);
    let with = |arguments: &[&str]| {
        let mut command = desk.run_with(fixture_path(MODEL));
        command.args(["--resume", "--retry-errors"]).args(arguments).assert()
    };
    // Of the same name.
    desk.copy_folder("adapters/llama-full", "llama-qv");
    with(&["--adapter", "llama-qv"]).code(1).stderr(contains("adapter"));
    with(&["--adapter", &adapter("llama-qv"), "--fuse-adapter"]).code(1).stderr(contains("adapter"));
    with(&["--adapter", &adapter("llama-qv")]).code(3);
}

#[test]
fn an_adapter_works_on_a_gguf_file_as_on_its_folder() {
    let desk = Desk::with_input(conversations());
    let arguments = ["--adapter", &adapter("llama-qv")];
    let expected = run_on(&desk, &fixture_path(MODEL), "folder.bin", &arguments);
    desk.write("tiny.gguf", tiny_gguf());
    assert_eq!(run_on(&desk, &desk.path("tiny.gguf"), "gguf.bin", &arguments), expected);
}

#[test]
fn a_plan_counts_the_bytes_of_an_adapter() {
    let desk = Desk::with_input(conversations());
    let weight_bytes = |more: &[&str]| {
        let mut command = desk.bare();
        command
            .args(["plan", "in.jsonl", "--json", "--dtype", "f32", "--model"])
            .arg(fixture_path(MODEL))
            .args(more);
        let output = command.assert().code(0).get_output().stdout.clone();
        let plan: Value = serde_json::from_slice(&output).expect("a plan is JSON");
        plan["weight_bytes"].as_u64().expect("a plan tells of memory")
    };
    // Of three layers' queries and values, of rank 4.
    let added = 4 * 3 * 4 * (32 + 32 + 32 + 16);
    let qv = adapter("llama-qv");
    assert_eq!(weight_bytes(&["--adapter", &qv]), weight_bytes(&[]) + added);
    assert_eq!(weight_bytes(&["--adapter", &qv, "--fuse-adapter"]), weight_bytes(&[]));
}

#[test]
fn an_adapter_that_is_not_for_the_model_is_an_error_that_says_so() {
    let desk = Desk::with_input(conversations());
    let run = |model: &str, adapter: &str, expected: &str| {
        let mut command = desk.run_with(fixture_path(model));
        command.args(["--adapter", adapter]);
        command.assert().code(1).stderr(contains(expected).and(contains("panicked").not()));
    };
    // Of other sizes.
    let update = "its update of 'model.layers.0.self_attn.q_proj' has shapes";
    run("tiny-qwen2", &adapter("llama-4bit-all"), update);
    // Of another family, whose matrices are others.
    run("tiny-llama", &adapter("glm4-all"), "layers.2.self_attn.q_proj' has shapes [3, 32] and [64, 3]");
    run("tiny-qwen2", &adapter("llama-full"), "has shape [32, 16], and the model's has [32, 64]");
    run("tiny-llama", "no-such-folder", "adapter_config.json is not there");
    let mut command = desk.run_with(fixture_path(MODEL));
    command.arg("--fuse-adapter").assert().code(2).stderr(contains("--adapter"));
}
