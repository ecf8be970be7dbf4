//! What a run says of itself in files: the JSON report, the page and the summary of a CI job.
//!
//! Owns what is in them. That every report is as its schema has it is checked by all tests that read one.

use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};

use crate::support::{Desk, MODEL};

/// Twelve questions about two documents under one system prompt, and two lines that fail.
fn library() -> Desk {
    let mut input = String::new();
    for place in 0..12 {
        let document = if place % 2 == 0 { "the sea and its ships" } else { "a town with tall towers" };
        let line = json!({"id": format!("q{place}"), "max_tokens": 2 + place, "messages": [
            {"role": "system", "content": "You answer in one word."},
            {"role": "user", "content": format!("Read this text about {document}. Question {place}?")},
        ]});
        input += &format!("{line}\n");
    }
    input += "{\n{\"id\": \"hot\", \"prompt\": \"x\", \"temperature\": 9}\n";
    Desk::with_input(input)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no count: {value}"))
}

#[test]
fn the_report_tells_of_machine_model_settings_and_course() {
    let desk = library();
    let flags =
        ["--report", "report.json", "--batch-size", "4", "--temperature", "0", "--cache-bytes", "8MB"];
    desk.run().args(flags).assert().code(3);
    let report = desk.report();
    assert_eq!((&report["ending"], &report["num_total"]), (&json!("complete"), &json!(14)));
    assert_eq!(report["environment"]["mlxbatch"], env!("CARGO_PKG_VERSION"));
    assert!(
        report["model"]["name"].as_str().is_some_and(|name| name.ends_with(MODEL)),
        "{}",
        report["model"]
    );
    assert_eq!(report["model"]["digests"].as_object().map(|digests| digests.len()), Some(4));
    let parameters = &report["parameters"];
    assert_eq!((&parameters["--batch-size"], &parameters["--temperature"]), (&json!(4), &json!(0)));

    // Of lines that never came to the batch no time is told.
    let times = &report["request_seconds"];
    for name in ["queue", "first_token", "total"] {
        assert_eq!(times[name]["num"], 12, "{times}");
        let of = |percentile: &str| times[name][percentile].as_f64().expect("a number");
        assert!(of("p50") <= of("p90") && of("p90") <= of("p99") && of("p99") <= of("max"), "{times}");
    }
    let slowest = report["slowest"].as_array().expect("a list");
    assert_eq!(slowest.len(), 10);
    let totals: Vec<f64> = slowest.iter().filter_map(|slow| slow["total_seconds"].as_f64()).collect();
    assert!(totals.windows(2).all(|pair| pair[0] >= pair[1]), "{totals:?}");
    for slow in slowest {
        assert_eq!(slow["id"], format!("q{}", count(&slow["line"]) - 1), "{slow}");
        assert!(count(&slow["num_generated_tokens"]) > 0, "{slow}");
    }

    // Both documents stand behind the system prompt.
    let shared = report["shared_prefixes"].as_array().expect("a list");
    let users: Vec<(u64, &Value)> =
        shared.iter().map(|prefix| (count(&prefix["num_users"]), &prefix["parent"])).collect();
    assert!(users.contains(&(12, &Value::Null)), "{users:?}");
    let whole = users.iter().position(|(num_users, _)| *num_users == 12).expect("it was there just now");
    let num_below = users.iter().filter(|(num_users, parent)| (*num_users, *parent) == (6, &json!(whole)));
    assert_eq!(num_below.count(), 2, "{shared:?}");

    let last = report["timeline"].as_array().and_then(|moments| moments.last()).expect("there are some");
    assert_eq!(last["num_done"], 14);
    assert_eq!(last["num_generated_tokens"], report["num_generated_tokens"]);
    assert_eq!(last["num_cached_tokens"], report["num_cached_tokens"]);
}

#[test]
fn a_run_that_was_done_already_has_its_report_too() {
    let desk = Desk::with_input("{\"prompt\": \"x\", \"max_tokens\": 2}\n");
    desk.run().args(["-q", "--resume"]).assert().code(0);
    desk.run().args(["-q", "--resume", "--report", "report.json"]).assert().code(0).stderr(is_empty());
    let report = desk.report();
    assert_eq!((count(&report["num_requests"]), count(&report["num_kept"])), (1, 1));
    assert_eq!(report["num_passes"], 0);
    assert_eq!(report["timeline"], json!([]));
    desk.bare().args(["schema", "report"]).assert().code(0).stdout(contains("A report of mlxbatch run"));
}

/// Text that a page must not take for its own.
const HOSTILE: &str = "</code><script>alert('1')</script><img src=x onerror=\"a\">&amp;\u{202e}";

