//! Products that are handed to the BLAS as `gemm` has it, and what OpenBLAS tells and is told.
//!
//! Owns checking that slices are as large as a BLAS takes them to be.

use super::gemm;

/// Numbers of a matrix `(inputs, outputs)` from its first to its last, its size along the two axes, and how far
/// neighbours along each lie apart.
pub(in crate::mlx) type StridedMatrix<'a> = (&'a [f32], (usize, usize), (usize, usize));

/// Whether [`multiply_rows`] takes a matrix: along one of its axes neighbours lie side by side, and it is not so large
/// that a BLAS could not count it.
pub(in crate::mlx) fn is_for_blas(matrix: StridedMatrix<'_>) -> bool {
    BlasMatrix::of(matrix).is_some()
}

/// Rows `(n, inputs)` times a matrix, `(n, outputs)`, which are added to the results where `adds`.
///
/// Panics where the matrix is not for a BLAS, or there are not as many results as rows.
pub(in crate::mlx) fn multiply_rows(
    rows: &[f32],
    matrix: StridedMatrix<'_>,
    adds: bool,
    results: &mut [f32],
) {
    let num_outputs = matrix.1.1;
    let num_rows = results.len() / num_outputs.max(1);
    assert_eq!(results.len(), num_rows * num_outputs, "whole rows of results");
    // SAFETY: so many rows of results there are, one right after the other.
    unsafe { multiply_to(rows, matrix, adds, (results.as_mut_ptr(), num_rows, num_outputs)) }
}

/// The same into parts of rows, which lie as far from one another as the rows of one matrix.
///
/// Panics where they do not, where the matrix is not for a BLAS, or there are not as many parts as rows.
pub(in crate::mlx) fn multiply_rows_into_parts(
    rows: &[f32],
    matrix: StridedMatrix<'_>,
    parts: &mut [&mut [f32]],
) {
    let num_outputs = matrix.1.1;
    let addresses: Vec<*mut f32> = parts.iter_mut().map(|part| part.as_mut_ptr()).collect();
    let distance = |from: *mut f32, to: *mut f32| {
        (to as usize).checked_sub(from as usize).map(|num_bytes| num_bytes / size_of::<f32>())
    };
    let step = match addresses.as_slice() {
        [] => return,
        [_] => num_outputs,
        [first, second, ..] => distance(*first, *second).expect("parts follow one another"),
    };
    assert!(
        addresses.windows(2).all(|pair| distance(pair[0], pair[1]) == Some(step)),
        "parts of the rows of one matrix"
    );
    assert!(step >= num_outputs && parts.iter().all(|part| part.len() == num_outputs), "a result each");
    // SAFETY: each part is borrowed, as long as was asserted, and where it was asserted to be.
    unsafe { multiply_to(rows, matrix, false, (addresses[0], addresses.len(), step)) }
}

/// Panics where the matrix is not for a BLAS, or there are not so many rows.
///
/// # Safety
///
/// There are so many rows of results from the address on, so far from one another, of as many numbers as the matrix
/// has outputs.
unsafe fn multiply_to(
    rows: &[f32],
    matrix: StridedMatrix<'_>,
    adds: bool,
    (results, num_rows, step): (*mut f32, usize, usize),
) {
    let matrix = BlasMatrix::of(matrix).expect("the caller's matrix is for a BLAS");
    let inputs = matrix.num_inputs;
    assert_eq!(rows.len(), num_rows * inputs as usize, "whole rows, and as many as results");
    let transpose = if matrix.is_by_output { gemm::TRANSPOSED } else { gemm::PLAIN };
    let num_rows = i32::try_from(num_rows).expect("a pass has fewer rows");
    let step = i32::try_from(step).expect("a matrix of results has fewer columns");
    let beta = if adds { 1.0 } else { 0.0 };
    // SAFETY: rows are as many as was asserted, the matrix is as was checked when it was made.
    unsafe {
        gemm::cblas_sgemm(
            gemm::ROW_MAJOR,
            gemm::PLAIN,
            transpose,
            num_rows,
            matrix.num_outputs,
            inputs,
            1.0,
            rows.as_ptr(),
            inputs,
            matrix.numbers.as_ptr(),
            matrix.step,
            beta,
            results,
            step,
        );
    }
}

