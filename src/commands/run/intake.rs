//! Reading ahead: what the input has, as requests that are ready for their window.
//!
//! Owns how many lines are taken at a time, preparing them on all cores, and doing so while the model
//! loads; and what is said of lines on the way. What a request becomes is `prepare`'s, when more is wanted is
//! the session's business.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    prepare::{Dialogue, PreparedJob, PreparedRequest, Preparer},
    window::WindowSize,
};
use crate::{
    batch::{
        BatchError, Choice, Kept, NextRequest, Record, Request, RequestError, RequestHead, RequestReader,
    },
    deep::for_each_line,
    text::TextModel,
};

/// Requests that are prepared together: several for each core, and few enough not to hold up the
/// running batch.
const MAX_ROUND_REQUESTS: usize = 32;

/// Bytes of lines after which a round ends: those of a round are in memory together.
const MAX_ROUND_BYTES: u64 = 4 << 20;

/// Bytes of lines that are read while the model loads.
const MAX_EARLY_BYTES: u64 = 64 << 20;

/// How long a line may take to follow the one before it. A pipe that is slower is silent; one that is
/// not should not have its requests torn apart.
pub(in crate::commands) const PAUSE: Duration = Duration::from_millis(10);

/// What the input has at the moment.
pub(in crate::commands) enum Next {
    Ready(Box<PreparedJob>),
    /// A line that cannot be served.
    Failed(Box<Record>),
    /// Nothing came within the time given; the input is still open.
    Pending,
    End,
}

/// A line of the input, or what was made of it; else the output's line that says why not.
type Made<T> = Result<Box<T>, Box<Record>>;

/// Requests on their way from the input to a window.
pub(in crate::commands) struct Intake {
    reader: RequestReader,
    preparer: Arc<Preparer>,
    text: Arc<TextModel>,
    /// In the order of the input.
    prepared: VecDeque<Made<PreparedJob>>,
    /// Lines that have their result already; they are read over.
    kept: Kept,
    /// Why reading ended, told after what was read before.
    failure: Option<BatchError>,
}

impl Intake {
    pub(in crate::commands) fn new(
        reader: RequestReader,
        preparer: Arc<Preparer>,
        text: Arc<TextModel>,
        kept: Kept,
    ) -> Self {
        Self { reader, preparer, text, prepared: VecDeque::new(), kept, failure: None }
    }

    pub(super) fn reader(&self) -> &RequestReader {
        &self.reader
    }

    pub(in crate::commands) fn into_reader(self) -> RequestReader {
        self.reader
    }

    pub(super) fn text(&self) -> &Arc<TextModel> {
        &self.text
    }

    /// Prepares the turn of a conversation that follows these answers.
    pub(super) fn next_turn(
        &mut self,
        head: &RequestHead,
        dialogue: &Dialogue,
        choice: usize,
        answers: &[&Choice],
    ) -> Result<PreparedRequest, RequestError> {
        let (request, notices) = self.preparer.next_turn(&self.text, head, dialogue, choice, answers)?;
        for notice in notices {
            self.reader.warn(head, &notice.key, &notice.text);
        }
        Ok(request)
    }

    /// Takes the next line of the input; waits at most `patience` for it.
    pub(in crate::commands) fn next(&mut self, patience: Duration) -> Result<Next, BatchError> {
        let idle = if self.prepared.is_empty() { self.read_round(patience)? } else { Next::Pending };
        Ok(match self.prepared.pop_front() {
            Some(Ok(ready)) => Next::Ready(ready),
            Some(Err(record)) => Next::Failed(record),
            None => idle,
        })
    }

