//! Answers that have to be something: JSON by a schema, a choice, an expression, a grammar.
//!
//! Owns what comes of them with the rest of a request on the real binary. A model of random weights would never
//! write any of it by itself, so whatever is valid is so by its guide; what guides let through has its tests in
//! `src/guide`.

use serde_json::{Value, json};

use crate::support::Desk;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "kind": {"enum": ["cat", "dog"]},
            "legs": {"type": "integer", "minimum": 0, "maximum": 9},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2}
        },
        "required": ["name", "kind", "legs", "tags"],
        "additionalProperties": false
    })
}

fn with(prompt: &str, fields: Value) -> Value {
    let mut line = json!({"prompt": prompt, "max_tokens": 200});
    line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    line
}

fn bodies(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    desk.run().arg("-q").args(arguments).assert().code(0);
    desk.output().into_iter().map(|line| line["response"]["body"].clone()).collect()
}

fn text(choice: &Value) -> &str {
    choice["text"].as_str().or_else(|| choice["message"]["content"].as_str()).expect("a choice has a text")
}

fn is_valid(schema: &Value, text: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|value| jsonschema::is_valid(schema, &value))
}

/// Whether a choice is valid if it is whole; says "length" if it is not.
fn assert_sound(schema: &Value, choice: &Value) {
    match choice["finish_reason"].as_str() {
        Some("stop") => assert!(is_valid(schema, text(choice)), "{schema}: {choice}"),
        Some("length") => {}
        other => panic!("{other:?}: {choice}"),
    }
}

#[test]
fn every_way_to_ask_gives_what_was_asked_for() {
    let described = json!({"name": "animal", "strict": true, "schema": schema()});
    let chat = json!({
        "messages": [{"role": "user", "content": "An animal"}], "max_tokens": 200,
        "response_format": {"type": "json_schema", "json_schema": described},
    });
    let lark = "start: \"(\" NAME (\", \" NAME){0,3} \")\"\nNAME: /[a-z]{1,5}/";
    let gbnf = "root ::= \"(\" name (\", \" name){0,3} \")\"\nname ::= [a-z]{1,5}";
    let lines = [
        chat.clone(),
        json!({"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": chat}),
        with("x", json!({"guided_json": schema()})),
        with("x", json!({"guided_json": schema().to_string()})),
        with("x", json!({"json_schema": schema()})),
        with("x", json!({"structured_outputs": {"json": schema(), "disable_any_whitespace": true}})),
        with("x", json!({"response_format": {"type": "json_object"}, "max_tokens": 40})),
        with("x", json!({"guided_choice": ["yes, of course", "no"]})),
        with("x", json!({"guided_regex": "^[0-9]{3}-[a-f]{2}$"})),
        with("x", json!({"guided_grammar": lark})),
        with("x", json!({"grammar": gbnf})),
    ];
    let bodies = bodies(&lines, &[]);
    let choice = |index: usize| &bodies[index]["choices"][0];
    for index in 0..6 {
        assert_eq!(choice(index)["finish_reason"], "stop", "{}", choice(index));
        assert_sound(&schema(), choice(index));
    }
    assert!(!text(choice(5)).contains([' ', '\n']) || text(choice(5)).contains('"'));
    assert!(text(choice(6)).starts_with('{'));
    assert!(["yes, of course", "no"].contains(&text(choice(7))));
    let code = text(choice(8));
    assert!(code.len() == 6 && code[..3].parse::<u32>().is_ok() && &code[3..4] == "-", "{code}");
    for index in [9, 10] {
        let list = text(choice(index)).strip_prefix('(').and_then(|text| text.strip_suffix(')'));
        let names: Vec<&str> = list.expect("brackets").split(", ").collect();
        assert!(names.len() <= 4 && names.iter().all(|name| (1..=5).contains(&name.len())), "{names:?}");
    }
    for index in 7..11 {
        assert_eq!(choice(index)["finish_reason"], "stop");
    }
}

