//! Cohorts: which decode rows see the same stored tokens together, and which tokens each sees by itself.
//!
//! Owns that division, which follows from the rows' paths, the costs of the device and a limit on copies.
//! What rows have to themselves lies in the `slab`; attending over all of it is `attention`'s.
//!
//! ```text
//! row 0   |------ a ------|-b-|====d====|          pieces: (ab), by rows 0 to 2
//! row 1   |------ a ------|-b-|==========e=|               c, by row 3 alone: copies of it would be too many
//! row 2   |------ a ------|-b-|=f=|               slab (=): d, e, f, g: stored or not, each row's own
//! row 3   |--------- c -------------|==g==|
//! ```
//!
//! On a GPU every piece costs operations in each layer, however short it is: one that is short, or that few rows
//! share, is copied into the slab for each of them. On a CPU no piece costs more than its tokens, and only what rows
//! have computed since they joined is in the slab. What a row sees is then some pieces from position 0 on,
//! and its last tokens in the slab.

use std::{collections::HashMap, ops::Range, rc::Rc};

use mlx_rs::Dtype;

use super::{
    costs::Costs,
    error::{MlxError, Result},
    kv::LayerKv,
    segment::Segment,
};
use crate::engine::{SegmentId, SequenceId};

/// A decoding sequence and what it runs on: its path, then tokens that are not stored, then the slab.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub sequence: SequenceId,
    pub path: &'a [Rc<Segment>],
    /// What follows the path and is neither stored nor in the slab; one entry a layer or none.
    pub own: &'a [LayerKv],
    pub num_own_tokens: usize,
    /// Of all of it, the slab included.
    pub num_tokens: usize,
    /// How many of its last tokens are in the slab, which may be stored too; `None` where it has no slot.
    pub num_in_slab: Option<usize>,
}

impl Row<'_> {
    fn path_end(&self) -> usize {
        self.path.last().map_or(0, |segment| segment.first + segment.num_tokens)
    }

    /// Bytes that stored tokens from a position on take once more in the slab.
    fn copied_bytes(&self, first: usize) -> f64 {
        let of_token = self.path.first().map_or(0.0, |segment| token_bytes(segment).0);
        self.path_end().saturating_sub(first) as f64 * of_token
    }

    /// Position of the first token that is in the slab.
    fn slab_first(&self) -> usize {
        self.num_tokens - self.num_in_slab.unwrap_or(0)
    }
}

/// Where a row sees its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Position from which on it sees them in the slab; before, in pieces.
    pub from: usize,
    /// It has much more in the slab than the others: it is to leave, and join with what it sees there alone.
    pub leaves_slab: bool,
}

/// Tokens that consecutive rows see together.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub rows: Range<usize>,
    /// The segments it is made of; none where it is a row's own.
    ids: Vec<SegmentId>,
    /// One entry a layer.
    pub layers: Rc<Vec<LayerKv>>,
    first: usize,
    num_tokens: usize,
}

/// How decode rows are divided.
#[derive(Debug)]
pub(super) struct Cohorts {
    pub costs: Costs,
    /// Bytes that copies of stored tokens may take, in the slab and in joined pieces.
    pub max_copied_bytes: u64,
    /// Bytes that they take.
    pub num_copied_bytes: u64,
    /// The rows, those that see the same pieces side by side, and where each sees its tokens in the slab.
    pub rows: Vec<(SequenceId, Place)>,
    /// In the order of their first rows.
    pub pieces: Vec<Piece>,
    /// Rows run on other segments than when this was formed.
    pub is_outdated: bool,
}

/// The rows that run on each segment, ascending.
///
/// Most paths are a tree, where who runs on a segment runs on all above it. But a sequence that has computed
/// anew what is stored already, to come by recurrent states, runs on its own copy of that.
struct Users(HashMap<SegmentId, Vec<usize>>);

impl Users {
    fn of<'a>(paths: impl Iterator<Item = &'a [Rc<Segment>]>) -> Self {
        let mut users: HashMap<SegmentId, Vec<usize>> = HashMap::new();
        for (row, path) in paths.enumerate() {
            for segment in path {
                users.entry(segment.id).or_default().push(row);
            }
        }
        Self(users)
    }

    fn of_segment(&self, segment: &Segment) -> &[usize] {
        self.0.get(&segment.id).map_or(&[], Vec::as_slice)
    }

    /// Divides a path where the rows that run on it change.
    fn runs<'a>(&self, path: &'a [Rc<Segment>]) -> Vec<&'a [Rc<Segment>]> {
        path.chunk_by(|left, right| self.of_segment(left) == self.of_segment(right)).collect()
    }

    /// The consecutive rows on a segment that `row` is among.
    fn around(&self, segment: &Segment, row: usize) -> Range<usize> {
        let mut rows = self.of_segment(segment).chunk_by(|left, right| left + 1 == *right);
        let found = rows.find(|rows| rows.contains(&row));
        found.map_or(row..row + 1, |rows| rows[0]..rows[rows.len() - 1] + 1)
    }
}

