//! How many values a line's JSON has, told before any of them is made.
//!
//! Owns the count and its limit: a value takes up to a hundred times its text in memory. What the values are is
//! `request`'s business.

/// A prompt of a million token ids has so many values; a conversation of 200,000 messages, too.
pub const MAX_LINE_VALUES: usize = 1 << 20;

/// Counts the values and names in JSON text. In other text it counts something.
pub(super) fn count_values(text: &[u8]) -> usize {
    let mut num_values = 0;
    let (mut is_string, mut is_word) = (false, false);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match (is_string, byte) {
            (true, b'\\') => drop(bytes.next()),
            (true, b'"') => is_string = false,
            (true, _) => {}
            (false, b'"') => {
                (is_string, is_word) = (true, false);
                num_values += 1;
            }
            (false, b'{' | b'[') => {
                is_word = false;
                num_values += 1;
            }
            (false, b'}' | b']' | b',' | b':' | b' ' | b'\t' | b'\r' | b'\n') => is_word = false,
            // A number, or one of three words.
            (false, _) => {
                num_values += usize::from(!is_word);
                is_word = true;
            }
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
            Value::Object(members) => members.values().map(|member| 1 + num_values(member)).sum(),
            _ => 0,
        }
    }

    #[test]
    fn text_counts_nothing_whatever_is_in_it() {
        assert_eq!(count_values(br#""a, b: [{\", \\""#), 1);
        assert_eq!(count_values(br#"["\\", 1]"#), 3);
        assert_eq!(count_values(b""), 0);
        assert_eq!(count_values(br#" {"a" : [1e5,-2 ,true,{}], "b":null}"#), 9);
    }

    proptest! {
        #[test]
        fn no_value_is_missed(text in r#"(\[|\]|\{"a":|\}|,|"[a\\,:\[]{0,3}"|1|null){0,30}"#) {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                // Of two members with one name the first is gone.
                prop_assert!(count_values(text.as_bytes()) >= num_values(&value), "{}", text);
            }
        }
    }
}
