//! The only `unsafe` code: calls that `mlx_rs` does not wrap, the C library's dynamic linker, and the
//! one BLAS call that the executable has in front of the library's.
//!
//! Owns thin, checked wrappers; what they are for is their callers' business.

mod quantized;

use std::ops::Range;

use mlx_rs::{Array, Dtype, Stream, error::Exception};

pub(super) use quantized::{
    Packing, QuantizedParts, dequantize, from_fp8, gather_quantized_matmul, quantized_matmul,
};

/// The clock that mlx-rs seeds its random generator with; only macOS has it.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// Matrix products of one row: as a matrix-vector product OpenBLAS reads the matrix twice as fast as in
/// `cblas_sgemm`, and a single sequence decodes as fast as its weights are read.
///
/// MLX knows no such call on the CPU. The dynamic linker has its `cblas_sgemm` be the executable's own,
/// this one, which hands everything else on to the library that comes next.
#[cfg(target_os = "linux")]
mod single_row {
    use std::{ffi::CStr, sync::OnceLock};

    #[rustfmt::skip]
    type Gemm = unsafe extern "C" fn(
        i32, i32, i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32,
    );
    type Gemv =
        unsafe extern "C" fn(i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);

    const ROW_MAJOR: i32 = 101;
    const PLAIN: i32 = 111;
    const TRANSPOSED: i32 = 112;

    #[cfg(test)]
    pub(super) static NUM_SINGLE_ROWS: std::sync::atomic::AtomicUsize =
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
    unsafe extern "C" fn cblas_sgemm(
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

fn array_from(
    operation: &'static str,
    call: impl FnOnce(*mut mlx_sys::mlx_array) -> i32,
) -> Result<Array, Exception> {
    // SAFETY: a fresh empty handle; whatever the call leaves in it is owned by the new `Array`.
    let (array, status) = unsafe {
        let mut raw = mlx_sys::mlx_array_new();
        let status = call(&mut raw);
        (Array::from_ptr(raw), status)
    };
    if status == 0 { Ok(array) } else { Err(Exception::custom(format!("MLX {operation} failed"))) }
}

/// Elements `start..stop` along `axis`, without a copy.
///
/// Bounds are clipped by MLX as in NumPy.
pub(super) fn slice_axis(array: &Array, axis: usize, start: usize, stop: usize) -> Result<Array, Exception> {
    let shape = array.shape();
    if axis >= shape.len() {
        return Err(Exception::custom(format!("no axis {axis} in an array of {} axes", shape.len())));
    }
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start as i32, stop as i32);
    slice(array, &starts, &stops, &vec![1; shape.len()])
}

/// The same elements in the opposite order along the last axis, without a copy.
pub(super) fn reversed_last_axis(array: &Array) -> Result<Array, Exception> {
    let shape = array.shape();
    let Some(last) = shape.len().checked_sub(1) else {
        return Err(Exception::custom("no axis in an array of one number".to_owned()));
    };
    let (mut starts, mut stops, mut strides) = (vec![0; shape.len()], shape.to_vec(), vec![1; shape.len()]);
    // Before the first element, as in NumPy where the end is left out.
    (starts[last], stops[last], strides[last]) = (shape[last] - 1, -shape[last] - 1, -1);
    slice(array, &starts, &stops, &strides)
}

/// Elements from `starts` to `stops` in steps of `strides`, one of each for every axis, without a copy.
fn slice(array: &Array, starts: &[i32], stops: &[i32], strides: &[i32]) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    array_from("slice", |result| {
        // SAFETY: all pointers are valid for their lengths during the call.
        unsafe {
            mlx_sys::mlx_slice(
                result,
                array.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                stream.as_ptr(),
            )
        }
    })
}

/// An array with elements from `starts` on, along each axis, replaced by all of `update`. Nothing is copied
/// but those where nobody else holds the array when it is computed: it takes it for that.
pub(super) fn set_at(array: Array, starts: &[usize], update: &Array) -> Result<Array, Exception> {
    if starts.len() != array.ndim() || starts.len() != update.ndim() {
        return Err(Exception::custom(format!("{} starts for {} axes", starts.len(), array.ndim())));
    }
    let stops: Vec<i32> =
        starts.iter().zip(update.shape()).map(|(&start, &size)| start as i32 + size).collect();
    let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
    if stops.iter().zip(array.shape()).any(|(stop, size)| stop > size) {
        return Err(Exception::custom(format!("{:?} do not fit into {:?}", update.shape(), array.shape())));
    }
    let strides = vec![1; starts.len()];
    let stream = Stream::thread_local_or_default();
    array_from("slice update", |result| {
        // SAFETY: both handles are alive, and all pointers valid for their lengths, during the call.
        unsafe {
            mlx_sys::mlx_slice_update(
                result,
                array.as_ptr(),
                update.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                stream.as_ptr(),
            )
        }
    })
}

