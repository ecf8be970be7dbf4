//! Rows of many sequences against the stored segments that all of them run on.
//!
//! Owns attending these once for all rows, be they prefill chunks' or decode steps'. What each sequence
//! sees besides is `chunk`'s and `decode`'s business.

use mlx_rs::{Array, Dtype};

use super::{Attention, LayerKv, Result, chunk::num_block_rows, partial::Partial, rows_of};
use crate::mlx::device::ComputeDevice;

impl Attention<'_> {
    /// Attends rows at these positions, from the first on among scaled queries `(n, H_kv, G, D)`, to pieces that are
    /// all before them.
    pub(super) fn shared(
        &self,
        (queries, first): (&Array, usize),
        positions: &[usize],
        pieces: &[LayerKv],
    ) -> Result<Vec<Partial>> {
        let oldest_row = positions.iter().copied().min().unwrap_or(0);
        let mut partials = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let seen = piece.visible_from(oldest_row, self.spec.window)?;
            if seen.num_tokens() > 0 {
                #[cfg(target_os = "linux")]
                if let Some(partial) =
                    self.products_by_host((queries, first), positions, std::slice::from_ref(&seen))?
                {
                    partials.push(partial);
                    continue;
                }
                let queries = rows_of(queries, &(first..first + positions.len()), queries.dim(0) as usize)?;
                partials.push(self.shared_in_blocks(&queries, positions, &seen)?);
            }
        }
        Ok(partials)
    }

    fn shared_in_blocks(&self, queries: &Array, positions: &[usize], piece: &LayerKv) -> Result<Partial> {
        let num_block_rows = num_block_rows(self.spec.num_heads, piece.num_tokens());
        let mut blocks = Vec::with_capacity(positions.len().div_ceil(num_block_rows));
        for (index, of_block) in positions.chunks(num_block_rows).enumerate() {
            let first = index * num_block_rows;
            let rows = first..first + of_block.len();
            let block = self.shared_block(&rows_of(queries, &rows, positions.len())?, of_block, piece)?;
            if rows.len() < positions.len() {
                self.settle(&block)?;
            }
            blocks.push(block);
        }
        Partial::of_rows(blocks, self.device)
    }

    fn shared_block(&self, queries: &Array, positions: &[usize], piece: &LayerKv) -> Result<Partial> {
        let mut scores =
            self.cap(self.as_one_matrix(queries)?.matmul(piece.planes.keys().swap_axes(2, 3)?)?)?;
        if let Some(mask) = self.shared_mask(positions, piece, scores.dtype())? {
            scores = scores.add(mask)?;
        }
        let by_row = |array: &Array| self.in_rows(array, positions.len());
        self.partial(vec![scores], |weights| Ok(weights[0].matmul(piece.planes.values()?)?), by_row)
    }

    /// Hides what a window keeps from some rows but not from all: `(n·G, L)`.
    pub(super) fn shared_mask(
        &self,
        positions: &[usize],
        piece: &LayerKv,
        dtype: Dtype,
    ) -> Result<Option<Array>> {
        if positions.iter().all(|&position| self.oldest_seen(position) <= piece.first) {
            return Ok(None);
        }
        let num_groups = self.num_groups() as usize;
        // A row of the matrix for each head group.
        let rows = positions.iter().flat_map(|&position| std::iter::repeat_n(position, num_groups));
        Ok(Some(self.mask(rows, piece, dtype)?))
    }

    /// `(n, H_kv, G, X)` → `(1, H_kv, n·G, X)`.
    pub(super) fn as_one_matrix(&self, rows: &Array) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [1, num_kv_heads, rows.dim(0) * self.num_groups(), rows.dim(3)];
        Ok(rows.transpose_axes(&[1, 0, 2, 3])?.reshape(&shape)?)
    }

    /// `(1, H_kv, n·G, X)` → `(n, H_kv, G, X)`.
    pub(super) fn in_rows(&self, matrix: &Array, num_rows: usize) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [num_kv_heads, num_rows as i32, self.num_groups(), matrix.dim(3)];
        Ok(matrix.reshape(&shape)?.transpose_axes(&[1, 0, 2, 3])?)
    }

    /// On the CPU MLX takes memory for about a hundred operations ahead of the one that computes, so
    /// there a block of several is computed before further operations are made.
    pub(super) fn settle(&self, block: &Partial) -> Result<()> {
        if self.device == ComputeDevice::Cpu {
            mlx_rs::transforms::eval([&block.max, &block.sum, &block.weighed])?;
        }
        Ok(())
    }
}
