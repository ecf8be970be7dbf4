//! `--format`: results as flat objects or as a table, packed or not, and going on from them.

use std::io::Read;

use flate2::read::GzDecoder;
use predicates::prelude::*;
use predicates::str::contains;
use serde_json::{Value, json};

use crate::support::{Desk, json_lines};

/// Three questions, the last of which fails at first, with a comma, a quote and a line end in what they are.
const QUESTIONS: &str =
    "number,question,output\n1,\"Where, then?\",old\n2,\"Say \"\"hi\"\"\nto all\",\n3,Why?,x\n";

fn desk() -> Desk {
    let desk = Desk::with_input("");
    desk.write("in.csv", QUESTIONS);
    desk
}

/// A run over the questions; the temperature of the third is what is given.
fn run(desk: &Desk, output: &str, more: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = desk.bare();
    command.args([
        "run",
        "in.csv",
        "-o",
        output,
        "--max-tokens",
        "3",
        "--temperature",
        "0",
        "--id-column",
        "number",
    ]);
    command
        .args(["--template", "{{ question }}", "-q", "--model"])
        .arg(crate::support::fixture_path("tiny-llama"));
    command.args(more).assert()
}

#[test]
fn flat_objects_have_the_rows_own_columns_beside_the_answer() {
    let desk = desk();
    run(&desk, "records.jsonl", &[]).code(0);
    run(&desk, "out.jsonl", &["--format", "simple", "--keep-input"]).code(0);
    let (records, lines) = (json_lines(&desk.read("records.jsonl")), json_lines(&desk.read("out.jsonl")));
    assert_eq!(lines.len(), 3);
    for (record, line) in records.iter().zip(&lines) {
        let choice = &record["response"]["body"]["choices"][0];
        assert_eq!(line["id"], record["custom_id"]);
        assert_eq!(line["output"], choice["message"]["content"]);
        assert_eq!(line["finish_reason"], choice["finish_reason"]);
    }
    assert_eq!((&lines[0]["question"], &lines[0]["input_output"]), (&json!("Where, then?"), &json!("old")));
    assert_eq!(desk.names(), ["in.csv", "in.jsonl", "out.jsonl", "records.jsonl"]);
    // On its way through a pipe it is the same.
    let stdout = run(&desk, "-", &["--format", "simple", "--keep-input"]).code(0).get_output().stdout.clone();
    assert_eq!(String::from_utf8_lossy(&stdout), desk.read("out.jsonl"));
}

#[test]
fn a_table_has_a_row_for_each_line_and_survives_packing() {
    let desk = desk();
    run(&desk, "out.csv", &["--format", "csv", "--keep-input"]).code(0);
    let mut table = csv::Reader::from_path(desk.path("out.csv")).expect("it is there");
    let names: Vec<String> = table.headers().expect("it has names").iter().map(str::to_owned).collect();
    assert_eq!(
        names,
        [
            "id",
            "output",
            "finish_reason",
            "error_code",
            "error",
            "prompt_tokens",
            "completion_tokens",
            "number",
            "question",
            "input_output"
        ]
    );
    let rows: Vec<csv::StringRecord> = table.records().map(|row| row.expect("a whole row")).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(&rows[1][8], "Say \"hi\"\nto all");
    run(&desk, "out.csv.gz", &["--format", "csv", "--keep-input"]).code(0);
    let mut unpacked = String::new();
    let packed = std::fs::File::open(desk.path("out.csv.gz")).expect("it is there");
    GzDecoder::new(packed).read_to_string(&mut unpacked).expect("it is packed with gzip");
    assert_eq!(unpacked, desk.read("out.csv"));
}

#[test]
fn what_failed_is_answered_later_whatever_the_format() {
    for (format, output) in [("simple", "out.jsonl"), ("csv", "out.csv"), ("openai", "out.jsonl.gz")] {
        let desk = Desk::with_input("");
        let line = |number: u32, temperature: u32| {
            format!(
                "{{\"id\": \"r{number}\", \"prompt\": \"Once\", \"max_tokens\": 2, \"temperature\": {temperature}}}\n"
            )
        };
        desk.write("in.jsonl", line(1, 0) + "{\n");
        let run = |more: &[&str]| {
            let mut command = desk.bare();
            command.args([
                "run",
                "in.jsonl",
                "-o",
                output,
                "--format",
                format,
                "--deterministic-ids",
                "--model",
            ]);
            command.arg(crate::support::fixture_path("tiny-llama")).args(more).assert()
        };
        run(&[]).code(3);
        let (records, manifest) = (format!("{output}.records"), format!("{output}.records.manifest"));
        assert_eq!(desk.names(), ["in.jsonl", output, &records, &manifest], "{format}");
        let first = desk.read(&records).lines().next().expect("a record").to_owned();
        desk.write("in.jsonl", line(1, 0) + &line(2, 0));
        run(&["--resume"]).code(0).stderr(contains("1 of them earlier"));
        assert!(desk.read(&records).starts_with(&first), "{format}");
        // Nothing is left, and it is published all the same.
        desk.remove(output);
        run(&["--resume"]).code(0).stderr(contains("nothing is left to do"));
        assert!(desk.path(output).exists(), "{format}");
        // A run anew that has no failures leaves none of it, and so nothing to go on from.
        run(&[]).code(0);
        assert_eq!(desk.names(), ["in.jsonl", output], "{format}");
        run(&["--resume"])
            .code(1)
            .stderr(contains(format!("cannot read {manifest}")).and(contains("starts anew")));
    }
}

#[test]
fn errors_are_fields_and_what_cannot_be_written_is_refused() {
    let desk = Desk::with_input("{\"id\": \"a\", \"prompt\": \"x\", \"temperature\": 9}\n");
    desk.run().args(["--format", "simple", "-q"]).assert().code(3);
    let lines: Vec<Value> = json_lines(&desk.read("out.jsonl"));
    assert_eq!((&lines[0]["output"], &lines[0]["error_code"]), (&Value::Null, &json!("invalid_value")));
    assert!(lines[0]["error"].as_str().is_some_and(|error| error.starts_with("in.jsonl:1: temperature")));
    for (output, reason, hint) in [
        ("-", "--format csv needs a file; --output <stdout> is none", "--format simple"),
        ("out.csv.zst", "--output out.csv.zst: results are packed with gzip only", ".gz"),
    ] {
        let mut command = desk.bare();
        command.args(["run", "in.jsonl", "-o", output, "--format", "csv", "--model"]);
        let assert = command.arg(crate::support::fixture_path("tiny-llama")).assert();
        assert.code(1).stderr(contains(reason).and(contains(hint)));
    }
}
