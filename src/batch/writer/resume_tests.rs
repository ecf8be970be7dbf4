//! Going on from what an earlier run has left.
//!
//! Owns every state that a run may leave and every change since. Killing real processes is done in
//! `tests/run/resume.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::batch::line_error::RequestError;
use crate::batch::paths::InputPath;
use crate::batch::record::{Choice, Completion, FinishReason, Served, TokenCounts};
use crate::batch::request::RequestHead;
use crate::batch::selection::Selection;

struct Desk {
    folder: tempfile::TempDir,
    output: PathBuf,
    input: InputPath,
    /// How lines are read.
    options: ReaderOptions,
    manifest: Manifest,
}

impl Desk {
    fn new(num_lines: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in.jsonl");
        let lines = (0..num_lines).map(|number| format!("{{\"prompt\": \"{number}\"}}\n\n"));
        fs::write(&input, lines.collect::<String>()).unwrap();
        let mut manifest = Manifest::default();
        manifest.say("--temperature", "0");
        let output = folder.path().join("out.jsonl");
        Self { output, input: InputPath::File(input), options: ReaderOptions::default(), manifest, folder }
    }

    fn inputs(&self) -> Inputs {
        self.input.clone().into()
    }

    fn input_path(&self) -> &Path {
        self.input.path().unwrap()
    }

    fn heads(&self) -> Vec<RequestHead> {
        let mut reader = RequestReader::open(&self.inputs(), self.options.clone()).unwrap();
        std::iter::from_fn(|| reader.next_request().unwrap())
            .map(|read| read.map_or_else(|failed| failed.head, |request| request.head))
            .collect()
    }

    fn record(&self, index: usize, is_ok: bool) -> Record {
        let head = &self.heads()[index];
        if !is_ok {
            return Record::request_error(head, &RequestError::internal("no memory"));
        }
        let choice = Choice {
            text: format!("answer {index}"),
            finish_reason: FinishReason::Stop,
            stop_reason: None,
            logprobs: None,
            prompt_logprobs: None,
            reply: None,
            turns: Vec::new(),
        };
        let completion = Completion {
            choices: vec![choice],
            usage: TokenCounts { num_prompt_tokens: 1, num_completion_tokens: 1, ..TokenCounts::default() },
        };
        Record::success(head, &completion, &Served { model: "m".into(), created: 0, is_repeatable: true })
    }

    fn start(&self, goes_on: bool) -> ResultWriter {
        ResultWriter::create(&OutputPath::File(self.output.clone()), &self.inputs(), goes_on).unwrap()
    }

    /// A run that comes as far as these records and is abandoned.
    fn leave(&self, records: &[(usize, bool)]) {
        let mut writer = self.start(false);
        writer.begin(&self.manifest).unwrap();
        self.write(&mut writer, records);
        let _ = writer.abandon().unwrap();
    }

    fn write(&self, writer: &mut ResultWriter, records: &[(usize, bool)]) {
        for &(index, is_ok) in records {
            let _ = writer.write(&self.record(index, is_ok)).unwrap();
        }
    }

    fn resume(&self, resume: Resume) -> Result<(ResultWriter, Kept), BatchError> {
        let mut writer = self.start(true);
        let kept = writer.resume(&self.manifest, resume, &self.inputs(), &self.options)?;
        Ok((writer, kept))
    }

    fn expected(&self, records: &[(usize, bool)]) -> String {
        records.iter().map(|&(index, is_ok)| self.record(index, is_ok).to_line() + "\n").collect()
    }
}

const PLAIN: Resume = Resume { retries_errors: false, is_forced: false };
const FORCED: Resume = Resume { retries_errors: false, is_forced: true };
const RETRIED: Resume = Resume { retries_errors: true, is_forced: false };

fn kept(kept: &Kept, num_lines: u64) -> Vec<u64> {
    (0..num_lines).filter(|&index| kept.has(index)).collect()
}

