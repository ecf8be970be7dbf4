//! `--shard`: the part of the input that a run answers.
//!
//! Owns that no shard's results are written over another's. Which lines are whose is `batch`'s business.

use std::sync::Arc;

use anyhow::bail;

use crate::{
    batch::{
        Inputs, Manifest, OutputPath, ReaderOptions, ShardFacts, ShardLines, Split, count_text,
        manifest_path, number_text, partial_path,
    },
    cli::{DEFAULT_MAX_TOKENS, RunArgs},
    terminal::eprint_line,
};

/// Finds the lines of the shard that is asked for, if one is.
pub(super) fn lines_of(
    args: &RunArgs,
    inputs: &Inputs,
    options: &ReaderOptions,
) -> anyhow::Result<Option<Arc<ShardLines>>> {
    let Some(shard) = args.shard else { return Ok(None) };
    let max_tokens = args.generation.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let lines = Split::of(inputs, options, shard.count, max_tokens)?.shard(shard.number);
    check_others_are_spared(args, &lines.facts)?;
    if !args.quiet {
        let ShardFacts { num_lines, num_lines_of_all, .. } = lines.facts;
        let lines = count_text(num_lines_of_all, "line");
        eprint_line(&format!("mlxbatch: shard {shard}: {} of {lines}", number_text(num_lines)));
    }
    Ok(Some(Arc::new(lines)))
}

/// Checks that the output is not another shard's of the same input.
fn check_others_are_spared(args: &RunArgs, facts: &ShardFacts) -> anyhow::Result<()> {
    let OutputPath::File(output) = &args.output else { return Ok(()) };
    for results in [partial_path(output), output.clone()] {
        let Ok(manifest) = Manifest::read(&manifest_path(&results)) else { continue };
        let Some(there) = manifest.shard().filter(|there| there.input == facts.input && results.exists())
        else {
            continue;
        };
        if there.shard != facts.shard {
            bail!(
                "{} has the results of shard {} of this input, and this run is shard {}: give each shard an --output \
                 of its own, such as {}",
                results.display(),
                there.shard,
                facts.shard,
                output.with_extension(format!("{}.jsonl", facts.shard.number)).display()
            );
        }
    }
    Ok(())
}
