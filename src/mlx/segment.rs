//! Segments: stored KV of one range of tokens in all layers, immutable and shared.
//!
//! Owns their identity, bytes and splitting. Which are kept is the prompt cache's decision; what
//! sequences do on top of them is `live`'s.

use std::{collections::HashMap, rc::Rc};

use super::{
    error::{MlxError, Result},
    kv::LayerKv,
};
use crate::engine::SegmentId;

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

/// All stored segments by id. A running sequence holds handles of its own, so discarding one here
/// frees its memory only when nobody runs on it any more.
#[derive(Debug, Default)]
pub(super) struct SegmentStore {
    segments: HashMap<SegmentId, Rc<Segment>>,
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

    pub(super) fn discard(&mut self, id: SegmentId) {
        self.segments.remove(&id);
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

    /// Bytes of all stored segments.
    pub(super) fn num_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.num_bytes()).sum()
    }
}
