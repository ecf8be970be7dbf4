//! Tests of single settings, and that none is passed over.

use serde_json::{Value, json};

use super::{cases_dir, chat, read};
use crate::models::known_keys::Effect;
use crate::text::testing::{byte_level_json, folder};
use crate::text::tokenizer_config::keys;
use crate::text::{TextError, TextModel};

/// A change of a tokenizer.json.
type Change = fn(&mut Value);

const UNCHANGED: Change = |_| {};

/// TinyLlama's files, to be changed.
fn tiny_llama() -> Value {
    let all: Value = serde_json::from_str(&read(&cases_dir().join("cases.json"))).expect("JSON");
    let mut case = all["cases"][0].clone();
    config(&mut case)["chat_template"] = "{{ bos_token }}{{ eos_token }}{{ image_token }}\
        {% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
        .into();
    case
}

fn config(case: &mut Value) -> &mut Value {
    &mut case["files"]["tokenizer_config.json"]
}

/// Loads a case's folder with another tokenizer.json.
fn load(case: &Value, change: Change) -> Result<TextModel, TextError> {
    let path = cases_dir().join(format!("{}.json", case["vocabulary"].as_str().expect("a text")));
    let mut tokenizer: Value = serde_json::from_str(&read(&path)).expect("JSON");
    change(&mut tokenizer);
    let mut files = vec![("tokenizer.json", tokenizer.to_string())];
    let beside = case["files"].as_object().expect("an object");
    files.extend(beside.iter().map(|(name, content)| (name.as_str(), content.to_string())));
    TextModel::from_folder(folder(&files).path())
}

fn loaded(case: &Value) -> TextModel {
    load(case, UNCHANGED).expect("loads")
}

fn prompt(model: &TextModel, text: &str) -> Vec<u32> {
    model.encode_prompt(text, true).expect("encodes")
}

/// All that a setting could change: ids of prompts and of a chat, and what is said.
type Outcome = Result<(Vec<Vec<u32>>, Vec<String>), String>;

fn outcome(case: &Value, change: Change) -> Outcome {
    let model = load(case, change).map_err(|error| error.to_string())?;
    let mut ids = ["Hello", " Hello", "<s>Hello</s> Hello\n"].map(|text| prompt(&model, text)).to_vec();
    ids.push(chat(&model, &json!([{"role": "user", "content": "Hello </s> x"}]), false).expect("encodes"));
    // Each case has its own folder.
    let warnings = model.warnings().iter();
    let warnings = warnings.map(|text| text.split_once("tokenizer_config.json").map_or("", |(_, what)| what));
    Ok((ids, warnings.map(str::to_owned).collect()))
}

