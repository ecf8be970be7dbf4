//! What a forward pass carries from block to block, and in which runs its rows are computed.
//!
//! Owns no arithmetic but what positions do to queries and keys.

use std::{collections::HashMap, ops::Range, rc::Rc};

use mlx_rs::Array;

use super::{
    attention::PassKv,
    device::ComputeDevice,
    error::Result,
    host::by_head,
    live::{LiveKv, LivePass},
    ops::Ops,
    rope::{Rope, RopeTable},
};
use crate::models::PositionScale;

/// Rows of a pass that go through the model's blocks together on the CPU; fewer make matrix products
/// slow, and more only take more memory.
const MAX_ROWS_AT_ONCE: usize = 256;

/// What a pass carries from block to block.
pub(super) struct BlockPass<'a> {
    pub ops: &'a Ops,
    pub device: ComputeDevice,
    /// The packed rows in runs that are computed one after the other; decode rows are in the first.
    pub row_blocks: Vec<Range<usize>>,
    /// The model's distinct rotations, prepared for the positions of each row block.
    pub rotations: Vec<(&'a Rope, Vec<RopeTable>)>,
    /// The position of each packed row.
    pub positions: &'a [i32],
    /// Inputs of all layers besides the hidden states, `(n, layers, width)` for each row block, for models that
    /// have them.
    pub per_layer_inputs: Vec<Array>,
    /// KV of layers that later ones use too, by the index of the layer that keeps it.
    pub kv_of_layers: HashMap<usize, Rc<PassKv>>,
    pub rows: &'a LivePass,
    pub live: &'a mut LiveKv,
}

/// Divides the rows of a pass, of which the decode rows come first.
pub(super) fn row_blocks(device: ComputeDevice, num_rows: usize, num_decode: usize) -> Vec<Range<usize>> {
    let max_rows = if device == ComputeDevice::Cpu { MAX_ROWS_AT_ONCE } else { num_rows.max(1) };
    let num_blocks = num_rows.div_ceil(max_rows);
    let mut blocks: Vec<Range<usize>> = Vec::with_capacity(num_blocks);
    for index in 0..num_blocks {
        let first = blocks.last().map_or(0, |block| block.end);
        let end = (num_rows * (index + 1) / num_blocks).max(num_decode);
        if first < end {
            blocks.push(first..end);
        }
    }
    blocks
}

impl BlockPass<'_> {
    /// The heads of one row block, `(n, H·D)` or `(n, H, D)`, rotated where the layer has positions: `(n, H, D)`.
    pub(super) fn rotate(
        &self,
        rope: Option<usize>,
        row_block: usize,
        (rows, num_heads): (&Array, usize),
    ) -> Result<Array> {
        let Some(rope) = rope else { return by_head(rows, num_heads, self.device) };
        let (rope, tables) = &self.rotations[rope];
        rope.rotate(rows, num_heads, &tables[row_block])
    }

    /// Queries of one row block, `(n, H, D)`, times what the layer's scale makes of their positions, where it has one.
    pub(super) fn scaled_by_position(
        &self,
        scale: Option<PositionScale>,
        row_block: usize,
        queries: Array,
    ) -> Result<Array> {
        let Some(PositionScale { beta, original_context }) = scale else { return Ok(queries) };
        let positions = &self.positions[self.row_blocks[row_block].clone()];
        let factor =
            |&position: &i32| 1.0 + beta * (1.0 + (position as usize / original_context) as f32).ln();
        let factors: Vec<f32> = positions.iter().map(factor).collect();
        let factors = Array::from_slice(&factors, &[factors.len() as i32, 1, 1]).as_dtype(queries.dtype())?;
        Ok(queries.multiply(factors)?)
    }

    /// Has arrays of one row block of several computed before further operations are made: on the CPU
    /// MLX takes memory for about a hundred operations ahead of the one that computes.
    pub(super) fn settle(&self, arrays: &[&Array]) -> Result<()> {
        if self.row_blocks.len() > 1 {
            mlx_rs::transforms::eval(arrays.iter().copied())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_blocks_follow_each_other_and_decode_rows_stay_together() {
        for num_rows in [1, 2, 255, 256, 257, 600, 2048] {
            for num_decode in [0, 1, 100, 300, 512].into_iter().filter(|&rows| rows <= num_rows) {
                let blocks = row_blocks(ComputeDevice::Cpu, num_rows, num_decode);
                assert!(blocks.iter().flat_map(Clone::clone).eq(0..num_rows), "{num_rows}: {blocks:?}");
                assert!(blocks[0].end >= num_decode, "{num_rows}, {num_decode}: {blocks:?}");
                let max_rows = MAX_ROWS_AT_ONCE.max(num_decode);
                assert!(blocks.iter().all(|rows| !rows.is_empty() && rows.len() <= max_rows), "{blocks:?}");
                assert_eq!(row_blocks(ComputeDevice::Gpu, num_rows, num_decode).len(), 1);
            }
        }
    }
}
