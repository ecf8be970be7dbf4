//! Results onto disk or into a pipe, each as soon as it is known, in input order at the end.
//!
//! Owns the choice between the two ways of writing: a file is published whole by a rename, what
//! cannot be renamed (standard output, a FIFO, a device) is written in order as the turn of each
//! result comes. The ways themselves are `file` and `stream`.

mod file;
mod order_index;
mod stream;

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::file::FileOutput;
pub use self::file::partial_path;
use self::stream::StreamOutput;
use super::error::BatchError;
use super::paths::{InputPath, OutputPath};
use super::record::Record;

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
    /// Checks and opens the output; nothing of an earlier run is lost by it.
    pub fn create(output: &OutputPath, input: &InputPath) -> Result<Self, BatchError> {
        let kind = match output {
            OutputPath::Stdout => Kind::Stream(StreamOutput::stdout(input.path())?),
            OutputPath::File(path) => match fs::metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    return Err(BatchError::OutputIsDirectory { output: path.clone() });
                }
                Ok(metadata) if !metadata.is_file() => Kind::Stream(StreamOutput::open(path)?),
                Ok(metadata) if metadata.permissions().readonly() => {
                    return Err(BatchError::OutputReadOnly { output: path.clone() });
                }
                _ => {
                    let (file, warnings) = FileOutput::create(resolve_links(path), input.path())?;
                    return Ok(Self { kind: Kind::File(file), warnings });
                }
            },
        };
        Ok(Self { kind, warnings: Vec::new() })
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

    /// Ends a complete run: every index has been written.
    pub fn finish(self) -> Result<Published, BatchError> {
        match self.kind {
            Kind::File(file) => file.publish(),
            Kind::Stream(stream) => stream.finish(),
        }
    }

    /// Ends a run that was interrupted: what is done is published in order, as a complete run is.
    pub fn finish_interrupted(self) -> Result<Published, BatchError> {
        self.finish()
    }

    /// Ends a run that failed: a file's results stay in `OUTPUT.partial` and OUTPUT as it was; a
    /// pipe is given the results that were waiting for their turn.
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

/// Whether two paths or open files are one regular file.
fn is_same_file(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    match (one, other) {
        (Ok(one), Ok(other)) => one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
