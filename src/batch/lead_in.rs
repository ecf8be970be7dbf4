//! Input that is no JSON Lines: what it is, and what to do about it.
//!
//! Owns telling other kinds of file by their first bytes, and naming characters that have no
//! place between JSON values. A whole file of another kind is one error, not one for each of its
//! lines; an odd character is the error of its line.

use thiserror::Error;

/// A kind of file that has to be converted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct ForeignFormat {
    /// What the input is, to be read after "the input in.jsonl ".
    pub what: &'static str,
    /// A command that writes JSON Lines when its input comes from standard input.
    pub filter: Option<&'static str>,
}

const fn packed(what: &'static str, filter: &'static str) -> ForeignFormat {
    ForeignFormat { what, filter: Some(filter) }
}

const UTF_16: ForeignFormat = packed("is UTF-16, not UTF-8", "iconv -f UTF-16 -t UTF-8");

const PARQUET: &str = match cfg!(feature = "parquet") {
    true => "is a Parquet file where lines are expected",
    false => "is a Parquet file, and this build was made without the feature that reads them",
};

/// First bytes and what they mean; the first that fits counts.
const MAGIC: [(&[u8], ForeignFormat); 13] = [
    (b"\x1f\x8b", packed("is compressed with gzip", "zcat")),
    (b"\x28\xb5\x2f\xfd", packed("is compressed with zstd", "zstdcat")),
    (b"\xfd7zXZ\0", packed("is compressed with xz", "xzcat")),
    (b"BZh", packed("is compressed with bzip2", "bzcat")),
    (b"\x04\x22\x4d\x18", packed("is compressed with lz4", "lz4cat")),
    (b"PK\x03\x04", packed("is a zip archive", "funzip")),
    (b"7z\xbc\xaf\x27\x1c", ForeignFormat { what: "is a 7z archive", filter: None }),
    (b"PAR1", ForeignFormat { what: PARQUET, filter: None }),
    (b"ARROW1", ForeignFormat { what: "is an Arrow file", filter: None }),
    (b"SQLite format 3\0", ForeignFormat { what: "is an SQLite database", filter: None }),
    (b"\xff\xfe\0\0", packed("is UTF-32, not UTF-8", "iconv -f UTF-32 -t UTF-8")),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
];

const UTF_16_LE: ForeignFormat = packed("is UTF-16, not UTF-8", "iconv -f UTF-16LE -t UTF-8");
const UTF_16_BE: ForeignFormat = packed("is UTF-16, not UTF-8", "iconv -f UTF-16BE -t UTF-8");

const CR_LINES: ForeignFormat = packed("ends its lines with CR alone, not with LF", r"tr '\r' '\n'");

/// Tells another kind of file by its first bytes; `start` may be all that a pipe has so far.
pub(super) fn foreign_format(start: &[u8]) -> Option<ForeignFormat> {
    let known = MAGIC.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, format)| *format);
    let unmarked = match start {
        [b'{', 0, 1..=0xff, 0, ..] => Some(UTF_16_LE),
        [0, b'{', 0, 1..=0xff, ..] => Some(UTF_16_BE),
        _ => None,
    };
    known.or(unmarked).or_else(|| (!start.contains(&b'\n') && holds_cr_lines(start)).then_some(CR_LINES))
}

/// Whether one object follows another after a CR; no valid JSON has that.
fn holds_cr_lines(bytes: &[u8]) -> bool {
    let mut after_cr = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\r').map(|(at, _)| at);
    after_cr.any(|at| {
        let ends_object = bytes[..at].trim_ascii_end().ends_with(b"}");
        ends_object && bytes[at..].trim_ascii_start().starts_with(b"{")
    })
}

/// What is said of a last line that holds nothing but NUL or ctrl-Z; nothing of other lines.
pub(super) fn filler_name(line: &[u8]) -> Option<&'static str> {
    let is_filler = line.iter().all(|byte| matches!(byte, 0 | 0x1a) || byte.is_ascii_whitespace());
    match line.iter().find(|byte| matches!(byte, 0 | 0x1a)) {
        Some(0) if is_filler => Some("NUL bytes"),
        Some(_) if is_filler => Some("ctrl-Z"),
        _ => None,
    }
}

