//! Shards and several inputs on the real binary: parts of a run that make the whole.
//!
//! Owns that what is merged is what one run writes, also where shards were killed, and what users are told where it
//! cannot be.

use std::path::Path;
use std::process::Stdio;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::{Value, json};

use crate::support::{Desk, MODEL, fixture_path, id_of, wait_until};

/// Questions on a few documents, with and without ids; some are errors, some sampled.
fn input(num_lines: usize) -> String {
    let documents =
        ["the tide comes in", "a harbour wall", "ships at anchor"].map(|text| format!("{text} ").repeat(12));
    let line = |number: usize| match number % 13 {
        5 => "{\"id\": \"bad\n".to_owned(),
        8 => "\n".to_owned(),
        _ => {
            let mut line = json!({"prompt": format!("{}Question {number}:", documents[number % 3]),
                "max_tokens": 2 + number % 7, "temperature": (number % 2) as f64});
            if number % 3 != 1 {
                line["id"] = json!(format!("r{}", number / 2));
            }
            format!("{line}\n")
        }
    };
    (0..num_lines).map(line).collect()
}

const FLAGS: [&str; 6] = ["--deterministic-ids", "-q", "--fail-on-errors", "100%", "--batch-size", "4"];

fn run(desk: &Desk, inputs: &[&str], output: &str, arguments: &[&str]) {
    let mut command = desk.bare();
    command.arg("run").args(inputs).args(["-o", output, "--model"]).arg(fixture_path(MODEL)).args(FLAGS);
    command.args(arguments).assert().code(0);
}

fn merge(desk: &Desk, arguments: &[&str]) -> assert_cmd::assert::Assert {
    desk.bare().arg("merge").args(arguments).assert()
}

#[test]
fn shards_merged_are_what_one_run_writes() {
    let desk = Desk::with_input(input(60));
    run(&desk, &["in.jsonl"], "whole.jsonl", &[]);
    for number in 1..=3 {
        run(&desk, &["in.jsonl"], &format!("out.{number}.jsonl"), &["--shard", &format!("{number}/3")]);
    }
    merge(&desk, &["out.*.jsonl", "-o", "out.jsonl"])
        .code(3)
        .stderr(contains("56 results of 3 files in out.jsonl, ").and(contains(" failed")));
    assert_eq!(desk.read("out.jsonl"), desk.read("whole.jsonl"));
    let lines = desk.output_lines();
    let mut ids: Vec<(&str, &str)> =
        lines.iter().map(|line| (line["id"].as_str().expect("it has one"), id_of(line))).collect();
    ids.sort_unstable();
    ids.dedup_by_key(|(id, _)| *id);
    assert_eq!(ids.len(), 56, "ids are unique");
    // What failed can be tried once more, as after one run.
    let resumed = ["--resume", "--retry-errors"];
    run(&desk, &["in.jsonl"], "out.jsonl", &resumed);
    assert_eq!(desk.read("out.jsonl"), desk.read("whole.jsonl"));
}

/// Each shard is killed as soon as it has some results, and started again.
#[test]
fn shards_that_are_killed_and_started_again_lose_nothing() {
    let desk = Desk::with_input(input(120));
    run(&desk, &["in.jsonl"], "whole.jsonl", &[]);
    let mut num_killed = 0;
    for number in 1..=2 {
        let (output, shard) = (format!("out.{number}.jsonl"), format!("{number}/2"));
        let arguments = [&["in.jsonl", "-o", &output, "--shard", &shard, "--resume"][..], &FLAGS].concat();
        let mut child = desk.spawn(&arguments);
        let partial = format!("{output}.partial");
        wait_until("the shard has results", || {
            desk.path(&output).exists()
                || desk.path(&partial).metadata().is_ok_and(|metadata| metadata.len() > 2_000)
        });
        num_killed += usize::from(!desk.path(&output).exists());
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
        if desk.path(&partial).exists() {
            merge(&desk, &["out.*.jsonl", &output, "-o", "out.jsonl"]).code(1);
        }
        run(&desk, &["in.jsonl"], &output, &["--shard", &shard, "--resume"]);
    }
    assert!(num_killed > 0, "both shards were done before they could be killed");
    merge(&desk, &["out.1.jsonl", "out.2.jsonl", "-o", "out.jsonl", "-q"]).code(3);
    assert_eq!(desk.read("out.jsonl"), desk.read("whole.jsonl"));
}

