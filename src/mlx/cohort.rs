//! Cohorts: which decode rows run on the same stored segments, and what each has to itself.
//!
//! Owns that division, which follows from the rows' paths alone. Attending over it is
//! `attention`'s business, the rows' order in the tail `live`'s.
//!
//! ```text
//! row 0   |------ a ------|-b-|c|--- d ---|     shared:  a, by rows 0 to 2
//! row 1   |------ a ------|-b-|--- e ---|       private: (bcd); (be); (bf)
//! row 2   |------ a ------|-b-|-f-|             block:   all three, once rows stay as they are
//! ```
//!
//! Every piece costs operations in each layer, however short it is. So only long segments are
//! attended once for all rows on them, and a row joins what it has to itself into as few pieces as
//! it can without copying much; long ones stay where they are. Rows that step together for a while
//! are put side by side, so that one operation serves all of them.

use std::{collections::HashMap, ops::Range, rc::Rc};

use mlx_rs::{Array, ops};

use super::{
    arrays::{concatenated, padded},
    attention::RowsKv,
    error::Result,
    kv::LayerKv,
    segment::Segment,
};
use crate::engine::{SegmentId, SequenceId};

/// Tokens from which on a segment is attended once for all rows that run on it.
const MIN_SHARED_TOKENS: usize = 64;

/// Tokens that a row copies at most to make one piece of several.
const MAX_JOINED_TOKENS: usize = 512;

/// Passes that rows have to stay as they are before they are put side by side: that copies all that
/// they have to themselves.
const MIN_SAME_PASSES: usize = 4;

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
    private: Vec<Vec<Piece>>,
    /// Rows whose pieces, and what they have not stored, lie side by side.
    blocks: Vec<Block>,
    /// Passes since the rows last changed.
    num_same_passes: usize,
}

/// What consecutive rows have to themselves, side by side: one operation serves them all.
#[derive(Debug)]
struct Block {
    rows: Range<usize>,
    /// Positions of each row's tokens.
    positions: Vec<Vec<usize>>,
    /// Keys and values of each layer, `(n, H_kv, L, D)`, rows padded with zeros to the longest.
    layers: Vec<(Array, Array)>,
    /// By window, for the positions that the rows were last at.
    masks: HashMap<Option<usize>, (Vec<usize>, Option<Array>)>,
}

/// Whether so many rows attend a segment together.
fn is_shared(segment: &Segment, num_rows: usize) -> bool {
    num_rows > 1 && segment.num_tokens >= MIN_SHARED_TOKENS
}

/// Puts decode rows in an order in which those that share a long segment stand side by side, and
/// among them those that have about as much to themselves.
pub(super) fn in_order(paths: &HashMap<SequenceId, &[Rc<Segment>]>) -> Vec<SequenceId> {
    let mut num_users: HashMap<SegmentId, usize> = HashMap::new();
    for segment in paths.values().copied().flatten() {
        *num_users.entry(segment.id).or_default() += 1;
    }
    let mut order: Vec<SequenceId> = paths.keys().copied().collect();
    order.sort_by_cached_key(|sequence| {
        let is_shared = |segment: &&Rc<Segment>| is_shared(segment, num_users[&segment.id]);
        let (shared, private): (Vec<_>, Vec<_>) = paths[sequence].iter().partition(is_shared);
        let shared: Vec<SegmentId> = shared.iter().map(|segment| segment.id).collect();
        let num_private_tokens: usize = private.iter().map(|segment| segment.num_tokens).sum();
        (shared, num_private_tokens, *sequence)
    });
    order
}

