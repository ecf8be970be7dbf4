//! Files that somebody else made, in the places where a run looks, and machines that allow too little: each is named
//! with the way out before a model is loaded, nothing is waited for, and nothing is written where it does not belong.

use std::{fs, os::unix::fs::symlink, path::Path};

use mlxbatch::{
    cache::Place,
    snapshot::{CacheMode, Contents, Snapshot, SnapshotError, SnapshotOptions},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::stat::Mode,
    unistd::mkfifo,
};
use predicates::prelude::*;
use predicates::str::contains;

use crate::support::{Desk, MODEL, fixture_path, text_of};

const INPUT: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"max_tokens\": 1}\n";

fn fifo(path: &Path) {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a FIFO can be made");
}

/// The run ends with an error of all these parts.
fn refused(desk: &Desk, model: &Path, arguments: &[&str], parts: &[&str]) {
    let assert = desk.run_with(model).args(arguments).assert().code(1);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    for part in parts {
        assert!(stderr.contains(part), "no {part:?} in: {stderr}");
    }
}

/// Results went into a link's target, and a pipe was found out about when they were to be published.
#[test]
fn a_partial_file_that_is_no_file_is_refused() {
    let desk = Desk::with_input(INPUT);
    let (model, partial) = (fixture_path(MODEL), desk.path("out.jsonl.partial"));
    desk.write("other", "");
    let link = |target: &Path| symlink(target, &partial).expect("links can be made");
    let makers: [&dyn Fn(); 4] =
        [&|| fifo(&partial), &|| link(&desk.path("other")), &|| link(&desk.path("none")), &|| {
            link(Path::new("/dev/null"))
        }];
    for make in makers {
        make();
        refused(
            &desk,
            &model,
            &[],
            &["out.jsonl.partial, where the results grow, is a link", "hint: remove it"],
        );
        assert_eq!(desk.names(), ["in.jsonl", "other", "out.jsonl.partial"]);
        assert_eq!(desk.read("other"), "");
        desk.remove("out.jsonl.partial");
    }
}

#[test]
fn no_file_of_the_model_is_written_over() {
    let desk = Desk::with_input(INPUT);
    let model = desk.copy_model(MODEL);
    let before = desk.read("model/config.json");
    for arguments in [
        ["--output", "model/config.json"],
        ["--output", "model/../model/tokenizer.json"],
        ["--report", "model/config.json"],
        ["--report", "model/model.safetensors"],
    ] {
        let mut command = desk.bare();
        command.args(["run", "in.jsonl", "--model"]).arg(&model).args(arguments);
        if arguments[0] == "--report" {
            command.args(["-o", "out.jsonl"]);
        }
        command.assert().code(1).stderr(contains("would overwrite the model's").and(contains(arguments[0])));
    }
    assert_eq!(desk.read("model/config.json"), before);
    refused(&desk, &model, &["--report", "out.jsonl.partial"], &["is the file in which the output grows"]);
    // Beside them there is room.
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", "model/out.jsonl", "--report", "model/report.json", "--model"]);
    command.arg(&model).assert().code(0);
}

/// The link was replaced by a file, or nothing was saved.
#[test]
fn a_cache_file_behind_a_link_is_used_there_and_a_link_to_nothing_is_refused() {
    let desk = Desk::with_input(INPUT);
    let model = fixture_path(MODEL);
    symlink("none.bin", desk.path("link")).expect("links can be made");
    refused(
        &desk,
        &model,
        &["--persist-cache", "link"],
        &["link is a link to a file that does not exist", "name a file"],
    );
    desk.write("none.bin", "");
    desk.run().args(["--persist-cache", "link"]).assert().code(0);
    assert!(fs::symlink_metadata(desk.path("link")).expect("it is there").is_symlink());
    assert!(fs::metadata(desk.path("none.bin")).expect("it is there").len() > 0);
    desk.run().args(["--persist-cache", "link", "--require-cache"]).assert().code(0);
}

