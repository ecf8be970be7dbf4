//! `--persist-cache`: opening the cache file of a run, saving it, and what is said about it.
//!
//! Owns when a run saves and which troubles end it: those that are seen before anything is computed.
//! The file itself is `snapshot`'s business.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::places::is_same_file;
use crate::{
    batch::{Inputs, OutputPath, number_text, partial_path, records_path, size_text},
    cli::{CacheModeArg, PersistArgs, RunArgs},
    commands::{identity::ComputedModel, interrupt::Interrupt},
    engine::{Engine, Runner},
    snapshot::{CacheMode, Opening, SaveReport, Snapshot, SnapshotOptions},
    terminal::eprint_line,
};

/// A lock that is held for less is not worth a word.
const MIN_TOLD: Duration = Duration::from_secs(1);

/// Checks what can be checked before a model is looked for.
pub(super) fn check(args: &RunArgs, inputs: &Inputs) -> anyhow::Result<()> {
    let Some(path) = &args.persist.persist_cache else { return Ok(()) };
    if args.compute.cache_bytes == Some(0) {
        bail!("--persist-cache keeps what the prompt cache holds, and --cache-bytes 0 has it hold nothing");
    }
    let output = match &args.output {
        OutputPath::File(output) => Some(output.as_path()),
        OutputPath::Stdout => None,
    };
    let (growing, records) = (output.map(partial_path), output.map(records_path));
    let others = [
        (output, "the output"),
        (growing.as_deref(), "where the output grows"),
        (args.report.as_deref(), "the report"),
        (args.report_html.as_deref(), "the report's page"),
        (records.as_deref(), "where records are kept"),
    ];
    let inputs = inputs.paths().map(|input| (Some(input), "the input"));
    for (other, what) in inputs.chain(others) {
        if other.is_some_and(|other| is_same_file(path, other)) {
            bail!("--persist-cache {} is {what}; give it a file of its own", path.display());
        }
    }
    Snapshot::check(path, options(&args.persist))
        .with_context(|| format!("--persist-cache {} cannot be used", path.display()))
}

fn options(args: &PersistArgs) -> SnapshotOptions {
    let mode = match args.cache_mode {
        CacheModeArg::Rw => CacheMode::ReadWrite,
        CacheModeArg::Ro => CacheMode::ReadOnly,
        CacheModeArg::Refresh => CacheMode::Refresh,
        CacheModeArg::Unsafe => CacheMode::Unsafe,
    };
    SnapshotOptions { mode, max_bytes: args.persist_max_bytes }
}

/// Opens the cache file of a model, if one is asked for.
pub(super) fn open(
    args: &PersistArgs,
    model: &ComputedModel<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<Option<Snapshot>> {
    let Some(path) = &args.persist_cache else { return Ok(None) };
    let mut snapshot = Snapshot::open(path, options(args), |known| model.identity(known))?;
    if let Some(missing) = snapshot.opening().why_cold().filter(|_| args.require_cache) {
        bail!("--require-cache: {} cannot be restored, {missing}", path.display());
    }
    let (interrupt, shown) = (interrupt.clone(), path.display().to_string());
    let mut is_told = false;
    snapshot.on_wait(move |waited| {
        if waited >= MIN_TOLD && !std::mem::replace(&mut is_told, true) {
            eprint_line(&format!("mlxbatch: waiting for another process that has the lock of {shown}"));
        }
        // A run that was interrupted saves where it can do so at once.
        waited < MIN_TOLD || !interrupt.is_set()
    });
    Ok(Some(snapshot))
}

/// What to warn of when a run begins.
pub(super) fn opening_warnings(snapshot: &Snapshot) -> Vec<String> {
    let path = snapshot.path().display();
    let open_to_others = snapshot.is_readable_by_others().then(|| {
        format!(
            "{path} can be read by others, and tells what was in prompts: `chmod 600 {path}` keeps it to you"
        )
    });
    let of_content = match snapshot.opening() {
        Opening::OtherModel { difference } => Some(format!(
            "{path} holds the cache of another model ({difference}): this run starts cold and saves nothing; name \
             another file, or replace it with --cache-mode refresh"
        )),
        Opening::Damaged { reason } if snapshot.can_save() => {
            Some(format!("{path} is damaged, {reason}: this run starts cold and replaces it"))
        }
        Opening::Damaged { reason } => Some(format!("{path} is damaged, {reason}: this run starts cold")),
        Opening::New | Opening::Restored { .. } | Opening::Refreshed => snapshot.older_because().map(|reason| {
            format!("what was last saved to {path} is damaged, {reason}: this run starts with what was saved before")
        }),
    };
    of_content.into_iter().chain(open_to_others).collect()
}

/// Saves a run's cache file when it is time.
#[derive(Debug)]
pub(super) struct Saver {
    every: Duration,
    last_try: Instant,
    saved: Totals,
    /// Of the last save, if it failed.
    failure: Option<String>,
}

/// What all saves of a run come to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    pub num_saves: usize,
    pub num_new_tokens: usize,
    pub num_new_bytes: u64,
    pub num_tokens: usize,
    pub num_tokens_beyond_index: usize,
    pub file_bytes: u64,
    pub seconds: f64,
}

