//! JSON Schemas (draft 2020-12) of input and output lines and of reports.
//!
//! Owns putting them together: names and texts of fields are those of the tables that requests are checked by, types
//! and the shape of records are data, `schemas.json`. What a schema cannot say, such as that an id is unique, stays
//! with the checks themselves.

use serde_json::{Map, Value, json};

use super::request::{SERVED, ServedField, refused_fields};

/// Types of the fields, and the whole schemas of output and report.
const DATA: &str = include_str!("schemas.json");

/// The group of fields that belong to the line, and not to the request in it.
const LINE: &str = "The line";

/// The schema of an input line.
pub fn input_schema() -> Value {
    let Data { types, fields, forms, .. } = Data::read();
    let typed = |field: &ServedField| {
        let of_type = fields.get(field.name).cloned().unwrap_or_else(|| json!({}));
        // A field that is null is absent.
        let schema = json!({"description": field.summary, "anyOf": [{"type": "null"}, of_type]});
        (field.name.to_owned(), schema)
    };
    let of_group = |is_line: bool| {
        let groups = SERVED.iter().filter(move |group| (group.heading == LINE) == is_line);
        groups.flat_map(|group| group.fields).map(typed).collect::<Map<_, _>>()
    };
    let line = of_group(true);
    let mut request = of_group(false);
    for name in ["metadata", "model"] {
        request.extend(line.get(name).map(|schema| (name.to_owned(), schema.clone())));
    }
    for (name, reason) in
        refused_fields().filter(|(name, _)| !request.contains_key(*name)).collect::<Vec<_>>()
    {
        let told = format!("refused where it would change the answer: {reason}");
        request.insert(name.to_owned(), json!({"description": told, "deprecated": true}));
    }
    let mut defs = Map::from_iter([(
        "request".to_owned(),
        json!({"type": "object", "properties": request, "anyOf": forms}),
    )]);
    defs.extend(types);
    let is_batch_form: Vec<Value> =
        ["body", "url", "method"].iter().map(|name| json!({"required": [name]})).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of mlxbatch's input",
        "description": "A conversation, a raw completion, or either in the form of the OpenAI Batch API. Fields \
                        that are not named here are ignored with a warning.",
        "type": "object",
        "properties": line,
        "if": {"anyOf": is_batch_form},
        "then": {"required": ["body"], "properties": {"body": {"type": "object"}}},
        "else": {"$ref": "#/$defs/request"},
        "$defs": defs,
    })
}

/// The schema of an output line.
pub fn output_schema() -> Value {
    Data::read().output
}

/// The schema of what `run --report` writes.
pub fn report_schema() -> Value {
    Data::read().report
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    /// Shared between fields.
    types: Map<String, Value>,
    /// By name.
    fields: Map<String, Value>,
    /// Of which a request has one.
    forms: Value,
    output: Value,
    report: Value,
}

impl Data {
    fn read() -> Self {
        serde_json::from_str(DATA).expect("it is part of the program, and tests read it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_that_is_served_has_a_type_and_no_other_has() {
        let mut served: Vec<&str> =
            SERVED.iter().flat_map(|group| group.fields).map(|field| field.name).collect();
        let data = Data::read();
        let mut typed: Vec<&str> = data.fields.keys().map(String::as_str).collect();
        served.sort_unstable();
        typed.sort_unstable();
        assert_eq!(served, typed, "src/batch/schemas.json and the table of served fields");
        assert!(SERVED.iter().any(|group| group.heading == LINE));
    }

    #[test]
    fn all_are_schemas_whose_references_lead_somewhere() {
        for schema in [input_schema(), output_schema(), report_schema()] {
            jsonschema::draft202012::meta::validate(&schema).expect("a schema of draft 2020-12");
            jsonschema::draft202012::new(&schema).expect("all references are found");
        }
    }
}
