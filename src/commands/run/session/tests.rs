//! The loop over runners that fail, with the tiny model's text side.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::super::prepare::Preparer;
use super::*;
use crate::batch::{InputPath, Kept, OutputPath, ReaderOptions, RequestReader};
use crate::engine::fake_runner::{BYTES_PER_TOKEN, FakeRunner, VOCAB_SIZE};
use crate::text::TextModel;

const NUM_REQUESTS: usize = 12;

const FIXTURE: &str = "fixtures/tiny-llama";

/// A session over an input of a few requests.
fn session<R: Runner>(make: impl FnOnce(Limits) -> R) -> Session<R> {
    session_with(TextModel::from_folder(Path::new(FIXTURE)).expect("the fixture loads"), make)
}

/// The same with another text side.
fn session_with<R: Runner>(text: TextModel, make: impl FnOnce(Limits) -> R) -> Session<R> {
    let lines = (0..NUM_REQUESTS).map(|index| format!("{{\"prompt\": \"word {index}\"}}\n"));
    session_over(text, &lines.collect::<String>(), make)
}

/// The same over another input.
fn session_over<R: Runner>(text: TextModel, lines: &str, make: impl FnOnce(Limits) -> R) -> Session<R> {
    session_cached(text, lines, None, make)
}

/// The same with a prompt cache.
fn session_cached<R: Runner>(
    text: TextModel,
    lines: &str,
    cache: Option<CacheLimits>,
    make: impl FnOnce(Limits) -> R,
) -> Session<R> {
    let three = NonZeroUsize::new(3).expect("three is not zero");
    let chunk = NonZeroUsize::new(8).expect("eight is not zero");
    let limits = Limits {
        max_batch_size: three,
        prefill_chunk: chunk,
        max_batch_tokens: None,
        lookahead: true,
        kv_bytes_per_token: 1,
        max_restored_bytes: u64::MAX,
    };
    let preparer = Preparer {
        end_ids: Arc::from([VOCAB_SIZE - 1]),
        fallback: Default::default(),
        default_max_tokens: 6,
        max_context: 64,
        max_long_context: None,
        vocab_size: 304,
        has_checkpoints: false,
        reply: Default::default(),
    };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("in.jsonl");
    fs::write(&path, lines).expect("there is room");
    let reader = RequestReader::open(&InputPath::File(path).into(), ReaderOptions::default());
    let reader = reader.expect("it was just written");
    Session {
        stats: RunStats::default(),
        progress: Progress::new(None, crate::batch::ProgressKind::Quiet),
        engine: Engine::new(make(limits.clone()), limits, cache),
        intake: Intake::new(reader, preparer.into(), Arc::new(text), Kept::default()),
        served: Served { model: "fake".into(), created: 0, is_repeatable: false },
        windows: Windows::default(),
        jobs: HashMap::new(),
        seats: HashMap::new(),
        output_is_closed: false,
        is_strict: false,
        failures: Failures::default(),
        saver: None,
        started: Instant::now(),
        deadline: None,
        overdue: Overdue::new(None),
        first_token_after: None,
        timings: Timings::default(),
        timeline: Timeline::default(),
    }
}

/// Runs all requests and returns how that ended with the output's lines so far.
fn run<R: Runner>(session: &mut Session<R>) -> (anyhow::Result<Stop>, Vec<Value>) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let input = InputPath::File(folder.path().join("in.jsonl"));
    let output = OutputPath::File(folder.path().join("out.jsonl"));
    let mut writer = ResultWriter::create(&output, &input.into(), false).expect("the folder is there");
    let stop = session.run(&mut writer, &Interrupt::default());
    let published = writer.finish(false).expect("there is room");
    let text = fs::read_to_string(published.place).expect("it was just published");
    (stop, text.lines().map(|line| serde_json::from_str(line).expect("lines are JSON")).collect())
}

/// A pass that failed ended the run, and the requests behind it never had their output line.
#[test]
fn a_failed_pass_costs_its_own_requests_an_error_line_and_nobody_else() {
    for failing in 0..6 {
        let mut session = session(|limits| {
            let mut runner = FakeRunner::new(limits);
            runner.failures.launch = (failing % 2 == 0).then_some(failing);
            runner.failures.collect = (failing % 2 == 1).then_some(failing);
            runner
        });
        let (stop, lines) = run(&mut session);
        assert_eq!(stop.expect("one failure is lived with"), Stop::InputUsedUp);
        assert_eq!(lines.len(), NUM_REQUESTS);
        let failed: Vec<&Value> =
            lines.iter().filter(|line| line["response"]["status_code"] == 500).collect();
        // The rows of the failed pass, and with lookahead of the one launched on top of it.
        assert!((1..=6).contains(&failed.len()), "{} of them failed", failed.len());
        for line in &failed {
            let message =
                line["response"]["body"]["error"]["message"].as_str().expect("errors have a message");
            assert!(message.contains("in.jsonl:") && message.contains("is out of memory"), "{message}");
        }
        assert_eq!(session.stats.num_failed, failed.len() as u64);
        assert_eq!(session.stats.num_done(), NUM_REQUESTS as u64);
    }
}