/// Arrays of float32 after `change` has been at their numbers, in row-major order; nothing is copied where
/// they are in that order.
///
/// They are computed first, and changed in place: nobody else may hold one of them, or another array that
/// shares its memory, or something not computed yet that is made of it.
pub(super) fn changed_in_place(
    arrays: Vec<Array>,
    change: impl FnOnce(&mut [&mut [f32]]),
) -> Result<Vec<Array>, Exception> {
    if let Some(array) = arrays.iter().find(|array| array.dtype() != Dtype::Float32) {
        return Err(Exception::custom(format!("{:?} numbers are not changed in place", array.dtype())));
    }
    let in_order = arrays.iter().map(|array| array.contiguous()).collect::<Result<Vec<_>, _>>()?;
    drop(arrays);
    mlx_rs::transforms::eval(&in_order)?;
    let mut slices: Vec<&mut [f32]> = Vec::with_capacity(in_order.len());
    for array in &in_order {
        // SAFETY: the array is evaluated and in order, so its numbers lie one behind the other; they are
        // alive as long as it is, and by the contract nobody else reads them.
        slices.push(unsafe {
            let data = mlx_sys::mlx_array_data_float32(array.as_ptr()).cast_mut();
            if data.is_null() && array.size() > 0 {
                return Err(Exception::custom("an array without data".to_owned()));
            }
            if data.is_null() { &mut [] } else { std::slice::from_raw_parts_mut(data, array.size()) }
        });
    }
    change(&mut slices);
    Ok(in_order)
}

/// The numbers of an array of float32 as they lie in memory, from its first element to its last, and how far
/// neighbours along each axis lie apart. Nothing is copied; it is computed first.
pub(super) fn strided_numbers(array: &Array) -> Result<(&[f32], Vec<usize>), Exception> {
    if array.dtype() != Dtype::Float32 {
        return Err(Exception::custom(format!("{:?} numbers are not read as float32", array.dtype())));
    }
    array.eval()?;
    let strides = array.strides().to_vec();
    if array.size() == 0 {
        return Ok((&[], strides));
    }
    let last = array.shape().iter().zip(&strides).try_fold(0_usize, |last, (&size, &stride)| {
        let backwards = isize::try_from(stride).is_err() && size > 1;
        let axis = if backwards { None } else { (size as usize - 1).checked_mul(stride) };
        last.checked_add(axis.unwrap_or_default()).filter(|_| !backwards)
    });
    let last = last.ok_or_else(|| Exception::custom("an array that runs backwards in memory".to_owned()))?;
    // SAFETY: the array is evaluated, so that its elements lie at these strides from the first one, which is where
    // the pointer points; they are alive as long as it is, and what is computed is not written to while it is held.
    let numbers = unsafe {
        let data = mlx_sys::mlx_array_data_float32(array.as_ptr());
        if data.is_null() {
            return Err(Exception::custom("an array without data".to_owned()));
        }
        std::slice::from_raw_parts(data, last + 1)
    };
    Ok((numbers, strides))
}

/// A copy of a part of an array, made by this thread at once; the part is given as a range along each axis. The array
/// is computed first.
pub(super) fn copied_part(array: &Array, part: &[Range<usize>]) -> Result<Array, Exception> {
    array.eval()?;
    let (shape, strides) = (array.shape(), array.strides());
    let is_within =
        |(range, &size): (&Range<usize>, &i32)| range.start <= range.end && range.end <= size as usize;
    if part.len() != shape.len() || !part.iter().zip(shape).all(is_within) {
        return Err(Exception::custom(format!("no part {part:?} in an array of shape {shape:?}")));
    }
    let part_shape: Vec<i32> = part.iter().map(|range| range.len() as i32).collect();
    let width = element_bytes(array.dtype());
    let num_elements: usize = part.iter().map(Range::len).product();
    let mut bytes = Vec::with_capacity(num_elements * width);
    // The last axes whose elements lie one behind the other are copied together.
    let mut run = 1;
    let mut num_outer = part.len();
    while num_outer > 0 && strides[num_outer - 1] == run {
        let axis = num_outer - 1;
        num_outer = axis;
        run *= part[axis].len();
        if part[axis].len() != shape[axis] as usize {
            break;
        }
    }
    let inner_start: usize = (num_outer..part.len()).map(|axis| part[axis].start * strides[axis]).sum();
    let mut place: Vec<usize> = part[..num_outer].iter().map(|range| range.start).collect();
    // SAFETY: the array is evaluated, so its elements lie at its strides from where the pointer points, and are
    // alive as long as it is; all that is read is within its shape, as was checked.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
    if data.is_null() && num_elements > 0 {
        return Err(Exception::custom("an array without data".to_owned()));
    }
    while bytes.len() < num_elements * width {
        let offset = place.iter().zip(strides).map(|(index, stride)| index.wrapping_mul(*stride));
        let offset = offset.fold(inner_start, usize::wrapping_add) as isize * width as isize;
        // SAFETY: as above.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(data.offset(offset), run * width) });
        for axis in (0..num_outer).rev() {
            place[axis] += 1;
            if place[axis] < part[axis].end {
                break;
            }
            place[axis] = part[axis].start;
        }
    }
    array_of_bytes(&bytes, &part_shape, array.dtype())
}

