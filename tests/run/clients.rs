//! Bodies of evaluation and data programs, as they sent them: `fixtures/clients`.

use serde_json::Value;

use crate::support::{Desk, code_of, fixture_path, id_of, json_lines};

fn bodies() -> String {
    std::fs::read_to_string(fixture_path("clients/bodies.jsonl")).expect("the fixture is there")
}

/// lm-eval's were refused for `logprobs`, `echo` and `prompt`, inspect-ai's for `n` and `logit_bias`.
#[test]
fn bodies_of_evaluation_programs_run_unchanged() {
    let desk = Desk::with_input(bodies());
    let assert = desk.run().args(["--max-tokens", "8"]).assert().code(0);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert_eq!(stderr.matches("warning").count(), 1, "of the model's name alone: {stderr}");
    let (input, output) = (json_lines(&bodies()), desk.output());
    assert_eq!(input.len(), output.len());
    for (asked, line) in input.iter().zip(&output) {
        assert_eq!((id_of(line), code_of(line)), (asked["custom_id"].as_str().expect("an id"), "ok"));
        let (asked, choices) = (&asked["body"], &line["response"]["body"]["choices"]);
        let num_prompts = asked["prompt"].as_array().map_or(1, Vec::len);
        let num_choices = num_prompts * asked["n"].as_u64().unwrap_or(1) as usize;
        assert_eq!(choices.as_array().map(Vec::len), Some(num_choices), "{line}");
        let wants_logprobs = !matches!(asked["logprobs"], Value::Null | Value::Bool(false));
        assert_eq!(choices[0]["logprobs"].is_object(), wants_logprobs, "{line}");
    }
}

fn number_of(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// What lm-eval's `parse_logprobs` does: one number for each token of the prompt and one more.
#[test]
fn what_lm_eval_counts_on_is_there() {
    let desk = Desk::with_input(bodies());
    desk.run().args(["--max-tokens", "8", "-q"]).assert().code(0);
    let mut num_checked = 0;
    for (asked, line) in json_lines(&bodies()).iter().zip(desk.output()) {
        if asked["body"]["echo"] != true {
            continue;
        }
        let prompts = asked["body"]["prompt"].as_array().expect("a list");
        let choices = line["response"]["body"]["choices"].as_array().expect("a list");
        for (prompt, choice) in prompts.iter().zip(choices) {
            let num_tokens = prompt.as_array().expect("ids").len();
            let logprobs = &choice["logprobs"];
            for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                assert_eq!(logprobs[name].as_array().map(Vec::len), Some(num_tokens + 1), "{name}");
            }
            let numbers = logprobs["token_logprobs"].as_array().expect("a list")[1..].iter();
            let tops = logprobs["top_logprobs"].as_array().expect("a list")[1..].iter();
            for (number, top) in numbers.zip(tops) {
                let told: Vec<f64> = top.as_object().expect("an object").values().map(number_of).collect();
                // Of a greedy token it is the same number, not one near it.
                assert!(told.contains(&number_of(number)), "{number} {told:?}");
                num_checked += 1;
            }
        }
    }
    assert!(num_checked > 500, "{num_checked}");
}
