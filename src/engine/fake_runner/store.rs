//! What the fake runner has stored: tokens in place of tensors.
//!
//! Owns the checks that nothing is used after it was discarded, discarded twice, put on a path that
//! it does not belong to, or used although the pass that was to compute it failed.

use std::collections::HashMap;
use std::io::Read;

use super::{Exported, SegmentId, StoredSegment, TokenId};

/// Bytes of one token's fake KV.
pub(crate) const BYTES_PER_TOKEN: u64 = 10;
/// Bytes of one token's fake KV in a cache file: position, token, and a hash of all tokens before it.
pub(crate) const EXPORTED_BYTES_PER_TOKEN: u32 = 4 + 4 + 8;
/// Bytes of a fake recurrent state.
pub(crate) const BYTES_PER_CHECKPOINT: u64 = 15;

#[derive(Debug, Default)]
pub(super) struct Store {
    held: HashMap<SegmentId, Held>,
    num_made: u64,
}

#[derive(Debug)]
pub(super) struct Held {
    /// Its own tokens; all from position 0 on for a checkpoint.
    pub(super) tokens: Vec<TokenId>,
    /// Of all tokens before its own.
    before: u64,
    /// Where a segment begins; `None` for a checkpoint.
    first: Option<usize>,
    /// The pass that it was computed in or after.
    pass: Option<usize>,
    is_lost: bool,
}

impl Held {
    fn num_bytes(&self) -> u64 {
        self.first.map_or(BYTES_PER_CHECKPOINT, |_| self.tokens.len() as u64 * BYTES_PER_TOKEN)
    }
}

/// A hash of all tokens up to the last of these, given that of those before.
fn hash_of(before: u64, tokens: &[TokenId]) -> u64 {
    let mix = |hash: u64, token: &TokenId| {
        (hash ^ (u64::from(*token) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    tokens.iter().fold(before, mix)
}

impl Store {
    fn insert(&mut self, held: Held) -> StoredSegment {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let num_bytes = held.num_bytes();
        self.held.insert(id, held);
        StoredSegment { id, num_bytes }
    }

    /// Stores the tokens from `first` on.
    pub(super) fn insert_segment(
        &mut self,
        mut tokens: Vec<TokenId>,
        first: usize,
        pass: Option<usize>,
    ) -> StoredSegment {
        let own = tokens.split_off(first);
        let before = hash_of(0, &tokens);
        self.insert(Held { tokens: own, before, first: Some(first), pass, is_lost: false })
    }

    pub(super) fn insert_checkpoint(&mut self, tokens: Vec<TokenId>, pass: Option<usize>) -> StoredSegment {
        self.insert(Held { tokens, before: 0, first: None, pass, is_lost: false })
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
            assert_eq!(segment.before, hash_of(0, &tokens), "a segment lies on one path only");
            tokens.extend(&segment.tokens);
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
        let Held { mut tokens, before, first, pass, is_lost } =
            self.held.remove(&id).expect("what is split is stored");
        let first = first.expect("a segment is split, not a checkpoint");
        assert!(at > 0 && at < tokens.len(), "a split leaves two halves");
        let own = tokens.split_off(at);
        let middle = hash_of(before, &tokens);
        let upper = self.insert(Held { tokens, before, first: Some(first), pass, is_lost });
        (upper, self.insert(Held { tokens: own, before: middle, first: Some(first + at), pass, is_lost }))
    }

    /// Each of some tokens with its position and what comes before it.
    pub(super) fn export(
        &self,
        id: SegmentId,
        tokens: std::ops::Range<usize>,
        num_collected: usize,
        bytes: &mut Vec<u8>,
    ) {
        let held = self.computed(id, num_collected);
        let first = held.first.expect("a segment is exported, not a checkpoint");
        for place in tokens {
            bytes.extend(u32::try_from(first + place).expect("few tokens").to_le_bytes());
            bytes.extend(held.tokens[place].to_le_bytes());
            bytes.extend(hash_of(held.before, &held.tokens[..place]).to_le_bytes());
        }
    }

    pub(super) fn export_checkpoint(&self, id: SegmentId, num_collected: usize, bytes: &mut Vec<u8>) {
        self.computed(id, num_collected);
        bytes.extend(self.checkpoint(id).iter().flat_map(|number| number.to_le_bytes()));
    }

    /// Takes in what [`Store::export`] gave; `None` where the bytes cannot be that.
    pub(super) fn import(&mut self, exported: Exported<'_>) -> Option<StoredSegment> {
        let Exported { bytes, num_run_tokens, skip, num_wanted, position, .. } = exported;
        let numbers = numbers_of(bytes)?;
        let (exported, rest) = numbers.as_chunks::<4>();
        if !rest.is_empty() || exported.len() != num_run_tokens.iter().sum::<usize>() {
            return None;
        }
        let before_of = |[_, _, low, high]: &[u32; 4]| u64::from(*low) | u64::from(*high) << 32;
        let is_in_place = |(place, token): (usize, &[u32; 4])| token[0] as usize + skip == position + place;
        let follows = |pair: &[[u32; 4]]| before_of(&pair[1]) == hash_of(before_of(&pair[0]), &pair[0][1..2]);
        if !exported.iter().enumerate().all(is_in_place) || !exported.windows(2).all(follows) {
            return None;
        }
        let wanted = exported.get(skip..skip + num_wanted)?;
        let tokens = wanted.iter().map(|token| token[1]).collect();
        let before = before_of(wanted.first()?);
        Some(self.insert(Held { tokens, before, first: Some(position), pass: None, is_lost: false }))
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
