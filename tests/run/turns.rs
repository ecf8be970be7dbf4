//! Conversations with several turns to be generated: played turn by turn, each resuming from the one before.

use predicates::str::contains;
use serde_json::{Value, json};

use crate::replies::{CALLS, THINKS, tools};
use crate::support::{Desk, MODEL, code_of, fixture_path, id_of, message_of, text_of};

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

fn gap() -> Value {
    json!({"role": "assistant", "content": null})
}

fn input(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn run(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    run_with(MODEL, lines, arguments)
}

fn run_with(model: &str, lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let desk = Desk::with_input(input(lines));
    let mut command = desk.run_with(fixture_path(model));
    command.args(["--max-tokens", "8", "-q"]).args(arguments).assert().code(0);
    desk.output()
}

fn choice(line: &Value) -> &Value {
    &line["response"]["body"]["choices"][0]
}

fn turns(line: &Value) -> Vec<&str> {
    let turns = choice(line)["turns"].as_array().unwrap_or_else(|| panic!("no turns in {line}"));
    turns.iter().map(|turn| turn["message"]["content"].as_str().expect("a turn has a text")).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// Plays a conversation by hand, each turn a line of its own.
fn by_hand(model: &str, questions: &[&str], fields: &Value, arguments: &[&str]) -> Vec<String> {
    let mut messages = Vec::new();
    let mut answers: Vec<String> = Vec::new();
    for question in questions {
        messages.push(user(question));
        let mut line = json!({"messages": messages});
        line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let answer = text_of(&run_with(model, &[line], arguments)[0]).to_owned();
        messages.push(json!({"role": "assistant", "content": answer}));
        answers.push(answer);
    }
    answers
}

const QUESTIONS: [&str; 3] = ["How many boats are there?", "And in winter?", "Who told you?"];

#[test]
fn a_line_is_played_turn_by_turn_as_by_hand() {
    let fields = json!({});
    let hand = by_hand(MODEL, &QUESTIONS, &fields, &["--batch-size", "1", "--cache-bytes", "0"]);
    let [first, second, third] = QUESTIONS.map(user);
    let lines = [
        json!({"id": "gaps", "messages": [first, gap(), second, gap(), third]}),
        json!({"id": "gap at the end", "messages": [first, gap(), second, gap(), third, gap()]}),
        json!({"question_id": 81, "category": "writing", "turns": QUESTIONS}),
        json!({"id": "sharegpt", "conversations": [
            {"from": "human", "value": QUESTIONS[0]}, {"from": "gpt", "value": null},
            {"from": "human", "value": QUESTIONS[1]}, {"from": "gpt", "value": null},
            {"from": "human", "value": QUESTIONS[2]}, {"from": "gpt", "value": "the reference"},
        ]}),
        json!({"id": "single", "messages": [first]}),
    ];
    for arguments in
        [&["--batch-size", "1"][..], &["--batch-size", "8"], &["--batch-size", "2", "--cache-bytes", "0"]]
    {
        let output = run(&lines, arguments);
        assert_eq!(
            output.iter().map(id_of).collect::<Vec<_>>(),
            ["gaps", "gap at the end", "81", "sharegpt", "single"]
        );
        for line in &output[..4] {
            assert_eq!(turns(line), hand, "{arguments:?}");
            assert_eq!(text_of(line), hand[2], "the last turn is the choice's message");
            check_usage(line);
        }
        assert_eq!(text_of(&output[4]), hand[0]);
        assert!(choice(&output[4]).get("turns").is_none(), "one turn is told as ever");
    }
}

/// Models that resume at any token and those that do so where a message ends, whatever the cache holds.
#[test]
fn turns_are_those_by_hand_whatever_the_model_and_the_cache() {
    let lines: Vec<Value> = (0..6)
        .map(
            |place| json!({"id": place, "turns": [QUESTIONS[place % 3], QUESTIONS[(place + 1) % 3], "Why?"]}),
        )
        .collect();
    for model in ["tiny-qwen3_5", "tiny-lfm2", "tiny-gemma3"] {
        let hand: Vec<Vec<String>> = (0..3)
            .map(|place| {
                let questions = [QUESTIONS[place], QUESTIONS[(place + 1) % 3], "Why?"];
                by_hand(model, &questions, &json!({}), &["--batch-size", "1", "--cache-bytes", "0"])
            })
            .collect();
        let desk = Desk::with_input(input(&lines));
        let with_file = ["--persist-cache", "cache.bin"];
        for arguments in [
            &["--cache-bytes", "0"][..],
            &["--batch-size", "1"],
            &["--batch-size", "8"],
            &with_file,
            &with_file,
        ] {
            let mut command = desk.run_with(fixture_path(model));
            command.args(["--max-tokens", "8", "-q"]).args(arguments).assert().code(0);
            for (place, line) in desk.output().iter().enumerate() {
                assert_eq!(turns(line), hand[place % 3], "{model}, {arguments:?}");
            }
        }
    }
}

/// The usage of a line is that of its turns.
fn check_usage(line: &Value) {
    let usage = &line["response"]["body"]["usage"];
    let turns = choice(line)["turns"].as_array().expect("there are turns");
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        let sum: u64 = turns.iter().map(|turn| number(&turn["usage"][name])).sum();
        assert_eq!(number(&usage[name]), sum, "{name} of {line}");
    }
    let cached = |usage: &Value| number(&usage["prompt_tokens_details"]["cached_tokens"]);
    assert_eq!(cached(usage), turns.iter().map(|turn| cached(&turn["usage"])).sum::<u64>());
}

#[test]
fn a_later_turn_resumes_from_the_answer_before_it() {
    // Nothing outlives such a run: without the turns behind them no answer would be kept. The model's own answers
    // are no texts that are written with the same tokens again.
    let desk = Desk::with_input(input(&[json!({"turns": QUESTIONS, "guided_choice": ["QZXQZX"]})]));
    desk.run().args(["--max-tokens", "8", "-q", "--report", "report.json"]).assert().code(0);
    let output = desk.output();
    assert_eq!(turns(&output[0]), ["QZXQZX"; 3]);
    let mut num_computed = 0;
    let mut before = 0;
    for turn in choice(&output[0])["turns"].as_array().expect("there are turns") {
        let usage = &turn["usage"];
        let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        // All but the answer's last token, whose KV nobody has needed yet.
        assert_eq!(cached, u64::saturating_sub(before, 1), "{usage}");
        before = number(&usage["prompt_tokens"]) + number(&usage["completion_tokens"]);
        num_computed += number(&usage["prompt_tokens"]) - cached;
    }
    let report = desk.report();
    assert_eq!(number(&report["num_prefilled_tokens"]) + 3, num_computed);
}

#[test]
fn each_choice_plays_a_chain_of_its_own() {
    let fields = json!({"temperature": 1.5, "seed": 7, "n": 3});
    let mut line = json!({"turns": QUESTIONS});
    line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let output = run(&[line], &[]);
    let choices = output[0]["response"]["body"]["choices"].as_array().expect("there are choices");
    assert_eq!(choices.len(), 3);
    for (choice, seed) in choices.iter().zip(7..) {
        let hand = by_hand(MODEL, &QUESTIONS, &json!({"temperature": 1.5, "seed": seed}), &[]);
        let texts: Vec<&str> = choice["turns"]
            .as_array()
            .expect("there are turns")
            .iter()
            .map(|turn| turn["message"]["content"].as_str().expect("a text"))
            .collect();
        assert_eq!(texts, hand, "seed {seed}");
        assert_eq!(choice["message"]["content"], hand[2]);
    }
    // The first prompt is the same for all; those behind the answers are each choice's own.
    let of = |index: usize, turn: usize| number(&choices[index]["turns"][turn]["usage"]["prompt_tokens"]);
    let sum = of(0, 0) + (0..3).map(|index| of(index, 1) + of(index, 2)).sum::<u64>();
    assert_eq!(number(&output[0]["response"]["body"]["usage"]["prompt_tokens"]), sum);
}

/// What is told of an answer is what the turn behind it reads of it.
#[test]
fn calls_and_thinking_are_read_by_later_turns_as_the_messages_that_hold_them() {
    for fields in [
        json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false,
               "chat_template": CALLS, "max_tokens": 300}),
        json!({"chat_template": THINKS, "thinking_budget": 3, "guided_regex": "(yes|no), [a-z]{3}", "max_tokens": 60}),
    ] {
        let line = |what: Value| {
            let mut line = fields.clone();
            line.as_object_mut().expect("an object").extend(what.as_object().expect("an object").clone());
            line
        };
        let output = run(&[line(json!({"turns": QUESTIONS}))], &[]);
        let turns = choice(&output[0])["turns"].as_array().expect("there are turns");
        let mut messages = Vec::new();
        let mut ids: Vec<Value> = Vec::new();
        for (question, turn) in QUESTIONS.iter().zip(turns) {
            messages.push(user(question));
            let by_hand = run(&[line(json!({"messages": messages}))], &["--cache-bytes", "0"]);
            let mut message = turn["message"].clone();
            // Ids are made from the line.
            let expected = &choice(&by_hand[0])["message"];
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            for (place, call) in calls.into_iter().flatten().enumerate() {
                ids.push(std::mem::replace(&mut call["id"], expected["tool_calls"][place]["id"].clone()));
            }
            assert_eq!(message, *expected);
            messages.push(turn["message"].clone());
        }
        let details = |usage: &Value| usage["completion_tokens_details"]["reasoning_tokens"].as_u64();
        let sum = turns.iter().filter_map(|turn| details(&turn["usage"])).reduce(|sum, tokens| sum + tokens);
        assert_eq!(details(&output[0]["response"]["body"]["usage"]), sum);
        let num_calls = ids.len();
        ids.sort_by_key(Value::to_string);
        ids.dedup();
        assert_eq!(ids.len(), num_calls, "each call has an id of its own");
        assert_eq!(
            (num_calls > 0, sum.is_some()),
            (fields.get("tools").is_some(), fields.get("thinking_budget").is_some())
        );
    }
}