    /// Does something else here, and meanwhile prepares up to a window of requests.
    pub(super) fn during<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            // Where the system starts no more threads, it is read afterwards.
            let _ = thread::Builder::new().spawn_scoped(scope, || self.read_until(&is_over));
            let done = work();
            is_over.store(true, Ordering::Relaxed);
            done
        })
    }

    fn read_until(&mut self, is_over: &AtomicBool) {
        let first_byte = self.reader.num_bytes();
        let mut size = WindowSize::default();
        while !is_over.load(Ordering::Relaxed)
            && !size.is_full()
            && self.reader.num_bytes() - first_byte < MAX_EARLY_BYTES
        {
            let num_before = self.prepared.len();
            match self.read_round(PAUSE) {
                Ok(Next::End) => return,
                Ok(_) => self.prepared.range(num_before..).for_each(|made| match made {
                    Ok(ready) => size.add(ready),
                    Err(_) => size.add_failed(),
                }),
                Err(error) => {
                    self.failure = Some(error);
                    return;
                }
            }
        }
    }

    /// Prepares the next lines; says what the input has where there are none.
    fn read_round(&mut self, patience: Duration) -> Result<Next, BatchError> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let mut lines: Vec<Made<Request>> = Vec::new();
        let mut idle = Next::Pending;
        let first_byte = self.reader.num_bytes();
        while lines.len() < MAX_ROUND_REQUESTS && self.reader.num_bytes() - first_byte < MAX_ROUND_BYTES {
            let patience = if lines.is_empty() { patience } else { patience.min(PAUSE) };
            match self.reader.poll_request(patience) {
                Ok(NextRequest::Request(request)) if self.kept.has(request.head.index) => {}
                Ok(NextRequest::Failed(failed)) if self.kept.has(failed.head.index) => {}
                Ok(NextRequest::Request(request)) => lines.push(Ok(request)),
                Ok(NextRequest::Failed(failed)) => lines.push(Err(Box::new(Record::failed(&failed)))),
                Ok(NextRequest::Pending) => break,
                Ok(NextRequest::End) => {
                    idle = Next::End;
                    break;
                }
                Err(error) if lines.is_empty() => return Err(error),
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
        }
        let mut made = self.make_all(lines);
        for ready in made.iter_mut().flatten() {
            for notice in ready.notices.drain(..) {
                self.reader.warn(&ready.head, &notice.key, &notice.text);
            }
        }
        self.prepared.extend(made);
        Ok(idle)
    }

    /// Prepares requests on all cores; keeps their order.
    fn make_all(&self, lines: Vec<Made<Request>>) -> Vec<Made<PreparedJob>> {
        let (preparer, text) = (Arc::clone(&self.preparer), Arc::clone(&self.text));
        for_each_line(lines, move |line| {
            line.and_then(|request| {
                let head = request.head.clone();
                let prepared = preparer.prepare(&text, *request);
                prepared.map(Box::new).map_err(|error| {
                    Box::new(Record::request_error(&head, &error.at(&head.file.name, head.line)))
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        batch::{InputPath, ReaderOptions},
        plan::MAX_WINDOW_REQUESTS,
    };

    /// More than a few rounds.
    const NUM_LINES: usize = 5 * MAX_ROUND_REQUESTS + 7;

    fn is_bad(index: usize) -> bool {
        index % 11 == 3
    }

    fn intake() -> Intake {
        intake_of((0..NUM_LINES).map(|index| match is_bad(index) {
            true => "{\"prompt\": 1}\n".to_owned(),
            false => format!("{{\"prompt\": \"word {index}\"}}\n"),
        }))
    }

    fn intake_of(lines: impl Iterator<Item = String>) -> Intake {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("in.jsonl");
        std::fs::write(&path, lines.collect::<String>()).expect("there is room");
        let reader = RequestReader::open(&InputPath::File(path).into(), ReaderOptions::default());
        let text = TextModel::from_folder(Path::new("fixtures/tiny-llama")).expect("the fixture loads");
        let preparer = Preparer {
            end_ids: Arc::from([]),
            fallback: Default::default(),
            default_max_tokens: 6,
            max_context: 64,
            max_long_context: None,
            vocab_size: 304,
            has_checkpoints: false,
            reply: Default::default(),
        };
        Intake::new(reader.expect("it was just written"), Arc::new(preparer), Arc::new(text), Kept::default())
    }

    fn take_all(mut intake: Intake) {
        for index in 0..NUM_LINES {
            match intake.next(Duration::ZERO).expect("the file can be read") {
                Next::Ready(ready) => {
                    assert!(!is_bad(index));
                    assert_eq!((ready.head.index, ready.head.line), (index as u64, index as u64 + 1));
                    let tokens =
                        intake.text().encode_prompt(&format!("word {index}"), true).expect("it encodes");
                    assert_eq!(ready.requests[0].generation.prompt, tokens);
                }
                Next::Failed(_) => assert!(is_bad(index), "line {index}"),
                Next::Pending | Next::End => panic!("line {index} is missing"),
            }
        }
        assert!(matches!(intake.next(Duration::ZERO), Ok(Next::End)));
        assert!(intake.prepared.is_empty());
    }

    #[test]
    fn lines_come_in_order_whoever_prepared_them() {
        take_all(intake());
    }

    #[test]
    fn what_was_read_meanwhile_comes_first() {
        // A machine that is busy may take long to begin with it.
        for milliseconds in [20, 500, 20_000] {
            let mut intake = intake();
            let did = intake.during(|| {
                thread::sleep(Duration::from_millis(milliseconds));
                1
            });
            assert_eq!(did, 1);
            if !intake.prepared.is_empty() {
                return take_all(intake);
            }
        }
        panic!("nothing was read meanwhile");
    }

    /// The whole input was read while a model loaded, up to its limit of 64 MB.
    #[test]
    fn no_more_metadata_than_of_a_window_is_read_meanwhile() {
        let metadata = "m".repeat(20 << 10);
        let mut intake = intake_of(
            (0..300).map(|_| format!("{{\"prompt\": \"a\", \"metadata\": {{\"m\": \"{metadata}\"}}}}\n")),
        );
        intake.read_until(&AtomicBool::new(false));
        // Two mebibytes, and what a round reads beyond them.
        let num_of_window = (2 << 20) / metadata.len();
        let num_prepared = intake.prepared.len();
        assert!(
            (num_of_window..=num_of_window + MAX_ROUND_REQUESTS).contains(&num_prepared),
            "{num_prepared}"
        );
    }

    /// Lines that fail are short where they like; they were not counted once.
    #[test]
    fn no_more_lines_that_fail_than_a_window_has_are_read_meanwhile() {
        let num_lines = MAX_WINDOW_REQUESTS + 10 * MAX_ROUND_REQUESTS;
        let mut intake = intake_of((0..num_lines).map(|_| "{}\n".to_owned()));
        intake.read_until(&AtomicBool::new(false));
        assert_eq!(intake.prepared.len(), MAX_WINDOW_REQUESTS);
    }
}
