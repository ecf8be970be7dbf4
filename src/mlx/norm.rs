//! Root-mean-square norms.
//!
//! Owns their arithmetic. How a stored weight is to be read is `loader`'s.

use mlx_rs::{Array, fast};

use super::error::Result;

/// Root-mean-square norm over the last axis.
#[derive(Debug)]
pub(super) struct Norm {
    /// The factors themselves, however they are stored.
    pub weight: Array,
    pub eps: f32,
}

impl Norm {
    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        Ok(fast::rms_norm(x, Some(&self.weight), self.eps)?)
    }
}

/// Rows normed where there is a norm for them.
pub(super) fn normed_by(norm: Option<&Norm>, rows: Array) -> Result<Array> {
    match norm {
        Some(norm) => norm.forward(&rows),
        None => Ok(rows),
    }
}
