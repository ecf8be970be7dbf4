//! Tests of chat templates: likeness to Python, failures, limits, sources.

use std::sync::Arc;

use chrono::NaiveDate;
use serde_json::{Map, Value, json};

use super::*;
use crate::models::gguf::testing::GgufFile;

fn program(source: &str) -> Program {
    let now = NaiveDate::from_ymd_opt(2024, 7, 5).and_then(|day| day.and_hms_opt(9, 8, 7));
    let now = now.expect("the day exists");
    Program::with_clock("test", source, Arc::new(move || now)).expect("compiles")
}

fn render(source: &str, variables: Value) -> String {
    program(source).render(variables).expect("renders")
}

/// Pairs of a template and what Jinja2 3.1.6 in transformers' environment makes of it.
#[test]
fn values_look_as_in_python() {
    let variables = json!({"x": {"b": 1, "a": [1.0, 1e16, 1e-5, true, null], "é<": "\"\\\n\u{1}🦀"},
                           "del": "\u{7f}",
                           "f": 1e22, "s": "a-b-c", "items_first": {"items": 5}});
    for (source, expected) in [
        ("{{ x|tojson }}", r#"{"b": 1, "a": [1.0, 1e+16, 1e-05, true, null], "é<": "\"\\\n\u0001🦀"}"#),
        ("{{ x['é<']|tojson(ensure_ascii=True) }}", r#""\"\\\n\u0001\ud83e\udd80""#),
        ("{{ del|tojson }} {{ del|tojson(ensure_ascii=true) }}", "\"\u{7f}\" \"\\u007f\""),
        ("{{ [1, [], {}, {'a': 2}]|tojson(indent=2) }}", "[\n  1,\n  [],\n  {},\n  {\n    \"a\": 2\n  }\n]"),
        ("{{ {'b': 1, 'a': 2}|tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":2,"b":1}"#),
        ("{{ none }} {{ true }} {{ f }} {{ 3.0 }} {{ 7 // 2 }} {{ missing }}", "None True 1e+22 3.0 3 "),
        ("{{ ['a', none, 1.5] }}", "['a', None, 1.5]"),
        ("{{ s.split('-')[1:] }}{{ s[::-1] }}{{ s.removeprefix('a-') }}", "['b', 'c']c-b-ab-c"),
        ("{{ s.partition('-')[2] }} {{ s.rsplit('-', 1) }}", "b-c ['a-b', 'c']"),
        ("{% for k, v in items_first.items() %}{{ k }}={{ v }}{% endfor %}", "items=5"),
        (
            "{{ s is sequence }} {{ x is sequence }} {{ s is iterable }} {{ 5 is iterable }}",
            "True True True False",
        ),
        ("{{ missing is iterable }} {{ x.get('q', 'd') }} {{ 'b' in x }}", "True d True"),
        (
            "{% set ns = namespace(n=0) %}{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "4",
        ),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc"),
        ("{{ strftime_now('%d %b %Y %H:%M') }}", "05 Jul 2024 09:08"),
        ("{% for i in [1] %}{%- generation -%} a {% endgeneration %}{% endfor %}", "a "),
        ("{{ '{% generate %}' }}", "{% generate %}"),
    ] {
        assert_eq!(render(source, variables.clone()), expected, "{source}");
    }
}

#[test]
fn failures_say_where_and_why() {
    let fails = |source: &str| program(source).render(json!({})).expect_err("it must fail");
    let raised = fails("\n{% for i in [1] %}{{ raise_exception('no ' ~ 'system role') }}{% endfor %}");
    assert!(matches!(&raised, TextError::TemplateRaised(message) if message == "no system role"), "{raised}");
    assert!(raised.is_request_fault());
    let raised = fails("{% macro m() %}{{ raise_exception('inner') }}{% endmacro %}{{ m() }}");
    assert!(matches!(&raised, TextError::TemplateRaised(message) if message == "inner"), "{raised}");

    let failed = fails("a\n{{ missing.attribute }}");
    assert!(matches!(failed, TextError::TemplateFailed { line: 2, .. }), "{failed}");
    let failed = fails("{{ strftime_now('%Q') }}").to_string();
    assert!(failed.contains("%Q"), "{failed}");
    assert!(fails("{{ missing|tojson }}").to_string().contains("JSON"));
    assert!(fails("{{ 'a' + missing }}").to_string().contains("line 1"));

    let error = Program::compile("m/chat_template.jinja", "a\n\n{% if %}").expect_err("no condition");
    assert!(matches!(&error, TextError::TemplateSyntax { line: 3, .. }), "{error}");
    assert!(error.to_string().starts_with("m/chat_template.jinja: "), "{error}");
}

/// A template comes with a model from the internet: whatever it does, a render ends soon, in
/// bounded memory and on the stack there is.
#[test]
fn hostile_templates_are_stopped() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [1]|tojson(indent=1000000000) }}",
        "{{ 'a'.rsplit('') }}",
        "{% include 'chat_template' %}",
        "{% include '/etc/passwd' %}",
    ] {
        let error = program(source).render(json!({})).expect_err(source);
        assert!(matches!(error, TextError::TemplateFailed { .. }), "{source}: {error}");
    }
    let nested =
        "{% set ns = namespace(x=[1]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}done";
    assert_eq!(program(nested).render(json!({})).ok().as_deref().unwrap_or("done"), "done");
}

