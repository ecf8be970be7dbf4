//! The command line of the real binary: usage, version, completions, exit codes.
//!
//! Owns what needs no input file; `validate.rs` has the rest.

use std::process::Stdio;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::{contains, is_empty, starts_with};

fn mlxbatch() -> Command {
    let mut command = Command::cargo_bin("mlxbatch").expect("the binary is built with the tests");
    command.env_remove("MLXBATCH_MODEL");
    command
}

#[test]
fn without_a_command_it_teaches() {
    mlxbatch()
        .assert()
        .code(2)
        .stderr(contains("Usage:").and(contains("mlxbatch run convos.jsonl -o out.jsonl")));
}

#[test]
fn help_has_examples_and_exit_codes() {
    for command in ["run", "plan", "validate"] {
        mlxbatch()
            .args([command, "--help"])
            .assert()
            .success()
            .stdout(contains("Examples:").and(contains("Exit codes:")));
    }
    mlxbatch().args(["run", "--help"]).assert().stdout(
        contains("MLXBATCH_MODEL")
            .and(contains("130"))
            .and(contains("mlx-community/Llama-3.2-3B-Instruct-4bit"))
            .and(contains("Generation")),
    );
}

#[test]
fn the_version_is_one_line_unless_more_is_asked_for() {
    let one_line = format!("mlxbatch {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        mlxbatch().arg(flag).assert().success().stdout(one_line.clone());
    }
    mlxbatch()
        .args(["--version", "-v"])
        .assert()
        .success()
        .stdout(starts_with(one_line).and(contains("system")));
}

/// OpenBLAS takes kernels of 2004 for processors it does not know.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn matrix_products_use_what_the_processor_has_unless_told_otherwise() {
    let version = |kernels: Option<&str>| {
        let mut command = mlxbatch();
        command.env_remove("OPENBLAS_CORETYPE").args(["--version", "-v"]);
        command.envs(kernels.map(|kernels| ("OPENBLAS_CORETYPE", kernels)));
        command.assert().success()
    };
    version(Some("Prescott")).stdout(contains("OpenBLAS (Prescott kernels)"));
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        version(None).stdout(contains("OpenBLAS (").and(contains("Prescott").not()));
    }
}

#[test]
fn a_command_line_that_cannot_be_understood_exits_2() {
    for arguments in [
        &["dance"][..],
        &["run"],
        &["run", "in.jsonl"],
        &["run", "in.jsonl", "-o", "out.jsonl", "--bogus"],
        &["run", "in.jsonl", "-o", "out.jsonl", "--temperature", "9"],
        &["run", "in.jsonl", "-o", "out.jsonl", "--dtype", "int4"],
        &["plan"],
        &["plan", "in.jsonl", "--batch-size", "0"],
        &["validate"],
        &["completions", "tcsh"],
        &["-v"],
    ] {
        let assert = mlxbatch().args(arguments).assert();
        assert.code(2).stdout(is_empty()).stderr(is_empty().not());
    }
}

#[test]
fn completions_know_every_command_and_flag() {
    for shell in ["bash", "zsh", "fish"] {
        mlxbatch()
            .args(["completions", shell])
            .assert()
            .success()
            .stdout(contains("validate").and(contains("prefill-chunk")).and(contains("bf16")));
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    for arguments in [&["completions", "bash"][..], &["--version"]] {
        let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("mlxbatch"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(closed_pipe())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("piped");
        assert_eq!(std::io::read_to_string(stderr).unwrap(), "");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

/// The writing end of a pipe that nobody reads: the standard input of a process that has ended.
fn closed_pipe() -> Stdio {
    let mut reader =
        std::process::Command::new("true").stdin(Stdio::piped()).spawn().expect("POSIX has `true`");
    let writing_end = reader.stdin.take().expect("piped");
    reader.wait().expect("`true` ends");
    writing_end.into()
}

#[test]
fn a_mistyped_flag_is_told_the_one_that_was_meant() {
    mlxbatch()
        .args(["run", "in.jsonl", "-o", "out.jsonl", "--temprature", "1"])
        .assert()
        .code(2)
        .stderr(contains("--temprature").and(contains("'--temperature'")));
    mlxbatch().args(["runn", "in.jsonl"]).assert().code(2).stderr(contains("similar").and(contains("'run'")));
}

/// `MLXBATCH_MODEL= mlxbatch run …` was refused as if `--model ''` had been typed.
#[test]
fn an_empty_variable_is_as_good_as_none() {
    mlxbatch()
        .env("MLXBATCH_MODEL", "")
        .args(["run", "no-such-file.jsonl", "-o", "out.jsonl"])
        .assert()
        .code(1)
        .stderr(contains("cannot open the input no-such-file.jsonl"));
    mlxbatch()
        .args(["run", "no-such-file.jsonl", "-o", "out.jsonl", "--model", ""])
        .assert()
        .code(2)
        .stderr(contains("--model"));
}
