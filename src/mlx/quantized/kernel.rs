//! Products with quantised matrices on the CPU, and their numbers.
//!
//! Owns loops over slices that have a few outputs at a time decoded into the first cache and multiply all rows by them,
//! on as many threads as there are cores. MLX's CPU backend takes each number apart anew for each row, on one core;
//! numbers made beforehand take eight times the memory. What packed words mean is `decode`'s; which products come here
//! rather than to a BLAS is for `quantized` and `experts`.

mod decode;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use crate::mlx::sys::{Instructions, Lanes, NUM_LANES, WideWork, do_with_wide_vectors, on_team};
use decode::{CHUNK_INPUTS, CHUNK_VECTORS};
pub(in crate::mlx) use decode::{Format, QuantizedRows, Scales};

/// A chunk of one output or row, at the beginning of a cache line: vectors across two lines are read twice as slowly.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Chunk([Lanes; CHUNK_VECTORS]);

impl Chunk {
    const ZERO: Self = Self([[0.0; NUM_LANES]; CHUNK_VECTORS]);
}

/// Outputs whose sums are in registers at once, for as many rows.
const GROUP_OUTPUTS: usize = 4;

const TILE_GROUPS: usize = 2;

/// Outputs that are decoded before they are multiplied: with their chunks they take half of the first cache.
const TILE_OUTPUTS: usize = TILE_GROUPS * GROUP_OUTPUTS;

/// Vectors of products that are summed up before the sum is added to that of the row.
const BLOCK_VECTORS: usize = 8;

/// Rows that are multiplied by decoded numbers before the next ones are decoded; their sums stay in the second cache.
const MAX_ROWS: usize = 64;

/// Numbers that a thread takes at once.
const PIECE_NUMBERS: usize = 1 << 15;

/// Numbers that another thread is asked for.
const THREAD_NUMBERS: usize = 1 << 17;

/// Rows to be multiplied by the transpose of a matrix.
#[derive(Debug)]
pub(in crate::mlx) struct Product<'a> {
    pub(in crate::mlx) matrix: QuantizedRows<'a>,
    /// `(n, inputs)`.
    pub(in crate::mlx) x: &'a [f32],
    /// `(n, outputs)`: what is written.
    pub(in crate::mlx) y: &'a mut [f32],
}

/// Some outputs of a product, the work that one thread takes at once.
struct Piece<'a> {
    matrix: QuantizedRows<'a>,
    /// The product's rows, at most [`MAX_ROWS`] together: of each chunk of inputs all rows.
    x: Arc<[Vec<Chunk>]>,
    first_output: usize,
    /// Of each row the piece's outputs.
    y: Vec<&'a mut [f32]>,
}

/// Computes each product. What a row becomes depends on it and its matrix alone, bit by bit.
///
/// Panics where slices have not the sizes that their matrices state.
pub(in crate::mlx) fn multiply(products: Vec<Product<'_>>) {
    let num_numbers: usize = products.iter().map(Product::num_numbers).sum();
    let pieces: Vec<_> = products.into_iter().flat_map(Product::into_pieces).collect();
    let num_threads = (1 + num_numbers / THREAD_NUMBERS).min(pieces.len());
    let pieces = Mutex::new(pieces.into_iter());
    on_team(num_threads, || {
        let mut tile = Tile::new();
        while let Some(mut piece) = next(&pieces) {
            let (piece, tile) = (&mut piece, &mut tile);
            do_with_wide_vectors(Multiply { piece, tile });
        }
    });
}

impl<'a> Product<'a> {
    fn num_rows(&self) -> usize {
        self.y.len().checked_div(self.matrix.num_outputs).unwrap_or(0)
    }

    /// Numbers to decode, or what takes as long.
    fn num_numbers(&self) -> usize {
        self.matrix.num_outputs * self.matrix.num_inputs * self.num_rows().div_ceil(4)
    }

