//! Norms over the last axis.
//!
//! Owns their arithmetic. How a stored weight is to be read is `loader`'s.

use mlx_rs::{Array, fast};

use super::error::Result;
use crate::models::NormKind;

/// A norm over the last axis.
#[derive(Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    /// The factors themselves, however they are stored; `None`: there are none.
    pub weight: Option<Array>,
    pub eps: f32,
}

impl Norm {
    /// The norm without factors.
    pub(super) fn weightless(eps: f32) -> Self {
        Self { kind: NormKind::RootMeanSquare, weight: None, eps }
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        Ok(match self.kind {
            NormKind::RootMeanSquare => fast::rms_norm(x, self.weight.as_ref(), self.eps)?,
            NormKind::Layer => fast::layer_norm(x, self.weight.as_ref(), None, self.eps)?,
        })
    }
}

/// Rows normed where there is a norm for them.
pub(super) fn normed_by(norm: Option<&Norm>, rows: Array) -> Result<Array> {
    match norm {
        Some(norm) => norm.forward(&rows),
        None => Ok(rows),
    }
}