#[test]
fn a_device_that_does_nothing_any_more_ends_the_run() {
    let (stop, lines) = run(&mut session(|limits| {
        let mut runner = FakeRunner::new(limits);
        runner.failures.every_launch = true;
        runner
    }));
    let error = stop.expect_err("nothing works");
    assert!(format!("{error:#}").contains("is out of memory"), "{error:#}");
    assert!(lines.len() < NUM_REQUESTS);
}

/// Three such rows in a row ended the run: "the device is at fault".
#[test]
fn rows_of_no_numbers_cost_an_error_line_each_and_never_the_run() {
    let text = TextModel::from_folder(Path::new(FIXTURE)).expect("the fixture loads");
    let first = text.encode_prompt("word", true).expect("encodes")[0];
    let mut session = session_with(text, |limits| {
        let mut runner = FakeRunner::new(limits);
        runner.failures.poison = Some(first);
        runner
    });
    let (stop, lines) = run(&mut session);
    assert_eq!(stop.expect("the device works"), Stop::InputUsedUp);
    assert_eq!((lines.len(), session.stats.num_failed), (NUM_REQUESTS, NUM_REQUESTS as u64));
    for line in &lines {
        let error = &line["response"]["body"]["error"];
        assert_eq!((&line["response"]["status_code"], &error["code"]), (&500.into(), &"not_a_number".into()));
        let message = error["message"].as_str().expect("errors have a message");
        assert!(message.starts_with("in.jsonl:") || message.contains("in.jsonl:"), "{message}");
        assert!(message.contains("no numbers") && message.contains("--dtype"), "{message}");
    }
}

/// A decoder that gives up on one token ended the run, with a panic.
#[test]
fn an_answer_that_cannot_be_turned_into_text_is_that_lines_error() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for entry in fs::read_dir(FIXTURE).expect("the fixture is there") {
        let entry = entry.expect("an entry can be read");
        fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("there is room");
    }
    let path = folder.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    let vocab = json["model"]["vocab"].as_object_mut().expect("a vocabulary");
    let fifth =
        vocab.iter().find(|(_, id)| **id == 5).map(|(token, _)| token.clone()).expect("a fifth token");
    vocab.remove(&fifth);
    vocab.insert("a".repeat(60), 5.into());
    let exponential = serde_json::json!({"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""});
    json["decoder"] = serde_json::json!({"type": "Sequence", "decoders": [exponential, json["decoder"]]});
    fs::write(&path, json.to_string()).expect("there is room");
    let text = TextModel::from_folder(folder.path()).expect("the changed fixture loads");

    let mut session = session_with(text, FakeRunner::new);
    let (stop, lines) = run(&mut session);
    assert_eq!(stop.expect("the others are answered"), Stop::InputUsedUp);
    assert_eq!((lines.len(), session.stats.num_done()), (NUM_REQUESTS, NUM_REQUESTS as u64));
    let (ok, failed): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line["response"]["status_code"] == 200);
    assert!(!ok.is_empty() && !failed.is_empty(), "{} answered", ok.len());
    for line in failed {
        let message = line["response"]["body"]["error"]["message"].as_str().expect("errors have a message");
        assert!(message.contains("in.jsonl:") && message.contains("cannot be turned into text"), "{message}");
    }
}

/// A line of several requests is one record: whole, or the error of the one that failed.
#[test]
fn a_choice_that_fails_makes_its_line_one_error_and_frees_the_rows_of_the_others() {
    let text = TextModel::from_folder(Path::new(FIXTURE)).expect("the fixture loads");
    let poison = text.encode_prompt("zebra", true).expect("encodes");
    let lines = "{\"prompt\": [\"word\", \"zebra\", \"ward\", \"world\", \"wild\"]}\n\
                 {\"prompt\": [\"word 1\", \"word 2\"], \"n\": 2}\n\
                 {\"prompt\": \"word 3\", \"n\": 3}\n";
    let mut session = session_over(text, lines, |limits| {
        let mut runner = FakeRunner::new(limits);
        runner.failures.poison = Some(poison[0]);
        runner
    });
    let (stop, lines) = run(&mut session);
    assert_eq!(stop.expect("the device works"), Stop::InputUsedUp);
    let num_choices = |line: &Value| line["response"]["body"]["choices"].as_array().map_or(0, Vec::len);
    assert_eq!(lines.iter().map(num_choices).collect::<Vec<_>>(), [0, 4, 3]);
    assert_eq!(lines[0]["response"]["body"]["error"]["code"], "not_a_number");
    assert_eq!((session.stats.num_ok, session.stats.num_failed), (2, 1));
    assert!(session.jobs.is_empty() && session.seats.is_empty());
    let usage = &lines[2]["response"]["body"]["usage"];
    assert_eq!(
        usage["prompt_tokens"],
        session.intake.text().encode_prompt("word 3", true).expect("encodes").len()
    );
    assert!(usage["completion_tokens"].as_u64().is_some_and(|tokens| tokens >= 3), "{usage}");
}

