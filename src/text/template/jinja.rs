//! The Jinja environment that chat templates run in.
//!
//! Owns its likeness to the one transformers uses (Jinja2 in a sandbox, with Python's values) and
//! how much a template may compute, which is untrusted data: no file or network access exists here, memory
//! is bounded by fuel, time by fuel and by how long is waited. How it is held to that is `crate::jinja`'s.

use std::fmt;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use chrono::{Local, NaiveDateTime};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};

use super::{json, numbers};
use crate::{
    deep::{NotDone, PATIENCE, fingerprint},
    jinja::{self, KEPT_FUEL},
    text::TextError,
};

/// The largest template in use has some 20,000 bytes.
pub(super) const MAX_TEMPLATE_BYTES: usize = 128 << 10;
/// Fuel every render has: an instruction costs 1, 64 bytes of data cost 1.
const BASE_FUEL: u64 = 1_000_000;
/// Fuel for every JSON value of the request; real templates need about a tenth.
const FUEL_PER_VALUE: u64 = 1_000;
/// Fuel for every byte of the request: enough to copy each of them 64 times.
const FUEL_PER_BYTE: u64 = 1;
const MAX_FUEL: u64 = 16_000_000;
/// What has more fuel may take more time: a hundred times what is usual for it.
const PATIENCE_PER_MILLION_FUEL: Duration = Duration::from_secs(10);

/// Each two of them may become a date in words.
const MAX_TIME_FORMAT_BYTES: usize = 4 << 10;

const NAME: &str = "chat_template";

/// Tells the local time; replaced in tests.
pub(super) type Clock = Arc<dyn Fn() -> NaiveDateTime + Send + Sync>;

/// A compiled template.
pub(super) struct Program {
    environment: Environment<'static>,
    origin: Arc<str>,
    fingerprint: u64,
    /// It was waited for once in vain, and is not run again.
    is_endless: AtomicBool,
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
        let origin: Arc<str> = origin.into();
        let failed =
            |message: String| TextError::TemplateSyntax { origin: origin.to_string(), line: 0, message };
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(failed(format!(
                "it has {} bytes; at most {MAX_TEMPLATE_BYTES} are read",
                source.len()
            )));
        }
        let num_bytes = source.len();
        let (source, shown, fingerprint) = (source.to_owned(), Arc::clone(&origin), fingerprint(&source));
        let compile = move || environment(&shown, &source, clock);
        let compiled = jinja::compile(num_bytes, PATIENCE, fingerprint, compile);
        let environment = compiled.map_err(|why| not_done(why, failed))??;
        Ok(Program { environment, origin, fingerprint, is_endless: AtomicBool::new(false) })
    }

    /// Renders with a JSON object's members as variables.
    pub(super) fn render(&self, variables: serde_json::Value) -> Result<String, TextError> {
        let fuel = BASE_FUEL.saturating_add(fuel_for(&variables)).min(MAX_FUEL);
        let variables = Arc::new(variables);
        let patience = PATIENCE + PATIENCE_PER_MILLION_FUEL * ((fuel - BASE_FUEL) / 1_000_000) as u32;
        let rendered = match self.render_with(fuel.min(KEPT_FUEL), &variables, patience)? {
            Rendered::OutOfFuel(_) if fuel > KEPT_FUEL => self.render_with(fuel, &variables, patience)?,
            rendered => rendered,
        };
        match rendered {
            Rendered::Text(text) => Ok(text),
            Rendered::OutOfFuel(error) => Err(error),
        }
    }

    pub(super) fn render_with(
        &self,
        fuel: u64,
        variables: &Arc<serde_json::Value>,
        patience: Duration,
    ) -> Result<Rendered, TextError> {
        let failed =
            |message: String| TextError::TemplateFailed { origin: self.origin.to_string(), line: 0, message };
        if self.is_endless.load(Ordering::Relaxed) {
            return Err(failed("it did not end in time before, and is not tried again".to_owned()));
        }
        let (variables, origin) = (Arc::clone(variables), Arc::clone(&self.origin));
        let fingerprint = fingerprint(&(self.fingerprint, &*variables));
        let rendered = jinja::render(&self.environment, fuel, patience, fingerprint, move |environment| {
            let rendered = environment
                .get_template(NAME)
                .and_then(|template| template.render(template_value(&variables)));
            // An error may hold values, which are freed here too.
            match rendered {
                Ok(text) => Ok(Rendered::Text(text)),
                Err(error) if error.kind() == ErrorKind::OutOfFuel => {
                    Ok(Rendered::OutOfFuel(why_it_failed(&origin, &error)))
                }
                Err(error) => Err(why_it_failed(&origin, &error)),
            }
        });
        rendered.map_err(|why| {
            self.is_endless.fetch_or(matches!(why, NotDone::TooLong(_)), Ordering::Relaxed);
            not_done(why, failed)
        })?
    }
}

