//! A pass's new keys and values of one layer, and what its rows see.
//!
//! Owns where they are put: a decode row's in the slab, a chunk's behind what its sequence has. Whose rows these are and
//! what they run on is the parent's.

use std::rc::Rc;

use super::{LiveKv, LivePass, put};
use crate::mlx::{
    arrays::{overlap, rows_in_parts},
    attention::{ChunkKv, DecodeKv, KvSight, PassKv, PieceKv, RunKv, SlabKv},
    cohort::Piece,
    error::{MlxError, Result},
    host::{as_sequence, is_for_host},
    kv::{LayerKv, is_short},
    planes::Planes,
    segment::Segment,
};

impl LiveKv {
    /// Appends the packed rows' KV of one layer, which comes in parts, planes of `(n, H_kv, D)`
    /// after RoPE; decode rows are in the first part. Returns the layer as the rows see it.
    pub(in crate::mlx) fn append(
        &mut self,
        layer: usize,
        sight: KvSight,
        parts: &[Planes],
        pass: &LivePass,
    ) -> Result<PassKv> {
        let num_decode = pass.decode_positions.len();
        let decode = match num_decode {
            0 => None,
            _ => Some(self.append_step((layer, sight), &parts[0], pass)?),
        };
        let part_rows: Vec<usize> = parts.iter().map(|part| part.keys().dim(0) as usize).collect();
        let are_copies = is_for_host(parts[0].keys(), self.device);
        let as_views = match are_copies {
            true => vec![false; pass.chunks.len()],
            false => self.chunks_as_views(&part_rows, pass),
        };
        let mut runs = Vec::with_capacity(pass.runs.len());
        for run in &pass.runs {
            let of_layer = |segment: &Rc<Segment>| segment.layers[layer].clone();
            let shared: Vec<LayerKv> = run.shared.iter().map(of_layer).collect();
            let mut chunks = Vec::with_capacity(run.chunks.len());
            for index in run.chunks.clone() {
                let chunk = &pass.chunks[index];
                let rows = pass.chunk_rows[index].clone();
                let state = self.sequences.get_mut(&chunk.sequence).expect("begin_pass has made it");
                let mut by_head = Vec::new();
                for (part, rows) in rows_in_parts(&part_rows, &rows) {
                    by_head.push(parts[part].map(|plane| as_sequence(plane, &rows, self.device))?);
                }
                let mut earlier: Vec<LayerKv> = state.path.iter().map(of_layer).collect();
                if state.prompt_kv.is_some() {
                    let joined = if self.chunks_want_one_array { earlier.as_slice() } else { &[] };
                    let own = state.append_to_prompt((layer, sight.window), chunk.start, &by_head, joined)?;
                    earlier.retain(|piece| {
                        let is_shared = shared.iter().any(|shared| shared.first == piece.first);
                        piece.end() <= own.first && !is_shared
                    });
                    chunks.push(ChunkKv { rows, start: chunk.start, earlier, own });
                    continue;
                }
                let own = match (by_head.as_slice(), state.own.get(layer)) {
                    ([planes], None) if are_copies => LayerKv { first: chunk.start, planes: planes.clone() },
                    ([planes], _) if as_views[index] => {
                        state.is_own_shared = true;
                        LayerKv { first: chunk.start, planes: planes.clone() }
                    }
                    (several, earlier) => LayerKv::after(earlier, chunk.start, several)?,
                };
                put(&mut state.own, layer, own.clone());
                earlier.retain(|piece| !shared.iter().any(|shared| shared.first == piece.first));
                let num_seen: usize = shared.iter().chain(&earlier).map(LayerKv::num_tokens).sum();
                if num_seen != state.num_path_tokens() {
                    return Err(MlxError::Unsupported(format!(
                        "sequence {} would see {num_seen} of its path's {} tokens",
                        chunk.sequence.0,
                        state.num_path_tokens()
                    )));
                }
                chunks.push(ChunkKv { rows, start: chunk.start, earlier, own });
            }
            runs.push(RunKv { shared, chunks });
        }
        Ok(PassKv { decode, runs })
    }

    /// Which chunks keep their KV as views of the packed rows' arrays: short ones that begin a sequence's
    /// own KV, where they are most of the rows that are kept with them. Copies of them would be many small
    /// arrays, and be copied again when rows are put side by side.
    pub(super) fn chunks_as_views(&self, part_rows: &[usize], pass: &LivePass) -> Vec<bool> {
        let mut as_views = vec![false; pass.chunks.len()];
        let mut first = 0;
        for num_rows in part_rows {
            let of_part = first..first + num_rows;
            first = of_part.end;
            let is_candidate = |index: &usize| {
                let (chunk, rows) = (&pass.chunks[*index], &pass.chunk_rows[*index]);
                let state = self.sequences.get(&chunk.sequence);
                is_short(chunk.num_tokens)
                    && state.is_none_or(|state| state.num_own_tokens == 0 && state.prompt_kv.is_none())
                    && overlap(rows, &of_part) == *rows
            };
            let candidates: Vec<usize> = (0..pass.chunks.len()).filter(is_candidate).collect();
            let num_kept: usize = candidates.iter().map(|&index| pass.chunks[index].num_tokens).sum();
            if 2 * num_kept > of_part.len() {
                candidates.into_iter().for_each(|index| as_views[index] = true);
            }
        }
        as_views
    }

    /// Fills the slab's new column in one layer with the first of packed rows, planes of `(n, H_kv, D)`, and returns
    /// the layer as the decode rows see it.
    fn append_step(
        &mut self,
        (layer, sight): (usize, KvSight),
        packed: &Planes,
        pass: &LivePass,
    ) -> Result<DecodeKv> {
        // In one kernel it is seen as it comes, by products in float32.
        let by_products = sight.is_capped || self.cohorts.see_pieces(&pass.decode_positions, sight.window);
        let is_wide = self.slab_may_be_wide && by_products;
        let planes = self.slab.fill(layer, packed, &pass.slab_rows, is_wide)?;
        let piece = |piece: &Piece| PieceKv { rows: piece.rows.clone(), kv: piece.layers[layer].clone() };
        Ok(DecodeKv {
            positions: pass.decode_positions.clone(),
            pieces: self.cohorts.pieces.iter().map(piece).collect(),
            slab: SlabKv { planes, rows: Rc::clone(&pass.slab_rows) },
        })
    }
}
