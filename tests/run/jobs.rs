//! Lines of several requests: their choices, seeds and counts, and what becomes of them in trouble.

use predicates::str::contains;
use serde_json::{Value, json};

use crate::support::{Desk, code_of, id_of, message_of};

fn run(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let desk = Desk::with_input(input);
    desk.run().args(["--max-tokens", "8", "-q", "--report", "report.json"]).args(arguments).assert().code(0);
    desk.output()
}

fn texts(line: &Value) -> Vec<String> {
    let choices =
        line["response"]["body"]["choices"].as_array().unwrap_or_else(|| panic!("no answer in {line}"));
    let text = |choice: &Value| {
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        text.expect("a choice has a text").to_owned()
    };
    assert!(choices.iter().zip(0..).all(|(choice, index)| choice["index"] == index), "{line}");
    choices.iter().map(text).collect()
}

/// `n` was refused.
#[test]
fn n_answers_are_those_of_n_seeds_and_compute_their_prompt_once() {
    let chat = |id: &str, fields: Value| {
        let mut line = json!({"id": id, "messages": [{"role": "user", "content": "Tell of the boats."}], "temperature": 1.5});
        line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        line
    };
    let lines = [chat("four", json!({"n": 4, "seed": 7}))];
    let four = run(&lines, &[]);
    let singles: Vec<Value> = (7..11).map(|seed| chat(&format!("s{seed}"), json!({"seed": seed}))).collect();
    let singles: Vec<String> = run(&singles, &["--batch-size", "1"]).iter().flat_map(texts).collect();
    assert_eq!(texts(&four[0]), singles);
    assert!(singles.windows(2).any(|pair| pair[0] != pair[1]), "they are drawn: {singles:?}");

    // Without a seed of its own the run's is counted up.
    let unseeded = |seed: &str, n: u32| texts(&run(&[chat("a", json!({"n": n}))], &["--seed", seed])[0]);
    assert_eq!(unseeded("5", 3)[1..], [unseeded("6", 1), unseeded("7", 1)].concat());

    let desk = Desk::with_input(format!("{}\n", lines[0]));
    desk.run()
        .args(["--max-tokens", "8", "--report", "report.json"])
        .assert()
        .code(0)
        .stderr(contains("1 request"));
    let (report, usage) = (desk.report(), &four[0]["response"]["body"]["usage"]);
    let num_prompt = usage["prompt_tokens"].as_u64().expect("a number");
    assert_eq!(report["num_prefilled_tokens"], num_prompt - 1, "once for all four");
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0, "nothing was there before the line");
    assert_eq!(usage["completion_tokens"], 32);
    assert_eq!((&report["num_requests"], &report["num_failed"]), (&json!(1), &json!(0)));
}

/// `[[ids]]`, as lm-eval sends it, and lists of texts were refused.
#[test]
fn each_prompt_of_a_list_is_answered_as_by_itself() {
    let ids = json!([[81, 277, 77], [130, 213, 300]]);
    let output = run(
        &[
            json!({"id": "list", "prompt": ["How many boats?", "The harbour"], "n": 2}),
            json!({"id": "one", "prompt": "How many boats?"}),
            json!({"id": "two", "prompt": ["The harbour"]}),
            json!({"id": "ids", "prompt": ids}),
            json!({"id": "ids one", "prompt": ids[0]}),
            json!({"id": "ids two", "prompt": [ids[1]]}),
        ],
        &[],
    );
    let [list, one, two, both, first, second] = &output[..] else { panic!("six lines") };
    let (one_text, two_text) = (texts(one)[0].clone(), texts(two)[0].clone());
    assert_eq!(texts(list), [one_text.clone(), one_text, two_text.clone(), two_text]);
    assert_eq!(texts(both), [texts(first), texts(second)].concat());
    let usage =
        |line: &Value, name: &str| line["response"]["body"]["usage"][name].as_u64().expect("a number");
    let sum = usage(one, "prompt_tokens") + usage(two, "prompt_tokens");
    assert_eq!(usage(list, "prompt_tokens"), sum, "a prompt counts once");
    let sum = usage(one, "completion_tokens") + usage(two, "completion_tokens");
    assert_eq!(usage(list, "completion_tokens"), 2 * sum);
    assert_eq!(usage(both, "prompt_tokens"), 6);
}

