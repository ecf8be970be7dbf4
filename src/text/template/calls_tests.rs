//! Tool calls, results and tools in all templates at hand (`fixtures/templates`).

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::*;

/// The templates at hand; further ones where `MLXBATCH_MORE_TEMPLATES` names a folder of them.
fn templates() -> Vec<(String, ChatTemplate)> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates");
    let more = std::env::var_os("MLXBATCH_MORE_TEMPLATES").map(PathBuf::from);
    let mut templates = Vec::new();
    for folder in [Some(fixtures), more].into_iter().flatten() {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("it can be listed").path();
            if path.extension().is_some_and(|extension| extension == "jinja") {
                let source = std::fs::read_to_string(&path).expect("the fixture is there");
                let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
                let special = json!({"bos_token": "<s>", "eos_token": "</s>"});
                let special = special.as_object().expect("it is one").clone();
                let sources = Sources { default: Some(Source::new(&name, &source)), tool_use: None };
                // Some of the further ones need what Jinja here does not have.
                if let Ok(Some(template)) = ChatTemplate::compile(sources, special) {
                    templates.push((name, template));
                }
            }
        }
    }
    templates.sort_by(|a, b| a.0.cmp(&b.0));
    templates
}

fn render(template: &ChatTemplate, messages: &[Value], tools: Option<&Value>) -> Result<Rendered, TextError> {
    let extra = Map::new();
    template.render_whole(&RenderRequest { messages, tools, add_generation_prompt: true, extra: &extra })
}

fn tools() -> Value {
    ["get_weather", "find_flights"]
        .map(|name| {
            json!({"type": "function", "function": {"name": name, "description": "Does it",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "c"}},
                           "required": ["city"]}}})
        })
        .into_iter()
        .collect()
}

fn conversation(content: &Value, name: &str, arguments: &Value, result: &str) -> Vec<Value> {
    vec![
        json!({"role": "user", "content": "Is it warm there?"}),
        json!({"role": "assistant", "content": content, "tool_calls": [
            {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}]}),
        json!({"role": "tool", "tool_call_id": "call00001", "name": name, "content": result}),
    ]
}

/// With a template that asks `content is none`, or one without a place for calls, the prompts of
/// two conversations with different calls were the same token for token.
#[test]
fn a_call_is_in_the_prompt_with_its_arguments_and_result_or_it_is_an_error() {
    let tools = tools();
    let mut shown = Vec::new();
    let mut refused = Vec::new();
    for (name, template) in templates() {
        for content in [json!(null), json!("")] {
            for as_text in [false, true] {
                let arguments = |city: &str| match as_text {
                    false => json!({"city": city, "n": 3}),
                    true => json!(format!("{{\"city\": \"{city}\", \"n\": 3}}")),
                };
                let first = conversation(&content, "get_weather", &arguments("Oslo"), "snow tonight");
                let second = conversation(&content, "find_flights", &arguments("Rome"), "sunny tonight");
                match (render(&template, &first, Some(&tools)), render(&template, &second, Some(&tools))) {
                    (Ok(first), Ok(second)) => {
                        assert_ne!(first.text, second.text, "{name}");
                        // The tool's own description names it too.
                        let count = |text: &str, word: &str| text.matches(word).count();
                        for word in ["get_weather", "Oslo", "snow tonight"] {
                            assert!(
                                count(&first.text, word) > count(&second.text, word),
                                "{name}, {word}:\n{}",
                                first.text
                            );
                        }
                        let call = &first.text[first.text.find("warm there").expect("the question")..];
                        assert!(!call.contains("'city'") && !call.contains("\\\"city"), "{name}:\n{call}");
                        shown.push(name.clone());
                    }
                    (Err(error), Err(_)) => {
                        assert!(error.is_request_fault() || error.to_string().contains("failed"), "{error}");
                        refused.push((name.clone(), error.to_string()));
                    }
                    (first, second) => panic!("{name}: {first:?}, {second:?}"),
                }
            }
        }
    }
    shown.dedup();
    refused.dedup();
    if std::env::var_os("MLXBATCH_MORE_TEMPLATES").is_some() {
        println!("shown: {shown:#?}\nrefused: {refused:#?}");
    }
    let refused: Vec<&str> = refused.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["deepseek_v3", "deepseek_r1_distill_qwen", "qwen3", "llama3_2", "mistral_nemo", "gpt_oss"] {
        assert!(shown.iter().any(|shown| shown == name) && !refused.contains(&name), "{name}");
    }
    for name in ["phi3_5", "smollm2", "smollm3", "granite_3_3", "llama3_1", "gemma3"] {
        assert!(refused.contains(&name) && !shown.iter().any(|shown| shown == name), "{name}");
    }
}

