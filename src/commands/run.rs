//! `mlxbatch run`: answers every request of a file.
//!
//! Reads as a table of contents: what can fail for want of a file fails before the model loads,
//! then the model, then the loop, then what is said about it. Each stage is in a module below.

mod advice;
mod budget;
pub(super) mod intake;
mod job;
mod model;
mod overdue;
mod persist;
mod places;
pub(super) mod prepare;
mod report;
mod resume;
mod session;
mod shard;
mod timeline;
mod times;
mod window;

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use self::{
    advice::{BatchLimits, larger_batch},
    intake::Intake,
    model::DescribedModel,
    report::{About, Report},
    session::{Session, Stop},
};
use super::{Outcome, find_inputs, interrupt::Interrupt};
use crate::{
    batch::{
        BatchError, Ending, Flow, OutputPath, Progress, ProgressKind, ReaderOptions, RequestReader,
        ResultWriter, RunStats, Served, count_requests, shown_url, summary, upload,
    },
    cli::{MAX_BATCH_SIZE, ProgressArg, RunArgs},
    mlx,
    terminal::{eprint_line, speak_json},
};

/// Runs a batch.
pub fn run(args: &RunArgs, is_verbose: bool) -> anyhow::Result<Outcome> {
    mlx::restart_with_better_kernels();
    if args.progress == ProgressArg::Json {
        speak_json();
    }
    let started = Instant::now();
    model::check_address_space(0)?;
    model::check_threads()?;
    if args.upload.is_some() && !matches!(args.output, OutputPath::File(_)) {
        anyhow::bail!("--upload sends a file; name one with --output, which is {}", args.output.name());
    }
    let inputs = find_inputs(&args.input, args.quiet)?;
    let mut options = ReaderOptions {
        served_model: Some(args.model.model.clone()),
        served_adapter: args.model.adapter_name(),
        keeps_input: args.keep_input,
        ..args.rows.options()?
    };
    options.shard = shard::lines_of(args, &inputs, &options)?;
    let reader = RequestReader::open(&inputs, options.clone())?;
    let num_total = count_requests(&inputs, &options)?;
    report::check_all_writable(args, &inputs)?;
    persist::check(args, &inputs)?;
    let mut writer = ResultWriter::create(&args.output, &inputs, args.resume)?;
    writer = writer.in_format(args.format.into())?;
    let interrupt = Interrupt::install(writer.partial_path())?;
    warn(args, writer.warnings());

    let model = DescribedModel::read(args, &interrupt)?;
    places::check_model_is_spared(args, model.files())?;
    model.check_limits(args)?;
    let served_name = model.name().to_owned();
    let preparer = model.preparer(args);
    let manifest = model.manifest(&preparer, args, &options)?;
    let about = About::of(args, &inputs, &model, &preparer, &manifest);
    let kept = resume::begin(&mut writer, &manifest, args, (&inputs, &options))?;
    let stats = RunStats {
        num_total,
        num_ok: kept.num_ok,
        num_failed: kept.num_failed,
        num_kept: kept.num_kept(),
        ..RunStats::default()
    };
    if kept.num_kept() > 0 && kept.num_left == 0 {
        let (outcome, stats) = resume::nothing_left(writer, stats, args, started)?;
        say_all(args, &Report::of_nothing(about, stats))?;
        send(args)?;
        return Ok(outcome);
    }
    let mut intake = Intake::new(reader, Arc::new(preparer), Arc::clone(model.text()), kept);
    let model = intake.during(|| model.load(args, is_verbose))?;
    let load_time = started.elapsed();
    let (memory, kv_bytes_per_token) = (model.memory, model.kv_bytes_per_token as usize);
    let progress = Progress::new(num_total, progress_kind(args));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let is_repeatable = args.deterministic_ids;
    let served = Served { model: served_name, created: if is_repeatable { 0 } else { now }, is_repeatable };
    let mut session = Session::new(model, intake, args, served, stats, progress);
    session.deadline = args.max_time.map(|time| started + time);
    interrupt.heed();
    let looped = session.run(&mut writer, &interrupt);

    session.progress.finish();
    let told = |session: &mut Session<mlx::MlxRunner>| {
        session.note_moment();
        let mut stats = session.stats.clone();
        stats.cache = session.cache_usage();
        stats.num_unique_tokens = Some(session.num_unique_tokens() as u64);
        stats.wall = started.elapsed();
        stats.peak_memory_bytes = Some(mlx::peak_memory_bytes());
        stats.weight_bytes = memory.needs.weight_bytes;
        stats.max_memory_bytes = args.compute.max_memory;
        stats
    };
    let stop = match looped {
        Ok(stop) => stop,
        Err(error) => {
            session.save_cache();
            let stats = told(&mut session);
            // What went wrong with the run is told, whatever becomes of this.
            let reported =
                say_all(args, &Report::of(&session, about, stats, Err(&error), (load_time, memory)));
            warn(args, reported.err().map(|error| format!("{error:#}")).as_slice());
            return Err(keep_finished(error, writer));
        }
    };
    let (ending, published) = match stop {
        Stop::Interrupted | Stop::TimeUp => {
            let can_resume = writer.partial_path().is_some() && inputs.stream().is_none();
            let why = if stop == Stop::TimeUp { "the time was up" } else { "interrupted" };
            (Ending::Interrupted { can_resume, why }, writer.abandon()?)
        }
        Stop::InputUsedUp | Stop::OutputClosed => {
            let keeps_manifest = resume::keeps_manifest(&session.stats, args);
            (Ending::Complete, writer.finish(keeps_manifest)?)
        }
    };
    // The results come first: they are safe by now.
    session.save_cache();
    let stats = told(&mut session);
    let reader = session.intake.reader();
    warn(args, &reader.warnings().texts());
    let saver = session.saver.as_ref();
    warn(args, &saver.map(|saver| saver.warnings(session.engine())).unwrap_or_default());
    // That a shard has no lines is said at its start.
    if stats.num_done() == 0 && stop == Stop::InputUsedUp && args.shard.is_none() {
        warn(args, &[format!("{} holds no requests", reader.name())]);
    }
    {
        let is_nothing_there = stats.num_done() == 0 && matches!(ending, Ending::Interrupted { .. });
        let place = if is_nothing_there { args.output.name() } else { published.place };
        let mut lines = summary(&stats, ending, &place);
        lines.extend(saver.and_then(|saver| saver.summary(session.engine())));
        let limits = BatchLimits {
            batch_size: args.compute.batch_size as usize,
            max_batch_size: MAX_BATCH_SIZE as usize,
            kv_bytes_per_token,
            max_kv_tokens: memory.budget.max_kv_tokens,
        };
        let advice = larger_batch(session.engine_stats(), limits);
        lines.extend(advice.map(|advice| format!("  advice     {advice}")));
        session.progress.end(&stats, &lines);
    }
    let outcome = outcome(&stats, args);
    // Last, since the results are safe by now and a report is not worth losing the summary.
    say_all(args, &Report::of(&session, about, stats, Ok(stop), (load_time, memory)))?;
    if stop == Stop::InputUsedUp {
        send(args)?;
    }
    Ok(match (stop, published.flow) {
        (Stop::Interrupted, _) => Outcome::Interrupted,
        (Stop::TimeUp, _) => Outcome::TimeUp,
        (Stop::OutputClosed, _) | (_, Flow::Closed) => Outcome::OutputClosed,
        _ => outcome,
    })
}

