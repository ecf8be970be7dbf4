//! The files that are joined: their records one by one, and what they are parts of.
//!
//! Owns reading them, and whether they make a whole by what their manifests say. Whether all lines have their
//! results is found out by `merging` as it goes.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, de::IgnoredAny};

use super::super::lines::{MAX_RECORD_BYTES, read_record_line};
use super::super::paths::InputFile;
use super::super::shards::ShardFacts;
use super::super::writer::{Manifest, manifest_path, partial_path, place_of, records_path};
use super::MergeError;
use crate::terminal::shown_in_short;

/// A line by the number of its input and its own.
pub(super) type LinePlace = (u32, u64);

pub(super) fn name_of((number, line): LinePlace) -> String {
    InputFile { number, name: "".into() }.line_name(line)
}

/// A file of results.
pub(super) struct Part {
    pub path: PathBuf,
    /// What its results were made with, where that is beside it.
    pub manifest: Option<Manifest>,
    source: BufReader<File>,
    /// The record that was read last.
    pub record: Record,
    /// Records that have been read.
    pub num_records: u64,
}

#[derive(Default)]
pub(super) struct Record {
    /// With its line end.
    pub bytes: Vec<u8>,
    pub place: LinePlace,
    pub custom_id: String,
    /// The digest of the input line, where it is told.
    pub request_id: Option<String>,
    pub is_ok: bool,
}

/// What every record has, as a run writes it; what is in it has been read.
#[derive(Deserialize)]
struct Seen {
    id: String,
    custom_id: String,
    response: Option<SeenResponse>,
    error: Option<SeenError>,
}

#[derive(Deserialize)]
struct SeenResponse {
    status_code: u16,
    request_id: String,
    body: SeenBody,
}

#[derive(Deserialize)]
struct SeenBody {
    choices: Option<Vec<IgnoredAny>>,
    error: Option<SeenError>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "that they are there is all that counts")]
struct SeenError {
    code: String,
    message: String,
}

impl Seen {
    /// Reads a line, or says what it lacks.
    fn read(bytes: &[u8]) -> Result<(LinePlace, Self), String> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| format!("it is not valid UTF-8 at byte {}", error.valid_up_to() + 1))?;
        let seen: Self = serde_json::from_str(text).map_err(|error| {
            let kind = if error.is_data() { "it has not the fields of one" } else { "it is not valid JSON" };
            format!("{kind}: {}", shown_in_short(&error.to_string()))
        })?;
        let place =
            place_of(&seen.id).ok_or_else(|| format!("its id {} names no line", shown_in_short(&seen.id)))?;
        let has_body = |response: &SeenResponse| match response.status_code {
            200 => response.body.choices.is_some() && response.body.error.is_none(),
            _ => response.body.error.is_some() && response.body.choices.is_none(),
        };
        match (&seen.response, &seen.error) {
            (Some(response), None) if has_body(response) => Ok((place, seen)),
            (Some(response), None) => {
                Err(format!("its body is not what status {} comes with", response.status_code))
            }
            (None, Some(_)) => Ok((place, seen)),
            (Some(_), Some(_)) => Err("it has a response and an error".to_owned()),
            (None, None) => Err("it has neither a response nor an error".to_owned()),
        }
    }
}

impl Part {
    /// Opens the results of a run that has ended.
    pub fn open(path: &Path) -> Result<Self, MergeError> {
        let partial = partial_path(path);
        if partial.exists() {
            return Err(MergeError::Unfinished { partial });
        }
        if path.extension().is_some_and(|extension| extension == "partial") {
            return Err(MergeError::Unfinished { partial: path.into() });
        }
        // Of what is published in another form, the records lie beside it.
        let records = records_path(path);
        let path = if records.is_file() { &records } else { path };
        let file = File::open(path).map_err(|source| MergeError::Read { path: path.into(), source })?;
        Ok(Self {
            path: path.into(),
            manifest: None,
            source: BufReader::with_capacity(1 << 17, file),
            record: Record::default(),
            num_records: 0,
        })
    }

    pub fn read_manifest(&mut self) -> Result<(), MergeError> {
        let path = manifest_path(&self.path);
        match Manifest::read(&path) {
            Ok(manifest) => self.manifest = Some(manifest),
            Err(source) => {
                return Err(MergeError::NoManifest { results: self.path.clone(), manifest: path, source });
            }
        }
        match self.facts() {
            Some(_) => Ok(()),
            None => Err(MergeError::NotAShard { results: self.path.clone() }),
        }
    }

    /// What the results are a part of.
    pub fn facts(&self) -> Option<&ShardFacts> {
        self.manifest.as_ref().and_then(Manifest::shard)
    }

    /// Whether ids are those that its lines give: a run of rows may have taken them from any column. Nothing where
    /// there is no manifest to tell.
    pub fn has_ids_of_lines(&self) -> Option<bool> {
        self.manifest.as_ref().map(|manifest| !manifest.has(Manifest::ROWS))
    }

