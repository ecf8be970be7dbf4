//! Requests from a file or standard input, one at a time.
//!
//! Owns opening the input and numbering its requests; waiting for lines is for `source`. Memory
//! does not grow with the input, but for the digests of the ids (some 40 bytes a request), which
//! find duplicates. Blank lines are no requests: they get no output line and only count in line
//! numbers.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::sync::Arc;
use std::time::Duration;

use super::error::BatchError;
use super::ids::Ids;
use super::json_values::{MAX_LINE_VALUES, count_values};
use super::line_error::FailedLine;
use super::lines::{Content, check_start, count_lines};
use super::opened::{InputFormat, lines_of, lines_of_stream};
use super::paths::InputPath;
use super::request::{Place, Request, RequestParser};
use super::rows::Rows;
use super::selection::{Fate, Selected, Selection};
use super::source::{LineSource, NextLine};
use super::warnings::Warnings;

/// A longer line than this is a mistake rather than a request.
pub const DEFAULT_MAX_LINE_BYTES: usize = 64 << 20;

/// How input is read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// A longer line is an error line; its bytes are skipped without being kept.
    pub max_line_bytes: usize,
    /// Requests that name another model than this are answered, with a warning.
    pub served_model: Option<String>,
    /// Lines that are answered.
    pub selection: Selection,
    pub format: InputFormat,
    /// How lines become requests that are none.
    pub rows: Option<Arc<Rows>>,
    /// Whether records repeat what their lines say.
    pub keeps_input: bool,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
            served_model: None,
            selection: Selection::All,
            format: InputFormat::Auto,
            rows: None,
            keeps_input: false,
        }
    }
}

/// What the input has at the moment.
#[derive(Debug)]
pub enum NextRequest {
    Request(Box<Request>),
    /// A line that no request could be made of.
    Failed(Box<FailedLine>),
    /// Nothing came within the time given; the input is still open.
    Pending,
    End,
}

/// Reads requests one after the other.
pub struct RequestReader {
    lines: LineSource,
    parser: RequestParser,
    name: Arc<str>,
    max_line_bytes: usize,
    selected: Selected,
    /// Lines that are not blank, answered or not.
    num_lines: u64,
    num_requests: u64,
    num_bytes: u64,
}

impl RequestReader {
    /// Opens the input.
    pub fn open(input: &InputPath, options: ReaderOptions) -> Result<Self, BatchError> {
        let failed = |source| BatchError::OpenInput { name: input.name(), source };
        let max_line_bytes = options.max_line_bytes;
        let mut ids = Ids::default();
        let num_lines = match options.selection {
            Selection::Sample(..) => count_lines_of(input, options.format)?,
            _ => None,
        };
        let selected = options.selection.of(num_lines);
        let selected = selected.ok_or_else(|| BatchError::SampleOfStream { name: input.name() })?;
        let lines = match input {
            InputPath::Stdin => {
                let source = lines_of_stream(BufReader::new(io::stdin()), options.format, None);
                LineSource::threaded(source, max_line_bytes).map_err(failed)?
            }
            InputPath::File(path) => {
                let file = File::open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if metadata.is_dir() {
                    return Err(BatchError::InputIsDirectory { name: input.name() });
                }
                let source = BufReader::with_capacity(1 << 18, file);
                match metadata.is_file() {
                    true => {
                        let reading = |error| BatchError::reading(&input.name(), 0, error);
                        let mut source = lines_of(source, options.format, Some(path)).map_err(reading)?;
                        // Before a model is loaded.
                        check_start(&mut source).map_err(reading)?;
                        if options.rows.is_none() && options.format.is_plain(path).map_err(failed)? {
                            ids = Ids::of_file(path);
                        }
                        LineSource::in_place(source, max_line_bytes)
                    }
                    false => {
                        let source = lines_of_stream(source, options.format, Some(path));
                        LineSource::threaded(source, max_line_bytes).map_err(failed)?
                    }
                }
            }
        };
        Ok(Self::from_lines(lines, &input.name(), options, ids, selected))
    }

