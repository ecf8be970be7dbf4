//! JSON text with nothing of it lost.
//!
//! Owns three things that the JSON library does otherwise: a number keeps its spelling (`1E5` would
//! become `1e+5`), half a surrogate pair, for which the whole text would be refused, becomes
//! U+FFFD (Python writes and reads such halves, where text was cut in the middle of an emoji), and
//! in a model's files infinity is a number, as Python spells it.

use serde_json::{Number, Value};

/// JSON text and what it says.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub value: Value,
    /// The text without halves of surrogate pairs, where it had any.
    pub mended: Option<String>,
}

/// Parses JSON.
pub(crate) fn parse(text: &str) -> Result<Parsed, serde_json::Error> {
    let (mut value, mended) = match serde_json::from_str(text) {
        Ok(value) => (value, None),
        Err(error) => match mend_surrogates(text) {
            Some(mended) => (serde_json::from_str(&mended)?, Some(mended)),
            None => return Err(error),
        },
    };
    restore_spelling(&mut value, text);
    Ok(Parsed { value, mended })
}

/// Parses a file that Python may have written, which spells numbers that JSON does not have: infinity becomes the
/// largest number, which is infinite in single precision, and what is no number null.
pub(crate) fn parse_python(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match mend_numbers(text) {
        Some(mended) => serde_json::from_str(&mended),
        None => Err(error),
    })
}

/// Replaces `Infinity` and `NaN` outside of strings; nothing where there are none.
fn mend_numbers(text: &str) -> Option<String> {
    let mut mended = String::new();
    let (mut num_copied, mut in_string, mut escaped) = (0, false, false);
    for (at, character) in text.char_indices() {
        let is_escaped = std::mem::take(&mut escaped);
        match character {
            '\\' if in_string && !is_escaped => escaped = true,
            '"' if !is_escaped => in_string = !in_string,
            'I' | 'N' if !in_string => {
                let spellings = [("Infinity", "1.7976931348623157e308"), ("NaN", "null")];
                let found = spellings.iter().find(|(spelling, _)| text[at..].starts_with(spelling));
                if let Some((spelling, meant)) = found {
                    mended.push_str(&text[num_copied..at]);
                    mended.push_str(meant);
                    num_copied = at + spelling.len();
                }
            }
            _ => {}
        }
    }
    (num_copied > 0).then(|| mended + &text[num_copied..])
}

/// Replaces halves of surrogate pairs by escapes of the same length; nothing where there are none.
pub(crate) fn mend_surrogates(text: &str) -> Option<String> {
    let unit = |at: usize| {
        let escape = text.as_bytes().get(at..at + 6)?;
        let digits = std::str::from_utf8(escape.strip_prefix(b"\\u")?).ok()?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::new();
    let mut num_copied = 0;
    let mut at = 0;
    while let Some(offset) = text[at..].find('\\') {
        at += offset;
        match unit(at) {
            Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
            Some(0xd800..=0xdfff) => {
                mended.push_str(&text[num_copied..at]);
                mended.push_str("\\ufffd");
                at += 6;
                num_copied = at;
            }
            Some(_) => at += 6,
            // What is escaped may be a backslash.
            None => at += 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
        }
    }
    (num_copied > 0).then(|| mended + &text[num_copied..])
}

/// Gives numbers with an exponent the spelling they have in the text.
fn restore_spelling(value: &mut Value, text: &str) {
    let has_exponent = |pair: &[u8]| matches!(pair, [digit, b'e' | b'E'] if digit.is_ascii_digit());
    if !text.as_bytes().windows(2).any(has_exponent) {
        return;
    }
    let mut numbers = Vec::new();
    collect_numbers(value, &mut numbers);
    let spellings = spellings(text);
    // Of two members with one name the first is gone; their numbers stay as they are.
    if numbers.len() == spellings.len() {
        for (number, spelling) in numbers.into_iter().zip(spellings) {
            // Hidden in the library's documentation; no other way leads around its `e+`.
            *number = Number::from_string_unchecked(spelling.to_owned());
        }
    }
}

/// Collects in the order of the text, which is the order of the members.
fn collect_numbers<'a>(value: &'a mut Value, numbers: &mut Vec<&'a mut Number>) {
    match value {
        Value::Number(number) => numbers.push(number),
        Value::Array(items) => items.iter_mut().for_each(|item| collect_numbers(item, numbers)),
        Value::Object(members) => members.values_mut().for_each(|member| collect_numbers(member, numbers)),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// The numbers of valid JSON text.
fn spellings(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let is_part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let length = bytes[at..].iter().take_while(is_part).count();
                found.push(&text[at..at + length]);
                at += length;
            }
            _ => at += 1,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_nothing_else() {
        let mended = |text: &str| parse(text).expect("mended").value;
        assert_eq!(mended(r#""a\ud83d""#), "a\u{fffd}");
        assert_eq!(mended(r#""\ude00\ud83d\ude00\ud83d\ud83d\ude00\u0041""#), "\u{fffd}😀\u{fffd}😀A");
        assert_eq!(mended(r#"["\\ud83d", "\ud83dx"]"#), serde_json::json!(["\\ud83d", "\u{fffd}x"]));
        assert_eq!(mended(r#""\uDBFFé""#), "\u{fffd}é");
        assert!(parse(r#""\ud83d" oops"#).is_err());
        assert!(parse(r#""\ud8""#).is_err());
        assert!(parse(r#""é\"#).is_err());
        assert_eq!(parse(r#""\ud83d\ude00""#).expect("sound").mended, None);
    }

    #[test]
    fn numbers_keep_their_spelling() {
        for text in [
            r#"{"a":1E5,"b":["1e5",-0,1e400,{"c \" 2E3":1e+5}],"d":1E-05,"e":12345678901234567890123}"#,
            "1E5",
            "-0.0e0",
        ] {
            assert_eq!(parse(text).expect("JSON").value.to_string(), text);
        }
        let twice = parse(r#"{"a": 1E5, "a": 2E5}"#).expect("JSON").value;
        assert_eq!(twice["a"].as_f64(), Some(2e5));
    }

    #[test]
    fn infinities_as_python_spells_them_are_numbers_and_in_strings_text() {
        let text = r#"{"limit": [0.0, Infinity, -Infinity, NaN], "text": "Infinity \" NaN"}"#;
        let value = parse_python(text).unwrap();
        assert_eq!(value["limit"][1].as_f64().unwrap() as f32, f32::INFINITY);
        assert_eq!(value["limit"][2].as_f64().unwrap() as f32, f32::NEG_INFINITY);
        assert!(value["limit"][3].is_null());
        assert_eq!(value["text"], "Infinity \" NaN");
        for wrong in ["[Infinite]", "[0, Infinity", "N", "\"Infinity"] {
            assert!(parse_python(wrong).is_err(), "{wrong}");
        }
    }
}
