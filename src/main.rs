//! Parses the command line, calls the command and turns its result into an exit code.
//!
//! Owns how errors look, that there is a stack to begin on, and which allocator the process has. Nothing else happens
//! here.

use std::process::ExitCode;

use mlxbatch::batch::BatchError;
use mlxbatch::cli::Cli;
use mlxbatch::commands;
use mlxbatch::terminal::{eprint_text, shown_in_short};

/// MLX's CPU backend takes each array from `malloc`, which this replaces in the whole process: a cache of tens of
/// thousands of small arrays makes glibc's search long.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FATAL: u8 = 1;

/// What the threads of libraries need of a stack, which is as large as the main thread's may become: as much as they
/// have on macOS.
const MIN_STACK_BYTES: u64 = 512 << 10;

fn main() -> ExitCode {
    match rustix::process::getrlimit(rustix::process::Resource::Stack).current {
        // To read the command line takes more than some limits leave.
        Some(max_bytes) if max_bytes < MIN_STACK_BYTES => {
            eprint_text(&format!(
                "mlxbatch: error: the limit on stacks (RLIMIT_STACK, `ulimit -s`) is {} KiB, and {} KiB are needed at \
                 least: raise it\n",
                max_bytes >> 10,
                MIN_STACK_BYTES >> 10
            ));
            ExitCode::from(FATAL)
        }
        _ => run(),
    }
}

#[inline(never)]
fn run() -> ExitCode {
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