impl Saver {
    pub(super) fn new(args: &PersistArgs) -> Self {
        Self { every: args.persist_every, last_try: Instant::now(), saved: Totals::default(), failure: None }
    }

    /// Whether it is time for a save while the run goes on.
    pub(super) fn is_due<R: Runner>(&self, engine: &Engine<R>) -> bool {
        let is_time = !self.every.is_zero() && self.last_try.elapsed() >= self.every;
        (is_time || engine.has_much_unsaved()) && can_save(engine)
    }

    /// Saves; a failure is kept to be told of, and leaves the file as it was.
    pub(super) fn save<R: Runner>(&mut self, engine: &mut Engine<R>) {
        if !can_save(engine) {
            return;
        }
        let started = Instant::now();
        match engine.save_snapshot() {
            Ok(SaveReport {
                num_new_tokens,
                num_new_bytes,
                num_tokens,
                num_tokens_beyond_index,
                file_bytes,
                ..
            }) => {
                self.saved.num_tokens_beyond_index += num_tokens_beyond_index;
                self.failure = None;
                self.saved.num_saves += 1;
                self.saved.num_new_tokens += num_new_tokens;
                self.saved.num_new_bytes += num_new_bytes;
                self.saved.num_tokens = num_tokens;
                self.saved.file_bytes = file_bytes;
            }
            Err(error) => self.failure = Some(error.to_string()),
        }
        self.last_try = Instant::now();
        self.saved.seconds += started.elapsed().as_secs_f64();
    }

    pub(super) fn totals(&self) -> Totals {
        self.saved
    }

    /// What to warn of when the run has ended.
    pub(super) fn warnings<R: Runner>(&self, engine: &Engine<R>) -> Vec<String> {
        let mut warnings = Vec::new();
        let Some(snapshot) = engine.snapshot() else { return warnings };
        let path = snapshot.path().display();
        if let Some(failure) = &self.failure {
            warnings.push(format!(
                "{failure}; the results are not touched by that, but the next run starts colder"
            ));
        }
        if self.saved.num_tokens_beyond_index > 0 {
            warnings.push(format!(
                "{path} holds as many tokens as one file can: {} that were used longest ago are not kept; name another \
                 file for other prompts",
                number_text(self.saved.num_tokens_beyond_index as u64)
            ));
        }
        if engine.stats().num_without_token > 0 {
            warnings.push(format!("some of what was computed are no numbers: that was not saved to {path}"));
        }
        match snapshot.num_damaged() {
            0 => {}
            1 => warnings.push(format!(
                "a prefix of {path} was damaged and has been computed again; see mlxbatch cache verify"
            )),
            num_damaged => warnings.push(format!(
                "{num_damaged} prefixes of {path} were damaged and have been computed again; see mlxbatch cache verify"
            )),
        }
        let num_restored = engine.persist_stats().num_restored_tokens;
        if let Opening::Restored { num_tokens: num_tokens @ 1.., .. } = snapshot.opening()
            && num_restored == 0
            && engine.stats().num_admitted > 0
        {
            warnings.push(format!(
                "{path} holds {} tokens, and no prompt of this run begins with any of them",
                number_text(*num_tokens as u64)
            ));
        }
        warnings
    }

    /// The line of the summary.
    pub(super) fn summary<R: Runner>(&self, engine: &Engine<R>) -> Option<String> {
        let snapshot = engine.snapshot()?;
        let stored = match snapshot.opening() {
            Opening::Restored { num_tokens, .. } => format!(
                "{} of {} stored tokens restored",
                number_text(engine.persist_stats().num_restored_tokens as u64),
                number_text(*num_tokens as u64)
            ),
            _ => "cold start".to_owned(),
        };
        let saved = match self.saved {
            _ if !snapshot.can_save() => "nothing saved".to_owned(),
            Totals { num_saves: 0, .. } => "not saved".to_owned(),
            Totals { num_new_tokens, file_bytes, .. } => {
                format!(
                    "{} new ones saved, {} in all",
                    number_text(num_new_tokens as u64),
                    size_text(file_bytes)
                )
            }
        };
        Some(format!("  cache      {}: {stored}, {saved}", snapshot.path().display()))
    }
}

fn can_save<R: Runner>(engine: &Engine<R>) -> bool {
    engine.snapshot().is_some_and(Snapshot::can_save)
}