/// Drawn prompts of a list do not draw the same numbers, unless the request says which.
#[test]
fn equal_prompts_of_a_list_are_drawn_independently() {
    let prompts = vec!["The sea"; 6];
    let drawn = run(
        &[
            json!({"prompt": prompts, "temperature": 2}),
            json!({"prompt": prompts, "temperature": 2, "seed": 3}),
        ],
        &[],
    );
    let (free, seeded) = (texts(&drawn[0]), texts(&drawn[1]));
    assert!(free.iter().any(|text| *text != free[0]), "{free:?}");
    assert!(seeded.iter().all(|text| *text == seeded[0]), "{seeded:?}");
}

#[test]
fn one_bad_prompt_makes_the_line_one_error_that_names_it() {
    let input = [
        json!({"id": "a", "prompt": [[81, 277], [81, 9999]]}),
        json!({"id": "b", "prompt": ["x", "y ".repeat(5000)]}),
        json!({"id": "c", "prompt": "x", "stop_token_ids": [304]}),
        json!({"id": "d", "prompt": "x", "logit_bias": {"9999": 1}}),
        json!({"id": "e", "prompt": ["x", "y"]}),
    ];
    let desk = Desk::with_input(input.map(|line| format!("{line}\n")).concat());
    desk.run().args(["--max-tokens", "2", "-q"]).assert().code(3);
    let output = desk.output();
    assert_eq!(output.iter().map(id_of).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    let codes: Vec<&str> = output.iter().map(code_of).collect();
    assert_eq!(codes, ["invalid_value", "context_length_exceeded", "invalid_value", "invalid_value", "ok"]);
    let starts = [
        "prompt[1]: must hold token ids from 0 to 303, not 9999",
        "prompt[1]: the prompt has",
        "stop_token_ids: must",
        "logit_bias.9999: must",
    ];
    for ((line, number), start) in output.iter().zip(1..).zip(starts) {
        assert!(message_of(line).starts_with(&format!("in.jsonl:{number}: {start}")), "{}", message_of(line));
    }
}

#[test]
fn a_job_is_resumed_as_a_whole() {
    let line = |id: &str| json!({"id": id, "prompt": ["a", "b"], "n": 2});
    let desk = Desk::with_input(format!("{}\n{}\n{{\"prompt\": 5}}\n", line("one"), line("two")));
    desk.run().args(["--max-tokens", "4", "-q", "--deterministic-ids"]).assert().code(3);
    let whole = desk.read("out.jsonl");
    // As if the run had been killed behind its second record.
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
fn answers_end_where_the_request_says() {
    let prompt = json!([81, 277, 77]);
    let free = &run(&[json!({"prompt": prompt, "logprobs": 0, "ignore_eos": true})], &[])[0];
    let pieces =
        free["response"]["body"]["choices"][0]["logprobs"]["tokens"].as_array().expect("a list").clone();
    assert_eq!(pieces.len(), 8);
    // The greedy answer of the fixture begins with these tokens.
    let golden = [130, 130, 213, 300, 98, 216];
    let output = run(
        &[
            json!({"prompt": prompt, "stop_token_ids": [300]}),
            json!({"prompt": prompt, "stop_token_ids": [300], "include_stop_str_in_output": true}),
            json!({"prompt": prompt, "stop": [texts(free)[0].chars().nth(3).expect("it is longer").to_string()]}),
            json!({"prompt": prompt, "stop_token_ids": [golden[2]], "min_tokens": 2, "max_tokens": 4}),
        ],
        &[],
    );
    let choice = |index: usize| &output[index]["response"]["body"]["choices"][0];
    assert_eq!((&choice(0)["finish_reason"], &choice(0)["stop_reason"]), (&json!("stop"), &json!(300)));
    let (without, with) = (texts(&output[0])[0].clone(), texts(&output[1])[0].clone());
    assert!(with.starts_with(&without) && with.len() > without.len(), "{without:?} {with:?}");
    assert_eq!(choice(2)["finish_reason"], "stop");
    assert!(choice(2)["stop_reason"].is_string(), "{}", choice(2));
    assert_eq!(choice(3)["stop_reason"], golden[2]);
}
