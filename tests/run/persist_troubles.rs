//! Cache files that cannot be used, or not be saved: each is named with the way out, and none costs a
//! result or another's file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::Value;

use crate::persist::{conversations, run_on, texts};
use crate::support::{Desk, MODEL, fixture_path};

const INPUT: &str = "{\"prompt\": \"Once upon a time\", \"max_tokens\": 2}\n";

/// The run ends before it has written or computed anything, with a message that has all of these.
fn refused(desk: &Desk, arguments: &[&str], parts: &[&str]) {
    let names = desk.names();
    let assert = desk.run().args(arguments).assert().code(1).stdout(is_empty());
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.starts_with("mlxbatch: error: ") && !stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
    assert_eq!(desk.names(), names, "{arguments:?}: nothing comes into being");
}

#[test]
fn files_that_cannot_be_a_cache_file_are_refused_with_a_hint() {
    let desk = Desk::with_input(INPUT);
    fs::create_dir(desk.path("folder")).expect("it is new");
    desk.write("notes.txt", "Nothing that mlxbatch has written.\n");
    desk.write("short", "x");
    for (file, reason, hint) in [
        ("notes.txt", "notes.txt is not a cache file of mlxbatch and stays as it is", "name another file"),
        ("short", "short is not a cache file of mlxbatch", "name another file"),
        ("folder", "folder is a folder, not a file", "name a file"),
        ("no/cache.bin", "the folder no of the cache file does not exist", "create it first"),
        ("/dev/null", "/dev/null is a device or a pipe", "name a file"),
        ("in.jsonl", "--persist-cache in.jsonl is the input", "give it a file of its own"),
        ("./folder/../in.jsonl", "is the input", "give it a file of its own"),
        ("out.jsonl", "--persist-cache out.jsonl is the output", "give it a file of its own"),
        ("./out.jsonl", "is the output", "give it a file of its own"),
        ("folder/../report.json", "is the report", "give it a file of its own"),
        ("out.jsonl.partial", "where the output grows", "give it a file of its own"),
    ] {
        refused(&desk, &["--report", "report.json", "--persist-cache", file], &[reason, hint]);
        for mode in ["ro", "refresh"].into_iter().filter(|_| !file.starts_with("no/")) {
            refused(
                &desk,
                &["--report", "report.json", "--persist-cache", file, "--cache-mode", mode],
                &[reason],
            );
        }
    }
    assert_eq!(desk.read("notes.txt"), "Nothing that mlxbatch has written.\n");
    assert_eq!(desk.read("in.jsonl"), INPUT);
    let arguments = ["--persist-cache", "cache.bin", "--cache-bytes", "0"];
    refused(&desk, &arguments, &["--persist-cache", "--cache-bytes 0"]);
}

#[test]
fn a_file_of_a_newer_format_is_refused_and_left_alone() {
    let desk = Desk::with_input(INPUT);
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    let mut bytes = fs::read(desk.path("cache.bin")).expect("it is there");
    bytes[16] = 9;
    let sum = xxhash_rust::xxh3::xxh3_128(&bytes[..20]).to_le_bytes();
    bytes[20..36].copy_from_slice(&sum);
    desk.write("cache.bin", &bytes);
    let hint = "update mlxbatch or name another file";
    refused(
        &desk,
        &["--persist-cache", "cache.bin"],
        &["cache.bin is a cache file of format version 9", hint],
    );
    assert!(fs::read(desk.path("cache.bin")).expect("it is there") == bytes);
}

#[test]
fn a_file_without_permission_is_refused() {
    let desk = Desk::with_input(INPUT);
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    let forbid = fs::Permissions::from_mode(0o000);
    fs::set_permissions(desk.path("cache.bin"), forbid).expect("it is ours");
    // Nothing is forbidden to root.
    if fs::File::open(desk.path("cache.bin")).is_err() {
        let reason = "cannot open the cache file cache.bin: Permission denied";
        refused(&desk, &["--persist-cache", "cache.bin"], &[reason]);
    }
}

