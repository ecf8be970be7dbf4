//! Attention over some of the keys that rows see, to be merged with that over the others.
//!
//! Owns that form and the merging by log-sum-exp (online softmax, Milakov and Gimelshein, arXiv
//! 1805.02867; over a shared prefix, Hydragen, arXiv 2402.05099). What rows see is the callers' business.

use mlx_rs::{Array, ops};

use super::Result;
use crate::mlx::{
    device::ComputeDevice,
    fused::{NOTHING_SEEN, weight_of},
    host::{is_for_host, numbers_of, stacked},
    ops::{Ops, total},
    sys,
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
    pub(super) fn of_rows(parts: Vec<Self>, device: ComputeDevice) -> Result<Self> {
        let (mut max, mut sum, mut weighed) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            max.push(part.max);
            sum.push(part.sum);
            weighed.push(part.weighed);
        }
        Ok(Self {
            max: stacked(max, device)?,
            sum: stacked(sum, device)?,
            weighed: stacked(weighed, device)?,
        })
    }

    /// Attention over all keys of which these are parts, `(n, H_kv, G, D)`, of the values' type.
    pub(super) fn merged(parts: &[Self], ops: &Ops) -> Result<Array> {
        let (first, rest) = parts.split_first().expect("rows see themselves at least");
        let are_alike = |part: &Self| {
            is_for_host(&part.weighed, ops.device()) && part.weighed.shape() == first.weighed.shape()
        };
        if parts.iter().all(are_alike) {
            return Self::merged_by_host(parts);
        }
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

    /// [`Self::merged`] of float32 numbers of as many rows in each part.
    fn merged_by_host(parts: &[Self]) -> Result<Array> {
        let parts = parts.iter().map(Self::in_order).collect::<Result<Vec<_>>>()?;
        let numbers = parts
            .iter()
            .map(|part| Ok((numbers_of(&part.max)?, numbers_of(&part.sum)?, numbers_of(&part.weighed)?)));
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        let shape = parts[0].weighed.shape();
        let width = parts[0].weighed.dim(-1) as usize;
        let mut merged = vec![0.0; parts[0].weighed.size()];
        for (row, merged) in merged.chunks_exact_mut(width).enumerate() {
            // The largest; one that is no number stays none.
            let largest =
                |left: f32, (max, ..): &(&[f32], _, _)| if max[row] <= left { left } else { max[row] };
            let largest = numbers.iter().fold(NOTHING_SEEN, largest);
            let mut all = 0.0;
            for (max, sum, weighed) in &numbers {
                let scale = weight_of(max[row], largest);
                all += sum[row] * scale;
                let weighed = &weighed[row * width..][..width];
                merged.iter_mut().zip(weighed).for_each(|(merged, value)| *merged += value * scale);
            }
            merged.iter_mut().for_each(|value| *value /= all);
        }
        Ok(Array::from_slice(&merged, shape))
    }

    /// The same, computed, its numbers one behind the other.
    pub(super) fn in_order(&self) -> Result<Self> {
        let Self { max, sum, weighed } = self;
        let in_order = |array| -> Result<Array> { Ok(sys::in_order(array)?.into_owned()) };
        Ok(Self { max: in_order(max)?, sum: in_order(sum)?, weighed: in_order(weighed)? })
    }
}