    fn into_pieces(self) -> Vec<Piece<'a>> {
        let num_rows = self.num_rows();
        let Self { matrix, x, y } = self;
        matrix.check();
        assert_eq!(y.len(), num_rows * matrix.num_outputs, "y is whole rows");
        assert_eq!(x.len(), num_rows * matrix.num_inputs, "x and y have equally many rows");
        if num_rows == 0 {
            return Vec::new();
        }
        let x: Arc<[Vec<Chunk>]> =
            x.chunks(MAX_ROWS * matrix.num_inputs).map(|x| in_chunks(x, matrix.num_inputs)).collect();
        let num_outputs = matrix.outputs_of_piece();
        let firsts = (0..matrix.num_outputs).step_by(num_outputs);
        firsts
            .zip(parts_of_rows(y, matrix.num_outputs, num_outputs))
            .map(|(first_output, y)| Piece { matrix, x: Arc::clone(&x), first_output, y })
            .collect()
    }
}

/// Parts of so many outputs, of each part all rows.
pub(super) fn parts_of_rows(
    y: &mut [f32],
    num_outputs: usize,
    outputs_of_part: usize,
) -> Vec<Vec<&mut [f32]>> {
    let num_rows = y.len() / num_outputs.max(1);
    let mut parts = Vec::new();
    parts.resize_with(num_outputs.div_ceil(outputs_of_part), || Vec::with_capacity(num_rows));
    for row in y.chunks_mut(num_outputs.max(1)) {
        for (part, outputs) in parts.iter_mut().zip(row.chunks_mut(outputs_of_part)) {
            part.push(outputs);
        }
    }
    parts
}

/// Copies rows: of each chunk of inputs all rows, zeros behind the last inputs.
fn in_chunks(x: &[f32], num_inputs: usize) -> Vec<Chunk> {
    let num_rows = x.len() / num_inputs;
    let mut chunks = vec![Chunk::ZERO; num_inputs.div_ceil(CHUNK_INPUTS) * num_rows];
    for (row, x) in x.chunks_exact(num_inputs).enumerate() {
        for (chunks, x) in chunks.chunks_exact_mut(num_rows).zip(x.chunks(CHUNK_INPUTS)) {
            chunks[row].0.as_flattened_mut()[..x.len()].copy_from_slice(x);
        }
    }
    chunks
}

pub(super) fn next<T>(items: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    items.lock().unwrap_or_else(PoisonError::into_inner).next()
}

impl QuantizedRows<'_> {
    /// Writes the matrix's numbers, `(outputs, inputs)`, to `numbers`.
    ///
    /// Panics where slices have not the sizes that the matrix states.
    pub(in crate::mlx) fn numbers_into(&self, numbers: &mut [f32]) {
        self.check();
        assert_eq!(numbers.len(), self.num_outputs * self.num_inputs, "there is room for all numbers");
        if numbers.is_empty() {
            return;
        }
        let num_outputs = self.outputs_of_piece();
        let num_threads = 1 + numbers.len() / THREAD_NUMBERS;
        let pieces = Mutex::new(numbers.chunks_mut(num_outputs * self.num_inputs).enumerate());
        on_team(num_threads, || {
            while let Some((index, numbers)) = next(&pieces) {
                let first_output = index * num_outputs;
                do_with_wide_vectors(Decode { matrix: self, first_output, numbers });
            }
        });
    }

    fn outputs_of_piece(&self) -> usize {
        (PIECE_NUMBERS / self.num_inputs.max(1)).next_multiple_of(TILE_OUTPUTS).max(TILE_OUTPUTS)
    }
}

/// Writes the numbers of some outputs.
struct Decode<'a> {
    matrix: &'a QuantizedRows<'a>,
    first_output: usize,
    numbers: &'a mut [f32],
}

impl WideWork for Decode<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        for (output, numbers) in self.numbers.chunks_mut(self.matrix.num_inputs).enumerate() {
            for (chunk, numbers) in numbers.chunks_mut(CHUNK_INPUTS).enumerate() {
                let (vectors, _) = numbers.as_chunks_mut();
                self.matrix.decode::<I>(self.first_output + output, chunk * CHUNK_INPUTS, vectors);
            }
        }
    }
}

/// What a thread works with.
struct Tile {
    /// Decoded numbers of each output.
    numbers: [Chunk; TILE_OUTPUTS],
    sums: Vec<Sums>,
}

