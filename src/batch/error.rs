//! What ends a run on the file side.
//!
//! Owns the texts and the hints of fatal errors with the input and the output. A bad line is not
//! fatal: see `line_error`.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::lead_in::ForeignFormat;
use super::paths::InputPath;

const ANEW: &str = "without --resume the run starts anew, and results that are not published are kept beside";

const FORCE_OR_ANEW: &str = "--force goes on all the same; without --resume the run starts anew, and results that are \
                             not published are kept beside";

/// A fatal error with the input or the output.
#[derive(Debug, Error)]
pub enum BatchError {
    #[error("cannot open the input {name}")]
    OpenInput { name: String, source: io::Error },
    #[error("cannot fetch the input {name}: {reason}")]
    Fetch { name: String, reason: String },
    #[error("cannot send {} to {name}: {reason}", path.display())]
    Upload { path: PathBuf, name: String, reason: String },
    #[error("no file matches {pattern}")]
    NoMatch { pattern: String },
    #[error("the pattern {pattern} cannot be looked up: {reason}")]
    BadPattern { pattern: String, reason: String },
    #[error("the input {name} is named twice{}", if name == other { String::new() } else { format!(", also as {other}") })]
    InputTwice { name: String, other: String },
    #[error("the input {name} is a directory, not a JSONL file")]
    InputIsDirectory { name: String },
    #[error("the input {name} {format}")]
    ForeignInput { name: String, format: ForeignFormat },
    #[error("--sample needs a file that can be read twice; the input {name} is none")]
    SampleOfStream { name: String },
    #[error("--shard needs files that can be read twice; the input {name} is none")]
    ShardOfStream { name: String },
    #[error("cannot read the input {name} after line {line}")]
    ReadInput { name: String, line: u64, source: io::Error },
    #[error("the output folder {} of --output {} does not exist", folder.display(), output.display())]
    OutputFolderMissing { folder: PathBuf, output: PathBuf },
    #[error("--output {} is a directory", output.display())]
    OutputIsDirectory { output: PathBuf },
    #[error("--output {} is write-protected", output.display())]
    OutputReadOnly { output: PathBuf },
    #[error("--output {} would overwrite the input {}", output.display(), input.display())]
    OutputIsInput { output: PathBuf, input: PathBuf },
    #[error("{}, where the results grow, is a link, a folder, a pipe or a device", partial.display())]
    PartialNotAFile { partial: PathBuf },
    #[error("--format csv needs a file; --output {name} is none")]
    TableNeedsFile { name: String },
    #[error("--output {}: results are packed with gzip only", output.display())]
    WritesNoZstd { output: PathBuf },
    #[error("standard output is closed")]
    StdoutClosed,
    #[error("another run is writing {}", partial.display())]
    OutputInUse { partial: PathBuf },
    #[error("cannot create {}", path.display())]
    CreateOutput { path: PathBuf, source: io::Error },
    #[error("cannot move the results of an earlier run from {} to {}", from.display(), to.display())]
    MoveAside { from: PathBuf, to: PathBuf, source: io::Error },
    #[error("cannot write to {}", path.display())]
    WriteOutput { path: PathBuf, num_kept: u64, source: io::Error },
    #[error("cannot write to {name}")]
    WriteStream { name: String, source: io::Error },
    #[error("cannot publish the results as {}", output.display())]
    Publish { output: PathBuf, partial: PathBuf, num_kept: u64, source: io::Error },
    #[error("--resume needs files to go on with; {what} {name} is none")]
    ResumesStream { what: &'static str, name: String },
    #[error("cannot read {}", path.display())]
    ReadResults { path: PathBuf, source: io::Error },
    #[error("{}:{line} is no result of mlxbatch", path.display())]
    NotResults { path: PathBuf, line: u64 },
    #[error("what {} was made with is not known: cannot read {}", results.display(), manifest.display())]
    NoManifest { manifest: PathBuf, results: PathBuf, source: io::Error },
    #[error("{} was made otherwise: {}", results.display(), differences.join("; "))]
    RunChanged { results: PathBuf, differences: Vec<String> },
    #[error("{name}:{line} is not the line that was answered")]
    InputChanged { name: String, line: u64 },
    #[error("{name} has no more the lines of {num_gone} results")]
    InputShrunk { name: String, num_gone: u64 },
    #[error("cannot hold results that finished early in a temporary file in {}", folder.display())]
    Hold { folder: PathBuf, source: io::Error },
}

impl BatchError {
    /// An error of reading after `line` lines.
    pub(super) fn reading(name: &str, line: u64, source: io::Error) -> Self {
        let name = name.to_owned();
        match source.downcast::<ForeignFormat>() {
            Ok(format) => Self::ForeignInput { name, format },
            Err(source) => Self::ReadInput { name, line, source },
        }
    }