/// A matrix as a BLAS takes it.
#[derive(Debug, Clone, Copy)]
struct BlasMatrix<'a> {
    numbers: &'a [f32],
    num_inputs: i32,
    num_outputs: i32,
    /// Whether an output's numbers lie side by side, otherwise an input's do.
    is_by_output: bool,
    /// From one of these rows in memory to the next.
    step: i32,
}

impl<'a> BlasMatrix<'a> {
    fn of(
        (numbers, (num_inputs, num_outputs), (input_step, output_step)): StridedMatrix<'a>,
    ) -> Option<Self> {
        let is_by_output = input_step == 1 || num_inputs == 1;
        let (width, num_rows, step) = match is_by_output {
            true => (num_inputs, num_outputs, output_step),
            false => (num_outputs, num_inputs, input_step),
        };
        if !is_by_output && output_step != 1 && num_outputs != 1 {
            return None;
        }
        // With one row it is any number.
        let step = if num_rows == 1 { width } else { step };
        let needed = num_rows.checked_sub(1)?.checked_mul(step)?.checked_add(width)?;
        if width == 0 || step < width || numbers.len() < needed {
            return None;
        }
        let [num_inputs, num_outputs, step] =
            [num_inputs, num_outputs, step].map(|number| i32::try_from(number).ok());
        Some(Self { numbers, num_inputs: num_inputs?, num_outputs: num_outputs?, is_by_output, step: step? })
    }
}

/// File of the shared library that serves `symbol` to this process, if it is loaded.
pub(in crate::mlx) fn library_of(symbol: &std::ffi::CStr) -> Option<String> {
    // SAFETY: `dlsym` gets a NUL-terminated name, `dladdr` an address from it; the file name it
    // returns lives as long as the library is loaded.
    unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr());
        if address.is_null() {
            return None;
        }
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(std::ffi::CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned())
    }
}

/// The kernels that OpenBLAS uses, by the name it has for them; `None` where it is not loaded.
pub(in crate::mlx) fn openblas_kernels() -> Option<String> {
    type CoreName = unsafe extern "C" fn() -> *const std::ffi::c_char;
    // SAFETY: a NUL-terminated name; the function of this name takes nothing and returns a string that is
    // never freed, in every OpenBLAS that has it.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"openblas_get_corename".as_ptr());
        if symbol.is_null() {
            return None;
        }
        let name = std::mem::transmute::<*mut libc::c_void, CoreName>(symbol)();
        (!name.is_null()).then(|| std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned())
    }
}

