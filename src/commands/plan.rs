//! `mlxbatch plan`: says what a run would compute and share, without loading weights.
//!
//! Owns reading the input in windows and adding the windows' plans up, for the whole and for shards. What may be shared is
//! `plan/`'s knowledge, how it is said `report`'s business; lines are judged as a run does.

mod report;
mod requests;

use std::io::{self, Write};
use std::sync::Arc;

use thiserror::Error;

use self::report::{NamedParting, Report, ShardPlan};
use self::requests::Owner;
use super::memory_needs::{BatchShape, MemoryNeeds};
use super::model::{Description, asked_dtype};
use super::run::intake::{Intake, Next, PAUSE};
use super::run::prepare::{PreparedJob, Preparer};
use super::shared_prefixes::SharedPrefixes;
use super::text_head::text_head;
use super::{Outcome, find_inputs, written};
use crate::batch::{Inputs, Kept, ReaderOptions, RequestParams, RequestReader, Split};
use crate::cli::{DEFAULT_MAX_TOKENS, DEFAULT_PREFILL_CHUNK, PlanArgs};
use crate::commands::identity::ComputedModel;
use crate::mlx::{ComputeDevice, free_memory_bytes};
use crate::plan::{Parting, PlanOptions, PlanPrompt, WindowPlan, num_unique_held, repeats, window_is_full};
use crate::snapshot::{CacheMode, Snapshot, SnapshotOptions};
use crate::terminal::{eprint_line, shown_json, shown_lines};
use crate::text::Tokenizer;

/// Plans a file: the report on standard output, problems and warnings on standard error.
pub fn plan(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let planned = print_plan(args);
    match planned.as_ref().err().and_then(|error| error.downcast_ref::<ClosedOutput>()) {
        Some(ClosedOutput) => Ok(Outcome::OutputClosed),
        None => planned,
    }
}

fn print_plan(args: &PlanArgs) -> anyhow::Result<Outcome> {
    let served_model = Some(args.model.model.clone());
    let served_adapter = args.model.adapter_name();
    let options = ReaderOptions { served_model, served_adapter, ..args.rows.options()? };
    let inputs = find_inputs(&args.input, args.quiet)?;
    let reader = RequestReader::open(&inputs, options.clone())?;
    let model = Description::read(&args.model, args.quiet)?;
    for warning in model.text.warnings() {
        say(args, &format!("mlxbatch: warning: {warning}"));
    }
    let device = ComputeDevice::current();
    let dtype = device.compute_dtype(asked_dtype(args.dtype), model.stored_dtype);
    let snapshot = match &args.persist_cache {
        None => None,
        Some(path) => {
            let Description { name, spec, files, adapter, .. } = &model;
            let computed = ComputedModel { name, spec, files, adapter: adapter.as_ref(), dtype };
            // It is only looked at.
            let options = SnapshotOptions { mode: CacheMode::Unsafe, max_bytes: None };
            let snapshot = Snapshot::open(path, options, |known| computed.identity(known))?;
            if let Some(reason) = snapshot.opening().why_cold() {
                say(args, &format!("mlxbatch: warning: nothing of {} can be used: {reason}", path.display()));
            }
            Some(snapshot)
        }
    };

    let flags = RequestParams { max_tokens: args.max_tokens, ..RequestParams::default() };
    let preparer = Arc::new(Preparer {
        end_ids: Arc::from(model.text.end_ids()),
        fallback: flags.or(&model.defaults),
        default_max_tokens: DEFAULT_MAX_TOKENS,
        max_context: model.spec.max_context,
        max_long_context: model.spec.context.max_long_context(),
        vocab_size: model.spec.vocab_size,
        has_checkpoints: false,
        reply: Default::default(),
    });
    let planner = Planner { args, model: &model, preparer, snapshot: snapshot.as_ref() };
    if args.verbose {
        print(requests::TITLES)?;
    }
    let (reader, totals) = planner.read_through(reader, args.verbose, |problem| say(args, problem))?;
    if args.verbose {
        print("\n")?;
    }
    for warning in reader.warnings().texts() {
        say(args, &format!("mlxbatch: warning: {warning}"));
    }
    if reader.num_requests() == 0 {
        say(args, &format!("mlxbatch: warning: {} holds no requests", reader.name()));
    }
    let shards = match args.shards {
        Some(count) => planner.shards(&inputs, &options, count)?,
        None => Vec::new(),
    };

    let shape = BatchShape { batch_size: args.batch_size, prefill_chunk: DEFAULT_PREFILL_CHUNK };
    let report = Report {
        input: reader.name(),
        model: model.name.clone(),
        dtype: dtype.name(),
        bytes_per_token: model.spec.kv_bytes_per_token(dtype.num_bytes()) as u64,
        batch_size: args.batch_size,
        num_requests: reader.num_requests(),
        num_failed: totals.num_failed,
        num_later_turns: totals.num_later_turns,
        num_windows: totals.num_windows,
        num_prompt_tokens: totals.num_prompt_tokens,
        num_unique_tokens: totals.num_unique_tokens,
        num_repeated_tokens: totals.num_repeated_tokens,
        parting: totals.parting.map(|(_, parting)| parting),
        longest_prompt_tokens: totals.longest_prompt_tokens,
        num_stored_tokens: snapshot.as_ref().map(|_| totals.num_stored_tokens),
        max_live_tokens: totals.max_live_tokens,
        shards,
        memory: MemoryNeeds::of(&model, device, dtype, shape),
        free_bytes: free_memory_bytes(),
        largest_shared: totals.shared.largest(),
    };
    let text =
        if args.json { shown_json(&format!("{:#}\n", report.json())) } else { shown_lines(&report.text()) };
    let outcome = if report.num_failed > 0 { Outcome::SomeFailed } else { Outcome::Done };
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()), outcome)
}

