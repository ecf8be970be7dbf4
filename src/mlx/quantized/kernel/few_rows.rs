//! Products of a few rows, by numbers that are multiplied as they are made.
//!
//! Owns the loop that has the sums of two outputs and all rows in registers: it takes the matrix's words at the speed of
//! memory, and nothing is written but the sums. More rows are `tile`'s.

use std::marker::PhantomData;

use super::{
    CHUNK_INPUTS, Chunk, Rows,
    decode::{Room, numbers_of},
    packing::{PackedWork, Packing},
};
use crate::mlx::sys::{Instructions, NUM_LANES, WideWork};

/// Rows that are multiplied at once, at most.
const MAX_ROWS_AT_ONCE: usize = 8;

/// Outputs that are multiplied at once.
const NUM_OUTPUTS: usize = 2;

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
    fn run<I: Instructions>(self) {
        let (rows, first_row) = self.0;
        let Rows { matrix, first_output, x, y, .. } = rows;
        let (num_rows, num_outputs) = (y.len(), y[0].len());
        let (left_room, right_room) = (&mut Room::new(), &mut Room::new());
        let outputs_ahead = matrix.outputs_ahead().next_multiple_of(NUM_OUTPUTS);
        for output in (0..num_outputs).step_by(NUM_OUTPUTS) {
            // The last one twice where it has no other.
            let outputs = [output, (output + 1).min(num_outputs - 1)].map(|output| *first_output + output);
            let mut sums = [[I::splat(0.0); NUM_OUTPUTS]; R];
            for (chunk, x) in x.chunks_exact(num_rows).enumerate() {
                let first_input = chunk * CHUNK_INPUTS;
                let Ok(x) = <&[Chunk; R]>::try_from(&x[first_row..first_row + R]) else { return };
                let left = matrix.chunk::<B, G>(outputs[0], first_input, left_room);
                let right = matrix.chunk::<B, G>(outputs[1], first_input, right_room);
                let left_ahead = matrix.prefetch::<B, I>(outputs[0] + outputs_ahead, first_input);
                let right_ahead = matrix.prefetch::<B, I>(outputs[1] + outputs_ahead, first_input);
                let pairs = left.pairs().zip(right.pairs());
                let ahead = left_ahead.iter().zip(right_ahead);
                for (pair, ((left, right), (left_ahead, right_ahead))) in pairs.zip(ahead).enumerate() {
                    I::prefetch(left_ahead);
                    I::prefetch(right_ahead);
                    let numbers = [numbers_of::<B, G, P, I>(left), numbers_of::<B, G, P, I>(right)];
                    // By index: the compiler keeps sums in registers then.
                    for half in 0..2 {
                        for row in 0..R {
                            let x = I::load(&x[row].0[2 * pair + half]);
                            for output in 0..NUM_OUTPUTS {
                                sums[row][output] =
                                    I::add_product(sums[row][output], x, numbers[output][half]);
                            }
                        }
                    }
                }
            }
            let mut lanes = [[[0.0; NUM_LANES]; NUM_OUTPUTS]; R];
            for row in 0..R {
                for output in 0..NUM_OUTPUTS {
                    I::store(sums[row][output], &mut lanes[row][output]);
                }
            }
            let of_outputs = output..(output + NUM_OUTPUTS).min(num_outputs);
            let (pairs, last) = lanes.as_chunks::<2>();
            let mut y = y[first_row..first_row + R].iter_mut();
            for [[a, b], [c, d]] in pairs.iter().chain(last.first().map(|last| [*last; 2]).as_ref()) {
                let sums = I::sums_of_four([I::load(a), I::load(b), I::load(c), I::load(d)]);
                for (y, sums) in y.by_ref().take(2).zip(sums.as_chunks::<NUM_OUTPUTS>().0) {
                    let y = &mut y[of_outputs.clone()];
                    y.copy_from_slice(&sums[..y.len()]);
                }
            }
        }
    }
}
