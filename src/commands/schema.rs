//! `mlxbatch schema`: JSON Schema of the lines that are read and written, and of reports.
//!
//! Owns printing it; what it says is `batch`'s.

use std::io::{self, Write};

use super::{Outcome, written};
use crate::batch::{input_schema, output_schema, report_schema};
use crate::cli::{LineKind, SchemaArgs};

/// Prints the schema of one of them.
pub fn print(args: &SchemaArgs) -> anyhow::Result<Outcome> {
    let schema = match args.lines {
        LineKind::Input => input_schema(),
        LineKind::Output => output_schema(),
        LineKind::Report => report_schema(),
    };
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{schema:#}").and_then(|()| stdout.flush()), Outcome::Done)
}
