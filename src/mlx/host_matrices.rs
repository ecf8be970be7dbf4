//! Matrices in host memory in the form that they are stored in, and arrays multiplied by them.
//!
//! Owns which arrays of numbers are such matrices, and which products with them the program's own loops make; the loops
//! are `packed_products`'s. What is quantised finds its own arrays, in `quantized`; other products are `products`'s.

use std::ops::Range;

use mlx_rs::{Array, Dtype};

use super::{
    error::Result,
    host::{all_made_by_host, made_by_host, zeros},
    packed_products::{self, Format, MIN_BLAS_ROWS, PackedMatrix, Product, RowChunks, Scales},
    sys,
};

/// Inputs that the loops take together, where there are no groups.
pub(super) const INPUTS_TOGETHER: usize = 32;

/// A matrix `(outputs, inputs)`, or E of them on top of each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostMatrices<'a> {
    all: PackedMatrix<'a>,
    /// Of one of them.
    num_outputs: usize,
}

impl<'a> HostMatrices<'a> {
    /// Matrices of so many outputs, in one.
    pub(super) fn new(all: PackedMatrix<'a>, num_outputs: usize) -> Self {
        Self { all, num_outputs }
    }

    /// Whether numbers of this type, of matrices with so many inputs, are such as [`Self::of_numbers`] takes.
    pub(super) fn takes(dtype: Dtype, num_inputs: usize) -> bool {
        // On a Mac's CPU the BLAS has instructions that loops cannot have.
        cfg!(target_os = "linux")
            && format_of(dtype).is_some()
            && num_inputs > 0
            && num_inputs.is_multiple_of(INPUTS_TOGETHER)
    }

    /// The transposes of `(inputs, outputs)` or `(E, inputs, outputs)`, which are computed first; `None` where their numbers
    /// are of another type, or in another order.
    pub(super) fn of_numbers(transposed: &'a Array) -> Result<Option<Self>> {
        let (num_matrices, sizes) = match *transposed.shape() {
            [inputs, outputs] => (1, [inputs, outputs]),
            [matrices, inputs, outputs] => (matrices as usize, [inputs, outputs]),
            _ => return Ok(None),
        };
        let [num_inputs, num_outputs] = sizes.map(|size| size as usize);
        let Some(format) = format_of(transposed.dtype()) else { return Ok(None) };
        if !Self::takes(transposed.dtype(), num_inputs) || transposed.size() == 0 {
            return Ok(None);
        }
        let Some((words, strides)) = sys::strided_words(transposed)? else { return Ok(None) };
        let in_order = [num_inputs * num_outputs, 1, num_inputs];
        let sizes = [num_matrices, num_inputs, num_outputs];
        let axes = sizes.iter().zip(in_order).rev().zip(strides.iter().rev());
        if axes.into_iter().any(|((&size, in_order), &stride)| size > 1 && stride != in_order) {
            return Ok(None);
        }
        let all = PackedMatrix {
            words,
            scales: Scales::Ones,
            biases: None,
            num_outputs: num_matrices * num_outputs,
            num_inputs,
            group_size: INPUTS_TOGETHER,
            format,
        };
        Ok(Some(Self { all, num_outputs }))
    }

    /// Some of the outputs of the only matrix.
    pub(super) fn part(&self, outputs: Range<usize>) -> Self {
        Self { num_outputs: outputs.len(), all: self.all.part(outputs) }
    }

