//! Attention of many query rows on the CPU by matrix products, head by head.
//!
//! Owns these products over slices and the softmax between them. Which rows are set against which pieces together is
//! `chunk`'s and `shared`'s business; few rows are `strips`'s.

use std::ops::Range;

use mlx_rs::Array;

use super::{
    Attention, LayerKv, Result,
    partial::Partial,
    strip_rows::SlotPlanes,
    strips::{HeadShape, Plane},
};
use crate::mlx::{
    fused::weigh_rows,
    host::{is_for_host, numbers_of},
    sys::{self, on_team, team_size},
};

/// Scores of one head that are made together: they stay in the second cache. But so few rows make products slow.
const MAX_SCORES: usize = 1 << 18;
const MIN_ROWS: usize = 16;

/// Scores that another thread is asked for.
const MIN_THREAD_SCORES: usize = 1 << 14;

/// A piece that rows see, and which of its tokens each row does; `None`: all do all.
struct Seen<'a> {
    keys: Plane<'a>,
    values: Plane<'a>,
    num_tokens: usize,
    by_row: Option<Vec<Range<usize>>>,
}

impl Attention<'_> {
    /// Attends rows at these positions, from the first on among scaled queries `(n, H_kv, G, D)`, to the pieces, each
    /// of which some row sees; `None` where that is for MLX to do.
    pub(super) fn products_by_host(
        &self,
        (queries, first): (&Array, usize),
        positions: &[usize],
        pieces: &[LayerKv],
    ) -> Result<Option<Partial>> {
        let planes = pieces.iter().flat_map(|piece| piece.planes.arrays());
        if !planes.chain([queries]).all(|array| is_for_host(array, self.device)) {
            return Ok(None);
        }
        mlx_rs::transforms::eval(pieces.iter().flat_map(|piece| piece.planes.arrays()).chain([queries]))?;
        let shape = self.head_shape();
        let slots = pieces.iter().map(|piece| SlotPlanes::pair(&piece.planes, shape));
        let slots = slots.collect::<Result<Vec<_>>>()?;
        let seen: Vec<Seen<'_>> = pieces
            .iter()
            .zip(&slots)
            .map(|(piece, (keys, values))| {
                let by_row: Vec<_> =
                    positions.iter().map(|&position| self.visible(position, piece)).collect();
                let num_tokens = piece.num_tokens();
                let is_hidden = by_row.iter().any(|seen| *seen != (0..num_tokens));
                Seen {
                    keys: keys.slot(0),
                    values: values.slot(0),
                    num_tokens,
                    by_row: is_hidden.then_some(by_row),
                }
            })
            .collect();
        let queries = sys::in_order(queries)?;
        let row_width = self.spec.num_heads * self.spec.head_dim;
        let queries = &numbers_of(&queries)?[first * row_width..][..positions.len() * row_width];
        let attended = attend(queries, positions.len(), (shape, self.spec.score_softcap), &seen);
        let of = |numbers: &[f32], width: usize| {
            let heads = [shape.num_kv_heads, shape.num_groups, width].map(|size| size as i32);
            Array::from_slice(numbers, &[positions.len() as i32, heads[0], heads[1], heads[2]])
        };
        Ok(Some(Partial {
            max: of(&attended.max, 1),
            sum: of(&attended.sum, 1),
            weighed: of(&attended.weighed, shape.value_dim),
        }))
    }
}

/// What rows make of what they see, `(n, H_kv, G, X)` each.
struct Attended {
    max: Vec<f32>,
    sum: Vec<f32>,
    weighed: Vec<f32>,
}

