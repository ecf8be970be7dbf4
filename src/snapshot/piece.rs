//! What a node has of the file: extents, and which of their tokens.
//!
//! Owns cutting, and the count of bytes: an extent that several nodes refer to counts once. What is in
//! an extent is `format`'s, which nodes there are the catalogue's.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::format::Checksum;
use crate::cache::Payload;

/// Bytes in the file that are read and verified together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub num_bytes: u64,
    /// Tokens whose KV it is; 0 for a recurrent state.
    pub num_tokens: u32,
    pub checksum: Checksum,
}

/// What a node has of the file.
///
/// ```text
/// extents   |---- 256 ----|---- 256 ----|-- 88 --|     offsets need not follow each other
/// upper     |-------- first 0 -----|                   two extents
/// lower                            |-------------|     two extents, first = 144; the cut one counts
///                                                      with the upper half, which never goes before
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// None where a model has no attention layers, so that its KV is no bytes.
    extents: Arc<[Extent]>,
    /// Tokens of the first extent before the node's.
    first: u32,
    num_tokens: u32,
    /// The node above has the first extent, too.
    is_first_shared: bool,
    /// When a run last used it, in seconds since 1970.
    pub used_at: u64,
}

impl Piece {
    /// The KV of all tokens of these extents.
    pub(super) fn of(extents: &[Extent], num_tokens: u32, used_at: u64) -> Self {
        Self { extents: extents.into(), first: 0, num_tokens, is_first_shared: false, used_at }
    }

    /// A recurrent state.
    pub(super) fn state(extent: Extent, used_at: u64) -> Self {
        Self::of(&[extent], 0, used_at)
    }

    /// The KV of some tokens after the first ones of some extents, as an index tells; `None` where the tokens
    /// are not in all of the extents and in no others.
    pub(super) fn checked(extents: Vec<Extent>, first: u32, num_tokens: u32, used_at: u64) -> Option<Self> {
        let (head, last) = match extents.as_slice() {
            [] => (0, 0),
            [head, .., last] => (head.num_tokens, last.num_tokens),
            [only] => (only.num_tokens, only.num_tokens),
        };
        let num_held = extents.iter().try_fold(0_u32, |sum, extent| sum.checked_add(extent.num_tokens))?;
        let end = first.checked_add(num_tokens)?;
        // In the order in which they were written, so that none comes twice.
        let is_in_order = extents.is_sorted_by(|before, after| before.offset < after.offset);
        let is_sound = match extents.is_empty() {
            true => first == 0,
            false => is_in_order && first < head && end <= num_held && end > num_held - last,
        };
        let extents: Arc<[Extent]> = extents.into();
        is_sound.then_some(Self { extents, first, num_tokens, is_first_shared: false, used_at })
    }

    /// The extents that have its tokens, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Its tokens among those of its extents.
    pub fn tokens(&self) -> Range<usize> {
        self.first as usize..self.first as usize + self.num_tokens as usize
    }

    /// Bytes of its extents, which reading it takes.
    pub fn num_extent_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.num_bytes).sum()
    }

    /// Tokens that its extents have the KV of.
    pub fn num_extent_tokens(&self) -> usize {
        self.extents.iter().map(|extent| extent.num_tokens as usize).sum()
    }

    /// The piece's own tokens in this range, which must not be empty.
    pub fn part(&self, tokens: Range<usize>) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let wanted = self.first as usize + tokens.start..self.first as usize + tokens.end;
        let mut kept = Vec::new();
        let (mut start, mut first) = (0, 0);
        for extent in &*self.extents {
            let end = start + extent.num_tokens as usize;
            if end > wanted.start && start < wanted.end {
                if kept.is_empty() {
                    first = wanted.start.saturating_sub(start);
                }
                kept.push(*extent);
            }
            start = end;
        }
        Self {
            is_first_shared: self.is_first_shared && kept.first() == self.extents.first(),
            extents: kept.into(),
            first: number(first),
            num_tokens: number(tokens.len()),
            used_at: self.used_at,
        }
    }

    /// The same below another piece, which may have the first extent, too.
    pub(super) fn below(self, above: Option<&Self>) -> Self {
        let last_above = above.and_then(|above| above.extents.last());
        Self { is_first_shared: last_above.is_some() && last_above == self.extents.first(), ..self }
    }

    /// Its tokens before the first extent for which `is_gone` says so; `None` where there is none.
    pub(super) fn num_tokens_before(&self, is_gone: impl Fn(&Extent) -> bool) -> Option<usize> {
        let num_sound = self.extents.iter().position(is_gone)?;
        let before: usize = self.extents[..num_sound].iter().map(|extent| extent.num_tokens as usize).sum();
        Some(before.saturating_sub(self.first as usize))
    }

    /// The same with its extents where `moved` says, by their old places.
    pub(super) fn moved(&self, moved: &BTreeMap<u64, u64>) -> Self {
        let place = |extent: &Extent| Extent {
            offset: moved.get(&extent.offset).copied().unwrap_or(extent.offset),
            ..*extent
        };
        Self { extents: self.extents.iter().map(place).collect(), ..self.clone() }
    }

    /// The same in extents of another file, which have the same tokens.
    pub(super) fn copied_to(&self, extents: &[Extent]) -> Self {
        Self { extents: extents.into(), is_first_shared: false, ..self.clone() }
    }

    /// The same, used at that time.
    pub(super) fn used(self, now: u64) -> Self {
        Self { used_at: now.max(self.used_at), ..self }
    }
}

