//! Why a cache file cannot be used.
//!
//! Owns the messages, which name the file and what to do. Whether that ends a run is the command's
//! decision: results are never at stake.

use std::{io, path::PathBuf};

use thiserror::Error;

use super::format::FORMAT_VERSION;
use crate::cache::CacheError;

/// Why a cache file cannot be opened or saved.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error("{} is not a cache file of mlxbatch and stays as it is; name another file", .path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{} is a cache file of format version {version}, and this mlxbatch reads up to {FORMAT_VERSION}; \
         update mlxbatch or name another file",
        .path.display()
    )]
    Newer { path: PathBuf, version: u32 },
    #[error("{} is {what}, not a file; name a file", .path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("the folder {} of the cache file does not exist; create it first", .folder.display())]
    NoFolder { folder: PathBuf },
    #[error("{} does not exist", .path.display())]
    NotThere { path: PathBuf },
    #[error(
        "{} holds the cache of another model ({difference}) and stays as it is; name another file",
        .path.display()
    )]
    OtherModel { path: PathBuf, difference: String },
    #[error("{} is damaged ({reason})", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{} and {} are caches of different models ({difference}) and cannot be one: leave one of them out",
        .path.display(), .other.display()
    )]
    CannotMerge { path: PathBuf, other: PathBuf, difference: String },
    #[error(
        "another process has kept the lock of {} for {seconds} s: it is left as it is; see which with \
         `fuser {}`", .path.display(), .path.display()
    )]
    Locked { path: PathBuf, seconds: u64 },
    #[error(
        "{} {why}, who could have put other KV into it, which changes answers: make it yours alone (`chmod 600`, \
         or copy it), name another file, or believe it with --cache-mode unsafe", .path.display()
    )]
    NotTrusted { path: PathBuf, why: String },
    #[error("cannot {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "the index of {} would be longer than one that can be read, with nothing left to drop; the file stays as \
         it was: name another file",
        .path.display()
    )]
    IndexTooLong { path: PathBuf },
    #[error("the cache cannot be saved: {0}")]
    Export(String),
    #[error(transparent)]
    Tree(#[from] CacheError),
}
