//! Attention of single query rows on the CPU: each row over its own keys, in one pass over memory.
//!
//! Owns these loops over slices, on as many threads as there are cores. A matrix product of one or a few
//! rows reads keys and values no faster, copies them first, and runs on one core; its scores take another
//! pass or two. The softmax is taken as it goes, with a running maximum (Milakov and Gimelshein, arXiv
//! 1805.02867); what a row sees elsewhere comes in as a part of it.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::mlx::{
    fused::{NOTHING_SEEN, max_of, weigh, weight_of},
    sys::{InstructionSet, Instructions, Lanes, NUM_LANES, WideWork, prefetch, share_out},
};

/// Keys that are scored before they are weighed: what is read of them is still in the first cache then.
const TILE_TOKENS: usize = 64;

/// How far ahead keys are fetched: what is read while memory answers.
const NUMBERS_AHEAD: usize = 1024;

/// Numbers that are worked on side by side where they do not fill the lanes.
const NUM_NARROW_LANES: usize = 8;

/// Vectors of a value that are worked on side by side, where there are so many.
const BLOCK_VECTORS: usize = 4;

/// Keys that are scored side by side.
const KEYS_TOGETHER: usize = 4;

/// Queries that share what is read of keys and values, where there is room for their sums.
const MAX_QUERIES_TOGETHER: usize = 4;

/// Heads of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadShape {
    pub num_kv_heads: usize,
    /// Query heads of each KV head.
    pub num_groups: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

/// Keys, or values, of all heads. A token's of one head lie one behind the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane<'a> {
    /// From the first head's first token on.
    pub numbers: &'a [f32],
    /// Numbers from one head's beginning to the next one's.
    pub head_step: usize,
    /// Numbers from one token's beginning to the next one's; at least a token's width.
    pub token_step: usize,
}

impl<'a> Plane<'a> {
    /// A head's numbers from a token on.
    pub(super) fn from(&self, head: usize, token: usize) -> &'a [f32] {
        &self.numbers[head * self.head_step + token * self.token_step..]
    }
}

/// Keys and values of consecutive tokens that one row sees.
#[derive(Debug, Clone)]
pub(super) struct Strip<'a> {
    pub keys: Plane<'a>,
    pub values: Plane<'a>,
    /// Tokens that are seen.
    pub tokens: Range<usize>,
}

/// What a row makes of other keys: for each head the largest score, the sum of e^(score - largest) and the
/// values weighed so.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    pub max: &'a [f32],
    pub sum: &'a [f32],
    pub weighed: &'a [f32],
}

/// One row and all that it sees.
#[derive(Debug)]
pub(super) struct StripRow<'a> {
    /// Scaled, `(H_kv, G, D)`.
    pub queries: &'a [f32],
    pub strips: Vec<Strip<'a>>,
    pub parts: Vec<Part<'a>>,
}

/// Attends rows to what they see: `(B, H_kv, G, D)`, D being the values' width. Scores are capped first where there is
/// a cap; sinks, `(H,)`, take their share where there are any. So many threads share the work at most.
pub(super) fn attend(
    rows: &[StripRow<'_>],
    shape: HeadShape,
    (cap, sinks): (Option<f32>, Option<&[f32]>),
    max_threads: usize,
) -> Vec<f32> {
    attend_by(InstructionSet::widest(), rows, shape, (cap, sinks), max_threads)
}

fn attend_by(
    instructions: InstructionSet,
    rows: &[StripRow<'_>],
    shape: HeadShape,
    (cap, sinks): (Option<f32>, Option<&[f32]>),
    max_threads: usize,
) -> Vec<f32> {
    let HeadShape { num_kv_heads, num_groups, key_dim, value_dim } = shape;
    let mut attended = vec![0.0; rows.len() * num_kv_heads * num_groups * value_dim];
    let heads = attended.chunks_mut(num_groups * value_dim).enumerate();
    share_out(
        max_threads,
        heads,
        || Head::new(shape, cap),
        |head, (index, weighed)| {
            let (row, kv_head) = (&rows[index / num_kv_heads], index % num_kv_heads);
            let queries = &row.queries[kv_head * num_groups * key_dim..][..num_groups * key_dim];
            let sinks = sinks.map(|sinks| &sinks[kv_head * num_groups..][..num_groups]);
            head.begin(sinks);
            instructions.run(Attend { head, queries, row, kv_head, weighed });
        },
    );
    attended
}

/// Attends one KV head's queries of one row.
struct Attend<'a, 'b> {
    head: &'a mut Head,
    queries: &'a [f32],
    row: &'a StripRow<'b>,
    kv_head: usize,
    weighed: &'a mut [f32],
}

impl WideWork for Attend<'_, '_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        self.head.attend::<I>(self.queries, self.row, self.kv_head, self.weighed);
    }
}

