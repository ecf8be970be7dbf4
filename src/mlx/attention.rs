//! Attention over live KV, as pure functions of arrays.
//!
//! Owns which packed rows are attended how, and what all ways have in common. A prefill chunk (one
//! sequence, many query rows) is `chunk`'s, several on the same segments are `run`'s, a decode step (many
//! sequences, one row each) is `decode`'s, what many sequences see alike `shared`'s, products on the CPU are
//! `host_products`'s, and rows for which no products are worth making are `strip_rows`'s. All see their keys in
//! pieces that are never joined; what comes of each is merged into the softmax of plain attention, which
//! is `partial`'s. Where the KV comes from is `live`'s business.

mod chunk;
mod decode;
#[cfg(target_os = "linux")]
mod host_products;
mod partial;
mod run;
mod shared;
mod sinks;
mod strip_rows;
mod strips;

use std::{cell::RefCell, collections::HashMap, ops::Range};

use mlx_rs::{Array, Dtype};

use super::{
    arrays::{concatenated, overlap, rows_of, within},
    costs::Costs,
    device::ComputeDevice,
    error::Result,
    host,
    kv::LayerKv,
    ops::{Ops, SoftmaxWeights},
};
use crate::models::AttentionSpec;

pub(super) use chunk::ChunkKv;
pub(super) use decode::{DecodeKv, PieceKv, SlabKv};
pub(super) use run::RunKv;
pub(super) use sinks::Sinks;

use partial::Partial;
use strip_rows::StripRows;
use strips::HeadShape;

/// Whether prefill chunks are attended in MLX's fused kernel, which wants all that they see in one array.
pub(super) fn chunks_are_fused(device: ComputeDevice, spec: &AttentionSpec) -> bool {
    device == ComputeDevice::Gpu && spec.score_softcap.is_none()
}

/// How the rows of a layer see its KV, as far as that decides how it is kept.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KvSight {
    /// No row, of this layer or of one that uses its KV too, sees more of the last tokens than so many.
    pub window: Option<usize>,
    /// Decode rows always see it by products in float32.
    pub is_capped: bool,
}

impl KvSight {
    /// That of a layer, whose KV others may use too.
    pub(super) fn of(spec: &AttentionSpec, are_shared: bool) -> Self {
        // They may see further.
        Self { window: spec.window.filter(|_| !are_shared), is_capped: spec.score_softcap.is_some() }
    }
}

/// Attention of one layer on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub spec: &'a AttentionSpec,
    pub sinks: Option<&'a Sinks>,
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
    /// The chunks, in the order of their rows.
    pub runs: Vec<RunKv>,
}

impl PassKv {
    /// The runs that these rows are of, and which of them are each one's.
    fn runs_of(&self, rows: &Range<usize>) -> impl Iterator<Item = (&RunKv, Range<usize>)> {
        let parts = self.runs.iter().map(|run| (run, overlap(rows, &run.rows())));
        parts.filter(|(_, part)| !part.is_empty())
    }
}

