//! Products of rows by numbers that are multiplied as they are made.
//!
//! Owns the loop that has the sums of two outputs and a few rows in registers: for few rows it takes the matrix's words at
//! nearly the speed of memory, and nothing is written but sums. Where registers have no room for that, `tile` does it.

use std::marker::PhantomData;

use super::{
    CHUNK_INPUTS, Chunk, Rows, TILE_OUTPUTS,
    decode::{Room, numbers_of},
    packing::{PackedWork, Packing},
};
use crate::mlx::sys::{Instructions, Lanes, NUM_LANES, WideWork, prefetch};

/// Rows that are multiplied at once, at most.
const MAX_ROWS_AT_ONCE: usize = 8;

/// Outputs that are multiplied at once.
const NUM_OUTPUTS: usize = 2;

/// Pairs of outputs whose sums are kept, at most.
const MAX_TILE_PAIRS: usize = TILE_OUTPUTS / NUM_OUTPUTS;

/// Rows whose chunks are read so fast that the second cache does not keep up.
const MIN_TILED_ROWS: usize = 4;

/// How many pairs of outputs before it is made one is fetched: what is taken in while memory answers; more would not stay
/// in the first cache.
const PAIRS_AHEAD: usize = 2;

/// Computes them.
pub(super) struct Multiply<'a, 'b> {
    pub(super) rows: Rows<'a, 'b>,
}

impl PackedWork for Multiply<'_, '_> {
    fn run<const B: usize, const G: usize, P: Packing<B>>(self) {
        let mut rows = self.rows;
        let set = rows.instructions;
        let num_rows = rows.y.len();
        let rows_at_once = num_rows.div_ceil(num_rows.div_ceil(MAX_ROWS_AT_ONCE).max(1)).max(1);
        for first_row in (0..num_rows).step_by(rows_at_once) {
            let rows = (&mut rows, first_row);
            match rows_at_once.min(num_rows - first_row) {
                1 => set.run(OfRows::<1, B, G, P>(rows, PhantomData)),
                2 => set.run(OfRows::<2, B, G, P>(rows, PhantomData)),
                3 => set.run(OfRows::<3, B, G, P>(rows, PhantomData)),
                4 => set.run(OfRows::<4, B, G, P>(rows, PhantomData)),
                5 => set.run(OfRows::<5, B, G, P>(rows, PhantomData)),
                6 => set.run(OfRows::<6, B, G, P>(rows, PhantomData)),
                7 => set.run(OfRows::<7, B, G, P>(rows, PhantomData)),
                _ => set.run(OfRows::<MAX_ROWS_AT_ONCE, B, G, P>(rows, PhantomData)),
            }
        }
    }
}

/// R of the rows, from one on.
struct OfRows<'a, 'b, 'c, const R: usize, const B: usize, const G: usize, P: Packing<B>>(
    (&'a mut Rows<'b, 'c>, usize),
    PhantomData<P>,
);

