//! Sinks: a score of each head that takes its share of the softmax and has no value.
//!
//! Owns them in the forms in which the ways to attend want them (gpt-oss; Xiao et al., arXiv 2309.17453).

use mlx_rs::{Array, Dtype, ops};

use super::{Result, partial::Partial};
use crate::{mlx::error::MlxError, models::AttentionSpec};

/// The sinks of one layer.
#[derive(Debug)]
pub(in crate::mlx) struct Sinks {
    /// `(H,)`.
    pub by_head: Array,
    /// `(1, H_kv, G, 1)`, float32.
    scores: Array,
    /// The same numbers.
    pub numbers: Vec<f32>,
}

impl Sinks {
    /// Takes the scores of all heads, `(H,)`.
    pub(in crate::mlx) fn new(by_head: Array, spec: &AttentionSpec) -> Result<Self> {
        let wide = by_head.as_dtype(Dtype::Float32)?;
        let num_groups = (spec.num_heads / spec.num_kv_heads) as i32;
        let scores = wide.reshape(&[1, spec.num_kv_heads as i32, num_groups, 1])?;
        mlx_rs::transforms::eval([&by_head, &wide, &scores])?;
        let unreadable = |error| MlxError::Unsupported(format!("sinks cannot be read: {error}"));
        let numbers = wide.to_vec_exact::<f32>().map_err(unreadable)?;
        Ok(Self { by_head, scores, numbers })
    }

    /// One more score for each of some rows, `(n, H_kv, G, 1)`.
    pub(super) fn of_rows(&self, num_rows: usize) -> Result<Array> {
        let shape = self.scores.shape();
        Ok(ops::broadcast_to(&self.scores, &[num_rows as i32, shape[1], shape[2], 1])?)
    }

    /// What rows make of the sink, which has no value: `(1, H_kv, G, 1)` each.
    pub(super) fn partial(&self) -> Result<Partial> {
        let ones = ops::ones_like(&self.scores)?;
        let nothing = ops::zeros_like(&self.scores)?;
        Ok(Partial { max: self.scores.clone(), sum: ones, weighed: nothing })
    }
}
