//! Order, leftovers, full disks and closed pipes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::batch::paths::{InputFile, InputPath};
use crate::batch::request::{Form, RequestHead};

/// A record whose text is as long as its index asks for, so that extents differ.
fn record(index: u64) -> Record {
    let custom_id = format!("r{index}{}", "x".repeat((index % 7) as usize * 10));
    let head = RequestHead {
        index,
        file: InputFile { number: 1, name: "in.jsonl".into() },
        line: index + 1,
        custom_id,
        digest: [0; 16],
        content_digest: [0; 16],
        form: Form::Chat,
        metadata: None,
        input: None,
    };
    Record::not_a_request(&head, "code", "message")
}

fn expected(indices: impl IntoIterator<Item = u64>) -> String {
    indices.into_iter().map(|index| record(index).to_line() + "\n").collect()
}

fn open(output: &Path) -> Result<ResultWriter, BatchError> {
    ResultWriter::create(&OutputPath::File(output.into()), &InputPath::Stdin.into(), false)
}

fn write_all(writer: &mut ResultWriter, indices: impl IntoIterator<Item = u64>) {
    for index in indices {
        assert_eq!(writer.write(&record(index)).expect("there is room"), Flow::Open);
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the test's own folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn results_are_on_disk_as_they_finish_and_in_order_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    fs::write(&output, "the last run's\n").unwrap();
    let mut writer = open(&output).unwrap();
    write_all(&mut writer, [2, 0]);
    assert_eq!(fs::read_to_string(writer.partial_path().unwrap()).unwrap(), expected([2, 0]));
    assert_eq!(fs::read_to_string(&output).unwrap(), "the last run's\n");
    write_all(&mut writer, [1]);
    let published = writer.finish(false).unwrap();
    assert_eq!((published.num_results, published.flow), (3, Flow::Open));
    assert_eq!(fs::read_to_string(&output).unwrap(), expected([0, 1, 2]));
    assert_eq!(names_in(folder.path()), ["out.jsonl"]);
}

#[test]
fn a_published_file_has_the_permissions_of_any_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let plain = folder.path().join("plain");
    File::create(&plain).unwrap();
    for order in [[0, 1], [1, 0]] {
        let output = folder.path().join("out.jsonl");
        let mut writer = open(&output).unwrap();
        write_all(&mut writer, order);
        writer.finish(false).unwrap();
        assert_eq!(mode(&output), mode(&plain), "{order:?}");
    }
}

/// Ctrl-C before the first result left a whole file of an earlier run at 0 bytes.
#[test]
fn an_interrupted_run_leaves_the_output_of_the_last_and_what_it_has_in_the_partial_file() {
    for done in [&[][..], &[9, 4, 0]] {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        fs::write(&output, "the last run's\n").unwrap();
        let mut writer = open(&output).unwrap();
        writer.begin(&Manifest::default()).unwrap();
        write_all(&mut writer, done.iter().copied());
        writer.abandon().unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), "the last run's\n");
        let names = names_in(folder.path());
        // Without a result too: it tells a later run that this one has begun.
        assert_eq!(names, ["out.jsonl", "out.jsonl.partial", "out.jsonl.partial.manifest"]);
        let partial = fs::read_to_string(partial_path(&output)).unwrap();
        assert_eq!(partial, expected(done.iter().copied()));
    }
}

#[test]
fn a_run_without_results_publishes_an_empty_file_or_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    drop(open(&output).unwrap());
    open(&output).unwrap().abandon().unwrap();
    assert_eq!(names_in(folder.path()), [""; 0]);
    open(&output).unwrap().finish(false).unwrap();
    assert_eq!(fs::read(&output).unwrap(), b"");
}

#[test]
fn a_failed_run_keeps_its_results_and_the_output_of_the_last() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    fs::write(&output, "the last run's\n").unwrap();
    let mut writer = open(&output).unwrap();
    write_all(&mut writer, [0]);
    let kept = writer.abandon().unwrap();
    assert!(kept.place.ends_with("out.jsonl.partial"));
    assert_eq!(fs::read_to_string(kept.place).unwrap(), expected([0]));
    assert_eq!(fs::read_to_string(&output).unwrap(), "the last run's\n");
}

#[test]
fn what_a_killed_run_left_is_moved_aside_never_lost() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    for text in ["first\n", "second\n"] {
        fs::write(folder.path().join("out.jsonl.partial"), text).unwrap();
        let writer = open(&output).unwrap();
        assert_eq!(writer.warnings().len(), 1);
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!(read("out.jsonl.partial.1"), "first\n");
    assert_eq!(read("out.jsonl.partial.2"), "second\n");
    assert_eq!(names_in(folder.path()), ["out.jsonl.partial.1", "out.jsonl.partial.2"]);
}

/// A run that was killed while it put its results in order left a copy of them under a name that nobody knew.
#[test]
fn what_was_to_become_the_output_of_a_killed_run_goes() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    crate::new_file::create_beside(&output, 0o666).unwrap().keep().unwrap();
    let mut writer = open(&output).unwrap();
    write_all(&mut writer, [1, 0]);
    writer.finish(false).unwrap();
    assert_eq!(names_in(folder.path()), ["out.jsonl"]);
}

