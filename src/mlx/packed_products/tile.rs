//! Products of several rows, by numbers that are made once for all of them.
//!
//! Owns loops that have a few outputs at a time made into the first cache and multiply all rows by them, for instructions
//! whose registers have no room for the sums of several rows. Where they have, `few_rows` does it.

use std::marker::PhantomData;

use super::{
    CHUNK_INPUTS, CHUNK_VECTORS, Chunk, Rows, TILE_OUTPUTS,
    decode::Room,
    packing::{PackedWork, Packing},
};
use crate::mlx::sys::{Instructions, Lanes, NUM_LANES, WideWork};

/// Outputs whose sums of a row are in registers at once.
const GROUP_OUTPUTS: usize = 4;

const TILE_GROUPS: usize = TILE_OUTPUTS / GROUP_OUTPUTS;

/// What a thread works with.
pub(super) struct Tile {
    /// Numbers of each output: with their chunks they take half of the first cache.
    numbers: [Chunk; TILE_OUTPUTS],
    sums: Vec<Sums>,
}

impl Tile {
    pub(super) fn new() -> Self {
        Self { numbers: [Chunk::ZERO; TILE_OUTPUTS], sums: Vec::new() }
    }
}

/// Of a row the outputs' sums, lane by lane.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([[Lanes; GROUP_OUTPUTS]; TILE_GROUPS]);

impl Sums {
    const ZERO: Self = Self([[[0.0; NUM_LANES]; GROUP_OUTPUTS]; TILE_GROUPS]);
}

/// Computes them.
pub(super) struct Multiply<'a, 'b, 'c> {
    pub(super) rows: Rows<'a, 'b>,
    pub(super) tile: &'c mut Tile,
}

impl PackedWork for Multiply<'_, '_, '_> {
    fn run<const B: usize, const G: usize, P: Packing<B>>(self) {
        let Self { mut rows, tile } = self;
        let set = rows.instructions;
        let (num_rows, num_outputs) = (rows.y.len(), rows.num_outputs());
        for first in (0..num_outputs).step_by(TILE_OUTPUTS) {
            tile.sums.clear();
            tile.sums.resize(num_rows, Sums::ZERO);
            for (chunk, x) in rows.x.chunks_exact(num_rows).enumerate() {
                let place = (first, chunk * CHUNK_INPUTS);
                set.run(Make::<B, G, P> { rows: &rows, place, tile, packing: PhantomData });
                let num_inputs = (rows.matrix.num_inputs - place.1).min(CHUNK_INPUTS);
                set.run(AddProducts { tile, num_vectors: num_inputs / NUM_LANES, x });
            }
            set.run(SumUp { rows: &mut rows, first, tile });
        }
    }
}

/// Makes the numbers of a chunk of inputs.
struct Make<'a, 'b, 'c, const B: usize, const G: usize, P: Packing<B>> {
    rows: &'a Rows<'b, 'c>,
    /// The first of the outputs and the first input.
    place: (usize, usize),
    tile: &'a mut Tile,
    packing: PhantomData<P>,
}

impl<const B: usize, const G: usize, P: Packing<B>> WideWork for Make<'_, '_, '_, B, G, P> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Self { rows: Rows { matrix, first_output, .. }, place: (first, first_input), tile, .. } = self;
        let num_vectors = (matrix.num_inputs - first_input).min(CHUNK_INPUTS) / NUM_LANES;
        let next_input = first_input + CHUNK_INPUTS;
        let (outputs_ahead, next_input) =
            if next_input < matrix.num_inputs { (0, next_input) } else { (TILE_OUTPUTS, 0) };
        let num_outputs = (self.rows.num_outputs() - first).min(TILE_OUTPUTS);
        let room = &mut Room::new();
        for (index, numbers) in tile.numbers[..num_outputs].iter_mut().enumerate() {
            let output = first_output + first + index;
            let ahead = matrix.fetch::<B>(output + outputs_ahead, next_input);
            let numbers = &mut numbers.0[..num_vectors];
            matrix.chunk::<B, G>(output, first_input, room).numbers_into::<P, I>(numbers, ahead);
        }
    }
}

/// Adds the products of rows with a chunk's numbers to the rows' sums, four outputs at a time.
struct AddProducts<'a> {
    tile: &'a mut Tile,
    num_vectors: usize,
    x: &'a [Chunk],
}

impl WideWork for AddProducts<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Self { tile: Tile { numbers, sums }, num_vectors, x } = self;
        assert!(num_vectors <= CHUNK_VECTORS, "vectors are within the chunk");
        for (sums, x) in sums.iter_mut().zip(x) {
            for (sums, numbers) in sums.0.iter_mut().zip(numbers.as_chunks::<GROUP_OUTPUTS>().0) {
                let mut of_group = [I::splat(0.0); GROUP_OUTPUTS];
                for output in 0..GROUP_OUTPUTS {
                    of_group[output] = I::load(&sums[output]);
                }
                for vector in 0..num_vectors {
                    let x = I::load(&x.0[vector]);
                    for output in 0..GROUP_OUTPUTS {
                        let number = I::load(&numbers[output].0[vector]);
                        of_group[output] = I::add_product(of_group[output], x, number);
                    }
                }
                for output in 0..GROUP_OUTPUTS {
                    I::store(of_group[output], &mut sums[output]);
                }
            }
        }
    }
}

/// Writes the sums over all lanes.
struct SumUp<'a, 'b, 'c> {
    rows: &'a mut Rows<'b, 'c>,
    first: usize,
    tile: &'a Tile,
}

impl WideWork for SumUp<'_, '_, '_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        for (y, sums) in self.rows.y.iter_mut().zip(&self.tile.sums) {
            let last = y.len().min(self.first + TILE_OUTPUTS);
            for (y, sums) in y[self.first..last].chunks_mut(GROUP_OUTPUTS).zip(&sums.0) {
                y.copy_from_slice(&I::sums_of_four(sums.each_ref().map(I::load))[..y.len()]);
            }
        }
    }
}
