//! Loading the model of a run: from its description to something that can be asked.
//!
//! Owns the order of the steps and what is said about them with `-v`. Finding and describing a
//! model is `commands/model`'s business, each step `mlx/`'s.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::{persist, prepare::Preparer};
use crate::{
    batch::{Manifest, ReaderOptions, size_text},
    cli::{DEFAULT_MAX_TOKENS, RunArgs},
    commands::{
        identity::ComputedModel,
        interrupt::Interrupt,
        model::{Description, asked_dtype},
    },
    machine_memory,
    mlx::{Blas, ComputeDevice, ComputeDtype, LoadedModel, MlxRunner},
    snapshot::Snapshot,
    terminal::eprint_line,
    text::TextModel,
};

/// Limit of the prompt cache on machines that do not tell their memory.
const DEFAULT_CACHE_BYTES: u64 = 1 << 30;

/// What threads, their stacks and buffers of the BLAS take of it, beside the weights.
const MIN_ADDRESS_SPACE: u64 = 640 << 20;

/// Checks that this process may take the address space that a run needs at least, beside the weights. Libraries that
/// get none try again for ever.
pub(super) fn check_address_space(weight_bytes: u64) -> anyhow::Result<()> {
    let Some(left) = machine_memory::address_space_left() else { return Ok(()) };
    let needed = MIN_ADDRESS_SPACE.saturating_add(weight_bytes);
    if left < needed {
        bail!(
            "the limit on this process's address space (RLIMIT_AS, `ulimit -v`) leaves {}, and this run needs {} at \
             least: raise it",
            size_text(left),
            size_text(needed)
        );
    }
    Ok(())
}

/// A model whose small files are read, and its cache file.
pub(super) struct DescribedModel {
    description: Description,
    device: ComputeDevice,
    dtype: ComputeDtype,
    snapshot: Option<Snapshot>,
}

/// A model ready to answer.
pub(super) struct OpenModel {
    pub runner: MlxRunner,
    /// What it computes on.
    pub device: ComputeDevice,
    /// Tokens whose KV fits into memory beside the weights; `None` where that is not known.
    pub max_kv_tokens: Option<usize>,
    /// KV of one token, all layers.
    pub kv_bytes_per_token: u64,
    /// Limit of the prompt cache where no flag says otherwise.
    pub default_cache_bytes: u64,
    /// The cache file, if one is in use.
    pub snapshot: Option<Snapshot>,
}

impl DescribedModel {
    /// Finds the model that the flags name, reads its small files and opens the cache file.
    pub(super) fn read(args: &RunArgs, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let device = ComputeDevice::current();
        if let Some(warning) = Blas::current().warning(device) {
            super::warn(args, &[warning]);
        }
        let description = Description::read(&args.model, args.quiet)?;
        super::warn(args, description.text.warnings());
        let Description { name, spec, files, stored_dtype, .. } = &description;
        // Before the weights: where it is an error, it is one soon.
        let dtype = device.compute_dtype(asked_dtype(args.compute.dtype), *stored_dtype);
        let snapshot = persist::open(&args.persist, &ComputedModel { name, spec, files, dtype }, interrupt)?;
        super::warn(args, &snapshot.as_ref().map(persist::opening_warnings).unwrap_or_default());
        Ok(Self { description, device, dtype, snapshot })
    }

    /// What the output's `model` field says.
    pub(super) fn name(&self) -> &str {
        &self.description.name
    }

