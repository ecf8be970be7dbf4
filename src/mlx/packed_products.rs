//! Products with matrices in the form that they are stored in, on the CPU, and their numbers.
//!
//! Owns parting products among as many threads as there are cores, each some outputs at a time, and which loops take
//! those: `few_rows` or `tile`, or `tiles` with a BLAS. Of quantised matrices MLX's CPU backend takes each number apart anew
//! for each row, on one core; numbers made beforehand take up to eight times the memory, and as much time to be read. Where
//! packed words are and what they mean is for `decode` and `packing`; which arrays are such matrices is `host_matrices`'s.

mod decode;
mod few_rows;
mod packing;
#[cfg(test)]
mod tests;
mod tile;
#[cfg(target_os = "linux")]
mod tiles;

use std::{cmp::Reverse, marker::PhantomData, ops::Range};

use crate::mlx::sys::{
    InstructionSet, Instructions, Lanes, NUM_LANES, WideWork, even_parts, parts_of_rows, share_out, team_size,
};
use decode::{CHUNK_INPUTS, CHUNK_VECTORS, Room};
pub(super) use decode::{Format, PackedMatrix, Scales};
use packing::{PackedWork, Packing};

/// A chunk of one output or row, at the beginning of a cache line: vectors across two lines are read twice as slowly.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Chunk([Lanes; CHUNK_VECTORS]);

impl Chunk {
    const ZERO: Self = Self([[0.0; NUM_LANES]; CHUNK_VECTORS]);
}

/// Outputs that are taken together, at most.
const TILE_OUTPUTS: usize = 8;

/// Rows that are multiplied by a tile before the next one is made; their sums stay in the second cache.
const MAX_ROWS: usize = 64;

/// Numbers that a thread takes at once: long enough a stretch of memory to be read ahead in.
const PIECE_NUMBERS: usize = 1 << 17;

/// Numbers that another thread is asked for.
const THREAD_NUMBERS: usize = 1 << 17;

/// Rows from which on a BLAS makes up for numbers of a matrix being made first.
pub(super) const MIN_BLAS_ROWS: usize = 64;

/// Rows to be multiplied by the transpose of a matrix.
pub(super) struct Product<'a> {
    pub matrix: PackedMatrix<'a>,
    pub x: &'a RowChunks,
    /// `(n, outputs)`: what is written.
    pub y: &'a mut [f32],
}

/// Rows as products take them. Several matrices may be multiplied by the same.
pub(super) struct RowChunks {
    num_inputs: usize,
    num_rows: usize,
    /// At most [`MAX_ROWS`] together: of each chunk of inputs all rows.
    chunks: Vec<Vec<Chunk>>,
}

/// Some outputs of a product, the work that one thread takes at once.
struct Piece<'a> {
    matrix: PackedMatrix<'a>,
    x: &'a RowChunks,
    first_output: usize,
    /// Of each row the piece's outputs.
    y: Vec<&'a mut [f32]>,
}

/// Computes each product. What a row becomes depends on it and its matrix alone, bit by bit.
///
/// Panics where slices have not the sizes that their matrices state.
pub(super) fn multiply(products: Vec<Product<'_>>) {
    multiply_by(InstructionSet::widest(), products);
}

/// Multiplies many rows, `(n, inputs)`, by the transpose of a matrix; writes `(n, outputs)`.
///
/// Panics where slices have not the sizes that the matrix states.
#[cfg(target_os = "linux")]
pub(super) fn multiply_many(x: &[f32], matrix: PackedMatrix<'_>, y: &mut [f32]) {
    tiles::multiply(x, matrix, y);
}

