//! Attention over live KV, as pure functions of arrays.
//!
//! Owns which packed rows are attended how, and what both ways have in common: a prefill chunk (one
//! sequence, many query rows) is `chunk`'s, a decode step (many sequences, one row each) `decode`'s.
//! Both see their keys in pieces that are never joined: scores against each piece are taken apart,
//! and one maximum and one sum over all of them make it the softmax of plain attention. Where the KV
//! comes from is `live`'s business.

mod chunk;
mod decode;

use std::{cell::RefCell, collections::HashMap, ops::Range};

use mlx_rs::{Array, Dtype, ops};

use super::{
    arrays::{concatenated, rows_of},
    device::ComputeDevice,
    error::Result,
    kv::LayerKv,
    ops::Ops,
    sys,
};
use crate::models::AttentionSpec;

pub(super) use chunk::ChunkKv;
pub(super) use decode::{CohortRows, DecodeKv, RowsKv};

/// Attention of one layer on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub spec: &'a AttentionSpec,
    pub ops: &'a Ops,
    pub device: ComputeDevice,
    pub masks: &'a MaskCache,
}

/// Masks of one forward pass: layers of one kind hide the same keys.
#[derive(Debug, Default)]
pub(super) struct MaskCache(RefCell<HashMap<MaskKey, Array>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct MaskKey {
    /// Keys that each row sees, counted from the first.
    seen: Vec<Range<usize>>,
    num_keys: usize,
}

impl MaskCache {
    fn get(&self, key: MaskKey, make: impl FnOnce(&MaskKey) -> Result<Array>) -> Result<Array> {
        if let Some(mask) = self.0.borrow().get(&key) {
            return Ok(mask.clone());
        }
        let mask = make(&key)?;
        self.0.borrow_mut().insert(key, mask.clone());
        Ok(mask)
    }
}

/// KV of one layer as the packed rows of a pass see it, that of the rows themselves included.
#[derive(Debug)]
pub(super) struct PassKv {
    /// The first rows' of the pass, if it has decode rows.
    pub decode: Option<DecodeKv>,
    /// In the order of their rows.
    pub chunks: Vec<ChunkKv>,
}

impl Attention<'_> {
    fn num_groups(&self) -> i32 {
        (self.spec.num_heads / self.spec.num_kv_heads) as i32
    }

    fn dims(&self) -> (i32, i32) {
        (self.spec.num_kv_heads as i32, self.spec.head_dim as i32)
    }

    /// Attends consecutive packed rows of a pass, `(n, H, D)` after RoPE: `(n, H·D)`. Decode rows must
    /// all be among them or none.
    pub(super) fn rows(&self, queries: &Array, rows: &Range<usize>, kv: &PassKv) -> Result<Array> {
        let mut attended = Vec::with_capacity(1 + kv.chunks.len());
        let queries_of = |part: Range<usize>| {
            rows_of(queries, &(part.start - rows.start..part.end - rows.start), rows.len())
        };
        if let Some(decode) = kv.decode.as_ref().filter(|_| rows.start == 0) {
            attended.push(self.decode(&queries_of(0..decode.positions.len())?, decode)?);
        }
        for chunk in &kv.chunks {
            let part = rows.start.max(chunk.rows.start)..rows.end.min(chunk.rows.end);
            if !part.is_empty() {
                attended.push(self.chunk(&queries_of(part.clone())?, part, chunk)?);
            }
        }
        concatenated(attended, 0)
    }

    /// 0 where the row may see the key and -inf where not, `(n, L)`.
    fn causal_mask(&self, start: usize, num_rows: usize, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        self.mask(start..start + num_rows, kv, dtype)
    }

    fn mask(&self, rows: impl Iterator<Item = usize>, kv: &LayerKv, dtype: Dtype) -> Result<Array> {
        let index_of = |position: usize| position.saturating_sub(kv.first);
        let seen = rows.map(|row| index_of(self.oldest_seen(row))..index_of(row + 1)).collect();
        self.masks.get(MaskKey { seen, num_keys: kv.num_tokens() }, |key| {
            let mut mask = Vec::with_capacity(key.seen.len() * key.num_keys);
            for seen in &key.seen {
                mask.extend(
                    (0..key.num_keys).map(|key| if seen.contains(&key) { 0.0 } else { f32::NEG_INFINITY }),
                );
            }
            let shape = [key.seen.len() as i32, key.num_keys as i32];
            Ok(Array::from_slice(&mask, &shape).as_dtype(dtype)?)
        })
    }

    /// First position that the row at `position` may see.
    fn oldest_seen(&self, position: usize) -> usize {
        self.spec.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn scale_queries(&self, queries: &Array) -> Result<Array> {
        Ok(queries.multiply(Array::from_f32(self.spec.scale).as_dtype(queries.dtype())?)?)
    }

    fn cap(&self, scores: Array) -> Result<Array> {
        Ok(match self.spec.score_softcap {
            Some(cap) => self.ops.softcap(&scores, cap)?,
            None => scores,
        })
    }
}

/// Elementwise maximum of several arrays.
fn largest(arrays: &[Array]) -> Result<Array> {
    let (first, rest) = arrays.split_first().expect("the caller has at least one piece");
    rest.iter().try_fold(first.clone(), |max, array| Ok(ops::maximum(&max, array)?))
}

/// Elementwise sum of several arrays.
fn total(arrays: &[Array]) -> Result<Array> {
    let (first, rest) = arrays.split_first().expect("the caller has at least one piece");
    rest.iter().try_fold(first.clone(), |sum, array| Ok(sum.add(array)?))
}
