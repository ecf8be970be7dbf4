//! Log-probabilities in a record: their shapes, their places, and that they are the reference's.

use serde_json::{Value, json};

use crate::support::{Desk, MODEL, fixture_path};

fn run(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    desk.run().args(["-q"]).args(arguments).assert().code(0);
    desk.output().into_iter().map(|line| line["response"]["body"].clone()).collect()
}

/// mlx-lm's prompts with the log-probabilities of all tokens behind each.
fn golden() -> Vec<(Vec<u64>, Vec<u64>, Vec<f64>)> {
    let golden = std::fs::read_to_string(fixture_path(MODEL).join("golden.json")).expect("it is there");
    let golden: Value = serde_json::from_str(&golden).expect("golden.json is JSON");
    let ids = |value: &Value| -> Vec<u64> { serde_json::from_value(value.clone()).expect("ids") };
    let prompts = golden["prompts"].as_array().expect("a list").iter();
    let numbers = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).expect("numbers") };
    prompts
        .map(|prompt| {
            (ids(&prompt["prompt_ids"]), ids(&prompt["greedy_ids"]), numbers(&prompt["last_logprobs"]))
        })
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The first token's most probable ones, by their log-probabilities alone.
fn first_top(body: &Value) -> Vec<f64> {
    let logprobs = &body["choices"][0]["logprobs"];
    let mut top: Vec<f64> =
        logprobs["top_logprobs"][0].as_object().expect("an object").values().map(number).collect();
    top.sort_by(|a, b| b.total_cmp(a));
    top
}

#[test]
fn they_are_the_references_alone_and_in_a_batch() {
    let golden = golden();
    let lines: Vec<Value> = golden
        .iter()
        .map(|(prompt, ..)| json!({"prompt": [prompt], "max_tokens": 3, "logprobs": 20}))
        .collect();
    for arguments in [&["--batch-size", "1"][..], &["--batch-size", "8"], &["--cache-bytes", "0"]] {
        for (body, (_, greedy, last)) in run(&lines, arguments).iter().zip(&golden) {
            let mut expected = last.clone();
            expected.sort_by(|a, b| b.total_cmp(a));
            let top = first_top(body);
            assert_eq!(top.len(), 20);
            assert!(
                top.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-3),
                "{top:?}"
            );
            let chosen = number(&body["choices"][0]["logprobs"]["token_logprobs"][0]);
            assert!((chosen - last[greedy[0] as usize]).abs() < 1e-3);
        }
    }
}

/// lm-eval's own bodies: the continuation's tokens stand between the context's and the one that is generated.
#[test]
fn echo_tells_the_prompts_tokens_in_front_of_the_answers() {
    let (prompt, greedy, last) = golden().swap_remove(1);
    let scored: Vec<u64> = prompt.iter().copied().chain([greedy[0], greedy[1]]).collect();
    let bodies = run(
        &[
            json!({"prompt": [scored], "max_tokens": 1, "logprobs": 1, "echo": true, "seed": 1234, "temperature": 0}),
            json!({"prompt": [scored], "max_tokens": 0, "logprobs": 1, "echo": true}),
            json!({"prompt": [scored], "max_tokens": 0, "prompt_logprobs": 2, "logprob_start_len": prompt.len()}),
            json!({"prompt": [scored[..1]], "max_tokens": 0, "echo": true, "logprobs": 0, "n": 2}),
            json!({"prompt": [scored], "max_tokens": 0, "echo": true}),
            json!({"prompt": "How many boats?", "max_tokens": 2, "echo": true, "n": 2, "logprobs": 0}),
        ],
        &[],
    );
    let choice = |body: usize| &bodies[body]["choices"][0];
    let lists = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    for (body, num_new) in [(0, 1), (1, 0)] {
        let logprobs = &choice(body)["logprobs"];
        for name in lists {
            assert_eq!(logprobs[name].as_array().map(Vec::len), Some(scored.len() + num_new), "{name}");
        }
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&Value::Null, &Value::Null)
        );
        let found = number(&logprobs["token_logprobs"][prompt.len()]);
        assert!((found - last[greedy[0] as usize]).abs() < 1e-3, "{found}");
        // Greedy tokens are the most probable ones: what lm-eval asks of them.
        let top = logprobs["top_logprobs"][prompt.len()].as_object().expect("an object");
        assert!(top.contains_key(logprobs["tokens"][prompt.len()].as_str().expect("a text")), "{top:?}");
    }
    assert_eq!(
        (choice(1)["finish_reason"].as_str(), bodies[1]["usage"]["completion_tokens"].as_u64()),
        (Some("length"), Some(0))
    );
    let told = choice(2)["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(
        (told.len(), told.iter().filter(|entry| entry.is_null()).count()),
        (scored.len(), prompt.len())
    );
    let entry = &told[prompt.len()][greedy[0].to_string()];
    assert_eq!(entry["rank"], 1);
    assert!((number(&entry["logprob"]) - last[greedy[0] as usize]).abs() < 1e-3, "{entry}");
    assert_eq!((choice(2)["text"].as_str(), &choice(2)["logprobs"]), (Some(""), &Value::Null));
    assert_eq!(bodies[3]["choices"].as_array().map(Vec::len), Some(2));
    assert_eq!(choice(3)["logprobs"]["token_logprobs"], json!([null]));
    assert_eq!((&choice(4)["logprobs"], &choice(4)["text"]), (&Value::Null, &choice(1)["text"]));
    for choice in bodies[5]["choices"].as_array().expect("a list") {
        assert!(choice["text"].as_str().expect("a text").starts_with("How many boats?"), "{choice}");
        let (tokens, offsets) = (&choice["logprobs"]["tokens"], &choice["logprobs"]["text_offset"]);
        let text: Vec<char> = choice["text"].as_str().expect("a text").chars().collect();
        for (token, offset) in
            tokens.as_array().expect("a list").iter().zip(offsets.as_array().expect("a list"))
        {
            let (token, offset) =
                (token.as_str().expect("a text"), offset.as_u64().expect("a number") as usize);
            let is_there = token.starts_with("bytes:")
                || token.starts_with("<|")
                || text[offset..].starts_with(&token.chars().collect::<Vec<_>>());
            assert!(is_there, "{token:?} at {offset}: {text:?}");
        }
    }
}

