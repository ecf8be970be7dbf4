//! Lines that are requests, requests that are refused, and lines that are none.

mod conversations;

use proptest::prelude::*;
use serde_json::json;

use super::*;

struct Lines {
    parser: RequestParser,
    line: u64,
}

impl Lines {
    fn new() -> Self {
        let options = ReaderOptions { served_model: Some("tiny".into()), ..ReaderOptions::default() };
        let file = InputFile { number: 1, name: "in.jsonl".into() };
        Self { parser: RequestParser::new(file, options, Ids::default()), line: 0 }
    }

    fn parse(&mut self, line: impl AsRef<[u8]>) -> Result<Request, Box<FailedLine>> {
        self.line += 1;
        self.parser.parse(Place { index: self.line - 1, line: self.line }, line.as_ref())
    }
}

fn parse(line: Value) -> Result<Request, Box<FailedLine>> {
    Lines::new().parse(line.to_string())
}

/// Parses a chat request with these fields beside a sound message.
fn parse_fields(fields: Value) -> Result<Request, Box<FailedLine>> {
    let mut line = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    line.as_object_mut().expect("built as one").extend(fields);
    parse(line)
}

fn parse_messages(messages: Value) -> Result<Vec<Value>, Box<FailedLine>> {
    Ok(chat_of(parse(json!({"messages": messages}))?).messages)
}

/// The conversation of a request that has one.
fn chat_of(mut request: Request) -> Conversation {
    match (request.prompts.pop(), request.prompts.pop()) {
        (Some(Prompt::Chat(conversation)), None) => conversation,
        other => panic!("messages make a chat: {other:?}"),
    }
}

/// Code and param of a refused request.
fn refused<T: std::fmt::Debug>(result: Result<T, Box<FailedLine>>) -> (&'static str, String) {
    match result.expect_err("must be refused").error {
        LineError::Request(error) => {
            assert_eq!(error.status, 400);
            assert!(error.message.starts_with("in.jsonl:1: "), "{}", error.message);
            (error.code, error.param.unwrap_or_default())
        }
        other => panic!("it is a request: {other:?}"),
    }
}

/// Code and message of a line that is no request.
fn not_a_request(line: impl AsRef<[u8]>) -> (&'static str, String) {
    match Lines::new().parse(line).expect_err("must fail").error {
        LineError::NotARequest { code, message } => (code, message),
        other => panic!("no request at all was expected: {other:?}"),
    }
}

#[test]
fn the_plain_form() {
    let request = parse(json!({
        "id": "a1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 8, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7,
        "stop": ["\n\n", "END"], "add_special_tokens": false,
        "metadata": {"k": [1]},
    }))
    .expect("a sound request");
    assert_eq!((request.head.custom_id.as_str(), request.head.form), ("a1", Form::Chat));
    assert_eq!(request.head.metadata, Some(json!({"k": [1]})));
    assert_eq!(
        request.params,
        RequestParams {
            max_tokens: Some(8),
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(40),
            min_p: Some(0.1),
            seed: Some(7),
            stop: Some(vec!["\n\n".into(), "END".into()]),
            add_special_tokens: Some(false),
            ..RequestParams::default()
        }
    );
    let Conversation { messages, tools, template_kwargs, .. } = chat_of(request);
    assert_eq!(messages[0], json!({"role": "system", "content": "Be brief."}));
    assert_eq!((messages.len(), tools, template_kwargs.len()), (2, None, 0));
}

#[test]
fn the_batch_form() {
    let request = parse(json!({
        "custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_completion_tokens": 5,
                 "metadata": {"inner": true}},
    }))
    .expect("a sound request");
    assert_eq!(request.head.custom_id, "r-1");
    assert_eq!(request.params.max_tokens, Some(5));
    assert_eq!(request.head.metadata, Some(json!({"inner": true})));

    let text = parse(json!({"custom_id": 7, "url": "/v1/completions", "body": {"prompt": ["Once"]}}));
    let text = text.expect("a sound request");
    assert_eq!((text.head.custom_id.as_str(), text.head.form), ("7", Form::Text));
    assert_eq!(text.prompts, [Prompt::Text("Once".into())]);
}

#[test]
fn the_raw_form_without_an_id() {
    let request = parse(json!({"prompt": "Once upon"})).expect("a sound request");
    assert_eq!((request.head.custom_id.as_str(), request.head.form), ("line-1", Form::Text));
}