    /// All files that the model consists of.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.description.files.all
    }

    /// Checks that there is address space for the weights, too.
    pub(super) fn check_limits(&self) -> anyhow::Result<()> {
        check_address_space(self.description.files.weight_bytes())
    }

    pub(super) fn text(&self) -> &Arc<TextModel> {
        &self.description.text
    }

    /// What turns requests into prompts.
    pub(super) fn preparer(&self, args: &RunArgs) -> Preparer {
        let Description { spec, text, defaults, .. } = &self.description;
        Preparer {
            end_ids: Arc::from(text.end_ids()),
            fallback: args.generation.to_params().or(defaults),
            default_max_tokens: DEFAULT_MAX_TOKENS,
            max_context: spec.max_context,
            vocab_size: spec.vocab_size,
            has_checkpoints: spec.recurrent_layers().next().is_some(),
            reply: args.reply.settings(),
        }
    }

    /// What a report tells of it.
    pub(super) fn facts(&self) -> Map<String, Value> {
        let Description { name, spec, files, .. } = &self.description;
        let facts = json!({
            "name": name,
            "model_type": spec.model_type,
            "dtype": self.dtype.name(),
            "num_layers": spec.layers.len(),
            "vocab_size": spec.vocab_size,
            "max_context": spec.max_context,
            "kv_bytes_per_token": spec.kv_bytes_per_token(self.dtype.num_bytes()),
            "weight_file_bytes": files.weight_bytes(),
        });
        facts.as_object().cloned().unwrap_or_default()
    }

    /// What answers depend on beside their requests.
    pub(super) fn manifest(
        &self,
        preparer: &Preparer,
        args: &RunArgs,
        options: &ReaderOptions,
    ) -> anyhow::Result<Manifest> {
        let Description { name, spec, files, .. } = &self.description;
        let mut manifest = Manifest::default();
        manifest.say("mlxbatch", env!("CARGO_PKG_VERSION"));
        manifest.say("--model", name);
        for part in (ComputedModel { name, spec, files, dtype: self.dtype }).answer_parts()? {
            manifest.digest(&part.name, blake3::Hash::from(part.digest).to_hex().as_str());
        }
        manifest.say("--dtype", self.dtype.name());
        manifest.say("device", self.device.backend());
        let ends: Vec<String> = preparer.end_ids.iter().map(ToString::to_string).collect();
        manifest.say("end tokens", ends.join(", "));
        if let Some(rows) = &options.rows {
            manifest.say("rows", blake3::hash(rows.described().as_bytes()).to_hex().as_str());
        }
        for (flag, value) in args.reply.as_flags() {
            manifest.say(flag, value);
        }
        for (flag, value) in preparer.fallback.as_flags() {
            manifest.say(flag, value);
        }
        Ok(manifest)
    }

    /// Loads the weights.
    pub(super) fn load(self, args: &RunArgs, is_verbose: bool) -> anyhow::Result<OpenModel> {
        let Description { name, spec, weights, .. } = self.description;
        let loaded = LoadedModel::load(&spec, &weights, self.device, self.dtype)
            .with_context(|| format!("cannot load the model {name}"))?;
        if is_verbose {
            eprint_line(&format!(
                "model {name}: {}, {} layers, context {}, {} on {}, BLAS {}",
                spec.model_type,
                spec.layers.len(),
                spec.max_context,
                loaded.dtype().name(),
                self.device.backend(),
                Blas::current(),
            ));
        }
        let kv_bytes_per_token = spec.kv_bytes_per_token(loaded.dtype().num_bytes()).max(1);
        // The states of a whole batch: its rows side by side, and once more while rows come and go.
        let state_bytes =
            2 * u64::from(args.compute.batch_size) * spec.state_bytes(loaded.dtype().num_bytes()) as u64;
        // Most of what is left is for sequences that run. Stored prefixes that the run still needs
        // stay beyond their limit; it is what nobody may ask for again that it bounds.
        let free_bytes = crate::mlx::free_memory_bytes().map(|free| free.saturating_sub(state_bytes));
        let max_kv_tokens =
            free_bytes.map(|free| usize::try_from(free / 10 * 7).unwrap_or(usize::MAX) / kv_bytes_per_token);
        Ok(OpenModel {
            device: self.device,
            // Beside what sequences run on; rows that find no room are decoded one by one.
            runner: MlxRunner::new(loaded, free_bytes.map_or(u64::MAX, |free| free / 10)),
            max_kv_tokens,
            kv_bytes_per_token: kv_bytes_per_token as u64,
            snapshot: self.snapshot,
            default_cache_bytes: free_bytes.map_or(DEFAULT_CACHE_BYTES, |free| free / 32),
        })
    }
}
