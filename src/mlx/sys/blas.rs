//! The one BLAS call that the executable has in front of the library's, and what OpenBLAS tells and is told.

/// Matrix products of one row: as a matrix-vector product OpenBLAS reads the matrix twice as fast as in
/// `cblas_sgemm`, and a single sequence decodes as fast as its weights are read.
///
/// MLX knows no such call on the CPU. The dynamic linker has its `cblas_sgemm` be the executable's own,
/// this one, which hands everything else on to the library that comes next.
mod single_row {
    use std::{ffi::CStr, sync::OnceLock};

    #[rustfmt::skip]
    type Gemm = unsafe extern "C" fn(
        i32, i32, i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32,
    );
    type Gemv =
        unsafe extern "C" fn(i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);

    pub(super) const ROW_MAJOR: i32 = 101;
    pub(super) const PLAIN: i32 = 111;
    pub(super) const TRANSPOSED: i32 = 112;

    #[cfg(test)]
    pub(in crate::mlx) static NUM_SINGLE_ROWS: std::sync::atomic::AtomicUsize =
        std::sync::atomic::AtomicUsize::new(0);

    fn next(symbol: &CStr) -> *mut libc::c_void {
        // SAFETY: a NUL-terminated name.
        unsafe { libc::dlsym(libc::RTLD_NEXT, symbol.as_ptr()) }
    }

    fn next_gemm() -> Gemm {
        static GEMM: OnceLock<Gemm> = OnceLock::new();
        *GEMM.get_or_init(|| {
            let gemm = next(c"cblas_sgemm");
            assert!(!gemm.is_null(), "libmlx is linked to a BLAS");
            // SAFETY: the function of this name has this type in every CBLAS of 32-bit integers, which
            // is what MLX is built for.
            unsafe { std::mem::transmute::<*mut libc::c_void, Gemm>(gemm) }
        })
    }

    fn next_gemv() -> Option<Gemv> {
        static GEMV: OnceLock<Option<Gemv>> = OnceLock::new();
        *GEMV.get_or_init(|| {
            let gemv = next(c"cblas_sgemv");
            // SAFETY: as above.
            (!gemv.is_null()).then(|| unsafe { std::mem::transmute::<*mut libc::c_void, Gemv>(gemv) })
        })
    }

    /// `c = alpha · op(a) · op(b) + beta · c`, with `op(a)` of `m` rows and `k` columns.
    #[unsafe(no_mangle)]
    #[rustfmt::skip]
    pub(super) unsafe extern "C" fn cblas_sgemm(
        layout: i32, transpose_a: i32, transpose_b: i32, m: i32, n: i32, k: i32,
        alpha: f32, a: *const f32, lda: i32, b: *const f32, ldb: i32, beta: f32, c: *mut f32, ldc: i32,
    ) {
        if layout == ROW_MAJOR && m == 1 && let Some(gemv) = next_gemv() {
            #[cfg(test)]
            NUM_SINGLE_ROWS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let step_a = if transpose_a == PLAIN { 1 } else { lda };
            // As it is stored: `n` rows if `op` transposes it, else `k`.
            let (rows, columns, transpose) =
                if transpose_b == PLAIN { (k, n, TRANSPOSED) } else { (n, k, PLAIN) };
            // SAFETY: the caller's arrays are as large as its sizes say; the same elements are read and
            // written as by the product that it asked for.
            unsafe { gemv(layout, transpose, rows, columns, alpha, b, ldb, a, step_a, beta, c, 1) }
        } else {
            // SAFETY: handed on as it came.
            unsafe {
                next_gemm()(
                    layout, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                )
            }
        }
    }
}

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
    let matrix = BlasMatrix::of(matrix).expect("the caller's matrix is for a BLAS");
    let (inputs, outputs) = (matrix.num_inputs, matrix.num_outputs);
    let num_rows = rows.len() / inputs as usize;
    assert_eq!(rows.len(), num_rows * inputs as usize, "whole rows");
    assert_eq!(results.len(), num_rows * outputs as usize, "a result for each row and output");
    let transpose = if matrix.is_by_output { single_row::TRANSPOSED } else { single_row::PLAIN };
    let (a, b, c) = (rows.as_ptr(), matrix.numbers.as_ptr(), results.as_mut_ptr());
    let num_rows = i32::try_from(num_rows).expect("a pass has fewer rows");
    let beta = if adds { 1.0 } else { 0.0 };
    // SAFETY: rows and results are as large as was asserted, the matrix as was checked when it was made.
    unsafe {
        single_row::cblas_sgemm(
            single_row::ROW_MAJOR,
            single_row::PLAIN,
            transpose,
            num_rows,
            outputs,
            inputs,
            1.0,
            a,
            inputs,
            b,
            matrix.step,
            beta,
            c,
            outputs,
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
                let before = single_row::NUM_SINGLE_ROWS.load(Ordering::Relaxed);
                let one = slice_axis(&rows, 0, row, row + 1).unwrap().matmul(&matrix).unwrap();
                one.eval().unwrap();
                assert!(single_row::NUM_SINGLE_ROWS.load(Ordering::Relaxed) > before, "it was served here");
                let expected = slice_axis(&both, 0, row, row + 1).unwrap();
                let difference = ops::abs(one.subtract(expected).unwrap()).unwrap().max(None).unwrap();
                assert!(difference.item_exact::<f32>() < 1e-5, "row {row}");
            }
        }
    }
}