#[test]
fn an_envelope_for_something_else_is_refused() {
    let body = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let with = |url: &str, method: &str| parse(json!({"url": url, "method": method, "body": body}));
    assert_eq!(refused(with("/v1/embeddings", "POST")), ("unsupported_url", "url".into()));
    assert_eq!(refused(with("/v1/chat/completions", "GET")), ("unsupported_value", "method".into()));
    assert!(with("/v1/chat/completions/", "post").is_ok());
    assert_eq!(refused(parse(json!({"url": "/v1/chat/completions"}))).1, "body");
    assert_eq!(refused(parse(json!({"body": "text"}))), ("invalid_type", "body".into()));
}

#[test]
fn a_request_needs_a_prompt_and_only_one() {
    assert_eq!(refused(parse(json!({"id": 1}))), ("missing_required_parameter", "messages".into()));
    assert_eq!(refused(parse(json!({"messages": null}))).0, "missing_required_parameter");
    assert_eq!(refused(parse(json!({"messages": []}))), ("invalid_value", "messages".into()));
    assert_eq!(refused(parse(json!({"messages": "Hi"}))), ("invalid_type", "messages".into()));
    assert_eq!(refused(parse(json!({"prompt": ""}))), ("invalid_value", "prompt".into()));
    assert_eq!(refused(parse_fields(json!({"prompt": "x"}))), ("invalid_value", "prompt".into()));
}

#[test]
fn ids_are_unique_and_the_first_keeps_its_own() {
    let mut lines = Lines::new();
    let line = json!({"id": "a", "prompt": "x"}).to_string();
    assert!(lines.parse(&line).is_ok());
    let second = lines.parse(&line).expect_err("the id is taken");
    assert_eq!(second.error.code(), "duplicate_custom_id");
    assert_eq!(second.head.custom_id, "a");
    assert!(lines.parse(json!({"prompt": "x"}).to_string()).is_ok());
}

/// A line that gave `line-3` was refused where line 3 gave none, and line 3 where it came first.
#[test]
fn a_given_id_wins_over_a_made_up_one() {
    let mut lines = Lines::new();
    let mut id_of = |line: Value| lines.parse(line.to_string()).expect("no line is at fault").head.custom_id;
    assert_eq!(id_of(json!({"id": "line-2", "prompt": "x"})), "line-2");
    assert_eq!(id_of(json!({"prompt": "x"})), "line-2-2");
    assert_eq!(id_of(json!({"prompt": "x"})), "line-3");
    assert_eq!(id_of(json!({"id": "line-3", "prompt": "x"})), "line-3");
    let warnings = lines.parser.warnings.texts();
    assert_eq!(warnings, ["in.jsonl:4: \"line-3\" is also what line 3 was called, which has no id"]);
}

/// Whoever joins results by id lost sight of the lines that were cut off or had a field wrong.
#[test]
fn an_error_keeps_the_lines_id() {
    let id_of = |line: &[u8]| Lines::new().parse(line).expect_err("it is wrong").head.custom_id;
    for line in [
        &b"{\"custom_id\": \"a\", \"prompt\": \"cut o"[..],
        b"{\"custom_id\": \"a\", \"prompt\": oops}",
        b"{\"custom_id\": \"a\", \"prompt\": \"\xff\"}",
        b"{\"custom_id\": \"a\", \"prompt\": \"x\", \"top_p\": 7}",
        b"{\"custom_id\": \"a\", \"prompt\": \"x\"}\0\0",
        b"{\"custom_id\": [], \"id\": \"a\", \"prompt\": \"x\"}",
        b"{\"custom_id\": \"a\", \"url\": 5}",
    ] {
        assert_eq!(id_of(line), "a", "{}", String::from_utf8_lossy(line));
    }
    assert_eq!(id_of(b"{\"prompt\": \"cut o"), "line-1");
    let mut lines = Lines::new();
    let failed =
        lines.parser.too_long(Place { index: 0, line: 1 }, 99, 50, b"{\"id\": \"a\", \"prompt\": \"x");
    assert_eq!(failed.head.custom_id, "a");
}

