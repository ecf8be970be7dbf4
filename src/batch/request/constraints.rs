//! The fields that say what an answer has to be.
//!
//! Owns their names and shapes, in the words of OpenAI, vLLM, SGLang and llama.cpp, and that there is one
//! constraint a request. What a schema or grammar means, and whether it can be served, is `guide`'s to say.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::super::line_error::RequestError;
use super::fields::{Fields, expected};
use crate::guide::{Constraint, JsonOptions};

/// What an answer has to be, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerConstraint {
    pub param: String,
    pub constraint: Arc<Constraint>,
}

/// How the value of a field is read.
type Read = fn(&str, Value, &JsonOptions) -> Result<Option<Constraint>, RequestError>;

/// Fields of a request, each of one kind.
const FIELDS: [(&str, Read); 9] = [
    ("response_format", of_response_format),
    ("guided_json", of_schema),
    ("guided_regex", of_regex),
    ("guided_choice", of_choice),
    ("guided_grammar", of_grammar),
    ("json_schema", of_schema),
    ("regex", of_regex),
    ("ebnf", of_grammar),
    ("grammar", of_grammar),
];

/// Members of vLLM's `structured_outputs`.
const STRUCTURED: [(&str, Read); 5] = [
    ("json", of_schema),
    ("regex", of_regex),
    ("choice", of_choice),
    ("grammar", of_grammar),
    ("json_object", of_json_object),
];

/// Its members that change no answer: which library constrains it, and what that may fall back to.
const STRUCTURED_IGNORED: [&str; 4] = ["backend", "_backend", "_backend_was_auto", "disable_fallback"];

/// Takes the constraint, if there is one.
pub(super) fn take(fields: &mut Fields) -> Result<Option<AnswerConstraint>, RequestError> {
    let options = match fields.take_string("guided_whitespace_pattern")? {
        Some(pattern) => JsonOptions::Space(pattern),
        None => JsonOptions::default(),
    };
    let mut found = Found::default();
    for (name, read) in FIELDS {
        if let Some(value) = fields.take(name) {
            found.add(name.to_owned(), read(name, value, &options)?)?;
        }
    }
    if let Some(members) = fields.take_object("structured_outputs")? {
        take_structured(Fields::new(members), &mut found)?;
    }
    Ok(found.0)
}

fn take_structured(mut members: Fields, found: &mut Found) -> Result<(), RequestError> {
    let place = |name: &str| format!("structured_outputs.{name}");
    STRUCTURED_IGNORED.iter().for_each(|name| drop(members.take(name)));
    let pattern = members.take("whitespace_pattern");
    let has_no_space = members.take("disable_any_whitespace").unwrap_or(Value::Bool(false));
    let options = match (pattern, has_no_space) {
        (None, Value::Bool(false)) => JsonOptions::default(),
        (None, Value::Bool(true)) => JsonOptions::NoSpace,
        (Some(Value::String(pattern)), Value::Bool(false)) => JsonOptions::Space(pattern),
        (Some(Value::String(_)), Value::Bool(true)) => {
            let reason = "contradicts `disable_any_whitespace`; give one of them";
            return Err(RequestError::invalid(&place("whitespace_pattern"), reason));
        }
        (Some(other), Value::Bool(_)) => {
            return Err(expected("a string", &place("whitespace_pattern"), &other));
        }
        (_, other) => return Err(expected("true or false", &place("disable_any_whitespace"), &other)),
    };
    if members.take("disable_additional_properties").is_some_and(|value| value != Value::Bool(false)) {
        let reason = "is not served; say \"additionalProperties\": false in the schema";
        return Err(RequestError::unsupported(&place("disable_additional_properties"), reason));
    }
    for (name, read) in STRUCTURED {
        if let Some(value) = members.take(name) {
            found.add(place(name), read(&place(name), value, &options)?)?;
        }
    }
    match members.into_unknown_names().next() {
        Some(name) => Err(RequestError::unsupported(&place(&name), known_members())),
        None => Ok(()),
    }
}

fn known_members() -> String {
    let names: Vec<&str> = STRUCTURED.iter().map(|(name, _)| *name).collect();
    format!("is not served; {} are", names.join(", "))
}

/// The constraint so far.
#[derive(Default)]
struct Found(Option<AnswerConstraint>);

impl Found {
    fn add(&mut self, param: String, constraint: Option<Constraint>) -> Result<(), RequestError> {
        let Some(constraint) = constraint else { return Ok(()) };
        match &self.0 {
            None => self.0 = Some(AnswerConstraint { param, constraint: Arc::new(constraint) }),
            Some(first) if *first.constraint == constraint => {}
            Some(first) => {
                let reason =
                    format!("differs from what `{}` wants of the answer; give one of them", first.param);
                return Err(RequestError::invalid(&param, reason));
            }
        }
        Ok(())
    }
}