impl Tile {
    fn new() -> Self {
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

/// Computes a piece.
struct Multiply<'a, 'b> {
    piece: &'a mut Piece<'b>,
    tile: &'a mut Tile,
}

impl WideWork for Multiply<'_, '_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Self { piece: Piece { matrix, x, first_output, y }, tile } = self;
        for (y, x) in y.chunks_mut(MAX_ROWS).zip(x.iter()) {
            let num_outputs = y[0].len();
            for first in (0..num_outputs).step_by(TILE_OUTPUTS) {
                let outputs = first..(first + TILE_OUTPUTS).min(num_outputs);
                tile.sums.clear();
                tile.sums.resize(y.len(), Sums::ZERO);
                for (chunk, x) in x.chunks_exact(y.len()).enumerate() {
                    let first_input = chunk * CHUNK_INPUTS;
                    let num_vectors = (matrix.num_inputs - first_input).min(CHUNK_INPUTS) / NUM_LANES;
                    let num_blocks = num_vectors.div_ceil(BLOCK_VECTORS);
                    for (numbers, output) in tile.numbers.iter_mut().zip(outputs.clone()) {
                        let (numbers, rest) = numbers.0.split_at_mut(num_vectors);
                        matrix.decode::<I>(*first_output + output, first_input, numbers);
                        rest.fill([0.0; NUM_LANES]);
                    }
                    let num_in_fours = if I::HAS_MANY_REGISTERS { x.len() / 4 * 4 } else { 0 };
                    let (fours, rest) = tile.sums.split_at_mut(num_in_fours);
                    let (x_fours, x_rest) = x.split_at(num_in_fours);
                    for (sums, x) in fours.as_chunks_mut::<4>().0.iter_mut().zip(x_fours.as_chunks::<4>().0) {
                        add_products::<4, I>(&tile.numbers, num_blocks, x, sums);
                    }
                    let (twos, rest) = rest.as_chunks_mut::<2>();
                    let (x_twos, x_rest) = x_rest.as_chunks::<2>();
                    for (sums, x) in twos.iter_mut().zip(x_twos) {
                        add_products::<2, I>(&tile.numbers, num_blocks, x, sums);
                    }
                    let (ones, _) = rest.as_chunks_mut::<1>();
                    let (x_ones, _) = x_rest.as_chunks::<1>();
                    for (sums, x) in ones.iter_mut().zip(x_ones) {
                        add_products::<1, I>(&tile.numbers, num_blocks, x, sums);
                    }
                }
                for (y, sums) in y.iter_mut().zip(&tile.sums) {
                    for (y, sums) in y[outputs.clone()].chunks_mut(GROUP_OUTPUTS).zip(&sums.0) {
                        match <&mut [f32; GROUP_OUTPUTS]>::try_from(&mut *y) {
                            Ok(y) => *y = I::sums_of_four(sums),
                            Err(_) => y.copy_from_slice(&I::sums_of_four(sums)[..y.len()]),
                        }
                    }
                }
            }
        }
    }
}

/// Adds the products of R rows' chunks with the outputs' to the rows' sums, four outputs at a time: the sums of four rows
/// are as many as registers hold beside what is multiplied, where there are 32.
#[inline(always)]
fn add_products<const R: usize, I: Instructions>(
    numbers: &[Chunk; TILE_OUTPUTS],
    num_blocks: usize,
    x: &[Chunk; R],
    sums: &mut [Sums; R],
) {
    for (group, numbers) in numbers.as_chunks::<GROUP_OUTPUTS>().0.iter().enumerate() {
        let mut of_group = sums.each_ref().map(|sums| sums.0[group]);
        for block in 0..num_blocks {
            let numbers = numbers.each_ref().map(|chunk| &chunk.0.as_chunks::<BLOCK_VECTORS>().0[block]);
            let x = x.each_ref().map(|chunk| &chunk.0.as_chunks::<BLOCK_VECTORS>().0[block]);
            // Lane by lane, so that the compiler takes all lanes at once.
            for lane in 0..NUM_LANES {
                let mut products = [[0.0; GROUP_OUTPUTS]; R];
                for vector in 0..BLOCK_VECTORS {
                    for (products, x) in products.iter_mut().zip(x) {
                        for (product, numbers) in products.iter_mut().zip(numbers) {
                            *product = I::multiply_add(numbers[vector][lane], x[vector][lane], *product);
                        }
                    }
                }
                for (sums, products) in of_group.iter_mut().zip(products) {
                    for (sum, product) in sums.iter_mut().zip(products) {
                        sum[lane] += product;
                    }
                }
            }
        }
        for (sums, of_group) in sums.iter_mut().zip(of_group) {
            sums.0[group] = of_group;
        }
    }
}
