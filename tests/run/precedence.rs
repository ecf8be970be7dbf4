//! Who has the last word on a parameter: request, then flag, then generation_config.json.

use serde_json::{Value, json};

use crate::support::{Desk, MODEL, text_of};

/// Answers one prompt under a generation_config.json, flags and fields of the request.
fn answer(config: &Value, arguments: &[&str], fields: &Value) -> Value {
    let mut line = json!({"id": "a", "prompt": "Once upon a time"});
    for (name, value) in fields.as_object().expect("fields are given as an object") {
        line[name] = value.clone();
    }
    let desk = Desk::with_input(line.to_string());
    let model = desk.copy_model(MODEL);
    desk.write("model/generation_config.json", config.to_string());
    desk.run_with(model).args(arguments).assert().code(0);
    desk.output().remove(0)
}

fn num_tokens(line: &Value) -> u64 {
    line["response"]["body"]["usage"]["completion_tokens"].as_u64().expect("usage holds counts")
}

#[test]
fn the_longest_answer() {
    let config = json!({"max_new_tokens": 9});
    let (flag, none, own) = (&["--max-tokens", "5"][..], &[][..], json!({"max_tokens": 3}));
    assert_eq!(num_tokens(&answer(&config, none, &json!({}))), 9);
    assert_eq!(num_tokens(&answer(&config, flag, &json!({}))), 5);
    assert_eq!(num_tokens(&answer(&config, flag, &own)), 3);
    assert_eq!(num_tokens(&answer(&config, none, &own)), 3);
    assert_eq!(num_tokens(&answer(&config, flag, &json!({"max_completion_tokens": 4}))), 4);
}

#[test]
fn the_temperature() {
    let hot = json!({"do_sample": true, "temperature": 1.9, "max_new_tokens": 12});
    let text = |config: &Value, arguments: &[&str], fields: &Value| {
        text_of(&answer(config, arguments, fields)).to_owned()
    };
    let greedy = text(&json!({"max_new_tokens": 12}), &[], &json!({}));
    let sampled = text(&hot, &[], &json!({}));
    assert_ne!(sampled, greedy);
    assert_eq!(text(&hot, &["--temperature", "0"], &json!({})), greedy);
    assert_eq!(text(&hot, &["--temperature", "0"], &json!({"temperature": 1.9})), sampled);
    assert_eq!(text(&hot, &["--temperature", "1.9"], &json!({"temperature": 0})), greedy);
    // Only the likeliest token is left: greedy by another name.
    assert_eq!(text(&hot, &["--top-k", "1"], &json!({})), greedy);
    assert_eq!(text(&hot, &["--top-k", "1"], &json!({"top_k": 0})), sampled);
    assert_eq!(text(&hot, &["--min-p", "1"], &json!({})), greedy);
    assert_eq!(text(&hot, &["--top-p", "0.000001"], &json!({})), greedy);
    // A file that does not ask for sampling says nothing by its temperature.
    assert_eq!(text(&json!({"temperature": 1.9, "max_new_tokens": 12}), &[], &json!({})), greedy);
}
