//! The Jinja environment that chat templates run in.
//!
//! Owns its likeness to the one transformers uses (Jinja2 in a sandbox, with Python's values) and
//! the limits on a template, which is untrusted data: no file or network access exists here, and
//! time and memory are bounded by fuel.

use std::fmt;
use std::sync::Arc;

use chrono::{Local, NaiveDateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::{json, numbers};
use crate::text::TextError;

/// Fuel every render has: an instruction costs 1, 64 bytes of data cost 1.
const BASE_FUEL: u64 = 1_000_000;
/// Fuel for every JSON value of the request; real templates need about a tenth.
const FUEL_PER_VALUE: u64 = 1_000;
/// Fuel for every byte of the request: enough to copy each of them 64 times.
const FUEL_PER_BYTE: u64 = 1;
const MAX_FUEL: u64 = 16_000_000;
/// Lists nested by a template are freed by recursion, on the stack; a unit of fuel buys at most
/// one level, for which about 50 bytes were measured. Only what is used takes memory.
const STACK_BYTES_PER_FUEL: u64 = 96;
const BASE_STACK_BYTES: u64 = 4 << 20;

const NAME: &str = "chat_template";

/// Tells the local time; replaced in tests.
pub(super) type Clock = Arc<dyn Fn() -> NaiveDateTime + Send + Sync>;

/// A compiled template.
pub(super) struct Program {
    environment: Environment<'static>,
    origin: String,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Marks the error that `raise_exception` makes, with the template's own message.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl Program {
    /// Compiles a template; `origin` says in error messages where it came from.
    pub(super) fn compile(origin: &str, source: &str) -> Result<Program, TextError> {
        Program::with_clock(origin, source, Arc::new(|| Local::now().naive_local()))
    }

    /// Compiles a template that is told the time by `clock`.
    pub(super) fn with_clock(origin: &str, source: &str, clock: Clock) -> Result<Program, TextError> {
        let syntax = |message: String, line: usize| TextError::TemplateSyntax {
            origin: origin.to_owned(),
            line,
            message,
        };
        let mut environment = Environment::new();
        let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(config.map_err(|e| syntax(describe(&e), 0))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(python_method);
        environment.set_formatter(write_value);
        environment.add_filter("tojson", json::tojson);
        environment.add_test("sequence", is_sequence);
        environment.add_test("iterable", is_iterable);
        environment.add_test("number", numbers::is_number);
        for name in ["integer", "int"] {
            environment.add_test(name, numbers::is_integer);
        }
        environment.add_test("float", numbers::is_float);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| strftime(clock(), format));
        environment
            .add_template_owned(NAME, neutralize_generation_tags(source))
            .map_err(|e| syntax(describe(&e), e.line().unwrap_or(0)))?;
        Ok(Program { environment, origin: origin.to_owned() })
    }

    /// Renders with a JSON object's members as variables.
    pub(super) fn render(&self, variables: serde_json::Value) -> Result<String, TextError> {
        let fuel = BASE_FUEL.saturating_add(fuel_for(&variables)).min(MAX_FUEL);
        let stack_bytes = BASE_STACK_BYTES + fuel * STACK_BYTES_PER_FUEL;
        let failed =
            |message: String| TextError::TemplateFailed { origin: self.origin.clone(), line: 0, message };
        let stack_bytes = usize::try_from(stack_bytes).map_err(|e| failed(e.to_string()))?;
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("chat template".to_owned())
                .stack_size(stack_bytes)
                .spawn_scoped(scope, || self.render_here(variables, fuel))
                .map_err(|e| failed(format!("no thread can be started for it: {e}")))?
                .join()
                .unwrap_or_else(|_| Err(failed("the template engine panicked".to_owned())))
        })
    }

    /// Renders on the current stack.
    fn render_here(&self, variables: serde_json::Value, fuel: u64) -> Result<String, TextError> {
        // The environment is a handful of shared pointers; fuel is set per render in a copy.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        environment
            .get_template(NAME)
            .and_then(|template| template.render(template_value(variables)))
            .map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &Error) -> TextError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(next) = cause {
            if let Some(Raised(message)) = next.downcast_ref() {
                return TextError::TemplateRaised(message.clone());
            }
            cause = next.source();
        }
        let message = match error.kind() {
            ErrorKind::OutOfFuel => "it computes without end or makes too much text".to_owned(),
            _ => describe(error),
        };
        TextError::TemplateFailed { origin: self.origin.clone(), line: error.line().unwrap_or(0), message }
    }
}

