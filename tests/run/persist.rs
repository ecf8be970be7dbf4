//! `--persist-cache`: a run that finds the cache file of another answers as that one did, and
//! computes no prompt again.
//!
//! Owns what a sound file does. Files that cannot be used are `persist_troubles`', looking into them
//! `cache_command`'s.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};

use crate::gguf::tiny_gguf;
use crate::support::{Desk, MODEL, fixture_path, id_of, json_lines, text_of, wait_until};

/// Two groups that share a system part each, turns, and a raw prompt.
pub fn conversations() -> String {
    let chat = |system: &str, question: &str| {
        json!({"max_tokens": 6, "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": question},
        ]})
    };
    let (brief, rhyme) = ("You answer in one short sentence.", "You answer in rhymes, and of the sea alone.");
    lines(&[
        chat(brief, "How many boats?"),
        chat(rhyme, "Of what colour?"),
        chat(brief, "How many sails, and why?"),
        chat(rhyme, "How deep?"),
        json!({"max_tokens": 6, "messages": [
            {"role": "system", "content": brief}, {"role": "user", "content": "How many boats?"},
            {"role": "assistant", "content": "Seven."}, {"role": "user", "content": "And sails?"},
        ]}),
        json!({"max_tokens": 6, "prompt": "Once upon a time there was a harbour"}),
    ])
}

fn lines(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Runs with a cache file and a report; returns the texts.
pub fn run_on(desk: &Desk, model: &Path, file: &str, arguments: &[&str]) -> Vec<String> {
    let mut command = desk.run_with(model);
    command.args(["--report", "report.json", "--persist-cache", file]).args(arguments);
    command.assert().code(0).stderr(contains("warning").not());
    texts(desk)
}

pub fn texts(desk: &Desk) -> Vec<String> {
    desk.output().iter().map(|line| text_of(line).to_owned()).collect()
}

pub fn num_cached(line: &Value) -> u64 {
    let usage = &line["response"]["body"]["usage"];
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("usage says what was cached")
}

fn num_prompt_tokens(line: &Value) -> u64 {
    line["response"]["body"]["usage"]["prompt_tokens"].as_u64().expect("usage says how many")
}

/// Cold, warm, read only, at another width, and from a merged file, all against a run without one.
fn warm_answers_are_those_of(model: &Path) {
    warm_answers_with(model, &[]);
}

/// The same with more arguments, which all of the runs have.
pub fn warm_answers_with(model: &Path, arguments: &[&str]) {
    let name = model.display();
    let desk = Desk::with_input(conversations());
    desk.run_with(model)
        .args(["--report", "report.json", "--cache-bytes", "0"])
        .args(arguments)
        .assert()
        .code(0);
    let expected = texts(&desk);
    assert_eq!(expected.len(), 6);

    assert_eq!(run_on(&desk, model, "cache.bin", arguments), expected, "{name}: cold");
    let cold = desk.report();
    let num_unique = cold["num_prefilled_tokens"].as_u64().expect("a count");
    assert!(num_unique > 50, "{name}: {cold}");
    assert_eq!(cold["cache_file"]["opening"], "new");
    assert_eq!(cold["cache_file"]["num_restored_tokens"], 0);

    assert_eq!(run_on(&desk, model, "cache.bin", arguments), expected, "{name}: warm");
    let warm = desk.report();
    assert_eq!(warm["num_prefilled_tokens"], 0, "{name}: {warm}");
    assert_eq!(warm["cache_file"]["opening"], "restored");
    assert_eq!(warm["cache_file"]["num_saved_tokens"], 0, "{name}: nothing is new");
    assert_eq!(warm["cache_file"]["num_damaged"], 0);
    assert_eq!(warm["cache_file"]["num_restored_tokens"], num_unique, "{name}: each once");

    let bytes = fs::read(desk.path("cache.bin")).expect("the file is there");
    let alone = [arguments, &["--cache-mode", "ro", "--batch-size", "1", "--require-cache"]].concat();
    assert_eq!(run_on(&desk, model, "cache.bin", &alone), expected, "{name}: one at a time");
    assert_eq!(desk.report()["num_prefilled_tokens"], 0, "{name}");
    assert!(fs::read(desk.path("cache.bin")).expect("it is there") == bytes, "read only leaves it alone");

    // Half of the requests in each of two files, which together have all.
    let input = desk.read("in.jsonl");
    let lines: Vec<&str> = input.split_inclusive('\n').collect();
    for (file, half) in [("one.bin", &lines[..3]), ("two.bin", &lines[3..])] {
        desk.write("in.jsonl", half.concat());
        run_on(&desk, model, file, arguments);
    }
    desk.write("in.jsonl", &input);
    let mut merge = desk.bare();
    merge.args(["cache", "merge", "one.bin", "two.bin", "-o", "both.bin"]).assert().code(0);
    assert_eq!(run_on(&desk, model, "both.bin", arguments), expected, "{name}: merged");
    assert_eq!(desk.report()["num_prefilled_tokens"], 0, "{name}: merged");
}

#[test]
fn a_warm_run_answers_as_a_cold_one_and_computes_no_prompt() {
    for model in [MODEL, "tiny-gemma3", "tiny-llama-4bit"] {
        warm_answers_are_those_of(&fixture_path(model));
    }
}

#[test]
fn a_warm_run_of_a_model_with_recurrent_layers_computes_no_prompt_either() {
    for model in ["tiny-qwen3_5", "tiny-lfm2", "tiny-nemotron_h-moe", "tiny-mamba2", "tiny-kimi_linear"] {
        warm_answers_are_those_of(&fixture_path(model));
    }
}

/// The factors for long contexts give other keys, so that neither choice may find what the other has stored.
#[test]
fn long_contexts_are_a_choice_that_the_error_names_and_the_cache_file_knows() {
    let model = fixture_path("tiny-phi3");
    let (short, long) = (json!({"max_tokens": 4, "prompt": "A harbour"}), "boats and sails ".repeat(12));
    let desk = Desk::with_input(lines(&[short, json!({"max_tokens": 4, "prompt": long})]));
    let run = |file: &str, arguments: &[&str]| {
        let mut command = desk.run_with(&model);
        command.args(["--persist-cache", file]).args(arguments);
        command
    };
    run("cache.bin", &[]).assert().code(3);
    let output = desk.output();
    let message = output[1]["response"]["body"]["error"]["message"].as_str().expect("it is too long");
    assert!(message.contains("(--long-context serves 1024)"), "{message}");

    run("cache.bin", &["--long-context"]).assert().code(0).stderr(contains("--long-context differs"));
    let expected = texts(&desk);
    for _ in 0..2 {
        run("long.bin", &["--long-context"]).assert().code(0).stderr(contains("differs").not());
        assert_eq!(texts(&desk), expected);
    }

    let refused = "tiny-llama has no LongRoPE with other factors for long contexts: leave --long-context out";
    desk.run_with(fixture_path(MODEL)).arg("--long-context").assert().code(1).stderr(contains(refused));
}

#[test]
fn a_warm_run_of_a_gguf_file_computes_no_prompt_either() {
    let desk = Desk::with_input("");
    desk.write("tiny.gguf", tiny_gguf());
    warm_answers_are_those_of(&desk.path("tiny.gguf"));
}

/// The example model, which `make test` fetches.
#[test]
fn a_warm_run_of_a_real_model_computes_no_prompt_either() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(".mlx/models/smollm2/SmolLM2-135M-Instruct.gguf");
    assert!(model.is_file(), "{} is missing: run make model", model.display());
    warm_answers_are_those_of(&model);
}

