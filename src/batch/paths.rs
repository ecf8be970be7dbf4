//! Where the input comes from and where the output goes, as typed on the command line.
//!
//! Owns the meaning of `-`, and of patterns and several names. Opening them is for `reader` and `writer`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::BatchError;
use super::remote::{Fetched, is_url, shown_url};

/// One input: a file, or standard input for `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputPath {
    Stdin,
    File(PathBuf),
    /// Not fetched yet.
    Url(String),
    /// A file by now.
    Fetched(Fetched),
}

impl InputPath {
    /// The name that messages use.
    pub fn name(&self) -> String {
        match self {
            Self::Stdin => "<stdin>".into(),
            Self::File(path) => path.display().to_string(),
            Self::Url(url) => shown_url(url),
            Self::Fetched(fetched) => fetched.name().to_owned(),
        }
    }

    /// The file's path, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdin | Self::Url(_) => None,
            Self::File(path) => Some(path),
            Self::Fetched(fetched) => Some(fetched.path()),
        }
    }
}

impl From<OsString> for InputPath {
    fn from(typed: OsString) -> Self {
        match typed.to_str() {
            Some("-") => Self::Stdin,
            Some(url) if is_url(url) => Self::Url(url.to_owned()),
            _ => Self::File(typed.into()),
        }
    }
}

/// All inputs of a command, which are read one behind the other; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs(Vec<InputPath>);

impl Inputs {
    /// Looks patterns such as `parts/*.jsonl` up, whose files come in the order of their names, and fetches what is
    /// on web servers. What is the name of a file is no pattern.
    pub fn find(typed: &[InputPath]) -> Result<Self, BatchError> {
        let mut found: Vec<InputPath> = Vec::new();
        for input in typed {
            match input {
                InputPath::Url(url) => found.push(InputPath::Fetched(Fetched::from_url(url)?)),
                InputPath::File(path) => match pattern_of(path) {
                    None => found.push(input.clone()),
                    Some(pattern) => found.extend(files_of(pattern)?.into_iter().map(InputPath::File)),
                },
                InputPath::Stdin | InputPath::Fetched(_) => found.push(input.clone()),
            }
        }
        // The files themselves: one may have several names.
        let mut places: Vec<(PathBuf, &InputPath)> =
            found.iter().map(|input| (input.path().map_or_else(|| "-".into(), place_of), input)).collect();
        places.sort_by(|(place, _), (other, _)| place.cmp(other));
        match places.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(BatchError::InputTwice { name: pair[0].1.name(), other: pair[1].1.name() }),
            None => Ok(Self(found)),
        }
    }

    /// In the order in which they are read.
    pub fn all(&self) -> &[InputPath] {
        &self.0
    }

    /// The name that messages use for all of them.
    pub fn name(&self) -> String {
        match &self.0[..] {
            [] => String::new(),
            [only] => only.name(),
            [first, .., last] => format!("{} … {} ({} files)", first.name(), last.name(), self.0.len()),
        }
    }

    /// Those that are files by their names.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter_map(InputPath::path)
    }

    /// The first that can be read only once, such as a pipe; one that is not there counts as a file.
    pub fn stream(&self) -> Option<&InputPath> {
        let is_stream =
            |path: &Path| fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir());
        self.0.iter().find(|input| input.path().is_none_or(is_stream))
    }
}

impl From<InputPath> for Inputs {
    fn from(input: InputPath) -> Self {
        Self(vec![input])
    }
}

/// One of the inputs, as lines name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Its place among the inputs, from 1.
    pub number: u32,
    pub name: Arc<str>,
}

impl InputFile {
    /// What tells a line apart from those of all inputs: `17`, and `2-17` in the second.
    pub fn line_name(&self, line: u64) -> String {
        match self.number {
            0 | 1 => line.to_string(),
            number => format!("{number}-{line}"),
        }
    }
}

/// The pattern that a name is, if it is one.
fn pattern_of(path: &Path) -> Option<&str> {
    let pattern = path.to_str()?;
    let is_pattern = pattern.contains(['*', '?', '[']) && fs::symlink_metadata(path).is_err();
    is_pattern.then_some(pattern)
}

fn files_of(pattern: &str) -> Result<Vec<PathBuf>, BatchError> {
    let failed = |reason: String| BatchError::BadPattern { pattern: pattern.to_owned(), reason };
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let found = glob::glob_with(pattern, options).map_err(|error| failed(error.to_string()))?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|error| failed(error.to_string()))?;
        // A pattern means files; a folder beside them was not asked for.
        if !path.is_dir() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(BatchError::NoMatch { pattern: pattern.to_owned() });
    }
    Ok(files)
}

fn place_of(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// Looks patterns among the names of files up, as [`Inputs::find`] does.
pub fn find_files(typed: &[PathBuf]) -> Result<Vec<PathBuf>, BatchError> {
    let mut found = Vec::new();
    for path in typed {
        match pattern_of(path) {
            None => found.push(path.clone()),
            Some(pattern) => found.extend(files_of(pattern)?),
        }
    }
    Ok(found)
}

/// The output: a file, or standard output for `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputPath {
    Stdout,
    File(PathBuf),
}

impl OutputPath {
    /// The name that messages use.
    pub fn name(&self) -> String {
        match self {
            Self::Stdout => "<stdout>".into(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

impl From<OsString> for OutputPath {
    fn from(typed: OsString) -> Self {
        // `/dev/stdout` may lead to a regular file; reopening that would start again at its
        // beginning and write beside the shell's own position in it.
        if typed == "-" || typed == "/dev/stdout" { Self::Stdout } else { Self::File(typed.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(folder: &Path, typed: &[&str]) -> Result<Vec<String>, String> {
        let typed: Vec<InputPath> = typed
            .iter()
            .map(|name| if *name == "-" { InputPath::Stdin } else { InputPath::File(folder.join(name)) })
            .collect();
        let inputs = Inputs::find(&typed).map_err(|error| error.to_string())?;
        let base = |name: String| name.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(inputs.all().iter().map(|input| base(input.name())).collect())
    }

    #[test]
    fn patterns_are_looked_up_where_no_file_has_their_name() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for name in ["b.jsonl", "a.jsonl", "c[1].jsonl", ".hidden.jsonl"] {
            fs::write(folder.path().join(name), "").expect("there is room");
        }
        fs::create_dir(folder.path().join("d.jsonl")).expect("there is room");
        let found = |typed: &[&str]| found(folder.path(), typed);
        assert_eq!(found(&["*.jsonl"]).expect("there are some"), ["a.jsonl", "b.jsonl", "c[1].jsonl"]);
        assert_eq!(
            found(&["c[1].jsonl", "-", "[ab].jsonl"]).expect("there are some"),
            ["c[1].jsonl", "<stdin>", "a.jsonl", "b.jsonl"]
        );
        assert!(found(&["x*.jsonl"]).expect_err("there is none").contains("no file matches"));
        assert!(found(&["a.jsonl", "*.jsonl"]).expect_err("it is there twice").contains("twice"));
        assert!(found(&["-", "-"]).expect_err("it is there twice").contains("twice"));
        assert!(found(&["a**.jsonl"]).expect_err("it is no pattern").contains("a**.jsonl"));
    }
}
