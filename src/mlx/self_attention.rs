//! The attention part of a block: projections, norms of heads, rotation, output gate.
//!
//! Owns what comes before and after attention proper, which `attention` computes over the KV that
//! `live` keeps.

use std::rc::Rc;

use mlx_rs::Array;

use super::{
    attention::{Attention, KvSight, PassKv, Sinks},
    block_pass::BlockPass,
    error::{MlxError, Result},
    host::by_head,
    linear::Linear,
    loader::Loader,
    norm::{Norm, normed_by},
    planes::Planes,
    sys,
};
use crate::models::{AttentionSpec, HeadNorms, KeyValueSource};

/// Where a layer of attention is among the model's.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionPlace {
    /// Number of layers before it that keep KV, or that of the one whose KV it uses: its index in the live KV.
    pub kv_index: usize,
    /// Index among the model's distinct rotations.
    pub rope: Option<usize>,
}

/// Self-attention of one layer.
#[derive(Debug)]
pub(super) struct SelfAttention {
    spec: AttentionSpec,
    place: AttentionPlace,
    /// With an output gate, each head's gate follows its query.
    query: Linear,
    query_norm: Option<Norm>,
    /// `None`: keys and values are another layer's.
    key_values: Option<KeyValues>,
    output: Linear,
    sinks: Option<Sinks>,
}

/// What makes a layer's keys and values.
#[derive(Debug)]
struct KeyValues {
    key: Linear,
    key_norm: Option<Norm>,
    /// `None`: values are made of what keys are made of.
    value: Option<Linear>,
    value_norm: Option<Norm>,
    /// Whether later layers use them too.
    are_shared: bool,
}

/// What attention goes on with after the KV of a pass has been appended.
pub(super) struct Appended {
    /// All that the rows see.
    pub kv: Rc<PassKv>,
    /// The projected queries of the pass' rows, where they are one row block: made together with keys and values.
    pub queries: Option<Array>,
}

