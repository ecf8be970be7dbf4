//! `mlxbatch merge`: the results of shards become those of the whole.
//!
//! Owns what is said. What makes a whole is `batch`'s business, joining cache files `snapshot`'s.

use std::path::Path;

use anyhow::{Context, bail};

use super::{Outcome, find_inputs};
use crate::batch::{self, MergeOptions, OutputPath, count_text, find_files, number_text, size_text};
use crate::cli::MergeResultsArgs;
use crate::snapshot;
use crate::terminal::eprint_line;

/// Joins the results, and cache files if any are named.
pub fn merge(args: &MergeResultsArgs) -> anyhow::Result<Outcome> {
    let mut results = find_files(&args.results)?;
    // A pattern such as out.* has them as well.
    results.retain(|path| path.extension().is_none_or(|extension| extension != "manifest"));
    if results.is_empty() {
        bail!("only manifests are named: name the results beside them");
    }
    let inputs = (!args.input.is_empty()).then(|| find_inputs(&args.input, args.quiet)).transpose()?;
    let merged = batch::merge(&results, &args.output, &MergeOptions { inputs, is_forced: args.force })?;
    let say = |text: &str| {
        if !args.quiet {
            eprint_line(&format!("mlxbatch: {text}"));
        }
    };
    let place = match &args.output {
        OutputPath::Stdout => String::new(),
        OutputPath::File(path) => format!(" in {}", path.display()),
    };
    let failed = match merged.num_failed {
        0 => String::new(),
        num_failed => format!(", {} of them failed", number_text(num_failed)),
    };
    say(&format!(
        "{} of {}{place}{failed}",
        count_text(merged.num_results, "result"),
        count_text(results.len() as u64, "file")
    ));
    if let Some(output) = &args.persist_cache {
        let caches = find_files(&args.caches)?;
        let caches: Vec<&Path> = caches.iter().map(|cache| cache.as_path()).collect();
        let saved = snapshot::merge(&caches, output).with_context(|| {
            format!("the results are joined, but not the caches into {}", output.display())
        })?;
        say(&format!(
            "{} of {} in {}, {}",
            count_text(saved.num_tokens as u64, "token"),
            count_text(caches.len() as u64, "cache"),
            output.display(),
            size_text(saved.file_bytes)
        ));
    }
    Ok(if merged.num_failed > 0 { Outcome::SomeFailed } else { Outcome::Done })
}
