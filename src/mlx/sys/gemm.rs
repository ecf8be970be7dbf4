//! Matrix products as the executable has them in front of the BLAS: shared among the team's threads.
//!
//! Owns `cblas_sgemm`, the one call that MLX knows on the CPU. The dynamic linker has it be the executable's own, this
//! one, which hands everything on to the library that comes next. That would share products among threads of its own,
//! which look out for the next one for milliseconds, in the way of whoever works in between.

use std::{
    ffi::CStr,
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::team::{on_team, team_size};

#[rustfmt::skip]
type Gemm = unsafe extern "C" fn(
    i32, i32, i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32,
);
type Gemv =
    unsafe extern "C" fn(i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);

pub(super) const ROW_MAJOR: i32 = 101;
pub(super) const PLAIN: i32 = 111;
pub(super) const TRANSPOSED: i32 = 112;

/// Products of numbers that another thread is asked for: what takes a few times as long as to ask.
const PART_PRODUCTS: usize = 1 << 21;

/// Rows that it takes as long to read a matrix for as to multiply by it.
const MIN_ROWS: usize = 8;

/// Columns that a BLAS takes at once, or some of those.
pub(in crate::mlx) const COLUMNS_TOGETHER: usize = 16;

#[cfg(test)]
pub(in crate::mlx) static NUM_SINGLE_ROWS: AtomicUsize = AtomicUsize::new(0);

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

/// `c = alpha · op(a) · op(b) + beta · c`, with `op(a)` of `m` rows and `k` columns, in row-major order; with each
/// array how far its rows lie apart.
#[derive(Clone, Copy)]
struct Product {
    transposes: (i32, i32),
    /// m, n, k.
    shape: (i32, i32, i32),
    alpha: f32,
    a: (*const f32, i32),
    b: (*const f32, i32),
    beta: f32,
    c: (*mut f32, i32),
}

// SAFETY: threads are given parts that write to different numbers of `c`.
unsafe impl Sync for Product {}

impl Product {
    /// Some rows of `c`.
    ///
    /// # Safety
    ///
    /// There are those rows.
    unsafe fn rows(self, rows: Range<i32>) -> Self {
        let (_, n, k) = self.shape;
        let first = rows.start as usize;
        let step_a = if self.transposes.0 == PLAIN { self.a.1 as usize } else { 1 };
        // SAFETY: within the arrays of the whole.
        let (a, c) = unsafe { (self.a.0.add(first * step_a), self.c.0.add(first * self.c.1 as usize)) };
        Self { shape: (rows.end - rows.start, n, k), a: (a, self.a.1), c: (c, self.c.1), ..self }
    }

    /// Some columns of `c`.
    ///
    /// # Safety
    ///
    /// There are those columns.
    unsafe fn columns(self, columns: Range<i32>) -> Self {
        let (m, _, k) = self.shape;
        let first = columns.start as usize;
        let step_b = if self.transposes.1 == PLAIN { 1 } else { self.b.1 as usize };
        // SAFETY: within the arrays of the whole.
        let (b, c) = unsafe { (self.b.0.add(first * step_b), self.c.0.add(first)) };
        Self { shape: (m, columns.end - columns.start, k), b: (b, self.b.1), c: (c, self.c.1), ..self }
    }

    /// On this thread; one row as a matrix-vector product, for which OpenBLAS reads the matrix twice as fast: a single
    /// sequence decodes as fast as its weights are read.
    ///
    /// # Safety
    ///
    /// The arrays are as large as the sizes say.
    unsafe fn compute(self) {
        let Self { transposes: (transpose_a, transpose_b), shape: (m, n, k), alpha, beta, .. } = self;
        let ((a, lda), (b, ldb), (c, ldc)) = (self.a, self.b, self.c);
        if m == 1
            && let Some(gemv) = next_gemv()
        {
            #[cfg(test)]
            NUM_SINGLE_ROWS.fetch_add(1, Ordering::Relaxed);
            let step_a = if transpose_a == PLAIN { 1 } else { lda };
            // As it is stored: `n` rows if `op` transposes it, else `k`.
            let (rows, columns, transpose) =
                if transpose_b == PLAIN { (k, n, TRANSPOSED) } else { (n, k, PLAIN) };
            // SAFETY: the same elements are read and written as by the product that was asked for.
            return unsafe {
                gemv(ROW_MAJOR, transpose, rows, columns, alpha, b, ldb, a, step_a, beta, c, 1)
            };
        }
        // SAFETY: handed on as it came.
        unsafe {
            next_gemm()(ROW_MAJOR, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        }
    }

    /// On as many threads as it is worth.
    ///
    /// # Safety
    ///
    /// The arrays are as large as the sizes say.
    unsafe fn compute_on_team(self) {
        let (m, n, k) = self.shape;
        let [rows, columns, inner] = [m, n, k].map(|size| size.max(0) as usize);
        let num_products = rows.max(MIN_ROWS) * columns * inner;
        let by_columns = n >= m;
        let (size, together) = if by_columns { (n, COLUMNS_TOGETHER as i32) } else { (m, 1) };
        let num_parts = match num_products / PART_PRODUCTS {
            0 | 1 => 1,
            num_parts => team_size().min(num_parts).min((size / together) as usize),
        };
        if num_parts <= 1 {
            // SAFETY: as it came.
            return unsafe { self.compute() };
        }
        let (next_part, whole) = (AtomicUsize::new(0), &self);
        let bound = |part: usize| match part == num_parts {
            true => size,
            false => ((size / together) as usize * part / num_parts) as i32 * together,
        };
        on_team(num_parts, || {
            loop {
                let part = next_part.fetch_add(1, Ordering::Relaxed);
                if part >= num_parts {
                    break;
                }
                let range = bound(part)..bound(part + 1);
                // SAFETY: the bounds are within those of the whole, and each part is one thread's.
                unsafe {
                    let part = if by_columns { whole.columns(range) } else { whole.rows(range) };
                    part.compute();
                }
            }
        });
    }
}

/// # Safety
///
/// As of every BLAS: the arrays are as large as the sizes say.
#[unsafe(no_mangle)]
#[rustfmt::skip]
pub(super) unsafe extern "C" fn cblas_sgemm(
    layout: i32, transpose_a: i32, transpose_b: i32, m: i32, n: i32, k: i32,
    alpha: f32, a: *const f32, lda: i32, b: *const f32, ldb: i32, beta: f32, c: *mut f32, ldc: i32,
) {
    if layout == ROW_MAJOR {
        let (transposes, shape) = ((transpose_a, transpose_b), (m, n, k));
        let product = Product { transposes, shape, alpha, a: (a, lda), b: (b, ldb), beta, c: (c, ldc) };
        // SAFETY: the caller's arrays are as large as its sizes say.
        unsafe { product.compute_on_team() }
    } else {
        // SAFETY: handed on as it came.
        unsafe {
            next_gemm()(
                layout, transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
            )
        }
    }
}
