//! `mlxbatch cache`: what it says of cache files, what it does to them, and what it refuses.

use std::fs;

use predicates::prelude::*;
use predicates::str::{contains, is_empty, is_match};
use serde_json::Value;

use crate::persist::{conversations, run_on};
use crate::support::{Desk, MODEL, fixture_path};

fn desk_with_file() -> Desk {
    let desk = Desk::with_input(conversations());
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    desk
}

fn cache(desk: &Desk, arguments: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = desk.bare();
    command.arg("cache").args(arguments).assert()
}

fn inspected(desk: &Desk, file: &str) -> Value {
    let assert = cache(desk, &["inspect", file, "--json"]).code(0).stderr(is_empty());
    serde_json::from_slice(&assert.get_output().stdout).expect("it is one JSON object")
}

#[test]
fn inspect_says_what_a_file_holds() {
    let desk = desk_with_file();
    let model = fixture_path(MODEL).display().to_string();
    let numbers =
        r"cache\.bin: the cache of .*tiny-llama\n  \d+ prefixes of [\d,]+ tokens, .*KiB in a file of ";
    cache(&desk, &["inspect", "cache.bin"]).code(0).stderr(is_empty()).stdout(
        is_match(numbers)
            .expect("a pattern")
            .and(contains("  system "))
            .and(contains("identity"))
            .and(contains("chat template"))
            .and(contains("prefixes that most continue"))
            .and(contains("with --model the prefixes are shown as text")),
    );
    let with_text = cache(&desk, &["inspect", "cache.bin", "--model", &model]).code(0);
    with_text.stdout(contains("You answer in").and(contains("with --model").not()));
    cache(&desk, &["inspect", "cache.bin", "--model", "./no-such-model"])
        .code(1)
        .stderr(contains("no-such-model"));
}

#[test]
fn inspect_json_adds_up() {
    let desk = desk_with_file();
    let contents = inspected(&desk, "cache.bin");
    let count = |name: &str| contents[name].as_u64().unwrap_or_else(|| panic!("no {name} in {contents}"));
    let tiers = contents["tiers"].as_object().expect("an object");
    for (whole, part) in [("num_prefixes", "num_prefixes"), ("num_tokens", "num_tokens")] {
        let sum: u64 = tiers.values().filter_map(|tier| tier[part].as_u64()).sum();
        assert_eq!(count(whole), sum, "{contents}");
    }
    assert_eq!((count("format_version"), count("num_damaged")), (2, 0));
    assert_eq!(count("file_bytes"), fs::metadata(desk.path("cache.bin")).expect("it is there").len());
    assert!(count("kv_bytes") > 0 && count("kv_bytes") < count("file_bytes"));
    assert_eq!(contents["identity"].as_object().map(serde_json::Map::len), Some(8), "{contents}");
    assert!(contents["most_continued"][0]["num_continuations"].as_u64() > Some(1), "{contents}");
}

#[test]
fn verify_tells_a_sound_file_from_a_damaged_one() {
    let desk = desk_with_file();
    cache(&desk, &["verify", "cache.bin"])
        .code(0)
        .stderr(is_empty())
        .stdout(contains("cache.bin is sound: "));
    let mut bytes = fs::read(desk.path("cache.bin")).expect("it is there");
    // The first extent, which comes after the index of a new file.
    bytes[32 << 10] ^= 1;
    desk.write("cache.bin", &bytes);
    cache(&desk, &["verify", "cache.bin"]).code(1).stdout(is_empty()).stderr(
        contains("cache.bin is damaged: 1 of ")
            .and(contains("(at 32768)"))
            .and(contains("computes them again")),
    );
    desk.write("cache.bin", &bytes[..5000]);
    cache(&desk, &["verify", "cache.bin"]).code(1).stderr(contains("cache.bin is damaged ("));
}

