//! The `tojson` filter: JSON exactly as Python's `json.dumps` writes it.
//!
//! Owns separators, escapes and number formats, because models were trained on them. Work is
//! paid for from the template's fuel as it is done.

use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;

use super::numbers::digits_of;
use crate::jinja::ensure_fits;

/// Values that a template nests deeper than this are refused; requests cannot be that deep.
const MAX_DEPTH: usize = 200;

/// The filter, with transformers' arguments.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = kwargs.get::<Option<usize>>("indent")?;
    let separators = match kwargs.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let texts: Vec<Value> = pair.try_iter()?.take(3).collect();
            match texts.as_slice() {
                [item, key] => {
                    ensure_fits(state, item)?;
                    ensure_fits(state, key)?;
                    (item.to_string(), key.to_string())
                }
                _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be a pair")),
            }
        }
        _ if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    kwargs.assert_all_used()?;
    // What is written below is paid for as it is; a list of many references to one text would be written for long.
    ensure_fits(state, value)?;
    let mut writer = Writer { state, ensure_ascii, indent, separators, sort_keys, out: String::new() };
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// Writes a float as Python's `repr` does.
pub(super) fn python_float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust's debug form has the same digits and thresholds; its exponent lacks sign and padding.
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

/// Returns the float that a value is, unless it is an integer or no number.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    (value.kind() == ValueKind::Number && !value.is_integer())
        .then(|| f64::try_from(value.clone()).ok())
        .flatten()
}

/// Writes JSON with Python's spacing, and numbers in their own digits.
pub(super) fn dumps(value: &serde_json::Value) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonSpacing);
    value.serialize(&mut serializer).expect("JSON values have string keys, and memory takes all");
    String::from_utf8(out).expect("JSON text is UTF-8")
}

struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        if is_first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, is_first: bool) -> io::Result<()> {
        self.begin_array_value(out, is_first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

struct Writer<'a, 'b> {
    state: &'a State<'b, 'b>,
    ensure_ascii: bool,
    indent: Option<usize>,
    separators: (String, String),
    sort_keys: bool,
    out: String,
}

impl Writer<'_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is nested too deeply for tojson"));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.items('[', ']', value.try_iter()?, depth, |writer, item, depth| {
                    writer.value(&item, depth)
                })?;
            }
            ValueKind::Map => self.map(value, depth)?,
            other => {
                let digits = digits_of(value).ok_or_else(|| {
                    let reason = format!("a value of type {other} cannot be written as JSON");
                    Error::new(ErrorKind::InvalidOperation, reason)
                })?;
                self.out.push_str(digits);
            }
        }
        Ok(())
    }

    fn map(&mut self, map: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<Value> = map.try_iter()?.collect();
        if self.sort_keys {
            keys.sort();
        }
        self.items('{', '}', keys.into_iter(), depth, |writer, key, depth| {
            match key.kind() {
                ValueKind::String => writer.string(key.as_str().unwrap_or_default())?,
                ValueKind::None => writer.string("null")?,
                ValueKind::Bool => writer.string(if key.is_true() { "true" } else { "false" })?,
                _ => {
                    ensure_fits(writer.state, &key)?;
                    writer.string(&number(&key))?;
                }
            }
            let separator = writer.separators.1.clone();
            writer.separator(&separator)?;
            writer.value(&map.get_item(&key)?, depth)
        })
    }

    /// Writes brackets, separators and line breaks around the items.
    fn items(
        &mut self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                let separator = self.separators.0.clone();
                self.separator(&separator)?;
            }
            is_empty = false;
            self.line_break(depth + 1)?;
            write(self, item, depth + 1)?;
        }
        if !is_empty {
            self.line_break(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    fn separator(&mut self, text: &str) -> Result<(), Error> {
        // The template chooses it.
        self.state.consume_fuel(text.len() as u64 / 64)?;
        self.out.push_str(text);
        Ok(())
    }

    fn line_break(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            let num_spaces = indent.saturating_mul(depth);
            // Paid before it is made: the template chooses the indent.
            self.state.consume_fuel(num_spaces as u64 / 64)?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', num_spaces));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.state.consume_fuel(text.len() as u64 / 64)?;
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }
}

fn number(value: &Value) -> String {
    match as_float(value) {
        Some(x) if x.is_nan() => "NaN".to_owned(),
        Some(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(x) => python_float(x),
        None => value.to_string(),
    }
}
