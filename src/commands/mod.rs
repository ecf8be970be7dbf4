//! One file per subcommand, and what they all end in.
//!
//! Owns the dispatch and the meaning of the exit codes. What the commands are made of is in the
//! modules below them.

pub mod cache;
pub mod compare;
pub mod completions;
mod identity;
pub mod interrupt;
mod memory_needs;
pub mod merge;
mod model;
pub mod models;
pub mod plan;
pub mod run;
pub mod schema;
mod shared_prefixes;
mod text_head;
pub mod validate;
pub mod version;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::batch::{BatchError, InputPath, Inputs};
use crate::cli::{Cli, Command};
use crate::{machine_memory, mlx, terminal::eprint_line};

/// How a command ended, if it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is done.
    Done,
    /// Finished, but some lines failed.
    SomeFailed,
    /// Ended by Ctrl-C; what was done is kept.
    Interrupted,
    /// Ended at its time limit; what was done is kept.
    TimeUp,
    /// Nobody reads the output any more, as with `| head`.
    OutputClosed,
}

impl Outcome {
    /// The process's exit code; 1 and 2 are for errors.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::OutputClosed => 0,
            Self::SomeFailed => 3,
            Self::TimeUp => 4,
            Self::Interrupted => interrupt::EXIT_CODE,
        }
    }
}

/// Does what the command line asks for.
pub fn execute(cli: &Cli) -> anyhow::Result<Outcome> {
    mlx::ignore_file_size_signal();
    if cli.version {
        return version::print(cli.verbose);
    }
    match &cli.command {
        Some(Command::Run(args)) => run::run(args, cli.verbose || args.verbose),
        Some(Command::Plan(args)) => plan::plan(args),
        Some(Command::Cache(command)) => cache::execute(command),
        Some(Command::Validate(args)) => validate::validate(args),
        Some(Command::Merge(args)) => merge::merge(args),
        Some(Command::Compare(args)) => compare::compare(args),
        Some(Command::Models) => models::print(),
        Some(Command::Schema(args)) => schema::print(args),
        Some(Command::Completions(args)) => completions::print(args),
        None => anyhow::bail!("no command given; see `mlxbatch --help`"),
    }
}

/// Ends the program once all is written. Under a limit on address space, threads of the BLAS may still be trying for
/// memory, and would be waited for without end.
pub fn end(code: u8) -> ExitCode {
    if machine_memory::address_space_left().is_some() {
        // What nobody reads needs no flush.
        let _ = io::stdout().flush();
        mlx::exit_at_once(code);
    }
    ExitCode::from(code)
}

/// Finds the inputs of a command; says what is fetched, which may take its time.
fn find_inputs(typed: &[InputPath], is_quiet: bool) -> Result<Inputs, BatchError> {
    for url in typed.iter().filter(|input| matches!(input, InputPath::Url(_)) && !is_quiet) {
        eprint_line(&format!("mlxbatch: fetching {}", url.name()));
    }
    Inputs::find(typed)
}

/// Turns the result of writing to standard output into an outcome: a closed pipe is none's fault.
fn written(result: io::Result<()>, outcome: Outcome) -> anyhow::Result<Outcome> {
    match result {
        Ok(()) => Ok(outcome),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::OutputClosed),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
    }
}