/// Lines of three turns, whose template is short and shows what was said as it is.
fn turns(questions: [&str; 3], fields: &str) -> String {
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let [first, second, third] = questions;
    format!(
        "{{\"turns\": [\"{first}\", \"{second}\", \"{third}\"], \"chat_template\": \"{template}\"{fields}}}\n"
    )
}

const AMPLE: CacheLimits = CacheLimits { max_bytes: u64::MAX, max_entries: None };

#[test]
fn each_turn_resumes_from_the_answer_before_it_though_nothing_else_is_kept() {
    let text = TextModel::from_folder(Path::new(FIXTURE)).expect("the fixture loads");
    let lines: String =
        ["a b", "c d", "e f", "g h"].iter().map(|first| turns([first, "kl", "mn"], "")).collect();
    // A stop that cuts answers in a step of its own.
    let lines = lines + &turns(["o p", "kl", "mn"], ", \"n\": 2, \"stop\": [\"#\", \"$\"]");
    let mut session = session_cached(text, &lines, Some(AMPLE), FakeRunner::new);
    let (stop, lines) = run(&mut session);
    assert_eq!(stop.expect("nothing fails"), Stop::InputUsedUp);
    assert!(session.jobs.is_empty() && session.seats.is_empty());
    assert_eq!((session.stats.num_ok, lines.len()), (5, 5));
    let num = |value: &Value| value.as_u64().expect("a number");
    let mut num_resumed = 0;
    for choice in
        lines.iter().flat_map(|line| line["response"]["body"]["choices"].as_array().expect("a list"))
    {
        let turns = choice["turns"].as_array().expect("a list");
        assert_eq!(turns.len(), 3);
        assert_eq!(choice["message"], turns[2]["message"]);
        for pair in turns.windows(2) {
            let [before, after] = [&pair[0], &pair[1]].map(|turn| &turn["usage"]);
            let cached = num(&after["prompt_tokens_details"]["cached_tokens"]);
            let text = pair[0]["message"]["content"].as_str().expect("a text");
            let num_shown = session.intake.text().encode_prompt(text, false).expect("encodes").len() as u64;
            // Where its text has as many tokens as the answer had.
            if num_shown == num(&before["completion_tokens"]) {
                assert_eq!(cached, num(&before["total_tokens"]) - 1, "{text:?}");
                num_resumed += 1;
            }
            assert!(cached + 1 >= num(&before["prompt_tokens"]));
        }
    }
    assert!(num_resumed > 3, "{num_resumed}");
    // Of the last turns, which none was to continue, nothing was kept.
    let choices =
        lines.iter().flat_map(|line| line["response"]["body"]["choices"].as_array().expect("a list"));
    let num_continued: u64 = choices.map(|choice| num(&choice["turns"][1]["usage"]["total_tokens"])).sum();
    let held = session.cache_usage().expect("there is a cache");
    assert!(held.num_bytes <= num_continued * BYTES_PER_TOKEN && held.num_evictions() == 0, "{held:?}");
}

#[test]
fn a_failed_turn_is_named_and_those_before_it_are_told() {
    let text = TextModel::from_folder(Path::new(FIXTURE)).expect("the fixture loads");
    let poison = text.encode_prompt("~", false).expect("encodes");
    let lines = turns(["a b", "c ~", "e"], ", \"seed\": 7")
        + &turns(["a b", "c", "e"], ", \"seed\": 7, \"n\": 2")
        + &turns(["~ b", "c", "e"], "");
    let mut session = session_cached(text, &lines, Some(AMPLE), |limits| {
        let mut runner = FakeRunner::new(limits);
        runner.failures.poison = Some(poison[0]);
        runner
    });
    let (stop, lines) = run(&mut session);
    assert_eq!(stop.expect("the device works"), Stop::InputUsedUp);
    assert_eq!((session.stats.num_ok, session.stats.num_failed), (1, 2));
    assert!(session.jobs.is_empty() && session.seats.is_empty());
    let body = |index: usize| &lines[index]["response"]["body"];
    let message = |index: usize| body(index)["error"]["message"].as_str().expect("it failed").to_owned();
    assert!(message(0).contains("in.jsonl:1: turn 2 of 3: what the model computed"), "{}", message(0));
    assert!(message(2).contains("in.jsonl:3: turn 1 of 3: what the model computed"), "{}", message(2));
    assert_eq!(body(0)["turns"].as_array().map(Vec::len), Some(1));
    let first = &body(1)["choices"][0]["turns"][0];
    assert_eq!(body(0)["turns"][0]["message"], first["message"]);
    assert_eq!(body(0)["turns"][0]["usage"]["total_tokens"], first["usage"]["total_tokens"]);
    assert!(body(2).get("turns").is_none());
}
