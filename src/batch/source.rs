//! Where lines come from: read in place, or by a thread of its own where reading can wait.
//!
//! Owns that choice and the waiting. A pipe or a terminal may be silent for hours; meanwhile
//! requests are computed and Ctrl-C is heard. Splitting into lines is for `lines`.

use std::io::{self, BufRead};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use super::lines::{Content, Line, LineReader};

/// Lines that a thread reads ahead; each may be as long as the limit on lines.
const MAX_LINES_AHEAD: usize = 8;

/// What a source has at the moment.
pub(super) enum NextLine<'a> {
    Line(Line<'a>),
    /// Nothing came within the time given.
    Pending,
    End,
}

/// Reading failed after `line` lines.
#[derive(Debug)]
pub(super) struct ReadError {
    pub line: u64,
    pub source: io::Error,
}

/// A stream of lines.
pub(super) enum LineSource {
    /// What never makes one wait: a regular file.
    InPlace(LineReader<Box<dyn BufRead + Send>>),
    Threaded {
        receiver: Receiver<Result<OwnedLine, ReadError>>,
        /// The line lent out last.
        current: Option<OwnedLine>,
    },
}

/// A [`Line`] on its way from the reading thread.
pub(super) struct OwnedLine {
    number: u64,
    content: OwnedContent,
}

enum OwnedContent {
    Bytes(Vec<u8>),
    TooLong { num_bytes: u64, start: Vec<u8> },
    Filler(&'static str),
}

impl LineSource {
    /// Reads whenever a line is asked for.
    pub fn in_place(source: Box<dyn BufRead + Send>, max_line_bytes: usize) -> Self {
        Self::InPlace(LineReader::new(source, max_line_bytes))
    }

    /// Reads in a thread, which ends with the source or once nobody asks any more.
    pub fn threaded(source: Box<dyn BufRead + Send>, max_line_bytes: usize) -> io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel(MAX_LINES_AHEAD);
        let lines = LineReader::new(source, max_line_bytes);
        thread::Builder::new().name("input".into()).spawn(move || send_lines(lines, &sender))?;
        Ok(Self::Threaded { receiver, current: None })
    }

    /// Returns the next line that is not blank; waits for it at most `patience`, or for ever.
    pub fn next_line(&mut self, patience: Option<Duration>) -> Result<NextLine<'_>, ReadError> {
        match self {
            Self::InPlace(lines) => Ok(match next_in_place(lines)? {
                Some(line) => NextLine::Line(line),
                None => NextLine::End,
            }),
            Self::Threaded { receiver, current } => {
                let received = match patience {
                    Some(patience) => receiver.recv_timeout(patience),
                    None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
                };
                match received {
                    Ok(line) => Ok(NextLine::Line(current.insert(line?).as_line())),
                    Err(RecvTimeoutError::Timeout) => Ok(NextLine::Pending),
                    Err(RecvTimeoutError::Disconnected) => Ok(NextLine::End),
                }
            }
        }
    }
}

fn next_in_place<R: BufRead>(lines: &mut LineReader<R>) -> Result<Option<Line<'_>>, ReadError> {
    // The number of a line that cannot be read is that of the last one that could.
    let line = lines.line_number();
    lines.next_line().map_err(|source| ReadError { line, source })
}

fn send_lines<R: BufRead>(mut lines: LineReader<R>, sender: &SyncSender<Result<OwnedLine, ReadError>>) {
    loop {
        let message = match next_in_place(&mut lines) {
            Ok(None) => return,
            Ok(Some(line)) => Ok(OwnedLine::from(line)),
            Err(error) => Err(error),
        };
        let is_last = message.is_err();
        if sender.send(message).is_err() || is_last {
            return;
        }
    }
}

impl From<Line<'_>> for OwnedLine {
    fn from(line: Line<'_>) -> Self {
        let content = match line.content {
            Content::Bytes(bytes) => OwnedContent::Bytes(bytes.to_vec()),
            Content::TooLong { num_bytes, start } => {
                OwnedContent::TooLong { num_bytes, start: start.to_vec() }
            }
            Content::Filler(name) => OwnedContent::Filler(name),
        };
        Self { number: line.number, content }
    }
}

impl OwnedLine {
    fn as_line(&self) -> Line<'_> {
        let content = match &self.content {
            OwnedContent::Bytes(bytes) => Content::Bytes(bytes),
            OwnedContent::TooLong { num_bytes, start } => Content::TooLong { num_bytes: *num_bytes, start },
            OwnedContent::Filler(name) => Content::Filler(name),
        };
        Line { number: self.number, content }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read, Write};

    use super::*;

    fn describe(next: NextLine<'_>) -> String {
        match next {
            NextLine::Line(Line { number, content: Content::Bytes(bytes) }) => {
                format!("{number}: {}", String::from_utf8_lossy(bytes))
            }
            NextLine::Line(Line { number, content: Content::TooLong { num_bytes, .. } }) => {
                format!("{number}: {num_bytes} bytes")
            }
            NextLine::Line(Line { number, content: Content::Filler(name) }) => format!("{number}: {name}"),
            NextLine::Pending => "pending".into(),
            NextLine::End => "end".into(),
        }
    }

    /// A silent pipe held up everything: the first request of a slow producer was computed only
    /// once the batch was full, and Ctrl-C went unheard.
    #[test]
    fn a_silent_pipe_is_pending_even_in_the_middle_of_a_line() {
        let (reader, mut writer) = io::pipe().expect("a pipe can be made");
        let mut source = LineSource::threaded(Box::new(BufReader::new(reader)), 8).expect("a thread starts");
        assert_eq!(describe(source.next_line(Some(Duration::ZERO)).unwrap()), "pending");
        writer.write_all(b"one\n\nthr").unwrap();
        assert_eq!(describe(source.next_line(None).unwrap()), "1: one");
        assert_eq!(describe(source.next_line(Some(Duration::from_millis(1))).unwrap()), "pending");
        writer.write_all(b"ee\ntoo long a line\n").unwrap();
        drop(writer);
        assert_eq!(describe(source.next_line(None).unwrap()), "3: three");
        assert_eq!(describe(source.next_line(None).unwrap()), "4: 15 bytes");
        for _ in 0..2 {
            assert_eq!(describe(source.next_line(None).unwrap()), "end");
        }
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }

    #[test]
    fn a_source_that_fails_says_after_which_line() {
        let broken = || -> Box<dyn BufRead + Send> { Box::new(BufReader::new(b"a\nb\n".chain(Broken))) };
        let sources = [LineSource::in_place(broken(), 9), LineSource::threaded(broken(), 9).unwrap()];
        for mut source in sources {
            assert_eq!(describe(source.next_line(None).unwrap()), "1: a");
            assert_eq!(describe(source.next_line(None).unwrap()), "2: b");
            let error = source.next_line(None).err().expect("the disk is gone");
            assert_eq!((error.line, error.source.to_string().as_str()), (2, "the disk is gone"));
        }
    }
}