/// Does little work in instructions as wide as this machine has; where there is more to it than a loop or two,
/// [`do_with_wide_vectors`] does.
#[inline(always)]
pub(super) fn with_wide_vectors<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_512_bits<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        #[target_feature(enable = "avx2")]
        fn with_256_bits<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has them.
            return unsafe { with_512_bits(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has them.
            return unsafe { with_256_bits(work) };
        }
    }
    work()
}

/// Work for [`do_with_wide_vectors`].
pub(super) trait WideWork {
    /// Does it; `#[inline(always)]`, with all that it calls.
    fn run(self);
}

/// Does work in instructions as wide as this machine has, and with a fused multiply-add where
/// [`has_fused_multiply_add`] says so.
///
/// A trait's method can be told to be inlined, a closure cannot: once it is large its three calls are not inlined,
/// and what is not inlined is compiled for the narrow instructions that every machine has.
#[inline(always)]
pub(super) fn do_with_wide_vectors(work: impl WideWork) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_512_bits(work: impl WideWork) {
            work.run();
        }
        #[target_feature(enable = "avx2,fma")]
        fn with_256_bits(work: impl WideWork) {
            work.run();
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has them.
            return unsafe { with_512_bits(work) };
        }
        if has_fused_multiply_add() {
            // SAFETY: the machine has them.
            return unsafe { with_256_bits(work) };
        }
    }
    work.run();
}

/// Whether [`WideWork`] may use `f32::mul_add`: where the instructions have none it is a
/// call of a function, a hundred times slower.
pub(super) fn has_fused_multiply_add() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}

/// Shifts integers left, bit by bit.
pub(super) fn left_shift(array: &Array, bits: &Array) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    array_from("left shift", |result| {
        // SAFETY: both handles are alive during the call.
        unsafe { mlx_sys::mlx_left_shift(result, array.as_ptr(), bits.as_ptr(), stream.as_ptr()) }
    })
}

/// Bytes of one element.
pub(super) fn element_bytes(dtype: Dtype) -> usize {
    // SAFETY: a table lookup.
    unsafe { mlx_sys::mlx_dtype_size(dtype.into()) }
}

/// Appends an array's bytes to `bytes`; its elements must lie one behind the other.
pub(super) fn append_bytes(array: &Array, bytes: &mut Vec<u8>) -> Result<(), Exception> {
    array.eval()?;
    // SAFETY: the array is evaluated, so its data is there, and alive as long as `array` is; any
    // element type may be read as bytes.
    let data = unsafe {
        let data = mlx_sys::mlx_array_data_uint8(array.as_ptr());
        if data.is_null() && array.nbytes() > 0 {
            return Err(Exception::custom("an array without data".to_owned()));
        }
        if data.is_null() { &[] } else { std::slice::from_raw_parts(data, array.nbytes()) }
    };
    bytes.extend_from_slice(data);
    Ok(())
}

/// A new array of these bytes, which are copied.
pub(super) fn array_of_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array, Exception> {
    let num_elements = shape.iter().try_fold(1_usize, |product, &dim| {
        usize::try_from(dim).ok().and_then(|dim| product.checked_mul(dim))
    });
    let num_bytes = num_elements.and_then(|num_elements| num_elements.checked_mul(element_bytes(dtype)));
    if num_bytes != Some(bytes.len()) {
        return Err(Exception::custom(format!("{} bytes are no {dtype:?} of shape {shape:?}", bytes.len())));
    }
    // SAFETY: the bytes are as many as the shape takes, and copied during the call.
    Ok(unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, dtype) })
}