    /// Reads the next record; whether there is one.
    pub fn advance(&mut self) -> Result<bool, MergeError> {
        let (path, line) = (self.path.clone(), self.num_records + 1);
        let mut bytes = std::mem::take(&mut self.record.bytes);
        bytes.clear();
        let num_bytes = read_record_line(&mut self.source, &mut bytes);
        match num_bytes.map_err(|source| MergeError::Read { path: path.clone(), source })? {
            Some(0) => return Ok(false),
            Some(_) => {}
            None => {
                let reason = format!("it has more than {MAX_RECORD_BYTES} bytes");
                return Err(MergeError::NotAResult { path, line, reason });
            }
        }
        let is_whole = bytes.last() == Some(&b'\n');
        // What follows a cut is missing; a file may be cut behind the last bracket, too.
        if !is_whole {
            return Err(MergeError::CutOff { path, line });
        }
        let (place, seen) = Seen::read(&bytes).map_err(|reason| MergeError::NotAResult {
            path: path.clone(),
            line,
            reason,
        })?;
        let before = self.record.place;
        if self.num_records > 0 && place <= before {
            return Err(match place == before {
                true => MergeError::Double {
                    name: name_of(place),
                    other: path.clone(),
                    path,
                    line: line - 1,
                    other_line: line,
                },
                false => MergeError::OutOfOrder { path, line, this: name_of(place), before: name_of(before) },
            });
        }
        self.num_records = line;
        let is_ok = seen.response.as_ref().is_some_and(|response| response.status_code == 200);
        let request_id = seen.response.map(|response| response.request_id);
        self.record = Record { bytes, place, custom_id: seen.custom_id, request_id, is_ok };
        Ok(true)
    }

    /// Checks at its end that all of it was there.
    pub fn check_whole(&self) -> Result<(), MergeError> {
        match self.facts() {
            Some(facts) if facts.num_lines != self.num_records => Err(MergeError::NotWhole {
                path: self.path.clone(),
                num_there: self.num_records,
                num_lines: facts.num_lines,
                shard: facts.shard,
            }),
            _ => Ok(()),
        }
    }
}

/// Checks that the parts are all shards of one run, each once.
pub(super) fn check_together(parts: &[Part], is_forced: bool) -> Result<(), MergeError> {
    let mut shards: Vec<(&Part, &ShardFacts)> =
        parts.iter().filter_map(|part| part.facts().map(|facts| (part, facts))).collect();
    let Some((first, facts)) = shards.first().copied() else { return Ok(()) };
    for (part, others) in &shards[1..] {
        let (path, other) = (part.path.clone(), first.path.clone());
        // What sets them apart most.
        if others.input != facts.input {
            return Err(MergeError::OtherInput { path, other });
        }
        if others.shard.count != facts.shard.count {
            return Err(MergeError::OtherCount {
                path,
                shard: others.shard,
                other,
                other_shard: facts.shard,
            });
        }
        if others.split != facts.split {
            return Err(MergeError::OtherSplit { path, other });
        }
    }
    shards.sort_by_key(|(_, facts)| facts.shard.number);
    if let Some(pair) = shards.windows(2).find(|pair| pair[0].1.shard == pair[1].1.shard) {
        let (path, other) = (pair[0].0.path.clone(), pair[1].0.path.clone());
        return Err(MergeError::SameShard { path, other, shard: pair[0].1.shard });
    }
    let count = facts.shard.count;
    let is_there =
        |number: &u32| shards.binary_search_by_key(number, |(_, facts)| facts.shard.number).is_ok();
    let missing: Vec<u32> = (1..=count).filter(|number| !is_there(number)).collect();
    if !missing.is_empty() {
        return Err(MergeError::MissingShards { missing: missing_text(&missing), count });
    }
    for part in parts.iter().filter(|_| !is_forced) {
        let made_with = |part: &Part| part.manifest.clone().unwrap_or_default().without_shard();
        let differences = made_with(part).differences(&made_with(first));
        if !differences.is_empty() {
            let (path, other) = (part.path.clone(), first.path.clone());
            return Err(MergeError::MadeOtherwise { path, other, differences });
        }
    }
    Ok(())
}

/// `shard 3 is missing`, `shards 3, 5 to 7 are missing`.
fn missing_text(numbers: &[u32]) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let texts: Vec<String> = runs
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first} to {last}") })
        .collect();
    match numbers.len() {
        1 => format!("shard {} is missing", texts.join(", ")),
        _ => format!("shards {} are missing", texts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_shards_are_told_in_runs() {
        assert_eq!(missing_text(&[3]), "shard 3 is missing");
        assert_eq!(missing_text(&[3, 4]), "shards 3 to 4 are missing");
        assert_eq!(missing_text(&[1, 3, 4, 5, 8]), "shards 1, 3 to 5, 8 are missing");
    }
}
