//! The tokens of a tag.
//!
//! Owns cutting what stands in a tag as the engine's lexer does, as far as it matters to what reads them.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An opening or a closing bracket of any shape.
    Open,
    Close,
    Tilde,
    /// `*`, `/`, `%` and the like, which bind their operands closer than `~` does.
    Factor,
    /// `+` or `-`, before an operand or between two.
    Sign,
    /// `.` or `|`: a name follows.
    Member,
    Text,
    Word,
    Number,
    /// What stands between operands beside these.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    /// Where it begins in the tag.
    pub start: usize,
}

impl Token<'_> {
    pub(super) fn end(&self) -> usize {
        self.start + self.text.len()
    }
}

pub(super) fn tokens(inner: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while let Some(first) = inner[start..].chars().next() {
        let rest = &inner[start..];
        if first.is_whitespace() {
            start += first.len_utf8();
            continue;
        }
        let (kind, len) = match first {
            '\'' | '"' => (Kind::Text, text_len(rest)),
            '0'..='9' => (Kind::Number, number_len(rest)),
            first if is_of_name(first) => (Kind::Word, rest.find(|c| !is_of_name(c)).unwrap_or(rest.len())),
            '(' | '[' | '{' => (Kind::Open, 1),
            ')' | ']' | '}' => (Kind::Close, 1),
            '~' => (Kind::Tilde, 1),
            '*' | '/' if rest[1..].starts_with(first) => (Kind::Factor, 2),
            '*' | '/' | '%' => (Kind::Factor, 1),
            '+' | '-' => (Kind::Sign, 1),
            '.' | '|' => (Kind::Member, 1),
            other => (Kind::Other, other.len_utf8()),
        };
        tokens.push(Token { kind, text: &rest[..len], start });
        start += len;
    }
    tokens
}

fn is_of_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// With its quotes; to the end where it has none.
fn text_len(rest: &str) -> usize {
    let mut is_escaped = false;
    let quote = rest.chars().next();
    let end = rest.char_indices().skip(1).find(|&(_, c)| {
        let is_end = !is_escaped && Some(c) == quote;
        is_escaped = !is_escaped && c == '\\';
        is_end
    });
    end.map_or(rest.len(), |(at, _)| at + 1)
}

/// Digits, a fraction, an exponent with its sign.
fn number_len(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let has_radix = matches!(bytes, [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..]);
    let mut len = 1;
    while let Some(&byte) = bytes.get(len) {
        let is_part = match byte {
            b'.' => bytes.get(len + 1).is_some_and(u8::is_ascii_digit),
            b'+' | b'-' => !has_radix && matches!(bytes[len - 1], b'e' | b'E'),
            byte => byte.is_ascii_alphanumeric() || byte == b'_',
        };
        if !is_part {
            break;
        }
        len += 1;
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_cut_where_the_engine_cuts_it() {
        let texts = |inner| -> Vec<&str> { tokens(inner).into_iter().map(|token| token.text).collect() };
        assert_eq!(
            texts(" a.b|c('x\\'~', 1.5e-3)"),
            ["a", ".", "b", "|", "c", "(", "'x\\'~'", ",", "1.5e-3", ")"]
        );
        assert_eq!(texts("2**-1//x%0x1e-1"), ["2", "**", "-", "1", "//", "x", "%", "0x1e", "-", "1"]);
        assert_eq!(
            texts("größe~\"\u{1f41f}\\\u{1f41f}\" ≠"),
            ["größe", "~", "\"\u{1f41f}\\\u{1f41f}\"", "≠"]
        );
        assert_eq!(texts("x.0.1 'open"), ["x", ".", "0.1", "'open"]);
    }
}