/// Names the odd character at which a line stops being JSON, and how to be rid of it.
///
/// `column` counts bytes from 1, as parsers do: at the character, or behind it.
pub(super) fn odd_character(text: &str, column: usize, file: &str) -> Option<String> {
    let place = column.saturating_sub(1);
    let mut near = text.char_indices().skip_while(|(at, c)| at + c.len_utf8() < place);
    let (at, c, name) =
        near.by_ref().take_while(|(at, _)| *at <= column).find_map(|(at, c)| Some((at, c, name_of(c)?)))?;
    let fix = match c {
        '\0' => format!("`tr -d '\\000' < {file}` removes it"),
        '\u{1a}' => format!("`tr -d '\\032' < {file}` removes it"),
        '\r' => format!("`tr '\\r' '\\n' < {file}` makes line ends of it"),
        '\'' | '\u{2018}'..='\u{201f}' => "JSON has \" only".to_owned(),
        _ => {
            let bytes =
                c.encode_utf8(&mut [0; 4]).bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
            format!("`sed 's/{bytes}//g' {file}` removes it")
        }
    };
    Some(format!("there is {name} (U+{:04X}) at byte {}: {fix}", u32::from(c), at + 1))
}

fn name_of(c: char) -> Option<&'static str> {
    Some(match c {
        '\0' => "a NUL byte",
        '\u{1a}' => "a ctrl-Z",
        '\r' => "a carriage return",
        '\t' | '\n' => return None,
        '\'' => "a single quotation mark",
        '\u{2018}'..='\u{201f}' => "a curly quotation mark",
        '\u{a0}' | '\u{202f}' => "a no-break space",
        '\u{200b}' => "a zero-width space",
        '\u{200c}' | '\u{200d}' | '\u{2060}' => "an invisible joiner",
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' => "an invisible mark of direction",
        '\u{feff}' => "a byte order mark",
        '\u{2028}' | '\u{2029}' | '\u{85}' => "a Unicode line separator",
        '\u{3000}' => "an ideographic space",
        '\u{fffd}' => "a replacement character",
        c if c.is_control() => "a control character",
        c if c.is_whitespace() && c != ' ' => "an odd space",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_kinds_of_file_are_told_by_their_first_bytes() {
        for (start, what) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip"),
            (b"\x28\xb5\x2f\xfd\0", "zstd"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\xfd7zXZ\0\0", "xz"),
            (b"\xff\xfe{\0\"\0", "UTF-16"),
            (b"\xfe\xff\0{", "UTF-16"),
            (b"{\0\"\0", "UTF-16"),
            (b"\0{\0\"", "UTF-16"),
            (b"{\"prompt\": \"a\"}\r{\"prompt\": \"b\"}\r", "CR alone"),
            (b"PAR1\x15", "Parquet"),
        ] {
            let format = foreign_format(start).unwrap_or_else(|| panic!("{what}"));
            assert!(format.to_string().contains(what), "{what}: {format}");
        }
        for start in [
            &b""[..],
            b"{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\"}\r\n",
            b"{\"prompt\": \"a\"}\r",
            b"{\0\0\0\0",
            b"{\"messages\": [{},\r{}]}",
            b"\xef\xbb\xbf{\"prompt\": \"a\"}\n",
        ] {
            assert_eq!(foreign_format(start), None, "{start:?}");
        }
    }

    #[test]
    fn an_odd_character_is_named_with_its_fix() {
        let named = |text: &str, column| odd_character(text, column, "in.jsonl").unwrap_or_default();
        assert_eq!(
            named("\u{200b}{}", 1),
            "there is a zero-width space (U+200B) at byte 1: `sed 's/\\xe2\\x80\\x8b//g' in.jsonl` removes it"
        );
        assert_eq!(
            named("{}\0\0", 3),
            "there is a NUL byte (U+0000) at byte 3: `tr -d '\\000' < in.jsonl` removes it"
        );
        assert!(named("{'a': 1}", 2).contains("a single quotation mark"));
        assert!(named("{}\r{}", 4).contains("`tr '\\r' '\\n' < in.jsonl`"));
        assert_eq!(named("{\"a\": oops}", 7), "");
    }
}
