//! What a person, a script and a report hear of lines that fail, and of a run that ends early.

use crate::support::Desk;
use predicates::prelude::*;
use predicates::str::contains;

/// Ten lines, of which eight fail, in two ways.
fn desk() -> Desk {
    let line = |place: usize| match place {
        0 | 5 => format!("{{\"id\": \"{place}\", \"prompt\": \"x\"}}\n"),
        1 | 2 => "{\n".to_owned(),
        _ => format!("{{\"id\": \"{place}\", \"prompt\": \"x\", \"temperature\": {place}0}}\n"),
    };
    Desk::with_input((0..10).map(line).collect::<String>())
}

#[test]
fn the_first_failures_are_told_and_all_are_counted() {
    let desk = desk();
    let assert = desk.run().args(["--max-tokens", "2", "--report", "report.json"]).assert().code(3);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    let told: Vec<&str> = stderr.lines().filter(|line| line.starts_with("mlxbatch: failed: ")).collect();
    assert_eq!(told.len(), 6, "{stderr}");
    assert!(told[0].starts_with("mlxbatch: failed: in.jsonl:2: not valid JSON"), "{stderr}");
    assert!(stderr.contains("  failed     6 invalid_value, 2 invalid_json\n"), "{stderr}");
    let report = desk.report();
    assert_eq!(report["failures"]["invalid_value"]["num"], 6);
    assert_eq!(report["failures"]["invalid_json"]["examples"].as_array().map(Vec::len), Some(2));
    desk.run().args(["--max-tokens", "2", "-q"]).assert().code(3).stderr(predicates::str::is_empty());
}

#[test]
fn some_failures_may_be_allowed() {
    let desk = desk();
    for (allowed, code) in [("8", 0), ("7", 3), ("80%", 0), ("79.9%", 3), ("0", 3)] {
        desk.run().args(["--max-tokens", "2", "-q", "--fail-on-errors", allowed]).assert().code(code);
    }
    for wrong in ["-1", "101%", "some"] {
        let arguments = [format!("--fail-on-errors={wrong}")];
        desk.run().args(arguments).assert().code(2).stderr(contains("a share of them"));
    }
}

#[test]
fn a_run_ends_when_its_time_is_up_and_goes_on_later() {
    let line = |index: usize| {
        format!("{{\"id\": \"r{index}\", \"prompt\": \"Once {index}\", \"max_tokens\": 40}}\n")
    };
    let desk = Desk::with_input((0..50_000).map(line).collect::<String>());
    desk.run()
        .args(["--max-time", "1500ms", "--batch-size", "4"])
        .assert()
        .code(4)
        .stderr(contains("done when the time was up").and(contains("--resume goes on")));
    assert!(desk.path("out.jsonl.partial").exists() && !desk.path("out.jsonl").exists());
    desk.run()
        .args(["--max-time", "1500ms", "--batch-size", "4", "--resume"])
        .assert()
        .code(4)
        .stderr(contains("of them earlier"));
}

/// The second line would take minutes; the others are not held up by it, and it can be tried once more.
#[test]
fn a_request_that_takes_too_long_is_an_error_and_the_others_go_on() {
    let line = |id: &str, max_tokens: u32| {
        format!(
            "{{\"id\": \"{id}\", \"prompt\": \"Once\", \"max_tokens\": {max_tokens}, \"ignore_eos\": true}}\n"
        )
    };
    let input = line("a", 2) + &line("slow", 100_000) + &line("b", 2) + &line("c", 3);
    let desk = Desk::with_input(input);
    let model = desk.copy_model("tiny-llama");
    desk.set_field("model/config.json", "max_position_embeddings", 1_000_000.into());
    let assert = desk.run_with(&model).args(["--timeout", "1500ms", "--batch-size", "2"]).assert().code(3);
    assert.stderr(contains("no whole answer within the 1.5s of --timeout"));
    let output = desk.output();
    let codes: Vec<&str> = output.iter().map(crate::support::code_of).collect();
    assert_eq!(codes, ["ok", "timeout", "ok", "ok"]);
    assert_eq!(output[1]["response"]["status_code"], 408);
    desk.run().args(["--timeout", "0"]).assert().code(2).stderr(contains("a time above 0"));
}

#[test]
fn a_strict_run_ends_at_the_first_line_that_cannot_be_served() {
    let line = |number: u32| format!("{{\"id\": \"r{number}\", \"prompt\": \"x\", \"max_tokens\": 2}}\n");
    let desk = Desk::with_input(line(1) + "{\"prompt\": \"x\", \"temperature\": 9}\n{\n" + &line(2));
    let assert = desk.run().args(["--strict", "--report", "report.json"]).assert().code(1);
    let report = desk.report();
    assert_eq!(report["ending"], "failed");
    assert!(report["error"].as_str().expect("it is told").contains("not 9 (--strict)"), "{report}");
    let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(told.contains("error: in.jsonl:2: temperature: must be from 0 to 2, not 9 (--strict)"), "{told}");
    assert!(!desk.path("out.jsonl").exists());
    desk.write("in.jsonl", line(1) + &line(2));
    desk.run().args(["--strict", "--resume"]).assert().code(0);
    assert_eq!(desk.output().len(), 2);
}