/// Without a seed of its own the turns of a line draw other numbers, and each run the same.
#[test]
fn drawn_turns_follow_from_the_lines_id() {
    let line = |id: &str| json!({"id": id, "turns": ["The sea", "The sea", "The sea"], "temperature": 2});
    let lines = [line("a"), line("b"), line("c")];
    let drawn = run(&lines, &["--batch-size", "1"]);
    let reversed: Vec<Value> = lines.iter().rev().cloned().collect();
    let mut again = run(&reversed, &["--batch-size", "3"]);
    again.reverse();
    assert_eq!(drawn.iter().map(turns).collect::<Vec<_>>(), again.iter().map(turns).collect::<Vec<_>>());
    assert_ne!(turns(&drawn[0]), turns(&drawn[1]));
}

#[test]
fn what_is_asked_of_answers_holds_for_each_turn() {
    let output = run(
        &[
            json!({"turns": QUESTIONS, "logprobs": true, "top_logprobs": 2}),
            json!({"turns": QUESTIONS, "structured_outputs": {"choice": ["yes", "no"]}}),
            json!({"turns": QUESTIONS, "max_tokens": 2, "ignore_eos": true}),
        ],
        &[],
    );
    for turn in choice(&output[0])["turns"].as_array().expect("there are turns") {
        let tokens = turn["logprobs"]["content"].as_array().expect("they are told");
        assert_eq!(tokens.len() as u64, number(&turn["usage"]["completion_tokens"]));
        assert_eq!(tokens[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    }
    let last = choice(&output[0])["turns"][2].clone();
    assert_eq!(choice(&output[0])["logprobs"], last["logprobs"]);
    assert!(turns(&output[1]).iter().all(|text| ["yes", "no"].contains(text)), "{:?}", turns(&output[1]));
    // An answer that was cut is part of the conversation all the same.
    for turn in choice(&output[2])["turns"].as_array().expect("there are turns") {
        assert_eq!(
            (&turn["finish_reason"], number(&turn["usage"]["completion_tokens"])),
            (&json!("length"), 2)
        );
    }
    assert_eq!(choice(&output[2])["finish_reason"], "length");
}

#[test]
fn a_turn_that_fails_fails_its_line_and_is_named_with_those_before_it() {
    let long = "boat ".repeat(3000);
    let lines = [
        json!({"id": "second", "messages": [user("Hi"), gap(), user(&long), gap(), user("Bye")]}),
        json!({"id": "first", "messages": [user(&long), gap(), user("Bye")]}),
        json!({"id": "bad", "messages": [user("Hi"), gap(), gap(), user("Bye")]}),
        json!({"id": "fine", "turns": ["Hi", "Bye"]}),
    ];
    let desk = Desk::with_input(input(&lines));
    desk.run()
        .args(["--max-tokens", "8", "--deterministic-ids"])
        .assert()
        .code(3)
        .stderr(contains("1 ok, 3 failed"));
    let output = desk.output();
    let codes: Vec<&str> = output.iter().map(code_of).collect();
    assert_eq!(
        codes,
        ["context_length_exceeded", "context_length_exceeded", "missing_required_parameter", "ok"]
    );
    let starts = [
        "in.jsonl:1: turn 2 of 3: messages: the prompt has",
        "in.jsonl:2: turn 1 of 2: messages: the prompt has",
        "in.jsonl:3: messages[2].content: ",
    ];
    for (line, start) in output.iter().zip(starts) {
        assert!(message_of(line).starts_with(start), "{}", message_of(line));
    }
    // What has been answered is not lost.
    let before = &output[0]["response"]["body"]["turns"];
    assert_eq!(before.as_array().map(Vec::len), Some(1), "{}", output[0]);
    assert_eq!(before[0]["message"]["content"], turns(&output[3])[0]);
    assert!(output[1]["response"]["body"].get("turns").is_none());
}

#[test]
fn a_line_of_several_turns_is_resumed_as_a_whole() {
    let lines = [
        json!({"id": "one", "turns": QUESTIONS}),
        json!({"id": "two", "turns": QUESTIONS}),
        json!({"prompt": 5}),
    ];
    let desk = Desk::with_input(input(&lines));
    desk.run().args(["--max-tokens", "4", "-q", "--deterministic-ids"]).assert().code(3);
    let whole = desk.read("out.jsonl");
    let kept: String = whole.lines().take(1).map(|line| format!("{line}\n")).collect();
    std::fs::rename(desk.path("out.jsonl.manifest"), desk.path("out.jsonl.partial.manifest"))
        .expect("it is there");
    desk.write("out.jsonl.partial", kept);
    desk.remove("out.jsonl");
    desk.run()
        .args(["--max-tokens", "4", "--resume", "--deterministic-ids"])
        .assert()
        .code(3)
        .stderr(contains("1 of them earlier"));
    assert_eq!(desk.read("out.jsonl"), whole);
}

#[test]
fn later_turns_come_from_the_cache_file_the_next_time() {
    let desk = Desk::with_input(input(&[
        json!({"id": "a", "turns": QUESTIONS}),
        json!({"id": "b", "turns": ["Hi", "Bye"]}),
    ]));
    let arguments = ["--max-tokens", "8", "-q", "--persist-cache", "cache.bin", "--report", "report.json"];
    desk.run().args(arguments).assert().code(0);
    let cold = desk.output();
    desk.run().args(arguments).assert().code(0);
    let warm = desk.output();
    for (cold, warm) in cold.iter().zip(&warm) {
        assert_eq!(turns(cold), turns(warm));
    }
    assert_eq!(desk.report()["num_prefilled_tokens"], 0, "all prompts of all turns were there");
}

#[test]
fn plan_and_validate_say_that_turns_follow() {
    let desk = Desk::with_input(input(&[json!({"turns": QUESTIONS, "n": 2}), json!({"turns": ["Hi"]})]));
    desk.bare()
        .args(["validate", "in.jsonl"])
        .assert()
        .code(0)
        .stdout(contains("2 requests with 4 turns, all ok"));
    desk.bare()
        .args(["plan", "in.jsonl", "--model"])
        .arg(fixture_path(MODEL))
        .assert()
        .code(0)
        .stdout(contains("later turns     4, which follow answers"));
}
