//! `--report FILE`: the run's counters as JSON, for benchmarks and CI.
//!
//! Owns the names of its fields; the counting is the session's.

use std::{fs, io, path::Path, time::Duration};

use serde_json::{Map, Value, json};

use super::{places::is_same_file, session::Session};
use crate::{
    batch::{InputPath, OutputPath, RunStats, partial_path},
    cache::CacheUsage,
    engine::{self, Runner},
    snapshot::Opening,
};

/// Finds out early whether the report can be written at all, and to a file of its own.
pub(super) fn check_writable(path: &Path, input: &InputPath, output: &OutputPath) -> anyhow::Result<()> {
    let other = |name: &str, file: &Path| {
        if is_same_file(path, file) && !is_device(path) {
            anyhow::bail!("--report {} is the {name}; give it a file of its own", path.display());
        }
        Ok(())
    };
    if let Some(input) = input.path() {
        other("input", input)?;
    }
    if let OutputPath::File(output) = output {
        other("output", output)?;
        other("file in which the output grows", &partial_path(output))?;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() {
        anyhow::bail!("--report {} is a directory; name a file in it", path.display());
    }
    match folder {
        Some(folder) if !folder.is_dir() => {
            anyhow::bail!("the folder {} of --report does not exist; create it first", folder.display())
        }
        _ => Ok(()),
    }
}

/// What can be written to by many, such as `/dev/null`.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// What the report says beside the run's own counters.
pub(super) struct Counters {
    engine: engine::Stats,
    cache: Option<CacheUsage>,
    persist: Value,
    num_unique_tokens: usize,
    first_token_after: Option<Duration>,
}

impl Counters {
    pub(super) fn of<R: Runner>(session: &Session<R>) -> Self {
        Self {
            engine: *session.engine_stats(),
            cache: session.cache_usage(),
            persist: persist(session),
            num_unique_tokens: session.num_unique_tokens(),
            first_token_after: session.first_token_after,
        }
    }

    fn cache(&self) -> Value {
        let Some(usage) = &self.cache else { return Value::Null };
        let tiers: Map<String, Value> = usage
            .tiers
            .iter()
            .map(|(tier, usage)| {
                let usage = json!({
                    "num_cached_tokens": usage.num_cached_tokens,
                    "num_evictions": usage.num_evictions,
                    "num_entries": usage.num_entries,
                    "num_bytes": usage.num_bytes,
                });
                (tier.name().to_owned(), usage)
            })
            .collect();
        json!({
            "num_bytes": usage.num_bytes,
            "peak_bytes": usage.peak_bytes,
            "num_over_limit": usage.num_over_limit,
            "tiers": tiers,
        })
    }
}

/// What became of the cache file.
fn persist<R: Runner>(session: &Session<R>) -> Value {
    let Some((saver, snapshot)) = session.saver.as_ref().zip(session.engine().snapshot()) else {
        return Value::Null;
    };
    let (restored, saved) = (session.engine().persist_stats(), saver.totals());
    let opening = match snapshot.opening() {
        Opening::New => "new",
        Opening::Restored { .. } => "restored",
        Opening::OtherModel { .. } => "other_model",
        Opening::Damaged { .. } => "damaged",
        Opening::Refreshed => "refreshed",
    };
    let num_stored_tokens = match snapshot.opening() {
        Opening::Restored { num_tokens, .. } => *num_tokens,
        _ => 0,
    };
    json!({
        "opening": opening,
        "num_stored_tokens": num_stored_tokens,
        "num_restored_tokens": restored.num_restored_tokens,
        "num_restored_bytes": restored.num_restored_bytes,
        "num_damaged": snapshot.num_damaged(),
        "num_saves": saved.num_saves,
        "num_saved_tokens": saved.num_new_tokens,
        "num_saved_bytes": saved.num_new_bytes,
        "save_seconds": saved.seconds,
        "file_bytes": saved.file_bytes,
    })
}

/// Writes the counters of a run that took `load_time` before its first forward pass.
pub(super) fn write(
    path: &Path,
    stats: &RunStats,
    counters: &Counters,
    load_time: Duration,
) -> io::Result<()> {
    let engine = &counters.engine;
    let run_time = stats.wall.saturating_sub(load_time);
    let report = json!({
        "num_requests": stats.num_done(),
        "num_failed": stats.num_failed,
        "failures": stats.failures.to_json(),
        "num_prompt_tokens": stats.num_prompt_tokens,
        "num_unique_tokens": counters.num_unique_tokens,
        "num_prefilled_tokens": engine.num_prefilled_tokens(),
        "num_last_tokens": engine.num_last_tokens(),
        "num_cached_tokens": stats.num_cached_tokens,
        "num_generated_tokens": stats.num_generated_tokens,
        "num_guided_tokens": engine.num_guided_tokens,
        "guide_seconds": engine.guide_time.as_secs_f64(),
        "num_passes": engine.num_passes(),
        "num_wasted_rows": engine.num_wasted_rows(),
        "peak_rows": engine.peak_rows,
        "cache": counters.cache(),
        "cache_file": counters.persist,
        "prefill_seconds": engine.prefill.time.as_secs_f64(),
        "decode_seconds": engine.decode.time.as_secs_f64(),
        "first_token_seconds": counters.first_token_after.map(|time| time.as_secs_f64()),
        "load_seconds": load_time.as_secs_f64(),
        "run_seconds": run_time.as_secs_f64(),
        "wall_seconds": stats.wall.as_secs_f64(),
        "peak_memory_bytes": stats.peak_memory_bytes,
        "prefill_tokens_per_second": engine.prefill_tokens_per_second(),
        "decode_tokens_per_second": engine.decode_tokens_per_second(),
    });
    fs::write(path, format!("{report:#}\n"))
}