/// GNU parallel runs the script where it is installed; processes in the background do the same where it is not.
#[test]
fn shards_run_beside_each_other_by_gnu_parallel() {
    let desk = Desk::with_input(input(40));
    run(&desk, &["in.jsonl"], "whole.jsonl", &[]);
    let binary = assert_cmd::cargo::cargo_bin("mlxbatch");
    let is_gnu = std::process::Command::new("parallel")
        .arg("--version")
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("GNU parallel"));
    let model = fixture_path(MODEL);
    let flags = ["--model", &model.display().to_string(), "--deterministic-ids", "-q"].map(str::to_owned);
    if is_gnu {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/shards_parallel.sh");
        let mut command = std::process::Command::new(script);
        command.args(["in.jsonl", "out.jsonl", "3"]).args(&flags).current_dir(desk.path(""));
        command.env("MLXBATCH", &binary).env("OPENBLAS_NUM_THREADS", "1");
        let output = command.output().expect("the script starts");
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!desk.path("out.shards").exists(), "what was joined is removed");
    } else {
        println!("GNU parallel is not installed: processes in the background take its place");
        let children: Vec<_> = (1..=3)
            .map(|number| {
                let (output, shard) = (format!("out.{number}.jsonl"), "auto/3");
                let mut command = std::process::Command::new(&binary);
                command
                    .args(["run", "in.jsonl", "-o", &output, "--shard", shard])
                    .args(&flags)
                    .args(["--fail-on-errors", "100%"]);
                command.env("PARALLEL_SEQ", number.to_string()).env("OPENBLAS_NUM_THREADS", "1");
                command.current_dir(desk.path("")).spawn().expect("the binary starts")
            })
            .collect();
        for mut child in children {
            assert_eq!(child.wait().expect("it ends").code(), Some(0));
        }
        merge(&desk, &["out.*.jsonl", "-o", "out.jsonl"]).code(3);
    }
    assert_eq!(desk.read("out.jsonl"), desk.read("whole.jsonl"));
}