/// Writes an error's kind and detail, without the name and line that are told elsewhere.
fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Turns JSON into the template's own values; key order is kept.
fn template_value(json: serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(b),
        serde_json::Value::Number(number) => numbers::from_json(&number),
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => items.into_iter().map(template_value).collect(),
        serde_json::Value::Object(members) => {
            Value::from_pairs(members.into_iter().map(|(key, value)| (key, template_value(value))))
        }
    }
}

/// Sums up the fuel that a request's size justifies.
fn fuel_for(value: &serde_json::Value) -> u64 {
    let inner = match value {
        serde_json::Value::String(text) => FUEL_PER_BYTE.saturating_mul(text.len() as u64),
        serde_json::Value::Array(items) => items.iter().map(fuel_for).fold(0, u64::saturating_add),
        serde_json::Value::Object(members) => members
            .iter()
            .map(|(key, value)| fuel_for(value).saturating_add(key.len() as u64))
            .fold(0, u64::saturating_add),
        _ => 0,
    };
    inner.saturating_add(FUEL_PER_VALUE)
}

/// Turns `{% generation %}` blocks, which mark answers for training, into plain scopes.
fn neutralize_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        rest = tag;
        let inner = tag.trim_start_matches(['-', '+']);
        let word = inner.trim_start();
        for (name, replacement) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = word.strip_prefix(name) else {
                continue;
            };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                // What stands between the bracket and the name is kept: whitespace control counts.
                out.push_str(&tag[..tag.len() - word.len()]);
                out.push_str(replacement);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match json::as_float(value) {
        Some(x) => out.write_str(&json::python_float(x)).map_err(Error::from),
        None => minijinja::escape_formatter(out, state, value),
    }
}

/// Jinja2's test: whatever has a length and indices, strings and mappings included.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

/// Jinja2's test: whatever Python can iterate over.
fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || matches!(value.kind(), ValueKind::Iterable | ValueKind::Bytes)
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Formats the time as Python's `datetime.strftime` does for a time without zone.
fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    use fmt::Write as _;
    let mut text = String::new();
    let without_zone = format.replace("%Z", "").replace("%z", "");
    // chrono reports an unknown directive by failing to format.
    write!(text, "{}", now.format(&without_zone)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot use the format {format:?}"))
    })?;
    Ok(text)
}

/// Python's methods: those of minijinja-contrib and a few that it lacks.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let known = minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args);
    if !known.as_ref().is_err_and(|e| e.kind() == ErrorKind::UnknownMethod) {
        return known;
    }
    let (Some(text), [arg, rest @ ..]) = (value.as_str(), args) else {
        return known;
    };
    let Some(arg) = arg.as_str() else {
        return known;
    };
    match (method, rest) {
        ("removeprefix", []) => Ok(text.strip_prefix(arg).unwrap_or(text).into()),
        ("removesuffix", []) => Ok(text.strip_suffix(arg).unwrap_or(text).into()),
        ("partition", []) if !arg.is_empty() => Ok(match text.split_once(arg) {
            Some((before, after)) => list(&[before, arg, after]),
            None => list(&[text, "", ""]),
        }),
        ("rpartition", []) if !arg.is_empty() => Ok(match text.rsplit_once(arg) {
            Some((before, after)) => list(&[before, arg, after]),
            None => list(&["", "", text]),
        }),
        ("rsplit", rest) if !arg.is_empty() => {
            let max = rest.first().and_then(|n| usize::try_from(n.clone()).ok());
            let mut parts: Vec<&str> = match max {
                Some(max) => text.rsplitn(max.saturating_add(1), arg).collect(),
                None => text.rsplit(arg).collect(),
            };
            parts.reverse();
            Ok(list(&parts))
        }
        _ => known,
    }
}

fn list(texts: &[&str]) -> Value {
    texts.iter().map(|text| Value::from(*text)).collect()
}