    fn from_lines(
        lines: LineSource,
        name: &str,
        options: ReaderOptions,
        ids: Ids,
        selected: Selected,
    ) -> Self {
        let name: Arc<str> = name.into();
        Self {
            lines,
            max_line_bytes: options.max_line_bytes,
            parser: RequestParser::new(Arc::clone(&name), options, ids),
            name,
            selected,
            num_lines: 0,
            num_requests: 0,
            num_bytes: 0,
        }
    }

    /// The input's name in messages, for errors that come up later in a request's life.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many requests have been read, failed lines included.
    pub fn num_requests(&self) -> u64 {
        self.num_requests
    }

    /// Bytes of the lines that have been read and kept.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// What was odd but could be lived with, so far.
    pub fn warnings(&self) -> &Warnings {
        &self.parser.warnings
    }

    /// Adds what came up later in a request's life.
    pub fn warn(&mut self, line: u64, key: &str, text: &str) {
        self.parser.warn(line, key, || text.to_owned());
    }

    /// Reads the next request or the next line that is none; nothing at the end of the input.
    pub fn next_request(&mut self) -> Result<Option<Result<Request, Box<FailedLine>>>, BatchError> {
        loop {
            return Ok(match self.next(None)? {
                NextRequest::Request(request) => Some(Ok(*request)),
                NextRequest::Failed(failed) => Some(Err(failed)),
                NextRequest::Pending => continue,
                NextRequest::End => None,
            });
        }
    }

    /// Reads as [`next_request`](Self::next_request) does, but waits at most `patience` for an
    /// input that is silent, such as a pipe.
    pub fn poll_request(&mut self, patience: Duration) -> Result<NextRequest, BatchError> {
        self.next(Some(patience))
    }

    fn next(&mut self, patience: Option<Duration>) -> Result<NextRequest, BatchError> {
        let parsed = loop {
            let line = match self.lines.next_line(patience) {
                Ok(NextLine::Line(line)) => line,
                Ok(NextLine::Pending) => return Ok(NextRequest::Pending),
                Ok(NextLine::End) => return Ok(NextRequest::End),
                Err(error) => return Err(BatchError::reading(&self.name, error.line, error.source)),
            };
            if !matches!(line.content, Content::Filler(_)) {
                self.num_lines += 1;
                match self.selected.fate(self.num_lines - 1) {
                    Fate::Answered => {}
                    Fate::Skipped => continue,
                    Fate::End => return Ok(NextRequest::End),
                }
            }
            let place = Place { index: self.num_requests, line: line.number };
            break match line.content {
                Content::Bytes(bytes) => {
                    self.num_bytes += bytes.len() as u64;
                    // No fewer bytes hold more.
                    let num_values = if bytes.len() > MAX_LINE_VALUES { count_values(bytes) } else { 0 };
                    match num_values > MAX_LINE_VALUES {
                        true => Err(self.parser.too_many_values(place, num_values, bytes)),
                        false => self.parser.parse(place, bytes),
                    }
                }
                Content::TooLong { num_bytes, start } => {
                    Err(self.parser.too_long(place, num_bytes, self.max_line_bytes, start))
                }
                Content::Filler(what) => {
                    self.parser.warn(line.number, "filler", || {
                        format!("{what} at the very end, behind the last line; ignored")
                    });
                    continue;
                }
            };
        };
        self.num_requests += 1;
        Ok(match parsed {
            Ok(request) => NextRequest::Request(Box::new(request)),
            Err(failed) => NextRequest::Failed(failed),
        })
    }
}

/// Counts the lines of the input that will have an output line.
///
/// Nothing for what is not a regular file: a pipe can be read only once.
pub fn count_requests(input: &InputPath, options: &ReaderOptions) -> Result<Option<u64>, BatchError> {
    let Some(num_lines) = count_lines_of(input, options.format)? else { return Ok(None) };
    Ok(options.selection.of(Some(num_lines)).map(|selected| selected.num_of(num_lines)))
}