/// Whoever read what is printed has read enough.
#[derive(Debug, Error)]
#[error("standard output was closed")]
struct ClosedOutput;

fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()), Outcome::Done)? {
        Outcome::OutputClosed => Err(ClosedOutput.into()),
        _ => Ok(()),
    }
}

fn say(args: &PlanArgs, text: &str) {
    if !args.quiet {
        eprint_line(text);
    }
}

/// What reading an input as a plan needs.
struct Planner<'a> {
    args: &'a PlanArgs,
    model: &'a Description,
    preparer: Arc<Preparer>,
    snapshot: Option<&'a Snapshot>,
}

impl Planner<'_> {
    /// Plans all that a reader has, window by window, and prints a line for each request if that is asked for.
    fn read_through(
        &self,
        reader: RequestReader,
        lists_requests: bool,
        say: impl Fn(&str),
    ) -> anyhow::Result<(RequestReader, Totals<'_>)> {
        let batch_size = self.args.batch_size as usize;
        let mut totals = Totals::new(self.model.text.tokenizer(), batch_size, self.snapshot);
        let mut window = Window { owners: lists_requests.then(Vec::new), ..Window::default() };
        let (preparer, text) = (Arc::clone(&self.preparer), Arc::clone(&self.model.text));
        let mut intake = Intake::new(reader, preparer, text, Kept::default());
        loop {
            match intake.next(PAUSE)? {
                Next::Ready(job) => {
                    totals.num_later_turns += num_later_turns(&job);
                    window.add(*job);
                }
                Next::Failed(record) => {
                    totals.num_failed += 1;
                    record.failure().into_iter().for_each(|failure| say(&failure.message));
                }
                Next::Pending => {}
                Next::End => break,
            }
            if window_is_full(window.prompts.len(), window.num_tokens) {
                totals.add(&window)?;
                window.clear();
            }
        }
        totals.add(&window)?;
        Ok((intake.into_reader(), totals))
    }

    /// What each of so many shards would compute, as the runs of them would split the input.
    fn shards(&self, inputs: &Inputs, options: &ReaderOptions, count: u32) -> anyhow::Result<Vec<ShardPlan>> {
        let max_tokens = self.args.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let split = Split::of(inputs, options, count, max_tokens)?;
        let mut plans = Vec::new();
        for number in 1..=count {
            let lines = split.shard(number);
            let options = ReaderOptions { shard: Some(Arc::new(lines)), ..options.clone() };
            let (reader, totals) = self.read_through(RequestReader::open(inputs, options)?, false, |_| {})?;
            plans.push(ShardPlan {
                num_requests: reader.num_requests(),
                num_prompt_tokens: totals.num_prompt_tokens,
                num_unique_tokens: totals.num_unique_tokens,
                num_stored_tokens: totals.num_stored_tokens,
            });
        }
        Ok(plans)
    }
}

/// Answers of a line that are asked for when another is there.
fn num_later_turns(job: &PreparedJob) -> u64 {
    let num_later = job.dialogue.as_ref().map_or(0, |dialogue| dialogue.num_turns() - 1);
    (num_later * job.requests.len()) as u64
}

/// What is kept of a request until its window is planned.
struct Planned {
    tokens: Vec<u32>,
    /// Of them, how many may be shared.
    num_reusable: usize,
    max_new_tokens: usize,
}

/// Requests that are planned together.
#[derive(Default)]
struct Window {
    prompts: Vec<Planned>,
    /// Whose each of the prompts is, where that is asked for.
    owners: Option<Vec<Owner>>,
    num_tokens: usize,
}

impl Window {
    fn clear(&mut self) {
        self.prompts.clear();
        self.owners.iter_mut().for_each(Vec::clear);
        self.num_tokens = 0;
    }

    fn add(&mut self, job: PreparedJob) {
        if let Some(owners) = &mut self.owners {
            let head = &job.head;
            let owner = Owner { line: head.file.line_name(head.line), custom_id: head.custom_id.clone() };
            owners.extend(job.requests.iter().map(|_| owner.clone()));
        }
        let planned = job.requests.into_iter().map(|request| {
            let generation = request.generation;
            Planned {
                num_reusable: generation.num_reusable(),
                tokens: generation.prompt,
                max_new_tokens: generation.max_new_tokens,
            }
        });
        planned.for_each(|prompt| self.add_prompt(prompt));
    }

