//! What a run says of itself in files: the JSON report, the page and the summary of a CI job.
//!
//! Owns what is in them. That every report is as its schema has it is checked by all tests that read one.

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
