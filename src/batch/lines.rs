//! Bytes into numbered lines, with bounded memory.
//!
//! Owns line ends (`\n` and `\r\n`), byte order marks (one before each of several files that were
//! joined), blank lines, what editors and disks leave behind the last line, and the limit on a
//! line's length. Knows nothing of JSON.

use std::io::{self, BufRead, Read};

use super::lead_in;

/// A longer line than this is a mistake rather than a request.
pub const DEFAULT_MAX_LINE_BYTES: usize = 64 << 20;

/// Records are far smaller, with all that their lines and answers can hold; a longer line is none.
pub const MAX_RECORD_BYTES: u64 = 512 << 20;

/// A buffer that one huge line has blown up past this is given back before the next line.
const MAX_KEPT_BUFFER_BYTES: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line that is not blank, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Counted from 1, blank lines included.
    pub number: u64,
    pub content: Content<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    /// The line was over the limit; its bytes were skipped, not kept.
    TooLong {
        num_bytes: u64,
        /// What it begins with, as far as its id may stand.
        start: &'a [u8],
    },
    /// Nothing but NUL or ctrl-Z behind the last line end: no request.
    Filler(&'static str),
}

/// Where the id of a line over the limit is looked for.
const MAX_START_BYTES: usize = 64 << 10;

/// Splits a stream into lines.
pub(super) struct LineReader<R> {
    source: R,
    max_line_bytes: usize,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> LineReader<R> {
    pub fn new(source: R, max_line_bytes: usize) -> Self {
        Self { source, max_line_bytes, buffer: Vec::new(), number: 0 }
    }

    /// The number of the line that was read last.
    pub fn line_number(&self) -> u64 {
        self.number
    }

    /// Reads on to the next line that is not blank.
    ///
    /// An input that is no text at all fails with a [`lead_in::ForeignFormat`].
    pub fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        if self.number == 0 {
            check_start(&mut self.source)?;
        }
        loop {
            if self.buffer.capacity() > MAX_KEPT_BUFFER_BYTES {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            let Some(read) = read_line(&mut self.source, &mut self.buffer, self.max_line_bytes)? else {
                return Ok(None);
            };
            self.number += 1;
            let (number, num_bytes) = (self.number, read.num_bytes);
            if num_bytes > self.max_line_bytes as u64 {
                let start = trimmed(&self.buffer[..self.buffer.len().min(MAX_START_BYTES)]);
                return Ok(Some(Line { number, content: Content::TooLong { num_bytes, start } }));
            }
            match lead_in::filler_name(trimmed(&self.buffer)) {
                Some(name) if !read.has_end => {
                    return Ok(Some(Line { number, content: Content::Filler(name) }));
                }
                _ if is_blank(trimmed(&self.buffer)) => {}
                _ => break,
            }
        }
        Ok(Some(Line { number: self.number, content: Content::Bytes(trimmed(&self.buffer)) }))
    }
}

/// What a source begins with, as much as there is; nothing is taken of it.
pub(super) fn start_of(source: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    // The same once more: what is borrowed in a loop cannot be returned from it.
    source.fill_buf()
}

/// Reads a record's line with its end, and returns its bytes, 0 behind the last; nothing where it is too long for one,
/// of which no more is read.
pub fn read_record_line(source: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    let num_bytes = source.by_ref().take(MAX_RECORD_BYTES).read_until(b'\n', line)?;
    Ok((num_bytes as u64 != MAX_RECORD_BYTES).then_some(num_bytes))
}

/// Looks at what an input begins with, and takes nothing of it.
pub(super) fn check_start(source: &mut impl BufRead) -> io::Result<()> {
    match lead_in::foreign_format(start_of(source)?) {
        Some(format) => Err(io::Error::new(io::ErrorKind::InvalidData, format)),
        None => Ok(()),
    }
}

/// A line that was read.
struct ReadLine {
    /// Without its end.
    num_bytes: u64,
    /// Whether `\n` ends it, not the stream.
    has_end: bool,
}

/// Reads through the next `\n` and keeps up to `max_line_bytes` of what comes before it.
///
/// Returns nothing at the end of the stream.
fn read_line(
    source: &mut impl BufRead,
    kept: &mut Vec<u8>,
    max_line_bytes: usize,
) -> io::Result<Option<ReadLine>> {
    let mut num_bytes = 0_u64;
    let mut num_read = 0_u64;
    loop {
        let available = match source.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let piece = &available[..end.unwrap_or(available.len())];
        let room = max_line_bytes.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..piece.len().min(room)]);
        num_bytes += piece.len() as u64;
        let num_used = piece.len() + usize::from(end.is_some());
        num_read += num_used as u64;
        source.consume(num_used);
        if end.is_some() {
            return Ok(Some(ReadLine { num_bytes, has_end: true }));
        }
        if num_used == 0 {
            return Ok((num_read > 0).then_some(ReadLine { num_bytes, has_end: false }));
        }
    }
}

fn trimmed(mut bytes: &[u8]) -> &[u8] {
    while let Some(rest) = bytes.strip_prefix(BYTE_ORDER_MARK) {
        bytes = rest;
    }
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_whitespace())
}

/// Counts the lines that are not blank.
pub(super) fn count_lines(source: impl BufRead) -> io::Result<u64> {
    let mut num_lines = 0;
    let mut line = LineSketch::default();
    for_each_part(source, |part| {
        for &byte in part {
            if byte == b'\n' {
                num_lines += u64::from(line.has_text() || line.has_filler);
                line = LineSketch::default();
            } else {
                line.add(byte);
            }
        }
    })?;
    Ok(num_lines + u64::from(line.has_text()))
}

