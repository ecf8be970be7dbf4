//! Input lines that cannot be served: one error line each, and the others are answered.

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};

use crate::support::{Desk, code_of, id_of, message_of, text_of};

/// Runs these lines and returns the output lines, of which some must be errors.
fn run(lines: &[&[u8]]) -> Vec<Value> {
    let desk = Desk::with_input(lines.join(&b"\n"[..]));
    desk.run().args(["--max-tokens", "2", "--quiet"]).assert().code(3).stdout(is_empty()).stderr(is_empty());
    assert_eq!(desk.names(), ["in.jsonl", "out.jsonl"]);
    desk.output()
}

#[test]
fn each_bad_line_is_one_error_line_that_names_it_and_the_rest_is_answered() {
    let input: [(&[u8], &str, &str); 12] = [
        (b"{\"id\": \"a\", \"prompt\": \"x\"}", "ok", ""),
        (b"{\"id\": \"b\", \"prompt\": ", "invalid_json", "not valid JSON"),
        (b"{\"id\": \"c\", \"prompt\": \"\xff\"}", "invalid_utf8", "not valid UTF-8 at byte 24"),
        (b"{\"id\": \"d\"}", "missing_required_parameter", "messages"),
        (b"{\"id\": \"e\", \"messages\": []}", "invalid_value", "at least one message"),
        (
            b"{\"id\": \"f\", \"messages\": [{\"role\": \"robot\", \"content\": \"x\"}]}",
            "invalid_value",
            "\"robot\" is not a role; use one of system, developer, user, assistant, tool",
        ),
        (b"{\"id\": \"a\", \"prompt\": \"x\"}", "duplicate_custom_id", "was used by an earlier line"),
        (b"{\"id\": \"g\", \"prompt\": \"x\", \"n\": 2}", "unsupported_value", "n: one answer"),
        (b"{\"id\": \"h\", \"prompt\": \"x\", \"temperature\": 3}", "invalid_value", "from 0 to 2, not 3"),
        (b"{\"id\": \"i\", \"prompt\": \"x\", \"max_tokens\": 0}", "invalid_value", "max_tokens"),
        (b"[]", "not_an_object", "expected a JSON object"),
        (b"{\"id\": \"z\", \"prompt\": \"x\"}", "ok", ""),
    ];
    let lines: Vec<&[u8]> = input.iter().map(|(line, ..)| *line).collect();
    let output = run(&lines);
    assert_eq!(output.len(), input.len());
    for (index, (line, (_, code, reason))) in output.iter().zip(input).enumerate() {
        assert_eq!(code_of(line), code, "{line}");
        assert_eq!(line["id"], format!("batch_req_{}", index + 1));
        if code != "ok" {
            let message = message_of(line);
            let place = format!("in.jsonl:{}: ", index + 1);
            assert!(message.starts_with(&place) && message.contains(reason), "{message}");
        }
    }
    let ids: Vec<&str> = output.iter().map(id_of).collect();
    assert_eq!(ids, ["a", "line-2", "line-3", "d", "e", "f", "a", "g", "h", "i", "line-11", "z"]);
    assert_eq!(text_of(&output[0]), text_of(&output[11]));
}

#[test]
fn a_prompt_over_the_context_is_refused_and_one_just_under_it_has_room_for_a_token() {
    let of_length = |num_tokens: usize| json!({"prompt": " the".repeat(num_tokens)}).to_string();
    let lines = [of_length(4095), of_length(4096), of_length(20_000)];
    let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let output = run(&lines);
    let usage = &output[0]["response"]["body"]["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(4095), &json!(1)));
    for (line, num_tokens) in output[1..].iter().zip(["4096", "20000"]) {
        assert_eq!(code_of(line), "context_length_exceeded");
        assert_eq!(line["response"]["body"]["error"]["param"], "prompt");
        let message = message_of(line);
        assert!(message.contains(num_tokens) && message.contains("context of 4096"), "{message}");
    }
}

#[test]
fn lines_of_ten_megabytes_are_judged_like_any_other() {
    let words = "many words ".repeat(1_000_000);
    let valid = format!("{{\"prompt\": \"{words}\"}}");
    let invalid = format!("{{\"prompt\": \"{words}");
    let output = run(&[valid.as_bytes(), invalid.as_bytes(), b"{\"prompt\": \"x\"}"]);
    let codes: Vec<&str> = output.iter().map(code_of).collect();
    assert_eq!(codes, ["context_length_exceeded", "invalid_json", "ok"]);
}

#[test]
fn an_empty_input_is_an_empty_output_and_a_warning() {
    for input in ["", "\n  \r\n\n", "\u{feff}\n"] {
        let desk = Desk::with_input(input);
        desk.run()
            .assert()
            .code(0)
            .stdout(is_empty())
            .stderr(contains("mlxbatch: warning: in.jsonl holds no requests\n"));
        assert_eq!(desk.read("out.jsonl"), "");
        desk.run().arg("-q").assert().code(0).stderr(is_empty());
    }
}

#[test]
fn a_template_that_refuses_the_messages_fails_their_line_only() {
    let desk = Desk::with_input(concat!(
        "{\"id\": \"sys\", \"messages\": [{\"role\": \"system\", \"content\": \"Be brief\"}]}\n",
        "{\"id\": \"user\", \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n",
    ));
    let model = desk.copy_model(crate::support::MODEL);
    desk.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role, please') }}\
         {% endif %}{{ m.content }}{% endfor %}",
    );
    desk.run_with(model).args(["--max-tokens", "1"]).assert().code(3).stderr(contains("1 ok, 1 failed"));
    let output = desk.output();
    assert_eq!((code_of(&output[0]), code_of(&output[1])), ("template_error", "ok"));
    assert_eq!(output[0]["response"]["body"]["error"]["param"], "messages");
    let message = message_of(&output[0]);
    assert!(message.starts_with("in.jsonl:1: ") && message.contains("no system role, please"), "{message}");
}

#[test]
fn the_summary_and_the_exit_code_say_that_lines_failed() {
    let desk = Desk::with_input("nonsense\n{\"prompt\": \"x\", \"max_tokens\": 1}\n");
    desk.run().assert().code(3).stderr(
        contains("2 requests done in ")
            .and(contains(": 1 ok, 1 failed\n"))
            .and(contains("  results    out.jsonl\n"))
            .and(contains("panicked").not()),
    );
}
