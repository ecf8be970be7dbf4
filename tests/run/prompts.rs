//! How conversations become prompts where the request has a say in it: its own template and where the prompt
//! ends. Prompts are looked at by `echo`'s counterpart for conversations, `prompt_logprobs`.

use serde_json::{Value, json};

use crate::support::{Desk, code_of, message_of, text_of};

fn run(lines: &[Value]) -> (Vec<Value>, String) {
    let desk = Desk::with_input(lines.iter().map(|line| format!("{line}\n")).collect::<String>());
    let assert = desk.run().args(["--max-tokens", "4"]).assert();
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    (desk.output(), stderr)
}

fn chat(fields: Value) -> Value {
    let mut line =
        json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]});
    line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    line
}

#[test]
fn a_conversation_is_the_raw_prompt_that_its_template_and_ending_make() {
    let turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWell, ";
    let pairs = [
        (chat(json!({})), format!("{turns}<|im_end|>\n<|im_start|>assistant\n")),
        (chat(json!({"add_generation_prompt": false})), format!("{turns}<|im_end|>\n")),
        (chat(json!({"continue_final_message": true, "add_generation_prompt": false})), turns.to_owned()),
        (
            chat(
                json!({"chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{{ x }}",
                        "chat_template_kwargs": {"x": "!"}}),
            ),
            "user: Hi<|im_end|>assistant: Well, <|im_end|>!".to_owned(),
        ),
        (
            chat(json!({"chat_template": "{{ messages[0].content }} you", "reasoning_effort": null})),
            "Hi you".to_owned(),
        ),
    ];
    let lines: Vec<Value> =
        pairs.iter().flat_map(|(chat, raw)| [chat.clone(), json!({"prompt": raw})]).collect();
    let (output, _) = run(&lines);
    for (pair, (chat, raw)) in output.chunks(2).zip(&pairs) {
        let count = |line: &Value| line["response"]["body"]["usage"]["prompt_tokens"].clone();
        assert_eq!(count(&pair[0]), count(&pair[1]), "{chat} {raw:?} {} {}", pair[0], pair[1]);
        assert_eq!(text_of(&pair[0]), text_of(&pair[1]), "{raw:?}");
    }
}

#[test]
fn a_template_that_cannot_be_used_is_its_lines_error() {
    let (output, _) = run(&[
        chat(json!({"chat_template": "{% nonsense %}"})),
        chat(json!({"chat_template": "{{ raise_exception('no') }}"})),
        chat(json!({"chat_template": "{{ messages[0].content }}", "continue_final_message": true})),
        chat(json!({})),
    ]);
    assert_eq!(
        output.iter().map(code_of).collect::<Vec<_>>(),
        ["template_error", "template_error", "template_error", "ok"]
    );
    for (line, said) in
        output.iter().zip(["chat_template: ", "no", "messages[1]: the chat template does not show"])
    {
        assert!(message_of(line).contains(said), "{}", message_of(line));
    }
}

#[test]
fn variables_that_a_template_does_not_read_are_warned_of() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let (_, stderr) = run(&[
        chat(json!({"enable_thinking": false})),
        chat(json!({"tools": tools, "parallel_tool_calls": false})),
        chat(json!({"parallel_tool_calls": false})),
        chat(
            json!({"chat_template": "{{ enable_thinking }}{{ messages[0].content }}", "enable_thinking": true}),
        ),
    ]);
    assert_eq!(stderr.matches("does not read \"enable_thinking\"").count(), 1, "{stderr}");
    assert_eq!(stderr.matches("does not read \"parallel_tool_calls\"").count(), 1, "{stderr}");
}
