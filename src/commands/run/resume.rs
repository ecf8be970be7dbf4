//! `--resume`: going on from what an earlier run has left.
//!
//! Owns when that is asked for and what is said where nothing is left to do. Which results are kept is
//! `batch/`'s to find out; what they depend on is told by the model.

use std::time::Instant;

use super::Outcome;
use crate::{
    batch::{
        Ending, Inputs, Kept, Manifest, Progress, ReaderOptions, ResultWriter, Resume, RunStats, summary,
    },
    cli::RunArgs,
};

/// Notes what the results are made with, and finds what an earlier run has left of them if that is asked for.
pub(super) fn begin(
    writer: &mut ResultWriter,
    manifest: &Manifest,
    args: &RunArgs,
    (inputs, options): (&Inputs, &ReaderOptions),
) -> anyhow::Result<Kept> {
    if !args.resume {
        writer.begin(manifest)?;
        return Ok(Kept::default());
    }
    let resume = Resume { retries_errors: args.retry_errors, is_forced: args.force };
    Ok(writer.resume(manifest, resume, inputs, options)?)
}

/// Whether a later run may want to go on from published results: where errors can be retried, or where this one
/// was asked to do so. What is to be merged with other shards has to tell what it is a part of.
pub(super) fn keeps_manifest(stats: &RunStats, args: &RunArgs) -> bool {
    stats.num_failed > 0 || args.resume || args.shard.is_some()
}

/// Ends a run all of whose lines had their results, without loading the model; returns its counters, too.
pub(super) fn nothing_left(
    writer: ResultWriter,
    mut stats: RunStats,
    args: &RunArgs,
    started: Instant,
) -> anyhow::Result<(Outcome, RunStats)> {
    let published = writer.finish(keeps_manifest(&stats, args))?;
    stats.wall = started.elapsed();
    let progress = Progress::new(stats.num_total, super::progress_kind(args));
    progress.tell("mlxbatch: nothing is left to do: every line has its result");
    progress.finish();
    progress.end(&stats, &summary(&stats, Ending::Complete, &published.place));
    Ok((super::outcome(&stats, args), stats))
}