    fn matrix(&self, index: usize) -> PackedMatrix<'a> {
        self.all.part(index * self.num_outputs..(index + 1) * self.num_outputs)
    }

    /// Rows `(…, inputs)` by one of the matrices, `(…, outputs)`; `None` where others multiply better.
    pub(super) fn multiply(&self, index: usize, x: &Array) -> Result<Option<Array>> {
        let matrix = Self { all: self.matrix(index), ..*self };
        if let Some(mut results) = Self::multiply_each(&[matrix], x)? {
            return Ok(results.pop());
        }
        #[cfg(target_os = "linux")]
        if matrix.are_rows(x) && !matrix.is_plain() {
            let multiply = |[x]: [&[f32]; 1], y: &mut [f32]| packed_products::multiply_many(x, matrix.all, y);
            return made_by_host([x], &matrix.shape_of_results(x), multiply).map(Some);
        }
        Ok(None)
    }

    /// Rows `(…, inputs)` by each of some matrices at once, `(…, outputs)` each; `None` where it is better to multiply by
    /// one after the other.
    pub(super) fn multiply_each(matrices: &[Self], x: &Array) -> Result<Option<Vec<Array>>> {
        let Some(num_rows) = matrices.first().map(|matrix| x.size() / matrix.all.num_inputs) else {
            return Ok(None);
        };
        // A single row a BLAS multiplies as fast as the matrix is read, where there is nothing to be made of it.
        let is_for_blas = |matrix: &Self| num_rows >= MIN_BLAS_ROWS || (num_rows == 1 && matrix.is_plain());
        if matrices.iter().any(|matrix| !matrix.are_rows(x) || is_for_blas(matrix)) {
            return Ok(None);
        }
        Self::multiply_groups(matrices, x, &[(0, num_rows)]).map(Some)
    }

    /// Rows of several groups by a matrix for each: `x`, `(…, inputs)` in float32, one group after the other, by the matrix
    /// `index` for each `(index, number of rows)`. One result `(…, outputs)` for each of the `stacks`, which have the same
    /// inputs.
    pub(super) fn multiply_groups(
        stacks: &[Self],
        x: &Array,
        groups: &[(usize, usize)],
    ) -> Result<Vec<Array>> {
        let results = stacks.iter().map(|stack| zeros(&stack.shape_of_results(x))).collect();
        all_made_by_host([x], results, |[mut x], results| {
            let Some(num_inputs) = stacks.first().map(|stack| stack.all.num_inputs) else { return };
            let of_group = |&(_, num_rows): &(usize, usize)| {
                let (of_group, others) = x.split_at(num_rows * num_inputs);
                x = others;
                RowChunks::new(of_group, num_inputs)
            };
            let rows: Vec<RowChunks> = groups.iter().map(of_group).collect();
            let mut products = Vec::with_capacity(stacks.len() * groups.len());
            for (stack, mut results) in stacks.iter().zip(results.iter_mut().map(|results| &mut **results)) {
                for (&(index, num_rows), x) in groups.iter().zip(&rows) {
                    let (y, others) = results.split_at_mut(num_rows * stack.num_outputs);
                    products.push(Product { matrix: stack.matrix(index), x, y });
                    results = others;
                }
            }
            packed_products::multiply(products);
        })
    }

    /// Whether these are rows for its matrices, and there are any.
    fn are_rows(&self, x: &Array) -> bool {
        let is_as_wide = x.shape().last().is_some_and(|&width| width as usize == self.all.num_inputs);
        x.dtype() == Dtype::Float32 && x.size() > 0 && is_as_wide
    }

    fn is_plain(&self) -> bool {
        self.all.format == Format::Float32
    }

    /// `(…, outputs)` for rows `(…, inputs)`.
    fn shape_of_results(&self, x: &Array) -> Vec<i32> {
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = self.num_outputs as i32;
        }
        shape
    }

    /// The numbers of one matrix, `(outputs, inputs)`, in float32.
    pub(super) fn numbers(&self, index: usize) -> Result<Array> {
        let matrix = self.matrix(index);
        let shape = [matrix.num_outputs, matrix.num_inputs].map(|size| size as i32);
        made_by_host([], &shape, |[], numbers| matrix.numbers_into(numbers))
    }

    /// The numbers of all matrices, in an array of this shape, in float32.
    pub(super) fn all_numbers(&self, shape: &[i32]) -> Result<Array> {
        made_by_host([], shape, |[], numbers| self.all.numbers_into(numbers))
    }

    /// The chosen rows of the only matrix as numbers in float32, `(rows, inputs)`; `None` where `indices` are not such as
    /// can be read, or there is no such row.
    pub(super) fn rows(&self, indices: &Array) -> Result<Option<Array>> {
        let indices = sys::in_order(indices)?;
        let Ok(indices) = indices.try_as_slice::<u32>() else { return Ok(None) };
        let all = self.all;
        if indices.iter().any(|&index| index as usize >= all.num_outputs) {
            return Ok(None);
        }
        let shape = [indices.len() as i32, all.num_inputs as i32];
        let rows = made_by_host([], &shape, |[], numbers| {
            for (&index, numbers) in indices.iter().zip(numbers.chunks_mut(all.num_inputs)) {
                all.part(index as usize..index as usize + 1).numbers_into(numbers);
            }
        })?;
        Ok(Some(rows))
    }
}

