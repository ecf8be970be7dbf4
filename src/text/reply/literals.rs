//! Literals of other languages than JSON: Python's, and those of Gemma's calls.
//!
//! Owns reading them into JSON values, as deep as they may be nested.

use serde_json::{Map, Number, Value};

use super::DraftCall;

/// Lists and dictionaries within each other.
const MAX_DEPTH: usize = 64;

/// How literals are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// What a text stands between.
    pub quotes: &'static [&'static str],
    /// Whether a backslash in a text means something.
    has_escapes: bool,
    /// Whether names of members may stand without quotes.
    has_bare_keys: bool,
}

impl Dialect {
    pub(super) const PYTHON: Dialect =
        Dialect { quotes: &["'''", "\"\"\"", "'", "\""], has_escapes: true, has_bare_keys: false };
    pub(super) const GEMMA_4: Dialect =
        Dialect { quotes: &["<|\"|>"], has_escapes: false, has_bare_keys: true };
    pub(super) const FUNCTION_GEMMA: Dialect =
        Dialect { quotes: &["<escape>"], has_escapes: false, has_bare_keys: true };
}

/// Reads `{name:value, …}` at the beginning of a text; returns its members and its length.
pub(super) fn braces(text: &str, dialect: &Dialect) -> Option<(Map<String, Value>, usize)> {
    let mut reader = Reader { text, at: 0, dialect };
    match reader.value(0)? {
        Value::Object(members) => Some((members, reader.at)),
        _ => None,
    }
}

/// Reads calls such as `[f(a=1), g(b="x")]`, or the same line by line; returns them and their length.
pub(super) fn python_calls(text: &str) -> Option<(Vec<DraftCall>, usize)> {
    let mut reader = Reader { text, at: 0, dialect: &Dialect::PYTHON };
    let mut calls = Vec::new();
    if reader.take("[") {
        loop {
            calls.push(reader.call()?);
            if reader.take("]") {
                break;
            }
            if !reader.take(",") {
                return None;
            }
            if reader.take("]") {
                break;
            }
        }
    } else {
        calls.push(reader.call()?);
        loop {
            let end = reader.at;
            let _ = reader.take(",") || reader.take(";");
            match reader.call() {
                Some(call) => calls.push(call),
                None => {
                    reader.at = end;
                    break;
                }
            }
        }
    }
    Some((calls, reader.at))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    dialect: &'a Dialect,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, text: &str) -> bool {
        self.skip_space();
        let is_there = self.rest().starts_with(text);
        if is_there {
            self.at += text.len();
        }
        is_there
    }

    /// A word of letters, digits and what else names may have.
    fn word(&mut self, others: &str) -> Option<&'a str> {
        self.skip_space();
        let rest = self.rest();
        let length = rest.find(|c: char| !c.is_alphanumeric() && !others.contains(c)).unwrap_or(rest.len());
        self.at += length;
        (length > 0).then(|| &rest[..length])
    }

    fn call(&mut self) -> Option<DraftCall> {
        let name = self.word("_.-")?.to_owned();
        let mut arguments = Map::new();
        if !self.take("(") {
            return None;
        }
        while !self.take(")") {
            let key = self.word("_")?;
            if !self.take("=") {
                return None;
            }
            arguments.insert(key.to_owned(), self.value(0)?);
            if !self.take(",") && !self.rest().trim_start().starts_with(')') {
                return None;
            }
        }
        Some(DraftCall { id: None, name, arguments: Value::Object(arguments).to_string() })
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        if let Some(text) = self.string() {
            return text.map(Value::String);
        }
        if self.take("{") {
            let mut members = Map::new();
            while !self.take("}") {
                let key = match self.string() {
                    Some(key) => key?,
                    None if self.dialect.has_bare_keys => self.word("_-.$")?.to_owned(),
                    None => return None,
                };
                if !self.take(":") {
                    return None;
                }
                members.insert(key, self.value(depth + 1)?);
                self.separator('}')?;
            }
            return Some(Value::Object(members));
        }
        for (open, close) in [("[", ']'), ("(", ')')] {
            if self.take(open) {
                let mut items = Vec::new();
                while !self.take(close.encode_utf8(&mut [0; 4])) {
                    items.push(self.value(depth + 1)?);
                    self.separator(close)?;
                }
                return Some(Value::Array(items));
            }
        }
        self.skip_space();
        match self.word("+-._")? {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => number.strip_prefix('+').unwrap_or(number).parse::<Number>().ok().map(Value::Number),
        }
    }

    /// A comma, or the end of the list, which is left.
    fn separator(&mut self, close: char) -> Option<()> {
        (self.take(",") || self.rest().starts_with(close)).then_some(())
    }

    /// A text in quotes, if one begins here; within, `None` where it does not end.
    fn string(&mut self) -> Option<Option<String>> {
        self.skip_space();
        let quote = self.dialect.quotes.iter().find(|quote| self.rest().starts_with(**quote))?;
        self.at += quote.len();
        Some(self.string_up_to(quote))
    }

    fn string_up_to(&mut self, quote: &str) -> Option<String> {
        let mut text = String::new();
        loop {
            let rest = self.rest();
            if rest.starts_with(quote) {
                self.at += quote.len();
                return Some(text);
            }
            let c = rest.chars().next()?;
            self.at += c.len_utf8();
            if c == '\\' && self.dialect.has_escapes {
                self.escape(&mut text)?;
            } else {
                text.push(c);
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        let meant = match c {
            'n' => "\n",
            't' => "\t",
            'r' => "\r",
            '0' => "\0",
            '\n' => "",
            '\\' => "\\",
            '\'' => "'",
            '"' => "\"",
            '/' => "/",
            'x' => return self.character(2, text),
            'u' => return self.character(4, text),
            'U' => return self.character(8, text),
            // As Python does: an unknown escape stays as it is.
            _ => {
                text.extend(['\\', c]);
                return Some(());
            }
        };
        text.push_str(meant);
        Some(())
    }

    /// A character by its number in so many digits.
    fn character(&mut self, num_digits: usize, text: &mut String) -> Option<()> {
        let digits = self.rest().get(..num_digits)?;
        let code = u32::from_str_radix(digits, 16).ok()?;
        self.at += num_digits;
        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
        Some(())
    }
}
