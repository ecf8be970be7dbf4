//! Flags of cache files: `run --persist-cache` and what goes with it, and `mlxbatch cache`.
//!
//! Owns names, defaults and wording as `cli` does for the rest.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::{CACHE_EXIT_CODES, values};

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cache file")]
pub struct PersistArgs {
    /// Keep stored prompt prefixes in this file from run to run
    ///
    /// What the file holds for this model is brought in as prompts need it, and what is new is saved
    /// at the end, on Ctrl-C and now and then. A missing file is made. It is readable by you only,
    /// since it reveals prompts. Several runs may share it.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub persist_cache: Option<PathBuf>,

    /// How often to save it, such as 30s, 10m or 1h; 0 saves at the end only
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::time)]
    #[arg(requires = "persist_cache")]
    pub persist_every: Duration,

    /// What may be done with it
    #[arg(long, value_enum, value_name = "MODE", default_value_t = CacheModeArg::Rw)]
    #[arg(requires = "persist_cache")]
    pub cache_mode: CacheModeArg,

    /// Fail rather than start without what it holds, for CI
    #[arg(long, requires = "persist_cache")]
    pub require_cache: bool,

    /// Most KV it may hold, such as 2GiB; what would be evicted first is dropped [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = values::positive_size, requires = "persist_cache")]
    pub persist_max_bytes: Option<u64>,
}

/// What may be done with a cache file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheModeArg {
    /// Restore and save
    Rw,
    /// Restore, and leave the file as it is
    Ro,
    /// Start cold and replace what it holds, whatever model it is of
    Refresh,
    /// Restore and save, and believe a file that others own or may write
    Unsafe,
}

#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Say what a cache file holds
    #[command(after_help = CACHE_EXIT_CODES)]
    Inspect(InspectArgs),

    /// Read all of a cache file and compare every checksum
    ///
    /// A run leaves damaged prefixes out and computes them again; this says whether there are any.
    #[command(after_help = CACHE_EXIT_CODES)]
    Verify(VerifyArgs),

    /// Drop stored prefixes from a cache file and give their space back
    #[command(after_help = CACHE_EXIT_CODES)]
    Prune(PruneArgs),

    /// Make one cache file of several of the same model
    #[command(after_help = CACHE_EXIT_CODES)]
    Merge(MergeArgs),
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Cache file, as named with --persist-cache
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,

    /// Print a key for stores such as actions/cache: it changes with the model and the stored system prompts alone
    ///
    /// Its first half is the model's. Where no system prompt is stored, all prefixes count.
    #[arg(long, conflicts_with_all = ["json", "model"])]
    pub key: bool,

    /// Model whose tokenizer turns the largest prefixes into text: a folder or a .gguf file
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: Option<String>,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Cache file, as named with --persist-cache
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct PruneArgs {
    /// Cache file, as named with --persist-cache
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,

    /// Keep this much KV, such as 2GiB; what would be evicted first goes
    #[arg(long, value_name = "SIZE", value_parser = values::size, group = "what")]
    pub max_bytes: Option<u64>,

    /// Drop what belongs to this tier, unless something of another is stored below it
    #[arg(long, value_enum, value_name = "TIER", group = "what")]
    pub tier: Option<TierArg>,

    /// Drop what no run has used for so long, such as 12h or 30d
    #[arg(long, value_name = "TIME", value_parser = values::time, group = "what")]
    pub older_than: Option<Duration>,
}

/// A tier by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TierArg {
    Assistant,
    User,
    System,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Cache files of one model
    #[arg(value_name = "FILE", required = true, num_args = 2.., value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,

    /// File for what they hold together; one that is there is added to
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
}