    /// Says what to do about it, where that is not plain from the text.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::OpenInput { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("check the path; `-` reads standard input".into())
            }
            Self::InputIsDirectory { name } => Some(format!(
                "name files in it, such as '{}'",
                std::path::Path::new(name).join("*.jsonl").display()
            )),
            Self::NoMatch { .. } => {
                Some("check the path; in quotes, * stands for what the shell would take it for".into())
            }
            Self::InputTwice { .. } => {
                Some("each line is answered once: leave one of the names out, or narrow the pattern".into())
            }
            Self::ForeignInput { name, format } => Some(match format.filter {
                Some(filter) if *name == InputPath::Stdin.name() => {
                    format!("convert it on its way: `… | {filter} | mlxbatch … -`")
                }
                Some(filter) => format!("convert it on its way: `{filter} < {name} | mlxbatch … -`"),
                None => "write it as JSON Lines, one object on each line".into(),
            }),
            Self::OutputFolderMissing { folder, .. } => {
                Some(format!("create it with `mkdir -p {}`", folder.display()))
            }
            Self::OutputIsDirectory { output } => {
                Some(format!("name a file in it, such as {}", output.join("out.jsonl").display()))
            }
            Self::OutputReadOnly { output } => {
                Some(format!("choose another --output, or run `chmod u+w {}`", output.display()))
            }
            Self::OutputIsInput { .. } => Some("choose another --output".into()),
            Self::TableNeedsFile { .. } => {
                Some("which columns it has is known at its end: name a file with --output, or take --format simple".into())
            }
            Self::WritesNoZstd { .. } => Some("give it a name that ends in .gz, or neither in .gz nor .zst".into()),
            Self::PartialNotAFile { .. } => Some("remove it, or choose another --output".into()),
            Self::StdoutClosed => Some(
                "give it somewhere to go, such as a pipe or `> out.jsonl`, or name a file with --output"
                    .into(),
            ),
            Self::OutputInUse { .. } => Some("wait for it to end, or choose another --output".into()),
            Self::CreateOutput { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("choose an --output in a folder that you may write to".into())
            }
            Self::WriteOutput { path, num_kept, source } => {
                let kept = kept_text(*num_kept, &path.display().to_string());
                Some(match source.kind() {
                    io::ErrorKind::StorageFull => format!("the disk is full; {kept}"),
                    io::ErrorKind::QuotaExceeded => format!("the disk quota is used up; {kept}"),
                    io::ErrorKind::FileTooLarge => format!("{FILE_SIZE_LIMIT}; {kept}"),
                    _ => kept,
                })
            }
            Self::Publish { partial, num_kept, source, .. } => {
                let kept =
                    kept_text(*num_kept, &format!("{}, in the order they finished", partial.display()));
                Some(match source.kind() {
                    io::ErrorKind::FileTooLarge => format!("{FILE_SIZE_LIMIT}; {kept}"),
                    _ => kept,
                })
            }
            Self::Hold { .. } => Some("point TMPDIR at a folder with free space".into()),
            Self::NoManifest { .. } => Some(format!(
                "it is kept with partial results, where some lines failed, and by runs with --resume; {FORCE_OR_ANEW}"
            )),
            Self::RunChanged { .. } => Some(FORCE_OR_ANEW.into()),
            Self::InputChanged { .. } => Some(format!("--force answers changed lines anew; {ANEW}")),
            Self::InputShrunk { .. } => Some(format!("--force leaves those results out; {ANEW}")),
            Self::NotResults { .. } => Some(ANEW.into()),
            Self::WriteStream { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("the disk behind it is full".into())
            }
            Self::WriteStream { source, .. } | Self::CreateOutput { source, .. }
                if source.kind() == io::ErrorKind::FileTooLarge =>
            {
                Some(FILE_SIZE_LIMIT.into())
            }
            _ => None,
        }
    }
}

const FILE_SIZE_LIMIT: &str =
    "the limit on the size of files (RLIMIT_FSIZE) is reached: raise it with `ulimit -f`";

fn kept_text(num_kept: u64, place: &str) -> String {
    match num_kept {
        0 => "no result had been written yet".into(),
        1 => format!("the 1 finished result is in {place}"),
        n => format!("the {n} finished results are in {place}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_kind_says_how_to_convert_it() {
        let source = crate::batch::lines::check_start(&mut &b"\x1f\x8b"[..]).expect_err("it is no text");
        let error = BatchError::reading("in.jsonl.gz", 0, source);
        assert_eq!(error.to_string(), "the input in.jsonl.gz is compressed with gzip");
        assert_eq!(
            error.hint().as_deref(),
            Some("convert it on its way: `zcat < in.jsonl.gz | mlxbatch … -`")
        );
    }

    #[test]
    fn a_full_disk_says_where_the_results_are() {
        let error = BatchError::WriteOutput {
            path: "out.jsonl.partial".into(),
            num_kept: 2,
            source: io::ErrorKind::StorageFull.into(),
        };
        assert_eq!(
            error.hint().as_deref(),
            Some("the disk is full; the 2 finished results are in out.jsonl.partial")
        );
    }
}
