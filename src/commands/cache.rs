//! `mlxbatch cache`: looks into cache files and looks after them, without a model.
//!
//! Owns the wording. What is done to a file is `snapshot`'s business.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde_json::{Map, Value, json};

use super::text_head::text_head;
use super::{Outcome, written};
use crate::batch::{count_text, number_text, size_text};
use crate::cache::Tier;
use crate::cli::{CacheCommand, InspectArgs, MergeArgs, PruneArgs, TierArg};
use crate::models::{GgufHeader, ModelFiles, ModelSource, hub::HubOptions};
use crate::snapshot::{self, Contents, Entry, Pruning};
use crate::terminal::{shown, shown_json};
use crate::text::TextModel;

/// Prefixes that are named.
const MAX_NAMED: usize = 10;

/// Does what a subcommand asks for.
pub fn execute(command: &CacheCommand) -> anyhow::Result<Outcome> {
    let text = match command {
        CacheCommand::Inspect(args) => inspect(args)?,
        CacheCommand::Verify(args) => verify(&args.file)?,
        CacheCommand::Prune(args) => prune(args)?,
        CacheCommand::Merge(args) => merge(args)?,
    };
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()), Outcome::Done)
}

fn inspect(args: &InspectArgs) -> anyhow::Result<String> {
    let contents = Contents::read(&args.file)?;
    if args.key {
        return Ok(format!("{}\n", key_of(&contents)));
    }
    let text = args.model.as_deref().map(text_model).transpose()?;
    let mut largest: Vec<&Entry> = contents.entries.iter().collect();
    largest.sort_by_key(|entry| std::cmp::Reverse((entry.num_below, entry.num_bytes)));
    largest.truncate(MAX_NAMED);
    let heads: Vec<Option<String>> = largest
        .iter()
        .map(|entry| text.as_ref().map(|text| text_head(text.tokenizer(), &entry.tokens)))
        .collect();
    if args.json {
        return Ok(shown_json(&format!("{:#}\n", inspected_json(&contents, &largest, &heads))));
    }
    Ok(inspected_text(&args.file, &contents, &largest, &heads))
}

/// What tells a cache file apart from others that later runs could start with: 16 hexadecimal digits for the model,
/// and 16 for the system prompts, or for all prefixes where there are none.
fn key_of(contents: &Contents) -> String {
    let mut model = blake3::Hasher::new();
    model.update(&contents.format_version.to_le_bytes());
    model.update(&[u8::from(contents.identity.needs_checkpoints)]);
    for part in &contents.identity.parts {
        model.update(part.name.as_bytes()).update(&part.digest);
    }
    let has_system = contents.entries.iter().any(|entry| entry.tier == Tier::System);
    let counts = |entry: &Entry| entry.tier == Tier::System || !has_system;
    // The longest of them alone: what they share may be one prefix or several.
    let mut longest: Vec<Vec<u32>> = Vec::new();
    let mut path: Vec<u32> = Vec::new();
    for entry in &contents.entries {
        path.truncate(entry.end.saturating_sub(entry.tokens.len()));
        path.extend(&entry.tokens);
        if counts(entry) {
            if longest.last().is_some_and(|last| path.starts_with(last)) {
                longest.pop();
            }
            longest.push(path.clone());
        }
    }
    longest.sort_unstable();
    let mut prefixes = blake3::Hasher::new();
    for tokens in &longest {
        prefixes.update(&(tokens.len() as u64).to_le_bytes());
        for token in tokens {
            prefixes.update(&token.to_le_bytes());
        }
    }
    let short = |hasher: &blake3::Hasher| hasher.finalize().to_hex()[..16].to_owned();
    format!("{}-{}", short(&model), short(&prefixes))
}

/// The text side of a model on this machine.
fn text_model(model: &str) -> anyhow::Result<TextModel> {
    let options = HubOptions { offline: true, ..HubOptions::from_env() };
    Ok(match ModelSource::resolve(model, &options)? {
        ModelFiles::Folder { dir, .. } => TextModel::from_folder(&dir)?,
        ModelFiles::Gguf { path, .. } => TextModel::from_gguf(&GgufHeader::read(&path)?)?,
    })
}