/// One KV head's queries of one row, on the way.
struct Head {
    shape: HeadShape,
    cap: Option<f32>,
    /// Scores, then weights, of a block of keys, query by query.
    scores: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

impl Head {
    fn new(shape: HeadShape, cap: Option<f32>) -> Self {
        let num_groups = shape.num_groups;
        let scores = vec![0.0; num_groups * TILE_TOKENS];
        Self { shape, cap, scores, max: vec![0.0; num_groups], sum: vec![0.0; num_groups] }
    }

    /// Forgets what was seen; the sinks of its queries, `(G,)`, are seen first.
    fn begin(&mut self, sinks: Option<&[f32]>) {
        match sinks {
            Some(sinks) => {
                self.max.copy_from_slice(sinks);
                self.sum.fill(1.0);
            }
            None => {
                self.max.fill(NOTHING_SEEN);
                self.sum.fill(0.0);
            }
        }
    }

    /// Attends queries `(G, D)` to what the row sees with KV head `head`; `weighed` is `(G, D)`, zeros.
    #[inline(always)]
    fn attend<I: Instructions>(
        &mut self,
        queries: &[f32],
        row: &StripRow<'_>,
        head: usize,
        weighed: &mut [f32],
    ) {
        let HeadShape { num_groups, value_dim, .. } = self.shape;
        for part in &row.parts {
            for group in 0..num_groups {
                let of = head * num_groups + group;
                let values = &part.weighed[of * value_dim..][..value_dim];
                self.add_part(group, part.max[of], part.sum[of], values, weighed);
            }
        }
        for strip in &row.strips {
            let mut start = strip.tokens.start;
            while start < strip.tokens.end {
                let num_tokens = (strip.tokens.end - start).min(TILE_TOKENS);
                let keys = (strip.keys.from(head, start), strip.keys.token_step);
                let values = (strip.values.from(head, start), strip.values.token_step);
                self.add_block::<I>(queries, num_tokens, keys, values, weighed);
                start += num_tokens;
            }
        }
        for (weighed, sum) in weighed.chunks_mut(value_dim).zip(&self.sum) {
            weighed.iter_mut().for_each(|value| *value /= sum);
        }
    }

