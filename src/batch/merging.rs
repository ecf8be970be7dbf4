//! Results of several runs joined to those of one, in the order of the input.
//!
//! Owns that nothing is missing or there twice. Each file has its results in the order of the input already, so
//! memory does not grow with them. What the files are parts of is told by `parts`.

mod error;
mod parts;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

pub use self::error::MergeError;

use self::parts::{LinePlace, Part, Record, check_together, name_of};
use super::error::BatchError;
use super::ids::{digest, is_like_made_up};
use super::paths::{Inputs, OutputPath};
use super::reader::{ReaderOptions, RequestReader};
use super::record::{REQUEST_ID_PREFIX, hex};
use super::request::RequestHead;
use super::writer::manifest_path;
use crate::new_file::create_beside;
use crate::terminal::shown_in_short;

/// What was joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    pub num_results: u64,
    pub num_failed: u64,
}

/// How results are joined.
#[derive(Debug, Clone, Default)]
pub struct MergeOptions {
    /// What the results are of: then each is held to its line.
    pub inputs: Option<Inputs>,
    /// Joins what was made in different ways.
    pub is_forced: bool,
}

/// Joins files of results; the output is there whole or as it was.
pub fn merge(results: &[PathBuf], output: &OutputPath, options: &MergeOptions) -> anyhow::Result<Merged> {
    check_paths(results, output)?;
    let mut parts = results.iter().map(|path| Part::open(path)).collect::<Result<Vec<_>, _>>()?;
    for part in &mut parts {
        match part.read_manifest() {
            // Lines that are looked at tell as much.
            Err(_) if options.inputs.is_some() => part.manifest = None,
            read => read?,
        }
    }
    let has_shards = parts.iter().all(|part| part.facts().is_some());
    if has_shards {
        check_together(&parts, options.is_forced)?;
    }
    let lines = options.inputs.as_ref().map(|inputs| Lines::open(inputs, has_shards)).transpose()?;
    Ok(match output {
        OutputPath::Stdout => {
            // Nothing is told before all is known to be there.
            let mut file = tempfile::tempfile().map_err(|source| not_written(output, source))?;
            let merged = join(&mut parts, lines, &mut file, output)?;
            io::Seek::rewind(&mut file)
                .and_then(|()| io::copy(&mut file, &mut io::stdout().lock()))
                .map_err(|source| not_written(output, source))?;
            merged
        }
        OutputPath::File(path) => {
            let failed = |source| not_written(output, source);
            let file = create_beside(path, 0o666).map_err(failed)?;
            let merged = join(&mut parts, lines, file.as_file(), output)?;
            file.as_file().sync_all().map_err(failed)?;
            file.persist(path).map_err(|error| failed(error.error))?;
            leave_manifest(&parts, path, merged).map_err(failed)?;
            merged
        }
    })
}

fn not_written(output: &OutputPath, source: io::Error) -> MergeError {
    MergeError::Write { name: output.name(), source }
}

fn check_paths(results: &[PathBuf], output: &OutputPath) -> Result<(), MergeError> {
    let place = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut places: Vec<PathBuf> = results.iter().map(|path| place(path)).collect();
    places.sort();
    if let Some(pair) = places.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(MergeError::SamePath { path: pair[0].clone() });
    }
    match output {
        OutputPath::File(path) if places.contains(&place(path)) => {
            Err(MergeError::OutputIsPart { path: path.clone() })
        }
        _ => Ok(()),
    }
}

/// Says what the whole was made with where a later run may go on from it: where errors can be retried.
fn leave_manifest(parts: &[Part], output: &Path, merged: Merged) -> io::Result<()> {
    let path = manifest_path(output);
    match parts.first().and_then(|part| part.manifest.clone()).filter(|_| merged.num_failed > 0) {
        Some(manifest) => manifest.without_shard().write(&path, output),
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
    }
}

fn join(
    parts: &mut [Part],
    mut lines: Option<Lines>,
    file: impl Write,
    output: &OutputPath,
) -> anyhow::Result<Merged> {
    let mut writer = BufWriter::with_capacity(1 << 17, file);
    let mut merged = Merged::default();
    // The next record of each part.
    let mut next: BinaryHeap<Reverse<(LinePlace, usize)>> = BinaryHeap::new();
    let mut before: Option<(LinePlace, usize, u64)> = None;
    let mut answered = HashMap::new();
    for index in 0..parts.len() {
        take_next(parts, index, &mut next)?;
    }
    while let Some(Reverse((place, index))) = next.pop() {
        let part = &parts[index];
        if let Some((_, other, other_line)) = before.filter(|(last, ..)| *last == place) {
            let (path, other) = (part.path.clone(), parts[other].path.clone());
            let name = name_of(place);
            return Err(MergeError::Double { name, path, line: part.num_records, other, other_line }.into());
        }
        if let Some(lines) = &mut lines {
            lines.check(part)?;
        }
        check_id(parts, index, &mut answered)?;
        let Record { bytes, is_ok, .. } = &part.record;
        writer.write_all(bytes).map_err(|source| not_written(output, source))?;
        merged.num_results += 1;
        merged.num_failed += u64::from(!is_ok);
        before = Some((place, index, part.num_records));
        take_next(parts, index, &mut next)?;
    }
    if let Some(lines) = lines {
        lines.finish()?;
    }
    writer.flush().map_err(|source| not_written(output, source))?;
    Ok(merged)
}