impl Cohorts {
    /// Divides the paths of all rows, which must be [`in_order`]. What `self` has joined already is
    /// not joined again.
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
        let mut formed = Self::default();
        for (row, path) in paths.iter().enumerate() {
            let mut pieces: Vec<Vec<&Rc<Segment>>> = Vec::new();
            let mut num_joined_tokens = usize::MAX;
            for segment in *path {
                let rows = &rows_of[&segment.id];
                if is_shared(segment, rows.len()) {
                    num_joined_tokens = usize::MAX;
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

    /// Notes that the rows step once more as they are; `own` is what each has computed and not
    /// stored, one entry a layer or none.
    pub(super) fn step(&mut self, own: &[&[LayerKv]]) -> Result<()> {
        self.num_same_passes += 1;
        if self.num_same_passes < MIN_SAME_PASSES || !self.blocks.is_empty() {
            return Ok(());
        }
        let rows: Vec<Vec<Row<'_>>> = self
            .private
            .iter()
            .zip(own)
            .map(|(pieces, own)| {
                let pieces = pieces.iter().map(|piece| piece.layers.as_slice());
                pieces.chain([*own]).filter(|layers| !layers.is_empty()).collect()
            })
            .collect();
        let num_tokens = |row: &Vec<Row<'_>>| row.iter().map(|layers| layers[0].num_tokens()).sum::<usize>();
        let lengths: Vec<usize> = rows.iter().map(num_tokens).collect();
        let blocks = groups(&lengths).into_iter().map(|group| Block::new(group.clone(), &rows[group]));
        self.blocks = blocks.collect::<Result<_>>()?;
        Ok(())
    }

    /// Takes the rows apart: what they have not stored has changed.
    pub(super) fn take_apart(&mut self) {
        self.blocks.clear();
    }

    /// What the rows at these positions have to themselves in one layer, for attention; `own` is what
    /// each has computed and not stored.
    pub(super) fn private(
        &mut self,
        layer: usize,
        own: &[Option<&LayerKv>],
        positions: &[usize],
        window: Option<usize>,
    ) -> Result<Vec<Vec<RowsKv>>> {
        let mut lists: Vec<Vec<RowsKv>> = Vec::new();
        let mut put = |place: usize, kv: RowsKv| match lists.get_mut(place) {
            Some(list) => list.push(kv),
            None => lists.push(vec![kv]),
        };
        let mut blocks = self.blocks.iter_mut().peekable();
        let mut row = 0;
        while row < self.private.len() {
            if let Some(block) = blocks.next_if(|block| block.rows.start == row) {
                put(0, block.kv(layer, positions, window));
                row = block.rows.end;
                continue;
            }
            let pieces = self.private[row].iter().map(|piece| &piece.layers[layer]).chain(own[row]);
            let mut place = 0;
            for kv in pieces {
                let LayerKv { keys, values, .. } = kv.visible_from(positions[row], window)?;
                if keys.dim(2) > 0 {
                    put(place, RowsKv { rows: row..row + 1, keys, values, mask: None });
                    place += 1;
                }
            }
            row += 1;
        }
        Ok(lists)
    }
}

/// A piece of one row, one entry a layer.
type Row<'a> = &'a [LayerKv];

/// Runs of rows of which padding makes not much more than they are.
fn groups(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut num_tokens = 0;
    for (row, &length) in lengths.iter().enumerate() {
        if length == 0 || length > MAX_JOINED_TOKENS {
            continue;
        }
        if let Some(group) = groups.last_mut().filter(|group| group.end == row) {
            let longest = lengths[group.start..=row].iter().max().copied().unwrap_or(0);
            let num_padded = longest * (row + 1 - group.start);
            if num_padded <= (num_tokens + length) / 4 * 5 {
                group.end = row + 1;
                num_tokens += length;
                continue;
            }
        }
        groups.push(row..row + 1);
        num_tokens = length;
    }
    groups
}

impl Block {
    fn new(rows: Range<usize>, pieces: &[Vec<Row<'_>>]) -> Result<Self> {
        let positions: Vec<Vec<usize>> = pieces
            .iter()
            .map(|row| row.iter().flat_map(|layers| layers[0].first..layers[0].end()).collect())
            .collect();
        let width = positions.iter().map(Vec::len).max().unwrap_or(0);
        let num_layers = pieces.first().and_then(|row| row.first()).map_or(0, |layers| layers.len());
        let mut layers = Vec::with_capacity(num_layers);
        for layer in 0..num_layers {
            let mut keys = Vec::with_capacity(pieces.len());
            let mut values = Vec::with_capacity(pieces.len());
            for row in pieces {
                let kv = joined(row.iter().map(|layers| &layers[layer]))?;
                keys.push(padded(&kv.keys, 2, width, 0.0)?);
                values.push(padded(&kv.values, 2, width, 0.0)?);
            }
            layers.push((concatenated(keys, 0)?, concatenated(values, 0)?));
        }
        mlx_rs::transforms::async_eval(layers.iter().flat_map(|(keys, values)| [keys, values]))?;
        Ok(Self { rows, positions, layers, masks: HashMap::new() })
    }

    /// One layer's KV as rows at these positions see it; `positions` are all rows'.
    fn kv(&mut self, layer: usize, positions: &[usize], window: Option<usize>) -> RowsKv {
        let (keys, values) = self.layers[layer].clone();
        // Without a window the rows' positions do not matter.
        let at = if window.is_some() { positions[self.rows.clone()].to_vec() } else { Vec::new() };
        if self.masks.get(&window).is_none_or(|(known, _)| *known != at) {
            self.masks.insert(window, (at.clone(), self.mask(&at, window)));
        }
        RowsKv { rows: self.rows.clone(), keys, values, mask: self.masks[&window].1.clone() }
    }

    fn mask(&self, at: &[usize], window: Option<usize>) -> Option<Array> {
        let width = self.positions.iter().map(Vec::len).max().unwrap_or(0);
        let mut mask = Vec::with_capacity(self.positions.len() * width);
        for (row, positions) in self.positions.iter().enumerate() {
            let oldest = window.map_or(0, |window| (at[row] + 1).saturating_sub(window));
            mask.extend(positions.iter().map(|&key| if key < oldest { f32::NEG_INFINITY } else { 0.0 }));
            mask.resize((row + 1) * width, f32::NEG_INFINITY);
        }
        let hides = mask.iter().any(|&hidden| hidden < 0.0);
        hides.then(|| Array::from_slice(&mask, &[self.positions.len() as i32, 1, 1, width as i32]))
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