/// An unusual value for each key that is read; one key has none with BPE.
const EXAMPLES: &[(&str, &str, Change)] = &[
    ("add_bos_token", "false", UNCHANGED),
    ("add_eos_token", "true", UNCHANGED),
    ("add_prefix_space", "false", UNCHANGED),
    ("added_tokens_decoder", r#"{"2": {"content": "</s>", "special": true, "rstrip": true}}"#, UNCHANGED),
    ("additional_special_tokens", r#"["Hello"]"#, UNCHANGED),
    ("chat_template", r#""{{ eos_token }}""#, UNCHANGED),
    ("clean_up_tokenization_spaces", "true", |tokenizer| {
        let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2});
        tokenizer["model"] = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"});
    }),
    ("extra_special_tokens", r#"{"image_token": "Hello"}"#, UNCHANGED),
    ("fix_mistral_regex", "true", UNCHANGED),
    ("legacy", "true", UNCHANGED),
    ("model_specific_special_tokens", r#"{"image_token": "Hello"}"#, UNCHANGED),
    ("split_special_tokens", "true", UNCHANGED),
    ("tokenizer_class", r#""PreTrainedTokenizerFast""#, UNCHANGED),
    ("bos_token", r#""</s>""#, UNCHANGED),
    ("image_token", r#""Hello""#, UNCHANGED),
];

/// Of the keys that are read only chat_template and the tokens' names were.
#[test]
fn no_key_of_tokenizer_config_is_passed_over() {
    let with = |key: &str, value: Value, change: Change| {
        let mut case = tiny_llama();
        config(&mut case)[key] = value;
        outcome(&case, change)
    };
    for key in keys::READ {
        assert!(EXAMPLES.iter().any(|(example, ..)| example == key), "{key} has no example");
    }
    for (key, value, change) in EXAMPLES {
        let usual = outcome(&tiny_llama(), *change).expect("loads");
        assert_eq!(usual.1, Vec::<String>::new(), "nothing is said of the usual file");
        let value = serde_json::from_str(value).expect("JSON");
        assert_ne!(with(key, value, *change), Ok(usual), "{key}");
    }
    let usual = outcome(&tiny_llama(), UNCHANGED).expect("loads");
    for rule in keys::RULES {
        match (rule.effect, with(rule.key, json!("another value"), UNCHANGED)) {
            (Effect::Nothing(_), found) => assert_eq!(found, Ok(usual.clone()), "{}", rule.key),
            (Effect::WarningUnless(..), Ok((ids, warnings))) => {
                assert_eq!(ids, usual.0);
                assert!(matches!(&warnings[..], [warning] if warning.contains(rule.key)), "{warnings:?}");
            }
            (Effect::ErrorUnless(..), Err(error)) => assert!(error.contains(rule.key), "{error}"),
            (_, found) => panic!("{}: {found:?}", rule.key),
        }
    }
    let (ids, warnings) = with("a_key_of_tomorrow", json!(1), UNCHANGED).expect("loads");
    assert!(
        ids == usual.0 && warnings.len() == 1 && warnings[0].contains("a_key_of_tomorrow"),
        "{warnings:?}"
    );
}

/// Transformers 5 passes over both; the classes know them in 4, and DeepSeek V3 has its BOS in no other
/// place.
#[test]
fn bos_and_eos_are_put_where_a_class_that_knows_them_is_told_to() {
    let with = |class: &str, settings: Value, change: Change| {
        let mut case = tiny_llama();
        let settings = settings.as_object().expect("an object").clone();
        config(&mut case).as_object_mut().expect("an object").extend(settings);
        config(&mut case)["tokenizer_class"] = class.into();
        let model = load(&case, change).expect("loads");
        (prompt(&model, "Hello"), model.warnings().join("\n"))
    };
    let no_template: Change = |tokenizer| tokenizer["post_processor"] = Value::Null;
    let hello = prompt(&loaded(&tiny_llama()), "Hello")[1];
    let no_bos = json!({"add_bos_token": false});
    assert_eq!(with("LlamaTokenizer", no_bos.clone(), UNCHANGED), (vec![hello], String::new()));
    assert_eq!(with("LlamaTokenizerFast", json!({"add_bos_token": true}), no_template).0, [1, hello]);
    let (ids, warnings) = with("LlamaTokenizer", json!({"add_eos_token": true}), UNCHANGED);
    assert!(ids == [1, hello, 2] && warnings.contains("raw prompts end"), "{ids:?} {warnings}");
    // A class that does not know them loads tokenizer.json as it is.
    let (ids, warnings) = with("PreTrainedTokenizerFast", no_bos, UNCHANGED);
    assert!(ids == [1, hello] && warnings.contains("add_bos_token is false"), "{ids:?} {warnings}");
    let none = json!({"bos_token": "<none>", "add_bos_token": true});
    let (ids, warnings) = with("LlamaTokenizer", none, no_template);
    assert!(ids == [hello] && warnings.contains("no such token"), "{ids:?} {warnings}");
}

/// Looking at what a tokenizer puts around a text runs its steps, which panic where they are damaged.
#[test]
fn a_damaged_step_is_an_error_and_no_panic() {
    let damaged: Change = |tokenizer| {
        tokenizer["post_processor"] = json!({"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}], "special_tokens": {}});
    };
    let mut case = tiny_llama();
    config(&mut case)["add_bos_token"] = true.into();
    let error = load(&case, damaged).expect_err("no such token").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("gave up"), "{error}");
}

/// "<s>Hello" had two, which no model has seen.
#[test]
fn a_prompt_that_begins_with_bos_gets_no_second_one() {
    let model = loaded(&tiny_llama());
    let hello = prompt(&model, "Hello");
    assert_eq!(hello[0], 1);
    assert_eq!(prompt(&model, "<s> Hello"), hello);
    assert_eq!(prompt(&model, "<s>"), [1]);
    assert_eq!(prompt(&model, "<s><s> Hello"), [&[1], &hello[..]].concat(), "what is written twice is meant");
    assert_eq!(prompt(&model, " <s>")[0], 1);
    assert_eq!(model.encode_prompt("Hello", false).expect("encodes"), hello[1..]);
    // The template of this model writes it, another does not.
    let messages = json!([{"role": "user", "content": "Hello"}]);
    let [without, with] = [false, true].map(|add| chat(&model, &messages, add).expect("encodes"));
    assert_eq!(without[..2], [1, 2]);
    assert_eq!(with, without);
    let mut case = tiny_llama();
    config(&mut case)["chat_template"] = "{{ messages[0].content }}".into();
    let model = loaded(&case);
    let [without, with] = [false, true].map(|add| chat(&model, &messages, add).expect("encodes"));
    assert_eq!((without, with), (hello[1..].to_vec(), hello));
    // Where special tokens are split, the text of one is text.
    let mut case = tiny_llama();
    config(&mut case)["split_special_tokens"] = true.into();
    let split = prompt(&loaded(&case), "<s>");
    assert!(split[0] == 1 && split.len() > 2, "{split:?}");
}

/// Yi names LlamaTokenizer too, and puts no space anywhere.
#[test]
fn a_tokenizer_without_a_prefix_gets_none_unless_it_is_asked_for() {
    let no_prefix: Change = |tokenizer| {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        tokenizer["normalizer"] = replace;
    };
    let bare =
        |case: &Value| load(case, no_prefix).expect("loads").encode_prompt("Hello", false).expect("encodes");
    let mut case = tiny_llama();
    let with_prefix = &prompt(&loaded(&case), "Hello")[1..];
    assert_ne!(bare(&case), with_prefix);
    config(&mut case)["add_prefix_space"] = true.into();
    assert_eq!(bare(&case), with_prefix);
}

#[test]
fn steps_that_have_nothing_to_do_with_the_prefix_stay() {
    let nfc: Change = |tokenizer| {
        let steps = tokenizer["normalizer"]["normalizers"].as_array_mut().expect("a list");
        steps.insert(0, json!({"type": "NFC"}));
    };
    let (composing, plain) = (load(&tiny_llama(), nfc).expect("loads"), loaded(&tiny_llama()));
    for (text, composed) in [("cafe\u{301}", "caf\u{e9}"), (" Hello", " Hello")] {
        assert_eq!(prompt(&composing, text), prompt(&plain, composed));
    }
    assert_ne!(prompt(&plain, "cafe\u{301}"), prompt(&plain, "caf\u{e9}"));
}

/// A token that was added for training gets the first id behind the vocabulary, where there are no
/// weights: a prompt with its text would be an error, or worse.
#[test]
fn tokens_without_weights_are_text_and_named() {
    let mut case = tiny_llama();
    let plain = loaded(&case);
    let size = plain.num_vocab();
    config(&mut case)["pad_token"] = "[PAD]".into();
    let model = loaded(&case);
    assert_eq!(prompt(&model, "x [PAD]"), prompt(&plain, "x [PAD]"));
    assert_eq!(model.warnings(), Vec::<String>::new(), "padding is never written");
    config(&mut case)["additional_special_tokens"] = json!(["[CALL]"]);
    let model = loaded(&case);
    assert_eq!(prompt(&model, "x [CALL]"), prompt(&plain, "x [CALL]"));
    let warnings = model.warnings().join("\n");
    assert!(warnings.contains("[CALL] is not in the model's vocabulary"), "{warnings}");
    case["files"]["config.json"]["vocab_size"] = (size + 2).into();
    let model = loaded(&case);
    assert_eq!(prompt(&model, "x[CALL]").last().copied(), u32::try_from(size + 1).ok());
    assert_eq!(model.num_vocab(), size + 2);
}

#[test]
fn the_older_files_count_where_the_newer_form_is_missing() {
    let mut case = tiny_llama();
    let size = case["files"]["config.json"]["vocab_size"].as_u64().expect("a number");
    case["files"]["special_tokens_map.json"] = json!({"eos_token": "<unk>", "bos_token": "<s>"});
    case["files"]["added_tokens.json"] = json!({"<tool>": size, "</s>": 2});
    case["files"]["config.json"]["vocab_size"] = (size + 1).into();
    let messages = json!([{"role": "user", "content": "<tool>"}]);
    let ids = |case: &Value| {
        let model = loaded(case);
        (chat(&model, &messages, false).expect("encodes"), model.warnings().join("\n"))
    };
    let (newer, warnings) = ids(&case);
    assert!(newer[..2] == [1, 2] && newer.len() > 4, "{newer:?}");
    assert!(warnings.contains("special_tokens_map.json: eos_token differs"), "{warnings}");
    config(&mut case).as_object_mut().expect("an object").remove("added_tokens_decoder");
    let tool = u32::try_from(size).expect("small");
    assert_eq!(ids(&case), (vec![1, 0, tool, 0], String::new()));

    // An id that tokenizer.json has for another token cannot be meant.
    case["files"]["added_tokens.json"] = json!({"<tool>": 7});
    assert!(ids(&case).1.contains(&format!("<tool> has id {size}, not 7")), "{:?}", ids(&case));
    for broken in [json!({"x": "y"}), json!([1])] {
        case["files"]["added_tokens.json"] = broken;
        let error = load(&case, UNCHANGED).expect_err("broken").to_string();
        assert!(error.contains("added_tokens.json"), "{error}");
    }
    config(&mut case)["added_tokens_decoder"] = json!({"x": {"content": "y"}});
    let error = load(&case, UNCHANGED).expect_err("broken").to_string();
    assert!(error.contains("added_tokens_decoder[\"x\"]"), "{error}");
}

/// A leftover of training that leaves out merges at random: the same prompt had other tokens each time.
#[test]
fn dropout_of_merges_does_not_act() {
    let mut json = byte_level_json();
    json["model"]["dropout"] = json!(1.0);
    let model = TextModel::from_folder(folder(&[("tokenizer.json", json.to_string())]).path());
    assert_eq!(prompt(&model.expect("loads"), "th"), [256]);
}

/// Mistral's models with large vocabularies were published with Llama's splitting, to which "aB" is
/// one word; their own cuts before the capital.
#[test]
fn mistrals_splitting_is_mended_where_the_settings_ask() {
    let mut json = byte_level_json();
    let regex = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    json["model"]["vocab"]["aB"] = 260.into();
    json["model"]["merges"].as_array_mut().expect("a list").push(json!(["a", "B"]));
    for id in 261..=100_000 {
        json["model"]["vocab"][format!("t{id}")] = id.into();
    }
    let load = |config: Value, version: &str| {
        let model = json!({"model_type": "mistral", "transformers_version": version});
        let files = [
            ("tokenizer.json", json.to_string()),
            ("tokenizer_config.json", config.to_string()),
            ("config.json", model.to_string()),
        ];
        let model = TextModel::from_folder(folder(&files).path()).expect("loads");
        (prompt(&model, "aB"), model.warnings().join("\n"))
    };
    let fix = json!({"fix_mistral_regex": true});
    assert_eq!(load(fix.clone(), "4.51.0"), (vec![97, 66], String::new()));
    let (ids, warnings) = load(json!({}), "4.51.0");
    assert!(ids == [260] && warnings.contains("wrong splitting"), "{ids:?} {warnings}");
    assert_eq!(load(json!({}), "5.1.0"), (vec![260], String::new()));
    let (ids, warnings) = load(fix, "5.1.0");
    assert!(ids == [260] && warnings.contains("changes nothing"), "{ids:?} {warnings}");
}