    /// Adds a block of tokens; their keys and values lie so many numbers apart.
    #[inline(always)]
    fn add_block<I: Instructions>(
        &mut self,
        queries: &[f32],
        num_tokens: usize,
        (keys, key_step): (&[f32], usize),
        (values, value_step): (&[f32], usize),
        weighed: &mut [f32],
    ) {
        let HeadShape { num_groups, key_dim, value_dim, .. } = self.shape;
        let scores = &mut self.scores[..num_groups * TILE_TOKENS];
        let queries_together = if I::HAS_ROOM_FOR_SUMS { MAX_QUERIES_TOGETHER } else { 1 };
        let keys_ahead = (NUMBERS_AHEAD / key_dim).max(KEYS_TOGETHER);
        for token in (0..num_tokens).step_by(KEYS_TOGETHER) {
            let mut of_tokens: [&[f32]; KEYS_TOGETHER] = [&[]; KEYS_TOGETHER];
            for (index, key) in of_tokens.iter_mut().enumerate() {
                // The last one again where there are not so many.
                let token = (token + index).min(num_tokens - 1);
                *key = &keys[token * key_step..][..key_dim];
                let [key_ahead, value] = [(token + keys_ahead) * key_step, token * value_step];
                prefetch(keys.get(key_ahead..key_ahead + key_dim).unwrap_or_default());
                prefetch(values.get(value..value + value_dim).unwrap_or_default());
            }
            let of_queries = scores.chunks_mut(queries_together * TILE_TOKENS);
            for (queries, scores) in queries.chunks(queries_together * key_dim).zip(of_queries) {
                let scores = &mut scores[token..];
                match queries.len() / key_dim {
                    1 => score::<1, I>(queries, of_tokens, scores),
                    2 => score::<2, I>(queries, of_tokens, scores),
                    3 => score::<3, I>(queries, of_tokens, scores),
                    _ => score::<MAX_QUERIES_TOGETHER, I>(queries, of_tokens, scores),
                }
            }
        }
        for (group, weighed) in weighed.chunks_mut(value_dim).enumerate() {
            let scores = &mut scores[group * TILE_TOKENS..][..num_tokens];
            if let Some(cap) = self.cap {
                scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
            }
            let max = max_of(scores);
            let sum = weigh(scores, if max > self.max[group] { max } else { self.max[group] });
            if max > self.max[group] {
                let rescale = weight_of(self.max[group], max);
                weighed.iter_mut().for_each(|value| *value *= rescale);
                self.sum[group] *= rescale;
                self.max[group] = max;
            }
            self.sum[group] += sum;
        }
        let of_queries = scores.chunks(queries_together * TILE_TOKENS);
        for (weighed, weights) in weighed.chunks_mut(queries_together * value_dim).zip(of_queries) {
            let values = Values { numbers: values, step: value_step, width: value_dim, count: num_tokens };
            match weighed.len() / value_dim {
                1 => add_weighed::<1, I>(weights, values, weighed),
                2 => add_weighed::<2, I>(weights, values, weighed),
                3 => add_weighed::<3, I>(weights, values, weighed),
                _ => add_weighed::<MAX_QUERIES_TOGETHER, I>(weights, values, weighed),
            }
        }
    }

    #[inline(always)]
    fn add_part(&mut self, group: usize, max: f32, sum: f32, values: &[f32], weighed: &mut [f32]) {
        let value_dim = self.shape.value_dim;
        let weighed = &mut weighed[group * value_dim..][..value_dim];
        let largest = if max > self.max[group] { max } else { self.max[group] };
        let (old, new) = (weight_of(self.max[group], largest), weight_of(max, largest));
        for (weighed, value) in weighed.iter_mut().zip(values) {
            *weighed = *weighed * old + value * new;
        }
        self.sum[group] = self.sum[group] * old + sum * new;
        self.max[group] = largest;
    }
}

/// Scores Q queries with four keys; a query's scores are a tile behind the one before it.
#[inline(always)]
fn score<const Q: usize, I: Instructions>(
    queries: &[f32],
    keys: [&[f32]; KEYS_TOGETHER],
    scores: &mut [f32],
) {
    let width = queries.len() / Q;
    let (num_vectors, num_in_vectors) = (width / NUM_LANES, width / NUM_LANES * NUM_LANES);
    // By index, here and below: the compiler keeps sums in registers then, and sees from the lengths that all is there.
    let mut of_queries: [&[Lanes]; Q] = [&[]; Q];
    for query in 0..Q {
        of_queries[query] = &queries[query * width..].as_chunks().0[..num_vectors];
    }
    let mut of_keys: [&[Lanes]; KEYS_TOGETHER] = [&[]; KEYS_TOGETHER];
    for key in 0..KEYS_TOGETHER {
        of_keys[key] = &keys[key].as_chunks().0[..num_vectors];
    }
    let mut sums = [[I::splat(0.0); KEYS_TOGETHER]; Q];
    for vector in 0..num_vectors {
        let mut vectors = [I::splat(0.0); KEYS_TOGETHER];
        for key in 0..KEYS_TOGETHER {
            vectors[key] = I::load(&of_keys[key][vector]);
        }
        for query in 0..Q {
            let of_query = I::load(&of_queries[query][vector]);
            for key in 0..KEYS_TOGETHER {
                sums[query][key] = I::add_product(sums[query][key], of_query, vectors[key]);
            }
        }
    }
    for query in 0..Q {
        let scores = &mut scores[query * TILE_TOKENS..][..KEYS_TOGETHER];
        scores.copy_from_slice(&I::sums_of_four(sums[query]));
        if num_in_vectors < width {
            let rest = &queries[query * width..][num_in_vectors..width];
            for (score, key) in scores.iter_mut().zip(keys) {
                *score += narrow_dot::<I>(rest, &key[num_in_vectors..]);
            }
        }
    }
}

/// The product of two of less than the lanes' width; numbers one by one would wait for each other.
#[inline(always)]
fn narrow_dot<I: Instructions>(left: &[f32], right: &[f32]) -> f32 {
    let (lefts, left_rest) = left.as_chunks::<NUM_NARROW_LANES>();
    let (rights, right_rest) = right.as_chunks::<NUM_NARROW_LANES>();
    let mut lanes = [0.0; NUM_NARROW_LANES];
    for (left, right) in lefts.iter().zip(rights) {
        for ((lane, left), right) in lanes.iter_mut().zip(left).zip(right) {
            *lane = I::multiply_add(*left, *right, *lane);
        }
    }
    // In halves, as vectors are added up.
    let mut width = NUM_NARROW_LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    lanes[0] + rest
}

/// Values `(L, D)`, each of which begins `step` numbers after the last one.
#[derive(Clone, Copy)]
struct Values<'a> {
    numbers: &'a [f32],
    step: usize,
    width: usize,
    count: usize,
}