/// Text that was cut in the middle of an emoji made the whole line an error.
#[test]
fn half_a_surrogate_pair_is_replaced_with_a_warning() {
    let mut lines = Lines::new();
    let line = r#"{"id": "a\ud83d", "prompt": "x\ud83d y\ude00"}"#;
    for expected in [Some("x\u{fffd} y\u{fffd}"), None] {
        // The second has the id of the first.
        let prompts = lines.parse(line).ok().map(|request| request.prompts);
        assert_eq!(prompts, expected.map(|text| vec![Prompt::Text(text.into())]));
    }
    let call = r#"{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x\": \"\\ud83d\"}"}}]}]}"#;
    let messages = chat_of(lines.parse(call).expect("mended")).messages;
    assert_eq!(messages[0]["tool_calls"][0]["function"]["arguments"], r#"{"x": "\ufffd"}"#);
    let warnings = lines.parser.warnings.texts();
    assert!(
        warnings[0].starts_with("in.jsonl:1: holds half of a surrogate pair such as \\ud83d"),
        "{warnings:?}"
    );
    assert_eq!(warnings.len(), 1);
}

/// They came out rounded, or made the line an error.
#[test]
fn numbers_keep_their_digits() {
    for number in ["12345678901234567890123", "-0", "1E5", "1.0", "1e400", "0.10000000000000000000000001"] {
        let line = format!(
            r#"{{"custom_id": {number}, "metadata": {{"n": {number}}}, "messages": [{{"role": "assistant",
            "tool_calls": [{{"function": {{"name": "f", "arguments": {{"n": {number}}}}}}}]}}]}}"#
        );
        let request = Lines::new().parse(line.replace('\n', " ")).expect("sound");
        assert_eq!(request.head.custom_id, number);
        assert_eq!(request.head.metadata.clone().expect("given").to_string(), format!("{{\"n\":{number}}}"));
        let messages = chat_of(request).messages;
        let arguments = &messages[0]["tool_calls"][0]["function"]["arguments"];
        assert_eq!(arguments.to_string(), format!("{{\"n\":{number}}}"));
    }
    let message = |line: &str| Lines::new().parse(line).expect_err("too much").error.message().to_owned();
    let found = message(r#"{"prompt": "x", "temperature": 1e400}"#);
    assert_eq!(found, "in.jsonl:1: temperature: must be from 0 to 2, not 1e400");
    let found = message(r#"{"prompt": "x", "seed": 12345678901234567890123}"#);
    assert!(found.contains("must be from"), "{found}");
}

#[test]
fn a_refusal_is_the_assistants_text() {
    let messages = parse_messages(json!([
        {"role": "user", "content": "Hi", "refusal": null},
        {"role": "assistant", "content": [{"type": "text", "text": "Well, "}, {"type": "refusal", "refusal": "no."}]},
        {"role": "assistant", "content": null, "refusal": "I cannot."},
    ]))
    .expect("all of it is sound");
    assert_eq!(messages[1], json!({"role": "assistant", "content": "Well, no."}));
    assert_eq!(messages[2], json!({"role": "assistant", "content": "I cannot."}));
    let part = json!([{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]);
    assert_eq!(refused(parse_messages(part)), ("unsupported_value", "messages[0].content[0]".into()));
}

#[test]
fn odd_characters_are_named_where_a_line_stops_being_json() {
    for (line, expected) in [
        ("\u{200b}{\"prompt\": \"x\"}", "a zero-width space (U+200B) at byte 1"),
        ("{\"prompt\": \"x\"}\0\0\0", "a NUL byte (U+0000) at byte 16"),
        ("{\"prompt\": \"x\"}\u{1a}", "a ctrl-Z (U+001A) at byte 16"),
        ("{\"prompt\": \"x\"}\r{\"prompt\": \"y\"}", "a carriage return (U+000D) at byte 16"),
        ("{\"prompt\":\u{a0}\"x\"}", "a no-break space (U+00A0) at byte 11"),
        ("{\u{201c}prompt\u{201d}: 1}", "a curly quotation mark (U+201C) at byte 2"),
    ] {
        let (code, message) = not_a_request(line);
        assert_eq!(code, "invalid_json");
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn an_id_is_text_or_a_number() {
    assert_eq!(refused(parse(json!({"id": true, "prompt": "x"}))), ("invalid_type", "id".into()));
    assert_eq!(
        refused(parse(json!({"custom_id": "", "prompt": "x"}))),
        ("invalid_value", "custom_id".into())
    );
    assert_eq!(
        refused(parse(json!({"id": "x".repeat(5000), "prompt": "x"}))),
        ("invalid_value", "id".into())
    );
    let both = parse(json!({"id": "i", "custom_id": "c", "prompt": "x"})).expect("two ids are no harm");
    assert_eq!(both.head.custom_id, "c");
    assert_eq!(parse(json!({"id": 1.5, "prompt": "x"})).expect("a number").head.custom_id, "1.5");
}

#[test]
fn equal_lines_have_different_digests() {
    let mut lines = Lines::new();
    let digests = [(); 2].map(|()| lines.parse(r#"{"prompt": "x"}"#).expect("sound").head.digest);
    assert_ne!(digests[0], digests[1]);
    assert_eq!(
        parse(json!({"prompt": "x"})).map(|r| r.head.digest),
        parse(json!({"prompt": "x"})).map(|r| r.head.digest)
    );
}

#[test]
fn content_comes_out_as_text() {
    let messages = parse_messages(json!([
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "A"}, "B", {"type": "text", "text": "C"}], "name": "n"},
        {"role": "assistant", "content": null,
         "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
                        {"function": {"name": "g", "arguments": ""}}]},
        {"role": "tool", "content": "4", "tool_call_id": "c"},
        {"role": "assistant", "reasoning_content": "hm"},
    ]))
    .expect("all of it is sound");
    assert_eq!(messages[1], json!({"role": "user", "content": "ABC", "name": "n"}));
    // What a template shows of a call is found out where it is rendered.
    assert_eq!(messages[2].get("content"), None);
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], "{\"x\": 1}");
    assert_eq!(messages[2]["tool_calls"][1]["function"]["arguments"], "");
    assert_eq!(messages[4]["content"], "");
    assert_eq!(messages[0]["role"], "developer");
}

