//! One forward pass as the live KV sees it.
//!
//! Owns whose tokens the packed rows are and where they stand. What becomes of their KV is the parent's
//! business.

use std::{ops::Range, rc::Rc};

use crate::mlx::{attention::MaskCache, packed::PassChunk, segment::Segment, slab::SlabRows};

/// Chunks next to each other that run on the same long segments.
#[derive(Debug)]
pub(super) struct PassRun {
    /// Which of the pass's chunks.
    pub chunks: Range<usize>,
    /// What is attended once for all of them; a single chunk attends to all by itself.
    pub shared: Vec<Rc<Segment>>,
}

/// Whose tokens a pass computes: first one row per decoding sequence, then the chunks.
#[derive(Debug, Default)]
pub(in crate::mlx) struct LivePass {
    /// Position of each decode row, in the order of the cohorts.
    pub decode_positions: Vec<usize>,
    pub chunks: Vec<PassChunk>,
    /// Packed rows of each chunk.
    pub(super) chunk_rows: Vec<Range<usize>>,
    /// The chunks once more, divided.
    pub(super) runs: Vec<PassRun>,
    /// Where the decode rows are in the slab.
    pub(super) slab_rows: Rc<SlabRows>,
    pub masks: MaskCache,
}

impl LivePass {
    /// Positions of the packed rows.
    pub(in crate::mlx) fn positions(&self) -> Vec<i32> {
        let chunks = self.chunks.iter().flat_map(|chunk| chunk.start..chunk.start + chunk.num_tokens);
        self.decode_positions.iter().copied().chain(chunks).map(|position| position as i32).collect()
    }
}
