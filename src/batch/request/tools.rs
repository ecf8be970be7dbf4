//! The tools of a conversation, and whether the answer has to call them.
//!
//! Owns checking them, and the JSON that an answer is held to which has to call: a list of `{"name",
//! "parameters"}` as in vLLM, or the arguments alone of the one function that is named.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::super::line_error::RequestError;
use super::constraints::AnswerConstraint;
use super::fields::{Fields, expected};
use crate::guide::{Constraint, JsonOptions};
use crate::text::ExpectedCalls;

/// The tools of a conversation.
#[derive(Debug)]
pub(super) struct Tools {
    /// Those that the template shows.
    pub shown: Option<Arc<Value>>,
    pub expected_calls: ExpectedCalls,
    /// Whether the answer may call several at once.
    pub may_call_several: bool,
    /// The functions that may be called where a call is asked for, by their place among the tools.
    callable: Vec<usize>,
}

impl Tools {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let choice = Choice::take(fields)?;
        let may_call_several = fields.take_bool("parallel_tool_calls")?.unwrap_or(true);
        let are_read = fields.take_bool("parse_tool_calls")?.unwrap_or(true);
        let list = match fields.take("tools") {
            None => Vec::new(),
            Some(Value::Array(tools)) => tools,
            Some(other) => return Err(expected("a list", "tools", &other)),
        };
        if let Some((position, tool)) = list.iter().enumerate().find(|(_, tool)| !tool.is_object()) {
            return Err(expected("an object", &format!("tools[{position}]"), tool));
        }
        let names: Vec<&str> = list.iter().map(name_of).collect();
        let callable = choice.callable(&names)?;
        let expected_calls = match choice {
            Choice::Free if are_read => ExpectedCalls::AsWritten,
            Choice::Free | Choice::Hidden => ExpectedCalls::None,
            Choice::Required(_) => ExpectedCalls::List,
            Choice::Named(ref name) => ExpectedCalls::Of(name.clone()),
        };
        // A model that is not shown the tools cannot call them: that is what "none" asks for.
        let is_hidden = list.is_empty() || choice == Choice::Hidden;
        let shown = (!is_hidden).then(|| Arc::new(Value::Array(list)));
        Ok(Self { shown, expected_calls, may_call_several, callable })
    }

    /// A function that is to be strict though nothing holds the answer to it.
    pub(super) fn unheld_function(&self) -> Option<&str> {
        let tools =
            self.shown.as_ref().filter(|_| self.expected_calls == ExpectedCalls::AsWritten)?.as_array()?;
        let strict = |tool: &&Value| function_of(tool).get("strict") == Some(&Value::Bool(true));
        tools.iter().find(strict).map(name_of)
    }

    /// What the answer is held to, if it has to call.
    pub(super) fn constraint(&self) -> Result<Option<AnswerConstraint>, RequestError> {
        let Some(tools) = self.shown.as_ref().and_then(|tools| tools.as_array()) else { return Ok(None) };
        let arguments = |place: usize| arguments_schema(&tools[place], place);
        let schema = match (&self.expected_calls, self.callable.as_slice()) {
            (ExpectedCalls::Of(_), [place, ..]) => arguments(*place)?,
            (ExpectedCalls::List, places) => {
                let mut definitions = Map::new();
                let mut calls = Vec::new();
                for place in places {
                    let name = format!("tool_{place}");
                    let mut schema = arguments(*place)?;
                    move_references(&mut schema, &format!("#/$defs/{name}"));
                    calls.push(json!({
                        "type": "object",
                        "properties": {
                            "name": {"const": name_of(&tools[*place])},
                            "parameters": {"$ref": format!("#/$defs/{name}")},
                        },
                        "required": ["name", "parameters"],
                        "additionalProperties": false,
                    }));
                    definitions.insert(name, schema);
                }
                let mut list =
                    json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions});
                if !self.may_call_several {
                    list["maxItems"] = json!(1);
                }
                list
            }
            _ => return Ok(None),
        };
        let constraint = Constraint::Json { schema, options: JsonOptions::default() };
        Ok(Some(AnswerConstraint { param: "tool_choice".to_owned(), constraint: Arc::new(constraint) }))
    }
}

/// What is told of a function that is to be strict though nothing holds the answer to it.
pub(super) fn not_held(name: &str) -> String {
    format!(
        "tools: {name:?} is to be strict, but calls that the model is free to make are not held to their schema; they \
         are with tool_choice \"required\" or a function's name"
    )
}

/// What `tool_choice` says.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Free,
    Hidden,
    /// Any of the tools, or of those that are named.
    Required(Option<Vec<String>>),
    Named(String),
}

