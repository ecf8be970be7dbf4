//! Cohorts: which decode rows run on the same stored segments, and what each has to itself.
//!
//! Owns that division, which follows from the rows' paths alone. Attending over it is
//! `attention`'s business, the rows' order `live`'s.
//!
//! ```text
//! row 0   |------ a ------|-b-|c|--- d ---|     shared:  a, by rows 0 to 2
//! row 1   |------ a ------|-b-|--- e ---|       private: (bc), d; b, e; (bf)
//! row 2   |------ a ------|-b-|-f-|
//! ```
//!
//! Every piece costs operations in each layer, however short it is. So only long segments are
//! attended once for all rows on them, and a row joins what it has to itself into as few pieces as
//! it can without copying much; long ones stay where they are.

use std::{collections::HashMap, ops::Range, rc::Rc};

use mlx_rs::ops;

use super::{error::Result, kv::LayerKv, segment::Segment};
use crate::engine::SegmentId;

/// Tokens from which on a segment is attended once for all rows that run on it.
const MIN_SHARED_TOKENS: usize = 64;

/// Tokens that a row copies at most to make one piece of several.
const MAX_JOINED_TOKENS: usize = 512;

/// Consecutive rows that run on the same segments.
#[derive(Debug)]
pub(super) struct SharedRows {
    pub rows: Range<usize>,
    pub segments: Vec<Rc<Segment>>,
}

/// Neighbouring segments as one piece of a row; one entry a layer.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    ids: Vec<SegmentId>,
    pub layers: Rc<Vec<LayerKv>>,
}

/// What the decode rows share and what they do not.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    pub shared: Vec<SharedRows>,
    /// Pieces of each row, in order of position.
    pub private: Vec<Vec<Piece>>,
}

impl Cohorts {
    /// Divides the paths of all rows, which must be in the order of their segments' ids. What `self`
    /// has joined already is not joined again.
    pub(super) fn form(&self, paths: &[&[Rc<Segment>]]) -> Result<Self> {
        let known: HashMap<&[SegmentId], &Piece> =
            self.private.iter().flatten().map(|piece| (piece.ids.as_slice(), piece)).collect();
        // Rows on one segment stand side by side.
        let mut rows_of: HashMap<SegmentId, Range<usize>> = HashMap::new();
        for (row, path) in paths.iter().enumerate() {
            for segment in *path {
                rows_of.entry(segment.id).or_insert(row..row).end = row + 1;
            }
        }
        let is_shared =
            |segment: &Segment| segment.num_tokens >= MIN_SHARED_TOKENS && rows_of[&segment.id].len() > 1;
        let mut formed = Self::default();
        for (row, path) in paths.iter().enumerate() {
            let mut pieces: Vec<Vec<&Rc<Segment>>> = Vec::new();
            let mut num_joined_tokens = usize::MAX;
            for segment in *path {
                if is_shared(segment) {
                    num_joined_tokens = usize::MAX;
                    let rows = &rows_of[&segment.id];
                    if rows.start == row {
                        formed.share(segment, rows);
                    }
                    continue;
                }
                num_joined_tokens = num_joined_tokens.saturating_add(segment.num_tokens);
                match pieces.last_mut() {
                    Some(piece) if num_joined_tokens <= MAX_JOINED_TOKENS => piece.push(segment),
                    _ => {
                        pieces.push(vec![segment]);
                        num_joined_tokens = segment.num_tokens;
                    }
                }
            }
            formed.private.push(pieces.iter().map(|piece| join(piece, &known)).collect::<Result<_>>()?);
        }
        Ok(formed)
    }

    fn share(&mut self, segment: &Rc<Segment>, rows: &Range<usize>) {
        match self.shared.iter_mut().find(|shared| shared.rows == *rows) {
            Some(shared) => shared.segments.push(Rc::clone(segment)),
            None => {
                self.shared.push(SharedRows { rows: rows.clone(), segments: vec![Rc::clone(segment)] });
            }
        }
    }

    /// Most pieces that a row has to itself.
    pub(super) fn max_private(&self) -> usize {
        self.private.iter().map(Vec::len).max().unwrap_or(0)
    }
}

fn join(segments: &[&Rc<Segment>], known: &HashMap<&[SegmentId], &Piece>) -> Result<Piece> {
    let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    if let Some(piece) = known.get(ids.as_slice()) {
        return Ok((*piece).clone());
    }
    let num_layers = segments.first().map_or(0, |segment| segment.layers.len());
    let layers = (0..num_layers)
        .map(|layer| joined(segments.iter().map(|segment| &segment.layers[layer])))
        .collect::<Result<Vec<_>>>()?;
    Ok(Piece { ids, layers: Rc::new(layers) })
}

/// Neighbouring pieces as one; a single one is not copied.
fn joined<'a>(pieces: impl Iterator<Item = &'a LayerKv>) -> Result<LayerKv> {
    let pieces: Vec<&LayerKv> = pieces.collect();
    let [first, _, ..] = pieces.as_slice() else { return Ok(pieces[0].clone()) };
    let keys: Vec<_> = pieces.iter().map(|kv| &kv.keys).collect();
    let values: Vec<_> = pieces.iter().map(|kv| &kv.values).collect();
    Ok(LayerKv {
        first: first.first,
        keys: ops::concatenate(&keys, 2)?,
        values: ops::concatenate(&values, 2)?,
    })
}

/// Joins short pieces at the end of `pieces` with each other, for a chunk that is to see them.
pub(super) fn join_short_end(mut pieces: Vec<LayerKv>) -> Result<Vec<LayerKv>> {
    let num_short = pieces.iter().rev().take_while(|kv| kv.num_tokens() < MIN_SHARED_TOKENS).count();
    if num_short > 1 {
        let short = pieces.split_off(pieces.len() - num_short);
        pieces.push(joined(short.iter())?);
    }
    Ok(pieces)
}
