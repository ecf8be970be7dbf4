//! Ways of writing thinking and calls: as real templates write them, whole, cut anywhere, and malformed.

use serde_json::{Map, Value, json};

use super::*;
use crate::text::testing::byte_level;
use crate::text::{ChatTemplate, RenderRequest};

fn template(name: &str) -> ChatTemplate {
    let path = format!("{}/fixtures/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let Value::Object(special) = special else { unreachable!() };
    ChatTemplate::from_text(name, &text, special).expect("the fixture compiles")
}

/// Real templates, and the names of what their models write; nothing where they write neither.
const TEMPLATES: [(&str, &str, &str); 24] = [
    ("deepseek_r1_distill_llama", "think", "deepseek_v3"),
    ("deepseek_r1_distill_qwen", "think", "deepseek_v3"),
    ("deepseek_v3", "", "deepseek_v3"),
    ("deepseek_v3_1", "think", "deepseek_v31"),
    ("devstral_small", "", "mistral_args"),
    ("gemma2", "", ""),
    ("gemma3", "", ""),
    ("glm_4_6", "think", "glm"),
    ("gpt_oss", "harmony", "harmony"),
    ("granite_3_3", "granite", "granite"),
    ("granite_4", "", "hermes"),
    ("kimi_k2", "", "kimi_k2"),
    ("lfm2", "", ""),
    ("llama3_1", "", ""),
    ("llama3_2", "", "llama3_json"),
    ("mistral_nemo", "", "mistral"),
    ("mistral_small_3_2", "", "mistral_args"),
    ("phi3_5", "", ""),
    ("qwen2_5", "", "hermes"),
    ("qwen3", "think", "hermes"),
    ("qwen3_5", "think", "qwen3_coder"),
    ("qwen3_coder", "", "qwen3_coder"),
    ("smollm2", "", ""),
    ("smollm3", "think", ""),
];

#[test]
fn a_template_tells_how_answers_are_written() {
    let tokenizer = byte_level();
    let found = TEMPLATES.map(|(name, ..)| {
        let syntax = ReplySyntax::of_template(&template(name), &tokenizer);
        let thinking = syntax.thinking.map_or("", |syntax| syntax.names[0]);
        let calls = syntax.calls.map_or("", |syntax| syntax.names[0]);
        (name, thinking, calls)
    });
    for (found, expected) in found.iter().zip(&TEMPLATES) {
        assert_eq!(found, expected);
    }
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "exact": {"type": "boolean"},
        "where": {"type": "object"}, "names": {"type": "array"}}});
    json!([{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": parameters}},
        {"type": "function", "function": {"name": "now", "description": "d",
            "parameters": {"type": "object", "properties": {}}}}])
}

fn reader(thinking: &str, calls: &str) -> ReplyReader {
    ReplyReader {
        syntax: ReplySyntax { thinking: ThinkingSyntax::named(thinking), calls: CallSyntax::named(calls) },
        tools: Some(Arc::new(tools())),
        ..ReplyReader::default()
    }
}

/// Names and arguments of what is called.
fn calls_of(reply: &Reply) -> Vec<(String, Value)> {
    let arguments = |call: &ToolCall| serde_json::from_str(&call.arguments).expect("arguments are JSON");
    reply.calls.iter().map(|call| (call.name.clone(), arguments(call))).collect()
}

/// What a template writes for an assistant's message, behind the prompt that it answers.
fn written(template: &ChatTemplate, message: Value) -> Option<String> {
    let question = json!({"role": "user", "content": "How is it?"});
    let (extra, tools) = (Map::new(), tools());
    let render = |messages: &[Value], add_generation_prompt: bool| {
        let request = RenderRequest { messages, tools: Some(&tools), add_generation_prompt, extra: &extra };
        template.render(&request).ok()
    };
    let prompt = render(std::slice::from_ref(&question), true)?;
    let whole = render(&[question, message], false)?;
    let length = prompt.bytes().zip(whole.bytes()).take_while(|(a, b)| a == b).count();
    whole.get(length..).map(str::to_owned)
}

