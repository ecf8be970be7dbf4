//! Flags and help, exactly as typed.
//!
//! Owns names, ranges, defaults and wording of the command line; man pages and completions are
//! generated from here and nowhere else. What a flag does is the command's business.

mod input;
mod merge;
mod model;
mod output;
mod persist;
mod reply;
mod shard;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};

pub use self::input::InputArgs;
pub use self::merge::MergeResultsArgs;
pub use self::model::ModelArgs;
use self::output::PROGRESS_HELP;
pub use self::output::{FormatArg, ProgressArg};
pub use self::values::{MAX_BATCH_SIZE, Tolerance};
use crate::batch::{InputPath, MAX_SHARDS, OutputPath, RequestParams, Shard};

pub use persist::{
    CacheCommand, CacheModeArg, InspectArgs, MergeArgs, PersistArgs, PruneArgs, TierArg, VerifyArgs,
};

/// Small enough for any Mac, good enough to be useful; what `mlx-lm` takes as well.
pub const DEFAULT_MODEL: &str = "mlx-community/Llama-3.2-3B-Instruct-4bit";

/// Names the model where `--model` does not.
const MODEL_VARIABLE: &str = "MLXBATCH_MODEL";

/// What a hub repository is taken at without `--revision`.
pub const DEFAULT_REVISION: &str = "main";

/// The limit on an answer where request, flag and model say nothing.
pub const DEFAULT_MAX_TOKENS: u32 = 1024;

/// Wide enough to use a GPU well; 32 conversations of 1,000 tokens are 3.5 GB of KV for the
/// default model.
pub const DEFAULT_BATCH_SIZE: u32 = 32;

pub const DEFAULT_PREFILL_CHUNK: u32 = 2048;

const EXIT_CODES: &str = "\
Exit codes:
  0    all requests are done
  1    a fatal error: nothing to read, no model, no room to write
  2    the command line cannot be understood
  3    finished, but some lines failed, more than --fail-on-errors allows; their output lines say why
  4    the time of --max-time was up; what was done is kept
  130  interrupted by Ctrl-C; what was done is kept";

/// What is trusted and what is not, as the manual says it; a paragraph each.
pub const SECURITY: &[&str] = &[
    "Trusted are the command line, the environment, the folders that they name, and every process of the same user. \
     Not trusted is what others wrote: all files of a model or an adapter, lines of the input, what a hub answers, and cache files \
     that others could write to.",
    "A model is data. Nothing in it is run as code: weights are safetensors or GGUF, never pickles, and no Python is \
     looked at. Chat templates run without files and network, on a stack and with fuel, time and memory that are \
     bounded; so do those that requests bring. Names in all of these reach neither other folders nor the terminal's \
     controls.",
    "What is wrong in a model or a cache file is an error that names the file, what is wrong in a line an error line. \
     Neither makes the program read or write elsewhere, wait for ever, or take memory far beyond the size of what is \
     read. A crash that a file causes is a bug: please report it.",
    "A cache file tells what was in prompts. It is made readable by its owner alone, and it is believed only where \
     nobody else could have written to it: its checksums find damage, not forgery, \
     and other KV gives other answers. --cache-mode unsafe believes it all the same.",
    "HF_TOKEN is sent to the scheme, host and port of HF_ENDPOINT and nowhere else. A download counts once its \
     SHA-256 or git hash is the one that the hub names; where the hub names none, that is said.",
    "Not defended against: weights that answer falsely, whoever can write to a model's folder while it is read, other \
     processes of the same user, and what the time of an answer tells. Answers are text of a model: treat them as \
     input from a stranger.",
];

const VALIDATE_EXIT_CODES: &str = "\
Exit codes:
  0    every line is a sound request
  1    a fatal error: nothing to read, no room to write
  2    the command line cannot be understood
  3    some lines are not";

