//! The tokens that end an answer.
//!
//! Owns gathering them from everywhere a model may name them, and from what its template and vocabulary
//! show, as many files name the wrong one or only one of two. Stop strings of a request are `stop`'s
//! business.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::files::{read_json, token_text};
use super::{ChatTemplate, RenderRequest, TextError, Tokenizer};
use crate::models::GgufHeader;

/// Control tokens that end a text, turn or message in whatever vocabulary they are, llama.cpp's list
/// (`special_eog_ids` in llama-vocab.cpp) without those of code infilling.
const KNOWN_ENDS: [&str; 20] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// A token that ends a part of an answer, not the answer, in vocabularies that have all of the others.
const INNER_ENDS: [(&str, &[&str]); 2] =
    [("<|end|>", &["<|return|>", "<|call|>"]), ("<|end|>", &["<|flush|>", "<|calls|>"])];

/// GGUF keys of one end each: of text, of turn and of message.
const GGUF_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const GGUF_LIST_KEY: &str = "tokenizer.ggml.eos_token_ids";

/// Gathers the end tokens of a model folder, ascending.
///
/// It is the union of what `generation_config.json`, `config.json` and `tokenizer_config.json` say (chat
/// models often have their base model's end in one and their turn's end in another) and of what the
/// template and the vocabulary show.
pub(super) fn from_folder(
    dir: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<u32>, TextError> {
    let mut ids = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        if let Some(config) = read_json(&dir.join(name))? {
            for config in [Some(&config), config.get("text_config")].into_iter().flatten() {
                ids.extend(entries(config.get("eos_token_id")).iter().filter_map(token_id));
            }
        }
    }
    if let Some(config) = read_json(&dir.join("tokenizer_config.json"))? {
        let tokens = entries(config.get("eos_token")).iter().filter_map(token_text);
        ids.extend(tokens.filter_map(|token| tokenizer.token_id(token)));
    }
    Ok(sorted(ids, shown(tokenizer, template)))
}

