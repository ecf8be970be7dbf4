//! One decode step: many sequences, one query row each.
//!
//! Owns how what a row sees, in pieces and in the slab, makes one softmax: in as few operations as can be
//! for a device that pays for each (`one_softmax`), in as few passes over memory for one that does not
//! (`strip_rows`). What rows see is decided elsewhere; prefill chunks and what both have in common are the
//! parent's.

use std::{ops::Range, rc::Rc};

use mlx_rs::{Array, Dtype, fast, ops};

use super::{
    Attention, LayerKv, Result,
    strip_rows::{SeenByRow, SeenStrip, StripRows},
};
use crate::mlx::{
    arrays::{concatenated, rows_of, within},
    ops::total,
    planes::Planes,
    slab::SlabRows,
    sys,
};

/// What consecutive decode rows see together, of tokens before those in the slab.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct PieceKv {
    pub rows: Range<usize>,
    pub kv: LayerKv,
}

/// What decode rows have to themselves, this step's token the last.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct SlabKv {
    /// `(S, H_kv, C, D)`
    pub planes: Planes,
    pub rows: Rc<SlabRows>,
}

/// KV of one layer as decode rows see it, one row of each of several sequences.
#[derive(Debug, Clone)]
pub(in crate::mlx) struct DecodeKv {
    /// Position of each row.
    pub positions: Vec<usize>,
    /// In any order; no two hold the same token of a row.
    pub pieces: Vec<PieceKv>,
    pub slab: SlabKv,
}

impl DecodeKv {
    /// Runs of rows that see the same pieces, and which; one piece may be in several.
    fn groups(&self) -> Vec<(Range<usize>, Vec<usize>)> {
        let num_rows = self.positions.len();
        let mut bounds: Vec<usize> = self
            .pieces
            .iter()
            .flat_map(|piece| [piece.rows.start, piece.rows.end])
            .chain([0, num_rows])
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        let group = |rows: Range<usize>| {
            let seen = (0..self.pieces.len()).filter(|&piece| self.pieces[piece].rows.contains(&rows.start));
            (rows.clone(), seen.collect())
        };
        bounds.windows(2).map(|ends| group(ends[0]..ends[1])).collect()
    }
}