fn of_response_format(
    param: &str,
    value: Value,
    options: &JsonOptions,
) -> Result<Option<Constraint>, RequestError> {
    let Value::Object(mut format) = value else { return Err(expected("an object", param, &value)) };
    let kind = match format.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(other) => return Err(expected("a string", &format!("{param}.type"), &other)),
        None => {
            return Err(RequestError::missing(&format!("{param}.type"), "says what the answer has to be"));
        }
    };
    match kind.as_str() {
        "text" => Ok(None),
        // llama.cpp reads a schema there as well.
        "json_object" => match format.remove("schema").filter(|schema| !schema.is_null()) {
            Some(schema) => of_schema(&format!("{param}.schema"), schema, options),
            None => Ok(Some(Constraint::json_object())),
        },
        "json_schema" => {
            let param = format!("{param}.json_schema");
            match format.remove("json_schema") {
                Some(Value::Object(described)) => of_described_schema(&param, described, options),
                Some(other) => Err(expected("an object", &param, &other)),
                // llama.cpp's short form.
                None => match format.remove("schema").filter(|schema| !schema.is_null()) {
                    Some(schema) => of_schema(&param, schema, options),
                    None => Err(RequestError::missing(&param, "has the schema")),
                },
            }
        }
        _ => {
            let reason = format!("must be \"text\", \"json_object\" or \"json_schema\", not {kind:?}");
            Err(RequestError::unsupported(&format!("{param}.type"), reason))
        }
    }
}

/// OpenAI's `{"name", "description", "schema", "strict"}`. An answer meets its schema, strict or not.
fn of_described_schema(
    param: &str,
    mut described: Map<String, Value>,
    options: &JsonOptions,
) -> Result<Option<Constraint>, RequestError> {
    if let Some(strict) = described.get("strict").filter(|strict| !strict.is_boolean() && !strict.is_null()) {
        return Err(expected("true or false", &format!("{param}.strict"), strict));
    }
    let param = format!("{param}.schema");
    match described.remove("schema").filter(|schema| !schema.is_null()) {
        Some(schema) => of_schema(&param, schema, options),
        None => Err(RequestError::missing(&param, "is what the answer has to meet")),
    }
}

/// A schema, or the text of one.
fn of_schema(param: &str, value: Value, options: &JsonOptions) -> Result<Option<Constraint>, RequestError> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| RequestError::invalid(param, format!("its text is not valid JSON: {error}")))?,
        schema => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Some(Constraint::Json { schema, options: options.clone() })),
        other => Err(expected("a JSON schema, an object or the text of one", param, &other)),
    }
}

fn of_json_object(
    param: &str,
    value: Value,
    options: &JsonOptions,
) -> Result<Option<Constraint>, RequestError> {
    match value {
        Value::Bool(false) => Ok(None),
        Value::Bool(true) => match Constraint::json_object() {
            Constraint::Json { schema, .. } => of_schema(param, schema, options),
            other => Ok(Some(other)),
        },
        other => Err(expected("true or false", param, &other)),
    }
}

fn of_regex(param: &str, value: Value, _: &JsonOptions) -> Result<Option<Constraint>, RequestError> {
    let text = text_of(param, value)?;
    Ok((!text.is_empty()).then_some(Constraint::Regex(text)))
}

fn of_grammar(param: &str, value: Value, _: &JsonOptions) -> Result<Option<Constraint>, RequestError> {
    let text = text_of(param, value)?;
    Ok((!text.is_empty()).then_some(Constraint::Grammar(text)))
}

fn text_of(param: &str, value: Value) -> Result<String, RequestError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(expected("a string", param, &other)),
    }
}

