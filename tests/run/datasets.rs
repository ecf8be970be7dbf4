//! Data sets as they are: rows through a template, tables, packed files, and parts of them.

use std::io::Write;

use predicates::str::contains;
use serde_json::{Value, json};

use crate::support::{Desk, code_of, fixture_path, id_of, message_of, text_of};

fn rows() -> String {
    let row = |place: usize| json!({"id": format!("r{place}"), "question": format!("What is {place}?"), "answer": place});
    (0..6).map(|place| format!("{}\n", row(place))).collect()
}

/// The same as messages by hand.
fn by_hand(question: &str) -> Value {
    json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": format!("Q: {question}\nA:")}]})
}

const TEMPLATE: [&str; 4] = ["--template", r"Q: {{ question }}\nA:", "--system", "Be brief."];

/// Runs a file of the desk that is not its usual input.
fn run(desk: &Desk, input: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = desk.bare();
    command
        .args(["run", input, "-o", "out.jsonl", "-q", "--max-tokens", "4", "--model"])
        .arg(fixture_path("tiny-llama"));
    command.args(arguments).assert().code(0);
    desk.output_lines()
}

fn texts(lines: &[Value]) -> Vec<(&str, &str)> {
    lines.iter().map(|line| (id_of(line), text_of(line))).collect()
}

