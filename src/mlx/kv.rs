//! KV arrays of one range of tokens of one sequence in one layer.
//!
//! Owns the arrays' layout; whose they are is `live`'s business. Every array is immutable once made, so
//! passes under way and other sequences keep what they read. Keys are stored after RoPE at their absolute
//! position.

use std::ops::Range;

use mlx_rs::{Dtype, ops};

use super::{
    arrays::{Copying, compact},
    error::Result,
    planes::Planes,
    sys,
};

/// Tokens from which on a segment is attended to once for all chunks that run on it.
const MIN_LONG_TOKENS: usize = 64;

/// Whether so few tokens are not worth attending to once for all chunks on them.
pub(super) fn is_short(num_tokens: usize) -> bool {
    num_tokens < MIN_LONG_TOKENS
}

/// Joins short pieces at the end of `pieces`, one behind the other, for a chunk that is to see them.
pub(super) fn join_short_end(mut pieces: Vec<LayerKv>) -> Result<Vec<LayerKv>> {
    let mut next_first = None;
    let is_joined = |kv: &&LayerKv| {
        // What lies between two may be attended to elsewhere.
        let is_neighbour = next_first.replace(kv.first).is_none_or(|first| kv.end() == first);
        is_neighbour && is_short(kv.num_tokens())
    };
    let num_short = pieces.iter().rev().take_while(is_joined).count();
    if num_short > 1 {
        let short = pieces.split_off(pieces.len() - num_short);
        pieces.push(LayerKv::joined(short.iter())?);
    }
    Ok(pieces)
}

/// KV of consecutive positions of one sequence in one layer, planes of `(1, H_kv, L, D)`.
#[derive(Debug, Clone)]
pub(super) struct LayerKv {
    /// Position of the first token held.
    pub first: usize,
    pub planes: Planes,
}

impl LayerKv {
    pub(super) fn num_tokens(&self) -> usize {
        self.planes.keys().dim(2) as usize
    }

    /// Position after the last token held.
    pub(super) fn end(&self) -> usize {
        self.first + self.num_tokens()
    }

    /// KV of the positions from `first` on, which comes in parts of `(1, H_kv, n, D)`, after what `earlier`
    /// holds of the positions before; a copy in any case.
    pub(super) fn after(earlier: Option<&Self>, first: usize, parts: &[Planes]) -> Result<Self> {
        let all: Vec<&Planes> = earlier.map(|kv| &kv.planes).into_iter().chain(parts).collect();
        let planes = match all.as_slice() {
            [single] => single.map(compact)?,
            several => Planes::zipped(several, |arrays| Ok(ops::concatenate(arrays, 2)?))?,
        };
        Ok(Self { first: earlier.map_or(first, |earlier| earlier.first), planes })
    }

    /// Neighbouring pieces, at least one, as one; a single one is not copied.
    pub(super) fn joined<'a>(pieces: impl Iterator<Item = &'a Self>) -> Result<Self> {
        let pieces: Vec<&Self> = pieces.collect();
        let [first, _, ..] = pieces.as_slice() else { return Ok(pieces[0].clone()) };
        let planes: Vec<&Planes> = pieces.iter().map(|kv| &kv.planes).collect();
        let planes = Planes::zipped(&planes, |arrays| Ok(ops::concatenate(arrays, 2)?))?;
        Ok(Self { first: first.first, planes })
    }

    /// The tokens that positions from `position` on can still see through `window`, as a view.
    pub(super) fn visible_from(&self, position: usize, window: Option<usize>) -> Result<Self> {
        let Some(window) = window else { return Ok(self.clone()) };
        let oldest = (position + 1).saturating_sub(window).clamp(self.first, self.end());
        self.slice(oldest..self.end())
    }

    /// The tokens at these positions, as a view.
    pub(super) fn slice(&self, positions: Range<usize>) -> Result<Self> {
        if positions.start == self.first && positions.end == self.end() {
            return Ok(self.clone());
        }
        let (start, stop) = (positions.start - self.first, positions.end - self.first);
        let planes = self.planes.map(|plane| Ok(sys::slice_axis(plane, 2, start, stop)?))?;
        Ok(Self { first: positions.start, planes })
    }

    /// A copy of some tokens, by their positions, that holds no more memory than these.
    pub(super) fn copied(&self, positions: Range<usize>, copying: Copying) -> Result<Self> {
        let tokens = positions.start - self.first..positions.end - self.first;
        let planes = self.planes.map(|plane| copying.tokens_of(plane, 0, tokens.clone()))?;
        Ok(Self { first: positions.start, planes })
    }

    /// A copy that holds no more memory than its own tokens.
    pub(super) fn compact(&self) -> Result<Self> {
        Ok(Self { first: self.first, planes: self.planes.map(compact)? })
    }

    /// The same numbers in float32.
    pub(super) fn widened(&self) -> Result<Self> {
        Ok(Self { first: self.first, planes: self.planes.of_dtype(Dtype::Float32)? })
    }

    /// Bytes of all planes.
    pub(super) fn num_bytes(&self) -> u64 {
        self.planes.arrays().map(|plane| plane.nbytes() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::ops;

    use super::*;

    /// Short pieces on both sides of one that is attended to elsewhere were joined, and their tokens were taken to
    /// follow each other: windows hid the wrong ones.
    #[test]
    fn only_neighbours_at_the_end_are_joined() {
        let kv = |first: usize, num_tokens: usize| {
            let array = || ops::zeros::<f32>(&[1, 1, num_tokens as i32, 2]).unwrap();
            LayerKv { first, planes: Planes::new(array(), array()) }
        };
        let joined = |pieces: &[(usize, usize)]| -> Vec<(usize, usize)> {
            let pieces = pieces.iter().map(|&(first, num_tokens)| kv(first, num_tokens)).collect();
            join_short_end(pieces).unwrap().iter().map(|kv| (kv.first, kv.num_tokens())).collect()
        };
        assert_eq!(joined(&[(0, 5), (5, 100), (105, 7), (112, 3)]), [(0, 5), (5, 100), (105, 10)]);
        assert_eq!(joined(&[(0, 5), (105, 7), (112, 3)]), [(0, 5), (105, 10)]);
        assert_eq!(joined(&[(0, 5), (105, 7)]), [(0, 5), (105, 7)]);
        assert_eq!(joined(&[(0, 5), (5, 100)]), [(0, 5), (5, 100)]);
    }
}
