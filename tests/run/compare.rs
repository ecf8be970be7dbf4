//! `mlxbatch compare`: two runs, and a run with what is expected.

use predicates::str::contains;
use serde_json::{Value, json};

use crate::support::Desk;

fn desk() -> Desk {
    let lines: Vec<Value> = (0..6)
        .map(|place| json!({"id": format!("q{place}"), "prompt": format!("Once {place}"), "metadata": {"want": "x", "n": place}}))
        .collect();
    let bad = json!({"id": "bad", "prompt": "x", "temperature": 9, "metadata": {"want": "x"}});
    Desk::with_input(lines.iter().chain([&bad]).map(|line| format!("{line}\n")).collect::<String>())
}

/// A file of results whose answers are these, by id.
fn results(desk: &Desk, name: &str, answers: &[(&str, Option<&str>)]) {
    let line = |(id, text): &(&str, Option<&str>)| {
        let body = match text {
            Some(text) => {
                json!({"created": name.len(), "choices": [{"message": {"role": "assistant", "content": text}}]})
            }
            None => json!({"error": {"message": "no"}}),
        };
        json!({"id": format!("{name}-{id}"), "custom_id": id, "response": {"body": body}, "metadata": {"want": {"letter": "B"}}})
    };
    desk.write(name, answers.iter().map(|answer| format!("{}\n", line(answer))).collect::<String>());
}

#[test]
fn a_run_agrees_with_itself_and_says_what_differs() {
    let desk = desk();
    desk.run().args(["--max-tokens", "4", "-q"]).assert().code(3);
    std::fs::copy(desk.path("out.jsonl"), desk.path("first.jsonl")).expect("there is room");
    desk.run().args(["--max-tokens", "4", "-q", "--batch-size", "1"]).assert().code(3);
    let mut same = desk.bare();
    let same = same.args(["compare", "first.jsonl", "out.jsonl", "--min-agreement", "100%"]).assert();
    same.code(0).stdout(contains("7 lines in both")).stdout(contains("agree      7 of 7, 100.0%"));

    results(
        &desk,
        "a.jsonl",
        &[("1", Some("B")), ("2", Some("C")), ("3", None), ("4", Some("(B)")), ("5", Some("x"))],
    );
    results(
        &desk,
        "b.jsonl",
        &[("4", Some("(B)")), ("1", Some("B")), ("2", Some("B\u{1b}[2J")), ("3", Some("B"))],
    );
    let mut compared = desk.bare();
    let compared = compared
        .args(["compare", "a.jsonl", "b.jsonl", "--expected", "want.letter", "--match", "choice"])
        .assert();
    compared
        .code(0)
        .stdout(contains("4 lines in both"))
        .stdout(contains("1 line in a.jsonl alone"))
        .stdout(contains("agree      2 of 4, 50.0%"))
        .stdout(contains("accuracy   40.0% ± 24.5%: 2 of 5 in a.jsonl; 1 of them failed"))
        .stdout(contains("accuracy   100.0% ± 0.0%: 4 of 4 in b.jsonl"))
        .stdout(contains("gain       +50.0 ± 28.9 percentage points"))
        .stdout(contains("\"2\"\n  a.jsonl: \"C\"\n  b.jsonl: \"B\\u{1b}[2J\"\n"))
        .stdout(contains("\"3\"\n  a.jsonl: failed\n"));
    let json = desk
        .bare()
        .args(["compare", "a.jsonl", "b.jsonl", "--json"])
        .assert()
        .code(0)
        .get_output()
        .stdout
        .clone();
    let json: Value = serde_json::from_slice(&json).expect("it prints JSON");
    assert_eq!(json["agreement"]["differing"], json!(["2", "3"]));
}

#[test]
fn expected_answers_may_be_in_the_input() {
    let desk = desk();
    results(&desk, "a.jsonl", &[("1", Some("2 + 2\n#### 4")), ("2", Some("#### 7")), ("line-3", Some("no"))]);
    desk.write(
        "data.jsonl",
        "{\"id\": 1, \"answer\": \"it is\\n#### 4\"}\n{\"id\": \"2\", \"answer\": \"#### 8\"}\n{\"answer\": \"no\"}\n",
    );
    let arguments =
        ["compare", "a.jsonl", "--data", "data.jsonl", "--expected", "answer", "--extract", "#### ([0-9]+)"];
    desk.bare()
        .args(arguments)
        .assert()
        .code(0)
        .stdout(contains("accuracy   66.7% ± 33.3%: 2 of 3 in a.jsonl"));
    let below = desk.bare().args(arguments).args(["--min-accuracy", "70%"]).assert().code(1);
    below.stderr(contains("the accuracy of a.jsonl is 66.7%, below --min-accuracy 70.0%"));
}

#[test]
fn what_cannot_be_compared_says_why() {
    let desk = desk();
    results(&desk, "a.jsonl", &[("1", Some("B"))]);
    results(&desk, "twice.jsonl", &[("1", Some("B")), ("1", Some("B"))]);
    desk.write("broken.jsonl", "{\"custom_id\": \"1\"\n");
    for (arguments, code, told) in [
        (&["a.jsonl"][..], 2, "required"),
        (&["a.jsonl", "none.jsonl"], 1, "none.jsonl"),
        (&["a.jsonl", "twice.jsonl"], 1, "\"1\" is there twice"),
        (&["a.jsonl", "broken.jsonl"], 1, "broken.jsonl:1: not valid JSON"),
        (&["a.jsonl", "in.jsonl", "--extract", "("], 1, "--extract"),
        (&["a.jsonl", "--expected", "nothing"], 1, "has an expected answer"),
        (&["a.jsonl", "--expected", "want.letter", "--min-accuracy", "101%"], 2, "from 0 to 1"),
    ] {
        desk.bare().arg("compare").args(arguments).assert().code(code).stderr(contains(told));
    }
}