#[test]
fn the_file_is_readable_by_its_owner_only_and_nothing_is_left_beside_it() {
    let desk = Desk::with_input(conversations());
    for _ in 0..2 {
        run_on(&desk, &fixture_path(MODEL), "cache.bin", &[]);
        let mode = fs::metadata(desk.path("cache.bin")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(desk.names(), ["cache.bin", "in.jsonl", "out.jsonl", "report.json"]);
    }
    let mut merge = desk.bare();
    merge.args(["cache", "merge", "cache.bin", "cache.bin", "-o", "other.bin"]).assert().code(0);
    let mut prune = desk.bare();
    prune.args(["cache", "prune", "cache.bin", "--tier", "assistant"]).assert().code(0);
    for name in ["cache.bin", "other.bin"] {
        let mode = fs::metadata(desk.path(name)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn refresh_starts_cold_and_replaces_what_the_file_holds() {
    let desk = Desk::with_input(conversations());
    let model = fixture_path(MODEL);
    let expected = run_on(&desk, &model, "cache.bin", &[]);
    desk.write("in.jsonl", "{\"prompt\": \"A harbour\", \"max_tokens\": 2}\n");
    run_on(&desk, &model, "cache.bin", &["--cache-mode", "refresh"]);
    assert_eq!(desk.report()["cache_file"]["opening"], "refreshed");
    desk.write("in.jsonl", conversations());
    assert_eq!(run_on(&desk, &model, "cache.bin", &["--cache-mode", "refresh"]), expected);
    assert!(desk.report()["num_prefilled_tokens"].as_u64() > Some(50));
    run_on(&desk, &model, "cache.bin", &[]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
    assert_eq!(desk.names(), ["cache.bin", "in.jsonl", "out.jsonl", "report.json"]);
}

/// Tiny models answer in halves of characters, which come back as other tokens: of many sampled answers some
/// are plain enough to be said again.
#[test]
fn the_next_turn_in_a_second_run_finds_the_first_runs_answer() {
    for model in [MODEL, "tiny-qwen3_5"] {
        let question = |seed: usize| json!({"role": "user", "content": format!("Tell of boat {seed}.")});
        let line = |seed: usize, messages: Value| json!({"id": format!("{seed}"), "max_tokens": 2, "temperature": 1, "seed": seed, "messages": messages});
        let first: Vec<Value> = (0..60).map(|seed| line(seed, json!([question(seed)]))).collect();
        let desk = Desk::with_input(lines(&first));
        let model = fixture_path(model);
        run_on(&desk, &model, "cache.bin", &[]);
        let (answers, is_plain) = (desk.output(), |text: &str| text.len() == 2 && text.is_ascii());
        let plain: Vec<usize> = (0..60).filter(|&seed| is_plain(text_of(&answers[seed]))).collect();
        let second = |&seed: &usize| {
            let answer = json!({"role": "assistant", "content": text_of(&answers[seed])});
            line(seed, json!([question(seed), answer, {"role": "user", "content": "And sails?"}]))
        };
        desk.write("in.jsonl", lines(&plain.iter().map(second).collect::<Vec<_>>()));
        run_on(&desk, &model, "cache.bin", &["--cache-mode", "ro"]);
        let finds_answer = |(answered, seed): (&Value, &usize)| {
            // The last token of an answer is not computed.
            num_cached(answered) == 1 + num_prompt_tokens(&answers[*seed])
        };
        let num_found = desk.output().iter().zip(&plain).filter(|pair| finds_answer(*pair)).count();
        assert!(num_found > 0, "none of {} plain answers was found: {:?}", plain.len(), desk.output());
    }
}

#[test]
fn what_was_restored_for_nothing_is_said() {
    let desk = Desk::with_input("{\"prompt\": \"Once upon a time\", \"max_tokens\": 2}\n");
    let run = |warning: &str, summary: &str| {
        let run = desk.run().args(["--persist-cache", "cache.bin"]).assert().code(0);
        run.stderr(contains(warning).and(contains(summary)));
    };
    run("", "cache.bin: cold start, ");
    desk.write("in.jsonl", "{\"prompt\": \"Zebras\", \"max_tokens\": 2}\n");
    run("tokens, and no prompt of this run begins with any of them", "cache.bin: 0 of ");
    run("", "stored tokens restored, 0 new ones saved, ");
    let quiet = desk.run().args(["--persist-cache", "cache.bin", "-q"]).assert().code(0);
    quiet.stderr(is_empty());
}

#[test]
fn ctrl_c_saves_what_was_computed() {
    let line = |index: usize| {
        format!("{{\"id\": \"{index}\", \"prompt\": \"Once {index} of {index}\", \"max_tokens\": 9}}\n")
    };
    let desk = Desk::with_input((0..50_000).map(line).collect::<String>());
    let child = desk.spawn(&["in.jsonl", "-o", "out.jsonl", "--persist-cache", "cache.bin"]);
    wait_until("some results are on disk", || {
        fs::read_to_string(desk.path("out.jsonl.partial")).is_ok_and(|text| text.lines().count() >= 5)
    });
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(status.expect("POSIX has kill").success());
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("cache.bin: cold start, ") && stderr.contains("new ones saved"), "{stderr}");
    let lines = json_lines(&desk.read("out.jsonl.partial"));
    desk.remove("out.jsonl.partial");
    let done: Vec<usize> = lines.iter().map(|line| id_of(line).parse().expect("a number")).collect();
    assert!(done.len() >= 5);
    desk.write("in.jsonl", done.into_iter().map(line).collect::<String>());
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &["--require-cache"]);
    assert_eq!(desk.report()["num_prefilled_tokens"], 0);
}

#[test]
fn a_limit_on_the_file_is_kept() {
    let desk = Desk::with_input(conversations());
    let limit = ["--persist-max-bytes", "16KiB"];
    run_on(&desk, &fixture_path(MODEL), "cache.bin", &limit);
    let mut inspect = desk.bare();
    let output = inspect.args(["cache", "inspect", "cache.bin", "--json"]).output().expect("it runs");
    let contents: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let num_bytes = contents["kv_bytes"].as_u64().expect("a count");
    assert!(num_bytes > 0 && num_bytes <= 16 << 10, "{contents}");
}

/// Answers with thinking that the template drops from earlier turns were kept, in memory and in the file,
/// where no later prompt could begin with them.
#[test]
fn answers_that_the_template_rewrites_take_no_place() {
    let num_answers = |template: Option<&str>| {
        let desk = Desk::with_input(conversations());
        let model = desk.copy_model(MODEL);
        if let Some(template) = template {
            desk.set_field("model/tokenizer_config.json", "chat_template", template.into());
        }
        run_on(&desk, &model, "cache.bin", &[]);
        desk.report()["cache"]["tiers"]["assistant"]["num_entries"].as_u64().expect("a count")
    };
    let messages = |content: &str| {
        format!(
            "{{% for message in messages %}}<{{{{ message.role }}}}>{content}\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<assistant>{{% endif %}}"
        )
    };
    assert_eq!(num_answers(None), 6);
    assert_eq!(num_answers(Some(&messages("{{ message.content }}"))), 6);
    // All but the last message of an assistant is left out; the raw prompt's answer alone may come again.
    let dropping = "{% if message.role != 'assistant' or loop.last %}{{ message.content }}{% endif %}";
    assert_eq!(num_answers(Some(&messages(dropping))), 1);
}