/// Bytes of a stored token in all layers and in one.
fn token_bytes(segment: &Segment) -> (f64, f64) {
    let of_all = segment.num_bytes() as f64 / segment.num_tokens.max(1) as f64;
    (of_all, of_all / segment.layers.len().max(1) as f64)
}

impl Cohorts {
    /// No rows yet.
    pub(super) fn new(costs: Costs, max_copied_bytes: u64) -> Self {
        Self {
            costs,
            max_copied_bytes,
            num_copied_bytes: 0,
            rows: Vec::new(),
            pieces: Vec::new(),
            is_outdated: false,
        }
    }

    /// No rows again.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.costs, self.max_copied_bytes);
    }

    /// Whether any row, of those at these positions, sees something of its pieces through a window.
    pub(super) fn see_pieces(&self, positions: &[usize], window: Option<usize>) -> bool {
        self.pieces.iter().any(|piece| {
            let oldest_row = positions[piece.rows.clone()].iter().min();
            let oldest = oldest_row.zip(window).map_or(0, |(row, window)| (row + 1).saturating_sub(window));
            oldest < piece.first + piece.num_tokens
        })
    }

    /// Drops what was made of a segment that is there no more, so that its memory is free. Cohorts must be
    /// formed anew before the next step.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        self.pieces.retain(|piece| !piece.ids.contains(&segment));
        self.is_outdated = true;
    }

    /// Decides where each row sees its tokens, in the order given.
    pub(super) fn places(&self, rows: &[Row<'_>]) -> Vec<Place> {
        let users = Users::of(rows.iter().map(|row| row.path));
        let mut num_copied_bytes = 0.0;
        let mut places: Vec<Place> = Vec::with_capacity(rows.len());
        for row in rows {
            if self.costs.sees_in_place() {
                places.push(Place { from: row.slab_first(), leaves_slab: false });
                continue;
            }
            let is_shared = |run: &&[Rc<Segment>]| {
                let num_rows = users.of_segment(&run[0]).len();
                let num_tokens = run.iter().map(|segment| segment.num_tokens).sum();
                self.costs.are_shared(num_rows, num_tokens, token_bytes(&run[0]).1)
            };
            let last_shared = users.runs(row.path).into_iter().rev().find(is_shared).and_then(<[_]>::last);
            let shared_end = last_shared.map_or(0, |segment| segment.first + segment.num_tokens);
            let mut from = shared_end;
            if row.num_in_slab.is_some() {
                from = from.max(row.slab_first());
                num_copied_bytes += row.copied_bytes(row.slab_first());
            } else if num_copied_bytes + row.copied_bytes(from) <= self.max_copied_bytes as f64 {
                num_copied_bytes += row.copied_bytes(from);
            } else {
                from = row.path_end();
            }
            places.push(Place { from, leaves_slab: false });
        }
        self.even_out(rows, &mut places);
        places
    }

    /// Has the rows that would widen the slab far beyond what the others need take less of it: what they see
    /// elsewhere does not stay there, and if that is not enough they see all their tokens in pieces.
    fn even_out(&self, rows: &[Row<'_>], places: &mut [Place]) {
        let mut widths: Vec<usize> = rows
            .iter()
            .zip(&*places)
            .map(|(row, place)| row.num_in_slab.unwrap_or(row.num_tokens - place.from))
            .collect();
        while !self.costs.are_even(&widths) {
            let Some(widest) = (0..rows.len()).max_by_key(|&index| widths[index]) else { return };
            let (row, place) = (&rows[widest], &mut places[widest]);
            let needed = row.num_tokens - place.from;
            if needed == widths[widest] {
                place.from = row.num_tokens;
            }
            place.leaves_slab = row.num_in_slab.is_some();
            widths[widest] = row.num_tokens - place.from;
        }
    }

    /// Puts rows that have taken their places, one for each, in an order and makes the pieces that they see. `slot_of`
    /// breaks ties. What `self` has joined already is not joined again.
    pub(super) fn form(
        &self,
        rows: &[Row<'_>],
        places: &[Place],
        slot_of: impl Fn(SequenceId) -> Option<usize>,
    ) -> Result<Self> {
        let mut order: Vec<(&Row<'_>, &Place)> = rows.iter().zip(places).collect();
        let in_pieces = |(row, place): &(&Row<'_>, &Place)| -> usize {
            row.path.partition_point(|segment| segment.first < place.from)
        };
        order.sort_by_cached_key(|row| {
            let seen = row.0.path[..in_pieces(row)].iter().map(|segment| segment.id);
            (seen.collect::<Vec<_>>(), slot_of(row.0.sequence))
        });
        let seen: Vec<&[Rc<Segment>]> = order.iter().map(|row| &row.0.path[..in_pieces(row)]).collect();
        let seers = Users::of(seen.iter().copied());
        let known: HashMap<&[SegmentId], &Piece> = self
            .pieces
            .iter()
            .filter(|piece| !piece.ids.is_empty())
            .map(|piece| (piece.ids.as_slice(), piece))
            .collect();
        let mut formed = Self::new(self.costs, self.max_copied_bytes);
        let in_slab: f64 = rows.iter().map(|row| row.copied_bytes(row.slab_first())).sum();
        let mut num_copied_bytes = in_slab as u64;
        for (index, (row, place)) in order.iter().enumerate() {
            let around = |segment: &Rc<Segment>| seers.around(segment, index);
            for run in seen[index].chunk_by(|left, right| around(left) == around(right)) {
                // The first of the rows makes it for all.
                if around(&run[0]).start < index {
                    continue;
                }
                for segments in self.joined_runs(run, around(&run[0]).len(), &mut num_copied_bytes) {
                    let is_widened = self.is_widened(segments, &mut num_copied_bytes);
                    formed.pieces.push(Piece::new(segments, around(&run[0]), is_widened, &known)?);
                }
            }
            if place.from > row.path_end() {
                formed.pieces.push(Piece {
                    rows: index..index + 1,
                    ids: Vec::new(),
                    layers: Rc::new(row.own.to_vec()),
                    first: row.path_end(),
                    num_tokens: row.num_own_tokens,
                });
            }
        }
        formed.num_copied_bytes = num_copied_bytes;
        formed.rows = order.iter().map(|(row, place)| (row.sequence, **place)).collect();
        formed.check(&order)?;
        Ok(formed)
    }

    /// Divides segments that the same rows see into those that are joined to one piece each, as far as the
    /// copies are within the limit.
    fn joined_runs<'a>(
        &self,
        run: &'a [Rc<Segment>],
        num_rows: usize,
        num_copied_bytes: &mut u64,
    ) -> Vec<&'a [Rc<Segment>]> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < run.len() {
            let mut end = start + 1;
            let mut num_tokens = run[start].num_tokens;
            let mut num_bytes = run[start].num_bytes();
            while let Some(next) = run.get(end) {
                let joined = num_bytes.saturating_add(next.num_bytes());
                let fits = num_copied_bytes.saturating_add(joined) <= self.max_copied_bytes;
                if !fits || !self.costs.are_joined(num_rows, num_tokens + next.num_tokens) {
                    break;
                }
                num_tokens += next.num_tokens;
                num_bytes = joined;
                end += 1;
            }
            if end > start + 1 {
                *num_copied_bytes = num_copied_bytes.saturating_add(num_bytes);
            }
            pieces.push(&run[start..end]);
            start = end;
        }
        pieces
    }

    /// Whether a piece of 16 bits is held in float32 too, as far as the copies are within the limit.
    fn is_widened(&self, segments: &[Rc<Segment>], num_copied_bytes: &mut u64) -> bool {
        let is_wide = |kv: &LayerKv| kv.planes.keys().dtype() == Dtype::Float32;
        if !self.costs.are_widened() || segments[0].layers.iter().all(is_wide) {
            return false;
        }
        let num_bytes: u64 = segments.iter().map(|segment| 2 * segment.num_bytes()).sum();
        let with_it = num_copied_bytes.saturating_add(num_bytes);
        let fits = with_it <= self.max_copied_bytes;
        if fits {
            *num_copied_bytes = with_it;
        }
        fits
    }

    /// Holds the division to what it is for: the pieces of a row and its part of the slab are exactly its
    /// tokens.
    fn check(&self, order: &[(&Row<'_>, &Place)]) -> Result<()> {
        for (index, (row, place)) in order.iter().enumerate() {
            let mut end = 0;
            let mut path = row.path.iter().map(|segment| segment.id);
            let mut is_path = true;
            let mut pieces: Vec<&Piece> =
                self.pieces.iter().filter(|piece| piece.rows.contains(&index)).collect();
            pieces.sort_by_key(|piece| piece.first);
            for piece in pieces {
                is_path &= piece.first == end && piece.ids.iter().all(|&id| path.next() == Some(id));
                end += piece.num_tokens;
            }
            if !is_path || end != place.from || row.slab_first() > place.from {
                return Err(MlxError::Unsupported(format!(
                    "sequence {} would see {end} tokens in pieces and the slab's from {} on, of {}",
                    row.sequence.0, place.from, row.num_tokens
                )));
            }
        }
        Ok(())
    }
}

impl Piece {
    /// Neighbouring segments, at least one, as rows see them; a single one that is not widened is not copied.
    fn new(
        segments: &[Rc<Segment>],
        rows: Range<usize>,
        is_widened: bool,
        known: &HashMap<&[SegmentId], &Self>,
    ) -> Result<Self> {
        let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
        let first = segments[0].first;
        let num_tokens = segments.iter().map(|segment| segment.num_tokens).sum();
        let layers = match known.get(ids.as_slice()) {
            Some(piece) => Rc::clone(&piece.layers),
            None => {
                let joined = |layer: usize| {
                    let kv = LayerKv::joined(segments.iter().map(|segment| &segment.layers[layer]))?;
                    if is_widened { kv.widened() } else { Ok(kv) }
                };
                Rc::new((0..segments[0].layers.len()).map(joined).collect::<Result<Vec<_>>>()?)
            }
        };
        Ok(Self { rows, ids, layers, first, num_tokens })
    }
}

#[cfg(test)]
mod tests;
