//! A template's source as text, comments and tags.
//!
//! Owns finding the tags as the engine's lexer does: what stands in comments, in raw blocks and within texts is none,
//! and a tag has no end within brackets. What is changed in them is the callers' business.

/// A tag from its opening to its closing brackets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tag<'a> {
    /// Whether it is `{% … %}`, not `{{ … }}`.
    pub is_block: bool,
    pub whole: &'a str,
    /// With what controls the white space before it.
    pub open: &'a str,
    pub inner: &'a str,
    pub close: &'a str,
}

impl<'a> Tag<'a> {
    fn new(whole: &'a str) -> Self {
        let signs = ['-', '+'];
        let open_len = if whole[2..].starts_with(signs) { 3 } else { 2 };
        let (open, rest) = whole.split_at(open_len);
        let close_len = if rest.len() > 2 && rest[..rest.len() - 2].ends_with(signs) { 3 } else { 2 };
        let (inner, close) = rest.split_at(rest.len() - close_len);
        Self { is_block: whole.starts_with("{%"), whole, open, inner, close }
    }

    /// The name that a block begins with; empty for `{{ … }}`.
    pub(super) fn name(&self) -> &'a str {
        if self.is_block { name_of(self.inner) } else { "" }
    }
}

/// The template with other tags: `rewrite` makes another of one, or leaves it as it is.
pub(super) fn rewritten(source: &str, rewrite: impl Fn(Tag) -> Option<String>) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = split_at_tag(rest) {
        out.push_str(before);
        let end = match &tag[..2] {
            "{#" => tag.find("#}").map(|at| at + 2),
            "{{" => end_of(tag, "}}"),
            _ => end_of(tag, "%}"),
        };
        // The engine says what is wrong with it.
        let Some(end) = end else {
            rest = tag;
            break;
        };
        let (whole, behind) = tag.split_at(end);
        rest = behind;
        if whole.starts_with("{#") {
            out.push_str(whole);
            continue;
        }
        let tag = Tag::new(whole);
        if tag.name() == "raw" {
            let end = end_of_raw(behind).unwrap_or(behind.len());
            out.push_str(whole);
            out.push_str(&behind[..end]);
            rest = &behind[end..];
            continue;
        }
        match rewrite(tag) {
            Some(other) => out.push_str(&other),
            None => out.push_str(whole),
        }
    }
    out.push_str(rest);
    out
}

fn split_at_tag(text: &str) -> Option<(&str, &str)> {
    let at = text.as_bytes().windows(2).position(|pair| matches!(pair, b"{{" | b"{%" | b"{#"))?;
    Some(text.split_at(at))
}

/// Where a tag ends, behind its closing brackets.
fn end_of(tag: &str, close: &str) -> Option<usize> {
    let bytes = tag.as_bytes();
    let mut quote = None;
    let mut depth = 0_isize;
    let mut at = 2;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, _) if depth == 0 && bytes[at..].starts_with(close.as_bytes()) => {
                return Some(at + close.len());
            }
            (None, b'\'' | b'"') => quote = Some(bytes[at]),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

fn name_of(inner: &str) -> &str {
    let inner = inner.trim_start();
    &inner[..inner.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(inner.len())]
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut starts = text.match_indices("{%").map(|(at, _)| at);
    starts.find(|&at| name_of(text[at + 2..].trim_start_matches(['-', '+'])) == "endraw")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_where_the_engine_finds_them() {
        let marked = |source: &str| {
            rewritten(source, |tag| {
                Some(format!("<{}|{}|{}|{}>", tag.name(), tag.open, tag.inner, tag.close))
            })
        };
        for (source, expected) in [
            ("a {{ b }} c", "a <|{{| b |}}> c"),
            ("{%- if x +%}", "<if|{%-| if x |+%}>"),
            ("{{ {'a': {'b': 1}} }}", "<|{{| {'a': {'b': 1}} |}}>"),
            ("{{ '}}' ~ \"\\\"}}\" -}}", "<|{{| '}}' ~ \"\\\"}}\" |-}}>"),
            ("{# {{ x }} #}{{ y }}", "{# {{ x }} #}<|{{| y |}}>"),
            ("{% raw %}{{ x }}{%- endraw %}{{ y }}", "{% raw %}{{ x }}<endraw|{%-| endraw |%}><|{{| y |}}>"),
            ("{{ unfinished", "{{ unfinished"),
            ("{{-}}", "<|{{-||}}>"),
            ("{%%}", "<|{%||%}>"),
        ] {
            assert_eq!(marked(source), expected, "{source}");
        }
    }
}