impl Choice {
    fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        const PARAM: &str = "tool_choice";
        let wrong = || {
            let reason = "must be \"auto\", \"none\", \"required\", {\"type\": \"function\", \"function\": {\"name\": …}} or \
                          {\"type\": \"allowed_tools\", …}";
            RequestError::unsupported(PARAM, reason)
        };
        let choice = match fields.take(PARAM) {
            None => return Ok(Self::Free),
            Some(Value::String(word)) => {
                return match word.as_str() {
                    "auto" => Ok(Self::Free),
                    "none" => Ok(Self::Hidden),
                    // The second is Mistral's word.
                    "required" | "any" => Ok(Self::Required(None)),
                    _ => Err(wrong()),
                };
            }
            Some(Value::Object(choice)) => choice,
            Some(other) => return Err(expected("a word or an object", PARAM, &other)),
        };
        match choice.get("type").and_then(Value::as_str) {
            Some("function") | None => {
                let name =
                    choice.get("function").and_then(|function| function.get("name")).or(choice.get("name"));
                match name {
                    Some(Value::String(name)) => Ok(Self::Named(name.clone())),
                    _ => Err(RequestError::missing(
                        "tool_choice.function.name",
                        "says which function is called",
                    )),
                }
            }
            Some("allowed_tools") => {
                let allowed = choice.get("allowed_tools").unwrap_or(&Value::Null);
                match allowed.get("mode").and_then(Value::as_str) {
                    Some("required") => {}
                    _ => {
                        let reason = "must be \"required\": calls that the model is free to make are not limited to some tools";
                        return Err(RequestError::unsupported("tool_choice.allowed_tools.mode", reason));
                    }
                }
                let tools = allowed.get("tools").and_then(Value::as_array).filter(|tools| !tools.is_empty());
                let tools = tools.ok_or_else(|| {
                    RequestError::missing("tool_choice.allowed_tools.tools", "lists the tools")
                })?;
                Ok(Self::Required(Some(tools.iter().map(|tool| name_of(tool).to_owned()).collect())))
            }
            Some(_) => Err(wrong()),
        }
    }

    /// The places of the tools that it asks for.
    fn callable(&self, names: &[&str]) -> Result<Vec<usize>, RequestError> {
        let place_of = |name: &String| {
            names.iter().position(|known| known == name).ok_or_else(|| {
                let reason = format!("{name:?} is none of the tools, which are {}", names.join(", "));
                RequestError::invalid("tool_choice", reason)
            })
        };
        match self {
            Self::Free | Self::Hidden => Ok(Vec::new()),
            _ if names.is_empty() => {
                Err(RequestError::invalid("tool_choice", "asks for a call, but there are no tools"))
            }
            Self::Required(None) => Ok((0..names.len()).collect()),
            Self::Required(Some(allowed)) => allowed.iter().map(place_of).collect(),
            Self::Named(name) => Ok(vec![place_of(name)?]),
        }
    }
}

