//! Tests against what transformers makes of the same files.

mod settings;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::text::testing::folder;
use crate::text::{ChatOptions, RenderRequest, StreamDecoder, TextError, TextModel};

/// What `scripts/make_tokenizer_fixtures.py` wrote; it says what is in it.
fn cases_dir() -> PathBuf {
    std::env::var_os("MLXBATCH_TOKENIZER_CASES")
        .map_or_else(|| PathBuf::from("fixtures/tokenizers"), PathBuf::from)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Loads a case's folder.
fn model(case: &Value) -> TextModel {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let vocabulary = cases_dir().join(format!("{}.json", text(&case["vocabulary"])));
    let mut files = vec![("tokenizer.json", read(&vocabulary))];
    files.extend(
        case["template"]
            .as_str()
            .map(|template| ("chat_template.jinja", read(&Path::new("fixtures/templates").join(template)))),
    );
    let beside = case["files"].as_object().expect("an object");
    files.extend(beside.iter().map(|(name, content)| (name.as_str(), content.to_string())));
    TextModel::from_folder(folder(&files).path()).unwrap_or_else(|error| panic!("{}: {error}", case["name"]))
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("ids")
}

fn chat(model: &TextModel, messages: &Value, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
    let messages = messages.as_array().expect("messages");
    let extra = Map::from_iter([("date_string".to_owned(), json!("26 Jul 2024"))]);
    let request = RenderRequest { messages, tools: None, add_generation_prompt: true, extra: &extra };
    model
        .encode_chat_with_spans(&request, &ChatOptions { add_special_tokens, ..ChatOptions::default() })
        .map(|prompt| prompt.tokens)
}

/// A three-message chat of TinyLlama's had 40 tokens instead of 37: each text behind a special token
/// got a space in front, as in the old way of transformers that `legacy` in tokenizer_config.json
/// asks for, and the model's does not. Nothing in that file was read.
#[test]
fn ids_and_texts_are_transformers() {
    let all: Value = serde_json::from_str(&read(&cases_dir().join("cases.json"))).expect("JSON");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let (texts, chats) = (list(&all["texts"]), list(&all["chats"]));
    let mut wrong = Vec::new();
    for case in list(&all["cases"]) {
        let model = model(&case);
        let tokenizer = model.tokenizer();
        let mut check = |what: String, found: &dyn std::fmt::Debug, expected: &dyn std::fmt::Debug| {
            let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
            if found != expected {
                wrong.push(format!("{}: {what}:\n   found {found}\nexpected {expected}", case["name"]));
            }
        };
        let mut answers = list(&case["answers"]);
        for (text, expected) in texts.iter().zip(list(&case["texts"])) {
            let text = text.as_str().expect("a text");
            let found = tokenizer.encode(text, false).expect("encodes");
            check(format!("{text:?}"), &found, &ids(&expected["bare"]));
            // Transformers by itself puts a second BOS there; mlx-lm keeps it from that.
            let (prompt, bare) = (ids(&expected["ids"]), ids(&expected["bare"]));
            let has_two_bos = !bare.is_empty() && prompt.first() == bare.first() && prompt[1..] == bare[..];
            let prompt = if has_two_bos { bare } else { prompt };
            let found = model.encode_prompt(text, true).expect("encodes");
            check(format!("prompt {text:?}"), &found, &prompt);
            answers.push(json!({"ids": expected["bare"], "decoded": expected["decoded"]}));
        }
        for (messages, expected) in chats.iter().zip(list(&case["chats"])) {
            let found = chat(&model, messages, false).ok();
            check(messages.to_string(), &found, &expected.is_array().then(|| ids(&expected)));
        }
        for answer in answers {
            let (ids, decoded) = (ids(&answer["ids"]), answer["decoded"].as_str().expect("a text"));
            check(format!("decode {ids:?}"), &tokenizer.decode(&ids).expect("decodes"), &decoded);
            let mut stream = StreamDecoder::new(tokenizer, false);
            let mut text: String = ids.iter().map(|id| stream.push(*id).expect("decodes")).collect();
            text += &stream.finish().expect("decodes");
            check(format!("stream {ids:?}"), &text, &decoded);
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
}

#[test]
fn a_chat_of_three_messages_has_no_space_behind_special_tokens() {
    let all: Value = serde_json::from_str(&read(&cases_dir().join("cases.json"))).expect("JSON");
    let mut case = all["cases"][0].clone();
    let messages = json!([{"role": "system", "content": "Hello"}, {"role": "user", "content": "Hello"},
                          {"role": "assistant", "content": "Hello"}]);
    let num_tokens = |case: &Value| chat(&model(case), &messages, false).expect("encodes").len();
    let num_legacy = {
        let mut case = case.clone();
        case["files"]["tokenizer_config.json"]["legacy"] = true.into();
        num_tokens(&case)
    };
    assert_eq!(num_tokens(&case) + 3, num_legacy, "one for each end of a turn");
    case["files"]["tokenizer_config.json"].as_object_mut().expect("an object").remove("legacy");
    assert_eq!(num_tokens(&case) + 3, num_legacy);
}
