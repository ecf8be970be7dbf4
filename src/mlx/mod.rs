//! Everything that touches tensors; the only folder that names `mlx_rs`.
//!
//! Owns devices, weights, layers, attention, live KV and sampling, behind [`MlxRunner`].

mod adapter;
mod arrays;
mod asked;
mod attention;
mod blas;
mod block;
mod block_pass;
mod cohort;
mod compiled;
mod costs;
mod decoder;
mod device;
mod error;
mod experts;
mod facts;
mod fused;
mod host;
mod host_matrices;
mod kv;
mod latent_attention;
mod linear;
mod live;
mod loader;
mod logit_edits;
mod logit_rows;
mod low_rank;
mod matrices;
mod mlp;
mod model;
mod moe;
mod norm;
mod ops;
mod packed;
mod packed_products;
mod per_layer;
mod planes;
mod products;
mod prompt_kv;
mod publishers;
mod quantized;
mod read_shared;
mod recurrent;
mod reports;
mod rope;
mod row_loops;
mod runner;
mod sampler;
mod segment;
mod self_attention;
mod slab;
mod states;
mod sys;
mod weights;
mod weights_gguf;

pub use adapter::UsedAdapter;
pub use blas::{Blas, restart_with_better_kernels};
pub use device::{
    ComputeDevice, ComputeDtype, active_memory_bytes, exit_at_once, free_memory_bytes,
    ignore_file_size_signal, peak_memory_bytes,
};
pub use error::MlxError;
pub use facts::version_facts;
pub use model::{LoadedModel, WeightSource, has_even_rows, matrix_bytes};
pub use runner::MlxRunner;
