//! Outputs that cannot work, found out before a model is loaded, and disks that fill up.

use std::fs;

use predicates::prelude::*;
use predicates::str::{contains, is_empty};

use crate::support::{Desk, fixture_path, id_of};

const INPUT: &str = "{\"id\": \"a\", \"prompt\": \"x\", \"max_tokens\": 1}\n{\"id\": \"b\", \"prompt\": \"y\", \"max_tokens\": 1}\n";

fn run(desk: &Desk, output: &str) -> assert_cmd::assert::Assert {
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", output, "--model"]).arg(fixture_path("tiny-llama"));
    command.assert()
}

#[test]
fn outputs_that_cannot_work_are_refused_with_a_hint() {
    let desk = Desk::with_input(INPUT);
    fs::create_dir(desk.path("folder")).expect("it is new");
    for (output, reason, hint) in [
        ("no/such/out.jsonl", "does not exist", "mkdir -p no/such"),
        ("folder", "is a directory", "folder/out.jsonl"),
        ("in.jsonl", "would overwrite the input", "choose another --output"),
        ("./folder/../in.jsonl", "would overwrite the input", "choose another --output"),
    ] {
        run(&desk, output).code(1).stdout(is_empty()).stderr(
            contains("mlxbatch: error: ")
                .and(contains(reason))
                .and(contains(hint))
                .and(contains("panicked").not()),
        );
        assert_eq!(desk.read("in.jsonl"), INPUT);
        assert_eq!(desk.names(), ["folder", "in.jsonl"]);
    }
}

#[test]
fn what_is_wrong_with_the_output_is_said_before_what_is_wrong_with_the_model() {
    let desk = Desk::with_input(INPUT);
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", "no/out.jsonl", "--model", "./no-such-model"]);
    command.assert().code(1).stderr(contains("does not exist").and(contains("no-such-model").not()));
}

#[test]
fn an_output_of_an_earlier_run_is_replaced_whole() {
    let desk = Desk::with_input(INPUT);
    desk.write("out.jsonl", "a longer line of an earlier run\n".repeat(1000));
    desk.run().assert().code(0);
    assert_eq!(desk.output().iter().map(id_of).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(desk.names(), ["in.jsonl", "out.jsonl"]);
}

#[test]
fn the_report_is_a_file_of_its_own() {
    let desk = Desk::with_input(INPUT);
    fs::create_dir(desk.path("folder")).expect("it is new");
    for (report, reason) in [
        ("in.jsonl", "--report in.jsonl is the input"),
        ("./in.jsonl", "is the input"),
        ("out.jsonl", "--report out.jsonl is the output"),
        ("folder", "is a directory"),
        ("no/report.json", "does not exist"),
    ] {
        desk.run().args(["--report", report]).assert().code(1).stderr(contains(reason));
        assert_eq!(
            (desk.read("in.jsonl"), desk.names()),
            (INPUT.to_owned(), vec!["folder".into(), "in.jsonl".into()])
        );
    }
    desk.run().args(["--report", "report.json", "-q"]).assert().code(0).stderr(is_empty());
    let report = desk.report();
    assert_eq!((&report["num_requests"], &report["num_failed"]), (&2.into(), &0.into()));
    assert_eq!(report["num_generated_tokens"], 2);
    let count = |name: &str| report[name].as_u64().expect("it is a count");
    assert_eq!(count("num_last_tokens"), 2, "one of each request");
    assert_eq!(
        count("num_prompt_tokens"),
        count("num_prefilled_tokens") + count("num_cached_tokens") + count("num_last_tokens")
    );
    assert!(report["peak_memory_bytes"].as_u64().is_some_and(|num_bytes| num_bytes > 1 << 20), "{report}");
    desk.run().args(["--report", "/dev/null"]).assert().code(0);
}

#[cfg(target_os = "linux")]
mod full_disk {
    use super::*;

    /// The shell's limit on the size of files stands in for the disk. Its signal ended the process without a word.
    #[test]
    fn under_the_partial_file() {
        let line = "{\"prompt\": \"x\", \"max_tokens\": 1}\n";
        let desk = Desk::with_input(line.repeat(40));
        desk.write("out.jsonl", "older\n");
        let output = desk.run_under("ulimit -f 8", &fixture_path("tiny-llama"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in [
            "error: cannot write to ",
            "because: File too large",
            "RLIMIT_FSIZE",
            "ulimit -f",
            "results are in ",
        ] {
            assert!(stderr.contains(part), "no {part:?} in: {stderr}");
        }
        assert_eq!(desk.read("out.jsonl"), "older\n");
        let num_kept = crate::support::json_lines(&desk.read("out.jsonl.partial")).len();
        assert!((1..40).contains(&num_kept), "{num_kept}");
        desk.run().arg("--resume").assert().code(0);
        assert_eq!(desk.output().len(), 40);
    }

    #[test]
    fn behind_a_device_and_behind_standard_output() {
        let desk = Desk::with_input(INPUT);
        let is_told =
            || contains("cannot write to ").and(contains("No space left")).and(contains("panicked").not());
        run(&desk, "/dev/full").code(1).stderr(is_told());
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("mlxbatch"));
        command
            .args(["run"])
            .arg(desk.path("in.jsonl"))
            .args(["-o", "-", "--model"])
            .arg(fixture_path("tiny-llama"));
        let output = command.stdout(full).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(1));
        assert!(is_told().eval(&*String::from_utf8_lossy(&output.stderr)));
    }

    #[test]
    fn under_the_report_costs_no_results() {
        let desk = Desk::with_input(INPUT);
        desk.run()
            .args(["--report", "/dev/full"])
            .assert()
            .code(1)
            .stderr(contains("2 requests done").and(contains("cannot write the report to /dev/full")));
        assert_eq!(desk.output().len(), 2);
    }
}