fn inspected_text(file: &Path, contents: &Contents, largest: &[&Entry], heads: &[Option<String>]) -> String {
    let count = |num: usize, noun: &str| count_text(num as u64, noun);
    let mut lines = vec![
        format!("{}: the cache of {}", file.display(), contents.identity.model),
        format!(
            "  {} of {}, {} in a file of {}",
            count(contents.entries.len(), "prefix").replace("prefixs", "prefixes"),
            count(contents.num_tokens(), "token"),
            size_text(contents.used_bytes),
            size_text(contents.file_bytes)
        ),
    ];
    for (tier, (num_entries, num_tokens, num_bytes)) in
        contents.tiers().iter().collect::<Vec<_>>().iter().rev()
    {
        lines.push(format!(
            "  {:<10} {:>8} with {:>10}, {}",
            tier.name(),
            number_text(*num_entries as u64),
            count(*num_tokens, "token"),
            size_text(*num_bytes)
        ));
    }
    if contents.num_damaged > 0 {
        lines.push(format!("  {} of the index made no sense and are left out", contents.num_damaged));
    }
    lines.push("  identity".to_owned());
    for part in &contents.identity.parts {
        lines.push(format!("    {:<16} {}", part.name, hex(&part.digest[..8])));
    }
    if !largest.is_empty() {
        lines.push("  prefixes that most continue".to_owned());
    }
    for (entry, head) in largest.iter().zip(heads) {
        let text = head.as_ref().map_or(String::new(), |head| format!("  {head}"));
        lines.push(format!(
            "    {:>6} continue {:<9} {:>14}, {:>10}, used {}{text}",
            number_text(entry.num_below as u64),
            entry.tier.name(),
            count(entry.tokens.len(), "token"),
            size_text(entry.num_bytes),
            age_text(entry.used_at),
        ));
    }
    if !largest.is_empty() && heads.iter().all(Option::is_none) {
        lines.push("  (with --model the prefixes are shown as text)".to_owned());
    }
    lines.iter().map(|line| shown(line)).collect::<Vec<_>>().join("\n") + "\n"
}

fn inspected_json(contents: &Contents, largest: &[&Entry], heads: &[Option<String>]) -> Value {
    let tiers: Map<String, Value> = contents
        .tiers()
        .iter()
        .map(|(tier, (num_prefixes, num_tokens, num_bytes))| {
            let usage =
                json!({"num_prefixes": num_prefixes, "num_tokens": num_tokens, "num_bytes": num_bytes});
            (tier.name().to_owned(), usage)
        })
        .collect();
    let identity: Map<String, Value> =
        contents.identity.parts.iter().map(|part| (part.name.clone(), hex(&part.digest).into())).collect();
    let prefixes: Vec<Value> = largest
        .iter()
        .zip(heads)
        .map(|(entry, head)| {
            json!({
                "tier": entry.tier.name(),
                "num_tokens": entry.tokens.len(),
                "end": entry.end,
                "num_bytes": entry.num_bytes,
                "has_checkpoint": entry.has_checkpoint,
                "num_continuations": entry.num_below,
                "used_at": entry.used_at,
                "text": head,
            })
        })
        .collect();
    json!({
        "model": contents.identity.model,
        "format_version": contents.format_version,
        "num_prefixes": contents.entries.len(),
        "num_tokens": contents.num_tokens(),
        "kv_bytes": contents.used_bytes,
        "file_bytes": contents.file_bytes,
        "num_damaged": contents.num_damaged,
        "tiers": tiers,
        "identity": identity,
        "most_continued": prefixes,
    })
}

fn verify(file: &Path) -> anyhow::Result<String> {
    let verified = snapshot::verify(file, |_| {})?;
    let num_damaged = verified.damaged.len() + verified.num_damaged_entries;
    if num_damaged > 0 {
        let places: Vec<String> = verified.damaged.iter().take(5).map(u64::to_string).collect();
        bail!(
            "{} is damaged: {} of {} extents do not match their checksum{}{}; a run leaves them out and computes \
             them again, and its save drops them",
            file.display(),
            verified.damaged.len(),
            verified.num_extents,
            if places.is_empty() { String::new() } else { format!(" (at {})", places.join(", ")) },
            match verified.num_damaged_entries {
                0 => String::new(),
                num => format!(", and {num} entries of the index make no sense"),
            },
        );
    }
    Ok(format!(
        "{} is sound: {}, {}\n",
        file.display(),
        count_text(verified.num_extents as u64, "extent"),
        size_text(verified.num_bytes)
    ))
}

fn prune(args: &PruneArgs) -> anyhow::Result<String> {
    let tier = args.tier.map(|tier| match tier {
        TierArg::Assistant => Tier::Assistant,
        TierArg::User => Tier::User,
        TierArg::System => Tier::System,
    });
    let older_than_seconds = args.older_than.as_ref().map(Duration::as_secs);
    let pruned =
        snapshot::prune(&args.file, Pruning { max_bytes: args.max_bytes, tier, older_than_seconds })?;
    Ok(format!(
        "{}: {} of {} prefixes dropped, {} instead of {}\n",
        args.file.display(),
        number_text((pruned.num_entries_before - pruned.num_entries) as u64),
        number_text(pruned.num_entries_before as u64),
        size_text(pruned.file_bytes),
        size_text(pruned.bytes_before),
    ))
}

fn merge(args: &MergeArgs) -> anyhow::Result<String> {
    let inputs: Vec<&Path> = args.files.iter().map(|file| file.as_path()).collect();
    let report = snapshot::merge(&inputs, &args.output)?;
    Ok(format!(
        "{}: {} in {}, {} of them new\n",
        args.output.display(),
        count_text(report.num_tokens as u64, "token"),
        size_text(report.file_bytes),
        number_text(report.num_new_tokens as u64),
    ))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How long ago something was, coarsely.
fn age_text(seconds_since_1970: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let age = now.saturating_sub(seconds_since_1970);
    match age {
        0..60 => "just now".to_owned(),
        60..3600 => format!("{}m ago", age / 60),
        3600..86_400 => format!("{}h ago", age / 3600),
        _ => format!("{}d ago", age / 86_400),
    }
}
