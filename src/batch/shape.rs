//! Results as those want them who do not read the Batch API's records: plain objects, or rows of a table.
//!
//! Owns the names of their fields and how a record becomes them. A record stays what a run keeps and goes on from;
//! where the others end up is the writer's business.

use std::{collections::HashSet, io};

use serde_json::{Map, Value, json};

/// How results are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// Records of the OpenAI Batch API, one on each line.
    #[default]
    Openai,
    /// One flat object on each line.
    Simple,
    /// The same as a table, whose first row has the names.
    Csv,
}

/// What every flat object and table has, in this order.
const BASE: [&str; 7] =
    ["id", "output", "finish_reason", "error_code", "error", "prompt_tokens", "completion_tokens"];

/// What a choice has beside its text, and what that is called.
const OF_CHOICE: [(&str, &str); 4] = [
    ("stop_reason", "stop_reason"),
    ("logprobs", "logprobs"),
    ("prompt_logprobs", "prompt_logprobs"),
    ("turns", "turns"),
];

/// The same of the message in it.
const OF_MESSAGE: [(&str, &str); 2] = [("reasoning_content", "reasoning"), ("tool_calls", "tool_calls")];

/// What a column of the input's row is called where the answer has one of its name.
const ROW_PREFIX: &str = "input_";

/// A record as a flat object. What several choices have is a list, and absent where none has it.
pub(super) fn flat(record: &Value) -> Map<String, Value> {
    let body = &record["response"]["body"];
    let choices = body["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let error = [&record["error"], &body["error"]].into_iter().find(|error| error.is_object());
    let mut flat = Map::new();
    let of_all = |field: fn(&Value) -> Value| -> Value {
        match choices {
            [one] => field(one),
            [] => Value::Null,
            several => several.iter().map(field).collect(),
        }
    };
    flat.insert("id".to_owned(), record["custom_id"].clone());
    flat.insert("output".to_owned(), of_all(text_of));
    flat.insert(
        "finish_reason".to_owned(),
        if error.is_some() { json!("error") } else { of_all(|choice| choice["finish_reason"].clone()) },
    );
    if let Some(error) = error {
        flat.insert("error_code".to_owned(), error["code"].clone());
        flat.insert("error".to_owned(), error["message"].clone());
    }
    if let Some(usage) = body["usage"].as_object() {
        for name in ["prompt_tokens", "completion_tokens"] {
            flat.extend(usage.get(name).map(|count| (name.to_owned(), count.clone())));
        }
    }
    let mut insert = |name: &str, values: Vec<Value>| {
        let value = match values.as_slice() {
            values if values.iter().all(Value::is_null) => return,
            [one] => one.clone(),
            _ => values.into(),
        };
        flat.insert(name.to_owned(), value);
    };
    for (field, name) in OF_MESSAGE {
        insert(name, choices.iter().map(|choice| choice["message"][field].clone()).collect());
    }
    for (field, name) in OF_CHOICE {
        insert(name, choices.iter().map(|choice| choice[field].clone()).collect());
    }
    // Of a conversation the prompt's own are beside the choices, and turns before an error beside that.
    for name in ["prompt_logprobs", "turns"] {
        insert(name, vec![body[name].clone()]);
    }
    insert("metadata", vec![record["metadata"].clone()]);
    for (column, value) in record["input"].as_object().into_iter().flatten() {
        let mut name = column.clone();
        while BASE.contains(&name.as_str()) || flat.contains_key(&name) {
            name.insert_str(0, ROW_PREFIX);
        }
        flat.insert(name, value.clone());
    }
    flat
}

fn text_of(choice: &Value) -> Value {
    match choice.get("message") {
        Some(message) => message["content"].clone(),
        None => choice["text"].clone(),
    }
}

/// Columns that a table has at most, read or written: each row of it has a cell for each of them.
pub(super) const MAX_COLUMNS: usize = 100_000;

/// The columns of a table, in the order in which they first come.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    names: Vec<String>,
    known: HashSet<String>,
}

impl Default for Columns {
    fn default() -> Self {
        let names = BASE.map(str::to_owned);
        Self { known: names.clone().into(), names: names.into() }
    }
}

