//! What `--version -v` says of MLX.
//!
//! Owns which facts, and their order. Each comes from the module that knows it.

use super::{blas::Blas, device::ComputeDevice, sys};

/// Facts for `--version -v`: what is printed, in order, as name and value.
pub fn version_facts() -> Vec<(String, String)> {
    let device = ComputeDevice::current();
    vec![
        ("mlx".to_owned(), sys::mlx_version()),
        ("device".to_owned(), device.backend().to_owned()),
        ("blas".to_owned(), Blas::current().to_string()),
    ]
}
