//! Where the input comes from and where the output goes, as typed on the command line.
//!
//! Owns the meaning of `-`. Opening them is for `reader` and `writer`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The input: a file, or standard input for `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputPath {
    Stdin,
    File(PathBuf),
}

impl InputPath {
    /// The name that messages use.
    pub fn name(&self) -> String {
        match self {
            Self::Stdin => "<stdin>".into(),
            Self::File(path) => path.display().to_string(),
        }
    }

    /// The file's path, if it is a file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Stdin => None,
            Self::File(path) => Some(path),
        }
    }
}

impl From<OsString> for InputPath {
    fn from(typed: OsString) -> Self {
        if typed == "-" { Self::Stdin } else { Self::File(typed.into()) }
    }
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
