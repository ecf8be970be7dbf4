//! Segments, the stored KV of one range of tokens in all layers, and checkpoints, the states of all
//! recurrent layers at one position; both immutable and shared.
//!
//! Owns their identity, bytes and splitting. Which are kept is the prompt cache's decision; what
//! sequences do on top of them is `live`'s.

use std::{collections::HashMap, rc::Rc};

use super::{
    error::{MlxError, Result},
    kv::LayerKv,
    recurrent::RecurrentState,
};
use crate::engine::{SegmentId, StoredSegment};

/// KV of exactly the tokens at positions `first..first + num_tokens`, one entry a layer.
#[derive(Debug)]
pub(super) struct Segment {
    pub id: SegmentId,
    pub first: usize,
    pub num_tokens: usize,
    pub layers: Vec<LayerKv>,
}

impl Segment {
    /// Bytes of all its arrays; they are compact, so this is what they hold.
    pub(super) fn num_bytes(&self) -> u64 {
        self.layers.iter().map(LayerKv::num_bytes).sum()
    }
}

/// States of all recurrent layers after the tokens before `position`; cannot be split or trimmed.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub position: usize,
    pub states: Vec<RecurrentState>,
}

impl Checkpoint {
    fn num_bytes(&self) -> u64 {
        self.states.iter().map(RecurrentState::num_bytes).sum()
    }
}

/// All stored segments and checkpoints by id. A running sequence holds handles of its own, so discarding one here
/// frees its memory only when nobody runs on it any more.
#[derive(Debug, Default)]
pub(super) struct SegmentStore {
    segments: HashMap<SegmentId, Rc<Segment>>,
    checkpoints: HashMap<SegmentId, Rc<Checkpoint>>,
    /// Both kinds together: no id names two things.
    num_made: u64,
}

impl SegmentStore {
    /// Takes a range's KV in; every array must be compact.
    pub(super) fn insert(&mut self, first: usize, num_tokens: usize, layers: Vec<LayerKv>) -> Rc<Segment> {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let segment = Rc::new(Segment { id, first, num_tokens, layers });
        self.segments.insert(id, Rc::clone(&segment));
        segment
    }

    pub(super) fn get(&self, id: SegmentId) -> Result<Rc<Segment>> {
        self.segments
            .get(&id)
            .cloned()
            .ok_or_else(|| MlxError::Unsupported(format!("segment {} is not stored", id.0)))
    }

    /// Takes the states at a position in.
    pub(super) fn insert_checkpoint(&mut self, checkpoint: Checkpoint) -> StoredSegment {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let num_bytes = checkpoint.num_bytes();
        self.checkpoints.insert(id, Rc::new(checkpoint));
        StoredSegment { id, num_bytes }
    }

    pub(super) fn checkpoint(&self, id: SegmentId) -> Result<Rc<Checkpoint>> {
        self.checkpoints
            .get(&id)
            .cloned()
            .ok_or_else(|| MlxError::Unsupported(format!("checkpoint {} is not stored", id.0)))
    }

    pub(super) fn discard(&mut self, id: SegmentId) {
        self.segments.remove(&id);
        self.checkpoints.remove(&id);
    }

    /// Cuts a segment after its first `at` tokens. Both halves are copies that own their memory,
    /// so that dropping one frees it.
    pub(super) fn split(&mut self, id: SegmentId, at: usize) -> Result<(Rc<Segment>, Rc<Segment>)> {
        let whole = self.get(id)?;
        if at == 0 || at >= whole.num_tokens {
            return Err(MlxError::Unsupported(format!(
                "segment {} of {} tokens cannot be split after {at}",
                id.0, whole.num_tokens
            )));
        }
        let (middle, end) = (whole.first + at, whole.first + whole.num_tokens);
        let half = |range: std::ops::Range<usize>| {
            whole.layers.iter().map(|kv| kv.slice(range.clone())?.compact()).collect::<Result<Vec<LayerKv>>>()
        };
        let (upper, lower) = (half(whole.first..middle)?, half(middle..end)?);
        mlx_rs::transforms::eval(upper.iter().chain(&lower).flat_map(|kv| [&kv.keys, &kv.values]))?;
        let (first, num_tokens) = (whole.first, whole.num_tokens);
        self.discard(id);
        Ok((self.insert(first, at, upper), self.insert(middle, num_tokens - at, lower)))
    }

    /// Bytes of all stored segments and checkpoints.
    pub(super) fn num_bytes(&self) -> u64 {
        let segments: u64 = self.segments.values().map(|segment| segment.num_bytes()).sum();
        segments + self.checkpoints.values().map(|checkpoint| checkpoint.num_bytes()).sum::<u64>()
    }
}