/// Checks that no other line with the record's id has an answer: a run answers the first, and each further one is an
/// error. Some 40 bytes a result are kept for it.
fn check_id(
    parts: &[Part],
    index: usize,
    answered: &mut HashMap<u128, (usize, u64)>,
) -> Result<(), MergeError> {
    let (part, record) = (&parts[index], &parts[index].record);
    // Of rows, an id that was made up may be another's given one.
    if !record.is_ok || is_like_made_up(&record.custom_id) {
        return Ok(());
    }
    match answered.insert(digest(&record.custom_id), (index, part.num_records)) {
        None => Ok(()),
        Some((other, other_line)) => Err(MergeError::DoubleId {
            custom_id: shown_in_short(&record.custom_id),
            path: part.path.clone(),
            line: part.num_records,
            other: parts[other].path.clone(),
            other_line,
        }),
    }
}

/// Reads the next record of a part.
fn take_next(
    parts: &mut [Part],
    index: usize,
    next: &mut BinaryHeap<Reverse<(LinePlace, usize)>>,
) -> Result<(), MergeError> {
    match parts[index].advance()? {
        true => next.push(Reverse((parts[index].record.place, index))),
        false => parts[index].check_whole()?,
    }
    Ok(())
}

/// The lines that results are held to, in their order.
struct Lines {
    reader: RequestReader,
    /// The shards know how many lines they had: others may not have been asked for.
    may_be_missing: bool,
    /// The first line without a result, by its file, and how many there are.
    missing: Option<(String, u64)>,
    num_missing: u64,
}

impl Lines {
    fn open(inputs: &Inputs, may_be_missing: bool) -> Result<Self, BatchError> {
        let reader = RequestReader::open(inputs, ReaderOptions::default())?;
        Ok(Self { reader, may_be_missing, missing: None, num_missing: 0 })
    }

    /// The next line, and whether it is a request.
    fn next(&mut self) -> Result<Option<(RequestHead, bool)>, BatchError> {
        let read = self.reader.next_request()?;
        Ok(read.map(|read| read.map_or_else(|failed| (failed.head, false), |request| (request.head, true))))
    }

    /// Holds the record that a part has come to to its line.
    fn check(&mut self, part: &Part) -> anyhow::Result<()> {
        let record = &part.record;
        while let Some((head, is_request)) = self.next()? {
            if (head.file.number, head.line) < record.place {
                self.miss(&head);
                continue;
            }
            // A line that is no request is known by its number alone.
            let digest = format!("{REQUEST_ID_PREFIX}{}", hex(&head.digest));
            let is_same = record.request_id.as_ref().is_none_or(|request_id| *request_id == digest);
            if (head.file.number, head.line) != record.place {
                break;
            }
            if !is_same {
                let (path, name) = (part.path.clone(), head.file.name.to_string());
                return Err(MergeError::OtherLine {
                    path,
                    result_line: part.num_records,
                    name,
                    line: head.line,
                }
                .into());
            }
            // What is a request as it stands was hardly a row.
            if part.has_ids_of_lines().unwrap_or(is_request) && record.custom_id != head.custom_id {
                return Err(MergeError::OtherId {
                    path: part.path.clone(),
                    result_line: part.num_records,
                    custom_id: shown_in_short(&record.custom_id),
                    name: head.file.name.to_string(),
                    line: head.line,
                    own: shown_in_short(&head.custom_id),
                }
                .into());
            }
            return Ok(());
        }
        let (path, line) = (part.path.clone(), name_of(record.place));
        Err(MergeError::NoSuchLine { path, result_line: part.num_records, line }.into())
    }

    fn miss(&mut self, head: &RequestHead) {
        self.missing.get_or_insert_with(|| (head.file.name.to_string(), head.line));
        self.num_missing += 1;
    }

    fn finish(mut self) -> anyhow::Result<()> {
        while let Some((head, _)) = self.next()? {
            self.miss(&head);
        }
        match self.missing.filter(|_| !self.may_be_missing) {
            Some((name, line)) => {
                Err(MergeError::MissingLine { name, line, num_more: self.num_missing - 1 }.into())
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