impl<const R: usize, const B: usize, const G: usize, P: Packing<B>> WideWork
    for OfRows<'_, '_, '_, R, B, G, P>
{
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "by index the compiler keeps sums in registers")]
    fn run<I: Instructions>(self) {
        let (rows, first_row) = self.0;
        let num_outputs = rows.num_outputs();
        let Rows { matrix, first_output, x, y, .. } = rows;
        let num_rows = y.len();
        let num_chunks = x.len() / num_rows;
        let (left_room, right_room) = (&mut Room::new(), &mut Room::new());
        // Where all chunks of several rows do not stay in the first cache, one of each does while a few outputs are made.
        let tile_pairs = if num_chunks == 1 || R < MIN_TILED_ROWS { 1 } else { MAX_TILE_PAIRS };
        let mut tile = [Sums::<R>::ZERO; MAX_TILE_PAIRS];
        let outputs_of = |pair: usize| {
            // The last one twice where it has no other.
            let of_pair = [NUM_OUTPUTS * pair, NUM_OUTPUTS * pair + 1];
            of_pair.map(|output| *first_output + output.min(num_outputs - 1))
        };
        let num_pairs = num_outputs.div_ceil(NUM_OUTPUTS);
        for first_pair in (0..num_pairs).step_by(tile_pairs) {
            let tile = &mut tile[..tile_pairs.min(num_pairs - first_pair)];
            tile.fill(Sums::ZERO);
            for (chunk, x) in x.chunks_exact(num_rows).enumerate() {
                let Ok(x) = <&[Chunk; R]>::try_from(&x[first_row..first_row + R]) else { return };
                for (pair, of_pair) in tile.iter_mut().enumerate() {
                    let [left, right] = outputs_of(first_pair + pair);
                    let left = matrix.chunk::<B, G>(left, chunk * CHUNK_INPUTS, left_room);
                    let right = matrix.chunk::<B, G>(right, chunk * CHUNK_INPUTS, right_room);
                    let (mut next_pair, mut next_chunk) = (pair + PAIRS_AHEAD, chunk);
                    while next_pair >= tile_pairs {
                        next_chunk += 1;
                        next_pair -= tile_pairs;
                    }
                    while next_chunk >= num_chunks {
                        next_chunk -= num_chunks;
                        next_pair += tile_pairs;
                    }
                    let [left_ahead, right_ahead] = outputs_of(first_pair + next_pair);
                    let next_input = next_chunk * CHUNK_INPUTS;
                    let left_ahead = matrix.fetch::<B>(left_ahead, next_input);
                    let right_ahead = matrix.fetch::<B>(right_ahead, next_input);
                    let left_ahead = as_many(left_ahead, left.words);
                    let right_ahead = as_many(right_ahead, right.words);
                    let mut sums = [[I::splat(0.0); NUM_OUTPUTS]; R];
                    for row in 0..R {
                        for output in 0..NUM_OUTPUTS {
                            sums[row][output] = I::load(&of_pair.0[row][output]);
                        }
                    }
                    let pairs = left.pairs().zip(right.pairs());
                    let ahead = left_ahead.iter().zip(right_ahead);
                    for (index, ((left, right), (left_ahead, right_ahead))) in pairs.zip(ahead).enumerate() {
                        prefetch(left_ahead);
                        prefetch(right_ahead);
                        let numbers = [numbers_of::<B, G, P, I>(left), numbers_of::<B, G, P, I>(right)];
                        for half in 0..2 {
                            for row in 0..R {
                                let x = I::load(&x[row].0[2 * index + half]);
                                for output in 0..NUM_OUTPUTS {
                                    sums[row][output] =
                                        I::add_product(sums[row][output], x, numbers[output][half]);
                                }
                            }
                        }
                    }
                    for row in 0..R {
                        for output in 0..NUM_OUTPUTS {
                            I::store(sums[row][output], &mut of_pair.0[row][output]);
                        }
                    }
                }
            }
            for (pair, Sums(sums)) in tile.iter().enumerate() {
                let first = NUM_OUTPUTS * (first_pair + pair);
                let of_rows = y[first_row..first_row + R].chunks_mut(2).zip(sums.chunks(2));
                for (y, sums) in of_rows {
                    let ([a, b], [c, d]) = (&sums[0], sums.last().unwrap_or(&sums[0]));
                    let sums = I::sums_of_four([I::load(a), I::load(b), I::load(c), I::load(d)]);
                    for (y, sums) in y.iter_mut().zip(sums.as_chunks::<NUM_OUTPUTS>().0) {
                        // One by one: a copy of so few numbers is a call that takes longer.
                        match &mut y[first..(first + NUM_OUTPUTS).min(num_outputs)] {
                            [left, right] => [*left, *right] = *sums,
                            [left] => *left = sums[0],
                            _ => {}
                        }
                    }
                }
            }
        }
    }
}

/// Words to be fetched while as many others are made; other numbers of them are fetched here, and none is left to be.
#[inline(always)]
fn as_many<'a, const B: usize>(ahead: &'a [[u32; B]], made: &'a [[u32; B]]) -> &'a [[u32; B]] {
    if ahead.len() == made.len() {
        return ahead;
    }
    ahead.iter().for_each(|words| prefetch(words));
    made
}

/// Of R rows the sums of two outputs, lane by lane.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums<const R: usize>([[Lanes; NUM_OUTPUTS]; R]);

impl<const R: usize> Sums<R> {
    const ZERO: Self = Self([[[0.0; NUM_LANES]; NUM_OUTPUTS]; R]);
}
