//! Why results cannot be joined.
//!
//! Owns the texts, each of which says what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::super::shards::Shard;

/// Results that do not make a whole.
#[derive(Debug, Error)]
pub enum MergeError {
    #[error("cannot read the results {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {name}")]
    Write { name: String, source: io::Error },
    #[error("{} is named twice: leave one out, or narrow the pattern", path.display())]
    SamePath { path: PathBuf },
    #[error("--output {} is one of the results that are to be joined: choose another", path.display())]
    OutputIsPart { path: PathBuf },
    #[error(
        "{} is there: its run has not ended. Run the same command with --resume to its end first",
        partial.display()
    )]
    Unfinished { partial: PathBuf },
    #[error(
        "what part of an input {} is cannot be told: {} cannot be read. A run with --shard leaves it beside its \
         results: keep the two together, or name the input with --input to have each result held to its line",
        results.display(), manifest.display()
    )]
    NoManifest { results: PathBuf, manifest: PathBuf, source: io::Error },
    #[error(
        "{} has the results of a whole run, not of a shard; --input says of which lines results are to be joined",
        results.display()
    )]
    NotAShard { results: PathBuf },
    #[error("{} is shard {shard}, {} is shard {other_shard}: they are parts of different runs", path.display(), other.display())]
    OtherCount { path: PathBuf, shard: Shard, other: PathBuf, other_shard: Shard },
    #[error("{} and {} are of different inputs: the lines of one are not those of the other", path.display(), other.display())]
    OtherInput { path: PathBuf, other: PathBuf },
    #[error(
        "{} and {} are of the same input, split otherwise: all shards need the same --max-tokens, the same flags that \
         choose and make lines, and the same version of mlxbatch",
        path.display(), other.display()
    )]
    OtherSplit { path: PathBuf, other: PathBuf },
    #[error("{} and {} are both shard {shard}: leave one out", path.display(), other.display())]
    SameShard { path: PathBuf, other: PathBuf, shard: Shard },
    #[error(
        "of {count} shards, {missing}: name their results as well, or run what has not been run with --shard I/{count}"
    )]
    MissingShards { missing: String, count: u32 },
    #[error(
        "{} was made otherwise than {}: {}; --force joins them all the same",
        path.display(), other.display(), differences.join("; ")
    )]
    MadeOtherwise { path: PathBuf, other: PathBuf, differences: Vec<String> },
    #[error(
        "{}:{line} is no result of mlxbatch: {reason}; the file was changed since its run: copy it again, or run its \
         shard again",
        path.display()
    )]
    NotAResult { path: PathBuf, line: u64, reason: String },
    #[error("{}:{line} is cut off: copy the file again, or run its shard again", path.display())]
    CutOff { path: PathBuf, line: u64 },
    #[error(
        "{}:{line} is the result of line {this}, behind that of line {before}: results stand in the order of the \
         input, so the file was changed since its run",
        path.display()
    )]
    OutOfOrder { path: PathBuf, line: u64, this: String, before: String },
    #[error("line {name} has two results: {}:{line} and {}:{other_line}", path.display(), other.display())]
    Double { name: String, path: PathBuf, line: u64, other: PathBuf, other_line: u64 },
    #[error(
        "{}:{line} and {}:{other_line} answer two lines with one custom_id, {custom_id:?}, which no run does: the files \
         were changed since: copy them again, or run their shards again",
        path.display(), other.display()
    )]
    DoubleId { custom_id: String, path: PathBuf, line: u64, other: PathBuf, other_line: u64 },
    #[error(
        "{}:{result_line} has the custom_id {custom_id:?}, and {name}:{line}, whose result it is, {own:?}: the file was \
         changed since its run: copy it again, or run its shard again",
        path.display()
    )]
    OtherId { path: PathBuf, result_line: u64, custom_id: String, name: String, line: u64, own: String },
    #[error(
        "{} has {num_there} of the {num_lines} results of shard {shard}: copy the file again, or run the shard again",
        path.display()
    )]
    NotWhole { path: PathBuf, num_there: u64, num_lines: u64, shard: Shard },
    #[error("{name}:{line} has no result{}: name the results that have it", more_text(*num_more))]
    MissingLine { name: String, line: u64, num_more: u64 },
    #[error(
        "{}:{result_line} is not the result of {name}:{line}: the line was another then. Name the input that the \
         results are of",
        path.display()
    )]
    OtherLine { path: PathBuf, result_line: u64, name: String, line: u64 },
    #[error("{}:{result_line} is the result of line {line}, which --input does not have", path.display())]
    NoSuchLine { path: PathBuf, result_line: u64, line: String },
}

fn more_text(num_more: u64) -> String {
    match num_more {
        0 => String::new(),
        1 => ", nor has 1 more line".to_owned(),
        num => format!(", nor have {num} more lines"),
    }
}
