//! Model folders, hub repositories and GGUF files, read into a layer description.
//!
//! Owns everything about a model that needs no tensors: where its files are, what its
//! configuration means, what its weights are called. Loading weights is `mlx/`'s business.

mod adapter;
mod block_names;
mod config;
mod config_gguf;
mod context;
pub mod files;
mod generation;
pub mod gguf;
mod gguf_names;
pub mod hub;
pub mod known_keys;
mod mlp_spec;
mod names;
mod recurrent_spec;
mod rope;
pub mod source;
mod spec;

pub use adapter::{Adapter, AdapterKind, AdapterWriter, LowRankUpdate, ReplacedWeight, UpdateShape};
pub use block_names::{
    AttentionNames, BlockNames, DeltaNames, ExpertNames, ExpertRows, FusedExperts, LatentNames, MlpNames,
    MoeNames, SingleExperts,
};
pub use config::{ConfigError, ModelConfig, model_types, read_config, read_model_config};
pub use config_gguf::{
    architectures::{gguf_architecture_names, gguf_architectures},
    read_gguf_config,
};
pub use context::ContextChoice;
pub use generation::{GenerationConfig, GenerationDefaults, read_generation_config, read_gguf_generation};
pub use gguf::{GgufError, GgufHeader};
pub use gguf_names::{GgufNames, GgufWeight, StoredForm};
pub use mlp_spec::{
    Activation, DenseSpec, ExpertGroups, GroupScore, MlpSpec, MoeSpec, RouterScore, RoutingSpec,
    SharedExpertSpec,
};
pub use names::WeightNames;
pub use recurrent_spec::{
    DeltaGate, DeltaProjections, GatedDeltaSpec, Mamba2Spec, RecurrentSpec, ShortConvSpec, StateNorm,
};
pub use rope::RopeSpec;
pub use source::{ModelFiles, ModelSource, SourceError};
pub use spec::{
    AttentionSpec, Fold, FoldFactors, GptqFormat, HeadNorms, KeyValueSource, KvLayout, LatentSpec, LayerSpec,
    MixerSpec, ModelSpec, NormKind, NormSpec, NormWeight, PerLayerInputSpec, PositionScale, PublisherFormat,
    Quantization, QuantizationMode, QuantizationSpec, ValueColumns,
};