/// With right checksums, KV that another user has put there changes answers.
#[test]
fn a_cache_file_that_others_may_write_is_not_believed() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::with_input(INPUT);
    let run = |arguments: &[&str]| desk.run().args(["--persist-cache", "cache.bin"]).args(arguments).assert();
    run(&[]).code(0);
    let set_mode = |mode| {
        fs::set_permissions(desk.path("cache.bin"), fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    for mode in [0o666, 0o620, 0o602] {
        set_mode(mode);
        for cache_mode in ["rw", "ro"] {
            run(&["--cache-mode", cache_mode])
                .code(1)
                .stderr(contains("can be written by others").and(contains("--cache-mode unsafe")));
        }
        run(&["--cache-mode", "unsafe", "--require-cache"]).code(0);
    }
    set_mode(0o644);
    run(&["--require-cache"]).code(0).stderr(contains("can be read by others").and(contains("chmod 600")));
    set_mode(0o600);
    run(&["--require-cache"]).code(0).stderr(contains("can be read").not());
}

/// Anybody who can read the file can hold its lock, and the run hung at its save.
#[test]
fn a_lock_that_is_never_given_back_costs_the_save_and_a_signal_ends_the_wait() {
    let desk = Desk::with_input(INPUT);
    desk.run().args(["--persist-cache", "cache.bin"]).assert().code(0);
    desk.write("in.jsonl", INPUT.replace('x', "y"));
    let file = fs::File::open(desk.path("cache.bin")).expect("it is there");
    let _held = Flock::lock(file, FlockArg::LockExclusive).expect("nobody else has it");
    let mut child = desk.spawn(&["in.jsonl", "-o", "out.jsonl", "--persist-cache", "cache.bin"]);
    let stderr = std::io::BufReader::new(child.stderr.take().expect("it is a pipe"));
    let mut lines = std::io::BufRead::lines(stderr).map_while(Result::ok);
    assert!(lines.any(|line| line.contains("waiting for another process that has the lock of cache.bin")));
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.expect("kill is there").success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("has kept the lock of cache.bin")), "{rest:?}");
    assert_eq!(desk.output().len(), 1);
}

/// Results went to `/dev/null`, which Rust's runtime puts in place of a closed descriptor.
#[test]
fn a_closed_standard_output_is_an_error() {
    let desk = Desk::with_input(INPUT);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "exec \"$@\" >&-", "sh"]).arg(assert_cmd::cargo::cargo_bin("mlxbatch"));
    command.args(["run", "in.jsonl", "-o", "-", "--model"]).arg(fixture_path(MODEL));
    let output = command.current_dir(desk.path("")).output().expect("a shell starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("standard output is closed") && stderr.contains("--output"), "{stderr}");
    let mut command = desk.bare();
    command.args(["run", "in.jsonl", "-o", "/dev/null", "--model"]).arg(fixture_path(MODEL)).assert().code(0);
}

/// A FIFO was waited for without end, and `/dev/zero` read until memory was used up.
#[test]
fn small_files_of_a_model_that_are_no_files_are_refused() {
    let desk = Desk::with_input(INPUT);
    let model = desk.copy_model(MODEL);
    for name in ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"] {
        let path = model.join(name);
        let _ = fs::remove_file(&path);
        fifo(&path);
        refused(&desk, &model, &[], &[name, "not a file"]);
        fs::remove_file(&path).expect("it is there");
        symlink("/dev/zero", &path).expect("links can be made");
        refused(&desk, &model, &[], &[name, "not a file"]);
        fs::remove_file(&path).expect("it is there");
        fs::File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("it takes no space");
        refused(&desk, &model, &[], &[name, "too large"]);
        fs::remove_file(&path).expect("it is there");
    }
    // Without a template, requests that need none are answered.
    fifo(&model.join("chat_template.jinja"));
    desk.run_with(&model)
        .assert()
        .code(1)
        .stderr(contains("chat_template.jinja").and(contains("not a file")));
}

/// Names in a model's files moved the cursor and set the title of the terminal.
#[test]
fn what_a_models_files_say_does_not_steer_the_terminal() {
    let desk = Desk::with_input(INPUT);
    let model = desk.copy_model(MODEL);
    let is_quiet = |text: &str| !text.contains(|char: char| char.is_control() && char != '\n');
    for (field, value) in [
        ("model_type", serde_json::json!("x\u{1b}]0;title\u{7}")),
        ("rope_scaling", serde_json::json!({"rope_type": "\u{1b}[2Jx", "factor": 2})),
        ("torch_dtype", serde_json::json!("\u{9b}2J")),
        ("\u{1b}[2Jfield", serde_json::json!(1)),
    ] {
        let before = desk.read("model/config.json");
        desk.set_field("model/config.json", field, value);
        let output = desk.run_with(&model).output().expect("the binary starts");
        let stderr = String::from_utf8(output.stderr).expect("it is text");
        assert!(is_quiet(&stderr), "{field}: {stderr:?}");
        desk.write("model/config.json", before);
    }
}