/// Counts the ends of lines, whatever is in them.
pub(super) fn count_line_ends(source: impl BufRead) -> io::Result<u64> {
    let mut num_ends = 0;
    for_each_part(source, |part| num_ends += part.iter().filter(|&&byte| byte == b'\n').count() as u64)?;
    Ok(num_ends)
}

/// Goes through all bytes of a source, as many at a time as it has ready.
fn for_each_part(mut source: impl BufRead, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    loop {
        let part = match source.fill_buf() {
            Ok(part) => part,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if part.is_empty() {
            return Ok(());
        }
        take(part);
        let num_bytes = part.len();
        source.consume(num_bytes);
    }
}

/// What counting needs to know of a line.
#[derive(Default)]
struct LineSketch {
    /// Bytes of a byte order mark so far; 0 behind a whole one.
    num_mark_bytes: usize,
    /// Whether something else has come than byte order marks.
    is_begun: bool,
    has_other: bool,
    /// NUL or ctrl-Z, which make a line, but not the last one.
    has_filler: bool,
}

impl LineSketch {
    fn add(&mut self, byte: u8) {
        if !self.is_begun && byte == BYTE_ORDER_MARK[self.num_mark_bytes] {
            self.num_mark_bytes = (self.num_mark_bytes + 1) % BYTE_ORDER_MARK.len();
            return;
        }
        self.has_other |= self.num_mark_bytes > 0;
        (self.is_begun, self.num_mark_bytes) = (true, 0);
        match byte {
            0 | 0x1a => self.has_filler = true,
            _ => self.has_other |= !byte.is_ascii_whitespace(),
        }
    }

    fn has_text(&self) -> bool {
        self.has_other || self.num_mark_bytes > 0
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &[u8], max_line_bytes: usize, buffer_bytes: usize) -> Vec<(u64, Result<Vec<u8>, u64>)> {
        let mut reader = LineReader::new(BufReader::with_capacity(buffer_bytes, text), max_line_bytes);
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().expect("a slice reads without error") {
            lines.push(match line.content {
                Content::Bytes(bytes) => (line.number, Ok(bytes.to_vec())),
                Content::TooLong { num_bytes, .. } => (line.number, Err(num_bytes)),
                Content::Filler(_) => continue,
            });
        }
        lines
    }

    #[test]
    fn mark_line_ends_and_blank_lines_are_no_content() {
        let lines = read_all(b"\xef\xbb\xbf{1}\r\n\n  \t\r\n{2}\n{3}", 100, 4);
        assert_eq!(lines, [(1, Ok(b"{1}".to_vec())), (4, Ok(b"{2}".to_vec())), (5, Ok(b"{3}".to_vec()))]);
    }

    /// `cat a.jsonl b.jsonl` puts the second file's mark before a line in the middle.
    #[test]
    fn a_mark_begins_any_line() {
        let lines = read_all(b"{1}\n\xef\xbb\xbf{2}\n\xef\xbb\xbf\xef\xbb\xbf{3}\n\xef\xbb\xbf\n", 100, 4);
        assert_eq!(lines, [(1, Ok(b"{1}".to_vec())), (2, Ok(b"{2}".to_vec())), (3, Ok(b"{3}".to_vec()))]);
    }

    #[test]
    fn filler_behind_the_last_line_end_is_no_line() {
        for (filler, expected) in
            [(&b"\x1a"[..], "ctrl-Z"), (b"\0\0\0", "NUL bytes"), (b" \0 \x1a\r", "NUL bytes")]
        {
            let text = [b"{1}\r\n", filler].concat();
            let mut reader = LineReader::new(&text[..], 100);
            reader.next_line().unwrap().expect("the first line");
            let last = reader.next_line().unwrap().expect("what follows it");
            assert_eq!((last.number, last.content), (2, Content::Filler(expected)));
            assert_eq!(count_lines(&text[..]).unwrap(), 1);
            // With a line end of its own it may be a hole in a file: lines are missing.
            let text = [&text[..], b"\n{2}"].concat();
            assert_eq!(read_all(&text, 100, 4).len(), 3);
        }
    }

    #[test]
    fn a_file_of_another_kind_fails_at_its_first_line() {
        let mut reader = LineReader::new(&b"\x1f\x8b\x08"[..], 100);
        let error = reader.next_line().expect_err("it is no text");
        let format = error.downcast::<lead_in::ForeignFormat>().expect("it says which kind");
        assert_eq!(format.to_string(), "is compressed with gzip");
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_and_the_next_is_read() {
        let lines = read_all(b"12345\n123456\n1", 5, 3);
        assert_eq!(lines, [(1, Ok(b"12345".to_vec())), (2, Err(6)), (3, Ok(b"1".to_vec()))]);
    }

    #[test]
    fn an_empty_stream_has_no_lines() {
        assert!(read_all(b"", 5, 3).is_empty());
        assert!(read_all(b"\xef\xbb\xbf\n", 5, 3).is_empty());
    }

    proptest! {
        #[test]
        fn counting_agrees_with_reading(
            text in "([a\u{feff} \t\r\n\u{0}\u{1a}]|\n\u{feff}){0,40}",
            num_cut in 0_usize..3,
            buffer_bytes in 3_usize..9,
        ) {
            // Also in the middle of a mark.
            let text = &text.as_bytes()[..text.len().saturating_sub(num_cut)];
            let counted = count_lines(BufReader::with_capacity(buffer_bytes, text)).unwrap();
            prop_assert_eq!(counted, read_all(text, 200, buffer_bytes).len() as u64);
        }
    }
}