#[test]
fn a_conversation_tells_its_tokens_with_their_bytes() {
    let messages = json!([{"role": "user", "content": "How many boats?"}]);
    let bodies = run(
        &[
            json!({"messages": messages, "max_tokens": 5, "logprobs": true, "top_logprobs": 2}),
            json!({"messages": messages, "max_tokens": 5, "logprobs": true, "prompt_logprobs": 0}),
            json!({"messages": messages, "max_tokens": 5}),
        ],
        &[],
    );
    let content = bodies[0]["choices"][0]["logprobs"]["content"].as_array().expect("a list");
    assert_eq!(content.len() as u64, bodies[0]["usage"]["completion_tokens"].as_u64().expect("a number"));
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|entry| serde_json::from_value::<Vec<u8>>(entry["bytes"].clone()).expect("bytes"))
        .collect();
    let text = bodies[0]["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(String::from_utf8_lossy(&bytes).starts_with(text), "{text:?} {bytes:?}");
    for entry in content {
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(2));
        assert_eq!(entry["top_logprobs"][0]["logprob"], entry["logprob"], "greedy: {entry}");
    }
    let of_prompt = bodies[1]["prompt_logprobs"].as_array().expect("a list");
    assert_eq!(of_prompt.len() as u64, bodies[1]["usage"]["prompt_tokens"].as_u64().expect("a number"));
    assert!(of_prompt[0].is_null() && of_prompt[1..].iter().all(Value::is_object));
    assert_eq!(
        (&bodies[2]["choices"][0]["logprobs"], bodies[2].get("prompt_logprobs")),
        (&Value::Null, None)
    );
    assert_eq!(bodies[2]["choices"][0]["message"]["content"], text);
}

/// Options of one question are told of alike however they meet the cache.
#[test]
fn scores_do_not_depend_on_what_is_cached() {
    let context: Vec<u64> = (0..150).map(|index| (index * 37 + index / 7) % 300).collect();
    let option =
        |index: u64| -> Vec<u64> { context.iter().copied().chain([index, index + 100, 2 * index]).collect() };
    let lines: Vec<Value> = (1..9)
        .map(|index| json!({"prompt": [option(index)], "max_tokens": 0, "prompt_logprobs": 0, "logprob_start_len": context.len()}))
        .collect();
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    let mut told: Vec<Vec<f64>> = Vec::new();
    for arguments in [
        &["--cache-bytes", "0", "--batch-size", "1"][..],
        &["--batch-size", "8", "--report", "report.json"],
        &["--persist-cache", "cache.bin"],
        &["--persist-cache", "cache.bin", "--batch-size", "1"],
    ] {
        desk.run().args(["-q", "--max-tokens", "1"]).args(arguments).assert().code(0);
        let output = desk.output();
        let numbers = output.iter().flat_map(|line| {
            let told = &line["response"]["body"]["choices"][0]["prompt_logprobs"];
            let told = told.as_array().expect("a list")[context.len()..].to_vec();
            told.into_iter().map(|entry| {
                number(&entry.as_object().expect("an object").values().next().expect("one")["logprob"])
            })
        });
        told.push(numbers.collect());
    }
    assert_eq!(told[0].len(), 24);
    for other in &told[1..] {
        assert!(told[0].iter().zip(other).all(|(one, other)| (one - other).abs() < 1e-3), "{told:?}");
    }
    // The context once, and each option's tokens but the last, with the one before them.
    assert_eq!(desk.report()["num_prefilled_tokens"], 149 + 8 * 3);
}
