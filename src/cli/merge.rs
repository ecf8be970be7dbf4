//! Flags of `mlxbatch merge`.
//!
//! Owns names and wording as `cli` does for the rest.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::batch::{InputPath, OutputPath};

pub(super) const EXAMPLES: &str = "\
Examples:
  for i in 1 2 3 4; do mlxbatch run convos.jsonl -o out.$i.jsonl --shard $i/4 & done; wait
  mlxbatch merge 'out.*.jsonl' -o out.jsonl
  Results without their manifests, each held to its line instead:
    mlxbatch merge 'out.*.jsonl' -o out.jsonl --input convos.jsonl
  And the caches of the shards:
    mlxbatch merge 'out.*.jsonl' -o out.jsonl --caches cache.*.bin --persist-cache cache.bin";

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    all results are joined
  1    a fatal error: results that make no whole, no room to write; the output is as it was
  2    the command line cannot be understood
  3    all results are joined, and some are errors; `run --resume --retry-errors` goes on from them";

#[derive(Debug, Args)]
pub struct MergeResultsArgs {
    /// Files of results, in any order; in quotes, a pattern such as 'out.*.jsonl' stands for its files
    #[arg(value_name = "RESULTS", required = true, value_hint = ValueHint::FilePath)]
    pub results: Vec<PathBuf>,

    /// File for all results; - writes to standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: OutputPath,

    /// Hold each result to its line of the input, as for results whose manifests are gone; may be given several times
    #[arg(long, value_name = "INPUT", value_hint = ValueHint::FilePath)]
    pub input: Vec<InputPath>,

    /// Join results that were made with other models or settings all the same
    #[arg(long)]
    pub force: bool,

    /// Cache files of the shards, to be joined as well
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "persist_cache", value_hint = ValueHint::FilePath)]
    pub caches: Vec<PathBuf>,

    /// File for what they hold together; one that is there is added to
    #[arg(long, value_name = "FILE", requires = "caches", value_hint = ValueHint::FilePath)]
    pub persist_cache: Option<PathBuf>,

    /// Print nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}