#[test]
fn two_runs_cannot_share_an_output() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.jsonl");
    let mut first = open(&output).unwrap();
    write_all(&mut first, [0]);
    let second = open(&output).err().expect("the first is still writing");
    assert!(matches!(second, BatchError::OutputInUse { .. }), "{second}");
    first.finish(false).unwrap();
    assert_eq!(fs::read_to_string(&output).unwrap(), expected([0]));
}

#[test]
fn a_linked_output_stays_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("link.jsonl"), folder.path().join("real.jsonl"));
    symlink("real.jsonl", &link).unwrap();
    for order in [[0, 1], [1, 0]] {
        let mut writer = open(&link).unwrap();
        write_all(&mut writer, order);
        writer.finish(false).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), expected([0, 1]));
    }
}

#[test]
fn outputs_that_cannot_work_are_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |output: &Path| open(output).err().expect("must be refused");
    let missing = refuse(&folder.path().join("no/out.jsonl"));
    assert!(missing.hint().is_some_and(|hint| hint.contains("mkdir -p")), "{missing}");
    assert!(matches!(refuse(folder.path()), BatchError::OutputIsDirectory { .. }));

    let protected = folder.path().join("protected.jsonl");
    fs::write(&protected, "precious").unwrap();
    fs::set_permissions(&protected, fs::Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(refuse(&protected), BatchError::OutputReadOnly { .. }));

    let input = folder.path().join("in.jsonl");
    fs::write(&input, "{}").unwrap();
    symlink(&input, folder.path().join("alias.jsonl")).unwrap();
    for output in ["in.jsonl", "alias.jsonl"] {
        let output = OutputPath::File(folder.path().join(output));
        let same = ResultWriter::create(&output, &InputPath::File(input.clone()).into(), false)
            .err()
            .expect("the same file");
        assert!(matches!(same, BatchError::OutputIsInput { .. }), "{same}");
    }
    assert_eq!(fs::read(&input).unwrap(), b"{}");
    assert_eq!(names_in(folder.path()), ["alias.jsonl", "in.jsonl", "protected.jsonl"]);
}

/// Not by starting `mkfifo`: a process that another test starts holds all open pipes for a moment, and
/// one whose reader is gone is not closed until then.
fn make_fifo(folder: &Path) -> PathBuf {
    let fifo = folder.join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
    fifo
}

/// Runs a stream writer into a FIFO and returns what came out of it.
fn through_fifo(work: impl FnOnce(ResultWriter) -> Published) -> (Published, String) {
    let folder = tempfile::tempdir().unwrap();
    let fifo = make_fifo(folder.path());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| io::read_to_string(File::open(&fifo).unwrap()).unwrap());
        let published = work(open(&fifo).unwrap());
        (published, reader.join().expect("the reader reads to the end"))
    })
}

#[test]
fn a_pipe_gets_results_in_order_and_an_interrupted_run_the_rest() {
    let (published, text) = through_fifo(|mut writer| {
        write_all(&mut writer, [1, 3, 0, 2, 8, 5, 4]);
        assert!(writer.partial_path().is_none());
        writer.abandon().unwrap()
    });
    assert_eq!(published.num_results, 7);
    assert_eq!(text, expected([0, 1, 2, 3, 4, 5, 8]));
}

/// Process substitution, `-o >(gzip > out.gz)`, names a pipe as `/dev/fd/63`. Following that link
/// by hand led to a file called `pipe:[12345]`.
#[cfg(target_os = "linux")]
#[test]
fn a_pipe_named_by_its_descriptor_is_a_pipe() {
    use std::os::fd::AsRawFd;

    let folder = tempfile::tempdir().unwrap();
    let both_ends = File::options().read(true).write(true).open(make_fifo(folder.path())).unwrap();
    let mut writer = open(Path::new(&format!("/dev/fd/{}", both_ends.as_raw_fd()))).unwrap();
    write_all(&mut writer, [0]);
    let mut text = vec![0; expected([0]).len()];
    (&both_ends).read_exact(&mut text).unwrap();
    assert_eq!(text, expected([0]).into_bytes());
}

#[test]
fn a_closed_pipe_is_an_outcome_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = make_fifo(folder.path());
    let mut writer = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut start = [0; 5];
            File::open(&fifo).unwrap().read_exact(&mut start).unwrap();
        });
        let mut writer = open(&fifo).unwrap();
        write_all(&mut writer, [0]);
        reader.join().expect("the reader takes a few bytes and leaves");
        writer
    });
    assert_eq!(writer.write(&record(1)).unwrap(), Flow::Closed);
    assert_eq!(writer.write(&record(5)).unwrap(), Flow::Closed);
    assert_eq!(writer.finish(false).unwrap().flow, Flow::Closed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_order_of_finishing_gives_the_order_of_the_input(
        order in Just((0..40_u64).collect::<Vec<_>>()).prop_shuffle(),
        num_done in 0_usize..=40,
    ) {
        let done = &order[..num_done];
        let mut sorted = done.to_vec();
        sorted.sort_unstable();

        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.jsonl");
        let mut writer = open(&output).unwrap();
        write_all(&mut writer, done.iter().copied());
        writer.finish(false).unwrap();
        prop_assert_eq!(fs::read_to_string(&output).unwrap(), expected(sorted.clone()));

        let (published, text) = through_fifo(|mut writer| {
            write_all(&mut writer, done.iter().copied());
            writer.finish(false).unwrap()
        });
        prop_assert_eq!(published.num_results, num_done as u64);
        prop_assert_eq!(text, expected(sorted));
    }
}
