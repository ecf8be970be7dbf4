//! Model folders, hub repositories and GGUF files, read into a layer description.
//!
//! Owns everything about a model that needs no tensors: where its files are, what its
//! configuration means, what its weights are called. Loading weights is `mlx/`'s business.

pub mod files;
pub mod hub;
pub mod source;

pub use source::{ModelFiles, ModelSource, SourceError};
