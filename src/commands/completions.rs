//! `mlxbatch completions`: the completion script of a shell.
//!
//! Owns printing it; what is completed follows from `cli`.

use std::io::{self, Write};

use clap::CommandFactory;

use super::{Outcome, written};
use crate::cli::{Cli, CompletionsArgs};

/// Prints the script for one shell.
pub fn print(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    // Into memory first: the generator panics where writing fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mlxbatch", &mut script);
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(&script).and_then(|()| stdout.flush()), Outcome::Done)
}
