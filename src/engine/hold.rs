//! A sequence's hold on the prompt cache: the node that it pins, and whose the KV of its prompt is.
//!
//! Owns the states of a prompt's pieces and the counts that follow from them. What the cache and the runner are
//! told, and when, is `prefixes`'.
//!
//! ```text
//!       stored before                  announced               stored before, but without
//!             │                            │                  the recurrent state at its end
//!             ▼                            ▼                                │
//!          Resumed                        Due                               ▼
//!             │                  launched, │ launched,                   Stateless
//!   no room,  │                  kept      │ no room                        │ launched
//!   or no     │                    ┌───────┴───────┐                        ▼
//!   numbers   ▼                    ▼               ▼                     Computed
//!         TakenOver              Kept ──────────▶ Own                       twice
//!                                     no numbers
//! ```
//!
//! A sequence that has `TakenOver` or `Own` pieces is detached: what it computes behind them has no place in the
//! tree.

use crate::cache::{Claim, NodeId};

/// Whose the KV of a piece is, or will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece {
    /// The cache's, and was when the sequence began.
    Resumed,
    /// Announced as this node: the sequence is to compute and store it. A spare claim where nobody else is known
    /// to use it.
    Due { node: NodeId, claim: Claim },
    /// The cache's, but for the recurrent state at its end, which is to be computed with all of it.
    Stateless { node: NodeId },
    /// The cache's, stored by the sequence.
    Kept,
    /// The cache's, and once more the sequence's own.
    ComputedTwice,
    /// The sequence's own: it resumed on it, and the cache has it no more.
    TakenOver,
    /// The sequence's own: the cache does not take it, or has it no more.
    Own,
}

impl Piece {
    fn is_due(self) -> bool {
        matches!(self, Self::Due { .. } | Self::Stateless { .. })
    }
}

/// A sequence's hold on the prompt cache.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The pinned node below which it stores what comes next.
    pub node: Option<NodeId>,
    /// Where each piece of the prompt ends and the next begins; those that are due behind those that are stored.
    pieces: Vec<(usize, Piece)>,
}

impl Hold {
    /// Adds the piece from the end of the last one up to `end`.
    pub(super) fn push(&mut self, end: usize, piece: Piece) {
        self.pieces.push((end, piece));
    }

    /// The next piece to be stored and where it ends: the prefill has to be cut there.
    pub(super) fn next_due(&self) -> Option<(usize, Piece)> {
        self.pieces.iter().copied().find(|(_, piece)| piece.is_due())
    }

    /// Says what has become of the next piece, which is stored.
    pub(super) fn stored(&mut self, as_what: Piece) {
        if let Some((_, piece)) = self.pieces.iter_mut().find(|(_, piece)| piece.is_due()) {
            *piece = as_what;
        }
    }

    /// Has the sequence keep to itself all from `start` on, and whatever is due.
    pub(super) fn detach_from(&mut self, start: usize) {
        let mut first = 0;
        for (end, piece) in std::mem::take(&mut self.pieces) {
            let middle = if piece.is_due() { first } else { start.clamp(first, end) };
            let own = match piece {
                Piece::Resumed | Piece::TakenOver => Piece::TakenOver,
                _ => Piece::Own,
            };
            self.pieces.extend((first < middle).then_some((middle, piece)));
            self.pieces.extend((middle < end).then_some((end, own)));
            first = end;
        }
    }

    /// Whether nothing more can be stored: what it would continue is not in the tree.
    pub(super) fn is_detached(&self) -> bool {
        self.pieces.iter().any(|(_, piece)| matches!(piece, Piece::TakenOver | Piece::Own))
    }

    /// Where what the sequence stores next begins, as long as it is not detached.
    pub(super) fn num_tokens(&self) -> usize {
        self.pieces.iter().take_while(|(_, piece)| !piece.is_due()).last().map_or(0, |(end, _)| *end)
    }

    /// Tokens of the pieces that are in this state.
    pub(super) fn num_tokens_as(&self, wanted: Piece) -> usize {
        let starts = std::iter::once(0).chain(self.pieces.iter().map(|(end, _)| *end));
        let of_kind = self.pieces.iter().zip(starts).filter(|((_, piece), _)| *piece == wanted);
        of_kind.map(|((end, _), start)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{CacheLimits, Inserted, OwnerId, Place, PromptCache, ResumeRule, Tier};
    use crate::engine::StoredSegment;

    fn node() -> NodeId {
        let limits = CacheLimits { max_bytes: 0, max_entries: None };
        let mut cache = PromptCache::<StoredSegment>::new(limits, ResumeRule::AnyToken);
        let place = Place { parent: None, tokens: &[1], tier: Tier::User };
        match cache.announce(place, OwnerId(0)) {
            Ok(Inserted::New(node)) => node,
            other => panic!("{other:?}"),
        }
    }

    fn due(claim: Claim) -> Piece {
        Piece::Due { node: node(), claim }
    }

    fn counts(hold: &Hold) -> (usize, usize, usize, bool) {
        (
            hold.num_tokens(),
            hold.num_tokens_as(Piece::Kept),
            hold.num_tokens_as(Piece::TakenOver),
            hold.is_detached(),
        )
    }

    #[test]
    fn each_piece_goes_from_state_to_state_and_all_counts_follow() {
        let mut hold = Hold::default();
        assert_eq!((counts(&hold), hold.next_due()), ((0, 0, 0, false), None));
        hold.push(4, Piece::Resumed);
        let (stateless, shared) = (Piece::Stateless { node: node() }, due(Claim::Needed));
        hold.push(6, stateless);
        hold.push(9, shared);
        assert_eq!((counts(&hold), hold.next_due()), ((4, 0, 0, false), Some((6, stateless))));
        hold.stored(Piece::ComputedTwice);
        assert_eq!((counts(&hold), hold.next_due()), ((6, 0, 0, false), Some((9, shared))));
        hold.stored(Piece::Kept);
        assert_eq!((counts(&hold), hold.next_due()), ((9, 3, 0, false), None));
        hold.push(12, due(Claim::Spare));
        hold.stored(Piece::Own);
        assert_eq!((counts(&hold), hold.next_due()), ((12, 3, 0, true), None));
    }

    #[test]
    fn what_the_cache_has_lost_is_the_sequences_own_from_there_on() {
        let held = |start| {
            let mut hold = Hold::default();
            for (end, piece) in [(4, Piece::Resumed), (9, Piece::Kept), (12, due(Claim::Needed))] {
                hold.push(end, piece);
            }
            hold.detach_from(start);
            assert_eq!(hold.next_due(), None);
            assert!(hold.is_detached());
            (hold.num_tokens_as(Piece::Kept), hold.num_tokens_as(Piece::TakenOver))
        };
        assert_eq!([0, 2, 4, 7, 9].map(held), [(0, 4), (0, 2), (0, 0), (3, 0), (5, 0)]);
        let mut hold = Hold::default();
        hold.push(9, Piece::Resumed);
        for (start, num_taken_over) in [(7, 2), (3, 6), (8, 6)] {
            hold.detach_from(start);
            assert_eq!(hold.num_tokens_as(Piece::TakenOver), num_taken_over);
        }
    }
}