#[test]
fn a_call_that_the_template_has_no_place_for_is_named() {
    let (_, template) = templates().into_iter().find(|(name, _)| name == "phi3_5").expect("a fixture");
    let messages = conversation(&json!(null), "get_weather", &json!({"city": "Oslo"}), "snow");
    let error = render(&template, &messages, None).expect_err("it shows no calls").to_string();
    assert!(
        error.starts_with("messages[1]: the model's chat template does not show the call of \"get_weather\"")
    );
    // A result without a call.
    let error = render(&template, &[messages[0].clone(), messages[2].clone()], None);
    let error = error.expect_err("it shows no results").to_string();
    assert!(error.starts_with("messages[2]: ") || error.starts_with("messages[1]: "), "{error}");
}

/// Beside text, DeepSeek's templates leave the call out, whatever its form; others leave out the text.
#[test]
fn a_call_beside_text_is_shown_or_refused_and_hidden_text_is_told_of() {
    let mut without_text = Vec::new();
    for (name, template) in templates() {
        let messages = conversation(&json!("Let me look."), "get_weather", &json!({"city": "Oslo"}), "snow");
        if let Ok(Rendered { text, notices }) = render(&template, &messages, None) {
            assert!(
                ["get_weather", "Oslo", "snow"].iter().all(|word| text.contains(word)),
                "{name}:\n{text}"
            );
            assert_eq!(text.contains("Let me look."), notices.is_empty(), "{name}: {notices:?}\n{text}");
            if !notices.is_empty() {
                without_text.push(name);
            }
        }
    }
    assert!(without_text.iter().any(|name| name == "mistral_nemo"), "{without_text:?}");
}

#[test]
fn tools_that_the_template_does_not_show_are_told_of() {
    let tools = tools();
    let mut hidden = Vec::new();
    for (name, template) in templates() {
        // The name in a message is not the tool.
        let messages = [json!({"role": "user", "content": "What do get_weather and find_flights do?"})];
        let Ok(rendered) = render(&template, &messages, Some(&tools)) else { continue };
        let shows = rendered.text.matches("get_weather").count() > 1;
        let keys: Vec<&str> = rendered.notices.iter().map(|notice| notice.key.as_str()).collect();
        assert_eq!(keys.is_empty(), shows, "{name}: {keys:?}\n{}", rendered.text);
        if !shows {
            assert!(rendered.notices[0].text.contains("\"get_weather\""), "{:?}", rendered.notices);
            hidden.push(name);
        }
    }
    for name in ["gemma3", "phi3_5", "smollm2"] {
        assert!(hidden.iter().any(|hidden| hidden == name), "{name}: {hidden:?}");
    }
}

#[test]
fn what_a_template_does_not_look_at_is_told_of() {
    let templates = templates();
    let notices = |template: &str, message: Value, extra: Value| {
        let (_, template) = templates.iter().find(|(name, _)| name == template).expect("a fixture");
        let extra = extra.as_object().expect("variables are an object").clone();
        let messages = [message, json!({"role": "user", "content": "B"})];
        let request =
            RenderRequest { messages: &messages, tools: None, add_generation_prompt: true, extra: &extra };
        let rendered = template.render_whole(&request).expect("renders");
        rendered.notices.into_iter().map(|notice| notice.key).collect::<Vec<_>>()
    };
    let plain = json!({"role": "user", "content": "A"});
    assert_eq!(notices("qwen3", plain.clone(), json!({"enable_thinking": true})), [""; 0]);
    assert_eq!(
        notices("llama3_1", plain, json!({"enable_thinking": true})),
        ["template variable enable_thinking"]
    );
    let named = json!({"role": "user", "content": "A", "name": "Ann", "mood": 1});
    assert_eq!(notices("qwen3", named, json!({})), ["message field name", "message field mood"]);
    let thought = json!({"role": "assistant", "content": "A", "reasoning_content": "hm"});
    assert_eq!(notices("qwen2_5", thought, json!({})), ["message field reasoning_content"]);
}
