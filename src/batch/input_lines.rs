//! The lines of several inputs, one behind the other.
//!
//! Owns opening them in turn, and finding out at the start what is wrong with any of them. What one of them holds is
//! `opened`'s business, waiting for lines `source`'s, what is in a line the reader's.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use super::error::BatchError;
use super::lines::{check_start, count_line_ends, count_lines};
use super::opened::{InputFormat, lines_of, lines_of_stream};
use super::paths::{InputFile, InputPath, Inputs};
use super::source::{LineSource, NextLine};

pub(super) struct InputLines {
    inputs: Inputs,
    format: InputFormat,
    max_line_bytes: usize,
    /// What is read now.
    source: LineSource,
    file: InputFile,
}

impl InputLines {
    /// Opens the first of the inputs. Of all that are regular files it is checked, too, that they can be read.
    pub fn open(inputs: &Inputs, format: InputFormat, max_line_bytes: usize) -> Result<Self, BatchError> {
        for input in inputs.all().iter().skip(1) {
            check(input, format)?;
        }
        let first = inputs.all().first().unwrap_or(&InputPath::Stdin);
        Ok(Self {
            source: opened(first, format, max_line_bytes)?,
            file: InputFile { number: 1, name: first.name().into() },
            inputs: inputs.clone(),
            format,
            max_line_bytes,
        })
    }

    /// Lines that come from elsewhere.
    #[cfg(test)]
    pub fn of_source(source: LineSource, name: &str, max_line_bytes: usize) -> Self {
        let inputs = Inputs::from(InputPath::File(name.into()));
        let file = InputFile { number: 1, name: name.into() };
        Self { inputs, format: InputFormat::Auto, max_line_bytes, source, file }
    }

    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The input that lines come from at the moment.
    pub fn file(&self) -> &InputFile {
        &self.file
    }

    /// Returns the next line of that input, as [`LineSource::next_line`] does.
    pub fn next_line(&mut self, patience: Option<Duration>) -> Result<NextLine<'_>, BatchError> {
        let name = &self.file.name;
        self.source.next_line(patience).map_err(|error| BatchError::reading(name, error.line, error.source))
    }

    /// Goes on to the next input; returns whether there is one.
    pub fn advance(&mut self) -> Result<bool, BatchError> {
        let Some(input) = self.inputs.all().get(self.file.number as usize) else { return Ok(false) };
        self.source = opened(input, self.format, self.max_line_bytes)?;
        self.file = InputFile { number: self.file.number + 1, name: input.name().into() };
        Ok(true)
    }
}

/// A regular file by its lines, however it is packed.
fn open_file(path: &Path, format: InputFormat) -> Result<Box<dyn BufRead + Send>, BatchError> {
    let name = || path.display().to_string();
    let file = File::open(path).map_err(|source| BatchError::OpenInput { name: name(), source })?;
    let source = BufReader::with_capacity(1 << 18, file);
    lines_of(source, format, Some(path)).map_err(|error| BatchError::reading(&name(), 0, error))
}

fn opened(input: &InputPath, format: InputFormat, max_line_bytes: usize) -> Result<LineSource, BatchError> {
    let failed = |source| BatchError::OpenInput { name: input.name(), source };
    let path = match input {
        InputPath::Stdin => {
            let source = lines_of_stream(BufReader::new(io::stdin()), format, None);
            return LineSource::threaded(source, max_line_bytes).map_err(failed);
        }
        InputPath::Url(_) => return Err(failed(io::Error::other("it has not been fetched"))),
        InputPath::File(path) => path,
        InputPath::Fetched(fetched) => fetched.path(),
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(BatchError::InputIsDirectory { name: input.name() });
    }
    if !metadata.is_file() {
        let file = File::open(path).map_err(failed)?;
        let source = lines_of_stream(BufReader::with_capacity(1 << 18, file), format, Some(path));
        return LineSource::threaded(source, max_line_bytes).map_err(failed);
    }
    let mut source = open_file(path, format)?;
    // Before a model is loaded.
    check_start(&mut source).map_err(|error| BatchError::reading(&input.name(), 0, error))?;
    Ok(LineSource::in_place(source, max_line_bytes))
}

/// Checks that an input can be read when its turn comes. Nothing is taken of what can be read only once.
fn check(input: &InputPath, format: InputFormat) -> Result<(), BatchError> {
    let Some(path) = input.path() else { return Ok(()) };
    let failed = |source| BatchError::OpenInput { name: input.name(), source };
    let metadata = fs::metadata(path).map_err(failed)?;
    match metadata.is_file() || metadata.is_dir() {
        true => opened(input, format, 0).map(drop),
        false => Ok(()),
    }
}

/// Does something with the lines of each input, one after the other; nothing where one can be read only once.
pub(super) fn for_each_input(
    inputs: &Inputs,
    format: InputFormat,
    mut visit: impl FnMut(&Path, Box<dyn BufRead + Send>) -> io::Result<()>,
) -> Result<Option<()>, BatchError> {
    for input in inputs.all() {
        let Some(path) = input.path() else { return Ok(None) };
        let failed = |source| BatchError::OpenInput { name: input.name(), source };
        // Opening a FIFO here would take its writer away from the reader that follows.
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Ok(None);
        }
        let lines = open_file(path, format)?;
        visit(path, lines).map_err(|error| BatchError::reading(&input.name(), 0, error))?;
    }
    Ok(Some(()))
}

/// Counts the lines that are not blank; nothing where an input can be read only once.
pub(super) fn count_all(inputs: &Inputs, format: InputFormat) -> Result<Option<u64>, BatchError> {
    let mut num_lines = 0;
    let counted = for_each_input(inputs, format, |_, lines| {
        num_lines += count_lines(lines)?;
        Ok(())
    })?;
    Ok(counted.map(|()| num_lines))
}

/// Numbers for the lines of all inputs together, blank ones included: what an index on disk is kept by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LineSpace {
    /// The number of each input's first line, and of one behind the last.
    starts: Vec<u64>,
}

impl LineSpace {
    /// Reads all inputs if there are several; each must be a regular file then.
    pub fn of(inputs: &Inputs, format: InputFormat) -> Result<Self, BatchError> {
        if inputs.all().len() == 1 {
            return Ok(Self { starts: vec![0, u64::MAX] });
        }
        let mut starts = vec![0];
        for_each_input(inputs, format, |_, lines| {
            let start = starts.last().copied().unwrap_or(0);
            starts.push(start + 1 + count_line_ends(lines)?);
            Ok(())
        })?;
        Ok(Self { starts })
    }

    /// The number of a line, counted from 1, of an input, counted from 1; nothing where there is no such line.
    pub fn number(&self, file: u32, line: u64) -> Option<u64> {
        let place = file.checked_sub(1)? as usize;
        let (start, end) = (*self.starts.get(place)?, *self.starts.get(place + 1)?);
        (1..=end - start).contains(&line).then(|| start + line)
    }
}