#[test]
fn require_cache_fails_with_each_reason_and_works_warm() {
    let desk = Desk::with_input(INPUT);
    let model = fixture_path(MODEL);
    let required = ["--persist-cache", "cache.bin", "--require-cache"];
    let told = "--require-cache: cache.bin cannot be restored, ";
    let fails = |extra: &[&str], reason: &str| {
        desk.write("out.jsonl", "older\n");
        let run = desk.run().args(required).args(extra).assert().code(1);
        run.stderr(contains(format!("{told}{reason}")).and(contains("panicked").not()));
        assert_eq!(desk.read("out.jsonl"), "older\n");
    };
    fails(&[], "there is no such file");
    desk.write("cache.bin", "");
    fails(&[], "there is no such file");
    run_on(&desk, &model, "cache.bin", &[]);
    run_on(&desk, &model, "cache.bin", &["--require-cache"]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
    fails(&["--cache-mode", "refresh"], "--cache-mode refresh starts cold");
    fails(&["--dtype", "f16"], "it is of another model: precision differs");
    let bytes = fs::read(desk.path("cache.bin")).expect("it is there");
    desk.write("cache.bin", &bytes[..20_000]);
    fails(&[], "it is damaged: ");
    desk.write("cache.bin", &bytes);
    let mut prune = desk.bare();
    prune.args(["cache", "prune", "cache.bin", "--max-bytes", "0"]).assert().code(0);
    fails(&[], "it holds nothing");
}

#[test]
fn another_model_starts_cold_says_why_and_leaves_the_file_alone() {
    let desk = Desk::with_input(conversations());
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    let before = fs::read(desk.path("cache.bin")).expect("it is there");
    desk.copy_model(MODEL);
    let template = "{% for message in messages %}{{ message.content }}\n{% endfor %}";
    desk.set_field("model/tokenizer_config.json", "chat_template", template.into());
    let fixture = |name: &str| fixture_path(name).display().to_string();
    for (model, dtype, difference) in [
        (fixture(MODEL), "f16", "(precision differs)"),
        (fixture("tiny-gemma3"), "auto", "weights, configuration"),
        ("model".to_owned(), "auto", "chat template differ"),
    ] {
        let cold = "this run starts cold and saves nothing; name another file, or replace it with --cache-mode refresh";
        let holds = "cache.bin holds the cache of another model (";
        let mut command = desk.run_with(&model);
        command.args(["--persist-cache", "cache.bin", "--dtype", dtype, "--report", "report.json"]);
        command.assert().code(0).stderr(contains(holds).and(contains(difference)).and(contains(cold)));
        assert_eq!(desk.report()["cache_file"]["opening"], "other_model");
        assert_eq!(desk.output().len(), 6);
        assert!(fs::read(desk.path("cache.bin")).expect("it is there") == before, "{difference}");
    }
    // Unless it is asked for.
    let mut command = desk.run_with("model");
    command.args(["--persist-cache", "cache.bin", "--cache-mode", "refresh"]).assert().code(0);
    run_on(&desk, &desk.path("model"), "cache.bin", &["--require-cache"]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
}

#[test]
fn the_same_model_in_another_folder_is_the_same_model() {
    let desk = Desk::with_input(conversations());
    let expected = run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    desk.copy_model(MODEL);
    let found = run_on(&desk, &desk.path("model"), "cache.bin", &["--require-cache"]);
    assert_eq!((found, &desk.report()["num_prefilled_tokens"]), (expected, &Value::from(0)));
}

#[test]
fn damage_costs_time_and_no_answer_and_is_said() {
    let desk = Desk::with_input(conversations());
    let expected = run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    let whole = fs::read(desk.path("cache.bin")).expect("it is there");
    let run =
        || desk.run().args(["--persist-cache", "cache.bin", "--report", "report.json"]).assert().code(0);
    // The first extent, which comes after the index of a new file; then the file is cut within its index.
    let mut damaged = whole.clone();
    damaged[(32 << 10) + 100] ^= 1;
    desk.write("cache.bin", &damaged);
    run().stderr(contains("a prefix of cache.bin was damaged and has been computed again"));
    assert_eq!(texts(&desk), expected);
    assert!(desk.report()["num_prefilled_tokens"].as_u64() > Some(0));
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0, "the save has healed the file");

    desk.write("cache.bin", &whole[..whole.len() - 1]);
    let older = contains("warning: what was last saved to cache.bin is damaged, ");
    run().stderr(older.and(contains("this run starts with what was saved before")));
    assert_eq!(texts(&desk), expected);
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    #[test]
    fn a_folder_that_nobody_can_write_to_costs_a_warning() {
        let desk = Desk::with_input(conversations());
        let run = desk.run().args(["--persist-cache", "/sys/mlxbatch.bin"]).assert().code(0);
        run.stderr(
            contains("warning: cannot create /sys/mlxbatch.bin: ")
                .and(contains("the results are not touched by that"))
                .and(contains("/sys/mlxbatch.bin: cold start, not saved")),
        );
        assert_eq!(desk.output().len(), 6);
    }

    /// The shell's limit on the size of files stands in for a disk that fills up.
    #[test]
    fn a_disk_that_fills_up_costs_a_warning_and_leaves_the_file_as_it_was() {
        let desk = Desk::with_input("{\"prompt\": \"A harbour\", \"max_tokens\": 2}\n");
        run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
        let before = fs::read(desk.path("cache.bin")).expect("it is there");
        desk.write("in.jsonl", conversations());
        let num_blocks = before.len().div_ceil(512) + 40;
        for (file, warning) in [("cache.bin", "cannot write to cache.bin: "), ("new.bin", "cannot ")] {
            let num_blocks = if file == "new.bin" { 20 } else { num_blocks };
            let mut command = std::process::Command::new("sh");
            let script = format!("trap '' XFSZ; ulimit -f {num_blocks}; exec \"$@\"");
            command.args(["-c", &script, "sh"]).arg(assert_cmd::cargo::cargo_bin("mlxbatch"));
            command.args(["run", "in.jsonl", "-o", "out.jsonl", "--persist-cache", file, "--model"]);
            command.arg(fixture_path(MODEL)).current_dir(desk.path(""));
            let output = command.output().expect("a shell starts");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{stderr}");
            assert!(stderr.contains(warning) && stderr.contains("File too large"), "{stderr}");
            assert!(stderr.contains("the results are not touched by that"), "{stderr}");
            assert_eq!(desk.output().len(), 6);
        }
        assert_eq!(desk.names(), ["cache.bin", "in.jsonl", "out.jsonl", "report.json"]);
        // What it held it holds, and there is room again.
        desk.write("in.jsonl", "{\"prompt\": \"A harbour\", \"max_tokens\": 2}\n");
        run_on(&desk, &fixture_path(MODEL), "cache.bin", &["--require-cache"]);
        assert_eq!(desk.report()["num_prefilled_tokens"], 0);
        let mut verify = desk.bare();
        verify.args(["cache", "verify", "cache.bin"]).assert().code(0);
    }
}
