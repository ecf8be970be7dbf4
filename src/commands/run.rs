//! `mlxbatch run`: answers every request of a file.
//!
//! Owns the order of a run's stages; the stages are in the modules below.

use super::Outcome;
use crate::cli::RunArgs;

/// Runs a batch.
pub fn run(args: &RunArgs, _is_verbose: bool) -> anyhow::Result<Outcome> {
    anyhow::bail!("this build has no engine yet and cannot answer {}", args.input.name())
}
