//! Products of many rows with packed matrices, on a Linux CPU.
//!
//! Owns having the numbers of some outputs at a time made and multiplied by the BLAS, each thread with numbers of its
//! own: there never are those of the whole matrix, which would be made in memory and read from there. Few rows are
//! multiplied by packed numbers as they are.

use std::cell::RefCell;

use super::PackedMatrix;
use crate::mlx::sys::{self, COLUMNS_TOGETHER, even_parts, parts_of_rows, share_out, team_size};

/// Numbers of a tile: for larger ones the second cache is too small, for smaller ones the BLAS packs the rows too often.
const MAX_TILE_NUMBERS: usize = 1 << 20;

thread_local! {
    /// A tile's numbers, kept from product to product: new memory is slower to come by than to fill.
    static NUMBERS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Multiplies rows, `(n, inputs)`, by the transpose of a matrix; writes `(n, outputs)`.
///
/// Panics where slices have not the sizes that the matrix states.
pub(super) fn multiply(x: &[f32], matrix: PackedMatrix<'_>, y: &mut [f32]) {
    let num_threads = team_size();
    let num_outputs = (MAX_TILE_NUMBERS / matrix.num_inputs.max(1))
        .min(matrix.num_outputs.div_ceil(num_threads))
        .max(1)
        .next_multiple_of(COLUMNS_TOGETHER);
    let tiles = even_parts(matrix.num_outputs, num_outputs);
    let parts = parts_of_rows(y, &tiles);
    let num_tiles = tiles.len();
    let tiles = tiles.into_iter().zip(parts).map(|(outputs, y)| (matrix.part(outputs), y));
    share_out(
        num_threads.min(num_tiles),
        tiles,
        || (),
        |(), (matrix, mut y)| {
            NUMBERS.with_borrow_mut(|numbers| {
                let size = matrix.num_outputs * matrix.num_inputs;
                if numbers.len() < size {
                    numbers.resize(size, 0.0);
                }
                let numbers = &mut numbers[..size];
                matrix.numbers_into(numbers);
                let shape = (matrix.num_inputs, matrix.num_outputs);
                sys::multiply_rows_into_parts(x, (numbers, shape, (1, matrix.num_inputs)), &mut y);
            });
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx::packed_products::{self, Format, Product, RowChunks, Scales};

    #[test]
    fn many_rows_become_what_few_become() {
        for (num_outputs, num_inputs, num_rows) in
            [(1, 32, 64), (5, 96, 65), (17, 928, 200), (700, 2080, 70), (3, (1 << 20) + 32, 2)]
        {
            let noise = |count: usize, seed: u32| -> Vec<u32> {
                let next = |at: usize| (at as u32 + seed).wrapping_mul(0x9e37_79b9).rotate_left(13);
                (0..count).map(|at| next(at).wrapping_mul(0x85eb_ca6b)).collect()
            };
            let numbers = |count: usize, seed: u32| -> Vec<f32> {
                noise(count, seed)
                    .into_iter()
                    .map(|bits| (bits >> 8) as f32 / (1 << 24) as f32 - 0.5)
                    .collect()
            };
            let num_groups = num_outputs * num_inputs / 32;
            let (words, scales, biases) =
                (noise(num_groups * 5, 1), numbers(num_groups, 2), numbers(num_groups, 3));
            let matrix = PackedMatrix {
                words: &words,
                scales: Scales::Numbers(&scales),
                biases: Some(&biases),
                num_outputs,
                num_inputs,
                group_size: 32,
                format: Format::Affine { bits: 5 },
            };
            let x = numbers(num_rows * num_inputs, 4);
            let mut y = vec![f32::NAN; num_rows * num_outputs];
            multiply(&x, matrix, &mut y);
            let mut expected = y.clone();
            let x = RowChunks::new(&x, num_inputs);
            packed_products::multiply(vec![Product { matrix, x: &x, y: &mut expected }]);
            let tolerance = 1e-4 * (num_inputs as f32).sqrt();
            for (index, (found, expected)) in y.iter().zip(expected).enumerate() {
                assert!((found - expected).abs() < tolerance, "{num_outputs} {index}: {found} {expected}");
            }
        }
    }
}
