//! Opening the model of a run: from `--model` to something that can be asked.
//!
//! Owns the order of the steps and what is said about them with `-v`. Each step is in `models/`,
//! `text/` or `mlx/`.

use std::path::Path;

use anyhow::Context;

use crate::{
    batch::RequestParams,
    cli::{DtypeArg, RunArgs},
    mlx::{Blas, ComputeDevice, ComputeDtype, LoadedModel, MlxRunner, WeightSource},
    models::{
        GenerationDefaults, GgufHeader, ModelFiles, ModelSource, ModelSpec, hub::HubOptions, read_config,
        read_generation_config, read_gguf_config,
    },
    text::TextModel,
};

/// Limit of the prompt cache on machines that do not tell their memory.
const DEFAULT_CACHE_BYTES: u64 = 2 << 30;

/// A model ready to answer.
pub(super) struct OpenModel {
    /// What the output's `model` field says.
    pub name: String,
    pub spec: ModelSpec,
    pub text: TextModel,
    pub runner: MlxRunner,
    /// What the model's generation_config.json says.
    pub defaults: RequestParams,
    /// Tokens whose KV fits into memory beside the weights; `None` where that is not known.
    pub max_kv_tokens: Option<usize>,
    /// Limit of the prompt cache where no flag says otherwise.
    pub default_cache_bytes: u64,
}

/// A model's small files, read before its weights.
struct Description {
    name: String,
    spec: ModelSpec,
    text: TextModel,
    weights: WeightSource,
    generation: GenerationDefaults,
    stored_dtype: Option<ComputeDtype>,
}

impl OpenModel {
    /// Finds, reads and loads the model that the flags name.
    pub(super) fn open(args: &RunArgs, is_verbose: bool) -> anyhow::Result<Self> {
        let device = ComputeDevice::current();
        if let Some(warning) = Blas::current().warning(device) {
            super::warn(args, &[warning]);
        }
        let mut options = HubOptions::from_env();
        if args.model.revision != crate::cli::DEFAULT_REVISION {
            options.revision = Some(args.model.revision.clone());
        }
        options.offline |= args.model.offline;
        options.quiet |= args.quiet;
        options.hides_warnings = args.quiet;
        let description = describe(ModelSource::resolve(&args.model.model, &options)?)?;
        let dtype = match args.compute.dtype {
            DtypeArg::Auto => None,
            DtypeArg::F32 => Some(ComputeDtype::Float32),
            DtypeArg::F16 => Some(ComputeDtype::Float16),
            DtypeArg::Bf16 => Some(ComputeDtype::Bfloat16),
        };
        let loaded =
            LoadedModel::load(&description.spec, &description.weights, dtype, description.stored_dtype)
                .with_context(|| format!("cannot load the model {}", description.name))?;
        if is_verbose {
            super::eprint_line(&format!(
                "model {}: {}, {} layers, context {}, {} on {}, BLAS {}",
                description.name,
                description.spec.model_type,
                description.spec.layers.len(),
                description.spec.max_context,
                loaded.dtype().name(),
                device.backend(),
                Blas::current(),
            ));
        }
        let kv_bytes_per_token = description.spec.kv_bytes_per_token(loaded.dtype().num_bytes()).max(1);
        // What is left is shared between stored prefixes and the sequences that run.
        let free_bytes = crate::mlx::free_memory_bytes();
        let share = |free: u64| free / 10 * 4;
        let max_kv_tokens =
            free_bytes.map(|free| usize::try_from(share(free)).unwrap_or(usize::MAX) / kv_bytes_per_token);
        Ok(Self {
            name: description.name,
            spec: description.spec,
            text: description.text,
            runner: MlxRunner::new(loaded),
            defaults: params_of(description.generation),
            max_kv_tokens,
            default_cache_bytes: free_bytes.map_or(DEFAULT_CACHE_BYTES, share),
        })
    }
}

fn params_of(defaults: GenerationDefaults) -> RequestParams {
    RequestParams {
        max_tokens: defaults.max_new_tokens,
        temperature: defaults.temperature,
        top_p: defaults.top_p,
        top_k: defaults.top_k,
        min_p: defaults.min_p,
        ..RequestParams::default()
    }
}

fn describe(files: ModelFiles) -> anyhow::Result<Description> {
    Ok(match files {
        ModelFiles::Folder { dir, name, weights } => {
            let config = dir.join("config.json");
            Description {
                name,
                spec: read_config(&config)?,
                text: TextModel::from_folder(&dir)?,
                generation: read_generation_config(&dir)?,
                stored_dtype: stored_dtype(&config),
                weights: WeightSource::Safetensors(weights),
            }
        }
        ModelFiles::Gguf { path, name } => {
            let header = GgufHeader::read(&path)?;
            Description {
                name,
                spec: read_gguf_config(&header)?,
                text: TextModel::from_gguf(&header)?,
                generation: GenerationDefaults::default(),
                stored_dtype: Some(ComputeDtype::Float16),
                weights: WeightSource::Gguf(path),
            }
        }
    })
}

/// Element type that a configuration says its weights have.
fn stored_dtype(config: &Path) -> Option<ComputeDtype> {
    let text = std::fs::read_to_string(config).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    let name = value.get("dtype").or_else(|| value.get("torch_dtype"))?.as_str()?;
    match name {
        "float32" => Some(ComputeDtype::Float32),
        "float16" => Some(ComputeDtype::Float16),
        "bfloat16" => Some(ComputeDtype::Bfloat16),
        _ => None,
    }
}