#[test]
fn prune_drops_what_was_asked_for_and_gives_space_back() {
    let desk = desk_with_file();
    let before = inspected(&desk, "cache.bin");
    cache(&desk, &["prune", "cache.bin"]).code(2).stderr(contains("--max-bytes"));
    cache(&desk, &["prune", "cache.bin", "--older-than", "12h"]).code(0).stdout(contains("cache.bin: 0 of "));
    let pruned = cache(&desk, &["prune", "cache.bin", "--tier", "assistant"]).code(0);
    pruned.stdout(
        is_match(r"cache\.bin: [1-9]\d* of \d+ prefixes dropped, .* instead of ").expect("a pattern"),
    );
    let after = inspected(&desk, "cache.bin");
    assert_eq!(after["tiers"]["assistant"]["num_prefixes"], 0, "{after}");
    assert_eq!(after["tiers"]["system"], before["tiers"]["system"]);
    assert!(after["file_bytes"].as_u64() < before["file_bytes"].as_u64());
    cache(&desk, &["verify", "cache.bin"]).code(0);
    // All prompts are there yet.
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
    cache(&desk, &["prune", "cache.bin", "--max-bytes", "2KiB"]).code(0);
    assert!(inspected(&desk, "cache.bin")["kv_bytes"].as_u64() <= Some(2 << 10));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let desk = desk_with_file();
    fs::create_dir(desk.path("folder")).expect("it is new");
    desk.write("notes.txt", "Nothing that mlxbatch has written.\n");
    desk.write("empty", "");
    for (file, reason) in [
        ("none.bin", "none.bin does not exist"),
        ("no/none.bin", "no/none.bin does not exist"),
        ("folder", "folder is a folder, not a file"),
        ("notes.txt", "notes.txt is not a cache file of mlxbatch"),
        ("empty", "empty is not a cache file of mlxbatch"),
    ] {
        let names = desk.names();
        let commands: [&[&str]; 4] = [
            &["inspect", file],
            &["verify", file],
            &["prune", file, "--max-bytes", "0"],
            &["merge", "cache.bin", file, "-o", "merged.bin"],
        ];
        for arguments in commands {
            cache(&desk, arguments).code(1).stdout(is_empty()).stderr(
                contains("mlxbatch: error: ")
                    .and(contains(reason))
                    .and(contains("--persist-cache").not())
                    .and(contains("panicked").not()),
            );
        }
        assert_eq!(desk.names(), names);
    }
}

#[test]
fn files_of_different_models_are_not_merged() {
    let desk = desk_with_file();
    run_on(&desk, &fixture_path("tiny-gemma3"), "gemma.bin", &[]);
    cache(&desk, &["merge", "cache.bin", "gemma.bin", "-o", "merged.bin"]).code(1).stderr(
        contains("cache.bin and gemma.bin are caches of different models (").and(contains("weights")),
    );
    assert!(!desk.path("merged.bin").exists());
    let before = fs::read(desk.path("gemma.bin")).expect("it is there");
    cache(&desk, &["merge", "cache.bin", "cache.bin", "-o", "gemma.bin"])
        .code(1)
        .stderr(contains("gemma.bin holds the cache of another model").and(contains("of this run").not()));
    assert!(fs::read(desk.path("gemma.bin")).expect("it is there") == before);
    cache(&desk, &["merge", "cache.bin", "cache.bin", "-o", "no/merged.bin"])
        .code(1)
        .stderr(contains("the folder no of the cache file does not exist; create it first"));
    cache(&desk, &["merge", "cache.bin", "-o", "merged.bin"]).code(2);
}

/// As a store of a CI system needs it: other questions give the same key, another system prompt or model another one.
#[test]
fn the_key_of_a_file_changes_with_its_model_and_its_system_prompts() {
    let key_of = |model: &str, system: &str, question: &str| -> String {
        let messages = [("system", system), ("user", question)]
            .map(|(role, content)| serde_json::json!({"role": role, "content": content}));
        let line = serde_json::json!({"messages": messages, "max_tokens": 3});
        let desk = Desk::with_input(format!("{line}\n"));
        run_on(&desk, &fixture_path(model), "cache.bin", &[]);
        let assert = cache(&desk, &["inspect", "--key", "cache.bin"]).code(0).stderr(is_empty());
        String::from_utf8(assert.get_output().stdout.clone()).expect("it is text")
    };
    let key = key_of(MODEL, "You answer in one word.", "Why is the sky blue?");
    assert!(is_match(r"^[0-9a-f]{16}-[0-9a-f]{16}\n$").expect("a pattern").eval(&key), "{key}");
    assert_eq!(key_of(MODEL, "You answer in one word.", "What of the sea?"), key);
    let other_system = key_of(MODEL, "You answer in two words.", "Why is the sky blue?");
    assert_eq!((&other_system[..16], other_system[17..] == key[17..]), (&key[..16], false));
    let other_model = key_of("tiny-llama-4bit", "You answer in one word.", "Why is the sky blue?");
    assert_ne!(other_model[..16], key[..16]);
}
