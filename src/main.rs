//! Parses the command line, calls the command and turns its result into an exit code.
//!
//! Owns how errors look. Nothing else happens here.

use std::process::ExitCode;

use mlxbatch::batch::BatchError;
use mlxbatch::cli::Cli;
use mlxbatch::commands;
use mlxbatch::terminal::{eprint_text, shown_in_short};

const FATAL: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::from_command_line();
    match commands::execute(&cli) {
        Ok(outcome) => commands::end(outcome.exit_code()),
        Err(error) => {
            eprint_text(&render(&error));
            commands::end(FATAL)
        }
    }
}

/// The error, what caused it and what to do, one line each; a cause that an error's own text
/// holds already is not repeated.
fn render(error: &anyhow::Error) -> String {
    let mut text = format!("mlxbatch: error: {}\n", shown_in_short(&error.to_string()));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        let cause = shown_in_short(&cause);
        if !text.contains(&cause) {
            text += &format!("  because: {cause}\n");
        }
    }
    let hint = error.chain().find_map(|cause| cause.downcast_ref::<BatchError>()).and_then(BatchError::hint);
    if let Some(hint) = hint {
        text += &format!("  hint: {}\n", shown_in_short(&hint));
    }
    text
}