/// Version of the MLX library that is really loaded.
pub(super) fn mlx_version() -> String {
    // SAFETY: the string is made, read and freed here; its data is NUL-terminated.
    unsafe {
        let mut text = mlx_sys::mlx_string_new();
        let status = mlx_sys::mlx_version(&mut text);
        let data = mlx_sys::mlx_string_data(text);
        let version = if status == 0 && !data.is_null() {
            std::ffi::CStr::from_ptr(data).to_string_lossy().into_owned()
        } else {
            "unknown".to_owned()
        };
        mlx_sys::mlx_string_free(text);
        version
    }
}

/// Maps a whole file read-only.
pub(super) fn map_file(path: &std::path::Path) -> std::io::Result<memmap2::Mmap> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is only read, through checked parsers; a file that another process changes
    // meanwhile can give wrong bytes, which those parsers treat as any bad input.
    unsafe { memmap2::Mmap::map(&file) }
}

/// Whether this machine has a GPU that the loaded MLX can use.
pub(super) fn gpu_is_available() -> bool {
    let mut available = false;
    // SAFETY: the handle is made, used and freed here.
    let status = unsafe {
        let device = mlx_sys::mlx_device_new_type(mlx_sys::mlx_device_type__MLX_GPU, 0);
        let status = mlx_sys::mlx_device_is_available(&mut available, device);
        mlx_sys::mlx_device_free(device);
        status
    };
    status == 0 && available
}

/// File of the shared library that serves `symbol` to this process, if it is loaded.
#[cfg(target_os = "linux")]
pub(super) fn library_of(symbol: &std::ffi::CStr) -> Option<String> {
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
#[cfg(target_os = "linux")]
pub(super) fn openblas_kernels() -> Option<String> {
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
#[cfg(target_os = "linux")]
pub(super) fn set_openblas_threads(num_threads: usize) {
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

/// The operations that these arrays, not computed yet, are made by: a graph in the DOT language, in which
/// inputs point to operations and these to their outputs.
#[cfg(test)]
pub(super) fn graph_of(outputs: &[Array]) -> String {
    use std::ffi::CString;
    let file = tempfile::NamedTempFile::new().expect("there is room for a file");
    let path = CString::new(file.path().to_str().expect("a path of text")).expect("without NUL");
    // SAFETY: the file, the handles and the vector are made, used and freed here; the arrays are alive.
    unsafe {
        let stream = libc::fopen(path.as_ptr(), c"w".as_ptr());
        assert!(!stream.is_null());
        let handles: Vec<_> = outputs.iter().map(Array::as_ptr).collect();
        let vector = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
        let namer = mlx_sys::mlx_node_namer_new();
        let status = mlx_sys::mlx_export_to_dot(stream.cast(), namer, vector);
        mlx_sys::mlx_node_namer_free(namer);
        mlx_sys::mlx_vector_array_free(vector);
        libc::fclose(stream);
        assert_eq!(status, 0);
    }
    std::fs::read_to_string(file.path()).expect("it was written just now")
}

/// Ends the process without any clean-up, which may be waiting for a computation under way.
pub(super) fn exit_at_once(code: u8) -> ! {
    // SAFETY: `_exit` may be called at any time from any thread.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Has a write beyond the limit on the size of files fail, which is told, in place of ending the process.
pub(super) fn ignore_file_size_signal() {
    // SAFETY: no handler is set; the signal's disposition is the process's own.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Most memory this process has had resident so far, in bytes.
pub(super) fn peak_resident_bytes() -> u64 {
    // SAFETY: `getrusage` fills the zeroed struct it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
            return 0;
        }
        usage
    };
    let maximum = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // Linux counts KiB, macOS bytes.
    if cfg!(target_os = "macos") { maximum } else { maximum.saturating_mul(1024) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::atomic::Ordering;

    use mlx_rs::ops;

    use super::*;

    #[test]
    fn numbers_are_changed_in_row_major_order_and_only_float32_ones() {
        let array = || Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let in_order = array().multiply(Array::from_f32(1.0)).unwrap();
        in_order.eval().unwrap();
        let memory = in_order.try_as_slice::<f32>().unwrap().as_ptr();
        let transposed = array().transpose_axes(&[1, 0]).unwrap();
        let changed = changed_in_place(vec![in_order, transposed], |numbers| {
            assert_eq!(numbers[1], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
            numbers.iter_mut().for_each(|numbers| numbers[1] = 9.0);
        })
        .unwrap();
        assert_eq!(changed[0].try_as_slice::<f32>().unwrap(), [1.0, 9.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(changed[0].try_as_slice::<f32>().unwrap().as_ptr(), memory, "nothing is copied");
        assert_eq!(changed[1].shape(), [3, 2]);
        assert_eq!(changed[1].try_as_slice::<f32>().unwrap(), [1.0, 9.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(changed_in_place(vec![Array::from_int(3)], |_| unreachable!("not float32")).is_err());
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
