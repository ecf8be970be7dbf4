//! Output lines, and where the expected answers are.
//!
//! Owns what of a line is its answer, by its id. Whatever differs from run to run is no part of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::batch::{MAX_RECORD_BYTES, read_record_line};

/// The answers of one file of results, in its order.
pub(super) struct Answers {
    pub name: String,
    order: Vec<String>,
    /// What the line says; `None` where it failed.
    by_id: HashMap<String, Option<String>>,
    /// What the lines repeat of their requests.
    metadata: HashMap<String, Value>,
}

/// Expected answers by id.
pub(super) struct Expected(HashMap<String, String>);

impl Answers {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let mut answers = Self { name, order: Vec::new(), by_id: HashMap::new(), metadata: HashMap::new() };
        for_each_line(path, |number, line| {
            let Some(Value::String(id)) = line.get("custom_id").or(line.get("id")) else {
                bail!("line {number} has no custom_id; give files that `mlxbatch run` wrote");
            };
            if answers.by_id.insert(id.clone(), answer_of(&line)).is_some() {
                bail!("line {number}: {id:?} is there twice");
            }
            answers.order.push(id.clone());
            if let Some(metadata) = line.get("metadata").or(line.get("input")) {
                answers.metadata.insert(id.clone(), metadata.clone());
            }
            Ok(())
        })?;
        Ok(answers)
    }

    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Option<String>> {
        self.by_id.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Option<String>)> {
        self.order.iter().filter_map(|id| Some((id.as_str(), self.by_id.get(id)?)))
    }
}

impl Expected {
    /// Reads a field of the lines of a data set, or of what the results repeat of their requests.
    pub(super) fn read(field: &str, data: Option<&Path>, answers: &Answers) -> anyhow::Result<Self> {
        let mut expected = HashMap::new();
        match data {
            None => {
                let told = answers.metadata.iter();
                expected
                    .extend(told.filter_map(|(id, metadata)| Some((id.clone(), text_at(metadata, field)?))));
            }
            Some(path) => for_each_line(path, |number, line| {
                let body = line.get("body").unwrap_or(&Value::Null);
                let id = ["custom_id", "id", "question_id"].iter().find_map(|name| line.get(*name));
                let id = match id {
                    Some(Value::String(id)) => id.clone(),
                    Some(Value::Number(id)) => id.to_string(),
                    _ => format!("line-{number}"),
                };
                let found = text_at(&line, field).or_else(|| text_at(&line["metadata"], field));
                expected.extend(found.or_else(|| text_at(body, field)).map(|text| (id, text)));
                Ok(())
            })?,
        }
        Ok(Self(expected))
    }

    pub(super) fn get(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(String::as_str)
    }
}

/// The text, number or truth at a place such as `answer` or `target.letter`; the first of a list.
fn text_at(value: &Value, field: &str) -> Option<String> {
    let found = match value.get(field) {
        Some(found) => found,
        None => field.split('.').try_fold(value, |value, name| value.get(name))?,
    };
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(found.to_string()),
        Value::Array(items) => text_at(items.first()?, ""),
        Value::Null | Value::Object(_) => None,
    }
}

/// What a line says: the text of its first choice, or the calls where it only calls tools.
fn answer_of(line: &Value) -> Option<String> {
    let body = &line["response"]["body"];
    if let Some(output) = line.get("output") {
        return output.as_str().map(str::to_owned);
    }
    let choice = body["choices"].as_array()?.first()?;
    let message = &choice["message"];
    let text = choice["text"].as_str().or(message["content"].as_str());
    match (text, message["tool_calls"].as_array()) {
        (text, Some(calls)) => {
            let functions: Vec<String> = calls.iter().map(|call| call["function"].to_string()).collect();
            Some([&[text.unwrap_or_default().to_owned()][..], &functions].concat().join("\n"))
        }
        (text, None) => text.map(str::to_owned),
    }
}

/// Reads the JSON objects of a file; errors name it and the line.
fn for_each_line(path: &Path, mut take: impl FnMut(u64, Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    for number in 1.. {
        let mut line = Vec::new();
        let num_bytes = read_record_line(&mut reader, &mut line);
        match num_bytes.with_context(|| format!("cannot read line {number} of {}", path.display()))? {
            Some(0) => break,
            None => {
                anyhow::bail!("{}:{number}: has more than {MAX_RECORD_BYTES} bytes", path.display())
            }
            _ => {}
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(&line)
            .map_err(|error| anyhow::anyhow!("{}:{number}: not valid JSON: {error}", path.display()))?;
        take(number, value).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_what_a_line_says() {
        let chat = |message: Value| json!({"response": {"body": {"choices": [{"message": message}]}}});
        let call = json!({"id": "call_1", "function": {"name": "f", "arguments": "{}"}});
        for (line, expected) in [
            (chat(json!({"content": "a"})), Some("a")),
            (json!({"response": {"body": {"choices": [{"text": "b"}, {"text": "c"}]}}}), Some("b")),
            (
                chat(json!({"content": null, "tool_calls": [call]})),
                Some("\n{\"name\":\"f\",\"arguments\":\"{}\"}"),
            ),
            (json!({"response": {"body": {"error": {}}}}), None),
            (json!({"response": null, "error": {}}), None),
            (json!({"id": "a", "output": "d"}), Some("d")),
        ] {
            assert_eq!(answer_of(&line).as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn an_expected_answer_is_found_by_its_place() {
        let row =
            json!({"answer": 5, "target": {"letter": "B"}, "a.b": "x", "list": [{"": "y"}, "z"], "no": null});
        let found = ["answer", "target.letter", "a.b", "no", "none"].map(|field| text_at(&row, field));
        assert_eq!(found, [Some("5".into()), Some("B".into()), Some("x".into()), None, None]);
    }
}
