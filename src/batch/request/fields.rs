//! Typed access to the fields of a JSON object.
//!
//! Owns the wording of type and range errors, and which fields nobody asked for. What the fields
//! mean is for its callers.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::super::line_error::RequestError;

/// The fields of a request that are not taken yet; `null` counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub fn new(object: Map<String, Value>) -> Self {
        Self(object)
    }

    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.swap_remove(name).filter(|value| !value.is_null())
    }

    pub fn take_string(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected("a string", name, &other)),
        }
    }

    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(expected("true or false", name, &other)),
        }
    }

    pub fn take_object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => Err(expected("an object", name, &other)),
        }
    }

    pub fn take_number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f32>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        // What is beyond all floats is infinite here, and out of range.
        let number = value.as_number().and_then(|number| number.to_string().parse::<f64>().ok());
        let number = number.ok_or_else(|| expected("a number", name, &value))?;
        if !range.contains(&number) {
            let reason = format!("must be from {} to {}, not {value}", range.start(), range.end());
            return Err(RequestError::invalid(name, reason));
        }
        Ok(Some(number as f32))
    }

    /// Takes a whole number; `64.0` is one, since data frames write integers so.
    pub fn take_integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let integer = as_integer(&value).ok_or_else(|| expected("a whole number", name, &value))?;
        if !range.contains(&integer) {
            let reason = format!("must be from {} to {}, not {value}", range.start(), range.end());
            return Err(RequestError::invalid(name, reason));
        }
        Ok(Some(integer))
    }

    /// The names that were not taken.
    pub fn into_unknown_names(self) -> impl Iterator<Item = String> {
        self.0.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name)
    }
}

fn as_integer(value: &Value) -> Option<i128> {
    if let Some(integer) = value.as_number().and_then(serde_json::Number::as_i128) {
        return Some(integer);
    }
    // Above 2^53 a float does not name one integer any more.
    value
        .as_f64()
        .filter(|number| number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0)
        .map(|number| number as i128)
}

/// The error of a field that holds another type than expected.
pub(super) fn expected(what: &str, param: &str, found: &Value) -> RequestError {
    RequestError::wrong_type(param, format!("must be {what}, not {}", type_name(found)))
}

/// Names a value's JSON type for a message.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fractional number",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
