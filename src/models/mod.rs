//! Model folders, hub repositories and GGUF files, read into a layer description.
//!
//! Owns everything about a model that needs no tensors: where its files are, what its
//! configuration means, what its weights are called. Loading weights is `mlx/`'s business.

mod config;
mod rope;
mod spec;

pub use config::{ConfigError, read_config};
pub use rope::RopeSpec;
pub use spec::{
    Activation, AttentionSpec, LayerSpec, ModelSpec, NormSpec, Quantization, QuantizationSpec, WeightNames,
};
