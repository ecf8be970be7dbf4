//! What can be read of a line that is not valid JSON.
//!
//! Owns finding a line's id beside whatever else is wrong with it, so that its error can be told
//! from others. Valid JSON is `request`'s.

use serde_json::Number;

use crate::json::mend_surrogates;

/// Longer ids are not taken, see `request`.
pub(super) const MAX_ID_BYTES: usize = 4096;

/// Finds `custom_id`, else `id`, at the top level of an object that may be cut off or broken.
pub(super) fn find_id(bytes: &[u8]) -> Option<String> {
    let mut at = skip_blanks(bytes, 0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    let (mut depth, mut is_key) = (1_usize, true);
    let mut id = None;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => {
                let Some(end) = string_end(bytes, at) else { break };
                let name = &bytes[at..end - 1];
                at = end;
                if depth != 1 || !std::mem::replace(&mut is_key, false) {
                    continue;
                }
                let colon = skip_blanks(bytes, at);
                if bytes.get(colon) != Some(&b':') || !matches!(name, b"custom_id" | b"id") {
                    continue;
                }
                at = skip_blanks(bytes, colon + 1);
                match scalar(bytes, at) {
                    Some(custom_id) if name == b"custom_id" => return Some(custom_id),
                    found => id = id.or(found),
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => break,
            b'}' | b']' => depth -= 1,
            b',' if depth == 1 => is_key = true,
            _ => {}
        }
    }
    id
}

fn skip_blanks(bytes: &[u8], from: usize) -> usize {
    from + bytes[from.min(bytes.len())..].iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

/// Where a string ends whose content begins at `from`: behind its quotation mark.
fn string_end(bytes: &[u8], mut from: usize) -> Option<usize> {
    loop {
        match bytes.get(from)? {
            b'"' => return Some(from + 1),
            b'\\' => from += 2,
            _ => from += 1,
        }
    }
}

/// A whole string or number, as an id.
fn scalar(bytes: &[u8], from: usize) -> Option<String> {
    let text = match bytes.get(from)? {
        b'"' => {
            let text = String::from_utf8_lossy(&bytes[from..string_end(bytes, from + 1)?]);
            let mended = mend_surrogates(&text);
            serde_json::from_str(mended.as_deref().unwrap_or(&text)).ok()?
        }
        _ => {
            // A number at the very end may have lost digits.
            let length = bytes[from..].iter().position(|byte| b",}] \t\r".contains(byte))?;
            let text = std::str::from_utf8(&bytes[from..from + length]).ok()?;
            serde_json::from_str::<Number>(text).ok()?;
            text.to_owned()
        }
    };
    (!text.is_empty() && text.len() <= MAX_ID_BYTES).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_what_is_left_of_a_line() {
        for (line, expected) in [
            (r#"{"custom_id": "a", "prompt": "cut o"#, Some("a")),
            (r#"{"id": 12345678901234567890123, "prompt": oops}"#, Some("12345678901234567890123")),
            (r#"{"prompt": oops, "x": [{"id": "no"}], "id": "a", "custom_id" : "b"}"#, Some("b")),
            (r#"{"prompt": "\"id\": \"no\"", "id": "a\u00e9\ud83d"}}"#, Some("a\u{e9}\u{fffd}")),
            (r#"{"custom_id": "cut"#, None),
            (r#"{"id": 12"#, None),
            (r#"{"body": {"id": "no"}, "id": ["no"]"#, None),
            (r#"{"a": "id", "b": "no"}"#, None),
            (r#"{"id": ""}"#, None),
            (r#"{"id" "a""#, None),
            (r#"["id", "a"]"#, None),
            (r#"{"a\"#, None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(find_id(line.as_bytes()).as_deref(), expected, "{line}");
        }
        assert_eq!(find_id(b"{\"id\": \"a\", \"prompt\": \"\xff\"}").as_deref(), Some("a"));
    }
}