/// Gathers the end tokens of a GGUF file, ascending: those that its keys name, and those that its template
/// and vocabulary show.
pub(super) fn from_gguf(
    header: &GgufHeader,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Vec<u32> {
    let single = GGUF_KEYS.iter().filter_map(|key| u32::try_from(header.u64(key)?).ok());
    let list = header.i64s(GGUF_LIST_KEY).unwrap_or_default();
    let ids = single.chain(list.into_iter().filter_map(|id| u32::try_from(id).ok())).collect();
    sorted(ids, shown(tokenizer, template))
}

/// What the vocabulary and the template show to be ends.
fn shown(tokenizer: &Tokenizer, template: Option<&ChatTemplate>) -> Vec<u32> {
    let control = |text: &str| tokenizer.token_id(text).filter(|id| tokenizer.is_special(*id));
    let mut ids: Vec<u32> = KNOWN_ENDS.iter().filter_map(|text| control(text)).collect();
    ids.extend(template.into_iter().flat_map(|template| after_an_answer(template, tokenizer)));
    for (inner, others) in INNER_ENDS {
        if others.iter().all(|text| control(text).is_some()) {
            ids.retain(|id| Some(*id) != control(inner));
        }
    }
    ids
}

/// The control tokens that a template writes right after an assistant's message: at the end of a
/// conversation, and where a user replies. A template without an end of its own opens the reply there,
/// which ends the answer as well.
fn after_an_answer(template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<u32> {
    // Words that no template holds.
    const ANSWER: &str = "Quartz";
    let [question, reply] = ["Xylophone", "Zeppelin"].map(|text| json!({"role": "user", "content": text}));
    let messages = [question, json!({"role": "assistant", "content": ANSWER}), reply];
    let after = |messages: &[Value]| {
        let extra = Map::new();
        let request = RenderRequest { messages, tools: None, add_generation_prompt: false, extra: &extra };
        let text = template.render(&request).ok()?;
        let rest = &text[text.rfind(ANSWER)? + ANSWER.len()..];
        let first = *tokenizer.encode(rest.trim_start(), false).ok()?.first()?;
        tokenizer.is_special(first).then_some(first)
    };
    [after(&messages[..2]), after(&messages)].into_iter().flatten().collect()
}

/// The entries of a list, or the one value that stands in its place.
fn entries(value: Option<&Value>) -> &[Value] {
    match value {
        Some(Value::Array(list)) => list,
        Some(value) => std::slice::from_ref(value),
        None => &[],
    }
}

fn token_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn sorted(mut ids: Vec<u32>, more: Vec<u32>) -> Vec<u32> {
    ids.extend(more);
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::models::gguf::testing::GgufFile;
    use crate::text::testing::{byte_level, byte_level_json};

    fn ends(files: &[(&str, &str)]) -> Result<Vec<u32>, TextError> {
        ends_with(&byte_level(), files)
    }

    fn ends_with(tokenizer: &Tokenizer, files: &[(&str, &str)]) -> Result<Vec<u32>, TextError> {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        let template = ChatTemplate::from_folder(dir.path()).expect("templates of tests can be read");
        from_folder(dir.path(), tokenizer, template.as_ref())
    }

    /// A byte-level tokenizer with these control tokens besides, from id 260 on.
    fn tokenizer_with(control: &[&str]) -> Tokenizer {
        let mut json = byte_level_json();
        for (id, text) in (260..).zip(control) {
            json["model"]["vocab"][*text] = json!(id);
            let token = json!({"id": id, "content": text, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true});
            json["added_tokens"].as_array_mut().expect("a list").push(token);
        }
        Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).expect("well-formed")
    }

    /// 258 is `<|end|>`, which ends an answer wherever it is.
    #[test]
    fn the_union_of_all_files_counts() {
        let all = ends(&[
            ("generation_config.json", r#"{"eos_token_id": [7, 5]}"#),
            ("config.json", r#"{"eos_token_id": 5, "text_config": {"eos_token_id": [9]}}"#),
            ("tokenizer_config.json", r#"{"eos_token": {"content": "<tool>"}}"#),
        ]);
        assert_eq!(all.expect("well-formed"), [5, 7, 9, 258, 259]);
        for eos in [r#""<tool>""#, r#"["<tool>", {"content": "th"}]"#] {
            let by_text = ends(&[("tokenizer_config.json", &format!(r#"{{"eos_token": {eos}}}"#))]);
            assert!(by_text.expect("well-formed").contains(&259));
        }
    }

    #[test]
    fn missing_and_odd_entries_add_nothing_broken_files_fail() {
        assert_eq!(ends(&[]).expect("nothing to read"), [258]);
        let odd = ends(&[
            ("config.json", r#"{"eos_token_id": null, "text_config": 5}"#),
            ("generation_config.json", r#"{"eos_token_id": [-1, 1.5, "x", 99999999999, 3]}"#),
            ("tokenizer_config.json", r#"{"eos_token": "no such token"}"#),
        ]);
        assert_eq!(odd.expect("well-formed"), [3, 258]);
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::write(dir.path().join("generation_config.json"), "{]").expect("written");
        assert!(matches!(from_folder(dir.path(), &byte_level(), None), Err(TextError::Json { .. })));
    }

    #[test]
    fn gguf_files_name_ends_of_text_and_turn() {
        let tokenizer = tokenizer_with(&[]);
        let file = GgufFile::default().u32("tokenizer.ggml.eos_token_id", 9);
        let file = file.u32("tokenizer.ggml.eot_token_id", 4).u32("tokenizer.ggml.eom_token_id", 9);
        assert_eq!(from_gguf(&file.header(), &tokenizer, None), [4, 9, 258]);
        let file = file.i32s("tokenizer.ggml.eos_token_ids", &[-1, 12, 4]);
        assert_eq!(from_gguf(&file.header(), &tokenizer, None), [4, 9, 12, 258]);
        assert_eq!(from_gguf(&GgufFile::default().header(), &tokenizer, None), [258]);
    }

    /// Gemma 3's GGUF files name token 1, `<eos>`, and nothing else, but each turn ends with another: the
    /// answers ran on through a made-up conversation until their limit.
    #[test]
    fn control_tokens_known_by_their_text_end_answers_and_others_do_not() {
        let tokenizer = tokenizer_with(&["<eos>", "<end_of_turn>", "<start_of_turn>", "<|im_end|>"]);
        let header = GgufFile::default().u32("tokenizer.ggml.eos_token_id", 260).header();
        assert_eq!(from_gguf(&header, &tokenizer, None), [258, 260, 261, 263]);
        // As text of HTML, say, it is no end: byte_level's <tool> shows that only control tokens count.
        let mut json = byte_level_json();
        json["added_tokens"][1]["content"] = json!("</s>");
        json["model"]["vocab"]["</s>"] = json!(259);
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json"));
        assert_eq!(from_gguf(&header, &tokenizer.expect("well-formed"), None), [258, 260]);
    }

    /// In harmony, `<|end|>` ends a channel's message, after which the answer goes on.
    #[test]
    fn a_token_that_ends_a_part_of_an_answer_does_not_end_it() {
        for others in [["<|return|>", "<|call|>"], ["<|flush|>", "<|calls|>"]] {
            let found = shown(&tokenizer_with(&others), None);
            assert_eq!(BTreeSet::from_iter(found), BTreeSet::from([260, 261]), "{others:?}");
        }
        assert!(shown(&tokenizer_with(&["<|return|>"]), None).contains(&258));
    }

    #[test]
    fn what_each_published_template_writes_after_an_answer_ends_it() {
        let cases: [(&str, &[&str]); 24] = [
            ("deepseek_r1_distill_llama", &["<｜end▁of▁sentence｜>"]),
            ("deepseek_r1_distill_qwen", &["<｜end▁of▁sentence｜>"]),
            ("deepseek_v3", &["<｜end▁of▁sentence｜>"]),
            ("deepseek_v3_1", &["<｜end▁of▁sentence｜>"]),
            ("devstral_small", &["</s>"]),
            ("gemma2", &["<end_of_turn>"]),
            ("gemma3", &["<end_of_turn>"]),
            // It has no end of its own: the next turn's beginning is in the publisher's list of ends.
            ("glm_4_6", &["<|user|>"]),
            // In a conversation that goes on it writes `<|end|>`, which is not among the ends after all.
            ("gpt_oss", &["<|end|>", "<|return|>"]),
            ("granite_3_3", &["<|end_of_text|>"]),
            ("granite_4", &["<|end_of_text|>"]),
            ("kimi_k2", &["<|im_end|>"]),
            ("lfm2", &["<|im_end|>"]),
            ("llama3_1", &["<|eot_id|>"]),
            ("llama3_2", &["<|eot_id|>"]),
            ("mistral_nemo", &["</s>"]),
            ("mistral_small_3_2", &["</s>"]),
            ("phi3_5", &["<|end|>"]),
            ("qwen2_5", &["<|im_end|>"]),
            ("qwen3", &["<|im_end|>"]),
            ("qwen3_5", &["<|im_end|>"]),
            ("qwen3_coder", &["<|im_end|>"]),
            ("smollm2", &["<|im_end|>"]),
            ("smollm3", &["<|im_end|>"]),
        ];
        let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/templates");
        let num_templates = std::fs::read_dir(&templates).expect("the folder is there").flatten();
        let num_templates =
            num_templates.filter(|entry| entry.path().extension().is_some_and(|end| end == "jinja")).count();
        assert_eq!(num_templates, cases.len(), "each template has its case");
        let renders = std::fs::read_to_string(templates.join("renders.json")).expect("the file is there");
        let renders: Vec<Value> = serde_json::from_str(&renders).expect("the file is JSON");
        for (name, expected) in cases {
            let text = std::fs::read_to_string(templates.join(format!("{name}.jinja"))).expect("there");
            // The special tokens that the model's own files name.
            let config =
                &renders.iter().find(|render| render["template"] == name).expect("has renders")["extra"];
            let mut control = control_looking(&text);
            control.extend(config.as_object().expect("an object").values().filter_map(Value::as_str));
            control.remove("<|end|>");
            let tokenizer = tokenizer_with(&Vec::from_iter(control));
            let dir = tempfile::tempdir().expect("a temporary folder can be made");
            std::fs::write(dir.path().join("chat_template.jinja"), &text).expect("written");
            std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("written");
            let template = ChatTemplate::from_folder(dir.path()).expect("compiles").expect("is there");
            let found = after_an_answer(&template, &tokenizer);
            let found = BTreeSet::from_iter(found.into_iter().filter_map(|id| tokenizer.token(id)));
            assert_eq!(found, BTreeSet::from_iter(expected.iter().map(ToString::to_string)), "{name}");
            let ends = shown(&tokenizer, Some(&template));
            assert_eq!(ends.contains(&258), name != "gpt_oss", "{name}");
        }
    }

    /// Whatever a template writes between angle or square brackets.
    fn control_looking(template: &str) -> BTreeSet<&str> {
        let tokens = template.match_indices(['<', '[']).filter_map(|(start, _)| {
            let length = template[start..].find(['>', ']'])?;
            Some(&template[start..=start + length])
        });
        tokens
            .filter(|token| (4..32).contains(&token.len()) && !token.contains(char::is_whitespace))
            .collect()
    }
}