#[test]
fn messages_that_cannot_be_read_are_refused() {
    let one = |message: Value| refused(parse_messages(json!([message])));
    assert_eq!(one(json!("Hi")), ("invalid_type", "messages[0]".into()));
    assert_eq!(one(json!({"content": "x"})), ("missing_required_parameter", "messages[0].role".into()));
    assert_eq!(one(json!({"role": "robot", "content": "x"})), ("invalid_value", "messages[0].role".into()));
    assert_eq!(
        one(json!({"role": "function", "content": "x"})),
        ("unsupported_value", "messages[0].role".into())
    );
    assert_eq!(one(json!({"role": 1, "content": "x"})), ("invalid_type", "messages[0].role".into()));
    assert_eq!(one(json!({"role": "user"})), ("missing_required_parameter", "messages[0].content".into()));
    assert_eq!(one(json!({"role": "assistant", "tool_calls": []})).1, "messages[0].content");
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]});
    assert_eq!(one(call), ("missing_required_parameter", "messages[0].tool_calls[0].function.name".into()));
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]});
    assert_eq!(one(call), ("invalid_type", "messages[0].tool_calls[0].function.arguments".into()));
    assert_eq!(one(json!({"role": "user", "content": 5})), ("invalid_type", "messages[0].content".into()));
    let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
    assert_eq!(one(image), ("unsupported_value", "messages[0].content[0]".into()));
    let call = json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]});
    assert_eq!(one(call), ("invalid_value", "messages[0].tool_calls[0].function.arguments".into()));
    let call = json!({"role": "assistant", "content": "", "function_call": {"name": "f"}});
    assert_eq!(one(call), ("unsupported_value", "messages[0].function_call".into()));
}

#[test]
fn tools_and_template_variables_reach_the_template() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let chat = |fields: Value| {
        let Conversation { tools, template_kwargs, .. } = chat_of(parse_fields(fields).expect("sound"));
        (tools, template_kwargs)
    };
    let (shown, kwargs) = chat(json!({
        "tools": tools, "tool_choice": "auto", "chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low",
    }));
    assert_eq!(shown.as_deref(), Some(&tools));
    assert_eq!(Value::Object(kwargs), json!({"enable_thinking": false, "reasoning_effort": "low"}));
    assert_eq!(chat(json!({"tools": tools, "tool_choice": "none"})).0, None);
    assert_eq!(chat(json!({"tools": []})).0, None);
    assert_eq!(refused(parse_fields(json!({"tools": ["f"]}))), ("invalid_type", "tools[0]".into()));
}