/// Each ended the whole run, with what stood beside it: the stack overflowed, memory ran out, panics were shown.
#[test]
fn templates_of_lines_that_have_no_end_are_their_own_lines_errors() {
    let good = r#"{"id": "good", "prompt": "Once upon a time", "max_tokens": 2}"#;
    let of_template = |template: &str| {
        serde_json::json!({"messages": [{"role": "user", "content": "x"}], "chat_template": template})
            .to_string()
    };
    let templates = [
        "{% set n=namespace() %}{% set n.a=n %}{{ n }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{% for i in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{% for i in range(999) %}{{ 'a '*10000 }}{% endfor %}",
        "{{ (['a'*1000000]*100000)|join }}",
        "{% set x = ['a'*1000000]*100000 %}{{ x ~ x }}",
        "{% set x = ['a'*1000000]*100000 %}{{ x|tojson(separators=['a'*1000000, '']) }}",
    ];
    let lines: Vec<String> = templates.iter().map(|template| of_template(template)).collect();
    let desk = Desk::with_input(format!("{}\n{good}\n", lines.join("\n")));
    let output = desk.run_under("ulimit -v 6000000", &fixture_path(MODEL));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(!stderr.contains("thread '"), "{stderr}");
    let records = desk.output();
    assert_eq!(records.len(), templates.len() + 1);
    let too_much = "too much text";
    let problems =
        ["a namespace within", "a width is more", "panicked", "tokens", too_much, too_much, too_much];
    for (record, problem) in records.iter().zip(problems) {
        let error = record["response"]["body"]["error"]["message"].as_str().unwrap_or_default();
        assert!(error.contains(problem), "{record}");
    }
    assert_eq!(records[templates.len()]["error"], serde_json::Value::Null);
}

/// It hung, aborted, or failed most lines as if they were at fault.
#[test]
fn a_limit_on_address_space_is_named_before_the_model_loads() {
    let desk = Desk::with_input(INPUT.repeat(60));
    for kib in [300_000, 500_000, 1_000_000] {
        let output = desk.run_under(&format!("ulimit -v {kib}"), &fixture_path(MODEL));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{kib}: {stderr}");
        assert!(stderr.contains("RLIMIT_AS") && stderr.contains("ulimit -v"), "{kib}: {stderr}");
        assert!(!desk.path("out.jsonl").exists());
    }
    // With what it asks for, no line fails.
    let num_cores = std::thread::available_parallelism().map_or(1, |num_cores| num_cores.get());
    let kib = 1_200_000 + 460_000 * num_cores;
    let output = desk.run_under(&format!("ulimit -v {kib}"), &fixture_path(MODEL));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(desk.output().len(), 60);
}

/// The main thread's stack overflowed before it had read the command line.
#[test]
fn a_limit_on_stacks_is_named() {
    let desk = Desk::with_input(INPUT);
    let output = desk.run_under("ulimit -s 64", &fixture_path(MODEL));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("is 64 KiB") && stderr.contains("ulimit -s"), "{stderr}");
}

/// KV of no numbers was restored, since its checksum was right, and the line that met it failed.
#[test]
fn stored_kv_of_no_numbers_is_computed_anew() {
    let desk = Desk::with_input("{\"prompt\": \"Once upon a time there was a boat\", \"max_tokens\": 8}\n");
    let run = |arguments: &[&str]| {
        let output =
            desk.run().args(arguments).args(["--deterministic-ids", "--report", "report.json"]).output();
        let output = output.expect("the binary starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        (text_of(&desk.output()[0]).to_owned(), stderr)
    };
    let (answer, _) = run(&["--persist-cache", "cache.bin"]);
    let (cold, warm) = (desk.path("nan.bin"), desk.path("cache.bin"));
    let contents = Contents::read(&warm).expect("it was saved");
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    let identify = |_: &[_]| Ok::<_, SnapshotError>(contents.identity.clone());
    let mut forged = Snapshot::open(&cold, options, identify).expect("a new file");
    let mut saving = forged.begin_save().expect("nobody else has it");
    let mut path = Vec::new();
    for entry in &contents.entries {
        let start = entry.end - entry.tokens.len();
        path.retain(|(end, _)| *end <= start);
        let parent = path.last().map(|(_, node)| *node);
        let token_bytes = entry.num_bytes as usize / entry.tokens.len();
        let place = Place { parent, tokens: &entry.tokens, tier: entry.tier };
        let node = saving.add(place, |tokens, bytes| {
            bytes.extend(f32::NAN.to_le_bytes().repeat(tokens.len() * token_bytes / 4));
            Ok(())
        });
        path.push((entry.end, node.expect("it can be added").expect("it is new")));
    }
    saving.publish().expect("there is room");
    let (again, stderr) = run(&["--persist-cache", "nan.bin"]);
    assert_eq!(again, answer);
    assert!(stderr.contains("nan.bin was damaged and has been computed again"), "{stderr}");
    assert_eq!(desk.report()["cache_file"]["num_restored_tokens"], 0);
    // What was saved instead is sound.
    let (third, stderr) = run(&["--persist-cache", "nan.bin", "--require-cache"]);
    assert!(third == answer && !stderr.contains("damaged"), "{stderr}");
    assert!(desk.report()["cache_file"]["num_restored_tokens"].as_u64() > Some(0));
}
