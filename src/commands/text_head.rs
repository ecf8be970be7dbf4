//! The beginning of a stored or shared prefix as text, for people to recognise it by.
//!
//! Owns its length and that it is one line without control characters.

use crate::text::Tokenizer;

/// What is shown of a text.
const MAX_HEAD_CHARS: usize = 60;

/// Enough for that, unless tokens are single bytes of a script with four of them.
const MAX_HEAD_TOKENS: usize = 4 * MAX_HEAD_CHARS;

/// The beginning of some tokens' text.
pub(super) fn text_head(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let tokens = &tokens[..tokens.len().min(MAX_HEAD_TOKENS)];
    // A text that cannot be decoded is shown as none.
    let text = tokenizer.decode(tokens).unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let shown = words.join(" ").replace(char::is_control, "\u{fffd}");
    match shown.char_indices().nth(MAX_HEAD_CHARS) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_head_is_one_line_and_holds_nothing_that_moves_the_cursor() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
        let tokenizer = Tokenizer::from_folder(&folder).expect("the fixture loads");
        let head_of = |text: &str| text_head(&tokenizer, &tokenizer.encode(text, false).expect("encodes"));
        assert_eq!(head_of("<|im_start|>user\n\n  Hi\u{1b}[2J there"), "user Hi\u{fffd}[2J there");
        assert_eq!(head_of(&"ab ".repeat(1000)).chars().count(), MAX_HEAD_CHARS + 1);
        assert_eq!(head_of("<|im_start|>"), "");
    }
}
