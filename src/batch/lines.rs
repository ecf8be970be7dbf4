//! Bytes into numbered lines, with bounded memory.
//!
//! Owns line ends (`\n` and `\r\n`), the byte order mark, blank lines and the limit on a line's
//! length. Knows nothing of JSON.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};

use super::error::BatchError;
use super::paths::InputPath;

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
    },
}

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
    pub fn next_line(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            if self.buffer.capacity() > MAX_KEPT_BUFFER_BYTES {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            let Some(num_bytes) = read_line(&mut self.source, &mut self.buffer, self.max_line_bytes)? else {
                return Ok(None);
            };
            self.number += 1;
            if num_bytes > self.max_line_bytes as u64 {
                return Ok(Some(Line { number: self.number, content: Content::TooLong { num_bytes } }));
            }
            if !is_blank(trimmed(&self.buffer, self.number)) {
                break;
            }
        }
        let content = Content::Bytes(trimmed(&self.buffer, self.number));
        Ok(Some(Line { number: self.number, content }))
    }
}

/// Reads through the next `\n` and keeps up to `max_line_bytes` of what comes before it.
///
/// Returns the length of the line without `\n`, or nothing at the end of the stream.
fn read_line(
    source: &mut impl BufRead,
    kept: &mut Vec<u8>,
    max_line_bytes: usize,
) -> io::Result<Option<u64>> {
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
            return Ok(Some(num_bytes));
        }
        if num_used == 0 {
            return Ok((num_read > 0).then_some(num_bytes));
        }
    }
}

fn trimmed(bytes: &[u8], number: u64) -> &[u8] {
    let bytes = if number == 1 { bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes) } else { bytes };
    bytes.strip_suffix(b"\r").unwrap_or(bytes)
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_whitespace())
}

/// Counts the input's lines that are not blank, each of which will have an output line.
///
/// Nothing for what is not a regular file: a pipe can be read only once.
pub fn count_requests(input: &InputPath) -> Result<Option<u64>, BatchError> {
    let Some(path) = input.path() else { return Ok(None) };
    let failed = |source| BatchError::OpenInput { name: input.name(), source };
    // Opening a FIFO here would take its writer away from the reader that follows.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(None);
    }
    let file = File::open(path).map_err(failed)?;
    count_lines(BufReader::with_capacity(1 << 20, file)).map(Some).map_err(failed)
}

fn count_lines(mut source: impl BufRead) -> io::Result<u64> {
    let mut num_lines = 0;
    let mut has_text = false;
    let mut is_start = true;
    loop {
        let available = match source.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if available.is_empty() {
            return Ok(num_lines + u64::from(has_text));
        }
        let marked = if is_start { available.strip_prefix(BYTE_ORDER_MARK) } else { None };
        is_start = false;
        for &byte in marked.unwrap_or(available) {
            if byte == b'\n' {
                num_lines += u64::from(has_text);
                has_text = false;
            } else {
                has_text |= !byte.is_ascii_whitespace();
            }
        }
        let num_bytes = available.len();
        source.consume(num_bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(text: &[u8], max_line_bytes: usize, buffer_bytes: usize) -> Vec<(u64, Result<Vec<u8>, u64>)> {
        let mut reader = LineReader::new(BufReader::with_capacity(buffer_bytes, text), max_line_bytes);
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line().expect("a slice reads without error") {
            lines.push(match line.content {
                Content::Bytes(bytes) => (line.number, Ok(bytes.to_vec())),
                Content::TooLong { num_bytes } => (line.number, Err(num_bytes)),
            });
        }
        lines
    }

    #[test]
    fn mark_line_ends_and_blank_lines_are_no_content() {
        let lines = read_all(b"\xef\xbb\xbf{1}\r\n\n  \t\r\n{2}\n{3}", 100, 4);
        assert_eq!(lines, [(1, Ok(b"{1}".to_vec())), (4, Ok(b"{2}".to_vec())), (5, Ok(b"{3}".to_vec()))]);
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

    #[test]
    fn only_a_regular_file_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        fs::write(&path, "{}\n\n{}").unwrap();
        assert_eq!(count_requests(&InputPath::File(path)).unwrap(), Some(2));
        assert_eq!(count_requests(&InputPath::Stdin).unwrap(), None);
        assert_eq!(count_requests(&InputPath::File("/dev/null".into())).unwrap(), None);
        assert!(count_requests(&InputPath::File(folder.path().join("no"))).is_err());
    }

    proptest! {
        #[test]
        fn counting_agrees_with_reading(text in "(\u{feff})?[a \t\r\n]{0,40}", buffer_bytes in 3_usize..9) {
            let counted = count_lines(BufReader::with_capacity(buffer_bytes, text.as_bytes())).unwrap();
            prop_assert_eq!(counted, read_all(text.as_bytes(), 100, buffer_bytes).len() as u64);
        }
    }
}