impl Attention<'_> {
    /// The sinks for MLX's fused kernel, which wants them in the queries' type.
    fn sinks_of(&self, queries: &Array) -> Result<Option<Array>> {
        self.sinks.map(|sinks| Ok(sinks.by_head.as_dtype(queries.dtype())?)).transpose()
    }

    fn num_groups(&self) -> i32 {
        (self.spec.num_heads / self.spec.num_kv_heads) as i32
    }

    fn dims(&self) -> (i32, i32) {
        (self.spec.num_kv_heads as i32, self.spec.head_dim as i32)
    }

    fn head_shape(&self) -> HeadShape {
        HeadShape {
            num_kv_heads: self.spec.num_kv_heads,
            num_groups: self.num_groups() as usize,
            key_dim: self.spec.head_dim,
            value_dim: self.spec.value_dim(),
        }
    }

    /// Width of what rows make of what they see, all heads' together.
    fn width(&self) -> i32 {
        (self.spec.num_heads * self.spec.value_dim()) as i32
    }

    /// Attends consecutive packed rows of a pass, `(n, H, D)` after RoPE: `(n, H·D)`, where the second D is
    /// the values'. Decode rows must
    /// all be among them or none.
    pub(super) fn rows(&self, queries: &Array, rows: &Range<usize>, kv: &PassKv) -> Result<Array> {
        if self.ops.works_on_slices(queries) {
            return self.rows_on_slices(queries, rows, kv);
        }
        let mut attended = Vec::with_capacity(1 + kv.runs.len());
        let queries_of = |part: &Range<usize>| rows_of(queries, &within(part, rows), rows.len());
        if let Some(decode) = kv.decode.as_ref().filter(|_| rows.start == 0) {
            attended.push(self.decode(&queries_of(&(0..decode.positions.len()))?, decode)?);
        }
        for (run, part) in kv.runs_of(rows) {
            let queries = queries_of(&part)?;
            attended.push(if chunks_are_fused(self.device, self.spec) {
                self.run_fused(&queries, &part, run)?
            } else {
                self.run_by_products(&self.scaled(&queries)?, &part, run)?
            });
        }
        concatenated(attended, 0)
    }

    /// As [`Attention::rows`], where a loop of our own may be faster than MLX's operations: all rows but those that
    /// matrix products are for are attended in one of it.
    fn rows_on_slices(&self, queries: &Array, rows: &Range<usize>, kv: &PassKv) -> Result<Array> {
        let scaled = self.scaled(queries)?;
        let mut strips = StripRows::default();
        // In the order of rows: so many that are attended in strips, or what has been made of them.
        let mut parts: Vec<(usize, Option<Array>)> = Vec::with_capacity(1 + kv.runs.len());
        if let Some(decode) = kv.decode.as_ref().filter(|_| rows.start == 0) {
            self.add_decode(&scaled, decode, &mut strips)?;
            parts.push((decode.positions.len(), None));
        }
        for (run, part) in kv.runs_of(rows) {
            let first = part.start - rows.start;
            let products = if self.add_run(&scaled, (&part, first), run, &mut strips)? {
                None
            } else {
                let queries = rows_of(&scaled, &(first..first + part.len()), rows.len())?;
                Some(self.run_by_products(&queries, &part, run)?)
            };
            parts.push((part.len(), products));
        }
        let numbers = if strips.is_empty() { Vec::new() } else { strips.attend(self, &scaled)? };
        let mut rest = numbers.as_slice();
        let mut attended = Vec::with_capacity(parts.len());
        for neighbours in parts.chunk_by(|left, right| left.1.is_none() && right.1.is_none()) {
            attended.push(match &neighbours[0].1 {
                Some(products) => products.clone(),
                None => {
                    let num_rows: usize = neighbours.iter().map(|(num_rows, _)| num_rows).sum();
                    let (of_these, others) = rest.split_at(num_rows * self.width() as usize);
                    rest = others;
                    Array::from_slice(of_these, &[num_rows as i32, self.width()])
                }
            });
        }
        host::stacked(attended, self.device)
    }

    /// Whether so many scores of each head are made better by so many matrix products than in a loop.
    fn are_products(&self, num_products: usize, num_scores: usize) -> bool {
        let num_numbers = self.spec.head_dim + self.spec.value_dim();
        Costs::of(self.device).are_products(num_products, num_scores * self.spec.num_heads, num_numbers)
    }

    /// What rows make of pieces of scores that nobody else holds: `weigh` gets their weights, and `by_row`
    /// brings what comes of them from the scores' layout into rows, `(n, H_kv, G, X)`.
    fn partial(
        &self,
        scores: Vec<Array>,
        weigh: impl FnOnce(&[Array]) -> Result<Array>,
        by_row: impl Fn(&Array) -> Result<Array>,
    ) -> Result<Partial> {
        let SoftmaxWeights { weights, max, sum } = self.ops.softmax_weights(scores)?;
        Ok(Partial { max: by_row(&max)?, sum: by_row(&sum)?, weighed: by_row(&weigh(&weights)?)? })
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

    /// Which tokens of some KV the row at `position` may see.
    fn visible(&self, position: usize, kv: &LayerKv) -> Range<usize> {
        let index_of = |position: usize| position.clamp(kv.first, kv.end()) - kv.first;
        index_of(self.oldest_seen(position))..index_of(position + 1)
    }

    /// First position that the row at `position` may see.
    fn oldest_seen(&self, position: usize) -> usize {
        self.spec.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// `(n, H, D)` → `(n, H_kv, G, D)`, scaled.
    fn scaled(&self, queries: &Array) -> Result<Array> {
        let (num_kv_heads, head_dim) = self.dims();
        let shape = [queries.dim(0), num_kv_heads, self.num_groups(), head_dim];
        host::scaled(queries, self.spec.scale, &shape, self.device)
    }

    fn cap(&self, scores: Array) -> Result<Array> {
        Ok(match self.spec.score_softcap {
            Some(cap) => self.ops.softcap(&scores, cap)?,
            None => scores,
        })
    }
}
