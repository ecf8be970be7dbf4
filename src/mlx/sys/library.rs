//! What the MLX library says of itself, of the machine and of arrays that are not computed yet.

#[cfg(test)]
use mlx_rs::Array;

/// The clock that mlx-rs seeds its random generator with; only macOS has it.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn mach_approximate_time() -> u64 {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// Version of the MLX library that is really loaded.
pub(in crate::mlx) fn mlx_version() -> String {
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

/// Whether this machine has a GPU that the loaded MLX can use.
pub(in crate::mlx) fn gpu_is_available() -> bool {
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

/// The operations that these arrays, not computed yet, are made by: a graph in the DOT language, in which
/// inputs point to operations and these to their outputs.
#[cfg(test)]
pub(in crate::mlx) fn graph_of(outputs: &[Array]) -> String {
    written_graph(outputs, |stream, namer, vector| {
        // SAFETY: the caller's handles are alive.
        unsafe { mlx_sys::mlx_export_to_dot(stream, namer, vector) }
    })
}

/// The same as a line for each operation: its name, its inputs and its outputs, each with shape and type.
#[cfg(test)]
pub(in crate::mlx) fn operations_of(outputs: &[Array]) -> String {
    written_graph(outputs, |stream, namer, vector| {
        // SAFETY: the caller's handles are alive.
        unsafe { mlx_sys::mlx_print_graph(stream, namer, vector) }
    })
}

#[cfg(test)]
fn written_graph(
    outputs: &[Array],
    write: impl Fn(*mut mlx_sys::FILE, mlx_sys::mlx_node_namer, mlx_sys::mlx_vector_array) -> i32,
) -> String {
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
        let status = write(stream.cast(), namer, vector);
        mlx_sys::mlx_node_namer_free(namer);
        mlx_sys::mlx_vector_array_free(vector);
        libc::fclose(stream);
        assert_eq!(status, 0);
    }
    std::fs::read_to_string(file.path()).expect("it was written just now")
}
