//! What changes the choice of tokens: penalties, biases, forbidden words and least lengths.
//!
//! Owns what a request's fields come to. Raw log-probabilities are told whatever is changed, so that most of
//! it follows from the record itself by a formula.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::support::Desk;

const PROMPT: [u64; 3] = [81, 277, 77];
const END: u64 = 303;

fn line(fields: Value) -> Value {
    let mut line = json!({"prompt": PROMPT, "max_tokens": 12, "logprobs": 20, "ignore_eos": true});
    line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    line
}

fn run(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    desk.run().arg("-q").args(arguments).assert().code(0);
    desk.output().into_iter().map(|line| line["response"]["body"].clone()).collect()
}

fn tokens(body: &Value) -> Vec<String> {
    serde_json::from_value(body["choices"][0]["logprobs"]["tokens"].clone()).expect("texts")
}

/// What was likely for each token of an answer.
fn tops(body: &Value) -> Vec<HashMap<String, f64>> {
    serde_json::from_value(body["choices"][0]["logprobs"]["top_logprobs"].clone()).expect("numbers by token")
}

#[test]
fn additive_penalties_take_off_what_they_say() {
    let penalties = [(0.0, 0.0), (2.0, 0.0), (0.0, 2.0), (1.5, 0.5), (-1.0, -0.5)];
    let lines: Vec<Value> = penalties
        .iter()
        .map(|(frequency, presence)| {
            line(json!({"frequency_penalty": frequency, "presence_penalty": presence}))
        })
        .collect();
    let bodies = run(&lines, &[]);
    for (body, (frequency, presence)) in bodies.iter().zip(penalties) {
        let chosen = tokens(body);
        assert_eq!(chosen.len(), 12);
        let mut counts: HashMap<&str, f64> = HashMap::new();
        for (token, top) in chosen.iter().zip(tops(body)) {
            let changed = |(token, number): (&String, &f64)| {
                let count = counts.get(token.as_str()).copied().unwrap_or(0.0);
                number - frequency * count - presence * count.min(1.0)
            };
            let best = top.iter().map(changed).fold(f64::MIN, f64::max);
            let own = changed((token, &top[token]));
            assert!(
                (own - best).abs() < 1e-3,
                "{frequency} {presence}: {token:?} has {own}, the best {best}"
            );
            *counts.entry(token).or_default() += 1.0;
        }
    }
    assert_ne!(tokens(&bodies[0]), tokens(&bodies[1]), "they change something");
}

#[test]
fn biases_favour_and_forbid() {
    let free = &run(&[line(json!({}))], &[])[0];
    let bodies = run(
        &[
            line(json!({"logit_bias": {"97": 100}})),
            // The greedy first token of the fixture.
            line(json!({"logit_bias": {"130": -100}})),
            line(json!({"ignore_eos": false, "logit_bias": {END.to_string(): 100}})),
            line(json!({"ignore_eos": false, "logit_bias": {END.to_string(): 100}, "min_tokens": 5})),
        ],
        &[],
    );
    let favoured = tokens(&bodies[0]);
    assert!(
        favoured.iter().all(|token| *token == favoured[0]) && favoured[0] != tokens(free)[0],
        "{favoured:?}"
    );
    let (before, after) = (&tokens(free)[0], &tokens(&bodies[1])[0]);
    let first = tops(free).swap_remove(0);
    let others = first.iter().filter(|(token, _)| token != &before).map(|(token, number)| (*number, token));
    let second = others.max_by(|one, other| one.0.total_cmp(&other.0)).expect("there are twenty").1;
    assert_eq!(after, second);
    assert!(!tokens(&bodies[1]).contains(before));
    for (body, num_tokens) in bodies[2..].iter().zip([1, 6]) {
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            (body["usage"]["completion_tokens"].as_u64(), tokens(body).len()),
            (Some(num_tokens), num_tokens as usize)
        );
    }
}

#[test]
fn forbidden_words_are_not_completed() {
    let free = tokens(&run(&[line(json!({}))], &[])[0]);
    let words: Vec<&String> = free
        .iter()
        .filter(|token| !token.starts_with("bytes:") && !token.trim().is_empty())
        .take(2)
        .collect();
    assert!(!words.is_empty(), "{free:?}");
    let held = tokens(&run(&[line(json!({"bad_words": words}))], &[])[0]);
    assert!(words.iter().all(|word| !held.contains(word)), "{words:?} {held:?}");
    assert_eq!(held.len(), 12);
}

#[test]
fn a_strong_repetition_penalty_repeats_nothing_within_its_window() {
    let bodies = run(
        &[
            line(json!({"repetition_penalty": 100})),
            line(json!({"repetition_penalty": 100, "repetition_context_size": 1})),
        ],
        &[],
    );
    let chosen = tokens(&bodies[0]);
    let distinct: std::collections::HashSet<&String> = chosen.iter().collect();
    assert_eq!(distinct.len(), chosen.len(), "{chosen:?}");
    let chosen = tokens(&bodies[1]);
    assert!(chosen.windows(2).all(|pair| pair[0] != pair[1]), "{chosen:?}");
}

/// Law 1 and seeds: in a batch, alone, in another order.
#[test]
fn answers_depend_on_their_own_request_alone() {
    let wants = [
        json!({"frequency_penalty": 1.0, "temperature": 1, "seed": 3}),
        json!({"repetition_penalty": 1.3}),
        json!({"logit_bias": {"97": 5, "98": -5}, "temperature": 0.7, "seed": 4, "top_k": 20}),
        json!({}),
        json!({"min_tokens": 6, "ignore_eos": false, "logit_bias": {"303": 100}}),
        json!({"bad_words": ["a", "the"], "presence_penalty": -1}),
        json!({"n": 3, "temperature": 1.2, "seed": 5}),
        json!({"echo": true, "prompt_logprobs": 1}),
    ];
    let mut lines: Vec<Value> = wants.iter().map(|fields| line(fields.clone())).collect();
    let texts = |bodies: &[Value]| -> Vec<Vec<String>> {
        let choices = |body: &Value| body["choices"].as_array().expect("a list").clone();
        let text = |choice: &Value| choice["text"].as_str().expect("a text").to_owned();
        bodies.iter().map(|body| choices(body).iter().map(text).collect()).collect()
    };
    let together = texts(&run(&lines, &["--batch-size", "16"]));
    assert_eq!(texts(&run(&lines, &["--batch-size", "1", "--cache-bytes", "0"])), together);
    lines.reverse();
    let mut reversed = texts(&run(&lines, &["--batch-size", "3"]));
    reversed.reverse();
    assert_eq!(reversed, together);
}

#[test]
fn flags_are_defaults_of_requests() {
    let bodies = run(&[line(json!({"frequency_penalty": 2})), line(json!({}))], &[]);
    let flagged =
        run(&[line(json!({})), line(json!({"frequency_penalty": 0}))], &["--frequency-penalty", "2"]);
    assert_eq!([tokens(&flagged[0]), tokens(&flagged[1])], [tokens(&bodies[0]), tokens(&bodies[1])]);
    let free = json!({"prompt": PROMPT, "max_tokens": 6, "logit_bias": {"303": 100}});
    let counts = |arguments: &[&str]| {
        run(std::slice::from_ref(&free), arguments)[0]["usage"]["completion_tokens"].clone()
    };
    assert_eq!(
        [counts(&[]), counts(&["--min-tokens", "3"]), counts(&["--ignore-eos"])],
        [json!(1), json!(4), json!(6)]
    );
}