/// Ends of turns, which no answer has.
fn without_end(text: &str) -> &str {
    let ends = ["<|im_end|>", "</s>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|call|>", "<|end_of_text|>"];
    ends.iter().fold(text.trim_end(), |text, end| text.trim_end_matches(end).trim_end())
}

fn message(calls: &[(&str, Value)]) -> Value {
    let calls: Vec<Value> = calls
        .iter()
        .enumerate()
        .map(|(place, (name, arguments))| {
            json!({"id": format!("call0000{place}"), "type": "function",
                "function": {"name": name, "arguments": arguments}})
        })
        .collect();
    json!({"role": "assistant", "tool_calls": calls})
}

/// Calls whose arguments have each kind of value, and texts that look like marks.
fn told_calls() -> Vec<(&'static str, Value)> {
    let odd = "Zürich \"the\" <b> {x: [1]}\n🦀 it's, a = b";
    vec![
        (
            "get_weather",
            json!({"city": odd, "days": 3, "exact": true, "where": {"lat": -1.5, "tags": ["a", null]},
            "names": ["x", "y, z"]}),
        ),
        ("now", json!({})),
    ]
}

#[test]
fn what_templates_write_is_read_back() {
    let mut num_read = 0;
    for (name, _, calls) in TEMPLATES.iter().filter(|(.., calls)| !calls.is_empty()) {
        let template = template(name);
        let told = told_calls();
        for told in [&told[..], &told[..1], &told[1..]] {
            let Some(text) = written(&template, message(told)) else { continue };
            // Some templates show one call and drop the others; where they show a call they show it whole.
            let text = without_end(&text);
            if !told.iter().any(|(name, _)| text.contains(name)) {
                continue;
            }
            let reply = reader("", calls).read(text, Occasion::default(), &[]);
            let found = calls_of(&reply);
            let expected: Vec<(String, Value)> =
                told.iter().map(|(name, arguments)| ((*name).to_owned(), arguments.clone())).collect();
            assert!(!found.is_empty() && expected.starts_with(&found), "{name}: {text:?}\n{reply:?}");
            num_read += found.len();
        }
    }
    assert!(num_read > 40, "{num_read}");
}

/// An answer may end anywhere: what is whole is read, the rest is text, and nothing is read that was not meant.
#[test]
fn what_is_cut_off_is_no_call() {
    for (name, thinking, calls) in TEMPLATES.iter().filter(|(.., calls)| !calls.is_empty()) {
        let Some(text) = written(&template(name), message(&told_calls()[..1])) else { continue };
        let text = without_end(&text);
        let reader = reader(thinking, calls);
        let whole = reader.read(text, Occasion::default(), &[]);
        let mut was_whole = false;
        for (cut, _) in text.char_indices().skip(1) {
            let reply = reader.read(&text[..cut], Occasion::default(), &[]);
            if reply.calls.is_empty() {
                assert!(!was_whole, "{name}: lost again at {cut}");
                continue;
            }
            was_whole = true;
            assert_eq!(calls_of(&reply), calls_of(&whole), "{name}: {:?}", &text[..cut]);
        }
    }
}