#[test]
fn parameters_are_checked() {
    for (name, value, code) in [
        ("max_tokens", json!("8"), "invalid_type"),
        ("max_tokens", json!(8.5), "invalid_type"),
        ("max_tokens", json!(5_000_000_000_u64), "invalid_value"),
        ("temperature", json!(-0.1), "invalid_value"),
        ("temperature", json!(2.1), "invalid_value"),
        ("temperature", json!("hot"), "invalid_type"),
        ("top_p", json!(1.01), "invalid_value"),
        ("top_k", json!(-2), "invalid_value"),
        ("min_p", json!(1e300), "invalid_value"),
        ("seed", json!("x"), "invalid_type"),
        ("seed", json!(1e30), "invalid_type"),
        ("stop", json!(""), "invalid_value"),
        ("stop", json!(["a", ""]), "invalid_value"),
        ("stop", json!(3), "invalid_type"),
    ] {
        let found = refused(parse_fields(json!({name: value})));
        assert_eq!(found, (code, name.to_owned()), "{name}: {value}");
    }
    assert_eq!(refused(parse_fields(json!({"stop": ["a", 1]}))).1, "stop[1]");
    assert!(parse_fields(json!({"max_tokens": 4, "max_completion_tokens": 5})).is_err());
}

#[test]
fn parameters_have_more_than_one_spelling() {
    let params = |fields: Value| parse_fields(fields).expect("sound").params;
    assert_eq!(params(json!({"max_tokens": 64.0})).max_tokens, Some(64));
    assert_eq!(params(json!({"top_k": -1})).top_k, Some(0));
    assert_eq!(params(json!({"seed": -1})).seed, Some(u64::MAX));
    assert_eq!(params(json!({"stop": "x"})).stop, Some(vec!["x".into()]));
    assert_eq!(params(json!({"stop": []})).stop, Some(vec![]));
    assert_eq!(params(json!({"temperature": null, "stop": null})), RequestParams::default());
    // A vanishing top_p leaves the likeliest token alone.
    let greedy = params(json!({"top_p": 0, "temperature": 1}));
    assert_eq!((greedy.top_p, greedy.temperature), (None, Some(0.0)));
}

#[test]
fn a_request_wins_over_what_stands_behind_it() {
    let request = RequestParams { temperature: Some(0.0), stop: Some(vec![]), ..RequestParams::default() };
    let flags = RequestParams {
        temperature: Some(1.0),
        max_tokens: Some(5),
        stop: Some(vec!["x".into()]),
        ..RequestParams::default()
    };
    let merged = request.or(&flags);
    assert_eq!((merged.temperature, merged.max_tokens, merged.stop), (Some(0.0), Some(5), Some(vec![])));
}

/// Only one text was taken; lm-eval's `[[ids]]` and lists of texts were refused.
#[test]
fn prompts_are_texts_or_token_ids_one_or_many() {
    let prompts = |prompt: Value| parse(json!({"prompt": prompt})).map(|request| request.prompts);
    let text = |text: &str| Prompt::Text(text.into());
    assert_eq!(prompts(json!(["a", "b"])).expect("texts"), [text("a"), text("b")]);
    assert_eq!(prompts(json!([1, 2])).expect("ids"), [Prompt::Tokens(vec![1, 2])]);
    assert_eq!(
        prompts(json!([[1], [2, 3]])).expect("lists of ids"),
        [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]
    );
    for (prompt, code, param) in [
        (json!([]), "invalid_value", "prompt"),
        (json!([[]]), "invalid_value", "prompt[0]"),
        (json!(["a", ""]), "invalid_value", "prompt[1]"),
        (json!([1, "a"]), "invalid_type", "prompt[1]"),
        (json!([1, -1]), "invalid_value", "prompt[1]"),
        (json!([[1, 1.5]]), "invalid_value", "prompt[0][1]"),
        (json!(["a", {}]), "invalid_type", "prompt[1]"),
        (json!({"a": 1}), "invalid_type", "prompt"),
        (json!(vec!["a"; 5000]), "invalid_value", "prompt"),
    ] {
        assert_eq!(refused(prompts(prompt)), (code, param.to_owned()));
    }
}

#[test]
fn options_of_answers_are_checked() {
    let options = |fields: Value| parse_fields(fields).map(|request| request.options);
    let all = json!({"n": 3.0, "stop_token_ids": [5], "include_stop_str_in_output": true, "skip_special_tokens": false,
                     "logit_bias": {"7": -100, "8": 0.5}, "bad_words": ["no"], "logprobs": true, "top_logprobs": 5,
                     "prompt_logprobs": 0, "logprob_start_len": 3});
    let expected = AnswerOptions {
        num_choices: 3,
        stop_token_ids: vec![5],
        includes_stop: true,
        shows_special_tokens: true,
        logit_bias: vec![(7, -100.0), (8, 0.5)],
        bad_words: vec!["no".into()],
        constraint: None,
        logprobs: Some(5),
        prompt_logprobs: Some(0),
        logprob_start: 3,
        echo: false,
        shown_thinking: Default::default(),
    };
    assert_eq!(options(all).expect("sound"), expected);
    let raw =
        parse(json!({"prompt": "x", "logprobs": 0, "echo": true, "max_tokens": 0})).expect("sound").options;
    assert_eq!(raw, AnswerOptions { logprobs: Some(0), echo: true, ..AnswerOptions::default() });
}

