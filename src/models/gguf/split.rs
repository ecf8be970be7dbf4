//! A model in several GGUF files: finding the parts and making one header of theirs.
//!
//! Owns the names `…-00001-of-00003.gguf` and what the parts must agree on. Which tensor lies in which file
//! each tensor says itself; what is in a file the parent module reads.

use std::path::{Path, PathBuf};

use super::{GgufError, GgufHeader};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const NUM_TENSORS: &str = "split.tensors.count";

/// Reads the parts that belong to a file, if it is one of several, and joins them.
///
/// # Errors
/// Where a part is not there, cannot be read or contradicts another.
pub(super) fn joined(given: GgufHeader) -> Result<GgufHeader, GgufError> {
    let Some((number, count)) = place_in_series(&given)? else { return Ok(given) };
    let paths = names_of_parts(given.path(), number, count)
        .ok_or_else(|| {
            let suffix = suffix(number, count);
            problem(&given, format!("is part {} of {count}, but its name does not end in {suffix:?}: give all parts their names back", number + 1))
        })?;
    let missing: Vec<&PathBuf> = paths.iter().filter(|path| !path.is_file()).collect();
    if let Some(first) = missing.first() {
        let more = match missing.len() {
            1 => String::new(),
            more => format!(" ({} parts are missing)", more),
        };
        return Err(problem(
            &given,
            format!(
                "is one of {count} parts, of which {} is not there{more}: put all of them into one folder",
                first.display()
            ),
        ));
    }
    let mut whole: Option<GgufHeader> = None;
    for (index, path) in paths.iter().enumerate() {
        let part = if index == number { given.clone() } else { GgufHeader::read_file(path)? };
        if place_in_series(&part)? != Some((index, count)) {
            let found = [NUMBER, COUNT].map(|key| format!("{key} is {}", described(&part, key)));
            return Err(problem(
                &part,
                format!(
                    "does not belong to {}: {}: fetch all parts anew",
                    given.path().display(),
                    found.join(", ")
                ),
            ));
        }
        whole = Some(match whole {
            None => part,
            Some(whole) => with_part(whole, part)?,
        });
    }
    let Some(whole) = whole else { return Ok(given) };
    let stated = whole.u64(NUM_TENSORS);
    if stated.is_some_and(|stated| stated != whole.tensors.len() as u64) {
        return Err(problem(
            &whole,
            format!(
                "the parts hold {} tensors, but {NUM_TENSORS} is {}: fetch all parts anew",
                whole.tensors.len(),
                described(&whole, NUM_TENSORS)
            ),
        ));
    }
    Ok(whole)
}

/// Adds the next part's tensors, and what the metadata of those before do not say.
fn with_part(mut whole: GgufHeader, part: GgufHeader) -> Result<GgufHeader, GgufError> {
    for (key, value) in &part.metadata {
        let is_of_file = key == NUMBER || key == "general.alignment";
        match whole.metadata.get(key) {
            Some(other) if other != value && !is_of_file => {
                return Err(problem(
                    &part,
                    format!(
                        "has another value of '{key}' than {}: fetch all parts anew",
                        whole.path().display()
                    ),
                ));
            }
            Some(_) => {}
            None => {
                whole.metadata.insert(key.clone(), value.clone());
            }
        }
    }
    let names: std::collections::HashSet<&str> =
        whole.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if let Some(twice) = part.tensors.iter().find(|tensor| names.contains(tensor.name.as_str())) {
        let reason = format!("tensor '{}' is in another part too: fetch all parts anew", twice.name);
        return Err(problem(&part, reason));
    }
    let file = whole.files.len();
    whole.files.extend(part.files);
    whole.tensors.extend(part.tensors.into_iter().map(|tensor| super::GgufTensor { file, ..tensor }));
    Ok(whole)
}

/// Which of how many parts a file is, counted from 0; `None` where it is whole.
fn place_in_series(header: &GgufHeader) -> Result<Option<(usize, usize)>, GgufError> {
    let number = |key: &str| header.u64(key).and_then(|number| u16::try_from(number).ok()).map(usize::from);
    if header.value(COUNT).is_none() {
        return Ok(None);
    }
    match (number(NUMBER), number(COUNT)) {
        (Some(0) | None, Some(0 | 1)) => Ok(None),
        (Some(number), Some(count)) if number < count => Ok(Some((number, count))),
        _ => {
            let found = [NUMBER, COUNT].map(|key| format!("'{key}' is {}", described(header, key)));
            Err(problem(header, format!("cannot be one of several parts: {}", found.join(", "))))
        }
    }
}

fn described(header: &GgufHeader, key: &str) -> String {
    header.value(key).map_or("missing".to_owned(), |value| match header.u64(key) {
        Some(number) => number.to_string(),
        None => format!("{value:?}"),
    })
}

fn suffix(number: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

/// The paths of all parts, judged by the name of one.
fn names_of_parts(path: &Path, number: usize, count: usize) -> Option<Vec<PathBuf>> {
    let prefix = path.file_name()?.to_str()?.strip_suffix(&suffix(number, count))?;
    Some((0..count).map(|part| path.with_file_name(format!("{prefix}{}", suffix(part, count)))).collect())
}

fn problem(header: &GgufHeader, problem: String) -> GgufError {
    GgufError::Unusable { path: header.path().to_owned(), problem }
}