#[test]
fn the_page_shows_all_and_holds_no_markup_of_strangers() {
    let mut input = String::new();
    for place in 0..8 {
        let line = json!({"id": format!("{HOSTILE}{place}"), "max_tokens": 6, "messages": [
            {"role": "system", "content": format!("{HOSTILE} You answer.")},
            {"role": "user", "content": format!("Question {place}?")},
        ]});
        input += &format!("{line}\n");
    }
    input += &format!("{}\n", json!({"messages": [{"role": HOSTILE, "content": "x"}]}));
    let desk = Desk::with_input(input);
    desk.run().args(["-q", "--report-html", "page.html", "--report", "report.json"]).assert().code(3);
    let page = desk.read("page.html");
    for part in [
        "<h2>Course of the run</h2>",
        "Tokens generated per second",
        "reused: system",
        "8 × ",
        ">Slowest</h3>",
        "Failed requests",
        "8 ok, 1 failed",
        "--batch-size",
        "default-src 'none'",
    ] {
        let escaped = part.replace('\'', "&#x27;");
        assert!(page.contains(part) || page.contains(&escaped), "no {part:?} in {page}");
    }
    for markup in ["<script", "<img", "onerror=\"", "\u{202e}", "http://", "https://"] {
        assert!(!page.contains(markup), "{markup:?} is in {page}");
    }
    assert!(page.contains("&lt;script&gt;alert"), "{page}");
    // With nothing computed there is little to show, and it is shown.
    let empty = Desk::with_input("{\n");
    empty.run().args(["-q", "--report-html", "page.html"]).assert().code(3);
    assert!(empty.read("page.html").contains("No request came to be computed."));
    let both = ["--report-html", "same", "--report", "./same"];
    empty.run().args(both).assert().code(1).stderr(contains("give each a file of its own"));
}

#[test]
fn a_jobs_summary_gets_a_table_behind_what_is_there() {
    let desk = Desk::with_input(
        "{\"id\": \"a\", \"prompt\": \"x\", \"max_tokens\": 2}\n{\"prompt\": \"x\", \"x`|\": 1}\n{\n",
    );
    desk.write("summary.md", "# before\n");
    desk.run().arg("-q").env("GITHUB_STEP_SUMMARY", desk.path("summary.md")).assert().code(3);
    let summary = desk.read("summary.md");
    for part in [
        "# before\n### mlxbatch: 3 requests: 2 ok, 1 failed\n",
        "| prompt tokens | ",
        "| ` invalid_json ` | 1 | ` in.jsonl:3: ",
    ] {
        assert!(summary.contains(part), "no {part:?} in {summary}");
    }
    // What cannot be written costs a warning.
    let folder = desk.path("");
    let assert = desk.run().env("GITHUB_STEP_SUMMARY", folder).assert().code(3);
    assert.stderr(contains("warning: the summary was not added to "));
}

#[test]
fn progress_for_programs_is_json_on_every_line() {
    let line = "{\"prompt\": \"Once upon\", \"max_tokens\": 40, \"unknown field\": 1}\n";
    let desk = Desk::with_input(line.repeat(30) + "{\n");
    let assert = desk.run().args(["--progress", "json", "--batch-size", "2"]).assert().code(3);
    let events: Vec<Value> = String::from_utf8_lossy(&assert.get_output().stderr)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();
    assert_eq!((of("failed").len(), of("warning").len(), of("end").len()), (1, 1, 1), "{events:?}");
    let end = of("end")[0];
    assert_eq!(
        (&end["num_done"], &end["num_failed"], &end["num_total"]),
        (&json!(31), &json!(1), &json!(31))
    );
    assert_eq!(end["num_generated_tokens"].as_u64().map(|count| count > 30), Some(true));
    assert!(end["summary"][0].as_str().is_some_and(|line| line.contains("30 ok, 1 failed")), "{end}");
    let error = desk.run().args(["--progress", "json", "--report", "no/folder"]).assert().code(1);
    let error: Value = serde_json::from_slice(&error.get_output().stderr).expect("one object");
    assert_eq!(error["event"], "error");
    desk.run().args(["--progress", "none"]).assert().code(3).stderr(contains("30 ok, 1 failed"));
}

/// At its end the run waited for somebody to read it, for ever.
#[test]
fn a_report_into_a_named_pipe_is_refused_before_the_model_loads() {
    let desk = library();
    nix::unistd::mkfifo(&desk.path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    std::os::unix::fs::symlink("pipe", desk.path("link")).expect("there is room");
    for (flag, name) in [("--report", "pipe"), ("--report-html", "link")] {
        desk.run()
            .args([flag, name])
            .assert()
            .code(1)
            .stderr(contains(format!("{flag} {name} is a named pipe")).and(contains("name a file")));
        assert!(!desk.path("out.jsonl").exists());
    }
    // What is open already has its reader.
    desk.run().args(["--report", "/dev/stdout", "-q"]).assert().code(3).stdout(contains("\"ending\""));
}
