//! Bytes as tokens spell them: GPT-2's visible stand-ins and SentencePiece's `<0xXX>`.
//!
//! Owns both spellings and the lossy decoding of UTF-8 that arrives piece by piece. When pieces
//! arrive is `stream`'s business.

/// Returns the byte that a character of a byte-level token stands for.
///
/// GPT-2's table: visible Latin-1 characters stand for themselves, the 68 other bytes, in order,
/// for the characters from U+0100 on.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match u8::try_from(code) {
        Ok(byte) => is_visible(byte).then_some(byte),
        Err(_) => (0..=255u8).filter(|b| !is_visible(*b)).nth(usize::try_from(code - 0x100).ok()?),
    }
}

/// Returns the character that stands for a byte in byte-level tokens.
pub(super) fn char_of(byte: u8) -> char {
    if is_visible(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !is_visible(*b)).count();
    u32::try_from(rank).ok().and_then(|rank| char::from_u32(0x100 + rank)).expect("fewer than 256 bytes")
}

fn is_visible(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// Appends the bytes of a byte-level token; a token that is not all stand-ins is plain text.
pub(super) fn push_token_bytes(token: &str, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte that a token stands for in SentencePiece's spelling, `<0x0A>`.
pub(super) fn byte_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
}

/// Whether the token stands for one byte in that spelling.
pub(super) fn is_byte_fallback(token: &str) -> bool {
    byte_fallback(token).is_some()
}

/// Takes the text off the front of `bytes` that no later byte can change.
///
/// Invalid sequences become U+FFFD as in [`String::from_utf8_lossy`]; the start of a character
/// whose end may still come stays in `bytes`.
pub(super) fn take_certain(bytes: &mut Vec<u8>) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut start = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        start += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() || is_unfinished(&bytes[start..]) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        start += invalid.len();
    }
    bytes.drain(..start);
    text
}

/// Whether the bytes are the beginning of one character and nothing else.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_byte_has_its_own_stand_in() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(0xad)), ('Ġ', 'Ċ', '\u{143}'));
        assert_eq!((byte_of(' '), byte_of('\u{144}'), byte_of('日')), (None, None, None));
    }

    #[test]
    fn byte_tokens_are_told_from_text() {
        assert!(is_byte_fallback("<0x0A>") && is_byte_fallback("<0xff>"));
        assert!(!is_byte_fallback("<0x0>") && !is_byte_fallback("<0xGG>") && !is_byte_fallback("<0x+1>"));
    }

    proptest! {
        /// Cut anywhere, any bytes decode to what they decode to as a whole.
        #[test]
        fn pieces_decode_as_the_whole(pieces in prop::collection::vec(
            prop::collection::vec(prop_oneof![any::<u8>(), 0x80..=0xffu8, Just(0xf0), Just(0x9f)], 0..4), 0..20)) {
            let whole = String::from_utf8_lossy(&pieces.concat()).into_owned();
            let mut text = String::new();
            let mut bytes = Vec::new();
            for piece in pieces {
                bytes.extend(piece);
                text.push_str(&take_certain(&mut bytes));
                prop_assert!(bytes.len() < 4, "only one unfinished character is held");
            }
            text.push_str(&String::from_utf8_lossy(&bytes));
            prop_assert_eq!(text, whole);
        }
    }
}