impl Attention<'_> {
    /// Attends one decode step of all rows, `(B, H, D)`: `(B, H·D)`.
    pub(super) fn decode(&self, queries: &Array, kv: &DecodeKv) -> Result<Array> {
        let kv = &self.seen(kv)?;
        if kv.pieces.is_empty() && self.spec.score_softcap.is_none() {
            return self.fused(queries, &kv.slab);
        }
        self.one_softmax(queries, kv)
    }

    /// Leaves out pieces that a window has left behind for all their rows.
    fn seen(&self, kv: &DecodeKv) -> Result<DecodeKv> {
        let mut seen = DecodeKv { pieces: Vec::with_capacity(kv.pieces.len()), ..kv.clone() };
        for PieceKv { rows, kv: piece } in &kv.pieces {
            let oldest_row = kv.positions[rows.clone()].iter().copied().min().unwrap_or(0);
            let piece = piece.visible_from(oldest_row, self.spec.window)?;
            if piece.num_tokens() > 0 {
                seen.pieces.push(PieceKv { rows: rows.clone(), kv: piece });
            }
        }
        Ok(seen)
    }

    /// All in one kernel.
    fn fused(&self, queries: &Array, slab: &SlabKv) -> Result<Array> {
        let (first, mask) = slab.rows.mask(self.spec.window, queries.dtype())?;
        // Where it is held in float32 for the sake of another layer.
        let planes = slab.columns(first)?.of_dtype(queries.dtype())?;
        let queries = slab.rows.by_slot(queries)?.expand_dims(2)?;
        let mask = mask.as_ref().map(fast::ScaledDotProductAttentionMask::Array);
        let sinks = self.sinks_of(&queries)?;
        let scale = self.spec.scale;
        let (keys, values) = (planes.keys(), planes.values()?);
        let attended =
            fast::scaled_dot_product_attention(&queries, keys, &values, scale, mask, sinks.as_ref())?;
        slab.rows.by_row(&attended.reshape(&[slab.rows.num_slots as i32, self.width()])?)
    }

    /// Each key of a piece against all its rows in one product, the slab's against their own rows; one softmax
    /// over all that a row sees; and the same for the values. Scores and weights are float32.
    fn one_softmax(&self, queries: &Array, kv: &DecodeKv) -> Result<Array> {
        let num_rows = kv.positions.len();
        let rows = &kv.slab.rows;
        let scaled = self.scaled(&queries.as_dtype(Dtype::Float32)?)?;
        let (first, mask) = rows.mask(self.spec.window, Dtype::Float32)?;
        let planes = kv.slab.columns(first)?.of_dtype(Dtype::Float32)?;
        let (keys, values) = (planes.keys(), planes.values()?);
        let slab_queries = rows.by_slot(&scaled)?;
        let slab_scores = match (mask, self.spec.score_softcap) {
            (Some(mask), None) => ops::addmm(&mask, &slab_queries, keys.swap_axes(2, 3)?, None, None)?,
            (mask, _) => {
                let scores = self.cap(slab_queries.matmul(keys.swap_axes(2, 3)?)?)?;
                mask.map_or(Ok(scores.clone()), |mask| scores.add(mask))?
            }
        };
        let slab_scores = rows.by_row(&slab_scores)?;
        let pieces = kv.pieces.iter().map(|piece| self.piece_scores(&scaled, piece, &kv.positions));
        let pieces = pieces.collect::<Result<Vec<_>>>()?;

        // Weights of each piece's rows, and of the slab's, in the order of rows.
        let mut of_pieces: Vec<Vec<Array>> = vec![Vec::new(); kv.pieces.len()];
        let mut of_slab = Vec::new();
        let groups = kv.groups();
        for (group, seen) in &groups {
            let mut scores = Vec::with_capacity(seen.len() + 1);
            for &piece in seen {
                let of = &kv.pieces[piece].rows;
                scores.push(rows_of(&pieces[piece], &within(group, of), of.len())?);
            }
            scores.push(rows_of(&slab_scores, group, num_rows)?);
            let num_slab_tokens = slab_scores.dim(3) as usize;
            if let Some(sinks) = self.sinks {
                scores.push(sinks.of_rows(group.len())?);
            }
            let weights = ops::softmax_axis(concatenated(scores, 3)?, -1, true)?;
            let mut start = 0;
            for &piece in seen {
                let end = start + kv.pieces[piece].kv.num_tokens();
                of_pieces[piece].push(sys::slice_axis(&weights, 3, start, end)?);
                start = end;
            }
            of_slab.push(sys::slice_axis(&weights, 3, start, start + num_slab_tokens)?);
        }

        let mut weighed = Vec::with_capacity(kv.pieces.len());
        for (piece, weights) in kv.pieces.iter().zip(of_pieces) {
            let values = piece.kv.planes.values()?.as_dtype(Dtype::Float32)?;
            let of_rows = self.as_one_matrix(&concatenated(weights, 0)?)?.matmul(&values)?;
            weighed.push(self.in_rows(&of_rows, piece.rows.len())?);
        }
        let weights = rows.by_slot(&concatenated(of_slab, 0)?)?;
        let attended = if kv.pieces.is_empty() {
            rows.by_row(&weights.matmul(&values)?)?
        } else {
            let of_pieces = groups
                .iter()
                .map(|(group, seen)| {
                    let parts = seen.iter().map(|&piece| {
                        let of = &kv.pieces[piece].rows;
                        rows_of(&weighed[piece], &within(group, of), of.len())
                    });
                    let parts = parts.collect::<Result<Vec<_>>>()?;
                    if parts.is_empty() { self.nothing_weighed(group.len()) } else { Ok(total(&parts)?) }
                })
                .collect::<Result<Vec<_>>>()?;
            let of_pieces = concatenated(of_pieces, 0)?;
            match rows.order {
                None => ops::addmm(&of_pieces, &weights, &values, None, None)?,
                Some(_) => rows.by_row(&weights.matmul(&values)?)?.add(of_pieces)?,
            }
        };
        Ok(attended.reshape(&[num_rows as i32, self.width()])?.as_dtype(queries.dtype())?)
    }

    /// Scores of a piece's rows among scaled queries `(B, H_kv, G, D)`: `(n, H_kv, G, L)`.
    fn piece_scores(&self, scaled: &Array, piece: &PieceKv, positions: &[usize]) -> Result<Array> {
        let queries = rows_of(scaled, &piece.rows, positions.len())?;
        let keys = piece.kv.planes.keys().as_dtype(Dtype::Float32)?;
        let mut scores = self.cap(self.as_one_matrix(&queries)?.matmul(keys.swap_axes(2, 3)?)?)?;
        if let Some(mask) = self.shared_mask(&positions[piece.rows.clone()], &piece.kv, Dtype::Float32)? {
            scores = scores.add(mask)?;
        }
        self.in_rows(&scores, piece.rows.len())
    }

    fn nothing_weighed(&self, num_rows: usize) -> Result<Array> {
        let (num_kv_heads, _) = self.dims();
        let shape = [num_rows as i32, num_kv_heads, self.num_groups(), self.spec.value_dim() as i32];
        Ok(ops::zeros_dtype(&shape, Dtype::Float32)?)
    }

    /// Adds the decode rows, the first of the scaled queries, to those that are attended in strips: pieces that
    /// several rows see by matrix products, all else of each row in one pass over it.
    pub(super) fn add_decode(&self, scaled: &Array, kv: &DecodeKv, strips: &mut StripRows) -> Result<()> {
        let kv = &self.seen(kv)?;
        let slab = strips.add_planes(kv.slab.planes.clone());
        let slots = kv.slab.rows.slots.iter().zip(kv.slab.rows.seen_through(self.spec.window));
        let row = |(query, (&slot, from)): (usize, (&usize, usize))| SeenByRow {
            query,
            strips: vec![SeenStrip { planes: slab, slot, tokens: from..kv.slab.rows.end }],
            parts: Vec::new(),
        };
        let mut rows: Vec<SeenByRow> = slots.enumerate().map(row).collect();
        for PieceKv { rows: seers, kv: piece } in &kv.pieces {
            let num_scores = seers.len() * piece.num_tokens();
            if seers.len() == 1 || !self.are_products(1, num_scores) {
                let planes = strips.add_planes(piece.planes.clone());
                for row in seers.clone() {
                    let tokens = self.visible(kv.positions[row], piece);
                    rows[row].strips.push(SeenStrip { planes, slot: 0, tokens });
                }
                continue;
            }
            let positions = &kv.positions[seers.clone()];
            for part in self.shared((scaled, seers.start), positions, std::slice::from_ref(piece))? {
                let part = strips.add_partial(&part)?;
                seers.clone().enumerate().for_each(|(index, row)| rows[row].parts.push((part, index)));
            }
        }
        rows.into_iter().for_each(|row| strips.add_row(row));
        Ok(())
    }
}

impl SlabKv {
    /// Keys and values from a column on to the end, of the slots that are read.
    fn columns(&self, first: usize) -> Result<Planes> {
        self.planes.map(|plane| {
            let plane = sys::slice_axis(plane, 2, first, self.rows.end)?;
            rows_of(&plane, &(0..self.rows.num_slots), plane.dim(0) as usize)
        })
    }
}