    fn add_prompt(&mut self, prompt: Planned) {
        self.num_tokens += prompt.tokens.len();
        self.prompts.push(prompt);
    }
}

/// What the windows come to.
struct Totals<'a> {
    tokenizer: &'a Tokenizer,
    batch_size: usize,
    num_failed: u64,
    /// Turns that follow answers: their prompts are not known yet.
    num_later_turns: u64,
    num_windows: u64,
    num_prompt_tokens: u64,
    num_unique_tokens: u64,
    /// Those of them that come again behind different beginnings.
    num_repeated_tokens: u64,
    /// Where prompts part that have most of these, and how many their window has.
    parting: Option<(usize, NamedParting)>,
    longest_prompt_tokens: u64,
    /// Those of the unique tokens that the cache file has.
    num_stored_tokens: u64,
    snapshot: Option<&'a Snapshot>,
    max_live_tokens: u64,
    shared: SharedPrefixes,
}

impl<'a> Totals<'a> {
    fn new(tokenizer: &'a Tokenizer, batch_size: usize, snapshot: Option<&'a Snapshot>) -> Self {
        Self {
            tokenizer,
            batch_size,
            num_failed: 0,
            num_later_turns: 0,
            num_windows: 0,
            num_prompt_tokens: 0,
            num_unique_tokens: 0,
            num_repeated_tokens: 0,
            parting: None,
            longest_prompt_tokens: 0,
            num_stored_tokens: 0,
            snapshot,
            max_live_tokens: 0,
            shared: SharedPrefixes::default(),
        }
    }

    fn add(&mut self, window: &Window) -> anyhow::Result<()> {
        if window.prompts.is_empty() {
            return Ok(());
        }
        let prompts: Vec<PlanPrompt> = window
            .prompts
            .iter()
            .map(|Planned { tokens, num_reusable, max_new_tokens }| PlanPrompt {
                tokens,
                num_reusable: *num_reusable,
                boundaries: &[],
                max_new_tokens: *max_new_tokens,
            })
            .collect();
        let plan = WindowPlan::new(&prompts, &PlanOptions::default());
        self.num_windows += 1;
        self.num_prompt_tokens += plan.num_prompt_tokens as u64;
        self.num_unique_tokens += plan.num_unique_tokens as u64;
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        self.longest_prompt_tokens = self.longest_prompt_tokens.max(longest as u64);
        self.max_live_tokens = self.max_live_tokens.max(plan.max_live_tokens(self.batch_size) as u64);
        if let Some(snapshot) = self.snapshot {
            let held: Vec<(&[u32], usize)> = prompts
                .iter()
                .map(|prompt| (prompt.tokens, snapshot.num_resumable(&prompt.tokens[..prompt.num_reusable])))
                .collect();
            self.num_stored_tokens += num_unique_held(&held) as u64;
        }
        let repeats = repeats(&prompts, &plan.order);
        self.num_repeated_tokens += repeats.num_tokens as u64;
        if let Some(Parting { prompt, position }) = repeats.example
            && self.parting.as_ref().is_none_or(|(most, _)| repeats.num_tokens > *most)
        {
            let text = text_head(self.tokenizer, &prompts[prompt].tokens[position..]);
            self.parting = Some((repeats.num_tokens, NamedParting { position: position as u64, text }));
        }
        self.shared.add(&plan.largest_shared, |index| prompts[index].tokens, self.tokenizer);
        window.owners.iter().try_for_each(|owners| print(&requests::lines(owners, &prompts, &plan.order)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn totals_of(windows: &[&[&[u32]]]) -> (u64, u64, Vec<(u64, u64, u64)>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
        let tokenizer = Tokenizer::from_folder(&folder).expect("the fixture loads");
        let mut totals = Totals::new(&tokenizer, 4, None);
        for prompts in windows {
            let mut window = Window::default();
            for prompt in *prompts {
                window.add_prompt(Planned {
                    tokens: prompt.to_vec(),
                    num_reusable: prompt.len() - 1,
                    max_new_tokens: 5,
                });
            }
            totals.add(&window).expect("nothing is printed");
        }
        let (num_windows, num_unique) = (totals.num_windows, totals.num_unique_tokens);
        let shared = totals.shared.largest();
        let shared = shared.iter().map(|named| (named.num_tokens, named.num_users, named.num_saved_tokens));
        (num_windows, num_unique, shared.collect())
    }

    #[test]
    fn a_prefix_of_several_windows_is_one_prefix() {
        let window: &[&[u32]] = &[&[1, 2, 3, 4], &[1, 2, 3, 5], &[9, 9]];
        assert_eq!(totals_of(&[window]), (1, 7, vec![(3, 2, 3)]));
        assert_eq!(totals_of(&[window, &[], window]), (2, 14, vec![(3, 4, 6)]));
        assert_eq!(totals_of(&[]), (0, 0, Vec::new()));
    }
}
