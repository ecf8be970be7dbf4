//! Arguments that are written as bare text.
//!
//! Owns what value a text is by the schema of the tool that is called.

use serde_json::Value;

use crate::json;

/// What a tool says of its function; some lists have the functions themselves.
pub(super) fn function_of(tool: &Value) -> &Value {
    tool.get("function").unwrap_or(tool)
}

/// The value of one argument of a function.
pub(super) fn by_schema(text: &str, tools: Option<&Value>, function: &str, argument: &str) -> Value {
    let tools = tools.and_then(Value::as_array);
    let described =
        tools.and_then(|tools| tools.iter().map(function_of).find(|tool| tool["name"] == function));
    let parameters = described.map(|tool| &tool["parameters"]);
    let mut types = Vec::new();
    if let Some(parameters) = parameters {
        collect_types(&parameters["properties"][argument], parameters, MAX_REFERENCES, &mut types);
    }
    let trimmed = text.trim();
    let allows = |name: &str| types.iter().any(|known| known == name);
    if allows("null") && trimmed.eq_ignore_ascii_case("null") {
        return Value::Null;
    }
    // What nobody describes is the text that it is.
    if types.is_empty() || types.iter().all(|known| known == "string" || known == "null") {
        return Value::String(text.to_owned());
    }
    match json_or_text(text) {
        Value::String(_) if allows("boolean") && trimmed.eq_ignore_ascii_case("true") => Value::Bool(true),
        Value::String(_) if allows("boolean") && trimmed.eq_ignore_ascii_case("false") => Value::Bool(false),
        value if allows("string") && !is_of(&value, &types) => Value::String(text.to_owned()),
        value => value,
    }
}

/// JSON where it is such, else the text.
pub(super) fn json_or_text(text: &str) -> Value {
    json::parse(text.trim()).map_or_else(|_| Value::String(text.to_owned()), |parsed| parsed.value)
}

fn is_of(value: &Value, types: &[String]) -> bool {
    let names: &[&str] = match value {
        Value::Null => &["null"],
        Value::Bool(_) => &["boolean"],
        Value::Number(number) if number.is_i64() || number.is_u64() => &["integer", "number"],
        Value::Number(_) => &["number"],
        Value::String(_) => &["string"],
        Value::Array(_) => &["array"],
        Value::Object(_) => &["object"],
    };
    names.iter().any(|name| types.iter().any(|known| known == name))
}

/// References that are followed, one from the other.
const MAX_REFERENCES: usize = 16;

/// The types that a schema names, itself, in its alternatives or where it refers to; an enumeration has those of its
/// values. `root` is what references start from.
fn collect_types(schema: &Value, root: &Value, num_references: usize, types: &mut Vec<String>) {
    let num_before = types.len();
    match &schema["type"] {
        Value::String(name) => types.push(name.to_lowercase()),
        Value::Array(names) => types.extend(names.iter().filter_map(Value::as_str).map(str::to_lowercase)),
        _ => {}
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let alternatives = schema[key].as_array().into_iter().flatten();
        alternatives.for_each(|schema| collect_types(schema, root, num_references, types));
    }
    if let (Some(target), 1..) = (schema["$ref"].as_str(), num_references) {
        match target.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) {
            Some(found) => collect_types(found, root, num_references - 1, types),
            None => types.push("object".to_owned()),
        }
    }
    if types.len() == num_before {
        let values = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
        types.extend(values.map(|value| match value {
            Value::String(_) => "string".to_owned(),
            Value::Bool(_) => "boolean".to_owned(),
            Value::Null => "null".to_owned(),
            Value::Number(_) => "number".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        }));
    }
}