/// Adds values times their weights to Q sums, `(Q, D)`; a sum's weights are a tile behind those of the one before it.
#[inline(always)]
fn add_weighed<const Q: usize, I: Instructions>(weights: &[f32], values: Values<'_>, weighed: &mut [f32]) {
    let place = add_vectors::<Q, BLOCK_VECTORS, I>(weights, values, weighed, 0);
    let place = add_vectors::<Q, 1, I>(weights, values, weighed, place);
    let of_sums = weights.chunks(TILE_TOKENS).map(|weights| &weights[..values.count]);
    for (weights, weighed) in of_sums.zip(weighed.chunks_mut(values.width)) {
        let place = add_in_lanes::<NUM_NARROW_LANES, I>(weights, values, weighed, place);
        add_in_lanes::<1, I>(weights, values, weighed, place);
    }
}

/// Adds as much of them as fills V vectors, from a place on; returns the place it has come to.
#[inline(always)]
fn add_vectors<const Q: usize, const V: usize, I: Instructions>(
    weights: &[f32],
    values: Values<'_>,
    weighed: &mut [f32],
    first: usize,
) -> usize {
    let Values { numbers, step, width, count } = values;
    let num_numbers = (width - first) / (V * NUM_LANES) * (V * NUM_LANES);
    let mut of_queries: [&[f32]; Q] = [&[]; Q];
    for query in 0..Q {
        of_queries[query] = &weights[query * TILE_TOKENS..][..count];
    }
    for place in (first..first + num_numbers).step_by(V * NUM_LANES) {
        let mut sums = [[I::splat(0.0); V]; Q];
        for query in 0..Q {
            let weighed = &weighed[query * width + place..].as_chunks().0[..V];
            for vector in 0..V {
                sums[query][vector] = I::load(&weighed[vector]);
            }
        }
        for (token, value) in numbers.chunks(step).take(count).enumerate() {
            let value = &value[place..].as_chunks().0[..V];
            let mut vectors = [I::splat(0.0); V];
            for vector in 0..V {
                vectors[vector] = I::load(&value[vector]);
            }
            for query in 0..Q {
                let weight = I::splat(of_queries[query][token]);
                for vector in 0..V {
                    sums[query][vector] = I::add_product(sums[query][vector], weight, vectors[vector]);
                }
            }
        }
        for query in 0..Q {
            let weighed = &mut weighed[query * width + place..].as_chunks_mut().0[..V];
            for vector in 0..V {
                I::store(sums[query][vector], &mut weighed[vector]);
            }
        }
    }
    first + num_numbers
}

/// Adds as much of them as fills so many lanes, from a place on; returns the place it has come to.
#[inline(always)]
fn add_in_lanes<const N: usize, I: Instructions>(
    weights: &[f32],
    Values { numbers, step, .. }: Values<'_>,
    weighed: &mut [f32],
    mut place: usize,
) -> usize {
    for lanes in weighed[place..].as_chunks_mut::<N>().0 {
        let mut sums = *lanes;
        for (weight, value) in weights.iter().zip(numbers.chunks(step)) {
            for (sum, value) in sums.iter_mut().zip(&value[place..][..N]) {
                *sum = I::multiply_add(*weight, *value, *sum);
            }
        }
        *lanes = sums;
        place += N;
    }
    place
}