/// Sends the results where they are asked for.
fn send(args: &RunArgs) -> anyhow::Result<()> {
    match (&args.upload, &args.output) {
        (Some(url), OutputPath::File(path)) => {
            upload(path, url)?;
            if !args.quiet {
                eprint_line(&format!("mlxbatch: {} has been sent to {}", path.display(), shown_url(url)));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Writes the reports that are asked for.
fn say_all(args: &RunArgs, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &args.report {
        report.write(path).with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    if let Some(path) = &args.report_html {
        report.write_page(path).with_context(|| format!("cannot write the page to {}", path.display()))?;
    }
    warn(args, report.append_to_job().as_slice());
    Ok(())
}

/// How a run is shown.
fn progress_kind(args: &RunArgs) -> ProgressKind {
    match args.progress {
        _ if args.quiet => ProgressKind::Quiet,
        ProgressArg::Auto => ProgressKind::Auto,
        ProgressArg::Plain => ProgressKind::Plain,
        ProgressArg::Json => ProgressKind::Json,
        ProgressArg::None => ProgressKind::None,
    }
}

/// Of a run that has come to the end of its input.
fn outcome(stats: &RunStats, args: &RunArgs) -> Outcome {
    match args.fail_on_errors.is_exceeded(stats.num_failed, stats.num_done()) {
        true => Outcome::SomeFailed,
        false => Outcome::Done,
    }
}

/// A failed run loses nothing that is done: says where it is.
fn keep_finished(error: anyhow::Error, writer: ResultWriter) -> anyhow::Error {
    // An output that takes nothing more says itself what has become of it.
    if let Some(BatchError::WriteOutput { .. } | BatchError::WriteStream { .. }) = error.downcast_ref() {
        return error;
    }
    match writer.abandon() {
        Ok(published) if published.num_results > 0 => error.context(format!(
            "the run failed; its finished results are in {}, and the same command with --resume goes on from \
             there",
            published.place
        )),
        _ => error,
    }
}

fn warn(args: &RunArgs, warnings: &[String]) {
    if !args.quiet {
        warnings.iter().for_each(|warning| eprint_line(&format!("mlxbatch: warning: {warning}")));
    }
}