fn count_lines_of(input: &InputPath, format: InputFormat) -> Result<Option<u64>, BatchError> {
    let Some(path) = input.path() else { return Ok(None) };
    let failed = |source| BatchError::OpenInput { name: input.name(), source };
    // Opening a FIFO here would take its writer away from the reader that follows.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Ok(None);
    }
    let source = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
    let reading = |error| BatchError::reading(&input.name(), 0, error);
    let lines = lines_of(source, format, Some(path)).map_err(reading)?;
    count_lines(lines).map(Some).map_err(reading)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static [u8], max_line_bytes: usize) -> Vec<Result<Request, Box<FailedLine>>> {
        let options = ReaderOptions { max_line_bytes, ..ReaderOptions::default() };
        let lines = LineSource::in_place(Box::new(text), max_line_bytes);
        let all = Selected::Range(0, None);
        let mut reader = RequestReader::from_lines(lines, "in.jsonl", options, Ids::default(), all);
        let mut items = Vec::new();
        while let Some(item) = reader.next_request().expect("a slice reads without error") {
            items.push(item);
        }
        assert_eq!(items.len() as u64, reader.num_requests());
        items
    }

    #[test]
    fn indices_have_no_gaps_where_line_numbers_have() {
        let items = read(b"\n{\"prompt\": \"a\"}\n\nnonsense\n{\"prompt\": \"b\"}", 100);
        let places: Vec<_> = items
            .iter()
            .map(|item| match item {
                Ok(request) => (request.head.index, request.head.line, true),
                Err(failed) => (failed.head.index, failed.head.line, false),
            })
            .collect();
        assert_eq!(places, [(0, 2, true), (1, 4, false), (2, 5, true)]);
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_line() {
        let items = read(b"{\"prompt\": \"a long one\"}\n{\"prompt\": \"b\"}\n", 20);
        let failed = items[0].as_ref().expect_err("over the limit");
        assert_eq!(failed.error.code(), "line_too_long");
        assert_eq!(failed.error.message(), "in.jsonl:1: the line has 24 bytes; at most 20 are read");
        assert_eq!(items[1].as_ref().expect("under it").head.custom_id, "line-2");
    }

    /// 57 MB of `{}` took 3 GB.
    #[test]
    fn a_line_of_too_many_values_is_an_error_line_with_its_id() {
        let many = ["{}"; MAX_LINE_VALUES].join(",");
        let text =
            format!("{{\"id\": \"a\", \"prompt\": \"x\", \"metadata\": [{many}]}}\n{{\"prompt\": \"b\"}}\n");
        let items = read(text.leak().as_bytes(), 64 << 20);
        let failed = items[0].as_ref().expect_err("too many");
        assert_eq!((failed.error.code(), failed.head.custom_id.as_str()), ("too_many_values", "a"));
        assert!(
            failed.error.message().starts_with("in.jsonl:1: the line has 1048583 JSON"),
            "{:?}",
            failed.error
        );
        assert!(items[1].is_ok());
        let tokens = vec!["1"; 200_000].join(",");
        let items = read(format!("{{\"prompt\": [{tokens}]}}").leak().as_bytes(), 64 << 20);
        assert!(items[0].is_ok(), "a long prompt of tokens is read");
    }

    #[test]
    fn only_a_regular_file_is_counted() {
        let count = |input: InputPath| count_requests(&input, &ReaderOptions::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.jsonl");
        fs::write(&path, "{}\n\n{}").unwrap();
        assert_eq!(count(InputPath::File(path)).unwrap(), Some(2));
        assert_eq!(count(InputPath::Stdin).unwrap(), None);
        assert_eq!(count(InputPath::File("/dev/null".into())).unwrap(), None);
        assert!(count(InputPath::File(folder.path().join("no"))).is_err());
    }

    #[test]
    fn a_missing_file_and_a_folder_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &std::path::Path| {
            RequestReader::open(&InputPath::File(path.into()), ReaderOptions::default())
                .err()
                .expect("nothing to read there")
        };
        let missing = open(&folder.path().join("no.jsonl"));
        assert!(missing.to_string().contains("no.jsonl") && missing.hint().is_some(), "{missing}");
        assert!(open(folder.path()).to_string().contains("is a directory"));
    }
}
