//! `mlxbatch plan` on the real binary, over the tiny model's tokenizer and template.
//!
//! Owns what a user sees; what may be shared is tested against sets of prefixes beside the code.

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    /// A folder with this input and the tiny model, whose weights are an empty file.
    fn with(input: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("in.jsonl"), input).expect("room for the input");
        let model = folder.path().join("model");
        fs::create_dir(&model).expect("room for a folder");
        for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(fixtures().join("tiny-llama").join(name), model.join(name)).expect("copied");
        }
        fs::write(model.join("model.safetensors"), "").expect("room for an empty file");
        Self(folder)
    }

    fn plan(&self) -> Command {
        let mut command = Command::cargo_bin("mlxbatch").expect("the binary is built with the tests");
        command.env_remove("MLXBATCH_MODEL").current_dir(self.0.path());
        command.args(["plan", "in.jsonl", "--model", "model"]);
        command
    }

    fn plan_json(&self, code: i32) -> Value {
        let assert = self.plan().arg("--json").assert().code(code);
        serde_json::from_slice(&assert.get_output().stdout).expect("one JSON object and nothing else")
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn conversation(system: &str, user: &str) -> String {
    let messages =
        serde_json::json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
    format!("{}\n", serde_json::json!({"messages": messages}))
}

#[test]
fn equal_prompts_are_computed_once_but_for_their_last_token() {
    let folder = Folder::with(&conversation("Be brief.", "Why is the sky blue?").repeat(4));
    let plan = folder.plan_json(0);
    let number = |name: &str| plan[name].as_u64().unwrap_or_else(|| panic!("{name} is no number: {plan}"));
    assert_eq!((number("num_requests"), number("num_failed"), number("num_windows")), (4, 0, 1));
    let length = number("longest_prompt_tokens");
    assert!(length > 20);
    assert_eq!(number("num_prompt_tokens"), 4 * length);
    assert_eq!(number("num_unique_tokens"), length);
    assert_eq!(plan["share_reusable"], 0.75);
    // Four layers, keys and values of two heads of eight f32 numbers each.
    assert_eq!(number("kv_bytes_per_token"), 4 * 2 * 2 * 8 * 4);
    assert_eq!(number("kv_all_prompts_bytes"), 4 * length * 512);
    assert_eq!(number("kv_shared_once_bytes"), length * 512);
    assert_eq!(plan["largest_shared"].as_array().map(Vec::len), Some(1));
    let shared = &plan["largest_shared"][0];
    assert_eq!((&shared["num_users"], &shared["num_tokens"]), (&Value::from(4), &Value::from(length - 1)));
    assert!(shared["text"].as_str().is_some_and(|text| text.starts_with("system Be brief.")), "{shared}");

    // One request at a time, each with an answer of seven tokens.
    let output =
        folder.plan().args(["--json", "--batch-size", "1", "--max-tokens", "7"]).output().expect("runs");
    let plan: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(plan["kv_peak_bytes"], (length + 7) * 512);
}

#[test]
fn the_report_names_what_is_shared() {
    let system = "You are a careful assistant that answers in one short sentence.";
    let input = conversation(system, "Why is the sky blue?")
        + &conversation(system, "Who wrote Faust?")
        + &conversation("Another one.", "Why?");
    Folder::with(&input).plan().assert().code(0).stderr(is_empty()).stdout(
        contains("in.jsonl: 3 requests\n")
            .and(contains("unique tokens"))
            .and(contains("with shared prefixes held once (f32, 512 bytes a token)"))
            .and(contains("at --batch-size 32"))
            .and(contains("largest shared prefixes"))
            .and(contains("You are a careful assistant that answers in one short")),
    );
}

#[test]
fn lines_that_cannot_be_run_are_named_and_left_out() {
    let folder = Folder::with("");
    let too_long = conversation("x", &"word ".repeat(5000));
    let refused = "{\"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}\n";
    let input = format!("nonsense\n{refused}{too_long}{}", conversation("x", "y"));
    fs::write(folder.0.path().join("in.jsonl"), input).expect("room");
    folder
        .plan()
        .assert()
        .code(3)
        .stdout(contains("in.jsonl: 4 requests, 3 of them cannot be run\n"))
        .stderr(
            contains("in.jsonl:1: not valid JSON")
                .and(contains("in.jsonl:2: messages[0].role: \"robot\" is not a role"))
                .and(contains("in.jsonl:3: messages: the prompt has"))
                .and(contains("the model's context of 4096")),
        );
    let plan = folder.plan_json(3);
    assert_eq!((&plan["num_requests"], &plan["num_failed"]), (&Value::from(4), &Value::from(3)));
    assert_eq!(plan["num_prompt_tokens"], plan["longest_prompt_tokens"]);
    folder.plan().arg("--quiet").assert().code(3).stderr(is_empty());
}

/// Lines in any order share the same tokens.
#[test]
fn a_real_batch_gives_the_same_numbers_in_any_order() {
    let text = fs::read_to_string(fixtures().join("data/mt_bench.jsonl")).expect("the fixture is there");
    let plan = Folder::with(&text).plan_json(0);
    let share = plan["share_reusable"].as_f64().expect("a number");
    assert!((0.10..0.35).contains(&share), "{share}");
    assert_eq!(plan["num_requests"], 110);

    let reversed: Vec<&str> = text.lines().rev().collect();
    assert_eq!(Folder::with(&reversed.join("\n")).plan_json(0), plan);
}

#[test]
fn standard_input_and_an_empty_file_are_planned_too() {
    let folder = Folder::with("");
    folder
        .plan()
        .assert()
        .code(0)
        .stdout("in.jsonl: 0 requests\n")
        .stderr("mlxbatch: warning: in.jsonl holds no requests\n");
    let mut command = Command::cargo_bin("mlxbatch").expect("the binary is built with the tests");
    command
        .current_dir(folder.0.path())
        .args(["plan", "-", "-m", "model"])
        .write_stdin("{\"prompt\": \"Hello\"}");
    command.assert().code(0).stdout(contains("<stdin>: 1 request\n"));
}

#[test]
fn a_missing_model_or_input_is_fatal_and_named() {
    let folder = Folder::with("{\"prompt\": \"x\"}");
    fs::remove_file(folder.0.path().join("model/config.json")).expect("it was there");
    folder.plan().assert().code(1).stdout(is_empty()).stderr(contains("config.json"));
    fs::remove_file(folder.0.path().join("in.jsonl")).expect("it was there");
    folder.plan().assert().code(1).stdout(is_empty()).stderr(contains("cannot open the input in.jsonl"));
}
