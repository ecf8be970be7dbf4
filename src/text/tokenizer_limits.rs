//! How large the parts of a `tokenizer.json` may be.
//!
//! Owns refusing, before the tokenizers crate builds anything of it, what no published tokenizer is like and what takes
//! memory or time without bound. What the parts mean is that crate's business.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::Value;

/// Token ids are below this; each takes memory whether there is a token of it or not. Published ones are below 300,000.
pub(super) const MAX_TOKEN_IDS: usize = 1 << 21;

/// Of a token that is added to the vocabulary, and of all of these.
const MAX_ADDED_BYTES: usize = 4 << 10;
const MAX_ALL_ADDED_BYTES: usize = 2 << 20;

/// Of a text that a step puts in place of another.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// How many times as long all steps of one part may make a text, and the texts that they add to it.
const MAX_GROWTH: usize = 64;
const MAX_PART_TEXT_BYTES: usize = 256 << 10;

/// Of the values, and of the steps among them, in one part.
const MAX_VALUES: usize = 20_000;
const MAX_STEPS: usize = 100;

/// The parts that are looked at.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    added_tokens: Value,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
}

/// Says what of a `tokenizer.json` is too large to be built.
pub(super) fn check(json: &[u8]) -> Result<(), String> {
    let parts: Parts = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    check_added(&parts.added_tokens)?;
    for (name, part) in [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("post_processor", &parts.post_processor),
        ("decoder", &parts.decoder),
    ] {
        check_part(part).map_err(|problem| format!("its {name} {problem}"))?;
    }
    Ok(())
}

fn check_added(added: &Value) -> Result<(), String> {
    let contents = added.as_array().into_iter().flatten().filter_map(|token| token.get("content")?.as_str());
    let mut num_bytes = 0;
    for content in contents {
        num_bytes += content.len();
        if content.len() > MAX_ADDED_BYTES || num_bytes > MAX_ALL_ADDED_BYTES {
            return Err(format!(
                "its added_tokens have more than {MAX_ADDED_BYTES} bytes in one or {MAX_ALL_ADDED_BYTES} in all"
            ));
        }
    }
    Ok(())
}

fn check_part(part: &Value) -> Result<(), String> {
    let (mut num_values, mut num_steps, mut num_text_bytes, mut growth) = (0, 0, 0_usize, 1_usize);
    let mut values = vec![("", part)];
    while let Some((key, value)) = values.pop() {
        num_values += 1;
        match value {
            Value::String(map) if key == "precompiled_charsmap" => check_charsmap(map)?,
            Value::String(text) if text.len() > MAX_TEXT_BYTES => {
                return Err(format!("has a text of {} bytes; at most {MAX_TEXT_BYTES} are read", text.len()));
            }
            Value::String(text) if ["prepend", "content"].contains(&key) => num_text_bytes += text.len(),
            Value::Array(items) => values.extend(items.iter().map(|item| ("", item))),
            Value::Object(members) => {
                num_steps += usize::from(members.contains_key("type"));
                growth = growth.saturating_mul(growth_by(value));
                values.extend(members.iter().map(|(key, value)| (key.as_str(), value)));
            }
            _ => {}
        }
        if num_values > MAX_VALUES || num_steps > MAX_STEPS {
            return Err(format!("has more than {MAX_STEPS} steps or {MAX_VALUES} values"));
        }
        if growth > MAX_GROWTH || num_text_bytes > MAX_PART_TEXT_BYTES {
            return Err(format!(
                "may make a text more than {MAX_GROWTH} times as long, or adds more than {MAX_PART_TEXT_BYTES} bytes"
            ));
        }
    }
    Ok(())
}

/// How many times as long a step that replaces something makes a text at most; other steps count as none.
fn growth_by(step: &Value) -> usize {
    if step["type"] != "Replace" {
        return 1;
    }
    let num_bytes = step["content"].as_str().map_or(0, str::len);
    match step["pattern"]["String"].as_str() {
        Some(pattern) if !pattern.is_empty() => num_bytes.div_ceil(pattern.len()).max(1),
        // Found at each letter, and in front of it.
        _ => 1 + num_bytes,
    }
}

/// A map begins with the size of its table, which is believed where it is read.
fn check_charsmap(map: &str) -> Result<(), String> {
    let bytes =
        BASE64_STANDARD.decode(map).map_err(|error| format!("has a precompiled_charsmap: {error}"))?;
    let table = bytes.first_chunk().map_or(0, |size| u32::from_le_bytes(*size) as usize);
    if !bytes.is_empty() && (bytes.len() < 4 || table > bytes.len() - 4) {
        return Err("has a precompiled_charsmap that ends within its table".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Each took gigabytes, or minutes, before anything was said.
    #[test]
    fn what_no_tokenizer_is_like_is_refused_by_its_part() {
        let charsmap =
            |map: &str| json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": map}});
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        let replace = |pattern: Value, num_bytes: usize, num_steps: usize| {
            let step = json!({"type": "Replace", "pattern": pattern, "content": "z".repeat(num_bytes)});
            json!({"type": "Sequence", "normalizers": vec![step; num_steps]})
        };
        let (each, nothing) = (json!({"Regex": "."}), json!({"String": ""}));
        let prepend = json!({"type": "Prepend", "prepend": "x".repeat(60 << 10)});
        let step = json!({"type": "Whitespace"});
        let tokens = vec![json!({"id": 1, "content": "y".repeat(4000)}); 600];
        for (json, problem) in [
            (charsmap("/////w=="), "its normalizer has a precompiled_charsmap that ends"),
            (charsmap("?"), "its normalizer has a precompiled_charsmap:"),
            (json!({"normalizer": {"type": "Prepend", "prepend": long}}), "its normalizer has a text of"),
            (json!({"decoder": {"type": "Replace", "content": long}}), "its decoder may make a text more"),
            (json!({"normalizer": replace(each.clone(), 10, 2)}), "its normalizer may make a text more than"),
            (json!({"normalizer": replace(nothing, 60_000, 1)}), "its normalizer may make a text more than"),
            (json!({"decoder": replace(json!({"String": "▁"}), 300, 1)}), "its decoder may make a text more"),
            (json!({"normalizer": {"normalizers": vec![prepend; 5]}}), "its normalizer may make a text more"),
            (json!({"pre_tokenizer": {"pretokenizers": vec![step; 101]}}), "its pre_tokenizer has more than"),
            (json!({"post_processor": {"ids": vec![1; 30_000]}}), "its post_processor has more than"),
            (json!({"added_tokens": [{"id": 1, "content": "y".repeat(5000)}]}), "its added_tokens have more"),
            (json!({"added_tokens": tokens}), "its added_tokens have more"),
        ] {
            let found = check(json.to_string().as_bytes()).expect_err(problem);
            assert!(found.starts_with(problem), "{found}");
        }
        for usual in [replace(json!({"String": " "}), 3, 1), replace(each, 3, 3)] {
            assert_eq!(check(json!({"normalizer": usual}).to_string().as_bytes()), Ok(()));
        }
        assert_eq!(check(charsmap("").to_string().as_bytes()), Ok(()));
        assert_eq!(check(charsmap("BAAAAAAAAAA=").to_string().as_bytes()), Ok(()));
    }
}
