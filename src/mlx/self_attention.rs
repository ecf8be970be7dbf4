//! The attention part of a block: projections, norms of heads, rotation, output gate.
//!
//! Owns what comes before and after attention proper, which `attention` computes over the KV that
//! `live` keeps.

use mlx_rs::Array;

use super::{
    attention::Attention, block::BlockPass, error::Result, linear::Linear, live::LayerRows, loader::Loader,
    norm::Norm, sys,
};
use crate::models::AttentionSpec;

/// Where a layer of attention is among the model's.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionPlace {
    /// Number of attention layers before it: its index in the live KV.
    pub kv_index: usize,
    /// Index among the model's distinct rotations.
    pub rope: usize,
}

/// Self-attention of one layer.
#[derive(Debug)]
pub(super) struct SelfAttention {
    spec: AttentionSpec,
    place: AttentionPlace,
    /// With an output gate, each head's gate follows its query.
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: Option<Norm>,
    key_norm: Option<Norm>,
}

impl SelfAttention {
    /// Loads the weights below `{block_path}.self_attn`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        spec: &AttentionSpec,
        place: AttentionPlace,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let names = loader.spec.names.block;
        let head_width = spec.num_heads * spec.head_dim;
        let query_width = if spec.output_gate { 2 * head_width } else { head_width };
        let kv_width = spec.num_kv_heads * spec.head_dim;
        let path = |name: &str| format!("{block_path}.{name}");
        let head_norm = |loader: &mut Loader<'_>, name: &str| {
            if spec.qk_norm { loader.norm(&path(name), spec.head_dim).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            query_norm: head_norm(loader, names.query_norm)?,
            key_norm: head_norm(loader, names.key_norm)?,
            query: loader.linear(&path("self_attn.q_proj"), query_width, hidden, spec.qkv_bias)?,
            key: loader.linear(&path("self_attn.k_proj"), kv_width, hidden, spec.qkv_bias)?,
            value: loader.linear(&path("self_attn.v_proj"), kv_width, hidden, spec.qkv_bias)?,
            output: loader.linear(&path(names.attention_output), hidden, head_width, spec.output_bias)?,
            spec: spec.clone(),
            place,
        })
    }

    /// Attends the packed, normed rows `(T, hidden)`, and appends their keys and values.
    pub(super) fn forward(&self, normed: Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let num_tokens = normed.dim(0);
        let head_dim = self.spec.head_dim;
        let heads = |x: Array, num_heads: usize, width: usize| {
            x.reshape(&[num_tokens, num_heads as i32, width as i32])
        };
        let projected = self.query.forward(&normed)?;
        let (mut queries, gate) = if self.spec.output_gate {
            let both = heads(projected, self.spec.num_heads, 2 * head_dim)?;
            let gate = sys::slice_axis(&both, 2, head_dim, 2 * head_dim)?;
            (sys::slice_axis(&both, 2, 0, head_dim)?, Some(gate))
        } else {
            (heads(projected, self.spec.num_heads, head_dim)?, None)
        };
        let mut keys = heads(self.key.forward(&normed)?, self.spec.num_kv_heads, head_dim)?;
        let values = heads(self.value.forward(&normed)?, self.spec.num_kv_heads, head_dim)?;
        drop(normed);
        if let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) {
            queries = query_norm.forward(&queries)?;
            keys = key_norm.forward(&keys)?;
        }
        let (rope, table) = &pass.rotations[self.place.rope];
        let rows =
            LayerRows { queries: rope.rotate(&queries, table)?, keys: rope.rotate(&keys, table)?, values };
        let attention =
            Attention { spec: &self.spec, ops: pass.ops, device: pass.device, masks: &pass.rows.masks };
        let mut attended = pass.live.attend(self.place.kv_index, &attention, &rows, pass.rows)?;
        if let Some(gate) = gate {
            let gate = gate.reshape(&[num_tokens, (self.spec.num_heads * head_dim) as i32])?;
            attended = attended.multiply(pass.ops.sigmoid(&gate)?)?;
        }
        self.output.forward(&attended)
    }
}