#[test]
fn rows_are_answered_as_the_messages_that_the_template_makes() {
    let desk = Desk::with_input(rows());
    let lines = run(&desk, "in.jsonl", &TEMPLATE);
    let hand: String = (0..6)
        .map(|place| {
            let mut line = by_hand(&format!("What is {place}?"));
            line["id"] = json!(format!("r{place}"));
            format!("{line}\n")
        })
        .collect();
    let other = Desk::with_input(hand);
    assert_eq!(texts(&lines), texts(&run(&other, "in.jsonl", &[])));

    // The same rows as a table, packed or not, and from files.
    let table: String = (0..6).map(|place| format!("r{place},What is {place}?\n")).collect();
    desk.write("rows.csv", format!("id,question\n{table}"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(rows().as_bytes()).expect("into memory");
    desk.write("rows.jsonl.gz", packed.finish().expect("into memory"));
    desk.write("prompt.jinja", "Q: {{ question }}\nA:");
    desk.write("system.txt", "Be brief.");
    let files = ["--template-file", "prompt.jinja", "--system", "@system.txt"];
    for input in ["rows.csv", "rows.jsonl.gz"] {
        assert_eq!(texts(&run(&desk, input, &files)), texts(&lines), "{input}");
    }
}

#[test]
fn parts_of_an_input_are_answered_alone() {
    let desk = Desk::with_input(rows());
    let ids = |arguments: &[&str]| -> Vec<String> {
        let lines = run(&desk, "in.jsonl", &[&TEMPLATE, arguments].concat());
        lines.iter().map(|line| id_of(line).to_owned()).collect()
    };
    assert_eq!(ids(&["--limit", "2"]), ["r0", "r1"]);
    assert_eq!(ids(&["--range", "2:4"]), ["r2", "r3"]);
    assert_eq!(ids(&["--range", "4:"]), ["r4", "r5"]);
    let sample = ids(&["--sample", "3", "--sample-seed", "5"]);
    assert_eq!((sample.len(), &sample), (3, &ids(&["--sample", "3", "--sample-seed", "5"])));
    assert!(sample.is_sorted());
    desk.bare()
        .args(["validate", "in.jsonl", "--limit", "2"])
        .args(TEMPLATE)
        .assert()
        .code(0)
        .stdout(contains("2 requests"));
    let plan = desk
        .bare()
        .args(["plan", "in.jsonl", "--limit", "3", "--model"])
        .arg(fixture_path("tiny-llama"))
        .args(TEMPLATE)
        .assert();
    plan.code(0).stdout(contains("3"));
}

#[test]
fn a_row_may_have_parameters_and_its_fields_are_kept() {
    let desk = Desk::with_input("");
    desk.write("rows.tsv", "name\tq\tmax_tokens\tlevel\na\tx\t2\teasy\nb\ty\t\thard\n");
    let arguments = [
        "--template",
        "{{ q }}",
        "--raw-prompt",
        "--id-column",
        "name",
        "--parameters",
        "max_tokens",
        "--keep-input",
    ];
    let lines = run(&desk, "rows.tsv", &arguments);
    assert_eq!(lines.iter().map(id_of).collect::<Vec<_>>(), ["a", "b"]);
    let num_tokens = |line: &Value| line["response"]["body"]["usage"]["completion_tokens"].as_u64();
    assert_eq!((num_tokens(&lines[0]), num_tokens(&lines[1])), (Some(2), Some(4)));
    assert_eq!(lines[0]["input"], json!({"name": "a", "q": "x", "max_tokens": "2", "level": "easy"}));
    // Which `compare` finds what is expected in.
    desk.bare()
        .args(["compare", "out.jsonl", "--expected", "level"])
        .assert()
        .code(0)
        .stdout(contains("0 of 2"));
}

#[test]
fn what_cannot_be_used_says_why() {
    let desk = Desk::with_input(rows());
    desk.write("ragged.csv", "id,question\n1,a\n2\n3,b,c\n");
    let mut command = desk.bare();
    command
        .args(["run", "ragged.csv", "-o", "out.jsonl", "-q", "--max-tokens", "2", "--model"])
        .arg(fixture_path("tiny-llama"));
    command.args(["--template", "{{ question }}"]).assert().code(3);
    let lines = desk.output_lines();
    assert_eq!(lines.iter().map(code_of).collect::<Vec<_>>(), ["ok", "not_an_object", "not_an_object"]);

    desk.run().args(["-q", "--template", "{{ query }}"]).assert().code(3);
    let lines = desk.output_lines();
    assert!(lines.len() == 6 && lines.iter().all(|line| code_of(line) == "template_error"));
    assert_eq!(id_of(&lines[2]), "r2");
    assert!(message_of(&lines[2]).contains(
        "in.jsonl:3: --template: there is no column \"query\" in this row; it has id, question, answer"
    ));

    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    packed.write_all(rows().repeat(20_000).as_bytes()).expect("into memory");
    let whole = packed.finish().expect("into memory");
    desk.write("cut.gz", &whole[..whole.len() / 2]);
    for (arguments, code, told) in [
        (&["cut.gz", "--template", "{{ question }}"][..], 1, "cannot read the input cut.gz"),
        (&["in.jsonl", "--template", "{{ question"], 1, "--template"),
        (&["in.jsonl", "--template-file", "none.jinja"], 1, "none.jinja"),
        (&["in.jsonl", "--system", "x"], 2, "--template"),
        (&["in.jsonl", "--range", "4:2"], 2, "such as 100:200"),
        (&["in.jsonl", "--limit", "2", "--sample", "3"], 2, "cannot be used with"),
        (&["-", "--sample", "3"], 1, "--sample needs a file"),
    ] {
        let mut command = desk.bare();
        command
            .arg("run")
            .args(arguments)
            .args(["-o", "none.jsonl", "--model"])
            .arg(fixture_path("tiny-llama"));
        command.assert().code(code).stderr(contains(told));
    }
}

#[test]
fn another_template_is_another_run() {
    let desk = Desk::with_input(rows());
    let arguments = ["-q", "--max-tokens", "2", "--resume"];
    desk.run().args(arguments).args(TEMPLATE).assert().code(0);
    desk.run().args(arguments).args(TEMPLATE).assert().code(0);
    desk.run()
        .args(arguments)
        .args(["--template", "{{ question }}"])
        .assert()
        .code(1)
        .stderr(contains("was made otherwise"));
}
