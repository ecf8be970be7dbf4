//! What the fake runner has stored: tokens in place of tensors.
//!
//! Owns the checks that nothing is used after it was discarded, discarded twice, put on a path that
//! it does not belong to, or used although the pass that was to compute it failed.

use std::collections::HashMap;
use std::io::Read;

use super::{Exported, SegmentId, StoredSegment, TokenId};

/// Bytes of one token's fake KV.
pub(crate) const BYTES_PER_TOKEN: u64 = 10;
/// Bytes of a fake recurrent state.
const BYTES_PER_CHECKPOINT: u64 = 15;

#[derive(Debug, Default)]
pub(super) struct Store {
    held: HashMap<SegmentId, Held>,
    num_made: u64,
}

#[derive(Debug)]
pub(super) struct Held {
    /// All tokens from position 0 up to its end.
    pub(super) tokens: Vec<TokenId>,
    /// Where a segment begins; `None` for a checkpoint.
    first: Option<usize>,
    /// The pass that it was computed in or after.
    pass: Option<usize>,
    is_lost: bool,
}

impl Held {
    fn num_bytes(&self) -> u64 {
        self.first.map_or(BYTES_PER_CHECKPOINT, |first| (self.tokens.len() - first) as u64 * BYTES_PER_TOKEN)
    }
}

impl Store {
    fn insert(&mut self, held: Held) -> StoredSegment {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let num_bytes = held.num_bytes();
        self.held.insert(id, held);
        StoredSegment { id, num_bytes }
    }

    pub(super) fn insert_segment(
        &mut self,
        tokens: Vec<TokenId>,
        first: usize,
        pass: Option<usize>,
    ) -> StoredSegment {
        self.insert(Held { tokens, first: Some(first), pass, is_lost: false })
    }

    pub(super) fn insert_checkpoint(&mut self, tokens: Vec<TokenId>, pass: Option<usize>) -> StoredSegment {
        self.insert(Held { tokens, first: None, pass, is_lost: false })
    }

    fn get(&self, id: SegmentId) -> &Held {
        let held = self.held.get(&id).expect("what is used is stored");
        assert!(!held.is_lost, "{id:?} is used, but its pass failed");
        held
    }

    /// What is stored, if as many passes as have been collected include the one that computes it.
    pub(super) fn computed(&self, id: SegmentId, num_collected: usize) -> &Held {
        let held = self.get(id);
        assert!(held.pass.is_none_or(|pass| pass < num_collected), "{id:?} is exported, but may yet fail");
        held
    }

    /// The tokens of a path of segments.
    pub(super) fn tokens_of(&self, path: &[SegmentId]) -> Vec<TokenId> {
        let mut tokens: Vec<TokenId> = Vec::new();
        for id in path {
            let segment = self.get(*id);
            assert_eq!(segment.first, Some(tokens.len()), "segments follow each other");
            assert!(segment.tokens.starts_with(&tokens), "a segment lies on one path only");
            tokens.clone_from(&segment.tokens);
        }
        tokens
    }

    /// The tokens that a checkpoint is the state after.
    pub(super) fn checkpoint(&self, id: SegmentId) -> &[TokenId] {
        let held = self.get(id);
        assert_eq!(held.first, None, "{id:?} is no checkpoint");
        &held.tokens
    }

    pub(super) fn split(&mut self, id: SegmentId, at: usize) -> (StoredSegment, StoredSegment) {
        let Held { tokens, first, pass, is_lost } = self.held.remove(&id).expect("what is split is stored");
        let first = first.expect("a segment is split, not a checkpoint");
        assert!(at > 0 && first + at < tokens.len(), "a split leaves two halves");
        let upper = Held { tokens: tokens[..first + at].to_vec(), first: Some(first), pass, is_lost };
        let upper = self.insert(upper);
        (upper, self.insert(Held { tokens, first: Some(first + at), pass, is_lost }))
    }

    /// What comes before an export's first token, and then all tokens up to its last.
    pub(super) fn export(
        &self,
        id: SegmentId,
        tokens: std::ops::Range<usize>,
        num_collected: usize,
        bytes: &mut Vec<u8>,
    ) {
        let held = self.computed(id, num_collected);
        let first = held.first.expect("a segment is exported, not a checkpoint");
        let before = TokenId::try_from(first + tokens.start).expect("few tokens");
        let tokens = &held.tokens[..first + tokens.end];
        bytes.extend([before].iter().chain(tokens).flat_map(|number| number.to_le_bytes()));
    }

    pub(super) fn export_checkpoint(&self, id: SegmentId, num_collected: usize, bytes: &mut Vec<u8>) {
        self.computed(id, num_collected);
        bytes.extend(self.checkpoint(id).iter().flat_map(|number| number.to_le_bytes()));
    }

    /// Takes in what [`Store::export`] gave; `None` where the bytes cannot be that.
    pub(super) fn import(&mut self, exported: Exported<'_>) -> Option<StoredSegment> {
        let Exported { num_tokens, skip, num_wanted, position, .. } = exported;
        let numbers = numbers_of(exported.bytes)?;
        let (&before, tokens) = numbers.split_first()?;
        let before = before as usize;
        if before + num_tokens != tokens.len() || before + skip != position {
            return None;
        }
        Some(self.insert_segment(tokens.get(..position + num_wanted)?.to_vec(), position, None))
    }

    pub(super) fn import_checkpoint(
        &mut self,
        position: usize,
        bytes: &mut dyn Read,
    ) -> Option<StoredSegment> {
        let tokens = numbers_of(bytes).filter(|tokens| tokens.len() == position)?;
        Some(self.insert_checkpoint(tokens, None))
    }

    /// Forgets something stored; returns its bytes.
    pub(super) fn discard(&mut self, id: SegmentId) -> u64 {
        let held = self.held.remove(&id);
        held.map(|held| held.num_bytes()).unwrap_or_else(|| panic!("{id:?} is discarded twice"))
    }

    pub(super) fn num_bytes(&self) -> u64 {
        self.held.values().map(Held::num_bytes).sum()
    }

    /// Marks what was computed in that pass or after it.
    pub(super) fn lose(&mut self, pass: usize) {
        for held in self.held.values_mut() {
            held.is_lost |= held.pass.is_some_and(|computed| computed >= pass);
        }
    }

    pub(super) fn num_lost(&self) -> usize {
        self.held.values().filter(|held| held.is_lost).count()
    }
}

fn numbers_of(from: &mut dyn Read) -> Option<Vec<u32>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).ok()?;
    let (numbers, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| numbers.iter().map(|number| u32::from_le_bytes(*number)).collect())
}
