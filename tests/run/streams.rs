//! Pipes and standard streams: what goes where, who may close what, and what `--quiet` hides.

use std::io::{BufRead, BufReader, Read, Write};

use predicates::prelude::*;
use predicates::str::{contains, is_empty};

use crate::support::{Desk, MODEL, fixture_path, id_of, json_lines};

const LINE: &str = "{\"id\": \"a\", \"prompt\": \"Once upon\", \"max_tokens\": 4}\n";

#[test]
fn a_dash_is_standard_input_and_standard_output() {
    let desk = Desk::with_input("");
    let mut command = desk.bare();
    command.args(["run", "-", "-o", "-", "--model"]).arg(fixture_path(MODEL));
    let assert = command.write_stdin(format!("{LINE}nonsense\n")).assert().code(3);
    let output = assert.get_output();
    let lines = json_lines(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(lines.iter().map(id_of).collect::<Vec<_>>(), ["a", "line-2"]);
    assert!(lines[1]["error"]["message"].as_str().is_some_and(|text| text.starts_with("<stdin>:2: ")));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("2 requests done") && stderr.contains("results    <stdout>"), "{stderr}");
    assert_eq!(desk.names(), ["in.jsonl"]);
}

#[test]
fn standard_output_is_in_input_order_whatever_finishes_first() {
    let input: String = (0..12)
        .map(|index| {
            format!(
                "{{\"id\": \"r{index}\", \"prompt\": \"x{index}\", \"max_tokens\": {}}}\n",
                24 - 2 * index
            )
        })
        .collect();
    let desk = Desk::with_input(input);
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", "-", "--batch-size", "5", "--model"]).arg(fixture_path(MODEL));
    let assert = command.assert().code(0);
    let lines = json_lines(&String::from_utf8_lossy(&assert.get_output().stdout));
    let expected: Vec<String> = (0..12).map(|index| format!("r{index}")).collect();
    assert_eq!(lines.iter().map(id_of).collect::<Vec<_>>(), expected);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let desk = Desk::with_input(LINE.replace("\"id\": \"a\", ", "").repeat(20_000));
    let mut child = desk.spawn(&["in.jsonl", "-o", "-", "--quiet", "--batch-size", "4"]);
    let mut first = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("a line comes");
    assert_eq!(id_of(&json_lines(&first)[0]), "line-1");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_closed_standard_error_is_no_error_either() {
    let desk = Desk::with_input(LINE);
    let mut child = desk.spawn(&["in.jsonl", "-o", "out.jsonl", "-v"]);
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(desk.output().len(), 1);
}

#[test]
fn quiet_prints_nothing_even_where_there_are_warnings() {
    let desk =
        Desk::with_input("{\"prompt\": \"x\", \"max_tokens\": 1, \"unheard_of\": 1, \"model\": \"other\"}\n");
    desk.write("out.jsonl.partial", "of a killed run\n");
    desk.run()
        .args(["--quiet", "--revision", "v1"])
        .env("NO_COLOR", "1")
        .assert()
        .code(0)
        .stdout(is_empty())
        .stderr(is_empty());
    assert_eq!(desk.read("out.jsonl.partial.1"), "of a killed run\n");
    desk.write("out.jsonl.partial", "of another\n");
    desk.run().args(["--revision", "v1"]).assert().code(0).stderr(
        contains("mlxbatch: warning: --revision is for hub repositories")
            .and(contains("\"unheard_of\""))
            .and(contains("asks for the model \"other\""))
            .and(contains("out.jsonl.partial.2")),
    );
}

#[test]
fn verbose_says_what_is_in_use_and_a_log_has_no_escapes() {
    let desk = Desk::with_input(LINE);
    for command in [desk.run().arg("-v"), desk.run().arg("-v").env("NO_COLOR", "1")] {
        command.assert().code(0).stdout(is_empty()).stderr(
            contains("tiny-llama: llama, 4 layers, context 4096, ")
                .and(contains(" BLAS "))
                .and(contains("1 request done in "))
                .and(contains("  generated  4 tokens"))
                .and(contains("\u{1b}").not())
                .and(contains("\r").not()),
        );
    }
    desk.bare()
        .args(["-v", "run", "in.jsonl", "-o", "out.jsonl", "--model"])
        .arg(fixture_path(MODEL))
        .assert()
        .code(0)
        .stderr(contains("4 layers"));
}

#[test]
fn a_named_pipe_serves_as_input_and_as_output() {
    let desk = Desk::with_input("");
    for name in ["in", "out"] {
        let status = std::process::Command::new("mkfifo").arg(desk.path(name)).status();
        assert!(status.expect("POSIX has mkfifo").success());
    }
    let mut child = desk.spawn(&["in", "-o", "out", "-q"]);
    let mut input = std::fs::OpenOptions::new().write(true).open(desk.path("in")).expect("it is read");
    let mut output = BufReader::new(std::fs::File::open(desk.path("out")).expect("it is written"));
    let mut text = String::new();
    for _ in 0..2 {
        // The answer comes while the input stays open.
        input.write_all(LINE.replace("\"a\"", &format!("\"a{}\"", text.len())).as_bytes()).expect("it reads");
        output.read_line(&mut text).expect("an answer comes");
    }
    drop(input);
    output.read_to_string(&mut text).expect("it ends");
    assert_eq!(json_lines(&text).len(), 2);
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}
