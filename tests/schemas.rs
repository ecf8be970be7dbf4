//! `mlxbatch schema`: what is shown as a line in README, man pages and fixtures is one by the schemas.
//!
//! Owns finding those lines. That every line which is answered, and every record, is allowed by them is checked by
//! all tests of `run`.

use std::fs;
use std::path::{Path, PathBuf};

use jsonschema::Validator;
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The validator of what the command prints.
fn validator(kind: &str) -> Validator {
    let mut command = assert_cmd::Command::cargo_bin("mlxbatch").expect("the binary is built");
    let output = command.args(["schema", kind]).assert().code(0).get_output().stdout.clone();
    let schema: Value = serde_json::from_slice(&output).expect("it prints JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::draft202012::new(&schema).expect("it is a schema")
}

fn check(validator: &Validator, line: &Value, origin: &str) {
    let problems: Vec<String> =
        validator.iter_errors(line).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(problems.is_empty(), "{origin}: {problems:?}\n{line}");
}

/// Lines of a text that are JSON objects, as they stand in it or within what a manual's source makes of them.
fn objects(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| line.replace("\\-", "-").replace("\\(aq", "'").replace("\\\\", "\\"));
    lines.filter_map(|line| serde_json::from_str(line.trim()).ok()).filter(Value::is_object).collect()
}

#[test]
fn lines_in_readme_and_man_pages_are_lines() {
    let (input, output) = (validator("input"), validator("output"));
    let mut pages: Vec<PathBuf> = fs::read_dir(path("man"))
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pages.push(path("README.md"));
    let (mut num_input, mut num_output) = (0, 0);
    for page in pages {
        let text = fs::read_to_string(&page).expect("it is text");
        // Ids are made from a digest, which is no more than hinted at there.
        let digest = "0".repeat(32);
        let text = ["req_…", "chatcmpl-…"]
            .iter()
            .fold(text, |text, shown| text.replace(*shown, &shown.replace('…', &digest)));
        for line in objects(&text) {
            let is_output = line.get("response").is_some();
            let (validator, count) =
                if is_output { (&output, &mut num_output) } else { (&input, &mut num_input) };
            check(validator, &line, &page.display().to_string());
            *count += 1;
        }
    }
    assert!(num_input >= 2 && num_output >= 1, "{num_input} and {num_output} lines were found");
}

#[test]
fn lines_of_the_fixtures_are_lines() {
    let input = validator("input");
    let mut num_lines = 0;
    for name in [
        "example.jsonl",
        "data/gsm8k_8shot.jsonl",
        "data/humaneval.jsonl",
        "data/mt_bench.jsonl",
        "clients/bodies.jsonl",
    ] {
        for line in fs::read_to_string(path("fixtures").join(name)).expect("it is there").lines() {
            check(&input, &serde_json::from_str(line).expect("JSON"), name);
            num_lines += 1;
        }
    }
    assert!(num_lines > 300, "{num_lines}");
}

#[test]
fn what_is_no_line_is_none_by_the_schemas() {
    let (input, output) = (validator("input"), validator("output"));
    let user = json!({"role": "user", "content": "Hi"});
    for (line, is_line) in [
        (json!({"messages": [user], "temperature": 1, "no such field": 1}), true),
        (json!({"messages": [user, {"role": "assistant", "content": null}, user]}), true),
        (json!({"turns": ["a", "b"], "question_id": 81}), true),
        (json!({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": null}]}), true),
        (json!({"custom_id": "a", "url": "/v1/chat/completions", "body": {"turns": ["a"], "n": 2}}), true),
        (json!({"prompt": [[1, 2], "x"], "max_tokens": null}), true),
        (json!({"messages": [user], "temperature": 3}), false),
        (json!({"messages": [{"role": "user", "content": null}]}), false),
        (json!({"messages": []}), false),
        (json!({"turns": ["a", 2]}), false),
        (json!({"prompt": ""}), false),
        (json!({"prompt": "a", "n": 0}), false),
        (json!({"body": {"messages": [user], "top_p": 2}}), false),
        (json!({"url": "/v1/chat/completions"}), false),
        (json!({}), false),
        (json!([]), false),
    ] {
        assert_eq!(input.is_valid(&line), is_line, "{line}");
    }
    let message = json!({"code": "invalid_json", "message": "in.jsonl:3: no"});
    let failed = json!({"id": "batch_req_3", "custom_id": "line-3", "response": null, "error": message});
    assert!(output.is_valid(&failed));
    for (field, value) in
        [("id", json!("3")), ("response", json!({})), ("error", Value::Null), ("more", json!(1))]
    {
        let mut line = failed.clone();
        line[field] = value;
        assert!(!output.is_valid(&line), "{line}");
    }
}
