//! `--report FILE`, `--report-html FILE` and the summary of a CI job: what a run has to say of itself.
//!
//! Owns the names of the JSON report's fields, which `mlxbatch schema report` describes, and that no report takes
//! another file's place; the page and the summary are in the modules below. The counting is the session's.

mod about;
mod chart;
mod markdown;
mod page;

use std::{fs, io, path::Path, time::Duration};

use serde_json::{Map, Value, json};

pub(super) use self::about::About;
use super::{
    model::RunMemory,
    places::is_same_file,
    session::{Session, Stop},
    timeline::Moment,
    times::{Percentiles, Timed, Timings},
};
use crate::{
    batch::{Inputs, OutputPath, RunStats, count_text, number_text, partial_path, records_path},
    cache::CacheUsage,
    cli::RunArgs,
    commands::shared_prefixes::NamedPrefix,
    engine::{self, Runner},
    snapshot::Opening,
};

/// Of the report's fields: a higher number has other meanings, not only more fields.
const VERSION: u32 = 1;

/// Finds out early whether the reports can be written at all, and to files of their own.
pub(super) fn check_all_writable(args: &RunArgs, inputs: &Inputs) -> anyhow::Result<()> {
    let reports = [("--report", &args.report), ("--report-html", &args.report_html)];
    for (flag, path) in reports {
        if let Some(path) = path {
            check_writable(flag, path, inputs, &args.output)?;
        }
    }
    if let (Some(report), Some(page)) = (&args.report, &args.report_html)
        && is_same_file(report, page)
        && !is_device(report)
    {
        anyhow::bail!("--report and --report-html are both {}; give each a file of its own", page.display());
    }
    Ok(())
}

/// Finds out early whether the report of this flag can be written at all, and to a file of its own.
fn check_writable(flag: &str, path: &Path, inputs: &Inputs, output: &OutputPath) -> anyhow::Result<()> {
    let other = |name: &str, file: &Path| {
        if is_same_file(path, file) && !is_device(path) {
            anyhow::bail!("{flag} {} is the {name}; give it a file of its own", path.display());
        }
        Ok(())
    };
    inputs.paths().try_for_each(|input| other("input", input))?;
    if let OutputPath::File(output) = output {
        other("output", output)?;
        other("file in which the output grows", &partial_path(output))?;
        other("file in which its records are kept", &records_path(output))?;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() {
        anyhow::bail!("{flag} {} is a directory; name a file in it", path.display());
    }
    if is_named_pipe(path) {
        anyhow::bail!(
            "{flag} {} is a named pipe, where the run would wait at its end for somebody to read it; name a file, or \
             what reads it, as in {flag} >(jq .)",
            path.display()
        );
    }
    match folder {
        Some(folder) if !folder.is_dir() => {
            anyhow::bail!("the folder {} of {flag} does not exist; create it first", folder.display())
        }
        _ => Ok(()),
    }
}

/// A pipe with a name in some folder. What this process has open, such as `/dev/stdout`, has none.
fn is_named_pipe(path: &Path) -> bool {
    fs::canonicalize(path)
        .and_then(fs::metadata)
        .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type()))
}

