//! Results onto disk or into a pipe, each as soon as it is known, in input order at the end.
//!
//! Owns the choice between the two ways of writing: a file is published whole by a rename, what
//! cannot be renamed (standard output, a FIFO, a device) is written in order as the turn of each
//! result comes. The ways themselves are `file` and `stream`; only a file can be gone on with by a later
//! run, by its `manifest` and what `earlier` finds in it.

mod earlier;
mod file;
mod manifest;
mod order_index;
mod published;
mod stream;

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) use self::earlier::place_of;
pub use self::earlier::{Kept, Resume};
use self::file::FileOutput;
pub use self::file::{manifest_path, partial_path, records_path};
pub use self::manifest::Manifest;
use self::published::PublishedForm;
use self::stream::StreamOutput;
use super::error::BatchError;
use super::input_lines::LineSpace;
use super::paths::{Inputs, OutputPath};
use super::reader::{ReaderOptions, RequestReader};
use super::record::Record;
use super::shape::OutputFormat;

/// Whether anybody still reads what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    Open,
    /// The reader of a pipe has gone away; nothing more needs to be computed. Not an error.
    Closed,
}

/// Where the results are once a run has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub place: String,
    pub num_results: u64,
    pub flow: Flow,
}

/// Writes results, which may come in any order.
///
/// Dropping it without an ending leaves a file's results in `OUTPUT.partial`.
pub struct ResultWriter {
    kind: Kind,
    warnings: Vec<String>,
}

enum Kind {
    File(FileOutput),
    Stream(StreamOutput),
}

impl ResultWriter {
    /// Checks and opens the output; nothing of an earlier run is lost by it. With `goes_on` its results are
    /// left in place for [`ResultWriter::resume`].
    pub fn create(output: &OutputPath, inputs: &Inputs, goes_on: bool) -> Result<Self, BatchError> {
        if let Some(stream) = inputs.stream().filter(|_| goes_on) {
            return Err(BatchError::ResumesStream { what: "INPUT", name: stream.name() });
        }
        let kind = match output {
            OutputPath::Stdout => Kind::Stream(StreamOutput::stdout(inputs)?),
            OutputPath::File(path) => match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    return Err(BatchError::OutputIsDirectory { output: path.clone() });
                }
                Ok(metadata) if !metadata.is_file() => Kind::Stream(StreamOutput::open(path)?),
                Ok(metadata) if metadata.permissions().readonly() => {
                    return Err(BatchError::OutputReadOnly { output: path.clone() });
                }
                _ => {
                    let (file, warnings) = FileOutput::create(resolve_links(path), inputs, goes_on)?;
                    return Ok(Self { kind: Kind::File(file), warnings });
                }
            },
        };
        if goes_on {
            return Err(BatchError::ResumesStream { what: "--output", name: output.name() });
        }
        Ok(Self { kind, warnings: Vec::new() })
    }

    /// Has results published in this format. Until then they are records of the Batch API in any case.
    pub fn in_format(mut self, format: OutputFormat) -> Result<Self, BatchError> {
        match &mut self.kind {
            Kind::File(file) => file.form = PublishedForm::of(format, file.output())?,
            Kind::Stream(stream) if format == OutputFormat::Csv => {
                return Err(BatchError::TableNeedsFile { name: stream.name().to_owned() });
            }
            Kind::Stream(stream) => stream.is_simple = format == OutputFormat::Simple,
        }
        Ok(self)
    }

    /// Notes what the results are made with, for a run that may have to go on from them.
    pub fn begin(&mut self, manifest: &Manifest) -> Result<(), BatchError> {
        match &mut self.kind {
            Kind::File(file) => file.begin(manifest),
            Kind::Stream(_) => Ok(()),
        }
    }

    /// Goes on from what an earlier run has left, and says what of it is kept; nothing where there is nothing.
    /// The inputs are read as this run reads them.
    pub fn resume(
        &mut self,
        manifest: &Manifest,
        resume: Resume,
        inputs: &Inputs,
        options: &ReaderOptions,
    ) -> Result<Kept, BatchError> {
        match &mut self.kind {
            Kind::File(file) => {
                let mut reader = RequestReader::open(inputs, options.clone())?;
                let space = LineSpace::of(inputs, options.format)?;
                file.resume(manifest, resume, &mut reader, &space)
            }
            Kind::Stream(_) => Ok(Kept::default()),
        }
    }

    /// What was noticed on opening the output.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Where finished results are before the end of the run; nothing for a pipe.
    pub fn partial_path(&self) -> Option<&Path> {
        match &self.kind {
            Kind::File(file) => Some(file.partial_path()),
            Kind::Stream(_) => None,
        }
    }

    /// Writes one result; at most one for each index.
    pub fn write(&mut self, record: &Record) -> Result<Flow, BatchError> {
        match &mut self.kind {
            Kind::File(file) => file.write(record.index(), record.line()).map(|()| Flow::Open),
            Kind::Stream(stream) => stream.write(record.index(), record.line()),
        }
    }

    /// Ends a complete run: every index has been written. A later run can go on from a file's results if the
    /// manifest is kept beside them.
    pub fn finish(self, keeps_manifest: bool) -> Result<Published, BatchError> {
        match self.kind {
            Kind::File(file) => file.publish(keeps_manifest),
            Kind::Stream(stream) => stream.finish(),
        }
    }

    /// Ends a run that was interrupted or failed: a file's results stay in `OUTPUT.partial` and OUTPUT as it
    /// was; a pipe is given the results that were waiting for their turn.
    pub fn abandon(self) -> Result<Published, BatchError> {
        match self.kind {
            Kind::File(file) => file.keep_partial(),
            Kind::Stream(stream) => stream.finish(),
        }
    }
}

/// Follows symbolic links, so that a rename replaces the file and not the link to it.
fn resolve_links(path: &Path) -> PathBuf {
    // As many as the kernel follows; a loop then fails as the link it ends on.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        path = match path.parent() {
            Some(folder) => folder.join(target),
            None => target,
        };
    }
    path
}

/// The input that is this file, if one is.
fn input_that_is(inputs: &Inputs, file: impl Fn() -> io::Result<Metadata>) -> Option<PathBuf> {
    inputs.paths().find(|input| is_same_file(fs::metadata(input), file())).map(Path::to_owned)
}

/// Whether two paths or open files are one regular file.
fn is_same_file(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod resume_tests;
#[cfg(test)]
mod tests;