impl Payload for Piece {
    /// What is left once the node above has gone, too, counts there.
    fn num_bytes(&self) -> u64 {
        let own = self.extents.iter().skip(usize::from(self.is_first_shared));
        own.map(|extent| extent.num_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(num_tokens: &[u32]) -> Vec<Extent> {
        let of = |(place, &num_tokens): (usize, &u32)| Extent {
            offset: place as u64 * 10_000,
            num_bytes: u64::from(num_tokens) * 10,
            num_tokens,
            checksum: [place as u8; 16],
        };
        num_tokens.iter().enumerate().map(of).collect()
    }

    /// A piece counted as its share of an extent, which stays whole: a file grew far beyond its limit.
    #[test]
    fn halves_have_the_extents_that_they_overlap_and_the_cut_one_counts_once() {
        let whole = Piece::of(&extents(&[256, 256, 88]), 600, 0);
        assert_eq!(whole.num_bytes(), 6000);
        for at in 1..600 {
            let upper = whole.part(0..at);
            let lower = whole.part(at..600).below(Some(&upper));
            assert_eq!(upper.num_bytes() + lower.num_bytes(), 6000, "cut after {at}");
            assert_eq!(upper.num_bytes(), [256, 512, 600][(at - 1) / 256] * 10);
            assert_eq!((upper.tokens(), lower.tokens()), (0..at, at % 256..600 - at / 256 * 256));
            // And cut again.
            for again in 1..600 - at {
                let middle = lower.part(0..again);
                let end = lower.part(again..600 - at).below(Some(&middle));
                let sum = upper.num_bytes() + middle.num_bytes() + end.num_bytes();
                assert_eq!(sum, 6000, "cut after {at} and {again}");
            }
        }
    }

    #[test]
    fn tokens_that_are_not_in_their_extents_are_refused() {
        let of = |first, num_tokens| Piece::checked(extents(&[10, 10]), first, num_tokens, 0).is_some();
        assert!(of(0, 20) && of(9, 2) && of(9, 11) && of(0, 11));
        assert!(!of(10, 5), "the first extent has none of them");
        assert!(!of(0, 10), "the last extent has none of them");
        assert!(!of(9, 12) && !of(0, u32::MAX) && !of(u32::MAX, 1));
        let twice = [extents(&[10]), extents(&[10])].concat();
        assert!(Piece::checked(twice, 0, 20, 0).is_none());
        assert!(
            Piece::checked(Vec::new(), 0, 5, 0).is_some() && Piece::checked(Vec::new(), 1, 5, 0).is_none()
        );
    }

    #[test]
    fn what_is_before_a_lost_extent_is_kept() {
        let piece = Piece::of(&extents(&[256, 256, 88]), 600, 0).part(100..600);
        let before = |place: u64| piece.num_tokens_before(|extent| extent.offset == place * 10_000);
        assert_eq!([0, 1, 2, 3].map(before), [Some(0), Some(156), Some(412), None]);
    }
}
