//! Requests from files or standard input, one at a time.
//!
//! Owns which lines become requests, and numbering these; opening inputs is for `input_lines`, waiting for `source`. Memory
//! does not grow with the input, but for the digests of the ids (some 40 bytes a request), which
//! find duplicates. Blank lines are no requests: they get no output line and only count in line
//! numbers.

use std::sync::Arc;
use std::time::Duration;

use super::error::BatchError;
use super::ids::Ids;
use super::input_lines::{InputLines, count_all};
use super::json_values::{MAX_LINE_VALUES, count_values};
use super::line_error::FailedLine;
use super::lines::{Content, DEFAULT_MAX_LINE_BYTES};
use super::opened::InputFormat;
use super::paths::Inputs;
use super::request::{Place, Request, RequestHead, RequestParser};
use super::rows::Rows;
use super::selection::{Fate, Selected, Selection};
use super::shards::ShardLines;
use super::source::NextLine;
use super::warnings::Warnings;

/// How input is read.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// A longer line is an error line; its bytes are skipped without being kept.
    pub max_line_bytes: usize,
    /// Requests that name another model than this are answered, with a warning.
    pub served_model: Option<String>,
    /// Requests that name another adapter than this are error lines, where it is known which model is served.
    pub served_adapter: Option<String>,
    /// Lines that are answered.
    pub selection: Selection,
    /// Of these, the lines that are this process's, where others answer the rest.
    pub shard: Option<Arc<ShardLines>>,
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
            served_adapter: None,
            selection: Selection::All,
            shard: None,
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
    lines: InputLines,
    parser: RequestParser,
    max_line_bytes: usize,
    selected: Selected,
    shard: Option<Arc<ShardLines>>,
    /// Lines that are not blank, answered or not.
    num_lines: u64,
    /// Of these, the ones that are selected, by this process or others.
    num_selected: u64,
    num_requests: u64,
    num_bytes: u64,
}

impl RequestReader {
    /// Opens the inputs.
    pub fn open(inputs: &Inputs, options: ReaderOptions) -> Result<Self, BatchError> {
        let lines = InputLines::open(inputs, options.format, options.max_line_bytes)?;
        let is_read_once = inputs.stream().is_some();
        let num_lines = match options.selection {
            Selection::Sample(..) => count_all(inputs, options.format)?,
            _ => None,
        };
        let selected = options.selection.of(num_lines);
        let selected = selected.ok_or_else(|| BatchError::SampleOfStream { name: inputs.name() })?;
        let ids = match is_read_once || options.rows.is_some() {
            true => Ids::default(),
            false => Ids::of_files(inputs, options.format),
        };
        Ok(Self::from_lines(lines, options, ids, selected))
    }

    fn from_lines(lines: InputLines, options: ReaderOptions, ids: Ids, selected: Selected) -> Self {
        Self {
            max_line_bytes: options.max_line_bytes,
            shard: options.shard.clone(),
            parser: RequestParser::new(lines.file().clone(), options, ids),
            lines,
            selected,
            num_lines: 0,
            num_selected: 0,
            num_requests: 0,
            num_bytes: 0,
        }
    }

    /// What messages call all inputs together.
    pub fn name(&self) -> String {
        self.lines.inputs().name()
    }