#[test]
fn constraints_go_together_with_all_else_that_a_request_may_say() {
    let schema = json!({"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 40});
    let line = |fields: Value| {
        with("Numbers", {
            let mut all = json!({"guided_json": schema.clone()});
            all.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
            all
        })
    };
    let lines = [
        line(json!({"temperature": 1.5, "top_p": 0.9, "n": 4, "seed": 3})),
        line(json!({"temperature": 1, "top_k": 3, "min_p": 0.2, "seed": 4})),
        line(json!({"repetition_penalty": 1.5, "presence_penalty": 1, "frequency_penalty": -1})),
        line(json!({"logprobs": 3})),
        line(json!({"min_tokens": 30})),
        line(json!({"ignore_eos": true})),
        line(json!({"max_tokens": 3})),
        line(json!({"bad_words": ["1", "7"]})),
        line(json!({"logit_bias": {"303": 100}})),
        line(json!({"stop": "]"})),
        with("x", json!({"guided_regex": "abc", "min_tokens": 50})),
        with("x", json!({"guided_regex": "a*", "logit_bias": {"303": 100}, "min_tokens": 5})),
        with("x", json!({"guided_regex": "abc", "max_tokens": 3})),
        with("x", json!({"guided_regex": "a(b|c)", "logprobs": 2, "echo": true})),
    ];
    let bodies = bodies(&lines, &[]);
    for body in &bodies[..9] {
        body["choices"].as_array().expect("a list").iter().for_each(|choice| assert_sound(&schema, choice));
    }
    let choice = |index: usize| &bodies[index]["choices"][0];
    assert_eq!(bodies[0]["choices"].as_array().map(Vec::len), Some(4));
    let told = |index: usize, name: &str| choice(index)["logprobs"][name].as_array().map_or(0, Vec::len);
    let num_tokens = |index: usize| bodies[index]["usage"]["completion_tokens"].as_u64().expect("a number");
    assert_eq!((told(3, "tokens") as u64, told(3, "token_logprobs")), (num_tokens(3), told(3, "tokens")));
    assert!(num_tokens(4) >= 30, "{}", choice(4));
    assert_eq!(choice(6)["finish_reason"], "length");
    assert!(!text(choice(7)).contains(['1', '7']), "{}", choice(7));
    assert_eq!(choice(9)["stop_reason"], "]", "it is cut where the request says so, and says why");
    for (index, expected, reason) in [(10, "abc", "stop"), (11, "aaaaa", "stop"), (12, "abc", "stop")] {
        assert_eq!((text(choice(index)), choice(index)["finish_reason"].as_str()), (expected, Some(reason)));
    }
    assert!(["xab", "xac"].contains(&text(choice(13))));
}

#[test]
fn guided_answers_are_the_same_alone_among_others_and_over_a_warm_cache() {
    let constraints = [
        json!({"guided_json": schema()}),
        json!({"guided_json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 9}}),
        json!({"guided_regex": "([a-z]{2,6} ){3,5}"}),
        json!({}),
        json!({"guided_choice": ["one", "two", "three hundred"], "temperature": 1.0, "seed": 5}),
    ];
    let lines: Vec<Value> = (0..20)
        .map(|index| {
            let prompt = format!("Once upon a time there was one, namely number {}", index / 2);
            let mut line = with(&prompt, constraints[index % constraints.len()].clone());
            line["id"] = json!(index);
            line["max_tokens"] = json!(24);
            line
        })
        .collect();
    let answers = |lines: &[Value], arguments: &[&str], has_file: bool| -> Vec<(u64, String)> {
        let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
        let run = || -> Vec<(u64, String)> {
            let mut command = desk.run();
            command.arg("-q").args(arguments);
            if has_file {
                command.args(["--persist-cache", "cache.bin"]);
            }
            command.assert().code(0);
            let answers = desk.output().into_iter().map(|line| {
                let id = line["custom_id"].as_str().and_then(|id| id.parse().ok()).expect("a number");
                (id, line["response"]["body"]["choices"][0].to_string())
            });
            let mut answers: Vec<_> = answers.collect();
            answers.sort();
            answers
        };
        let first = run();
        if has_file {
            assert_eq!(run(), first, "from the file");
        }
        first
    };
    let alone = answers(&lines, &["--batch-size", "1", "--cache-bytes", "0"], false);
    let mut shuffled = lines.clone();
    shuffled.reverse();
    shuffled.rotate_left(7);
    assert_eq!(answers(&lines, &["--batch-size", "8"], true), alone);
    assert_eq!(answers(&shuffled, &["--batch-size", "5"], true), alone);
}

#[test]
fn what_cannot_be_served_is_an_error_line_and_the_run_goes_on() {
    let deep = (0..100).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}));
    let big: Vec<String> = (0..400_000).map(|index| format!("member number {index}")).collect();
    let bad = [
        (json!({"guided_json": {"not": {"type": "string"}}}), "guided_json", "not"),
        (
            json!({"guided_json": {"$ref": "http://127.0.0.1:9/schema"}}),
            "guided_json",
            "http://127.0.0.1:9/schema",
        ),
        (json!({"guided_json": {"enum": big}}), "guided_json", ""),
        (json!({"guided_regex": "(a"}), "guided_regex", ""),
        (json!({"guided_regex": "(?<=a)b"}), "guided_regex", ""),
        (json!({"grammar": "start: nowhere"}), "grammar", "nowhere"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "guided_regex", "differs"),
        (json!({"response_format": {"type": "yaml"}}), "response_format.type", "yaml"),
    ];
    let mut lines: Vec<Value> = bad.iter().map(|(fields, ..)| with("x", fields.clone())).collect();
    lines.push(with("x", json!({"guided_json": deep})));
    lines.push(with("x", json!({"max_tokens": 2})));
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    desk.run().arg("-q").assert().code(3);
    let output = desk.output();
    for (index, (_, param, told)) in bad.iter().enumerate() {
        let response = &output[index]["response"];
        let error = &response["body"]["error"];
        assert_eq!(
            (response["status_code"].as_u64(), error["param"].as_str()),
            (Some(400), Some(*param)),
            "{error}"
        );
        let message = error["message"].as_str().expect("a text");
        assert!(
            message.starts_with(&format!("in.jsonl:{}: {param}: ", index + 1)) && message.contains(told),
            "{message}"
        );
    }
    for line in &output[bad.len()..] {
        assert_eq!(line["response"]["status_code"], 200, "{line}");
    }
}

/// Whether each schema of the public suite gives a valid answer, or a cut one, or an error that says why.
fn hold_to_suite(lines: impl Iterator<Item = Value>, num_choices: u32) {
    let lines: Vec<Value> = lines.collect();
    let requests: Vec<Value> = lines
        .iter()
        .map(|case| {
            let fields = json!({"guided_json": case["schema"], "n": num_choices, "temperature": 0.7, "max_tokens": 120,
                                "seed": 11});
            with("Something", fields)
        })
        .collect();
    let desk = Desk::with_input(requests.iter().map(|line| format!("{line}\n")).collect::<String>());
    desk.run().arg("-q").assert().code(predicates::ord::lt(4));
    let (mut num_whole, mut num_refused) = (0, 0);
    for (case, line) in lines.iter().zip(desk.output()) {
        let body = &line["response"]["body"];
        let Some(choices) = body["choices"].as_array() else {
            assert_eq!(line["response"]["status_code"], 400, "{case}: {line}");
            num_refused += 1;
            continue;
        };
        for choice in choices.iter().filter(|choice| choice["finish_reason"] == "stop") {
            num_whole += 1;
            let value: Value =
                serde_json::from_str(text(choice)).unwrap_or_else(|_| panic!("{case}: {choice}"));
            // Those with references to other documents are refused, so there is nothing to fetch.
            let validator = jsonschema::validator_for(&case["schema"]).expect("a schema");
            assert!(validator.is_valid(&value), "{case}: {value}");
        }
    }
    eprintln!("{num_whole} whole answers, {num_refused} of {} schemas refused", lines.len());
    assert!(num_whole > lines.len() / 4, "{num_whole} whole answers");
    // Half of the suite is about keywords that no grammar has, such as not, if and unevaluatedProperties.
    assert!(num_refused * 5 < lines.len() * 3, "{num_refused} of {} refused", lines.len());
}

fn suite() -> impl Iterator<Item = Value> {
    let suite = std::fs::read_to_string(crate::support::fixture_path("json_schema_suite.jsonl"));
    let lines: Vec<Value> = suite
        .expect("the fixture is there")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    lines.into_iter()
}

#[test]
fn answers_under_schemas_of_the_public_suite_are_valid() {
    hold_to_suite(suite().step_by(7), 2);
}

/// Half a minute, for all of them: `cargo test --test run -- --ignored all_schemas`.
#[test]
#[ignore = "takes half a minute; a sample of it is above"]
fn all_schemas_of_the_public_suite_give_valid_answers() {
    hold_to_suite(suite(), 8);
}