/// What models write whose templates are no fixtures here, and what is called by it.
#[test]
fn ways_of_writing_calls() {
    let weather = |city: &str, days: i64| ("get_weather".to_owned(), json!({"city": city, "days": days}));
    let now = || ("now".to_owned(), json!({}));
    for (syntax, text, said, expected) in [
        (
            "hermes",
            "I look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
            Some("I look."),
            vec![weather("Bern", 2), now()],
        ),
        (
            "hermes",
            "<tool_call>{\"name\": \"now\", \"arguments\": \"{}\"}</tool_call> Done.",
            Some("Done."),
            vec![now()],
        ),
        ("hermes", "{\"name\": \"now\", \"arguments\": {}}", None, vec![now()]),
        (
            "hermes",
            "```json\n{\n  \"name\": \"get_weather\",\n  \"arguments\": {\"city\": \"Bern\", \"days\": 2}\n}\n```",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "qwen3_coder",
            "<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "seed_oss",
            "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Bern</parameter>\n<parameter=days>2</parameter>\n</function>\n</seed:tool_call>",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "minimax_m2",
            "Well.\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Bern</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
            Some("Well."),
            vec![weather("Bern", 2), now()],
        ),
        (
            "deepseek_v32",
            "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Bern</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "gemma4",
            "<|tool_call>call:get_weather{city:<|\"|>Bern<|\"|>,days:2}<tool_call|>",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "functiongemma",
            "<start_function_call>call:get_weather{city:<escape>Bern<escape>,days:2}<end_function_call>",
            None,
            vec![weather("Bern", 2)],
        ),
        (
            "lfm2",
            "<|tool_call_start|>[get_weather(city='Bern', days=2), now()]<|tool_call_end|>Checking.",
            Some("Checking."),
            vec![weather("Bern", 2), now()],
        ),
        (
            "olmo3",
            "<function_calls>\nget_weather(city=\"Bern\", days=2)\nnow()\n</function_calls>",
            None,
            vec![weather("Bern", 2), now()],
        ),
        ("pythonic", "[get_weather(city=\"Bern\", days=2), now()]", None, vec![weather("Bern", 2), now()]),
        (
            "llama3_json",
            "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Bern\", \"days\": 2}}; {\"name\": \"now\", \"parameters\": {}}",
            None,
            vec![weather("Bern", 2), now()],
        ),
        (
            "mistral",
            "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}, {\"name\": \"now\", \"arguments\": {}}]",
            None,
            vec![weather("Bern", 2), now()],
        ),
        (
            "mistral_args",
            "Sure.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\", \"days\": 2}[TOOL_CALLS]now{}",
            Some("Sure."),
            vec![weather("Bern", 2), now()],
        ),
        (
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            None,
            vec![now()],
        ),
        ("granite", "<|tool_call|>[{\"name\": \"now\", \"arguments\": {}}]", None, vec![now()]),
        ("nemotron", "<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}]</TOOLCALL>", None, vec![now()]),
        (
            "cohere",
            "<|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"now\", \"parameters\": {}}\n]<|END_ACTION|>",
            None,
            vec![now()],
        ),
        ("phi4_mini", "functools[{\"name\": \"now\", \"arguments\": {}}]", None, vec![now()]),
        (
            "harmony",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Bern\", \"days\": 2}",
            Some("Hm."),
            vec![weather("Bern", 2)],
        ),
    ] {
        let reply = reader("", syntax).read(text, Occasion::default(), &[]);
        assert_eq!((calls_of(&reply), reply.content.as_deref()), (expected, said), "{syntax}");
    }
}

/// Every syntax leaves alone what it cannot read, and what it cannot read is not lost.
#[test]
fn malformed_calls_stay_text() {
    for (syntax, text) in [
        ("hermes", "<tool_call>\n{\"name\": \"now\", \"arguments\": {}\n</tool_call>"),
        ("hermes", "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>"),
        ("hermes", "<tool_call>{\"name\": \"now\", \"arguments\": [1]}</tool_call>"),
        ("hermes", "<tool_call>{\"name\": \"Ann\", \"age\": 5}</tool_call>"),
        ("hermes", "{\"name\": \"say_hello\", \"arguments\": {}}"),
        ("hermes", "```json\n{\"name\": \"now\", \"arguments\": {}}"),
        ("hermes", "Call {\"name\": \"now\", \"arguments\": {}}"),
        ("hermes", "Write <tool_call> and </tool_call>."),
        ("qwen3_coder", "<tool_call>\n<function=now>\n<parameter=a>\n1\n</function>\n</tool_call>"),
        ("glm", "<tool_call>get weather\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>"),
        ("minimax_m2", "<minimax:tool_call>\n<invoke name=\"now\">\n</minimax:tool_call>"),
        ("pythonic", "[1, 2, 3]"),
        ("pythonic", "[now(5)]"),
        ("pythonic", "[now()] is what I call"),
        ("pythonic", "[other_function(a=1)]"),
        ("llama3_json", "{\"name\": \"Ann\", \"parameters\": {}}"),
        ("llama3_json", "{\"name\": \"now\", \"parameters\": {}} would be a call"),
        ("gemma4", "<|tool_call>call:now{a:<|\"|>b}<tool_call|>"),
        ("mistral", "[TOOL_CALLS] nothing"),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_end|>"),
        ("harmony", "<|channel|>commentary to=functions.now<|message|>{\"a\": <|end|>"),
        ("harmony", "<|channel|>commentary to=functions.<|message|>{}"),
    ] {
        let reply = reader("", syntax).read(text, Occasion::default(), &[]);
        let content = reply.content.unwrap_or_default();
        assert!(reply.calls.is_empty(), "{syntax} {text:?}: {:?}", reply.calls);
        match syntax {
            "harmony" => assert_eq!(content, text.trim_end_matches("<|end|>")),
            _ => assert_eq!(content, text, "{syntax}"),
        }
    }
}