fn of_choice(param: &str, value: Value, _: &JsonOptions) -> Result<Option<Constraint>, RequestError> {
    let Value::Array(texts) = value else { return Err(expected("a list of strings", param, &value)) };
    if texts.is_empty() {
        return Err(RequestError::invalid(param, "must not be empty: no answer could be given"));
    }
    let text = |(place, text)| text_of(&format!("{param}[{place}]"), text);
    Ok(Some(Constraint::Choice(texts.into_iter().enumerate().map(text).collect::<Result<_, _>>()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(request: Value) -> Result<Option<(String, Constraint)>, String> {
        let Value::Object(request) = request else { panic!("an object") };
        let mut fields = Fields::new(request);
        let taken = take(&mut fields).map_err(|error| error.message)?;
        assert_eq!(fields.into_unknown_names().count(), 0, "all of it is read");
        Ok(taken.map(|AnswerConstraint { param, constraint }| (param, (*constraint).clone())))
    }

    fn json_of(schema: Value) -> Constraint {
        Constraint::Json { schema, options: JsonOptions::default() }
    }

    #[test]
    fn each_field_is_read_in_its_own_words() {
        let schema = json!({"type": "integer"});
        let regex = || Constraint::Regex("[0-9]+".into());
        let grammar = || Constraint::Grammar("start: \"a\"".into());
        let choice = || Constraint::Choice(vec!["a".into(), "b".into()]);
        let with = |options| Constraint::Json { schema: json!({"type": "integer"}), options };
        for (request, param, constraint) in [
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                Constraint::json_object(),
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": schema}}),
                "response_format",
                json_of(schema.clone()),
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}}),
                "response_format",
                json_of(schema.clone()),
            ),
            (
                json!({"response_format": {"type": "json_schema", "schema": schema}}),
                "response_format",
                json_of(schema.clone()),
            ),
            (json!({"guided_json": schema}), "guided_json", json_of(schema.clone())),
            (json!({"guided_json": "{\"type\": \"integer\"}"}), "guided_json", json_of(schema.clone())),
            (json!({"json_schema": schema}), "json_schema", json_of(schema.clone())),
            (json!({"json_schema": {}}), "json_schema", json_of(json!({}))),
            (json!({"guided_regex": "[0-9]+"}), "guided_regex", regex()),
            (json!({"regex": "[0-9]+"}), "regex", regex()),
            (json!({"guided_choice": ["a", "b"]}), "guided_choice", choice()),
            (json!({"guided_grammar": "start: \"a\""}), "guided_grammar", grammar()),
            (json!({"grammar": "start: \"a\""}), "grammar", grammar()),
            (json!({"ebnf": "start: \"a\""}), "ebnf", grammar()),
            (
                json!({"structured_outputs": {"json": schema}}),
                "structured_outputs.json",
                json_of(schema.clone()),
            ),
            (json!({"structured_outputs": {"regex": "[0-9]+"}}), "structured_outputs.regex", regex()),
            (json!({"structured_outputs": {"choice": ["a", "b"]}}), "structured_outputs.choice", choice()),
            (
                json!({"structured_outputs": {"grammar": "start: \"a\""}}),
                "structured_outputs.grammar",
                grammar(),
            ),
            (
                json!({"structured_outputs": {"json_object": true, "json": null, "disable_fallback": true}}),
                "structured_outputs.json_object",
                Constraint::json_object(),
            ),
            (
                json!({"structured_outputs": {"json": schema, "disable_any_whitespace": true}}),
                "structured_outputs.json",
                with(JsonOptions::NoSpace),
            ),
            (
                json!({"structured_outputs": {"json": schema, "whitespace_pattern": " "}}),
                "structured_outputs.json",
                with(JsonOptions::Space(" ".into())),
            ),
            (
                json!({"guided_json": schema, "guided_whitespace_pattern": " "}),
                "guided_json",
                with(JsonOptions::Space(" ".into())),
            ),
        ] {
            assert_eq!(taken(request.clone()), Ok(Some((param.to_owned(), constraint))), "{request}");
        }
    }

    #[test]
    fn what_asks_for_nothing_constrains_nothing() {
        for request in [
            json!({}),
            json!({"response_format": {"type": "text"}, "grammar": "", "regex": "", "guided_json": null}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json_object": false}}),
        ] {
            assert_eq!(taken(request.clone()), Ok(None), "{request}");
        }
    }

    #[test]
    fn one_constraint_may_be_said_twice_and_two_may_not() {
        let twice = json!({"guided_json": {"type": "array"}, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}});
        assert_eq!(taken(twice), Ok(Some(("response_format".into(), json_of(json!({"type": "array"}))))));
        for request in [
            json!({"guided_json": {}, "guided_regex": "a"}),
            json!({"response_format": {"type": "json_object"}, "guided_json": {"type": "array"}}),
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            json!({"grammar": "start: \"a\"", "json_schema": {}}),
        ] {
            let problem = taken(request.clone()).expect_err("there are two");
            assert!(problem.contains("differs from what"), "{request}: {problem}");
        }
    }

    #[test]
    fn wrong_shapes_are_named_with_their_place() {
        for (request, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "structural_tag"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format.json_schema.schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}}}),
                "response_format.json_schema.strict",
            ),
            (json!({"guided_json": 5}), "guided_json"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_json": "[1]"}), "guided_json"),
            (json!({"guided_regex": ["a"]}), "guided_regex"),
            (json!({"guided_choice": "a"}), "guided_choice"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice[1]"),
            (json!({"guided_whitespace_pattern": 1}), "guided_whitespace_pattern"),
            (json!({"structured_outputs": []}), "structured_outputs"),
            (json!({"structured_outputs": {"json": 1}}), "structured_outputs.json"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs.structural_tag"),
            (
                json!({"structured_outputs": {"json": {}, "disable_additional_properties": true}}),
                "structured_outputs.disable_additional_properties",
            ),
            (
                json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true, "whitespace_pattern": " "}}),
                "structured_outputs.whitespace_pattern",
            ),
        ] {
            let problem = taken(request.clone()).expect_err("it cannot be read");
            assert!(problem.starts_with(&format!("{param}: ")), "{request}: {problem}");
        }
    }
}
