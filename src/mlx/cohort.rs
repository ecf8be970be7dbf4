//! Cohorts: which decode rows run on the same stored segments, and what each has to itself.
//!
//! Owns that division, which follows from the rows' paths alone. Rows side by side are `block`'s
//! business, attending over all of it `attention`'s, the rows' order in the tail `live`'s.
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

mod block;

use std::{collections::HashMap, ops::Range, rc::Rc};

use self::block::{Block, Row, groups, padded_bytes};
use super::{
    attention::RowsKv,
    error::{MlxError, Result},
    kv::LayerKv,
    segment::Segment,
};
use crate::engine::{SegmentId, SequenceId};

/// Tokens from which on a segment is attended once for all rows that run on it, and what it adds to
/// their softmax merged with the rest (Hydragen, arXiv 2402.05099). SmolLM2 on two CPU cores decodes 16
/// rows on a prefix of 795 tokens at 101 tokens/s so, and at 80 where each row attends by itself.
const MIN_SHARED_TOKENS: usize = 64;

/// Tokens that need not be copied from which on a shorter segment after those is attended so too: the words
/// with which all questions after a system prompt begin are often few.
const MIN_SPARED_TOKENS: usize = 128;

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
#[derive(Debug)]
pub(super) struct Cohorts {
    pub shared: Vec<SharedRows>,
    /// Bytes that joined pieces and blocks may take together.
    max_copied_bytes: u64,
    /// Bytes that joined pieces would take if each row had its own.
    num_joined_bytes: u64,
    /// Pieces of each row, in order of position.
    private: Vec<Vec<Piece>>,
    /// Rows whose pieces, and what they have not stored, lie side by side.
    blocks: Vec<Block>,
    /// Passes since the rows last changed; the rows are put side by side in the one that makes it
    /// [`MIN_SAME_PASSES`].
    num_same_passes: usize,
    /// Rows run on other segments than when this was formed.
    pub is_outdated: bool,
}

/// Whether so few tokens are not worth attending once for all rows on them.
pub(super) fn is_short(num_tokens: usize) -> bool {
    num_tokens < MIN_SHARED_TOKENS
}

/// Segments that are worth attending once for all rows on them.
pub(super) fn long_segments(path: &[Rc<Segment>]) -> impl Iterator<Item = &Rc<Segment>> {
    path.iter().filter(|segment| !is_short(segment.num_tokens))
}

/// A decode row and its path, divided.
struct DividedRow<'a> {
    sequence: SequenceId,
    path: &'a [Rc<Segment>],
    /// Of each segment of the path, whether it is attended once for all rows on it.
    is_shared: Vec<bool>,
}

impl<'a> DividedRow<'a> {
    /// Shares long segments, and after those short ones too where many rows would copy them. To merge a short
    /// one alone with the rest would cost more than it spares.
    fn new(
        sequence: SequenceId,
        path: &'a [Rc<Segment>],
        num_users: &HashMap<SegmentId, usize>,
    ) -> DividedRow<'a> {
        let mut is_after_shared = false;
        let is_shared = |segment: &Rc<Segment>| {
            let num_rows = num_users[&segment.id];
            let num_spared_tokens = segment.num_tokens * num_rows.saturating_sub(1);
            let is_shared = num_rows > 1 && !is_short(segment.num_tokens)
                || is_after_shared && num_spared_tokens >= MIN_SPARED_TOKENS;
            is_after_shared |= is_shared;
            is_shared
        };
        Self { sequence, path, is_shared: path.iter().map(is_shared).collect() }
    }

    fn segments(&self) -> impl Iterator<Item = (&'a Rc<Segment>, bool)> {
        self.path.iter().zip(self.is_shared.iter().copied())
    }

    /// Brings rows that share a segment side by side, and among them those that have about as much to
    /// themselves.
    fn sort_key(&self) -> (Vec<SegmentId>, usize, SequenceId) {
        let shared = self.segments().filter(|(_, is_shared)| *is_shared).map(|(segment, _)| segment.id);
        let private = self.segments().filter(|(_, is_shared)| !is_shared);
        let num_private_tokens = private.map(|(segment, _)| segment.num_tokens).sum();
        (shared.collect(), num_private_tokens, self.sequence)
    }
}