fn multiply_by(instructions: InstructionSet, products: Vec<Product<'_>>) {
    let num_numbers: usize = products.iter().map(Product::num_numbers).sum();
    let mut pieces: Vec<_> = products.into_iter().flat_map(Product::into_pieces).collect();
    // Short ones last, whatever they are of, so that all threads come to an end together.
    pieces.sort_by_key(|piece| Reverse(piece.num_numbers()));
    let num_threads = (1 + num_numbers / THREAD_NUMBERS).min(pieces.len());
    // Where registers have no room for the sums of several rows.
    let tile = || (!instructions.has_room_for_sums()).then(tile::Tile::new);
    share_out(num_threads, pieces.into_iter(), tile, |tile, mut piece| {
        let matrix = piece.matrix;
        for (y, x) in piece.y.chunks_mut(MAX_ROWS).zip(&piece.x.chunks) {
            let rows = Rows { instructions, matrix: &matrix, first_output: piece.first_output, x, y };
            match tile {
                None => matrix.choose(few_rows::Multiply { rows }),
                Some(tile) => matrix.choose(tile::Multiply { rows, tile }),
            }
        }
    });
}

/// At most [`MAX_ROWS`] rows to be multiplied by some outputs.
struct Rows<'a, 'b> {
    instructions: InstructionSet,
    matrix: &'a PackedMatrix<'b>,
    first_output: usize,
    /// Of each chunk of inputs all rows.
    x: &'a [Chunk],
    /// Of each row the outputs.
    y: &'a mut [&'b mut [f32]],
}

impl Rows<'_, '_> {
    fn num_outputs(&self) -> usize {
        self.y[0].len()
    }
}

impl<'a> Product<'a> {
    /// Numbers to decode, or what takes as long.
    fn num_numbers(&self) -> usize {
        self.matrix.num_outputs * self.matrix.num_inputs * self.x.num_rows.div_ceil(4)
    }

    fn into_pieces(self) -> Vec<Piece<'a>> {
        let Self { matrix, x, y } = self;
        matrix.check();
        assert_eq!(x.num_inputs, matrix.num_inputs, "rows are as wide as the matrix");
        assert_eq!(y.len(), x.num_rows * matrix.num_outputs, "x and y have equally many rows");
        if y.is_empty() {
            return Vec::new();
        }
        let pieces = matrix.pieces();
        let parts = parts_of_rows(y, &pieces);
        let piece = |(outputs, y): (Range<usize>, _)| Piece { matrix, x, first_output: outputs.start, y };
        pieces.into_iter().zip(parts).map(piece).collect()
    }
}

impl Piece<'_> {
    fn num_numbers(&self) -> usize {
        self.y[0].len() * self.matrix.num_inputs
    }
}

impl RowChunks {
    /// Copies rows, `(n, inputs)`.
    ///
    /// Panics where they are no whole rows.
    pub(super) fn new(x: &[f32], num_inputs: usize) -> Self {
        assert!(num_inputs > 0 && x.len().is_multiple_of(num_inputs), "x is whole rows");
        let chunks = x.chunks(MAX_ROWS * num_inputs).map(|x| in_chunks(x, num_inputs)).collect();
        Self { num_inputs, num_rows: x.len() / num_inputs, chunks }
    }
}

/// Copies rows: of each chunk of inputs all rows, zeros behind the last inputs.
fn in_chunks(x: &[f32], num_inputs: usize) -> Vec<Chunk> {
    let num_chunks = num_inputs.div_ceil(CHUNK_INPUTS);
    let mut chunks = Vec::with_capacity(num_chunks * (x.len() / num_inputs));
    for first in (0..num_inputs).step_by(CHUNK_INPUTS) {
        for x in x.chunks_exact(num_inputs) {
            let x = &x[first..(first + CHUNK_INPUTS).min(num_inputs)];
            // Of what is whole nothing is filled beforehand.
            match <&[Lanes; CHUNK_VECTORS]>::try_from(x.as_chunks().0) {
                Ok(whole) => chunks.push(Chunk(*whole)),
                Err(_) => {
                    chunks.push(Chunk::ZERO);
                    if let Some(chunk) = chunks.last_mut() {
                        chunk.0.as_flattened_mut()[..x.len()].copy_from_slice(x);
                    }
                }
            }
        }
    }
    chunks
}