/// What can be written to by many, such as `/dev/null`.
fn is_device(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// All that is told of a run.
pub(super) struct Report {
    about: About,
    /// How it ended.
    ending: &'static str,
    /// Why it failed, if it did.
    error: Option<String>,
    stats: RunStats,
    engine: engine::Stats,
    /// What became of the cache file.
    cache_file: Value,
    num_unique_tokens: usize,
    /// Before the first forward pass.
    load_time: Duration,
    /// None where no model was loaded.
    memory: Option<RunMemory>,
    first_token_after: Option<Duration>,
    times: [Percentiles; 3],
    slowest: Vec<Timed>,
    moments: Vec<Moment>,
    shared: Vec<NamedPrefix>,
}

impl Report {
    /// Of a run that had nothing to do.
    pub(super) fn of_nothing(about: About, stats: RunStats) -> Self {
        Self {
            about,
            ending: ending(Stop::InputUsedUp),
            error: None,
            load_time: stats.wall,
            stats,
            engine: engine::Stats::default(),
            cache_file: Value::Null,
            num_unique_tokens: 0,
            memory: None,
            first_token_after: None,
            times: Timings::default().percentiles(),
            slowest: Vec::new(),
            moments: Vec::new(),
            shared: Vec::new(),
        }
    }

    /// Of a run that has ended.
    pub(super) fn of<R: Runner>(
        session: &Session<R>,
        about: About,
        stats: RunStats,
        ended: Result<Stop, &anyhow::Error>,
        (load_time, memory): (Duration, RunMemory),
    ) -> Self {
        Self {
            about,
            ending: ended.map_or(FAILED, ending),
            error: ended.err().map(|error| format!("{error:#}")),
            stats,
            engine: *session.engine_stats(),
            cache_file: cache_file(session),
            num_unique_tokens: session.num_unique_tokens(),
            load_time,
            memory: Some(memory),
            first_token_after: session.first_token_after,
            times: session.timings.percentiles(),
            slowest: session.timings.slowest().to_vec(),
            moments: session.timeline.moments().to_vec(),
            shared: session.largest_shared(),
        }
    }

    /// Writes it to a file as JSON.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, format!("{:#}\n", self.json()))
    }

    /// Writes it to a file as a page.
    pub(super) fn write_page(&self, path: &Path) -> anyhow::Result<()> {
        Ok(fs::write(path, page::render(self)?)?)
    }

    /// Adds it to the summary of the CI job that this run is a part of, if it is; returns what went wrong.
    pub(super) fn append_to_job(&self) -> Option<String> {
        markdown::append(self)
    }

    fn json(&self) -> Value {
        let Self { about, stats, engine, .. } = self;
        let run_time = stats.wall.saturating_sub(self.load_time);
        json!({
            "report_version": VERSION,
            "input": about.input,
            "output": about.output,
            "ending": self.ending,
            "error": self.error,
            "environment": about.environment,
            "model": about.model,
            "parameters": about.parameters,
            "num_total": stats.num_total,
            "num_requests": stats.num_done(),
            "num_failed": stats.num_failed,
            "num_kept": stats.num_kept,
            "failures": stats.failures.to_json(),
            "num_prompt_tokens": stats.num_prompt_tokens,
            "num_unique_tokens": self.num_unique_tokens,
            "num_prefilled_tokens": engine.num_prefilled_tokens(),
            "num_last_tokens": engine.num_last_tokens(),
            "num_cached_tokens": stats.num_cached_tokens,
            "num_generated_tokens": stats.num_generated_tokens,
            "num_guided_tokens": engine.num_guided_tokens,
            "guide_seconds": engine.guide_time.as_secs_f64(),
            "num_passes": engine.num_passes(),
            "num_wasted_rows": engine.num_wasted_rows(),
            "peak_rows": engine.peak_rows,
            "cache": stats.cache.as_ref().map_or(Value::Null, cache),
            "cache_file": self.cache_file,
            "prefill_seconds": engine.prefill.time.as_secs_f64(),
            "decode_seconds": engine.decode.time.as_secs_f64(),
            "first_token_seconds": self.first_token_after.map(|time| time.as_secs_f64()),
            "load_seconds": self.load_time.as_secs_f64(),
            "run_seconds": run_time.as_secs_f64(),
            "wall_seconds": stats.wall.as_secs_f64(),
            "peak_memory_bytes": stats.peak_memory_bytes,
            "memory": self.memory.map(|memory| memory_json(&memory, about)),
            "prefill_tokens_per_second": engine.prefill_tokens_per_second(),
            "decode_tokens_per_second": engine.decode_tokens_per_second(),
            "request_seconds": Map::from_iter(
                self.times.iter().map(|times| (times.name.to_owned(), times.to_json()))
            ),
            "slowest": self.slowest.iter().map(Timed::to_json).collect::<Vec<_>>(),
            "shared_prefixes": self.shared.iter().map(shared_prefix).collect::<Vec<_>>(),
            "timeline": self.moments.iter().map(|moment| moment.to_json()).collect::<Vec<_>>(),
        })
    }
}

/// What memory was divided into.
fn memory_json(memory: &RunMemory, about: &About) -> Value {
    let RunMemory { needs, budget } = memory;
    let kv_bytes_per_token = about.model.get("kv_bytes_per_token").and_then(Value::as_u64).unwrap_or(0);
    let max_kv_bytes = budget.max_kv_tokens.map(|max| (max as u64).saturating_mul(kv_bytes_per_token));
    json!({
        "weight_bytes": needs.weight_bytes,
        "working_bytes": needs.beside(),
        "max_kv_bytes": max_kv_bytes,
        "max_cache_bytes": budget.max_cache_bytes,
    })
}

const FAILED: &str = "failed";

fn ending(stop: Stop) -> &'static str {
    match stop {
        Stop::InputUsedUp => "complete",
        Stop::Interrupted => "interrupted",
        Stop::TimeUp => "time_up",
        Stop::OutputClosed => "output_closed",
    }
}

/// How a run ended, in a few words.
fn outcome(report: &Report) -> String {
    let stats = &report.stats;
    let all = match stats.num_total.filter(|_| report.ending != "complete") {
        Some(num_total) => {
            format!("{} of {}", number_text(stats.num_done()), count_text(num_total, "request"))
        }
        None => count_text(stats.num_done(), "request"),
    };
    let how = match (report.ending, stats.num_failed) {
        ("complete", 0) => "all ok".to_owned(),
        (_, num_failed) => format!("{} ok, {} failed", number_text(stats.num_ok), number_text(num_failed)),
    };
    let why = match report.ending {
        "interrupted" => ", interrupted",
        "time_up" => ", the time was up",
        "output_closed" => ", nobody read on",
        FAILED => ", then the run failed",
        _ => "",
    };
    format!("{all}: {how}{why}")
}

fn shared_prefix(prefix: &NamedPrefix) -> Value {
    let mut shared = prefix.json();
    shared["parent"] = json!(prefix.parent);
    shared
}

fn cache(usage: &CacheUsage) -> Value {
    let tiers = usage.tiers.iter().map(|(tier, usage)| {
        let usage = json!({
            "num_cached_tokens": usage.num_cached_tokens,
            "num_evictions": usage.num_evictions,
            "num_entries": usage.num_entries,
            "num_bytes": usage.num_bytes,
        });
        (tier.name().to_owned(), usage)
    });
    json!({
        "num_bytes": usage.num_bytes,
        "peak_bytes": usage.peak_bytes,
        "num_over_limit": usage.num_over_limit,
        "tiers": tiers.collect::<Map<_, _>>(),
    })
}

/// What became of the cache file.
fn cache_file<R: Runner>(session: &Session<R>) -> Value {
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
