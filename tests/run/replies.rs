//! Answers taken apart: thinking, what is said, and calls of tools.
//!
//! Owns what comes of them on the real binary. A model of random weights writes neither, so what it writes is
//! held to; which texts are which has its tests in `src/text/reply`.

use serde_json::{Value, json};

use crate::support::Desk;

/// A template whose answers begin with thinking, and one that also opens it.
pub const THINKS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const OPENS: &str = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}\
                     {% if add_generation_prompt %}A: <think>\n{% endif %}";
/// One that shows calls in Hermes' way.
pub const CALLS: &str = "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}\
                     {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \"arguments\": \
                     {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}\n{% endfor %}\
                     {% if add_generation_prompt %}assistant: {% endif %}";

pub fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn line(fields: Value) -> Value {
    let mut line = json!({"messages": [{"role": "user", "content": "How is it?"}], "max_tokens": 60});
    line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    line
}

fn desk(lines: &[Value]) -> Desk {
    Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn bodies(lines: &[Value], arguments: &[&str]) -> Vec<Value> {
    let desk = desk(lines);
    desk.run().arg("-q").args(arguments).assert().code(0);
    desk.output().into_iter().map(|line| line["response"]["body"].clone()).collect()
}

#[test]
fn a_call_that_is_asked_for_is_made_and_meets_its_schema() {
    let named = json!({"type": "function", "function": {"name": "look_up"}});
    let asked = |choice: Value| {
        line(json!({"tools": tools(), "tool_choice": choice, "chat_template": CALLS, "max_tokens": 300}))
    };
    let mut one = asked(json!("required"));
    one["parallel_tool_calls"] = json!(false);
    let bodies = bodies(&[asked(named), one, asked(json!("none")), asked(json!("auto"))], &[]);
    let [named, required, hidden, free] = [0, 1, 2, 3].map(|place| &bodies[place]["choices"][0]);
    let schema = &tools()[0]["function"]["parameters"];
    for choice in [named, required] {
        let calls = choice["message"]["tool_calls"].as_array().expect("it calls");
        assert_eq!((calls.len(), &choice["finish_reason"]), (1, &json!("tool_calls")), "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let function = &calls[0]["function"];
        let arguments = function["arguments"].as_str().expect("arguments are text");
        let arguments: Value = serde_json::from_str(arguments).expect("arguments are JSON");
        match function["name"].as_str() {
            Some("look_up") => assert!(jsonschema::is_valid(schema, &arguments), "{arguments}"),
            Some("now") => assert_eq!(arguments, json!({})),
            other => panic!("{other:?}"),
        }
        assert!(calls[0]["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{choice}");
    }
    assert_eq!(named["message"]["tool_calls"][0]["function"]["name"], "look_up");
    for choice in [hidden, free] {
        assert_eq!(choice["message"].get("tool_calls"), None);
        assert!(choice["message"]["content"].is_string());
    }
}

#[test]
fn a_call_that_the_model_writes_is_read_and_goes_round() {
    let written =
        r#"Sure\. <tool_call>\{"name": "look_up", "arguments": \{"city": "Bern", "days": 2\}\}</tool_call>"#;
    let asked = |fields: Value| {
        let mut asked = line(
            json!({"tools": tools(), "guided_regex": written, "chat_template": CALLS, "max_tokens": 200}),
        );
        asked.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        asked
    };
    let bodies = bodies(
        &[asked(json!({})), asked(json!({"parse_tool_calls": false})), asked(json!({"stop": "\"days\""}))],
        &[],
    );
    let choices: Vec<&Value> = bodies.iter().map(|body| &body["choices"][0]).collect();
    let message = &choices[0]["message"];
    assert_eq!((&message["content"], &choices[0]["finish_reason"]), (&json!("Sure."), &json!("tool_calls")));
    assert_eq!(
        message["tool_calls"][0]["function"],
        json!({"name": "look_up", "arguments": "{\"city\":\"Bern\",\"days\":2}"})
    );
    assert!(choices[1]["message"]["content"].as_str().is_some_and(|text| text.ends_with("</tool_call>")));
    // A stop within a call leaves what was written.
    let cut = "Sure. <tool_call>{\"name\": \"look_up\", \"arguments\": {\"city\": \"Bern\", ";
    assert_eq!(
        (&choices[2]["message"]["content"], &choices[2]["finish_reason"]),
        (&json!(cut), &json!("stop"))
    );

    // The next turn takes the message as it is.
    let id = &message["tool_calls"][0]["id"];
    let conversation = json!([{"role": "user", "content": "How is it?"}, message,
        {"role": "tool", "tool_call_id": id, "content": "Fine."}]);
    let next = desk(&[line(
        json!({"messages": conversation, "tools": tools(), "chat_template": CALLS, "max_tokens": 2}),
    )]);
    next.run().arg("-q").assert().code(0);
}

#[test]
fn thinking_is_told_apart_and_counted() {
    let thought = r"<think>\nHm, well\.\n</think>\n\nFine\.";
    // Without thinking in front of it: the expression is all of the answer.
    let held = |fields: Value| {
        let mut held = line(
            json!({"chat_template": THINKS, "guided_regex": thought, "reasoning_format": "none", "max_tokens": 200}),
        );
        held.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        held
    };
    let within = bodies(&[held(json!({}))], &[]).remove(0);
    let whole = "<think>\nHm, well.\n</think>\n\nFine.";
    assert_eq!(within["choices"][0]["message"]["content"], whole);
    assert_eq!(within["usage"].get("completion_tokens_details"), None);

    let plain = line(json!({"chat_template": OPENS, "thinking_budget": 7, "max_tokens": 40}));
    let mut left_out = plain.clone();
    left_out["include_reasoning"] = json!(false);
    let mut schema = plain.clone();
    schema["response_format"] =
        json!({"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}});
    let found = bodies(&[plain.clone(), left_out, schema], &[]);
    let [plain_body, left_out, schema] = [0, 1, 2].map(|place| &found[place]);
    let message = &plain_body["choices"][0]["message"];
    assert!(message["reasoning_content"].as_str().is_some_and(|text| !text.contains("think>")), "{message}");
    assert!(
        message["content"].as_str().is_some_and(|text| !text.is_empty() && !text.contains("</think>")),
        "{message}"
    );
    let num_thinking =
        plain_body["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().expect("it is counted");
    assert!((7..40).contains(&num_thinking), "{num_thinking}");
    assert_eq!(left_out["choices"][0]["message"].get("reasoning_content"), None);
    assert_eq!(left_out["choices"][0]["message"]["content"], message["content"]);
    let choice = &schema["choices"][0];
    assert!(["\"yes\"", "\"no\""].iter().any(|text| choice["message"]["content"] == *text), "{choice}");
    assert_eq!(
        (&choice["message"]["reasoning_content"], &choice["finish_reason"]),
        (&message["reasoning_content"], &json!("stop"))
    );

    // By a flag for all lines, and by a name where the template does not tell.
    let unsaid = line(json!({"max_tokens": 40}));
    let arguments = ["--thinking-budget", "0", "--reasoning-parser", "deepseek_r1"];
    assert_eq!(
        bodies(std::slice::from_ref(&unsaid), &arguments).remove(0)["usage"]["completion_tokens_details"],
        json!({"reasoning_tokens": 0})
    );
    let desk = desk(&[line(json!({"thinking_budget": 5}))]);
    desk.run().arg("-q").assert().code(3);
    let error = &desk.output()[0]["response"]["body"]["error"];
    assert_eq!(error["param"], "thinking_budget");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("--reasoning-parser")), "{error}");
}

/// Thinking that never ends is all there is.
#[test]
fn an_answer_cut_within_its_thinking_says_nothing() {
    let body =
        bodies(&[line(json!({"chat_template": OPENS, "max_tokens": 5, "ignore_eos": true}))], &[]).remove(0);
    let choice = &body["choices"][0];
    assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(""), &json!("length")));
    assert!(choice["message"]["reasoning_content"].is_string());
    assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 5);
}

#[test]
fn bad_values_name_parameter_and_range() {
    for (fields, param, told) in [
        (json!({"thinking_budget": -2}), "thinking_budget", "from -1"),
        (json!({"thinking_budget": "many"}), "thinking_budget", "a whole number"),
        (json!({"thinking_budget": 5, "messages": null, "prompt": "a"}), "thinking_budget", "a conversation"),
        (json!({"thinking_budget": 5, "reasoning_budget": 6}), "reasoning_budget", "thinking_budget"),
        (json!({"reasoning_format": "xml"}), "reasoning_format", "hidden"),
        (
            json!({"reasoning_format": "none", "separate_reasoning": true}),
            "separate_reasoning",
            "reasoning_format",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "no tools"),
        (
            json!({"tools": tools(), "tool_choice": "required", "guided_regex": "a"}),
            "tool_choice",
            "guided_regex",
        ),
    ] {
        let desk = desk(&[line(fields.clone())]);
        desk.run().arg("-q").assert().code(3);
        let error = &desk.output()[0]["response"]["body"]["error"];
        assert_eq!(error["param"], param, "{fields}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(told)), "{fields}: {error}");
    }
    let desk = desk(&[line(json!({}))]);
    for (flag, name) in [("--tool-parser", "xml"), ("--reasoning-parser", "deep")] {
        let assert = desk.run().args([flag, name]).assert().code(2);
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(stderr.contains("use auto, none or one of"), "{stderr}");
    }
}

#[test]
fn what_is_not_read_is_warned_of() {
    let strict = json!([{"type": "function", "function": {"name": "f", "strict": true, "parameters": {"type": "object"}}}]);
    let desk = desk(&[line(
        json!({"tools": strict, "max_tokens": 2, "chat_template": "{{ tools }}{{ messages }}"}),
    )]);
    let assert = desk.run().assert().code(0);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("--tool-parser") && stderr.contains("strict"), "{stderr}");
}

/// Thinking, calls and their ids are the same alone and in a batch, cold and warm.
#[test]
fn replies_do_not_depend_on_the_batch() {
    let lines: Vec<Value> = (0..9)
        .map(|place| {
            let mut line = match place % 3 {
                0 => line(json!({"tools": tools(), "tool_choice": "required", "chat_template": CALLS})),
                1 => line(json!({"chat_template": OPENS, "thinking_budget": place, "max_tokens": 20})),
                _ => line(json!({"chat_template": THINKS, "max_tokens": 20})),
            };
            line["messages"][0]["content"] = json!(format!("Question {place}"));
            line
        })
        .collect();
    let choices = |arguments: &[&str]| -> Vec<Value> {
        bodies(&lines, arguments).into_iter().map(|body| body["choices"].clone()).collect()
    };
    let alone = choices(&["--batch-size", "1", "--cache-bytes", "0"]);
    assert_eq!(alone, choices(&["--batch-size", "8"]));
    assert_eq!(alone, choices(&["--batch-size", "3", "--prefill-chunk", "5"]));
}
