//! Real models' templates against what transformers renders with them (`fixtures/templates`).

use std::path::PathBuf;
use std::sync::Arc;

use chrono::NaiveDate;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;

/// One entry of `renders.json`: a template, its input, and what transformers made of it.
#[derive(Deserialize)]
struct Render {
    template: String,
    case: String,
    messages: Vec<Value>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    extra: Map<String, Value>,
    now: Option<String>,
    expected: Value,
}

impl Render {
    fn variant(&self) -> Variant {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates");
        let path = dir.join(format!("{}.jinja", self.template));
        let source = std::fs::read_to_string(&path).expect("the fixture is there");
        let day = self.now.as_ref().map(|day| day.parse::<NaiveDate>().expect("a day"));
        let now = day.unwrap_or_default().and_hms_opt(12, 0, 0).expect("noon exists");
        let program = Program::with_clock(&path.display().to_string(), &source, Arc::new(move || now));
        let program = program.expect("the fixture compiles");
        Variant::of_program(program, &source, &self.extra)
    }

    fn request<'a>(&'a self, messages: &'a [Value]) -> RenderRequest<'a> {
        RenderRequest {
            messages,
            tools: self.tools.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            extra: &self.extra,
        }
    }
}

fn renders() -> Vec<Render> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates/renders.json");
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is well-formed")
}

#[test]
fn real_templates_render_as_with_transformers() {
    let renders = renders();
    let mut wrong = Vec::new();
    for render in &renders {
        let variant = render.variant();
        let name = format!("{} {}", render.template, render.case);
        let request = render.request(&render.messages);
        let mut as_given = render.messages.clone();
        as_given.iter_mut().filter_map(Value::as_object_mut).for_each(messages::normalize);
        let as_given = variant.program.render(variables(&Map::new(), &as_given, &request));
        match (&render.expected, &as_given) {
            (Value::String(expected), Ok(text)) if text == expected => {}
            (Value::Object(_), Err(_)) => {}
            _ => wrong.push(format!("{name}\n  {as_given:?}\n  {}", render.expected)),
        }
        // What we change beforehand must change nothing for content and arguments in the form
        // that templates expect.
        if !matches!(render.case.as_str(), "content_parts" | "tool_calls_text_arguments") {
            let prepared = messages::prepare(&render.messages, variant.content_form, CallForm::default())
                .expect("well-formed");
            let prepared = variant.program.render(variables(&Map::new(), &prepared, &request));
            if prepared.ok() != as_given.ok() {
                wrong.push(format!("{name}: preparing the messages changed the render"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), renders.len(), wrong.join("\n"));
    assert!(renders.len() >= 300);
}

/// The OpenAI form has a call's arguments as JSON text. Templates that write arguments with
/// `tojson` would quote that text a second time.
#[test]
fn arguments_as_text_render_like_objects() {
    let renders = renders();
    let mut num_checked = 0;
    for render in renders.iter().filter(|render| render.case == "tool_calls_text_arguments") {
        let same =
            |other: &&Render| other.template == render.template && other.case == "tool_calls_null_content";
        let as_object = renders.iter().find(same).expect("the fixtures come in pairs");
        let variant = render.variant();
        let prepared = messages::prepare(&render.messages, variant.content_form, CallForm::default())
            .expect("well-formed");
        let text = variant.program.render(variables(&Map::new(), &prepared, &render.request(&[])));
        match as_object.expected.as_str() {
            Some(expected) => assert_eq!(text.expect("renders"), expected, "{}", render.template),
            None => assert!(text.is_err(), "{}", render.template),
        }
        num_checked += 1;
    }
    assert!(num_checked >= 8);
}

/// Where transformers prints a list of text parts as Python would, or fails, the parts' text is
/// rendered instead.
#[test]
fn text_parts_never_show_as_lists() {
    let mut num_checked = 0;
    for render in renders().iter().filter(|render| render.case == "content_parts") {
        let variant = render.variant();
        let prepared = messages::prepare(&render.messages, variant.content_form, CallForm::default())
            .expect("well-formed");
        let text = variant.program.render(variables(&Map::new(), &prepared, &render.request(&[])));
        let text = text.expect("text parts render with every template");
        assert!(text.contains("One &") && text.contains("<two>") && text.contains("Be brief."), "{text}");
        assert!(!text.contains("'text'") && !text.contains("\"text\""), "{}: {text}", render.template);
        if let Some(expected) = render.expected.as_str().filter(|expected| !expected.contains("'text'")) {
            assert_eq!(text, expected, "{}", render.template);
        }
        num_checked += 1;
    }
    assert!(num_checked >= 8);
}
