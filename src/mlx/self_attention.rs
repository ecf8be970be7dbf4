//! The attention part of a block: projections, norms of heads, rotation, output gate.
//!
//! Owns what comes before and after attention proper, which `attention` computes over the KV that
//! `live` keeps.

use mlx_rs::Array;

use super::{
    attention::{Attention, PassKv},
    block_pass::BlockPass,
    error::Result,
    linear::Linear,
    loader::Loader,
    norm::{Norm, normed_by},
    sys,
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

    /// Appends keys and values of all rows of a pass, normed and in its row blocks, `(n, hidden)` each.
    pub(super) fn append(&self, normed: &[Array], pass: &mut BlockPass<'_>) -> Result<PassKv> {
        let mut keys = Vec::with_capacity(normed.len());
        let mut values = Vec::with_capacity(normed.len());
        for (index, normed) in normed.iter().enumerate() {
            let new_keys = Self::heads(&self.key.forward(normed)?, self.spec.num_kv_heads)?;
            let new_keys =
                pass.rotate(self.place.rope, index, &normed_by(self.key_norm.as_ref(), new_keys)?)?;
            let new_values = Self::heads(&self.value.forward(normed)?, self.spec.num_kv_heads)?;
            pass.settle(&[normed, &new_keys, &new_values])?;
            keys.push(new_keys);
            values.push(new_values);
        }
        pass.live.append(self.place.kv_index, &keys, &values, pass.rows)
    }

    /// Attends the normed rows of one row block, `(n, hidden)`, to what [`Self::append`] returned.
    pub(super) fn attend(
        &self,
        normed: Array,
        row_block: usize,
        kv: &PassKv,
        pass: &BlockPass<'_>,
    ) -> Result<Array> {
        let projected = self.query.forward(&normed)?;
        drop(normed);
        let (queries, gate) = if self.spec.output_gate {
            let both = Self::heads(&projected, self.spec.num_heads)?;
            let head_dim = self.spec.head_dim;
            let gate = sys::slice_axis(&both, 2, head_dim, 2 * head_dim)?;
            (sys::slice_axis(&both, 2, 0, head_dim)?, Some(gate))
        } else {
            (Self::heads(&projected, self.spec.num_heads)?, None)
        };
        let queries =
            pass.rotate(self.place.rope, row_block, &normed_by(self.query_norm.as_ref(), queries)?)?;
        let attention =
            Attention { spec: &self.spec, ops: pass.ops, device: pass.device, masks: &pass.rows.masks };
        let mut attended = attention.rows(&queries, &pass.row_blocks[row_block], kv)?;
        if let Some(gate) = gate {
            let gate = gate.reshape(attended.shape())?;
            attended = attended.multiply(pass.ops.sigmoid(&gate)?)?;
        }
        self.output.forward(&attended)
    }

    /// `(n, H·X)` → `(n, H, X)`.
    fn heads(projected: &Array, num_heads: usize) -> Result<Array> {
        let (num_rows, width) = (projected.dim(0), projected.dim(1));
        Ok(projected.reshape(&[num_rows, num_heads as i32, width / num_heads as i32])?)
    }
}