#[test]
fn finished_lines_are_kept_and_the_rest_is_in_its_place() {
    let desk = Desk::new(5);
    desk.leave(&[(3, true), (0, false)]);
    let (mut writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((kept(&found, 5), found.num_ok, found.num_failed, found.num_left), (vec![0, 3], 1, 1, 3));
    desk.write(&mut writer, &[(4, true), (1, true), (2, true)]);
    assert_eq!(writer.finish(false).unwrap().num_results, 5);
    let all = [(0, false), (1, true), (2, true), (3, true), (4, true)];
    assert_eq!(fs::read_to_string(&desk.output).unwrap(), desk.expected(&all));
    assert!(!partial_path(&desk.output).exists() && !manifest_path(&partial_path(&desk.output)).exists());
}

#[test]
fn errors_are_retried_when_asked_for_also_of_a_run_that_ended() {
    let desk = Desk::new(3);
    for has_ended in [false, true] {
        let left = [(2, false), (0, true), (1, false)];
        if has_ended {
            let mut writer = desk.start(false);
            writer.begin(&desk.manifest).unwrap();
            desk.write(&mut writer, &left);
            writer.finish(true).unwrap();
        } else {
            desk.leave(&left);
        }
        let before = fs::read(&desk.output).ok();
        let (mut writer, found) = desk.resume(RETRIED).unwrap();
        assert_eq!((kept(&found, 3), found.num_left), (vec![0], 2), "{has_ended}");
        assert_eq!(fs::read(&desk.output).ok(), before, "it is there until the new one is whole");
        desk.write(&mut writer, &[(1, true)]);
        // Killed once more: the later of two results of a line counts.
        let _ = writer.abandon().unwrap();
        let (mut writer, found) = desk.resume(PLAIN).unwrap();
        assert_eq!((kept(&found, 3), found.num_ok, found.num_failed), (vec![0, 1, 2], 2, 1), "{has_ended}");
        let _ = writer.abandon().unwrap();
        (writer, _) = desk.resume(RETRIED).unwrap();
        desk.write(&mut writer, &[(2, true)]);
        writer.finish(false).unwrap();
        let all = [(0, true), (1, true), (2, true)];
        assert_eq!(fs::read_to_string(&desk.output).unwrap(), desk.expected(&all), "{has_ended}");
        fs::remove_file(&desk.output).unwrap();
    }
}

#[test]
fn a_line_that_a_kill_has_cut_off_is_answered_again() {
    let desk = Desk::new(4);
    let whole = [(1, true), (3, true)];
    let cut = desk.expected(&[(0, true)]);
    for at in 1..cut.len() {
        desk.leave(&whole);
        let partial = partial_path(&desk.output);
        fs::write(&partial, fs::read_to_string(&partial).unwrap() + &cut[..at]).unwrap();
        let (mut writer, found) = desk.resume(PLAIN).unwrap();
        assert_eq!(kept(&found, 4), [1, 3], "{at}");
        desk.write(&mut writer, &[(0, true), (2, true)]);
        writer.finish(false).unwrap();
        let all = [(0, true), (1, true), (2, true), (3, true)];
        assert_eq!(fs::read_to_string(&desk.output).unwrap(), desk.expected(&all), "{at}");
        fs::remove_file(&desk.output).unwrap();
    }
}

#[test]
fn appended_lines_are_answered_and_changed_ones_are_named_unless_that_is_forced() {
    let desk = Desk::new(3);
    desk.leave(&[(0, true), (1, true), (2, true)]);
    let lines = fs::read_to_string(desk.input_path()).unwrap();
    fs::write(desk.input_path(), format!("{lines}{{\"prompt\": \"new\"}}\n")).unwrap();
    let (writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((kept(&found, 4), found.num_left), (vec![0, 1, 2], 1));
    let _ = writer.abandon().unwrap();

    let refused = |what: &str| {
        let before = fs::read(partial_path(&desk.output)).unwrap();
        let error = desk.resume(PLAIN).err().expect("it is refused");
        assert!(error.to_string().contains(what) && error.hint().is_some(), "{error}");
        assert_eq!(fs::read(partial_path(&desk.output)).unwrap(), before, "nothing is lost by it");
    };
    fs::write(desk.input_path(), lines.replace("\"1\"", "\"one\"")).unwrap();
    refused("in.jsonl:3 is not the line that was answered");
    assert_eq!(kept(&desk.resume(FORCED).unwrap().1, 3), [0, 2]);
    // All that comes after a line more has another number.
    fs::write(desk.input_path(), format!("{{\"prompt\": \"first\"}}\n\n{lines}")).unwrap();
    refused("in.jsonl:1 is not the line that was answered");
    fs::write(desk.input_path(), &lines[..lines.len() / 3]).unwrap();
    refused("in.jsonl has no more the lines of 2 results");
    let (writer, found) = desk.resume(FORCED).unwrap();
    assert_eq!((kept(&found, 3), found.num_left), (vec![0], 0));
    writer.finish(false).unwrap();
    assert_eq!(fs::read_to_string(&desk.output).unwrap(), desk.expected(&[(0, true)]));
}

#[test]
fn other_settings_and_other_files_are_refused_and_leave_everything_as_it_is() {
    let mut desk = Desk::new(2);
    desk.leave(&[(1, true)]);
    desk.manifest.say("--temperature", "0.7");
    let error = desk.resume(PLAIN).err().expect("it is refused");
    assert!(error.to_string().ends_with("was made otherwise: --temperature was 0, is 0.7"), "{error}");
    let manifest = manifest_path(&partial_path(&desk.output));
    fs::remove_file(&manifest).unwrap();
    let error = desk.resume(PLAIN).err().expect("it is refused");
    assert!(error.to_string().contains("out.jsonl.partial.manifest"), "{error}");
    assert_eq!(kept(&desk.resume(FORCED).unwrap().1, 2), [1]);
    assert!(manifest.exists(), "from now on it is made with these settings");

    let partial = partial_path(&desk.output);
    fs::write(&partial, desk.expected(&[(0, true)]) + "{\"id\": \"x\"}\n" + &desk.expected(&[(1, true)]))
        .unwrap();
    let error = desk.resume(PLAIN).err().expect("it is refused");
    assert!(error.to_string().ends_with("out.jsonl.partial:2 is no result of mlxbatch"), "{error}");
}

#[test]
fn where_nothing_is_left_a_run_begins_and_without_a_file_there_is_an_error() {
    let desk = Desk::new(2);
    let (mut writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((found.num_kept(), found.num_left), (0, 2));
    desk.write(&mut writer, &[(0, true), (1, true)]);
    writer.finish(true).unwrap();
    assert_eq!(names_of(desk.folder.path()), ["in.jsonl", "out.jsonl", "out.jsonl.manifest"]);
    // And a whole result is one that nothing is left of.
    let (writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((found.num_kept(), found.num_left), (2, 0));
    writer.finish(true).unwrap();
    assert_eq!(fs::read_to_string(&desk.output).unwrap(), desk.expected(&[(0, true), (1, true)]));

    let output = OutputPath::File(desk.output.clone());
    for (output, input) in [(OutputPath::Stdout, desk.input.clone()), (output, InputPath::Stdin)] {
        let error = ResultWriter::create(&output, &input.into(), true).err().expect("nothing to go on with");
        assert!(error.to_string().starts_with("--resume needs files to go on with"), "{error}");
    }
}

/// What a run over a part of the file had left was taken for results of the file's first lines.
#[test]
fn a_run_over_a_part_of_the_file_goes_on_where_it_was() {
    let mut desk = Desk::new(6);
    desk.options.selection = Selection::Range(3, None);
    desk.leave(&[(1, true)]);
    let (mut writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((kept(&found, 3), found.num_left), (vec![1], 2));
    desk.write(&mut writer, &[(2, true), (0, true)]);
    writer.finish(true).unwrap();
    let expected = desk.expected(&[(0, true), (1, true), (2, true)]);
    assert_eq!(fs::read_to_string(&desk.output).unwrap(), expected);
}

#[test]
fn results_of_several_files_are_kept_by_file_and_line() {
    let desk = Desk::new(2);
    let second = desk.folder.path().join("more.jsonl");
    fs::write(&second, "{\"prompt\": \"0\"}\n{\"prompt\": \"1\"}\n").unwrap();
    let inputs = Inputs::find(&[desk.input.clone(), InputPath::File(second.clone())]).unwrap();
    let options = ReaderOptions::default();
    let records = || {
        let mut reader = RequestReader::open(&inputs, options.clone()).unwrap();
        std::iter::from_fn(move || reader.next_request().unwrap())
            .map(|read| Record::request_error(&read.unwrap().head, &RequestError::internal("no memory")))
            .collect::<Vec<_>>()
    };
    let start =
        |goes_on| ResultWriter::create(&OutputPath::File(desk.output.clone()), &inputs, goes_on).unwrap();
    let mut writer = start(false);
    writer.begin(&desk.manifest).unwrap();
    for index in [3, 0] {
        let _ = writer.write(&records()[index]).unwrap();
    }
    writer.abandon().unwrap();
    // What was appended to the first file moves no line of the second.
    let lines = fs::read_to_string(desk.input_path()).unwrap();
    fs::write(desk.input_path(), lines.clone() + "{\"prompt\": \"2\"}\n").unwrap();
    let found = start(true).resume(&desk.manifest, PLAIN, &inputs, &options).unwrap();
    assert_eq!((kept(&found, 5), found.num_left), (vec![0, 4], 3));
    fs::write(&second, "{\"prompt\": \"0\"}\n").unwrap();
    let error = start(true).resume(&desk.manifest, PLAIN, &inputs, &options).expect_err("a line is gone");
    assert!(matches!(error, BatchError::InputShrunk { num_gone: 1, .. }), "{error}");
}

/// A line without an id is named by its number, until another has that name: the kept result and the new one
/// had the same.
#[test]
fn a_result_whose_made_up_id_was_given_to_an_appended_line_is_made_anew() {
    let desk = Desk::new(2);
    desk.leave(&[(0, true), (1, true)]);
    let lines = fs::read_to_string(desk.input_path()).unwrap();
    fs::write(desk.input_path(), lines + "{\"id\": \"line-1\", \"prompt\": \"q\"}\n").unwrap();
    let (_, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((kept(&found, 3), found.num_left), (vec![1], 2));
}

/// A run that was ended before its first result, over an older output, could not be gone on with: what is in
/// the older one was taken for its own.
#[test]
fn a_run_that_had_no_result_yet_goes_on_beside_an_older_output() {
    let desk = Desk::new(2);
    fs::write(&desk.output, "older\n").unwrap();
    desk.leave(&[]);
    let (mut writer, found) = desk.resume(PLAIN).unwrap();
    assert_eq!((found.num_kept(), found.num_left), (0, 2));
    assert_eq!(fs::read_to_string(&desk.output).unwrap(), "older\n");
    desk.write(&mut writer, &[(0, true), (1, true)]);
    writer.finish(false).unwrap();
    assert_eq!(names_of(desk.folder.path()), ["in.jsonl", "out.jsonl"]);
}

/// What was copied from a file of something else stayed behind as partial results.
#[test]
fn an_output_of_something_else_leaves_no_partial_file() {
    let desk = Desk::new(1);
    fs::write(&desk.output, "{\"other\": 1}\n{}\n").unwrap();
    let error = desk.resume(FORCED).err().expect("it is refused");
    assert!(error.to_string().ends_with("out.jsonl:1 is no result of mlxbatch"), "{error}");
    assert_eq!(names_of(desk.folder.path()), ["in.jsonl", "out.jsonl"]);
}

/// A partial file that was opened and then not gone on with, for want of a model perhaps, was removed.
#[test]
fn what_is_left_stays_when_nothing_comes_of_going_on() {
    let desk = Desk::new(2);
    desk.leave(&[(1, true)]);
    drop(desk.start(true));
    assert_eq!(fs::read_to_string(partial_path(&desk.output)).unwrap(), desk.expected(&[(1, true)]));
    assert!(manifest_path(&partial_path(&desk.output)).exists());
}

fn names_of(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
