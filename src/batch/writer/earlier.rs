//! Results that an earlier run has left, and which of them a run that goes on keeps.
//!
//! Owns reading them back and holding each to the line of the input that it answers: a record carries its
//! line's number and digest. The file and its publication are `file`'s.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

use super::super::error::BatchError;
use super::super::input_lines::LineSpace;
use super::super::lines::read_record_line;
use super::super::reader::RequestReader;
use super::super::record::{ID_PREFIX, REQUEST_ID_PREFIX, hex};
use super::order_index::{Extent, OrderIndex};

/// How a run goes on from what an earlier one has left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    /// Lines that got an error are answered once more.
    pub retries_errors: bool,
    /// Goes on although model, settings or lines have changed.
    pub is_forced: bool,
}

/// Lines of the input whose results an earlier run has left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// A bit for each line that is not blank.
    finished: Vec<u64>,
    pub num_ok: u64,
    pub num_failed: u64,
    /// Lines that are still to be answered, those appended after this was counted aside.
    pub num_left: u64,
}

impl Kept {
    /// Whether the line with this index has its result.
    pub fn has(&self, index: u64) -> bool {
        let word = usize::try_from(index / 64).ok().and_then(|word| self.finished.get(word));
        word.is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    /// Lines that have their result.
    pub fn num_kept(&self) -> u64 {
        self.num_ok + self.num_failed
    }

    fn set(&mut self, index: u64, is_ok: bool) {
        let word = index as usize / 64;
        if self.finished.len() <= word {
            self.finished.resize(word + 1, 0);
        }
        self.finished[word] |= 1 << (index % 64);
        *(if is_ok { &mut self.num_ok } else { &mut self.num_failed }) += 1;
    }
}

/// The records of a file of results, by the number of the line that each answers.
pub(super) struct Earlier<'a> {
    space: &'a LineSpace,
    by_line: OrderIndex,
    num_lines: u64,
    /// Records of lines that no input has any more.
    num_gone: u64,
    /// Length of the file up to its last whole record.
    pub end: u64,
}

/// What of a record tells whose it is.
#[derive(Deserialize)]
struct Seen {
    id: String,
    custom_id: String,
    response: Option<SeenResponse>,
}

#[derive(Deserialize)]
struct SeenResponse {
    status_code: u16,
    request_id: String,
}

impl Seen {
    /// The input and the line in it that the record answers.
    fn place(&self) -> Option<(u32, u64)> {
        place_of(&self.id)
    }
}

impl<'a> Earlier<'a> {
    /// Finds the records of a file; what a kill has cut off at its end is left out.
    pub fn read(file: &File, path: &Path, folder: &Path, space: &'a LineSpace) -> Result<Self, BatchError> {
        let failed = |source| BatchError::ReadResults { path: path.into(), source };
        let by_line = OrderIndex::create_in(folder).map_err(failed)?;
        let mut earlier = Self { space, by_line, num_lines: 0, num_gone: 0, end: 0 };
        let mut from_start = file;
        from_start.rewind().map_err(failed)?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut bytes = Vec::new();
        let mut number = 0;
        loop {
            bytes.clear();
            number += 1;
            let num_bytes = read_record_line(&mut reader, &mut bytes).map_err(failed)?;
            let num_bytes =
                num_bytes.ok_or_else(|| BatchError::NotResults { path: path.into(), line: number })?;
            if bytes.last() != Some(&b'\n') {
                return Ok(earlier);
            }
            let Some((input, line)) = serde_json::from_slice(&bytes).ok().and_then(|seen: Seen| seen.place())
            else {
                let is_last = reader.fill_buf().map_err(failed)?.is_empty();
                // The blocks of a file that a crash has cut may be there without their content.
                if is_last && bytes.contains(&0) {
                    return Ok(earlier);
                }
                return Err(BatchError::NotResults { path: path.into(), line: number });
            };
            let extent = Extent { offset: earlier.end, num_bytes: num_bytes as u64 };
            earlier.end += extent.num_bytes;
            let Some(line) = space.number(input, line) else {
                earlier.num_gone += 1;
                continue;
            };
            let is_known = earlier.by_line.get(line).map_err(failed)?.is_some();
            earlier.num_lines += u64::from(!is_known);
            earlier.by_line.set(line, extent).map_err(failed)?;
        }
    }

    /// Decides by the input which records are kept, and where they lie, by the index of their lines.
    ///
    /// Results that do not belong to the input are an error unless that is forced; then their lines are
    /// answered anew.
    pub fn keep(
        &self,
        file: &File,
        reader: &mut RequestReader,
        resume: Resume,
        mut put: impl FnMut(u64, Extent) -> io::Result<()>,
    ) -> Result<Kept, BatchError> {
        let failed =
            |source| BatchError::ReadResults { path: "the results of the earlier run".into(), source };
        let mut kept = Kept::default();
        let mut num_seen = 0;
        while let Some(read) = reader.next_request()? {
            let head = match read {
                Ok(request) => request.head,
                Err(failed) => failed.head,
            };
            kept.num_left += 1;
            let Some(line) = self.space.number(head.file.number, head.line) else { continue };
            let Some(extent) = self.by_line.get(line).map_err(failed)? else { continue };
            num_seen += 1;
            let seen = seen_at(file, extent).map_err(failed)?;
            // A line that is no request is found out again at no cost; only its number is in its record.
            let Some(response) = seen.response else { continue };
            if response.request_id.strip_prefix(REQUEST_ID_PREFIX) != Some(hex(&head.digest).as_str()) {
                if !resume.is_forced {
                    return Err(BatchError::InputChanged {
                        name: head.file.name.to_string(),
                        line: head.line,
                    });
                }
                continue;
            }
            // A line without an id may have another one now that one with that id was appended.
            if seen.custom_id != head.custom_id {
                continue;
            }
            let is_ok = response.status_code == 200;
            if is_ok || !resume.retries_errors {
                put(head.index, extent).map_err(failed)?;
                kept.set(head.index, is_ok);
                kept.num_left -= 1;
            }
        }
        let num_gone = self.num_lines - num_seen + self.num_gone;
        if num_gone > 0 && !resume.is_forced {
            return Err(BatchError::InputShrunk { name: reader.name(), num_gone });
        }
        Ok(kept)
    }
}

/// The input and the line in it that the id of a record tells.
pub(in crate::batch) fn place_of(id: &str) -> Option<(u32, u64)> {
    let name = id.strip_prefix(ID_PREFIX)?;
    match name.split_once('-') {
        None => Some((1, name.parse().ok()?)),
        Some((input, line)) => Some((input.parse().ok().filter(|input| *input > 1)?, line.parse().ok()?)),
    }
}

fn seen_at(file: &File, extent: Extent) -> io::Result<Seen> {
    let mut bytes = vec![0; usize::try_from(extent.num_bytes).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, extent.offset)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}
