//! Attention over some of the keys that rows see, to be merged with that over the others.
//!
//! Owns that form and the merging by log-sum-exp (online softmax, Milakov and Gimelshein, arXiv
//! 1805.02867; over a shared prefix, Hydragen, arXiv 2402.05099). What rows see is the callers' business.

use mlx_rs::{Array, ops};

use super::Result;
use crate::mlx::{
    arrays::concatenated,
    ops::{Ops, total},
};

/// What rows make of some keys, `(n, H_kv, G, X)` each; maxima and sums are float32.
#[derive(Debug, Clone)]
pub(super) struct Partial {
    /// Largest score of each row and head, X = 1.
    pub max: Array,
    /// Sum of e^(score - max), X = 1.
    pub sum: Array,
    /// Values weighed by e^(score - max), X = D.
    pub weighed: Array,
}

impl Partial {
    /// Consecutive rows' as those of all of them.
    pub(super) fn of_rows(parts: Vec<Self>) -> Result<Self> {
        let (mut max, mut sum, mut weighed) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            max.push(part.max);
            sum.push(part.sum);
            weighed.push(part.weighed);
        }
        Ok(Self {
            max: concatenated(max, 0)?,
            sum: concatenated(sum, 0)?,
            weighed: concatenated(weighed, 0)?,
        })
    }

    /// Attention over all keys of which these are parts, `(n, H_kv, G, D)`, of the values' type.
    pub(super) fn merged(parts: &[Self], ops: &Ops) -> Result<Array> {
        let (first, rest) = parts.split_first().expect("rows see themselves at least");
        let dtype = first.weighed.dtype();
        if rest.is_empty() {
            return Ok(first.weighed.divide(&first.sum)?.as_dtype(dtype)?);
        }
        let max = rest.iter().try_fold(first.max.clone(), |max, part| -> Result<Array> {
            Ok(ops::maximum(&max, &part.max)?)
        })?;
        let mut sums = Vec::with_capacity(parts.len());
        let mut weighed = Vec::with_capacity(parts.len());
        for part in parts {
            let scale = ops.exp_below(&part.max, &max)?;
            sums.push(part.sum.multiply(&scale)?);
            weighed.push(part.weighed.multiply(&scale)?);
        }
        Ok(total(&weighed)?.divide(total(&sums)?)?.as_dtype(dtype)?)
    }

    /// The same with its numbers one behind the other.
    pub(super) fn contiguous(&self) -> Result<Self> {
        let Self { max, sum, weighed } = self;
        Ok(Self { max: max.contiguous()?, sum: sum.contiguous()?, weighed: weighed.contiguous()? })
    }
}