/// As clients write them that send all they have.
#[test]
fn nulls_and_zeros_ask_for_nothing() {
    for neutral in [
        json!({"n": null, "stop_token_ids": [], "include_stop_str_in_output": false, "skip_special_tokens": true}),
        json!({"logprobs": false, "top_logprobs": 0, "echo": false, "prompt_logprobs": false, "logprob_start_len": -1}),
        json!({"logprobs": 0, "top_logprobs": null, "logit_bias": {}, "bad_words": [], "n": 1}),
        json!({"logprobs": null, "logit_bias": null, "bad_words": null, "echo": null, "prompt_logprobs": null}),
        json!({"presence_context_size": 20, "presence_penalty": 0, "frequency_context_size": 20}),
    ] {
        let request = parse_fields(neutral.clone()).expect("sound");
        assert_eq!(request.options, AnswerOptions::default(), "{neutral}");
    }
    let raw = parse(json!({"prompt": "x", "logprobs": false, "top_logprobs": 0})).expect("sound");
    assert_eq!(raw.options, AnswerOptions::default());
}

/// A value out of range is an error that names the parameter and the range.
#[test]
fn what_is_out_of_range_is_refused_with_the_range() {
    for (name, value, code, param, range) in [
        ("n", json!(0), "invalid_value", "n", "from 1 to 128"),
        ("n", json!(129), "invalid_value", "n", "from 1 to 128"),
        ("n", json!("2"), "invalid_type", "n", "a whole number"),
        ("stop_token_ids", json!(5), "invalid_type", "stop_token_ids", "a list of token ids"),
        ("stop_token_ids", json!([-5]), "invalid_value", "stop_token_ids[0]", "from 0 to"),
        ("skip_special_tokens", json!(1), "invalid_type", "skip_special_tokens", "true or false"),
        ("ignore_eos", json!("no"), "invalid_type", "ignore_eos", "true or false"),
        ("min_tokens", json!(-1), "invalid_value", "min_tokens", "from 0 to"),
        ("repetition_penalty", json!(0), "invalid_value", "repetition_penalty", "from 0.01 to 100"),
        ("repetition_context_size", json!(0), "invalid_value", "repetition_context_size", "from 1 to"),
        ("presence_penalty", json!(2.5), "invalid_value", "presence_penalty", "from -2 to 2"),
        ("frequency_penalty", json!(-3), "invalid_value", "frequency_penalty", "from -2 to 2"),
        ("logit_bias", json!({"5": 101}), "invalid_value", "logit_bias.5", "from -100 to 100"),
        ("logit_bias", json!({"x": 1}), "invalid_value", "logit_bias.x", "token id"),
        ("logit_bias", json!({"5": "1"}), "invalid_type", "logit_bias.5", "a number"),
        ("bad_words", json!(["a", " "]), "invalid_value", "bad_words[1]", "empty"),
        ("bad_words", json!("a"), "invalid_type", "bad_words", "a list of strings"),
        ("logprobs", json!(5), "invalid_type", "logprobs", "true or false"),
        ("top_logprobs", json!(3), "invalid_value", "top_logprobs", "`logprobs` is true"),
        ("top_logprobs", json!(21), "invalid_value", "top_logprobs", "from 0 to 20"),
        ("prompt_logprobs", json!(-1), "invalid_value", "prompt_logprobs", "from 0 to 20"),
        ("logprob_start_len", json!(-2), "invalid_value", "logprob_start_len", "from -1 to"),
        ("max_tokens", json!(0), "invalid_value", "max_tokens", "1 or more"),
        ("echo", json!(true), "unsupported_value", "echo", "only a text"),
        ("chat_template", json!(5), "invalid_type", "chat_template", "a string"),
        ("enable_thinking", json!("no"), "invalid_type", "enable_thinking", "true or false"),
    ] {
        let failed = parse_fields(json!({name: value})).expect_err("must be refused");
        assert!(failed.error.message().contains(range), "{}", failed.error.message());
        assert_eq!(refused::<()>(Err(failed)), (code, param.to_owned()), "{name}: {value}");
    }
    let raw = |fields: Value| {
        let mut line = json!({"prompt": "x"});
        line.as_object_mut().expect("built as one").extend(fields.as_object().expect("an object").clone());
        refused(parse(line))
    };
    assert_eq!(raw(json!({"logprobs": 21})), ("invalid_value", "logprobs".into()));
    assert_eq!(raw(json!({"logprobs": true})), ("invalid_type", "logprobs".into()));
    assert_eq!(raw(json!({"top_logprobs": 2})), ("unsupported_value", "top_logprobs".into()));
    assert_eq!(raw(json!({"min_tokens": 9, "max_tokens": 8})), ("invalid_value", "min_tokens".into()));
    let windowed = json!({"presence_penalty": 1, "presence_context_size": 20});
    assert_eq!(raw(windowed), ("unsupported_value", "presence_context_size".into()));
}

