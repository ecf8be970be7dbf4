//! Ctrl-C, kill and kill -9 in the middle of a run: what is done is kept, in order and whole.

use std::io::Write;
use std::process::{Child, Command, Output};

use serde_json::Value;

use crate::support::{Desk, code_of, id_of, json_lines, wait_until};

/// Far more requests than a test waits for.
fn endless_input() -> String {
    let line = |index: usize| {
        format!(
            "{{\"id\": \"r{index}\", \"prompt\": \"Once {index}\", \"max_tokens\": {}}}\n",
            3 + index % 40
        )
    };
    (0..50_000).map(line).collect()
}

fn start(desk: &Desk) -> Child {
    let child = desk.spawn(&["in.jsonl", "-o", "out.jsonl", "--batch-size", "4"]);
    wait_for_results(desk, 5);
    child
}

fn wait_for_results(desk: &Desk, num_results: usize) {
    let partial = desk.path("out.jsonl.partial");
    wait_until("some results are on disk", || {
        std::fs::read_to_string(&partial).is_ok_and(|text| text.lines().count() >= num_results)
    });
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.expect("POSIX has kill").success());
}

fn end(child: Child) -> (Output, String) {
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{stderr}");
    (output, stderr)
}

/// Each line is a whole answer, and there is one at most for each request.
fn assert_whole(lines: &[Value]) {
    let mut numbers: Vec<u32> = lines
        .iter()
        .map(|line| {
            assert_eq!(code_of(line), "ok");
            id_of(line)[1..].parse().expect("ids are r and a number")
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert!(numbers.len() == lines.len() && numbers.len() >= 5, "{numbers:?}");
}

#[test]
fn ctrl_c_leaves_the_older_output_and_what_is_done_beside_it() {
    for signal in ["-INT", "-TERM"] {
        let desk = Desk::with_input(endless_input());
        desk.write("out.jsonl", "older\n");
        let child = start(&desk);
        assert_eq!(desk.read("out.jsonl"), "older\n");
        send(&child, signal);
        let (output, stderr) = end(child);
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains("stopping and keeping what is done"), "{stderr}");
        assert!(stderr.contains("of 50,000 requests done when interrupted"), "{stderr}");
        assert!(!stderr.contains("all ok") && stderr.contains("with --resume goes on"), "{stderr}");
        assert_eq!(desk.read("out.jsonl"), "older\n");
        assert_whole(&json_lines(&desk.read("out.jsonl.partial")));
        assert_eq!(
            desk.names(),
            ["in.jsonl", "out.jsonl", "out.jsonl.partial", "out.jsonl.partial.manifest"]
        );
    }
}

#[test]
fn ctrl_c_twice_ends_at_once_and_loses_nothing_either() {
    let desk = Desk::with_input(endless_input());
    let child = start(&desk);
    send(&child, "-INT");
    send(&child, "-INT");
    let (output, stderr) = end(child);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(json_lines(&desk.read("out.jsonl.partial")).len() >= 5);
    assert!(!desk.path("out.jsonl").exists());
}

#[test]
fn kill_9_leaves_whole_lines_and_the_next_run_keeps_them_aside() {
    let desk = Desk::with_input(endless_input());
    let mut child = start(&desk);
    child.kill().expect("it is running");
    child.wait().expect("it ends");
    let left = desk.read("out.jsonl.partial");
    let whole = left.rsplit_once('\n').map_or("", |(whole, _)| whole);
    assert!(whole.lines().count() >= 5);
    for line in whole.lines() {
        let line: Value = serde_json::from_str(line).expect("only the last line may be cut");
        assert_eq!(code_of(&line), "ok");
    }
    assert!(!desk.path("out.jsonl").exists());

    desk.write("in.jsonl", "{\"prompt\": \"x\", \"max_tokens\": 1}\n");
    let assert = desk.run().assert().code(0);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("they are now in out.jsonl.partial.1"), "{stderr}");
    assert_eq!(desk.read("out.jsonl.partial.1"), left);
    assert_eq!(desk.output().len(), 1);
}

/// The wait for an idle standard input heard no Ctrl-C, and a request of a slow producer was
/// answered only when the batch was full.
#[test]
fn an_idle_standard_input_holds_up_neither_answers_nor_ctrl_c() {
    let desk = Desk::with_input("");
    let mut child = desk.spawn(&["-", "-o", "out.jsonl"]);
    let mut stdin = child.stdin.take().expect("piped");
    for index in 0..5 {
        writeln!(stdin, "{{\"id\": \"r{index}\", \"prompt\": \"x\", \"max_tokens\": 2}}").expect("it reads");
        wait_for_results(&desk, index + 1);
    }
    send(&child, "-INT");
    let (output, stderr) = end(child);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("--resume"), "standard input cannot be gone on with: {stderr}");
    assert_whole(&json_lines(&desk.read("out.jsonl.partial")));
    drop(stdin);
}