const MAIN_EXAMPLES: &str = "\
Examples:
  Answer every conversation of a file:
    mlxbatch run convos.jsonl -o out.jsonl
  Check the file first, without a model:
    mlxbatch validate convos.jsonl
  See how much its conversations share, before any weights are loaded:
    mlxbatch plan convos.jsonl
  Say which version, MLX and device are in use:
    mlxbatch --version -v";

const RUN_EXAMPLES: &str = "\
Examples:
  One line of input, and a run over a file of them:
    {\"id\": \"a1\", \"messages\": [{\"role\": \"user\", \"content\": \"Why is the sky blue?\"}]}
    mlxbatch run convos.jsonl -o out.jsonl
  Another model, from the hub, a folder or a GGUF file:
    mlxbatch run convos.jsonl -o out.jsonl --model mlx-community/Qwen3-4B-4bit
    mlxbatch run convos.jsonl -o out.jsonl --model ./models/qwen3
  Short greedy answers that end at a blank line:
    mlxbatch run convos.jsonl -o out.jsonl --max-tokens 64 --temperature 0 --stop $'\\n\\n'
  Start warm the next time:
    mlxbatch run convos.jsonl -o out.jsonl --persist-cache ./cache.bin
  Go on after Ctrl-C or a crash, and answer once more what failed:
    mlxbatch run convos.jsonl -o out.jsonl --resume
    mlxbatch run convos.jsonl -o out.jsonl --resume --retry-errors
  Many files into one:
    mlxbatch run 'parts/*.jsonl' -o out.jsonl
  One of eight parts of the work, which are joined when all are there:
    mlxbatch run convos.jsonl -o out.3.jsonl --shard 3/8
    mlxbatch merge 'out.*.jsonl' -o out.jsonl
  A table of answers beside the rows they answer, and a page about the run:
    mlxbatch run rows.csv -o answers.csv --template '{{ question }}' --format csv --keep-input --report-html run.html
  In a pipe:
    head -20 convos.jsonl | mlxbatch run - -o - | jq -r '.response.body.choices[0].message.content'";

const PLAN_EXAMPLES: &str = "\
Examples:
  mlxbatch plan convos.jsonl --model ./models/qwen3
  mlxbatch plan convos.jsonl --persist-cache ./cache.bin
  mlxbatch plan convos.jsonl --shards 8
  mlxbatch plan convos.jsonl --json | jq .share_reusable";

const PLAN_EXIT_CODES: &str = "\
Exit codes:
  0    every line is a request that can be run
  1    a fatal error: nothing to read, no model, no room to write
  2    the command line cannot be understood
  3    some lines are not; they are left out of the plan";

const CACHE_EXAMPLES: &str = "\
Examples:
  mlxbatch cache inspect cache.bin --model ./models/qwen3
  mlxbatch cache verify cache.bin
  mlxbatch cache prune cache.bin --max-bytes 2GiB --older-than 30d
  mlxbatch cache merge monday.bin tuesday.bin -o both.bin";

const CACHE_EXIT_CODES: &str = "\
Exit codes:
  0    done; verify: every checksum is right
  1    a fatal error: no cache file, no room to write; verify: something is damaged
  2    the command line cannot be understood";

const COMPARE_EXAMPLES: &str = "\
Examples:
  Whether another model, or another version, answers as before:
    mlxbatch compare before.jsonl after.jsonl --min-agreement 95%
  How many answers are right; the input has them as {\"metadata\": {\"answer\": \"B\"}, ...}:
    mlxbatch compare out.jsonl --expected answer --match choice --min-accuracy 60%
  The same where they are in the input's own fields, as in GSM8K:
    mlxbatch compare out.jsonl --data gsm8k.jsonl --expected answer --extract '#### (-?[0-9,.]+)'";

const COMPARE_EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    a fatal error: a file that cannot be read; or less is reached than --min-accuracy or --min-agreement
  2    the command line cannot be understood";

const VALIDATE_EXAMPLES: &str = "\
Examples:
  mlxbatch validate convos.jsonl
  zcat convos.jsonl.gz | mlxbatch validate -";

fn help_end(examples: &str, exit_codes: &str) -> String {
    format!("{examples}\n\n{exit_codes}")
}

/// Answers files of conversations with a local language model on Apple's MLX
///
/// Reads one request per line (JSONL), computes them together and writes one result per line, in
/// the shape of the OpenAI Batch API.
#[derive(Debug, Parser)]
#[command(name = "mlxbatch", disable_version_flag = true, disable_help_subcommand = true)]
#[command(arg_required_else_help = true, max_term_width = 100, after_help = help_end(MAIN_EXAMPLES, EXIT_CODES))]
pub struct Cli {
    /// Print the version; with -v also MLX, device and BLAS
    #[arg(short = 'V', long)]
    pub version: bool,

    /// Say more
    #[arg(short, long)]
    pub verbose: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// Parses the process's arguments; prints help or a usage error and exits where that ends it.
    pub fn from_command_line() -> Self {
        let cli =
            Self::from_arg_matches(&Self::command_here().get_matches()).unwrap_or_else(|error| error.exit());
        if cli.command.is_none() && !cli.version {
            let mut command = Self::command();
            command.error(ErrorKind::MissingSubcommand, "no command given; try `mlxbatch --help`").exit();
        }
        cli
    }
}

impl Cli {
    /// The command line as this environment has it: a variable set to nothing is not set.
    fn command_here() -> clap::Command {
        match std::env::var_os(MODEL_VARIABLE) {
            Some(model) if model.is_empty() => Self::command()
                .mut_subcommand("run", |run| run.mut_arg("model", |model| model.env(None::<&'static str>))),
            _ => Self::command(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer every request of a file
    ///
    /// Each input line is {"messages": […]} with an optional "id" or "custom_id", a line of the
    /// OpenAI Batch API, or {"prompt": "…"} for a raw completion. Generation parameters in a
    /// line win over flags, flags win over the model's generation_config.json. Each line has
    /// exactly one output line, in input order once the run has ended; blank lines are skipped.
    /// A line that cannot be answered gets an error and the run goes on. mlxbatch-input(5) has all
    /// fields of a line.
    #[command(after_help = help_end(RUN_EXAMPLES, EXIT_CODES))]
    Run(Box<RunArgs>),

    /// Check a file of requests without loading a model
    ///
    /// Prints each problem as file:line: reason, then a count by kind.
    #[command(after_help = help_end(VALIDATE_EXAMPLES, VALIDATE_EXIT_CODES))]
    Validate(ValidateArgs),

    /// Say what a run would compute and share, without loading weights
    ///
    /// Prints requests, prompt tokens, how many of them are unique, which shared prefixes save
    /// most, and the memory that their KV takes. Only configuration, tokenizer and chat template
    /// of the model are read. Problems of single lines go to standard error.
    #[command(after_help = help_end(PLAN_EXAMPLES, PLAN_EXIT_CODES))]
    Plan(Box<PlanArgs>),

    /// Join the results of shards in the order of the input
    ///
    /// Reads files that `run --shard` wrote, each with its FILE.manifest beside it, and checks that they are all
    /// shards of one run, whole, with no result missing or there twice. The output is there whole or as it was.
    #[command(after_help = help_end(merge::EXAMPLES, merge::EXIT_CODES))]
    Merge(MergeResultsArgs),

    /// Compare the answers of two runs, or with those that are expected
    ///
    /// Reads files that `run` wrote, line by line by their ids, and says how many answers agree, which differ, and how
    /// many are right, with the standard error.
    #[command(after_help = help_end(COMPARE_EXAMPLES, COMPARE_EXIT_CODES))]
    Compare(CompareArgs),

    /// Look into cache files and look after them; none of this loads a model
    #[command(subcommand, after_help = help_end(CACHE_EXAMPLES, CACHE_EXIT_CODES))]
    Cache(CacheCommand),

    /// List the models that can be run
    ///
    /// The types of models, each with published models of it, in which forms their weights are read, and what of
    /// them is kept in the cache.
    Models,

    /// Print the JSON Schema of input lines, output lines or reports
    ///
    /// Draft 2020-12, for editors and programs that write or read them: types and ranges of all fields that
    /// mlxbatch-input(5) describes, or the shape of a record or of what `run --report` writes. What only a model can
    /// tell is checked by a run.
    Schema(SchemaArgs),

    /// Print the completion script of a shell
    ///
    /// bash: mlxbatch completions bash > ~/.local/share/bash-completion/completions/mlxbatch
    ///
    /// zsh: mlxbatch completions zsh > a folder of $fpath, as _mlxbatch
    ///
    /// fish: mlxbatch completions fish > ~/.config/fish/completions/mlxbatch.fish
    #[command(verbatim_doc_comment)]
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Files of requests, one JSON object per line, read one behind the other; - reads standard input
    ///
    /// In quotes, a pattern such as 'parts/*.jsonl' stands for its files in the order of their names, and ** for
    /// folders below. Lines are named by their own file, and ids are unique among all of them.
    /// What is at an https:// or http:// URL, such as a presigned one, is fetched first.
    #[arg(value_name = "INPUT", value_hint = ValueHint::FilePath, required = true)]
    pub input: Vec<InputPath>,

    /// File for the results; - writes to standard output
    ///
    /// Results are appended to FILE.partial as they finish and become FILE, in input order, when
    /// all are there; until then FILE stays as it was. A FILE.partial that an interrupted, failed or
    /// killed run has left is gone on with by --resume, else kept as FILE.partial.1.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: OutputPath,

    /// Send the output to this URL by PUT when it is complete, such as to a presigned one
    ///
    /// It is FILE as it is published. A server that is busy is tried five times; where it refuses, the run ends with
    /// an error, FILE is there all the same, and the same command with --resume sends it again.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url, value_parser = values::url)]
    pub upload: Option<String>,

    /// How results are written
    ///
    /// FILE.partial has records of the Batch API in any case. Where a later run may want to go on from published
    /// results, such as with --resume --retry-errors, they are kept in FILE.records. A FILE that ends in .gz is
    /// packed.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = FormatArg::Openai)]
    pub format: FormatArg,

    #[command(flatten)]
    pub rows: InputArgs,

    /// Answer one shard of the input, such as 3/8; auto takes which from Slurm, Kubernetes and others
    #[arg(long, value_name = "I/N|auto", value_parser = shard::parse, long_help = format!(
        "Answer one shard of the input, such as 3/8; auto takes which from Slurm, Kubernetes and others\n\n{}",
        shard::help()
    ))]
    pub shard: Option<Shard>,

    /// Repeat the other fields of each input line in its output line, as `input`, or beside the answer's own fields
    #[arg(long)]
    pub keep_input: bool,

    /// Go on from what an interrupted, failed or killed run has left
    ///
    /// Finished results in FILE.partial are kept and only the others computed, also for lines that
    /// were appended to INPUT since. Where there is no FILE.partial, FILE itself is gone on with if
    /// FILE.manifest is beside it, as after a run with this flag or one with failed lines; where there is
    /// neither FILE.partial nor FILE, the run starts as any other. Lines that have changed, or
    /// another model, setting or version of mlxbatch than in FILE.partial.manifest, are an error.
    #[arg(long)]
    pub resume: bool,

    /// With --resume: answer lines once more that got an error
    #[arg(long, requires = "resume")]
    pub retry_errors: bool,

    /// With --resume: go on although lines, model or settings have changed
    #[arg(long, requires = "resume")]
    pub force: bool,

    /// Leave out what differs from run to run: `created` is 0, cached tokens are not told
    ///
    /// Then two runs that give the same answers write the same bytes.
    #[arg(long)]
    pub deterministic_ids: bool,

    /// Print nothing but errors
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say which model, device and settings are in use
    #[arg(short, long)]
    pub verbose: bool,

    /// End with exit code 3 only where more lines fail than this: a number, or a share such as 2%
    #[arg(long, value_name = "N|P%", default_value = "0", hide_default_value = true, value_parser = values::tolerance)]
    pub fail_on_errors: Tolerance,

    /// End with an error at the first line that is no request that can be served
    ///
    /// Lines are read ahead by thousands: in most files it is found before anything is computed. What is done is kept,
    /// and --resume goes on.
    #[arg(long)]
    pub strict: bool,

    /// End after this time, such as 90m or 2h; what is done is kept, and --resume goes on
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    pub max_time: Option<Duration>,

    /// End a request that has no whole answer after this time, such as 30s, with an error
    ///
    /// Counted from when it enters the running batch; the error's code is timeout, and what it had of an answer is
    /// dropped, but for whole turns before. The others go on. --resume --retry-errors tries it once more.
    #[arg(long, value_name = "TIME", value_parser = values::some_time)]
    pub timeout: Option<Duration>,

    /// Write what the run has to say of itself to this file as JSON
    ///
    /// Machine, model and settings, counters, times of requests with the slowest ten, reuse by tier, failures by
    /// code with examples, the largest shared prefixes and the course of the run. `mlxbatch schema report` has its
    /// fields.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,

    /// Write the same to this file as a page to look at, whole in itself
    ///
    /// Throughput, memory and requests over time, reuse by tier, the tree of the largest shared prefixes, slowest and
    /// failed requests. Where GITHUB_STEP_SUMMARY names a file, a short summary is added to that, too.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report_html: Option<PathBuf>,

    /// How to show progress on standard error
    #[arg(long, value_name = "KIND", value_enum, default_value_t = ProgressArg::Auto, conflicts_with = "quiet")]
    #[arg(long_help = PROGRESS_HELP, hide_default_value = true)]
    pub progress: ProgressArg,

    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub generation: GenerationArgs,

    #[command(flatten)]
    pub reply: ReplyArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    #[command(flatten)]
    pub persist: PersistArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Generation (a request's own fields win)")]
pub struct GenerationArgs {
    /// Longest answer, in tokens [default: the model's own, else 1024]
    #[arg(long, value_name = "N", value_parser = values::at_least_one)]
    pub max_tokens: Option<u32>,

    /// Randomness, 0 to 2; 0 always takes the likeliest token [default: the model's own, else 0]
    #[arg(long, value_name = "T", value_parser = values::temperature)]
    #[arg(allow_negative_numbers = true)]
    pub temperature: Option<f32>,

    /// Sample from the likeliest tokens up to this total probability, above 0 up to 1
    #[arg(long, value_name = "P", value_parser = values::top_p, allow_negative_numbers = true)]
    pub top_p: Option<f32>,

    /// Sample from this many likeliest tokens; 0 for all
    #[arg(long, value_name = "K", value_parser = values::whole_number)]
    #[arg(allow_negative_numbers = true)]
    pub top_k: Option<u32>,

    /// Drop tokens below this share of the likeliest token's probability, 0 to 1
    #[arg(long, value_name = "P", value_parser = values::min_p, allow_negative_numbers = true)]
    pub min_p: Option<f32>,

    /// Seed of the sampling; the same seed gives the same answers [default: 0]
    #[arg(long, value_name = "N", value_parser = values::seed, allow_negative_numbers = true)]
    pub seed: Option<u64>,

    /// End an answer before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = values::stop, allow_hyphen_values = true)]
    pub stop: Vec<String>,

    /// Divide positive and multiply negative logits of tokens that prompt or answer have; 1 is none
    #[arg(long, value_name = "P", value_parser = values::repetition_penalty, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,

    /// Take this off once from the logits of tokens that the answer has, -2 to 2
    #[arg(long, value_name = "P", value_parser = values::penalty, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,

    /// Take this off for each time that the answer has the token, -2 to 2
    #[arg(long, value_name = "P", value_parser = values::penalty, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,

    /// Choose no end token before the answer has so many tokens
    #[arg(long, value_name = "N", value_parser = values::whole_number, allow_negative_numbers = true)]
    pub min_tokens: Option<u32>,

    /// Go on where the model would end an answer, up to the longest answer or a stop
    #[arg(long)]
    pub ignore_eos: bool,

    /// Close the thinking of a conversation's answer when it has so many tokens
    #[arg(long, value_name = "N", value_parser = values::whole_number, allow_negative_numbers = true)]
    pub thinking_budget: Option<u32>,
}

impl GenerationArgs {
    /// The flags as parameters, to be put behind a request's own with [`RequestParams::or`].
    pub fn to_params(&self) -> RequestParams {
        RequestParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            seed: self.seed,
            stop: (!self.stop.is_empty()).then(|| self.stop.clone()),
            add_special_tokens: None,
            ignore_eos: self.ignore_eos.then_some(true),
            min_tokens: self.min_tokens,
            repetition_penalty: self.repetition_penalty,
            repetition_context_size: None,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            thinking_budget: self.thinking_budget,
        }
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Conversations")]
pub struct ReplyArgs {
    /// How the model writes its thinking, which becomes `reasoning_content`: auto, none or a name
    #[arg(long, value_name = "NAME", default_value = "auto", hide_default_value = true)]
    #[arg(value_parser = reply::thinking, long_help = reply::thinking_help())]
    pub reasoning_parser: reply::Thinking,

    /// How the model writes calls of tools, which become `tool_calls`: auto, none or a name
    #[arg(long, value_name = "NAME", default_value = "auto", hide_default_value = true)]
    #[arg(value_parser = reply::calls, long_help = reply::calls_help())]
    pub tool_parser: reply::Calls,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Compute")]
pub struct ComputeArgs {
    /// Requests that are decoded together; fewer need less memory
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH_SIZE)]
    #[arg(value_parser = values::batch_size, allow_negative_numbers = true)]
    pub batch_size: u32,

    /// Most prompt tokens computed in one step; fewer need less memory
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PREFILL_CHUNK)]
    #[arg(value_parser = values::prefill_chunk, allow_negative_numbers = true)]
    pub prefill_chunk: u32,

    /// Memory for stored prompt prefixes, such as 512MB or 4GiB; 0 stores none [default: 3% of what is free]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub cache_bytes: Option<u64>,

    /// Most memory of the whole process, such as 4GiB: weights, KV, stored prefixes and working memory
    ///
    /// Requests wait until the KV of those that run leaves room for theirs, at full length; one that never fits is an
    /// error line; stored prefixes get a quarter of what is left at most, whatever --cache-bytes says. Without this
    /// flag it is what the machine has free, within the limits of its control group and of ulimit.
    #[arg(long, value_name = "SIZE", value_parser = values::some_size)]
    pub max_memory: Option<u64>,

    /// Most stored prompt prefixes [default: as many as fit]
    #[arg(long, value_name = "N", value_parser = values::at_least_one)]
    pub cache_entries: Option<u32>,

    /// Precision of the computation
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,
}

/// Precision of the computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// The model's own on a GPU; f32 on a CPU
    Auto,
    F32,
    F16,
    Bf16,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Files of requests, one JSON object per line, read one behind the other; - reads standard input
    ///
    /// In quotes, a pattern such as 'parts/*.jsonl' stands for its files in the order of their names, and ** for
    /// folders below. Lines are named by their own file, and ids are unique among all of them.
    /// What is at an https:// or http:// URL, such as a presigned one, is fetched first.
    #[arg(value_name = "INPUT", value_hint = ValueHint::FilePath, required = true)]
    pub input: Vec<InputPath>,

    #[command(flatten)]
    pub rows: InputArgs,

    /// Print the problems only, neither counts nor warnings
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// File of results
    #[arg(value_name = "RESULTS", value_hint = ValueHint::FilePath)]
    pub first: PathBuf,

    /// Another, to compare it with
    #[arg(value_name = "RESULTS", value_hint = ValueHint::FilePath, required_unless_present = "expected")]
    pub second: Option<PathBuf>,

    /// Field that has the expected answer, such as answer or target.letter
    ///
    /// It is looked for in what the results repeat of their requests, which is their metadata, or in the lines of
    /// --data.
    #[arg(long, value_name = "FIELD")]
    pub expected: Option<String>,

    /// File of lines with the same ids that has the expected answers, such as the input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "expected")]
    pub data: Option<PathBuf>,

    /// When an answer is right
    #[arg(long = "match", value_name = "KIND", value_enum, default_value_t = MatchArg::Exact, requires = "expected")]
    pub kind: MatchArg,

    /// Look at what this regular expression finds last, its first group if it has one; else at the whole answer
    #[arg(long, value_name = "REGEX")]
    pub extract: Option<String>,

    /// Fail where an accuracy is below this share, such as 0.6 or 60%
    #[arg(long, value_name = "SHARE", value_parser = values::share, requires = "expected")]
    pub min_accuracy: Option<f64>,

    /// Fail where a smaller share of answers agrees
    #[arg(long, value_name = "SHARE", value_parser = values::share, requires = "second")]
    pub min_agreement: Option<f64>,

    /// Show so many answers that differ
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub show: usize,

    /// Print the comparison as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// When an answer is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MatchArg {
    /// It is what is expected, but for white space around it
    Exact,
    /// It names the expected letter or number first, as in (B)
    Choice,
    /// What is expected is a regular expression that it matches
    Regex,
    /// It has what is expected somewhere
    Contains,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Files of requests, one JSON object per line, read one behind the other; - reads standard input
    ///
    /// In quotes, a pattern such as 'parts/*.jsonl' stands for its files in the order of their names, and ** for
    /// folders below. Lines are named by their own file, and ids are unique among all of them.
    /// What is at an https:// or http:// URL, such as a presigned one, is fetched first.
    #[arg(value_name = "INPUT", value_hint = ValueHint::FilePath, required = true)]
    pub input: Vec<InputPath>,

    #[command(flatten)]
    pub rows: InputArgs,

    /// Say what each of so many shards would compute, and what that loses against one run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SHARDS)))]
    pub shards: Option<u32>,

    /// Print the plan as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Print a line for each request first: its prompt's tokens, those that no earlier one has, and its longest answer
    #[arg(short, long, conflicts_with = "json")]
    pub verbose: bool,

    /// Print no warnings and no problems of single lines
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub model: ModelArgs,

    /// Say what this cache file holds of the prompts already
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub persist_cache: Option<PathBuf>,

    /// Longest answer, in tokens [default: the model's own, else 1024]
    #[arg(long, value_name = "N", value_parser = values::at_least_one, help_heading = "Run")]
    pub max_tokens: Option<u32>,

    /// Requests that are decoded together
    #[arg(long, value_name = "N", default_value_t = DEFAULT_BATCH_SIZE, help_heading = "Run")]
    #[arg(value_parser = values::batch_size, allow_negative_numbers = true)]
    pub batch_size: u32,

    /// Precision of the computation
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto, help_heading = "Run")]
    pub dtype: DtypeArg,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// What to describe
    #[arg(value_enum)]
    pub lines: LineKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LineKind {
    /// Requests, as `mlxbatch run` reads them
    Input,
    /// Results, as it writes them
    Output,
    /// Reports, as its --report writes them
    Report,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to complete for
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests;
