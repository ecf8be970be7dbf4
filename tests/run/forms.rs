//! The forms of requests, mixed, and what becomes of their fields.

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};

use crate::support::{Desk, id_of, text_of};

fn run(lines: &[Value]) -> (Vec<Value>, String) {
    let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let desk = Desk::with_input(input);
    let assert = desk.run().args(["--max-tokens", "6"]).assert().code(0).stdout(is_empty());
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    (desk.output(), stderr)
}

#[test]
fn all_forms_of_one_conversation_give_one_answer() {
    let messages = json!([{"role": "user", "content": "How many boats?"}]);
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "How many "}, {"type": "text", "text": "boats?"}]}]);
    let rendered = "<|im_start|>user\nHow many boats?<|im_end|>\n<|im_start|>assistant\n";
    let (output, stderr) = run(&[
        json!({"id": "plain", "messages": messages}),
        json!({"custom_id": "batch", "method": "POST", "url": "/v1/chat/completions",
               "body": {"model": "any", "messages": messages}}),
        json!({"messages": parts}),
        json!({"id": "raw", "prompt": rendered}),
        json!({"custom_id": "raw-batch", "method": "POST", "url": "/v1/completions", "body": {"prompt": rendered}}),
    ]);
    let ids: Vec<&str> = output.iter().map(id_of).collect();
    assert_eq!(ids, ["plain", "batch", "line-3", "raw", "raw-batch"]);
    let first = text_of(&output[0]);
    assert!(!first.is_empty());
    for line in &output {
        assert_eq!(text_of(line), first, "{line}");
        // What was cached depends on who came first; the rest of the usage does not.
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            let usage = |line: &Value| line["response"]["body"]["usage"][count].clone();
            assert_eq!(usage(line), usage(&output[0]));
        }
        assert_eq!((&line["response"]["status_code"], &line["error"]), (&json!(200), &Value::Null));
    }
    let object = |line: &Value| line["response"]["body"]["object"].clone();
    assert_eq!(
        (object(&output[1]), object(&output[4])),
        (json!("chat.completion"), json!("text_completion"))
    );
    assert_eq!(stderr.matches("asks for the model \"any\"").count(), 1, "{stderr}");
}

#[test]
fn a_developer_speaks_as_the_system_where_the_template_knows_no_developer() {
    let chat = |role: &str| json!({"messages": [{"role": role, "content": "Be brief"}, {"role": "user", "content": "Hi"}]});
    let (output, _) = run(&[chat("system"), chat("developer"), chat("assistant")]);
    let prompt_tokens = |line: &Value| line["response"]["body"]["usage"]["prompt_tokens"].clone();
    assert_eq!(text_of(&output[0]), text_of(&output[1]));
    assert_eq!(prompt_tokens(&output[0]), prompt_tokens(&output[1]));
    assert_ne!(prompt_tokens(&output[0]), prompt_tokens(&output[2]));
}

#[test]
fn metadata_is_passed_through_and_unknown_fields_are_warned_of_once() {
    let metadata = json!({"topic": "boats", "nested": [1, null, {"ä": "🦀"}]});
    let (output, stderr) = run(&[
        json!({"prompt": "a", "metadata": metadata, "mood": 3, "colour": "red"}),
        json!({"prompt": "b", "mood": 4}),
        json!({"custom_id": "c", "body": {"prompt": "c", "mood": 5, "metadata": {"n": 1}}}),
    ]);
    assert_eq!(output[0]["metadata"], metadata);
    assert!(output[1].get("metadata").is_none());
    assert_eq!(output[2]["metadata"], json!({"n": 1}));
    assert_eq!(stderr.matches("\"mood\"").count(), 1, "{stderr}");
    assert!(stderr.contains("the field \"mood\" is not used by mlxbatch and is ignored; 3 times in all"));
    assert!(stderr.contains("the field \"colour\" is not used"), "{stderr}");
}

/// They came out rounded, or as `1e+5`.
#[test]
fn numbers_come_out_with_their_own_digits() {
    for number in ["12345678901234567890123", "-0", "1E5", "1.50", "1e400"] {
        let line =
            format!("{{\"custom_id\": {number}, \"metadata\": {{\"n\": [{number}]}}, \"prompt\": \"x\"}}\n");
        let desk = Desk::with_input(line);
        desk.run().args(["--max-tokens", "1", "-q"]).assert().code(0);
        let output = desk.read("out.jsonl");
        assert!(output.contains(&format!("\"custom_id\":\"{number}\"")), "{output}");
        assert!(output.contains(&format!("\"metadata\":{{\"n\":[{number}]}}")), "{output}");
    }
}

/// `line-3`, given by a line behind it, made line 3 or the other an error.
#[test]
fn a_made_up_id_steps_aside_for_a_given_one() {
    let (output, stderr) = run(&[
        json!({"prompt": "a"}),
        json!({"id": "line-4", "prompt": "b"}),
        json!({"prompt": "c"}),
        json!({"prompt": "d"}),
        json!({"id": "line-3", "prompt": "e"}),
    ]);
    let ids: Vec<&str> = output.iter().map(id_of).collect();
    assert_eq!(ids, ["line-1", "line-4", "line-3-2", "line-4-2", "line-3"]);
    assert!(!stderr.contains("warning"), "{stderr}");
}

#[test]
fn what_the_template_passes_over_is_said_once_with_its_first_line() {
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let chat = |fields: Value| {
        let mut line = json!({"messages": [{"role": "user", "content": "Is the weather fine?"}]});
        line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        line
    };
    let (_, stderr) = run(&[
        chat(json!({})),
        chat(json!({"tools": tools})),
        chat(json!({"tools": tools, "chat_template_kwargs": {"enable_thinking": false}})),
        json!({"messages": [{"role": "user", "content": "Hi", "name": "Ann", "weight": 1}]}),
    ]);
    for warning in [
        "in.jsonl:2: tools: the model's chat template does not show the tool \"weather\"; the model will not know it; \
         2 times in all",
        "in.jsonl:3: the model's chat template does not read \"enable_thinking\"",
        "in.jsonl:4: messages: the model's chat template passes over the field \"name\" of a message",
    ] {
        assert_eq!(stderr.matches(warning).count(), 1, "{warning}\n{stderr}");
    }
    assert_eq!(stderr.matches("warning").count(), 4, "{stderr}");
}

#[test]
fn a_byte_order_mark_windows_line_ends_and_blank_lines_are_no_matter() {
    let desk = Desk::with_input("\u{feff}{\"prompt\": \"a\"}\r\n\r\n\n{\"prompt\": \"a\"}");
    desk.run().args(["--max-tokens", "3"]).assert().code(0).stderr(contains("warning").not());
    let output = desk.output();
    assert_eq!(output.iter().map(id_of).collect::<Vec<_>>(), ["line-1", "line-4"]);
    assert_eq!(text_of(&output[0]), text_of(&output[1]));
}