/// The table of man mlxbatch-input(5) is that of the fields that are read.
#[test]
fn every_field_of_the_table_is_read() {
    for field in SERVED.iter().flat_map(|group| group.fields) {
        let mut lines = Lines::new();
        // No field takes this; metadata alone takes anything.
        let mut odd = match field.name {
            "question_id" => json!({"turns": ["Hi"]}),
            _ => json!({"messages": [{"role": "user", "content": "Hi"}]}),
        };
        odd[field.name] = json!([[{}], -3.5]);
        let outcome = lines.parse(odd.to_string());
        if field.name == "metadata" {
            assert!(outcome.expect("it is passed through").head.metadata.is_some());
            continue;
        }
        let param = refused(outcome).1;
        assert!(param.starts_with(field.name), "{}: {param}", field.name);
    }
}

#[test]
fn a_conversation_says_how_its_template_is_to_end_the_prompt() {
    let chat = |fields: Value| parse_fields(fields).map(chat_of);
    let ending = |fields: Value| chat(fields).expect("sound").ending;
    assert_eq!(ending(json!({"add_generation_prompt": true})), PromptEnding::NewTurn);
    assert_eq!(ending(json!({"add_generation_prompt": false})), PromptEnding::LastMessage);
    let continued = json!({"add_generation_prompt": false, "continue_final_message": true});
    assert_eq!(ending(continued), PromptEnding::WithinLastMessage);
    assert_eq!(ending(json!({"continue_final_message": true})), PromptEnding::WithinLastMessage);
    let both = json!({"add_generation_prompt": true, "continue_final_message": true});
    assert_eq!(refused(chat(both)), ("invalid_value", "continue_final_message".into()));
    let empty = json!({"messages": [{"role": "user", "content": " "}], "continue_final_message": true});
    assert_eq!(refused(parse(empty)).1, "continue_final_message");

    let own = chat(json!({"chat_template": "{{ messages }}", "enable_thinking": false})).expect("sound");
    assert_eq!(own.template.as_deref(), Some("{{ messages }}"));
    assert_eq!(Value::Object(own.template_kwargs), json!({"enable_thinking": false}));
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let kwargs = |fields: Value| Value::Object(chat(fields).expect("sound").template_kwargs);
    assert_eq!(
        kwargs(json!({"tools": tools, "parallel_tool_calls": false})),
        json!({"parallel_tool_calls": false})
    );
    assert_eq!(kwargs(json!({"parallel_tool_calls": false})), json!({}));
    assert_eq!(kwargs(json!({"tools": tools, "parallel_tool_calls": true})), json!({}));
    let inner = json!({"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(kwargs(inner), json!({"enable_thinking": false}), "what is nearer to the template wins");
}

#[test]
fn what_would_change_the_answer_is_refused() {
    for (name, value) in [
        ("best_of", json!(2)),
        ("stream", json!(true)),
        ("allowed_token_ids", json!([3])),
        ("format", json!("json")),
        ("repeat_penalty", json!(1.1)),
    ] {
        let found = refused(parse_fields(json!({name: value})));
        assert_eq!(found, ("unsupported_value", name.to_owned()), "{name}: {value}");
    }
}

#[test]
fn defaults_written_out_are_no_problem() {
    let mut lines = Lines::new();
    let line = json!({
        "model": "tiny", "messages": [{"role": "user", "content": "Hi"}],
        "n": 1, "stream": false, "logprobs": false, "response_format": {"type": "text"}, "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "tool_choice": "auto", "user": "u", "functions": null,
    });
    lines.parse(line.to_string()).expect("nothing of it changes the answer");
    assert_eq!(lines.parser.warnings.texts(), [""; 0]);
}

#[test]
fn another_adapter_than_the_runs_is_refused_and_its_own_is_not_worth_a_word() {
    let with_adapter = |adapter: Option<&str>| {
        let mut lines = Lines::new();
        lines.parser.served_adapter = adapter.map(str::to_owned);
        lines
    };
    let line =
        |model: Value, adapter: Value| json!({"prompt": "x", "model": model, "adapter": adapter}).to_string();
    let mut lines = with_adapter(Some("sea"));
    for (model, adapter) in [
        (json!("tiny:sea"), json!(null)),
        (json!("tiny"), json!("sea")),
        (json!(null), json!("sea")),
        (json!("tiny:sea"), json!("sea")),
        (json!(null), json!("")),
    ] {
        lines.parse(line(model, adapter)).expect("it is the run's");
    }
    assert_eq!(lines.parser.warnings.texts(), [""; 0]);
    lines.parse(line(json!("tiny"), json!(null))).expect("answered all the same");
    let texts = lines.parser.warnings.texts();
    assert!(texts[0].contains("is answered by tiny:sea"), "{texts:?}");

    for (ours, model, adapter, field) in [
        (Some("sea"), json!("tiny:land"), json!(null), "model"),
        (Some("sea"), json!("tiny"), json!("land"), "adapter"),
        (Some("sea"), json!("tiny:sea"), json!("land"), "adapter"),
        (None, json!("tiny:sea"), json!(null), "model"),
        (None, json!(null), json!("sea"), "adapter"),
    ] {
        let found = refused(with_adapter(ours).parse(line(model, adapter)));
        assert_eq!((found.0, found.1.as_str()), ("invalid_value", field), "{ours:?}");
    }
}

#[test]
fn an_unknown_field_is_warned_of_once() {
    let mut lines = Lines::new();
    for _ in 0..3 {
        lines.parse(json!({"prompt": "x", "mood": "low", "model": "huge"}).to_string()).expect("sound");
    }
    let batch = json!({"url": "/v1/completions", "colour": 1, "body": {"prompt": "x"}});
    lines.parse(batch.to_string()).expect("sound");
    assert_eq!(
        lines.parser.warnings.texts(),
        [
            "in.jsonl:1: asks for the model \"huge\"; every request of a run is answered by tiny; 3 times in all",
            "in.jsonl:1: the field \"mood\" is not used by mlxbatch and is ignored; 3 times in all",
            "in.jsonl:4: the field \"colour\" is not used by mlxbatch and is ignored",
        ]
    );
}

#[test]
fn lines_that_are_no_request() {
    let (code, message) = not_a_request(r#"{"prompt": oops}"#);
    assert_eq!(
        (code, message.as_str()),
        ("invalid_json", "in.jsonl:1: not valid JSON: expected value at column 12")
    );
    assert!(not_a_request("[").1.contains("JSON Lines"));
    assert_eq!(not_a_request("[1]").0, "not_an_object");
    assert_eq!(not_a_request(r#"{"prompt": "x"} {}"#).0, "invalid_json");
    assert_eq!(not_a_request("[".repeat(100_000)).0, "invalid_json");
    let (code, message) = not_a_request(b"{\"prompt\": \"\xff\"}");
    assert_eq!((code, message.as_str()), ("invalid_utf8", "in.jsonl:1: not valid UTF-8 at byte 13"));
    assert!(not_a_request(b"\xff\xfe{\0").1.contains("UTF-16"));
}

proptest! {
    /// Whatever a line holds, it is a request or an error, never a panic.
    #[test]
    fn any_json_is_taken(
        name in "messages|prompt|body|url|method|id|stop|tools|max_tokens|seed|top_p|tool_choice|metadata|model",
        inner in "role|content|tool_calls|type|text|function|arguments",
        value in prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(1e308)), Just(json!("user")), Just(json!([[]])),
            Just(json!({})), Just(json!([{"role": "user"}])), Just(json!(u64::MAX)),
        ],
    ) {
        let _ = parse(json!({"prompt": "x", &name: value}));
        let _ = parse(json!({&name: {&inner: value}}));
        let _ = parse(json!({"messages": [{"role": "assistant", &inner: value}]}));
        let _ = parse(json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{&inner: value}]}]}));
        let _ = parse_fields(json!({&name: value}));
    }

    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = Lines::new().parse(bytes);
    }
}
