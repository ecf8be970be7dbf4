//! The merges of a SentencePiece vocabulary, which GGUF files leave out.
//!
//! Owns ranking every way to put a piece together from two others by the piece's score. Which
//! pieces take part is the caller's decision.

use std::cmp::Ordering;
use std::collections::HashMap;

/// One vocabulary entry; its id is its place in the list.
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// Whether it may be merged, or be part of a merge.
    pub merges: bool,
}

/// Lists all merges, best first.
///
/// A merge ranks by the score of the piece it makes, then by the length of its left and right
/// part, longer first; equal ones in the order of the made piece's, then the parts' ids.
pub(super) fn spm_merges(pieces: &[Piece]) -> Vec<(&str, &str)> {
    // The last of equal texts wins, as in the vocabulary.
    let ids: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    let part = |text: &str| ids.get(text).copied().filter(|id| pieces.get(*id).is_some_and(|p| p.merges));

    let mut merges = Vec::new();
    for piece in pieces.iter().filter(|piece| piece.merges) {
        let start = merges.len();
        let num_chars = piece.text.chars().count();
        for (num_left, (at, _)) in piece.text.char_indices().enumerate().skip(1) {
            let (left, right) = piece.text.split_at(at);
            if let (Some(left_id), Some(right_id)) = (part(left), part(right)) {
                let rank = Rank { score: piece.score, num_left, num_right: num_chars - num_left };
                merges.push((rank, (left_id, right_id), (left, right)));
            }
        }
        merges[start..].sort_by_key(|(_, ids, _)| *ids);
    }
    merges.sort_by(|(a, ..), (b, ..)| a.compare(b));
    merges.into_iter().map(|(_, _, parts)| parts).collect()
}

struct Rank {
    score: f32,
    num_left: usize,
    num_right: usize,
}

impl Rank {
    fn compare(&self, other: &Rank) -> Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(other.num_left.cmp(&self.num_left))
            .then(other.num_right.cmp(&self.num_right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32) -> Piece {
        Piece { text: text.to_owned(), score, merges: true }
    }

    #[test]
    fn merges_rank_by_score_then_length() {
        let mut pieces = [
            ("a", 0.0),
            ("b", 0.0),
            ("c", 0.0),
            ("ab", -2.0),
            ("bc", -1.0),
            ("abc", -3.0),
            ("é", 0.0),
            ("éa", -3.0),
        ]
        .map(|(text, score)| piece(text, score));
        assert_eq!(
            spm_merges(&pieces),
            [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc"), ("é", "a")],
            "lengths count characters, not bytes"
        );
        pieces[4].merges = false;
        assert_eq!(spm_merges(&pieces), [("a", "b"), ("ab", "c"), ("é", "a")]);
    }
}
