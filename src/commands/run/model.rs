//! Loading the model of a run: from its description to something that can be asked.
//!
//! Owns the order of the steps and what is said about them with `-v`. Finding and describing a
//! model is `commands/model`'s business, each step `mlx/`'s.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::{
    budget::{Budget, Memory},
    persist,
    prepare::Preparer,
};
use crate::{
    batch::{Manifest, ReaderOptions, enough_text, size_text},
    cli::{DEFAULT_MAX_TOKENS, RunArgs},
    commands::{
        identity::ComputedModel,
        interrupt::Interrupt,
        memory_needs::{BatchShape, MemoryNeeds},
        model::{DescribedAdapter, Description, asked_dtype},
    },
    machine_memory,
    mlx::{self, Blas, ComputeDevice, ComputeDtype, LoadedModel, MlxRunner},
    models::Adapter,
    snapshot::Snapshot,
    terminal::eprint_line,
    text::TextModel,
    threads,
};

/// What a run takes of it, beside the weights, and what each core adds: threads with deep stacks, their heaps, and
/// buffers of the BLAS.
const MIN_ADDRESS_SPACE: u64 = 640 << 20;
const ADDRESS_SPACE_PER_CORE: u64 = 448 << 20;

/// Threads that a run starts at most, those of MLX included, beside some for each core.
const NUM_THREADS: usize = 8;
const NUM_THREADS_PER_CORE: usize = 2;

/// Checks that the threads of a run can be started. Libraries that get none end the process, or wait for ever.
pub(super) fn check_threads() -> anyhow::Result<()> {
    let num_threads = NUM_THREADS + NUM_THREADS_PER_CORE * threads::num_cores();
    threads::can_start(num_threads).with_context(|| {
        format!(
            "a run needs {num_threads} threads, and the system does not start as many: raise the limit on processes \
             (RLIMIT_NPROC, `ulimit -u`), or that of the container (`pids.max`)"
        )
    })
}

/// Checks that this process might take the address space that a run needs at least, beside the weights, when it was
/// first asked: since then the run has begun to take it. Libraries that get none try again for ever.
pub(super) fn check_address_space(weight_bytes: u64) -> anyhow::Result<()> {
    static AT_FIRST: OnceLock<Option<u64>> = OnceLock::new();
    let Some(left) = *AT_FIRST.get_or_init(machine_memory::address_space_left) else { return Ok(()) };
    let of_cores = ADDRESS_SPACE_PER_CORE * threads::num_cores() as u64;
    let needed = (MIN_ADDRESS_SPACE + of_cores).saturating_add(weight_bytes);
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
    /// KV of one token, all layers.
    pub kv_bytes_per_token: u64,
    /// What it takes, and what may come to it.
    pub memory: RunMemory,
    /// The cache file, if one is in use.
    pub snapshot: Option<Snapshot>,
}