/// Each ended the process: operators without brackets are as deep as they are long, and were compiled on the
/// main thread's stack.
#[test]
fn expressions_as_deep_as_a_template_may_be_compile() {
    let num_levels = |bytes_per_level: usize| super::jinja::MAX_TEMPLATE_BYTES / bytes_per_level - 20;
    let chain = |operator: &str| format!("{{{{ a{} }}}}", operator.repeat(num_levels(operator.len())));
    for source in [
        format!("{{{{ {}x }}}}", "not ".repeat(num_levels(4))),
        chain("|e"),
        chain("~1"),
        chain(".b"),
        chain("[0]"),
        chain(" or a"),
        chain(" if a"),
        format!("{{{{ {}1 }}}}", "-".repeat(num_levels(1))),
        format!("{{{{ {}1{} }}}}", "[".repeat(1000), "]".repeat(1000)),
    ] {
        // Whether it is a template at all, or takes too long to be one, is not what this is about.
        if let Ok(program) = Program::compile("test", &source) {
            let _ = program.render(json!({"a": "a"}));
        }
    }
    let error = Program::compile("m/t.jinja", &"x".repeat(50 << 20)).expect_err("too large").to_string();
    assert!(error.contains("m/t.jinja") && error.contains("at most 131072"), "{error}");
}

/// What costs no fuel was computed for ever: comparisons of long texts, and indices into them.
#[test]
fn a_render_is_waited_for_so_long_and_not_tried_again() {
    let compares = "{% set a = 'x' * 4000000 %}{% set b = 'x' * 4000000 %}{% for i in range(2000) %}{{ a == b }}{% endfor %}";
    let program = program(compares);
    let variables = Arc::new(json!({}));
    let render = || program.render_with(500_000, &variables, std::time::Duration::from_millis(1));
    let first = render().map(drop).expect_err("too slow").to_string();
    assert!(first.contains("has not ended within"), "{first}");
    let again = program.render(json!({})).expect_err("once is enough").to_string();
    assert!(again.contains("not tried again"), "{again}");
}