/// Some clients list functions without the object around them.
fn function_of(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

fn name_of(tool: &Value) -> &str {
    function_of(tool).get("name").and_then(Value::as_str).unwrap_or_default()
}

/// The schema of a function's arguments, which are an object.
fn arguments_schema(tool: &Value, place: usize) -> Result<Value, RequestError> {
    let param = format!("tools[{place}].function.parameters");
    if name_of(tool).is_empty() {
        return Err(RequestError::missing(
            &format!("tools[{place}].function.name"),
            "a call names its function",
        ));
    }
    match function_of(tool).get("parameters").unwrap_or(&Value::Null) {
        Value::Null => Ok(json!({"type": "object", "additionalProperties": false})),
        Value::Object(schema) => {
            let mut schema = schema.clone();
            match schema.entry("type").or_insert_with(|| json!("object")) {
                Value::String(kind) if kind == "object" => Ok(Value::Object(schema)),
                other => Err(RequestError::invalid(
                    &param,
                    format!("describes {other}, but arguments are an object"),
                )),
            }
        }
        other => Err(expected("a JSON schema", &param, other)),
    }
}

/// Has references within a schema start from where it is now: those by place, unless the schema has an id that
/// they are relative to. What values are to be equal to is no schema.
fn move_references(schema: &mut Value, root: &str) {
    const VALUES: [&str; 4] = ["const", "enum", "default", "examples"];
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, root)),
        Value::Object(members) if members.get("$id").is_some_and(Value::is_string) => {}
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(target) if name == "$ref" => {
                        let place = target.strip_prefix('#');
                        if let Some(rest) = place.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                            *target = format!("{root}{rest}");
                        }
                    }
                    _ if VALUES.contains(&name.as_str()) => {}
                    value => move_references(value, root),
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(request: Value) -> Result<(Tools, Option<Value>), String> {
        let Value::Object(request) = request else { panic!("an object") };
        let mut fields = Fields::new(request);
        let tools = Tools::take(&mut fields).map_err(|error| error.message)?;
        let constraint = tools.constraint().map_err(|error| error.message)?;
        let schema = constraint.map(|asked| match &*asked.constraint {
            Constraint::Json { schema, .. } => schema.clone(),
            other => panic!("{other:?}"),
        });
        Ok((tools, schema))
    }

    fn tools() -> Value {
        json!([
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object",
                "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "integer"}}}}},
            {"type": "function", "function": {"name": "g"}},
        ])
    }

    #[test]
    fn a_free_choice_holds_to_nothing_and_none_hides() {
        for (choice, is_shown, expected) in [
            (Value::Null, true, ExpectedCalls::AsWritten),
            (json!("auto"), true, ExpectedCalls::AsWritten),
            (json!("none"), false, ExpectedCalls::None),
        ] {
            let (taken, schema) = taken(json!({"tools": tools(), "tool_choice": choice})).expect("sound");
            assert_eq!((taken.shown.is_some(), taken.expected_calls, schema), (is_shown, expected, None));
        }
        let (unread, _) = taken(json!({"tools": tools(), "parse_tool_calls": false})).expect("sound");
        assert_eq!(unread.expected_calls, ExpectedCalls::None);
    }

    #[test]
    fn a_named_function_is_held_to_its_arguments() {
        let choice = json!({"type": "function", "function": {"name": "f"}});
        let (named, schema) = taken(json!({"tools": tools(), "tool_choice": choice})).expect("sound");
        assert_eq!(named.expected_calls, ExpectedCalls::Of("f".into()));
        assert_eq!(schema.as_ref(), Some(&tools()[0]["function"]["parameters"]));
    }

    #[test]
    fn a_required_call_is_one_of_the_tools_and_their_references_still_hold() {
        let (_, schema) =
            taken(json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false}))
                .expect("sound");
        let schema = schema.expect("it is held to calls");
        assert_eq!((&schema["minItems"], &schema["maxItems"]), (&json!(1), &json!(1)));
        let names: Vec<&Value> = schema["items"]["anyOf"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|call| &call["properties"]["name"]["const"])
            .collect();
        assert_eq!(names, ["f", "g"]);
        assert_eq!(schema["$defs"]["tool_0"]["properties"]["a"]["$ref"], "#/$defs/tool_0/$defs/A");
        let validator = jsonschema::validator_for(&schema).expect("it is a schema");
        let call = |name: &str, parameters: Value| json!([{"name": name, "parameters": parameters}]);
        assert!(validator.is_valid(&call("f", json!({"a": 1}))) && validator.is_valid(&call("g", json!({}))));
        for bad in [call("f", json!({"a": "x"})), call("h", json!({})), json!([]), call("g", json!({"x": 1}))]
        {
            assert!(!validator.is_valid(&bad), "{bad}");
        }
        let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
            "tools": [{"type": "function", "function": {"name": "g"}}]}});
        let (_, schema) = taken(json!({"tools": tools(), "tool_choice": allowed})).expect("sound");
        assert_eq!(schema.expect("held")["items"]["anyOf"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn what_cannot_be_asked_for_is_named() {
        for (request, param) in [
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": tools(), "tool_choice": "always"}), "tool_choice"),
            (json!({"tools": tools(), "tool_choice": 5}), "tool_choice"),
            (json!({"tools": tools(), "tool_choice": {"type": "custom"}}), "tool_choice"),
            (json!({"tools": tools(), "tool_choice": {"type": "function"}}), "tool_choice.function.name"),
            (
                json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "h"}}}),
                "tool_choice",
            ),
            (
                json!({"tools": tools(), "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "f"}]}}}),
                "tool_choice.allowed_tools.mode",
            ),
            (
                json!({"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}], "tool_choice": "required"}),
                "tools[0].function.parameters",
            ),
            (json!({"tools": [{"function": {}}], "tool_choice": "required"}), "tools[0].function.name"),
            (json!({"tools": [5]}), "tools[0]"),
            (json!({"tools": {}}), "tools"),
        ] {
            let problem = taken(request.clone()).expect_err("it cannot be asked for");
            assert!(problem.starts_with(&format!("{param}: ")), "{request}: {problem}");
        }
    }

    #[test]
    fn a_strict_function_that_nothing_holds_is_told() {
        let strict = json!([{"type": "function", "function": {"name": "f", "strict": true}}]);
        let free = taken(json!({"tools": strict})).expect("sound").0;
        assert_eq!(free.unheld_function(), Some("f"));
        let held = taken(json!({"tools": strict, "tool_choice": "required"})).expect("sound").0;
        assert_eq!(held.unheld_function(), None);
    }
}