impl SelfAttention {
    /// Loads the weights below `block_path`; `is_shared`: later layers use its keys and values.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        spec: &AttentionSpec,
        place: AttentionPlace,
        is_shared: bool,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let names = loader.spec.names.block.attention;
        let head_width = spec.num_heads * spec.head_dim;
        let query_width = if spec.output_gate { 2 * head_width } else { head_width };
        let kv_width = spec.num_kv_heads * spec.head_dim;
        let path = |name: &str| format!("{block_path}.{name}");
        if let Some(fused) = names.fused {
            let widths = [query_width, kv_width, kv_width].map(|width| width as i32);
            let mut first = 0;
            let parts = [names.query, names.key, names.value].into_iter().zip(widths).map(|(name, width)| {
                first += width;
                (path(name), (first - width..first).collect())
            });
            loader.weights.cut(&path(fused), 0, &parts.collect::<Vec<_>>())?;
        }
        let norm = |loader: &mut Loader<'_>, name: &str, num_heads: usize| match spec.head_norms {
            HeadNorms::None => Ok(None),
            HeadNorms::PerHead => loader.norm(&path(name), spec.head_dim).map(Some),
            HeadNorms::FullWidth => loader.norm(&path(name), num_heads * spec.head_dim).map(Some),
        };
        let query = loader.linear(&path(names.query), query_width, hidden, spec.qkv_bias)?;
        let key_values = match spec.kv {
            KeyValueSource::Layer(_) => {
                // Publishers' files have them all the same.
                for name in [names.key, names.value, names.key_norm] {
                    loader.weights.drop_matrix(&path(name));
                }
                None
            }
            source => Some(KeyValues {
                key_norm: norm(loader, names.key_norm, spec.num_kv_heads)?,
                key: loader.linear(&path(names.key), kv_width, hidden, spec.qkv_bias)?,
                value: match source {
                    KeyValueSource::ValuesFromKeys => None,
                    _ => Some(loader.linear(&path(names.value), kv_width, hidden, spec.qkv_bias)?),
                },
                value_norm: spec
                    .value_norm
                    .then(|| Norm::weightless(loader.spec.norm.eps, loader.precision.device)),
                are_shared: is_shared,
            }),
        };
        Ok(Self {
            query_norm: norm(loader, names.query_norm, spec.num_heads)?,
            query,
            key_values,
            output: loader.linear(&path(names.output), hidden, head_width, spec.output_bias)?,
            sinks: match spec.sinks {
                true => Some(Sinks::new(loader.vector(&path(names.sinks), spec.num_heads)?, spec)?),
                false => None,
            },
            spec: spec.clone(),
            place,
        })
    }

    /// Appends keys and values of all rows of a pass, normed and in its row blocks, `(n, hidden)` each, where
    /// the layer has its own.
    pub(super) fn append(&self, normed: &[Array], pass: &mut BlockPass<'_>) -> Result<Appended> {
        let Some(layer) = &self.key_values else {
            let kv = pass.kv_of_layers.get(&self.place.kv_index).cloned();
            let kv = kv.ok_or_else(|| {
                MlxError::Unsupported(format!("no earlier layer has KV {}", self.place.kv_index))
            })?;
            return Ok(Appended { kv, queries: None });
        };
        let mut projections: Vec<&Linear> = [&layer.key].into_iter().chain(&layer.value).collect();
        if normed.len() == 1 {
            projections.push(&self.query);
        }
        let mut queries = None;
        let num_heads = self.spec.num_kv_heads;
        let mut parts = Vec::with_capacity(normed.len());
        for (index, normed) in normed.iter().enumerate() {
            let mut projected = Linear::forward_each(&projections, normed)?.into_iter();
            let mut next = || projected.next().expect("one for each projection");
            let new_keys = next();
            let new_values = if layer.value.is_some() { next() } else { new_keys.clone() };
            queries = projected.next();
            let new_values = match &layer.value_norm {
                Some(norm) => norm.by_head(&new_values, num_heads)?,
                None => by_head(&new_values, num_heads, pass.device)?,
            };
            let new_keys = self.normed_heads(layer.key_norm.as_ref(), new_keys, num_heads)?;
            let new_keys = pass.rotate(self.place.rope, index, (&new_keys, num_heads))?;
            pass.settle(&[normed, &new_keys, &new_values])?;
            parts.push(Planes::new(new_keys, new_values));
        }
        let sight = KvSight::of(&self.spec, layer.are_shared);
        let kv = Rc::new(pass.live.append(self.place.kv_index, sight, &parts, pass.rows)?);
        if layer.are_shared {
            pass.kv_of_layers.insert(self.place.kv_index, Rc::clone(&kv));
        }
        Ok(Appended { kv, queries })
    }

    /// Attends the normed rows of one row block, `(n, hidden)`, to what [`Self::append`] returned.
    pub(super) fn attend(
        &self,
        normed: &Array,
        row_block: usize,
        appended: &Appended,
        pass: &BlockPass<'_>,
    ) -> Result<Array> {
        let projected = match &appended.queries {
            Some(queries) => queries.clone(),
            None => self.query.forward(normed)?,
        };
        let (queries, gate) = if self.spec.output_gate {
            let both = by_head(&projected, self.spec.num_heads, pass.device)?;
            let head_dim = self.spec.head_dim;
            let gate = sys::slice_axis(&both, 2, head_dim, 2 * head_dim)?;
            (sys::slice_axis(&both, 2, 0, head_dim)?, Some(gate))
        } else {
            (projected, None)
        };
        let queries = self.normed_heads(self.query_norm.as_ref(), queries, self.spec.num_heads)?;
        let queries = pass.rotate(self.place.rope, row_block, (&queries, self.spec.num_heads))?;
        let queries = pass.scaled_by_position(self.spec.position_scale, row_block, queries)?;
        let attention = Attention {
            spec: &self.spec,
            sinks: self.sinks.as_ref(),
            ops: pass.ops,
            device: pass.device,
            masks: &pass.rows.masks,
        };
        let mut attended = attention.rows(&queries, &pass.row_blocks[row_block], &appended.kv)?;
        if let Some(gate) = gate {
            let gate = gate.reshape(attended.shape())?;
            attended = attended.multiply(pass.ops.sigmoid(&gate)?)?;
        }
        self.output.forward(&attended)
    }

    /// Heads `(n, H·D)` or `(n, H, D)`, normed as this layer norms them.
    fn normed_heads(&self, norm: Option<&Norm>, rows: Array, num_heads: usize) -> Result<Array> {
        match (norm, self.spec.head_norms) {
            (Some(norm), HeadNorms::PerHead) => norm.by_head(&rows, num_heads),
            (norm, _) => normed_by(norm, rows),
        }
    }
}
