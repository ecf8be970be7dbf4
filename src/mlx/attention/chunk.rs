//! A prefill chunk: one sequence, many query rows at consecutive positions.
//!
//! Owns in which blocks its rows are computed and what of the KV each of them is set against. What
//! several chunks see alike is `run`'s business, masks and what decode steps do alike are the parent's.

use std::ops::Range;

use mlx_rs::{Array, fast};

use super::{Attention, LayerKv, Result, partial::Partial, rows_of};
use crate::mlx::{kv::join_short_end, ops::total};

/// Query rows that are computed together at most on the CPU: that leaves out the keys that none of
/// them may see, half of all scores in a long chunk.
const MAX_BLOCK_ROWS: usize = 128;

/// The same where the host has its threads take them a part at a time: products of few rows are slow.
const HOST_BLOCK_ROWS: usize = 256;

/// Fewer rows make matrix products slow.
const MIN_BLOCK_ROWS: usize = 16;

/// Scores of one block at most, of all heads together: most of its operations are of this size.
const MAX_BLOCK_SCORES: usize = 1 << 19;

/// Rows that are computed together where each sees so many keys.
pub(super) fn num_block_rows(num_heads: usize, num_keys: usize) -> usize {
    let num_rows = MAX_BLOCK_SCORES / (num_heads * num_keys).max(1);
    (num_rows / MIN_BLOCK_ROWS * MIN_BLOCK_ROWS).clamp(MIN_BLOCK_ROWS, MAX_BLOCK_ROWS)
}

/// KV of one layer as the rows of a chunk see it.
#[derive(Debug)]
pub(in crate::mlx) struct ChunkKv {
    /// The chunk's rows among those of the pass.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub start: usize,
    /// KV before the chunk's own piece, in order of position, but for what its run attends together.
    pub earlier: Vec<LayerKv>,
    /// The piece that ends with the chunk's last row.
    pub own: LayerKv,
}

impl ChunkKv {
    /// Position of a row of the pass.
    pub(super) fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }

    /// Tokens it holds that the row before this one sees, windows aside.
    pub(super) fn num_held(&self, end: usize) -> usize {
        let num_earlier: usize = self.earlier.iter().map(LayerKv::num_tokens).sum();
        num_earlier + self.position(end) - self.own.first
    }
}