/// A malformed call among others costs itself alone.
#[test]
fn calls_beside_a_malformed_one_are_read() {
    let text = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>\n<tool_call>{\"name\": \"no</tool_call>";
    let reply = reader("", "hermes").read(text, Occasion::default(), &[]);
    assert_eq!(calls_of(&reply), [("now".to_owned(), json!({}))]);
    assert_eq!(reply.content.as_deref(), Some("<tool_call>{\"name\": \"no</tool_call>"));
}

#[test]
fn bare_texts_become_what_the_schema_says() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"properties": {
        "text": {"type": "string"}, "number": {"type": "number"}, "flag": {"type": "boolean"},
        "list": {"type": "array"}, "maybe": {"type": ["integer", "null"]}, "any": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "kind": {"enum": ["1", "2"]}, "bare": {}, "names": {"$ref": "#/$defs/E"},
        "place": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/O"}]}, "all": {"allOf": [{"type": "integer"}]}},
        "$defs": {"E": {"enum": ["1", "2"]}, "O": {"type": "object"}}}}}]);
    let value = |argument: &str, text: &str| typed::by_schema(text, Some(&tools), "f", argument);
    for (argument, text, expected) in [
        ("text", "5", json!("5")),
        ("text", "{\"a\": 1}", json!("{\"a\": 1}")),
        ("number", "1.50", json!(1.5)),
        ("number", "many", json!("many")),
        ("flag", "True", json!(true)),
        ("list", "[1, \"a\"]", json!([1, "a"])),
        ("maybe", "null", json!(null)),
        ("maybe", " 7 ", json!(7)),
        ("any", "7", json!(7)),
        ("any", "seven", json!("seven")),
        ("any", "true", json!("true")),
        ("kind", "1", json!("1")),
        ("bare", "1", json!("1")),
        ("names", "1", json!("1")),
        ("place", "{\"k\": 1}", json!({"k": 1})),
        ("all", "5", json!(5)),
        ("unknown", "1", json!("1")),
    ] {
        let found = value(argument, text);
        let same = found == expected || found.as_f64().is_some() && found.as_f64() == expected.as_f64();
        assert!(same, "{argument} {text}: {found}");
    }
}

