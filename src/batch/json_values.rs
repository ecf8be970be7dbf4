//! How many values a line's JSON has, told before any of them is made.
//!
//! Owns the count and its limit: a value takes up to a hundred times its text in memory. What the values are is
//! `request`'s business.

/// A prompt of a million token ids has so many values; a conversation of 200,000 messages, too.
pub const MAX_LINE_VALUES: usize = 1 << 20;

/// Counts what begins, follows a comma or has a name in JSON text; at least as many as there are values. In other
/// text it counts something.
pub(super) fn count_values(text: &[u8]) -> usize {
    let mut num_values = 1;
    let mut is_string = false;
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_string = !is_string,
            b'\\' if is_string => drop(bytes.next()),
            b'{' | b'[' | b',' | b':' if !is_string => num_values += 1,
            _ => {}
        }
    }
    num_values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn num_values(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(num_values).sum(),
            Value::Object(members) => members.values().map(num_values).sum(),
            _ => 0,
        }
    }

    #[test]
    fn text_counts_nothing_whatever_is_in_it() {
        assert_eq!(count_values(br#""a, b: [{\", \\""#), 1);
        assert_eq!(count_values(br#"["\\", 1]"#), 3);
        assert_eq!(count_values(b""), 1);
    }

    proptest! {
        #[test]
        fn no_value_is_missed(text in r#"(\[|\]|\{"a":|\}|,|"[a\\,:\[]{0,3}"|1|null){0,30}"#) {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert!(count_values(text.as_bytes()) >= num_values(&value), "{}", text);
            }
        }
    }
}