#[test]
fn a_shard_that_is_none_and_outputs_that_make_no_whole_say_what_to_do() {
    let desk = Desk::with_input(input(20));
    let model = fixture_path(MODEL).display().to_string();
    let refuse = |arguments: &[&str], code: i32, said: &str| {
        desk.bare().args(arguments).assert().code(code).stderr(contains(said));
    };
    let start = ["run", "in.jsonl", "--model", &model, "-o"];
    let with = |more: &[&'static str]| [&start[..], more].concat();
    refuse(&with(&["out.jsonl", "--shard", "9/8"]), 2, "of 8 shards the first is 1/8 and the last 8/8");
    refuse(&with(&["out.jsonl", "--shard", "auto"]), 2, "SLURM_ARRAY_TASK_ID");
    refuse(&["run", "-", "--model", &model, "-o", "out.jsonl", "--shard", "1/2"], 1, "--shard needs files");

    run(&desk, &["in.jsonl"], "out.1.jsonl", &["--shard", "1/2"]);
    refuse(&["merge", "out.1.jsonl", "-o", "out.jsonl"], 1, "of 2 shards, shard 2 is missing");
    refuse(&with(&["out.1.jsonl", "--shard", "2/2"]), 1, "has the results of shard 1/2 of this input");
    run(&desk, &["in.jsonl"], "out.2.jsonl", &["--shard", "2/2", "--seed", "7"]);
    refuse(&["merge", "out.*.jsonl", "-o", "out.jsonl"], 1, "--seed was not set, is 7; --force joins them");
    desk.write("other.jsonl", input(21));
    run(&desk, &["other.jsonl"], "out.2.jsonl", &["--shard", "2/2"]);
    refuse(&["merge", "out.*.jsonl", "-o", "out.jsonl"], 1, "are of different inputs");
    refuse(&["merge", "nothing.*.jsonl", "-o", "out.jsonl"], 1, "no file matches nothing.*.jsonl");
    refuse(&["merge", "in.jsonl", "-o", "out.jsonl"], 1, "in.jsonl.manifest cannot be read");
    refuse(&["merge", "out.1.jsonl.manifest", "-o", "out.jsonl"], 1, "only manifests are named");
    assert!(!desk.path("out.jsonl").exists());
}

#[test]
fn caches_of_shards_are_joined_and_one_warm_line_saves_what_all_share() {
    let system = "You answer in few words, as one who has the sea before the window.";
    let line = |number: usize| {
        let messages = [("system", system.to_owned()), ("user", format!("What is {number}?"))];
        let messages: Vec<Value> =
            messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        format!("{}\n", json!({"messages": messages, "max_tokens": 3}))
    };
    let desk = Desk::with_input((0..16).map(line).collect::<String>());
    let computed = |arguments: &[&str]| -> u64 {
        run(&desk, &["in.jsonl"], "part.jsonl", &[arguments, &["--report", "report.json"]].concat());
        desk.remove("part.jsonl");
        let _ = std::fs::remove_file(desk.path("part.jsonl.manifest"));
        desk.report()["num_prefilled_tokens"].as_u64().expect("it is counted")
    };
    let alone = computed(&[]);
    let shards = |more: &[&str]| -> u64 {
        (1..=4).map(|number| computed(&[&["--shard", &format!("{number}/4")], more].concat())).sum()
    };
    assert!(shards(&[]) > alone, "each computes what all share");
    let warmed = computed(&["--limit", "1", "--max-tokens", "1", "--persist-cache", "warm.bin"]);
    let warm = warmed + shards(&["--persist-cache", "warm.bin", "--cache-mode", "ro"]);
    // But for what some questions share, and the prompt of the first.
    assert!(20 * warm <= 21 * alone, "{warm} with a warm line, {alone} alone");

    for number in 1..=2 {
        let (output, cache) = (format!("out.{number}.jsonl"), format!("cache.{number}.bin"));
        run(&desk, &["in.jsonl"], &output, &["--shard", &format!("{number}/2"), "--persist-cache", &cache]);
    }
    let arguments = ["out.?.*", "-o", "out.jsonl", "--caches", "cache.*.bin", "--persist-cache", "all.bin"];
    merge(&desk, &arguments).code(0).stderr(contains("tokens of 2 caches in all.bin"));
    assert_eq!(computed(&["--persist-cache", "all.bin", "--cache-mode", "ro"]), 0);
}

#[test]
fn several_files_are_one_input_whose_lines_are_named_by_their_file() {
    let desk = Desk::with_input("");
    desk.write("a.jsonl", "{\"id\": \"x\", \"prompt\": \"One\", \"max_tokens\": 3}\n");
    desk.write(
        "b.jsonl",
        "{\"prompt\": \"Two\", \"max_tokens\": 3}\n{\"id\": \"x\", \"prompt\": \"Three\"}\n",
    );
    desk.write("c.csv", "id,question\ny,Why?\n");
    let model = fixture_path(MODEL).display().to_string();
    let mut command = desk.bare();
    command.args(["run", "a.jsonl", "[bc].*", "-o", "out.jsonl", "--model", &model, "--max-tokens", "3"]);
    command.assert().code(3).stderr(contains("b.jsonl:2: custom_id: \"x\" was used by an earlier line"));
    let lines = desk.output_lines();
    let places: Vec<(&str, &str)> =
        lines.iter().map(|line| (line["id"].as_str().expect("it has one"), id_of(line))).collect();
    let expected = [
        ("batch_req_1", "x"),
        ("batch_req_2-1", "file-2-line-1"),
        ("batch_req_2-2", "x"),
        ("batch_req_3-2", "y"),
    ];
    assert_eq!(places, expected);
    desk.bare().args(["validate", "a.jsonl", "b.jsonl"]).assert().code(3).stdout(
        contains("b.jsonl:2: custom_id")
            .and(contains("a.jsonl … b.jsonl (2 files): 3 requests, 1 with problems")),
    );
    desk.bare()
        .args(["plan", "[ab].jsonl", "--shards", "2", "--model", &model])
        .assert()
        .code(3)
        .stdout(contains("2 shards compute").and(contains("         2/2")));
    desk.bare()
        .args(["run", "x*.jsonl", "-o", "out.jsonl", "--model", &model])
        .assert()
        .code(1)
        .stderr(contains("no file matches x*.jsonl"));
    desk.bare()
        .args(["run", "*.jsonl", "-o", "a.jsonl", "--model", &model])
        .assert()
        .code(1)
        .stderr(contains("would overwrite the input a.jsonl"));
}
