//! Input lines that cannot be served: one error line each, and the others are answered.

use predicates::prelude::*;
use predicates::str::{contains, is_empty};
use serde_json::{Value, json};

use crate::support::{Desk, code_of, id_of, message_of, text_of};

/// Runs these lines and returns the output lines, of which some must be errors.
fn run(lines: &[&[u8]]) -> Vec<Value> {
    let desk = Desk::with_input(lines.join(&b"\n"[..]));
    desk.run().args(["--max-tokens", "2", "--quiet"]).assert().code(3).stdout(is_empty()).stderr(is_empty());
    // The last is for a later run that may be asked to answer them once more.
    assert_eq!(desk.names(), ["in.jsonl", "out.jsonl", "out.jsonl.manifest"]);
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
        (b"{\"id\": \"g\", \"prompt\": \"x\", \"best_of\": 2}", "unsupported_value", "best_of: the best of"),
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
    assert_eq!(ids, ["a", "b", "c", "d", "e", "f", "a", "g", "h", "i", "line-11", "z"]);
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
    // It was tokenised whole, in 140 times its memory, to be refused then.
    let message = message_of(&output[0]);
    assert!(message.contains("at least ") && message.contains("context of 4096"), "{message}");
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

/// Two conversations that differed in their calls only were one prompt, answered and cached as one.
#[test]
fn a_call_that_the_template_does_not_show_is_an_error_line() {
    let line = |id: &str, call: &str| {
        json!({"id": id, "messages": [
            {"role": "user", "content": "Is it warm?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": call, "arguments": "{\"city\": \"Oslo\"}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "snow"},
        ]})
        .to_string()
    };
    let plain = json!({"id": "plain", "messages": [{"role": "user", "content": "Is it warm?"}]}).to_string();
    let output = run(&[line("a", "weather").as_bytes(), plain.as_bytes(), line("b", "climate").as_bytes()]);
    assert_eq!(output.iter().map(code_of).collect::<Vec<_>>(), ["template_error", "ok", "template_error"]);
    let message = message_of(&output[2]);
    assert!(
        message.starts_with(
            "in.jsonl:3: messages[1]: the model's chat template does not show the call of \"climate\""
        ),
        "{message}"
    );
}

/// A compressed file gave as many error lines as it had line ends, after a model had been loaded.
#[test]
fn a_file_of_another_kind_is_one_error_before_a_model_is_loaded() {
    for (input, what, fix) in [
        (&b"BZh91AY&SY\n\n\n"[..], "is compressed with bzip2", "bzcat < in.jsonl | mlxbatch"),
        (b"\xff\xfe{\0\"\0\n\0", "is UTF-16, not UTF-8", "iconv -f UTF-16"),
        (b"{\"prompt\": \"a\"}\r{\"prompt\": \"b\"}\r", "ends its lines with CR alone", r"tr '\r' '\n'"),
    ] {
        let desk = Desk::with_input(input);
        let said = || contains(format!("the input in.jsonl {what}")).and(contains(fix));
        desk.run_with("no/such/model").assert().code(1).stderr(said().and(contains("no/such/model").not()));
        desk.bare().args(["validate", "in.jsonl"]).assert().code(1).stderr(said());
        let fix = format!("… | {}", fix.split(" <").next().expect("a filter"));
        desk.bare().args(["validate", "-"]).write_stdin(input).assert().code(1).stderr(contains(fix));
        assert_eq!(desk.names(), ["in.jsonl"]);
    }
}

#[test]
fn ctrl_z_at_the_very_end_is_ignored_with_a_warning() {
    let desk = Desk::with_input("{\"prompt\": \"x\", \"max_tokens\": 1}\r\n\u{1a}");
    desk.run()
        .assert()
        .code(0)
        .stderr(contains("warning: in.jsonl:2: ctrl-Z at the very end").and(contains("1 request done")));
    assert_eq!(desk.output().len(), 1);
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
