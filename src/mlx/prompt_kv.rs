//! The KV of a prompt that comes in several chunks, in one array for each plane of each layer.
//!
//! Owns these arrays and the room in them: a chunk is written behind those before it and seen with them as one view,
//! so that what it costs to bring them together does not grow with the prompt. Which prompts have this is `live`'s
//! decision.
//!
//! ```text
//! |------------ path -------------|---- own ----|                    |
//! |.....ttttttttttttttttttttttttttttttttttttttttt|  room for the rest |
//!  first: what a window hides is left out        end            max_end
//! ```

use std::ops::Range;

use mlx_rs::{Array, ops};

use super::{
    arrays::Copying,
    error::{MlxError, Result},
    kv::LayerKv,
    planes::Planes,
    sys,
};

/// KV of one sequence's prompt, from some position on, with room up to its end.
#[derive(Debug)]
pub(super) struct PromptKv {
    max_end: usize,
    /// What it begins with takes at most, which is known before it is there.
    max_first_bytes: u64,
    layers: Vec<PromptLayer>,
}

#[derive(Debug)]
struct PromptLayer {
    /// Position of the first token.
    first: usize,
    /// Position after the last token.
    end: usize,
    /// `(1, H_kv, max_end - first, D)`. Nobody else holds them between passes: only then are they written in place.
    planes: Planes,
}

impl PromptKv {
    /// Nothing yet; there will be room for tokens up to this position, of which stored ones take so many bytes at most.
    pub(super) fn new(max_end: usize, max_first_bytes: u64) -> Self {
        Self { max_end, max_first_bytes, layers: Vec::new() }
    }

    /// Writes a chunk's tokens of one layer behind those before it; they come in parts of `(1, H_kv, n, D)`. Returns
    /// all there are, as a view.
    ///
    /// `before` is what the first chunk sees of the tokens before it, neighbouring pieces in order of position.
    pub(super) fn append(
        &mut self,
        layer: usize,
        start: usize,
        parts: &[Planes],
        before: impl FnOnce() -> Result<Vec<LayerKv>>,
    ) -> Result<LayerKv> {
        if layer == self.layers.len() {
            let new = PromptLayer::new(start, parts, &before()?, self.max_end)?;
            self.layers.push(new);
            return self.layers[layer].view();
        }
        let kv = &mut self.layers[layer];
        let end = start + parts.iter().map(|part| part.keys().dim(2) as usize).sum::<usize>();
        if start != kv.end || end > self.max_end {
            return Err(misplaced(start, end, kv.end));
        }
        let mut column = start - kv.first;
        for part in parts {
            kv.planes.replace(part, |plane, new| Ok(sys::set_at(plane, &[0, 0, column, 0], new)?))?;
            column += part.keys().dim(2) as usize;
        }
        kv.end = end;
        kv.view()
    }

    /// The tokens at these positions in every layer, in arrays that hold no more memory than these: the arrays
    /// themselves where these are all tokens that there is room for.
    pub(super) fn compact(&self, positions: &Range<usize>, copying: Copying) -> Result<Vec<LayerKv>> {
        let compact = |kv: &PromptLayer| {
            if positions.start < kv.first || positions.end > kv.end {
                return Err(misplaced(positions.start, positions.end, kv.end));
            }
            if *positions == (kv.first..self.max_end) {
                return Ok(LayerKv { first: kv.first, planes: kv.planes.clone() });
            }
            let tokens = positions.start - kv.first..positions.end - kv.first;
            let planes = kv.planes.map(|plane| copying.tokens_of(plane, 0, tokens.clone()))?;
            Ok(LayerKv { first: positions.start, planes })
        };
        self.layers.iter().map(compact).collect()
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flat_map(|kv| kv.planes.arrays())
    }

    /// Bytes of the tokens before a position, up to which they are stored.
    pub(super) fn num_bytes_before(&self, position: usize) -> u64 {
        if self.layers.is_empty() {
            return self.max_first_bytes;
        }
        let of_layer = |kv: &PromptLayer| {
            let num_bytes: usize = kv.planes.arrays().map(Array::nbytes).sum();
            let num_tokens = position.clamp(kv.first, self.max_end) - kv.first;
            num_bytes as u64 / (self.max_end - kv.first).max(1) as u64 * num_tokens as u64
        };
        self.layers.iter().map(of_layer).sum()
    }
}

impl PromptLayer {
    fn new(start: usize, parts: &[Planes], before: &[LayerKv], max_end: usize) -> Result<Self> {
        let first = before.first().map_or(start, |piece| piece.first);
        let before_end =
            before.iter().try_fold(first, |end, piece| (piece.first == end).then(|| piece.end()));
        let end = start + parts.iter().map(|part| part.keys().dim(2) as usize).sum::<usize>();
        if before_end != Some(start) || end > max_end {
            return Err(misplaced(start, end, before_end.unwrap_or(first)));
        }
        let all: Vec<&Planes> = before.iter().map(|piece| &piece.planes).chain(parts).collect();
        let planes = Planes::zipped(&all, |arrays| {
            let like = arrays[0];
            let room = [1, like.dim(1), (max_end - end) as i32, like.dim(3)];
            let room = ops::broadcast_to(Array::from_int(0).as_dtype(like.dtype())?, &room)?;
            Ok(ops::concatenate(&arrays.iter().copied().chain([&room]).collect::<Vec<_>>(), 2)?)
        })?;
        Ok(Self { first, end, planes })
    }

    fn view(&self) -> Result<LayerKv> {
        let num_tokens = self.end - self.first;
        let planes = self.planes.map(|plane| Ok(sys::slice_axis(plane, 2, 0, num_tokens)?))?;
        Ok(LayerKv { first: self.first, planes })
    }
}

fn misplaced(start: usize, end: usize, there: usize) -> MlxError {
    MlxError::Unsupported(format!(
        "a prompt's tokens {start}..{end} do not go with those up to {there} that are there"
    ))
}