impl Columns {
    /// Adds those that an object has and no object before it.
    pub(super) fn add(&mut self, flat: &Map<String, Value>) -> io::Result<()> {
        for name in flat.keys().filter(|name| !self.known.contains(*name)).cloned().collect::<Vec<_>>() {
            self.known.insert(name.clone());
            self.names.push(name);
        }
        if self.names.len() > MAX_COLUMNS {
            return Err(io::Error::other(format!(
                "--format csv: the results have more than {MAX_COLUMNS} different columns, which no table has room \
                 for; publish them with --resume --format simple"
            )));
        }
        Ok(())
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The cells of an object: text as it is, other values as JSON, and nothing for what it has not.
    pub(super) fn row(&self, flat: &Map<String, Value>) -> Vec<String> {
        let cell = |name: &String| match flat.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        self.names.iter().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(text: &str) -> Value {
        json!({"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": null, "finish_reason": "stop"})
    }

    fn record(choices: Value) -> Value {
        let usage = json!({"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9});
        json!({"id": "batch_req_1", "custom_id": "a", "error": null,
            "response": {"status_code": 200, "body": {"choices": choices, "usage": usage}}})
    }

    #[test]
    fn an_answer_is_flat_and_has_what_was_asked_for() {
        let mut one = record(json!([choice("Paris")]));
        assert_eq!(
            Value::from(flat(&one)).to_string(),
            r#"{"id":"a","output":"Paris","finish_reason":"stop","prompt_tokens":7,"completion_tokens":2}"#
        );
        let choice = &mut one["response"]["body"]["choices"][0];
        choice["message"]["reasoning_content"] = json!("hm");
        choice["logprobs"] = json!({"content": []});
        one["metadata"] = json!({"m": 1});
        let told = flat(&one);
        assert_eq!((&told["reasoning"], &told["metadata"]), (&json!("hm"), &json!({"m": 1})));
        assert!(told.contains_key("logprobs") && !told.contains_key("tool_calls"), "{told:?}");
    }

    #[test]
    fn several_choices_are_lists_and_a_completion_has_its_text() {
        let told = flat(&record(json!([choice("a"), choice("b")])));
        assert_eq!((&told["output"], &told["finish_reason"]), (&json!(["a", "b"]), &json!(["stop", "stop"])));
        let completion = json!({"index": 0, "text": "x", "logprobs": null, "finish_reason": "length"});
        assert_eq!(flat(&record(json!([completion])))["output"], "x");
    }

    #[test]
    fn both_kinds_of_error_are_told_alike() {
        let error = json!({"code": "invalid_json", "message": "in.jsonl:3: no"});
        let of_line = json!({"custom_id": "line-3", "response": null, "error": error});
        let of_request =
            json!({"custom_id": "line-3", "response": {"body": {"error": error}}, "error": null});
        for record in [of_line, of_request] {
            assert_eq!(
                Value::from(flat(&record)).to_string(),
                r#"{"id":"line-3","output":null,"finish_reason":"error","error_code":"invalid_json","error":"in.jsonl:3: no"}"#
            );
        }
    }

    #[test]
    fn no_column_of_the_row_hides_one_of_the_answer() {
        let mut record = record(json!([choice("Paris")]));
        record["input"] = json!({"question": "?", "output": "old", "error": "none", "input_output": 1});
        let told = flat(&record);
        assert_eq!((&told["output"], &told["input_output"]), (&json!("Paris"), &json!("old")));
        assert_eq!((&told["input_error"], &told["input_input_output"]), (&json!("none"), &json!(1)));
        let mut columns = Columns::default();
        columns.add(&told).expect("there are few");
        assert_eq!(columns.names()[7..], ["question", "input_output", "input_error", "input_input_output"]);
        assert_eq!(columns.row(&told), ["a", "Paris", "stop", "", "", "7", "2", "?", "old", "none", "1"]);
    }

    /// Each of 80,000 columns was looked for among all before it, which took 13 seconds a row.
    #[test]
    fn columns_are_many_and_no_more_than_a_table_has_room_for() {
        let wide = |from: usize, to: usize| -> Map<String, Value> {
            (from..to).map(|column| (format!("c{column}"), json!(column))).collect()
        };
        let mut columns = Columns::default();
        for _ in 0..3 {
            columns.add(&wide(0, 80_000)).expect("there is room");
        }
        assert_eq!(columns.names().len(), BASE.len() + 80_000);
        assert_eq!(columns.row(&wide(5, 6))[BASE.len() + 5], "5");
        let error = columns.add(&wide(80_000, 110_000)).expect_err("too many").to_string();
        assert!(error.contains("more than 100000 different columns") && error.contains("simple"), "{error}");
    }
}