impl PackedMatrix<'_> {
    /// Writes the matrix's numbers, `(outputs, inputs)`, to `numbers`.
    ///
    /// Panics where slices have not the sizes that the matrix states.
    pub(super) fn numbers_into(&self, numbers: &mut [f32]) {
        self.numbers_by(InstructionSet::widest(), numbers);
    }

    fn numbers_by(&self, instructions: InstructionSet, numbers: &mut [f32]) {
        self.check();
        assert_eq!(numbers.len(), self.num_outputs * self.num_inputs, "there is room for all numbers");
        if numbers.is_empty() {
            return;
        }
        let num_outputs = self.outputs_of_piece();
        let num_threads = 1 + numbers.len() / THREAD_NUMBERS;
        let pieces = numbers.chunks_mut(num_outputs * self.num_inputs).enumerate();
        share_out(
            num_threads,
            pieces,
            || (),
            |(), (index, numbers)| {
                let first_output = index * num_outputs;
                self.choose(Decode { instructions, matrix: self, first_output, numbers });
            },
        );
    }

    /// Outputs that threads take at once: long stretches of memory first, as whoever begins with one waits for it, then
    /// shorter ones, and one for each thread at last, so that all come to an end together.
    fn pieces(&self) -> Vec<Range<usize>> {
        let of_size = |num_outputs: usize| num_outputs.next_multiple_of(TILE_OUTPUTS).max(TILE_OUTPUTS);
        let num_threads = team_size();
        let least = of_size(PIECE_NUMBERS / self.num_inputs);
        let (mut pieces, mut first) = (Vec::new(), 0);
        while self.num_outputs - first > 3 * num_threads * least / 2 {
            let size = of_size((self.num_outputs - first) / (2 * num_threads));
            pieces.push(first..first + size);
            first += size;
        }
        let last = of_size((self.num_outputs - first).div_ceil(num_threads));
        pieces.extend(
            even_parts(self.num_outputs - first, last)
                .into_iter()
                .map(|part| first + part.start..first + part.end),
        );
        pieces
    }

    /// Outputs that a thread takes at once: a long stretch of memory, but there are some for each thread.
    fn outputs_of_piece(&self) -> usize {
        let num_pieces = (self.num_outputs * self.num_inputs / PIECE_NUMBERS).max(team_size());
        self.num_outputs.div_ceil(num_pieces.max(1)).next_multiple_of(TILE_OUTPUTS).max(TILE_OUTPUTS)
    }
}

/// Writes the numbers of some outputs.
struct Decode<'a> {
    instructions: InstructionSet,
    matrix: &'a PackedMatrix<'a>,
    first_output: usize,
    numbers: &'a mut [f32],
}

impl PackedWork for Decode<'_> {
    fn run<const B: usize, const G: usize, P: Packing<B>>(self) {
        struct Wide<'a, const B: usize, const G: usize, P: Packing<B>>(Decode<'a>, PhantomData<P>);
        impl<const B: usize, const G: usize, P: Packing<B>> WideWork for Wide<'_, B, G, P> {
            #[inline(always)]
            fn run<I: Instructions>(self) {
                let Decode { matrix, first_output, numbers, .. } = self.0;
                let room = &mut Room::new();
                for (output, numbers) in numbers.chunks_mut(matrix.num_inputs).enumerate() {
                    let output = first_output + output;
                    for (chunk, numbers) in numbers.chunks_mut(CHUNK_INPUTS).enumerate() {
                        let (vectors, _) = numbers.as_chunks_mut();
                        let first_input = chunk * CHUNK_INPUTS;
                        let ahead = matrix.fetch::<B>(output + matrix.outputs_ahead(), first_input);
                        matrix.chunk::<B, G>(output, first_input, room).numbers_into::<P, I>(vectors, ahead);
                    }
                }
            }
        }
        self.instructions.run(Wide::<B, G, P>(self, PhantomData));
    }
}