fn format_of(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::Bfloat16 => Some(Format::Bfloat16),
        Dtype::Float16 => Some(Format::Float16),
        Dtype::Float32 => Some(Format::Float32),
        _ => None,
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::mlx::{device::ComputeDevice, products::multiplied};

    fn array(shape: &[i32], seed: f32) -> Array {
        let size: i32 = shape.iter().product();
        let numbers: Vec<f32> = (0..size).map(|at| ((at as f32 + seed) * 0.61).sin()).collect();
        Array::from_slice(&numbers, shape)
    }

    fn numbers(array: &Array) -> Vec<f32> {
        array.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap().to_vec_exact().unwrap()
    }

    fn assert_near(found: &Array, expected: &Array, what: &str) {
        assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()), "{what}");
        for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
            let tolerance = 1e-4 + 1e-6 * expected.abs();
            assert!((found - expected).abs() < tolerance, "{what}: {found} {expected}");
        }
    }

    const TYPES: [Dtype; 3] = [Dtype::Bfloat16, Dtype::Float16, Dtype::Float32];

    /// Few rows and many, by all outputs and by some, as what is stored says when it is widened first.
    #[test]
    fn numbers_of_all_types_are_multiplied_as_they_are_stored() {
        for dtype in TYPES {
            for (outputs, inputs) in [(1, 32), (70, 64), (9, 96), (33, 1024)] {
                let stored = array(&[outputs, inputs], 0.3).as_dtype(dtype).unwrap();
                let widened = stored.as_dtype(Dtype::Float32).unwrap().t();
                for num_rows in [1, 2, 7, 63, 64, 150] {
                    let x = array(&[num_rows, inputs], 0.7);
                    let what = format!("{dtype:?} {outputs} {inputs} {num_rows}");
                    let expected = x.matmul(&widened).unwrap();
                    let found = multiplied(&x, &stored.t(), ComputeDevice::Cpu).unwrap();
                    assert_near(&found, &expected, &what);
                    if dtype != Dtype::Float32 {
                        let stored = stored.t();
                        let matrix = HostMatrices::of_numbers(&stored).unwrap().expect("it is one");
                        assert!(matrix.multiply(0, &x).unwrap().is_some(), "{what}: nobody widens it");
                    }
                    let (first, last) = (outputs as usize / 3, outputs as usize);
                    let part = sys::slice_axis(&stored.t(), 1, first, last).unwrap();
                    let found = multiplied(&x, &part, ComputeDevice::Cpu).unwrap();
                    assert_near(&found, &sys::slice_axis(&expected, 1, first, last).unwrap(), &what);
                }
            }
        }
    }

    #[test]
    fn rows_of_several_groups_are_multiplied_by_a_matrix_each() {
        let (num_matrices, outputs, inputs) = (5, 12, 64);
        let groups = [(3, 2), (0, 1), (4, 70)];
        let x = array(&[73, inputs], 0.2);
        for dtype in TYPES {
            let stored = array(&[num_matrices, outputs, inputs], 0.9).as_dtype(dtype).unwrap();
            let transposed = stored.swap_axes(1, 2).unwrap();
            let stack = HostMatrices::of_numbers(&transposed).unwrap().expect("they are such");
            let results = HostMatrices::multiply_groups(&[stack, stack], &x, &groups).unwrap();
            assert_eq!(numbers(&results[0]), numbers(&results[1]));
            let mut first = 0;
            for (index, num_rows) in groups {
                let rows = first..first + num_rows;
                first = rows.end;
                let x = sys::slice_axis(&x, 0, rows.start, rows.end).unwrap();
                let matrix = sys::slice_axis(&transposed, 0, index, index + 1).unwrap();
                let matrix = matrix.squeeze_axes(&[0]).unwrap().as_dtype(Dtype::Float32).unwrap();
                let found = sys::slice_axis(&results[0], 0, rows.start, rows.end).unwrap();
                assert_near(&found, &x.matmul(&matrix).unwrap(), &format!("{dtype:?} {index}"));
            }
        }
    }

    #[test]
    fn rows_are_looked_up_as_numbers() {
        let indices = Array::from_slice(&[6_u32, 0, 6, 2], &[4]);
        for dtype in TYPES {
            let stored = array(&[7, 96], 0.1).as_dtype(dtype).unwrap();
            let transposed = stored.t();
            let table = HostMatrices::of_numbers(&transposed).unwrap().expect("it is one");
            let expected = stored.take_axis(&indices, 0).unwrap().as_dtype(Dtype::Float32).unwrap();
            let found = table.rows(&indices).unwrap().expect("there are these rows");
            assert_eq!(numbers(&found), numbers(&expected));
            assert!(table.rows(&Array::from_slice(&[7_u32], &[1])).unwrap().is_none());
        }
    }

    /// What is laid out otherwise is multiplied all the same, by others.
    #[test]
    fn other_numbers_and_orders_are_left_to_others() {
        let wide = array(&[64, 64], 0.5).as_dtype(Dtype::Bfloat16).unwrap();
        let columns = sys::slice_axis(&wide, 1, 0, 32).unwrap().t();
        let odd = array(&[5, 33], 0.5).as_dtype(Dtype::Float16).unwrap().t();
        let whole = array(&[32, 4], 9.0).as_dtype(Dtype::Int32).unwrap();
        let by_turned = wide.clone();
        for transposed in [&columns, &odd, &whole, &by_turned, &array(&[32], 0.0)] {
            assert!(HostMatrices::of_numbers(transposed).unwrap().is_none(), "{:?}", transposed.shape());
        }
        for matrix in [columns, odd, by_turned] {
            let x = array(&[3, matrix.dim(0)], 0.8);
            let expected = x.matmul(matrix.as_dtype(Dtype::Float32).unwrap()).unwrap();
            assert_near(&multiplied(&x, &matrix, ComputeDevice::Cpu).unwrap(), &expected, "another order");
        }
    }
}
