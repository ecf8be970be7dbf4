//! `mlxbatch validate` on the real binary, over input as bad as it comes.
//!
//! Owns the messages and exit codes a user sees; how each line is judged has its unit tests
//! beside the code.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    /// A folder with an input file of these bytes.
    fn with(input: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("in.jsonl"), input).expect("room for the input");
        Self(folder)
    }

    fn validate(&self) -> Command {
        let mut command = Command::cargo_bin("mlxbatch").expect("the binary is built with the tests");
        command.current_dir(self.0.path()).args(["validate", "in.jsonl"]);
        command
    }
}

#[test]
fn sound_input_of_all_forms_passes() {
    let input = concat!(
        "\u{feff}{\"id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\r\n",
        "\r\n",
        "{\"custom_id\": \"b\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", ",
        "\"body\": {\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"Hi\"}]}]}}\n",
        "{\"prompt\": \"Once upon a time\"}",
    );
    Folder::with(input)
        .validate()
        .assert()
        .code(0)
        .stdout("in.jsonl: 3 requests, all ok\n")
        .stderr(is_empty());
}

#[test]
fn each_problem_is_named_by_file_line_and_reason() {
    let mut input = Vec::new();
    for line in [
        &b"{\"id\": \"a\", \"prompt\": \"x\"}"[..],
        b"{\"id\": \"b\", \"prompt\": ",
        b"{\"id\": \"c\", \"prompt\": \"\xff\"}",
        b"",
        b"{\"id\": \"d\"}",
        b"{\"id\": \"e\", \"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}",
        b"{\"id\": \"a\", \"prompt\": \"x\"}",
        b"{\"id\": \"f\", \"prompt\": \"x\", \"temperature\": 3}",
        b"[]",
    ] {
        input.extend_from_slice(line);
        input.push(b'\n');
    }
    let expected = "\
in.jsonl:2: not valid JSON: EOF while parsing a value at column 22
in.jsonl:3: not valid UTF-8 at byte 24
in.jsonl:5: messages: a request needs `messages` (a conversation) or `prompt` (a text)
in.jsonl:6: messages[0].role: \"robot\" is not a role; use one of system, developer, user, assistant, tool
in.jsonl:7: custom_id: \"a\" was used by an earlier line; ids must be unique
in.jsonl:8: temperature: must be from 0 to 2, not 3
in.jsonl:9: expected a JSON object such as {\"messages\": […]}, found a list
in.jsonl: 8 requests, 7 with problems (1 duplicate_custom_id, 1 invalid_json, 1 invalid_utf8, \
2 invalid_value, 1 missing_required_parameter, 1 not_an_object)
";
    let folder = Folder::with(input);
    folder.validate().assert().code(3).stdout(expected).stderr(is_empty());
    folder.validate().arg("--quiet").assert().code(3).stdout(contains("requests,").not());
}

#[test]
fn unknown_fields_are_warned_of_once_each() {
    let input = "{\"prompt\": \"x\", \"mood\": 1}\n".repeat(3);
    let folder = Folder::with(input);
    folder.validate().assert().code(0).stderr(
        "mlxbatch: warning: in.jsonl:1: the field \"mood\" is not used by mlxbatch and is ignored; 3 times in all\n",
    );
    folder.validate().arg("-q").assert().code(0).stdout(is_empty()).stderr(is_empty());
}

#[test]
fn an_empty_file_is_no_error_but_is_remarked_on() {
    for input in ["", "\n \n\r\n"] {
        Folder::with(input)
            .validate()
            .assert()
            .code(0)
            .stdout("in.jsonl: 0 requests\n")
            .stderr("mlxbatch: warning: in.jsonl holds no requests\n");
    }
}

#[test]
fn a_line_of_ten_megabytes_is_a_request_like_any_other() {
    let long = format!("{{\"prompt\": \"{}\"}}\n{{\"prompt\": \"x\"}}\n", "many words ".repeat(1_000_000));
    Folder::with(long).validate().assert().code(0).stdout("in.jsonl: 2 requests, all ok\n");
}

#[test]
fn a_line_over_the_limit_is_skipped() {
    let long = format!("{{\"prompt\": \"{}\"}}\n{{\"prompt\": \"x\"}}\n", "x".repeat(64 << 20));
    Folder::with(long).validate().assert().code(3).stdout(
        contains("in.jsonl:1: the line has").and(contains("2 requests, 1 with problems (1 line_too_long)")),
    );
}

#[test]
fn a_missing_file_and_a_folder_are_fatal_and_named() {
    let folder = Folder::with("");
    fs::remove_file(folder.0.path().join("in.jsonl")).unwrap();
    folder.validate().assert().code(1).stdout(is_empty()).stderr(
        contains("mlxbatch: error: cannot open the input in.jsonl\n")
            .and(contains("because: No such file or directory"))
            .and(contains("hint: ")),
    );
    fs::create_dir(folder.0.path().join("in.jsonl")).unwrap();
    folder.validate().assert().code(1).stderr(contains("in.jsonl is a directory"));
}

/// Schemas and grammars are compiled without a model; only what names its tokens has to wait for one.
#[test]
fn constraints_that_cannot_be_served_are_found() {
    let input = concat!(
        "{\"prompt\": \"x\", \"guided_json\": {\"type\": \"object\"}}\n",
        "{\"prompt\": \"x\", \"guided_json\": {\"not\": {}}}\n",
        "{\"prompt\": \"x\", \"guided_regex\": \"(\"}\n",
        "{\"prompt\": \"x\", \"grammar\": \"start: nowhere\"}\n",
        "{\"prompt\": \"x\", \"grammar\": \"start: <|im_end|>\"}\n",
        "{\"prompt\": \"x\", \"guided_choice\": [\"a\"], \"regex\": \"b\"}\n",
    );
    Folder::with(input).validate().assert().code(3).stdout(
        contains("in.jsonl:2: guided_json: cannot be served: Unimplemented keys: [\"not\"]\n")
            .and(contains("in.jsonl:3: guided_regex: "))
            .and(contains("in.jsonl:4: grammar: "))
            .and(contains("in.jsonl:6: regex: differs from what `guided_choice` wants of the answer"))
            .and(contains("6 requests, 4 with problems (1 invalid_value, 3 unsupported_value)")),
    );
}

#[test]
fn standard_input_is_read_for_a_dash() {
    Command::cargo_bin("mlxbatch")
        .unwrap()
        .args(["validate", "-"])
        .write_stdin("{\"prompt\": \"x\"}\nnonsense")
        .assert()
        .code(3)
        .stdout(contains("<stdin>:2: not valid JSON").and(contains("<stdin>: 2 requests, 1 with problems")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_fatal() {
    let folder = Folder::with("nonsense\n".repeat(10_000));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let output = std::process::Command::new(binary())
        .current_dir(folder.0.path())
        .args(["validate", "in.jsonl"])
        .stdout(full)
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("cannot write to standard output") && stderr.contains("No space left"),
        "{stderr}"
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let folder = Folder::with("nonsense\n".repeat(100_000));
    let mut child = std::process::Command::new(binary())
        .current_dir(folder.0.path())
        .args(["validate", "in.jsonl"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    // Far more than a pipe holds is still to come when its reading end closes.
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

fn binary() -> PathBuf {
    assert_cmd::cargo::cargo_bin("mlxbatch")
}
