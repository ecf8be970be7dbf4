//! Cohorts: which decode rows run on the same stored segments, and what each has to itself.
//!
//! Owns that division, which follows from the rows' paths alone. Attending over it is
//! `attention`'s business, the rows' order `live`'s.
//!
//! ```text
//! row 0   |------ a ------|-b-|c|-- d --|      shared: a by rows 0 to 2
//! row 1   |------ a ------|-b-|--- e ---|      joined: b and c, b, b: short, so copied
//! row 2   |------ a ------|-b-|--- f ---|      last:   d, e, f, no copy
//! ```
//!
//! Every shared piece costs a row of operations in each layer, however short it is, so pieces
//! shorter than [`MIN_SHARED_TOKENS`] are not worth it: a row joins them into one array of its own.

use std::{collections::HashMap, ops::Range, rc::Rc};

use mlx_rs::ops;

use super::{error::Result, kv::LayerKv, segment::Segment};
use crate::engine::SegmentId;

/// Tokens from which on a piece of a path is attended once for all rows that run on it.
const MIN_SHARED_TOKENS: usize = 64;

/// Consecutive rows that run on the same segments.
#[derive(Debug)]
pub(super) struct SharedRows {
    pub rows: Range<usize>,
    pub segments: Vec<Rc<Segment>>,
}

/// Short segments next to each other, joined for one row; one entry a layer.
#[derive(Debug, Clone)]
pub(super) struct Joined {
    ids: Vec<SegmentId>,
    pub layers: Rc<Vec<LayerKv>>,
}

/// What the decode rows share and what they do not.
#[derive(Debug, Default)]
pub(super) struct Cohorts {
    pub shared: Vec<SharedRows>,
    /// Per row, the short segments before its last one.
    pub joined: Vec<Option<Joined>>,
    /// Per row, the end of its path that it shares with no other row.
    pub last: Vec<Option<Rc<Segment>>>,
}

impl Cohorts {
    /// Divides the paths of all rows, which must be in the order of their segments' ids. What `self`
    /// has joined already is not joined again.
    pub(super) fn form(&self, paths: &[&[Rc<Segment>]]) -> Result<Self> {
        let known: HashMap<&[SegmentId], &Joined> =
            self.joined.iter().flatten().map(|joined| (joined.ids.as_slice(), joined)).collect();
        let mut formed = Self::default();
        // Rows of each segment; rows on one segment stand side by side.
        let mut rows_of: Vec<(Rc<Segment>, Range<usize>)> = Vec::new();
        let mut place_of: HashMap<SegmentId, usize> = HashMap::new();
        for (row, path) in paths.iter().enumerate() {
            let before = row.checked_sub(1).map(|row| paths[row]);
            let has_twin = before.into_iter().chain(paths.get(row + 1).copied()).any(|other| {
                path.last().is_some_and(|last| other.iter().any(|segment| segment.id == last.id))
            });
            let (interior, last) = match path.split_last() {
                Some((last, rest)) if !has_twin => (rest, Some(Rc::clone(last))),
                _ => (*path, None),
            };
            let num_short =
                interior.iter().rev().take_while(|segment| segment.num_tokens < MIN_SHARED_TOKENS).count();
            let (shared, short) = interior.split_at(interior.len() - num_short);
            for segment in shared {
                let place = *place_of.entry(segment.id).or_insert_with(|| {
                    rows_of.push((Rc::clone(segment), row..row));
                    rows_of.len() - 1
                });
                rows_of[place].1.end = row + 1;
            }
            formed.joined.push(join(short, &known)?);
            formed.last.push(last);
        }
        for (segment, rows) in rows_of {
            match formed.shared.iter_mut().find(|shared| shared.rows == rows) {
                Some(shared) => shared.segments.push(segment),
                None => formed.shared.push(SharedRows { rows, segments: vec![segment] }),
            }
        }
        Ok(formed)
    }
}

fn join(segments: &[Rc<Segment>], known: &HashMap<&[SegmentId], &Joined>) -> Result<Option<Joined>> {
    let Some(first) = segments.first() else { return Ok(None) };
    let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    if let Some(joined) = known.get(ids.as_slice()) {
        return Ok(Some((*joined).clone()));
    }
    if segments.len() == 1 {
        return Ok(Some(Joined { ids, layers: Rc::new(first.layers.clone()) }));
    }
    let layers = (0..first.layers.len())
        .map(|layer| {
            let keys: Vec<_> = segments.iter().map(|segment| &segment.layers[layer].keys).collect();
            let values: Vec<_> = segments.iter().map(|segment| &segment.layers[layer].values).collect();
            Ok(LayerKv {
                first: first.first,
                keys: ops::concatenate(&keys, 2)?,
                values: ops::concatenate(&values, 2)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Some(Joined { ids, layers: Rc::new(layers) }))
}

/// Joins short pieces at the end of `pieces` with each other, for a chunk that is to see them.
pub(super) fn join_short_end(mut pieces: Vec<LayerKv>) -> Result<Vec<LayerKv>> {
    let num_short = pieces.iter().rev().take_while(|kv| kv.num_tokens() < MIN_SHARED_TOKENS).count();
    if num_short < 2 {
        return Ok(pieces);
    }
    let short = pieces.split_off(pieces.len() - num_short);
    let keys: Vec<_> = short.iter().map(|kv| &kv.keys).collect();
    let values: Vec<_> = short.iter().map(|kv| &kv.values).collect();
    pieces.push(LayerKv {
        first: short[0].first,
        keys: ops::concatenate(&keys, 2)?,
        values: ops::concatenate(&values, 2)?,
    });
    Ok(pieces)
}