/// A long conversation has fuel in proportion, or honest users would run out.
#[test]
fn long_conversations_have_fuel_enough() {
    let turns =
        (0..10_000).map(|i| json!({"role": if i % 2 == 0 { "user" } else { "assistant" }, "content": "Hi."}));
    let long = json!([{"role": "user", "content": "x".repeat(4 << 20)}]);
    for messages in [turns.collect::<Value>(), long] {
        for name in ["qwen3", "llama3_2"] {
            let path = format!("{}/fixtures/templates/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
            let source = std::fs::read_to_string(path).expect("the fixture is there");
            let variables =
                json!({"messages": messages, "tools": null, "add_generation_prompt": true, "bos_token": ""});
            program(&source).render(variables).expect("renders");
        }
    }
}

const PLAIN: &str = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

fn hello(template: &ChatTemplate, tools: Option<&Value>) -> String {
    let messages = [json!({"role": "user", "content": "hi"})];
    let extra = Map::new();
    let request = RenderRequest { messages: &messages, tools, add_generation_prompt: false, extra: &extra };
    template.render(&request).expect("renders")
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside the folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    dir
}

fn from_folder(files: &[(&str, &str)]) -> Result<Option<ChatTemplate>, TextError> {
    ChatTemplate::from_folder(folder(files).path())
}

#[test]
fn the_first_source_wins() {
    let jinja = ("chat_template.jinja", "jinja");
    let config = ("tokenizer_config.json", r#"{"chat_template": "config"}"#);
    let json_file = ("chat_template.json", r#"{"chat_template": "json"}"#);
    let no_template = ("tokenizer_config.json", r#"{"chat_template": null}"#);
    for (files, expected) in [
        (vec![jinja, config, json_file], Some("jinja")),
        (vec![config, json_file], Some("config")),
        (vec![no_template, json_file], Some("json")),
        (vec![no_template], None),
        (vec![], None),
    ] {
        let template = from_folder(&files).expect("well-formed");
        assert_eq!(template.map(|template| hello(&template, None)).as_deref(), expected);
    }
    assert!(matches!(from_folder(&[("tokenizer_config.json", "{")]), Err(TextError::Json { .. })));
    assert!(matches!(from_folder(&[("chat_template.jinja", "{%")]), Err(TextError::TemplateSyntax { .. })));
}

#[test]
fn a_template_for_tools_is_used_with_tools() {
    let named = json!({"chat_template": [{"name": "tool_use", "template": "tools"},
                                         {"name": "default", "template": "default"}]});
    let in_config = from_folder(&[("tokenizer_config.json", &named.to_string())]);
    let in_files = from_folder(&[
        ("chat_template.jinja", "default"),
        ("additional_chat_templates/tool_use.jinja", "tools"),
    ]);
    let file = GgufFile::default()
        .str("tokenizer.chat_template", "default")
        .str("tokenizer.chat_template.tool_use", "tools");
    for template in [in_config, in_files, ChatTemplate::from_gguf(&file.header())] {
        let template = template.expect("well-formed").expect("there");
        assert_eq!(hello(&template, None), "default");
        assert_eq!(hello(&template, Some(&json!([]))), "tools");
    }
}

#[test]
fn special_tokens_come_as_text_objects_or_ids() {
    let object = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "added_tokens_decoder": {}}"#;
    let older = r#"{"bos_token": "other"}"#;
    let string = r#"{"bos_token": "<s>"}"#;
    let null = r#"{"bos_token": null}"#;
    for files in [
        vec![("tokenizer_config.json", object), ("special_tokens_map.json", r#"{"bos_token": "other"}"#)],
        vec![("tokenizer_config.json", older), ("special_tokens_map.json", string)],
        vec![("tokenizer_config.json", null), ("special_tokens_map.json", string)],
    ] {
        let files = [files, vec![("chat_template.jinja", PLAIN)]].concat();
        let template = from_folder(&files).expect("well-formed").expect("there");
        assert_eq!(hello(&template, None), "<s>user:hi;");
    }
    let file = GgufFile::default().str("tokenizer.chat_template", PLAIN);
    let file = file.strings("tokenizer.ggml.tokens", &["a", "<s>"]).u32("tokenizer.ggml.bos_token_id", 1);
    let template = ChatTemplate::from_gguf(&file.header()).expect("well-formed").expect("there");
    assert_eq!(hello(&template, None), "<s>user:hi;");
    assert!(ChatTemplate::from_gguf(&GgufFile::default().header()).expect("well-formed").is_none());
}

#[test]
fn a_requests_own_variables_win_over_special_tokens_only() {
    let template = from_folder(&[("chat_template.jinja", "{{ bos_token }}{{ tools }}{{ mode }}")]);
    let template = template.expect("well-formed").expect("there");
    let extra = json!({"bos_token": "B", "tools": "T", "mode": "M"});
    let messages = [json!({"role": "user", "content": "hi"})];
    let extra = extra.as_object().expect("an object");
    let request = RenderRequest { messages: &messages, tools: None, add_generation_prompt: false, extra };
    assert_eq!(template.render(&request).expect("renders"), "BNoneM");
    let empty = RenderRequest { messages: &[], ..request };
    assert!(matches!(template.render(&empty), Err(TextError::NoMessages)));
}
