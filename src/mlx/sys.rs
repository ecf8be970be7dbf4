//! The only `unsafe` code: calls that `mlx_rs` does not wrap, and the C library's dynamic linker.
//!
//! Owns thin, checked wrappers; what they are for is their callers' business.

use mlx_rs::{Array, Dtype, Stream, error::Exception};

/// The clock that mlx-rs seeds its random generator with; only macOS has it.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
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
    let mut starts = vec![0; shape.len()];
    let mut stops = shape.to_vec();
    let strides = vec![1; shape.len()];
    if axis >= shape.len() {
        return Err(Exception::custom(format!("no axis {axis} in an array of {} axes", shape.len())));
    }
    starts[axis] = start as i32;
    stops[axis] = stop as i32;
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

/// Ends the process without any clean-up, which may be waiting for a computation under way.
pub(super) fn exit_at_once(code: u8) -> ! {
    // SAFETY: `_exit` may be called at any time from any thread.
    unsafe { libc::_exit(i32::from(code)) }
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
