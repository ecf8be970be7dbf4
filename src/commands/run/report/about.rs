//! What a run was: program, machine, model and settings, as a report names them.
//!
//! Owns which of them are told. Nothing here changes while the run goes on.

use std::{env, thread};

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::{
    batch::{Inputs, Manifest},
    cli::RunArgs,
    commands::run::{model::DescribedModel, prepare::Preparer},
    mlx,
};

/// What is known of a run beforehand.
#[derive(Debug, Clone, Default)]
pub(in crate::commands::run) struct About {
    pub input: String,
    pub output: String,
    /// Program, libraries and machine.
    pub environment: Map<String, Value>,
    /// Name, shape and digests.
    pub model: Map<String, Value>,
    /// Settings in effect, by their flags.
    pub parameters: Map<String, Value>,
}

impl About {
    /// Tells of a run that is about to load its model.
    pub(in crate::commands::run) fn of(
        args: &RunArgs,
        inputs: &Inputs,
        model: &DescribedModel,
        preparer: &Preparer,
        manifest: &Manifest,
    ) -> Self {
        let mut facts = model.facts();
        let digests = manifest.digests().map(|(name, digest)| (name.to_owned(), Value::from(digest)));
        facts.insert("digests".to_owned(), digests.collect::<Map<_, _>>().into());
        Self {
            input: inputs.name(),
            output: args.output.name(),
            environment: environment(),
            model: facts,
            parameters: parameters(args, preparer),
        }
    }
}

fn environment() -> Map<String, Value> {
    let mut facts = Map::from_iter([
        ("mlxbatch".to_owned(), Value::from(env!("CARGO_PKG_VERSION"))),
        ("system".to_owned(), Value::from(format!("{} {}", env::consts::OS, env::consts::ARCH))),
        ("num_cpus".to_owned(), Value::from(thread::available_parallelism().map_or(1, usize::from))),
        ("began".to_owned(), Value::from(Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true))),
    ]);
    facts.extend(mlx::version_facts().into_iter().map(|(name, fact)| (name, Value::from(fact))));
    facts
}

fn parameters(args: &RunArgs, preparer: &Preparer) -> Map<String, Value> {
    let compute = &args.compute;
    let told = |name: &str, value: Value| (name.to_owned(), value);
    let mut parameters = Map::from_iter([
        told("--batch-size", compute.batch_size.into()),
        told("--prefill-chunk", compute.prefill_chunk.into()),
        told("--cache-bytes", compute.cache_bytes.into()),
        told("--max-memory", compute.max_memory.into()),
        told("--cache-entries", compute.cache_entries.into()),
        told(
            "--persist-cache",
            args.persist.persist_cache.as_ref().map(|path| path.display().to_string()).into(),
        ),
        told("--deterministic-ids", args.deterministic_ids.into()),
        told("--resume", args.resume.into()),
        told("--max-time", json!(args.max_time.map(|time| time.as_secs_f64()))),
        told("--timeout", json!(args.timeout.map(|time| time.as_secs_f64()))),
    ]);
    // Numbers as numbers: they are what a flag takes.
    let typed = |value: &str| serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    parameters
        .extend(preparer.fallback.as_flags().into_iter().map(|(flag, value)| told(flag, typed(&value))));
    parameters.extend(args.reply.as_flags().map(|(flag, value)| told(flag, value.into())));
    parameters
}
