//! What `--model` names, read before any weights.
//!
//! Owns finding the model's files and reading the small ones, for all commands that need a model.
//! Loading weights is the business of those that compute.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;

use crate::{
    batch::RequestParams,
    cli::{DEFAULT_REVISION, DtypeArg, ModelArgs},
    mlx::{ComputeDtype, UsedAdapter, WeightSource},
    models::{
        Adapter, GenerationDefaults, GgufHeader, ModelFiles, ModelSource, ModelSpec, hub::HubOptions,
        read_generation_config, read_gguf_config, read_gguf_generation, read_model_config,
    },
    terminal::eprint_line,
    text::TextModel,
};

/// The files of a model by what they decide about; none but the weights has to be there.
#[derive(Debug, Clone, Default)]
pub(super) struct DescribedFiles {
    pub weights: Vec<PathBuf>,
    pub configuration: Vec<PathBuf>,
    pub tokenizer: Vec<PathBuf>,
    pub template: Vec<PathBuf>,
    /// All that belongs to it, whether it was read or not.
    pub all: Vec<PathBuf>,
}

impl DescribedFiles {
    /// What the weights take on disk.
    pub(super) fn weight_bytes(&self) -> u64 {
        let sizes = self.weights.iter().filter_map(|file| fs::metadata(file).ok());
        sizes.map(|file| file.len()).sum()
    }
}

/// What `--adapter` names, and how it is used.
#[derive(Debug)]
pub(super) struct DescribedAdapter {
    pub name: String,
    pub adapter: Adapter,
    pub is_fused: bool,
}

impl DescribedAdapter {
    /// As it is loaded.
    pub(super) fn used(&self) -> UsedAdapter<'_> {
        UsedAdapter { adapter: &self.adapter, is_fused: self.is_fused }
    }

    /// How it is used, for people and for digests.
    pub(super) fn place(&self) -> &'static str {
        if self.is_fused { "in the weights" } else { "beside the weights" }
    }
}

/// A model's small files.
pub(super) struct Description {
    /// What the output's `model` field says.
    pub name: String,
    pub spec: ModelSpec,
    pub text: Arc<TextModel>,
    pub weights: WeightSource,
    /// What the model's generation_config.json says.
    pub defaults: RequestParams,
    /// What the description was read from, and the weights.
    pub files: DescribedFiles,
    /// Element type of the weights as they are stored, where that is known.
    pub stored_dtype: Option<ComputeDtype>,
    /// Whether matrices are stored in groups of numbers that have something in common.
    pub is_quantized: bool,
    pub adapter: Option<DescribedAdapter>,
}

impl Description {
    /// Finds the model that the flags name, downloading it if need be, and reads its small files.
    pub(super) fn read(args: &ModelArgs, is_quiet: bool) -> anyhow::Result<Self> {
        let mut options = HubOptions::from_env();
        if args.revision != DEFAULT_REVISION {
            options.revision = Some(args.revision.clone());
        }
        options.offline |= args.offline;
        options.quiet |= is_quiet;
        options.hides_warnings = is_quiet;
        let (mut description, mut warnings) = Self::of(ModelSource::resolve(&args.model, &options)?)?;
        if args.long_context {
            let name = &description.name;
            description.spec = description.spec.for_long_contexts().with_context(|| {
                format!(
                    "{name} has no LongRoPE with other factors for long contexts: leave --long-context out"
                )
            })?;
        }
        if let Some((dir, name)) = args.adapter.as_deref().zip(args.adapter_name()) {
            let adapter = Adapter::read(dir, &description.spec)?;
            warnings.extend(adapter.warnings.iter().cloned());
            description.files.all.extend(adapter.files());
            description.name = format!("{}:{name}", description.name);
            description.adapter = Some(DescribedAdapter { name, adapter, is_fused: args.fuse_adapter });
        }
        if !is_quiet {
            for warning in warnings {
                eprint_line(&format!("mlxbatch: warning: {warning}"));
            }
        }
        Ok(description)
    }

    /// Reads the files; the texts are what there is to warn of.
    fn of(files: ModelFiles) -> anyhow::Result<(Self, Vec<String>)> {
        Ok(match files {
            ModelFiles::Folder { dir, name, weights } => {
                let path = dir.join("config.json");
                let (config, generation) = (read_model_config(&path)?, read_generation_config(&dir)?);
                let description = Self {
                    is_quantized: config.spec.quantization.is_some(),
                    files: DescribedFiles {
                        weights: weights.clone(),
                        configuration: vec![path],
                        tokenizer: vec![dir.join("tokenizer.json")],
                        template: vec![dir.join("chat_template.jinja"), dir.join("tokenizer_config.json")],
                        all: model_files(&dir)?,
                    },
                    name,
                    spec: config.spec,
                    text: Arc::new(TextModel::from_folder(&dir)?),
                    defaults: params_of(generation.defaults),
                    stored_dtype: config.stored_dtype.as_deref().and_then(dtype_named),
                    weights: WeightSource::Safetensors(weights),
                    adapter: None,
                };
                (description, [config.warnings, generation.warnings].concat())
            }
            ModelFiles::Gguf { path, name } => {
                let header = GgufHeader::read(&path)?;
                let (config, generation) = (read_gguf_config(&header)?, read_gguf_generation(&header)?);
                let description = Self {
                    is_quantized: header
                        .tensors()
                        .iter()
                        .any(|tensor| tensor.ggml_type.num_block_elements() > 1),
                    // All in one, or in the parts that it is split into.
                    files: DescribedFiles {
                        weights: header.files().to_vec(),
                        all: header.files().to_vec(),
                        ..DescribedFiles::default()
                    },
                    name,
                    spec: config.spec,
                    text: Arc::new(TextModel::from_gguf(&header)?),
                    defaults: params_of(generation.defaults),
                    stored_dtype: config.stored_dtype.as_deref().and_then(dtype_named),
                    weights: WeightSource::Gguf(path),
                    adapter: None,
                };
                (description, [config.warnings, generation.warnings].concat())
            }
        })
    }
}

/// What names of files that belong to a model begin with.
const MODEL_FILE_NAMES: [&str; 11] = [
    "added_tokens.",
    "chat_template.",
    "config.json",
    "generation_config.",
    "merges.",
    "model.",
    "preprocessor_config.",
    "processor_config.",
    "special_tokens_map.",
    "tokenizer",
    "vocab.",
];

/// The files of a folder that belong to a model, by their names.
fn model_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let is_of_model = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(".safetensors") || MODEL_FILE_NAMES.iter().any(|known| name.starts_with(known))
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(is_of_model).collect())
}

/// The element type that `--dtype` asks for; `None` leaves the choice to the device.
pub(super) fn asked_dtype(dtype: DtypeArg) -> Option<ComputeDtype> {
    match dtype {
        DtypeArg::Auto => None,
        DtypeArg::F32 => Some(ComputeDtype::Float32),
        DtypeArg::F16 => Some(ComputeDtype::Float16),
        DtypeArg::Bf16 => Some(ComputeDtype::Bfloat16),
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

/// The element type that a configuration calls by this name.
fn dtype_named(name: &str) -> Option<ComputeDtype> {
    match name {
        "float32" => Some(ComputeDtype::Float32),
        "float16" => Some(ComputeDtype::Float16),
        "bfloat16" => Some(ComputeDtype::Bfloat16),
        _ => None,
    }
}
