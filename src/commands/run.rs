//! `mlxbatch run`: answers every request of a file.
//!
//! Reads as a table of contents: what can fail for want of a file fails before the model loads,
//! then the model, then the loop, then what is said about it. Each stage is in a module below.

mod model;
pub(super) mod prepare;
mod report;
mod session;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use self::{model::OpenModel, session::Session};
use super::{Outcome, interrupt::Interrupt};
use crate::{
    batch::{
        Ending, Flow, Progress, ReaderOptions, RequestReader, ResultWriter, Served, count_requests, summary,
    },
    cli::RunArgs,
    mlx,
};

/// Runs a batch.
pub fn run(args: &RunArgs, is_verbose: bool) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let served_model = Some(args.model.model.clone());
    let mut reader =
        RequestReader::open(&args.input, ReaderOptions { served_model, ..ReaderOptions::default() })?;
    let num_total = count_requests(&args.input)?;
    let mut writer = ResultWriter::create(&args.output, &args.input)?;
    if let Some(path) = &args.report {
        report::check_writable(path)?;
    }

    let model = OpenModel::open(args, is_verbose)?;
    let load_time = started.elapsed();
    let interrupt = Interrupt::install()?;
    let progress = Progress::new(num_total, args.quiet);
    for warning in writer.warnings() {
        progress.say(&format!("mlxbatch: warning: {warning}"));
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let served = Served { model: model.name.clone(), created };
    let mut session = Session::new(model, args, served, num_total, progress);
    let looped = session.run(&mut reader, &mut writer, &interrupt);

    let engine_stats = *session.engine_stats();
    let Session { mut stats, progress, .. } = session;
    progress.finish();
    stats.wall = started.elapsed();
    stats.peak_memory_bytes = Some(mlx::peak_memory_bytes());
    let flow = match looped {
        Ok(flow) => flow,
        Err(error) => return Err(keep_finished(error, writer)),
    };
    let ending = if interrupt.is_set() { Ending::Interrupted } else { Ending::Complete };
    let published = match ending {
        Ending::Interrupted => writer.finish_interrupted()?,
        Ending::Complete => writer.finish()?,
    };
    if let Some(path) = &args.report {
        report::write(path, &stats, &engine_stats, load_time)
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    if !args.quiet {
        for warning in reader.warnings().texts() {
            eprint_line(&format!("mlxbatch: warning: {warning}"));
        }
        if stats.num_done() == 0 && ending == Ending::Complete && flow == Flow::Open {
            eprint_line(&format!("mlxbatch: warning: {} holds no requests", reader.name()));
        }
        for line in summary(&stats, ending, &published.place) {
            eprint_line(&line);
        }
    }
    Ok(match (ending, flow, published.flow) {
        (Ending::Interrupted, _, _) => Outcome::Interrupted,
        (_, Flow::Closed, _) | (_, _, Flow::Closed) => Outcome::OutputClosed,
        _ if stats.num_failed > 0 => Outcome::SomeFailed,
        _ => Outcome::Done,
    })
}

/// A failed run loses nothing that is done: says where it is.
fn keep_finished(error: anyhow::Error, writer: ResultWriter) -> anyhow::Error {
    match writer.abandon() {
        Ok(published) if published.num_results > 0 => {
            error.context(format!("the run failed; its finished results are in {}", published.place))
        }
        _ => error,
    }
}

/// A closed standard error is no reason to fail.
fn eprint_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