/// What a run takes of memory, and what it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunMemory {
    /// Weights as they are loaded, and estimates of the rest.
    pub needs: MemoryNeeds,
    pub budget: Budget,
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
        let Description { name, spec, files, stored_dtype, adapter, .. } = &description;
        // Before the weights: where it is an error, it is one soon.
        let dtype = device.compute_dtype(asked_dtype(args.compute.dtype), *stored_dtype);
        let computed = ComputedModel { name, spec, files, adapter: adapter.as_ref(), dtype };
        let snapshot = persist::open(&args.persist, &computed, interrupt)?;
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

    /// Checks that there is room for the weights, too, and has them take no more than they may.
    pub(super) fn check_limits(&self, args: &RunArgs) -> anyhow::Result<()> {
        check_address_space(self.description.files.weight_bytes())?;
        if let Some(max_bytes) = args.compute.max_memory {
            machine_memory::limit_process(max_bytes);
        }
        let needed = MemoryNeeds::of(&self.description, self.device, self.dtype, shape_of(args)).weight_bytes;
        // As stored they may be smaller, but no less is read.
        let needed = needed.min(self.description.files.weight_bytes());
        match args.compute.max_memory {
            Some(max_bytes) if max_bytes < needed => bail!(
                "--max-memory {} is too little: the weights of {} take {} already",
                size_text(max_bytes),
                self.description.name,
                enough_text(needed)
            ),
            _ => Ok(()),
        }
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
            max_long_context: spec.context.max_long_context(),
            vocab_size: spec.vocab_size,
            has_checkpoints: spec.recurrent_layers().next().is_some(),
            reply: args.reply.settings(),
        }
    }

    /// What a report tells of it.
    pub(super) fn facts(&self) -> Map<String, Value> {
        let Description { name, spec, files, adapter, .. } = &self.description;
        let adapter = adapter.as_ref().map(|adapter| {
            json!({
                "name": adapter.name,
                "kind": adapter.adapter.kind.name(),
                "num_updates": adapter.adapter.updates.len(),
                "num_replaced": adapter.adapter.replaced.len(),
                "is_fused": adapter.is_fused,
            })
        });
        let facts = json!({
            "name": name,
            "model_type": spec.model_type,
            "dtype": self.dtype.name(),
            "num_layers": spec.layers.len(),
            "vocab_size": spec.vocab_size,
            "max_context": spec.max_context,
            "kv_bytes_per_token": spec.kv_bytes_per_token(self.dtype.num_bytes()),
            "weight_file_bytes": files.weight_bytes(),
            "adapter": adapter,
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
        let Description { name, spec, files, adapter, .. } = &self.description;
        let mut manifest = Manifest::default();
        manifest.say("mlxbatch", env!("CARGO_PKG_VERSION"));
        manifest.say("--model", name);
        let computed = ComputedModel { name, spec, files, adapter: adapter.as_ref(), dtype: self.dtype };
        for part in computed.answer_parts()? {
            manifest.digest(&part.name, blake3::Hash::from(part.digest).to_hex().as_str());
        }
        manifest.say("--dtype", self.dtype.name());
        manifest.say("device", self.device.backend());
        let ends: Vec<String> = preparer.end_ids.iter().map(ToString::to_string).collect();
        manifest.say("end tokens", ends.join(", "));
        if let Some(rows) = &options.rows {
            manifest.say(Manifest::ROWS, blake3::hash(rows.described().as_bytes()).to_hex().as_str());
        }
        for (flag, value) in args.reply.as_flags() {
            manifest.say(flag, value);
        }
        for (flag, value) in preparer.fallback.as_flags() {
            manifest.say(flag, value);
        }
        if let Some(lines) = &options.shard {
            manifest.set_shard(lines.facts.clone());
        }
        Ok(manifest)
    }

    /// Loads the weights.
    pub(super) fn load(self, args: &RunArgs, is_verbose: bool) -> anyhow::Result<OpenModel> {
        let Description { name, spec, weights, adapter, .. } = self.description;
        let used = adapter.as_ref().map(DescribedAdapter::used);
        let loaded = LoadedModel::load_adapted(&spec, &weights, used, self.device, self.dtype)
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
        if let Some(adapter) = adapter.filter(|_| is_verbose) {
            let DescribedAdapter { name, adapter: Adapter { kind, updates, replaced, .. }, .. } = &adapter;
            eprint_line(&format!(
                "adapter {name}: {}, {} matrices updated {}, {} weights replaced",
                kind.name(),
                updates.len(),
                adapter.place(),
                replaced.len(),
            ));
        }
        let kv_bytes_per_token = spec.kv_bytes_per_token(loaded.dtype().num_bytes()).max(1) as u64;
        let needs = MemoryNeeds {
            weight_bytes: mlx::active_memory_bytes().unwrap_or(0),
            ..MemoryNeeds::beside_weights(&spec, loaded.dtype(), shape_of(args))
        };
        let memory = Memory {
            free_bytes: mlx::free_memory_bytes(),
            taken_bytes: machine_memory::resident_bytes().unwrap_or(0).max(needs.weight_bytes),
            max_bytes: args.compute.max_memory,
        };
        let budget = Budget::of(memory, &needs, kv_bytes_per_token, args.compute.cache_bytes)?;
        if args.compute.cache_bytes.is_some_and(|asked| asked > budget.max_cache_bytes) {
            let told = size_text(budget.max_cache_bytes);
            super::warn(
                args,
                &[format!("--cache-bytes is cut to {told}: --max-memory leaves no more for it")],
            );
        }
        if is_verbose {
            let kv_bytes = budget.max_kv_tokens.map(|max| size_text(max as u64 * kv_bytes_per_token));
            eprint_line(&format!(
                "memory: weights {}, working memory {} at --batch-size {}, KV up to {}, prompt cache up to {}",
                size_text(needs.weight_bytes),
                size_text(needs.beside()),
                args.compute.batch_size,
                kv_bytes.as_deref().unwrap_or("what there is"),
                size_text(budget.max_cache_bytes)
            ));
        }
        Ok(OpenModel {
            device: self.device,
            runner: MlxRunner::new(loaded, budget.max_copied_bytes),
            kv_bytes_per_token,
            memory: RunMemory { needs, budget },
            snapshot: self.snapshot,
        })
    }
}

fn shape_of(args: &RunArgs) -> BatchShape {
    BatchShape { batch_size: args.compute.batch_size, prefill_chunk: args.compute.prefill_chunk }
}
