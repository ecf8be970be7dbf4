//! Flags that name the model and what is trained on top of it.
//!
//! Owns names and wording as `cli` does for the rest. Finding the files is `commands/model`'s business.

use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};

use super::{DEFAULT_MODEL, DEFAULT_REVISION, MODEL_VARIABLE, values};

#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Folder in the Hugging Face or MLX layout, .gguf file, or hub repository
    ///
    /// A repository is downloaded once and kept in HF_HOME or HF_HUB_CACHE; HF_TOKEN opens private ones,
    /// HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE set to 1 keeps off the network. Without this flag MLXBATCH_MODEL names the model.
    #[arg(short, long, env = MODEL_VARIABLE, hide_env_values = true, value_name = "MODEL")]
    #[arg(default_value = DEFAULT_MODEL, value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = values::model)]
    pub model: String,

    /// Branch, tag or commit of the hub repository
    #[arg(long, value_name = "REVISION", default_value = DEFAULT_REVISION)]
    pub revision: String,

    /// Serve contexts longer than the model was first made for, where it has LongRoPE
    ///
    /// Models such as Phi-3.5 and Phi-4 mini have one set of factors for positions up to some 4,096 tokens, and another
    /// for all that they can do, 131,072 tokens. With this flag all requests of the run are computed with the latter,
    /// whatever their length, as vLLM does; answers to short ones then differ a little from those without it. Cache
    /// files know it.
    #[arg(long)]
    pub long_context: bool,

    /// Use only files that are already on this machine
    #[arg(long)]
    pub offline: bool,

    /// Folder of an adapter for the model, as mlx_lm.lora or peft writes it
    ///
    /// LoRA or DoRA of linear layers and experts, or weights that take the place of the model's. It is computed
    /// beside the weights, which stay quantised, and answers every request of the run; records then name the model as
    /// MODEL:ADAPTER, the adapter by its folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub adapter: Option<PathBuf>,

    /// Add the adapter into the weights while they are loaded
    ///
    /// Each step then does less, and answers may differ in the last bits; quantised matrices that are adapted become
    /// plain numbers, which take more memory.
    #[arg(long, requires = "adapter")]
    pub fuse_adapter: bool,
}

impl ModelArgs {
    /// What the adapter is called, if there is one: as its folder.
    pub fn adapter_name(&self) -> Option<String> {
        let dir = self.adapter.as_ref()?;
        let named = |dir: &Path| dir.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = named(dir).or_else(|| named(&dir.canonicalize().ok()?));
        Some(name.unwrap_or_else(|| "adapter".to_owned()))
    }
}