/// How many of these paths each segment is in.
fn num_users<'a>(paths: impl Iterator<Item = &'a [Rc<Segment>]>) -> HashMap<SegmentId, usize> {
    let mut num_users: HashMap<SegmentId, usize> = HashMap::new();
    for segment in paths.flatten() {
        *num_users.entry(segment.id).or_default() += 1;
    }
    num_users
}

impl Cohorts {
    /// No rows yet; copies made for speed may take so many bytes.
    pub(super) fn new(max_copied_bytes: u64) -> Self {
        Self {
            shared: Vec::new(),
            max_copied_bytes,
            num_joined_bytes: 0,
            private: Vec::new(),
            blocks: Vec::new(),
            num_same_passes: 0,
            is_outdated: false,
        }
    }

    /// No rows again.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.max_copied_bytes);
    }

    /// Drops what was made of a segment that is there no more, so that its memory is free. What is left only
    /// spares the next [`Cohorts::form`] some joining: it must come before the next step.
    pub(super) fn forget(&mut self, segment: SegmentId) {
        let known = std::mem::take(&mut self.private);
        self.clear();
        let is_left = |piece: &Piece| !piece.ids.contains(&segment);
        self.private.extend(known.into_iter().map(|mut row| {
            row.retain(is_left);
            row
        }));
        self.is_outdated = true;
    }

    /// Puts decode rows in an order and divides what they run on: what stands side by side is attended once,
    /// all else is each row's own. What `self` has joined already is not joined again.
    pub(super) fn form(
        &self,
        paths: &HashMap<SequenceId, &[Rc<Segment>]>,
    ) -> Result<(Vec<SequenceId>, Self)> {
        let num_users = num_users(paths.values().copied());
        let mut rows: Vec<DividedRow<'_>> =
            paths.iter().map(|(&sequence, path)| DividedRow::new(sequence, path, &num_users)).collect();
        rows.sort_by_cached_key(DividedRow::sort_key);
        let mut known: HashMap<Vec<SegmentId>, Piece> =
            self.private.iter().flatten().map(|piece| (piece.ids.clone(), piece.clone())).collect();
        let mut formed = Self::new(self.max_copied_bytes);
        formed.shared = shared_by(&rows);
        for row in &rows {
            let mut pieces: Vec<Vec<&Rc<Segment>>> = Vec::new();
            let mut num_joined_tokens = usize::MAX;
            for (segment, is_shared) in row.segments() {
                if is_shared {
                    num_joined_tokens = usize::MAX;
                    continue;
                }
                num_joined_tokens = num_joined_tokens.saturating_add(segment.num_tokens);
                match pieces.last_mut() {
                    Some(piece)
                        if num_joined_tokens <= MAX_JOINED_TOKENS && formed.can_join(piece, segment) =>
                    {
                        piece.push(segment);
                    }
                    _ => {
                        pieces.push(vec![segment]);
                        num_joined_tokens = segment.num_tokens;
                    }
                }
            }
            formed.private.push(pieces.iter().map(|piece| join(piece, &mut known)).collect::<Result<_>>()?);
        }
        formed.check(&rows)?;
        Ok((rows.iter().map(|row| row.sequence).collect(), formed))
    }

    /// Holds the division to what it is for: shared and private pieces of a row are exactly its path.
    fn check(&self, rows: &[DividedRow<'_>]) -> Result<()> {
        for (index, row) in rows.iter().enumerate() {
            let shared = self.shared.iter().filter(|shared| shared.rows.contains(&index));
            let shared = shared.flat_map(|shared| &shared.segments).map(|segment| segment.id);
            let private = self.private[index].iter().flat_map(|piece| piece.ids.iter().copied());
            let mut seen: Vec<SegmentId> = shared.chain(private).collect();
            let mut path: Vec<SegmentId> = row.path.iter().map(|segment| segment.id).collect();
            seen.sort_unstable();
            path.sort_unstable();
            if seen != path {
                return Err(MlxError::Unsupported(format!(
                    "sequence {} would see the segments {seen:?} instead of {path:?}",
                    row.sequence.0
                )));
            }
        }
        Ok(())
    }

    /// Whether the copy that makes one piece of these is within the limit; counts it where it is.
    fn can_join(&mut self, piece: &[&Rc<Segment>], next: &Segment) -> bool {
        // A single segment is not copied until it is joined.
        let first = if let [single] = piece { single.num_bytes() } else { 0 };
        let num_bytes = self.num_joined_bytes.saturating_add(first).saturating_add(next.num_bytes());
        let can_join = num_bytes <= self.max_copied_bytes;
        if can_join {
            self.num_joined_bytes = num_bytes;
        }
        can_join
    }

    /// Notes that the rows step once more as they are; `own` is what each has computed and not
    /// stored, one entry a layer or none. Once rows are put side by side, theirs become views.
    pub(super) fn step(&mut self, own: &mut [Vec<LayerKv>]) -> Result<()> {
        self.num_same_passes += 1;
        if self.num_same_passes != MIN_SAME_PASSES {
            return Ok(());
        }
        let stored: Vec<Vec<Row<'_>>> = self
            .private
            .iter()
            .map(|pieces| pieces.iter().map(|piece| piece.layers.as_slice()).collect())
            .collect();
        let num_tokens = |row: usize| {
            let pieces = stored[row].iter().copied().chain([own[row].as_slice()]);
            pieces.filter_map(|layers| layers.first()).map(LayerKv::num_tokens).sum()
        };
        let lengths: Vec<usize> = (0..stored.len()).map(num_tokens).collect();
        let mut num_copied_bytes = self.num_joined_bytes;
        for group in groups(&lengths) {
            let like = stored[group.start].first().copied().unwrap_or(&own[group.start]);
            num_copied_bytes = num_copied_bytes.saturating_add(padded_bytes(&lengths[group.clone()], like));
            if num_copied_bytes > self.max_copied_bytes {
                break;
            }
            self.blocks.push(Block::new(group.clone(), &stored[group.clone()], &mut own[group])?);
        }
        Ok(())
    }

    /// Whether a row is side by side with others.
    pub(super) fn has_block_of(&self, row: usize) -> bool {
        self.blocks.iter().any(|block| block.rows.contains(&row))
    }

    /// Takes the rows apart until the next step: what they have not stored has changed.
    pub(super) fn take_apart(&mut self) {
        self.blocks.clear();
        self.num_same_passes = self.num_same_passes.min(MIN_SAME_PASSES - 1);
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

/// Consecutive rows of which each shares a segment, for all segments that rows share; those with the same
/// rows together, in order of position.
///
/// A row is among a segment's only by its own path, never by where it stands: whatever the paths are, none is
/// shown what it does not run on.
fn shared_by(rows: &[DividedRow<'_>]) -> Vec<SharedRows> {
    let mut runs: Vec<(&Rc<Segment>, Range<usize>)> = Vec::new();
    let mut last_run: HashMap<SegmentId, usize> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        for (segment, _) in row.segments().filter(|(_, is_shared)| *is_shared) {
            match last_run.get(&segment.id).map(|&run| &mut runs[run].1) {
                Some(run) if run.end == index => run.end = index + 1,
                _ => {
                    last_run.insert(segment.id, runs.len());
                    runs.push((segment, index..index + 1));
                }
            }
        }
    }
    let mut shared: Vec<SharedRows> = Vec::new();
    for (segment, rows) in runs {
        match shared.iter_mut().find(|shared| shared.rows == rows) {
            Some(shared) => shared.segments.push(Rc::clone(segment)),
            None => shared.push(SharedRows { rows, segments: vec![Rc::clone(segment)] }),
        }
    }
    shared
}

/// Makes one piece of neighbouring segments, the same one for all rows on them.
fn join(segments: &[&Rc<Segment>], known: &mut HashMap<Vec<SegmentId>, Piece>) -> Result<Piece> {
    let ids: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    if let Some(piece) = known.get(&ids) {
        return Ok(piece.clone());
    }
    let num_layers = segments.first().map_or(0, |segment| segment.layers.len());
    let layers = (0..num_layers)
        .map(|layer| LayerKv::joined(segments.iter().map(|segment| &segment.layers[layer])))
        .collect::<Result<Vec<_>>>()?;
    let piece = Piece { ids: ids.clone(), layers: Rc::new(layers) };
    known.insert(ids, piece.clone());
    Ok(piece)
}

/// Joins short pieces at the end of `pieces` with each other, for a chunk that is to see them.
pub(super) fn join_short_end(mut pieces: Vec<LayerKv>) -> Result<Vec<LayerKv>> {
    let num_short = pieces.iter().rev().take_while(|kv| is_short(kv.num_tokens())).count();
    if num_short > 1 {
        let short = pieces.split_off(pieces.len() - num_short);
        pieces.push(LayerKv::joined(short.iter())?);
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests;