/// Attends scaled queries `(n, H_kv, G, D)`.
fn attend(
    queries: &[f32],
    num_rows: usize,
    (shape, cap): (HeadShape, Option<f32>),
    pieces: &[Seen<'_>],
) -> Attended {
    let HeadShape { num_kv_heads, num_groups, value_dim, .. } = shape;
    let zeros = |width: usize| vec![0.0; num_rows * num_kv_heads * num_groups * width];
    let mut attended = Attended { max: zeros(1), sum: zeros(1), weighed: zeros(value_dim) };
    let num_tokens: usize = pieces.iter().map(|piece| piece.num_tokens).sum();
    let max_rows = (MAX_SCORES / (num_groups * num_tokens).max(1)).max(MIN_ROWS);
    let mut head = Head::new(shape, num_rows.min(max_rows), num_tokens);
    for first in (0..num_rows).step_by(max_rows) {
        let rows = first..num_rows.min(first + max_rows);
        for index in 0..num_kv_heads {
            head.attend(index, (queries, &rows), cap, pieces, &mut attended);
        }
    }
    attended
}

/// One KV head's queries of some rows, on the way.
struct Head {
    shape: HeadShape,
    /// `(n·G, D)`
    queries: Vec<f32>,
    /// `(n·G, L)` for each piece, the pieces' one behind the other.
    scores: Vec<f32>,
    /// `(n·G, D)`
    weighed: Vec<f32>,
}

impl Head {
    fn new(shape: HeadShape, max_rows: usize, num_tokens: usize) -> Self {
        let zeros = |width: usize| vec![0.0; max_rows * shape.num_groups * width];
        Self {
            shape,
            queries: zeros(shape.key_dim),
            scores: zeros(num_tokens),
            weighed: zeros(shape.value_dim),
        }
    }

    fn attend(
        &mut self,
        head: usize,
        (queries, rows): (&[f32], &Range<usize>),
        cap: Option<f32>,
        pieces: &[Seen<'_>],
        attended: &mut Attended,
    ) {
        let HeadShape { num_kv_heads, num_groups, key_dim, value_dim } = self.shape;
        let num_queries = rows.len() * num_groups;
        let of_row = |row: usize, width: usize| (row * num_kv_heads + head) * num_groups * width;
        let of_head = &mut self.queries[..num_queries * key_dim];
        for (row, to) in rows.clone().zip(of_head.chunks_exact_mut(num_groups * key_dim)) {
            to.copy_from_slice(&queries[of_row(row, key_dim)..][..num_groups * key_dim]);
        }
        let mut rest = self.scores.as_mut_slice();
        let mut of_pieces = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (scores, others) = rest.split_at_mut(num_queries * piece.num_tokens);
            rest = others;
            piece.score(head, key_dim, of_head, scores);
            if let Some(cap) = cap {
                scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            piece.hide(rows, num_groups, scores);
            of_pieces.push(scores);
        }
        let (max, sum) = weighed_on_threads(&mut of_pieces, num_queries);
        let weighed = &mut self.weighed[..num_queries * value_dim];
        for (index, (piece, weights)) in pieces.iter().zip(&of_pieces).enumerate() {
            piece.weigh(head, value_dim, weights, (index > 0, weighed));
        }
        for (index, row) in rows.clone().enumerate() {
            let (from, to) = (index * num_groups, of_row(row, 1));
            attended.max[to..to + num_groups].copy_from_slice(&max[from..from + num_groups]);
            attended.sum[to..to + num_groups].copy_from_slice(&sum[from..from + num_groups]);
            attended.weighed[to * value_dim..][..num_groups * value_dim]
                .copy_from_slice(&weighed[from * value_dim..][..num_groups * value_dim]);
        }
    }
}

impl Seen<'_> {
    /// Scores `(n·G, L)` of a head's queries, `(n·G, D)`.
    fn score(&self, head: usize, key_dim: usize, queries: &[f32], scores: &mut [f32]) {
        let keys = self.keys.from(head, 0);
        sys::multiply_rows(
            queries,
            (keys, (key_dim, self.num_tokens), (1, self.keys.token_step)),
            false,
            scores,
        );
    }

    /// Values by their weights, `(n·G, D)`, which are added to what is there where `adds`.
    fn weigh(&self, head: usize, value_dim: usize, weights: &[f32], (adds, weighed): (bool, &mut [f32])) {
        let values = self.values.from(head, 0);
        sys::multiply_rows(
            weights,
            (values, (self.num_tokens, value_dim), (self.values.token_step, 1)),
            adds,
            weighed,
        );
    }

    /// Takes out the scores of what rows do not see.
    fn hide(&self, rows: &Range<usize>, num_groups: usize, scores: &mut [f32]) {
        let Some(by_row) = &self.by_row else { return };
        for (of_row, seen) in scores.chunks_exact_mut(num_groups * self.num_tokens).zip(&by_row[rows.clone()])
        {
            for scores in of_row.chunks_exact_mut(self.num_tokens) {
                scores[..seen.start].fill(f32::NEG_INFINITY);
                scores[seen.end..].fill(f32::NEG_INFINITY);
            }
        }
    }
}

/// [`weigh_rows`], by as many threads as there is work for.
fn weighed_on_threads(pieces: &mut [&mut [f32]], num_rows: usize) -> (Vec<f32>, Vec<f32>) {
    let num_scores: usize = pieces.iter().map(|piece| piece.len()).sum();
    let num_threads = (num_scores / MIN_THREAD_SCORES).clamp(1, team_size());
    if num_threads == 1 {
        return weigh_rows(pieces, num_rows);
    }
    let of_thread = num_rows.div_ceil(num_threads);
    let mut parts: Vec<(usize, Vec<&mut [f32]>)> = Vec::with_capacity(num_threads);
    let mut rests: Vec<&mut [f32]> = pieces.iter_mut().map(|piece| &mut **piece).collect();
    let mut left = num_rows;
    while left > 0 {
        let taken = of_thread.min(left);
        let mut of_part = Vec::with_capacity(rests.len());
        for rest in &mut rests {
            let width = rest.len() / left;
            let (first, others) = std::mem::take(rest).split_at_mut(taken * width);
            of_part.push(first);
            *rest = others;
        }
        parts.push((taken, of_part));
        left -= taken;
    }
    let parts = std::sync::Mutex::new(parts.into_iter().enumerate());
    let found = on_team(num_threads, || {
        let mut found = Vec::new();
        loop {
            let next = parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
            let Some((index, (num_rows, mut pieces))) = next else { return found };
            found.push((index, weigh_rows(&mut pieces, num_rows)));
        }
    });
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_by_key(|(index, _)| *index);
    let (mut max, mut sum) = (Vec::with_capacity(num_rows), Vec::with_capacity(num_rows));
    for (_, (of_max, of_sum)) in found {
        max.extend(of_max);
        sum.extend(of_sum);
    }
    (max, sum)
}