/// On how many threads OpenBLAS computes a product from now on; 0 is as many as it has. Nothing where it is not loaded.
pub(in crate::mlx) fn set_openblas_threads(num_threads: usize) {
    type SetThreads = unsafe extern "C" fn(i32);
    let Ok(num_threads) = i32::try_from(num_threads) else { return };
    // SAFETY: a NUL-terminated name; the function of this name takes a number, whatever it is, and returns
    // nothing, in every OpenBLAS that has it.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"openblas_set_num_threads".as_ptr());
        if !symbol.is_null() {
            std::mem::transmute::<*mut libc::c_void, SetThreads>(symbol)(num_threads);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use mlx_rs::{Array, ops};

    use super::*;
    use crate::mlx::sys::slice_axis;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|at| ((at * 7 + seed) as f32 * 0.713).sin()).collect()
    }

    /// Large enough for several threads, by rows and by columns, and with what does not divide evenly.
    #[test]
    fn products_of_several_threads_are_the_numbers_that_they_should_be() {
        for (num_rows, inputs, outputs) in [(70, 301, 1003), (1003, 301, 70), (1, 2049, 2051), (3, 5, 7)] {
            let (rows, matrix) = (numbers(num_rows * inputs, 1), numbers(inputs * outputs, 2));
            for steps in [(outputs, 1), (1, inputs)] {
                let number = |input: usize, output: usize| matrix[input * steps.0 + output * steps.1];
                let mut results = vec![1.0; num_rows * outputs];
                multiply_rows(&rows, (&matrix, (inputs, outputs), steps), true, &mut results);
                for (index, found) in results.iter().enumerate().step_by(97) {
                    let (row, output) = (index / outputs, index % outputs);
                    let products = (0..inputs).map(|input| {
                        f64::from(rows[row * inputs + input]) * f64::from(number(input, output))
                    });
                    let expected = 1.0 + products.sum::<f64>();
                    assert!((f64::from(*found) - expected).abs() < 1e-3, "{index}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn parts_of_rows_are_written_and_nothing_beside_them() {
        let (rows, matrix) = (numbers(4 * 3, 1), numbers(3 * 5, 2));
        let matrix = (matrix.as_slice(), (3, 5), (1, 3));
        let mut whole = vec![0.0; 4 * 5];
        multiply_rows(&rows, matrix, false, &mut whole);
        let mut wide = [7.0; 4 * 9];
        let mut parts: Vec<&mut [f32]> = wide.chunks_mut(9).map(|row| &mut row[2..7]).collect();
        multiply_rows_into_parts(&rows, matrix, &mut parts);
        for (row, expected) in wide.chunks(9).zip(whole.chunks(5)) {
            assert_eq!((&row[..2], &row[7..]), (&[7.0, 7.0][..], &[7.0, 7.0][..]));
            assert!(row[2..7].iter().zip(expected).all(|(left, right)| (left - right).abs() < 1e-6));
        }
        // Rows that lie elsewhere, and too few numbers.
        let mut others = [vec![0.0; 5], vec![0.0; 50], vec![0.0; 5], vec![0.0; 5]];
        let apart = |parts: &mut [&mut [f32]]| {
            let rows = &rows;
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                multiply_rows_into_parts(rows, matrix, parts);
            }))
        };
        let mut parts: Vec<&mut [f32]> = others.iter_mut().map(|row| &mut row[..5]).collect();
        parts.swap(0, 1);
        assert!(apart(&mut parts).is_err());
        let mut narrow = [0.0; 4 * 4];
        let mut parts: Vec<&mut [f32]> = narrow.chunks_mut(4).collect();
        assert!(apart(&mut parts).is_err());
        let mut parts: Vec<&mut [f32]> = wide.chunks_mut(9).take(3).map(|row| &mut row[2..7]).collect();
        assert!(apart(&mut parts).is_err());
    }

    #[test]
    fn a_product_of_one_row_is_that_row_of_a_product_of_two() {
        let numbers: Vec<f32> = (0..35 * 20).map(|number| (number as f32 * 0.7).sin()).collect();
        let array =
            |shape: &[i32]| Array::from_slice(&numbers[..shape.iter().product::<i32>() as usize], shape);
        for (rows, matrix) in [
            (array(&[2, 20]), array(&[20, 35])),
            (array(&[2, 20]), array(&[35, 20]).transpose_axes(&[1, 0]).unwrap()),
            (array(&[20, 2]).transpose_axes(&[1, 0]).unwrap(), array(&[20, 35])),
        ] {
            let both = rows.matmul(&matrix).unwrap();
            both.eval().unwrap();
            for row in 0..2 {
                let before = gemm::NUM_SINGLE_ROWS.load(Ordering::Relaxed);
                let one = slice_axis(&rows, 0, row, row + 1).unwrap().matmul(&matrix).unwrap();
                one.eval().unwrap();
                assert!(gemm::NUM_SINGLE_ROWS.load(Ordering::Relaxed) > before, "it was served here");
                let expected = slice_axis(&both, 0, row, row + 1).unwrap();
                let difference = ops::abs(one.subtract(expected).unwrap()).unwrap().max(None).unwrap();
                assert!(difference.item_exact::<f32>() < 1e-5, "row {row}");
            }
        }
    }
}
