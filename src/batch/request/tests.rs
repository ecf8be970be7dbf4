//! Lines that are requests, requests that are refused, and lines that are none.

use proptest::prelude::*;
use serde_json::json;

use super::*;

struct Lines {
    parser: RequestParser,
    line: u64,
}

impl Lines {
    fn new() -> Self {
        Self { parser: RequestParser::new("in.jsonl".into(), Some("tiny".into())), line: 0 }
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
    match parse(json!({"messages": messages}))?.prompt {
        Prompt::Chat { messages, .. } => Ok(messages),
        Prompt::Text(_) => panic!("messages make a chat"),
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
        "stop": ["\n\n", "END"],
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
        }
    );
    let Prompt::Chat { messages, tools, template_kwargs } = request.prompt else { panic!("a chat") };
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
    assert_eq!(text.prompt, Prompt::Text("Once".into()));
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
    assert_eq!(refused(parse(json!({"prompt": [1, 2]}))), ("unsupported_value", "prompt".into()));
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
    // `line-3` is the id the line before was given.
    assert!(lines.parse(json!({"id": "line-3", "prompt": "x"}).to_string()).is_err());
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
    assert_eq!(messages[2]["content"], "");
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    assert_eq!(messages[2]["tool_calls"][1]["function"]["arguments"], json!({}));
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
    let chat = |fields: Value| match parse_fields(fields).expect("sound").prompt {
        Prompt::Chat { tools, template_kwargs, .. } => (tools, template_kwargs),
        Prompt::Text(_) => panic!("messages make a chat"),
    };
    let (shown, kwargs) = chat(json!({
        "tools": tools, "tool_choice": "auto", "chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "low",
    }));
    assert_eq!(shown, Some(tools.clone()));
    assert_eq!(Value::Object(kwargs), json!({"enable_thinking": false, "reasoning_effort": "low"}));
    assert_eq!(chat(json!({"tools": tools, "tool_choice": "none"})).0, None);
    assert_eq!(chat(json!({"tools": []})).0, None);
    assert_eq!(refused(parse_fields(json!({"tools": ["f"]}))), ("invalid_type", "tools[0]".into()));
}

#[test]
fn parameters_are_checked() {
    for (name, value, code) in [
        ("max_tokens", json!(0), "invalid_value"),
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

#[test]
fn what_would_change_the_answer_is_refused() {
    for (name, value) in [
        ("n", json!(2)),
        ("stream", json!(true)),
        ("logprobs", json!(true)),
        ("top_logprobs", json!(3)),
        ("response_format", json!({"type": "json_object"})),
        ("logit_bias", json!({"50": 1})),
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-0.5)),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function"})),
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
fn an_unknown_field_is_warned_of_once() {
    let mut lines = Lines::new();
    for _ in 0..3 {
        lines.parse(json!({"prompt": "x", "verbosity": "low", "model": "huge"}).to_string()).expect("sound");
    }
    let batch = json!({"url": "/v1/completions", "priority": 1, "body": {"prompt": "x"}});
    lines.parse(batch.to_string()).expect("sound");
    assert_eq!(
        lines.parser.warnings.texts(),
        [
            "in.jsonl:1: asks for the model \"huge\"; every request of a run is answered by tiny; 3 times in all",
            "in.jsonl:1: the field \"verbosity\" is not used by mlxbatch and is ignored; 3 times in all",
            "in.jsonl:4: the field \"priority\" is not used by mlxbatch and is ignored",
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
    assert_eq!(not_a_request(r#"{"prompt": "\ud800"}"#).0, "invalid_json");
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
