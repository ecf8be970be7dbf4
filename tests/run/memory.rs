//! Memory does not grow with the number of lines.

use std::fmt::Write;

use crate::support::Desk;

/// Allocators, page caches of small maps, the digests of ids and what a busy machine lets wait differ by less.
const SLACK_BYTES: u64 = 16 << 20;

/// Most memory that a run over this input took.
///
/// This was wrong once: getrusage counts from the peak of the process that started the run, here
/// that of the tests, and every run seemed to take 300 MB.
fn peak_bytes(input: &str, exit_code: i32) -> u64 {
    let desk = Desk::with_input(input);
    // What the prompt cache keeps of answered requests has a limit of its own; a small one here.
    let flags = ["-q", "--report", "report.json", "--batch-size", "8", "--cache-bytes", "256KB"];
    desk.run().args(flags).assert().code(exit_code);
    let report = desk.report();
    assert_eq!(report["num_requests"].as_u64(), Some(input.lines().count() as u64));
    let peak_bytes = report["peak_memory_bytes"].as_u64().expect("the report has the peak");
    assert!(peak_bytes < 200 << 20, "{peak_bytes} bytes for a model of 100 KB");
    peak_bytes
}

#[test]
fn lines_that_fail_are_not_kept() {
    let input = |num_lines: usize| {
        let mut text = "{\"prompt\": \"x\", \"max_tokens\": 2}\n".repeat(5);
        let filler = "lorem ipsum ".repeat(700);
        for number in 0..num_lines {
            writeln!(text, "{{\"id\": \"f{number}\", \"messages\": [{{\"role\": \"{filler}\"}}]}}")
                .expect("a string grows");
        }
        text
    };
    // The longer input and its output are some 100 MB.
    let (short, long) = (peak_bytes(&input(200), 3), peak_bytes(&input(5_000), 3));
    assert!(long <= short + SLACK_BYTES, "{short} bytes at 200 lines, {long} at 5,000");
}

/// Stored for nobody, they took up the whole limit.
#[test]
fn prefixes_that_nobody_can_ask_for_again_are_not_kept_unless_in_a_file() {
    let desk = Desk::with_input("{\"prompt\": \"A boat\"}\n{\"prompt\": \"The sea\"}\n");
    let held = |flags: &[&str]| {
        let common = ["-q", "--report", "report.json", "--max-tokens", "4"];
        desk.run().args(common).args(flags).assert().code(0);
        desk.report()["cache"]["peak_bytes"].as_u64().expect("the report has the peak")
    };
    assert_eq!(held(&[]), 0);
    assert!(held(&["--persist-cache", "cache.bin"]) > 0);
}

#[test]
fn answered_requests_are_not_kept() {
    let input = |num_lines: usize| {
        let filler = "lorem ipsum ".repeat(1_700);
        let mut text = String::new();
        for number in 0..num_lines {
            writeln!(
                text,
                "{{\"prompt\": \"x{number}\", \"max_tokens\": 1, \"metadata\": {{\"m\": \"{filler}\"}}}}"
            )
            .expect("a string grows");
        }
        text
    };
    // Many windows in both: one that runs and one that is gathered take their memory in either. The longer
    // input has 120 MB.
    let (short, long) = (peak_bytes(&input(1_500), 0), peak_bytes(&input(6_000), 0));
    assert!(long <= short + SLACK_BYTES, "{short} bytes at 1,500 lines, {long} at 6,000");
}

/// Forty requests that write tens of thousands of tokens beside each other would take more than the limit; they wait.
/// One that never fits is an error line.
#[test]
fn a_limit_on_memory_is_kept_and_what_never_fits_is_an_error() {
    let line = |number: usize, max_tokens: u32| {
        format!("{{\"id\": \"r{number}\", \"prompt\": \"Once {number}\", \"max_tokens\": {max_tokens}}}\n")
    };
    let mut input: String = (0..40).map(|number| line(number, 20_000)).collect();
    input += &line(40, 900_000);
    let desk = Desk::with_input(input);
    let model = desk.copy_model("tiny-llama");
    desk.set_field("model/config.json", "max_position_embeddings", 1_000_000.into());
    // Under a limit on the address space, too, which would end the process where it takes more than there is.
    let run = |limit: &str| {
        let mut command = desk.limited("ulimit -v 6000000");
        command.args(["run", "in.jsonl", "-o", "out.jsonl", "--model"]).arg(&model);
        command.args([
            "-v",
            "--report",
            "report.json",
            "--batch-size",
            "32",
            "--prefill-chunk",
            "64",
            "--temperature",
            "1",
        ]);
        command
            .args([
                "--stop",
                " ",
                "--stop",
                "e",
                "--stop",
                "a",
                "--max-memory",
                limit,
                "--cache-bytes",
                "1GB",
            ])
            .assert()
    };
    let assert = run("96MiB").code(3);
    let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in ["--cache-bytes is cut to ", "memory: weights ", "; within 96 MiB (--max-memory)"] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    let output = desk.output();
    let failed: Vec<&str> = output.iter().map(crate::support::code_of).filter(|code| *code != "ok").collect();
    assert_eq!(failed, ["memory_limit_exceeded"]);
    let report = desk.report();
    let peak_bytes = report["peak_memory_bytes"].as_u64().expect("it is known");
    assert!(peak_bytes <= 96 << 20, "{peak_bytes}");
    assert!(
        report["peak_rows"].as_u64().is_some_and(|peak| (1..32).contains(&peak)),
        "{}",
        report["peak_rows"]
    );
    let assert = run("20MiB").code(1);
    let told = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(told.contains("--max-memory 20 MiB is too little: weights and program take "), "{told}");
}