#[test]
fn literals_of_python_are_values() {
    let call = |arguments: &str| {
        let (calls, length) = literals::python_calls(arguments)?;
        (length == arguments.len()).then(|| serde_json::from_str::<Value>(&calls[0].arguments).expect("JSON"))
    };
    assert_eq!(
        call(r#"f(a='it\'s', b="x\n\u00e9", c=-1.5, d=[True, None, {'k': (1, 2)}], e='''"''',)"#),
        Some(json!({"a": "it's", "b": "x\né", "c": -1.5, "d": [true, null, {"k": [1, 2]}], "e": "\""}))
    );
    for malformed in
        ["f(", "f(a)", "f(a=)", "f(a='x)", "f(a=1 b=2)", "f(a=[1", "(a=1)", "f(a=1e)", "f(a={1: 2})"]
    {
        assert_eq!(call(malformed), None, "{malformed}");
    }
    let deep = format!("f(a={}1{})", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(call(&deep), None);
}

#[test]
fn thinking_is_parted_from_what_is_said() {
    for (syntax, begins, text, thinking, said) in [
        ("think", false, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("think", true, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("think", true, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("think", false, "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("think", false, "<think>\nHm", "Hm", ""),
        ("think", true, "Hm", "Hm", ""),
        ("think", false, "No thinking. </think> is a mark.", "", "No thinking. </think> is a mark."),
        ("think", false, "See <think>Hm</think>.", "", "See <think>Hm</think>."),
        ("think", false, "  two spaces stay ", "", "  two spaces stay "),
        ("mistral", false, "[THINK]Hm.[/THINK]Yes.", "Hm.", "Yes."),
        ("gemma4", false, "<|channel>thought\nHm.\n<channel|>Yes.", "Hm.", "Yes."),
        ("seed_oss", false, "<seed:think>Hm.</seed:think>Yes.", "Hm.", "Yes."),
        ("granite", false, "<think>Hm.</think><response>Yes.</response>", "Hm.", "Yes."),
        ("granite", false, "<think>Hm.</think><response>Ye", "Hm.", "Ye"),
        (
            "cohere",
            false,
            "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Yes.<|END_RESPONSE|>",
            "Hm.",
            "Yes.",
        ),
        (
            "harmony",
            false,
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "Hm.",
            "Yes.",
        ),
        ("harmony", false, "<|channel|>analysis<|message|>Hm", "Hm", ""),
        ("harmony", false, "<|channel|>final<|message|>Yes.", "", "Yes."),
        ("harmony", false, "Yes.", "", "Yes."),
        ("harmony", false, "So <|channel|>final<|message|>yes.", "", "So \nyes."),
        (
            "harmony",
            false,
            "<|channel|>final<|message|>Hi<|end|>The mark <|start|> is used",
            "",
            "Hi\nThe mark <|start|> is used",
        ),
        ("harmony", false, "<|channel|>final<|message|>Hi<|end|><|start|>assistant<|channel|>fin", "", "Hi"),
    ] {
        let reader = ReplyReader { tools: None, ..reader(syntax, "") };
        let occasion = Occasion { begins_thinking: begins, ..Occasion::default() };
        let reply = reader.read(text, occasion, &[]);
        assert_eq!(reply.reasoning.as_deref().unwrap_or_default(), thinking, "{syntax} {text:?}");
        assert_eq!(reply.content.as_deref(), Some(said), "{syntax} {text:?}");
        let left_out = ReplyReader { shown_thinking: ShownThinking::LeftOut, ..reader.clone() };
        assert_eq!(left_out.read(text, occasion, &[]), Reply { reasoning: None, ..reply });
        if syntax != "harmony" {
            let within = ReplyReader { shown_thinking: ShownThinking::Within, ..reader };
            assert_eq!(within.read(text, occasion, &[]).content.as_deref(), Some(text));
        }
    }
}

#[test]
fn a_prompt_may_end_within_thinking() {
    let think = ThinkingSyntax::named("think").expect("it is there");
    use PromptThinking::{Closed, Open, Unsaid};
    let behind = [
        "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n",
    ];
    assert_eq!(behind.map(|prompt| think.behind(prompt)), [Open, Closed, Unsaid]);
    assert_eq!(
        ["<think>\nFirst,", "<think>a</think>So", "So"].map(|text| think.within(text)),
        [Open, Closed, Closed]
    );
    let harmony = ThinkingSyntax::named("harmony").expect("it is there");
    assert_eq!(harmony.behind("<|start|>assistant"), Open);
}

#[test]
fn answers_that_were_held_to_calls_are_calls() {
    let list = ReplyReader { expected_calls: ExpectedCalls::List, ..reader("think", "hermes") };
    let text = "<think>Hm</think>\n[{\"name\": \"now\", \"parameters\": {}}]";
    let reply = list.read(text, Occasion::default(), &[]);
    assert_eq!((calls_of(&reply), &reply.content), (vec![("now".to_owned(), json!({}))], &None));
    assert_eq!(reply.reasoning.as_deref(), Some("Hm"));
    let cut = list.read("[{\"name\": \"now\"", Occasion::default(), &[]);
    assert_eq!((cut.calls.len(), cut.content.as_deref()), (0, Some("[{\"name\": \"now\"")));
    let named = ReplyReader { expected_calls: ExpectedCalls::Of("now".into()), ..reader("", "") };
    assert_eq!(
        calls_of(&named.read("{\"a\": 1}", Occasion::default(), &[])),
        [("now".to_owned(), json!({"a": 1}))]
    );
}

/// An answer that was asked to be JSON is that, whatever it looks like.
#[test]
fn an_answer_that_is_held_to_something_calls_by_marks_alone() {
    let bare = "{\"name\": \"now\", \"arguments\": {}}";
    for syntax in ["hermes", "llama3_json"] {
        let held = ReplyReader { is_held: true, ..reader("", syntax) };
        assert_eq!(held.read(bare, Occasion::default(), &[]).content.as_deref(), Some(bare), "{syntax}");
    }
    let held = ReplyReader { is_held: true, ..reader("", "hermes") };
    let marked = format!("<tool_call>{bare}</tool_call>");
    assert_eq!(held.read(&marked, Occasion::default(), &[]).calls.len(), 1);
}

#[test]
fn ids_follow_from_the_line_and_have_the_form_that_templates_take() {
    let text = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>".repeat(2);
    let ids = |reader: &ReplyReader, choice| {
        let reply = reader.read(&text, Occasion { choice, ..Occasion::default() }, &[]);
        reply.calls.into_iter().map(|call| call.id).collect::<Vec<_>>()
    };
    let hermes = reader("", "hermes");
    let first = ids(&hermes, 0);
    assert_eq!(first, ids(&hermes, 0));
    assert!(first[0] != first[1] && first != ids(&hermes, 1) && first[0].starts_with("call_"));
    let other = ReplyReader { id_seed: [1; 16], ..hermes };
    assert_ne!(first, ids(&other, 0));
    let mistral = reader("", "mistral_args").read("[TOOL_CALLS]now[ARGS]{}", Occasion::default(), &[]);
    assert!(mistral.calls[0].id.len() == 9 && mistral.calls[0].id.chars().all(char::is_alphanumeric));
    let kimi = "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>";
    assert_eq!(reader("", "kimi_k2").read(kimi, Occasion::default(), &[]).calls[0].id, "functions.now:3");
}

#[test]
fn control_tokens_are_taken_out_of_texts() {
    let reply =
        reader("mistral", "").read("[THINK]a<x>[/THINK]b<x>c", Occasion::default(), &["<x>".to_owned()]);
    assert_eq!((reply.reasoning.as_deref(), reply.content.as_deref()), (Some("a"), Some("bc")));
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever a model writes, reading it ends, and what no call took is still there.
        #[test]
        fn any_text_is_read(pieces in prop::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"now\", \"arguments\": {}}"), Just("<function=now>"),
            Just("</function>"), Just("<parameter=a>"), Just("</parameter>"), Just("[TOOL_CALLS]"), Just("now"), Just("{}"),
            Just("[now(a=1)]"), Just("<think>"), Just("</think>"), Just("<|channel|>"), Just("final"), Just("<|message|>"),
            Just("<|end|>"), Just("\n"), Just("🦀"), Just("<arg_key>"), Just("</arg_key>"), Just("call:now{a:<|\"|>"), Just("\\")
        ], 0..12), begins in any::<bool>()) {
            let text = pieces.concat();
            for calls in calls::ALL {
                for thinking in thinking::ALL {
                    let reader = reader(thinking.names[0], calls.names[0]);
                    let occasion = Occasion { begins_thinking: begins, ..Occasion::default() };
                    let reply = reader.read(&text, occasion, &[]);
                    prop_assert!(reply.content.is_some() || !reply.calls.is_empty());
                    prop_assert!(reply.num_thinking_bytes <= text.len());
                    for call in &reply.calls {
                        prop_assert!(serde_json::from_str::<Map<String, Value>>(&call.arguments).is_ok());
                    }
                }
            }
        }
    }
}
