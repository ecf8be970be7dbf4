//! Attention of many query rows on the CPU by matrix products, head by head, each by one thread.
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
    sys::{self, even_parts, parts_of_rows, share_out, team_size},
};

/// Scores of one head that a thread makes together: they stay in its second cache. But so few queries make products slow.
const MAX_SCORES: usize = 1 << 17;
const MIN_QUERIES: usize = 256;

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
        sys::compute(pieces.iter().flat_map(|piece| piece.planes.arrays()).chain([queries]))?;
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
    let HeadShape { num_kv_heads, num_groups, key_dim, value_dim } = shape;
    let zeros = |width: usize| vec![0.0; num_rows * num_kv_heads * num_groups * width];
    let mut attended = Attended { max: zeros(1), sum: zeros(1), weighed: zeros(value_dim) };
    let num_tokens: usize = pieces.iter().map(|piece| piece.num_tokens).sum();
    let most = (MAX_SCORES / num_tokens.max(1)).max(MIN_QUERIES) / num_groups;
    let num_threads =
        (num_rows * num_kv_heads * num_groups * num_tokens / MIN_THREAD_SCORES).clamp(1, team_size());
    let rows_of_task = num_rows.div_ceil(num_threads.div_ceil(num_kv_heads)).min(most.max(1));
    let by_head = |numbers, width: usize| {
        let of_head = num_groups * width;
        parts_of_rows(numbers, &even_parts(num_kv_heads * of_head, of_head))
    };
    let mut tasks = Vec::new();
    for (head, ((mut max, mut sum), mut weighed)) in by_head(&mut attended.max, 1)
        .into_iter()
        .zip(by_head(&mut attended.sum, 1))
        .zip(by_head(&mut attended.weighed, value_dim))
        .enumerate()
    {
        for first in (0..num_rows).step_by(rows_of_task) {
            let count = rows_of_task.min(num_rows - first);
            tasks.push(Task {
                head,
                rows: first..first + count,
                max: max.drain(..count).collect(),
                sum: sum.drain(..count).collect(),
                weighed: weighed.drain(..count).collect(),
            });
        }
    }
    let step = num_kv_heads * num_groups * key_dim;
    let scratch = || Scratch::new(shape, rows_of_task, num_tokens);
    share_out(num_threads.min(tasks.len()), tasks.into_iter(), scratch, |scratch, task| {
        let queries = &queries[task.rows.start * step..];
        task.attend((queries, step), (shape, cap), pieces, scratch);
    });
    attended
}

/// What a thread works with, for one KV head's queries of some rows.
struct Scratch {
    /// `(n·G, D)`
    queries: Vec<f32>,
    /// `(n·G, L)` for each piece, the pieces' one behind the other.
    scores: Vec<f32>,
    /// `(n·G, D)`
    weighed: Vec<f32>,
}

impl Scratch {
    fn new(shape: HeadShape, max_rows: usize, num_tokens: usize) -> Self {
        let zeros = |width: usize| vec![0.0; max_rows * shape.num_groups * width];
        Self { queries: zeros(shape.key_dim), scores: zeros(num_tokens), weighed: zeros(shape.value_dim) }
    }
}

/// One KV head's queries of some rows, which one thread attends.
struct Task<'a> {
    head: usize,
    rows: Range<usize>,
    /// Of each row what is to be written, `(G,)`, `(G,)` and `(G, D)`.
    max: Vec<&'a mut [f32]>,
    sum: Vec<&'a mut [f32]>,
    weighed: Vec<&'a mut [f32]>,
}

impl Task<'_> {
    /// Attends them; rows' queries, `(H_kv, G, D)`, are given from the task's first on, with how far they are apart.
    fn attend(
        self,
        (queries, step): (&[f32], usize),
        (shape, cap): (HeadShape, Option<f32>),
        pieces: &[Seen<'_>],
        scratch: &mut Scratch,
    ) {
        let HeadShape { num_groups, key_dim, value_dim, .. } = shape;
        let num_queries = self.rows.len() * num_groups;
        let of_head = &mut scratch.queries[..num_queries * key_dim];
        let width = num_groups * key_dim;
        for (row, to) in queries.chunks(step).zip(of_head.chunks_exact_mut(width)) {
            to.copy_from_slice(&row[self.head * width..][..width]);
        }
        let mut rest = scratch.scores.as_mut_slice();
        let mut of_pieces = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (scores, others) = rest.split_at_mut(num_queries * piece.num_tokens);
            rest = others;
            piece.score(self.head, key_dim, of_head, scores);
            if let Some(cap) = cap {
                scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            piece.hide(&self.rows, num_groups, scores);
            of_pieces.push(scores);
        }
        let (max, sum) = weigh_rows(&mut of_pieces, num_queries);
        let weighed = &mut scratch.weighed[..num_queries * value_dim];
        for (index, (piece, weights)) in pieces.iter().zip(&of_pieces).enumerate() {
            piece.weigh(self.head, value_dim, weights, (index > 0, weighed));
        }
        for (to, from) in [(self.max, max.as_slice()), (self.sum, &sum), (self.weighed, weighed)] {
            let width = from.len() / self.rows.len();
            for (to, from) in to.into_iter().zip(from.chunks_exact(width)) {
                to.copy_from_slice(from);
            }
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