    /// What is read.
    pub fn inputs(&self) -> &Inputs {
        self.lines.inputs()
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
    pub fn warn(&mut self, head: &RequestHead, key: &str, text: &str) {
        self.parser.warn_of(&head.file, head.line, key, || text.to_owned());
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
            let line = match self.lines.next_line(patience)? {
                NextLine::Line(line) => line,
                NextLine::Pending => return Ok(NextRequest::Pending),
                NextLine::End => {
                    if !self.lines.advance()? {
                        return Ok(NextRequest::End);
                    }
                    self.parser.file = self.lines.file().clone();
                    continue;
                }
            };
            if !matches!(line.content, Content::Filler(_)) {
                self.num_lines += 1;
                match self.selected.fate(self.num_lines - 1) {
                    Fate::Answered => {}
                    Fate::Skipped => continue,
                    Fate::End => return Ok(NextRequest::End),
                }
                self.num_selected += 1;
                if self.shard.as_ref().is_some_and(|shard| !shard.has(self.num_selected - 1)) {
                    self.parser.pass_over(line.number, &line.content);
                    continue;
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

/// Counts the lines of the inputs that will have an output line.
///
/// Nothing for what is not a regular file: a pipe can be read only once.
pub fn count_requests(inputs: &Inputs, options: &ReaderOptions) -> Result<Option<u64>, BatchError> {
    if let Some(shard) = &options.shard {
        return Ok(Some(shard.facts.num_lines));
    }
    let Some(num_lines) = count_all(inputs, options.format)? else { return Ok(None) };
    Ok(options.selection.of(Some(num_lines)).map(|selected| selected.num_of(num_lines)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::batch::paths::InputPath;
    use crate::batch::source::LineSource;

    fn read(text: &'static [u8], max_line_bytes: usize) -> Vec<Result<Request, Box<FailedLine>>> {
        let options = ReaderOptions { max_line_bytes, ..ReaderOptions::default() };
        let lines = LineSource::in_place(Box::new(text), max_line_bytes);
        let lines = InputLines::of_source(lines, "in.jsonl", max_line_bytes);
        let all = Selected::Range(0, None);
        let mut reader = RequestReader::from_lines(lines, options, Ids::default(), all);
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
        let count = |input: InputPath| count_requests(&input.into(), &ReaderOptions::default());
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
            RequestReader::open(&InputPath::File(path.into()).into(), ReaderOptions::default())
                .err()
                .expect("nothing to read there")
        };
        let missing = open(&folder.path().join("no.jsonl"));
        assert!(missing.to_string().contains("no.jsonl") && missing.hint().is_some(), "{missing}");
        assert!(open(folder.path()).to_string().contains("is a directory"));
    }

    /// Whatever reads them: each line is that of its own file, and ids are unique among all files.
    #[test]
    fn several_files_are_read_one_behind_the_other() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let files = [
            ("a.jsonl", "{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"id\": \"x\"}"),
            ("b.jsonl", "\n"),
            ("c.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"c\", \"id\": \"x\"}\nnonsense\n"),
        ];
        let inputs = files.map(|(name, text)| {
            fs::write(folder.path().join(name), text).expect("there is room");
            InputPath::File(folder.path().join(name))
        });
        let inputs = Inputs::find(&inputs).expect("they are there");
        let read = |selection| {
            let options = ReaderOptions { selection, ..ReaderOptions::default() };
            assert_eq!(
                count_requests(&inputs, &options).expect("they can be counted").map(|num| num > 0),
                Some(true)
            );
            let mut reader = RequestReader::open(&inputs, options).expect("they are there");
            let mut items = Vec::new();
            while let Some(item) = reader.next_request().expect("files can be read") {
                let (head, problem) = match item {
                    Ok(request) => (request.head, String::new()),
                    Err(failed) => (failed.head, failed.error.message().to_owned()),
                };
                items.push((
                    head.index,
                    head.file.line_name(head.line),
                    head.custom_id,
                    head.digest,
                    problem,
                ));
            }
            items
        };
        let items = read(Selection::All);
        let places: Vec<_> =
            items.iter().map(|(index, line, id, ..)| (*index, line.as_str(), id.as_str())).collect();
        assert_eq!(
            places,
            [
                (0, "1", "line-1"),
                (1, "3", "x"),
                (2, "3-1", "file-3-line-1"),
                (3, "3-2", "x"),
                (4, "3-3", "file-3-line-3")
            ]
        );
        assert_ne!(items[0].3, items[2].3, "the same line of another file has ids of its own");
        assert!(
            items[3].4.contains("c.jsonl:2: custom_id: \"x\" was used by an earlier line"),
            "{}",
            items[3].4
        );
        assert!(items[4].4.contains("c.jsonl:3: not valid JSON"), "{}", items[4].4);
        let names = |selection| read(selection).into_iter().map(|(_, line, ..)| line).collect::<Vec<_>>();
        assert_eq!(names(Selection::Range(1, Some(3))), ["3", "3-1"]);
        assert_eq!(names(Selection::Sample(5, 1)).len(), 5);
    }

    #[test]
    fn a_later_file_that_is_missing_is_named_at_the_start() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        fs::write(folder.path().join("a.jsonl"), "{}\n").expect("there is room");
        let inputs = ["a.jsonl", "no.jsonl"].map(|name| InputPath::File(folder.path().join(name)));
        let inputs = Inputs::find(&inputs).expect("none is a pattern");
        let error = RequestReader::open(&inputs, ReaderOptions::default()).err().expect("one is missing");
        assert!(error.to_string().contains("no.jsonl"), "{error}");
    }
}