impl Attention<'_> {
    /// Attends these of a chunk's rows, `(n, H, D)`, to all that it sees: `(n, H·D)`. `shared` is what it
    /// does not hold of that.
    ///
    /// MLX's fused kernel wants all keys in one array.
    pub(super) fn chunk_fused(
        &self,
        queries: &Array,
        rows: &Range<usize>,
        shared: &[LayerKv],
        chunk: &ChunkKv,
    ) -> Result<Array> {
        let start = chunk.position(rows.start);
        let own = chunk.own.slice(chunk.own.first..chunk.position(rows.end))?;
        let mut pieces: Vec<&LayerKv> = shared.iter().chain(&chunk.earlier).chain([&own]).collect();
        pieces.sort_by_key(|piece| piece.first);
        let mut seen = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let piece = piece.visible_from(start, self.spec.window)?;
            if piece.num_tokens() > 0 {
                seen.push(piece);
            }
        }
        let kv = LayerKv::joined(seen.iter())?;
        let queries = queries.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?;
        let mask;
        let mask_argument = if self.spec.window.is_none() {
            fast::ScaledDotProductAttentionMask::Causal
        } else {
            mask = self.causal_mask(start, rows.len(), &kv, queries.dtype())?;
            fast::ScaledDotProductAttentionMask::Array(&mask)
        };
        let attended = fast::scaled_dot_product_attention(
            &queries,
            kv.planes.keys(),
            &kv.planes.values()?,
            self.spec.scale,
            Some(mask_argument),
            self.sinks_of(&queries)?.as_ref(),
        )?;
        Ok(attended.transpose_axes(&[0, 2, 1, 3])?.reshape(&[rows.len() as i32, self.width()])?)
    }

    /// Attends scaled queries `(n, H_kv, G, D)` of these of a chunk's rows to what it holds, which may not be all they see.
    pub(super) fn chunk_partial(
        &self,
        queries: &Array,
        rows: &Range<usize>,
        chunk: &ChunkKv,
    ) -> Result<Partial> {
        let earlier = join_short_end(chunk.earlier.clone())?;
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < rows.len() {
            let start = chunk.position(rows.start + first);
            let num_keys = self.spec.window.map_or(start, |window| start.min(window)) + MAX_BLOCK_ROWS;
            // Head by head, rows come in blocks as small as that needs.
            let num_rows = match cfg!(target_os = "linux") && self.ops.works_on_slices(queries) {
                true => HOST_BLOCK_ROWS,
                false => num_block_rows(self.spec.num_heads, num_keys),
            };
            let last = (first + num_rows).min(rows.len());
            // The block's own keys apart: only they need a mask, and it is the same for all blocks.
            let before = chunk.own.slice(chunk.own.first..start)?;
            let within = chunk.own.slice(start..chunk.position(rows.start + last))?;
            let mut seen = Vec::with_capacity(earlier.len() + 2);
            for piece in earlier.iter().chain([&before, &within]) {
                let piece = piece.visible_from(start, self.spec.window)?;
                if piece.num_tokens() > 0 {
                    seen.push(piece);
                }
            }
            let queries = rows_of(queries, &(first..last), rows.len())?;
            let block = self.block(&queries, start, &seen)?;
            if last - first < rows.len() {
                self.settle(&block)?;
            }
            blocks.push(block);
            first = last;
        }
        Partial::of_rows(blocks, self.device)
    }

    /// Attends a block of scaled query rows `(n, H_kv, G, D)` whose last row is the last key.
    fn block(&self, queries: &Array, start: usize, pieces: &[LayerKv]) -> Result<Partial> {
        let (num_kv_heads, head_dim) = self.dims();
        let num_groups = self.num_groups();
        let num_rows = queries.dim(0);
        #[cfg(target_os = "linux")]
        {
            let positions: Vec<usize> = (start..start + num_rows as usize).collect();
            if let Some(partial) = self.products_by_host((queries, 0), &positions, pieces)? {
                return Ok(partial);
            }
        }
        // All heads that share a KV head as the rows of one matrix.
        let queries = queries.transpose_axes(&[1, 2, 0, 3])?.reshape(&[
            1,
            num_kv_heads,
            num_groups * num_rows,
            head_dim,
        ])?;
        let scores = pieces
            .iter()
            .map(|piece| {
                let num_keys = piece.num_tokens() as i32;
                let scores = self.cap(queries.matmul(piece.planes.keys().swap_axes(2, 3)?)?)?;
                if !self.hides(start, num_rows as usize, piece) {
                    return Ok(scores);
                }
                let mask = self.causal_mask(start, num_rows as usize, piece, scores.dtype())?;
                let masked = scores.reshape(&[num_kv_heads, num_groups, num_rows, num_keys])?.add(&mask)?;
                Ok(masked.reshape(&[1, num_kv_heads, num_groups * num_rows, num_keys])?)
            })
            .collect::<Result<Vec<Array>>>()?;
        let by_row = |array: &Array| -> Result<Array> {
            let shape = [num_kv_heads, num_groups, num_rows, array.dim(3)];
            Ok(array.reshape(&shape)?.transpose_axes(&[2, 0, 1, 3])?)
        };
        let weigh = |weights: &[Array]| -> Result<Array> {
            let weighed = weights
                .iter()
                .zip(pieces)
                .map(|(weights, piece)| Ok(weights.matmul(&piece.planes.values()?)?));
            Ok(total(&weighed.collect::<Result<Vec<_>>>()?)?)
        };
        self.partial(scores, weigh, by_row)
    }

    /// Whether any of the rows may not see some key of a piece.
    fn hides(&self, start: usize, num_rows: usize, piece: &LayerKv) -> bool {
        let after = piece.end() > start + 1;
        let before =
            self.spec.window.is_some_and(|window| (start + num_rows).saturating_sub(window) > piece.first);
        after || before
    }
}
