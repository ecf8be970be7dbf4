//! Numbers of a request inside a template, with no digit lost.
//!
//! Owns how a JSON number prints: as the publisher's Python would print it where that is the same
//! number, else in the request's own digits. Integers of any length are the same in both; `1E5` is
//! 100000.0 in Python and here; `-0`, `1e400` and a decimal longer than a float holds would lose
//! something there (their sign, their value, their last digits) and print as they were written.

use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr, ValueKind};

use super::json::python_float;

/// A number that prints as this text; templates cannot calculate with it.
struct Digits(String);

impl fmt::Debug for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Object for Digits {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Turns a JSON number into the template's own value.
pub(super) fn from_json(number: &serde_json::Number) -> Value {
    let text = number.to_string();
    if is_integer_text(&text) {
        // An integer has no sign at zero, in Python or here.
        let native = if text == "-0" { None } else { native_integer(&text) };
        return native.unwrap_or_else(|| Value::from_object(Digits(text)));
    }
    let float = number.as_f64().filter(|float| same_decimal(&python_float(*float), &text));
    let Some(float) = float else { return Value::from_object(Digits(text)) };
    let native = Value::from(float);
    match python_float(float) {
        // Joining texts does not ask us how a float is written.
        python if native.to_string() != python => Value::from_object(Digits(python)),
        _ => native,
    }
}

/// The text of a number that is kept by its digits.
pub(super) fn digits_of(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<Digits>().map(|digits| digits.0.as_str())
}

pub(super) fn is_number(value: &Value) -> bool {
    value.kind() == ValueKind::Number || digits_of(value).is_some()
}

pub(super) fn is_integer(value: &Value) -> bool {
    value.is_integer() || digits_of(value).is_some_and(is_integer_text)
}

pub(super) fn is_float(value: &Value) -> bool {
    is_number(value) && !is_integer(value)
}

fn is_integer_text(text: &str) -> bool {
    !text.contains(['.', 'e', 'E'])
}

fn native_integer(text: &str) -> Option<Value> {
    let signed = text.parse::<i128>().map(Value::from).ok();
    signed.or_else(|| text.parse::<u128>().map(Value::from).ok())
}

fn same_decimal(a: &str, b: &str) -> bool {
    matches!((Decimal::of(a), Decimal::of(b)), (Some(a), Some(b)) if a == b)
}

/// A decimal number: digits without zeros at either end, times a power of ten.
#[derive(PartialEq, Eq)]
struct Decimal {
    is_negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads JSON's and Python's spelling; nothing for an exponent beyond all bounds.
    fn of(text: &str) -> Option<Self> {
        let (is_negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        let kept = digits.trim_end_matches('0');
        let num_dropped = i64::try_from(digits.len() - kept.len()).ok()?;
        let exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?.checked_add(num_dropped)?;
        let digits = kept.trim_start_matches('0').to_owned();
        let exponent = if digits.is_empty() { 0 } else { exponent };
        Some(Self { is_negative, digits, exponent })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::jinja::Program;

    /// Integers beyond 64 bits came to templates as rounded floats, and `1e400` made the whole line
    /// an error.
    #[test]
    fn numbers_print_as_in_python_unless_that_loses_something() {
        let long = "1".repeat(60);
        for (given, printed) in [
            ("1", "1"),
            ("-7", "-7"),
            ("0", "0"),
            ("12345678901234567890123", "12345678901234567890123"),
            ("-12345678901234567890123", "-12345678901234567890123"),
            (long.as_str(), long.as_str()),
            ("18446744073709551616", "18446744073709551616"),
            ("1.0", "1.0"),
            ("1E5", "100000.0"),
            ("1e5", "100000.0"),
            ("2.50", "2.5"),
            ("-0.0", "-0.0"),
            ("0.1", "0.1"),
            ("1e22", "1e+22"),
            ("1e-7", "1e-07"),
            ("100000000000000000.0", "1e+17"),
            ("-0", "-0"),
            ("1e400", "1e400"),
            ("1E400", "1E400"),
            ("1e99999999999999999999", "1e99999999999999999999"),
            ("1e-400", "1e-400"),
            ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
            ("3.14159265358979323846", "3.14159265358979323846"),
        ] {
            let number = crate::json::parse(given).expect("JSON").value;
            let template = "{{ n }} {{ n|tojson }} {{ 'a' ~ n }} {{ n|string }} {{ [n] }} {{ {'k': n}|tojson }} \
                            {{ n is number }}{{ n is string }}";
            let program = Program::compile("test", template).expect("compiles");
            let expected = format!(
                "{printed} {printed} a{printed} {printed} [{printed}] {{\"k\": {printed}}} TrueFalse"
            );
            // `json!` would write the number anew.
            let variables = serde_json::Map::from_iter([("n".to_owned(), number)]);
            assert_eq!(program.render(variables.into()).expect("renders"), expected, "{given}");
        }
    }

    #[test]
    fn native_numbers_can_be_calculated_with() {
        let numbers: serde_json::Value = serde_json::from_str("[1E5, 7]").expect("JSON");
        let program = Program::compile("test", "{{ n[0] + n[1] }} {{ n[1] + 1 }} {{ n[1] is integer }}");
        let text = program.expect("compiles").render(json!({"n": numbers}));
        assert_eq!(text.expect("renders"), "100007.0 8 True");
    }

    /// Numbers with all their digits are kept apart by the JSON library in a way that tagged forms
    /// once could not read: a tokenizer's scores must still load.
    #[test]
    fn a_tokenizer_with_fractional_scores_loads() {
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5e0], ["b", -2.25]]},
        });
        let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).expect("loads");
        assert_eq!(tokenizer.encode_fast("ab", false).expect("encodes").get_ids(), [1, 2]);
    }
}