/// What became of a render.
pub(super) enum Rendered {
    Text(String),
    OutOfFuel(TextError),
}

/// What transformers' environment knows, and the template in it.
fn environment(origin: &str, source: &str, clock: Clock) -> Result<Environment<'static>, TextError> {
    let syntax = |error: Error| TextError::TemplateSyntax {
        origin: origin.to_owned(),
        line: error.line().unwrap_or(0),
        message: describe(&error),
    };
    let mut environment = jinja::environment();
    let config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(config.map_err(syntax)?);
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
    let source = jinja::guarded(&neutralize_generation_tags(source));
    environment.add_template_owned(NAME, source).map_err(syntax)?;
    Ok(environment)
}

/// Says why a template was not compiled or rendered to its end.
fn not_done(why: NotDone, failed: impl FnOnce(String) -> TextError) -> TextError {
    match why {
        NotDone::TooLong(patience) => {
            failed(format!("it has not ended within {:.0} seconds", patience.as_secs_f32()))
        }
        NotDone::NotBegun(reason) => failed(reason),
        NotDone::Panicked => failed("the template engine panicked".to_owned()),
        NotDone::NoThread { stack_bytes, reason } => TextError::NoThread { stack_bytes, reason },
    }
}

fn why_it_failed(origin: &str, error: &Error) -> TextError {
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
    TextError::TemplateFailed { origin: origin.to_owned(), line: error.line().unwrap_or(0), message }
}

/// Writes an error's kind and detail, without the name and line that are told elsewhere.
fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Turns JSON into the template's own values; key order is kept.
fn template_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(number) => numbers::from_json(number),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => items.iter().map(template_value).collect(),
        serde_json::Value::Object(members) => {
            Value::from_pairs(members.iter().map(|(key, value)| (key.as_str(), template_value(value))))
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
        None => {
            jinja::ensure_shown_fits(state, value)?;
            minijinja::escape_formatter(out, state, value)
        }
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

fn raise_exception(state: &State, message: &Value) -> Result<Value, Error> {
    jinja::ensure_fits(state, message)?;
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Formats the time as Python's `datetime.strftime` does for a time without zone.
fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    use fmt::Write as _;
    if format.len() > MAX_TIME_FORMAT_BYTES {
        let problem = format!("strftime_now: a format has at most {MAX_TIME_FORMAT_BYTES} bytes");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    let mut text = String::new();
    let without_zone = format.replace("%Z", "").replace("%z", "");
    // chrono reports an unknown directive by failing to format.
    write!(text, "{}", now.format(&without_zone)).map_err(|_| {
        Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot use the format {format:?}"))
    })?;
    Ok(text)
}

/// A field that is padded to more than this is no part of a prompt.
const MAX_FORMAT_WIDTH: usize = 10_000;

/// Whether a field of a format names a width or a precision that makes far more text than there was.
fn is_format_too_wide(format: &str) -> bool {
    let (mut is_field, mut is_key, mut is_spec, mut is_within_spec) = (false, false, false, false);
    let mut number: usize = 0;
    let mut before = ' ';
    for c in format.chars() {
        match c {
            // A key in brackets may have any of these signs.
            _ if is_key => is_key = c != ']',
            '[' if is_field && !is_spec => is_key = true,
            // Two of them stand for one.
            '{' if is_field && !is_spec && before == '{' => is_field = false,
            '{' if is_spec => is_within_spec = true,
            '}' if is_within_spec => is_within_spec = false,
            '{' => (is_field, is_spec) = (true, false),
            '}' => (is_field, is_spec) = (false, false),
            ':' if is_field => is_spec = true,
            _ => {}
        }
        number = match c.to_digit(10) {
            Some(digit) if is_spec => number.saturating_mul(10).saturating_add(digit as usize),
            _ => 0,
        };
        if number > MAX_FORMAT_WIDTH {
            return true;
        }
        before = c;
    }
    false
}

/// Python's methods: those of minijinja-contrib and a few that it lacks.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format" && value.as_str().is_some_and(is_format_too_wide) {
        let problem = format!("format: a width is more than {MAX_FORMAT_WIDTH}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    if let Some(text) = value.as_str() {
        jinja::ensure_method_fits(state, text, method, args)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Some of them asked for gigabytes at once, which ended the process.
    #[test]
    fn widths_are_found_wherever_a_format_may_have_them() {
        for wide in [
            "{:>10000000000}",
            "{a[}]:>100000000000}",
            "{{[{:>20000}",
            "{{{:.20000f}",
            "{:{}>20000}",
            "{a[{]!r:>99999999999999999999999}",
        ] {
            assert!(is_format_too_wide(wide), "{wide}");
        }
        for narrow in ["{}: 1000000", "{{:>1000000}} {}", "{:>10}{:5.2f}", "{a[1000000]}", "{1000000}"] {
            assert!(!is_format_too_wide(narrow), "{narrow}");
        }
    }
}
